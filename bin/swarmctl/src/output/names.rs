//! Names for ids.

use std::collections::BTreeMap;

use swarm_api::Shared;
use swarm_api::v1::{Node, Service, Task};

/// What ids are called. Objects are fetched once for a whole listing; what is not there is shown by its id.
#[derive(Debug, Default)]
pub(crate) struct Names {
    nodes: BTreeMap<String, String>,
    services: BTreeMap<String, String>,
}

impl Names {
    /// Names of these objects.
    pub(crate) fn new(nodes: &[Shared<Node>], services: &[Shared<Service>]) -> Names {
        let service = |service: &Shared<Service>| (service.id.clone(), service.spec.annotations.name.clone());
        Names {
            nodes: nodes.iter().map(|node| (node.id.clone(), node_name(node).to_owned())).collect(),
            services: services.iter().map(service).collect(),
        }
    }

    /// Whether the node was there when names were looked up.
    pub(crate) fn has_node(&self, id: &str) -> bool {
        self.nodes.contains_key(id)
    }

    /// The node's name; nothing for a task without a node.
    pub(crate) fn node<'a>(&'a self, id: &'a str) -> &'a str {
        self.nodes.get(id).filter(|name| !name.is_empty()).map_or(id, String::as_str)
    }

    /// The service's name.
    pub(crate) fn service<'a>(&'a self, id: &'a str) -> &'a str {
        self.services.get(id).filter(|name| !name.is_empty()).map_or(id, String::as_str)
    }

    /// The task by its service and slot.
    pub(crate) fn task(&self, task: &Task) -> String {
        if task.service_id.is_empty() {
            return task.annotations.name.clone();
        }
        format!("{}.{}", self.service(&task.service_id), task.slot)
    }
}

/// What a node is called: as it was named, else its hostname.
pub(crate) fn node_name(node: &Node) -> &str {
    if !node.spec.annotations.name.is_empty() {
        return &node.spec.annotations.name;
    }
    node.description.as_ref().map_or("", |description| &description.hostname)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_name_is_called_by_its_id() {
        let mut service = Service { id: "s".into(), ..Default::default() };
        service.spec.annotations.name = "web".into();
        let names = Names::new(&[Node { id: "n".into(), ..Default::default() }.into()], &[service.into()]);
        assert_eq!((names.node("n"), names.node("x"), names.node("")), ("n", "x", ""));
        let task = |service: &str| Task { service_id: service.into(), slot: 2, ..Default::default() };
        assert_eq!(names.task(&task("s")), "web.2");
        assert_eq!(names.task(&task("gone")), "gone.2");
    }
}
