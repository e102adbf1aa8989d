//! Backups of a running cluster.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::SystemTime;

use swarm_api::swarmd::recovery_server::{Recovery as RecoveryApi, RecoveryServer};
use swarm_api::swarmd::{BackupChunk, BackupInfo, BackupRequest};
use swarm_pki::{SecretBytes, UnlockKey};
use swarm_raft::Role;
use swarm_store::Store;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::format::{self, With};
use crate::disk_keys;
use crate::leader_link::RaftSlot;

/// Bytes per message.
const CHUNK: usize = 128 * 1024;
/// Messages that wait for a slow receiver.
const WAITING: usize = 4;
/// Shortest passphrase, in bytes.
const SHORTEST: usize = 8;

/// The `Recovery` service of a manager.
#[derive(Clone)]
pub struct Recovery {
    store: Arc<Store>,
    raft: RaftSlot,
    node_id: String,
}

impl std::fmt::Debug for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recovery").field("node_id", &self.node_id).finish_non_exhaustive()
    }
}

impl Recovery {
    /// Backups of what this manager holds.
    pub fn new(store: Arc<Store>, raft: RaftSlot, node_id: &str) -> Recovery {
        Recovery { store, raft, node_id: node_id.to_owned() }
    }

    /// The service.
    pub fn into_server(self) -> RecoveryServer<Recovery> {
        RecoveryServer::new(self)
    }
}

#[tonic::async_trait]
impl RecoveryApi for Recovery {
    type BackupStream = ReceiverStream<Result<BackupChunk, Status>>;

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let passphrase = SecretBytes::new(request.into_inner().passphrase.into_bytes());
        let raft = self.raft.get();
        let raft = raft.ok_or_else(|| Status::unavailable("this manager has not joined the others yet"))?;
        let status = raft.status();
        if status.role == Role::Leader {
            // Nothing that was acknowledged before is missing.
            self.store.read_barrier().await.map_err(|e| Status::unavailable(e.to_string()))?;
        }
        let view = self.store.view();
        let cluster = view.cluster().ok_or_else(|| Status::unavailable("there is no cluster object yet"))?;
        let (secret, with) = match (passphrase.len(), disk_keys::unlock_key(cluster).0) {
            (0, Some(kek)) => {
                let text = UnlockKey::from(kek).expose();
                (SecretBytes::new(text.as_bytes().to_vec()), With::UnlockKey)
            }
            (0, None) => {
                return Err(Status::failed_precondition(
                    "a passphrase is needed to encrypt the backup with, since managers do not lock themselves: \
                     there is no unlock key to use instead",
                ));
            }
            (1..SHORTEST, _) => {
                return Err(Status::invalid_argument(format!(
                    "the passphrase has less than {SHORTEST} bytes: a backup holds every secret of the cluster"
                )));
            }
            _ => (passphrase, With::Passphrase),
        };
        let info = BackupInfo {
            cluster_id: cluster.id.clone(),
            node_id: self.node_id.clone(),
            created_at: Some(SystemTime::now().into()),
            index: view.index(),
            term: status.term,
            program: format!("swarmd {}", env!("CARGO_PKG_VERSION")),
        };
        let membership = raft.membership().to_snapshot();
        let (chunks, stream) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || {
            let index = info.index;
            let out = io::BufWriter::with_capacity(CHUNK, Chunks(chunks.clone()));
            match format::write(out, &secret, with, &info, &membership, &view) {
                Ok(()) => info!(index, "a backup was written"),
                Err(error) => {
                    warn!(index, %error, "a backup was not finished");
                    let _ = chunks.blocking_send(Err(Status::aborted(error.to_string())));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Bytes become messages.
struct Chunks(mpsc::Sender<Result<BackupChunk, Status>>);

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = &bytes[..bytes.len().min(CHUNK)];
        let sent = self.0.blocking_send(Ok(BackupChunk { data: taken.to_vec() }));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the receiver went away"))?;
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
