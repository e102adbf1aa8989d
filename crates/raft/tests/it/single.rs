//! A group of one.

use std::sync::Arc;

use swarm_api::v1::RaftMember;
use swarm_raft::{Change, Error, MembershipError, Outcome, Role};
use swarm_store::Error as StoreError;

use crate::support::{config, eventually, in_time, start, try_start};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_manager_elects_itself_at_once() {
    let dir = tempfile::tempdir().unwrap();
    // Without a clock: no tick is needed.
    let mut config = config(dir.path());
    config.ticks.interval = None;
    let manager = start(config).await;
    let status = manager.raft.status();
    assert_eq!((status.role, status.leader, status.term), (Role::Leader, manager.raft.raft_id(), 2));
    let membership = manager.raft.membership();
    let members: Vec<&RaftMember> = membership.members().collect();
    assert_eq!(members.len(), 1);
    assert_eq!((members[0].node_id.as_str(), members[0].addr.as_str()), ("node-1", "127.0.0.1:4242"));
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_write_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Arc::new(start(config(dir.path())).await);
    let before = manager.raft.counts().proposals;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..64 {
        let manager = manager.clone();
        writers.spawn(async move {
            for i in 0..20 {
                manager.write(&format!("w{writer}-{i}")).await;
            }
        });
    }
    writers.join_all().await;
    assert_eq!(manager.raft.counts().proposals - before, 64 * 20);
    assert_eq!(manager.names().len(), 64 * 20);
    // The writers are told before the number is.
    eventually("the applied index", || manager.raft.commit_index() == manager.raft.applied_index()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_confirmed_at_once_when_alone() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    manager.write("a").await;
    in_time("a read", manager.store.read_barrier()).await.unwrap();
    assert!(manager.has("a"));
    let store = manager.store.clone();
    let raft = manager.raft.clone();
    manager.stop().await;
    assert_eq!(raft.proposer().read_barrier().await, Err(StoreError::Stopped));
    drop(store);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_too_large_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    assert_eq!(manager.write_sized("big", 1_572_864).await, Err(StoreError::TooLarge));
    manager.write_sized("fits", 1_500_000).await.unwrap();
    assert_eq!(manager.names(), ["fits"]);
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_end_everything_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    let raft = manager.raft.clone();
    assert!(matches!(in_time("the end", raft.stop()).await, Outcome::Stopped));
    assert!(matches!(in_time("the end", raft.stop()).await, Outcome::Stopped), "twice is harmless");
    let result = manager.write_sized("late", 1).await;
    assert!(matches!(result, Err(StoreError::Stopped | StoreError::LostLeadership)), "{result:?}");
    assert!(matches!(raft.change_membership(Change::Remove(1)).await, Err(Error::Stopped)));
    assert!(matches!(raft.entries(1, 9, 9).await, Err(Error::Stopped)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_handle_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    let proposer = manager.raft.proposer();
    drop(manager);
    let ticket = swarm_store::Ticket { epoch: 1, number: 1 };
    eventually("the node's end", || {
        proposer.propose(ticket, bytes::Bytes::from_static(b"x")) == Err(StoreError::Stopped)
    })
    .await;
    // The directory is free for the next one.
    eventually("the log to be free", || try_start(config(dir.path())).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_membership_changes_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    let own = manager.raft.raft_id();
    let duplicate = RaftMember { raft_id: own, ..RaftMember::default() };
    let cases = [
        (Change::Add(duplicate), MembershipError::Duplicate),
        (Change::Remove(own ^ 1), MembershipError::Unknown),
        (Change::Update(RaftMember { raft_id: 5, ..RaftMember::default() }), MembershipError::Unknown),
    ];
    for (change, expected) in cases {
        let result = in_time("a change", manager.raft.change_membership(change)).await;
        assert!(matches!(result, Err(Error::Membership(e)) if e == expected), "{result:?}");
    }
    let result = in_time("a transfer", manager.raft.transfer_leadership(None)).await;
    assert!(matches!(result, Err(Error::NoTransferee)), "{result:?}");
    manager.write("still works").await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_without_a_clock_is_driven_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.ticks.interval = None;
    let manager = start(config).await;
    for _ in 0..50 {
        manager.raft.tick();
    }
    manager.write("a").await;
    assert_eq!(manager.raft.status().role, Role::Leader, "a group of one keeps its leader");
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_can_be_read_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    let first = manager.write("a").await;
    let last = manager.write("b").await;
    let entries = in_time("entries", manager.raft.entries(0, u64::MAX, u64::MAX)).await.unwrap();
    let indexes: Vec<u64> = entries.iter().map(|(index, _)| *index).collect();
    assert_eq!(indexes, [first, last], "neither empty entries nor membership changes");
    let one = in_time("entries", manager.raft.entries(last, last, 0)).await.unwrap();
    assert_eq!(one, entries[1..]);
    manager.stop().await;
}
