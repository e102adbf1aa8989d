//! The role manager: brings the observed role of nodes in line with the desired one.
//!
//! A role is raised once the node is a member of the raft group, or is to become one: the CA certifies the
//! observed role at the next renewal. Lowering it takes the member out of the group first, which is the
//! business of membership changes and not done here.

use std::collections::BTreeSet;
use std::sync::Arc;

use swarm_api::v1::NodeRole;
use swarm_api::{Kind, Object};
use swarm_reconcile::{Ctx, Decision, Group, Guard, Patch, Reconciler, Write};
use swarm_store::{Event, Tables};

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct RoleManager {
    dirty: BTreeSet<String>,
}

impl Reconciler for RoleManager {
    fn name(&self) -> &'static str {
        "roles"
    }

    fn init(&mut self, _: &mut Ctx<'_>, tables: &Tables) {
        self.dirty = tables.nodes().iter().map(|n| n.id.clone()).collect();
    }

    fn observe(&mut self, _: &mut Ctx<'_>, events: &[Event], _: &Tables) {
        let nodes = events.iter().filter(|e| e.kind() == Kind::Node);
        self.dirty.extend(nodes.map(|e| e.id().to_owned()));
    }

    fn decide(&mut self, _: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let mut groups = Vec::new();
        for id in std::mem::take(&mut self.dirty) {
            let Some(node) = tables.nodes().get(&id) else { continue };
            if node.spec.desired_role() == NodeRole::Manager && node.role() == NodeRole::Worker {
                let patch = Patch::new(raise(&id)).guard(Guard::Exists(Kind::Node, id.clone()));
                groups.push(Group { tag: 0, patches: vec![patch] });
            }
        }
        Decision { groups, wake_at: None }
    }
}

fn raise(id: &str) -> Write {
    Write::Edit {
        kind: Kind::Node,
        id: id.to_owned(),
        what: "raise the role of",
        edit: Arc::new(|object| {
            let Object::Node(node) = object else { return None };
            if node.spec.desired_role() != NodeRole::Manager || node.role() == NodeRole::Manager {
                return None;
            }
            let mut node = node.clone();
            node.role = NodeRole::Manager as i32;
            Some(Object::Node(node))
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use swarm_api::v1::Node;
    use swarm_reconcile::{Now, SequentialIds};

    use super::*;

    #[test]
    fn a_node_that_should_be_a_manager_is_raised_once() {
        let mut tables = Tables::default();
        for (id, desired) in [("m", NodeRole::Manager), ("w", NodeRole::Worker)] {
            let mut node = Node { id: id.into(), ..Default::default() };
            node.spec.desired_role = desired as i32;
            tables.insert(node.into()).unwrap();
        }
        let mut ids = SequentialIds::default();
        let now = Now { mono: Duration::ZERO, wall: SystemTime::UNIX_EPOCH };
        let mut ctx = Ctx { now, ids: &mut ids };
        let mut roles = RoleManager::default();
        roles.init(&mut ctx, &tables);
        let decision = roles.decide(&mut ctx, &tables);
        assert_eq!(decision.groups.len(), 1);
        let event = decision.groups[0].patches[0].apply(&mut tables).unwrap().unwrap();
        assert_eq!(tables.nodes().get("m").unwrap().role(), NodeRole::Manager);
        roles.observe(&mut ctx, &[event], &tables);
        assert!(roles.decide(&mut ctx, &tables).groups.is_empty());
    }
}
