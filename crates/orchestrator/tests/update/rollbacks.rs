//! Updates that go back, by themselves and by hand.

use super::*;

fn rolling_back(rollback: FailureAction, restart: RestartPolicy) -> Service {
    let mut web = web(4, acting(FailureAction::Rollback, 0.4));
    web.spec.rollback = Some(acting(rollback, 0.0));
    web.spec.task.restart = Some(restart);
    web
}

/// Every other new task fails.
fn every_other_fails(sim: &mut Sim) {
    sim.behaviour = Box::new(move |task| {
        let (state, err) = swarm_reconcile::sim::healthy(task)?;
        let fails = image(task) == "new" && task.slot % 2 == 1 && state == Running;
        if fails { Some((Failed, "broken")) } else { Some((state, err)) }
    });
}

#[test]
fn a_failing_update_rolls_back() {
    let mut sim = cluster(rolling_back(FailureAction::Pause, policy(Never)));
    every_other_fails(&mut sim);
    let before: Vec<_> = sim.tasks("web").iter().map(|t| t.id.clone()).collect();
    set_image(&mut sim, "new");
    sim.settle();
    let new = sim.tasks("web").iter().filter(|t| image(t) == "new").count();
    assert_eq!(new, 3, "two failures of four are too many");
    assert_eq!(status(&sim), Some(UpdateState::RollbackStarted));
    assert!(message(&sim).starts_with("update rolled back due to failure or early termination of task "));
    let view = sim.view();
    let web = view.services().get("web").unwrap();
    assert!(web.previous_spec.is_none() && web.previous_spec_version.is_none());
    sim.advance(secs(60));
    assert_eq!(count(&sim, "old", Running), 4);
    let back = sim.tasks("web").iter().filter(|t| image(t) == "old" && !before.contains(&t.id)).count();
    assert_eq!(back, 3, "one for each that was new");
    assert_eq!(
        (status(&sim), message(&sim)),
        (Some(UpdateState::RollbackCompleted), "rollback completed".into())
    );
}

#[test]
fn a_service_without_spec_versions_rolls_back_too() {
    let mut web = rolling_back(FailureAction::Pause, policy(Any));
    web.spec_version = None;
    let mut sim = cluster(web);
    every_other_fails(&mut sim);
    sim.write(|tx| {
        let mut web = tx.services().get("web").unwrap().clone();
        web.previous_spec = Some(web.spec.clone());
        web.spec.task.runtime = container("new");
        tx.update(web).unwrap();
    });
    sim.advance(secs(60));
    assert_eq!((count(&sim, "old", Running), status(&sim)), (4, Some(UpdateState::RollbackCompleted)));
}

/// An update to a broken image whose rollback fails as well.
fn failing_rollback(action: FailureAction) -> Sim {
    let mut sim = cluster(rolling_back(action, policy(Never)));
    sim.behaviour = Box::new(move |task| {
        let (state, err) = swarm_reconcile::sim::healthy(task)?;
        if state == Running { Some((Failed, "broken")) } else { Some((state, err)) }
    });
    set_image(&mut sim, "new");
    sim.advance(secs(120));
    sim
}

#[test]
fn a_failing_rollback_pauses() {
    let sim = failing_rollback(FailureAction::Pause);
    assert_eq!(status(&sim), Some(UpdateState::RollbackPaused));
    assert!(message(&sim).starts_with("update paused due to"), "{}", message(&sim));
}

#[test]
fn a_failing_rollback_goes_on_if_it_is_told_to() {
    let sim = failing_rollback(FailureAction::Continue);
    assert_eq!(status(&sim), Some(UpdateState::RollbackCompleted));
    // What each slot had, one after the other. The update came as far as the second one.
    let images = |slot: u64| {
        let tasks = sim.tasks("web").into_iter().filter(|t| t.slot == slot);
        tasks.map(|t| image(&t).to_owned()).collect::<Vec<_>>()
    };
    for slot in [1, 2] {
        assert_eq!(images(slot), ["old", "new", "old"], "slot {slot}");
    }
    for slot in [3, 4] {
        assert_eq!(images(slot), ["old"], "slot {slot}");
    }
    assert_eq!((count(&sim, "old", Failed), count(&sim, "old", Running)), (2, 2));
}

/// `orchestration.md` §20.14: the original ends in COMPLETED.
#[test]
fn a_rollback_is_never_rolled_back() {
    let sim = failing_rollback(FailureAction::Rollback);
    assert_eq!(status(&sim), Some(UpdateState::RollbackPaused));
    assert!(message(&sim).starts_with("rollback paused due to"), "{}", message(&sim));
}

/// `orchestration.md` §20.15: the original stays in UPDATING for good.
#[test]
fn a_rollback_without_a_previous_spec_pauses_and_says_so() {
    let mut sim = cluster(web(2, acting(FailureAction::Rollback, 0.0)));
    broken(&mut sim, "new");
    sim.update_service("web", |spec| spec.task.runtime = container("new"));
    sim.write(|tx| {
        let mut web = tx.services().get("web").unwrap().clone();
        web.previous_spec = None;
        tx.update(web).unwrap();
    });
    sim.settle();
    assert_eq!(status(&sim), Some(UpdateState::Paused));
    assert!(message(&sim).ends_with("no previous spec to roll back to"));
}

/// As `UpdateService` does it when it is asked to roll back.
fn roll_back(sim: &mut Sim) {
    let now = sim.now().wall;
    sim.write(|tx| {
        let mut web = tx.services().get("web").unwrap().clone();
        rolled_back(&mut web, now);
        tx.update(web).unwrap();
    });
}

#[test]
fn a_rollback_by_hand_goes_at_the_pace_of_rollbacks_and_can_be_undone() {
    let mut web = web(4, config(0));
    web.spec.rollback = Some(UpdateConfig { delay: wire(secs(10)).unwrap(), ..config(1) });
    let mut sim = cluster(web);
    set_image(&mut sim, "new");
    sim.advance(secs(10));
    roll_back(&mut sim);
    sim.settle();
    assert_eq!((count(&sim, "old", Running), count(&sim, "new", Running)), (1, 3));
    assert_eq!(message(&sim), "manually requested rollback");
    sim.advance(secs(60));
    assert_eq!((count(&sim, "old", Running), status(&sim)), (4, Some(UpdateState::RollbackCompleted)));
    roll_back(&mut sim);
    sim.advance(secs(60));
    assert_eq!((count(&sim, "new", Running), sim.live("web").len()), (4, 4));
    assert_eq!(status(&sim), Some(UpdateState::RollbackCompleted));
}

#[test]
fn a_rollback_by_hand_ends_an_update_under_way() {
    let mut sim = cluster(web(4, UpdateConfig { delay: wire(secs(10)).unwrap(), ..config(1) }));
    set_image(&mut sim, "new");
    sim.advance(secs(10));
    assert_eq!(count(&sim, "new", Running), 2);
    roll_back(&mut sim);
    sim.advance(secs(60));
    assert_eq!((count(&sim, "old", Running), sim.live("web").len()), (4, 4));
    assert_eq!(status(&sim), Some(UpdateState::RollbackCompleted));
}

/// They were asked to stop, and are as good as new ones now.
#[test]
fn tasks_from_before_that_stop_only_now_fail_no_rollback() {
    for end in [Complete, Failed] {
        let mut sim = cluster(web(2, config(0)));
        let old: Vec<_> = sim.tasks("web").iter().map(|t| (t.id.clone(), end, "")).collect();
        sim.agents_stop_tasks = false;
        set_image(&mut sim, "new");
        sim.settle();
        roll_back(&mut sim);
        sim.settle();
        sim.report_all(&old);
        sim.agents_stop_tasks = true;
        sim.advance(secs(60));
        assert_eq!((status(&sim), count(&sim, "old", Running)), (Some(UpdateState::RollbackCompleted), 2));
    }
}

/// The tasks that failed are what the rollback goes back to.
#[test]
fn what_failed_before_a_rollback_began_does_not_fail_it() {
    let mut sim = cluster(web(2, UpdateConfig { parallelism: 0, ..acting(FailureAction::Rollback, 0.0) }));
    set_image(&mut sim, "new");
    sim.settle();
    sim.scale("web", 3);
    sim.settle();
    sim.advance(secs(1));
    let new = sim.live("web")[0].id.clone();
    sim.report(&new, Failed, "broken");
    sim.think();
    assert_eq!((status(&sim), sim.live("web").len()), (Some(UpdateState::RollbackCompleted), 2));
}

/// Back and back again the spec is the one for which the pause was decided; the update is another one.
#[test]
fn a_pause_that_was_decided_for_an_update_halts_no_rollback() {
    let mut sim = cluster(web(2, acting(FailureAction::Pause, 0.0)));
    broken(&mut sim, "new");
    set_image(&mut sim, "new");
    sim.think();
    while count(&sim, "new", Failed) == 0 {
        assert!(sim.agents());
        if count(&sim, "new", Failed) == 0 {
            sim.think();
        }
    }
    let decided = sim.decide();
    roll_back(&mut sim);
    roll_back(&mut sim);
    decided.into_iter().for_each(|batch| sim.commit(batch));
    assert_eq!(status(&sim), Some(UpdateState::RollbackStarted));
}

/// Its record says that it failed; but that was another task's business then.
#[test]
fn a_spec_that_comes_back_runs_again_whatever_became_of_its_tasks_long_ago() {
    let restart = RestartPolicy { max_attempts: 1, delay: wire(secs(1)), ..policy(Any) };
    let mut a = web(1, acting(FailureAction::Pause, 0.0));
    a.spec.task.restart = Some(restart);
    let mut sim = cluster(a);
    let first = sim.live("web")[0].id.clone();
    sim.report(&first, Failed, "");
    sim.advance(secs(60));
    broken(&mut sim, "new");
    set_image(&mut sim, "new");
    sim.advance(secs(60));
    assert_eq!((status(&sim), sim.live("web").len()), (Some(UpdateState::Paused), 0));
    set_image(&mut sim, "old");
    sim.advance(secs(60));
    assert_eq!((status(&sim), count(&sim, "old", Running)), (Some(UpdateState::Completed), 1));
}
