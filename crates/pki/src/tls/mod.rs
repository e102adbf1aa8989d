//! TLS between nodes: optional client certificates, names that are roles, nothing resumed.

mod config;
mod context;
mod dial;
mod failure;
mod handshakes;
mod incoming;
mod local;

pub use config::{ServerRole, crypto_provider};
pub use context::{Active, SecurityContext};
pub use dial::{ClientStream, DialError, Dialer, endpoint};
pub use failure::{TlsFailure, innermost, reason, sources, was_cut_short};
pub use incoming::{ConnectionInfo, ServerStream, TlsIncoming};
pub use local::{LocalConnectionInfo, LocalIncoming, LocalStream, connect_local_tls};

#[cfg(test)]
mod tests;
