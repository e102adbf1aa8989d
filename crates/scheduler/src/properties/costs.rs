//! What is looked at grows with what happens, not with who is there.

use swarm_api::Kind;
use swarm_api::v1::{Node, NodeDescription, Resources, TaskState, node_status};

use super::cluster::{CPU, CPU_TOO, Cluster};
use super::ops::Op;
use crate::effort;

fn node(cluster: &mut Cluster) -> String {
    sized(cluster, 1)
}

fn sized(cluster: &mut Cluster, cpus: i64) -> String {
    let mut node = Node { id: cluster.id("node"), ..Default::default() };
    node.status.state = node_status::State::Ready as i32;
    let resources = Some(Resources { nano_cpus: cpus, ..Default::default() });
    node.description = Some(NodeDescription { resources, ..Default::default() });
    let id = node.id.clone();
    cluster.insert(node);
    id
}

/// How many tasks and nodes are looked at when one of many tasks ends, while others wait for its place.
fn of_one_end(nodes: usize, waiting: usize, preemption: bool) -> usize {
    let mut cluster = Cluster::new();
    cluster.allow_preemption(preemption);
    cluster.step(&Op::Lead);
    for _ in 0..nodes {
        node(&mut cluster);
    }
    let service = cluster.service(CPU);
    for _ in 0..nodes + waiting {
        let task = cluster.task(service.clone(), 0);
        cluster.insert(task);
    }
    cluster.turn(0);
    let mut task = cluster.tables.tasks().by_observed_state(TaskState::Assigned).next().unwrap().clone();
    task.status.state = TaskState::Complete as i32;
    cluster.replace(task);
    effort::take();
    cluster.turn(0);
    let assigned = cluster.tables.tasks().by_observed_state(TaskState::Assigned).count();
    assert_eq!(assigned, nodes, "another task took the place");
    effort::take()
}

#[test]
fn a_place_that_becomes_free_costs_no_more_where_many_wait_or_many_nodes_are_full() {
    let few = of_one_end(3, 5, false);
    assert!(few <= 12, "{few} looks at tasks and nodes for one task");
    assert_eq!(of_one_end(3, 600, false), few);
    assert_eq!(of_one_end(60, 5, false), few);
}

/// How many tasks and nodes are looked at when so many tasks are placed on so many nodes, which have room for all of them.
fn of_placing(tasks: usize, nodes: usize) -> usize {
    let mut cluster = Cluster::new();
    cluster.step(&Op::Lead);
    for _ in 0..nodes {
        sized(&mut cluster, 1_000);
    }
    let service = cluster.service(CPU);
    for _ in 0..tasks {
        let task = cluster.task(service.clone(), 0);
        cluster.insert(task);
    }
    effort::take();
    cluster.turn(0);
    assert_eq!(cluster.tables.tasks().by_observed_state(TaskState::Assigned).count(), tasks);
    effort::take()
}

#[test]
fn what_placing_costs_grows_with_the_tasks_and_not_with_the_nodes() {
    let (one, few, many) = (of_placing(100, 5), of_placing(100, 50), of_placing(100, 500));
    assert!(one <= 3 * 100, "{one} looks at tasks and nodes for 100 tasks");
    assert_eq!((few, many), (one, one));
    let twice = of_placing(200, 500);
    assert!(twice <= 2 * many, "{twice} for twice as many tasks as {many}");
}

/// The same when one of many full nodes changes and has no room all the same, while so many tasks of some services wait.
fn of_a_change(nodes: usize, waiting: usize) -> usize {
    let mut cluster = Cluster::new();
    cluster.step(&Op::Lead);
    let last = (0..nodes).map(|_| node(&mut cluster)).last().unwrap();
    for (kind, tasks) in [(CPU, nodes + waiting), (CPU_TOO, waiting)] {
        let service = cluster.service(kind);
        for _ in 0..tasks {
            let task = cluster.task(service.clone(), 0);
            cluster.insert(task);
        }
        cluster.turn(0);
    }
    let mut changed = cluster.tables.nodes().get(&last).unwrap().clone();
    changed.spec.annotations.labels.insert("zone".into(), "other".into());
    cluster.replace(changed);
    effort::take();
    cluster.turn(0);
    assert_eq!(cluster.tables.tasks().by_observed_state(TaskState::Assigned).count(), nodes);
    effort::take()
}

#[test]
fn a_node_that_changes_is_asked_once_for_all_who_ask_the_same() {
    let few = of_a_change(3, 5);
    assert!(few <= 4, "{few} looks for two groups that wait");
    assert_eq!((of_a_change(3, 600), of_a_change(60, 5)), (few, few));
}

#[test]
fn where_nobody_has_a_lower_priority_nobody_is_looked_at_for_room() {
    assert_eq!(of_one_end(20, 20, true), of_one_end(20, 20, false));
}

#[test]
fn nodes_that_never_come_back_are_forgotten_with_their_tasks() {
    let mut cluster = Cluster::new();
    cluster.step(&Op::Lead);
    for _ in 0..300 {
        let node = node(&mut cluster);
        let service = cluster.service(CPU);
        let mut task = cluster.task(service, 0);
        (task.node_id, task.status.state) = (node.as_str().into(), TaskState::Running as i32);
        let id = task.id.to_string();
        cluster.insert(task);
        cluster.remove(Kind::Node, &node);
        cluster.turn(0);
        cluster.remove(Kind::Task, &id);
        cluster.turn(0);
    }
    let known = cluster.scheduler.state().homeless();
    assert!(known <= 66, "{known} nodes are remembered");
}
