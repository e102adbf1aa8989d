//! The queries that only some kinds have.

use swarm_api::extensions::StartOrder;
use swarm_api::v1::{
    Node, NodeRole, Resource, Service, Task, TaskSpec, TaskState, Volume, node_spec, task_spec,
};
use swarm_api::{Shared, naming};

use crate::Table;
use crate::index::{ix, lower, number, pair, service_networks, text};

fn has_runtime(spec: &TaskSpec, runtime: &str) -> bool {
    naming::runtime(spec.runtime.as_ref()).as_deref() == Some(runtime)
}

fn has_secret(spec: &TaskSpec, id: &str) -> bool {
    match &spec.runtime {
        Some(task_spec::Runtime::Container(container)) => container.secrets.iter().any(|s| s.secret_id == id),
        _ => false,
    }
}

fn has_config(spec: &TaskSpec, id: &str) -> bool {
    match &spec.runtime {
        Some(task_spec::Runtime::Container(container)) => container.configs.iter().any(|c| c.config_id == id),
        _ => false,
    }
}

impl Table<Task> {
    /// Tasks of a service; the empty id has the tasks without one.
    pub fn by_service(&self, service_id: &str) -> impl Iterator<Item = &Shared<Task>> + use<'_> {
        let id = service_id.to_owned();
        self.by(text(ix::SERVICE, service_id), move |t| t.service_id == id)
    }
    /// Tasks on a node; the empty id has the tasks not yet assigned.
    pub fn by_node(&self, node_id: &str) -> impl Iterator<Item = &Shared<Task>> + use<'_> {
        let id = node_id.to_owned();
        // Every task begins without a node, and few ask for those: they are not worth a key.
        let without = id.is_empty().then(|| self.iter().filter(|t| t.node_id.is_empty()));
        let on_node = (!id.is_empty()).then(|| self.by(text(ix::NODE, node_id), move |t| t.node_id == id));
        without.into_iter().flatten().chain(on_node.into_iter().flatten())
    }
    /// Tasks of one slot of a service.
    pub fn by_slot(&self, service_id: &str, slot: u64) -> impl Iterator<Item = &Shared<Task>> + use<'_> {
        let id = service_id.to_owned();
        self.by(pair(ix::SLOT, service_id, slot), move |t| t.slot == slot && t.service_id == id)
    }
    /// Tasks that are wanted in this state.
    pub fn by_desired_state(&self, state: TaskState) -> impl Iterator<Item = &Shared<Task>> + use<'_> {
        let state = state as i32;
        self.by(number(ix::DESIRED, state as u64), move |t| t.desired_state == state)
    }
    /// Tasks that were last seen in this state.
    pub fn by_observed_state(&self, state: TaskState) -> impl Iterator<Item = &Shared<Task>> + use<'_> {
        let state = state as i32;
        self.by(number(ix::OBSERVED, state as u64), move |t| t.status.state == state)
    }
    /// Tasks with this runtime: `container`, `attachment` or the kind of a generic one.
    pub fn by_runtime(&self, runtime: &str) -> impl Iterator<Item = &Shared<Task>> + use<'_> {
        let runtime = runtime.to_lowercase();
        self.by(text(ix::RUNTIME, &runtime), move |t| has_runtime(&t.spec, &runtime))
    }
    /// Tasks whose spec names this network.
    pub fn by_network(&self, network: &str) -> impl Iterator<Item = &Shared<Task>> + use<'_> {
        let id = network.to_owned();
        self.by(text(ix::NETWORK, network), move |t| t.spec.networks.iter().any(|n| n.target == id))
    }
    /// Tasks that use this secret.
    pub fn by_secret(&self, secret_id: &str) -> impl Iterator<Item = &Shared<Task>> + use<'_> {
        let id = secret_id.to_owned();
        self.by(text(ix::SECRET, secret_id), move |t| has_secret(&t.spec, &id))
    }
    /// Tasks that use this config.
    pub fn by_config(&self, config_id: &str) -> impl Iterator<Item = &Shared<Task>> + use<'_> {
        let id = config_id.to_owned();
        self.by(text(ix::CONFIG, config_id), move |t| has_config(&t.spec, &id))
    }
    /// Tasks that have this volume attached.
    pub fn by_volume(&self, volume_id: &str) -> impl Iterator<Item = &Shared<Task>> + use<'_> {
        let id = volume_id.to_owned();
        self.by(text(ix::VOLUME, volume_id), move |t| t.volumes.iter().any(|v| v.id == id))
    }
}

impl Table<Service> {
    /// Services whose tasks have this runtime.
    pub fn by_runtime(&self, runtime: &str) -> impl Iterator<Item = &Shared<Service>> + use<'_> {
        let runtime = runtime.to_lowercase();
        self.by(text(ix::RUNTIME, &runtime), move |s| has_runtime(&s.spec.task, &runtime))
    }
    /// Services that name this network.
    pub fn by_network(&self, network: &str) -> impl Iterator<Item = &Shared<Service>> + use<'_> {
        let id = network.to_owned();
        self.by(text(ix::NETWORK, network), move |s| service_networks(s).iter().any(|n| n.target == id))
    }
    /// Services that use this secret.
    pub fn by_secret(&self, secret_id: &str) -> impl Iterator<Item = &Shared<Service>> + use<'_> {
        let id = secret_id.to_owned();
        self.by(text(ix::SECRET, secret_id), move |s| has_secret(&s.spec.task, &id))
    }
    /// Services that use this config.
    pub fn by_config(&self, config_id: &str) -> impl Iterator<Item = &Shared<Service>> + use<'_> {
        let id = config_id.to_owned();
        self.by(text(ix::CONFIG, config_id), move |s| has_config(&s.spec.task, &id))
    }
    /// Services that wait for the one of this name before they start; case does not matter.
    pub fn by_awaited(&self, name: &str) -> impl Iterator<Item = &Shared<Service>> + use<'_> {
        let name = lower(name).into_owned();
        let key = text(ix::WAITS_FOR, &name);
        self.by(key, move |s| {
            StartOrder::of(s).0.iter().any(|dependency| *lower(&dependency.service) == *name)
        })
    }
    /// Services that publish a port of this number, whatever the protocol: asked for, or given to them.
    pub fn by_published_port(&self, port: u32) -> impl Iterator<Item = &Shared<Service>> + use<'_> {
        let key = number(ix::PORT, port.into());
        self.by(key, move |s| s.published_ports().any(|published| published.published_port == port))
    }
}

impl Table<Node> {
    /// Nodes with this observed role.
    pub fn by_role(&self, role: NodeRole) -> impl Iterator<Item = &Shared<Node>> + use<'_> {
        let role = role as i32;
        self.by(number(ix::ROLE, role as u64), move |n| n.role == role)
    }
    /// Nodes with this membership in their spec.
    pub fn by_membership(
        &self,
        membership: node_spec::Membership,
    ) -> impl Iterator<Item = &Shared<Node>> + use<'_> {
        let membership = membership as i32;
        self.by(number(ix::MEMBERSHIP, membership as u64), move |n| n.spec.membership == membership)
    }
}

impl Table<Resource> {
    /// Resources of an extension's kind.
    pub fn by_kind(&self, kind: &str) -> impl Iterator<Item = &Shared<Resource>> + use<'_> {
        let own = kind.to_owned();
        self.by(text(ix::KIND, kind), move |r| r.kind == own)
    }
}

impl Table<Volume> {
    /// Volumes of a group.
    pub fn by_group(&self, group: &str) -> impl Iterator<Item = &Shared<Volume>> + use<'_> {
        let own = group.to_owned();
        self.by(text(ix::GROUP, group), move |v| v.spec.group == own)
    }
    /// Volumes of a driver.
    pub fn by_driver(&self, driver: &str) -> impl Iterator<Item = &Shared<Volume>> + use<'_> {
        let own = driver.to_owned();
        self.by(text(ix::DRIVER, driver), move |v| v.spec.driver.as_ref().is_some_and(|d| d.name == own))
    }
}
