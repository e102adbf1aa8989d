//! Accepting nodes over TCP and TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use super::handshakes::Handshakes;
use super::{SecurityContext, TlsFailure};
use crate::{Certificate, PeerIdentity};

/// What is known of a connection of a node: found in the extensions of every request on it.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Where it comes from.
    pub remote_addr: SocketAddr,
    /// Who it is, when it showed a certificate; that one has been verified against the root.
    pub identity: Option<Arc<PeerIdentity>>,
}

/// A connection of a node, after its handshake.
pub struct ServerStream {
    tls: Box<tokio_rustls::server::TlsStream<TcpStream>>,
    info: ConnectionInfo,
}

impl ServerStream {
    /// What is known of it.
    pub fn info(&self) -> &ConnectionInfo {
        &self.info
    }
}

/// A stream of connections for `tonic`'s `serve_with_incoming_shutdown`: accepts, does each handshake in a task of its
/// own with the configuration of that moment, and logs why a peer was refused. Dropping it ends the handshakes.
pub struct TlsIncoming {
    listener: TcpListener,
    context: Arc<SecurityContext>,
    handshakes: Handshakes<ServerStream>,
}

impl TlsIncoming {
    /// Accepts on this listener.
    pub fn new(listener: TcpListener, context: Arc<SecurityContext>) -> Self {
        Self { listener, context, handshakes: Handshakes::new() }
    }
}

impl Stream for TlsIncoming {
    type Item = io::Result<ServerStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { listener, context, handshakes } = self.get_mut();
        handshakes
            .poll_next(cx, |cx| {
                listener.poll_accept(cx).map_ok(|(stream, remote_addr)| {
                    let context = context.clone();
                    async move {
                        match accept(&context, stream, remote_addr).await {
                            Ok(stream) => Some(stream),
                            Err(error) => {
                                log_refusal(remote_addr, &error);
                                None
                            }
                        }
                    }
                })
            })
            .map(|stream| Some(Ok(stream)))
    }
}

async fn accept(
    context: &SecurityContext,
    stream: TcpStream,
    remote_addr: SocketAddr,
) -> io::Result<ServerStream> {
    set_tcp_options(&stream)?;
    let acceptor = TlsAcceptor::from(context.current().server_config());
    let tls = Box::new(acceptor.accept(stream).await?);
    let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = match leaf {
        None => None,
        Some(leaf) => {
            let leaf = Certificate::from_der(leaf).map_err(io::Error::other)?;
            Some(Arc::new(PeerIdentity::of(&leaf)))
        }
    };
    Ok(ServerStream { tls, info: ConnectionInfo { remote_addr, identity } })
}

fn log_refusal(remote_addr: SocketAddr, error: &io::Error) {
    match TlsFailure::find(error) {
        Some(reason) => tracing::warn!(%remote_addr, %reason, "refused a connection"),
        // Port scans and health probes of load balancers end like this all day.
        None => tracing::debug!(%remote_addr, %error, "a connection ended during its handshake"),
    }
}

/// Small messages at once; dead peers noticed without HTTP/2 pings, which some peers answer by hanging up.
pub(super) fn set_tcp_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(4);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

impl Connected for ServerStream {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
