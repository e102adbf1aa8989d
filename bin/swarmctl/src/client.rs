//! The connection to a manager: gRPC over its UNIX socket.

use std::io;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use swarm_api::swarmd::images_client::ImagesClient;
use swarm_api::swarmd::lock_client::LockClient;
use swarm_api::swarmd::recovery_client::RecoveryClient;
use swarm_api::swarmd::services_client::ServicesClient;
use swarm_api::swarmd::tasks_client::TasksClient;
use swarm_api::v1::ca_client::CaClient;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::logs_client::LogsClient;
use swarm_pki::{Clock, connect_local_tls};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::error::{Error, Result};

/// A client of a manager's services.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    channel: Channel,
}

impl Client {
    /// Connects at once, so that a socket without a manager behind it is told apart from a refused call.
    ///
    /// Managers of the original and of Docker Engine speak only TLS there, a locked one of ours only plaintext; so
    /// TLS is tried, then plaintext.
    pub(crate) async fn connect(socket: &str) -> Result<Client> {
        let path = path(socket);
        let unreachable = |source| Error::unreachable(&path, source);
        let channel = match connect_local_tls(&path, &Clock::system()).await {
            Ok(stream) => channel(stream).await,
            // A manager may go away between the two.
            Err(_) => channel(UnixStream::connect(&path).await.map_err(unreachable)?).await,
        };
        let channel = channel.map_err(|error| unreachable(io::Error::other(error)))?;
        Ok(Client { channel })
    }

    /// The control service. Answers may be as large as the cluster is.
    pub(crate) fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    /// Unlocks a manager.
    pub(crate) fn lock(&self) -> LockClient<Channel> {
        LockClient::new(self.channel.clone())
    }

    /// What operators ask for once of services. Answers may be as large as the cluster is.
    pub(crate) fn services(&self) -> ServicesClient<Channel> {
        ServicesClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    /// Images ahead of tasks.
    pub(crate) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone())
    }

    /// Logs.
    pub(crate) fn logs(&self) -> LogsClient<Channel> {
        LogsClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    /// Sessions in tasks.
    pub(crate) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    /// Backups.
    pub(crate) fn recovery(&self) -> RecoveryClient<Channel> {
        RecoveryClient::new(self.channel.clone())
    }

    /// The certificate authority's calls for managers.
    pub(crate) fn ca(&self) -> CaClient<Channel> {
        CaClient::new(self.channel.clone())
    }
}

/// A command makes a few calls, all over its one connection.
async fn channel<S>(stream: S) -> std::result::Result<Channel, tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        std::future::ready(stream)
    });
    // The address is not used for dialling; it only makes a valid :authority.
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

/// A plain path, or one behind `unix://`.
fn path(socket: &str) -> PathBuf {
    Path::new(socket.strip_prefix("unix://").unwrap_or(socket)).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_named() {
        let error = Client::connect("unix:///nonexistent/swarmd.sock").await.unwrap_err();
        assert!(
            matches!(error, Error::Unreachable { path, .. } if path == Path::new("/nonexistent/swarmd.sock"))
        );
    }
}
