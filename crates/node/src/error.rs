//! What keeps a node from starting, or ends it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::join::JoinError;

/// Errors of a node. Their texts are for operators.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the state directory can't be used.
    #[error("{}: {source}", path.display())]
    State {
        /// What can't be used.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another daemon runs on the same state directory.
    #[error("another daemon uses the state directory {}", .0.display())]
    InUse(PathBuf),
    /// `state.json` can't be read.
    #[error("{}: not a list of managers: {source}; remove the file to forget the managers", path.display())]
    Managers {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Certificates or keys.
    #[error(transparent)]
    Pki(#[from] swarm_pki::Error),
    /// The certificate on disk can't be used.
    #[error("error while loading TLS certificate in {}: {source}", path.display())]
    Certificate {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: swarm_pki::Error,
    },
    /// There is a key, but nothing to check its certificate with.
    #[error(
        "{} holds a node's key but no swarm-root-ca.crt: restore that file, or remove the directory to begin anew \
         as another node",
        .0.display()
    )]
    RootMissing(PathBuf),
    /// The key file is encrypted, and the key that was given does not open it.
    #[error(
        "node is locked, and needs a valid unlock key: the one that was given does not open {}. A manager that was \
         down while the key was changed needs the key from before",
        .0.display()
    )]
    Locked(PathBuf),
    /// A raft log without the key and certificate of its node.
    #[error(
        "{} holds a raft log, but {} no complete identity: {reason}. Put the missing file back; if it is lost, remove \
         this node from the cluster and join it again with an empty state directory, or restore a backup",
        raft.display(), certificates.display()
    )]
    IdentityMissing {
        /// Directory of the log.
        raft: PathBuf,
        /// Directory of the certificates.
        certificates: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A restore needs an empty state directory.
    #[error(
        "--restore needs a state directory that was not used before, and {} is there already: give another one with \
         --state-dir. Without --restore the node goes on with what is there",
        .0.display()
    )]
    NotFresh(PathBuf),
    /// A restore that was interrupted.
    #[error(
        "a backup was being restored into {} but that was never finished: restore it again with --restore, or remove \
         the directory",
        .0.display()
    )]
    RestoreUnfinished(PathBuf),
    /// A backup that can't be read.
    #[error(transparent)]
    Backup(#[from] swarm_manager::backup::Problem),
    /// A manager whose log is gone.
    #[error(
        "this node has a manager's certificate, but its raft log in {} is gone: remove it from the cluster and join it \
         again with an empty state directory",
        .0.display()
    )]
    LogMissing(PathBuf),
    /// Joining failed.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The manager at the join address is of another cluster than this node's certificate.
    #[error(
        "the certificate in {} is of cluster {cluster}, and the manager at {addr} does not take it: {reason}. To move \
         the node to another cluster, start it with an empty state directory",
        path.display()
    )]
    OtherCluster {
        /// Where the certificate is.
        path: PathBuf,
        /// The cluster that it names.
        cluster: String,
        /// The manager that was asked.
        addr: String,
        /// What it said.
        reason: String,
    },
    /// The manager could not be started, or ended.
    #[error("manager stopped: {0}")]
    Manager(#[from] swarm_manager::Error),
    /// The manager ended.
    #[error("manager stopped: {0}")]
    ManagerEnded(Arc<swarm_manager::Error>),
    /// The agent could not be started, or ended.
    #[error("agent stopped: {0}")]
    Agent(String),
}

impl Error {
    pub(crate) fn state(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::State { path, source }
    }
}
