//! The restart supervisor, rule by rule (`orchestration.md` §7, scenarios 27 to 40).
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use swarm_api::TaskState;
use swarm_api::TaskState::{Complete, Failed, Pending, Ready, Rejected, Remove, Running, Shutdown};
use swarm_api::v1::restart_policy::RestartCondition::{Any, None as Never, OnFailure};
use swarm_api::v1::{Placement, RestartPolicy, Service, Version, node_spec, node_status};

/// The first task of slot 1 ends in this state.
fn end_first(sim: &mut Sim, state: TaskState) {
    let id = sim.live("web").iter().find(|t| t.slot == 1).unwrap().id.clone();
    sim.report(&id, state, "");
}

fn running(sim: &Sim) -> usize {
    sim.running("web").values().sum()
}

#[test]
fn any_end_is_replaced_under_any() {
    for state in [Failed, Complete, Rejected] {
        let mut sim = cluster(with_restart(service("web", 1), policy(Any)));
        end_first(&mut sim, state);
        sim.think();
        let tasks = sim.tasks("web");
        assert_eq!(tasks.len(), 2);
        assert_eq!((tasks[0].status.state(), tasks[0].desired_state()), (state, Shutdown));
        assert_eq!(tasks[1].desired_state(), Ready);
        sim.advance(secs(5));
        assert_eq!(running(&sim), 1);
    }
}

#[test]
fn only_failures_are_replaced_under_on_failure() {
    let mut sim = cluster(with_restart(service("web", 2), policy(OnFailure)));
    end_first(&mut sim, Failed);
    sim.advance(secs(5));
    assert_eq!(running(&sim), 2);
    end_first(&mut sim, Complete);
    sim.advance(secs(60));
    assert_eq!(running(&sim), 1);
    // Neither an unrelated write nor a label brings it back, a new spec does.
    sim.write(|tx| {
        let web = tx.services().get("web").unwrap().clone();
        tx.update(web).unwrap();
    });
    sim.advance(secs(60));
    assert_eq!(running(&sim), 1);
    sim.update_service("web", |spec| spec.task.force_update += 1);
    sim.advance(secs(60));
    assert_eq!(running(&sim), 2);
}

#[test]
fn nothing_is_replaced_under_none() {
    let mut sim = cluster(with_restart(service("web", 2), policy(Never)));
    end_first(&mut sim, Failed);
    sim.advance(secs(60));
    assert_eq!(running(&sim), 1);
    sim.scale("web", 3);
    sim.advance(secs(60));
    assert_eq!(running(&sim), 2, "scaling does not bring the failed one back");
    sim.update_service("web", |spec| spec.task.force_update += 1);
    sim.advance(secs(60));
    assert_eq!(running(&sim), 3);
}

#[test]
fn an_unset_condition_of_a_policy_that_is_there_means_none() {
    let mut sim = cluster(with_restart(service("web", 1), RestartPolicy::default()));
    end_first(&mut sim, Failed);
    sim.advance(secs(60));
    assert_eq!(running(&sim), 0);
}

#[test]
fn a_replacement_starts_after_the_delay_and_not_before() {
    let restart = RestartPolicy { delay: wire(millis(100)), ..policy(Any) };
    let mut sim = cluster(with_restart(service("web", 1), restart));
    end_first(&mut sim, Failed);
    sim.settle();
    assert_eq!(sim.live("web")[0].status.state(), Ready, "prepared meanwhile");
    sim.advance(millis(99));
    assert_eq!(running(&sim), 0);
    sim.advance(millis(1));
    assert_eq!(running(&sim), 1);
}

#[test]
fn attempts_are_limited_per_slot_and_begin_anew_with_a_new_spec() {
    let restart = RestartPolicy { max_attempts: 1, ..policy(Any) };
    let mut sim = cluster(with_restart(service("web", 2), restart));
    end_first(&mut sim, Failed);
    sim.advance(secs(5));
    assert_eq!(running(&sim), 2);
    end_first(&mut sim, Failed);
    sim.advance(secs(60));
    assert_eq!(running(&sim), 1, "slot 1 has used its attempt");
    let other = sim.live("web")[0].id.clone();
    sim.report(&other, Failed, "");
    sim.advance(secs(60));
    assert_eq!(running(&sim), 1, "slot 2 still had one");
    sim.update_service("web", |spec| spec.task.force_update += 1);
    sim.advance(secs(60));
    assert_eq!(running(&sim), 2);
    end_first(&mut sim, Failed);
    sim.advance(secs(5));
    assert_eq!(running(&sim), 2);
}

#[test]
fn attempts_outside_the_window_do_not_count() {
    let restart =
        RestartPolicy { max_attempts: 1, window: wire(millis(500)), delay: wire(secs(0)), ..policy(Any) };
    let mut sim = cluster(with_restart(service("web", 1), restart));
    end_first(&mut sim, Failed);
    sim.settle();
    sim.advance(millis(501));
    end_first(&mut sim, Failed);
    sim.settle();
    assert_eq!(running(&sim), 1, "the first attempt is forgotten");
    sim.advance(millis(100));
    end_first(&mut sim, Failed);
    sim.advance(secs(60));
    assert_eq!(running(&sim), 0, "two within the window are too many");
}

/// A leader finds these tasks in slot 1, of which the last one runs, each with its spec's version and how many seconds ago
/// it was made. Of three attempts within ten minutes one is left.
fn one_attempt_is_left(history: [(&str, u64, u64); 5]) {
    let restart =
        RestartPolicy { max_attempts: 3, window: wire(secs(600)), delay: wire(secs(0)), ..policy(Any) };
    let web = with_restart(service("web", 1), restart);
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(web.clone()).unwrap();
    });
    let begin = sim.now().wall;
    sim.write(|tx| {
        for (id, version, ago) in history {
            let last = id == "t5";
            let (state, desired) = if last { (Running, Running) } else { (Failed, Shutdown) };
            let mut task = task(&web, id, 1, "n1", state, desired);
            task.spec_version = Some(Version { index: version });
            task.meta.created_at = Some((begin - secs(ago)).into());
            task.status.applied_at = Some((begin - secs(ago - 10)).into());
            tx.create(task).unwrap();
        }
    });
    sim.lead(everything());
    sim.settle();
    end_first(&mut sim, Failed);
    sim.settle();
    assert_eq!(running(&sim), 1, "two of three attempts were used");
    sim.advance(secs(1));
    end_first(&mut sim, Rejected);
    sim.advance(secs(60));
    assert_eq!(running(&sim), 0);
}

#[test]
fn a_new_leader_remembers_how_often_tasks_were_restarted() {
    // An older spec's task, the first of this spec, a restart long ago, two recent ones.
    one_attempt_is_left([("t1", 0, 4000), ("t2", 1, 3000), ("t3", 1, 2000), ("t4", 1, 300), ("t5", 1, 200)]);
}

#[test]
fn a_new_leader_counts_no_restart_of_an_older_spec_however_recent() {
    // A restart of the older spec, the first of this spec, two restarts: all of them within the window.
    one_attempt_is_left([("t1", 0, 590), ("t2", 0, 500), ("t3", 1, 400), ("t4", 1, 300), ("t5", 1, 200)]);
}

#[test]
fn a_replacement_that_fails_while_it_is_held_makes_no_tight_loop() {
    let mut sim = cluster(with_restart(service("web", 1), policy(Any)));
    sim.behaviour = Box::new(|task| (!task.status.reached(Rejected)).then_some((Rejected, "no such image")));
    end_first(&mut sim, Failed);
    let before = sim.tasks("web").len();
    sim.settle();
    assert_eq!(sim.tasks("web").len(), before + 1, "the replacement of the replacement waits");
    let made = |sim: &Sim| sim.tasks("web").iter().map(|t| t.id.clone()).max().unwrap();
    let mut rounds = 0;
    let mut newest = made(&sim);
    for _ in 0..60 {
        sim.advance(secs(1));
        if made(&sim) != newest {
            newest = made(&sim);
            rounds += 1;
        }
    }
    assert_eq!(rounds, 12, "one every five seconds");
}

/// A task on a node that is being emptied, whose agent never stops it: when its replacement may start.
fn wait_for_old(then: impl FnOnce(&mut Sim)) -> Sim {
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(node("n2")).unwrap();
        tx.create(service("web", 1)).unwrap();
    });
    sim.lead(everything());
    sim.settle();
    assert_eq!(sim.live("web")[0].node_id, "n1");
    sim.agents_stop_tasks = false;
    sim.edit_node("n1", |n| n.spec.availability = node_spec::Availability::Drain as i32);
    sim.advance(secs(10));
    assert_eq!(sim.running("web").get("n2"), None, "the old one may still run");
    then(&mut sim);
    sim
}

#[test]
fn a_task_that_does_not_stop_is_waited_for_one_minute() {
    let mut sim = wait_for_old(|_| {});
    sim.advance(secs(49));
    assert_eq!(sim.running("web").get("n2"), None);
    sim.advance(secs(1));
    assert_eq!(sim.running("web")["n2"], 1);
}

#[test]
fn a_task_that_stops_lets_its_replacement_start() {
    let mut sim = wait_for_old(|sim| sim.agents_stop_tasks = true);
    sim.settle();
    assert_eq!(sim.running("web")["n2"], 1);
}

#[test]
fn a_node_that_goes_down_lets_replacements_start() {
    let mut sim = wait_for_old(|sim| {
        sim.edit_node("n1", |n| n.status.state = node_status::State::Down as i32);
    });
    sim.settle();
    assert_eq!(sim.running("web")["n2"], 1);
}

/// The old task was lost and may run on: when its node is back before the delay is over, it must stop first.
#[test]
fn a_node_that_comes_back_makes_replacements_wait() {
    let mut sim = cluster(service("web", 1));
    sim.agents_stop_tasks = false;
    let old = sim.live("web")[0].clone();
    let set = |sim: &mut Sim, state: node_status::State| {
        sim.edit_node(&old.node_id, |n| n.status.state = state as i32);
    };
    set(&mut sim, node_status::State::Down);
    sim.settle();
    let new = sim.live("web")[0].id.clone();
    assert_ne!(new, old.id);
    set(&mut sim, node_status::State::Ready);
    sim.advance(secs(30));
    assert_eq!(sim.live("web")[0].desired_state(), Ready, "the old one runs");
    sim.report(&old.id, Shutdown, "");
    sim.settle();
    assert_eq!((sim.live("web")[0].id.clone(), running(&sim)), (new, 1));
}

#[test]
fn a_task_that_is_deleted_lets_its_replacement_start() {
    let mut sim = wait_for_old(|sim| {
        let old = sim.tasks("web").iter().find(|t| t.node_id == "n1").unwrap().id.clone();
        sim.write(|tx| drop(tx.remove::<swarm_api::v1::Task>(&old).unwrap()));
    });
    sim.settle();
    assert_eq!(sim.running("web")["n2"], 1);
}

#[test]
fn a_drained_task_is_not_replaced_under_none() {
    let mut sim = cluster(with_restart(service("web", 3), policy(Never)));
    sim.edit_node("n1", |n| n.spec.availability = node_spec::Availability::Drain as i32);
    sim.advance(secs(60));
    assert_eq!(running(&sim), 2);
}

#[test]
fn a_task_to_be_removed_is_not_restarted_when_it_fails() {
    let mut sim = cluster(service("web", 2));
    sim.agents_stop_tasks = false;
    sim.scale("web", 1);
    sim.settle();
    let removed = sim.tasks("web").iter().find(|t| t.desired_state() == Remove).unwrap().id.clone();
    sim.report(&removed, Failed, "");
    sim.advance(secs(60));
    assert_eq!(sim.tasks("web").len(), 1);
}

#[test]
fn a_held_task_outlives_its_leader() {
    let mut sim = cluster(service("web", 1));
    end_first(&mut sim, Failed);
    sim.settle();
    let held = sim.live("web")[0].clone();
    assert_eq!(held.desired_state(), Ready);
    sim.lead(vec![]);
    sim.advance(secs(3));
    assert_eq!(sim.live("web")[0].desired_state(), Ready, "nobody leads");
    sim.lead(everything());
    sim.advance(secs(1));
    assert_eq!(running(&sim), 0, "the delay counts from the last report");
    sim.advance(secs(1));
    assert_eq!(sim.live("web")[0].id, held.id);
    assert_eq!(running(&sim), 1);
}

#[test]
fn the_delay_is_the_old_tasks_and_the_spec_is_the_services() {
    let restart = RestartPolicy { delay: wire(secs(1)), ..policy(Any) };
    let mut sim = cluster(with_restart(service("web", 1), restart));
    end_first(&mut sim, Failed);
    sim.update_service("web", |spec| {
        spec.task.restart.as_mut().unwrap().delay = wire(secs(100));
        spec.task.force_update = 7;
    });
    sim.advance(secs(1));
    let live = sim.live("web");
    assert_eq!((live.len(), live[0].spec.force_update, live[0].status.state()), (1, 7, Running));
}

#[test]
fn a_held_task_found_by_a_leader_starts_when_its_delay_is_over() {
    let restart = RestartPolicy { delay: wire(millis(100)), ..policy(Any) };
    let web = with_restart(service("web", 1), restart);
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(web.clone()).unwrap();
    });
    let begin = sim.now().wall;
    sim.write(|tx| {
        let mut held = task(&web, "held", 1, "n1", Ready, Ready);
        held.status.timestamp = Some(begin.into());
        tx.create(held).unwrap();
    });
    sim.lead(everything());
    sim.advance(millis(99));
    assert_eq!(sim.live("web")[0].desired_state(), Ready);
    sim.advance(millis(1));
    assert_eq!((running(&sim), sim.tasks("web").len()), (1, 1));
}

#[test]
fn slots_use_up_their_attempts_independently() {
    let restart =
        RestartPolicy { max_attempts: 1, window: wire(millis(500)), delay: wire(secs(0)), ..policy(Any) };
    let mut sim = cluster(with_restart(service("web", 2), restart));
    let fail = |sim: &mut Sim, slot: u64| {
        let id = sim.live("web").iter().find(|t| t.slot == slot).unwrap().id.clone();
        sim.report(&id, Failed, "");
        sim.advance(millis(100));
    };
    fail(&mut sim, 1);
    fail(&mut sim, 1);
    assert_eq!(slots(&sim.live("web")), [2]);
    fail(&mut sim, 2);
    sim.advance(millis(500));
    fail(&mut sim, 2);
    assert_eq!(slots(&sim.live("web")), [2], "its window is over");
}

#[test]
fn a_node_that_is_removed_lets_replacements_start() {
    let mut sim = wait_for_old(|sim| {
        sim.write(|tx| drop(tx.remove::<swarm_api::v1::Node>("n1").unwrap()));
    });
    sim.settle();
    assert_eq!(sim.running("web")["n2"], 1);
}

/// `orchestration.md` §20.10: in the original its successor is held for a minute.
#[test]
fn a_task_that_never_had_a_node_is_not_waited_for() {
    let mut sim = Sim::new(|tx| drop(tx.create(service("web", 1)).unwrap()));
    sim.lead(everything());
    sim.settle();
    let waiting = sim.live("web")[0].clone();
    assert_eq!((waiting.status.state(), &waiting.node_id[..]), (TaskState::Pending, ""));
    sim.update_service("web", |spec| spec.task.force_update += 1);
    sim.settle();
    sim.add_node("n1");
    sim.settle();
    let live = sim.live("web");
    assert_eq!((live.len(), live[0].spec.force_update, live[0].status.state()), (1, 1, Running));
}

/// `orchestration.md` §7.2: what counts is what the restart supervisor did, and only since the last change of the spec.
#[test]
fn what_is_no_restart_uses_up_no_attempt() {
    let restart = RestartPolicy { max_attempts: 1, ..policy(Any) };
    let web = |versioned: bool| {
        let mut web = with_restart(service("web", 1), restart);
        web.spec_version = web.spec_version.filter(|_| versioned);
        cluster(web)
    };
    // A restart, then an update and its rollback.
    let mut back = web(true);
    end_first(&mut back, Failed);
    back.advance(secs(5));
    back.update_service("web", |spec| spec.task.force_update += 1);
    back.advance(secs(10));
    let now = back.now().wall;
    back.write(|tx| {
        let mut web = tx.services().get("web").unwrap().clone();
        rolled_back(&mut web, now);
        tx.update(web).unwrap();
    });
    // Updates of a service whose specs have no numbers.
    let mut unnumbered = web(false);
    for _ in 0..2 {
        unnumbered.write(|tx| {
            let mut web = tx.services().get("web").unwrap().clone();
            web.spec.task.force_update += 1;
            tx.update(web).unwrap();
        });
        unnumbered.advance(secs(10));
    }
    // A node is emptied.
    let mut drained = web(true);
    let on = drained.live("web")[0].node_id.clone();
    drained.edit_node(&on, |n| n.spec.availability = node_spec::Availability::Drain as i32);
    for (what, mut sim) in [("rollback", back), ("update", unnumbered), ("drain", drained)] {
        sim.advance(secs(60));
        assert_eq!(running(&sim), 1, "{what}");
        end_first(&mut sim, Failed);
        sim.advance(secs(5));
        assert_eq!(running(&sim), 1, "the one attempt after the {what}");
        end_first(&mut sim, Failed);
        sim.advance(secs(60));
        assert_eq!(running(&sim), 0, "{what}");
    }
}

/// `orchestration.md` §7.3: else emptying a node would hurry a task that fails again and again.
#[test]
fn a_held_task_that_loses_its_node_is_replaced_no_earlier_than_it_would_have_started() {
    for lose in [
        (|n| n.spec.availability = node_spec::Availability::Drain as i32) as fn(&mut swarm_api::v1::Node),
        |n| n.status.state = node_status::State::Down as i32,
    ] {
        let restart = RestartPolicy { delay: wire(secs(100)), ..policy(Any) };
        let mut sim = cluster(with_restart(service("web", 1), restart));
        end_first(&mut sim, Failed);
        sim.advance(secs(1));
        let held = sim.live("web")[0].clone();
        assert_eq!(held.desired_state(), Ready);
        sim.edit_node(&held.node_id, lose);
        sim.advance(secs(1));
        let live = sim.live("web");
        assert_eq!((live.len(), live[0].desired_state()), (1, Ready));
        assert!(live[0].id != held.id && live[0].node_id != held.node_id, "it left the node at once");
        sim.advance(secs(97));
        assert_eq!(running(&sim), 0);
        sim.advance(secs(10_000));
        assert_eq!(running(&sim), 1);
    }
}

/// The older one was taken for lost, and is heard of last; or the clock of the managers was set back between the two.
#[test]
fn which_task_of_a_slot_is_the_newest_does_not_depend_on_clocks_or_late_reports() {
    for (late, set_back) in [(None, true), (Some(Shutdown), false), (Some(Failed), false)] {
        let lost = late.is_some();
        let web = with_restart(service("web", 1), policy(OnFailure));
        let mut sim = Sim::new(|tx| drop(tx.create(web.clone()).unwrap()));
        let begin = sim.now().wall;
        let mut write = |id: &str, state, at: u64| {
            sim.write(|tx| {
                let mut task = task(&web, id, 1, "n1", state, Shutdown);
                task.meta.created_at = Some((begin + secs(at)).into());
                task.status.applied_at = Some((begin + secs(at + 1)).into());
                match tx.tasks().get(id).cloned() {
                    Some(mut known) => {
                        known.status = task.status;
                        tx.update(known).unwrap();
                    }
                    None => drop(tx.create(task).unwrap()),
                }
            });
        };
        write("old", if lost { Running } else { Failed }, 100);
        write("new", Complete, if set_back { 50 } else { 150 });
        if let Some(late) = late {
            write("old", late, 200);
        }
        sim.lead(everything());
        sim.advance(secs(60));
        assert_eq!(sim.tasks("web").len(), 2, "the slot has completed: {late:?}");
    }
}

/// Tasks of one slot, in the order in which something became of them last: state, wanted state, when it was made and when it
/// ended, in seconds.
fn found(web: &Service, tasks: &[(&str, TaskState, TaskState, u64, u64)]) -> Sim {
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(web.clone()).unwrap();
    });
    let begin = sim.now().wall;
    for (id, state, desired, made, ended) in tasks {
        sim.write(|tx| {
            let mut task = task(web, id, 1, "n1", *state, *desired);
            task.meta.created_at = Some((begin + secs(*made)).into());
            task.status.applied_at = Some((begin + secs(*ended)).into());
            tx.create(task).unwrap();
        });
    }
    sim.lead(everything());
    sim.advance(secs(60));
    sim
}

/// As a move that starts first and fails, or finds no node: the old task goes on, and what becomes of it in the end counts.
#[test]
fn what_came_to_nothing_beside_a_task_does_not_overtake_it() {
    let web = with_restart(service("web", 1), policy(OnFailure));
    for beside in [Failed, Rejected, Shutdown, Pending] {
        let sim = found(&web, &[("new", beside, Shutdown, 50, 60), ("old", Complete, Shutdown, 0, 300)]);
        assert_eq!(sim.tasks("web").len(), 2, "the slot has completed: {beside:?}");
    }
}

#[test]
fn what_was_made_beside_a_task_that_went_on_is_no_restart() {
    let once = RestartPolicy { max_attempts: 1, ..policy(OnFailure) };
    let web = with_restart(service("web", 1), once);
    let sim = found(&web, &[("new", Failed, Shutdown, 50, 60), ("old", Failed, Running, 0, 300)]);
    assert_eq!(sim.live("web").len(), 1, "its first failure is made up for");
    // And one that was made after it had ended is.
    let sim = found(&web, &[("old", Failed, Shutdown, 0, 40), ("new", Failed, Running, 50, 60)]);
    assert_eq!(sim.live("web").len(), 0);
}

/// Its leader's clock was ahead when the first one was made.
#[test]
fn a_task_that_had_ended_before_overtakes_nobody_whatever_the_clock_said() {
    let web = with_restart(service("web", 1), policy(OnFailure));
    let sim = found(&web, &[("t1", Failed, Shutdown, 60, 5), ("t2", Complete, Shutdown, 10, 1800)]);
    assert_eq!(sim.tasks("web").len(), 2, "the slot has completed");
}

/// The enforcer's word is the last one, however long ago the agent said something.
#[test]
fn a_task_that_a_manager_ended_beside_one_of_another_spec_has_ended() {
    let mut web = with_restart(service("web", 1), policy(Never));
    web.spec_version = Some(Version { index: 1 });
    let mut other = web.clone();
    other.spec_version = Some(Version { index: 2 });
    other.spec.task.force_update = 7;
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(web.clone()).unwrap();
    });
    let begin = sim.now().wall;
    let at = |seconds: u64| Some((begin + secs(seconds)).into());
    let mut new = task(&other, "new", 1, "n1", Failed, Shutdown);
    (new.meta.created_at, new.status.applied_at) = (at(50), at(60));
    let mut old = task(&web, "old", 1, "n1", Rejected, Shutdown);
    (old.meta.created_at, old.status.applied_at, old.status.timestamp) = (at(0), at(1), at(300));
    old.status.message = "task rejected by constraint enforcer".into();
    sim.write(|tx| drop(tx.create(new.clone()).unwrap()));
    sim.write(|tx| drop(tx.create(old.clone()).unwrap()));
    sim.lead(everything());
    sim.advance(secs(60));
    assert_eq!(sim.tasks("web").len(), 2, "nothing takes its place");
}

/// The store refuses what would let it go: it is let go all the same, a little later.
#[test]
fn a_held_task_is_let_go_even_if_the_store_refuses_once() {
    let mut sim = cluster(with_restart(service("web", 1), policy(Any)));
    end_first(&mut sim, Failed);
    sim.think();
    sim.pass(secs(5));
    let batches = sim.decide();
    assert!(!batches.is_empty());
    for batch in batches {
        sim.settle_batch(batch.id, swarm_reconcile::Fate::Failed(swarm_store::Error::TooLarge));
    }
    sim.advance(secs(60));
    assert_eq!(running(&sim), 1);
}

/// Nobody's node is lost for good because its task had failed before (decision 0115).
#[test]
fn a_task_that_loses_its_node_needs_no_attempt() {
    let lose: [fn(&mut swarm_api::v1::Node); 2] = [
        |n| n.status.state = node_status::State::Down as i32,
        |n| n.spec.availability = node_spec::Availability::Drain as i32,
    ];
    for lose in lose {
        let restart = RestartPolicy { max_attempts: 1, ..policy(Any) };
        let mut sim = cluster(with_restart(service("web", 1), restart));
        end_first(&mut sim, Failed);
        sim.advance(secs(5));
        let node = sim.live("web")[0].node_id.to_string();
        sim.edit_node(&node, lose);
        sim.advance(secs(60));
        assert_eq!(running(&sim), 1, "the only attempt is used up, but this is none");
        end_first(&mut sim, Failed);
        sim.advance(secs(60));
        assert_eq!(running(&sim), 0);
    }
}

/// An older task that is heard of late says nothing of a place that has ended for good.
#[test]
fn a_task_that_still_stops_brings_no_place_back() {
    let restart = RestartPolicy { max_attempts: 1, delay: wire(secs(1)), ..policy(Any) };
    let mut sim = cluster(with_restart(service("web", 1), restart));
    let old = sim.live("web")[0].clone();
    sim.agents_stop_tasks = false;
    sim.silent.push(old.node_id.to_string());
    sim.advance(secs(1));
    sim.edit_node(&old.node_id, |n| n.status.state = node_status::State::Down as i32);
    sim.advance(secs(2));
    for _ in 0..2 {
        end_first(&mut sim, Failed);
        sim.advance(secs(2));
    }
    assert_eq!(sim.live("web").len(), 0, "the only attempt is used up");
    sim.edit_node(&old.node_id, |n| n.status.state = node_status::State::Ready as i32);
    sim.report(&old.id, Running, "still here");
    sim.lead(everything());
    sim.advance(secs(2));
    assert_eq!(sim.live("web").len(), 0);
}

#[test]
fn a_task_whose_node_is_removed_needs_no_attempt() {
    let restart = RestartPolicy { max_attempts: 1, ..policy(Any) };
    let mut sim = cluster(with_restart(service("web", 1), restart));
    end_first(&mut sim, Failed);
    sim.advance(secs(5));
    let task = sim.live("web")[0].clone();
    sim.report(&task.id, swarm_api::TaskState::Orphaned, "");
    sim.advance(secs(60));
    assert_eq!(running(&sim), 1);
}

/// What its agent said last, a month ago, does not tell when that was.
#[test]
fn attempts_outside_the_window_do_not_count_for_a_task_that_a_manager_ends() {
    let restart =
        RestartPolicy { max_attempts: 3, window: wire(secs(120)), delay: wire(secs(1)), ..policy(Any) };
    let mut web = with_restart(service("web", 1), restart);
    let constraints = vec!["node.labels.disk==ssd".to_owned()];
    web.spec.task.placement = Some(Placement { constraints, ..Default::default() });
    let mut sim = Sim::new(|tx| {
        for id in ["n1", "n2"] {
            let mut node = node(id);
            node.spec.annotations.labels.insert("disk".into(), "ssd".into());
            tx.create(node).unwrap();
        }
        tx.create(web.clone()).unwrap();
    });
    sim.lead(leader());
    sim.settle();
    for _ in 0..3 {
        end_first(&mut sim, Failed);
        sim.advance(secs(2));
    }
    assert_eq!(running(&sim), 1);
    sim.advance(secs(30 * 24 * 3600));
    let old = sim.live("web")[0].clone();
    sim.edit_node(&old.node_id, |n| n.spec.annotations.labels.clear());
    sim.advance(secs(2));
    assert_eq!(sim.view().tasks().get(&old.id).unwrap().status.state(), Rejected);
    assert_eq!(running(&sim), 1, "on the other node");
}

/// One that was lost may have failed long before its node is heard of again.
#[test]
fn a_late_failure_brings_no_place_back_that_has_completed() {
    let restart = RestartPolicy { delay: wire(secs(1)), ..policy(OnFailure) };
    let mut sim = cluster(with_restart(service("web", 1), restart));
    sim.advance(secs(1));
    let lost = sim.live("web")[0].clone();
    sim.silent.push(lost.node_id.to_string());
    sim.edit_node(&lost.node_id, |n| n.status.state = node_status::State::Down as i32);
    sim.advance(secs(2));
    end_first(&mut sim, Complete);
    sim.advance(secs(2));
    assert_eq!(sim.live("web").len(), 0);
    sim.edit_node(&lost.node_id, |n| n.status.state = node_status::State::Ready as i32);
    sim.report(&lost.id, Failed, "");
    sim.advance(secs(2));
    sim.lead(everything());
    sim.advance(secs(60));
    assert_eq!(states(&sim.tasks("web")), [(1, Failed, Shutdown), (1, Complete, Shutdown)]);
}
