//! The global orchestrator, rule by rule (`orchestration.md` §6, scenarios 59 to 68).
#![allow(clippy::unwrap_used)]

mod common;
#[path = "global/updates.rs"]
mod updates;

use std::collections::BTreeMap;

use common::*;
use swarm_api::TaskState;
use swarm_api::TaskState::{Complete, Failed, Ready, Remove, Running, Shutdown};
use swarm_api::v1::restart_policy::RestartCondition::{Any, None as Never};
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{
    GlobalService, Node, Placement, Service, Task, UpdateConfig, node_spec, node_status, service_spec,
};

fn global(id: &str) -> Service {
    let mut service = service(id, 0);
    service.spec.mode = Some(service_spec::Mode::Global(GlobalService {}));
    service
}

/// A cluster of these nodes with one global service.
fn cluster(service: &Service, nodes: &[&str]) -> Sim {
    let mut sim = Sim::new(|tx| nodes.iter().for_each(|id| drop(tx.create(node(id)).unwrap())));
    sim.lead(everything());
    sim.write(|tx| drop(tx.create(service.clone()).unwrap()));
    sim.settle();
    sim
}

/// Nodes with a running task of the service, and how many.
fn running(sim: &Sim, service: &str) -> BTreeMap<String, usize> {
    sim.running(service)
}

fn on(nodes: &[&str]) -> BTreeMap<String, usize> {
    nodes.iter().map(|n| ((*n).to_owned(), 1)).collect()
}

fn on_node(sim: &Sim, service: &str, node: &str) -> Vec<(TaskState, TaskState)> {
    let tasks = sim.tasks(service);
    let there = tasks.iter().filter(|t| t.node_id == node);
    there.map(|t| (t.status.state(), t.desired_state())).collect()
}

fn availability(sim: &mut Sim, node: &str, availability: node_spec::Availability) {
    sim.edit_node(node, |n| n.spec.availability = availability as i32);
    sim.settle();
}

fn end(sim: &mut Sim, service: &str, node: &str, state: TaskState) {
    let live = sim.live(service);
    let task = live.iter().find(|t| t.node_id == node).unwrap();
    sim.report(&task.id, state, "");
}

#[test]
fn every_node_gets_one_task_also_one_that_comes_later() {
    let mut sim = cluster(&global("g"), &["n1", "n2"]);
    assert_eq!(running(&sim, "g"), on(&["n1", "n2"]));
    assert!(sim.tasks("g").iter().all(|t| t.slot == 0));
    sim.add_node("n3");
    sim.settle();
    assert_eq!(running(&sim, "g"), on(&["n1", "n2", "n3"]));
}

#[test]
fn a_node_that_is_removed_takes_its_tasks_with_it() {
    let mut sim = cluster(&global("g"), &["n1", "n2"]);
    sim.write(|tx| {
        let tasks: Vec<_> = tx.tasks().by_node("n1").cloned().collect();
        for mut task in tasks {
            task.status.state = TaskState::Orphaned as i32;
            tx.update(task).unwrap();
        }
        tx.remove::<Node>("n1").unwrap();
    });
    sim.settle();
    assert_eq!(on_node(&sim, "g", "n1"), []);
    assert_eq!(running(&sim, "g"), on(&["n2"]));
}

#[test]
fn a_drained_node_loses_its_task_and_gets_a_new_one_when_it_is_active_again() {
    let mut sim = cluster(&global("g"), &["n1", "n2"]);
    availability(&mut sim, "n1", node_spec::Availability::Drain);
    assert_eq!(on_node(&sim, "g", "n1"), [(Shutdown, Shutdown)]);
    sim.update_service("g", |spec| drop(spec.annotations.labels.insert("a".into(), "b".into())));
    sim.settle();
    assert_eq!(on_node(&sim, "g", "n1"), [(Shutdown, Shutdown)], "a service update does not revive it");
    availability(&mut sim, "n1", node_spec::Availability::Active);
    assert_eq!(on_node(&sim, "g", "n1"), [(Shutdown, Shutdown), (Running, Running)]);
}

/// `orchestration.md` §20.25: in the original it stays away.
#[test]
fn a_drained_node_gets_its_task_back_whatever_the_restart_policy() {
    let mut sim = cluster(&with_restart(global("g"), policy(Never)), &["n1", "n2"]);
    availability(&mut sim, "n1", node_spec::Availability::Drain);
    availability(&mut sim, "n1", node_spec::Availability::Active);
    assert_eq!(running(&sim, "g"), on(&["n1", "n2"]));
}

#[test]
fn a_node_that_goes_down_loses_its_task_and_gets_a_new_one_when_it_is_ready_again() {
    let mut sim = cluster(&global("g"), &["n1", "n2"]);
    sim.silent.push("n1".into());
    sim.edit_node("n1", |n| n.status.state = node_status::State::Down as i32);
    sim.settle();
    assert_eq!(on_node(&sim, "g", "n1"), [(Running, Shutdown)]);
    sim.silent.clear();
    sim.edit_node("n1", |n| n.status.state = node_status::State::Ready as i32);
    sim.settle();
    assert_eq!(on_node(&sim, "g", "n1"), [(Shutdown, Shutdown), (Running, Running)]);
}

#[test]
fn a_new_leader_forgets_the_history_of_a_node_that_is_gone() {
    let g = global("g");
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(g.clone()).unwrap();
        for id in ["a", "b"] {
            tx.create(task(&g, id, 0, "gone", Shutdown, Shutdown)).unwrap();
        }
    });
    sim.lead(everything());
    sim.settle();
    assert_eq!(on_node(&sim, "g", "gone"), []);
    assert_eq!(on_node(&sim, "g", "n1"), [(Running, Running)]);
}

#[test]
fn a_task_whose_node_is_back_before_anything_was_decided_goes_on() {
    let mut sim = cluster(&global("g"), &["n1", "n2"]);
    sim.edit_node("n1", |n| n.status.state = node_status::State::Down as i32);
    sim.lead(everything());
    sim.edit_node("n1", |n| n.status.state = node_status::State::Ready as i32);
    sim.settle();
    assert_eq!(on_node(&sim, "g", "n1"), [(Running, Running)]);
}

#[test]
fn on_a_paused_node_nothing_is_begun() {
    let mut sim = cluster(&global("g"), &["n1", "n2"]);
    availability(&mut sim, "n1", node_spec::Availability::Pause);
    assert_eq!(running(&sim, "g"), on(&["n1", "n2"]), "what runs goes on");
    end(&mut sim, "g", "n1", Failed);
    sim.advance(secs(60));
    assert_eq!(on_node(&sim, "g", "n1"), [(Failed, Shutdown)]);
    sim.update_service("g", |spec| spec.task.force_update += 1);
    sim.advance(secs(60));
    assert_eq!(on_node(&sim, "g", "n1"), [(Failed, Shutdown)]);
    availability(&mut sim, "n1", node_spec::Availability::Active);
    assert_eq!(running(&sim, "g"), on(&["n1", "n2"]));
}

#[test]
fn a_node_that_is_not_paused_any_more_takes_the_new_spec_at_once() {
    let mut sim = cluster(&global("g"), &["n1"]);
    availability(&mut sim, "n1", node_spec::Availability::Pause);
    sim.update_service("g", |spec| spec.task.force_update = 7);
    sim.advance(secs(60));
    assert_eq!(sim.live("g")[0].spec.force_update, 0);
    availability(&mut sim, "n1", node_spec::Availability::Active);
    let live = sim.live("g");
    assert_eq!((live.len(), live[0].spec.force_update), (1, 7));
    assert_eq!(sim.view().services().get("g").unwrap().update_status, None, "no rolling update");
}

/// `orchestration.md` §20.24: in the original it stays away until something else happens.
#[test]
fn a_task_deleted_by_hand_is_made_again() {
    let mut sim = cluster(&global("g"), &["n1"]);
    let id = sim.tasks("g")[0].id.clone();
    sim.write(|tx| drop(tx.remove::<Task>(&id).unwrap()));
    sim.settle();
    assert_eq!(running(&sim, "g"), on(&["n1"]));
}

#[test]
fn a_failed_task_is_replaced_on_its_node_after_the_delay() {
    let mut sim = cluster(&with_restart(global("g"), policy(Any)), &["n1", "n2"]);
    end(&mut sim, "g", "n1", Failed);
    sim.advance(millis(4_999));
    assert_eq!(on_node(&sim, "g", "n1"), [(Failed, Shutdown), (Ready, Ready)]);
    sim.advance(millis(1));
    assert_eq!(running(&sim, "g"), on(&["n1", "n2"]));
}

#[test]
fn a_task_that_ended_for_good_stays_so_until_the_spec_changes() {
    for state in [Failed, Complete] {
        let mut sim = cluster(&with_restart(global("g"), policy(Never)), &["n1"]);
        end(&mut sim, "g", "n1", state);
        sim.advance(secs(60));
        sim.update_service("g", |spec| drop(spec.annotations.labels.insert("a".into(), "b".into())));
        sim.advance(secs(60));
        assert_eq!(on_node(&sim, "g", "n1"), [(state, Shutdown)]);
        sim.update_service("g", |spec| spec.task.force_update += 1);
        sim.advance(secs(60));
        assert_eq!(running(&sim, "g"), on(&["n1"]));
    }
}

#[test]
fn attempts_count_per_node() {
    let restart = swarm_api::v1::RestartPolicy { max_attempts: 1, ..policy(Any) };
    let mut sim = cluster(&with_restart(global("g"), restart), &["n1", "n2"]);
    for node in ["n1", "n1", "n2"] {
        end(&mut sim, "g", node, Failed);
        sim.advance(secs(5));
    }
    assert_eq!(running(&sim, "g"), on(&["n2"]));
}

#[test]
fn a_new_leader_puts_everything_right() {
    let web = with_restart(global("g"), policy(Any));
    let mut sim = Sim::new(|tx| {
        for id in ["n1", "n2", "n3", "drained"] {
            tx.create(node(id)).unwrap();
        }
        let mut drained = tx.nodes().get("drained").unwrap().clone();
        drained.spec.availability = node_spec::Availability::Drain as i32;
        tx.update(drained).unwrap();
        tx.create(web.clone()).unwrap();
        for (id, on, state) in [
            ("failed", "n1", Failed),
            ("one", "n2", Running),
            ("two", "n2", Running),
            ("held", "drained", Running),
            ("lost", "missing", Running),
        ] {
            tx.create(task(&web, id, 0, on, state, Running)).unwrap();
        }
        tx.create(task(&global("gone"), "orphan", 0, "n1", Running, Running)).unwrap();
    });
    sim.lead(everything());
    sim.advance(secs(30));
    assert_eq!(running(&sim, "g"), on(&["n1", "n2", "n3"]));
    assert_eq!(on_node(&sim, "g", "missing"), []);
    assert_eq!(on_node(&sim, "g", "drained"), [(Shutdown, Shutdown)]);
    assert_eq!(sim.tasks("gone"), []);
}

#[test]
fn an_update_of_one_service_leaves_the_other_alone() {
    let mut sim = cluster(&global("g"), &["n1", "n2"]);
    sim.write(|tx| drop(tx.create(global("other")).unwrap()));
    sim.settle();
    let before: Vec<_> = sim.tasks("other").iter().map(|t| t.id.clone()).collect();
    sim.update_service("g", |spec| spec.task.force_update = 1);
    sim.advance(secs(30));
    assert!(sim.live("g").iter().all(|t| t.spec.force_update == 1));
    assert_eq!(sim.tasks("other").iter().map(|t| t.id.clone()).collect::<Vec<_>>(), before);
    let status = sim.view().services().get("g").unwrap().update_status.clone().unwrap();
    assert_eq!(status.state(), UpdateState::Completed);
}

#[test]
fn an_update_replaces_tasks_node_by_node() {
    let mut web = global("g");
    let delay = wire(secs(10)).unwrap();
    web.spec.update = Some(UpdateConfig { parallelism: 1, delay, ..Default::default() });
    let mut sim = cluster(&web, &["n1", "n2", "n3"]);
    sim.update_service("g", |spec| spec.task.force_update = 1);
    let new = |sim: &Sim| sim.live("g").iter().filter(|t| t.spec.force_update == 1).count();
    for expected in [1, 2, 3] {
        sim.settle();
        assert_eq!(new(&sim), expected);
        sim.advance(secs(10));
    }
    assert_eq!(running(&sim, "g"), on(&["n1", "n2", "n3"]));
}

/// A change of a node's description in the middle of an update; the original would update that node at once.
#[test]
fn what_a_node_reports_does_not_hurry_an_update() {
    let mut web = global("g");
    let delay = wire(secs(10)).unwrap();
    web.spec.update = Some(UpdateConfig { parallelism: 1, delay, ..Default::default() });
    let mut sim = cluster(&web, &["n1", "n2", "n3"]);
    sim.update_service("g", |spec| spec.task.force_update = 1);
    sim.settle();
    for id in ["n1", "n2", "n3"] {
        sim.edit_node(id, |n| n.description = Some(swarm_api::v1::NodeDescription::default()));
    }
    sim.settle();
    assert_eq!(sim.live("g").iter().filter(|t| t.spec.force_update == 1).count(), 1);
}

fn constrained(constraint: &str) -> Service {
    let mut web = global("g");
    web.spec.task.placement = Some(Placement { constraints: vec![constraint.into()], ..Default::default() });
    web
}

#[test]
fn only_nodes_that_satisfy_the_constraints_get_a_task() {
    let sim = cluster(&constrained("node.id!=n2"), &["n1", "n2"]);
    assert_eq!(running(&sim, "g"), on(&["n1"]));
}

#[test]
fn a_constraint_that_excludes_a_node_ends_its_task() {
    let mut sim = cluster(&global("g"), &["n1", "n2"]);
    sim.update_service("g", |spec| {
        spec.task.placement = constrained("node.id!=n2").spec.task.placement.clone();
    });
    sim.advance(secs(30));
    assert_eq!(on_node(&sim, "g", "n2"), [(Shutdown, Shutdown)]);
    assert_eq!(running(&sim, "g"), on(&["n1"]));
}

#[test]
fn a_node_that_comes_to_satisfy_the_constraints_gets_a_task() {
    let mut sim = cluster(&constrained("node.labels.a==b"), &["n1", "n2"]);
    assert_eq!(running(&sim, "g"), on(&[]));
    sim.edit_node("n2", |n| drop(n.spec.annotations.labels.insert("a".into(), "b".into())));
    sim.settle();
    assert_eq!(running(&sim, "g"), on(&["n2"]));
}

#[test]
fn tasks_of_a_deleted_service_are_removed() {
    let mut sim = cluster(&global("g"), &["n1", "n2"]);
    sim.agents_stop_tasks = false;
    sim.write(|tx| drop(tx.remove::<Service>("g").unwrap()));
    sim.settle();
    assert!(sim.tasks("g").iter().all(|t| t.desired_state() == Remove));
    sim.agents_stop_tasks = true;
    sim.settle();
    assert_eq!(sim.tasks("g"), []);
}

#[test]
fn of_two_services_on_a_node_only_the_one_whose_task_fails_is_restarted() {
    let mut sim = cluster(&with_restart(global("g"), policy(Any)), &["n1", "n2"]);
    sim.write(|tx| drop(tx.create(global("other")).unwrap()));
    sim.settle();
    let before: Vec<_> = sim.tasks("other").iter().map(|t| t.id.clone()).collect();
    end(&mut sim, "g", "n1", Failed);
    sim.advance(secs(10));
    assert_eq!(on_node(&sim, "g", "n1"), [(Failed, Shutdown), (Running, Running)]);
    assert_eq!(sim.tasks("other").iter().map(|t| t.id.clone()).collect::<Vec<_>>(), before);
}

#[test]
fn a_rejected_task_found_by_a_leader_is_replaced_on_its_node() {
    let web = with_restart(global("g"), policy(Any));
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(web.clone()).unwrap();
        tx.create(task(&web, "rejected", 0, "n1", swarm_api::TaskState::Rejected, Running)).unwrap();
    });
    sim.lead(everything());
    sim.advance(secs(10));
    assert_eq!(running(&sim, "g"), on(&["n1"]));
    assert_eq!(sim.tasks("g").len(), 2);
}

/// Decision 0021: its own end keeps a place from being filled again, and a manager's word is not its own end.
#[test]
fn a_task_that_a_manager_gave_up_is_made_again_whatever_the_restart_policy() {
    let mut sim = cluster(&with_restart(global("g"), policy(Never)), &["n1", "n2"]);
    sim.silent.push("n1".into());
    sim.edit_node("n1", |n| n.status.state = node_status::State::Down as i32);
    sim.settle();
    let lost = sim.tasks("g").iter().find(|t| t.node_id == "n1").unwrap().id.clone();
    sim.report(&lost, TaskState::Orphaned, "node has been down for too long");
    sim.silent.clear();
    sim.edit_node("n1", |n| n.status.state = node_status::State::Ready as i32);
    sim.settle();
    assert_eq!(running(&sim, "g"), on(&["n1", "n2"]));
}

#[test]
fn a_task_comes_back_with_the_label_it_was_rejected_for_whatever_the_restart_policy() {
    let labelled = with_restart(global("g"), policy(Never));
    let mut sim = Sim::new(|tx| drop(tx.create(node("n1")).unwrap()));
    sim.lead(leader());
    sim.write(|tx| {
        let mut g = labelled.clone();
        g.spec.task.placement = constrained("node.labels.a!=b").spec.task.placement.clone();
        tx.create(g).unwrap();
    });
    sim.settle();
    sim.edit_node("n1", |n| drop(n.spec.annotations.labels.insert("a".into(), "b".into())));
    sim.settle();
    assert_eq!(on_node(&sim, "g", "n1"), [(TaskState::Rejected, Shutdown)]);
    sim.edit_node("n1", |n| drop(n.spec.annotations.labels.remove("a")));
    sim.settle();
    assert_eq!(running(&sim, "g"), on(&["n1"]));
}

/// No change of the node tells of it.
#[test]
fn a_task_that_made_room_for_others_is_made_again_whatever_the_restart_policy() {
    let web = with_restart(global("g"), policy(Never));
    let mut sim = cluster(&web, &["n1"]);
    let id = sim.live("g")[0].id.clone();
    sim.write(|tx| {
        let mut task = tx.tasks().get(&id).unwrap().clone();
        task.status.state = TaskState::Rejected as i32;
        task.status.message = "task preempted by scheduler".into();
        tx.update(task).unwrap();
    });
    sim.settle();
    assert_eq!(running(&sim, "g"), on(&["n1"]));
}

/// A drain is no failure of the task.
#[test]
fn a_drained_node_leaves_its_task_all_its_attempts() {
    let restart = swarm_api::v1::RestartPolicy { max_attempts: 1, ..policy(Any) };
    let mut sim = cluster(&with_restart(global("g"), restart), &["n1"]);
    availability(&mut sim, "n1", node_spec::Availability::Drain);
    availability(&mut sim, "n1", node_spec::Availability::Active);
    end(&mut sim, "g", "n1", Failed);
    sim.advance(secs(5));
    assert_eq!(running(&sim, "g"), on(&["n1"]));
    end(&mut sim, "g", "n1", Failed);
    sim.advance(secs(60));
    assert_eq!(running(&sim, "g"), on(&[]));
}
