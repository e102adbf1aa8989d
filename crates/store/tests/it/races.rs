//! Many writers, while everything that can happen to a proposal happens.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::executor::block_on;
use proptest::prelude::*;
use prost::Message as _;
use swarm_api::v1::{InternalRaftRequest, Service, StoreAction, StoreActionKind, store_action};
use swarm_store::testing::LoopbackProposer;
use swarm_store::{Error, Received, StateMachine as _, Store, Tx, diff};

use crate::support::service;

const WRITERS: usize = 4;
const ATTEMPTS: u64 = 40;

#[derive(Debug, Clone)]
enum Fault {
    Hold,
    Step(usize),
    Release,
    Refuse,
    Full,
    Lose(usize),
    Foreign,
    Restore,
    Pause,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        2 => Just(Fault::Hold),
        4 => (1usize..6).prop_map(Fault::Step),
        3 => Just(Fault::Release),
        3 => Just(Fault::Refuse),
        1 => Just(Fault::Full),
        2 => (0usize..5).prop_map(Fault::Lose),
        2 => Just(Fault::Foreign),
        4 => Just(Fault::Pause),
        1 => Just(Fault::Restore),
    ]
}

/// An account may be overdrawn as long as all of them together are not: what each transaction reads is more
/// than it writes, so that skew would show.
fn withdraw(tx: &mut Tx, own: &str) -> Result<(), Error> {
    let total: i64 = tx.services().by_id_prefix("account").map(|s| balance(s)).sum();
    if total < 1 {
        return Err(Error::NotExist); // nothing left
    }
    change(tx, own, -1)
}

fn balance(service: &Service) -> i64 {
    service.spec.task.force_update as i64
}

fn change(tx: &mut Tx, id: &str, by: i64) -> Result<(), Error> {
    let mut account = tx.get::<Service>(id).cloned().ok_or(Error::NotExist)?;
    account.spec.task.force_update = (balance(&account) + by) as u64;
    tx.update(account).map(drop)
}

/// What each transaction leaves behind, by which it can be found whether it was committed.
fn mark_of(writer: usize, attempt: u64) -> String {
    format!("mark-{writer}-{attempt}")
}

/// Its closure panics.
fn panics(attempt: u64) -> bool {
    attempt % 10 == 7
}

/// It is to be a commit of its own.
fn is_alone(attempt: u64) -> bool {
    attempt % 5 == 1
}

fn foreign(n: u64) -> Bytes {
    let object = service(&format!("foreign-{n}"), &format!("foreign-{n}"));
    let action = StoreAction {
        action: StoreActionKind::StoreActionCreate as i32,
        target: Some(store_action::Target::Service(object.into())),
    };
    InternalRaftRequest { id: 1, action: vec![action] }.encode_to_vec().into()
}

#[derive(Default)]
struct Outcomes {
    committed: BTreeSet<String>,
    not_written: BTreeSet<String>,
}

fn write(store: &Store, writer: usize) -> Outcomes {
    let mut outcomes = Outcomes::default();
    let own = format!("account-{writer}");
    for attempt in 0..ATTEMPTS {
        let id = mark_of(writer, attempt);
        let change = |tx: &mut Tx| {
            tx.create(service(&id, &id))?;
            assert!(!panics(attempt), "in the middle");
            if attempt % 3 == 0 { change(tx, &own, 2) } else { withdraw(tx, &own) }
        };
        let result = if panics(attempt) {
            let update = || block_on(store.update(change));
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(update)) {
                Ok(result) => result, // leadership was lost before it ran
                Err(_) => Err(Error::NotExist),
            }
        } else if is_alone(attempt) {
            block_on(store.update_alone(change))
        } else {
            block_on(store.update(change))
        };
        match result {
            Ok((_, committed)) => {
                assert!(store.view().index() >= committed.index);
                assert!(store.view().get::<Service>(&id).is_some(), "visible when acknowledged");
                outcomes.committed.insert(id);
            }
            Err(Error::NotExist | Error::Dropped) => drop(outcomes.not_written.insert(id)),
            Err(Error::LostLeadership) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    outcomes
}

/// The versions that this manager stamped grow from entry to entry and stay below the index.
fn check_versions(log: &[Bytes]) {
    let mut last = 0;
    for (index, entry) in (1..).zip(log) {
        let request = InternalRaftRequest::decode(entry.clone()).unwrap();
        for action in request.action.iter().filter(|_| request.id != 1) {
            let version = swarm_api::Object::from_action(action).unwrap().meta().version.index;
            assert!(version >= last && version < index, "{last} {version} {index}");
            last = version;
        }
        // Within an entry all are the same; the next entry's are higher.
        last += u64::from(!request.action.is_empty() && request.id != 1);
    }
}

fn play(faults: &[Fault], store: &Arc<Store>, raft: &LoopbackProposer, done: &AtomicU64) {
    let mut foreigners = 0;
    for fault in faults.iter().cycle().take(faults.len() * 20) {
        if done.load(Ordering::Relaxed) == WRITERS as u64 {
            break;
        }
        match fault {
            Fault::Hold => raft.hold(),
            Fault::Step(n) => raft.step(*n),
            Fault::Release => raft.release(),
            Fault::Refuse => raft.refuse_next(),
            Fault::Full => {
                raft.set_full(true);
                std::thread::yield_now();
                raft.set_full(false);
            }
            Fault::Lose(survivors) => {
                raft.lose_leadership(*survivors);
                raft.lead();
            }
            Fault::Foreign => {
                foreigners += 1;
                raft.foreign(foreign(foreigners));
            }
            Fault::Restore => {
                // A follower may be given a snapshot; what it had in flight is lost.
                raft.lose_leadership(0);
                raft.settle();
                let view = store.view();
                store.restore(view.index(), view.to_snapshot()).unwrap();
                raft.lead();
            }
            Fault::Pause => (0..50).for_each(|_| std::thread::yield_now()),
        }
    }
    raft.release();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_happens_to_proposals_the_store_stays_serial(faults in prop::collection::vec(fault(), 5..30)) {
        let (store, raft) = LoopbackProposer::store();
        block_on(store.update(|tx| {
            (0..WRITERS).try_for_each(|n| {
                let id = format!("account-{n}");
                tx.create(service(&id, &id)).map(drop)
            })
        })).unwrap();
        let (mut seen, mut commits) = store.view_and_subscribe();
        let done = AtomicU64::new(0);
        let outcomes: Vec<Outcomes> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|n| {
                    let (store, done) = (&store, &done);
                    scope.spawn(move || {
                        let outcomes = write(store, n);
                        done.fetch_add(1, Ordering::Relaxed);
                        outcomes
                    })
                })
                .collect();
            play(&faults, &store, &raft, &done);
            writers.into_iter().map(|w| w.join().unwrap()).collect()
        });
        raft.settle();

        let view = store.view();
        for outcome in &outcomes {
            for id in &outcome.committed {
                prop_assert!(view.get::<Service>(id).is_some(), "{} was acknowledged", id);
            }
            for id in &outcome.not_written {
                prop_assert!(view.get::<Service>(id).is_none(), "{} was not written", id);
            }
        }
        prop_assert_eq!(store.divergence(), None);
        check_versions(&raft.log());

        // The subscription leads from the first view to the last, and no state in between is impossible.
        while let Some(Received::Commit(commit)) = commits.try_next() {
            let mut tables = seen.to_tables();
            tables.replay(&commit.events);
            prop_assert!(diff(&tables, &commit.view).is_empty());
            let total: i64 = commit.view.services().by_id_prefix("account").map(|s| balance(s)).sum();
            prop_assert!(total >= 0, "skew: {}", total);
            let marks = commit.events.iter().filter_map(|event| {
                let (writer, attempt) = event.id().strip_prefix("mark-")?.split_once('-')?;
                Some((writer.parse::<usize>().ok()?, attempt.parse::<u64>().ok()?))
            });
            let marks: BTreeSet<_> = marks.collect();
            let alone = marks.iter().any(|(_, attempt)| is_alone(*attempt));
            prop_assert!(!alone || marks.len() == 1, "not alone: {:?}", marks);
            seen = commit.view.clone();
        }
        prop_assert!(diff(&seen, &view).is_empty());

        let replica = Store::new();
        for (index, entry) in (1..).zip(raft.log()) {
            replica.apply(index, entry, None).unwrap();
        }
        prop_assert_eq!(replica.view().index(), view.index());
        prop_assert!(diff(&replica.view(), &view).is_empty());
    }
}
