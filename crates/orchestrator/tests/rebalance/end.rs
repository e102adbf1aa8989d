//! When a rebalance is over, and when it is not.

use swarm_api::extensions::PLACEMENT_STRATEGY;

use super::*;

fn on_request(replicas: u64, update: UpdateConfig) -> Service {
    let mut web = automatic(replicas, update);
    web.spec.annotations.labels.clear();
    web
}

fn is_requested(sim: &Sim) -> bool {
    sim.view().services().get("web").unwrap().spec.annotations.labels.contains_key(REBALANCE_NOW)
}

/// Tasks of these slots never get further than STARTING.
fn start(sim: &mut Sim, slots: std::ops::RangeInclusive<u64>) {
    sim.behaviour = Box::new(move |task| {
        let goal = if slots.contains(&task.slot) { Starting } else { Running };
        (!task.status.reached(goal)).then_some((goal, ""))
    });
}

/// One node on which the service is, with tasks of these slots that do not run yet, and another one that has come since.
fn starting(web: &Service, slots: std::ops::RangeInclusive<u64>) -> Sim {
    let mut sim = Sim::new(|tx| {
        drop(tx.create(node("n1")).unwrap());
        tx.create(web.clone()).unwrap();
    });
    start(&mut sim, slots);
    sim.lead(leader());
    sim.advance(secs(60));
    sim.add_node("n2");
    sim
}

#[test]
fn thousands_of_tasks_move_if_that_is_what_it_takes() {
    for web in [automatic(2_600, at_once(0)), on_request(2_600, at_once(400))] {
        let mut sim = on(&["n1"], &web);
        sim.add_node("n2");
        sim.settle();
        request(&mut sim);
        sim.advance(secs(60));
        assert_eq!((loads(&sim, ["n1", "n2"]), is_requested(&sim)), ([1_300, 1_300], false));
    }
}

#[test]
fn tasks_that_start_are_waited_for() {
    let mut sim = starting(&automatic(4, at_once(0)), 1..=4);
    sim.advance(secs(120));
    assert_eq!(sim.tasks("web").len(), 4, "none of them runs yet");
    start(&mut sim, 3..=4);
    sim.advance(secs(60));
    assert_eq!(loads(&sim, ["n1", "n2"]), [0, 2], "those that run have moved");
    sim.behaviour = Box::new(healthy);
    sim.advance(secs(60));
    assert_eq!((loads(&sim, ["n1", "n2"]), moved(&sim)), ([2, 2], 2));
}

#[test]
fn a_request_stands_until_tasks_run() {
    let mut sim = starting(&on_request(4, at_once(0)), 1..=4);
    request(&mut sim);
    sim.advance(secs(120));
    assert_eq!((moved(&sim), is_requested(&sim)), (0, true));
    sim.lead(leader());
    sim.advance(secs(120));
    assert_eq!((moved(&sim), is_requested(&sim)), (0, true));
    sim.behaviour = Box::new(healthy);
    sim.advance(secs(60));
    assert_eq!((loads(&sim, ["n1", "n2"]), moved(&sim), is_requested(&sim)), ([2, 2], 2, false));
}

#[test]
fn a_request_ends_when_the_spread_has_become_even_by_itself() {
    let mut sim = starting(&on_request(2, at_once(0)), 1..=2);
    request(&mut sim);
    sim.advance(secs(60));
    assert!(is_requested(&sim));
    sim.scale("web", 1);
    sim.advance(secs(60));
    assert_eq!((sim.live("web").len(), is_requested(&sim)), (1, false));
}

#[test]
fn tasks_that_come_to_run_while_others_move_move_too() {
    let mut sim = starting(&automatic(6, at_once(0)), 2..=6);
    sim.advance(secs(60));
    assert_eq!(loads(&sim, ["n1", "n2"]), [0, 1]);
    sim.behaviour = Box::new(healthy);
    sim.advance(secs(60));
    assert_eq!((loads(&sim, ["n1", "n2"]), moved(&sim)), ([3, 3], 3));
}

/// A task that is not there yet, whoever made it, is one that an update would not take away another for.
#[test]
fn tasks_that_start_count_as_many_as_may_be_down() {
    let mut sim = starting(&automatic(6, at_once(2)), 5..=6);
    sim.advance(secs(120));
    assert_eq!((loads(&sim, ["n1", "n2"]), moved(&sim)), ([4, 0], 0));
    start(&mut sim, 6..=6);
    for _ in 0..100 {
        sim.think();
        assert!(sim.running("web").values().sum::<usize>() >= 4);
        if !sim.agents() {
            break;
        }
    }
    sim.advance(secs(60));
    assert_eq!(loads(&sim, ["n1", "n2"]), [2, 3]);
}

/// What was found while most of them had still to start is not all there is to do.
#[test]
fn tasks_that_come_to_run_one_by_one_are_all_moved_in_the_end() {
    let mut sim = starting(&automatic(6, at_once(1)), 2..=6);
    sim.advance(secs(5));
    start(&mut sim, 7..=7);
    sim.advance(secs(600));
    assert_eq!(loads(&sim, ["n1", "n2"]), [3, 3]);
}

#[test]
fn with_start_first_nobody_goes_before_the_new_one_runs_however_many_start() {
    let mut sim = starting(&automatic(6, started_first(1)), 6..=6);
    sim.advance(secs(60));
    assert_eq!(sim.live("web").len(), 6, "the one that starts is the one that may");
    sim.behaviour = Box::new(healthy);
    for _ in 0..200 {
        sim.think();
        assert!(sim.running("web").values().sum::<usize>() >= 5);
        assert!(sim.live("web").len() <= 7);
        if !sim.agents() {
            sim.pass(secs(1));
        }
    }
    assert_eq!((loads(&sim, ["n1", "n2"]), sim.live("web").len()), ([3, 3], 6));
}

#[test]
fn others_do_not_move_again_and_again_for_tasks_that_never_run() {
    let update = UpdateConfig { failure_action: FailureAction::Continue as i32, ..at_once(0) };
    let mut sim = starting(&automatic(6, update), 5..=6);
    let mut tries = 0;
    sim.behaviour = Box::new(move |task| {
        let (state, err) = healthy(task)?;
        if state != Running || task.slot < 5 {
            return Some((state, err));
        }
        tries += 1;
        Some(if tries % 2 == 0 { (Starting, "") } else { (Failed, "broken") })
    });
    sim.advance(secs(600));
    let history = sim.tasks("web").iter().filter(|t| t.slot < 5).count();
    assert!(history <= 4 + 3, "{history} tasks for four slots that work");
}

#[test]
fn a_node_that_comes_while_tasks_move_gets_its_share_too() {
    let update = UpdateConfig { delay: wire(secs(15)).unwrap(), ..at_once(1) };
    let mut sim = on(&["n1"], &automatic(12, update));
    sim.add_node("n2");
    sim.advance(secs(30));
    sim.add_node("n3");
    sim.advance(secs(600));
    assert_eq!(loads(&sim, ["n1", "n2", "n3"]), [4, 4, 4]);
}

#[test]
fn a_node_that_goes_while_tasks_move_gets_none_and_what_it_had_is_shared() {
    let update = UpdateConfig { delay: wire(secs(30)).unwrap(), ..at_once(1) };
    let mut sim = on(&["n1", "n2"], &automatic(12, update));
    sim.add_node("n3");
    sim.advance(secs(20));
    assert_eq!(loads(&sim, ["n3"]), [1]);
    sim.edit_node("n3", |n| n.spec.availability = node_spec::Availability::Pause as i32);
    sim.advance(secs(600));
    assert_eq!((loads(&sim, ["n3"]), moved(&sim)), ([1], 1));
}

#[test]
fn tasks_that_go_to_the_fullest_node_are_not_taken_from_it() {
    for now in [false, true] {
        let mut web = automatic(6, at_once(0));
        web.spec.annotations.labels.insert(PLACEMENT_STRATEGY.into(), "binpack".into());
        let mut sim = on(&["n1"], &web);
        sim.add_node("n2");
        sim.settle();
        if now {
            request(&mut sim);
        }
        sim.advance(secs(600));
        assert_eq!((loads(&sim, ["n1", "n2"]), moved(&sim), is_requested(&sim)), ([6, 0], 0, false));
    }
}

#[test]
fn a_node_where_the_service_keeps_failing_gets_nothing() {
    let web = automatic(6, at_once(0));
    let mut sim = on(&["n1", "n2"], &web);
    let now = sim.now().wall;
    sim.write(|tx| {
        let web = tx.services().get("web").unwrap().clone();
        for n in 1..=5 {
            let mut failed = task(&web, &format!("f{n}"), n, "n3", Failed, TaskState::Shutdown);
            failed.status.timestamp = Some(now.into());
            tx.create(failed).unwrap();
        }
        tx.create(node("n3")).unwrap();
    });
    let before = sim.tasks("web").len();
    sim.advance(secs(120));
    assert_eq!((loads(&sim, ["n1", "n2", "n3"]), sim.tasks("web").len()), ([3, 3, 0], before));
}

/// An update that fails and is rolled back has begun, on one node of two.
fn failing_update(replicas: u64, pace: UpdateConfig) -> Sim {
    let failure_action = FailureAction::Rollback as i32;
    let mut web = on_request(replicas, UpdateConfig { failure_action, ..pace });
    web.spec.task.force_update = 1;
    let mut sim = on(&["n1"], &web);
    sim.add_node("n2");
    sim.behaviour = Box::new(|task| {
        let (state, err) = healthy(task)?;
        if task.spec.force_update == 2 && state == Running {
            Some((Failed, "broken"))
        } else {
            Some((state, err))
        }
    });
    sim.update_service("web", |spec| {
        spec.task.force_update = 2;
        let placement = Placement { constraints: vec!["node.id==n1".into()], ..Default::default() };
        spec.task.placement = Some(placement);
    });
    sim
}

/// As a leader of another make writes it, which does not know the label.
#[test]
fn a_rollback_brings_no_request_back() {
    let mut sim = failing_update(4, at_once(0));
    sim.write(|tx| {
        let mut web = tx.services().get("web").unwrap().clone();
        let previous = web.previous_spec.as_mut().unwrap();
        previous.annotations.labels.insert(REBALANCE_NOW.into(), "1".into());
        tx.update(web).unwrap();
    });
    sim.advance(secs(10));
    let asked = |sim: &Sim| is_requested(sim);
    assert_eq!(sim.view().services().get("web").unwrap().spec.task.force_update, 1);
    assert!(!asked(&sim));
    sim.advance(secs(120));
    assert!(!asked(&sim));
}

#[test]
fn a_request_outlives_a_rollback() {
    let mut sim = failing_update(6, at_once(1));
    request(&mut sim);
    sim.advance(secs(120));
    let web = sim.view().services().get("web").unwrap().clone();
    assert_eq!(web.spec.task.force_update, 1, "{:?}", web.update_status);
    assert_eq!((loads(&sim, ["n1", "n2"]), is_requested(&sim)), ([3, 3], false));
    assert!(moved(&sim) >= 3, "{}", moved(&sim));
}

#[test]
fn a_request_that_is_done_is_in_no_spec_to_go_back_to() {
    let mut sim = on(&["n1"], &on_request(4, at_once(0)));
    sim.update_service("web", |spec| drop(spec.annotations.labels.insert("a".into(), "b".into())));
    sim.add_node("n2");
    sim.settle();
    request(&mut sim);
    sim.write(|tx| {
        let mut web = tx.services().get("web").unwrap().clone();
        web.previous_spec.as_mut().unwrap().annotations.labels.insert(REBALANCE_NOW.into(), "1".into());
        tx.update(web).unwrap();
    });
    sim.advance(secs(60));
    let web = sim.view().services().get("web").unwrap().clone();
    assert!(!is_requested(&sim));
    assert!(!web.previous_spec.as_ref().unwrap().annotations.labels.contains_key(REBALANCE_NOW));
}

#[test]
fn a_node_that_comes_during_an_update_gets_its_share_when_that_is_over() {
    let update = UpdateConfig { delay: wire(secs(20)).unwrap(), ..at_once(1) };
    let mut sim = on(&["n1"], &automatic(4, update));
    sim.update_service("web", |spec| spec.task.force_update += 1);
    sim.advance(secs(50));
    sim.add_node("n2");
    sim.advance(secs(300));
    assert_eq!((loads(&sim, ["n1", "n2"]), moved(&sim)), ([2, 2], 4 + 1));
}

#[test]
fn a_request_during_an_update_is_done_after_it() {
    let update = UpdateConfig { delay: wire(secs(20)).unwrap(), ..at_once(1) };
    let mut sim = on(&["n1"], &on_request(4, update));
    sim.update_service("web", |spec| spec.task.force_update += 1);
    sim.advance(secs(50));
    sim.add_node("n2");
    sim.settle();
    request(&mut sim);
    sim.advance(secs(5));
    assert!(is_requested(&sim));
    sim.advance(secs(300));
    assert_eq!((loads(&sim, ["n1", "n2"]), is_requested(&sim)), ([2, 2], false));
}

#[test]
fn a_node_that_comes_gets_its_share_of_every_service() {
    let mut sim = Sim::new(|tx| {
        drop(tx.create(node("n1")).unwrap());
        for n in 0..250 {
            let mut web = automatic(2, at_once(0));
            web.id = format!("s{n:03}");
            web.spec.annotations.name.clone_from(&web.id);
            tx.create(web).unwrap();
        }
    });
    sim.lead(leader());
    sim.advance(secs(60));
    sim.add_node("n2");
    sim.advance(secs(60));
    let uneven = (0..250).filter(|n| sim.running(&format!("s{n:03}")).len() != 2);
    assert_eq!(uneven.collect::<Vec<_>>(), [] as [i32; 0]);
}
