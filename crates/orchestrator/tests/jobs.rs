//! Jobs, rule by rule (`orchestration.md` §11, scenarios 69 to 83, with what §20.1 to §20.7 ask for).
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use common::*;
use swarm_api::Shared;
use swarm_api::TaskState::{
    self, Complete, Failed, New, Pending, Ready, Rejected, Remove, Running, Shutdown,
};
use swarm_api::v1::restart_policy::RestartCondition::{Any, None as Never, OnFailure};
use swarm_api::v1::{
    Driver, GlobalJob, JobStatus, Node, Placement, ReplicatedJob, RestartPolicy, Service, Task, Version,
    node_spec, node_status, service_spec,
};

fn job(at_once: u64, total: u64) -> Service {
    let mut job = service("job", 0);
    let mode = ReplicatedJob { max_concurrent: at_once, total_completions: total };
    job.spec.mode = Some(service_spec::Mode::ReplicatedJob(mode));
    job.job_status = Some(JobStatus::default());
    job
}

fn global_job() -> Service {
    let mut job = service("job", 0);
    job.spec.mode = Some(service_spec::Mode::GlobalJob(GlobalJob {}));
    job.job_status = Some(JobStatus::default());
    job
}

/// A task of a job as an earlier leader may have left it.
fn job_task(job: &Service, slot: u64, node: &str, state: TaskState, desired: TaskState) -> Task {
    let id = format!("t{slot}{node}");
    Task { job_iteration: Some(Version { index: 0 }), ..task(job, &id, slot, node, state, desired) }
}

/// What the orchestrators alone make of these tasks.
fn found(job: &Service, tasks: impl IntoIterator<Item = Task>) -> Sim {
    let tasks: Vec<Task> = tasks.into_iter().collect();
    let mut sim = Sim::new(|tx| {
        for id in ["n1", "n2", "n3"] {
            tx.create(node(id)).unwrap();
        }
        tx.create(job.clone()).unwrap();
        tasks.iter().for_each(|t| drop(tx.create(t.clone()).unwrap()));
    });
    sim.lead(alone());
    sim.think();
    sim
}

/// Tasks that are to complete, and have not ended.
fn working(sim: &Sim) -> Vec<Shared<Task>> {
    let mut tasks = sim.tasks("job");
    tasks.retain(|t| t.desired_state() <= Complete && !t.status.state().is_terminal());
    tasks
}

fn count(sim: &Sim, state: TaskState) -> usize {
    sim.tasks("job").iter().filter(|t| t.status.state() == state).count()
}

fn created(sim: &Sim) -> Vec<Shared<Task>> {
    let mut tasks = sim.tasks("job");
    tasks.retain(|t| t.status.state() == New);
    tasks
}

fn unique_slots(tasks: &[Shared<Task>]) -> BTreeSet<u64> {
    let slots: BTreeSet<u64> = tasks.iter().map(|t| t.slot).collect();
    assert_eq!(slots.len(), tasks.len(), "a slot has two tasks");
    slots
}

fn end(sim: &mut Sim, task: &Task, state: TaskState) {
    sim.report(&task.id, state, "");
}

fn availability(sim: &mut Sim, node: &str, availability: node_spec::Availability) {
    sim.edit_node(node, |n| n.spec.availability = availability as i32);
    sim.settle();
}

fn nodes_of(tasks: &[Shared<Task>]) -> Vec<&str> {
    let mut nodes: Vec<&str> = tasks.iter().map(|t| &t.node_id[..]).collect();
    nodes.sort_unstable();
    nodes
}

#[test]
fn a_new_job_gets_as_many_tasks_as_it_may_have_at_once() {
    let mut sim = Sim::new(|tx| {
        tx.create(job(10, 30)).unwrap();
        let mut cluster = tx.cluster().unwrap().clone();
        cluster.spec.task_defaults.log_driver = Some(Driver { name: "cluster".into(), ..Default::default() });
        tx.update(cluster).unwrap();
    });
    sim.lead(alone());
    sim.think();
    let tasks = sim.tasks("job");
    assert_eq!(unique_slots(&tasks), (0..10).collect());
    for task in &tasks {
        assert_eq!((task.status.state(), task.desired_state()), (New, Complete));
        assert_eq!(task.job_iteration, Some(Version { index: 0 }));
        assert_eq!(task.log_driver.as_ref().unwrap().name, "cluster");
    }
}

#[test]
fn tasks_that_are_there_count_and_keep_their_slots() {
    let job = job(10, 30);
    let sim = found(&job, (0..6).map(|n| job_task(&job, 2 * n, "n1", Running, Complete)));
    assert_eq!(created(&sim).len(), 4);
    unique_slots(&sim.tasks("job"));
}

#[test]
fn slots_of_tasks_that_were_shut_down_are_used_again() {
    let job = job(10, 10);
    let sim = found(&job, (0..10).map(|n| job_task(&job, n, "n1", Shutdown, Shutdown)));
    assert_eq!(unique_slots(&created(&sim)), (0..10).collect());
}

#[test]
fn failed_tasks_are_restarted_in_their_slots_and_completed_ones_make_room() {
    let job = job(10, 30);
    let complete = (0..10).map(|n| job_task(&job, n, "n1", Complete, Complete));
    let failed = (10..15).map(|n| job_task(&job, n, "n1", Failed, Complete));
    let sim = found(&job, complete.chain(failed));
    let (held, new): (Vec<_>, Vec<_>) = created(&sim).into_iter().partition(|t| t.desired_state() == Ready);
    assert_eq!((unique_slots(&held), unique_slots(&new)), ((10..15).collect(), (15..20).collect()));
    let shut = sim.tasks("job").iter().filter(|t| t.desired_state() == Shutdown).count();
    assert_eq!(shut, 5);
}

#[test]
fn no_more_tasks_are_made_than_completions_are_missing() {
    let job = job(15, 30);
    let sim = found(&job, (0..20).map(|n| job_task(&job, n, "n1", Complete, Complete)));
    assert_eq!(unique_slots(&created(&sim)), (20..30).collect());
}

/// `orchestration.md` §20.7: in the original the job stands still, with an error about an underflow.
#[test]
fn a_job_with_more_tasks_than_completions_gets_none_and_still_restarts() {
    let job = job(2, 3);
    let tasks = (0..6).map(|n| job_task(&job, n, "n1", if n == 5 { Failed } else { Running }, Complete));
    let sim = found(&job, tasks);
    let created = created(&sim);
    assert_eq!((created.len(), created[0].slot), (1, 5));
}

#[test]
fn a_new_iteration_removes_what_runs_and_begins_anew() {
    let mut sim = cluster(job(3, 9));
    let first = sim.tasks("job");
    end(&mut sim, &first[0], Complete);
    sim.settle();
    sim.agents_stop_tasks = false;
    sim.update_service("job", |spec| spec.task.force_update += 1);
    sim.think();
    let (new, old): (Vec<_>, Vec<_>) =
        sim.tasks("job").into_iter().partition(|t| t.job_iteration == Some(Version { index: 1 }));
    assert_eq!(unique_slots(&new), (0..3).collect());
    let old: Vec<_> = old.iter().map(|t| (t.slot, t.status.state(), t.desired_state())).collect();
    let expected =
        [(0, Complete, Complete), (1, Running, Remove), (2, Running, Remove), (3, Running, Remove)];
    assert_eq!(old, expected);
    // A slot is not filled twice at the same time: the new task waits until the old one has stopped.
    sim.settle();
    let runs = |sim: &Sim| working(sim).iter().filter(|t| t.status.state() == Running).count();
    assert_eq!(runs(&sim), 1);
    sim.agents_stop_tasks = true;
    sim.settle();
    assert_eq!((runs(&sim), sim.tasks("job").len()), (3, 4));
}

#[test]
fn a_job_that_is_gone_gets_no_tasks() {
    let mut sim = cluster(job(3, 9));
    sim.write(|tx| drop(tx.remove::<Service>("job").unwrap()));
    sim.settle();
    assert_eq!(sim.tasks("job"), []);
}

/// `orchestration.md` §20.4: in the original any later event of the job brings such a task back.
#[test]
fn a_task_that_fails_for_good_ends_its_part_of_the_job() {
    let mut sim = cluster(with_restart(job(2, 4), policy(Never)));
    let first = working(&sim)[0].clone();
    end(&mut sim, &first, Failed);
    sim.advance(secs(60));
    assert_eq!(unique_slots(&working(&sim)), [1, 2].into());
    for _ in 0..3 {
        let task = working(&sim)[0].clone();
        end(&mut sim, &task, Complete);
        sim.advance(secs(60));
    }
    assert_eq!((working(&sim).len(), count(&sim, Complete), count(&sim, Failed)), (0, 3, 1));
    // Nor does another leader, or a node that comes, bring it back.
    sim.lead(everything());
    sim.add_node("n4");
    sim.advance(secs(60));
    assert_eq!(sim.tasks("job").len(), 4);
}

#[test]
fn attempts_are_limited_per_slot() {
    let restart = RestartPolicy { max_attempts: 3, ..policy(Any) };
    let mut sim = cluster(with_restart(job(1, 1), restart));
    for _ in 0..6 {
        if let Some(task) = working(&sim).first().cloned() {
            end(&mut sim, &task, Failed);
        }
        sim.advance(secs(60));
    }
    assert_eq!((sim.tasks("job").len(), count(&sim, Failed)), (4, 4));
}

#[test]
fn a_completed_task_is_not_restarted_whatever_the_condition() {
    for condition in [Any, OnFailure, Never] {
        let mut sim = cluster(with_restart(job(2, 2), policy(condition)));
        for task in working(&sim) {
            end(&mut sim, &task, Complete);
        }
        sim.advance(secs(60));
        assert_eq!(states(&sim.tasks("job")), [(0, Complete, Complete), (1, Complete, Complete)]);
    }
}

#[test]
fn a_failed_task_is_replaced_after_the_delay() {
    let mut sim = cluster(job(1, 1));
    let task = working(&sim)[0].clone();
    end(&mut sim, &task, Failed);
    sim.advance(millis(4_999));
    assert_eq!(states(&sim.tasks("job")), [(0, Failed, Shutdown), (0, Ready, Ready)]);
    sim.advance(millis(1));
    assert_eq!(states(&sim.tasks("job")), [(0, Failed, Shutdown), (0, Running, Complete)]);
}

#[test]
fn a_held_task_that_fails_is_replaced_when_its_delay_is_over() {
    let mut sim = cluster(job(1, 1));
    sim.behaviour = Box::new(|t| (!t.status.reached(Rejected)).then_some((Rejected, "no such image")));
    let task = working(&sim)[0].clone();
    end(&mut sim, &task, Failed);
    sim.settle();
    assert_eq!(sim.tasks("job").len(), 2, "no tight loop");
    sim.behaviour = Box::new(swarm_reconcile::sim::healthy);
    sim.advance(secs(10));
    assert_eq!(count(&sim, Running), 1);
}

#[test]
fn a_job_goes_on_until_everything_has_completed() {
    let mut sim = cluster(job(3, 10));
    while let Some(task) = working(&sim).first().cloned() {
        assert!(working(&sim).len() <= 3);
        end(&mut sim, &task, Complete);
        sim.settle();
    }
    assert_eq!((count(&sim, Complete), sim.tasks("job").len()), (10, 10));
    unique_slots(&sim.tasks("job"));
    let decisions = sim.decisions;
    sim.advance(secs(3600));
    assert_eq!(sim.decisions, decisions);
}

#[test]
fn a_job_outlives_its_leader() {
    let mut sim = cluster(job(3, 10));
    for round in 0..30 {
        let Some(task) = working(&sim).first().cloned() else { break };
        end(&mut sim, &task, if round % 3 == 0 { Failed } else { Complete });
        if round % 2 == 0 {
            sim.lead(everything());
        }
        sim.advance(secs(5));
        assert!(working(&sim).len() <= 3);
    }
    assert_eq!((count(&sim, Complete), working(&sim).len()), (10, 0));
}

#[test]
fn a_held_task_outlives_its_leader() {
    let mut sim = cluster(job(1, 1));
    let task = working(&sim)[0].clone();
    end(&mut sim, &task, Failed);
    sim.settle();
    sim.lead(everything());
    sim.advance(secs(5));
    assert_eq!(states(&sim.tasks("job")), [(0, Failed, Shutdown), (0, Running, Complete)]);
}

/// `orchestration.md` §20.2: in the original they keep their slots until the tasks themselves change.
#[test]
fn tasks_on_a_drained_or_dead_node_are_done_elsewhere() {
    let mut sim = cluster(job(6, 6));
    let first = sim.tasks("job")[0].clone();
    end(&mut sim, &first, Complete);
    availability(&mut sim, "n1", node_spec::Availability::Drain);
    let running = sim.running("job");
    assert_eq!((running.get("n1"), running.values().sum::<usize>()), (None, 5), "at once");
    sim.silent.push("n2".into());
    sim.edit_node("n2", |n| n.status.state = node_status::State::Down as i32);
    sim.advance(secs(5));
    let on_n3 = working(&sim).iter().filter(|t| t.node_id == "n3").count();
    assert_eq!((on_n3, count(&sim, Complete)), (5, 1), "what has completed stays so");
}

#[test]
fn a_task_that_completed_unseen_ends_the_one_that_took_its_place() {
    let mut sim = cluster(job(1, 1));
    let lost = working(&sim)[0].clone();
    let node = lost.node_id.clone();
    sim.silent.push(node.to_string());
    sim.edit_node(&node, |n| n.status.state = node_status::State::Down as i32);
    sim.advance(secs(5));
    assert_eq!(working(&sim).len(), 1);
    end(&mut sim, &lost, Complete);
    sim.settle();
    assert_eq!(working(&sim).len(), 0);
    assert_eq!((count(&sim, Complete), count(&sim, Shutdown)), (1, 1));
}

#[test]
fn a_place_that_has_completed_is_not_restarted() {
    let mut sim = cluster(job(1, 1));
    let lost = working(&sim)[0].clone();
    sim.silent.push(lost.node_id.to_string());
    sim.edit_node(&lost.node_id, |n| n.status.state = node_status::State::Down as i32);
    sim.advance(secs(5));
    let second = working(&sim)[0].clone();
    sim.report_all(&[(&lost.id, Complete, ""), (&second.id, Failed, "")]);
    sim.advance(secs(60));
    assert_eq!((sim.tasks("job").len(), count(&sim, Complete), count(&sim, Failed)), (2, 1, 1));
}

/// One that was lost is heard of when the window of the attempts is long over.
#[test]
fn a_late_failure_brings_no_place_back_whose_attempts_are_used_up() {
    let restart =
        RestartPolicy { max_attempts: 1, window: wire(secs(60)), delay: wire(secs(1)), ..policy(Any) };
    let mut sim = cluster(with_restart(job(1, 1), restart));
    sim.advance(secs(1));
    let lost = working(&sim)[0].clone();
    sim.silent.push(lost.node_id.to_string());
    sim.edit_node(&lost.node_id, |n| n.status.state = node_status::State::Down as i32);
    sim.advance(secs(2));
    for _ in 0..2 {
        let task = working(&sim)[0].clone();
        end(&mut sim, &task, Failed);
        sim.advance(secs(2));
    }
    assert_eq!(working(&sim), [], "the place is over");
    sim.advance(secs(600));
    sim.edit_node(&lost.node_id, |n| n.status.state = node_status::State::Ready as i32);
    end(&mut sim, &lost, Failed);
    sim.advance(secs(60));
    assert_eq!(working(&sim), []);
    sim.lead(everything());
    sim.advance(secs(60));
    assert_eq!(working(&sim), []);
}

#[test]
fn a_task_deleted_by_hand_is_made_again() {
    let mut sim = cluster(job(2, 2));
    let id = working(&sim)[0].id.clone();
    sim.write(|tx| drop(tx.remove::<Task>(&id).unwrap()));
    sim.settle();
    assert_eq!(unique_slots(&working(&sim)), [0, 1].into());
}

#[test]
fn what_does_not_end_a_task_is_no_reason_to_decide_anything() {
    let mut sim = found(&job(2, 2), []);
    let (decisions, tasks) = (sim.decisions, sim.tasks("job"));
    sim.report(&tasks[0].id, Pending, "");
    sim.report(&tasks[0].id, Running, "");
    sim.think();
    assert_eq!(sim.decisions, decisions);
    sim.report(&tasks[0].id, Failed, "");
    sim.think();
    assert_eq!(sim.decisions, decisions + 1);
}

#[test]
fn a_global_job_has_a_task_on_every_node_that_takes_tasks() {
    let mut sim = Sim::new(|tx| {
        for id in ["drained", "down", "paused", "n1", "n2"] {
            let mut node = node(id);
            match id {
                "drained" => node.spec.availability = node_spec::Availability::Drain as i32,
                "paused" => node.spec.availability = node_spec::Availability::Pause as i32,
                "down" => node.status.state = node_status::State::Down as i32,
                _ => (),
            }
            tx.create(node).unwrap();
        }
        let job = global_job();
        tx.create(job.clone()).unwrap();
        tx.create(job_task(&job, 0, "drained", Running, Complete)).unwrap();
    });
    sim.lead(alone());
    sim.think();
    assert_eq!(nodes_of(&working(&sim)), ["n1", "n2"]);
    assert!(working(&sim).iter().all(|t| t.slot == 0 && t.desired_state() == Complete));
    let drained = sim.tasks("job").into_iter().find(|t| t.node_id == "drained").unwrap();
    assert_eq!(drained.desired_state(), Shutdown);
}

#[test]
fn a_global_job_follows_its_constraints() {
    let mut job = global_job();
    job.spec.task.placement =
        Some(Placement { constraints: vec!["node.id==n2".into()], ..Default::default() });
    let sim = cluster(job);
    assert_eq!(nodes_of(&working(&sim)), ["n2"]);
}

#[test]
fn failed_tasks_of_a_global_job_are_restarted_on_their_nodes() {
    let job = global_job();
    let failed = ["n1", "n2"].map(|n| job_task(&job, 0, n, Failed, Complete));
    let sim = found(&job, failed);
    let (held, new): (Vec<_>, Vec<_>) = created(&sim).into_iter().partition(|t| t.desired_state() == Ready);
    assert_eq!((nodes_of(&held), nodes_of(&new)), (vec!["n1", "n2"], vec!["n3"]));
}

/// `orchestration.md` §20.3: in the original attempts of global jobs are not limited.
#[test]
fn attempts_are_limited_per_node() {
    let restart = RestartPolicy { max_attempts: 2, ..policy(Any) };
    let mut sim = cluster(with_restart(global_job(), restart));
    for _ in 0..5 {
        if let Some(task) = working(&sim).iter().find(|t| t.node_id == "n1").cloned() {
            end(&mut sim, &task, Failed);
        }
        sim.advance(secs(60));
    }
    assert_eq!((count(&sim, Failed), nodes_of(&working(&sim))), (3, vec!["n2", "n3"]));
}

#[test]
fn a_new_iteration_of_a_global_job_leaves_nothing_of_the_old_one() {
    let mut sim = cluster(global_job());
    let first = sim.tasks("job")[0].clone();
    end(&mut sim, &first, Complete);
    sim.settle();
    sim.update_service("job", |spec| spec.task.force_update += 1);
    sim.settle();
    let tasks = sim.tasks("job");
    assert_eq!(nodes_of(&tasks), ["n1", "n2", "n3"]);
    assert!(tasks.iter().all(|t| t.job_iteration == Some(Version { index: 1 })));
}

/// `orchestration.md` §20.2: in the original a node that comes gets its task with some other event of the service.
#[test]
fn a_node_that_joins_or_comes_back_takes_part_in_global_jobs() {
    let mut sim = cluster(global_job());
    sim.add_node("n4");
    sim.settle();
    assert_eq!(nodes_of(&working(&sim)), ["n1", "n2", "n3", "n4"]);
    availability(&mut sim, "n2", node_spec::Availability::Drain);
    assert_eq!(nodes_of(&working(&sim)), ["n1", "n3", "n4"]);
    availability(&mut sim, "n2", node_spec::Availability::Active);
    assert_eq!(nodes_of(&working(&sim)), ["n1", "n2", "n3", "n4"]);
    sim.write(|tx| drop(tx.remove::<Node>("n3").unwrap()));
    sim.settle();
    assert!(sim.tasks("job").iter().all(|t| t.node_id != "n3"));
}

#[test]
fn a_node_that_has_done_its_part_is_left_alone() {
    let mut sim = cluster(global_job());
    for task in working(&sim) {
        end(&mut sim, &task, Complete);
    }
    availability(&mut sim, "n2", node_spec::Availability::Drain);
    availability(&mut sim, "n2", node_spec::Availability::Active);
    sim.lead(everything());
    sim.settle();
    assert_eq!((sim.tasks("job").len(), count(&sim, Complete)), (3, 3));
}

/// Decision 0070: at most once; but what never had a place was not begun.
#[test]
fn without_restarts_a_drained_node_gets_its_task_again_only_if_none_was_begun_there() {
    for (state, again) in [
        (New, true),
        (Pending, true),
        (TaskState::Assigned, false),
        (TaskState::Preparing, false),
        (Running, false),
    ] {
        let job = with_restart(global_job(), policy(Never));
        let mut sim = found(&job, [job_task(&job, 0, "n1", state, Complete)]);
        availability(&mut sim, "n1", node_spec::Availability::Drain);
        assert_eq!(nodes_of(&working(&sim)), ["n2", "n3"], "{state:?}");
        availability(&mut sim, "n1", node_spec::Availability::Active);
        let expected: &[&str] = if again { &["n1", "n2", "n3"] } else { &["n2", "n3"] };
        assert_eq!(nodes_of(&working(&sim)), expected, "{state:?}");
    }
}

#[test]
fn a_leader_takes_up_every_job_and_only_jobs() {
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        for (n, mut service) in [job(1, 1), global_job(), service("web", 0)].into_iter().enumerate() {
            service.id = format!("s{n}");
            service.spec.annotations.name = service.id.clone();
            tx.create(service).unwrap();
        }
    });
    sim.lead(vec![Box::<swarm_orchestrator::Jobs>::default()]);
    sim.think();
    assert_eq!(["s0", "s1", "s2"].map(|id| sim.tasks(id).len()), [1, 1, 0]);
}

fn keep(sim: &mut Sim, limit: i64) {
    sim.write(|tx| {
        let mut cluster = tx.cluster().unwrap().clone();
        cluster.spec.orchestration.task_history_retention_limit = limit;
        tx.update(cluster).unwrap();
    });
    sim.settle();
}

/// `orchestration.md` §20.5: in the original they stay for ever.
#[test]
fn the_history_of_jobs_is_limited() {
    let mut sim = cluster(job(2, 2));
    for _ in 0..8 {
        for task in working(&sim) {
            end(&mut sim, &task, Complete);
        }
        sim.update_service("job", |spec| spec.task.force_update += 1);
        sim.settle();
    }
    assert_eq!(slots(&sim.tasks("job")), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
    sim.update_service("job", |spec| {
        let mode = ReplicatedJob { max_concurrent: 1, total_completions: 1 };
        spec.mode = Some(service_spec::Mode::ReplicatedJob(mode));
    });
    sim.settle();
    assert!(sim.tasks("job").iter().all(|t| t.slot == 0), "nothing is kept of a slot that is gone");
}

#[test]
fn what_tells_how_far_a_job_is_survives_any_limit() {
    let mut sim = cluster(with_restart(job(2, 3), policy(Never)));
    keep(&mut sim, 0);
    let tasks = working(&sim);
    end(&mut sim, &tasks[0], Complete);
    end(&mut sim, &tasks[1], Failed);
    sim.settle();
    sim.lead(everything());
    sim.settle();
    assert_eq!(slots(&working(&sim)), [2]);
    assert_eq!(slots(&sim.tasks("job")), [0, 1, 2]);
}

/// In the original the first of these is an error; it must stop nobody.
#[test]
fn a_job_that_can_get_no_task_holds_up_no_other() {
    let named = |id: &str, mut job: Service| {
        job.id = id.into();
        job.spec.annotations.name = id.into();
        job
    };
    let crowded = named("a-crowded", job(1, 1));
    let mut nowhere = named("b-nowhere", global_job());
    let constraints = vec!["node.id==nobody".into()];
    nowhere.spec.task.placement = Some(Placement { constraints, ..Default::default() });
    let others = [named("c", job(2, 2)), named("d", global_job())];
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(crowded.clone()).unwrap();
        for slot in 0..3 {
            let id = format!("t{slot}");
            let iteration = Some(Version { index: 0 });
            let task = task(&crowded, &id, slot, "n1", Running, Complete);
            tx.create(Task { job_iteration: iteration, ..task }).unwrap();
        }
        tx.create(nowhere.clone()).unwrap();
        others.iter().for_each(|other| drop(tx.create(other.clone()).unwrap()));
    });
    sim.lead(alone());
    sim.think();
    assert_eq!(["a-crowded", "b-nowhere", "c", "d"].map(|id| sim.tasks(id).len()), [3, 0, 2, 1]);
}
