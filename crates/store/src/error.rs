//! Errors of the store. The texts of the first group are part of the contract: clients match on them.

/// What can go wrong in a transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An object with this id is there already.
    #[error("object already exists")]
    Exists,
    /// No object with this id.
    #[error("object does not exist")]
    NotExist,
    /// Another object of this kind has the name.
    #[error("name conflicts with an existing object")]
    NameConflict,
    /// The object was changed since the caller read it.
    #[error("update out of sequence")]
    Sequence,
    /// Extensions can't be changed.
    #[error("extensions are immutable")]
    ImmutableExtension,
    /// The extension still has resources.
    #[error("cannot delete extension because objects of this type exist in the data store")]
    ExtensionInUse,
    /// A resource names a kind that no extension declares.
    #[error("object kind is unregistered")]
    UnregisteredKind,
    /// The transaction does not fit in a log entry.
    #[error("raft: raft message is too large and can't be sent")]
    TooLarge,
    /// This manager is not the leader, or stopped being it before the entry was committed: the outcome is
    /// unknown.
    #[error("raft: failed to process the request: node lost leader status")]
    LostLeadership,
    /// This manager is no member of the group, or is stopping.
    #[error("raft: failed to process the request: node is stopped")]
    Stopped,
    /// The raft node refused the proposal; nothing was written.
    #[error("raft proposal dropped")]
    Dropped,
    /// A snapshot or an entry could not be read.
    #[error("can't decode {what}: {reason}")]
    Decode {
        /// What was being read.
        what: &'static str,
        /// Why it failed.
        reason: String,
    },
}

/// Result of store operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
