//! What can go wrong with the raft node.

use std::io;
use std::path::{Path, PathBuf};

/// Errors of the raft node. Their texts are meant for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory belongs to the original implementation.
    #[error(
        "{} holds the raft log of a Docker Engine or of the original swarmd, which can't be opened: give this \
         node a state directory of its own and let it join the cluster as a new manager",
        path.display()
    )]
    ForeignFormat {
        /// The directory that gave it away.
        path: PathBuf,
    },
    /// There is no log to go on with.
    #[error(
        "there is no raft log in {}: restore it, or let this node join the cluster again with an empty state directory",
        path.display()
    )]
    NoLog {
        /// Where it should be.
        path: PathBuf,
    },
    /// Somebody else has the log open.
    #[error("the raft log in {} is in use by another process", path.display())]
    InUse {
        /// Directory of the log.
        path: PathBuf,
    },
    /// The log was written with another key.
    #[error(
        "the raft log in {} can't be decrypted: it was written with another data encryption key than the one in \
         this node's key file",
        path.display()
    )]
    WrongKey {
        /// Directory of the log.
        path: PathBuf,
    },
    /// The log is another node's.
    #[error("the raft log in {} belongs to node {found}, not to this node ({expected})", path.display())]
    OtherNode {
        /// Directory of the log.
        path: PathBuf,
        /// Node that wrote it.
        found: String,
        /// This node.
        expected: String,
    },
    /// Entries or votes that were written are not there any more.
    #[error(
        "the raft log in {} is incomplete: {reason}, as {} shows. Data was lost after it had been written (a \
         damaged disk, or a directory restored from an old copy). Starting from it could undo writes of the \
         cluster: let this node leave and join again, or restore a backup",
        path.display(), watermark.display()
    )]
    Incomplete {
        /// Directory of the log.
        path: PathBuf,
        /// The file that knows better.
        watermark: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// Something on disk makes no sense.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// File or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Reading or writing failed.
    #[error("can't {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The log could not be written.
    #[error("the raft log can't be written: {0}")]
    Write(String),
    /// Encrypting failed.
    #[error("the raft log can't be encrypted: {0}")]
    Seal(#[source] crate::SealError),
    /// A snapshot could not be taken over.
    #[error("snapshot at index {index} can't be restored: {reason}")]
    Restore {
        /// Its index.
        index: u64,
        /// Why.
        reason: String,
    },
    /// What was fetched before joining does not fit the group that was joined.
    #[error(
        "the raft log can't begin with the state that was fetched before joining: {0}. Start this manager again: it will \
         leave the group and join it afresh"
    )]
    Fetched(String),
    /// The raft library refused to start.
    #[error("raft can't start: {0}")]
    Start(#[source] raft::Error),
    /// A peer knows more of our log than we do.
    #[error(
        "manager {from:x} says that this manager has acknowledged index {acknowledged}, but its log ends at {last}: \
         the log was lost. Let this node leave the cluster and join again"
    )]
    LogLost {
        /// The leader that says so.
        from: u64,
        /// What we once had.
        acknowledged: u64,
        /// What we have.
        last: u64,
    },
    /// A defect in the raft node, or input it can't bear.
    #[error("the raft node failed: {0}")]
    Panicked(String),
    /// The node stopped before the request was done.
    #[error("raft: failed to process the request: node is stopped")]
    Stopped,
    /// The node is not the leader, or stopped being it: the outcome is unknown.
    #[error("raft: failed to process the request: node lost leader status")]
    LostLeadership,
    /// A new group can't be made of a member that left.
    #[error(
        "this manager was removed from the cluster before: a new cluster can't be made from its state. Use \
         --force-new-cluster on a manager that was still a member, or restore a backup"
    )]
    ForceRemoved,
    /// A queue is full.
    #[error("the raft node is overloaded")]
    Overloaded,
    /// A message came from a removed member. The text is part of the contract.
    #[error("raft: member was removed from the cluster")]
    MemberRemoved,
    /// The membership change can't be made.
    #[error(transparent)]
    Membership(#[from] crate::MembershipError),
    /// There is nobody to hand leadership to. The text is part of the contract.
    #[error("failed to get longest-active member: failed to find longest active peer")]
    NoTransferee,
    /// Leadership was not handed over in time.
    #[error("leadership was not handed over within {0:?}")]
    TransferTimeout(std::time::Duration),
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { what, path, source }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Error {
        Error::Damaged { path: path.to_owned(), reason: reason.into() }
    }
}

/// Result of raft operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
