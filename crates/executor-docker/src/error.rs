//! What an engine's answers mean.

use std::error::Error as _;

use bollard::errors::Error as Api;
use swarm_agent::ControllerError;

/// Why there is no executor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address can't be used.
    #[error("engine address {address:?}: {reason}")]
    BadAddress {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers, or not as an engine would.
    #[error(
        "can't reach the Docker Engine at {address}: {reason}; is it running, and may this user access it?"
    )]
    Unreachable {
        /// As given.
        address: String,
        /// What happened.
        reason: String,
    },
}

/// An error with everything that led to it, on one line.
pub(crate) fn chain(error: &Api) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The engine's own words, without the library's around them.
pub(crate) fn message(error: &Api) -> String {
    match error {
        Api::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        Api::DockerStreamError { error } => error.trim().to_owned(),
        other => chain(other),
    }
}

/// HTTP status of an answer; `None` if there was none.
pub(crate) fn status(error: &Api) -> Option<u16> {
    match error {
        Api::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

pub(crate) fn is_not_found(error: &Api) -> bool {
    status(error) == Some(404)
}

/// Texts of an engine (status 500) whose own backend was away for a moment.
const PASSING: [&str; 6] = [
    "context deadline exceeded",
    "connection error",
    "connection refused",
    "transport is closing",
    "error while dialing",
    "containerd: unavailable",
];

/// The engine did not answer, or says that it can't at the moment. Nothing follows from it for the task.
pub(crate) fn is_temporary(error: &Api) -> bool {
    match error {
        Api::DockerResponseServerError { status_code, message } => match status_code {
            408 | 429 | 502 | 503 | 504 => true,
            500 => PASSING.iter().any(|text| message.to_lowercase().contains(text)),
            _ => false,
        },
        Api::RequestTimeoutError
        | Api::IOError { .. }
        | Api::HyperResponseError { .. }
        | Api::HyperLegacyError { .. }
        | Api::SocketNotFoundError(_) => true,
        _ => false,
    }
}

/// An engine's error as a controller's, with the step it happened in (empty for the engine's words alone).
pub(crate) fn of_step(step: &str, address: &str, error: &Api) -> ControllerError {
    let with_step = |text: String| if step.is_empty() { text } else { format!("{step}: {text}") };
    match (is_temporary(error), status(error)) {
        (true, None) => ControllerError::Temporary(with_step(format!(
            "the Docker Engine at {address} does not answer: {}",
            chain(error)
        ))),
        (true, Some(_)) => ControllerError::Temporary(with_step(message(error))),
        (false, _) => ControllerError::Fatal(with_step(message(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(status_code: u16, message: &str) -> Api {
        Api::DockerResponseServerError { status_code, message: message.to_owned() }
    }

    #[test]
    fn only_an_absent_engine_is_temporary() {
        assert!(is_temporary(&Api::RequestTimeoutError));
        assert!(is_temporary(&server(503, "shutting down")));
        assert!(is_temporary(&server(500, "containerd: connection error: desc = …")));
        assert!(!is_temporary(&server(500, "Bind for 0.0.0.0:80 failed: port is already allocated")));
        assert!(!is_temporary(&server(404, "No such image: x:1")));
        assert!(!is_temporary(&server(400, "invalid mode")));
    }

    #[test]
    fn texts_name_step_and_engine() {
        assert_eq!(
            of_step("starting container failed", "unix:///s", &server(500, "no such file\n")),
            ControllerError::Fatal("starting container failed: no such file".into())
        );
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(
            of_step("", "unix:///s", &Api::IOError { err: refused }),
            ControllerError::Temporary(
                "the Docker Engine at unix:///s does not answer: connection refused".into()
            )
        );
    }
}
