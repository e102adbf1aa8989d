//! What a member says, it can keep: nothing is acknowledged, answered or voted before it is synced. And whatever
//! peers send, no member dies of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use swarm_api::raftpb::{ConfState, Entry, Message, MessageType, Snapshot, SnapshotMetadata};
use swarm_api::v1::{RaftMember, StoreSnapshot};
use swarm_raft::storage::MemoryDisk;
use swarm_raft::{Change, Config, Error, Membership, Origin, Outcome, Outgoing, RaftNode, Ticks, Transport};
use swarm_store::{ApplyError, Lost, StateMachine, Store, Ticket, View};

use crate::support::{begin, config, in_time};

/// A store that looks at the disk each time it is told to make something visible.
struct Watchful {
    store: Arc<Store>,
    disk: MemoryDisk,
    seen: AtomicU64,
}

impl StateMachine for Watchful {
    fn apply(&self, index: u64, data: Bytes, own: Option<Ticket>) -> Result<(), ApplyError> {
        assert!(self.disk.last_durable() >= index, "entry {index} becomes visible before it is synced");
        self.seen.fetch_add(1, Ordering::Relaxed);
        self.store.apply(index, data, own)
    }
    fn advance(&self, index: u64) {
        self.store.advance(index);
    }
    fn lost(&self, first: Ticket, why: Lost) {
        self.store.lost(first, why);
    }
    fn leadership(&self, leader: bool) {
        self.store.leadership(leader);
    }
    fn view(&self) -> View {
        self.store.view()
    }
    fn restore(&self, index: u64, snapshot: StoreSnapshot) -> Result<(), swarm_store::Error> {
        self.store.restore(index, snapshot)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_becomes_visible_before_it_is_synced() {
    let disk = MemoryDisk::new();
    let dir = tempfile::tempdir().unwrap();
    let node = RaftNode::open_with(config(dir.path()), Box::new(disk.open())).unwrap();
    let store = Store::new();
    store.attach(node.proposer());
    let watchful = Arc::new(Watchful { store: store.clone(), disk, seen: AtomicU64::new(0) });
    let raft = node.start(watchful.clone()).unwrap();
    let manager = crate::support::Manager { raft, store };
    manager.leads().await;
    manager.write_many(0..50).await;
    assert_eq!(watchful.seen.load(Ordering::Relaxed), 50);
    manager.stop().await;
}

/// Looks at the disk each time the member answers.
#[derive(Default)]
struct Witness {
    disk: MemoryDisk,
    answers: Mutex<Vec<String>>,
    broken: Mutex<Vec<String>>,
}

impl Transport for Witness {
    fn send(&self, messages: Vec<Outgoing>) {
        for outgoing in messages {
            let Outgoing::Message(message) = outgoing else { continue };
            let durable = self.disk.durable_hard_state();
            let kept = match MessageType::try_from(message.r#type).unwrap() {
                _ if message.reject => true,
                MessageType::MsgAppResp => self.disk.last_durable() >= message.index,
                MessageType::MsgVoteResp => (durable.term, durable.vote) == (message.term, message.to),
                MessageType::MsgVote => (durable.term, durable.vote) == (message.term, message.from),
                _ => true,
            };
            let text = format!("{message:?}");
            if kept { &self.answers } else { &self.broken }.lock().push(text);
        }
    }
    fn members(&self, _: &Arc<Membership>) {}
    fn is_active(&self, _: u64) -> bool {
        true
    }
}

fn member(raft_id: u64) -> RaftMember {
    RaftMember { raft_id, node_id: format!("m{raft_id}"), addr: "a:1".into(), ..RaftMember::default() }
}

/// The first entries of a group of three, as the leader sends them.
fn first_entries() -> Vec<Entry> {
    let add = |index: u64| {
        let change = Change::Add(member(index));
        let data = swarm_api::raftpb::ConfChange {
            node_id: index,
            context: Some(match &change {
                Change::Add(member) => member.encode_to_vec().into(),
                _ => Bytes::new(),
            }),
            ..Default::default()
        };
        Entry { r#type: 1, term: 1, index, data: Some(data.encode_to_vec().into()) }
    };
    (1..=3).map(add).collect()
}

/// Member 3 of a group of three whose others are played by the test.
fn third(dir: &std::path::Path, disk: &MemoryDisk, transport: Arc<dyn Transport>) -> crate::support::Manager {
    let config = Config {
        transport,
        origin: Origin::Joined { raft_id: 3, members: (1..=3).map(member).collect() },
        ticks: Ticks { interval: None, ..Ticks::default() },
        seed: Some(7),
        ..config(dir)
    };
    begin(RaftNode::open_with(config, Box::new(disk.open())).unwrap())
}

fn from_leader(kind: MessageType, term: u64, index: u64) -> Message {
    Message { r#type: kind as i32, from: 1, to: 3, term, index, log_term: term.min(1), ..Message::default() }
}

/// Returns when everything that was sent before is processed.
async fn processed(manager: &crate::support::Manager) -> Result<(), Error> {
    in_time("a turn", manager.raft.entries(1, 1, 1)).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_answers_and_votes_only_for_what_is_synced() {
    let dir = tempfile::tempdir().unwrap();
    let witness = Arc::new(Witness::default());
    let manager = third(dir.path(), &witness.disk, witness.clone());
    let append = Message {
        entries: first_entries(),
        commit: 3,
        log_term: 0,
        ..from_leader(MessageType::MsgApp, 1, 0)
    };
    manager.raft.step(append).unwrap();
    processed(&manager).await.unwrap();
    assert_eq!(manager.raft.membership().len(), 3);
    for index in 3..40 {
        let entry = Entry { index: index + 1, term: 1, ..Entry::default() };
        let append = from_leader(MessageType::MsgApp, 1, index);
        manager.raft.step(Message { entries: vec![entry], commit: index, ..append }).unwrap();
        processed(&manager).await.unwrap();
    }
    for round in 0..30 {
        manager.raft.campaign();
        processed(&manager).await.unwrap();
        let term = manager.raft.status().term + 1;
        let vote = Message {
            context: Some("CampaignTransfer".into()),
            ..from_leader(MessageType::MsgVote, term, 50 + round)
        };
        manager.raft.step(vote).unwrap();
        processed(&manager).await.unwrap();
    }
    assert_eq!(*witness.broken.lock(), Vec::<String>::new());
    assert!(witness.answers.lock().len() > 90, "{}", witness.answers.lock().len());
}

fn random_message(rng: &mut StdRng) -> Message {
    let number = |rng: &mut StdRng| match rng.random_range(0..12) {
        0 => u64::MAX >> rng.random_range(0..4),
        _ => rng.random_range(0..12),
    };
    // Mostly what a peer might send, with one or another thing wrong.
    let term = rng.random_range(0..6);
    let index = number(rng);
    let entries = (1..=rng.random_range(0..4u64)).map(|i| Entry {
        r#type: if rng.random_range(0..10) == 0 { rng.random_range(-1..5) } else { 0 },
        term: if rng.random_range(0..8) == 0 { number(rng) } else { term },
        index: if rng.random_range(0..8) == 0 { number(rng) } else { index.wrapping_add(i) },
        data: match rng.random_range(0..4) {
            0 => Some(Bytes::from(vec![rng.random(); rng.random_range(0..20)])),
            _ => None,
        },
    });
    let entries = entries.collect();
    let snapshot = (rng.random_range(0..4) == 0).then(|| {
        let voters = (0..rng.random_range(0..4)).map(|_| rng.random_range(0..5)).collect();
        let conf_state = ConfState { voters, ..ConfState::default() };
        let data =
            (rng.random_range(0..8) > 0).then(|| swarm_api::v1::Snapshot::default().encode_to_vec().into());
        Snapshot { data, metadata: SnapshotMetadata { conf_state, index: number(rng), term } }
    });
    let kind = match rng.random_range(0..8) {
        0 => rng.random_range(-2..30),
        _ => [3, 4, 5, 6, 7, 8, 9, 14, 17, 18][rng.random_range(0..10)],
    };
    Message {
        r#type: kind,
        to: 3,
        from: rng.random_range(0..5),
        term,
        log_term: number(rng).min(term),
        index,
        entries,
        commit: number(rng) / 2,
        snapshot,
        reject: rng.random(),
        reject_hint: number(rng),
        context: rng.random::<bool>().then(|| "CampaignTransfer".into()),
        vote: number(rng),
        responses: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_history_of_messages_makes_a_member_panic() {
    let (mut ended, mut survived) = (0, 0);
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let disk = MemoryDisk::new();
        let manager = third(dir.path(), &disk, Arc::new(Witness::default()));
        let begin = Message {
            entries: first_entries(),
            commit: 3,
            log_term: 0,
            ..from_leader(MessageType::MsgApp, 1, 0)
        };
        manager.raft.step(begin).unwrap();
        for _ in 0..150 {
            match rng.random_range(0..10) {
                0 => (0..12).for_each(|_| manager.raft.tick()),
                1 => manager.raft.campaign(),
                2 => manager.raft.report_unreachable(rng.random_range(0..5)),
                3 => manager.raft.report_snapshot(rng.random_range(0..5), rng.random()),
                _ => drop(manager.raft.step(random_message(&mut rng))),
            }
            if rng.random_range(0..4) == 0 && processed(&manager).await.is_err() {
                break;
            }
        }
        manager.store.close();
        match in_time("the end", manager.raft.stop()).await {
            Outcome::Stopped | Outcome::Removed => survived += 1,
            Outcome::Failed(error) if matches!(*error, Error::LogLost { .. }) => ended += 1,
            Outcome::Failed(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!(survived > 30, "only {survived} histories went to their end, {ended} said that the log was lost");
}
