//! The replicated orchestrator, rule by rule (`orchestration.md` §5, scenarios 1 to 26).
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use swarm_api::TaskState;
use swarm_api::TaskState::{New, Ready, Rejected, Remove, Running, Shutdown, Starting};
use swarm_api::v1::{Driver, EndpointSpec, node_spec, node_status};

#[test]
fn a_new_task_is_made_from_its_service() {
    let mut web = service("web", 1);
    web.spec.endpoint = Some(EndpointSpec { mode: 1, ..Default::default() });
    let mut sim = Sim::new(|tx| drop(tx.create(web.clone()).unwrap()));
    sim.lead(alone());
    sim.think();
    let [task] = &sim.tasks("web")[..] else { panic!("one task") };
    assert_eq!((task.status.state(), task.desired_state(), task.slot), (New, Running, 1));
    assert_eq!(task.status.message, "created");
    assert_eq!(task.service_annotations.name, "web");
    assert_eq!(task.endpoint.as_ref().unwrap().spec, web.spec.endpoint);
    assert_eq!((task.spec_version, &task.spec), (web.spec_version, &web.spec.task));
    assert!(task.node_id.is_empty() && task.log_driver.is_none() && task.networks.is_empty());
}

#[test]
fn the_log_driver_is_the_services_or_else_the_clusters() {
    let driver = |name: &str| Some(Driver { name: name.into(), ..Default::default() });
    let mut own = service("own", 1);
    own.spec.task.log_driver = driver("own");
    let mut sim = Sim::new(|tx| {
        tx.create(own.clone()).unwrap();
        tx.create(service("other", 1)).unwrap();
        let mut cluster = tx.cluster().unwrap().clone();
        cluster.spec.task_defaults.log_driver = Some(Driver { name: "cluster".into(), ..Default::default() });
        tx.update(cluster).unwrap();
    });
    sim.lead(alone());
    sim.think();
    assert_eq!(sim.tasks("own")[0].log_driver.as_deref(), driver("own").as_ref());
    assert_eq!(sim.tasks("other")[0].log_driver.as_deref(), driver("cluster").as_ref());
}

#[test]
fn a_service_that_was_there_before_the_leader_gets_its_tasks() {
    let mut sim = Sim::new(|tx| drop(tx.create(service("web", 2)).unwrap()));
    sim.lead(alone());
    sim.think();
    assert_eq!(states(&sim.tasks("web")), [(1, New, Running), (2, New, Running)]);
}

#[test]
fn scaling_up_takes_the_lowest_free_slots() {
    let mut sim = cluster(service("web", 1));
    sim.scale("web", 3);
    sim.settle();
    assert_eq!(slots(&sim.live("web")), [1, 2, 3]);
    assert_eq!(sim.running("web").len(), 3, "one on each node");
}

#[test]
fn a_slot_that_was_given_up_between_others_is_taken_before_higher_ones() {
    let web = service("web", 3);
    let mut sim = Sim::new(|tx| {
        for id in ["n1", "n2"] {
            tx.create(node(id)).unwrap();
        }
        for (slot, on) in (1..).zip(["n1", "n1", "n2"]) {
            tx.create(task(&web, &format!("t{slot}"), slot, on, Running, Running)).unwrap();
        }
        tx.create(web.clone()).unwrap();
    });
    sim.lead(everything());
    sim.scale("web", 2);
    sim.settle();
    assert_eq!(slots(&sim.tasks("web")), [1, 3], "the second one of a node has gone");
    sim.scale("web", 3);
    sim.settle();
    assert_eq!(slots(&sim.tasks("web")), [1, 2, 3]);
    sim.scale("web", 5);
    sim.settle();
    assert_eq!(slots(&sim.tasks("web")), [1, 2, 3, 4, 5]);
}

#[test]
fn scaling_down_removes_tasks_and_leaves_no_trace_of_them() {
    let mut sim = cluster(service("web", 3));
    sim.agents_stop_tasks = false;
    sim.scale("web", 1);
    sim.settle();
    let removed = sim.tasks("web").iter().filter(|t| t.desired_state() == Remove).count();
    assert_eq!((removed, sim.live("web").len()), (2, 1));
    sim.agents_stop_tasks = true;
    sim.settle();
    assert_eq!(states(&sim.tasks("web")), [(1, Running, Running)]);
}

#[test]
fn scaling_changes_no_update_status() {
    let mut sim = cluster(service("web", 1));
    sim.scale("web", 5);
    sim.settle();
    sim.scale("web", 2);
    sim.settle();
    assert_eq!(sim.live("web").len(), 2);
    assert_eq!(sim.view().services().get("web").unwrap().update_status, None);
}

#[test]
fn scaling_to_nothing_and_back_begins_at_slot_one() {
    let mut sim = cluster(service("web", 3));
    sim.scale("web", 0);
    sim.settle();
    assert_eq!(sim.tasks("web"), []);
    sim.scale("web", 2);
    sim.settle();
    assert_eq!(slots(&sim.tasks("web")), [1, 2]);
}

#[test]
fn a_task_deleted_by_hand_is_made_again() {
    let mut sim = cluster(service("web", 1));
    let id = sim.tasks("web")[0].id.clone();
    sim.write(|tx| drop(tx.remove::<swarm_api::v1::Task>(&id).unwrap()));
    sim.settle();
    let [task] = &sim.tasks("web")[..] else { panic!("one task") };
    assert!(task.id != id && task.slot == 1);
}

#[test]
fn tasks_of_a_deleted_service_are_stopped_then_forgotten() {
    let mut sim = cluster(service("web", 3));
    sim.agents_stop_tasks = false;
    sim.write(|tx| drop(tx.remove::<swarm_api::v1::Service>("web").unwrap()));
    sim.settle();
    assert!(sim.tasks("web").iter().all(|t| t.desired_state() == Remove));
    assert_eq!(sim.tasks("web").len(), 3, "not before they have stopped");
    sim.agents_stop_tasks = true;
    sim.settle();
    assert_eq!(sim.tasks("web"), []);
}

#[test]
fn tasks_of_a_deleted_service_that_have_no_node_vanish_at_once() {
    let mut sim = Sim::new(|tx| drop(tx.create(service("web", 3)).unwrap()));
    sim.lead(everything());
    sim.think();
    assert_eq!(sim.tasks("web").len(), 3);
    sim.write(|tx| drop(tx.remove::<swarm_api::v1::Service>("web").unwrap()));
    sim.think();
    assert_eq!(sim.tasks("web"), []);
}

#[test]
fn a_service_marked_for_deletion_goes_after_its_last_task() {
    let mut sim = cluster(service("web", 2));
    sim.agents_stop_tasks = false;
    sim.write(|tx| {
        let mut web = tx.services().get("web").unwrap().clone();
        web.pending_delete = true;
        tx.update(web).unwrap();
    });
    sim.settle();
    assert!(sim.tasks("web").iter().all(|t| t.desired_state() == Remove));
    assert!(sim.view().services().get("web").is_some());
    sim.agents_stop_tasks = true;
    sim.settle();
    assert!(sim.view().services().get("web").is_none() && sim.tasks("web").is_empty());
}

/// Tasks in these slots, with their nodes (empty: none) and states, under a leader that scales to `replicas`:
/// the slots that are left.
fn left_after_scaling(tasks: &[(u64, &str, TaskState)], replicas: u64) -> Vec<u64> {
    let web = service("web", tasks.len() as u64);
    let mut sim = Sim::new(|tx| {
        for id in ["n1", "n2", "n3"] {
            tx.create(node(id)).unwrap();
        }
        for (slot, on, state) in tasks {
            tx.create(task(&web, &format!("t{slot}"), *slot, on, *state, Running)).unwrap();
        }
        tx.create(web.clone()).unwrap();
    });
    sim.lead(alone());
    sim.think();
    assert_eq!(sim.live("web").len(), tasks.len());
    sim.scale("web", replicas);
    sim.think();
    slots(&sim.live("web"))
}

#[test]
fn an_unassigned_task_is_the_first_to_go() {
    // Before one that does not run yet, in a higher slot, on the most loaded node.
    let tasks = [1, 2, 3, 4, 5, 6, 7].map(|slot| match slot {
        3 => (slot, "", New),
        7 => (slot, "n1", Starting),
        _ => (slot, "n1", Running),
    });
    assert_eq!(left_after_scaling(&tasks, 6), [1, 2, 4, 5, 6, 7]);
}

const UNEVEN: [(u64, &str, TaskState); 6] = [
    (1, "n3", Running),
    (2, "n3", Running),
    (3, "n3", Running),
    (4, "n2", Running),
    (5, "n2", Running),
    (6, "n1", Running),
];

#[test]
fn scaling_down_takes_from_the_most_loaded_node_and_keeps_low_slots() {
    assert_eq!(left_after_scaling(&UNEVEN, 5), [1, 2, 4, 5, 6]);
    assert_eq!(left_after_scaling(&UNEVEN, 3), [1, 4, 6]);
}

#[test]
fn scaling_down_takes_tasks_that_do_not_run_yet_before_those_that_do() {
    let mut tasks = UNEVEN;
    tasks[5].2 = Starting;
    assert_eq!(left_after_scaling(&tasks, 2), [1, 4]);
}

#[test]
fn a_held_task_that_was_rejected_is_replaced_by_a_new_leader() {
    let web = service("web", 1);
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(web.clone()).unwrap();
        tx.create(task(&web, "old", 1, "n1", Rejected, Ready)).unwrap();
    });
    sim.lead(alone());
    sim.think();
    assert_eq!(states(&sim.tasks("web")), [(1, New, Ready), (1, Rejected, Shutdown)]);
    assert!(sim.live("web")[0].node_id.is_empty());
}

#[test]
fn a_new_leader_replaces_only_what_failed() {
    let web = service("web", 2);
    let mut sim = Sim::new(|tx| {
        tx.create(node("n1")).unwrap();
        tx.create(web.clone()).unwrap();
        tx.create(task(&web, "t1", 1, "n1", TaskState::Failed, Running)).unwrap();
        tx.create(task(&web, "t2", 2, "n1", Starting, Running)).unwrap();
    });
    sim.lead(alone());
    sim.think();
    let tasks = sim.tasks("web");
    assert_eq!(states(&tasks), [(1, New, Ready), (1, TaskState::Failed, Shutdown), (2, Starting, Running)]);
}

#[test]
fn a_failed_task_of_a_service_that_is_gone_is_not_replaced() {
    let web = service("web", 1);
    let mut sim = Sim::new(|tx| drop(tx.create(task(&web, "t1", 1, "n1", Running, Running)).unwrap()));
    sim.lead(alone());
    sim.think();
    sim.report("t1", TaskState::Failed, "");
    sim.think();
    assert_eq!(states(&sim.tasks("web")), [(1, TaskState::Failed, Remove)]);
}

#[test]
fn nodes_that_are_down_or_drained_lose_their_tasks_and_others_keep_theirs() {
    use node_spec::Availability::{Drain, Pause};
    use node_status::State::{Disconnected, Down, Unknown};
    let web = service("web", 6);
    let mut sim = Sim::new(|tx| {
        let states = [("down", Down), ("unknown", Unknown), ("cut", Disconnected)];
        for (id, state) in states {
            let mut node = node(id);
            node.status.state = state as i32;
            tx.create(node).unwrap();
        }
        for (id, availability) in [("drained", Drain), ("paused", Pause)] {
            let mut node = node(id);
            node.spec.availability = availability as i32;
            tx.create(node).unwrap();
        }
        tx.create(web.clone()).unwrap();
        for (slot, on) in (1..).zip(["down", "drained", "unknown", "paused", "cut", ""]) {
            tx.create(task(&web, &format!("zz-{slot}"), slot, on, TaskState::Pending, Running)).unwrap();
        }
    });
    sim.lead(alone());
    sim.think();
    let lost = |sim: &Sim| {
        let tasks = sim.tasks("web");
        let lost = tasks.into_iter().filter(|t| t.desired_state() == Shutdown);
        lost.map(|t| t.node_id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(lost(&sim), ["down", "drained"]);
    sim.edit_node("unknown", |n| n.spec.availability = Drain as i32);
    sim.think();
    assert_eq!(lost(&sim), ["down", "drained", "unknown"]);
    sim.write(|tx| drop(tx.remove::<swarm_api::v1::Node>("paused").unwrap()));
    sim.think();
    assert_eq!(lost(&sim), ["down", "drained", "unknown", "paused"]);
    // A task that comes to be on a node that is down.
    sim.write(|tx| {
        let mut task = tx.tasks().get("zz-6").unwrap().clone();
        task.node_id = "down".into();
        tx.update(task).unwrap();
    });
    sim.think();
    assert_eq!(lost(&sim).len(), 5);
    assert_eq!(slots(&sim.live("web")), [1, 2, 3, 4, 5, 6], "each is replaced");
}

#[test]
fn tasks_of_a_dead_node_run_elsewhere_after_the_restart_delay() {
    let mut sim = cluster(service("web", 6));
    sim.silent.push("n2".into());
    sim.edit_node("n2", |n| n.status.state = node_status::State::Down as i32);
    sim.settle();
    assert_eq!(sim.live("web").len(), 6, "replacements exist at once");
    let held = sim.live("web").iter().filter(|t| t.desired_state() == Ready).count();
    assert_eq!(held, 2);
    sim.advance(secs(5));
    let running = sim.running("web");
    assert_eq!((running["n1"], running["n3"]), (3, 3));
}

#[test]
fn a_drained_node_gives_its_tasks_to_others_without_delay() {
    let mut sim = cluster(service("web", 6));
    sim.edit_node("n2", |n| n.spec.availability = node_spec::Availability::Drain as i32);
    sim.settle();
    assert_eq!(sim.running("web"), [("n1".to_owned(), 3), ("n3".to_owned(), 3)].into());
}

#[test]
fn a_failed_task_and_a_scale_up_in_one_commit_make_no_task_too_many() {
    let mut sim = cluster(service("web", 2));
    let id = sim.tasks("web")[0].id.clone();
    sim.write(|tx| {
        let mut task = tx.tasks().get(&id).unwrap().clone();
        task.status.state = TaskState::Failed as i32;
        tx.update(task).unwrap();
        let mut web = tx.services().get("web").unwrap().clone();
        web.spec = service("web", 3).spec;
        web.spec_version = Some(web.meta.version);
        tx.update(web).unwrap();
    });
    sim.think();
    assert_eq!(slots(&sim.live("web")), [1, 2, 3]);
    assert_eq!(
        sim.tasks("web").len(),
        4,
        "one in the place of the one that failed, and one for the new slot"
    );
    sim.advance(secs(10));
    assert_eq!(slots(&sim.live("web")), [1, 2, 3]);
}

#[test]
fn nothing_is_written_once_nothing_changes() {
    let mut sim = cluster(service("web", 5));
    sim.advance(secs(60));
    let decisions = sim.decisions;
    sim.advance(secs(3600));
    assert_eq!(sim.decisions, decisions);
}

#[test]
fn a_task_is_created_allocated_and_assigned_in_one_transaction() {
    let mut sim = cluster(service("web", 0));
    let decisions = sim.decisions;
    sim.scale("web", 30);
    sim.turn();
    assert_eq!(sim.decisions, decisions + 1);
    assert!(sim.tasks("web").iter().all(|t| t.status.state() == TaskState::Assigned));
    assert_eq!(sim.tasks("web").len(), 30);
}

/// `orchestration.md` §20.22: in the original such a report makes the scale-down fail.
#[test]
fn a_report_that_arrives_in_between_does_not_spoil_a_scale_down() {
    let mut sim = cluster(service("web", 3));
    sim.scale("web", 1);
    let batches = sim.decide();
    for task in sim.tasks("web") {
        sim.report(&task.id, Running, "said again");
    }
    batches.into_iter().for_each(|batch| sim.commit(batch));
    let removed = sim.tasks("web").iter().filter(|t| t.desired_state() == Remove).count();
    assert_eq!((removed, sim.refused), (2, 0));
}

/// `orchestration.md` §20.8: the original deletes them at once, and frees their addresses too early.
#[test]
fn a_task_of_a_slot_that_is_gone_stays_until_it_has_stopped() {
    let mut sim = cluster(service("web", 2));
    let id = sim.tasks("web")[1].id.clone();
    sim.agents_stop_tasks = false;
    sim.write(|tx| {
        let mut task = tx.tasks().get(&id).unwrap().clone();
        task.desired_state = Shutdown as i32;
        tx.update(task).unwrap();
    });
    sim.scale("web", 1);
    sim.settle();
    assert_eq!(states(&sim.tasks("web")), [(1, Running, Running), (2, Running, Remove)]);
    sim.agents_stop_tasks = true;
    sim.settle();
    assert_eq!(states(&sim.tasks("web")), [(1, Running, Running)]);
}

#[test]
fn a_new_leader_replaces_a_task_that_runs_on_a_dead_node() {
    let web = service("web", 1);
    let mut sim = Sim::new(|tx| {
        let mut dead = node("n1");
        dead.status.state = node_status::State::Down as i32;
        tx.create(dead).unwrap();
        tx.create(web.clone()).unwrap();
        tx.create(task(&web, "old", 1, "n1", Running, Running)).unwrap();
    });
    sim.lead(alone());
    sim.think();
    assert_eq!(states(&sim.tasks("web")), [(1, New, Ready), (1, Running, Shutdown)]);
}

/// What was decided for a version is not done when that version comes back, two changes later.
#[test]
fn a_rollback_does_not_bring_decisions_back_with_its_version() {
    let mut sim = Sim::new(|tx| drop(tx.create(node("n1")).unwrap()));
    sim.lead(alone());
    sim.write(|tx| drop(tx.create(service("web", 1)).unwrap()));
    let decided = sim.decide();
    sim.update_service("web", |spec| spec.task.force_update += 1);
    let now = sim.now().wall;
    sim.write(|tx| {
        let mut web = tx.services().get("web").unwrap().clone();
        rolled_back(&mut web, now);
        tx.update(web).unwrap();
    });
    assert_eq!(sim.view().services().get("web").unwrap().spec_version, service("web", 1).spec_version);
    decided.into_iter().for_each(|batch| sim.commit(batch));
    assert_eq!(sim.tasks("web").len(), 0);
    sim.think();
    assert_eq!(sim.live("web").len(), 1);
}

#[test]
fn a_task_whose_node_is_back_before_anything_was_decided_goes_on() {
    let web = service("web", 1);
    let mut sim = Sim::new(|tx| {
        let mut down = node("n1");
        down.status.state = node_status::State::Down as i32;
        tx.create(down).unwrap();
        tx.create(web.clone()).unwrap();
        tx.create(task(&web, "old", 1, "n1", Running, Running)).unwrap();
    });
    sim.lead(alone());
    sim.edit_node("n1", |n| n.status.state = node_status::State::Ready as i32);
    sim.think();
    assert_eq!(states(&sim.tasks("web")), [(1, Running, Running)]);
}

/// Nodes with one, two and three tasks, scaled to four and then to two.
#[test]
fn scaling_down_step_by_step_levels_the_nodes_and_then_spares_what_runs() {
    let web = service("web", 6);
    let mut sim = Sim::new(|tx| {
        for id in ["n1", "n2", "n3"] {
            tx.create(node(id)).unwrap();
        }
        for (slot, on) in (1..).zip(["n1", "n2", "n2", "n3", "n3", "n3"]) {
            tx.create(task(&web, &format!("t{slot}"), slot, on, Running, Running)).unwrap();
        }
        tx.create(web.clone()).unwrap();
    });
    sim.lead(alone());
    sim.scale("web", 4);
    sim.think();
    assert_eq!(
        slots(&sim.live("web")),
        [1, 2, 3, 4],
        "both come from the fullest node, which keeps its lowest"
    );
    sim.write(|tx| {
        let mut task = tx.tasks().get("t1").unwrap().clone();
        task.status.state = Starting as i32;
        tx.update(task).unwrap();
    });
    sim.scale("web", 2);
    sim.think();
    assert_eq!(slots(&sim.live("web")), [2, 4], "what only starts goes, and the second one of a node");
}

#[test]
fn a_task_made_on_a_node_that_is_down_is_shut_down() {
    let web = service("web", 1);
    let mut sim = Sim::new(|tx| {
        let mut down = node("down");
        down.status.state = node_status::State::Down as i32;
        tx.create(down).unwrap();
        tx.create(node("n1")).unwrap();
    });
    sim.lead(alone());
    sim.think();
    sim.write(|tx| {
        tx.create(web.clone()).unwrap();
        tx.create(task(&web, "t1", 1, "down", TaskState::Assigned, Running)).unwrap();
    });
    sim.think();
    let tasks = sim.tasks("web");
    let old = tasks.iter().find(|t| t.id == "t1").unwrap();
    assert_eq!((tasks.len(), old.desired_state()), (2, Shutdown));
    assert_eq!(states(&sim.live("web")), [(1, New, Ready)]);
}
