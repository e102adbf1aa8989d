//! The connection to a manager: plaintext gRPC over its UNIX socket.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use swarm_api::v1::ca_client::CaClient;
use swarm_api::v1::control_client::ControlClient;
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
    pub(crate) async fn connect(socket: &str) -> Result<Client> {
        let path = path(socket);
        let stream = UnixStream::connect(&path).await.map_err(|source| Error::unreachable(&path, source))?;
        let mut first = Some(stream);
        let dialled = path.clone();
        let connector = tower::service_fn(move |_| {
            let (ready, path) = (first.take(), dialled.clone());
            async move {
                let stream = match ready {
                    Some(stream) => stream,
                    None => UnixStream::connect(path).await?,
                };
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        // The address is not used for dialling; it only makes a valid :authority.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
        let channel = channel.map_err(|error| Error::unreachable(&path, std::io::Error::other(error)))?;
        Ok(Client { channel })
    }

    /// The control service. Answers may be as large as the cluster is.
    pub(crate) fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    /// The certificate authority's calls for managers.
    pub(crate) fn ca(&self) -> CaClient<Channel> {
        CaClient::new(self.channel.clone())
    }
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
