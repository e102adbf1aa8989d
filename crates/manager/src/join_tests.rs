use std::path::Path;
use std::pin::Pin;

use futures::{Stream, stream};
use prost::Message as _;
use swarm_api::raftpb;
use swarm_api::swarmd::peers_server::{Peers, PeersServer};
use swarm_api::swarmd::{
    AttendRequest, AttendResponse, DoubtRequest, DoubtResponse, FetchEnd, FetchRequest, FetchResponse,
    FetchedState, RelayResponse,
};
use swarm_api::v1::{Cluster, ClusterSnapshot, Snapshot};
use swarm_pki::{Clock, Credentials, DEFAULT_NODE_EXPIRY, NodeSubject, RootCa, SecurityContext, ServerRole};
use swarm_raft::PlainSealer;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Streaming};

use super::*;

type Answers = Vec<Result<FetchResponse, Status>>;

/// A leader that answers this, or does not know the call.
struct Leader(Answers);

#[tonic::async_trait]
impl Peers for Leader {
    type AttendStream = Pin<Box<dyn Stream<Item = Result<AttendResponse, Status>> + Send>>;
    type FetchStream = stream::Iter<std::vec::IntoIter<Result<FetchResponse, Status>>>;

    async fn attend(&self, _: Request<AttendRequest>) -> Result<Response<Self::AttendStream>, Status> {
        Err(Status::unimplemented("attend"))
    }

    async fn doubt(&self, _: Request<DoubtRequest>) -> Result<Response<DoubtResponse>, Status> {
        Err(Status::unimplemented("doubt"))
    }

    async fn relay(&self, _: Request<Streaming<raftpb::Message>>) -> Result<Response<RelayResponse>, Status> {
        Err(Status::unimplemented("relay"))
    }

    async fn fetch(&self, _: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        Ok(Response::new(stream::iter(self.0.clone())))
    }
}

/// The state of a cluster, as it is sent.
fn state(cluster: &str) -> Answers {
    let members = vec![RaftMember { raft_id: 1, node_id: "m1".into(), ..RaftMember::default() }];
    let membership = ClusterSnapshot { members, removed: Vec::new() };
    let cluster = Cluster { id: cluster.into(), ..Cluster::default() };
    let store = StoreSnapshot { clusters: vec![cluster.into()], ..StoreSnapshot::default() };
    let data = Snapshot { membership, store, ..Snapshot::default() }.encode_to_vec();
    let state = FetchedState { raft_id: 1, term: 2, index: 9, entry_term: 2, voters: vec![1] };
    let end = FetchEnd { length: data.len() as u64, checksum: crc(&data) };
    [
        FetchResponse { state: Some(state), ..FetchResponse::default() },
        FetchResponse { data, ..FetchResponse::default() },
        FetchResponse { end: Some(end), ..FetchResponse::default() },
    ]
    .map(Ok)
    .into()
}

/// CRC-32, bit by bit.
fn crc(data: &[u8]) -> u32 {
    let byte = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    };
    !data.iter().fold(!0, byte)
}

/// What comes of fetching from this leader, and the index of the store then.
async fn fetch(leader: Option<Answers>, state_dir: &Path) -> (Result<Option<Fetched>, Failure>, u64) {
    let clock = Clock::system();
    let root = RootCa::create(clock.now()).unwrap();
    let subject =
        NodeSubject { node_id: "m2".into(), role: NodeRole::Manager, organization: "cluster".into() };
    let own = Credentials::issue(&root, &subject, DEFAULT_NODE_EXPIRY, clock.now()).unwrap();
    let security = SecurityContext::new(root.without_signer(), own, clock).unwrap();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = incoming.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = Server::builder()
        .add_service(swarm_api::v1::health_server::HealthServer::new(swarm_control::Health::new()))
        .add_optional_service(leader.map(|answers| PeersServer::new(Leader(answers))))
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let server = tokio::spawn(server);
    let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
    let store = Store::new();
    let raft = swarm_raft::Config::new("m2", "127.0.0.1:1", state_dir, Arc::new(PlainSealer));
    let joiner = Joiner {
        dialer: &Dialer::new(security, ServerRole::Manager),
        node_id: "m2",
        cluster_id: "cluster",
        addr: "127.0.0.1:1",
        managers: &[],
        limit: Duration::from_secs(60),
        raft: &raft,
        store: &store,
    };
    let result = joiner.fetch(&channel).await;
    drop(channel);
    stop.cancel();
    server.await.unwrap().unwrap();
    (result, store.view().index())
}

#[tokio::test]
async fn the_state_is_fetched_where_the_leader_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    let (fetched, index) = fetch(Some(state("cluster")), dir.path()).await;
    let fetched = fetched.ok().unwrap().unwrap();
    assert_eq!((fetched.from(), fetched.at().index, index), (1, 9, 9));
}

#[tokio::test]
async fn without_it_a_manager_joins_as_ever() {
    let dir = tempfile::tempdir().unwrap();
    let cut = state("cluster")[..2].to_vec();
    let failed = [&cut[..], &[Err(Status::aborted("it failed"))]].concat();
    let mut wrong = state("cluster");
    if let Ok(FetchResponse { end: Some(end), .. }) = &mut wrong[2] {
        end.checksum ^= 1;
    }
    for answers in [None, Some(Vec::new()), Some(cut), Some(failed), Some(wrong)] {
        let (fetched, index) = fetch(answers, dir.path()).await;
        assert!(fetched.ok().unwrap().is_none());
        assert_eq!(index, 0, "something of it is in the store");
    }
}

#[tokio::test]
async fn what_would_fail_later_ends_the_attempt_now() {
    let dir = tempfile::tempdir().unwrap();
    let (other, index) = fetch(Some(state("another")), dir.path()).await;
    let other = other.err().unwrap();
    assert!(other.is_final());
    let reason = other.into_error("m1").to_string();
    assert!(reason.contains("it holds cluster another, not this node's cluster"), "{reason}");
    assert_eq!(index, 0, "something of it is in the store");

    let follower = Err(Status::failed_precondition("manager m3 leads"));
    let (refused, _) = fetch(Some(vec![follower]), dir.path()).await;
    let refused = refused.err().unwrap();
    assert!(!refused.is_final() && refused.reason().contains("manager m3 leads"));

    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let (disk, _) = fetch(Some(state("cluster")), &file).await;
    let disk = disk.err().unwrap();
    assert!(disk.is_final());
    assert!(matches!(disk.into_error("m1"), Error::Raft(_)));
}
