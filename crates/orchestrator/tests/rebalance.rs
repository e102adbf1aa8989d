//! Rebalancing, rule by rule (decision 0071).
#![allow(clippy::unwrap_used)]

mod common;
#[allow(dead_code)] // no test needs all of it
#[path = "simulation/dice.rs"]
mod dice;
#[path = "rebalance/end.rs"]
mod end;
#[path = "rebalance/random.rs"]
mod random;

use std::time::Duration;

use common::*;
use swarm_api::TaskState::{self, Failed, Running, Starting};
use swarm_api::extensions::{REBALANCE, REBALANCE_NOW};
use swarm_api::v1::placement_preference::Preference;
use swarm_api::v1::update_config::{FailureAction, UpdateOrder};
use swarm_api::v1::{
    NodeDescription, Placement, PlacementPreference, ResourceRequirements, Resources, Service, SpreadOver,
    UpdateConfig, node_spec, node_status,
};
use swarm_reconcile::sim::healthy;

fn automatic(replicas: u64, update: UpdateConfig) -> Service {
    let mut web = service("web", replicas);
    web.spec.annotations.labels.insert(REBALANCE.into(), "auto".into());
    web.spec.update = Some(update);
    web
}

fn at_once(parallelism: u64) -> UpdateConfig {
    UpdateConfig { parallelism, ..Default::default() }
}

fn started_first(parallelism: u64) -> UpdateConfig {
    UpdateConfig { order: UpdateOrder::StartFirst as i32, ..at_once(parallelism) }
}

/// The service is spread over this label.
fn prefer(web: &mut Service, label: &str) {
    let spread = SpreadOver { spread_descriptor: label.into() };
    let preference = PlacementPreference { preference: Some(Preference::Spread(spread)) };
    web.spec.task.placement = Some(Placement { preferences: vec![preference], ..Default::default() });
}

/// A cluster of these nodes on which the service runs.
fn on(nodes: &[&str], web: &Service) -> Sim {
    let mut sim = Sim::new(|tx| {
        nodes.iter().for_each(|id| drop(tx.create(node(id)).unwrap()));
        tx.create(web.clone()).unwrap();
    });
    sim.lead(leader());
    sim.advance(secs(60));
    sim
}

/// Running tasks on each of these nodes.
fn loads<const N: usize>(sim: &Sim, nodes: [&str; N]) -> [usize; N] {
    let running = sim.running("web");
    nodes.map(|n| running.get(n).copied().unwrap_or(0))
}

fn moved(sim: &Sim) -> usize {
    sim.tasks("web").iter().filter(|t| t.desired_state() == TaskState::Shutdown).count()
}

/// As the RPC does it.
fn request(sim: &mut Sim) {
    sim.write(|tx| {
        let mut web = tx.services().get("web").unwrap().clone();
        web.spec.annotations.labels.insert(REBALANCE_NOW.into(), "1".into());
        tx.update(web).unwrap();
    });
}

#[test]
fn the_fewest_tasks_move_when_a_node_comes() {
    let mut sim = on(&["n1", "n2"], &automatic(7, at_once(0)));
    sim.add_node("n3");
    sim.advance(secs(60));
    let mut even = loads(&sim, ["n1", "n2", "n3"]);
    even.sort_unstable();
    assert_eq!((even, moved(&sim)), ([2, 2, 3], 2));
    assert_eq!(sim.view().services().get("web").unwrap().update_status, None, "it is no update");
}

#[test]
fn nothing_moves_unless_it_is_asked_for() {
    let mut web = automatic(6, at_once(0));
    web.spec.annotations.labels.clear();
    let mut sim = on(&["n1", "n2"], &web);
    sim.add_node("n3");
    sim.advance(secs(600));
    assert_eq!((loads(&sim, ["n1", "n2", "n3"]), moved(&sim)), ([3, 3, 0], 0));
}

#[test]
fn on_request_it_is_done_once_and_leaves_no_trace_in_the_service() {
    let mut web = automatic(6, at_once(0));
    web.spec.annotations.labels.clear();
    let mut sim = on(&["n1", "n2"], &web);
    sim.add_node("n3");
    sim.advance(secs(60));
    let before = sim.view().services().get("web").unwrap().clone();
    request(&mut sim);
    sim.settle();
    assert_eq!(loads(&sim, ["n1", "n2", "n3"]), [2, 2, 2]);
    sim.advance(secs(60));
    let after = sim.view().services().get("web").unwrap().clone();
    assert_eq!((&after.spec, &after.previous_spec), (&before.spec, &before.previous_spec));
    assert_eq!((after.spec_version, &after.update_status), (before.spec_version, &None));
    sim.add_node("n4");
    sim.advance(secs(600));
    assert_eq!((loads(&sim, ["n4"]), moved(&sim)), ([0], 2));
}

#[test]
fn an_even_spread_stays_as_it_is() {
    let mut sim = on(&["n1", "n2", "n3"], &automatic(7, at_once(0)));
    request(&mut sim);
    sim.advance(secs(60));
    assert_eq!(moved(&sim), 0);
    let labels = sim.view().services().get("web").unwrap().spec.annotations.labels.clone();
    assert!(!labels.contains_key(REBALANCE_NOW));
}

#[test]
fn a_node_that_returns_gets_its_share_back() {
    let mut sim = on(&["n1", "n2", "n3"], &automatic(6, at_once(0)));
    sim.silent.push("n3".into());
    sim.edit_node("n3", |n| n.status.state = node_status::State::Down as i32);
    sim.advance(secs(60));
    sim.silent.clear();
    sim.edit_node("n3", |n| n.status.state = node_status::State::Ready as i32);
    sim.settle();
    assert_eq!(loads(&sim, ["n1", "n2", "n3"]), [3, 3, 0], "not before nodes have come to rest");
    sim.advance(secs(60));
    assert_eq!(loads(&sim, ["n1", "n2", "n3"]), [2, 2, 2]);
}

#[test]
fn a_node_that_flaps_gets_nothing() {
    let mut sim = on(&["n1", "n2"], &automatic(6, at_once(0)));
    sim.add_node("n3");
    for _ in 0..20 {
        sim.advance(secs(5));
        sim.edit_node("n3", |n| n.status.state = node_status::State::Disconnected as i32);
        sim.advance(secs(5));
        sim.edit_node("n3", |n| n.status.state = node_status::State::Ready as i32);
    }
    assert_eq!(moved(&sim), 0);
    sim.advance(secs(60));
    assert_eq!(moved(&sim), 2);
}

#[test]
fn tasks_move_at_the_pace_of_updates() {
    let update = UpdateConfig { delay: wire(secs(30)).unwrap(), ..at_once(1) };
    let mut sim = on(&["n1"], &automatic(8, update));
    sim.add_node("n2");
    sim.advance(secs(10));
    for expected in 1..=4 {
        assert_eq!(loads(&sim, ["n1", "n2"]), [8 - expected, expected]);
        sim.advance(secs(30));
    }
    sim.advance(secs(300));
    assert_eq!(moved(&sim), 4);
}

#[test]
fn no_more_tasks_are_down_than_the_update_allows() {
    let mut sim = on(&["n1"], &automatic(8, at_once(2)));
    sim.behaviour = Box::new(|t| healthy(t).filter(|_| t.node_id == "n1"));
    sim.add_node("n2");
    sim.advance(secs(60));
    assert_eq!((loads(&sim, ["n1", "n2"]), moved(&sim)), ([6, 0], 2), "two wait on the new node");
}

#[test]
fn start_first_never_has_fewer_tasks_running_than_wanted() {
    let mut sim = on(&["n1", "n2"], &automatic(6, started_first(1)));
    sim.behaviour = Box::new(|task| {
        let goal = if task.node_id == "n3" { Starting } else { Running };
        (!task.status.reached(goal)).then_some((goal, ""))
    });
    sim.add_node("n3");
    sim.advance(secs(60));
    assert_eq!((loads(&sim, ["n1", "n2", "n3"]), sim.live("web").len()), ([3, 3, 0], 7));
    sim.behaviour = Box::new(healthy);
    for _ in 0..100 {
        sim.think();
        assert!(sim.running("web").values().sum::<usize>() >= 6);
        if !sim.agents() {
            break;
        }
    }
    sim.advance(secs(60));
    assert_eq!((loads(&sim, ["n1", "n2", "n3"]), sim.live("web").len()), ([2, 2, 2], 6));
}

#[test]
fn tasks_that_fail_where_they_move_stop_the_rest() {
    for order in [UpdateOrder::StartFirst, UpdateOrder::StopFirst] {
        let update = UpdateConfig { order: order as i32, ..at_once(1) };
        let mut sim = on(&["n1", "n2"], &automatic(6, update));
        let before: Vec<_> = sim.live("web").iter().map(|t| t.id.clone()).collect();
        sim.behaviour = Box::new(|task| {
            let (state, err) = healthy(task)?;
            if task.node_id == "n3" && state == Running {
                Some((Failed, "broken"))
            } else {
                Some((state, err))
            }
        });
        sim.add_node("n3");
        sim.advance(secs(300));
        let stayed = sim.live("web").iter().filter(|t| before.contains(&t.id)).count();
        match order {
            UpdateOrder::StartFirst => assert_eq!((stayed, sim.live("web").len()), (6, 6)),
            UpdateOrder::StopFirst => assert_eq!(stayed, 5, "no other task was asked to move"),
        }
    }
}

/// Of two tasks that are to move one by one the first fails so long after it came to run there; it is watched for twenty
/// seconds. How many have moved in the end.
fn moved_though_one_fails(after: Duration, failure_action: FailureAction) -> usize {
    let (delay, monitor) = (wire(secs(60)).unwrap(), wire(secs(20)));
    let update = UpdateConfig { delay, monitor, failure_action: failure_action as i32, ..at_once(1) };
    let mut sim = on(&["n1", "n2"], &automatic(6, update));
    let before: Vec<_> = sim.live("web").iter().map(|t| t.id.clone()).collect();
    sim.add_node("n3");
    sim.advance(secs(10));
    assert_eq!(loads(&sim, ["n3"]), [1]);
    let first = sim.live("web").iter().find(|t| t.node_id == "n3").unwrap().id.clone();
    sim.advance(after);
    sim.report(&first, Failed, "broken");
    sim.advance(secs(300));
    let live = sim.live("web");
    assert_eq!(live.len(), 6);
    live.iter().filter(|t| !before.contains(&t.id)).count()
}

#[test]
fn a_moved_task_that_fails_within_the_monitor_period_stops_the_rest() {
    assert_eq!(moved_though_one_fails(secs(19), FailureAction::Pause), 1);
    assert_eq!(moved_though_one_fails(secs(19), FailureAction::Rollback), 1, "nothing goes back");
    assert_eq!(moved_though_one_fails(secs(19), FailureAction::Continue), 2, "it is told to go on");
}

#[test]
fn a_moved_task_that_fails_after_the_monitor_period_stops_nothing() {
    assert_eq!(moved_though_one_fails(secs(21), FailureAction::Pause), 2);
}

#[test]
fn a_service_that_goes_on_despite_failures_is_moved_as_far_as_was_planned() {
    let update = UpdateConfig { failure_action: FailureAction::Continue as i32, ..started_first(1) };
    let mut sim = on(&["n1", "n2"], &automatic(6, update));
    sim.behaviour = Box::new(|task| {
        let (state, err) = healthy(task)?;
        if task.node_id == "n3" && state == Running { Some((Failed, "broken")) } else { Some((state, err)) }
    });
    sim.add_node("n3");
    sim.advance(secs(3600));
    let failed = sim.tasks("web").iter().filter(|t| t.status.state() == Failed).count();
    assert_eq!((failed, loads(&sim, ["n1", "n2"])), (2, [3, 3]), "two attempts, as many as were to move");
}

#[test]
fn nothing_moves_to_a_node_where_it_may_not_be() {
    let mut web = automatic(4, at_once(0));
    web.spec.task.placement =
        Some(Placement { constraints: vec!["node.id!=n3".into()], ..Default::default() });
    let mut sim = on(&["n1", "n2"], &web);
    sim.add_node("n3");
    sim.advance(secs(60));
    assert_eq!((loads(&sim, ["n1", "n2", "n3"]), moved(&sim)), ([2, 2, 0], 0));
}

#[test]
fn a_small_node_gets_what_it_has_room_for() {
    let described = |cpus: i64| {
        let resources = Resources { nano_cpus: cpus, ..Default::default() };
        Some(NodeDescription { resources: Some(resources), ..Default::default() })
    };
    let mut web = automatic(8, at_once(0));
    let reservations = Some(Resources { nano_cpus: 1, ..Default::default() });
    web.spec.task.resources = Some(ResourceRequirements { reservations, ..Default::default() });
    let mut sim = Sim::new(|tx| {
        let mut big = node("n1");
        big.description = described(8);
        tx.create(big).unwrap();
        tx.create(web.clone()).unwrap();
    });
    sim.lead(leader());
    sim.advance(secs(60));
    let mut small = node("n2");
    small.description = described(2);
    sim.write(|tx| drop(tx.create(small.clone()).unwrap()));
    sim.advance(secs(60));
    assert_eq!((loads(&sim, ["n1", "n2"]), moved(&sim)), ([6, 2], 2));
}

#[test]
fn a_spread_over_branches_is_kept() {
    let mut web = automatic(8, at_once(0));
    prefer(&mut web, "node.labels.az");
    let in_zone = |id: &str, zone: &str| {
        let mut node = node(id);
        node.spec.annotations.labels.insert("az".into(), zone.into());
        node
    };
    let mut sim = Sim::new(|tx| {
        for (id, zone) in [("a1", "a"), ("b1", "b"), ("b2", "b")] {
            tx.create(in_zone(id, zone)).unwrap();
        }
        tx.create(web.clone()).unwrap();
    });
    sim.lead(leader());
    sim.advance(secs(60));
    assert_eq!((loads(&sim, ["a1", "b1", "b2"]), moved(&sim)), ([4, 2, 2], 0));
    // Another node of the first branch takes half of that; the other branch is left alone.
    let new = in_zone("a2", "a");
    sim.write(|tx| drop(tx.create(new.clone()).unwrap()));
    sim.advance(secs(60));
    assert_eq!((loads(&sim, ["a1", "a2", "b1", "b2"]), moved(&sim)), ([2, 2, 2, 2], 2));
    // A new branch takes from both.
    let new = in_zone("c1", "c");
    sim.write(|tx| drop(tx.create(new.clone()).unwrap()));
    sim.advance(secs(60));
    assert_eq!((loads(&sim, ["c1"]), moved(&sim)), ([2], 4));
}

/// What was planned may be old: by then another service may have the room.
#[test]
fn a_move_whose_node_has_been_filled_meanwhile_goes_elsewhere() {
    let delay = wire(secs(10)).unwrap();
    let mut web = automatic(8, UpdateConfig { delay, ..started_first(1) });
    let reserved = |cpus: i64| {
        let reservations = Some(Resources { nano_cpus: cpus, ..Default::default() });
        Some(ResourceRequirements { reservations, ..Default::default() })
    };
    prefer(&mut web, "node.labels.az");
    web.spec.task.resources = reserved(1);
    let in_zone = |id: &str, zone: &str| {
        let mut node = node(id);
        node.spec.annotations.labels.insert("az".into(), zone.into());
        let resources = Some(Resources { nano_cpus: 8, ..Default::default() });
        node.description = Some(NodeDescription { resources, ..Default::default() });
        node
    };
    let mut sim = Sim::new(|tx| {
        for (id, zone) in [("a1", "a"), ("b1", "b")] {
            tx.create(in_zone(id, zone)).unwrap();
        }
        tx.create(web.clone()).unwrap();
    });
    sim.lead(leader());
    sim.advance(secs(60));
    assert_eq!(loads(&sim, ["a1", "b1"]), [4, 4]);
    // Two tasks are to move, one to each of these; when one has, the other node is full.
    sim.write(|tx| ["b2", "b3"].iter().for_each(|id| drop(tx.create(in_zone(id, "b")).unwrap())));
    while moved(&sim) == 0 {
        sim.advance(secs(1));
    }
    let full = if loads(&sim, ["b2"]) == [0] { "b2" } else { "b3" };
    let mut other = service("other", 1);
    other.spec.task.resources = reserved(8);
    let large = task(&other, "large", 1, full, Running, Running);
    sim.write(|tx| {
        tx.create(other.clone()).unwrap();
        tx.create(large.clone()).unwrap();
    });
    sim.advance(secs(15));
    assert_eq!((loads(&sim, [full]), sim.live("web").len()), ([0], 8));
    let states = sim.live("web").iter().map(|t| t.status.state()).collect::<Vec<_>>();
    assert!(states.iter().all(|state| *state == Running), "nothing waits for the full node: {states:?}");
}

/// The old task fails while the new one waits for its node: whoever gives the new one up sees to the slot.
#[test]
fn a_slot_whose_move_is_given_up_gets_another_task() {
    let mut web = automatic(4, started_first(1));
    prefer(&mut web, "node.labels.az");
    let mut sim = on(&["n1"], &web);
    assert_eq!(loads(&sim, ["n1"]), [4]);
    // Nobody schedules: the new task waits.
    sim.lead(alone());
    sim.add_node("n2");
    sim.advance(secs(10));
    let new = sim.live("web").into_iter().find(|t| t.node_id == "n2").unwrap();
    let old = sim.live("web").into_iter().find(|t| t.slot == new.slot && t.id != new.id).unwrap();
    sim.report(&old.id, Failed, "broken");
    sim.advance(secs(10));
    assert_eq!(sim.live("web").len(), 4, "the new one is to take its place");
    sim.advance(secs(30));
    let left: Vec<_> = sim.live("web").into_iter().filter(|t| t.slot == new.slot).collect();
    assert!(left.len() == 1 && left[0].id != new.id, "{:?}", states(&left));
}

#[test]
fn an_update_comes_first() {
    let update = UpdateConfig { delay: wire(secs(10)).unwrap(), ..at_once(1) };
    let mut sim = on(&["n1"], &automatic(4, update));
    sim.add_node("n2");
    sim.update_service("web", |spec| spec.task.force_update += 1);
    sim.advance(secs(300));
    assert_eq!(loads(&sim, ["n1", "n2"]), [2, 2]);
    assert!(sim.live("web").iter().all(|t| t.spec.force_update == 1) && sim.live("web").len() == 4);
}

#[test]
fn an_update_takes_over_from_moves_under_way() {
    for update in [at_once(0), started_first(0)] {
        let mut sim = on(&["n1", "n2"], &automatic(6, update));
        sim.behaviour = Box::new(|t| healthy(t).filter(|_| t.node_id != "n3"));
        sim.add_node("n3");
        sim.advance(secs(20));
        sim.behaviour = Box::new(healthy);
        sim.update_service("web", |spec| spec.task.force_update += 1);
        sim.advance(secs(120));
        assert_eq!(loads(&sim, ["n1", "n2", "n3"]), [2, 2, 2]);
        assert_eq!(slots(&sim.live("web")), [1, 2, 3, 4, 5, 6]);
        assert!(sim.live("web").iter().all(|t| t.spec.force_update == 1));
    }
}

#[test]
fn an_update_counts_moves_under_way_that_it_has_no_quarrel_with() {
    let mut sim = on(&["n1", "n2"], &automatic(6, started_first(1)));
    sim.edit_node("n1", |n| drop(n.spec.annotations.labels.insert("zone".into(), "a".into())));
    sim.behaviour = Box::new(|t| healthy(t).filter(|_| t.node_id != "n3"));
    sim.add_node("n3");
    sim.advance(secs(20));
    let coming = |sim: &Sim| sim.live("web").iter().filter(|t| t.status.state() != Running).count();
    assert_eq!(coming(&sim), 1);
    // What is on the first node must go.
    sim.update_service("web", |spec| {
        let constraints = vec!["node.labels.zone!=a".into()];
        spec.task.placement = Some(Placement { constraints, ..Default::default() });
    });
    sim.advance(secs(20));
    assert_eq!(coming(&sim), 1);
    sim.behaviour = Box::new(healthy);
    sim.advance(secs(120));
    assert_eq!(loads(&sim, ["n1", "n2", "n3"]), [0, 3, 3]);
    assert_eq!(slots(&sim.live("web")), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn after_a_rollback_the_pace_is_that_of_updates_again() {
    let mut web = service("web", 6);
    web.spec.update = Some(at_once(1));
    web.spec.rollback = Some(at_once(0));
    let mut sim = on(&["n1", "n2"], &web);
    sim.update_service("web", |spec| drop(spec.annotations.labels.insert("a".into(), "b".into())));
    sim.advance(secs(60));
    sim.behaviour = Box::new(|t| healthy(t).filter(|_| t.node_id != "n3"));
    sim.add_node("n3");
    let now = sim.now().wall;
    sim.write(|tx| {
        let mut web = tx.services().get("web").unwrap().clone();
        rolled_back(&mut web, now);
        web.spec.annotations.labels.insert(REBALANCE_NOW.into(), "1".into());
        tx.update(web).unwrap();
    });
    sim.advance(secs(20));
    assert_eq!(sim.live("web").iter().filter(|t| t.status.state() != Running).count(), 1);
}

/// Its tasks may run by the next time that anything is decided.
#[test]
fn an_update_leaves_nothing_of_moves_under_way_however_fast_it_is() {
    let mut sim = on(&["n1", "n2"], &automatic(6, started_first(0)));
    sim.behaviour = Box::new(|t| healthy(t).filter(|_| t.node_id != "n3"));
    sim.add_node("n3");
    sim.advance(secs(20));
    assert_eq!(sim.live("web").len(), 8);
    sim.behaviour = Box::new(healthy);
    sim.update_service("web", |spec| spec.task.force_update += 1);
    sim.turn();
    while sim.agents() {}
    sim.advance(secs(120));
    assert_eq!(slots(&sim.live("web")), [1, 2, 3, 4, 5, 6]);
    assert!(sim.live("web").iter().all(|t| t.spec.force_update == 1));
}

/// Neither it nor its predecessor makes the service one task poorer than its updates may.
#[test]
fn a_new_leader_counts_the_move_that_is_under_way() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let update = UpdateConfig { order: order as i32, ..at_once(1) };
        let mut sim = on(&["n1", "n2"], &automatic(8, update));
        sim.behaviour = Box::new(|task| {
            let goal = if task.node_id == "n3" { Starting } else { Running };
            (!task.status.reached(goal)).then_some((goal, ""))
        });
        sim.add_node("n3");
        sim.advance(secs(30));
        let under_way = |sim: &Sim| sim.live("web").iter().filter(|t| t.node_id == "n3").count();
        assert_eq!(under_way(&sim), 1, "{order:?}");
        for _ in 0..3 {
            sim.lead(leader());
            sim.advance(secs(60));
            assert_eq!(under_way(&sim), 1, "{order:?}");
        }
        sim.behaviour = Box::new(healthy);
        sim.advance(secs(120));
        assert_eq!((loads(&sim, ["n1", "n2", "n3"]), sim.live("web").len()), ([3, 3, 2], 8), "{order:?}");
    }
}

#[test]
fn a_new_leader_goes_on() {
    for update in [at_once(1), started_first(1)] {
        let mut sim = on(&["n1", "n2"], &automatic(6, update));
        sim.add_node("n3");
        sim.advance(secs(10));
        request(&mut sim);
        sim.think();
        sim.lead(leader());
        sim.advance(secs(120));
        assert_eq!(loads(&sim, ["n1", "n2", "n3"]), [2, 2, 2]);
        assert_eq!(slots(&sim.live("web")), [1, 2, 3, 4, 5, 6]);
        let labels = sim.view().services().get("web").unwrap().spec.annotations.labels.clone();
        assert!(!labels.contains_key(REBALANCE_NOW));
    }
}

#[test]
fn what_is_on_nodes_that_take_nothing_new_stays_there() {
    let mut sim = on(&["n1", "n2"], &automatic(6, at_once(0)));
    sim.edit_node("n1", |n| n.spec.availability = node_spec::Availability::Pause as i32);
    sim.add_node("n3");
    sim.advance(secs(60));
    assert_eq!(loads(&sim, ["n1", "n2", "n3"]), [3, 2, 1]);
}
