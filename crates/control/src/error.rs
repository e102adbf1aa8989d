//! What a call can fail with, and the one place that turns it into a gRPC status.
//!
//! Codes and texts are part of the contract: clients match on them (the texts of the store above all).

use tonic::{Code, Status};

/// Why a call was refused or failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The request is wrong, whatever the state of the cluster.
    #[error("{0}")]
    InvalidArgument(String),
    /// No object with this id. The kind is named as in `service`, `node`.
    #[error("{kind} {id} not found")]
    NotFound {
        /// Kind of the object.
        kind: &'static str,
        /// What the caller gave.
        id: String,
    },
    /// Something that is missing and is no object of the caller's naming.
    #[error("{0}")]
    Missing(String),
    /// An object with this name is there already.
    #[error("{0}")]
    AlreadyExists(String),
    /// The cluster is not in a state in which this can be done.
    #[error("{0}")]
    FailedPrecondition(String),
    /// Nobody may do this.
    #[error("{0}")]
    PermissionDenied(String),
    /// Too much is asked for at once; nothing was done.
    #[error("{0}")]
    Busy(String),
    /// The contract or this version does not have it.
    #[error("{0}")]
    Unimplemented(String),
    /// Something of ours is broken.
    #[error("{0}")]
    Internal(String),
    /// The store's own errors, passed on with their texts.
    #[error(transparent)]
    Store(#[from] swarm_store::Error),
}

/// Result of the calls.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// What every method says when an id, a version or a spec is missing.
    pub(crate) fn invalid() -> Error {
        Error::InvalidArgument("invalid argument".into())
    }

    pub(crate) fn argument(text: impl Into<String>) -> Error {
        Error::InvalidArgument(text.into())
    }

    pub(crate) fn precondition(text: impl Into<String>) -> Error {
        Error::FailedPrecondition(text.into())
    }

    pub(crate) fn unimplemented(text: impl Into<String>) -> Error {
        Error::Unimplemented(text.into())
    }

    pub(crate) fn not_found(kind: &'static str, id: &str) -> Error {
        Error::NotFound { kind, id: id.to_owned() }
    }

    /// The gRPC code. Plain errors of the store stay UNKNOWN, as the contract's clients expect of
    /// `update out of sequence` and its like; only what certainly changed nothing and may be tried again at
    /// once is UNAVAILABLE.
    pub fn code(&self) -> Code {
        match self {
            Error::InvalidArgument(_) => Code::InvalidArgument,
            Error::NotFound { .. } | Error::Missing(_) => Code::NotFound,
            Error::AlreadyExists(_) => Code::AlreadyExists,
            Error::FailedPrecondition(_) => Code::FailedPrecondition,
            Error::PermissionDenied(_) => Code::PermissionDenied,
            Error::Busy(_) => Code::ResourceExhausted,
            Error::Unimplemented(_) => Code::Unimplemented,
            Error::Internal(_) => Code::Internal,
            Error::Store(swarm_store::Error::Dropped) => Code::Unavailable,
            Error::Store(_) => Code::Unknown,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        Status::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_code_and_text() {
        use swarm_store::Error as Store;
        let cases: Vec<(Error, Code, &str)> = vec![
            (Error::invalid(), Code::InvalidArgument, "invalid argument"),
            (Error::not_found("node", "x"), Code::NotFound, "node x not found"),
            (Error::Missing("gone".into()), Code::NotFound, "gone"),
            (Error::AlreadyExists("twice".into()), Code::AlreadyExists, "twice"),
            (Error::precondition("not now"), Code::FailedPrecondition, "not now"),
            (Error::PermissionDenied("no".into()), Code::PermissionDenied, "no"),
            (Error::Busy("later".into()), Code::ResourceExhausted, "later"),
            (Error::unimplemented("never"), Code::Unimplemented, "never"),
            (Error::Internal("oh".into()), Code::Internal, "oh"),
            (Store::Sequence.into(), Code::Unknown, "update out of sequence"),
            (Store::NameConflict.into(), Code::Unknown, "name conflicts with an existing object"),
            (Store::Exists.into(), Code::Unknown, "object already exists"),
            (Store::NotExist.into(), Code::Unknown, "object does not exist"),
            (Store::TooLarge.into(), Code::Unknown, "raft: raft message is too large and can't be sent"),
            (
                Store::LostLeadership.into(),
                Code::Unknown,
                "raft: failed to process the request: node lost leader status",
            ),
            (Store::Dropped.into(), Code::Unavailable, "raft proposal dropped"),
        ];
        for (error, code, text) in cases {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, text));
        }
    }
}
