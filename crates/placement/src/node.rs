//! The account of one node.

use std::collections::BTreeMap;

use swarm_api::Shared;
use swarm_api::v1::{GenericResource, Node};

use crate::demand::{Demand, Holding, HostPort, host_ports};
use crate::failures::Failures;
use crate::generic::Ledger;

/// A node, and what the tasks on it take.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeInfo {
    node: Shared<Node>,
    cpu: Balance,
    memory: Balance,
    generic: Ledger,
    /// With how many tasks use each: never more than one, unless somebody else placed them.
    ports: BTreeMap<HostPort, u32>,
    active: u32,
    ready: bool,
    /// Which services keep failing here.
    pub failures: Failures,
}

/// What is described of one quantity, and what tasks hold of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Balance {
    described: i64,
    held: i128,
}

impl Balance {
    fn free(self) -> i128 {
        i128::from(self.described) - self.held
    }
}

impl NodeInfo {
    /// The account of a node without tasks.
    pub fn new(node: Shared<Node>) -> NodeInfo {
        let mut info = NodeInfo::default();
        info.set_node(node);
        info
    }

    /// The node.
    pub fn node(&self) -> &Shared<Node> {
        &self.node
    }

    /// Takes note of a change of the node; what its tasks hold stays. A node that describes nothing has nothing.
    pub fn set_node(&mut self, node: Shared<Node>) {
        let resources = node.description.as_ref().and_then(|d| d.resources.as_ref());
        self.cpu.described = resources.map_or(0, |r| r.nano_cpus);
        self.memory.described = resources.map_or(0, |r| r.memory_bytes);
        self.generic.describe(resources.map_or(&[], |r| &r.generic));
        self.ready = node.is_usable();
        self.node = node;
    }

    /// Takes new tasks: READY and ACTIVE.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// What is free satisfies the reservations.
    pub fn has_resources(&self, demand: &Demand) -> bool {
        (demand.nano_cpus == 0 || i128::from(demand.nano_cpus) <= self.cpu.free())
            && (demand.memory_bytes == 0 || i128::from(demand.memory_bytes) <= self.memory.free())
            && self.generic.satisfies(&demand.generic)
    }

    /// None of the ports is in use.
    pub fn has_ports(&self, demand: &Demand) -> bool {
        demand.ports.iter().all(|port| !self.ports.contains_key(port))
    }

    /// Chooses the generic resources that a task gets and holds them. `None` if there is not enough.
    ///
    /// The rest of the task is entered with [`NodeInfo::add_claimed`].
    pub fn claim(&mut self, demand: &Demand) -> Option<Vec<GenericResource>> {
        self.generic.claim(&demand.generic)
    }

    /// Holds what a task is to get of generic resources once they are free ([`Ledger::set_aside`]).
    pub fn set_aside(&mut self, demand: &Demand) -> Vec<GenericResource> {
        self.generic.set_aside(&demand.generic)
    }

    /// Gives back generic resources that are held.
    pub fn release(&mut self, held: &[GenericResource]) {
        self.generic.release(held);
    }

    /// Enters a task.
    pub fn add(&mut self, holding: Holding<'_>) {
        self.generic.hold(holding.generic);
        self.add_claimed(holding);
    }

    /// Enters a task whose generic resources are held already.
    pub fn add_claimed(&mut self, holding: Holding<'_>) {
        self.cpu.held += i128::from(holding.reserved.nano_cpus);
        self.memory.held += i128::from(holding.reserved.memory_bytes);
        for port in host_ports(holding.endpoint) {
            *self.ports.entry(port).or_default() += 1;
        }
        if holding.active {
            self.set_active(true);
        }
    }

    /// Takes out a task exactly as it was entered.
    pub fn remove(&mut self, holding: Holding<'_>) {
        self.cpu.held -= i128::from(holding.reserved.nano_cpus);
        self.memory.held -= i128::from(holding.reserved.memory_bytes);
        self.generic.release(holding.generic);
        for port in host_ports(holding.endpoint) {
            if let Some(users) = self.ports.get_mut(&port) {
                *users -= 1;
                if *users == 0 {
                    self.ports.remove(&port);
                }
            }
        }
        if holding.active {
            self.set_active(false);
        }
    }

    /// One task more, or less, is wanted here. The resources it holds stay as they are.
    pub fn set_active(&mut self, active: bool) {
        self.active = if active { self.active + 1 } else { self.active - 1 };
    }

    /// Number of tasks that are wanted here.
    pub fn active(&self) -> u32 {
        self.active
    }

    /// CPU that is free, in billionths of a core; below zero if tasks hold more than the node describes.
    pub fn free_cpu(&self) -> i128 {
        self.cpu.free()
    }

    /// Memory that is free, in bytes; below zero if tasks hold more than the node describes.
    pub fn free_memory(&self) -> i128 {
        self.memory.free()
    }

    /// How much of the node's CPU or memory tasks hold, whichever is more, in millionths; all of it if they hold more.
    pub fn fullness(&self) -> u32 {
        let share = |balance: Balance| match balance.described {
            ..=0 => 0,
            described => (balance.held * 1_000_000 / i128::from(described)).clamp(0, 1_000_000) as u32,
        };
        share(self.cpu).max(share(self.memory))
    }

    /// Generic resources.
    pub fn generic(&self) -> &Ledger {
        &self.generic
    }

    /// Tasks hold more of something than the node describes, or one thing twice.
    pub fn is_overcommitted(&self) -> bool {
        let over = |balance: Balance| balance.held > 0 && balance.free() < 0;
        over(self.cpu)
            || over(self.memory)
            || self.generic.is_overdrawn()
            || self.ports.values().any(|users| *users > 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generic::{discrete, named};
    use swarm_api::v1::{
        Endpoint, NodeDescription, PortConfig, ResourceRequirements, Resources, Task, node_spec, node_status,
        port_config::PublishMode,
    };

    fn node(cpu: i64, memory: i64, generic: Vec<GenericResource>) -> Shared<Node> {
        let resources = Resources { nano_cpus: cpu, memory_bytes: memory, generic };
        let description = NodeDescription { resources: Some(resources), ..Default::default() };
        Node { description: Some(description), ..Default::default() }.into()
    }

    fn task(cpu: i64, memory: i64, generic: Vec<GenericResource>) -> Task {
        let mut task = Task { service_id: "s".into(), ..Default::default() };
        let reservations = Resources { nano_cpus: cpu, memory_bytes: memory, generic };
        task.spec.resources =
            Some(ResourceRequirements { reservations: Some(reservations), ..Default::default() });
        task
    }

    fn put(info: &mut NodeInfo, task: &Task) -> Vec<GenericResource> {
        let generic = info.claim(&Demand::of(task)).unwrap();
        info.add_claimed(Holding::of(task, &generic));
        generic
    }

    #[test]
    fn tasks_take_what_they_reserve_and_give_it_back() {
        let mut info = NodeInfo::new(node(10, 100, vec![named("gpu", "a"), discrete("fpga", 3)]));
        let empty = info.clone();
        let big = task(6, 60, vec![discrete("gpu", 1), discrete("fpga", 2)]);
        assert!(info.has_resources(&Demand::of(&big)));
        let generic = put(&mut info, &big);
        assert_eq!((info.free_cpu(), info.free_memory(), info.active()), (4, 40, 1));
        assert!(!info.has_resources(&Demand::of(&big)));
        assert!(info.has_resources(&Demand::of(&task(4, 40, vec![discrete("fpga", 1)]))));
        assert!(!info.has_resources(&Demand::of(&task(0, 0, vec![discrete("gpu", 1)]))));
        assert!(!info.is_overcommitted());
        info.remove(Holding::of(&big, &generic));
        assert_eq!(info, empty);
    }

    #[test]
    fn a_node_is_as_full_as_what_is_scarcest_there() {
        let mut info = NodeInfo::new(node(10, 100, vec![]));
        assert_eq!(info.fullness(), 0);
        put(&mut info, &task(2, 50, vec![]));
        assert_eq!(info.fullness(), 500_000);
        put(&mut info, &task(5, 0, vec![]));
        assert_eq!(info.fullness(), 700_000);
        info.set_node(node(1, 0, vec![]));
        assert_eq!(info.fullness(), 1_000_000);
    }

    #[test]
    fn a_task_that_is_shutting_down_holds_resources_but_does_not_count() {
        let mut info = NodeInfo::new(node(10, 100, vec![]));
        let t = task(6, 60, vec![]);
        put(&mut info, &t);
        info.set_active(false);
        assert_eq!((info.free_cpu(), info.active()), (4, 0));
        info.remove(Holding { active: false, ..Holding::of(&t, &[]) });
        assert_eq!((info.free_cpu(), info.active()), (10, 0));
    }

    #[test]
    fn a_node_that_shrinks_is_overcommitted_and_satisfies_only_those_who_want_nothing() {
        let mut info = NodeInfo::new(node(10, 100, vec![]));
        put(&mut info, &task(6, 60, vec![]));
        info.set_node(node(5, 100, vec![]));
        assert!(info.is_overcommitted());
        assert_eq!(info.free_cpu(), -1);
        assert!(!info.has_resources(&Demand::of(&task(1, 0, vec![]))));
        assert!(info.has_resources(&Demand::of(&task(0, 40, vec![]))));
        info.set_node(Shared::default());
        assert!(!info.has_resources(&Demand::of(&task(0, 1, vec![]))));
        assert!(info.has_resources(&Demand::of(&task(0, 0, vec![]))));
    }

    #[test]
    fn reservations_as_large_as_numbers_go_do_not_wrap() {
        let mut info = NodeInfo::new(node(i64::MAX, i64::MAX, vec![]));
        let huge = task(i64::MAX, i64::MAX, vec![]);
        info.add(Holding::of(&huge, &[]));
        info.add(Holding::of(&huge, &[]));
        assert!(!info.has_resources(&Demand::of(&task(1, 1, vec![]))));
        let negative = task(-1, i64::MIN, vec![]);
        assert_eq!(Demand::of(&negative).memory_bytes, 0);
        info.add(Holding::of(&negative, &[]));
        info.remove(Holding::of(&huge, &[]));
        assert_eq!((info.free_cpu(), info.free_memory()), (0, 0));
    }

    fn with_ports(ports: &[(i32, u32, PublishMode)]) -> Task {
        let ports = ports.iter().map(|(protocol, port, mode)| PortConfig {
            protocol: *protocol,
            published_port: *port,
            publish_mode: *mode as i32,
            ..Default::default()
        });
        let endpoint = Endpoint { ports: ports.collect(), ..Default::default() };
        Task { endpoint: Some(endpoint.into()), ..Default::default() }
    }

    #[test]
    fn host_ports_are_told_apart_by_protocol_and_counted() {
        let mut info = NodeInfo::new(node(0, 0, vec![]));
        let tcp = with_ports(&[(0, 58, PublishMode::Host)]);
        let udp = with_ports(&[(1, 58, PublishMode::Host)]);
        let ingress = with_ports(&[(0, 58, PublishMode::Ingress)]);
        let any = with_ports(&[(0, 0, PublishMode::Host)]);
        put(&mut info, &tcp);
        assert!(!info.has_ports(&Demand::of(&tcp)));
        for free in [&udp, &ingress, &any] {
            assert!(info.has_ports(&Demand::of(free)));
        }
        // Placed by somebody else: the port stays in use until both are gone, other than in the original
        // (`orchestration.md` §20.41).
        put(&mut info, &tcp);
        assert!(info.is_overcommitted());
        info.remove(Holding::of(&tcp, &[]));
        assert!(!info.has_ports(&Demand::of(&tcp)));
        info.remove(Holding::of(&tcp, &[]));
        assert!(info.has_ports(&Demand::of(&tcp)));
    }

    #[test]
    fn only_ready_and_active_nodes_take_tasks() {
        for (state, availability, ready) in [
            (node_status::State::Ready, node_spec::Availability::Active, true),
            (node_status::State::Ready, node_spec::Availability::Pause, false),
            (node_status::State::Ready, node_spec::Availability::Drain, false),
            (node_status::State::Unknown, node_spec::Availability::Active, false),
            (node_status::State::Down, node_spec::Availability::Active, false),
            (node_status::State::Disconnected, node_spec::Availability::Active, false),
        ] {
            let mut node = Node::default();
            node.status.state = state as i32;
            node.spec.availability = availability as i32;
            assert_eq!(NodeInfo::new(node.into()).is_ready(), ready, "{state:?} {availability:?}");
        }
    }
}
