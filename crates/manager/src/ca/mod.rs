//! The cluster's certificate authority: admits nodes, and signs their certificates while this manager leads.
//!
//! - [`CaServer`]: the `CA` and `NodeCA` services, and [`CaServer::run`], the loop that signs.
//! - `issuer`: what is signed with, as the cluster object says.
//! - `waiters`: status polls that wait for a certificate.
//!
//! Requests only write what is asked for into node objects; the loop finds it there, whoever wrote it. So a new leader
//! goes on where the old one ended.

mod issuer;
mod service;
mod sign;
mod waiters;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use swarm_api::v1::ca_server::CaServer as CaGrpc;
use swarm_api::v1::node_ca_server::NodeCaServer as NodeCaGrpc;
use swarm_pki::SecurityContext;
use swarm_store::Store;

use waiters::Waiters;

/// Largest message that the services take.
const MAX_MESSAGE: usize = swarm_api::defaults::MAX_MESSAGE_BYTES;

/// The certificate authority of one manager. Its services answer always, and admit nodes while [`CaServer::run`] runs.
pub struct CaServer {
    store: Arc<Store>,
    context: Arc<SecurityContext>,
    running: AtomicBool,
    waiters: Arc<Waiters>,
    requests: Requests,
}

impl CaServer {
    /// An authority on this store. The context gives the clock, and the root to serve before there is a cluster object.
    pub fn new(store: Arc<Store>, context: Arc<SecurityContext>) -> Arc<Self> {
        Arc::new(Self {
            store,
            context,
            running: AtomicBool::new(false),
            waiters: Arc::default(),
            requests: Requests::default(),
        })
    }

    /// The `CA` service.
    pub fn ca_service(self: &Arc<Self>) -> CaGrpc<CaService> {
        CaGrpc::new(CaService(self.clone())).max_decoding_message_size(MAX_MESSAGE)
    }

    /// The `NodeCA` service.
    pub fn node_ca_service(self: &Arc<Self>) -> NodeCaGrpc<CaService> {
        NodeCaGrpc::new(CaService(self.clone())).max_decoding_message_size(MAX_MESSAGE)
    }

    fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for CaServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaServer").field("running", &self.is_running()).finish_non_exhaustive()
    }
}

/// The gRPC face of a [`CaServer`].
#[derive(Debug, Clone)]
pub struct CaService(Arc<CaServer>);

/// Which node a certificate request is of, so that a joining node that repeats itself gets the node object it has.
#[derive(Default)]
struct Requests(Mutex<HashMap<[u8; 32], String>>);

impl Requests {
    fn digest(csr: &[u8]) -> [u8; 32] {
        Sha256::digest(csr).into()
    }

    fn node_of(&self, csr: &[u8]) -> Option<String> {
        self.0.lock().get(&Self::digest(csr)).cloned()
    }

    fn insert(&self, csr: &[u8], node_id: &str) {
        if !csr.is_empty() {
            self.0.lock().insert(Self::digest(csr), node_id.to_owned());
        }
    }

    fn remove(&self, csr: &[u8]) {
        self.0.lock().remove(&Self::digest(csr));
    }

    fn clear(&self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests;
