//! Which nodes an order is for.

use swarm_api::extensions::{CONTAINER_RUNTIME, RUNTIME_ABILITY_PREFIX, node_runs};
use swarm_api::v1::Node;
use swarm_api::v1::node_spec::Membership;
use swarm_api::v1::node_status::State;
use swarm_placement::{Constraint, all_hold};
use swarm_store::Tables;
use tonic::Status;

use crate::error::{reason, status};

/// The nodes that match, by id, and why those that can't be asked can't.
pub(crate) fn select(
    tables: &Tables,
    constraints: &[String],
) -> Result<Vec<(String, Option<&'static str>)>, Status> {
    let parsed =
        Constraint::parse_all(constraints).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let members = tables.nodes().iter().filter(|node| node.spec.membership() == Membership::Accepted);
    let matching = members.filter(|node| all_hold(&parsed, node));
    let selected: Vec<_> = matching.map(|node| (node.id.clone(), trouble(node))).collect();
    if selected.is_empty() { Err(status::no_node(constraints)) } else { Ok(selected) }
}

fn trouble(node: &Node) -> Option<&'static str> {
    if node.status.state() == State::Down {
        return Some(reason::DOWN);
    }
    // One that has not described itself yet is waited for.
    let labels = &node.description.as_ref()?.engine.as_ref()?.labels;
    if !labels.keys().any(|label| label.starts_with(RUNTIME_ABILITY_PREFIX)) {
        return Some(reason::OTHER_MAKE);
    }
    (!node_runs(labels, CONTAINER_RUNTIME)).then_some(reason::NO_CONTAINERS)
}
