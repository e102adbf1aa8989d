//! Members that talk to each other over gRPC, with real certificates.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use swarm_api::raftpb::{ConfChange, Message, MessageType, Snapshot};
use swarm_api::swarmd::peers_client::PeersClient;
use swarm_api::v1::health_check_response::ServingStatus;
use swarm_api::v1::health_server::{Health, HealthServer};
use swarm_api::v1::raft_client::RaftClient;
use swarm_api::v1::{
    HealthCheckRequest, HealthCheckResponse, NodeRole, ProcessRaftMessageRequest, RaftConfig, RaftMember,
    ResolveAddressRequest, StreamRaftMessageRequest,
};
use swarm_pki::{
    Clock, Credentials, DEFAULT_NODE_EXPIRY, Dialer, NodeSubject, RootCa, SecurityContext, ServerRole,
    TlsIncoming,
};
use swarm_raft::{
    Change, Config, GrpcTransport, Membership, Origin, Outcome, Outgoing, PeersService, RaftHandle, RaftNode,
    RaftService, Role, Ticks, Transport as _,
};
use swarm_store::Store;
use tokio::net::TcpListener;
use tokio::sync::SetOnce;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status};

use crate::support::{Manager, begin_on, config, eventually, in_time};

/// One cluster's certificates, and its members' directories.
pub(crate) struct Lab {
    root: RootCa,
    pub(crate) dir: PathBuf,
    /// Its members know what ours are asked beside raft's messages.
    ours: bool,
    _owned: Option<tempfile::TempDir>,
}

/// A member with its listener.
pub(crate) struct Host {
    pub(crate) manager: Manager,
    transport: GrpcTransport,
    pub(crate) addr: SocketAddr,
    serving: CancellationToken,
}

pub(crate) struct Healthy;

#[tonic::async_trait]
impl Health for Healthy {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving as i32 }))
    }
}

impl Lab {
    pub(crate) fn new() -> Lab {
        let root = RootCa::create(Clock::system().now()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        Lab { root, dir: dir.path().to_owned(), ours: true, _owned: Some(dir) }
    }

    /// One whose members answer each other as those of another make do.
    pub(crate) fn foreign() -> Lab {
        Lab { ours: false, ..Lab::new() }
    }

    /// That of other processes too, in a directory that they share.
    pub(crate) fn shared(root: RootCa, dir: PathBuf) -> Lab {
        Lab { root, dir, ours: true, _owned: None }
    }

    pub(crate) fn dialer(&self, node_id: &str) -> (Arc<SecurityContext>, Dialer) {
        let clock = Clock::system();
        let subject =
            NodeSubject { node_id: node_id.into(), role: NodeRole::Manager, organization: "lab".into() };
        let credentials = Credentials::issue(&self.root, &subject, DEFAULT_NODE_EXPIRY, clock.now()).unwrap();
        let security = SecurityContext::new(self.root.without_signer(), credentials, clock).unwrap();
        (security.clone(), Dialer::new(security, ServerRole::Manager))
    }

    /// Binds the listener first: whoever admits a member wants to know where it is.
    pub(crate) async fn listen(&self) -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.unwrap()
    }

    pub(crate) async fn start(&self, name: &str, listener: TcpListener, origin: Origin) -> Host {
        self.start_with(name, listener, origin, |config| config)
    }

    pub(crate) fn start_with(
        &self,
        name: &str,
        listener: TcpListener,
        origin: Origin,
        change: impl FnOnce(Config) -> Config,
    ) -> Host {
        self.start_on(name, listener, origin, Store::new(), change)
    }

    pub(crate) fn start_on(
        &self,
        name: &str,
        listener: TcpListener,
        origin: Origin,
        store: Arc<Store>,
        change: impl FnOnce(Config) -> Config,
    ) -> Host {
        let (security, dialer) = self.dialer(name);
        let addr = listener.local_addr().unwrap();
        let transport = GrpcTransport::new(dialer.clone());
        let slot: Arc<SetOnce<RaftHandle>> = Arc::default();
        let serving = CancellationToken::new();
        let peers = PeersService::new(slot.clone(), dialer.clone(), serving.clone()).into_server();
        let server = Server::builder()
            .add_service(HealthServer::new(Healthy))
            .add_service(RaftService::new(slot.clone(), dialer).into_server())
            .add_optional_service(self.ours.then_some(peers))
            .serve_with_incoming_shutdown(
                TlsIncoming::new(listener, security),
                serving.clone().cancelled_owned(),
            );
        tokio::spawn(server);
        let node = RaftNode::open(change(Config {
            node_id: name.into(),
            addr: addr.to_string(),
            origin,
            transport: Arc::new(transport.clone()),
            // An election takes longer than any machine stands still: half a minute.
            ticks: Ticks { interval: Some(Duration::from_millis(50)), heartbeat: 1, election: 600 },
            ..config(&self.dir.join(name))
        }))
        .unwrap();
        transport.attach(&node);
        let manager = begin_on(node, store);
        assert!(slot.set(manager.raft.clone()).is_ok());
        Host { manager, transport, addr, serving }
    }

    pub(crate) async fn first(&self) -> Host {
        let host = self.start("m1", self.listen().await, Origin::NewGroup).await;
        host.manager.leads().await;
        host
    }

    pub(crate) async fn join(&self, leader: &Host, name: &str, raft_id: u64) -> Host {
        let listener = self.listen().await;
        let addr = listener.local_addr().unwrap();
        let change = Change::Add(member(name, raft_id, addr));
        in_time("joining", leader.manager.raft.change_membership(change)).await.unwrap();
        let members = leader.manager.raft.membership().members().cloned().collect();
        self.start(name, listener, Origin::Joined { raft_id, members }).await
    }

    fn client(&self, node_id: &str, host: &Host) -> RaftClient<Channel> {
        RaftClient::new(self.dialer(node_id).1.channel(&host.addr.to_string()).unwrap())
    }
}

impl Host {
    pub(crate) async fn stop(self) {
        self.serving.cancel();
        self.manager.stop().await;
        self.transport.stop().await;
    }
}

pub(crate) fn member(name: &str, raft_id: u64, addr: SocketAddr) -> RaftMember {
    RaftMember { raft_id, node_id: name.into(), addr: addr.to_string(), ..RaftMember::default() }
}

pub(crate) async fn same(hosts: &[&Host]) {
    eventually("all members to be equal", || {
        let first = &hosts[0].manager;
        hosts.iter().all(|host| {
            host.manager.raft.applied_index() == first.raft.applied_index()
                && host.manager.raft.membership().len() == hosts.len()
                && host.manager.store.view().to_snapshot() == first.store.view().to_snapshot()
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_travels_in_chunks_and_messages_follow() {
    for lab in [Lab::new(), Lab::foreign()] {
        a_snapshot_travels_in_chunks_and_messages_follow_in(lab).await;
    }
}

async fn a_snapshot_travels_in_chunks_and_messages_follow_in(lab: Lab) {
    let a = lab.first().await;
    let settings =
        RaftConfig { snapshot_interval: 5, log_entries_for_slow_followers: 0, ..RaftConfig::default() };
    a.manager.settings(settings).await;
    for i in 0..10 {
        a.manager.write_sized(&format!("large-{i}"), 700_000).await.unwrap();
    }
    eventually("a compacted log", || a.manager.raft.counts().snapshots > 0).await;
    let b = lab.join(&a, "m2", 2).await;
    let c = lab.join(&a, "m3", 3).await;
    same(&[&a, &b, &c]).await;
    a.manager.write_many(0..50).await;
    same(&[&a, &b, &c]).await;
    eventually("everybody to be reachable", || {
        [&a, &b, &c].iter().all(|host| {
            let raft = &host.manager.raft;
            raft.membership().members().all(|m| raft.is_reachable(m.raft_id))
        })
    })
    .await;

    // A vote is believed after a call back, so this works only if that does.
    in_time("the transfer", a.manager.raft.transfer_leadership(Some(3))).await.unwrap();
    c.manager.leads().await;
    c.manager.write("by another").await;
    same(&[&a, &b, &c]).await;
    for host in [a, b, c] {
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_found_where_it_moved_to() {
    for lab in [Lab::new(), Lab::foreign()] {
        a_member_is_found_where_it_moved_to_in(lab).await;
    }
}

async fn a_member_is_found_where_it_moved_to_in(lab: Lab) {
    let a = lab.first().await;
    let b = lab.join(&a, "m2", 2).await;
    let c = lab.join(&a, "m3", 3).await;
    same(&[&a, &b, &c]).await;
    c.stop().await;
    eventually("the loss to be noticed", || !a.manager.raft.is_reachable(3)).await;
    a.manager.write("while it was gone").await;
    let listener = lab.listen().await;
    let moved = Change::Update(member("m3", 3, listener.local_addr().unwrap()));
    let c = lab.start("m3", listener, Origin::Existing).await;
    in_time("the move", a.manager.raft.change_membership(moved)).await.unwrap();
    same(&[&a, &b, &c]).await;
    assert!(c.manager.has("while it was gone"));
    eventually("it to be reachable", || a.manager.raft.is_reachable(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_not_known_here_is_found_through_another_member() {
    let lab = Lab::new();
    let a = lab.first().await;
    let b = lab.join(&a, "m2", 2).await;
    let c = lab.join(&a, "m3", 3).await;
    same(&[&a, &b, &c]).await;
    let own = a.manager.raft.raft_id();
    eventually("the first to be reachable", || b.manager.raft.is_reachable(own)).await;

    // As if the log had not come so far here.
    let mut behind = Membership::default();
    for member in [member("m1", own, a.addr), member("m2", 2, b.addr)] {
        let context = Some(Bytes::from(member.encode_to_vec()));
        behind.apply(&ConfChange { id: 1, r#type: 0, node_id: member.raft_id, context });
    }
    b.transport.members(&Arc::new(behind));
    let before = c.manager.raft.counts().ignored;
    eventually("a message that is ignored there", || {
        let r#type = MessageType::MsgProp as i32;
        let message = Message { r#type, from: 2, to: 3, term: 1, ..Message::default() };
        b.transport.send(vec![Outgoing::Message(message)]);
        c.manager.raft.counts().ignored > before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_ends_and_the_others_go_on() {
    for lab in [Lab::new(), Lab::foreign()] {
        a_removed_member_ends_and_the_others_go_on_in(lab).await;
    }
}

async fn a_removed_member_ends_and_the_others_go_on_in(lab: Lab) {
    let a = lab.first().await;
    let b = lab.join(&a, "m2", 2).await;
    let c = lab.join(&a, "m3", 3).await;
    same(&[&a, &b, &c]).await;
    in_time("the removal", async {
        // The other one may just have been slow.
        while a.manager.raft.change_membership(Change::Remove(3)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let outcome = in_time("its end", c.manager.raft.ended()).await;
    assert!(matches!(outcome, Outcome::Removed), "{outcome:?}");
    a.manager.write("without it").await;
    same(&[&a, &b]).await;

    // It is told whatever it sends.
    let late = Message { r#type: MessageType::MsgApp as i32, from: 3, to: 1, ..Message::default() };
    let request = ProcessRaftMessageRequest { message: Some(late) };
    let told = lab.client("m3", &b).process_raft_message(request).await.unwrap_err();
    assert_eq!((told.code(), told.message()), (Code::NotFound, "raft: member was removed from the cluster"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_relayed_ends_with_the_first_message_that_is_refused() {
    let lab = Lab::new();
    let a = lab.first().await;
    let b = lab.join(&a, "m2", 2).await;
    same(&[&a, &b]).await;
    let own = a.manager.raft.raft_id();
    let mut client = PeersClient::new(lab.dialer("m2").1.channel(&a.addr.to_string()).unwrap());
    let message =
        |from| Message { r#type: MessageType::MsgProp as i32, to: own, from, term: 1, ..Message::default() };

    // Nonsense is taken and comes to nothing, as by the other calls.
    let before = a.manager.raft.counts().ignored;
    client.relay(tokio_stream::iter([message(2), message(2)])).await.unwrap();
    assert!(a.manager.raft.counts().ignored >= before + 2);
    // One node can't speak for another one.
    let open = tokio_stream::iter([message(2), message(own)]).chain(tokio_stream::pending());
    let status = in_time("the refusal", client.relay(open)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");

    in_time("the removal", a.manager.raft.change_membership(Change::Remove(2))).await.unwrap();
    let open = tokio_stream::once(message(2)).chain(tokio_stream::pending());
    let status = in_time("the refusal", client.relay(open)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "raft: member was removed from the cluster")
    );

    // The call does not keep a manager from stopping.
    let open = tokio_stream::pending();
    let call = tokio::spawn(async move { client.relay(open).await });
    eventually("the end of the call", || {
        a.serving.cancel();
        call.is_finished()
    })
    .await;
    let status = call.await.unwrap().unwrap_err();
    assert!(
        matches!(status.code(), Code::Unavailable | Code::Internal),
        "with its connection at least: {status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_a_log_of_its_own_does_not_begin_a_group() {
    let lab = Lab::new();
    let config = |origin| Config { origin, ..config(&lab.dir) };
    let error = RaftNode::open(config(Origin::Existing)).unwrap_err();
    assert!(error.to_string().contains("there is no raft log in"), "{error}");
    // One that was killed before its first write has none either, and may still join.
    std::fs::create_dir_all(lab.dir.join("raft/log")).unwrap();
    let error = RaftNode::open(config(Origin::Existing)).unwrap_err();
    assert!(error.to_string().contains("there is no raft log in"), "{error}");
    let joined = RaftNode::open(config(Origin::Joined { raft_id: 5, members: Vec::new() })).unwrap();
    assert_eq!(joined.raft_id(), 5);
    drop(joined);
    assert_eq!(RaftNode::open(config(Origin::Existing)).unwrap().raft_id(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_peers_may_not_send_is_refused() {
    let lab = Lab::new();
    let a = lab.first().await;
    let own = a.manager.raft.raft_id();
    let mut client = lab.client("m2", &a);
    let message = |kind: MessageType, index: u64| Message {
        r#type: kind as i32,
        to: own,
        from: 2,
        term: 1,
        index,
        snapshot: Some(Snapshot { data: Some(Bytes::from_static(b"x")), ..Snapshot::default() }),
        ..Message::default()
    };
    let chunk = |message: Message| StreamRaftMessageRequest { message: Some(message) };
    use MessageType::{MsgApp, MsgHeartbeat, MsgSnap};
    let cases = [
        (
            [chunk(message(MsgSnap, 7)), chunk(message(MsgSnap, 8))],
            "Raft message chunk with index 8 is different from the previously received raft message index 7",
        ),
        ([chunk(message(MsgSnap, 7)), chunk(message(MsgApp, 7))], "Raft message chunk is not of type 7"),
        ([chunk(message(MsgApp, 7)), chunk(message(MsgApp, 7))], "Raft message chunk is not of type 7"),
    ];
    for (chunks, text) in cases {
        let status = client.stream_raft_message(tokio_stream::iter(chunks)).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    }
    let mut large = message(MsgSnap, 7);
    large.snapshot.as_mut().unwrap().data = Some(vec![0; 4 * 1024 * 1024].into());
    let status = client.stream_raft_message(tokio_stream::iter([chunk(large)])).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");

    // Nothing, nobody's, and what makes no sense are taken and come to nothing.
    client.process_raft_message(ProcessRaftMessageRequest::default()).await.unwrap();
    client.stream_raft_message(tokio_stream::iter([StreamRaftMessageRequest::default()])).await.unwrap();
    for kind in [MsgHeartbeat, MsgApp, MsgSnap, MessageType::MsgVote, MessageType::MsgProp] {
        client.stream_raft_message(tokio_stream::once(chunk(message(kind, u64::MAX)))).await.unwrap();
    }

    // One node can't speak for another one.
    let forged = Message { from: own, ..message(MsgApp, 1) };
    let status = client.stream_raft_message(tokio_stream::once(chunk(forged))).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");

    let known = client.resolve_address(ResolveAddressRequest { raft_id: own }).await.unwrap().into_inner();
    assert_eq!(known.addr, a.addr.to_string());
    let status = client.resolve_address(ResolveAddressRequest { raft_id: 0xabc }).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "member abc not found"));
    a.manager.write("unharmed").await;
    assert_eq!(a.manager.raft.status().role, Role::Leader);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_not_be_called_back_gets_no_vote() {
    let lab = Lab::new();
    let a = lab.first().await;
    let b = lab.join(&a, "m2", 2).await;
    same(&[&a, &b]).await;
    // Bound, so that nobody else takes it, but nobody listens.
    let reserved = tokio::net::TcpSocket::new_v4().unwrap();
    reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nowhere = reserved.local_addr().unwrap();
    let change = Change::Add(member("m3", 3, nowhere));
    in_time("joining", a.manager.raft.change_membership(change)).await.unwrap();
    let before = a.manager.raft.status();
    let vote = Message {
        r#type: MessageType::MsgVote as i32,
        from: 3,
        to: a.manager.raft.raft_id(),
        term: before.term + 10,
        log_term: before.term + 10,
        index: 1 << 20,
        // As in a transfer of leadership, which nobody's lease keeps out.
        context: Some(Bytes::from_static(b"CampaignTransfer")),
        ..Message::default()
    };
    let request = ProcessRaftMessageRequest { message: Some(vote) };
    lab.client("m3", &a).process_raft_message(request).await.unwrap();
    a.manager.write("unharmed").await;
    assert!(a.manager.raft.status().term < before.term + 10);
}
