//! Which tasks an update would keep, asked one by one (`orchestration.md` §9, scenarios 4 to 8).
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use swarm_api::TaskState::{self, Failed, Pending, Preparing, Ready, Running, Shutdown};
use swarm_api::v1::container_spec::PullOptions;
use swarm_api::v1::{ContainerSpec, EndpointSpec, Placement, Service, Task, Version, task_spec};

/// A service, and a task made of an earlier version of it, RUNNING on node `n1`.
fn pair() -> (Service, Task) {
    let mut web = service("web", 1);
    web.spec.task.runtime =
        Some(task_spec::Runtime::Container(ContainerSpec { image: "old".into(), ..Default::default() }));
    let task = task(&web, "t1", 1, "n1", Running, Running);
    web.spec_version = Some(Version { index: 2 });
    (web, task)
}

fn container(service: &mut Service) -> &mut ContainerSpec {
    match &mut service.spec.task.runtime {
        Some(task_spec::Runtime::Container(container)) => container,
        _ => panic!("a container"),
    }
}

/// In a cluster of the node `n1` alone.
fn is_kept(service: &Service, task: &Task) -> bool {
    let sim = Sim::new(|tx| drop(tx.create(node("n1")).unwrap()));
    swarm_orchestrator::is_up_to_date(&sim.view(), service, task)
}

#[track_caller]
fn check(kept: bool, change: impl Fn(&mut Service, &mut Task)) {
    let (mut service, mut task) = pair();
    assert!(is_kept(&service, &task), "nothing but the version differs");
    change(&mut service, &mut task);
    assert_eq!(is_kept(&service, &task), kept);
}

#[test]
fn of_one_version_everything_is_kept() {
    check(true, |web, task| {
        web.spec.task.force_update = 7;
        container(web).image = "new".into();
        web.spec.endpoint = Some(EndpointSpec::default());
        task.spec_version = web.spec_version;
    });
    check(false, |web, _| container(web).image = "new".into());
    check(false, |web, task| {
        web.spec.task.force_update = 7;
        (web.spec_version, task.spec_version) = (None, None);
    });
}

fn place(web: &mut Service, constraint: &str) {
    let constraints = vec![constraint.to_owned()];
    web.spec.task.placement = Some(Placement { constraints, ..Default::default() });
}

#[test]
fn a_task_that_stands_where_a_new_placement_allows_it_is_kept() {
    check(true, |web, _| place(web, "node.id==n1"));
    check(false, |web, _| place(web, "node.id!=n1"));
    check(false, |web, task| {
        place(web, "node.id==n1");
        task.node_id = "unknown".into();
    });
    check(false, |web, task| {
        place(web, "node.id==n1");
        task.node_id = "".into();
    });
    check(false, |web, _| {
        place(web, "node.id==n1");
        container(web).image = "new".into();
    });
    check(true, |web, _| web.spec.task.placement = Some(Placement { max_replicas: 1, ..Default::default() }));
}

#[test]
fn how_an_image_is_pulled_matters_only_to_what_is_still_to_be_made() {
    let pulled = |state: TaskState, desired: TaskState| {
        move |web: &mut Service, task: &mut Task| {
            container(web).pull_options = Some(PullOptions { registry_auth: "token".into() });
            task.status.state = state as i32;
            task.desired_state = desired as i32;
        }
    };
    check(true, pulled(Running, Running));
    check(true, pulled(Ready, Ready));
    check(false, pulled(Running, Shutdown));
    check(false, pulled(Pending, Running));
    check(false, pulled(Preparing, Running));
    check(false, pulled(Failed, Running));
}

#[test]
fn a_forced_update_replaces_and_a_label_of_the_service_does_not() {
    check(false, |web, _| web.spec.task.force_update += 1);
    check(true, |web, _| drop(web.spec.annotations.labels.insert("a".into(), "b".into())));
}
