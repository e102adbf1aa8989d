//! Groups of several members over a network in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use parking_lot::Mutex;
use swarm_api::raftpb::{Message, MessageType};
use swarm_api::v1::{RaftConfig, RaftMember};
use swarm_raft::storage::MemoryDisk;
use swarm_raft::{
    Change, Config, Error, Membership, MembershipError, Origin, Outcome, Outgoing, RaftHandle, RaftNode,
    Role, Ticks, Transport,
};
use swarm_store::Error as StoreError;

use crate::disk::{Gate, Gated};
use crate::support::{Manager, begin, config, eventually, in_time};

/// Ticks without a leader before an election: half a minute.
const ELECTION: u32 = 1500;

/// Delivers at once, in order, unless the sender or the receiver is cut off.
#[derive(Default)]
pub(crate) struct Network {
    nodes: Mutex<BTreeMap<u64, RaftHandle>>,
    cut_off: Mutex<Vec<u64>>,
    /// All members know each other to be ours.
    ours: AtomicBool,
}

/// A member's way into the network.
pub(crate) struct Port {
    network: Weak<Network>,
    own: Mutex<u64>,
}

impl Transport for Port {
    fn send(&self, messages: Vec<Outgoing>) {
        let Some(network) = self.network.upgrade() else { return };
        let own = *self.own.lock();
        for outgoing in messages {
            let to = outgoing.to();
            let target = network.nodes.lock().get(&to).cloned();
            let cut = network.cut_off.lock().iter().any(|id| *id == to || *id == own);
            let sender = network.nodes.lock().get(&own).cloned();
            let Some(target) = target.filter(|_| !cut) else {
                if let Some(sender) = sender {
                    sender.report_unreachable(to);
                    if let Outgoing::Snapshot { .. } = outgoing {
                        sender.report_snapshot(to, false);
                    }
                }
                continue;
            };
            match outgoing {
                Outgoing::Message(message) => {
                    let removed = matches!(target.step(message), Err(Error::MemberRemoved));
                    if let Some(sender) = sender.filter(|_| removed) {
                        sender.report_removed();
                    }
                }
                Outgoing::Snapshot { mut message, at, snapshots } => {
                    let mut data = Vec::new();
                    // A newer one may have taken its place.
                    let read = snapshots.read(at).is_ok_and(|(_, mut reader)| {
                        std::io::Read::read_to_end(&mut reader, &mut data).is_ok()
                    });
                    message.snapshot.as_mut().unwrap().data = Some(data.into());
                    let delivered = read && target.step(message).is_ok();
                    if let Some(sender) = sender {
                        sender.report_snapshot(to, delivered);
                    }
                }
            }
        }
    }

    fn members(&self, _membership: &Arc<Membership>) {}

    fn is_active(&self, raft_id: u64) -> bool {
        let network = self.network.upgrade();
        network.is_some_and(|n| n.nodes.lock().contains_key(&raft_id) && !n.cut_off.lock().contains(&raft_id))
    }

    fn is_ours(&self, _raft_id: u64) -> bool {
        self.network.upgrade().is_some_and(|network| network.ours.load(Ordering::Relaxed))
    }
}

/// Heartbeats mend quickly what a cut broke; an election takes longer than any machine stands still, so that a test has
/// one only where it ticks by hand.
const TICKS: Ticks = Ticks { interval: Some(Duration::from_millis(20)), heartbeat: 1, election: ELECTION };

pub(crate) struct Group {
    pub(crate) dir: tempfile::TempDir,
    network: Arc<Network>,
}

impl Group {
    pub(crate) fn new() -> Group {
        Group { dir: tempfile::tempdir().unwrap(), network: Arc::default() }
    }

    pub(crate) fn config(&self, name: &str, origin: Origin) -> (Config, Arc<Port>) {
        let port = Arc::new(Port { network: Arc::downgrade(&self.network), own: Mutex::default() });
        let config = Config {
            node_id: name.to_owned(),
            addr: format!("{name}:4242"),
            origin,
            transport: port.clone(),
            ticks: TICKS,
            ..config(&self.dir.path().join(name))
        };
        (config, port)
    }

    fn start(&self, name: &str, origin: Origin) -> Manager {
        let (config, port) = self.config(name, origin);
        self.run(RaftNode::open(config).unwrap(), &port)
    }

    pub(crate) fn run(&self, node: RaftNode, port: &Port) -> Manager {
        *port.own.lock() = node.raft_id();
        let manager = begin(node);
        self.network.nodes.lock().insert(manager.raft.raft_id(), manager.raft.clone());
        manager
    }

    pub(crate) async fn first(&self) -> Manager {
        let manager = self.start("m1", Origin::NewGroup);
        manager.leads().await;
        manager
    }

    pub(crate) async fn join(&self, leader: &Manager, name: &str, raft_id: u64) -> Manager {
        self.join_with(leader, name, raft_id, TICKS).await
    }

    async fn join_with(&self, leader: &Manager, name: &str, raft_id: u64, ticks: Ticks) -> Manager {
        let member = member(name, raft_id);
        in_time("joining", leader.raft.change_membership(Change::Add(member))).await.unwrap();
        let members = leader.raft.membership().members().cloned().collect();
        let (config, port) = self.config(name, Origin::Joined { raft_id, members });
        self.run(RaftNode::open(Config { ticks, ..config }).unwrap(), &port)
    }

    pub(crate) fn cut_off(&self, manager: &Manager, cut: bool) {
        let mut list = self.network.cut_off.lock();
        list.retain(|id| *id != manager.raft.raft_id());
        if cut {
            list.push(manager.raft.raft_id());
        }
    }

    /// A member is not there any more.
    pub(crate) fn forget(&self, manager: &Manager) {
        self.network.nodes.lock().remove(&manager.raft.raft_id());
    }

    pub(crate) async fn stop(&self, manager: Manager) {
        self.network.nodes.lock().remove(&manager.raft.raft_id());
        manager.stop().await;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Handles in the network would keep the nodes running.
        self.network.nodes.lock().clear();
    }
}

/// Lets time pass for some members until something holds.
async fn tick_until<const N: usize>(what: &str, managers: [&Manager; N], holds: impl Fn(&Manager) -> bool) {
    eventually(what, || {
        managers.iter().for_each(|m| (0..20).for_each(|_| m.raft.tick()));
        managers.iter().any(|m| holds(m))
    })
    .await;
}

pub(crate) fn leads(manager: &Manager) -> bool {
    manager.raft.status().role == Role::Leader
}

pub(crate) fn member(name: &str, raft_id: u64) -> RaftMember {
    RaftMember { raft_id, node_id: name.into(), addr: format!("{name}:4242"), ..RaftMember::default() }
}

pub(crate) async fn same(managers: &[&Manager]) {
    eventually("all managers to be equal", || {
        let first = managers[0].store.view().to_snapshot();
        let applied = managers[0].raft.applied_index();
        managers.iter().all(|m| {
            m.store.view().to_snapshot() == first
                && m.raft.membership().len() == managers.len()
                && m.raft.applied_index() == applied
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_managers_hold_the_same() {
    let group = Group::new();
    let a = group.first().await;
    a.write_many(0..20).await;
    let b = group.join(&a, "m2", 2).await;
    let c = group.join(&a, "m3", 3).await;
    a.write_many(20..40).await;
    same(&[&a, &b, &c]).await;
    assert_eq!(b.raft.status().leader, a.raft.raft_id());
    let refused = b.write_sized("no", 1).await;
    assert_eq!(refused, Err(StoreError::LostLeadership));
    in_time("a read", a.store.read_barrier()).await.unwrap();
    assert_eq!(b.store.read_barrier().await, Err(StoreError::LostLeadership));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_gets_a_snapshot_when_the_log_is_gone() {
    let group = Group::new();
    let a = group.first().await;
    let settings =
        RaftConfig { snapshot_interval: 10, log_entries_for_slow_followers: 0, ..RaftConfig::default() };
    a.settings(settings).await;
    a.write_many(0..30).await;
    eventually("a compacted log", || a.raft.counts().snapshots >= 2).await;
    let b = group.join(&a, "m2", 2).await;
    a.write_many(30..33).await;
    same(&[&a, &b]).await;
    group.stop(b).await;
    let b = group.start("m2", Origin::NewGroup);
    a.write_many(33..34).await;
    same(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over_and_a_cut_off_leader_gives_up() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    let c = group.join(&a, "m3", 3).await;
    same(&[&a, &b, &c]).await;
    in_time("the transfer", a.raft.transfer_leadership(Some(2))).await.unwrap();
    b.leads().await;
    b.write("by b").await;

    group.cut_off(&b, true);
    // Its write is in its log, but nowhere else; nobody may hear that it is done.
    let before = b.raft.counts().entries;
    let time = async {
        eventually("its entry", || b.raft.counts().entries > before).await;
        tick_until("the leader to give up", [&b], |b| !leads(b)).await;
    };
    let (lost, ()) = tokio::join!(b.write_sized("lost", 10), time);
    assert_eq!(lost, Err(StoreError::LostLeadership));
    tick_until("a new leader", [&a, &c], leads).await;
    let leader = if leads(&a) { &a } else { &c };
    leader.write("by another").await;
    group.cut_off(&b, false);
    same(&[&a, &b, &c]).await;
    assert!(b.has("by another") && !b.has("lost"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_hangs_is_replaced_and_follows_when_it_answers() {
    let group = Group::new();
    let (config, port) = group.config("m1", Origin::NewGroup);
    let gate = Arc::new(Gate::default());
    let storage = Gated { log: MemoryDisk::new().open(), gate: gate.clone() };
    let a = group.run(RaftNode::open_with(config, Box::new(storage)).unwrap(), &port);
    a.leads().await;
    let b = group.join(&a, "m2", 2).await;
    let c = group.join(&a, "m3", 3).await;
    same(&[&a, &b, &c]).await;
    assert_eq!(a.raft.writing_for(), Duration::ZERO);

    gate.set(true);
    let others = async {
        eventually("its sync to hang", || gate.state.lock().1).await;
        // A leader sends before its own sync, so the others may have the entry and keep it.
        tick_until("a new leader", [&b, &c], leads).await;
        let leader = if leads(&b) { &b } else { &c };
        leader.write("by another").await;
        assert!(a.raft.writing_for() > Duration::ZERO && leads(&a), "it knows nothing of it");
        gate.set(false);
    };
    let (hung, ()) = tokio::join!(a.write_sized("hung", 10), others);
    eventually("it to follow", || !leads(&a)).await;
    same(&[&a, &b, &c]).await;
    assert!(a.has("by another"));
    match hung {
        Ok(_) => assert!(b.has("hung"), "an acknowledged write was lost"),
        unknown => assert_eq!(unknown, Err(StoreError::LostLeadership)),
    }
    assert_eq!(a.raft.writing_for(), Duration::ZERO);
}

/// Cuts a member off until it has asked for votes several times, and lets it come back; the leader's term before and
/// after.
async fn isolate(ours: bool) -> (u64, u64) {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    let c = group.join(&a, "m3", 3).await;
    same(&[&a, &b, &c]).await;
    group.network.ours.store(ours, Ordering::Relaxed);
    let before = a.raft.status();
    group.cut_off(&c, true);
    a.write("without it").await;
    let elections = u64::from(ELECTION) * 6;
    tick_until("several elections", [&c], |c| c.raft.ticks_without_leader() > elections).await;
    let alone = c.raft.status();
    assert_eq!((alone.role, alone.term > before.term), (Role::Candidate, !ours));
    group.cut_off(&c, false);
    if ours {
        eventually("it to follow", || c.raft.status().leader == a.raft.raft_id()).await;
        a.write("with it").await;
        same(&[&a, &b, &c]).await;
        assert_eq!(a.raft.status(), before);
    } else {
        tick_until("another term", [&a, &b, &c], |m| leads(m) && m.raft.status().term > before.term).await;
    }
    (before.term, [&a, &b, &c].map(|m| m.raft.status().term).into_iter().max().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_cut_off_deposes_nobody_where_all_are_ours() {
    let (before, after) = isolate(true).await;
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_cut_off_deposes_the_leader_where_not_all_are_ours() {
    let (before, after) = isolate(false).await;
    assert!(after > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_do_not_know_each_other_yet_elect_a_leader_and_so_do_mixed_ones() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    let c = group.join(&a, "m3", 3).await;
    same(&[&a, &b, &c]).await;
    // One comes to the election with a higher term than those that ask first, and with a shorter log.
    group.cut_off(&c, true);
    a.write("without it").await;
    let elections = u64::from(ELECTION) * 6;
    tick_until("several elections", [&c], |c| c.raft.ticks_without_leader() > elections).await;
    group.network.ours.store(true, Ordering::Relaxed);
    group.stop(a).await;
    group.cut_off(&c, false);
    tick_until("a leader", [&b, &c], leads).await;
    assert!(leads(&b), "the other one lacks an entry");
    let a = group.start("m1", Origin::NewGroup);
    for manager in [b, c] {
        group.stop(manager).await;
    }
    group.network.ours.store(false, Ordering::Relaxed);
    let (b, c) = (group.start("m2", Origin::NewGroup), group.start("m3", Origin::NewGroup));
    tick_until("a leader of those that do not know each other", [&a, &b, &c], leads).await;
    group.network.ours.store(true, Ordering::Relaxed);
    same(&[&a, &b, &c]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_removed_is_told_and_may_not_return() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    let c = group.join(&a, "m3", 3).await;
    same(&[&a, &b, &c]).await;
    in_time("the removal", a.raft.change_membership(Change::Remove(3))).await.unwrap();
    let outcome = in_time("its end", c.raft.ended()).await;
    assert!(matches!(outcome, Outcome::Removed), "{outcome:?}");
    let late =
        Message { r#type: MessageType::MsgApp as i32, from: 3, to: a.raft.raft_id(), ..Message::default() };
    let told = a.raft.step(late).unwrap_err();
    assert_eq!(told.to_string(), "raft: member was removed from the cluster");
    a.write("without c").await;
    same(&[&a, &b]).await;
    let again = a.raft.change_membership(Change::Add(member("m3", 3))).await;
    assert!(again.unwrap_err().to_string().contains("removed during cluster lifetime"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_hears_of_its_removal_from_the_leader() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    // Without a clock it never campaigns, so nobody else tells it.
    let c = group.join_with(&a, "m3", 3, Ticks { interval: None, ..Ticks::default() }).await;
    same(&[&a, &b, &c]).await;
    in_time("the removal", a.raft.change_membership(Change::Remove(3))).await.unwrap();
    let outcome = in_time("its end", c.raft.ended()).await;
    assert!(matches!(outcome, Outcome::Removed), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_missed_its_removal_is_told_when_it_campaigns() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    let c = group.join(&a, "m3", 3).await;
    same(&[&a, &b, &c]).await;
    group.cut_off(&c, true);
    in_time("the removal", a.raft.change_membership(Change::Remove(3))).await.unwrap();
    assert!(c.raft.membership().get(3).is_some());
    group.cut_off(&c, false);
    tick_until("its end", [&c], |c| c.raft.ended().now_or_never().is_some()).await;
    let outcome = c.raft.ended().await;
    assert!(matches!(outcome, Outcome::Removed), "{outcome:?}");
    a.write("without c").await;
    same(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_that_was_removed_before_it_heard_anything_is_told() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    same(&[&a, &b]).await;
    let add = a.raft.change_membership(Change::Add(member("m3", 3)));
    in_time("joining", add).await.unwrap();
    let members = a.raft.membership().members().cloned().collect();
    in_time("the removal", a.raft.change_membership(Change::Remove(3))).await.unwrap();
    let c = group.start("m3", Origin::Joined { raft_id: 3, members });
    let outcome = in_time("its end", c.raft.ended()).await;
    assert!(matches!(outcome, Outcome::Removed), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_removes_itself_leaves_a_group_behind() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    let c = group.join(&a, "m3", 3).await;
    same(&[&a, &b, &c]).await;
    in_time("the removal", a.raft.change_membership(Change::Remove(a.raft.raft_id()))).await.unwrap();
    let outcome = in_time("its end", a.raft.ended()).await;
    assert!(matches!(outcome, Outcome::Removed), "{outcome:?}");
    eventually("a new leader", || [&b, &c].iter().any(|m| m.raft.status().role == Role::Leader)).await;
    same(&[&b, &c]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_would_cost_the_quorum_is_refused() {
    let group = Group::new();
    let a = group.first().await;
    let own = a.raft.raft_id();
    let result = a.raft.change_membership(Change::Remove(own)).await;
    assert!(matches!(result, Err(Error::Membership(MembershipError::Quorum))), "{result:?}");
    let b = group.join(&a, "m2", 2).await;
    let c = group.join(&a, "m3", 3).await;
    same(&[&a, &b, &c]).await;
    group.cut_off(&c, true);
    assert!(!a.raft.can_remove(2) && !a.raft.can_remove(own) && a.raft.can_remove(3));
    let live = a.raft.change_membership(Change::Remove(2)).await;
    assert!(matches!(live, Err(Error::Membership(MembershipError::Quorum))), "{live:?}");
    in_time("the removal", a.raft.change_membership(Change::Remove(3))).await.unwrap();
    a.write("two are left").await;
    same(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ticks_without_a_leader_are_counted() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    same(&[&a, &b]).await;
    eventually("a leader", || b.raft.ticks_without_leader() == 0).await;
    group.cut_off(&b, true);
    tick_until("ticks without a leader", [&b], |b| b.raft.ticks_without_leader() > 10).await;
    assert!(!a.raft.is_reachable(2) && b.raft.is_reachable(2));
    group.cut_off(&b, false);
    tick_until("a leader again", [&a, &b], |_| b.raft.ticks_without_leader() == 0).await;
    assert!(a.raft.is_reachable(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_changes_at_once_are_made_one_after_the_other() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    same(&[&a, &b]).await;
    let moved = |i: u64| RaftMember { addr: format!("m2:{i}"), ..member("m2", 2) };
    let changes = (1..=5).map(|i| a.raft.change_membership(Change::Update(moved(i))));
    for result in in_time("the changes", futures::future::join_all(changes)).await {
        result.unwrap();
    }
    eventually("the last address", || b.raft.membership().get(2).is_some_and(|m| m.addr == "m2:5")).await;
    a.write("still two voters").await;
    assert!(b.raft.status().leader != 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_log_stops_and_says_so() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    a.write_many(0..5).await;
    same(&[&a, &b]).await;
    group.stop(b).await;
    let c = group.join_on_empty_disk("m2", 2);
    let outcome = in_time("its end", c.raft.ended()).await;
    match outcome {
        Outcome::Failed(error) => assert!(error.to_string().contains("the log was lost"), "{error}"),
        other => panic!("{other:?}"),
    }
}

impl Group {
    /// A member comes back without its log.
    fn join_on_empty_disk(&self, name: &str, raft_id: u64) -> Manager {
        let (config, port) = self.config(name, Origin::Joined { raft_id, members: Vec::new() });
        let config = Config { state_dir: self.dir.path().join("elsewhere"), ..config };
        let node = RaftNode::open_with(config, Box::new(MemoryDisk::new().open())).unwrap();
        self.run(node, &port)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_from_peers_harms_nobody() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    same(&[&a, &b]).await;
    let own = a.raft.raft_id();
    let mut sent = 0;
    for kind in -1..=25 {
        for term in [0, 1, 2, 3, u64::MAX >> 2, u64::MAX] {
            for index in [0, 3, 1 << 40, u64::MAX] {
                // Votes and higher terms would only depose the leader, which is a peer's right.
                let disturbs = term > a.raft.status().term && term < 1 << 62;
                if disturbs {
                    continue;
                }
                let entry = swarm_api::raftpb::Entry { r#type: kind, index, term, data: None };
                let message = Message {
                    r#type: kind,
                    to: own,
                    from: 2,
                    term,
                    index,
                    log_term: index,
                    commit: index,
                    reject: index == 3,
                    reject_hint: index,
                    entries: vec![entry],
                    ..Message::default()
                };
                let _ = a.raft.step(message);
                sent += 1;
            }
        }
    }
    assert!(sent > 400);
    a.write("unharmed").await;
    same(&[&a, &b]).await;
    assert!(a.raft.counts().ignored > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_catches_up_after_a_stop() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    let c = group.join(&a, "m3", 3).await;
    same(&[&a, &b, &c]).await;
    group.stop(c).await;
    a.write_many(0..200).await;
    let c = group.start("m3", Origin::NewGroup);
    same(&[&a, &b, &c]).await;
    // Without a quorum nothing is acknowledged.
    group.cut_off(&b, true);
    group.cut_off(&c, true);
    let write = tokio::time::timeout(Duration::from_millis(100), a.write_sized("alone", 1)).await;
    assert!(!matches!(write, Ok(Ok(_))), "{write:?}");
    let (read, ()) = tokio::join!(
        in_time("a read", a.store.read_barrier()),
        tick_until("the leader to give up", [&a], |a| !leads(a))
    );
    assert!(matches!(read, Err(StoreError::LostLeadership)), "{read:?}");
    let result = a.raft.change_membership(Change::Remove(3)).await;
    let refused = matches!(result, Err(Error::LostLeadership | Error::Membership(MembershipError::Quorum)));
    assert!(refused, "{result:?}");
}
