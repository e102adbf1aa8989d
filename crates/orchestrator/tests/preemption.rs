//! Tasks that make room for those of a service with a higher priority, and what becomes of both, with everything that
//! a manager runs (decision 0079).
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use swarm_api::Shared;
use swarm_api::TaskState::{self, Pending, Ready, Rejected, Running, Shutdown};
use swarm_api::extensions::{PREEMPTION, PRIORITY};
use swarm_api::v1::restart_policy::RestartCondition::Any;
use swarm_api::v1::{
    GlobalService, Node, NodeDescription, Placement, ResourceRequirements, Resources, RestartPolicy, Service,
    ServiceSpec, Task, service_spec,
};

/// For how many seconds a task that a manager declared ended holds its node: ten to stop, and ten more.
const HELD: u64 = 20;

const NO_ROOM: &str = "no suitable node (insufficient resources on 1 node)";

/// A node with ten units.
fn big_node(id: &str) -> Node {
    let resources = Some(Resources { nano_cpus: 10, ..Default::default() });
    let mut node = node(id);
    node.description = Some(NodeDescription { resources, ..Default::default() });
    node
}

/// A service whose tasks take five units each.
fn half(id: &str, replicas: u64, priority: i32) -> Service {
    let mut service = service(id, replicas);
    let reservations = Some(Resources { nano_cpus: 5, ..Default::default() });
    service.spec.task.resources = Some(ResourceRequirements { reservations, ..Default::default() });
    set_priority(&mut service.spec, priority);
    service
}

fn set_priority(spec: &mut ServiceSpec, priority: i32) {
    spec.annotations.labels.insert(PRIORITY.into(), priority.to_string());
}

fn only_on(mut service: Service, node: &str) -> Service {
    let constraints = vec![format!("node.id=={node}")];
    service.spec.task.placement = Some(Placement { constraints, ..Default::default() });
    service
}

/// These nodes under a leader as it is.
fn cluster(nodes: &[&str]) -> Sim {
    let mut sim = Sim::new(|tx| nodes.iter().for_each(|id| drop(tx.create(big_node(id)).unwrap())));
    sim.lead(leader());
    sim
}

fn create(sim: &mut Sim, service: &Service) {
    sim.write(|tx| drop(tx.create(service.clone()).unwrap()));
    sim.settle();
}

/// What `swarmctl cluster update --preemption` comes to.
fn allow(sim: &mut Sim, preemption: bool) {
    sim.write(|tx| {
        let mut cluster = tx.cluster().unwrap().clone();
        let labels = &mut cluster.spec.annotations.labels;
        match preemption {
            true => drop(labels.insert(PREEMPTION.into(), "on".into())),
            false => drop(labels.remove(PREEMPTION)),
        }
        tx.update(cluster).unwrap();
    });
    sim.settle();
}

/// Running tasks of a service on a node.
fn on(sim: &Sim, service: &str, node: &str) -> usize {
    sim.running(service).get(node).copied().unwrap_or(0)
}

/// The texts of tasks that wait for a node.
fn waiting(sim: &Sim, service: &str) -> Vec<String> {
    let mut live = sim.live(service);
    live.retain(|t| t.status.state() == Pending);
    live.iter().map(|t| t.status.err.to_string()).collect()
}

fn preempted(sim: &Sim, service: &str) -> usize {
    let displaced =
        |t: &&Shared<Task>| t.status.state() == Rejected && t.status.message == "task preempted by scheduler";
    sim.tasks(service).iter().filter(displaced).count()
}

/// One node full of a service of the lowest priority, with a task of another service that waits.
fn full(priority: i32) -> Sim {
    let mut sim = cluster(&["n1"]);
    create(&mut sim, &half("low", 2, 0));
    create(&mut sim, &half("high", 1, priority));
    assert_eq!((on(&sim, "low", "n1"), waiting(&sim, "high")), (2, vec![NO_ROOM.to_owned()]));
    sim
}

#[test]
fn a_task_that_waits_already_gets_room_when_preemption_is_allowed() {
    let mut sim = full(5);
    sim.advance(secs(3_600));
    assert_eq!(preempted(&sim, "low"), 0, "nobody has allowed it");
    allow(&mut sim, true);
    assert_eq!((preempted(&sim, "low"), on(&sim, "low", "n1")), (1, 1), "one is enough");
    assert_eq!(waiting(&sim, "high"), ["waits for tasks with a lower priority to stop on node n1"]);
    // Its service puts another task in its place, which finds no room.
    assert_eq!(slots(&sim.live("low")), [1, 2]);
    assert_eq!(waiting(&sim, "low"), [NO_ROOM]);
    sim.advance(secs(HELD - 1));
    assert_eq!(on(&sim, "high", "n1"), 0, "it may still run");
    sim.advance(secs(1));
    assert_eq!((on(&sim, "high", "n1"), on(&sim, "low", "n1")), (1, 1));
    assert_eq!(waiting(&sim, "low"), [NO_ROOM]);
    // And there they stay.
    let decisions = sim.decisions;
    sim.advance(secs(3_600));
    assert_eq!((sim.decisions, preempted(&sim, "low")), (decisions, 1));
    // A node that comes takes who waits.
    sim.write(|tx| drop(tx.create(big_node("n2")).unwrap()));
    sim.settle();
    assert_eq!((on(&sim, "low", "n1"), on(&sim, "low", "n2"), on(&sim, "high", "n1")), (1, 1, 1));
}

#[test]
fn what_made_room_comes_back_when_the_room_is_free_again() {
    let mut sim = full(5);
    allow(&mut sim, true);
    sim.advance(secs(HELD));
    assert_eq!((on(&sim, "high", "n1"), on(&sim, "low", "n1")), (1, 1));
    sim.write(|tx| drop(tx.remove::<Service>("high").unwrap()));
    sim.settle();
    assert_eq!((on(&sim, "low", "n1"), waiting(&sim, "low")), (2, vec![]));
}

#[test]
fn a_task_that_waits_already_gets_room_when_its_service_rises_or_another_falls() {
    for (service, priority) in [("high", 1), ("low", -1)] {
        let mut sim = full(0);
        allow(&mut sim, true);
        sim.advance(secs(60));
        assert_eq!((preempted(&sim, "low"), preempted(&sim, "high")), (0, 0), "equals");
        sim.update_service(service, |spec| set_priority(spec, priority));
        sim.advance(secs(HELD));
        assert_eq!((on(&sim, "high", "n1"), on(&sim, "low", "n1")), (1, 1), "{service} to {priority}");
    }
}

#[test]
fn nobody_goes_once_preemption_is_forbidden_again() {
    let mut sim = full(5);
    allow(&mut sim, true);
    sim.advance(secs(HELD));
    allow(&mut sim, false);
    sim.scale("high", 2);
    sim.advance(secs(3_600));
    assert_eq!((on(&sim, "high", "n1"), on(&sim, "low", "n1"), preempted(&sim, "low")), (1, 1, 1));
    assert_eq!(waiting(&sim, "high"), [NO_ROOM]);
}

#[test]
fn a_displaced_task_is_replaced_where_there_is_room_after_its_restart_delay() {
    let mut sim = cluster(&["n1", "n2"]);
    allow(&mut sim, true);
    create(&mut sim, &only_on(half("low", 2, 0), "n1"));
    sim.update_service("low", |spec| spec.task.placement = None);
    sim.settle();
    create(&mut sim, &only_on(half("high", 1, 5), "n1"));
    let moved = sim.live("low").iter().find(|t| t.node_id == "n2").cloned().unwrap();
    assert_eq!((moved.desired_state(), moved.status.state()), (Ready, Ready), "prepared meanwhile");
    let old = sim.tasks("low").iter().find(|t| t.status.state() == Rejected).cloned().unwrap();
    assert_eq!((old.slot, old.desired_state()), (moved.slot, Shutdown));
    assert_eq!(old.status.err, "made room for a task of service high, which has a higher priority");
    sim.advance(millis(4_999));
    assert_eq!(on(&sim, "low", "n2"), 0);
    sim.advance(millis(1));
    assert_eq!((on(&sim, "low", "n1"), on(&sim, "low", "n2")), (1, 1));
    sim.advance(secs(HELD));
    assert_eq!((on(&sim, "high", "n1"), preempted(&sim, "low")), (1, 1));
}

#[test]
fn who_is_displaced_may_displace_those_below_and_that_ends() {
    let mut sim = cluster(&["n1", "n2"]);
    allow(&mut sim, true);
    create(&mut sim, &only_on(half("middle", 2, 3), "n1"));
    sim.update_service("middle", |spec| spec.task.placement = None);
    create(&mut sim, &half("low", 2, 1));
    assert_eq!((on(&sim, "middle", "n1"), on(&sim, "low", "n2")), (2, 2));
    create(&mut sim, &only_on(half("high", 1, 5), "n1"));
    sim.advance(secs(2 * HELD));
    assert_eq!((on(&sim, "high", "n1"), on(&sim, "middle", "n1")), (1, 1));
    assert_eq!((on(&sim, "middle", "n2"), on(&sim, "low", "n2")), (1, 1));
    assert_eq!(["high", "middle", "low"].map(|id| preempted(&sim, id)), [0, 1, 1]);
    let decisions = sim.decisions;
    sim.advance(secs(3_600));
    assert_eq!(sim.decisions, decisions);
    assert_eq!((slots(&sim.live("low")), waiting(&sim, "low").len()), (vec![1, 2], 1));
}

#[test]
fn a_global_service_loses_one_task_and_waits_for_that_node() {
    let mut sim = cluster(&["n1", "n2"]);
    allow(&mut sim, true);
    let mut everywhere = half("everywhere", 0, 0);
    everywhere.spec.mode = Some(service_spec::Mode::Global(GlobalService {}));
    create(&mut sim, &everywhere);
    create(&mut sim, &only_on(half("high", 2, 5), "n1"));
    sim.advance(secs(HELD));
    assert_eq!((on(&sim, "high", "n1"), preempted(&sim, "everywhere")), (2, 1));
    assert_eq!((on(&sim, "everywhere", "n1"), on(&sim, "everywhere", "n2")), (0, 1));
    assert_eq!(waiting(&sim, "everywhere"), ["insufficient resources on 1 node"]);
    sim.scale("high", 1);
    sim.settle();
    assert_eq!(on(&sim, "everywhere", "n1"), 1);
}

/// They would not be started again, or less often than their service asks for.
#[test]
fn tasks_whose_restarts_are_counted_stay() {
    let mut sim = cluster(&["n1"]);
    allow(&mut sim, true);
    let mut low = half("low", 2, 0);
    low.spec.task.restart = Some(RestartPolicy { max_attempts: 1, ..policy(Any) });
    create(&mut sim, &low);
    let first = sim.live("low")[0].clone();
    sim.report(&first.id, TaskState::Failed, "");
    sim.advance(secs(5));
    assert_eq!(on(&sim, "low", "n1"), 2, "the only attempt of slot 1 is used up");
    create(&mut sim, &half("high", 1, 5));
    sim.advance(secs(3_600));
    assert_eq!((on(&sim, "low", "n1"), waiting(&sim, "high")), (2, vec![NO_ROOM.to_owned()]));
    let running = sim.live("low").iter().filter(|t| t.status.state() == Running).count();
    assert_eq!(running, 2);
}

#[test]
fn another_leader_goes_on_with_what_was_begun() {
    let mut sim = full(5);
    allow(&mut sim, true);
    sim.advance(secs(10));
    sim.lead(leader());
    sim.advance(secs(10));
    assert_eq!((on(&sim, "high", "n1"), on(&sim, "low", "n1"), preempted(&sim, "low")), (1, 1, 1));
    assert_eq!(slots(&sim.live("low")), [1, 2]);
}

#[test]
fn a_service_that_needs_a_whole_node_gets_it() {
    let mut sim = full(0);
    allow(&mut sim, true);
    sim.update_service("high", |spec| set_priority(spec, 5));
    sim.scale("high", 2);
    sim.advance(secs(HELD));
    assert_eq!((on(&sim, "high", "n1"), on(&sim, "low", "n1")), (2, 0));
    assert_eq!((preempted(&sim, "low"), waiting(&sim, "low").len()), (2, 2));
}
