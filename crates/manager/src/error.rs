//! What keeps a manager from starting, or ends it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Errors of a manager. Their texts are for operators.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The control socket can't be bound.
    #[error("can't listen on the control socket {}: {source}", path.display())]
    ControlSocket {
        /// Where it should be.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The remote API's address can't be bound.
    #[error("can't listen on {addr}: {source}; give another address with --listen-remote-api")]
    RemoteApi {
        /// The address.
        addr: String,
        /// What the system says.
        source: io::Error,
    },
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] swarm_pki::Error),
    /// A log without its key.
    #[error(
        "the raft log in {} can't be opened: the key that it is encrypted with is not in the key file in {} any more. \
         Put that file back as it was; if it is lost, so is the log: remove this node from the cluster and join it \
         again with an empty state directory, or restore a backup",
        raft.display(), keys.display()
    )]
    DekMissing {
        /// Directory of the log.
        raft: PathBuf,
        /// Directory of the key file.
        keys: PathBuf,
    },
    /// A backup that no manager can begin from.
    #[error("the backup can't be restored: {0}")]
    Restore(&'static str),
    /// The raft node could not be started, or ended.
    #[error("can't initialize raft node: {0}")]
    Raft(#[from] swarm_raft::Error),
    /// A part of the daemon failed in a way that is a defect of its own.
    #[error("{0} failed unexpectedly; please report this with the log")]
    Panicked(&'static str),
    /// The raft node could not go on.
    #[error("raft node ended: {0}")]
    RaftEnded(Arc<swarm_raft::Error>),
    /// This member was removed from the raft group.
    #[error("this manager was removed from the cluster")]
    Removed,
    /// No manager admitted this one to the raft group.
    #[error("can't initialize raft node: can't join the raft group through {managers}: {reason}")]
    Join {
        /// Managers that were asked.
        managers: String,
        /// What came of it.
        reason: String,
    },
    /// This node is a member whose log is gone, and the others did not let it go.
    #[error(
        "can't initialize raft node: this node is still member {raft_id:x} of the raft group, but its raft log is gone, \
         and the other managers did not remove that member: {reason}. Make sure that most managers are online and start \
         again; or remove this node from the cluster (`swarmctl node demote`, then `swarmctl node rm`) and join it with \
         an empty state directory"
    )]
    OldMember {
        /// Its id as a member.
        raft_id: u64,
        /// Why it was not removed.
        reason: String,
    },
    /// The log holds no cluster, and the key that a new one would be made with is gone.
    #[error("this cluster was begun but never finished")]
    Unfinished,
    /// A listener ended.
    #[error("serving {what} ended: {source}")]
    Serve {
        /// Which one.
        what: &'static str,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The store refused something that must be possible.
    #[error(transparent)]
    Store(#[from] swarm_store::Error),
}

impl Error {
    /// The log holds no cluster: that of a new one was never written, or not to its end.
    pub fn is_unfinished(&self) -> bool {
        matches!(self, Error::Unfinished | Error::Raft(swarm_raft::Error::NoLog { .. }))
    }
}
