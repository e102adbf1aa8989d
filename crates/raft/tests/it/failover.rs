//! Leaders that die. In these groups no election timeout ever passes, so whoever leads next has taken over at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use swarm_api::raftpb::ConfChange;
use swarm_api::swarmd::DoubtRequest;
use swarm_api::swarmd::peers_client::PeersClient;
use swarm_api::v1::RaftMember;
use swarm_api::v1::health_server::HealthServer;
use swarm_pki::TlsIncoming;
use swarm_raft::{
    Change, Config, GrpcTransport, Membership, Origin, PeersService, RaftHandle, RaftNode, RaftService, Role,
    Status, Ticks, Transport as _,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{SetOnce, watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::grpc::{Healthy, Lab, member};
use crate::support::{Manager, begin, config, eventually, in_time};

/// A member whose end is as sudden as that of a process.
struct Host {
    name: &'static str,
    manager: Manager,
    transport: GrpcTransport,
    addr: SocketAddr,
    /// All that it has to do with the network.
    runtime: Option<Runtime>,
}

#[derive(Clone, Copy, PartialEq)]
enum Make {
    Ours,
    Other,
}

/// An address that no connection gets by chance, so that a member can come back to it.
fn address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, high | 0x80, low, NEXT.fetch_add(1, Ordering::Relaxed)), 4242))
}

impl Host {
    fn start(lab: &Lab, name: &'static str, addr: SocketAddr, origin: Origin, make: Make) -> Host {
        let (security, dialer) = lab.dialer(name);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let guard = runtime.enter();
        let listener = std::net::TcpListener::bind(addr).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let transport = GrpcTransport::new(dialer.clone());
        let slot: Arc<SetOnce<RaftHandle>> = Arc::default();
        let peers = PeersService::new(slot.clone(), dialer.clone(), CancellationToken::new());
        let mut routes = Routes::new(HealthServer::new(Healthy))
            .add_service(RaftService::new(slot.clone(), dialer).into_server());
        if make == Make::Ours {
            routes = routes.add_service(peers.into_server());
        }
        let server = Server::builder().add_routes(routes);
        runtime.spawn(server.serve_with_incoming(TlsIncoming::new(listener, security)));
        let node = RaftNode::open(Config {
            node_id: name.into(),
            addr: addr.to_string(),
            origin,
            transport: Arc::new(transport.clone()),
            // Tests make heartbeats by hand, but never enough ticks for an election, nor for a leader to give up.
            ticks: Ticks { interval: None, heartbeat: 1, election: 1 << 30 },
            ..config(&lab.dir.join(name))
        })
        .unwrap();
        // Otherwise it would answer as another make does, but ask as ours.
        if make == Make::Ours {
            transport.attach(&node);
        }
        let manager = begin(node);
        assert!(slot.set(manager.raft.clone()).is_ok());
        drop(guard);
        Host { name, manager, transport, addr, runtime: Some(runtime) }
    }

    fn id(&self) -> u64 {
        self.manager.raft.raft_id()
    }

    fn status(&self) -> Status {
        self.manager.raft.status()
    }

    /// Its sockets are closed without a word.
    async fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
        self.manager.raft.stop().await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A group whose first member leads, and in which nobody's clock runs.
async fn group<const N: usize>(lab: &Lab, makes: [Make; N]) -> [Host; N] {
    let mut hosts: Vec<Host> = Vec::new();
    for (name, make) in ["m1", "m2", "m3", "m4", "m5"].into_iter().zip(makes) {
        let addr = address();
        let Some(first) = hosts.first() else {
            hosts.push(Host::start(lab, name, addr, Origin::NewGroup, make));
            hosts[0].manager.leads().await;
            continue;
        };
        let raft_id = hosts.len() as u64 + 1;
        let raft = first.manager.raft.clone();
        let adding = raft.change_membership(Change::Add(member(name, raft_id, addr)));
        tokio::pin!(adding);
        in_time("joining", async {
            // Only heartbeats make up for what was lost while a listener was not there yet.
            while tokio::time::timeout(Duration::from_millis(20), &mut adding).await.is_err() {
                raft.tick();
            }
        })
        .await;
        let members = raft.membership().members().cloned().collect();
        hosts.push(Host::start(lab, name, addr, Origin::Joined { raft_id, members }, make));
        same(&hosts.iter().collect::<Vec<_>>(), || hosts[0].manager.raft.tick()).await;
    }
    hosts.try_into().ok().unwrap()
}

async fn same(hosts: &[&Host], mut meanwhile: impl FnMut()) {
    eventually("all members to be equal", || {
        meanwhile();
        let first = &hosts[0].manager;
        hosts.iter().all(|host| {
            host.manager.raft.applied_index() == first.raft.applied_index()
                && host.manager.raft.membership() == first.raft.membership()
                && host.manager.store.view().to_snapshot() == first.store.view().to_snapshot()
                && host.status().leader == first.raft.status().leader
        })
    })
    .await;
}

async fn asked(host: &Host, times: u64) {
    eventually("doubts", || host.manager.raft.counts().doubts >= times).await;
}

async fn successor<'a>(hosts: &[&'a Host]) -> &'a Host {
    let leads = |host: &&&Host| host.status().role == Role::Leader;
    eventually("a new leader", || hosts.iter().any(|host| leads(&host))).await;
    hosts.iter().find(leads).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_is_replaced_at_once() {
    let lab = Lab::new();
    let [a, b, c] = group(&lab, [Make::Ours; 3]).await;
    a.manager.write("before").await;
    same(&[&a, &b, &c], || a.manager.raft.tick()).await;
    let term = a.status().term;
    a.kill().await;
    let leader = successor(&[&b, &c]).await;
    assert_eq!((leader.name, leader.status().term), ("m2", term + 1), "equal logs: the lowest raft id");
    leader.manager.write("after").await;
    same(&[&b, &c], || leader.manager.raft.tick()).await;
    assert!(c.manager.has("before") && c.manager.has("after"));
    assert_eq!(b.manager.raft.counts().takeovers + c.manager.raft.counts().takeovers, 1);
}

/// As where a container or a whole host ends: nobody is left to refuse a connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_with_its_address_is_replaced_at_once() {
    let lab = Lab::new();
    let [a, b, c] = group(&lab, [Make::Ours; 3]).await;
    a.manager.write("before").await;
    same(&[&a, &b, &c], || a.manager.raft.tick()).await;
    let (addr, term) = (a.addr, a.status().term);
    let (killed, _silent) = tokio::join!(a.kill(), silence(addr));
    let () = killed;
    let leader = successor(&[&b, &c]).await;
    assert_eq!(leader.status().term, term + 1);
    leader.manager.write("after").await;
    same(&[&b, &c], || leader.manager.raft.tick()).await;
    assert!(b.manager.has("before") && c.manager.has("after"));
}

/// The way to a leader, which can be cut: its connections are closed, and nobody answers from then on.
struct Way {
    addr: SocketAddr,
    cut: watch::Sender<bool>,
    /// Connections that nobody answered.
    unanswered: Arc<AtomicUsize>,
}

impl Way {
    async fn to(leader: SocketAddr) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = Way {
            addr: listener.local_addr().unwrap(),
            cut: watch::Sender::new(false),
            unanswered: Arc::default(),
        };
        let (cut, unanswered) = (way.cut.subscribe(), way.unanswered.clone());
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut from, _)) = listener.accept().await {
                if *cut.borrow() {
                    kept.push(from);
                    unanswered.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let mut cut = cut.clone();
                tokio::spawn(async move {
                    let Ok(mut to) = TcpStream::connect(leader).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                        _ = cut.wait_for(|cut| *cut) => {}
                    }
                });
            }
        });
        way
    }

    /// The only one that a member knows to its leader, and has taken.
    async fn of(host: &Host, leader: &Host) -> Way {
        let way = Way::to(leader.addr).await;
        let mut others = Membership::clone(&host.manager.raft.membership());
        others.apply(&ConfChange { id: 1, r#type: 1, node_id: leader.id(), context: None });
        host.transport.members(&Arc::new(others));
        host.transport.members(&rewired(host, leader.id(), way.addr));
        eventually("a call to the leader", || host.transport.is_ours(leader.id())).await;
        way
    }

    async fn looked(&self, times: usize) {
        eventually("looks", || self.unanswered.load(Ordering::Relaxed) >= times).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_way_that_is_cut_and_silent_causes_no_election() {
    let lab = Lab::new();
    let [a, b, c] = group(&lab, [Make::Ours; 3]).await;
    let before = (b.status(), c.status());
    let way = Way::of(&b, &a).await;
    way.cut.send_replace(true);
    asked(&b, 3).await;
    assert_eq!((b.status(), c.status()), before);
    assert_eq!(b.manager.raft.counts().takeovers + c.manager.raft.counts().takeovers, 0);
    a.manager.write("unharmed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_sends_is_not_gone_though_all_ways_to_it_are_cut_and_silent() {
    let lab = Lab::new();
    let [a, b, c] = group(&lab, [Make::Ours; 3]).await;
    let before = (b.status(), c.status());
    let ways = [Way::of(&b, &a).await, Way::of(&c, &a).await];
    for way in &ways {
        way.cut.send_replace(true);
    }
    let raft = a.manager.raft.clone();
    let beating = tokio::spawn(async move {
        let mut beat = tokio::time::interval(Duration::from_millis(50));
        loop {
            beat.tick().await;
            raft.tick();
        }
    });
    for way in &ways {
        way.looked(10).await;
    }
    beating.abort();
    assert_eq!((b.status(), c.status()), before);
    assert_eq!(b.manager.raft.counts().takeovers + c.manager.raft.counts().takeovers, 0);
}

/// Takes connections at this address, once nobody else does, and says nothing.
async fn silence(addr: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => return listener,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_log_takes_over() {
    let lab = Lab::new();
    let [a, b, c, d, e] = group(&lab, [Make::Ours; 5]).await;
    // One is cut off from the leader's writes: its way there leads nowhere, and so does the leader's to it.
    let nowhere = closed_port();
    a.transport.members(&rewired(&a, b.id(), nowhere.local_addr().unwrap()));
    // The connection to where it was is open until then.
    eventually("the new way to fail", || !a.manager.raft.is_reachable(b.id())).await;
    a.manager.write("not there").await;
    same(&[&a, &c, &d, &e], || a.manager.raft.tick()).await;
    assert!(!b.manager.has("not there"));
    a.kill().await;
    let leader = successor(&[&b, &c, &d, &e]).await;
    assert_eq!(leader.name, "m3");
    leader.manager.write("after").await;
    same(&[&b, &c, &d, &e], || leader.manager.raft.tick()).await;
    assert!(b.manager.has("not there"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_way_that_refuses_causes_no_election() {
    let lab = Lab::new();
    let [a, b, c] = group(&lab, [Make::Ours; 3]).await;
    let before = b.status();
    let nowhere = closed_port();
    b.transport.members(&rewired(&b, a.id(), nowhere.local_addr().unwrap()));
    asked(&b, 3).await;
    assert_eq!((b.status(), c.status().leader), (before, a.id()));
    assert_eq!(b.manager.raft.counts().takeovers, 0);
    a.manager.write("unharmed").await;

    // The other one sees for itself, and for the leader of the moment only.
    let mut asking = PeersClient::new(lab.dialer("m2").1.channel(&c.addr.to_string()).unwrap());
    for (leader, term) in [(a.id(), before.term), (a.id(), before.term + 1), (b.id(), before.term), (9, 0)] {
        let answer = asking.doubt(DoubtRequest { leader, term }).await.unwrap().into_inner();
        assert_eq!((answer.gone, answer.raft_id), (false, c.id()), "{leader:x} in {term}");
    }
    let leader = a.id();
    a.kill().await;
    successor(&[&b, &c]).await;
    assert_ne!(c.status().leader, leader);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_wait_for_each_other_unless_the_leader_says_that_it_leads_no_more() {
    let lab = Lab::new();
    let [a, b] = group(&lab, [Make::Ours; 2]).await;
    a.manager.write("before").await;
    same(&[&a, &b], || a.manager.raft.tick()).await;
    let (addr, before) = (a.addr, b.status());
    a.kill().await;
    asked(&b, 2).await;
    assert_eq!(b.status(), before);

    // Restarted, it has forgotten who led, and nobody's clock runs.
    let a = Host::start(&lab, "m1", addr, Origin::Existing, Make::Ours);
    let leader = successor(&[&a, &b]).await;
    assert_eq!((leader.name, leader.status().term), ("m2", before.term + 1));
    leader.manager.write("after").await;
    same(&[&a, &b], || leader.manager.raft.tick()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_another_make_has_no_opinion() {
    let lab = Lab::new();
    let [a, b, c] = group(&lab, [Make::Ours, Make::Ours, Make::Other]).await;
    let ours = |host: &Host, id| host.transport.is_ours(id);
    eventually("ours to be known", || ours(&a, b.id()) && ours(&b, a.id())).await;
    let before = (b.status(), c.status());
    a.kill().await;
    asked(&b, 3).await;
    assert_eq!((b.status(), c.status()), before);
    assert!(!ours(&b, c.id()));
}

/// Bound, so that nobody else takes it, but nobody listens.
fn closed_port() -> tokio::net::TcpSocket {
    let reserved = tokio::net::TcpSocket::new_v4().unwrap();
    reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    reserved
}

/// The members as one of them knows them, but with another address for one.
fn rewired(host: &Host, raft_id: u64, addr: SocketAddr) -> Arc<Membership> {
    let mut members = Membership::default();
    for known in host.manager.raft.membership().members() {
        let addr = if known.raft_id == raft_id { addr.to_string() } else { known.addr.clone() };
        let context = RaftMember { addr, ..known.clone() }.encode_to_vec();
        let context = Some(Bytes::from(context));
        members.apply(&ConfChange { id: 1, r#type: 0, node_id: known.raft_id, context });
    }
    Arc::new(members)
}
