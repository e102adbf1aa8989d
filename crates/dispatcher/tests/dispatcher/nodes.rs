use std::time::Duration;

use swarm_api::v1::{Cluster, Node, TaskState, node_status::State};
use tonic::Code;

use crate::harness::*;

// 18, 19, 20
#[tokio::test(start_paused = true)]
async fn heartbeats_need_the_session() {
    let mut h = stopped(Default::default()).await;
    h.start();
    h.settle().await;
    let unknown = h.heartbeat("n1", "").await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message()), (Code::InvalidArgument, "session invalid"));
    let session = h.session("n1").await;
    let period = h.heartbeat("n1", &session.id).await.unwrap();
    assert!(period >= Duration::from_millis(4500) && period < Duration::from_millis(5500), "{period:?}");
    assert_eq!(h.heartbeat("n1", "").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(h.heartbeat("n1", "other").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(h.heartbeat("n2", &session.id).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(h.heartbeat("n3", &session.id).await.unwrap_err().code(), Code::NotFound);
}

// 21
#[tokio::test(start_paused = true)]
async fn a_silent_node_goes_down_after_three_periods() {
    let mut t = timings();
    t.heartbeat_period = Duration::from_millis(100);
    let h = start_with(t).await;
    let mut session = h.session("n1").await;
    tokio::time::sleep(Duration::from_millis(280)).await;
    assert_eq!(h.node_state("n1"), State::Ready);
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(h.node_state("n1"), State::Down);
    assert_eq!(h.node("n1").status.message, "heartbeat failure");
    let late = h.heartbeat("n1", &session.id).await.unwrap_err();
    assert_eq!((late.code(), late.message()), (Code::NotFound, "node not registered"));
    assert_eq!(session.next().await.unwrap_err().code(), Code::NotFound);
}

// 22
#[tokio::test(start_paused = true)]
async fn a_beating_node_stays_ready() {
    let h = start().await;
    let session = h.session("n1").await;
    for _ in 0..20 {
        let period = h.heartbeat("n1", &session.id).await.unwrap();
        tokio::time::sleep(period).await;
    }
    assert_eq!(h.node_state("n1"), State::Ready);
    assert_eq!(h.node_state("n2"), State::Down, "the other one never came");
}

// 24, 25
#[tokio::test(start_paused = true)]
async fn a_new_leader_expects_everybody_back() {
    let mut h = stopped(timings()).await;
    for (id, state) in [("n1", State::Ready), ("n2", State::Down)] {
        h.change::<Node>(id, |n| n.status.state = state as i32).await;
    }
    h.create(Node { id: "n3".into(), ..Default::default() }).await;
    h.dispatcher.mark_unknown().await.unwrap();
    assert_eq!(h.node_state("n1"), State::Unknown);
    let message = "Node moved to \"unknown\" state due to leadership change in cluster";
    assert_eq!(h.node("n1").status.message, message);
    assert_eq!(h.node_state("n2"), State::Down);
    let index = h.store.view().index();
    h.dispatcher.mark_unknown().await.unwrap();
    assert_eq!(h.store.view().index(), index, "nothing is written twice");

    h.create(task("t2", "n2", TaskState::Running)).await;
    h.start();
    h.settle().await;
    let _session = h.session("n3").await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(h.node_state("n1"), State::Unknown);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(h.node_state("n1"), State::Down);
    assert_eq!(h.node("n1").status.message, "heartbeat failure for node in \"unknown\" state");
    assert_eq!(h.node("n3").status.message, "heartbeat failure", "it came back, but fell silent");
    tokio::time::sleep(Duration::from_secs(24 * 3600 - 60)).await;
    assert_eq!(h.task_state("t2"), TaskState::Running);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(h.task_state("t2"), TaskState::Orphaned);
}

// 26
#[tokio::test(start_paused = true)]
async fn tasks_of_a_node_that_is_down_for_a_day_are_orphaned() {
    let h = start().await;
    use TaskState::*;
    for state in [New, Pending, Assigned, Ready, Running, Complete, Failed] {
        h.create(task(state.name(), "n1", state)).await;
    }
    h.create(task("other", "", Running)).await;
    let _session = h.session("n1").await;
    tokio::time::sleep(Duration::from_secs(24 * 3600 + 14)).await;
    assert_eq!(h.task_state("RUNNING"), Running);
    tokio::time::sleep(Duration::from_secs(3)).await;
    for state in [Assigned, Ready, Running] {
        assert_eq!(h.task_state(state.name()), Orphaned);
    }
    for state in [New, Pending, Complete, Failed] {
        assert_eq!(h.task_state(state.name()), state);
    }
    assert_eq!(h.task_state("other"), Running);
}

// 27
#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_keeps_its_tasks() {
    let h = start().await;
    h.create(task("t", "n1", TaskState::Running)).await;
    drop(h.session("n1").await);
    tokio::time::sleep(Duration::from_secs(23 * 3600)).await;
    assert_eq!(h.node_state("n1"), State::Down);
    let session = h.session("n1").await;
    assert_eq!(h.node_state("n1"), State::Ready);
    for _ in 0..1500 {
        let period = h.heartbeat("n1", &session.id).await.unwrap();
        tokio::time::sleep(period).await;
    }
    assert_eq!(h.task_state("t"), TaskState::Running);
}

// 28
#[tokio::test(start_paused = true)]
async fn the_period_follows_the_cluster_object() {
    let h = start().await;
    let session = h.session("n1").await;
    assert_eq!(h.heartbeat("n1", &session.id).await.unwrap(), Duration::from_secs(5));
    let period = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    h.change::<Cluster>("cluster", |c| c.spec.dispatcher.heartbeat_period = period(1)).await;
    h.settle().await;
    assert_eq!(h.heartbeat("n1", &session.id).await.unwrap(), Duration::from_secs(1));
    tokio::time::sleep(Duration::from_millis(3100)).await;
    assert_eq!(h.node_state("n1"), State::Down, "the shorter grace holds from this heartbeat on");
    h.change::<Cluster>("cluster", |c| c.spec.dispatcher.heartbeat_period = period(0)).await;
    h.settle().await;
    let session = h.session("n1").await;
    assert_eq!(h.heartbeat("n1", &session.id).await.unwrap(), Duration::from_secs(5), "never zero");
}

#[tokio::test(start_paused = true)]
async fn re_registering_before_the_grace_ends_leaves_the_node_ready() {
    let h = start().await;
    drop(h.session("n1").await);
    tokio::time::sleep(Duration::from_millis(14_990)).await;
    let _session = h.session("n1").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(h.node_state("n1"), State::Ready);
}

// 29
#[tokio::test(start_paused = true)]
async fn a_description_that_waits_to_be_written_outlives_the_news_that_its_node_is_down() {
    let mut t = timings();
    t.commit_gather = Duration::from_secs(60);
    let h = start_with(t).await;
    let session = h.session("n1").await;
    let name = || h.node("n1").description.clone().unwrap_or_default().hostname;
    let both_wait = async {
        // Three periods have passed without a heartbeat.
        tokio::time::sleep(Duration::from_secs(30)).await;
        let gone = h.heartbeat("n1", &session.id).await.unwrap_err();
        assert_eq!(gone.message(), "node not registered");
        assert_eq!((h.node_state("n1"), name().as_str()), (State::Ready, ""));
    };
    let (resumed, ()) = tokio::join!(h.open("n1", &session.id, Some(hostname("new"))), both_wait);
    assert_eq!(resumed.unwrap().id, session.id);
    assert_eq!((h.node_state("n1"), name().as_str()), (State::Down, "new"));
}
