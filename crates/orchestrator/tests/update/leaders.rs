//! Updates that a new leader finds under way, or done.

use super::*;

/// A leader that finds these tasks of one service with replicas as its slots.
fn found(tasks: &[(&str, u64, TaskState, TaskState)], status: Option<UpdateState>) -> Sim {
    let mut web = web(tasks.iter().map(|t| t.1).max().unwrap_or(0), config(1));
    web.update_status = status.map(|state| UpdateStatus { state: state as i32, ..Default::default() });
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(web.clone()).unwrap();
        for (id, slot, state, desired) in tasks {
            tx.create(task(&web, id, *slot, "n1", *state, *desired)).unwrap();
        }
    });
    sim.lead(everything());
    sim.settle();
    sim
}

#[test]
fn of_two_clean_tasks_in_a_slot_one_stays() {
    for (first, second) in [(Running, TaskState::Ready), (TaskState::Ready, Running)] {
        let mut sim = found(&[("a", 1, first, first), ("b", 1, second, second)], None);
        sim.advance(secs(30));
        let wanted = if first == Running { "a" } else { "b" };
        let live = sim.live("web");
        assert_eq!((live.len(), &live[0].id[..], sim.tasks("web").len()), (1, wanted, 2), "what runs stays");
    }
}

#[test]
fn a_clean_task_that_is_held_is_released_and_the_other_goes() {
    let web_task = ("held", 1, TaskState::Ready, TaskState::Ready);
    let mut web = web(1, config(1));
    web.spec_version = Some(swarm_api::v1::Version { index: 2 });
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(web.clone()).unwrap();
        tx.create(task(&web, web_task.0, 1, "n1", web_task.2, web_task.3)).unwrap();
        let mut old = task(&web, "old", 1, "n1", Running, Running);
        old.spec_version = Some(swarm_api::v1::Version { index: 1 });
        old.spec.force_update = 7;
        tx.create(old).unwrap();
    });
    sim.lead(everything());
    sim.settle();
    let live = sim.live("web");
    assert_eq!((live.len(), &live[0].id[..], live[0].status.state()), (1, "held", Running));
}

/// A leader that finds these tasks, of version 2 and of another one, of a service whose update is in this state. The
/// first slot is still to be updated. Nothing goes on on the node n2.
fn amid(
    order: UpdateOrder,
    state: UpdateState,
    tasks: &[(&str, u64, u64, &str, TaskState, TaskState)],
) -> Sim {
    let update = UpdateConfig { order: order as i32, ..acting(FailureAction::Pause, 0.5) };
    let mut web = web(2, update);
    web.spec_version = Some(swarm_api::v1::Version { index: 2 });
    web.update_status = Some(UpdateStatus { state: state as i32, ..Default::default() });
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(node("n2")).unwrap();
        tx.create(web.clone()).unwrap();
        for (id, slot, version, node, state, desired) in tasks {
            let mut task = task(&web, id, *slot, node, *state, *desired);
            task.spec_version = Some(swarm_api::v1::Version { index: *version });
            if *version != 2 {
                task.spec.runtime = container("outdated");
            }
            tx.create(task).unwrap();
        }
    });
    sim.silent.push("n2".into());
    sim.lead(everything());
    sim
}

/// A rebalancing that an earlier leader saw to, after an update that had left a slot behind.
#[test]
fn the_update_of_a_new_leader_counts_the_move_that_is_under_way() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut sim = amid(
            order,
            UpdateState::Completed,
            &[("a", 1, 1, "n1", Running, Running), ("b", 2, 2, "n2", Starting, Running)],
        );
        sim.settle();
        assert_eq!((count(&sim, "outdated", Running), sim.live("web").len()), (1, 2), "{order:?}");
        sim.silent.clear();
        sim.advance(secs(60));
        assert_eq!((count(&sim, "outdated", Running), sim.live("web").len()), (0, 2), "{order:?}");
        assert_eq!(count(&sim, "old", Running), 2, "{order:?}");
    }
}

/// The first attempt failed, and the update was at the slot again when its leader was lost. With start-first the task
/// that is replaced may still be there.
#[test]
fn a_new_leader_counts_the_second_attempt_of_an_update() {
    let (first, second) =
        (("b", 2, 2, "n1", Failed, TaskState::Shutdown), ("c", 2, 2, "n2", Starting, Running));
    let replaced = ("d", 2, 1, "n1", Running, Running);
    for (order, slot) in [
        (UpdateOrder::StopFirst, vec![first, second]),
        (UpdateOrder::StartFirst, vec![first, second]),
        (UpdateOrder::StartFirst, vec![first, second, replaced]),
    ] {
        let mut tasks = vec![("a", 1, 1, "n1", Running, Running)];
        tasks.extend(&slot);
        let mut sim = amid(order, UpdateState::Updating, &tasks);
        sim.settle();
        assert_eq!(slots(&sim.tasks("web")), [vec![1], vec![2; slot.len()]].concat(), "{order:?}");
        sim.silent.clear();
        sim.advance(secs(60));
        assert_eq!((count(&sim, "old", Running), sim.live("web").len()), (2, 2), "{order:?}");
    }
}

/// Nobody knows whether an update waits for it.
#[test]
fn what_a_new_leader_found_under_way_holds_up_its_update_for_ten_minutes_at_most() {
    let mut sim = amid(
        UpdateOrder::StopFirst,
        UpdateState::Completed,
        &[("a", 1, 1, "n1", Running, Running), ("b", 2, 2, "n2", Starting, Running)],
    );
    sim.advance(secs(599));
    assert_eq!(count(&sim, "outdated", Running), 1);
    sim.advance(secs(60));
    assert_eq!((count(&sim, "outdated", Running), count(&sim, "old", Running)), (0, 1));
    assert_eq!(status(&sim), Some(UpdateState::Completed), "it is no failure either");
}

#[test]
fn a_new_leader_completes_what_is_done() {
    let tasks = [("a", 1, Running, Running)];
    assert_eq!(status(&found(&tasks, Some(UpdateState::Updating))), Some(UpdateState::Completed));
    assert_eq!(
        status(&found(&tasks, Some(UpdateState::RollbackStarted))),
        Some(UpdateState::RollbackCompleted)
    );
}

#[test]
fn a_new_leader_leaves_what_is_paused_as_it_is() {
    for state in [UpdateState::Paused, UpdateState::RollbackPaused] {
        let mut sim = amid(
            UpdateOrder::StopFirst,
            state,
            &[("a", 1, 1, "n1", Running, Running), ("b", 2, 2, "n1", Running, Running)],
        );
        sim.advance(secs(3_600));
        assert_eq!((status(&sim), sim.tasks("web").len()), (Some(state), 2));
        assert_eq!((count(&sim, "outdated", Running), count(&sim, "old", Running)), (1, 1));
    }
}

/// `orchestration.md` §20.17: in the original it counts from zero, and only the slots that are left.
#[test]
fn a_new_leader_goes_on_with_an_update_and_remembers_its_failures() {
    let mut sim = cluster(web(
        5,
        UpdateConfig { delay: wire(secs(10)).unwrap(), ..acting(FailureAction::Pause, 0.25) },
    ));
    broken(&mut sim, "new");
    set_image(&mut sim, "new");
    sim.settle();
    assert_eq!((count(&sim, "new", Failed), status(&sim)), (1, Some(UpdateState::Updating)));
    sim.lead(everything());
    sim.advance(secs(4));
    assert_eq!(
        (count(&sim, "new", Failed), status(&sim)),
        (2, Some(UpdateState::Paused)),
        "the second of five"
    );
    assert_eq!(count(&sim, "old", Running), 3);
}

/// A failure long after the task came to run, which only an earlier leader saw.
#[test]
fn a_new_leader_knows_how_long_tasks_run() {
    for (after, expected) in [(4_000, UpdateState::Paused), (6_000, UpdateState::Updating)] {
        let mut sim = cluster(web(2, UpdateConfig { delay: wire(secs(30)).unwrap(), ..config(1) }));
        set_image(&mut sim, "new");
        sim.settle();
        sim.lead(everything());
        sim.advance(millis(after));
        let first = sim.live("web").iter().find(|t| image(t) == "new").unwrap().id.clone();
        sim.report(&first, Failed, "");
        sim.settle();
        assert_eq!(status(&sim), Some(expected), "after {after} ms");
    }
}

/// All new tasks of an update that makes them at once fail while nobody leads.
#[test]
fn a_new_leader_completes_no_update_whose_failures_are_too_many() {
    for (action, expected) in [
        (FailureAction::Pause, UpdateState::Paused),
        (FailureAction::Rollback, UpdateState::RollbackStarted),
        (FailureAction::Continue, UpdateState::Completed),
    ] {
        let mut sim = cluster(web(4, UpdateConfig { parallelism: 0, ..acting(action, 0.0) }));
        sim.behaviour = Box::new(|task| {
            let goal = if image(task) == "new" { Starting } else { Running };
            (!task.status.reached(goal)).then_some((goal, ""))
        });
        set_image(&mut sim, "new");
        sim.settle();
        assert_eq!(count(&sim, "new", Starting), 4);
        sim.lead(vec![]);
        for task in sim.live("web") {
            sim.report(&task.id, Failed, "");
        }
        sim.lead(everything());
        sim.settle();
        assert_eq!(status(&sim), Some(expected), "{action:?}");
    }
}

#[test]
fn a_new_leader_watches_new_tasks_for_the_rest_of_their_time() {
    for fails in [true, false] {
        let mut sim = cluster(web(2, config(0)));
        set_image(&mut sim, "new");
        sim.advance(secs(2));
        sim.lead(everything());
        sim.advance(millis(2_900));
        assert_eq!(status(&sim), Some(UpdateState::Updating));
        if fails {
            let first = sim.live("web")[0].id.clone();
            sim.report(&first, Failed, "");
        }
        sim.advance(millis(100));
        assert_eq!(status(&sim), Some(if fails { UpdateState::Paused } else { UpdateState::Completed }));
    }
}

/// What a leader finds of a slot whose new task has failed: name, version, state, when it was made, when it ended.
type Past = (&'static str, u64, TaskState, u64, u64);

/// A leader that comes to an update of two slots an hour after it began, at which one failure is too many. In the first
/// slot these tasks have ended, the last of them a second ago; the other is still to be updated.
fn after(past: &[Past], change: impl Fn(&mut Task)) -> Option<UpdateState> {
    const NOW: u64 = 3_600;
    let mut web = web(2, UpdateConfig { delay: wire(secs(10)).unwrap(), ..config(1) });
    web.spec.task.restart = Some(policy(Any));
    web.spec_version = Some(swarm_api::v1::Version { index: 2 });
    let mut sim = Sim::new(|tx| drop(tx.create(node("n1")).unwrap()));
    let begin = sim.now().wall - secs(NOW);
    web.update_status = Some(UpdateStatus {
        state: UpdateState::Updating as i32,
        started_at: Some(begin.into()),
        ..Default::default()
    });
    let make = |id: &str, slot, version, (state, desired), made: u64, heard: u64| {
        let mut task = task(&web, id, slot, "n1", state, desired);
        task.spec_version = Some(swarm_api::v1::Version { index: version });
        if version != 2 {
            task.spec.runtime = container("outdated");
        }
        task.meta.created_at = Some((begin + secs(made)).into());
        task.status.applied_at = Some((begin + secs(heard)).into());
        task.status.timestamp = task.status.applied_at;
        change(&mut task);
        task
    };
    let ended = |(id, version, state, made, ended): &Past| {
        make(id, 1, *version, (*state, TaskState::Shutdown), *made, *ended)
    };
    let mut tasks: Vec<Task> = past.iter().map(ended).collect();
    tasks.push(make("held", 1, 2, (TaskState::Ready, TaskState::Ready), NOW - 1, NOW - 1));
    tasks.push(make("other", 2, 1, (Running, Running), 0, 0));
    sim.write(|tx| {
        tx.create(web.clone()).unwrap();
        tasks.iter().for_each(|task| drop(tx.create(task.clone()).unwrap()));
    });
    sim.lead(everything());
    sim.settle();
    status(&sim)
}

#[test]
fn a_new_leader_knows_that_a_task_failed_early_however_long_it_waited_before() {
    use TaskState::{Rejected, Shutdown};
    let (paused, goes_on) = (Some(UpdateState::Paused), Some(UpdateState::Updating));
    let unchanged = |_: &mut Task| {};
    assert_eq!(after(&[("new", 2, Failed, 3596, 3599)], unchanged), paused, "at once");
    assert_eq!(after(&[("new", 2, Failed, 3500, 3599)], unchanged), goes_on, "it ran for long");
    assert_eq!(
        after(&[("old", 1, Shutdown, 0, 3597), ("new", 2, Failed, 3540, 3599)], unchanged),
        paused,
        "it waited for the old one to stop"
    );
    assert_eq!(
        after(&[("old", 1, Shutdown, 0, 3541), ("new", 2, Failed, 3540, 3599)], unchanged),
        goes_on,
        "the old one stopped, and it ran for long"
    );
    assert_eq!(
        after(&[("new", 2, Rejected, 3500, 3599)], unchanged),
        paused,
        "its image was pulled for long"
    );
    assert_eq!(
        after(&[("first", 2, Failed, 100, 3590), ("new", 2, Failed, 3590, 3599)], unchanged),
        paused,
        "it was held for the delay of restarts"
    );
    let mute = |task: &mut Task| (task.status.applied_at, task.status.timestamp) = (None, None);
    assert_eq!(after(&[("new", 2, Failed, 3500, 3599)], mute), paused, "nobody knows when it ended");
    let set_back = |task: &mut Task| {
        if &*task.id == "new" {
            task.meta.created_at = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
            task.status.applied_at = Some(prost_types::Timestamp { seconds: 3, nanos: 0 });
        }
    };
    assert_eq!(after(&[("new", 2, Failed, 0, 0)], set_back), paused, "the clock was wrong when it was made");
}

/// A manager says when it gave a task up in the agent's stamp only.
#[test]
fn a_new_leader_counts_no_task_that_was_taken_away_when_it_had_run_for_long() {
    let taken = |at: u64| {
        move |task: &mut Task| {
            if task.status.state() == TaskState::Rejected {
                task.status.message = "task rejected by constraint enforcer".into();
                let made = task.meta.created_at.unwrap().seconds;
                task.status.applied_at = Some(prost_types::Timestamp { seconds: made + 1, nanos: 0 });
                task.status.timestamp = Some(prost_types::Timestamp { seconds: made + at as i64, nanos: 0 });
            }
        }
    };
    let past = [("new", 2, TaskState::Rejected, 3500, 3599)];
    assert_eq!(after(&past, taken(99)), Some(UpdateState::Updating));
    assert_eq!(after(&past, taken(4)), Some(UpdateState::Paused));
}

/// The wall clock was set forward between two reports (ruling: monitor windows are measured on the monotonic clock).
#[test]
fn a_clock_that_is_set_hides_no_failure_and_makes_none() {
    for (ran, jump, expected) in [(1, 3_600, UpdateState::Paused), (10, 0, UpdateState::Updating)] {
        let mut sim = cluster(web(2, UpdateConfig { delay: wire(secs(30)).unwrap(), ..config(1) }));
        set_image(&mut sim, "new");
        sim.settle();
        let first = sim.live("web").iter().find(|t| image(t) == "new").unwrap().clone();
        sim.advance(secs(ran));
        let mut at = first.status.applied_at.unwrap();
        at.seconds += jump;
        sim.write(|tx| {
            let mut task = tx.tasks().get(&first.id).unwrap().clone();
            task.status.state = Failed as i32;
            task.status.applied_at = Some(at);
            tx.update(task).unwrap();
        });
        sim.settle();
        assert_eq!(status(&sim), Some(expected), "after {ran} s and a jump by {jump}");
    }
}

/// A start-first update, paused: its new task waits for the end of its own delay, and not for the old one to stop.
#[test]
fn a_new_leader_holds_a_start_first_replacement_for_no_task_that_is_to_run_on() {
    let mut sim = amid(
        UpdateOrder::StartFirst,
        UpdateState::Paused,
        &[
            ("a", 1, 1, "n1", Running, Running),
            ("b", 2, 1, "n1", Running, Running),
            ("first", 2, 2, "n1", Failed, TaskState::Shutdown),
            ("held", 2, 2, "n1", TaskState::Ready, TaskState::Ready),
        ],
    );
    sim.advance(secs(5));
    let live: Vec<_> = sim.live("web").iter().map(|t| t.id.clone()).collect();
    assert_eq!(live, ["a", "held"]);
    assert_eq!(count(&sim, "old", Running), 1);
}
