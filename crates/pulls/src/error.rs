//! What callers are told of errors.

/// What is wrong with a node, for operators.
pub(crate) mod reason {
    pub(crate) const DOWN: &str = "the node is down";
    pub(crate) const NO_CONTAINERS: &str = "the node runs no containers";
    pub(crate) const OTHER_MAKE: &str = "the node's agent is of another make, and knows no such request";
    pub(crate) const ABSENT: &str = "the node's agent is not connected, or too old for this request";
    pub(crate) const SILENT: &str = "the node's agent has said nothing for a minute";
}

pub(crate) mod status {
    use tonic::Status;

    pub(crate) fn not_running() -> Status {
        Status::unavailable("this manager does not lead, or has just become the leader: try again")
    }

    pub(crate) fn leader_lost() -> Status {
        Status::aborted(
            "this manager does not lead any more; nodes go on with what they have begun: ask again to see how far they are",
        )
    }

    pub(crate) fn too_many(limit: usize) -> Status {
        Status::resource_exhausted(format!(
            "{limit} images are being pulled by request already: wait until one of them is there"
        ))
    }

    pub(crate) fn no_image() -> Status {
        Status::invalid_argument("image must be provided")
    }

    pub(crate) fn bad_image(image: &str) -> Status {
        Status::invalid_argument(format!("{image:?} is not a valid repository/tag"))
    }

    pub(crate) fn too_long(what: &str, bytes: usize, limit: usize) -> Status {
        Status::invalid_argument(format!("{what} has {bytes} bytes, more than the {limit} that are allowed"))
    }

    pub(crate) fn no_node(constraints: &[String]) -> Status {
        Status::failed_precondition(match constraints {
            [] => "there is no node in the cluster".to_owned(),
            _ => format!("no node matches {}", constraints.join(", ")),
        })
    }

    pub(crate) fn unknown_order() -> Status {
        Status::not_found("nobody waits for this order, or it is not this node's")
    }

    pub(crate) fn bad_report() -> Status {
        Status::invalid_argument("a report says that an image is being pulled, is there, or failed")
    }
}
