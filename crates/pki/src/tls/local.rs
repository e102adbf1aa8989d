//! The local control socket: gRPC in plaintext, or over TLS as the original's clients do, told apart by the first byte.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::server::Connected;

use super::config::{ServerRole, unverified_client};
use super::handshakes::Handshakes;
use crate::Clock;

/// First byte of every TLS connection: the type of a handshake record. HTTP/2 begins with a `P`.
const TLS_HANDSHAKE: u8 = 0x16;

/// What is known of a local client: found in the extensions of every request on its connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalConnectionInfo {
    /// The client's user, group and process, where the kernel tells.
    pub credentials: Option<UCred>,
}

/// A connection on the control socket.
pub struct LocalStream {
    inner: Inner,
    info: LocalConnectionInfo,
}

enum Inner {
    Plain(Rewound),
    Tls(Box<tokio_rustls::server::TlsStream<Rewound>>),
}

/// A stream of connections for `tonic`'s `serve_with_incoming_shutdown`.
pub struct LocalIncoming {
    listener: UnixListener,
    config: TlsSource,
    handshakes: Handshakes<LocalStream>,
}

type TlsSource = Arc<dyn Fn() -> Option<Arc<ServerConfig>> + Send + Sync>;

impl LocalIncoming {
    /// Accepts on this listener. `config` is asked at every TLS handshake; while it gives nothing (a node that has no
    /// certificate yet) only plaintext is served.
    pub fn new(
        listener: UnixListener,
        config: impl Fn() -> Option<Arc<ServerConfig>> + Send + Sync + 'static,
    ) -> Self {
        Self { listener, config: Arc::new(config), handshakes: Handshakes::new() }
    }
}

impl Stream for LocalIncoming {
    type Item = io::Result<LocalStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { listener, config, handshakes } = self.get_mut();
        handshakes
            .poll_next(cx, |cx| {
                listener.poll_accept(cx).map_ok(|(stream, _)| {
                    let config = config.clone();
                    async move {
                        let accepted = accept(stream, &config).await;
                        accepted.inspect_err(|error| tracing::debug!(%error, "control socket")).ok()
                    }
                })
            })
            .map(|stream| Some(Ok(stream)))
    }
}

async fn accept(mut stream: UnixStream, config: &TlsSource) -> io::Result<LocalStream> {
    let info = LocalConnectionInfo { credentials: stream.peer_cred().ok() };
    let first = stream.read_u8().await?;
    let stream = Rewound { first: Some(first), stream };
    let inner = if first == TLS_HANDSHAKE {
        let config = config().ok_or_else(|| io::Error::other("no certificate yet for TLS"))?;
        Inner::Tls(Box::new(TlsAcceptor::from(config).accept(stream).await?))
    } else {
        Inner::Plain(stream)
    };
    Ok(LocalStream { inner, info })
}

/// Connects over TLS to the control socket of a manager that speaks nothing else, as the original's and Docker Engine's
/// do. Whoever has the socket's file is believed to be the manager: its certificate is not checked.
///
/// # Errors
/// If nobody listens there, or not with TLS: then the kind is [`io::ErrorKind::InvalidData`] or
/// [`io::ErrorKind::UnexpectedEof`], among others.
pub async fn connect_local_tls(
    path: &Path,
    clock: &Clock,
) -> io::Result<tokio_rustls::client::TlsStream<UnixStream>> {
    let stream = UnixStream::connect(path).await?;
    let config = unverified_client(clock).map_err(io::Error::other)?;
    TlsConnector::from(config).connect(ServerRole::Manager.server_name(), stream).await
}

impl Connected for LocalStream {
    type ConnectInfo = LocalConnectionInfo;

    fn connect_info(&self) -> LocalConnectionInfo {
        self.info
    }
}

/// A stream whose first byte was already read, and is given out again.
struct Rewound {
    first: Option<u8>,
    stream: UnixStream,
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buf.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Inner::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Inner::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Inner::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            Inner::Plain(stream) => stream.is_write_vectored(),
            Inner::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
