//! The update supervisor, rule by rule (`orchestration.md` §8 and §9, scenarios 4 to 8 and 41 to 58).
#![allow(clippy::unwrap_used)]

mod common;
#[path = "update/leaders.rs"]
mod leaders;
#[path = "update/places.rs"]
mod places;
#[path = "update/rollbacks.rs"]
mod rollbacks;

use common::*;
use swarm_api::TaskState;
use swarm_api::TaskState::{Complete, Failed, Running, Starting};
use swarm_api::v1::restart_policy::RestartCondition::{Any, None as Never};
use swarm_api::v1::update_config::{FailureAction, UpdateOrder};
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{
    ContainerSpec, EndpointSpec, Placement, RestartPolicy, Service, Task, UpdateConfig, UpdateStatus,
    task_spec,
};

fn config(parallelism: u64) -> UpdateConfig {
    UpdateConfig { parallelism, ..Default::default() }
}

fn acting(action: FailureAction, ratio: f32) -> UpdateConfig {
    UpdateConfig { failure_action: action as i32, max_failure_ratio: ratio, ..config(1) }
}

/// A service with containers of this image and an update configuration.
fn web(replicas: u64, update: UpdateConfig) -> Service {
    let mut web = service("web", replicas);
    web.spec.update = Some(update);
    web.spec.task.runtime = container("old");
    web
}

fn container(image: &str) -> Option<task_spec::Runtime> {
    Some(task_spec::Runtime::Container(ContainerSpec { image: image.into(), ..Default::default() }))
}

fn image(task: &Task) -> &str {
    match &task.spec.runtime {
        Some(task_spec::Runtime::Container(container)) => &container.image,
        _ => "",
    }
}

fn set_image(sim: &mut Sim, to: &str) {
    sim.update_service("web", |spec| spec.task.runtime = container(to));
}

fn count(sim: &Sim, what: &str, state: TaskState) -> usize {
    sim.tasks("web").iter().filter(|t| image(t) == what && t.status.state() == state).count()
}

fn status(sim: &Sim) -> Option<UpdateState> {
    sim.view().services().get("web").unwrap().update_status.as_ref().map(UpdateStatus::state)
}

fn message(sim: &Sim) -> String {
    sim.view().services().get("web").unwrap().update_status.clone().unwrap_or_default().message
}

/// Tasks of this image fail as soon as they would run; all others are healthy.
fn broken(sim: &mut Sim, bad: &'static str) {
    sim.behaviour = Box::new(move |task| {
        let (state, err) = swarm_reconcile::sim::healthy(task)?;
        if image(task) == bad && state == Running { Some((Failed, "broken")) } else { Some((state, err)) }
    });
}

#[test]
fn everything_at_once_without_parallelism() {
    let mut sim = cluster(web(4, config(0)));
    set_image(&mut sim, "new");
    sim.settle();
    assert_eq!((count(&sim, "new", Running), count(&sim, "old", Running)), (4, 0));
    assert_eq!((status(&sim), message(&sim)), (Some(UpdateState::Updating), "update in progress".into()));
    sim.advance(secs(5));
    assert_eq!((status(&sim), message(&sim)), (Some(UpdateState::Completed), "update completed".into()));
    let completed = sim.view().services().get("web").unwrap().update_status.clone().unwrap();
    assert!(completed.started_at.is_some() && completed.completed_at.is_some());
    assert_eq!(slots(&sim.live("web")), [1, 2, 3, 4]);
}

#[test]
fn one_after_the_other_with_a_delay() {
    let mut sim = cluster(web(3, UpdateConfig { delay: wire(secs(10)).unwrap(), ..config(1) }));
    set_image(&mut sim, "new");
    sim.settle();
    assert_eq!(count(&sim, "new", Running), 1);
    sim.advance(millis(9_999));
    assert_eq!(count(&sim, "new", Running), 1);
    sim.advance(millis(1));
    assert_eq!(count(&sim, "new", Running), 2);
    sim.advance(secs(10));
    assert_eq!(count(&sim, "new", Running), 3);
    // The last place rests too, and as the delay is not below the monitor, it is watched for a second more.
    sim.advance(millis(20_999));
    assert_eq!(status(&sim), Some(UpdateState::Updating));
    sim.advance(millis(1));
    assert_eq!(status(&sim), Some(UpdateState::Completed));
}

#[test]
fn never_more_than_parallelism_are_down() {
    let mut sim = cluster(web(9, config(2)));
    sim.behaviour = Box::new(|task| {
        let slow = image(task) == "new" && task.status.reached(TaskState::Starting);
        if slow { None } else { Some((if image(task) == "new" { Starting } else { Running }, "")) }
            .filter(|(state, _)| !task.status.reached(*state))
    });
    set_image(&mut sim, "new");
    sim.settle();
    assert_eq!((count(&sim, "new", Starting), count(&sim, "old", Running)), (2, 7));
}

#[test]
fn a_stop_first_replacement_starts_when_the_old_task_has_stopped() {
    let mut sim = cluster(web(1, config(1)));
    sim.agents_stop_tasks = false;
    set_image(&mut sim, "new");
    sim.settle();
    assert_eq!((count(&sim, "old", Running), count(&sim, "new", Running)), (1, 0));
    sim.agents_stop_tasks = true;
    sim.settle();
    assert_eq!((count(&sim, "old", Running), count(&sim, "new", Running)), (0, 1));
}

#[test]
fn old_tasks_that_never_stop_delay_an_update_by_one_minute_each() {
    let mut sim = cluster(web(2, config(1)));
    sim.agents_stop_tasks = false;
    set_image(&mut sim, "new");
    sim.advance(secs(59));
    assert_eq!(count(&sim, "new", Running), 0);
    sim.advance(secs(1));
    assert_eq!(count(&sim, "new", Running), 1);
    sim.advance(secs(60));
    assert_eq!(count(&sim, "new", Running), 2);
}

#[test]
fn start_first_stops_a_task_only_when_its_successor_runs() {
    let mut sim = cluster(web(2, UpdateConfig { order: UpdateOrder::StartFirst as i32, ..config(0) }));
    sim.behaviour = Box::new(|task| {
        let goal = if image(task) == "new" { Starting } else { Running };
        (!task.status.reached(goal)).then_some((goal, ""))
    });
    set_image(&mut sim, "new");
    sim.settle();
    assert_eq!((count(&sim, "old", Running), count(&sim, "new", Starting)), (2, 2));
    assert_eq!(sim.live("web").len(), 4);
    sim.behaviour = Box::new(swarm_reconcile::sim::healthy);
    sim.settle();
    assert_eq!((count(&sim, "old", Running), count(&sim, "new", Running)), (0, 2));
    assert_eq!(sim.live("web").len(), 2);
}

/// `orchestration.md` §20.18: the original leaves both in the slot.
#[test]
fn start_first_ends_with_one_task_per_slot_even_if_the_first_attempt_fails() {
    let update =
        UpdateConfig { order: UpdateOrder::StartFirst as i32, ..acting(FailureAction::Continue, 0.0) };
    let mut sim = cluster(web(1, update));
    broken(&mut sim, "new");
    set_image(&mut sim, "new");
    sim.settle();
    assert_eq!(count(&sim, "old", Running), 1, "the old one stays while the new one fails");
    sim.behaviour = Box::new(swarm_reconcile::sim::healthy);
    sim.advance(secs(5));
    assert_eq!((count(&sim, "old", Running), count(&sim, "new", Running)), (0, 1));
    assert_eq!(sim.live("web").len(), 1);
}

#[test]
fn a_failing_update_pauses_after_the_first_failure() {
    let mut stays = web(4, config(1));
    stays.spec.task.restart = Some(policy(Never)); // so every new task is the update's
    let mut sim = cluster(stays);
    broken(&mut sim, "new");
    set_image(&mut sim, "new");
    sim.advance(secs(60));
    let failed: Vec<_> = sim.tasks("web").into_iter().filter(|t| image(t) == "new").collect();
    assert_eq!(states(&failed), [(failed[0].slot, Failed, TaskState::Shutdown)]);
    assert_eq!(status(&sim), Some(UpdateState::Paused));
    let text = format!("update paused due to failure or early termination of task {}", failed[0].id);
    assert_eq!(message(&sim), text);
    assert_eq!(count(&sim, "old", Running), 3);
    // A paused update stays paused whatever else happens to the service.
    sim.write(|tx| {
        let mut web = tx.services().get("web").unwrap().clone();
        web.spec.annotations.labels.insert("a".into(), "b".into());
        tx.update(web).unwrap();
    });
    sim.advance(secs(60));
    assert_eq!((status(&sim), count(&sim, "old", Running)), (Some(UpdateState::Paused), 3));
    // A new update goes on despite failures if it is told to.
    sim.update_service("web", |spec| spec.update = Some(acting(FailureAction::Continue, 0.0)));
    sim.advance(secs(60));
    assert_eq!((status(&sim), count(&sim, "old", Running)), (Some(UpdateState::Completed), 0));
}

#[test]
fn two_failures_of_five_are_above_a_quarter() {
    let mut sim = cluster(web(5, acting(FailureAction::Pause, 0.25)));
    broken(&mut sim, "new");
    set_image(&mut sim, "new");
    sim.settle();
    assert_eq!((count(&sim, "new", Failed), count(&sim, "old", Running)), (2, 3));
    assert_eq!(status(&sim), Some(UpdateState::Paused));
}

#[test]
fn a_task_that_completes_early_has_failed() {
    let mut sim = cluster(web(2, config(1)));
    sim.behaviour = Box::new(|task| {
        let (state, err) = swarm_reconcile::sim::healthy(task)?;
        Some((if image(task) == "new" && state == Running { Complete } else { state }, err))
    });
    set_image(&mut sim, "new");
    sim.settle();
    assert_eq!((status(&sim), count(&sim, "old", Running)), (Some(UpdateState::Paused), 1));
}

#[test]
fn a_failure_counts_within_the_monitor_period_only() {
    for (after, expected) in [(4_000, UpdateState::Paused), (6_000, UpdateState::Updating)] {
        let mut sim = cluster(web(2, UpdateConfig { delay: wire(secs(30)).unwrap(), ..config(1) }));
        set_image(&mut sim, "new");
        sim.settle();
        sim.advance(millis(after));
        let first = sim.live("web").iter().find(|t| image(t) == "new").unwrap().id.clone();
        sim.report(&first, Failed, "");
        sim.settle();
        assert_eq!(status(&sim), Some(expected), "after {after} ms");
    }
}

#[test]
fn a_second_update_takes_over_from_the_first() {
    // The first one rests after its first task, or still waits for it.
    for reached in [Running, Starting] {
        let mut sim = cluster(web(4, UpdateConfig { delay: wire(secs(10)).unwrap(), ..config(1) }));
        sim.behaviour = Box::new(move |task| {
            let limit = if image(task) == "new" { reached } else { Running };
            let goal = task.desired_state().min(limit);
            (!task.status.reached(goal)).then_some((goal, ""))
        });
        set_image(&mut sim, "new");
        sim.settle();
        assert_eq!(count(&sim, "new", reached), 1);
        set_image(&mut sim, "newer");
        sim.settle();
        assert_eq!(count(&sim, "newer", Running), 1, "it does not wait for the first one");
        sim.advance(secs(120));
        let of_first = sim.tasks("web").iter().filter(|t| image(t) == "new").count();
        assert_eq!(of_first, 1, "the first one made none any more");
        assert_eq!((count(&sim, "newer", Running), sim.live("web").len()), (4, 4));
        assert_eq!(status(&sim), Some(UpdateState::Completed));
    }
}

/// `orchestration.md` §20.16: the original drops the second request and can't record the end of the first.
#[test]
fn an_update_to_the_same_spec_completes() {
    let mut sim = cluster(web(3, UpdateConfig { delay: wire(secs(10)).unwrap(), ..config(1) }));
    set_image(&mut sim, "new");
    sim.settle();
    set_image(&mut sim, "new");
    sim.advance(secs(120));
    assert_eq!((count(&sim, "new", Running), status(&sim)), (3, Some(UpdateState::Completed)));
}

#[test]
fn scaling_during_an_update_does_not_disturb_it() {
    let mut sim = cluster(web(3, UpdateConfig { delay: wire(secs(10)).unwrap(), ..config(1) }));
    set_image(&mut sim, "new");
    sim.settle();
    sim.scale("web", 5);
    sim.settle();
    assert_eq!((count(&sim, "new", Running), count(&sim, "old", Running)), (3, 2));
    sim.advance(secs(120));
    assert_eq!((count(&sim, "new", Running), sim.live("web").len()), (5, 5));
    assert_eq!(status(&sim), Some(UpdateState::Completed));
}

#[test]
fn a_service_deleted_during_its_update_gets_no_more_tasks() {
    let mut sim = cluster(web(3, UpdateConfig { delay: wire(secs(10)).unwrap(), ..config(1) }));
    set_image(&mut sim, "new");
    sim.settle();
    let known: Vec<_> = sim.tasks("web").iter().map(|t| t.id.clone()).collect();
    sim.agents_stop_tasks = false; // so that nothing is forgotten
    sim.write(|tx| drop(tx.remove::<Service>("web").unwrap()));
    sim.advance(secs(120));
    assert!(sim.tasks("web").iter().all(|t| known.contains(&t.id)), "nothing was created");
    sim.agents_stop_tasks = true;
    sim.advance(secs(120));
    assert_eq!(sim.tasks("web"), []);
}

/// `orchestration.md` §20.12: without a limit the update would stay in UPDATING for ever.
#[test]
fn a_task_that_finds_no_node_fails_its_update_in_the_end() {
    let mut sim = cluster(web(2, config(1)));
    for id in ["n1", "n2", "n3"] {
        sim.edit_node(id, |n| n.spec.availability = 1); // paused: nothing new is placed
    }
    set_image(&mut sim, "new");
    sim.advance(secs(599));
    assert_eq!(status(&sim), Some(UpdateState::Updating));
    sim.advance(secs(1));
    assert_eq!((status(&sim), count(&sim, "old", Running)), (Some(UpdateState::Paused), 1));
}

#[test]
fn tasks_that_differ_only_in_how_their_image_is_pulled_stay() {
    use swarm_api::v1::container_spec::PullOptions;
    let mut sim = cluster(web(2, config(1)));
    let before: Vec<_> = sim.tasks("web").iter().map(|t| t.id.clone()).collect();
    sim.update_service("web", |spec| {
        if let Some(task_spec::Runtime::Container(container)) = &mut spec.task.runtime {
            container.pull_options = Some(PullOptions { registry_auth: "token".into() });
        }
    });
    sim.advance(secs(10));
    assert_eq!(sim.tasks("web").iter().map(|t| t.id.clone()).collect::<Vec<_>>(), before);
    assert_eq!(status(&sim), None);
}

/// Whether tasks are replaced by this change.
fn replaces(change: impl FnMut(&mut swarm_api::v1::ServiceSpec) + Send) -> bool {
    let mut sim = cluster(web(2, config(0)));
    let before: Vec<_> = sim.live("web").iter().map(|t| t.id.clone()).collect();
    sim.update_service("web", change);
    sim.advance(secs(30));
    assert_eq!(sim.live("web").len(), 2);
    sim.live("web").iter().all(|t| !before.contains(&t.id))
}

#[test]
fn only_changes_of_what_runs_replace_tasks() {
    let placed = |constraint: &str, image: &str| {
        let placement = Placement { constraints: vec![constraint.into()], ..Default::default() };
        let image = image.to_owned();
        move |spec: &mut swarm_api::v1::ServiceSpec| {
            spec.task.placement = Some(placement.clone());
            spec.task.runtime = container(&image);
        }
    };
    assert!(!replaces(placed("node.id!=n9", "old")), "the nodes satisfy it");
    assert!(replaces(placed("node.id==n3", "old")), "the nodes do not");
    assert!(replaces(placed("node.id!=n9", "new")), "the image changes as well");
    assert!(replaces(|spec| spec.task.force_update += 1));
    assert!(replaces(|spec| spec.endpoint = Some(EndpointSpec { mode: 1, ..Default::default() })));
    assert!(!replaces(|spec| drop(spec.annotations.labels.insert("a".into(), "b".into()))));
    assert!(!replaces(|spec| spec.update = Some(config(7))));
    // `orchestration.md` §20.19: the original overlooks the endpoint in an edit that moves no task.
    assert!(replaces(|spec| {
        placed("node.id!=n9", "old")(spec);
        spec.endpoint = Some(EndpointSpec { mode: 1, ..Default::default() });
    }));
}

#[test]
fn equal_spec_versions_mean_equal_specs() {
    let web = web(1, config(1));
    let mut other = task(&web, "t1", 1, "n1", Running, Running);
    other.spec.force_update = 99;
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(web.clone()).unwrap();
        tx.create(other.clone()).unwrap();
    });
    sim.lead(everything());
    sim.advance(secs(30));
    assert_eq!(states(&sim.tasks("web")), [(1, Running, Running)]);
    assert_eq!(sim.tasks("web")[0].id, "t1");
}

#[test]
fn new_tasks_have_the_log_driver_of_their_time() {
    use swarm_api::v1::Driver;
    let driver = |name: &str| Some(Driver { name: name.into(), ..Default::default() });
    let mut sim = cluster(web(1, config(0)));
    let used = |sim: &Sim| sim.live("web")[0].log_driver.as_deref().cloned();
    assert_eq!(used(&sim), None);
    sim.write(|tx| {
        let mut cluster = tx.cluster().unwrap().clone();
        cluster.spec.task_defaults.log_driver = driver("cluster");
        tx.update(cluster).unwrap();
    });
    sim.settle();
    assert_eq!(used(&sim), None, "only new tasks get it");
    set_image(&mut sim, "new");
    sim.settle();
    assert_eq!(used(&sim), driver("cluster"));
    sim.update_service("web", |spec| spec.task.log_driver = driver("own"));
    sim.settle();
    assert_eq!(used(&sim), driver("own"));
}

/// Tasks that are held by restart condition NONE in SHUTDOWN are replaced for what running ones are not.
#[test]
fn tasks_that_do_not_run_are_replaced_for_how_their_image_is_pulled() {
    use swarm_api::v1::container_spec::PullOptions;
    let mut stopped = web(2, config(0));
    stopped.spec.task.restart = Some(policy(Never));
    let mut sim = cluster(stopped);
    for task in sim.live("web") {
        sim.report(&task.id, Failed, "");
    }
    sim.settle();
    assert_eq!(sim.live("web").len(), 0);
    sim.update_service("web", |spec| {
        if let Some(task_spec::Runtime::Container(container)) = &mut spec.task.runtime {
            container.pull_options = Some(PullOptions { registry_auth: "token".into() });
        }
    });
    sim.settle();
    assert_eq!((sim.live("web").len(), count(&sim, "old", Running)), (2, 2));
}

#[test]
fn a_task_without_a_node_does_not_stand_where_a_new_placement_wants_it() {
    let mut waiting = web(1, config(0));
    waiting.spec.task.placement =
        Some(Placement { constraints: vec!["node.id==n9".into()], ..Default::default() });
    let mut sim = Sim::new(|tx| drop(tx.create(waiting.clone()).unwrap()));
    sim.lead(everything());
    sim.settle();
    let before = sim.live("web")[0].id.clone();
    sim.update_service("web", |spec| {
        spec.task.placement.as_mut().unwrap().constraints = vec!["node.id!=n8".into()];
    });
    sim.settle();
    let live = sim.live("web");
    assert!(live.len() == 1 && live[0].id != before);
}

#[test]
fn tasks_that_ended_for_good_are_updated_one_by_one() {
    let mut ended = web(2, UpdateConfig { delay: wire(secs(10)).unwrap(), ..config(1) });
    ended.spec.task.restart = Some(policy(Never));
    let mut sim = cluster(ended);
    for (task, state) in sim.live("web").iter().zip([Failed, Complete]) {
        sim.report(&task.id, state, "");
    }
    sim.advance(secs(60));
    assert_eq!(sim.live("web").len(), 0);
    set_image(&mut sim, "new");
    sim.settle();
    assert_eq!(count(&sim, "new", Running), 1);
    sim.advance(secs(10));
    assert_eq!(count(&sim, "new", Running), 2);
}
