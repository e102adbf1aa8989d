//! Plug-ins of the kind that container engines have: programs beside the engine that listen on a UNIX socket and are
//! asked with JSON over HTTP (the engine's plug-in protocol, version 1, as Docker documents it).
//!
//! Those are found that announce themselves by a socket or a file in the directories that the engine searches. Plug-ins
//! that an engine runs itself belong to that engine and are not found.

mod find;
mod secret;
pub mod testing;

pub use find::{Plugin, PluginError, Plugins};
pub use secret::{MAX_SECRET, Port, SecretAnswer, SecretRequest, ServiceEndpoint, get_secret};

/// What a plug-in must be able to do to provide secrets.
pub const SECRET_PROVIDER: &str = "secretprovider";

#[cfg(test)]
mod tests;
