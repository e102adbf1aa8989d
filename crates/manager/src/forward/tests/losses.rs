//! What callers get when the leader goes away.

use swarm_api::swarmd::TaskInput;
use swarm_api::swarmd::tasks_client::TasksClient;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::log_broker_client::LogBrokerClient;
use swarm_api::v1::node_ca_client::NodeCaClient;
use swarm_api::v1::resource_allocator_client::ResourceAllocatorClient;
use swarm_api::v1::*;
use tonic::{Code, Status};

use super::world::{Wire, World};
use crate::Route;

fn config() -> CreateConfigRequest {
    let mut spec = ConfigSpec { data: b"x".to_vec(), ..Default::default() };
    spec.annotations.name = "a".into();
    CreateConfigRequest { spec: Some(spec) }
}

#[tokio::test]
async fn without_a_leader_the_caller_is_told_so() {
    let world = World::new();
    let follower = world.manager("follower").await;
    let text = "The swarm does not have a leader. It's possible that too few managers are online.";
    follower.told.set([Err(Status::unknown(text))]);
    let status = ControlClient::new(follower.local()).list_nodes(ListNodesRequest::default()).await;
    let status = status.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, text));
}

#[tokio::test]
async fn a_call_that_never_began_is_repeated_even_if_it_changes_something() {
    let world = World::new();
    let (leader, former) = (world.manager("leader").await, world.manager("former").await);
    let follower = world.manager("follower").await;
    leader.told.lead(8);
    // Nobody listens at the first address; the second one led once and does not any more.
    // Bound, so that nobody else takes it, but nobody listens.
    let reserved = tokio::net::TcpSocket::new_v4().unwrap();
    reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = reserved.local_addr().unwrap();
    follower.told.set([
        Ok(follower.reach_at("dead", &nobody.to_string())),
        Ok(follower.reach(&former)),
        Ok(follower.reach(&leader)),
    ]);
    ControlClient::new(follower.local()).create_config(config()).await.unwrap();
    assert_eq!(leader.store.view().configs().len(), 1);
    assert_eq!(former.store.view().configs().len(), 0);
    let mut allocator = ResourceAllocatorClient::new(world.channel("w", NodeRole::Worker, &follower.addr));
    follower.told.set([Ok(follower.reach(&former)), Ok(follower.reach(&leader))]);
    allocator.attach_network(AttachNetworkRequest::default()).await.unwrap();
    assert_eq!((leader.probe.calls(), former.probe.calls()), (1, 0));
}

/// The host of a leader that died as its container did: nobody answers, and nobody refuses.
#[tokio::test]
async fn a_call_with_no_way_to_the_leader_goes_to_the_next_one_as_soon_as_there_is_one() {
    let world = World::new();
    let (leader, follower) = (world.manager("leader").await, world.manager("follower").await);
    leader.told.lead(8);
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = silent.local_addr().unwrap().to_string();
    let dead = || Ok(follower.reach_at("dead", &nobody));
    follower.told.set([dead(), dead(), Ok(follower.reach(&leader))]);
    // Otherwise nobody would know what became of it.
    ControlClient::new(follower.local()).create_config(config()).await.unwrap();
    assert_eq!(leader.store.view().configs().len(), 1);
}

#[tokio::test]
async fn a_change_with_an_unknown_outcome_is_not_repeated_and_a_read_is() {
    let world = World::new();
    let (leader, dying) = (world.manager("leader").await, world.manager("dying").await);
    let follower = world.manager("follower").await;
    leader.told.lead(8);
    dying.told.lead(7);
    dying.probe.hang();

    let wire = Wire::to(&dying.addr).await;
    follower.told.set([Ok(follower.reach_at("dying", &wire.addr)), Ok(follower.reach(&leader))]);
    let mut allocator = ResourceAllocatorClient::new(follower.local());
    let call = tokio::spawn(async move { allocator.attach_network(AttachNetworkRequest::default()).await });
    dying.probe.hanging().await;
    wire.cut();
    let status = call.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("may or may not have had an effect"), "{status}");
    assert_eq!((leader.probe.calls(), dying.probe.calls()), (0, 1));

    let wire = Wire::to(&dying.addr).await;
    follower.told.set([Ok(follower.reach_at("dying", &wire.addr)), Ok(follower.reach(&leader))]);
    let mut ca = NodeCaClient::new(follower.local());
    let call =
        tokio::spawn(
            async move { ca.node_certificate_status(NodeCertificateStatusRequest::default()).await },
        );
    dying.probe.hanging().await;
    wire.cut();
    call.await.unwrap().unwrap();
    assert_eq!((leader.probe.calls(), dying.probe.calls()), (1, 2));
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_a_status() {
    let world = World::new();
    let (leader, follower) = (world.manager("leader").await, world.manager("follower").await);
    leader.told.lead(7);
    let wire = Wire::to(&leader.addr).await;
    follower.told.set([Ok(follower.reach_at("leader", &wire.addr))]);
    let mut broker = LogBrokerClient::new(world.channel("w", NodeRole::Worker, &follower.addr));
    let mut stream = broker.listen_subscriptions(ListenSubscriptionsRequest {}).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    wire.cut();
    let status = stream.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("the connection to the leader leader at"), "{status}");
}

#[tokio::test]
async fn what_a_former_leader_read_is_not_shown() {
    let world = World::new();
    let (leader, former) = (world.manager("leader").await, world.manager("former").await);
    let follower = world.manager("follower").await;
    leader.told.lead(8);
    ControlClient::new(leader.local()).create_config(config()).await.unwrap();
    // It believes to lead when the call comes, and finds out before it answers.
    former.told.set([Ok(Route::Here { term: 7 }), Ok(former.reach(&leader))]);
    let listed =
        ControlClient::new(former.local()).list_configs(ListConfigsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().configs.len(), 1);
    // The same behind a follower, for which it is the leader.
    follower.told.set([Ok(follower.reach(&former)), Ok(follower.reach(&leader))]);
    let listed =
        ControlClient::new(follower.local()).list_configs(ListConfigsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().configs.len(), 1);
}

#[tokio::test]
async fn a_manager_that_stops_ends_the_streams_that_it_passes_on() {
    let world = World::new();
    let (leader, follower) = (world.manager("leader").await, world.manager("follower").await);
    leader.told.lead(7);
    follower.told.set([Ok(follower.reach(&leader))]);
    let mut broker = LogBrokerClient::new(world.channel("w", NodeRole::Worker, &follower.addr));
    let mut stream = broker.listen_subscriptions(ListenSubscriptionsRequest {}).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    follower.stop.cancel();
    let status = stream.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "this manager is stopping"));
}

#[tokio::test]
async fn nobody_waits_for_a_leader_that_was_replaced() {
    let world = World::new();
    let (leader, frozen) = (world.manager("leader").await, world.manager("frozen").await);
    let follower = world.manager("follower").await;
    leader.told.lead(8);
    frozen.told.lead(7);
    frozen.probe.hang();
    follower.told.set([Ok(follower.reach(&frozen)), Ok(follower.reach(&leader))]);
    let mut allocator = ResourceAllocatorClient::new(follower.local());
    let status = allocator.attach_network(AttachNetworkRequest::default()).await.unwrap_err();
    assert!(status.message().ends_with("another manager leads now"), "{status}");
    follower.told.set([Ok(follower.reach(&frozen)), Ok(follower.reach(&leader))]);
    let mut ca = NodeCaClient::new(follower.local());
    ca.node_certificate_status(NodeCertificateStatusRequest::default()).await.unwrap();
    assert_eq!((leader.probe.calls(), frozen.probe.calls()), (1, 2));
}

#[tokio::test]
async fn a_session_with_a_leader_that_was_replaced_without_a_word_ends() {
    let world = World::new();
    let (leader, frozen) = (world.manager("leader").await, world.manager("frozen").await);
    let follower = world.manager("follower").await;
    frozen.told.lead(7);
    follower.told.set([Ok(follower.reach(&frozen)), Ok(follower.reach(&leader))]);
    let mut tasks = TasksClient::new(follower.local());
    let mut session = tasks.open(futures::stream::pending::<TaskInput>()).await.unwrap().into_inner();
    assert!(session.message().await.unwrap().is_some());
    let status = session.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().ends_with("another manager leads now"), "{status}");
    assert_eq!((leader.probe.calls(), frozen.probe.calls()), (0, 1));
}

#[tokio::test]
async fn nobody_waits_for_a_leader_that_is_heard_of_no_more() {
    let world = World::new();
    let (cut_off, follower) = (world.manager("cut-off").await, world.manager("follower").await);
    cut_off.told.lead(7);
    cut_off.probe.hang();
    let none = || Err(Status::unknown("The swarm does not have a leader."));
    follower.told.set([Ok(follower.reach(&cut_off)), none()]);
    let mut allocator = ResourceAllocatorClient::new(follower.local());
    let status = allocator.attach_network(AttachNetworkRequest::default()).await.unwrap_err();
    assert!(status.message().ends_with("this manager hears of no leader any more"), "{status}");
    // A read is repeated, and so hears who is missing.
    follower.told.set([Ok(follower.reach(&cut_off)), none()]);
    let mut ca = NodeCaClient::new(follower.local());
    let status = ca.node_certificate_status(NodeCertificateStatusRequest::default()).await.unwrap_err();
    assert_eq!(status.message(), "The swarm does not have a leader.");
}

#[tokio::test]
async fn nobody_waits_for_a_leader_whose_disk_does_not_answer() {
    let world = World::new();
    let leader = world.manager("leader").await;
    leader.told.lead(7);
    leader.probe.hang();
    let mut allocator = ResourceAllocatorClient::new(leader.local());
    let stall = async {
        leader.probe.hanging().await;
        leader.told.stalled.notify_one();
    };
    let (answer, ()) = tokio::join!(allocator.attach_network(AttachNetworkRequest::default()), stall);
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("this manager leads, but its disk does not answer"), "{status}");
}
