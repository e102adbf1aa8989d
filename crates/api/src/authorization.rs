//! Who may call which method of the contract on a manager's TLS port.

#[rustfmt::skip]
#[path = "generated/authorization.rs"]
mod table;

pub use table::METHODS;

/// Organizational unit in the certificates of managers.
pub const MANAGER_OU: &str = "swarm-manager";
/// Organizational unit in the certificates of workers.
pub const WORKER_OU: &str = "swarm-worker";
/// Organizational unit in the certificates of root CAs and of nobody's node.
pub const CA_OU: &str = "swarm-ca";

/// A method and its callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// gRPC path, `/package.Service/Method`.
    pub path: &'static str,
    /// Who may call it.
    pub allowed: Allowed,
}

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// No client certificate is needed.
    Anybody,
    /// A client certificate of the cluster with one of these organizational units is needed.
    Roles(&'static [&'static str]),
}

/// The rule for a gRPC path; `None` for a path that the contract does not have.
pub fn allowed(path: &str) -> Option<Allowed> {
    METHODS.binary_search_by(|m| m.path.cmp(path)).ok().map(|i| METHODS[i].allowed)
}
