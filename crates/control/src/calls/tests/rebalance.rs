//! Requests to rebalance a service.

use swarm_api::extensions::{PLACEMENT_STRATEGY, REBALANCE, REBALANCE_NOW};
use swarm_api::swarmd::RebalanceRequest;
use swarm_api::swarmd::services_server::Services;

use super::*;

/// How many tasks move, and whether others may have to that do not run yet.
async fn rebalance(control: &Control, id: &str) -> Result<(u64, bool), Status> {
    let request = Request::new(RebalanceRequest { service_id: id.into() });
    let answer = Services::rebalance(control, request).await?.into_inner();
    Ok((answer.tasks, answer.waits))
}

/// Two nodes, and a service with four tasks on the first of them.
async fn on_one_of_two_nodes(control: &Control, state: TaskState) -> Shared<Service> {
    let web = create_service(control, service_spec("web", 4)).await.unwrap();
    for id in ["n1", "n2"] {
        let mut node = Node { id: id.into(), ..Default::default() };
        node.status.state = node_status::State::Ready as i32;
        put(control, node).await;
    }
    for slot in 1..=4 {
        let task = Task {
            id: format!("t{slot}").into(),
            service_id: web.id.as_str().into(),
            slot,
            node_id: "n1".into(),
            spec: web.spec.task.clone(),
            spec_version: web.spec_version,
            status: TaskStatus { state: state as i32, ..Default::default() },
            desired_state: TaskState::Running as i32,
            ..Default::default()
        };
        put(control, task).await;
    }
    web
}

fn stored(control: &Control, id: &str) -> Shared<Service> {
    control.store.view().services().get(id).unwrap().clone()
}

fn is_requested(spec: &ServiceSpec) -> bool {
    spec.annotations.labels.contains_key(REBALANCE_NOW)
}

#[tokio::test]
async fn a_rebalance_is_put_on_record_and_changes_nothing_else() {
    let control = control();
    let before = on_one_of_two_nodes(&control, TaskState::Running).await;
    for _ in 0..2 {
        let found = rebalance(&control, &before.id).await.unwrap();
        assert_eq!(found, (2, false), "asking twice is asking once");
    }
    let mut after = stored(&control, &before.id);
    assert_eq!(after.spec.annotations.labels.remove(REBALANCE_NOW).as_deref(), Some("1"));
    after.meta = before.meta;
    assert_eq!(after, before);
}

#[tokio::test]
async fn an_even_spread_stays_as_it_is() {
    let control = control();
    let web = create_service(&control, service_spec("web", 4)).await.unwrap();
    assert_eq!(rebalance(&control, &web.id).await.unwrap(), (0, false));
    assert_eq!(stored(&control, &web.id), web);
}

#[tokio::test]
async fn a_rebalance_of_tasks_that_do_not_run_yet_is_put_on_record() {
    let control = control();
    let web = on_one_of_two_nodes(&control, TaskState::Preparing).await;
    assert_eq!(rebalance(&control, &web.id).await.unwrap(), (0, true));
    assert!(is_requested(&stored(&control, &web.id).spec));
}

#[tokio::test]
async fn an_update_leaves_a_request_and_takes_it_along_in_no_spec() {
    let control = control();
    let web = on_one_of_two_nodes(&control, TaskState::Running).await;
    rebalance(&control, &web.id).await.unwrap();
    // One client does not know of it, another one writes back what it has read.
    let mut spec = service_spec("web", 4);
    for round in 0..2 {
        let before = stored(&control, &web.id);
        update_service(&control, &before, spec, Rollback::None).await.unwrap();
        let after = stored(&control, &web.id);
        assert!(is_requested(&after.spec), "{round}");
        assert!(!is_requested(after.previous_spec.as_ref().unwrap()), "{round}");
        spec = after.spec.clone();
    }
    let before = stored(&control, &web.id);
    update_service(&control, &before, spec, Rollback::Previous).await.unwrap();
    let after = stored(&control, &web.id);
    assert!(is_requested(&after.spec) && !is_requested(after.previous_spec.as_ref().unwrap()));
}

#[tokio::test]
async fn no_spec_makes_or_brings_back_a_request() {
    let control = control();
    let mut spec = service_spec("web", 4);
    spec.annotations.labels.insert(REBALANCE_NOW.into(), "1".into());
    let web = create_service(&control, spec.clone()).await.unwrap();
    assert!(!is_requested(&web.spec));
    update_service(&control, &web, spec.clone(), Rollback::None).await.unwrap();
    let mut web = stored(&control, &web.id);
    assert!(!is_requested(&web.spec));
    // As a leader of another make leaves it.
    web.previous_spec.as_mut().unwrap().annotations.labels.insert(REBALANCE_NOW.into(), "1".into());
    control.store.update(|tx| tx.update(web.clone())).await.unwrap();
    let web = stored(&control, &web.id);
    update_service(&control, &web, spec, Rollback::Previous).await.unwrap();
    let web = stored(&control, &web.id);
    assert!(!is_requested(&web.spec) && !is_requested(web.previous_spec.as_ref().unwrap()));
}

#[tokio::test]
async fn what_is_packed_is_not_rebalanced() {
    let control = control();
    let mut spec = service_spec("web", 4);
    spec.annotations.labels.insert(PLACEMENT_STRATEGY.into(), "binpack".into());
    let web = create_service(&control, spec.clone()).await.unwrap();
    let text =
        "the service's placement strategy is binpack: its tasks go to the fullest nodes, and are not spread";
    error(rebalance(&control, &web.id).await, Code::FailedPrecondition, text);
    spec.annotations.labels.insert(REBALANCE.into(), "auto".into());
    let refused = update_service(&control, &web, spec, Rollback::None).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("would go back to the fullest node"), "{}", refused.message());
}

#[tokio::test]
async fn a_rebalance_is_refused_where_it_makes_no_sense() {
    let control = control();
    refused(
        Services::rebalance(&control, Request::new(RebalanceRequest { service_id: "x".into() })).await,
        Code::NotFound,
        "service x not found",
    );
    let mut spec = service_spec("everywhere", 0);
    spec.mode = Some(Mode::Global(GlobalService {}));
    let global = create_service(&control, spec).await.unwrap();
    let text = "only replicated services can be rebalanced";
    error(rebalance(&control, &global.id).await, Code::FailedPrecondition, text);
    let web = create_service(&control, service_spec("web", 1)).await.unwrap();
    update_service(&control, &web, service_spec("web", 2), Rollback::None).await.unwrap();
    let web = control.store.view().services().get(&web.id).unwrap().clone();
    update_service(&control, &web, service_spec("web", 2), Rollback::Previous).await.unwrap();
    let text = "the service is being updated, or its update is paused: rebalance it when that is over";
    error(rebalance(&control, &web.id).await, Code::FailedPrecondition, text);
}
