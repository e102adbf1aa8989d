//! Disks that fail, and one that is slow.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use prost::Message as _;
use raft_proto::eraftpb::Entry;
use swarm_api::v1::InternalRaftRequest;
use swarm_raft::storage::{Faults, LogStorage, MemoryDisk, MemoryLog, Recovered, Write};
use swarm_raft::{Outcome, RaftNode, Sealer};
use swarm_store::{Error as StoreError, Ticket};

use crate::support::{Manager, begin, config, eventually, in_time, start_on};

async fn ends_with(manager: &Manager, reason: &str) {
    match in_time("the end", manager.raft.ended()).await {
        Outcome::Failed(error) => assert!(error.to_string().contains(reason), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_loss_takes_nothing_that_was_acknowledged() {
    let disk = MemoryDisk::new();
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for round in 0..10 {
        let manager = Arc::new(start_on(config(dir.path()), disk.open()).await);
        assert_eq!(manager.names(), expected);
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..8 {
            let manager = manager.clone();
            writers.spawn(async move { manager.write(&format!("r{round}w{writer}")).await });
        }
        writers.join_all().await;
        // The power goes before the node can end in good order: what it still writes is lost with the rest.
        disk.set_faults(Faults { fail_writes: Some("no power".into()), ..Faults::default() });
        disk.lose_power();
        in_time("the end", manager.raft.stop()).await;
        disk.set_faults(Faults::default());
        expected.extend((0..8).map(|writer| format!("r{round}w{writer}")));
        expected.sort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_sync_ends_the_node_and_acknowledges_nothing() {
    let disk = MemoryDisk::new();
    let dir = tempfile::tempdir().unwrap();
    let manager = start_on(config(dir.path()), disk.open()).await;
    manager.write("before").await;
    disk.set_faults(Faults { fail_syncs: Some("input/output error".into()), ..Faults::default() });
    let result = manager.write_sized("lost", 10).await;
    assert!(matches!(result, Err(StoreError::LostLeadership | StoreError::Stopped)), "{result:?}");
    assert!(!manager.has("lost"));
    ends_with(&manager, "input/output error").await;

    disk.lose_power();
    disk.set_faults(Faults::default());
    let manager = start_on(config(dir.path()), disk.open()).await;
    assert_eq!(manager.names(), ["before"]);
    manager.write("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_node_and_keeps_what_was_written() {
    let disk = MemoryDisk::new();
    let dir = tempfile::tempdir().unwrap();
    let manager = start_on(config(dir.path()), disk.open()).await;
    disk.set_faults(Faults { capacity: Some(20_000), ..Faults::default() });
    let mut written = 0;
    while manager.write_sized(&format!("c{written:03}"), 1000).await.is_ok() {
        written += 1;
    }
    assert!(written > 10);
    ends_with(&manager, "no space left on device").await;
    disk.set_faults(Faults::default());
    let manager = start_on(config(dir.path()), disk.open()).await;
    assert_eq!(manager.names().len(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_first_write_fails_does_not_begin() {
    let disk = MemoryDisk::new();
    let dir = tempfile::tempdir().unwrap();
    disk.set_faults(Faults { fail_writes: Some("read-only file system".into()), ..Faults::default() });
    let error = RaftNode::open_with(config(dir.path()), Box::new(disk.open())).unwrap_err().to_string();
    assert!(error.contains("read-only file system"), "{error}");
    disk.set_faults(Faults::default());
    let node = RaftNode::open_with(config(dir.path()), Box::new(disk.open())).unwrap();
    begin(node).leads().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_can_t_be_written_is_no_end() {
    let disk = MemoryDisk::new();
    let dir = tempfile::tempdir().unwrap();
    let manager = start_on(config(dir.path()), disk.open()).await;
    let snapshots = dir.path().join("raft/snapshots");
    std::fs::remove_dir(&snapshots).unwrap();
    std::fs::write(&snapshots, b"not a directory").unwrap();
    let settings = swarm_api::v1::RaftConfig { snapshot_interval: 5, ..Default::default() };
    manager.settings(settings).await;
    manager.write_many(0..50).await;
    assert_eq!(manager.raft.counts().snapshots, 0);
    std::fs::remove_file(&snapshots).unwrap();
    std::fs::create_dir(&snapshots).unwrap();
    manager.write_until("a snapshot", || manager.raft.counts().snapshots > 0).await;
    manager.stop().await;
}

/// A log whose syncs wait while the gate is closed.
pub(crate) struct Gated {
    pub(crate) log: MemoryLog,
    pub(crate) gate: Arc<Gate>,
}

#[derive(Default)]
pub(crate) struct Gate {
    /// Closed; a sync waits.
    pub(crate) state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn set(&self, closed: bool) {
        self.state.lock().0 = closed;
        self.changed.notify_all();
    }
}

impl LogStorage for Gated {
    fn recover(&mut self, visit: &mut dyn FnMut(Entry)) -> swarm_raft::Result<Recovered> {
        self.log.recover(visit)
    }
    fn write(&mut self, write: &Write<'_>) -> swarm_raft::Result<()> {
        self.log.write(write)
    }
    fn sync(&mut self) -> swarm_raft::Result<()> {
        let mut state = self.gate.state.lock();
        while state.0 {
            state.1 = true;
            self.gate.changed.wait(&mut state);
        }
        drop(state);
        self.log.sync()
    }
    fn read(&self, low: u64, high: u64, max_bytes: u64) -> swarm_raft::Result<Vec<Entry>> {
        self.log.read(low, high, max_bytes)
    }
    fn bytes(&self) -> u64 {
        self.log.bytes()
    }
    fn oldest(&self, pieces: usize, bytes: u64) -> u64 {
        self.log.oldest(pieces, bytes)
    }
    fn reseal(&mut self, sealer: Arc<dyn Sealer>) -> swarm_raft::Result<()> {
        self.log.reseal(sealer)
    }
    fn switch(&mut self) -> swarm_raft::Result<()> {
        self.log.switch()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_come_during_a_sync_share_the_next() {
    let (disk, gate) = (MemoryDisk::new(), Arc::new(Gate::default()));
    let dir = tempfile::tempdir().unwrap();
    let manager = start_on(config(dir.path()), Gated { log: disk.open(), gate: gate.clone() }).await;
    let (proposer, before) = (manager.raft.proposer(), disk.syncs());
    let propose = |number| {
        let request = InternalRaftRequest { id: number, ..InternalRaftRequest::default() };
        proposer.propose(Ticket { epoch: u64::MAX, number }, request.encode_to_vec().into()).unwrap();
    };
    gate.set(true);
    propose(1);
    eventually("a sync", || gate.state.lock().1).await;
    (2..=65).for_each(propose);
    gate.set(false);
    eventually("all writes", || manager.raft.counts().proposals == 65).await;
    assert_eq!(disk.syncs() - before, 2, "one for the first, one for all others");
    manager.stop().await;
}
