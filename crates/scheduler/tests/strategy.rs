//! Strategies beside the usual one, and room for tasks with a higher priority.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use swarm_api::extensions::{PLACEMENT_STRATEGY, PRIORITY};
use swarm_api::v1::{Mount, RestartPolicy, Task, TaskState, mount, restart_policy::RestartCondition};
use swarm_placement::generic::{discrete, named};
use world::{World, constrain, container, has, label, placement, spread_over, wants};

#[test]
fn binpack_fills_one_node_before_the_next() {
    let mut world = World::new();
    for id in ["n1", "n2", "n3"] {
        world.node(id, |n| has(n, 10, 0, vec![]));
    }
    world.labelled_service("s", PLACEMENT_STRATEGY, "binpack");
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
    world.labelled_service("s", PLACEMENT_STRATEGY, "binpack");
    world.replicas("s", 6, |t| {
        wants(t, 1, 0, vec![]);
        spread_over(t, &["node.labels.zone"]);
    });
    assert_eq!(world.shares("s"), [3, 3]);
}

/// Two nodes that are the same.
fn twins() -> World {
    let mut world = World::new();
    for id in ["n1", "n2"] {
        world.node(id, |n| has(n, 10, 100, vec![]));
    }
    world.labelled_service("s", PLACEMENT_STRATEGY, "binpack");
    world
}

/// A task on this node that reserves so much, of a service that is nowhere else.
fn hold(world: &mut World, node: &str, id: &str, cpus: i64, memory: i64) {
    world.task(&format!("only-{node}"), id, |t| {
        wants(t, cpus, memory, vec![]);
        constrain(t, &format!("node.id=={node}"));
    });
    world.runs_on(id, node);
}

#[test]
fn a_node_is_as_full_as_what_is_scarcest_there() {
    let mut world = twins();
    hold(&mut world, "n1", "x", 6, 0);
    hold(&mut world, "n2", "y", 4, 40);
    world.task("s", "a", |t| wants(t, 1, 1, vec![]));
    world.runs_on("a", "n1");
    hold(&mut world, "n2", "z", 0, 40);
    world.task("s", "b", |t| wants(t, 1, 1, vec![]));
    world.runs_on("b", "n2");
}

#[test]
fn of_equally_full_nodes_the_one_with_the_most_tasks_is_filled_first() {
    for (many, one) in [("n1", "n2"), ("n2", "n1")] {
        let mut world = twins();
        hold(&mut world, one, "x", 4, 0);
        hold(&mut world, many, "y", 2, 0);
        hold(&mut world, many, "z", 2, 0);
        world.task("s", "a", |t| wants(t, 1, 0, vec![]));
        world.runs_on("a", many);
    }
}

#[test]
fn what_is_packed_avoids_a_node_where_it_keeps_failing() {
    let mut world = twins();
    hold(&mut world, "n1", "x", 5, 0);
    for n in 1..=5 {
        let id = format!("f{n}");
        world.task("s", &id, |t| wants(t, 1, 0, vec![]));
        world.runs_on(&id, "n1");
        world.report(&id, TaskState::Running);
        world.report(&id, TaskState::Failed);
    }
    world.task("s", "a", |t| wants(t, 1, 0, vec![]));
    world.runs_on("a", "n2");
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
    world.labelled_service("high", PRIORITY, "5");
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
    world.allow_preemption();
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

/// The node was full before and is full afterwards; but of what is there now enough may go.
#[test]
fn when_an_equal_ends_others_may_go_in_its_stead() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    for (service, id) in [("peer", "equal"), ("low", "lower")] {
        world.labelled_service(service, PRIORITY, if service == "peer" { "5" } else { "0" });
        world.task(service, id, |t| wants(t, 5, 0, vec![]));
        world.report(id, TaskState::Running);
    }
    world.allow_preemption();
    important(&mut world, "t", 10);
    world.waits("t", "no suitable node (insufficient resources on 1 node)");
    world.report("equal", TaskState::Complete);
    world.sim.think();
    assert_eq!(world.state("lower"), TaskState::Rejected);
}

/// The tables do not tell of them yet when somebody looks for room.
#[test]
fn tasks_that_are_on_their_way_can_be_displaced_when_they_have_come() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    world.allow_preemption();
    world.labelled_service("low", PRIORITY, "0");
    world.labelled_service("high", PRIORITY, "5");
    let sized = |service: &str, id: &str| {
        let mut task = world::task(service, id, 1);
        wants(&mut task, 10, 0, vec![]);
        task
    };
    world.sim.write(|tx| drop(tx.create(sized("low", "lower")).unwrap()));
    let batches = world.sim.decide();
    world.sim.write(|tx| drop(tx.create(sized("high", "t")).unwrap()));
    world.sim.decide().into_iter().chain(batches).for_each(|batch| world.sim.commit(batch));
    world.sim.think();
    assert_eq!(world.state("lower"), TaskState::Rejected);
}

#[test]
fn equals_are_not_displaced_nor_those_that_nobody_would_start_again() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    world.labelled_service("peer", PRIORITY, "5");
    let never = |t: &mut Task| {
        wants(t, 5, 0, vec![]);
        let condition = RestartCondition::None as i32;
        t.spec.restart = Some(RestartPolicy { condition, ..Default::default() });
    };
    world.task("peer", "a", |t| wants(t, 5, 0, vec![]));
    world.task("once", "b", never);
    world.allow_preemption();
    important(&mut world, "t", 5);
    world.waits("t", "no suitable node (insufficient resources on 1 node)");
    for id in ["a", "b"] {
        world.runs_on(id, "n1");
    }
}

#[test]
fn nobody_is_displaced_in_vain() {
    let mut world = full_node(&[("a", 5), ("b", 5)]);
    world.allow_preemption();
    important(&mut world, "t", 11);
    assert_eq!(world.state("a"), TaskState::Running);
    assert_eq!(world.state("b"), TaskState::Running);
    world.waits("t", "no suitable node (insufficient resources on 1 node)");
}

#[test]
fn a_new_leader_displaces_nobody_where_room_is_on_its_way() {
    let mut world = full_node(&[("a", 5), ("b", 5)]);
    world.allow_preemption();
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
    world.allow_preemption();
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
    world.labelled_service("high", PRIORITY, "5");
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
    world.allow_preemption();
    world.labelled_service("high", PRIORITY, "5");
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
        world.allow_preemption();
        important(&mut world, "t", 10);
        assert_eq!(world.state("a") == TaskState::Running, stays, "{max_attempts} attempts");
    }
}

#[test]
fn who_waits_already_is_looked_at_when_preemption_is_allowed_the_highest_first() {
    let mut world = full_node(&[("a", 10)]);
    world.labelled_service("middle", PRIORITY, "3");
    world.task("middle", "m", |t| wants(t, 10, 0, vec![]));
    important(&mut world, "t", 10);
    for id in ["m", "t"] {
        world.waits(id, "no suitable node (insufficient resources on 1 node)");
    }
    world.allow_preemption();
    assert_eq!(world.state("a"), TaskState::Rejected);
    world.waits("t", "waits for tasks with a lower priority to stop on node n1");
    world.waits("m", "no suitable node (insufficient resources on 1 node)");
}

const NO_ROOM: &str = "no suitable node (insufficient resources on 1 node)";

#[test]
fn nobody_is_displaced_where_there_may_be_no_more_replicas() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    world.labelled_service("high", PRIORITY, "5");
    let at_most_one = |t: &mut Task| {
        wants(t, 5, 0, vec![]);
        placement(&mut t.spec).max_replicas = 1;
    };
    world.task("high", "t", at_most_one);
    world.runs_on("t", "n1");
    world.task("low", "a", |t| wants(t, 5, 0, vec![]));
    world.report("a", TaskState::Running);
    world.allow_preemption();
    world.task("high", "u", at_most_one);
    world.waits("u", NO_ROOM);
    world.pass(Duration::from_secs(200));
    world.runs("a");
}

#[test]
fn a_node_with_one_replica_left_is_claimed_once() {
    let mut world = full_node(&[("a", 5), ("b", 5)]);
    world.allow_preemption();
    world.labelled_service("high", PRIORITY, "5");
    world.tasks("high", &["t", "u"], |t| {
        wants(t, 5, 0, vec![]);
        placement(&mut t.spec).max_replicas = 1;
    });
    let states = [world.state("a"), world.state("b")];
    assert_eq!(states.iter().filter(|state| **state == TaskState::Rejected).count(), 1, "{states:?}");
    world.pass(Duration::from_secs(200));
    let states = [world.state("t"), world.state("u")];
    assert_eq!(states, [TaskState::Assigned, TaskState::Pending]);
}

#[test]
fn nobody_is_displaced_where_a_volume_can_not_be_had() {
    let mut world = full_node(&[("a", 5), ("b", 5)]);
    world.allow_preemption();
    world.labelled_service("high", PRIORITY, "5");
    world.task("high", "t", |t| {
        wants(t, 5, 0, vec![]);
        let mount = Mount {
            r#type: mount::Type::Cluster as i32,
            source: "missing".into(),
            target: "/data".into(),
            ..Default::default()
        };
        container(t).mounts.push(mount);
    });
    world.waits("t", NO_ROOM);
    world.pass(Duration::from_secs(200));
    for id in ["a", "b"] {
        world.runs(id);
    }
}

#[test]
fn what_is_claimed_of_generic_resources_is_not_claimed_again() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![named("gpu", "x")]));
    world.task("low", "a", |t| wants(t, 5, 0, vec![discrete("gpu", 1)]));
    world.task("low", "b", |t| wants(t, 5, 0, vec![]));
    for id in ["a", "b"] {
        world.report(id, TaskState::Running);
    }
    world.allow_preemption();
    world.labelled_service("high", PRIORITY, "5");
    world.tasks("high", &["t", "u"], |t| wants(t, 5, 0, vec![discrete("gpu", 1)]));
    assert_eq!(world.state("a"), TaskState::Rejected);
    world.pass(Duration::from_secs(200));
    world.runs_on("t", "n1");
    world.waits("u", NO_ROOM);
    world.runs("b");
}

/// A task of a service with a high priority that waits for this node.
fn bound(world: &mut World, id: &str, node: &str, size: i64) {
    world.labelled_service("each", PRIORITY, "5");
    world.task("each", id, |t| {
        (t.node_id, t.slot) = (node.into(), 0);
        wants(t, size, 0, vec![]);
    });
}

/// That it moves is worth nobody's place.
#[test]
fn a_task_of_a_slot_that_comes_with_its_node_displaces_nobody() {
    let mut world = full_node(&[("a", 10)]);
    world.allow_preemption();
    world.labelled_service("high", PRIORITY, "5");
    world.task("high", "t", |t| {
        t.node_id = "n1".into();
        wants(t, 5, 0, vec![]);
    });
    world.waits("t", "insufficient resources on 1 node");
    world.runs("a");
}

#[test]
fn a_task_of_its_own_node_takes_the_place_of_others_there_alone() {
    let mut world = full_node(&[("a", 4), ("b", 6)]);
    world.node("n2", |n| has(n, 10, 0, vec![]));
    world.task("low", "c", |t| wants(t, 5, 0, vec![]));
    world.report("c", TaskState::Running);
    world.allow_preemption();
    bound(&mut world, "t", "n1", 5);
    assert_eq!(world.state("b"), TaskState::Rejected);
    for id in ["a", "c"] {
        world.runs(id);
    }
    world.waits("t", "waits for tasks with a lower priority to stop on node n1");
    // Nobody else gets the room meanwhile.
    world.task("low", "d", |t| wants(t, 6, 0, vec![]));
    world.waits("d", "no suitable node (insufficient resources on 2 nodes)");
    world.pass(Duration::from_secs(25));
    world.runs_on("t", "n1");
    world.waits("d", "no suitable node (insufficient resources on 2 nodes)");
    world.runs("a");
}

#[test]
fn who_waits_for_its_own_node_is_looked_at_when_preemption_is_allowed_or_a_priority_changes() {
    let mut world = full_node(&[("a", 10)]);
    world.labelled_service("each", PRIORITY, "0");
    world.task("each", "t", |t| {
        (t.node_id, t.slot) = ("n1".into(), 0);
        wants(t, 5, 0, vec![]);
    });
    world.allow_preemption();
    world.runs("a");
    world.labelled_service("each", PRIORITY, "1");
    assert_eq!(world.state("a"), TaskState::Rejected);
    world.pass(Duration::from_secs(25));
    world.runs_on("t", "n1");

    let mut world = full_node(&[("a", 10)]);
    bound(&mut world, "t", "n1", 5);
    world.waits("t", "insufficient resources on 1 node");
    world.runs("a");
    world.allow_preemption();
    assert_eq!(world.state("a"), TaskState::Rejected);
}

#[test]
fn a_claim_on_its_own_node_that_comes_to_nothing_is_made_again() {
    let mut world = full_node(&[("a", 10)]);
    world.allow_preemption();
    bound(&mut world, "t", "n1", 5);
    assert_eq!(world.state("a"), TaskState::Rejected);
    world.edit_node("n1", |n| world::set_availability(n, swarm_api::v1::node_spec::Availability::Pause));
    world.waits("t", "1 node not available for new tasks");
    world.edit_node("n1", |n| {
        world::set_availability(n, swarm_api::v1::node_spec::Availability::Active);
    });
    world.pass(Duration::from_secs(25));
    world.runs_on("t", "n1");
}

#[test]
fn of_tasks_of_one_node_the_higher_priority_comes_first() {
    let mut world = World::new();
    world.node("n1", |n| {
        has(n, 10, 0, vec![]);
        world::set_state(n, world::DOWN);
    });
    for (service, id, priority) in [("one", "a", "1"), ("two", "b", "2")] {
        world.labelled_service(service, PRIORITY, priority);
        world.task(service, id, |t| {
            t.node_id = "n1".into();
            wants(t, 10, 0, vec![]);
        });
    }
    world.edit_node("n1", |n| world::set_state(n, world::READY));
    world.runs_on("b", "n1");
    world.waits("a", "insufficient resources on 1 node");
}

#[test]
fn each_of_two_claims_has_its_room_as_soon_as_it_is_there() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    for (id, grace) in [("a", 0), ("b", 30)] {
        world.task("low", id, |t| {
            wants(t, 5, 0, vec![]);
            let grace = swarm_api::duration::from_std(Duration::from_secs(grace));
            container(t).stop_grace_period = Some(grace);
        });
        world.report(id, TaskState::Running);
    }
    world.allow_preemption();
    world.labelled_service("high", PRIORITY, "5");
    world.tasks("high", &["t", "u"], |t| wants(t, 5, 0, vec![]));
    let assigned =
        |world: &World| ["t", "u"].iter().filter(|id| world.state(id) == TaskState::Assigned).count();
    assert_eq!(assigned(&world), 0);
    world.pass(Duration::from_secs(11));
    assert_eq!(assigned(&world), 1, "the other one waits for somebody else");
    world.pass(Duration::from_secs(30));
    assert_eq!(assigned(&world), 2);
}

/// Of what a claim needs a part is free already, and is what the displaced task would be given again.
#[test]
fn what_is_free_is_set_aside_for_a_claim() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![named("gpu", "x"), named("gpu", "y"), named("gpu", "z")]));
    world.tasks("low", &["a", "b"], |t| wants(t, 1, 0, vec![discrete("gpu", 1)]));
    for id in ["a", "b"] {
        world.report(id, TaskState::Running);
    }
    world.allow_preemption();
    world.labelled_service("high", PRIORITY, "5");
    world.task("high", "t", |t| wants(t, 1, 0, vec![discrete("gpu", 2)]));
    world.task("low", "again", |t| wants(t, 1, 0, vec![discrete("gpu", 1)]));
    world.waits("again", NO_ROOM);
    world.pass(Duration::from_secs(20));
    world.runs_on("t", "n1");
    assert_eq!(world.get("t").assigned_generic_resources.len(), 2);
    world.waits("again", NO_ROOM);
}

/// Nodes are asked some hundreds at a time, and all of them.
#[test]
fn who_may_go_is_found_on_the_last_node_too() {
    let mut world = World::new();
    let ids: Vec<String> = (0..1_100).map(|n| format!("n{n:04}")).collect();
    for id in &ids {
        world.sim.write(|tx| {
            let mut node = swarm_reconcile::sim::node(id);
            has(&mut node, 10, 0, vec![]);
            drop(tx.create(node).unwrap());
        });
    }
    world.labelled_service("peer", PRIORITY, "5");
    world.replicas("peer", ids.len() - 1, |t| wants(t, 10, 0, vec![]));
    world.task("low", "a", |t| wants(t, 10, 0, vec![]));
    world.report("a", TaskState::Running);
    let last = world.on("a");
    world.allow_preemption();
    important(&mut world, "t", 10);
    assert_eq!(world.state("a"), TaskState::Rejected);
    world.pass(Duration::from_secs(20));
    world.runs_on("t", &last);
}

/// As in an update that stops the old task first.
#[test]
fn nobody_goes_for_a_task_where_another_one_is_stopping() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    world.labelled_service("high", PRIORITY, "5");
    for (service, id) in [("high", "old"), ("low", "a")] {
        world.task(service, id, |t| wants(t, 5, 0, vec![]));
        world.report(id, TaskState::Running);
    }
    world.allow_preemption();
    world.edit_task("old", |t| t.desired_state = TaskState::Shutdown as i32);
    world.task("high", "new", |t| wants(t, 5, 0, vec![]));
    world.waits("new", "waits for tasks to stop on node n1");
    world.report("old", TaskState::Shutdown);
    world.runs_on("new", "n1");
    world.runs("a");
}

/// One of those who were to go ends before that is written, so none of them goes.
#[test]
fn a_claim_whose_displacement_came_to_nothing_is_made_anew_at_once() {
    let mut world = full_node(&[("a", 5), ("b", 5)]);
    world.allow_preemption();
    world.labelled_service("high", PRIORITY, "5");
    world.sim.write(|tx| {
        let mut task = world::task("high", "t", 1);
        wants(&mut task, 10, 0, vec![]);
        drop(tx.create(task).unwrap());
    });
    let decided = world.sim.decide();
    world.sim.report("a", TaskState::Complete, "");
    decided.into_iter().for_each(|batch| world.sim.commit(batch));
    assert_eq!(world.state("b"), TaskState::Running);
    world.sim.think();
    assert_eq!(world.state("b"), TaskState::Rejected);
    world.pass(Duration::from_secs(20));
    world.runs_on("t", "n1");
}

#[test]
fn what_was_put_on_a_node_in_the_same_pass_may_go_again() {
    let mut world = World::new();
    world.allow_preemption();
    important(&mut world, "t", 10);
    world.service("low", &Default::default());
    world.sim.write(|tx| {
        let mut node = swarm_reconcile::sim::node("n1");
        has(&mut node, 10, 0, vec![]);
        drop(tx.create(node).unwrap());
        let mut task = world::task("low", "a", 0);
        wants(&mut task, 5, 0, vec![]);
        task.node_id = "n1".into();
        drop(tx.create(task).unwrap());
    });
    world.sim.think();
    assert_eq!(world.state("a"), TaskState::Rejected);
    world.waits("t", "waits for tasks with a lower priority to stop on node n1");
}

#[test]
fn a_higher_priority_comes_before_one_that_waits_already() {
    let mut world = full_node(&[("a", 10)]);
    world.labelled_service("middle", PRIORITY, "3");
    world.task("middle", "m", |t| wants(t, 10, 0, vec![]));
    world.labelled_service("high", PRIORITY, "5");
    world.sim.write(|tx| {
        let mut cluster = tx.cluster().unwrap().clone();
        cluster.spec.annotations.labels.insert(swarm_api::extensions::PREEMPTION.into(), "on".into());
        drop(tx.update(cluster).unwrap());
        let mut task = world::task("high", "t", 1);
        wants(&mut task, 10, 0, vec![]);
        drop(tx.create(task).unwrap());
    });
    world.sim.think();
    world.waits("t", "waits for tasks with a lower priority to stop on node n1");
    world.waits("m", NO_ROOM);
}

/// Of a longer stop of somebody else that it counts on.
#[test]
fn a_claim_lasts_until_all_that_it_counts_on_are_gone() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    world.labelled_service("high", PRIORITY, "5");
    world.task("low", "slow", |t| {
        wants(t, 10, 0, vec![]);
        container(t).stop_grace_period = Some(swarm_api::duration::from_std(Duration::from_secs(600)));
    });
    world.report("slow", TaskState::Running);
    world.allow_preemption();
    important(&mut world, "t", 10);
    assert_eq!(world.state("slow"), TaskState::Rejected);
    world.lead();
    world.waits("t", "waits for tasks to stop on node n1");
    world.pass(Duration::from_secs(400));
    world.waits("t", "waits for tasks to stop on node n1");
    world.pass(Duration::from_secs(210));
    world.runs_on("t", "n1");
}
