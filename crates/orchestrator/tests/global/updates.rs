//! Rolling updates of global services, while nodes come to be no place for them (`orchestration.md` §6.2, §20.12).

use super::*;
use swarm_api::v1::{NodeDescription, ResourceRequirements, Resources};

/// A service on nodes with the label `a=b`, whose update has done the first of three nodes.
fn amid() -> Sim {
    let mut web = constrained("node.labels.a==b");
    let delay = wire(secs(10)).unwrap();
    web.spec.update = Some(UpdateConfig { parallelism: 1, delay, ..Default::default() });
    let mut sim = Sim::new(|tx| {
        for id in ["n1", "n2", "n3"] {
            let mut node = node(id);
            node.spec.annotations.labels.insert("a".into(), "b".into());
            let resources = Some(Resources { nano_cpus: 10, ..Default::default() });
            node.description = Some(NodeDescription { resources, ..Default::default() });
            tx.create(node).unwrap();
        }
    });
    sim.lead(leader());
    sim.write(|tx| drop(tx.create(web.clone()).unwrap()));
    sim.settle();
    sim.update_service("g", |spec| {
        spec.task.force_update = 1;
        let reservations = Some(Resources { nano_cpus: 1, ..Default::default() });
        spec.task.resources = Some(ResourceRequirements { reservations, ..Default::default() });
    });
    sim.settle();
    assert_eq!(updated(&sim), ["n1"]);
    sim
}

/// Nodes whose task is a new one.
fn updated(sim: &Sim) -> Vec<String> {
    let mut nodes: Vec<_> =
        sim.live("g").iter().filter(|t| t.spec.force_update == 1).map(|t| t.node_id.to_string()).collect();
    nodes.sort();
    nodes
}

fn state(sim: &Sim) -> UpdateState {
    sim.view().services().get("g").unwrap().update_status.clone().unwrap().state()
}

#[test]
fn an_update_leaves_a_node_alone_that_was_paused_meanwhile() {
    let mut sim = amid();
    availability(&mut sim, "n2", node_spec::Availability::Pause);
    sim.advance(secs(60));
    assert_eq!((state(&sim), updated(&sim)), (UpdateState::Completed, vec!["n1".into(), "n3".into()]));
    assert_eq!(on_node(&sim, "g", "n2"), [(Running, Running)]);
    sim.advance(secs(700));
    assert_eq!(on_node(&sim, "g", "n2"), [(Running, Running)]);
    availability(&mut sim, "n2", node_spec::Availability::Active);
    assert_eq!((state(&sim), updated(&sim).len()), (UpdateState::Completed, 3));
}

/// Its new task is there already, and finds no room.
#[test]
fn an_update_does_not_wait_for_a_node_that_was_paused_meanwhile() {
    let mut sim = amid();
    sim.edit_node("n2", |n| n.description = None);
    sim.advance(secs(10));
    assert_eq!(on_node(&sim, "g", "n2"), [(Shutdown, Shutdown), (TaskState::Pending, Running)]);
    availability(&mut sim, "n2", node_spec::Availability::Pause);
    sim.advance(secs(60));
    assert_eq!(state(&sim), UpdateState::Completed);
    assert_eq!(running(&sim, "g"), on(&["n1", "n3"]));
}

#[test]
fn an_update_makes_no_task_on_a_node_that_was_drained_meanwhile() {
    let mut sim = amid();
    availability(&mut sim, "n2", node_spec::Availability::Drain);
    sim.advance(secs(60));
    assert_eq!((state(&sim), updated(&sim)), (UpdateState::Completed, vec!["n1".into(), "n3".into()]));
    assert_eq!(on_node(&sim, "g", "n2"), [(Shutdown, Shutdown)]);
    availability(&mut sim, "n2", node_spec::Availability::Active);
    assert_eq!((state(&sim), updated(&sim).len()), (UpdateState::Completed, 3));
}

#[test]
fn an_update_makes_no_task_on_a_node_that_was_lost_meanwhile() {
    let mut sim = amid();
    sim.silent.push("n2".into());
    sim.edit_node("n2", |n| n.status.state = node_status::State::Down as i32);
    sim.advance(secs(60));
    assert_eq!((state(&sim), updated(&sim)), (UpdateState::Completed, vec!["n1".into(), "n3".into()]));
    assert_eq!(on_node(&sim, "g", "n2"), [(Running, Shutdown)]);
    sim.silent.clear();
    sim.edit_node("n2", |n| n.status.state = node_status::State::Ready as i32);
    sim.settle();
    assert_eq!((state(&sim), updated(&sim).len()), (UpdateState::Completed, 3));
}

fn label(sim: &mut Sim, node: &str, value: &'static str) {
    sim.edit_node(node, |n| drop(n.spec.annotations.labels.insert("a".into(), value.into())));
}

#[test]
fn an_update_makes_no_task_on_a_node_that_became_unfit_meanwhile() {
    let mut sim = amid();
    label(&mut sim, "n2", "c");
    sim.advance(secs(60));
    assert_eq!((state(&sim), updated(&sim)), (UpdateState::Completed, vec!["n1".into(), "n3".into()]));
    assert_eq!(on_node(&sim, "g", "n2"), [(TaskState::Rejected, Shutdown)]);
    label(&mut sim, "n2", "b");
    sim.settle();
    assert_eq!((state(&sim), updated(&sim).len()), (UpdateState::Completed, 3));
}

/// What is there must not stay as it is because the update passed by at the wrong moment.
#[test]
fn a_node_that_is_fit_again_is_updated_after_all() {
    let mut sim = amid();
    sim.lead(alone()); // nobody rejects what is there
    sim.settle();
    label(&mut sim, "n2", "c");
    sim.advance(secs(10));
    label(&mut sim, "n2", "b");
    sim.settle();
    sim.lead(leader());
    sim.advance(secs(60));
    assert_eq!((state(&sim), updated(&sim).len()), (UpdateState::Completed, 3));
}

#[test]
fn nodes_that_left_an_update_have_no_share_in_its_failures() {
    let mut sim = amid();
    let ratio = |spec: &mut swarm_api::v1::ServiceSpec| spec.update.as_mut().unwrap().max_failure_ratio = 0.4;
    sim.update_service("g", |spec| {
        ratio(spec);
        spec.task.force_update = 2;
    });
    sim.settle();
    availability(&mut sim, "n3", node_spec::Availability::Drain);
    sim.behaviour = Box::new(|task| {
        let (state, err) = swarm_reconcile::sim::healthy(task)?;
        let fails = task.spec.force_update == 2 && state == Running;
        Some((if fails { Failed } else { state }, err))
    });
    sim.advance(secs(10));
    assert_eq!(state(&sim), UpdateState::Paused, "one of two");
}

#[test]
fn an_update_that_goes_back_brings_tasks_back_where_only_the_new_spec_had_none() {
    use swarm_api::v1::update_config::FailureAction;
    let mut web = global("g");
    let action = FailureAction::Rollback as i32;
    web.spec.update = Some(UpdateConfig { parallelism: 1, failure_action: action, ..Default::default() });
    let mut sim = cluster(&web, &["n1", "n2"]);
    label(&mut sim, "n1", "b");
    sim.settle();
    sim.behaviour = Box::new(|task| {
        let (state, err) = swarm_reconcile::sim::healthy(task)?;
        let fails = task.spec.force_update == 1 && state == Running;
        Some(if fails { (Failed, "broken") } else { (state, err) })
    });
    sim.update_service("g", |spec| {
        spec.task.force_update = 1;
        let constraints = vec!["node.labels.a==b".to_owned()];
        spec.task.placement = Some(Placement { constraints, ..Default::default() });
    });
    sim.advance(secs(60));
    assert_eq!(state(&sim), UpdateState::RollbackCompleted);
    assert_eq!(running(&sim, "g"), on(&["n1", "n2"]));
}
