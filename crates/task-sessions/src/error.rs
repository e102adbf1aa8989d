//! What those who call are answered when something is wrong.

/// Answers.
pub(crate) mod status {
    use std::time::Duration;

    use tonic::Status;

    pub(crate) fn not_running() -> Status {
        Status::unavailable("this manager does not lead the cluster, or not yet: try again")
    }

    pub(crate) fn leader_changed() -> Status {
        Status::aborted(
            "the leader of the cluster has changed, and the session has ended with it: open it again",
        )
    }

    pub(crate) fn no_open() -> Status {
        Status::invalid_argument("the first message must say what the session is to be")
    }

    pub(crate) fn no_first_message(time: Duration) -> Status {
        Status::deadline_exceeded(format!("no first message within {} s", time.as_secs()))
    }

    pub(crate) fn too_many(limit: usize, of: &str) -> Status {
        Status::resource_exhausted(format!("too many task sessions: {limit} {of} are open; end some of them"))
    }

    pub(crate) fn not_served(node: &str, time: Duration) -> Status {
        Status::unavailable(format!(
            "node {node} did not take the session within {} s: its agent may be cut off, or has its session with a manager \
             of another make or version",
            time.as_secs()
        ))
    }

    pub(crate) fn unknown_session() -> Status {
        Status::not_found("no such task session waits for this node")
    }

    pub(crate) fn no_session_id() -> Status {
        Status::invalid_argument("the first message must name the session")
    }

    pub(crate) fn caller_gone() -> Status {
        Status::cancelled("whoever opened the session has gone")
    }

    pub(crate) fn node_lost(node: &str) -> Status {
        Status::unavailable(format!(
            "the connection to node {node} was lost, and the session has ended with it"
        ))
    }

    pub(crate) fn node_down(node: &str) -> Status {
        Status::unavailable(format!("node {node} is down"))
    }

    pub(crate) fn task_removed(task: &str) -> Status {
        Status::aborted(format!("task {task} was removed"))
    }

    pub(crate) fn malformed(node: &str) -> Status {
        Status::internal(format!("node {node} sent something that is no output of a task"))
    }
}
