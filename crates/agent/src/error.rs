//! Errors of the agent.

use std::path::PathBuf;

use tonic::Status;

/// Why an agent can't run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The task database can't be opened.
    #[error("can't open the task database {}: {source}", path.display())]
    Open {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: sled::Error,
    },
    /// The task database can't be read or written.
    #[error("task database: {0}")]
    Database(#[from] sled::Error),
    /// A file of the task database can't be read or written.
    #[error("task database: {0}")]
    Io(#[from] std::io::Error),
    /// The agent is stopping.
    #[error("agent: closed")]
    Closed,
}

impl Error {
    /// Somebody else has the task database open.
    pub(crate) fn is_lock(&self) -> bool {
        matches!(self, Error::Open { source: sled::Error::Io(io), .. }
            if io.to_string().contains("could not acquire lock"))
    }
}

/// Why a session ended. All of these are followed by a new attempt.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No manager is known.
    #[error("no remote hosts provided")]
    NoManagers,
    /// The manager can't be reached.
    #[error("can't connect to manager {manager}: {reason}")]
    Connect {
        /// Address of the manager.
        manager: String,
        /// Why.
        reason: String,
    },
    /// No first message came in time.
    #[error("session initiation timed out")]
    Initiation,
    /// The manager did not answer in time.
    #[error("{0} timed out")]
    Timeout(&'static str),
    /// The manager refused or ended a call.
    #[error("{call}: {}: {}", status.code(), status.message())]
    Refused {
        /// Which call.
        call: &'static str,
        /// Its answer.
        status: Status,
    },
    /// The manager ended a stream without an error.
    #[error("the manager closed the {0} stream")]
    Ended(&'static str),
    /// The manager made a new session where the old one should have gone on.
    #[error("the manager replaced the session")]
    Replaced,
    /// The assignments could not be stored.
    #[error("assignments could not be applied: {0}")]
    Apply(String),
    /// The agent itself wants a new session, with another connection.
    #[error("reconnecting")]
    Reconnect,
}

impl SessionError {
    pub(crate) fn refused(call: &'static str) -> impl Fn(Status) -> SessionError {
        move |status| SessionError::Refused { call, status }
    }

    /// This node is no longer part of the cluster.
    pub(crate) fn is_removal(&self) -> bool {
        matches!(self, SessionError::Refused { status, .. }
            if status.code() == tonic::Code::PermissionDenied
                && status.message().contains("was removed from swarm"))
    }

    /// The manager is to blame, and another one may be better.
    pub(crate) fn blames_manager(&self) -> bool {
        !matches!(self, SessionError::NoManagers | SessionError::Reconnect | SessionError::Apply(_))
    }
}
