//! Where tasks go: spread, load, failures, and nodes that come and go.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use swarm_api::v1::{Service, TaskState, Version, node_spec::Availability};
use swarm_placement::generic::{discrete, named};
use world::*;

#[test]
fn new_tasks_go_to_the_empty_nodes() {
    let mut world = World::without_leader();
    world.nodes(&["n1", "n2", "n3"]);
    world.task("other", "old", |t| {
        t.node_id = "n1".into();
        t.status.state = TaskState::Running as i32;
    });
    world.lead();
    world.tasks("s", &["a", "b"], |_| {});
    assert_eq!(world.spread("s"), [("n2".into(), 1), ("n3".into(), 1)].into());
}

#[test]
fn an_assignment_says_who_made_it() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    world.task("s", "a", |_| {});
    world.runs_on("a", "n1");
    assert_eq!(world.get("a").status.message, "scheduler assigned task to node");
    assert!(world.get("a").status.timestamp.is_some());
}

#[test]
fn a_deleted_task_makes_room() {
    let mut world = World::new();
    world.nodes(&["n1", "n2"]);
    world.tasks("s", &["a", "b"], |_| {});
    let freed = world.on("a");
    world.remove_task("a");
    world.task("s", "c", |_| {});
    world.runs_on("c", &freed);
}

#[test]
fn a_task_that_loses_its_node_is_placed_again() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    world.task("s", "a", |_| {});
    world.edit_task("a", |t| {
        t.node_id = "".into();
        t.status.state = TaskState::Pending as i32;
    });
    world.runs_on("a", "n1");
}

#[test]
fn the_only_task_of_its_kind_waits_on_when_its_slot_changes() {
    let mut world = World::new();
    world.task("s", "a", |_| {});
    assert_eq!(world.state("a"), TaskState::Pending);
    world.edit_task("a", |t| t.slot += 1);
    world.nodes(&["n1"]);
    world.sim.think();
    world.runs_on("a", "n1");
}

#[test]
fn nodes_that_are_gone_or_down_are_never_chosen() {
    let mut world = World::new();
    world.nodes(&["gone", "down", "then-down", "late"]);
    world.edit_node("down", |n| set_state(n, DOWN));
    world.edit_node("late", |n| set_state(n, swarm_api::v1::node_status::State::Unknown));
    world.remove_node("gone");
    world.replicas("s", 3, |_| {});
    assert_eq!(world.spread("s"), [("then-down".into(), 3)].into());
    world.edit_node("then-down", |n| set_state(n, DOWN));
    world.task("s", "a", |_| {});
    world.waits("a", "no suitable node (3 nodes not available for new tasks)");
    world.edit_node("late", |n| set_state(n, READY));
    world.runs_on("a", "late");
}

#[test]
fn drained_and_paused_nodes_get_nothing() {
    let mut world = World::new();
    world.nodes(&["n1", "n2", "n3"]);
    world.edit_node("n1", |n| set_availability(n, Availability::Drain));
    world.edit_node("n2", |n| set_availability(n, Availability::Pause));
    world.replicas("s", 3, |_| {});
    assert_eq!(world.spread("s"), [("n3".into(), 3)].into());
}

#[test]
fn services_spread_each_by_itself() {
    let mut world = World::new();
    world.nodes(&["n1", "n2", "n3", "n4", "n5"]);
    world.replicas("one", 18, |_| {});
    assert_eq!(world.shares("one"), [3, 3, 4, 4, 4]);
    let full = |world: &World, n: usize| -> Vec<String> {
        world.spread("one").into_iter().filter(|(_, tasks)| *tasks == n).map(|(node, _)| node).collect()
    };
    let emptier = full(&world, 3);
    world.replicas("two", 2, |_| {});
    assert_eq!(world.spread("two").into_keys().collect::<Vec<_>>(), emptier);
    world.replicas("one", 3, |_| {});
    assert_eq!(world.shares("one"), [4, 4, 4, 4, 5]);
    let fullest = full(&world, 5);
    world.replicas("two", 1, |_| {});
    assert!(!world.spread("two").contains_key(&fullest[0]));
    assert_eq!(world.shares("two"), [1, 1, 1]);
}

#[test]
fn zones_get_equal_shares() {
    let mut world = World::new();
    for (id, az) in [("n1", "az1"), ("n2", "az2"), ("n3", "az2"), ("n4", "az2"), ("n5", "az2")] {
        world.node(id, |n| label(n, "az", az));
    }
    world.replicas("s", 8, |t| spread_over(t, &["node.labels.az"]));
    assert_eq!(world.spread("s")["n1"], 4);
    assert_eq!(world.shares("s"), [1, 1, 1, 1, 4]);
}

#[test]
fn zones_and_racks_share_what_their_nodes_can_hold() {
    let mut world = World::new();
    let big = 10;
    for (id, az, rack, memory) in [
        ("small", "az1", "r1", 1),
        ("big", "az1", "r1", 3),
        ("b1", "az2", "r1", big),
        ("b2", "az2", "r2", big),
        ("b3", "az2", "r2", big),
    ] {
        world.node(id, |n| {
            label(n, "az", az);
            engine_label(n, "rack", rack);
            has(n, 0, memory * 2, vec![]);
        });
    }
    world.replicas("s", 9, |t| {
        wants(t, 0, 2 * 2 - 1, vec![]);
        spread_over(t, &["Node.Labels.az", "unknown", "engine.labels.rack"]);
    });
    // Of the first zone only one node is big enough, for two tasks; the racks of the second share the rest.
    assert_eq!(
        world.spread("s"),
        [("big".into(), 2), ("b1".into(), 4), ("b2".into(), 2), ("b3".into(), 1)].into()
    );
}

#[test]
fn new_tasks_go_to_the_lighter_zone_and_there_to_the_lighter_rack() {
    let mut world = World::without_leader();
    let over_racks = |t: &mut _| spread_over(t, &["node.labels.az", "node.labels.rack"]);
    // One empty node is in the heavier zone, another one in the heavier rack of the lighter zone.
    for (id, az, rack, tasks) in [
        ("a1", "a", "1", 7),
        ("a2", "a", "2", 0),
        ("b1", "b", "1", 3),
        ("b2", "b", "1", 0),
        ("b3", "b", "2", 1),
    ] {
        world.node(id, |n| {
            label(n, "az", az);
            label(n, "rack", rack);
        });
        if tasks > 0 {
            world.replicas("s", tasks, |t| {
                over_racks(t);
                t.node_id = id.into();
                t.status.state = TaskState::Running as i32;
            });
        }
    }
    world.lead();
    world.tasks("s", &["new1", "new2"], over_racks);
    for id in ["new1", "new2"] {
        world.runs_on(id, "b3");
    }
}

#[test]
fn nothing_but_the_prefix_of_a_preference_is_blind_to_case() {
    let mut world = World::new();
    world.node("n1", |n| label(n, "az", "1"));
    world.node("n2", |n| label(n, "az", "2"));
    world.node("n3", |n| label(n, "az", "2"));
    world.replicas("s", 6, |t| spread_over(t, &["node.labels.AZ", "node.labels."]));
    assert_eq!(world.shares("s"), [2, 2, 2]);
}

#[test]
fn finished_and_deleted_tasks_free_what_they_held() {
    let with_everything = |t: &mut _| wants(t, 10, 100, vec![discrete("fpga", 2), discrete("gpu", 1)]);
    for end in [Some(TaskState::Complete), Some(TaskState::Failed), Some(TaskState::Shutdown), None] {
        let mut world = World::new();
        world.node("n1", |n| has(n, 10, 100, vec![discrete("fpga", 2), named("gpu", "a")]));
        world.task("s", "a", with_everything);
        world.runs_on("a", "n1");
        assert_eq!(world.get("a").assigned_generic_resources, [discrete("fpga", 2), named("gpu", "a")]);
        world.task("s", "b", with_everything);
        world.waits("b", "no suitable node (insufficient resources on 1 node)");
        match end {
            Some(state) => world.report("a", state),
            None => world.remove_task("a"),
        }
        world.runs_on("b", "n1");
    }
}

#[test]
fn a_task_that_is_to_shut_down_holds_what_it_has_until_it_ends() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    world.task("s", "a", |t| wants(t, 10, 0, vec![]));
    world.edit_task("a", |t| t.desired_state = TaskState::Shutdown as i32);
    world.task("s", "b", |t| wants(t, 10, 0, vec![]));
    assert_eq!(world.on("b"), "");
    world.report("a", TaskState::Shutdown);
    world.runs_on("b", "n1");
}

#[test]
fn dead_tasks_hold_nothing_when_a_leader_starts() {
    let mut world = World::without_leader();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    for (id, state) in [("dead", TaskState::Failed), ("unborn", TaskState::New)] {
        world.task("s", id, |t| {
            wants(t, 10, 0, vec![]);
            t.status.state = state as i32;
            if state == TaskState::Failed {
                t.node_id = "n1".into();
            }
        });
    }
    world.task("s", "b", |t| wants(t, 10, 0, vec![]));
    world.lead();
    world.runs_on("b", "n1");
}

/// `orchestration.md` §20.39: in the original it may give the same thing away twice.
#[test]
fn a_new_leader_knows_who_holds_what() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![named("gpu", "a"), named("gpu", "b"), named("gpu", "c")]));
    world.task("s", "a", |t| wants(t, 0, 0, vec![discrete("gpu", 1)]));
    world.task("s", "b", |t| wants(t, 9, 0, vec![discrete("gpu", 1)]));
    world.remove_task("a");
    world.lead();
    // `b` has the second; the first and the third are free.
    world.task("s", "c", |t| wants(t, 0, 0, vec![discrete("gpu", 2)]));
    assert_eq!(world.get("c").assigned_generic_resources, [named("gpu", "a"), named("gpu", "c")]);
    world.task("s", "d", |t| wants(t, 2, 0, vec![]));
    world.waits("d", "no suitable node (insufficient resources on 1 node)");
}

#[test]
fn what_a_manager_declared_ended_holds_its_node_until_it_must_have_stopped() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    world.task("s", "a", |t| {
        wants(t, 10, 0, vec![]);
        container(t).stop_grace_period = Some(swarm_api::duration::from_std(Duration::from_secs(30)));
        constrain(t, "node.labels.zone!=b");
    });
    world.report("a", TaskState::Running);
    world.edit_node("n1", |n| label(n, "zone", "b"));
    assert_eq!(world.state("a"), TaskState::Rejected);
    world.task("s", "b", |t| wants(t, 10, 0, vec![]));
    world.pass(Duration::from_secs(39));
    world.waits("b", "no suitable node (insufficient resources on 1 node)");
    // Not even the end of its record frees what it holds, nor a new leader what the old one held.
    world.lead();
    world.remove_task("a");
    world.waits("b", "no suitable node (insufficient resources on 1 node)");
    world.pass(Duration::from_secs(1));
    world.runs_on("b", "n1");
}

/// Lets a task of the service fail on the node.
fn fail_on(world: &mut World, node: &str, id: &str, state: TaskState) {
    world.task("s", id, |t| constrain(t, &format!("node.id=={node}")));
    world.report(id, TaskState::Running);
    world.report(id, state);
    world.remove_task(id);
}

#[test]
fn a_node_where_a_service_keeps_failing_is_avoided() {
    let mut world = World::new();
    world.nodes(&["n1", "n2"]);
    world.replicas("other", 2, |t| constrain(t, "node.id==n2"));
    for i in 0..4 {
        fail_on(&mut world, "n1", &format!("f{i}"), TaskState::Failed);
    }
    world.task("s", "a", |_| {});
    world.runs_on("a", "n1");
    fail_on(&mut world, "n1", "f5", TaskState::Rejected);
    world.replicas("s", 3, |_| {});
    assert_eq!(world.spread("s"), [("n1".into(), 1), ("n2".into(), 3)].into());
    // Another service, and another version of this one, start clean.
    world.task("new", "b", |_| {});
    world.runs_on("b", "n1");
    world.tasks("s", &["v1", "v2", "v3"], |t| t.spec_version = Some(Version { index: 2 }));
    assert_eq!(world.spread("s")["n1"], 4);
    // After five minutes all is forgotten.
    world.pass(Duration::from_secs(300));
    world.replicas("s", 3, |_| {});
    assert_eq!(world.spread("s")["n1"], 5);
}

#[test]
fn a_new_leader_remembers_failures_that_are_on_record() {
    let mut world = World::new();
    world.nodes(&["n1", "n2"]);
    world.replicas("other", 2, |t| constrain(t, "node.id==n2"));
    for i in 0..5 {
        let id = format!("f{i}");
        world.task("s", &id, |t| constrain(t, "node.id==n1"));
        world.report(&id, TaskState::Failed);
    }
    world.lead();
    world.task("s", "a", |_| {});
    world.runs_on("a", "n2");
}

#[test]
fn completed_and_preassigned_tasks_are_no_failures() {
    let mut world = World::new();
    world.nodes(&["n1", "n2"]);
    world.replicas("other", 2, |t| constrain(t, "node.id==n2"));
    for i in 0..6 {
        fail_on(&mut world, "n1", &format!("c{i}"), TaskState::Complete);
        let id = format!("p{i}");
        world.task("s", &id, |t| (t.node_id, t.slot) = ("n1".into(), 0));
        world.report(&id, TaskState::Failed);
    }
    world.task("s", "a", |_| {});
    world.runs_on("a", "n1");
}

/// One of a slot that comes with its node was moved there.
#[test]
fn a_moved_task_that_fails_counts_against_its_node() {
    let mut world = World::new();
    world.nodes(&["n1", "n2"]);
    world.replicas("other", 2, |t| constrain(t, "node.id==n2"));
    for i in 0..5 {
        let id = format!("p{i}");
        world.task("s", &id, |t| t.node_id = "n1".into());
        world.report(&id, TaskState::Failed);
    }
    world.task("s", "a", |_| {});
    world.runs_on("a", "n2");
}

#[test]
fn preassigned_tasks_come_first_and_count_for_the_spread() {
    let mut world = World::without_leader();
    world.nodes(&["n1", "n2"]);
    world.task("s", "free", |_| {});
    world.task("s", "bound", |t| t.node_id = "n1".into());
    world.lead();
    world.runs_on("bound", "n1");
    assert_eq!(world.get("bound").status.message, "scheduler confirmed task can run on preassigned node");
    world.runs_on("free", "n2");
}

#[test]
fn a_preassigned_task_waits_for_its_node() {
    let mut world = World::new();
    world.nodes(&["n2"]);
    world.task("s", "a", |t| {
        t.node_id = "n1".into();
        wants(t, 5, 0, vec![discrete("gpu", 1)]);
    });
    world.waits("a", "");
    world.node("n1", |n| set_state(n, DOWN));
    world.sim.think();
    world.waits("a", "1 node not available for new tasks");
    world.edit_node("n1", |n| set_state(n, READY));
    world.waits("a", "insufficient resources on 1 node");
    world.edit_node("n1", |n| has(n, 5, 0, vec![named("gpu", "x")]));
    world.runs_on("a", "n1");
    assert_eq!(world.get("a").assigned_generic_resources, [named("gpu", "x")]);
}

#[test]
fn a_task_that_is_not_wanted_is_not_placed() {
    for desired in [TaskState::Shutdown, TaskState::Remove] {
        let mut world = World::without_leader();
        world.nodes(&["n1"]);
        world.task("s", "a", |t| t.desired_state = desired as i32);
        world.task("s", "bound", |t| {
            t.node_id = "n1".into();
            t.desired_state = desired as i32;
        });
        world.lead();
        world.task("s", "late", |t| t.desired_state = desired as i32);
        for id in ["a", "bound", "late"] {
            world.waits(id, "");
        }
    }
    for desired in [TaskState::Ready, TaskState::Complete] {
        let mut world = World::new();
        world.nodes(&["n1"]);
        world.task("s", "a", |t| t.desired_state = desired as i32);
        world.runs_on("a", "n1");
    }
}

#[test]
fn a_task_that_stops_being_wanted_leaves_the_queue() {
    let mut world = World::new();
    world.task("s", "a", |_| {});
    world.waits("a", "no suitable node");
    world.edit_task("a", |t| t.desired_state = TaskState::Shutdown as i32);
    world.nodes(&["n1"]);
    world.sim.think();
    assert_eq!(world.on("a"), "");
}

#[test]
fn a_waiting_task_of_an_old_version_ends_when_it_is_not_wanted_any_more() {
    let mut world = World::new();
    world.tasks("s", &["old", "new"], |_| {});
    world.edit_task("new", |t| t.spec_version = Some(Version { index: 1000 }));
    for id in ["old", "new"] {
        world.edit_task(id, |t| t.desired_state = TaskState::Shutdown as i32);
    }
    assert_eq!(world.state("old"), TaskState::Pending);
    world.sim.update_service("s", |_| {});
    world.sim.think();
    assert_eq!((world.state("old"), world.get("old").status.err.as_str()), (TaskState::Shutdown, ""));
    assert_eq!(world.state("new"), TaskState::Pending);
}

#[test]
fn tasks_of_a_deleted_service_leave_the_queue() {
    let mut world = World::new();
    world.task("s", "a", |_| {});
    world.waits("a", "no suitable node");
    world.sim.write(|tx| drop(tx.remove::<Service>("s").unwrap()));
    world.sim.think();
    world.nodes(&["n1"]);
    world.sim.think();
    assert_eq!(world.on("a"), "");
}

#[test]
fn nothing_is_placed_on_nodes_of_which_a_new_leader_has_not_heard() {
    let mut world = World::without_leader();
    world.node("n1", |n| set_state(n, swarm_api::v1::node_status::State::Unknown));
    world.task("s", "a", |_| {});
    world.lead();
    world.waits("a", "no suitable node (1 node not available for new tasks)");
    world.edit_node("n1", |n| set_state(n, READY));
    world.runs_on("a", "n1");
}

#[test]
fn who_waited_longest_is_served_first() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    world.task("s", "holder", |t| wants(t, 10, 0, vec![]));
    world.task("z", "first", |t| wants(t, 10, 0, vec![]));
    world.pass(Duration::from_secs(1));
    world.task("a", "second", |t| wants(t, 10, 0, vec![]));
    world.remove_task("holder");
    world.runs_on("first", "n1");
    world.waits("second", "no suitable node (insufficient resources on 1 node)");
}

/// Lets the scheduler decide where `a` goes, and something else happen before that is written.
fn decided(world: &mut World, meanwhile: impl Fn(&mut swarm_store::Tx) + Send + Sync) {
    world.service("s", &Default::default());
    world.sim.write(|tx| drop(tx.create(task("s", "a", 1)).unwrap()));
    let batches = world.sim.decide();
    assert_eq!(batches.len(), 1);
    world.sim.write(&meanwhile);
    batches.into_iter().for_each(|batch| world.sim.commit(batch));
    world.sim.think();
}

/// `orchestration.md` §20.32 and §20.34: in the original it gets the task; and one that is not written waits for
/// something else to happen.
#[test]
fn a_node_that_is_drained_or_lost_meanwhile_gets_nothing_and_another_one_does_at_once() {
    type Change = fn(&mut swarm_api::v1::Node);
    let changes: [Change; 2] = [|n| set_availability(n, Availability::Drain), |n| set_state(n, DOWN)];
    for change in changes {
        let mut world = World::new();
        world.nodes(&["n1", "n2"]);
        world.task("other", "o", |t| constrain(t, "node.id==n2"));
        decided(&mut world, |tx| {
            let mut node = tx.nodes().get("n1").unwrap().clone();
            change(&mut node);
            drop(tx.update(node).unwrap());
        });
        world.runs_on("a", "n2");
    }
}

/// The enforcer saw the change while nothing was there yet.
#[test]
fn a_node_that_stops_fitting_meanwhile_gets_nothing_and_another_one_does_at_once() {
    type Change = fn(&mut swarm_api::v1::Node);
    let changes: [Change; 3] = [
        |n| drop(n.spec.annotations.labels.insert("zone".to_owned(), "b".to_owned())),
        |n| n.description.get_or_insert_default().resources.get_or_insert_default().nano_cpus = 1,
        |n| n.role = swarm_api::v1::NodeRole::Worker as i32,
    ];
    for change in changes {
        let mut world = World::new();
        for id in ["n1", "n2"] {
            world.node(id, |n| {
                n.role = swarm_api::v1::NodeRole::Manager as i32;
                n.spec.annotations.labels.insert("zone".to_owned(), "a".to_owned());
                has(n, 10, 0, vec![]);
            });
        }
        world.task("other", "o", |t| constrain(t, "node.id==n2"));
        world.service("s", &Default::default());
        let mut task = task("s", "a", 1);
        constrain(&mut task, "node.labels.zone==a");
        task.spec.placement.get_or_insert_default().constraints.push("node.role==manager".to_owned());
        wants(&mut task, 5, 0, vec![]);
        world.sim.write(|tx| drop(tx.create(task.clone()).unwrap()));
        let batches = world.sim.decide();
        assert_eq!(batches.len(), 1);
        world.sim.write(|tx| {
            let mut node = tx.nodes().get("n1").unwrap().clone();
            change(&mut node);
            drop(tx.update(node).unwrap());
        });
        batches.into_iter().for_each(|batch| world.sim.commit(batch));
        world.sim.think();
        world.runs_on("a", "n2");
    }
}

/// `orchestration.md` §20.33: the original places it.
#[test]
fn a_task_that_stops_being_wanted_meanwhile_is_not_placed() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    decided(&mut world, |tx| {
        let mut task = tx.tasks().get("a").unwrap().clone();
        task.desired_state = TaskState::Shutdown as i32;
        drop(tx.update(task).unwrap());
    });
    assert_eq!((world.state("a"), world.on("a")), (TaskState::Pending, String::new()));
}

#[test]
fn a_service_that_fits_nowhere_holds_nobody_up_however_many_tasks_it_has() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    for service in ["large", "small"] {
        world.service(service, &Default::default());
    }
    world.sim.write(|tx| {
        for slot in 1..=10_000 {
            let mut task = task("large", &format!("l{slot}"), slot);
            constrain(&mut task, "node.id==nobody");
            drop(tx.create(task).unwrap());
        }
        drop(tx.create(task("small", "s", 1)).unwrap());
    });
    let batches = world.sim.decide();
    let first: Vec<_> = batches[0].assignments.iter().flat_map(|list| list.list.iter()).collect();
    assert_eq!(first.iter().map(|assignment| &*assignment.task).collect::<Vec<_>>(), ["s"]);
    // Others may decide before all of them are told.
    let told: usize = batches.iter().map(|batch| batch.groups.len()).sum();
    assert!((1000..5000).contains(&told), "{told}");
    batches.into_iter().for_each(|batch| world.sim.commit(batch));
    world.sim.think();
    world.runs_on("s", "n1");
    for slot in 1..=10_000 {
        world.waits(&format!("l{slot}"), "no suitable node (scheduling constraints not satisfied on 1 node)");
    }
}

/// In the original tasks wait for a pause between commits, up to a second.
#[test]
fn a_steady_stream_of_commits_holds_nobody_up() {
    let mut world = World::new();
    world.nodes(&["n1", "n2"]);
    for i in 0..100 {
        let id = format!("t{i}");
        world.task("s", &id, |_| {});
        assert_eq!(world.state(&id), TaskState::Assigned, "task {id}");
        world.sim.pass(Duration::from_millis(20));
    }
    assert_eq!(world.shares("s"), [50, 50]);
}

#[test]
fn a_task_that_was_on_its_way_counts_on_a_node_that_left_and_came_back() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    world.service("s", &Default::default());
    world.sim.write(|tx| drop(tx.create(task("s", "a", 1)).unwrap()));
    let batches = world.sim.decide();
    world.sim.write(|tx| drop(tx.remove::<swarm_api::v1::Node>("n1").unwrap()));
    assert!(world.sim.decide().is_empty());
    world.nodes(&["n1"]);
    assert!(world.sim.decide().is_empty());
    batches.into_iter().for_each(|batch| world.sim.commit(batch));
    world.sim.think();
    world.runs_on("a", "n1");
    world.nodes(&["n2"]);
    world.task("s", "b", |_| {});
    world.runs_on("b", "n2");
}

#[test]
fn a_node_that_changes_its_zone_counts_for_its_new_one() {
    let mut world = World::new();
    for (id, zone) in [("n1", "a"), ("n2", "b"), ("n3", "c"), ("n4", "c"), ("n5", "c"), ("n6", "c")] {
        world.node(id, |n| label(n, "zone", zone));
    }
    world.task("busy", "t0", |t| constrain(t, "node.id==n3"));
    let zones = |t: &mut swarm_api::v1::Task| spread_over(t, &["node.labels.zone"]);
    world.replicas("first", 1, zones);
    assert_eq!(world.spread("first"), [("n1".to_owned(), 1)].into());
    // It has as many tasks as before, and the other zone's node has fewer.
    world.edit_node("n1", |n| label(n, "zone", "b"));
    world.replicas("second", 2, zones);
    let spread = world.spread("second");
    assert_eq!(spread.get("n2"), Some(&1), "{spread:?}");
    assert_eq!(spread.get("n1"), None, "{spread:?}");
    // The same where another node takes the place of one that went.
    let mut world = World::new();
    for (id, zone) in [("n1", "a"), ("n2", "b"), ("n3", "c"), ("n4", "c"), ("n5", "c"), ("n6", "c")] {
        world.node(id, |n| label(n, "zone", zone));
    }
    world.task("busy", "t0", |t| constrain(t, "node.id==n3"));
    world.task("busy", "t1", |t| constrain(t, "node.id==n1"));
    world.replicas("first", 1, zones);
    assert_eq!(world.spread("first"), [("n2".to_owned(), 1)].into());
    world.remove_task("first-3");
    world.remove_node("n2");
    world.node("n7", |n| label(n, "zone", "a"));
    world.replicas("second", 2, zones);
    let in_a = world.spread("second").into_iter().filter(|(node, _)| ["n1", "n7"].contains(&node.as_str()));
    assert_eq!(in_a.map(|(_, tasks)| tasks).sum::<usize>(), 1, "{:?}", world.spread("second"));
}

#[test]
fn more_lists_of_spread_labels_than_are_kept_do_no_harm() {
    for before in 29..34 {
        // So many lists, then one that tells nodes apart.
        let mut world = World::new();
        for n in 0..8 {
            world.node(&format!("n{n}"), |node| {
                for l in 0..before {
                    label(node, &format!("l{l}"), "same");
                }
                label(node, "zone", if n == 0 { "a" } else { "b" });
            });
        }
        // Its pool is for the first list.
        world.replicas("last", 4, |t| spread_over(t, &["node.labels.l0"]));
        for l in 1..before {
            let over = format!("node.labels.l{l}");
            world.replicas(&format!("s{l}"), 1, |t| spread_over(t, &[&over]));
        }
        let last = ["t1", "t2", "t3", "t4"];
        world.tasks("last", &last, |t| {
            t.spec_version = Some(Version { index: 2 });
            t.spec.placement = None;
            spread_over(t, &["node.labels.zone"]);
        });
        // Of the four before, one is in the small zone.
        let on = last.map(|id| world.on(id));
        assert_eq!(on.iter().filter(|node| *node == "n0").count(), 3, "{before}: {on:?}");
        assert!(on.iter().all(|node| !node.is_empty()), "{before}: {on:?}");
    }
}
