//! Tasks whose node no longer has what they ask for.

mod world;

use swarm_api::v1::{NodeRole, Task, TaskState, node_spec::Availability};
use swarm_placement::generic::{discrete, named};
use world::*;

/// A world with one node and a running task on it.
fn running(
    node: impl Fn(&mut swarm_api::v1::Node) + Send + Sync,
    task: impl Fn(&mut Task) + Send + Sync,
) -> World {
    let mut world = World::new();
    world.node("n1", node);
    world.task("s", "a", task);
    world.runs_on("a", "n1");
    world.report("a", TaskState::Running);
    world
}

#[track_caller]
fn rejected(world: &World, id: &str) {
    let task = world.get(id);
    assert_eq!(task.status.state(), TaskState::Rejected, "task {id}");
    assert_eq!(task.status.message, "task rejected by constraint enforcer");
    assert_eq!(task.status.err, "assigned node no longer meets constraints");
    assert_eq!(task.desired_state(), TaskState::Running, "what is wanted is not the enforcer's");
}

#[track_caller]
fn stays(world: &World, id: &str) {
    assert!(world.state(id) <= TaskState::Running, "task {id} was rejected");
}

#[test]
fn a_label_that_goes_takes_its_tasks_along() {
    let mut world = running(|n| label(n, "zone", "a"), |t| constrain(t, "node.labels.zone==a"));
    world.task("t", "free", |_| {});
    world.edit_node("n1", |n| n.spec.annotations.labels.clear());
    rejected(&world, "a");
    stays(&world, "free");
}

#[test]
fn a_new_leader_looks_at_every_node() {
    let mut world = running(|_| {}, |_| {});
    world.sim.update_service("s", |spec| {
        placement(&mut spec.task).constraints.push("node.labels.zone==a".into());
    });
    world.sim.think();
    stays(&world, "a");
    world.lead();
    rejected(&world, "a");
}

#[test]
fn a_role_that_changes_takes_its_tasks_along() {
    let mut world = running(|_| {}, |t| constrain(t, "node.role==worker"));
    world.task("job", "j", |t| t.desired_state = TaskState::Complete as i32);
    world.edit_node("n1", |n| n.role = NodeRole::Manager as i32);
    rejected(&world, "a");
    stays(&world, "j");
}

#[test]
fn the_services_constraints_count_and_not_the_tasks_own() {
    let mut world = running(|n| label(n, "zone", "a"), |_| {});
    world.sim.update_service("s", |spec| {
        placement(&mut spec.task).constraints.push("node.labels.zone==a".into());
    });
    world.edit_node("n1", |n| label(n, "other", "x"));
    stays(&world, "a");
    world.edit_node("n1", |n| n.spec.annotations.labels.clear());
    rejected(&world, "a");
}

#[test]
fn reservations_that_no_longer_fit_are_rejected_largest_first() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 100, 100, vec![]));
    world.task("s", "big", |t| wants(t, 10, 60, vec![]));
    world.task("t", "small", |t| wants(t, 10, 25, vec![]));
    world.task("u", "smaller", |t| wants(t, 10, 15, vec![]));
    world.edit_node("n1", |n| has(n, 100, 50, vec![]));
    rejected(&world, "big");
    stays(&world, "small");
    stays(&world, "smaller");
    world.edit_node("n1", |n| has(n, 15, 50, vec![]));
    rejected(&world, "small");
    stays(&world, "smaller");
    world.edit_node("n1", |n| n.description = None);
    rejected(&world, "smaller");
}

#[test]
fn finished_tasks_hold_nothing() {
    let mut world = running(|n| has(n, 10, 0, vec![]), |t| wants(t, 6, 0, vec![]));
    world.report("a", TaskState::Complete);
    world.task("s", "b", |t| wants(t, 6, 0, vec![]));
    world.runs_on("b", "n1");
    world.edit_node("n1", |n| has(n, 6, 0, vec![]));
    stays(&world, "b");
    assert_eq!(world.state("a"), TaskState::Complete);
}

#[test]
fn generic_resources_must_still_be_there() {
    let described = || vec![named("gpu", "a"), named("gpu", "b"), discrete("fpga", 4)];
    for (now, gpu_stays, fpga_stays) in [
        (vec![named("gpu", "a"), named("gpu", "b"), discrete("fpga", 3)], true, true),
        (vec![named("gpu", "x"), named("gpu", "b"), discrete("fpga", 4)], false, true),
        (vec![named("gpu", "a"), named("gpu", "b"), discrete("fpga", 2)], true, false),
        (vec![discrete("gpu", 2), named("fpga", "x")], false, false),
        (vec![], false, false),
    ] {
        let mut world = World::new();
        world.node("n1", |n| has(n, 0, 0, described()));
        world.task("gpu", "g", |t| wants(t, 0, 0, vec![discrete("gpu", 1)]));
        world.task("fpga", "f", |t| wants(t, 0, 0, vec![discrete("fpga", 3)]));
        world.edit_node("n1", |n| has(n, 0, 0, now.clone()));
        for (id, stay) in [("g", gpu_stays), ("f", fpga_stays)] {
            if stay { stays(&world, id) } else { rejected(&world, id) }
        }
    }
}

#[test]
fn tasks_on_paused_and_drained_nodes_are_left_alone() {
    for availability in [Availability::Pause, Availability::Drain] {
        let mut world = running(|n| label(n, "zone", "a"), |t| constrain(t, "node.labels.zone==a"));
        world.edit_node("n1", |n| {
            n.spec.annotations.labels.clear();
            set_availability(n, availability);
        });
        stays(&world, "a");
        world.edit_node("n1", |n| set_availability(n, Availability::Active));
        rejected(&world, "a");
    }
}

#[test]
fn only_tasks_that_are_wanted_and_not_finished_are_looked_at() {
    for (desired, looked_at) in [
        (TaskState::New, false),
        (TaskState::Ready, true),
        (TaskState::Running, true),
        (TaskState::Complete, true),
        (TaskState::Shutdown, false),
        (TaskState::Remove, false),
    ] {
        let mut world = running(|n| label(n, "zone", "a"), |t| constrain(t, "node.labels.zone==a"));
        world.edit_task("a", |t| t.desired_state = desired as i32);
        world.edit_node("n1", |n| n.spec.annotations.labels.clear());
        assert_eq!(world.state("a") == TaskState::Rejected, looked_at, "{desired:?}");
    }
}

#[test]
fn a_task_that_its_node_has_not_confirmed_holds_nothing_yet() {
    let mut world = running(|n| has(n, 10, 0, vec![]), |t| wants(t, 6, 0, vec![]));
    world.task("global", "g", |t| {
        t.node_id = "n1".into();
        wants(t, 6, 0, vec![]);
    });
    world.edit_node("n1", |n| has(n, 11, 0, vec![]));
    stays(&world, "a");
    world.waits("g", "insufficient resources on 1 node");
}

#[test]
fn completed_tasks_of_a_job_count_for_nothing() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    let job = |t: &mut Task| {
        t.desired_state = TaskState::Complete as i32;
        wants(t, 6, 0, vec![]);
    };
    world.task("job", "a", job);
    world.report("a", TaskState::Complete);
    world.task("job", "b", job);
    world.report("b", TaskState::Running);
    world.edit_node("n1", |n| has(n, 6, 0, vec![]));
    assert_eq!((world.state("a"), world.state("b")), (TaskState::Complete, TaskState::Running));
    world.edit_node("n1", |n| has(n, 5, 0, vec![]));
    assert_eq!((world.state("a"), world.state("b")), (TaskState::Complete, TaskState::Rejected));
}

/// While the service asked for something else its tasks were judged by that; no update replaces them.
#[test]
fn a_rollback_leaves_no_task_where_its_constraints_do_not_hold() {
    let mut world = running(|n| label(n, "zone", "a"), |t| constrain(t, "node.labels.zone==a"));
    let ask = |world: &mut World, constraints: &[&str]| {
        let constraints: Vec<String> = constraints.iter().map(|c| (*c).to_owned()).collect();
        world.sim.update_service("s", |spec| placement(&mut spec.task).constraints = constraints.clone());
        world.sim.think();
    };
    ask(&mut world, &["node.labels.zone==a"]);
    ask(&mut world, &[]);
    world.edit_node("n1", |n| label(n, "zone", "b"));
    stays(&world, "a");
    ask(&mut world, &["node.labels.zone==a"]);
    rejected(&world, "a");
}

/// What its node lost while it was only thought to be stopping is noticed when it is wanted again.
#[test]
fn a_task_that_is_wanted_on_after_all_must_still_fit() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 100, 100, vec![]));
    world.task("s", "big", |t| wants(t, 10, 60, vec![]));
    world.task("t", "small", |t| wants(t, 10, 25, vec![]));
    let stop = |t: &mut Task| t.desired_state = TaskState::Shutdown as i32;
    world.edit_task("big", stop);
    world.edit_node("n1", |n| has(n, 100, 50, vec![]));
    stays(&world, "big");
    world.edit_task("big", |t| t.desired_state = TaskState::Running as i32);
    rejected(&world, "big");
    stays(&world, "small");
}
