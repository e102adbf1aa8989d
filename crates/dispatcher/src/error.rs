//! Errors, and their codes and texts on the wire, which agents of other makes match on.

/// Why the dispatcher does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// [`Dispatcher::run`](crate::Dispatcher::run) was called while another call of it is under way.
    #[error("dispatcher is already running")]
    AlreadyRunning,
    /// The store was closed.
    #[error("the store is closed")]
    StoreClosed,
    /// The store refused a write.
    #[error(transparent)]
    Store(#[from] swarm_store::Error),
}

/// The statuses of the contract.
pub(crate) mod status {
    use tonic::Status;

    pub(crate) fn stopped() -> Status {
        Status::aborted("dispatcher is stopped")
    }

    pub(crate) fn must_disconnect() -> Status {
        Status::aborted("node must disconnect")
    }

    pub(crate) fn not_registered() -> Status {
        Status::not_found("node not registered")
    }

    pub(crate) fn session_invalid() -> Status {
        Status::invalid_argument("session invalid")
    }

    pub(crate) fn rate_limited(node_id: &str) -> Status {
        Status::unavailable(format!("node {node_id} exceeded rate limit count of registrations"))
    }

    pub(crate) fn node_not_found() -> Status {
        Status::unknown("node not found")
    }

    pub(crate) fn foreign_task() -> Status {
        Status::permission_denied("cannot update a task not assigned this node")
    }

    pub(crate) fn cancelled() -> Status {
        Status::cancelled("context canceled")
    }

    pub(crate) fn no_certificate() -> Status {
        Status::permission_denied(
            "Permission denied: unauthorized peer role: rpc error: code = PermissionDenied desc = no client \
             certificates in request",
        )
    }

    pub(crate) fn not_written(error: &swarm_store::Error) -> Status {
        Status::unavailable(format!("the registration could not be written: {error}"))
    }
}
