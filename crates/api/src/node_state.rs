//! What a node's state means.

use crate::v1::{Node, node_spec, node_status};

impl Node {
    /// It takes new tasks: READY and ACTIVE.
    pub fn is_usable(&self) -> bool {
        self.status.state() == node_status::State::Ready
            && self.spec.availability() == node_spec::Availability::Active
    }
}
