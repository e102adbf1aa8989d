use std::time::Duration;

use swarm_api::v1::dispatcher_server::Dispatcher as _;
use swarm_api::v1::update_volume_status_request::VolumeStatusUpdate;
use swarm_api::v1::{
    ContainerStatus, TaskState, TaskStatus, UpdateVolumeStatusRequest, Volume, VolumePublishStatus,
    task_status, volume_publish_status,
};
use swarm_store::Received;
use swarm_store::testing::LoopbackProposer;
use tonic::Code;

use crate::harness::*;

// 30, 31, 35
#[tokio::test(start_paused = true)]
async fn own_tasks_are_updated_and_the_rest_of_a_call_survives_oddities() {
    let h = start().await;
    for id in ["a", "b"] {
        h.create(task(id, "n1", TaskState::Assigned)).await;
    }
    let session = h.session("n1").await;
    let stale = h.report("n1", "stale", vec![("a", Some(status(TaskState::Running)))]).await.unwrap_err();
    assert_eq!(stale.code(), Code::InvalidArgument);
    assert_eq!(h.task_state("a"), TaskState::Assigned);
    let odd = TaskStatus { state: 12345, ..Default::default() };
    let updates = vec![
        ("gone", Some(status(TaskState::Running))),
        ("a", None),
        ("a", Some(odd)),
        ("a", Some(status(TaskState::Running))),
        ("b", Some(status(TaskState::Failed))),
    ];
    h.report("n1", &session.id, updates).await.unwrap();
    assert_eq!(h.task_state("a"), TaskState::Running);
    assert_eq!(h.task_state("b"), TaskState::Failed);
    for id in ["a", "b"] {
        let stored = h.store.view().tasks().get(id).unwrap().status.clone();
        assert_eq!(stored.applied_by, "m1", "{id}");
        assert!(stored.applied_at.is_some(), "{id}");
    }
}

// 32
#[tokio::test(start_paused = true)]
async fn a_foreign_task_spoils_the_whole_call() {
    let h = start().await;
    h.create(task("mine", "n1", TaskState::Assigned)).await;
    h.create(task("foreign", "n2", TaskState::Assigned)).await;
    let session = h.session("n1").await;
    let updates =
        vec![("mine", Some(status(TaskState::Running))), ("foreign", Some(status(TaskState::Failed)))];
    let refused = h.report("n1", &session.id, updates).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), "cannot update a task not assigned this node");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(h.task_state("mine"), TaskState::Assigned);
    assert_eq!(h.task_state("foreign"), TaskState::Assigned);
}

// 33
#[tokio::test(start_paused = true)]
async fn states_never_go_back() {
    let h = start().await;
    h.create(task("t", "n1", TaskState::Shutdown)).await;
    let session = h.session("n1").await;
    h.report("n1", &session.id, vec![("t", Some(status(TaskState::Running)))]).await.unwrap();
    assert_eq!(h.task_state("t"), TaskState::Shutdown);
    let updates = vec![("t", Some(status(TaskState::Failed))), ("t", Some(status(TaskState::Running)))];
    h.report("n1", &session.id, updates).await.unwrap();
    assert_eq!(h.task_state("t"), TaskState::Failed, "the highest of a queue counts, not the last");
}

// 34
#[tokio::test(start_paused = true)]
async fn the_same_state_with_other_facts_is_stored_and_without_is_not_written() {
    let h = start().await;
    h.create(task("t", "n1", TaskState::Running)).await;
    let session = h.session("n1").await;
    let mut with_pid = status(TaskState::Running);
    let container = ContainerStatus { pid: 7, ..Default::default() };
    with_pid.runtime_status = Some(task_status::RuntimeStatus::Container(container.into()));
    h.report("n1", &session.id, vec![("t", Some(with_pid.clone()))]).await.unwrap();
    let stored = h.store.view().tasks().get("t").unwrap().status.clone();
    assert_eq!(stored.runtime_status, with_pid.runtime_status);
    let index = h.store.view().index();
    h.report("n1", &session.id, vec![("t", Some(with_pid))]).await.unwrap();
    assert_eq!(h.store.view().index(), index);
}

// 36
#[tokio::test(start_paused = true)]
async fn a_full_queue_is_written_without_delay() {
    let mut t = timings();
    t.commit_gather = Duration::from_secs(3600);
    t.commit_queue = 100;
    let h = start_with(t).await;
    let ids: Vec<String> = (0..100).map(|i| format!("t{i}")).collect();
    for id in &ids {
        h.create(task(id, "n1", TaskState::Assigned)).await;
    }
    let session = h.session("n1").await;
    let report = |ids: &[String]| -> Vec<(String, Option<TaskStatus>)> {
        ids.iter().map(|id| (id.clone(), Some(status(TaskState::Running)))).collect()
    };
    let few = report(&ids[..99]);
    h.report("n1", &session.id, few.iter().map(|(i, s)| (i.as_str(), s.clone())).collect()).await.unwrap();
    assert_eq!(h.task_state("t0"), TaskState::Assigned);
    let last = report(&ids[99..]);
    h.report("n1", &session.id, last.iter().map(|(i, s)| (i.as_str(), s.clone())).collect()).await.unwrap();
    assert!(ids.iter().all(|id| h.task_state(id) == TaskState::Running));
}

// 37, 38
#[tokio::test(start_paused = true)]
async fn an_unpublished_volume_is_noted_for_this_node_only() {
    use volume_publish_status::State;
    let h = start().await;
    let published = |node: &str| VolumePublishStatus {
        node_id: node.into(),
        state: State::PendingNodeUnpublish as i32,
        ..Default::default()
    };
    let publish_status = vec![published("n1"), published("n2")];
    h.create(Volume { id: "v".into(), publish_status, ..Default::default() }).await;
    let session = h.session("n1").await;
    let update = |id: &str, unpublished| VolumeStatusUpdate { id: id.into(), unpublished };
    let updates = vec![update("gone", true), update("v", true)];
    let request = UpdateVolumeStatusRequest { session_id: session.id.clone(), updates };
    h.service.update_volume_status(caller("n1", request)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let volume = h.store.view().volumes().get("v").cloned().unwrap();
    assert_eq!(volume.publish_status[0].state(), State::PendingUnpublish);
    assert_eq!(volume.publish_status[1].state(), State::PendingNodeUnpublish);
}

#[tokio::test(start_paused = true)]
async fn an_endless_error_text_is_cut() {
    let h = start().await;
    h.create(task("t", "n1", TaskState::Assigned)).await;
    let session = h.session("n1").await;
    let mut long = status(TaskState::Failed);
    long.err = "ä".repeat(1_000_000).into();
    h.report("n1", &session.id, vec![("t", Some(long))]).await.unwrap();
    assert_eq!(h.task_state("t"), TaskState::Failed);
    assert!(h.store.view().tasks().get("t").unwrap().status.err.len() <= 32 * 1024);
}

#[tokio::test(start_paused = true)]
async fn a_status_that_would_make_its_task_unchangeable_is_cut_down() {
    let h = start().await;
    h.create(task("t", "n1", TaskState::Assigned)).await;
    let session = h.session("n1").await;
    let mut huge = status(TaskState::Failed);
    huge.err = "why".into();
    huge.applied_by = "x".repeat(200_000).into();
    let container = ContainerStatus { container_id: "c".repeat(1_400_000), ..Default::default() };
    huge.runtime_status = Some(task_status::RuntimeStatus::Container(container.into()));
    h.report("n1", &session.id, vec![("t", Some(huge))]).await.unwrap();
    let stored = h.store.view().tasks().get("t").unwrap().status.clone();
    assert_eq!(
        (stored.state(), stored.err.as_str(), stored.applied_by.as_str()),
        (TaskState::Failed, "why", "m1")
    );
    assert_eq!(stored.runtime_status, None);
}

// On a real clock: the store's other half is a thread.
#[tokio::test]
async fn what_a_slow_disk_refuses_is_written_later() {
    let (store, raft) = LoopbackProposer::store();
    let mut h = stopped_on(store, timings()).await;
    h.create(task("t", "n1", TaskState::Assigned)).await;
    h.start();
    h.settle().await;
    let session = h.session("n1").await;
    raft.set_full(true);
    h.report("n1", &session.id, vec![("t", Some(status(TaskState::Failed)))]).await.unwrap();
    let tried = tokio::task::spawn_blocking({
        let raft = raft.clone();
        move || raft.wait_for_drops(3)
    });
    tokio::time::timeout(Duration::from_secs(60), tried).await.unwrap().unwrap();
    assert_eq!(h.task_state("t"), TaskState::Assigned);
    raft.set_full(false);
    let (view, mut commits) = h.store.view_and_subscribe();
    let written =
        |view: &swarm_store::View| view.tasks().get("t").unwrap().status.state() == TaskState::Failed;
    let wait = async {
        while let Received::Commit(commit) = commits.next().await {
            if written(&commit.view) {
                return;
            }
        }
    };
    if !written(&view) {
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
    }
    assert_eq!(h.task_state("t"), TaskState::Failed);
}
