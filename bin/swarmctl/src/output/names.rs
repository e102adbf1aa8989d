//! Names for ids.

use std::collections::{BTreeMap, BTreeSet};

use swarm_api::Shared;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::{Node, Service, ServiceSpec, Task};

/// What ids are called. Objects are fetched once for a whole listing; what is not there is shown by its id.
#[derive(Debug, Default)]
pub(crate) struct Names {
    nodes: BTreeMap<String, String>,
    services: BTreeMap<String, String>,
    /// Those whose tasks have no slots.
    global: BTreeSet<String>,
}

impl Names {
    /// Names of these objects.
    pub(crate) fn new(nodes: &[Shared<Node>], services: &[Shared<Service>]) -> Names {
        let service = |service: &Shared<Service>| (service.id.clone(), service.spec.annotations.name.clone());
        Names {
            nodes: nodes.iter().map(|node| (node.id.clone(), node_name(node).to_owned())).collect(),
            services: services.iter().map(service).collect(),
            global: services.iter().filter(|s| is_global(&s.spec)).map(|s| s.id.clone()).collect(),
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

    /// Whether the service was there when names were looked up, and its tasks have no slots.
    pub(crate) fn is_global(&self, id: &str) -> bool {
        self.global.contains(id)
    }

    /// The task by its service and slot.
    pub(crate) fn task(&self, task: &Task) -> String {
        if task.service_id.is_empty() {
            return task.annotations.name.clone();
        }
        format!("{}.{}", self.service(&task.service_id), task.slot)
    }
}

/// The service has a task on each node, and those have no slots: in others the slot 0 is one, the first of a job.
pub(crate) fn is_global(spec: &ServiceSpec) -> bool {
    matches!(spec.mode, Some(Mode::Global(_) | Mode::GlobalJob(_)))
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

    #[test]
    fn only_services_with_a_task_on_each_node_have_no_slots() {
        let service = |id: &str, mode| {
            let mut service = Service { id: id.into(), ..Default::default() };
            service.spec.mode = Some(mode);
            Shared::new(service)
        };
        let services = [
            service("global", Mode::Global(Default::default())),
            service("global-job", Mode::GlobalJob(Default::default())),
            service("replicated", Mode::Replicated(Default::default())),
            service("replicated-job", Mode::ReplicatedJob(Default::default())),
        ];
        let names = Names::new(&[], &services);
        let global =
            ["global", "global-job", "replicated", "replicated-job", "gone"].map(|id| names.is_global(id));
        assert_eq!(global, [true, true, false, false, false]);
    }
}
