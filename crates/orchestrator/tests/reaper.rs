//! The reaper, rule by rule (`orchestration.md` §13.1, scenarios 84 to 91).
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use swarm_api::TaskState::{
    Assigned, Complete, Failed, New, Orphaned, Pending, Preparing, Rejected, Remove, Running, Shutdown,
};
use swarm_api::extensions::DEPENDS_ON;
use swarm_api::v1::restart_policy::RestartCondition::Any;
use swarm_api::v1::update_config::FailureAction;
use swarm_api::v1::{
    GlobalService, JobStatus, ReplicatedJob, RestartPolicy, Task, UpdateConfig, Version, node_spec,
    service_spec,
};
use swarm_api::{TaskState, Text};
use swarm_orchestrator::Reaper;
use swarm_reconcile::sim::{Behaviour, healthy};

fn set_limit(sim: &mut Sim, limit: i64) {
    sim.write(|tx| {
        let mut cluster = tx.cluster().unwrap().clone();
        cluster.spec.orchestration.task_history_retention_limit = limit;
        tx.update(cluster).unwrap();
    });
}

fn fail(sim: &mut Sim, slot: u64) {
    let live = sim.live("web");
    let task = live.iter().find(|t| t.slot == slot && t.status.state() == Running).unwrap();
    sim.report(&task.id, Failed, "");
    sim.advance(secs(5));
}

/// The decision to stop it came to nothing, since somebody changed the service meanwhile.
#[test]
fn a_task_that_is_wanted_after_all_is_not_forgotten() {
    let mut sim = Sim::new(|tx| drop(tx.create(service("web", 1)).unwrap()));
    sim.lead(everything());
    set_limit(&mut sim, 0);
    sim.think();
    let before = sim.live("web");
    assert_eq!(states(&before), [(1, Pending, Running)]);
    sim.update_service("web", |spec| spec.task.force_update += 1);
    let decided = sim.decide();
    sim.update_service("web", |spec| spec.task.force_update += 1);
    decided.into_iter().for_each(|batch| sim.commit(batch));
    assert_eq!(sim.live("web").iter().map(|t| &t.id).collect::<Vec<_>>(), [&before[0].id]);
    sim.think();
    assert_eq!(sim.live("web").len(), 1);
}

#[test]
fn the_oldest_tasks_of_a_slot_go_beyond_the_limit() {
    let mut sim = cluster(service("web", 2));
    set_limit(&mut sim, 2);
    let mut failed = Vec::new();
    for slot in [1, 1, 2, 2] {
        failed.push(sim.live("web").iter().find(|t| t.slot == slot).unwrap().id.clone());
        fail(&mut sim, slot);
    }
    assert_eq!(slots(&sim.tasks("web")), [1, 1, 2, 2]);
    let left: Vec<_> = failed.iter().filter(|id| sim.tasks("web").iter().any(|t| t.id == **id)).collect();
    assert_eq!(left, [&failed[1], &failed[3]], "the first of each slot went");
    let kept: Vec<_> = sim.tasks("web").iter().map(|t| t.status.state()).collect();
    assert_eq!(kept, [Failed, Running, Failed, Running]);
}

#[test]
fn five_tasks_are_kept_by_default() {
    let mut sim = cluster(service("web", 1));
    for _ in 0..10 {
        fail(&mut sim, 1);
    }
    assert_eq!(sim.tasks("web").len(), 5);
}

#[test]
fn a_negative_limit_keeps_everything() {
    let mut sim = cluster(service("web", 1));
    set_limit(&mut sim, -1);
    for _ in 0..10 {
        fail(&mut sim, 1);
    }
    assert_eq!(sim.tasks("web").len(), 11);
}

#[test]
fn as_many_are_kept_as_the_restart_policy_counts() {
    for (max_attempts, kept) in [(7, 8), (1, 2)] {
        let restart =
            RestartPolicy { max_attempts, window: wire(millis(1)), delay: wire(secs(1)), ..policy(Any) };
        let mut sim = cluster(with_restart(service("web", 1), restart));
        for _ in 0..12 {
            fail(&mut sim, 1);
        }
        assert_eq!(sim.tasks("web").len(), kept);
    }
}

/// Where tasks fail and are moved in turns, what is kept tells how often they failed.
#[test]
fn attempts_are_not_forgotten_where_tasks_are_moved_between_failures() {
    let restart = RestartPolicy { max_attempts: 2, delay: wire(secs(1)), ..policy(Any) };
    let mut sim = cluster(with_restart(service("web", 1), restart));
    for _ in 0..2 {
        fail(&mut sim, 1);
        let node = sim.live("web")[0].node_id.to_string();
        for availability in [node_spec::Availability::Drain, node_spec::Availability::Active] {
            sim.edit_node(&node, |n| n.spec.availability = availability as i32);
            sim.advance(secs(5));
        }
    }
    assert_eq!(sim.live("web").len(), 1);
    fail(&mut sim, 1);
    sim.advance(secs(60));
    assert_eq!(sim.live("web").len(), 0, "both attempts are used up");
}

/// Nothing happens in the place itself: its node is drained.
#[test]
fn a_spec_without_attempts_keeps_no_history_for_them() {
    let restart = RestartPolicy { max_attempts: 3, delay: wire(secs(1)), ..policy(Any) };
    let mut web = with_restart(service("web", 0), restart);
    web.spec.mode = Some(service_spec::Mode::Global(GlobalService {}));
    let mut sim = cluster(web);
    set_limit(&mut sim, 1);
    let on_n1 = |sim: &Sim| sim.tasks("web").iter().filter(|t| t.node_id == "n1").count();
    for _ in 0..2 {
        let task = sim.live("web").iter().find(|t| t.node_id == "n1").unwrap().id.clone();
        sim.report(&task, Failed, "");
        sim.advance(secs(5));
    }
    sim.edit_node("n1", |n| n.spec.availability = node_spec::Availability::Drain as i32);
    sim.advance(secs(60));
    assert_eq!(on_n1(&sim), 3);
    sim.update_service("web", |spec| spec.task.restart = Some(policy(Any)));
    sim.advance(secs(60));
    assert_eq!(on_n1(&sim), 1);
}

/// Of an earlier run of a job nothing is wanted, even if that is what it was to come to.
#[test]
fn what_a_job_completed_in_earlier_runs_is_history() {
    let mut job = service("web", 0);
    let mode = ReplicatedJob { max_concurrent: 2, total_completions: 2 };
    job.spec.mode = Some(service_spec::Mode::ReplicatedJob(mode));
    job.job_status = Some(JobStatus::default());
    let mut sim = cluster(job);
    for _ in 0..3 {
        let tasks: Vec<_> = sim.live("web").iter().map(|t| (t.id.clone(), Complete, "")).collect();
        sim.report_all(&tasks);
        sim.write(|tx| {
            let mut job = tx.services().get("web").unwrap().clone();
            job.job_status.get_or_insert_default().job_iteration.index += 1;
            job.spec.mode =
                Some(service_spec::Mode::ReplicatedJob(ReplicatedJob { max_concurrent: 1, ..mode }));
            tx.update(job).unwrap();
        });
        sim.think();
    }
    set_limit(&mut sim, 0);
    sim.settle();
    assert_eq!(slots(&sim.tasks("web")), [0], "the other slot has its turn later");
}

#[test]
fn a_lowered_limit_holds_at_once() {
    let mut sim = cluster(service("web", 1));
    for _ in 0..4 {
        fail(&mut sim, 1);
    }
    assert_eq!(sim.tasks("web").len(), 5);
    set_limit(&mut sim, 1);
    sim.settle();
    assert_eq!(sim.tasks("web").len(), 1);
}

/// Which of these tasks of one slot a reaper leaves, that comes to lead after they were written.
fn left(limit: i64, tasks: &[(TaskState, TaskState)]) -> Vec<(TaskState, TaskState)> {
    let web = service("web", 1);
    let mut sim = Sim::new(|tx| {
        tx.create(web.clone()).unwrap();
        for (n, (state, desired)) in tasks.iter().enumerate() {
            tx.create(task(&web, &format!("t{n}"), 1, "n1", *state, *desired)).unwrap();
        }
    });
    set_limit(&mut sim, limit);
    sim.lead(vec![Box::<Reaper>::default()]);
    sim.think();
    sim.tasks("web").iter().map(|t| (t.status.state(), t.desired_state())).collect()
}

#[test]
fn a_task_to_be_removed_goes_when_nothing_of_it_runs() {
    for state in [New, Pending, Complete, Shutdown, Failed, Rejected, Orphaned] {
        assert_eq!(left(5, &[(state, Remove)]), [], "{state:?}");
    }
    for state in [Assigned, Preparing, Running] {
        assert_eq!(left(5, &[(state, Remove)]), [(state, Remove)]);
    }
}

/// A second deletion would be impossible, and for such a mistake the leader decides nothing for a while.
#[test]
fn a_task_to_be_removed_is_forgotten_once() {
    for limit in [0, 1] {
        let mut sim = cluster(service("web", 1));
        set_limit(&mut sim, limit);
        sim.agents_stop_tasks = false;
        sim.scale("web", 0);
        sim.settle();
        let old = sim.tasks("web")[0].clone();
        assert_eq!((old.status.state(), old.desired_state()), (Running, Remove));
        if limit == 1 {
            // Its slot is used again while it stops.
            sim.scale("web", 1);
            sim.settle();
            assert_eq!(slots(&sim.tasks("web")), [1, 1]);
        }
        sim.report(&old.id, Shutdown, "");
        sim.think();
        assert!(sim.tasks("web").iter().all(|t| t.id != old.id), "limit {limit}");
        sim.scale("web", 3);
        sim.think();
        assert_eq!((sim.live("web").len(), sim.refused), (3, 0), "limit {limit}: it decides at once");
    }
}

#[test]
fn history_and_running_tasks_survive_a_change_of_leaders() {
    let tasks = [(Failed, Shutdown), (Shutdown, Shutdown), (Running, Running)];
    assert_eq!(left(5, &tasks), tasks);
}

#[test]
fn a_limit_of_zero_spares_what_may_run_or_is_to_run() {
    let kept = [
        (New, Running),
        (Pending, Running),
        (Assigned, Running),
        (Running, Running),
        // Otherwise than the original: who replaces them must see them first (decision 0021).
        (Failed, Running),
        (Complete, Running),
    ];
    let stopping = [(Assigned, Shutdown), (Running, Shutdown)];
    let gone = [(New, Shutdown), (Pending, Shutdown), (Failed, Shutdown), (Complete, Shutdown)];
    let all: Vec<_> = kept.iter().chain(&stopping).chain(&gone).copied().collect();
    let expected: Vec<_> = kept.iter().chain(&stopping).copied().collect();
    assert_eq!(left(0, &all), expected);
}

/// With nothing left of it, the next change of the service would have it done again.
#[test]
fn a_task_that_ended_for_good_is_kept_whatever_the_limit() {
    use swarm_api::v1::restart_policy::RestartCondition::None as Never;
    let mut sim = cluster(with_restart(service("web", 2), policy(Never)));
    set_limit(&mut sim, 0);
    let first = sim.live("web")[0].clone();
    sim.report(&first.id, Complete, "");
    sim.scale("web", 3);
    sim.settle();
    sim.lead(everything());
    sim.settle();
    assert_eq!(
        states(&sim.tasks("web")),
        [(1, Complete, Shutdown), (2, Running, Running), (3, Running, Running)]
    );
}

#[test]
fn an_orphan_without_service_is_deleted_and_one_with_a_service_is_history() {
    let web = service("web", 1);
    let mut sim = Sim::new(|tx| {
        tx.create(web.clone()).unwrap();
        tx.create(task(&web, "history", 1, "n1", Orphaned, Shutdown)).unwrap();
        tx.create(Task { service_id: Text::default(), ..task(&web, "old", 0, "n1", Orphaned, Running) })
            .unwrap();
    });
    sim.lead(vec![Box::<Reaper>::default()]);
    sim.think();
    sim.write(|tx| {
        let attachment = task(&web, "attachment", 0, "n1", Running, Running);
        tx.create(Task { service_id: Text::default(), ..attachment }).unwrap();
    });
    sim.think();
    sim.report("attachment", Orphaned, "");
    sim.think();
    assert_eq!(sim.view().tasks().iter().map(|t| &t.id[..]).collect::<Vec<_>>(), ["history"]);
}

#[test]
fn history_is_ordered_by_the_managers_time_and_tasks_without_one_are_the_oldest() {
    use std::time::{Duration, UNIX_EPOCH};
    let web = service("web", 1);
    // Name, the agent's time, the manager's.
    let tasks =
        [("a", Some(100), None), ("b", Some(900), Some(200)), ("c", None, None), ("d", Some(1), Some(300))];
    let mut sim = Sim::new(|tx| {
        tx.create(web.clone()).unwrap();
        for (id, agents, managers) in tasks {
            let at = |secs: Option<u64>| secs.map(|s| (UNIX_EPOCH + Duration::from_secs(s)).into());
            let mut task = task(&web, id, 1, "n1", Failed, Shutdown);
            (task.status.timestamp, task.status.applied_at) = (at(agents), at(managers));
            tx.create(task).unwrap();
        }
    });
    for (limit, left) in [(3, &["a", "b", "d"][..]), (2, &["b", "d"]), (1, &["d"])] {
        set_limit(&mut sim, limit);
        sim.lead(vec![Box::<Reaper>::default()]);
        sim.think();
        let kept = sim.tasks("web");
        assert_eq!(kept.iter().map(|t| &t.id[..]).collect::<Vec<_>>(), left);
    }
}

#[test]
fn tasks_of_a_service_that_is_unknown_are_no_history() {
    let web = service("web", 1);
    let mut sim = Sim::new(|tx| {
        for n in 0..9 {
            tx.create(task(&web, &format!("t{n}"), 1, "n1", Failed, Shutdown)).unwrap();
        }
    });
    sim.lead(vec![Box::<Reaper>::default()]);
    sim.think();
    assert_eq!(sim.tasks("web").len(), 9, "another reconciler removes them");
}

/// One that failed while it was held waits for the end of its delay, and another may come to run in the meantime.
#[test]
fn a_task_is_history_when_it_is_not_wanted_any_more_if_it_had_ended_before() {
    for state in [Pending, Failed] {
        let web = service("web", 1);
        let mut sim = Sim::new(|tx| {
            tx.create(node("n1")).unwrap();
            tx.create(web.clone()).unwrap();
            tx.create(task(&web, "held", 1, "", state, TaskState::Ready)).unwrap();
            tx.create(task(&web, "new", 1, "n1", Running, Running)).unwrap();
        });
        set_limit(&mut sim, 1);
        sim.lead(vec![Box::<Reaper>::default()]);
        sim.settle();
        assert_eq!(sim.tasks("web").len(), 2, "{state:?}");
        sim.write(|tx| {
            let mut held = tx.tasks().get("held").unwrap().clone();
            held.desired_state = Shutdown as i32;
            tx.update(held).unwrap();
        });
        sim.settle();
        let left: Vec<_> = sim.tasks("web").iter().map(|t| t.id.clone()).collect();
        assert_eq!(left, ["new"], "{state:?}");
    }
}

#[test]
fn two_tasks_of_a_slot_that_run_are_looked_at_again_when_one_ends() {
    let web = service("web", 1);
    let mut sim = Sim::new(|tx| {
        tx.create(web.clone()).unwrap();
        for id in ["a", "b"] {
            tx.create(task(&web, id, 1, "n1", Running, Shutdown)).unwrap();
        }
    });
    set_limit(&mut sim, 1);
    sim.lead(vec![Box::<Reaper>::default()]);
    sim.think();
    assert_eq!(sim.tasks("web").len(), 2);
    sim.report("a", Shutdown, "");
    sim.think();
    assert_eq!(sim.tasks("web").iter().map(|t| &t.id[..]).collect::<Vec<_>>(), ["b"]);
}

/// The original waits a quarter of a second for more, and at most for a thousand.
#[test]
fn what_ends_at_once_is_forgotten_at_once_and_in_one_transaction() {
    for count in [1, 1_001] {
        let web = service("web", count);
        let mut sim = Sim::new(|tx| {
            tx.create(web.clone()).unwrap();
            for slot in 1..=count {
                tx.create(task(&web, &format!("t{slot:04}"), slot, "n1", Running, Remove)).unwrap();
            }
        });
        sim.lead(vec![Box::<Reaper>::default()]);
        sim.think();
        let before = sim.decisions;
        sim.agents_stop_tasks = false;
        sim.advance(secs(60));
        assert_eq!((sim.decisions, sim.tasks("web").len()), (before, count as usize), "nothing has happened");
        let ended: Vec<_> = sim.tasks("web").iter().map(|t| (t.id.clone(), Shutdown, "")).collect();
        sim.report_all(&ended);
        sim.think();
        assert_eq!((sim.decisions, sim.tasks("web").len()), (before + 1, 0));
    }
}

/// With a pace like this an update goes on for weeks, and one slot fails all the time.
fn crash_loop(configure: impl Fn(&mut swarm_api::v1::Service)) -> Sim {
    let mut web = with_restart(service("web", 2), policy(Any));
    let action = FailureAction::Continue as i32;
    web.spec.update = Some(UpdateConfig {
        failure_action: action,
        parallelism: 1,
        delay: swarm_api::duration::from_std(secs(1_000_000)),
        ..Default::default()
    });
    configure(&mut web);
    let mut sim = cluster(web);
    sim.behaviour = Box::new(|task| {
        let (state, err) = swarm_reconcile::sim::healthy(task)?;
        let fails = task.spec.force_update == 1 && state == Running;
        Some((if fails { Failed } else { state }, err))
    });
    sim.update_service("web", |spec| spec.task.force_update = 1);
    sim.advance(secs(600));
    sim
}

#[test]
fn an_update_that_takes_long_makes_no_history_without_end() {
    for (limit, most) in [(5, 2 + 5), (0, 2 + 3)] {
        let mut sim = crash_loop(|_| {});
        set_limit(&mut sim, limit);
        sim.advance(secs(60));
        let state = sim.view().services().get("web").unwrap().update_status.clone().unwrap().state();
        assert_eq!(state, swarm_api::v1::update_status::UpdateState::Updating);
        let tasks = sim.tasks("web");
        assert!(tasks.len() <= most, "limit {limit}: {} tasks", tasks.len());
        assert!(tasks.iter().any(|t| t.status.state() == Failed), "one tells the next leader");
    }
}

/// Jobs have no updates; a rollback by hand may leave such a status all the same.
#[test]
fn what_a_job_says_of_updates_keeps_no_history() {
    use swarm_api::v1::{ReplicatedJob, UpdateStatus, service_spec, update_status::UpdateState};
    let mut job = service("web", 0);
    job.spec.mode =
        Some(service_spec::Mode::ReplicatedJob(ReplicatedJob { max_concurrent: 1, total_completions: 1 }));
    job.job_status = Some(swarm_api::v1::JobStatus::default());
    let state = UpdateState::RollbackStarted as i32;
    job.update_status = Some(UpdateStatus { state, ..Default::default() });
    let mut sim = cluster(job);
    for _ in 0..20 {
        let live = sim.tasks("web").iter().find(|t| !t.status.state().is_terminal()).unwrap().id.clone();
        sim.report(&live, Failed, "");
        sim.advance(secs(5));
    }
    assert!(sim.tasks("web").len() <= 5, "{}", sim.tasks("web").len());
}

/// What a reaper leaves, with a limit of one, of a service that was updated. Each slot had a task of the old spec in one of
/// these states; where it does not run, one of the new spec does.
fn updated(depends_on: &str, can_go_back: bool, old: &[TaskState]) -> Sim {
    let before = service("api", old.len() as u64);
    let mut api = before.clone();
    api.spec_version = Some(Version { index: 2 });
    api.spec.task.force_update = 1;
    api.previous_spec = can_go_back.then(|| before.spec.clone());
    if !depends_on.is_empty() {
        api.spec.annotations.labels.insert(DEPENDS_ON.into(), depends_on.into());
    }
    let mut sim = Sim::new(|tx| {
        tx.create(api.clone()).unwrap();
        for (slot, state) in (1..).zip(old) {
            let desired = if *state == Running { Running } else { Shutdown };
            tx.create(task(&before, &format!("old{slot}"), slot, "n1", *state, desired)).unwrap();
            if desired == Shutdown {
                tx.create(task(&api, &format!("new{slot}"), slot, "n1", Running, Running)).unwrap();
            }
        }
    });
    set_limit(&mut sim, 1);
    sim.lead(vec![Box::<Reaper>::default()]);
    sim.think();
    sim
}

/// The slots that have a task of the old spec.
fn old_ones(sim: &Sim) -> Vec<u64> {
    let mut tasks = sim.tasks("api");
    tasks.retain(|t| t.spec.force_update == 0);
    slots(&tasks)
}

/// Decision 0094: without it the service would wait for others once more if it went back.
#[test]
fn one_task_that_tells_of_a_start_is_kept_whatever_the_limit() {
    let cases: [(&str, bool, &[TaskState], &[u64]); 7] = [
        ("db:healthy", true, &[Shutdown], &[1]),
        ("db:healthy", true, &[Failed], &[1]),
        ("db:healthy", true, &[Shutdown, Shutdown], &[2]),
        // Another one tells it, which runs.
        ("db:healthy", true, &[Shutdown, Running], &[2]),
        // Nothing goes back there.
        ("db:healthy", false, &[Shutdown], &[]),
        // It never started.
        ("db:healthy", true, &[Pending], &[]),
        ("", true, &[Shutdown], &[]),
    ];
    for (depends_on, can_go_back, old, left) in cases {
        let sim = updated(depends_on, can_go_back, old);
        assert_eq!(old_ones(&sim), left, "{depends_on:?}, {can_go_back}, {old:?}");
    }
}

#[test]
fn a_task_that_tells_of_a_start_goes_when_nobody_asks_for_that_any_more() {
    let mut waits_no_more = updated("db:healthy", true, &[Shutdown]);
    waits_no_more.write(|tx| {
        let mut api = tx.services().get("api").unwrap().clone();
        api.spec.annotations.labels.clear();
        tx.update(api).unwrap();
    });
    let mut goes_back_elsewhere = updated("db:healthy", true, &[Shutdown]);
    goes_back_elsewhere.update_service("api", |spec| spec.task.force_update = 2);
    for (what, mut sim) in [("label", waits_no_more), ("spec", goes_back_elsewhere)] {
        assert_eq!(old_ones(&sim), [1], "{what}");
        sim.think();
        assert!(old_ones(&sim).is_empty(), "{what}");
    }
}

/// All tasks are healthy but these, which fail as soon as they would run.
fn failing(fails: fn(&Task) -> bool) -> Behaviour {
    Box::new(move |task| {
        let (state, err) = healthy(task)?;
        Some((if state == Running && fails(task) { Failed } else { state }, err))
    })
}

/// Decision 0094: no rollback to a spec that ran waits, however often what came after it failed.
#[test]
fn a_service_that_goes_back_after_a_crash_loop_waits_for_nobody() {
    let action = FailureAction::Continue as i32;
    let update = UpdateConfig { failure_action: action, parallelism: 1, ..Default::default() };
    let mut sim = Sim::new(|tx| {
        for id in ["n1", "n2"] {
            tx.create(node(id)).unwrap();
        }
        tx.create(service("db", 1)).unwrap();
        let mut api = service("api", 1);
        api.spec.annotations.labels.insert(DEPENDS_ON.into(), "db:healthy".into());
        api.spec.update = Some(update);
        tx.create(api).unwrap();
    });
    sim.lead(leader());
    sim.advance(secs(1));
    assert_eq!(sim.running("api").len(), 1);
    sim.behaviour = failing(|task| task.spec.force_update == 1);
    sim.update_service("api", |spec| spec.task.force_update = 1);
    sim.advance(secs(600));
    assert_eq!((old_ones(&sim), sim.tasks("api").len()), (vec![1], 5), "others go in its stead");
    sim.behaviour = failing(|task| task.spec.force_update == 1 || task.service_id == "db");
    let db = sim.live("db")[0].id.clone();
    sim.report(&db, Failed, "");
    sim.advance(secs(60));
    assert_eq!(sim.running("db").len(), 0);
    let now = sim.now().wall;
    sim.write(|tx| {
        let mut api = tx.services().get("api").unwrap().clone();
        rolled_back(&mut api, now);
        tx.update(api).unwrap();
    });
    sim.advance(secs(60));
    let live = sim.live("api");
    assert_eq!((live[0].spec.force_update, live[0].status.state()), (0, Running), "{}", live[0].status.err);
}
