//! What goes wrong around the store.

use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures::FutureExt as _;
use prost::Message as _;
use swarm_api::Kind;
use swarm_api::v1::{InternalRaftRequest, Service, StoreAction, StoreActionKind, store_action};
use swarm_store::testing::LoopbackProposer;
use swarm_store::{Error, Kinds, Received, StateMachine as _, Store, Ticket, Tx};

use crate::support::{Started, Updated, count, counter, create_service, service};

#[tokio::test]
async fn a_closure_that_panics_changes_nothing_and_blocks_nobody() {
    let (store, raft) = LoopbackProposer::store();
    raft.hold();
    let before = Started::new(store.update(|tx| count(tx, "c")));
    let panicking = store.update(|tx: &mut Tx| -> Result<(), Error> {
        count(tx, "c")?;
        panic!("in the middle");
    });
    assert!(AssertUnwindSafe(panicking).catch_unwind().await.is_err());
    let after = Started::new(store.update(|tx| count(tx, "c")));
    raft.release();
    assert_eq!(before.done().await.unwrap().0, 1);
    assert_eq!(after.done().await.unwrap().0, 2);
}

#[tokio::test]
async fn dropping_an_update_leaves_its_transaction_whole() {
    let (store, raft) = LoopbackProposer::store();
    drop(store.update(|tx| count(tx, "never")));
    raft.hold();
    let first = Started::new(store.update(|tx| count(tx, "c")));
    let second = Started::new(store.update(|tx| count(tx, "c")));
    drop(first);
    raft.release();
    assert_eq!(second.done().await.unwrap().0, 2);
    assert_eq!((counter(&store, "c"), counter(&store, "never")), (2, 0));
}

#[test]
fn cancelled_updates_give_their_room_back_when_they_are_committed() {
    let (store, raft) = LoopbackProposer::store();
    raft.hold();
    for _ in 0..4096 {
        drop(Started::new(store.update(|tx| count(tx, "c"))));
    }
    let mut next = Started::new(store.update(|tx| count(tx, "c")));
    raft.wait_for_queue(4096);
    assert!(next.poll().is_none());
    raft.release();
    assert_eq!(futures::executor::block_on(next.done()).unwrap().0, 4097);
}

#[tokio::test]
async fn a_closed_store_fails_those_who_wait_and_those_who_come() {
    let (store, raft) = LoopbackProposer::store();
    let (_, mut commits) = store.view_and_subscribe();
    raft.hold();
    let update = Started::new(store.update(|tx| count(tx, "c")));
    store.close();
    assert_eq!(update.done().await.unwrap_err(), Error::Stopped);
    let late: Updated<u64> = store.update(|tx| count(tx, "c")).await;
    assert_eq!(late.unwrap_err(), Error::Stopped);
    assert_eq!(store.read_barrier().await.unwrap_err(), Error::Stopped);
    assert!(matches!(commits.next().await, Received::Closed));
    let (_, mut commits) = store.view_and_subscribe();
    assert!(matches!(commits.next().await, Received::Closed));
}

#[tokio::test]
async fn a_dropped_store_ends_its_subscriptions_and_its_proposer() {
    let (store, raft) = LoopbackProposer::store();
    store.update(|tx| count(tx, "c")).await.unwrap();
    let (_, mut commits) = store.view_and_subscribe();
    let raft_alive = std::sync::Arc::downgrade(&raft);
    drop(raft);
    drop(store);
    assert!(matches!(commits.next().await, Received::Closed));
    assert!(raft_alive.upgrade().is_none());
}

#[tokio::test]
async fn a_store_without_leadership_refuses_updates() {
    let store = Store::new();
    assert_eq!(store.update(|tx| count(tx, "c")).await.unwrap_err(), Error::Stopped);
    let raft = LoopbackProposer::start(store.clone());
    store.attach(raft.clone());
    assert_eq!(store.update(|tx| count(tx, "c")).await.unwrap_err(), Error::LostLeadership);
    raft.lead();
    assert_eq!(store.update(|tx| count(tx, "c")).await.unwrap().0, 1);
    store.read_barrier().await.unwrap();
}

fn request(actions: Vec<(StoreActionKind, Service)>) -> Bytes {
    let action = actions
        .into_iter()
        .map(|(kind, s)| StoreAction {
            action: kind as i32,
            target: Some(store_action::Target::Service(s.into())),
        })
        .collect();
    InternalRaftRequest { id: 1, action }.encode_to_vec().into()
}

#[tokio::test]
async fn an_entry_with_an_unknown_ticket_is_decoded() {
    let (store, raft) = LoopbackProposer::store();
    raft.hold();
    let update = Started::new(store.update(|tx| count(tx, "c")));
    raft.wait_for_queue(1);
    let index = store.view().index() + 1;
    let entry = request(vec![(StoreActionKind::StoreActionCreate, service("x", "x"))]);
    store.apply(index, entry, Some(Ticket { epoch: 99, number: 99 })).unwrap();
    assert!(store.view().get::<Service>("x").is_some());
    raft.release();
    assert_eq!(update.done().await.unwrap().0, 1, "those in flight are not disturbed");
}

#[test]
fn an_entry_that_does_not_fit_is_skipped_whole_and_reported() {
    let store = Store::new();
    store.apply(1, request(vec![(StoreActionKind::StoreActionCreate, service("a", "a"))]), None).unwrap();
    assert_eq!(store.divergence(), None);
    let before = store.view().to_snapshot();
    let cases = [
        request(vec![
            (StoreActionKind::StoreActionCreate, service("b", "b")),
            (StoreActionKind::StoreActionUpdate, service("missing", "m")),
        ]),
        request(vec![
            (StoreActionKind::StoreActionCreate, service("b", "b")),
            (StoreActionKind::StoreActionRemove, service("missing", "m")),
        ]),
        request(vec![(StoreActionKind::StoreActionCreate, service("a", "other"))]),
        request(vec![(StoreActionKind::StoreActionCreate, service("b", "A"))]),
        request(vec![(StoreActionKind::Unknown, service("b", "b"))]),
        InternalRaftRequest {
            id: 1,
            action: vec![StoreAction { action: StoreActionKind::StoreActionCreate as i32, target: None }],
        }
        .encode_to_vec()
        .into(),
        Bytes::from_static(b"\x12\xff"),
    ];
    for (index, entry) in (2..).zip(cases) {
        let error = store.apply(index, entry, None).unwrap_err();
        assert_eq!(error.index, index);
        assert_eq!(store.view().index(), index);
        assert_eq!(store.divergence().map(|e| e.index), Some(2), "the first is kept");
    }
    assert_eq!(store.view().to_snapshot(), before);
    store.restore(20, before.clone()).unwrap();
    assert_eq!(store.divergence(), None, "a snapshot repairs it");
    assert_eq!((store.view().index(), store.view().to_snapshot()), (20, before));
}

#[test]
fn entries_applied_at_once_come_to_the_same_as_one_by_one() {
    use StoreActionKind::{
        StoreActionCreate as Create, StoreActionRemove as Remove, StoreActionUpdate as Update,
    };
    let entries: Vec<(u64, Bytes)> = (1..)
        .zip([
            request(vec![(Create, service("a", "a"))]),
            request(vec![(Create, service("b", "b")), (Update, service("a", "a2"))]),
            // Does not fit, after it has changed something.
            request(vec![(Create, service("c", "c")), (Update, service("missing", "m"))]),
            request(vec![(Remove, service("b", "b")), (Create, service("c", "c"))]),
            Bytes::from_static(b"\x12\xff"),
            request(vec![(Create, service("a", "again"))]),
            request(vec![(Create, service("d", "d"))]),
            request(vec![]),
        ])
        .collect();
    for followed in [None, Some(Kinds::of(&[Kind::Service])), Some(Kinds::of(&[Kind::Node]))] {
        let (one_by_one, at_once) = (Store::new(), Store::new());
        let expected: Vec<_> = entries
            .iter()
            .filter_map(|(index, entry)| one_by_one.apply(*index, entry.clone(), None).err())
            .collect();
        let mut commits = followed.map(|kinds| at_once.view_and_follow(kinds).1);
        assert_eq!(at_once.apply_all(entries.clone()), expected);
        assert_eq!(expected.iter().map(|e| e.index).collect::<Vec<_>>(), [3, 5, 6]);
        assert_eq!(at_once.divergence(), one_by_one.divergence());
        assert_eq!(at_once.view().index(), 8);
        assert_eq!(at_once.view().to_snapshot(), one_by_one.view().to_snapshot());
        let mut told = Vec::new();
        while let Some(Some(Received::Commit(commit))) = commits.as_mut().map(|c| c.try_next()) {
            told.push((commit.index, commit.events.len()));
        }
        let services = followed.is_some_and(|kinds| kinds == Kinds::of(&[Kind::Service]));
        let runs = vec![(2, 3), (4, 2), (8, 1)];
        assert_eq!(told, if services { runs } else { vec![] }, "those between two that do not fit, at once");
    }
}

#[tokio::test]
async fn a_snapshot_ends_what_is_in_flight() {
    let (store, raft) = LoopbackProposer::store();
    store.update(|tx| create_service(tx, "s1", "web")).await.unwrap();
    let snapshot = store.view().to_snapshot();
    raft.hold();
    let update = Started::new(store.update(|tx| count(tx, "c")));
    store.restore(50, snapshot).unwrap();
    assert_eq!(update.done().await.unwrap_err(), Error::LostLeadership);
}
