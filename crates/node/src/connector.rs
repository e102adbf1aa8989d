//! How a node's agent reaches managers: the one in this process by its control socket, others by mutual TLS.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use swarm_agent::Connector;
use swarm_api::v1::Peer;
use swarm_pki::{Dialer, SecurityContext, ServerRole};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// See the module's documentation.
pub(crate) struct NodeConnector {
    dialer: Dialer,
    local: Mutex<Option<Local>>,
}

/// The manager in this process.
struct Local {
    socket: PathBuf,
    channel: Channel,
}

/// A channel to a control socket that connects at its first call.
fn socket_channel(socket: PathBuf) -> Channel {
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

impl NodeConnector {
    pub(crate) fn new(security: Arc<SecurityContext>) -> NodeConnector {
        NodeConnector { dialer: Dialer::new(security, ServerRole::Manager), local: Mutex::new(None) }
    }

    /// Says that a manager runs in this process, and where its control socket is; or that none does any more.
    pub(crate) fn set_local(&self, socket: Option<PathBuf>) {
        *self.local.lock() = socket.map(|socket| Local { channel: socket_channel(socket.clone()), socket });
    }
}

#[async_trait]
impl Connector for NodeConnector {
    fn local(&self) -> Option<Channel> {
        self.local.lock().as_ref().map(|local| local.channel.clone())
    }

    async fn connect(&self, manager: &Peer) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
        let endpoint = swarm_pki::endpoint(&manager.addr)?;
        let dialer = self.dialer.clone();
        Ok(endpoint.connect_with_connector(dialer).await?)
    }
    async fn apart(
        &self,
        manager: Option<&Peer>,
    ) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
        let Some(manager) = manager else {
            let socket = self.local.lock().as_ref().map(|local| local.socket.clone());
            return Ok(socket_channel(socket.ok_or("no manager runs here any more")?));
        };
        self.connect(manager).await
    }
}
