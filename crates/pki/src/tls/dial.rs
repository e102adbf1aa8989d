//! Dialing managers over TCP and TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::config::{client, unverified_client};
use super::incoming::set_tcp_options;
use super::{SecurityContext, ServerRole, TlsFailure};
use crate::{Clock, Credentials, Error, Result, RootCa};

/// Time for the TCP connection and the handshake together.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a manager, after its handshake.
pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Why a manager could not be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// No TCP connection.
    #[error("connecting to {address}: {source}")]
    Connect {
        /// What was dialed.
        address: String,
        /// What happened.
        source: io::Error,
    },
    /// A TCP connection, but no TLS one.
    #[error("connecting to {address}: {failure}")]
    Tls {
        /// What was dialed.
        address: String,
        /// Why.
        #[source]
        failure: TlsFailure,
    },
    /// Neither answer nor refusal.
    #[error("connecting to {address}: no answer within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// What was dialed.
        address: String,
    },
}

/// Makes TLS connections to managers; cheap to clone. Each one uses the certificate and the root of its moment, so a
/// [`Channel`] that reconnects has the newest ones. One that must not stay on an old certificate is dropped and made
/// anew: open connections keep what they were made with.
#[derive(Clone)]
pub struct Dialer {
    source: ConfigSource,
    role: ServerRole,
}

#[derive(Clone)]
enum ConfigSource {
    Live(Arc<SecurityContext>),
    Fixed(Arc<ClientConfig>),
}

impl Dialer {
    /// Dials as this node, with whatever certificate it has at the time.
    pub fn new(context: Arc<SecurityContext>, role: ServerRole) -> Self {
        Self { source: ConfigSource::Live(context), role }
    }

    /// Dials without a certificate, and believes any server: only for downloading the root, whose digest is checked
    /// against the join token.
    ///
    /// # Errors
    /// When no TLS configuration can be made.
    pub fn unverified(clock: &Clock) -> Result<Self> {
        Ok(Self { source: ConfigSource::Fixed(unverified_client(clock)?), role: ServerRole::Ca })
    }

    /// Dials without a certificate a server that must be a CA of this root: for asking for the first certificate.
    ///
    /// # Errors
    /// When no TLS configuration can be made.
    pub fn joining(root: &RootCa, clock: &Clock) -> Result<Self> {
        Ok(Self { source: ConfigSource::Fixed(client(root, None, clock)?), role: ServerRole::Ca })
    }

    /// Dials with these credentials, whatever is in use: for fetching the unlock key before they are.
    ///
    /// # Errors
    /// When no TLS configuration can be made.
    pub fn with_credentials(
        root: &RootCa,
        credentials: &Credentials,
        role: ServerRole,
        clock: &Clock,
    ) -> Result<Self> {
        Ok(Self { source: ConfigSource::Fixed(client(root, Some(credentials), clock)?), role })
    }

    /// Connects to `host:port`.
    ///
    /// # Errors
    /// [`DialError`], which says what the other side is instead of a manager of this swarm.
    pub async fn dial(&self, address: &str) -> Result<ClientStream, DialError> {
        let address = address.to_owned();
        match tokio::time::timeout(TIMEOUT, self.connect(&address)).await {
            Ok(result) => result,
            Err(_) => Err(DialError::Timeout { address }),
        }
    }

    async fn connect(&self, address: &str) -> Result<ClientStream, DialError> {
        let refused = |source| DialError::Connect { address: address.to_owned(), source };
        let stream = TcpStream::connect(address).await.map_err(refused)?;
        set_tcp_options(&stream).map_err(refused)?;
        let config = match &self.source {
            ConfigSource::Live(context) => context.current().client_config(),
            ConfigSource::Fixed(config) => config.clone(),
        };
        let connector = TlsConnector::from(config);
        connector.connect(self.role.server_name(), stream).await.map_err(|error| {
            match TlsFailure::find(&error) {
                Some(failure) => DialError::Tls { address: address.to_owned(), failure },
                None => refused(error),
            }
        })
    }

    /// A gRPC channel to `host:port` that connects at its first call, and again whenever the connection was lost.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn channel(&self, address: &str) -> Result<Channel> {
        Ok(endpoint(address)?.connect_with_connector_lazy(self.clone()))
    }

    /// As [`Dialer::channel`], with settings of the caller's (timeouts, windows) on the [`endpoint`].
    pub fn channel_of(&self, endpoint: &Endpoint) -> Channel {
        endpoint.connect_with_connector_lazy(self.clone())
    }
}

/// The gRPC endpoint of `host:port`, for [`Dialer::channel_of`].
///
/// # Errors
/// [`Error::Address`].
pub fn endpoint(address: &str) -> Result<Endpoint> {
    let invalid = || Error::Address(address.to_owned());
    let uri: Uri = format!("http://{address}").parse().map_err(|_| invalid())?;
    if uri.port_u16().is_none() || uri.path() != "/" || uri.query().is_some() {
        return Err(invalid());
    }
    Ok(Endpoint::from(uri))
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<ClientStream>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            let address = uri.authority().map(ToString::to_string).unwrap_or_default();
            dialer.dial(&address).await.map(TokioIo::new)
        })
    }
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").field("role", &self.role).finish_non_exhaustive()
    }
}
