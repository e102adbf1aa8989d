//! Services that wait for others before they start.
#![allow(clippy::unwrap_used)]

mod world;

use swarm_api::extensions::{DEPENDS_ON, PRIORITY};
use swarm_api::v1::TaskState::{Assigned, Failed, Pending, Running};
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::{
    ContainerStatus, GlobalService, JobStatus, ReplicatedJob, ReplicatedService, Service, Task, TaskState,
    Version, task_status,
};
use swarm_scheduler::shows_start;
use world::{World, has, wants};

/// A service with this mode.
fn service(world: &mut World, id: &str, mode: Mode) {
    world.service(id, &Default::default());
    edit(world, id, |service| {
        service.spec.mode = Some(mode);
        service.job_status = matches!(mode, Mode::ReplicatedJob(_)).then(JobStatus::default);
    });
}

fn edit(world: &mut World, id: &str, change: impl Fn(&mut Service) + Send + Sync) {
    world.sim.write(|tx| {
        let mut service = tx.services().get(id).unwrap().clone();
        change(&mut service);
        drop(tx.update(service).unwrap());
    });
    world.sim.think();
}

fn replicated(replicas: u64) -> Mode {
    Mode::Replicated(ReplicatedService { replicas })
}

/// A service that waits for others.
fn waiting(world: &mut World, id: &str, order: &str) {
    world.service(id, &Default::default());
    depend(world, id, order);
}

fn depend(world: &mut World, id: &str, order: &str) {
    edit(world, id, |service| match order {
        "" => drop(service.spec.annotations.labels.remove(DEPENDS_ON)),
        _ => drop(service.spec.annotations.labels.insert(DEPENDS_ON.into(), order.into())),
    });
}

fn of_run(run: u64) -> impl Fn(&mut Task) {
    move |task| {
        task.job_iteration = Some(Version { index: run });
        task.desired_state = TaskState::Complete as i32;
    }
}

#[test]
fn a_task_waits_until_every_task_of_the_other_service_is_healthy() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    service(&mut world, "db", replicated(3));
    waiting(&mut world, "web", "db:healthy");
    world.task("web", "w1", |_| {});
    world.waits("w1", "waiting for service db (0 of 3 tasks healthy)");
    world.tasks("db", &["d1", "d2", "d3"], |_| {});
    world.waits("w1", "waiting for service db (0 of 3 tasks healthy)");
    world.report("d1", TaskState::Running);
    world.waits("w1", "waiting for service db (1 of 3 tasks healthy)");
    world.report("d2", TaskState::Running);
    world.report("d3", TaskState::Starting);
    world.waits("w1", "waiting for service db (2 of 3 tasks healthy)");
    world.report("d3", TaskState::Running);
    world.runs_on("w1", "n1");
}

#[test]
fn nobody_else_is_held_up_and_what_happens_to_nodes_changes_nothing() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 2, 0, vec![]));
    service(&mut world, "db", replicated(1));
    waiting(&mut world, "web", "db:healthy");
    world.replicas("web", 3, |t| wants(t, 1, 0, vec![]));
    world.task("other", "o1", |t| wants(t, 2, 0, vec![]));
    world.runs_on("o1", "n1");
    world.node("n2", |n| has(n, 1, 0, vec![]));
    world.sim.think();
    world.edit_node("n1", |n| has(n, 10, 0, vec![]));
    assert_eq!(world.spread("web").len(), 0);
    for task in world.sim.tasks("web") {
        assert_eq!(task.status.err, "waiting for service db (0 of 1 task healthy)");
    }
    world.task("db", "d1", |t| wants(t, 8, 0, vec![]));
    world.report("d1", TaskState::Running);
    // Who has waited for the service then waits for room as everybody does.
    assert_eq!(world.shares("web"), [1]);
    let told: Vec<_> = world.sim.tasks("web").iter().map(|t| t.status.err.clone()).collect();
    let no_room = "no suitable node (insufficient resources on 2 nodes)";
    assert_eq!(told.iter().filter(|err| *err == no_room).count(), 2, "{told:?}");
    world.node("n3", |n| has(n, 9, 0, vec![]));
    world.sim.think();
    assert_eq!(world.shares("web"), [1, 2]);
}

#[test]
fn running_is_less_than_healthy() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    service(&mut world, "db", replicated(1));
    waiting(&mut world, "web", "db:running");
    waiting(&mut world, "api", "db:healthy");
    world.task("web", "w1", |_| {});
    world.task("api", "a1", |_| {});
    world.task("db", "d1", |_| {});
    world.report("d1", TaskState::Starting);
    world.waits("w1", "waiting for service db (0 of 1 task running)");
    world.edit_task("d1", |task| {
        let process = ContainerStatus { pid: 7, ..Default::default() };
        task.status.runtime_status = Some(task_status::RuntimeStatus::Container(process.into()));
    });
    world.runs_on("w1", "n1");
    world.waits("a1", "waiting for service db (0 of 1 task healthy)");
    world.report("d1", TaskState::Running);
    world.runs_on("a1", "n1");
}

/// A task `w1` of `web` waits for two completions of `job`.
fn waiting_for_a_job() -> World {
    let mut world = World::new();
    world.nodes(&["n1"]);
    let mode = ReplicatedJob { max_concurrent: 2, total_completions: 2 };
    service(&mut world, "job", Mode::ReplicatedJob(mode));
    waiting(&mut world, "web", "job:completed");
    world.task("web", "w1", |_| {});
    world
}

#[test]
fn a_job_is_waited_for_until_its_present_run_is_done() {
    let mut world = waiting_for_a_job();
    world.waits("w1", "waiting for service job (0 of 2 tasks completed)");
    world.tasks("job", &["j1", "j2"], of_run(0));
    world.report("j1", TaskState::Failed);
    world.waits("w1", "waiting for service job (0 of 2 tasks completed, 1 failed)");
    world.report("j2", TaskState::Complete);
    world.task("job", "j3", of_run(0));
    world.waits("w1", "waiting for service job (1 of 2 tasks completed, 1 failed)");
    world.report("j3", TaskState::Complete);
    world.runs_on("w1", "n1");

    // The next run is another one; what was done before does not count.
    edit(&mut world, "job", |job| job.job_status.as_mut().unwrap().job_iteration.index = 1);
    world.task("web", "w2", |t| t.spec.force_update = 1);
    world.waits("w2", "waiting for service job (0 of 2 tasks completed)");
    world.tasks("job", &["j4", "j5"], of_run(1));
    world.report("j4", TaskState::Complete);
    world.report("j5", TaskState::Complete);
    world.runs_on("w2", "n1");
}

/// One that was to stop may complete all the same, and so does the one that took its place.
#[test]
fn a_slot_of_a_job_that_was_completed_twice_counts_once() {
    let mut world = waiting_for_a_job();
    let of_slot = |slot: u64| {
        move |task: &mut Task| {
            of_run(0)(task);
            task.slot = slot;
        }
    };
    world.task("job", "first", of_slot(0));
    world.edit_task("first", |task| task.desired_state = TaskState::Shutdown as i32);
    world.task("job", "second", of_slot(0));
    world.report("first", TaskState::Complete);
    world.report("second", TaskState::Complete);
    world.waits("w1", "waiting for service job (1 of 2 tasks completed)");
    world.task("job", "third", of_slot(1));
    world.report("third", TaskState::Complete);
    world.runs_on("w1", "n1");
}

#[test]
fn a_service_of_that_name_may_come_later_and_several_are_waited_for() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    waiting(&mut world, "web", "db:running,cache:healthy");
    world.task("web", "w1", |_| {});
    world.waits(
        "w1",
        "waiting for service db (there is no such service); service cache (there is no such service)",
    );
    service(&mut world, "db", replicated(0));
    world.waits("w1", "waiting for service db (it has no tasks); service cache (there is no such service)");
    service(&mut world, "cache", Mode::Global(GlobalService {}));
    world.waits("w1", "waiting for service db (it has no tasks); service cache (it has no tasks)");
    edit(&mut world, "db", |db| db.spec.mode = Some(replicated(1)));
    world.task("db", "d1", |_| {});
    world.report("d1", TaskState::Running);
    world.waits("w1", "waiting for service cache (it has no tasks)");
    let bound = |task: &mut Task| {
        task.slot = 0;
        task.node_id = "n1".into();
    };
    world.task("cache", "c1", bound);
    world.waits("w1", "waiting for service cache (0 of 1 task healthy)");
    world.report("c1", TaskState::Running);
    world.runs_on("w1", "n1");
}

#[test]
fn restarts_and_more_tasks_do_not_wait_but_another_spec_does() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    service(&mut world, "db", replicated(1));
    waiting(&mut world, "web", "db:healthy");
    world.task("db", "d1", |_| {});
    world.report("d1", TaskState::Running);
    world.task("web", "w1", |_| {});
    world.runs_on("w1", "n1");
    world.report("w1", TaskState::Failed);
    world.report("d1", TaskState::Failed);
    // In its place, and beside it, as it was: the service has started.
    world.task("web", "w2", |_| {});
    world.runs_on("w2", "n1");
    world.task("web", "w3", |t| t.spec_version = Some(Version { index: 2 }));
    world.runs_on("w3", "n1");
    // Another spec is another start.
    world.task("web", "w4", |t| {
        t.spec_version = Some(Version { index: 3 });
        t.spec.force_update = 1;
    });
    world.waits("w4", "waiting for service db (0 of 1 task healthy)");
    world.task("db", "d2", |_| {});
    world.report("d2", TaskState::Running);
    world.runs_on("w4", "n1");
}

#[test]
fn tasks_of_their_own_nodes_wait_too() {
    let mut world = World::new();
    world.nodes(&["n1", "n2"]);
    service(&mut world, "db", replicated(1));
    service(&mut world, "agent", Mode::Global(GlobalService {}));
    depend(&mut world, "agent", "db:healthy");
    for node in ["n1", "n2"] {
        world.task("agent", &format!("a-{node}"), |task| {
            task.slot = 0;
            task.node_id = node.into();
        });
    }
    world.task("db", "d1", |_| {});
    world.edit_node("n1", |n| has(n, 9, 0, vec![]));
    world.waits("a-n1", "waiting for service db (0 of 1 task healthy)");
    world.report("d1", TaskState::Running);
    world.runs_on("a-n1", "n1");
    world.runs_on("a-n2", "n2");
    // One that stopped without having been there is no start.
    service(&mut world, "other", Mode::Global(GlobalService {}));
    depend(&mut world, "other", "nobody:healthy");
    let own = |task: &mut Task| {
        task.slot = 0;
        task.node_id = "n1".into();
    };
    world.task("other", "o1", own);
    world.edit_task("o1", |task| {
        task.desired_state = TaskState::Shutdown as i32;
        task.status.state = TaskState::Shutdown as i32;
    });
    world.task("other", "o2", own);
    world.waits("o2", "waiting for service nobody (there is no such service)");
}

#[test]
fn whoever_waits_no_more_by_its_labels_starts_at_once() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    waiting(&mut world, "web", "nobody:healthy");
    world.task("web", "w1", |_| {});
    world.waits("w1", "waiting for service nobody (there is no such service)");
    depend(&mut world, "web", "");
    world.runs_on("w1", "n1");
}

#[test]
fn those_who_wait_for_each_other_do_not_wait() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    for (id, order) in [("a", "b:healthy"), ("b", "c:healthy")] {
        waiting(&mut world, id, order);
        world.task(id, &format!("{id}1"), |_| {});
    }
    service(&mut world, "c", replicated(1));
    world.waits("a1", "waiting for service b (0 of 1 task healthy)");
    world.waits("b1", "waiting for service c (0 of 1 task healthy)");
    // Far from the first of them.
    depend(&mut world, "c", "a:healthy");
    world.runs_on("a1", "n1");
    world.runs_on("b1", "n1");
}

#[test]
fn another_leader_knows_who_waits() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    service(&mut world, "db", replicated(1));
    waiting(&mut world, "web", "db:healthy");
    world.task("web", "w1", |_| {});
    world.task("db", "d1", |_| {});
    world.lead();
    world.waits("w1", "waiting for service db (0 of 1 task healthy)");
    world.report("d1", TaskState::Running);
    world.runs_on("w1", "n1");
}

#[test]
fn a_task_waits_for_one_that_takes_the_place_of_another_in_its_slot() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    service(&mut world, "db", replicated(2));
    waiting(&mut world, "web", "db:healthy");
    world.task("web", "w1", |_| {});
    world.tasks("db", &["d1", "d2", "d3"], |t| t.slot = if t.id == "d3" { 2 } else { 1 });
    world.report("d1", TaskState::Running);
    world.report("d2", TaskState::Running);
    world.waits("w1", "waiting for service db (1 of 2 tasks healthy)");
    world.report("d3", TaskState::Running);
    world.runs_on("w1", "n1");
}

/// It could not start without them, and they would come back and be displaced again for ever.
#[test]
fn nobody_displaces_tasks_that_it_waits_for() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    world.allow_preemption();
    for (id, order) in [("db", ""), ("cache", "db:healthy"), ("web", "cache:healthy"), ("other", "")] {
        service(&mut world, id, replicated(1));
        if !order.is_empty() {
            depend(&mut world, id, order);
        }
    }
    edit(&mut world, "web", |s| drop(s.spec.annotations.labels.insert(PRIORITY.into(), "5".into())));
    for (service, id, size) in [("db", "d", 6), ("other", "o", 2), ("cache", "c", 2)] {
        world.task(service, id, |t| wants(t, size, 0, vec![]));
        world.report(id, TaskState::Running);
    }
    world.task("web", "w", |t| wants(t, 3, 0, vec![]));
    world.waits("w", "no suitable node (insufficient resources on 1 node)");
    world.remove_task("w");
    world.task("web", "w", |t| wants(t, 2, 0, vec![]));
    let states = ["d", "c", "o"].map(|id| world.state(id));
    assert_eq!(states, [TaskState::Running, TaskState::Running, TaskState::Rejected]);
}

#[test]
fn a_start_is_shown_by_tasks_of_the_present_run_with_the_present_spec_or_the_one_before() {
    let mut job = swarm_reconcile::sim::service("job", 1);
    job.previous_spec = Some(job.spec.clone());
    job.spec.task.force_update = 2;
    job.job_status = Some(JobStatus { job_iteration: Version { index: 3 }, ..Default::default() });
    let shows = |job: &Service, force_update: u64, run: Option<u64>, state: TaskState| {
        let mut task = world::task("job", "t1", 1);
        task.spec.force_update = force_update;
        task.job_iteration = run.map(|index| Version { index });
        task.status.state = state as i32;
        shows_start(job, &task)
    };
    assert!(!shows(&job, 2, Some(3), Running), "it waits for nobody");
    job.spec.annotations.labels.insert(DEPENDS_ON.into(), "db:healthy".into());
    for (force_update, run, state, expected) in [
        (2, Some(3), Running, true),
        (0, Some(3), Failed, true),
        (2, None, Assigned, true),
        (1, Some(3), Running, false),
        (2, Some(2), Running, false),
        (2, Some(3), Pending, false),
    ] {
        let found = shows(&job, force_update, run, state);
        assert_eq!(found, expected, "spec {force_update}, run {run:?}, {state:?}");
    }
}
