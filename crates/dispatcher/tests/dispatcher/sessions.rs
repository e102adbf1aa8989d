use std::time::Duration;

use swarm_api::v1::dispatcher_server::Dispatcher as _;
use swarm_api::v1::{Cluster, EncryptionKey, HeartbeatRequest, Node, SessionRequest, node_spec, node_status};
use tonic::{Code, Request};

use crate::harness::*;

// 1, 15
#[tokio::test(start_paused = true)]
async fn first_message_is_complete_and_the_node_is_ready_in_it() {
    let h = start().await;
    let session = h.open("n1", "", Some(hostname("host"))).await.unwrap();
    let first = &session.first;
    assert!(swarm_api::id::is_valid(&session.id));
    let node = first.node.as_ref().unwrap();
    assert_eq!(node.id, "n1");
    assert_eq!(node.status.state(), node_status::State::Ready);
    assert_eq!(node.status.addr, "192.0.2.1");
    assert_eq!(node.description.as_ref().unwrap().hostname, "host");
    assert_eq!(first.managers.len(), 1);
    assert_eq!(first.managers[0].peer, Some(peer("m1")));
    assert_eq!(first.managers[0].weight, 10);
    assert_eq!(first.network_bootstrap_keys.len(), 1);
    assert_eq!(first.root_ca, b"root");

    let again = h.session("n1").await;
    let node = again.first.node.unwrap();
    assert_eq!(node.description.as_ref().unwrap().hostname, "host", "no description leaves the stored one");
}

// 2, 3, 4
#[tokio::test(start_paused = true)]
async fn only_the_current_session_is_resumed() {
    let h = start().await;
    let first = h.session("n1").await;
    let second = h.session("n1").await;
    assert_ne!(first.id, second.id);
    let third = h.open("n1", &first.id, None).await.unwrap();
    assert_ne!(third.id, first.id);
    let resumed = h.open("n1", &third.id, Some(hostname("renamed"))).await.unwrap();
    assert_eq!(resumed.id, third.id);
    assert_eq!(resumed.first.node.unwrap().description.as_ref().unwrap().hostname, "renamed");
}

#[tokio::test(start_paused = true)]
async fn a_replaced_session_ends_at_once() {
    let h = start().await;
    let mut first = h.session("n1").await;
    let mut assignments = h.assignments("n1", &first.id).await.unwrap();
    assignments.next().await;
    let _second = h.session("n1").await;
    assert_eq!(first.next().await.unwrap_err().code(), Code::InvalidArgument);
    let status = assignments.result().await.unwrap_err(); // 58
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "session invalid"));
}

// 5, 6
#[tokio::test(start_paused = true)]
async fn registrations_are_limited() {
    let h = start().await;
    for _ in 0..3 {
        h.session("n1").await;
    }
    let refused = h.open("n1", "", None).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(refused.message(), "node n1 exceeded rate limit count of registrations");
    tokio::time::sleep(Duration::from_millis(8100)).await;
    h.session("n1").await;
}

// 7, 8, 17
#[tokio::test(start_paused = true)]
async fn refusals_have_the_contracts_codes() {
    let mut h = start().await;
    let missing = h.open("nobody", "", None).await.err().unwrap();
    assert_eq!((missing.code(), missing.message()), (Code::Unknown, "node not found"));
    let anonymous = h.service.session(Request::new(SessionRequest::default())).await.err().unwrap();
    assert_eq!(anonymous.code(), Code::PermissionDenied);
    assert!(anonymous.message().ends_with("no client certificates in request"), "{anonymous}");
    h.stop().await;
    let stopped = h.heartbeat("n1", "x").await.unwrap_err();
    assert_eq!((stopped.code(), stopped.message()), (Code::Aborted, "dispatcher is stopped"));
    let anonymous = h.service.heartbeat(Request::new(HeartbeatRequest::default())).await.err().unwrap();
    assert_eq!(anonymous.code(), Code::Aborted);
}

// 9, 11
#[tokio::test(start_paused = true)]
async fn new_keys_and_roots_reach_every_session() {
    let h = start().await;
    let mut session = h.session("n1").await;
    let keys = vec![EncryptionKey { lamport_time: 2, ..Default::default() }];
    h.change::<Cluster>("cluster", |c| c.network_bootstrap_keys = keys.clone()).await;
    let message = session.next().await.unwrap();
    assert_eq!(message.network_bootstrap_keys, keys);
    assert_eq!(message.session_id, session.first.session_id);
    assert_eq!(message.managers, session.first.managers);
    assert_eq!(message.root_ca, session.first.root_ca);
    h.change::<Cluster>("cluster", |c| c.root_ca.ca_cert = b"new".to_vec()).await;
    assert_eq!(session.next().await.unwrap().root_ca, b"new");
    h.change::<Cluster>("cluster", |c| c.root_ca.join_tokens.worker = "t".into()).await;
    session.nothing().await; // an improvement: the agent would not notice
}

// 10
#[tokio::test(start_paused = true)]
async fn new_managers_reach_every_session() {
    let h = start().await;
    let mut session = h.session("n1").await;
    h.managers.send(vec![peer("m1"), peer("m2")]).unwrap();
    let message = session.next().await.unwrap();
    let ids: Vec<_> = message.managers.iter().map(|m| m.peer.clone().unwrap().node_id).collect();
    assert_eq!(ids, ["m1", "m2"]);
    assert_eq!(message.root_ca, b"root");
}

// 12, 13
#[tokio::test(start_paused = true)]
async fn a_node_hears_of_itself_only() {
    let h = start().await;
    let mut session = h.session("n1").await;
    let drain = |node: &mut Node| node.spec.availability = node_spec::Availability::Drain as i32;
    h.change::<Node>("n2", drain).await;
    session.nothing().await;
    h.change::<Node>("n1", drain).await;
    let node = session.next().await.unwrap().node.unwrap();
    assert_eq!(node.spec.availability(), node_spec::Availability::Drain);
    session.nothing().await;
}

// 16
#[tokio::test(start_paused = true)]
async fn stopping_ends_streams_and_marks_nobody_down() {
    let mut h = start().await;
    let mut session = h.session("n1").await;
    let mut assignments = h.assignments("n1", &session.id).await.unwrap();
    assignments.next().await;
    h.stop().await;
    assert_eq!(session.next().await.unwrap().session_id, session.id);
    let end = session.next().await.unwrap_err();
    assert_eq!((end.code(), end.message()), (Code::Aborted, "node must disconnect"));
    assert_eq!(assignments.result().await.unwrap_err().code(), Code::Cancelled);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(h.node_state("n1"), node_status::State::Ready);
    h.start();
    h.settle().await;
    let late = h.heartbeat("n1", &session.id).await.unwrap_err();
    assert_eq!(late.message(), "session invalid", "a new term knows no session of an old one");
}

#[tokio::test(start_paused = true)]
async fn only_one_run_at_a_time() {
    let h = start().await;
    let second = h.dispatcher.run(Default::default()).await.unwrap_err();
    assert_eq!(second.to_string(), "dispatcher is already running");
    h.session("n1").await;
}

#[tokio::test(start_paused = true)]
async fn a_removed_node_is_cut_off() {
    let h = start().await;
    let mut session = h.session("n1").await;
    h.remove::<Node>("n1").await;
    let end = session.next().await.unwrap_err();
    assert_eq!((end.code(), end.message()), (Code::NotFound, "node not registered"));
    assert_eq!(h.heartbeat("n1", &session.id).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn an_oversized_description_is_refused() {
    let h = start().await;
    let refused = h.open("n1", "", Some(hostname(&"x".repeat(300_000)))).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
}
