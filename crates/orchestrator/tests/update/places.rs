//! Updates of services whose slots come and go meanwhile.

use super::*;

#[test]
fn scaling_down_during_an_update_leaves_no_task_too_many() {
    for replicas in [0, 2] {
        let mut sim = cluster(web(6, config(3)));
        sim.agents_stop_tasks = false;
        set_image(&mut sim, "new");
        sim.settle();
        sim.scale("web", replicas);
        sim.settle();
        assert_eq!(sim.live("web").len(), replicas as usize, "while the old ones stop");
        sim.agents_stop_tasks = true;
        sim.advance(secs(120));
        assert_eq!(sim.live("web").len(), replicas as usize);
        assert_eq!(sim.running("web").values().sum::<usize>(), replicas as usize);
    }
}

/// The slots that are scaled away have no share in it, failed or not.
#[test]
fn the_share_of_failures_is_that_of_the_slots_that_are_left() {
    for (left, expected) in [(2, UpdateState::Paused), (3, UpdateState::Updating)] {
        let update = UpdateConfig { delay: wire(secs(10)).unwrap(), ..acting(FailureAction::Pause, 0.4) };
        let mut sim = cluster(web(6, update));
        set_image(&mut sim, "new");
        sim.settle();
        sim.scale("web", left);
        broken(&mut sim, "new");
        sim.advance(secs(10));
        assert_eq!(count(&sim, "new", Failed), 1, "{left}");
        assert_eq!(status(&sim), Some(expected), "one of {left}");
    }
}

#[test]
fn an_update_began_when_it_began_however_often_the_service_is_scaled() {
    let started =
        |sim: &Sim| sim.view().services().get("web").unwrap().update_status.clone().unwrap().started_at;
    let mut sim = cluster(web(4, UpdateConfig { delay: wire(secs(10)).unwrap(), ..config(1) }));
    set_image(&mut sim, "new");
    sim.settle();
    let begun = started(&sim);
    for replicas in [5, 3] {
        sim.advance(secs(5));
        sim.scale("web", replicas);
        sim.settle();
        assert_eq!((status(&sim), started(&sim)), (Some(UpdateState::Updating), begun));
    }
    sim.lead(everything());
    sim.settle();
    sim.scale("web", 4);
    sim.settle();
    assert_eq!(started(&sim), begun, "another leader");
    set_image(&mut sim, "newer");
    sim.settle();
    assert_ne!(started(&sim), begun, "another update");
}

/// An update to what the slots have already, whose status is that of an earlier one.
#[test]
fn an_update_that_ends_says_when_even_if_one_before_it_did() {
    let (old, now) =
        (Some(prost_types::Timestamp { seconds: 7, nanos: 0 }), |sim: &Sim| Some(sim.now().wall.into()));
    for (before, after) in [
        (UpdateState::Completed, UpdateState::Completed),
        (UpdateState::RollbackCompleted, UpdateState::Completed),
        (UpdateState::RollbackStarted, UpdateState::RollbackCompleted),
    ] {
        let mut web = web(1, config(1));
        let state = before as i32;
        web.update_status =
            Some(UpdateStatus { state, started_at: old, completed_at: old, ..Default::default() });
        let mut outdated = task(&web, "a", 1, "n1", Running, Running);
        outdated.spec_version = None;
        outdated.spec.force_update = 7;
        let mut sim = Sim::new(|tx| {
            tx.create(node("n1")).unwrap();
            tx.create(web.clone()).unwrap();
            tx.create(outdated.clone()).unwrap();
        });
        sim.lead(everything());
        sim.advance(secs(5));
        let status = sim.view().services().get("web").unwrap().update_status.clone().unwrap();
        assert_eq!((status.state(), status.completed_at), (after, now(&sim)), "{before:?}");
    }
}

/// Nobody checks the configuration of rollbacks (`orchestration.md` §18.3.10), so anything may be in a store.
#[test]
fn times_without_end_stop_nothing() {
    let endless = prost_types::Duration { seconds: i64::MAX, nanos: i32::MAX };
    let config =
        UpdateConfig { delay: endless, monitor: Some(endless), ..acting(FailureAction::Rollback, 0.0) };
    let restart =
        RestartPolicy { delay: Some(endless), window: Some(endless), max_attempts: 3, ..policy(Any) };
    let mut web = web(2, config);
    web.spec.rollback = Some(UpdateConfig { failure_action: FailureAction::Pause as i32, ..config });
    web.spec.task.restart = Some(restart);
    if let Some(task_spec::Runtime::Container(container)) = &mut web.spec.task.runtime {
        container.stop_grace_period = Some(endless);
    }
    for reconcilers in [everything, leader] {
        let mut sim = Sim::new(|tx| ["n1", "n2"].iter().for_each(|id| drop(tx.create(node(id)).unwrap())));
        sim.lead(reconcilers());
        sim.write(|tx| drop(tx.create(web.clone()).unwrap()));
        sim.settle();
        set_image(&mut sim, "new");
        sim.advance(secs(1));
        assert_eq!((count(&sim, "new", Running), status(&sim)), (1, Some(UpdateState::Updating)));
        sim.lead(reconcilers());
        sim.advance(secs(60));
        let new = sim.live("web").iter().find(|t| image(t) == "new").unwrap().id.clone();
        sim.report(&new, Failed, "");
        sim.advance(secs(60));
        let (old, state) = (count(&sim, "old", Running), status(&sim));
        assert_eq!((old, state), (1, Some(UpdateState::RollbackStarted)), "it rests before the next");
        let old = sim.live("web")[0].id.clone();
        sim.report(&old, Failed, "");
        sim.edit_node("n2", |n| n.status.state = swarm_api::v1::node_status::State::Down as i32);
        sim.advance(secs(60));
        sim.lead(reconcilers());
        sim.advance(secs(60));
    }
}

/// Another service takes up a whole turn, in which this one is scaled: it is looked at only in the next.
#[test]
fn an_update_outlives_a_turn_that_has_too_much_to_do() {
    let web = web(5, UpdateConfig { delay: wire(secs(10)).unwrap(), ..config(1) });
    let mut sim = Sim::new(|tx| drop(tx.create(web.clone()).unwrap()));
    sim.lead(alone());
    sim.think();
    set_image(&mut sim, "new");
    sim.think();
    let first = sim.live("web").iter().find(|t| image(t) == "new").unwrap().id.clone();
    sim.report(&first, Running, "");
    sim.think();
    let news = sim.live("web").iter().find(|t| image(t) == "old").unwrap().id.clone();
    sim.write(|tx| {
        tx.create(service("huge", 10_000)).unwrap();
        let mut web = tx.services().get("web").unwrap().clone();
        web.spec.mode = service("web", 5).spec.mode;
        web.spec_version = Some(web.meta.version);
        web.update_status = None;
        tx.update(web).unwrap();
        let mut task = tx.tasks().get(&news).unwrap().clone();
        task.status.message = "said again".into();
        tx.update(task).unwrap();
    });
    sim.think();
    assert_eq!(status(&sim), Some(UpdateState::Updating));
    assert_eq!(
        sim.live("web").iter().filter(|t| image(t) == "new").count(),
        1,
        "it still rests after the first"
    );
}

/// Its task is lost with its node, and by its policy nobody takes its place: nothing more is to come of it.
#[test]
fn an_update_does_not_wait_for_a_task_that_is_lost_for_good() {
    let once = RestartPolicy { condition: Never as i32, ..Default::default() };
    let goes_on = UpdateConfig { failure_action: FailureAction::Continue as i32, ..config(1) };
    let web = with_restart(web(2, goes_on), once);
    let mut sim = Sim::new(|tx| {
        ["n1", "n2"].iter().for_each(|id| drop(tx.create(node(id)).unwrap()));
        tx.create(web.clone()).unwrap();
    });
    sim.lead(everything());
    sim.settle();
    sim.behaviour = Box::new(|task| match (image(task), task.status.state()) {
        ("new", TaskState::Preparing) => None,
        ("new", _) => Some((TaskState::Preparing, "")),
        _ => swarm_reconcile::sim::healthy(task),
    });
    set_image(&mut sim, "new");
    sim.advance(secs(1));
    let first = sim.live("web").into_iter().find(|t| image(t) == "new").unwrap();
    assert_eq!(first.status.state(), TaskState::Preparing);
    sim.silent.push(first.node_id.to_string());
    sim.edit_node(&first.node_id, |n| n.status.state = swarm_api::v1::node_status::State::Down as i32);
    sim.advance(secs(60));
    let second = sim.tasks("web").into_iter().filter(|t| image(t) == "new" && t.slot != first.slot).count();
    assert_eq!(second, 1, "the update goes on in the other slot");
}
