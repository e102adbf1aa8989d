use std::time::Duration;

use futures::StreamExt as _;
use swarm_api::v1::dispatcher_server::Dispatcher as _;
use swarm_api::v1::{
    AssignmentsMessage, Config, ConfigReference, ContainerSpec, Driver, ResourceReference, ResourceType,
    Secret, SecretReference, Task, TaskState, TasksRequest, Volume, VolumeAccessMode, VolumeAssignment,
    VolumeInfo, VolumePublishStatus, VolumeSecret, assignment, assignments_message, task_spec,
    volume_access_mode, volume_publish_status,
};
use tonic::Code;

use crate::harness::*;

pub(crate) fn with_container(mut task: Task, secrets: &[&str], configs: &[&str]) -> Task {
    let secret = |id: &&str| SecretReference { secret_id: (*id).into(), ..Default::default() };
    let config = |id: &&str| ConfigReference { config_id: (*id).into(), ..Default::default() };
    task.spec.runtime = Some(task_spec::Runtime::Container(ContainerSpec {
        secrets: secrets.iter().map(secret).collect(),
        configs: configs.iter().map(config).collect(),
        ..Default::default()
    }));
    task
}

fn with_references(mut task: Task, references: &[(&str, ResourceType)]) -> Task {
    let reference = |(id, kind): &(&str, ResourceType)| ResourceReference {
        resource_id: (*id).into(),
        resource_type: *kind as i32,
    };
    task.spec.resource_references = references.iter().map(reference).collect();
    task
}

async fn with_objects(h: &Harness) {
    for id in ["s1", "s2"] {
        let mut secret = Secret { id: id.into(), ..Default::default() };
        secret.spec.annotations.name = id.into();
        secret.spec.data = b"data".to_vec();
        h.create(secret).await;
    }
    for id in ["c1", "c2"] {
        let mut config = Config { id: id.into(), ..Default::default() };
        config.spec.annotations.name = id.into();
        config.spec.data = b"data".to_vec();
        h.create(config).await;
    }
}

async fn set_state(h: &Harness, id: &str, state: TaskState) {
    h.change::<Task>(id, |t| t.status.state = state as i32).await;
}

// 39, 57, 59
#[tokio::test(start_paused = true)]
async fn the_chain_starts_complete_and_never_breaks() {
    let h = start().await;
    assert_eq!(h.assignments("n1", "").await.err().unwrap().code(), Code::InvalidArgument);
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    let first = stream.next().await;
    assert_eq!(first.r#type(), assignments_message::Type::Complete);
    assert_eq!((first.applies_to.as_str(), first.results_in.as_str()), ("", "1"));
    assert!(first.changes.is_empty());
    let mut before = first.results_in;
    for i in 0..20 {
        for j in 0..5 {
            h.create(task(&format!("t{i}-{j}"), "n1", TaskState::Assigned)).await;
        }
        let mut seen = 0;
        while seen < 5 {
            let message = stream.next().await;
            assert_eq!(message.r#type(), assignments_message::Type::Incremental);
            assert_eq!(message.applies_to, before);
            assert_eq!(message.results_in, (before.parse::<u64>().unwrap() + 1).to_string());
            before = message.results_in;
            seen += message.changes.len();
        }
    }
    stream.nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_after_a_quiet_time_leaves_at_once_and_a_burst_is_gathered() {
    let h = start().await;
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    stream.next().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begin = tokio::time::Instant::now();
    h.create(task("a", "n1", TaskState::Assigned)).await;
    assert_eq!(summary(&stream.next().await), "+task:a");
    assert!(begin.elapsed() < Duration::from_millis(2));
    for id in ["b", "c", "d"] {
        h.create(task(id, "n1", TaskState::Assigned)).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(summary(&stream.next().await), "+task:b +task:c +task:d");
    assert!(begin.elapsed() < Duration::from_millis(110), "bounded by total time, not by silence");
}

// 56
#[tokio::test(start_paused = true)]
async fn many_changes_do_not_wait() {
    let mut t = timings();
    t.assignment_gather = Duration::from_millis(250);
    let h = start_with(t).await;
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    stream.next().await;
    h.create(task("a", "n1", TaskState::Assigned)).await;
    stream.next().await;
    let begin = tokio::time::Instant::now();
    for i in 0..100 {
        h.create(task(&format!("t{i}"), "n1", TaskState::Assigned)).await;
    }
    assert_eq!(stream.next().await.changes.len(), 100);
    assert!(begin.elapsed() < Duration::from_millis(20));
}

// 40
#[tokio::test(start_paused = true)]
async fn the_complete_set_has_tasks_from_assigned_on_and_what_live_ones_need() {
    use TaskState::*;
    let h = start().await;
    with_objects(&h).await;
    for state in [New, Pending, Assigned, Accepted, Running, Complete, Orphaned] {
        h.create(task(state.name(), "n1", state)).await;
    }
    h.create(with_container(task("live", "n1", Running), &["s1"], &["c1"])).await;
    h.create(with_container(task("dead", "n1", Failed), &["s2"], &[])).await;
    h.create(task("elsewhere", "n2", Running)).await;
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    assert_eq!(
        summary(&stream.next().await),
        "+secret:s1 +config:c1 +task:ACCEPTED +task:ASSIGNED +task:COMPLETE +task:ORPHANED +task:RUNNING \
         +task:dead +task:live"
    );
}

// 41, 45, 46, 42
#[tokio::test(start_paused = true)]
async fn a_task_is_sent_when_it_matters() {
    let h = start().await;
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    stream.next().await;
    h.create(task("t", "", TaskState::New)).await;
    stream.nothing().await;
    h.change::<Task>("t", |t| {
        t.node_id = "n1".into();
        t.status.state = TaskState::Assigned as i32;
    })
    .await;
    assert_eq!(summary(&stream.next().await), "+task:t");
    h.change::<Task>("t", |_| {}).await;
    assert_eq!(summary(&stream.next().await), "+task:t", "again, as it is still ASSIGNED");
    set_state(&h, "t", TaskState::Running).await;
    stream.nothing().await;
    h.change::<Task>("t", |t| t.desired_state = TaskState::Shutdown as i32).await;
    assert_eq!(summary(&stream.next().await), "+task:t");
    set_state(&h, "t", TaskState::Failed).await;
    stream.nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_created_assigned_is_sent() {
    let h = start().await;
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    stream.next().await;
    h.create(task("t", "n1", TaskState::Assigned)).await;
    assert_eq!(summary(&stream.next().await), "+task:t");
    h.create(task("other", "n2", TaskState::Assigned)).await;
    stream.nothing().await;
}

// 43, 44
#[tokio::test(start_paused = true)]
async fn what_the_last_user_leaves_is_released() {
    let h = start().await;
    with_objects(&h).await;
    for id in ["a", "b"] {
        h.create(with_container(task(id, "n1", TaskState::Running), &["s1"], &[])).await;
    }
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    assert_eq!(summary(&stream.next().await), "+secret:s1 +task:a +task:b");
    set_state(&h, "a", TaskState::Failed).await;
    stream.nothing().await;
    set_state(&h, "b", TaskState::Failed).await;
    let message = stream.next().await;
    assert_eq!(summary(&message), "-secret:s1");
    let Some(assignment::Item::Secret(secret)) = &message.changes[0].assignment.as_ref().unwrap().item else {
        panic!("a secret")
    };
    assert!(secret.spec.data.is_empty(), "only the id");
}

// 47, 48
#[tokio::test(start_paused = true)]
async fn a_deleted_task_is_removed_with_what_it_used() {
    let h = start().await;
    with_objects(&h).await;
    h.create(with_container(task("t", "n1", TaskState::Running), &["s1"], &["c1"])).await;
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    stream.next().await;
    h.remove::<Task>("t").await;
    let message = stream.next().await;
    assert_eq!(summary(&message), "-task:t -secret:s1 -config:c1");
    let only_ids = [
        assignment::Item::Task(Task { id: "t".into(), ..Default::default() }.into()),
        assignment::Item::Secret(Secret { id: "s1".into(), ..Default::default() }.into()),
        assignment::Item::Config(Config { id: "c1".into(), ..Default::default() }.into()),
    ];
    let items: Vec<_> =
        message.changes.into_iter().map(|change| change.assignment.unwrap().item.unwrap()).collect();
    assert_eq!(items, only_ids);
    h.create(task("u", "n1", TaskState::Assigned)).await;
    h.change::<Task>("u", |t| t.desired_state = TaskState::Shutdown as i32).await;
    h.remove::<Task>("u").await;
    assert_eq!(summary(&stream.next().await), "-task:u");
    stream.nothing().await;
}

// 49, 50, 51, 52
#[tokio::test(start_paused = true)]
async fn objects_follow_their_references() {
    let h = start().await;
    with_objects(&h).await;
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    stream.next().await;
    let both = with_container(task("both", "n1", TaskState::Assigned), &["s1"], &["c2"]);
    h.create(with_references(both, &[("s1", ResourceType::Secret), ("x", ResourceType::Volume)])).await;
    assert_eq!(summary(&stream.next().await), "+secret:s1 +config:c2 +task:both");
    h.change::<Secret>("s1", |s| s.spec.data = b"other".to_vec()).await;
    h.change::<Config>("c2", |c| c.spec.data = b"other".to_vec()).await;
    stream.nothing().await;
    h.remove::<Secret>("s1").await;
    h.remove::<Config>("c2").await;
    stream.nothing().await;
    let only = task("only", "n1", TaskState::Assigned);
    let references = [("s2", ResourceType::Secret), ("c1", ResourceType::Config)];
    h.create(with_references(only, &references)).await;
    assert_eq!(summary(&stream.next().await), "+secret:s2 +config:c1 +task:only");
    h.create(with_container(task("lack", "n1", TaskState::Assigned), &["missing"], &[])).await;
    assert_eq!(summary(&stream.next().await), "+task:lack");
    h.remove::<Task>("lack").await;
    assert_eq!(summary(&stream.next().await), "-task:lack -secret:missing");
}

fn volume(node: &str, state: volume_publish_status::State) -> Volume {
    let mut volume = Volume { id: "v".into(), ..Default::default() };
    volume.spec.annotations.name = "v".into();
    volume.spec.secrets = vec![
        VolumeSecret { key: "k1".into(), secret: "s1".into() },
        VolumeSecret { key: "k2".into(), secret: "s2".into() },
    ];
    volume.spec.driver = Some(Driver { name: "csi".into(), ..Default::default() });
    let scope = volume_access_mode::Scope::MultiNode.into();
    volume.spec.access_mode = Some(VolumeAccessMode { scope, ..Default::default() });
    volume.volume_info = Some(VolumeInfo {
        volume_id: "csi-id".into(),
        volume_context: [("of".to_owned(), "all".to_owned())].into(),
        ..Default::default()
    });
    volume.publish_status = vec![VolumePublishStatus {
        node_id: node.into(),
        state: state as i32,
        publish_context: [("context".to_owned(), node.to_owned())].into(),
        ..Default::default()
    }];
    volume
}

fn last_volume(message: &AssignmentsMessage) -> VolumeAssignment {
    match message.changes.last().unwrap().assignment.clone().unwrap().item {
        Some(assignment::Item::Volume(volume)) => volume,
        other => panic!("{other:?}"),
    }
}

// 60, 61, 62, 63, 64
#[tokio::test(start_paused = true)]
async fn volumes_come_and_go_with_their_secrets() {
    use volume_publish_status::State;
    let h = start().await;
    with_objects(&h).await;
    h.create(volume("n1", State::PendingPublish)).await;
    h.create(with_container(task("t", "n1", TaskState::Running), &["s2"], &[])).await;
    let session = h.session("n1").await;
    let other = h.session("n2").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    let mut elsewhere = h.assignments("n2", &other.id).await.unwrap();
    elsewhere.next().await;
    assert_eq!(summary(&stream.next().await), "+secret:s2 +task:t");
    let set = |state: State| h.change::<Volume>("v", move |v| v.publish_status[0].state = state as i32);
    set(State::Published).await;
    let message = stream.next().await;
    assert_eq!(summary(&message), "+secret:s1 +volume:v");
    let sent = last_volume(&message);
    let stored = h.store.view().volumes().get("v").cloned().unwrap();
    let all = VolumeAssignment {
        id: "v".into(),
        volume_id: "csi-id".into(),
        driver: stored.spec.driver.clone(),
        volume_context: [("of".to_owned(), "all".to_owned())].into(),
        publish_context: [("context".to_owned(), "n1".to_owned())].into(),
        access_mode: stored.spec.access_mode.clone(),
        secrets: stored.spec.secrets.clone(),
    };
    assert_eq!(sent, all);
    h.change::<Volume>("v", |v| v.pending_delete = true).await;
    stream.nothing().await;
    set(State::PendingNodeUnpublish).await;
    let message = stream.next().await;
    assert_eq!(summary(&message), "-volume:v");
    assert_eq!(last_volume(&message), all, "the node needs all of it to let the volume go");
    let mut fresh = h.assignments("n1", &session.id).await.unwrap();
    let message = fresh.next().await;
    assert_eq!(summary(&message), "+secret:s1 +secret:s2 +task:t -volume:v");
    assert_eq!(last_volume(&message), all);
    set(State::PendingUnpublish).await;
    assert_eq!(summary(&fresh.next().await), "-secret:s1", "s2 is used by the task");
    elsewhere.nothing().await;
}

// 65
#[tokio::test(start_paused = true)]
async fn the_old_tasks_stream_lists_everything_each_time() {
    let h = start().await;
    let session = h.session("n1").await;
    let request = TasksRequest { session_id: session.id.clone() };
    let mut stream = h.service.tasks(caller("n1", request)).await.unwrap().into_inner();
    assert!(stream.next().await.unwrap().unwrap().tasks.is_empty());
    h.create(task("t", "n1", TaskState::Assigned)).await;
    assert_eq!(stream.next().await.unwrap().unwrap().tasks.len(), 1);
    h.change::<Task>("t", |t| t.desired_state = TaskState::Shutdown as i32).await;
    let list = stream.next().await.unwrap().unwrap().tasks;
    assert_eq!(list[0].desired_state(), TaskState::Shutdown);
    set_state(&h, "t", TaskState::Accepted).await;
    set_state(&h, "t", TaskState::Shutdown).await;
    let quiet = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
    assert!(quiet.is_err(), "only the status changed");
    h.remove::<Task>("t").await;
    assert!(stream.next().await.unwrap().unwrap().tasks.is_empty());
    let ids = ["a", "b", "c"];
    for id in ids {
        h.create(task(id, "n1", TaskState::Assigned)).await;
    }
    assert_eq!(stream.next().await.unwrap().unwrap().tasks.len(), 3);
    for id in ids {
        h.remove::<Task>(id).await;
    }
    assert!(stream.next().await.unwrap().unwrap().tasks.is_empty());
    let quiet = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
    assert!(quiet.is_err(), "all of them are gone with one list");
}

#[tokio::test(start_paused = true)]
async fn a_dispatcher_that_fell_behind_loses_no_change() {
    let h = start().await;
    for i in 0..10 {
        h.create(task(&format!("old{i}"), "n1", TaskState::Running)).await;
    }
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    stream.next().await;
    // The runtime has one thread and these writes never wait: more commits than the store keeps for anybody.
    h.create(task("first", "n1", TaskState::Assigned)).await;
    for _ in 0..6000 {
        h.change::<Task>("old0", |t| t.desired_state = TaskState::Shutdown as i32).await;
    }
    h.remove::<Task>("old1").await;
    let mut seen = String::new();
    while !seen.contains("-task:old1") {
        seen += &format!("{} ", summary(&stream.next().await));
    }
    assert!(seen.contains("+task:first") && seen.contains("+task:old0"), "{seen}");
    assert!(!seen.contains("old2"), "{seen}");
}
