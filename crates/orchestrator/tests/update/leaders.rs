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
    let mut sim = found(&[("a", 1, Running, Running), ("b", 1, Running, Running)], None);
    sim.advance(secs(30));
    assert_eq!((sim.live("web").len(), sim.tasks("web").len()), (1, 2));
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
    assert_eq!(status(&found(&tasks, Some(UpdateState::Paused))), Some(UpdateState::Paused));
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
