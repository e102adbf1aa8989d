//! Strategies beside the usual one, and room for tasks with a higher priority.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use swarm_api::extensions::{PLACEMENT_STRATEGY, PREEMPTION, PRIORITY};
use swarm_api::v1::{RestartPolicy, Task, TaskState, restart_policy::RestartCondition};
use world::{World, has, label, spread_over, wants};

/// A service with a label of ours.
fn service(world: &mut World, id: &str, key: &str, value: &str) {
    world.service(id, &Default::default());
    world.sim.write(|tx| {
        let mut service = tx.services().get(id).unwrap().clone();
        service.spec.annotations.labels.insert(key.into(), value.into());
        drop(tx.update(service).unwrap());
    });
    world.sim.think();
}

#[test]
fn binpack_fills_one_node_before_the_next() {
    let mut world = World::new();
    for id in ["n1", "n2", "n3"] {
        world.node(id, |n| has(n, 10, 0, vec![]));
    }
    service(&mut world, "s", PLACEMENT_STRATEGY, "binpack");
    world.replicas("s", 5, |t| wants(t, 3, 0, vec![]));
    assert_eq!(world.shares("s"), [2, 3]);
    // The fullest that has room, whosever tasks are there.
    world.task("s", "small", |t| wants(t, 1, 0, vec![]));
    let full = world.spread("s").into_iter().max_by_key(|(_, tasks)| *tasks).unwrap().0;
    assert_eq!(world.on("small"), full);
    // Others are spread as ever.
    world.replicas("t", 3, |t| wants(t, 1, 0, vec![]));
    assert_eq!(world.shares("t"), [1, 2], "one node is full");
}

#[test]
fn what_is_packed_is_spread_over_branches_first() {
    let mut world = World::new();
    for (id, zone) in [("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "b")] {
        world.node(id, |n| {
            has(n, 10, 0, vec![]);
            label(n, "zone", zone);
        });
    }
    service(&mut world, "s", PLACEMENT_STRATEGY, "binpack");
    world.replicas("s", 6, |t| {
        wants(t, 1, 0, vec![]);
        spread_over(t, &["node.labels.zone"]);
    });
    assert_eq!(world.shares("s"), [3, 3]);
}

fn allow_preemption(world: &mut World) {
    world.sim.write(|tx| {
        let mut cluster = tx.cluster().unwrap().clone();
        cluster.spec.annotations.labels.insert(PREEMPTION.into(), "on".into());
        drop(tx.update(cluster).unwrap());
    });
    world.sim.think();
}

/// One node with ten units, full of tasks of these sizes, all RUNNING.
fn full_node(sizes: &[(&str, i64)]) -> World {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    for (id, size) in sizes {
        world.task("low", id, |t| wants(t, *size, 0, vec![]));
        world.report(id, TaskState::Running);
        world.runs(id);
    }
    world
}

fn important(world: &mut World, id: &str, size: i64) {
    service(world, "high", PRIORITY, "5");
    world.task("high", id, |t| wants(t, size, 0, vec![]));
}

#[test]
fn without_leave_nobody_is_displaced() {
    let mut world = full_node(&[("a", 5), ("b", 5)]);
    important(&mut world, "t", 5);
    world.waits("t", "no suitable node (insufficient resources on 1 node)");
    assert_eq!(world.state("a"), TaskState::Running);
    assert_eq!(world.state("b"), TaskState::Running);
}

#[test]
fn the_fewest_go_and_the_task_comes_when_they_have_stopped() {
    let mut world = full_node(&[("a", 2), ("b", 3), ("c", 4), ("d", 1)]);
    allow_preemption(&mut world);
    important(&mut world, "t", 4);
    assert_eq!(world.state("c"), TaskState::Rejected);
    assert_eq!(world.get("c").status.message, "task preempted by scheduler");
    for id in ["a", "b", "d"] {
        assert_eq!(world.state(id), TaskState::Running, "task {id}");
    }
    world.waits("t", "waits for tasks with a lower priority to stop on node n1");
    // Nobody else gets the room meanwhile.
    world.task("low", "e", |t| wants(t, 1, 0, vec![]));
    world.waits("e", "no suitable node (insufficient resources on 1 node)");
    // The stop grace period, ten seconds, and ten more.
    world.pass(Duration::from_secs(19));
    assert_eq!(world.state("t"), TaskState::Pending);
    world.pass(Duration::from_secs(2));
    world.runs_on("t", "n1");
    world.waits("e", "no suitable node (insufficient resources on 1 node)");
}

#[test]
fn equals_are_not_displaced_nor_those_that_nobody_would_start_again() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    service(&mut world, "peer", PRIORITY, "5");
    let never = |t: &mut Task| {
        wants(t, 5, 0, vec![]);
        let condition = RestartCondition::None as i32;
        t.spec.restart = Some(RestartPolicy { condition, ..Default::default() });
    };
    world.task("peer", "a", |t| wants(t, 5, 0, vec![]));
    world.task("once", "b", never);
    allow_preemption(&mut world);
    important(&mut world, "t", 5);
    world.waits("t", "no suitable node (insufficient resources on 1 node)");
    for id in ["a", "b"] {
        world.runs_on(id, "n1");
    }
}

#[test]
fn nobody_is_displaced_in_vain() {
    let mut world = full_node(&[("a", 5), ("b", 5)]);
    allow_preemption(&mut world);
    important(&mut world, "t", 11);
    assert_eq!(world.state("a"), TaskState::Running);
    assert_eq!(world.state("b"), TaskState::Running);
    world.waits("t", "no suitable node (insufficient resources on 1 node)");
}

#[test]
fn a_new_leader_displaces_nobody_where_room_is_on_its_way() {
    let mut world = full_node(&[("a", 5), ("b", 5)]);
    allow_preemption(&mut world);
    important(&mut world, "t", 5);
    let rejected =
        |world: &World| ["a", "b"].iter().filter(|id| world.state(id) == TaskState::Rejected).count();
    assert_eq!(rejected(&world), 1);
    world.lead();
    assert_eq!(rejected(&world), 1);
    world.pass(Duration::from_secs(25));
    world.runs_on("t", "n1");
    assert_eq!(rejected(&world), 1);
}

#[test]
fn a_claim_on_a_node_that_goes_comes_to_nothing() {
    let mut world = full_node(&[("a", 5), ("b", 5)]);
    allow_preemption(&mut world);
    important(&mut world, "t", 5);
    world.edit_node("n1", |n| world::set_state(n, world::DOWN));
    world.waits("t", "no suitable node (1 node not available for new tasks)");
    world.edit_node("n1", |n| world::set_state(n, world::READY));
    world.pass(Duration::from_secs(25));
    world.runs_on("t", "n1");
}

#[test]
fn higher_priorities_are_served_first() {
    let mut world = World::new();
    service(&mut world, "high", PRIORITY, "5");
    world.task("low", "a", |t| wants(t, 5, 0, vec![]));
    world.task("high", "b", |t| wants(t, 5, 0, vec![]));
    world.node("n1", |n| has(n, 5, 0, vec![]));
    world.sim.think();
    world.runs_on("b", "n1");
    world.waits("a", "no suitable node (insufficient resources on 1 node)");
}

#[test]
fn two_tasks_that_need_room_do_not_count_on_the_same_victim() {
    let mut world = full_node(&[("a", 5), ("b", 5)]);
    allow_preemption(&mut world);
    service(&mut world, "high", PRIORITY, "5");
    world.tasks("high", &["t", "u"], |t| wants(t, 5, 0, vec![]));
    for id in ["a", "b"] {
        assert_eq!(world.state(id), TaskState::Rejected, "task {id}");
    }
    world.pass(Duration::from_secs(20));
    for id in ["t", "u"] {
        world.runs_on(id, "n1");
    }
}

#[test]
fn a_task_whose_attempts_are_limited_is_not_displaced() {
    for (max_attempts, stays) in [(0, false), (1, true)] {
        let mut world = World::new();
        world.node("n1", |n| has(n, 10, 0, vec![]));
        world.task("low", "a", |t| {
            wants(t, 10, 0, vec![]);
            let condition = RestartCondition::OnFailure as i32;
            t.spec.restart = Some(RestartPolicy { condition, max_attempts, ..Default::default() });
        });
        world.report("a", TaskState::Running);
        allow_preemption(&mut world);
        important(&mut world, "t", 10);
        assert_eq!(world.state("a") == TaskState::Running, stays, "{max_attempts} attempts");
    }
}

#[test]
fn who_waits_already_is_looked_at_when_preemption_is_allowed_the_highest_first() {
    let mut world = full_node(&[("a", 10)]);
    service(&mut world, "middle", PRIORITY, "3");
    world.task("middle", "m", |t| wants(t, 10, 0, vec![]));
    important(&mut world, "t", 10);
    for id in ["m", "t"] {
        world.waits(id, "no suitable node (insufficient resources on 1 node)");
    }
    allow_preemption(&mut world);
    assert_eq!(world.state("a"), TaskState::Rejected);
    world.waits("t", "waits for tasks with a lower priority to stop on node n1");
    world.waits("m", "no suitable node (insufficient resources on 1 node)");
}
