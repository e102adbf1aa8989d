//! Which manager leads, where it must be said that it can't do something.

use swarm_api::Shared;
use swarm_api::v1::{ListNodesRequest, Node};

use super::Context;
use crate::output::names::node_name;

/// `, NAME (ADDRESS),`, to come after "the manager that leads"; nothing if nobody knows.
pub(super) async fn named(context: &mut Context) -> String {
    let nodes = context.control.list_nodes(ListNodesRequest::default()).await;
    nodes.map(|answer| among(&answer.into_inner().nodes)).unwrap_or_default()
}

fn among(nodes: &[Shared<Node>]) -> String {
    let leads = |node: &Shared<Node>| Some((node.clone(), node.manager_status.clone().filter(|m| m.leader)?));
    let Some((node, manager)) = nodes.iter().find_map(leads) else { return String::new() };
    let name = match node_name(&node) {
        "" => &node.id,
        name => name,
    };
    match manager.addr.as_str() {
        "" => format!(", {name},"),
        addr => format!(", {name} ({addr}),"),
    }
}

#[cfg(test)]
mod tests {
    use swarm_api::v1::{ManagerStatus, NodeDescription};

    use super::*;

    fn manager(id: &str, hostname: &str, leader: bool, addr: &str) -> Shared<Node> {
        let description = NodeDescription { hostname: hostname.into(), ..Default::default() };
        let manager = ManagerStatus { leader, addr: addr.into(), ..Default::default() };
        Node {
            id: id.into(),
            description: Some(description),
            manager_status: Some(manager),
            ..Default::default()
        }
        .into()
    }

    #[test]
    fn the_leader_is_named_by_what_is_known_of_it() {
        let follower = manager("n1", "m1", false, "10.0.0.1:2377");
        let text = |leader| among(&[follower.clone(), leader]);
        assert_eq!(text(manager("n2", "m2", true, "10.0.0.2:2377")), ", m2 (10.0.0.2:2377),");
        assert_eq!(text(manager("n2", "", true, "10.0.0.2:2377")), ", n2 (10.0.0.2:2377),");
        assert_eq!(text(manager("n2", "m2", true, "")), ", m2,");
        assert_eq!(text(manager("n2", "m2", false, "")), "");
    }
}
