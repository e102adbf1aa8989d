//! Codes and texts of errors on the wire, which clients and agents of other makes match on.

/// What stands before the reasons for which lines are missing.
const INCOMPLETE: &str =
    "warning: incomplete log stream. some logs could not be retrieved for the following reasons: ";

/// Why a node's lines are missing, or a task's.
pub(crate) mod reason {
    pub(crate) fn not_available(node_id: &str) -> String {
        format!("node {node_id} is not available")
    }

    pub(crate) fn disconnected(node_id: &str) -> String {
        format!("node {node_id} disconnected unexpectedly")
    }

    pub(crate) fn not_scheduled(task_id: &str) -> String {
        format!("task {task_id} has not been scheduled")
    }

    pub(crate) fn not_found(task_id: &str) -> String {
        format!("task {task_id} not found")
    }
}

/// The statuses of the contract.
pub(crate) mod status {
    use tonic::Status;

    pub(crate) fn not_running() -> Status {
        Status::unknown("broker is not running")
    }

    pub(crate) fn cancelled() -> Status {
        Status::cancelled("context canceled")
    }

    pub(crate) fn incomplete(reasons: &[String]) -> Status {
        Status::unknown(format!("{}{}", super::INCOMPLETE, reasons.join(", ")))
    }

    pub(crate) fn no_selector() -> Status {
        Status::invalid_argument("log selector must be provided")
    }

    pub(crate) fn empty_selector() -> Status {
        Status::invalid_argument("log selector must not be empty")
    }

    pub(crate) fn tail_from_start() -> Status {
        Status::invalid_argument("tail relative to start of logs not supported: give a negative number")
    }

    pub(crate) fn unknown_stream(number: i32) -> Status {
        Status::invalid_argument(format!("unknown log stream {number}"))
    }

    pub(crate) fn bad_since() -> Status {
        Status::invalid_argument("since is no valid timestamp")
    }

    pub(crate) fn too_many(limit: usize) -> Status {
        Status::resource_exhausted(format!("too many log subscriptions: {limit} are open; end some of them"))
    }

    pub(crate) fn no_subscription_id() -> Status {
        Status::invalid_argument("missing subscription ID")
    }

    pub(crate) fn unknown_subscription() -> Status {
        Status::not_found("unknown subscription ID")
    }

    pub(crate) fn other_subscription() -> Status {
        Status::invalid_argument("different subscription IDs in the same session")
    }

    pub(crate) fn foreign_node(expected: &str, received: &str) -> Status {
        Status::permission_denied(format!("invalid NodeID: expected={expected};received={received}"))
    }

    pub(crate) fn malformed() -> Status {
        Status::invalid_argument("malformed log message")
    }

    pub(crate) fn superseded() -> Status {
        Status::aborted("the node publishes for this subscription in another call")
    }
}
