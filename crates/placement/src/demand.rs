//! What a task takes on a node.

use swarm_api::v1::{Endpoint, GenericResource, PortConfig, Task, TaskSpec, port_config::PublishMode};

use crate::generic::Request;

/// A port of the node itself: protocol (as its number in the contract) and port.
pub type HostPort = (i32, u32);

/// What a task asks of a node, read from its spec and endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Demand {
    /// Reserved CPU time, in billionths of a core.
    pub nano_cpus: i64,
    /// Reserved memory, in bytes.
    pub memory_bytes: i64,
    /// Reserved generic resources.
    pub generic: Request,
    /// Ports of the node that the task occupies.
    pub ports: Vec<HostPort>,
}

impl Demand {
    /// What a task asks for.
    pub fn of(task: &Task) -> Demand {
        let Reserved { nano_cpus, memory_bytes } = Reserved::of(&task.spec);
        let generic = Request::new(reserved_generic(&task.spec));
        Demand { nano_cpus, memory_bytes, generic, ports: Demand::ports_of(task) }
    }

    /// The ports of the node that a task asks for, in their order.
    pub fn ports_of(task: &Task) -> Vec<HostPort> {
        let mut ports: Vec<HostPort> = host_ports(task.endpoint.as_deref()).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Asks for CPU, memory or generic resources.
    pub fn has_resources(&self) -> bool {
        self.nano_cpus > 0 || self.memory_bytes > 0 || !self.generic.is_empty()
    }
}

/// What a task holds on a node, as it is entered in the node's account and taken out again.
#[derive(Debug, Clone, Copy)]
pub struct Holding<'a> {
    /// What its spec reserves.
    pub reserved: Reserved,
    /// The task's endpoint.
    pub endpoint: Option<&'a Endpoint>,
    /// The generic resources that were chosen for it.
    pub generic: &'a [GenericResource],
    /// It is wanted, so it counts where tasks are spread; one that is shutting down still holds resources.
    pub active: bool,
}

impl<'a> Holding<'a> {
    /// What a task that is wanted holds, with the generic resources that were chosen for it.
    pub fn of(task: &'a Task, generic: &'a [GenericResource]) -> Holding<'a> {
        let reserved = Reserved::of(&task.spec);
        Holding { reserved, endpoint: task.endpoint.as_deref(), generic, active: true }
    }
}

/// CPU and memory that a spec reserves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reserved {
    /// In billionths of a core; not below zero.
    pub nano_cpus: i64,
    /// In bytes; not below zero.
    pub memory_bytes: i64,
}

impl Reserved {
    /// What a spec says; negative numbers reserve nothing.
    pub fn of(spec: &TaskSpec) -> Reserved {
        let reservations = spec.resources.as_ref().and_then(|r| r.reservations.as_ref());
        reservations.map_or(Reserved::default(), |r| Reserved {
            nano_cpus: r.nano_cpus.max(0),
            memory_bytes: r.memory_bytes.max(0),
        })
    }
}

fn reserved_generic(spec: &TaskSpec) -> &[GenericResource] {
    let reservations = spec.resources.as_ref().and_then(|r| r.reservations.as_ref());
    reservations.map_or(&[], |r| &r.generic)
}

/// The ports of the node that a task occupies, in the order of its endpoint.
pub(crate) fn host_ports(endpoint: Option<&Endpoint>) -> impl Iterator<Item = HostPort> + '_ {
    let ports: &[PortConfig] = endpoint.map_or(&[], |e| &e.ports);
    ports
        .iter()
        .filter(|p| p.publish_mode == PublishMode::Host as i32 && p.published_port != 0)
        .map(|p| (p.protocol, p.published_port))
}
