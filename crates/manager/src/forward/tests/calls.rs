//! What arrives at the leader.

use futures::stream;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::log_broker_client::LogBrokerClient;
use swarm_api::v1::node_ca_client::NodeCaClient;
use swarm_api::v1::resource_allocator_client::ResourceAllocatorClient;
use swarm_api::v1::*;
use tonic::{Code, Request};

use super::world::{Manager, World};

/// A leader, and a follower that knows it.
async fn pair() -> (World, Manager, Manager) {
    let world = World::new();
    let (leader, follower) = (world.manager("leader").await, world.manager("follower").await);
    leader.told.lead(7);
    follower.told.set([Ok(follower.reach(&leader))]);
    (world, leader, follower)
}

fn config(name: &str) -> CreateConfigRequest {
    let mut spec = ConfigSpec { data: b"x".to_vec(), ..Default::default() };
    spec.annotations.name = name.into();
    CreateConfigRequest { spec: Some(spec) }
}

#[tokio::test]
async fn a_worker_behind_a_follower_is_known_to_the_leader() {
    let (world, leader, follower) = pair().await;
    let channel = world.channel("w", NodeRole::Worker, &follower.addr);
    let mut broker = LogBrokerClient::new(channel.clone());
    let mut stream = broker.listen_subscriptions(ListenSubscriptionsRequest {}).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap().id;
    assert!(
        first.starts_with("caller=w by=follower local=false addr=127.0.0.1 redirect=127.0.0.1:"),
        "{first}"
    );
    // A second call on the same connection, whose answer is an error.
    let status = ResourceAllocatorClient::new(channel)
        .detach_network(DetachNetworkRequest { attachment_id: "a".into() })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().starts_with("caller=w by=follower"), "{status}");
    assert_eq!((leader.probe.calls(), follower.probe.calls()), (2, 0));
}

#[tokio::test]
async fn messages_of_a_stream_are_passed_on_as_they_come() {
    let (world, _leader, follower) = pair().await;
    let mut broker = LogBrokerClient::new(world.channel("w", NodeRole::Worker, &follower.addr));
    let message = |id: &str| PublishLogsMessage { subscription_id: id.into(), ..Default::default() };
    let status = broker.publish_logs(stream::iter([message("1"), message("2")])).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss);
    assert!(status.message().starts_with("1,2 caller=w by=follower"), "{status}");
}

#[tokio::test]
async fn nobodys_call_does_not_look_like_the_followers() {
    let (world, _leader, follower) = pair().await;
    let mut ca = NodeCaClient::new(world.stranger(&follower.addr));
    let answer =
        ca.issue_node_certificate(IssueNodeCertificateRequest::default()).await.unwrap().into_inner();
    assert!(
        answer.node_id.starts_with("caller=- by=follower local=false addr=127.0.0.1"),
        "{}",
        answer.node_id
    );
}

#[tokio::test]
async fn what_a_caller_claims_to_be_is_not_passed_on() {
    let (world, _leader, follower) = pair().await;
    let claim = || {
        let mut request = Request::new(AttachNetworkRequest::default());
        let metadata = request.metadata_mut();
        for (name, value) in [
            ("forwarded_cert", "true"),
            ("forwarded_cert_cn", "somebody"),
            ("forwarded_cert_org", "cluster"),
            ("forwarded_cert_ou", "swarm-manager"),
            ("remote_addr", "10.9.9.9:1"),
            ("swarmd_peer", "uid=0"),
        ] {
            metadata.insert(name, value.parse().unwrap());
        }
        request
    };
    let mut allocator = ResourceAllocatorClient::new(follower.local());
    let seen = allocator.attach_network(claim()).await.unwrap().into_inner().attachment_id;
    assert!(
        seen.starts_with("caller=follower by=- local=false addr=127.0.0.1 redirect=127.0.0.1:"),
        "{seen}"
    );
    let own = format!("uid={} gid={}", nix::unistd::getuid(), nix::unistd::getgid());
    assert!(seen.contains(&format!("peer={own}")), "{seen}");
    // On the TLS port a worker's claim ends the call.
    let mut allocator = ResourceAllocatorClient::new(world.channel("w", NodeRole::Worker, &follower.addr));
    let status = allocator.attach_network(claim()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    // A manager's is for the leader, and ends there.
    let mut allocator = ResourceAllocatorClient::new(world.channel("m", NodeRole::Manager, &follower.addr));
    let status = allocator.attach_network(claim()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("more than one redirect to leader from: ["), "{status}");
}

#[tokio::test]
async fn a_followers_socket_shows_and_changes_what_the_leader_has() {
    let (_world, leader, follower) = pair().await;
    let mut control = ControlClient::new(follower.local());
    let created = control.create_config(config("a")).await.unwrap().into_inner().config.unwrap();
    assert!(leader.store.view().configs().get(&created.id).is_some());
    assert_eq!(follower.store.view().configs().len(), 0);
    let listed = control.list_configs(ListConfigsRequest::default()).await.unwrap().into_inner().configs;
    assert_eq!(listed.len(), 1);
    let status = control.create_config(config("a")).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    // The leader's own socket needs nobody else.
    let mut control = ControlClient::new(leader.local());
    let listed = control.list_configs(ListConfigsRequest::default()).await.unwrap().into_inner().configs;
    assert_eq!(listed.len(), 1);
}

#[tokio::test]
async fn control_on_a_followers_tls_port_is_answered_there() {
    let (world, leader, follower) = pair().await;
    ControlClient::new(leader.local()).create_config(config("a")).await.unwrap();
    let mut control = ControlClient::new(world.channel("m", NodeRole::Manager, &follower.addr));
    let listed = control.list_configs(ListConfigsRequest::default()).await.unwrap().into_inner().configs;
    assert!(listed.is_empty());
    // Unless it was passed on already: then the answer must be the leader's, or none.
    let mut request = Request::new(ListConfigsRequest::default());
    request.metadata_mut().insert("redirect", "10.0.0.1:1".parse().unwrap());
    let status = control.list_configs(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "more than one redirect to leader from: [10.0.0.1:1]");
}

#[tokio::test]
async fn raft_membership_is_not_for_the_socket() {
    let (_world, _leader, follower) = pair().await;
    let mut client = raft_membership_client::RaftMembershipClient::new(follower.local());
    assert_eq!(client.join(JoinRequest::default()).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused() {
    let (_world, leader, follower) = pair().await;
    let mut request = config("big");
    request.spec.as_mut().unwrap().data = vec![0; 4 * 1024 * 1024];
    let status = ControlClient::new(follower.local()).create_config(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_eq!(leader.store.view().configs().len(), 0);
}
