//! What goes wrong, and how it is told: what is wrong, then what may help.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command was not written as it should be.
    #[error("{0}")]
    Usage(String),
    /// There is nobody at the socket.
    #[error("can't reach a manager at {}: {source}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The manager refused.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    /// Nothing has this id or name.
    #[error("{kind} {given:?} not found")]
    NotFound {
        /// What was looked for.
        kind: &'static str,
        /// What was given.
        given: String,
    },
    /// Several have it.
    #[error("{kind} {given:?} is ambiguous: {count} of them have this {what} ({ids})")]
    Ambiguous {
        /// What was looked for.
        kind: &'static str,
        /// What was given.
        given: String,
        /// `name` or `ID prefix`.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// Some of their ids.
        ids: String,
    },
    /// Nothing to do, and the like.
    #[error("{0}")]
    Plain(String),
    /// A file could not be read.
    #[error("can't read {}: {source}", path.display())]
    Read {
        /// The file; `-` for the standard input.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("can't write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The answer was not what the contract promises.
    #[error("the manager's answer has no {0}")]
    Incomplete(&'static str),
}

/// Result of commands.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl From<Status> for Error {
    fn from(status: Status) -> Error {
        Error::Refused(Box::new(status))
    }
}

impl Error {
    pub(crate) fn usage(text: impl Into<String>) -> Error {
        Error::Usage(text.into())
    }

    pub(crate) fn plain(text: impl Into<String>) -> Error {
        Error::Plain(text.into())
    }

    pub(crate) fn unreachable(path: &Path, source: io::Error) -> Error {
        Error::Unreachable { path: path.to_owned(), source }
    }

    /// 2 for a command that was not written as it should be, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            _ => 1,
        }
    }

    /// What may help, if anything is known.
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Usage(_) => "see --help for how the command is written",
            Error::Unreachable { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => {
                    "is swarmd running here, and is this node a manager? Workers have no control socket. Another socket is named by --socket or SWARM_SOCKET"
                }
                io::ErrorKind::PermissionDenied => {
                    "who may open the socket may do everything in the cluster: run this as the user that runs swarmd"
                }
                io::ErrorKind::ConnectionRefused => {
                    "the socket is there, but swarmd does not serve it any more: is it running?"
                }
                _ => "is swarmd running here? Another socket is named by --socket or SWARM_SOCKET",
            },
            Error::NotFound { kind, .. } => {
                return Some(format!(
                    "`swarmctl {} ls` lists what there is",
                    kind.split(' ').next().unwrap_or(kind)
                ));
            }
            Error::Ambiguous { .. } => "give the whole ID",
            Error::Refused(status) => return refused(status).map(str::to_owned),
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// Hints on refusals of the manager.
fn refused(status: &Status) -> Option<&'static str> {
    let text = status.message();
    match status.code() {
        _ if text.contains("update out of sequence") => {
            Some("somebody else changed the object at the same time: run the command again")
        }
        _ if text.contains("node lost leader status") => Some(
            "the leader changed while it worked on this: the change may have been made or not; look before repeating it",
        ),
        _ if text.contains("may or may not have had an effect") => {
            Some("look whether the change was made before repeating it")
        }
        Code::FailedPrecondition if text.contains("is not down and can't be removed") => {
            Some("stop swarmd on that node first, or use --force")
        }
        Code::FailedPrecondition if text.contains("must be demoted to worker before removal") => {
            Some("`swarmctl node demote` it first")
        }
        Code::FailedPrecondition if text.contains("a passphrase is needed") => {
            Some("give one with --passphrase-file or in SWARM_BACKUP_PASSPHRASE")
        }
        Code::Unavailable => Some("nothing was changed: try again"),
        Code::Unimplemented if text.is_empty() => {
            Some("this manager does not know the call: it may be too old")
        }
        _ => None,
    }
}

/// The lines that are written to the standard error.
impl Error {
    pub(crate) fn report(&self) -> Report<'_> {
        Report(self)
    }
}

/// An error as people see it.
pub(crate) struct Report<'a>(&'a Error);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error: {}", self.0)?;
        if let Error::Refused(status) = self.0
            && status.message().is_empty()
        {
            write!(f, "{}", status.code())?;
        }
        match self.0.hint() {
            Some(hint) => write!(f, "\nHint: {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_is_wrong_and_what_may_help() {
        let check = |error: Error, code, lines: &[&str]| {
            assert_eq!(error.report().to_string(), lines.join("\n"));
            assert_eq!(error.exit_code(), code);
        };
        check(Error::plain("node w is already drained"), 1, &["Error: node w is already drained"]);
        check(
            Error::usage("--name must be given"),
            2,
            &["Error: --name must be given", "Hint: see --help for how the command is written"],
        );
        check(
            Error::NotFound { kind: "node", given: "x".into() },
            1,
            &["Error: node \"x\" not found", "Hint: `swarmctl node ls` lists what there is"],
        );
        check(
            Status::unknown("update out of sequence").into(),
            1,
            &[
                "Error: update out of sequence",
                "Hint: somebody else changed the object at the same time: run the command again",
            ],
        );
        let lost = "the connection to the leader x was lost during the call, which may or may not have had an effect";
        check(
            Status::unavailable(lost).into(),
            1,
            &[&format!("Error: {lost}"), "Hint: look whether the change was made before repeating it"],
        );
        check(
            Status::unavailable("the leader x can't be reached").into(),
            1,
            &["Error: the leader x can't be reached", "Hint: nothing was changed: try again"],
        );
        let missing = io::Error::from(io::ErrorKind::NotFound);
        let report = Error::unreachable(Path::new("/run/x.sock"), missing).report().to_string();
        assert!(report.starts_with("Error: can't reach a manager at /run/x.sock: "), "{report}");
        assert!(report.contains("is swarmd running here"), "{report}");
    }
}
