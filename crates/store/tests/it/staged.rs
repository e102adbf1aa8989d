//! The staged writer: order, versions, refusals, lost leadership.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, mpsc};

use bytes::Bytes;
use futures::executor::block_on;
use prost::Message as _;
use swarm_api::v1::{InternalRaftRequest, Service, StoreAction, StoreActionKind};
use swarm_store::testing::LoopbackProposer;
use swarm_store::{Error, Received, StateMachine as _, Store, Subscription};

use crate::support::{Started, count, counter, create_service, service};

#[tokio::test]
async fn an_update_is_visible_when_it_returns() {
    let (store, _raft) = LoopbackProposer::store();
    let ((), committed) = store.update(|tx| create_service(tx, "s1", "web")).await.unwrap();
    assert_eq!(store.view().index(), committed.index);
    assert!(store.view().get::<Service>("s1").is_some());
}

#[tokio::test]
async fn many_transactions_are_in_flight_and_each_sees_those_before_it() {
    let (store, raft) = LoopbackProposer::store();
    raft.hold();
    let mut updates: Vec<_> = (0..50).map(|_| Started::new(store.update(|tx| count(tx, "c")))).collect();
    raft.wait_for_queue(50);
    assert_eq!(counter(&store, "c"), 0, "nothing is visible before it is committed");
    raft.step(1);
    let first = updates.remove(0).done().await.unwrap();
    assert_eq!((first.0, counter(&store, "c")), (1, 1));
    raft.release();
    for (n, update) in updates.into_iter().enumerate() {
        let (counted, committed) = update.done().await.unwrap();
        assert_eq!((counted, committed.index), (n as u64 + 2, first.1.index + 1 + n as u64));
    }
    assert_eq!(counter(&store, "c"), 50);
}

/// Everything that changes a counter, with what it came to and how many changes told of it.
fn told(commits: &mut Subscription) -> Vec<(u64, usize, u64)> {
    let mut told = Vec::new();
    while let Some(Received::Commit(commit)) = commits.try_next() {
        assert_eq!(commit.index, commit.view.index());
        let counted = commit.view.get::<Service>("c").map_or(0, |c| c.spec.task.force_update);
        told.push((commit.index, commit.events.len(), counted));
    }
    told
}

/// As raft tells of the entries of one sync: everyone is answered with the index of his own, and whoever follows hears
/// of them at once.
#[tokio::test]
async fn what_is_committed_together_is_one_commit() {
    let (store, raft) = LoopbackProposer::store();
    let (_, mut commits) = store.view_and_subscribe();
    let before = store.view().index();
    raft.hold();
    let mut updates: Vec<_> = (0..3).map(|_| Started::new(store.update(|tx| count(tx, "c")))).collect();
    updates.push(Started::new(store.update_alone(|tx| count(tx, "c"))));
    updates.extend((0..2).map(|_| Started::new(store.update(|tx| count(tx, "c")))));
    raft.wait_for_queue(6);
    raft.release();
    for (n, update) in (1..).zip(updates) {
        let (counted, committed) = update.done().await.unwrap();
        assert_eq!((counted, committed.index), (n, before + n));
    }
    assert_eq!(told(&mut commits), [(before + 3, 3, 3), (before + 4, 1, 4), (before + 6, 2, 6)]);
}

#[tokio::test]
async fn a_part_of_what_was_staged_together_is_committed_and_told_by_itself() {
    let (store, raft) = LoopbackProposer::store();
    let (_, mut commits) = store.view_and_subscribe();
    let before = store.view().index();
    raft.hold();
    let mut updates: Vec<_> = (0..5).map(|_| Started::new(store.update(|tx| count(tx, "c")))).collect();
    raft.wait_for_queue(5);
    for (updates, n) in [(updates.drain(..2).collect::<Vec<_>>(), 2), (updates.drain(..1).collect(), 1)] {
        raft.step(n);
        for update in updates {
            update.done().await.unwrap();
        }
    }
    assert_eq!(told(&mut commits).last(), Some(&(before + 3, 1, 3)));
    // The rest is still there, and goes on from what it was run on.
    updates.push(Started::new(store.update(|tx| count(tx, "c"))));
    raft.release();
    let mut counts = Vec::new();
    for update in updates {
        counts.push(update.done().await.unwrap().0);
    }
    assert_eq!((counts, counter(&store, "c")), (vec![4, 5, 6], 6));
    assert_eq!(
        told(&mut commits).last().map(|(index, _, counted)| (*index, *counted)),
        Some((before + 6, 6))
    );
}

/// A commit is sent to watchers as one message, so it must not grow without bounds.
#[tokio::test]
async fn only_small_transactions_are_committed_together() {
    let (store, raft) = LoopbackProposer::store();
    let (_, mut commits) = store.view_and_subscribe();
    raft.hold();
    let large = |n: usize| {
        let store = &store;
        Started::new(store.update(move |tx| {
            let mut service = service(&format!("s{n}"), &format!("web{n}"));
            service.spec.annotations.labels.insert("l".to_owned(), "x".repeat(30_000));
            tx.create(service).map(drop)
        }))
    };
    let updates: Vec<_> = (0..3).map(large).collect();
    raft.wait_for_queue(3);
    raft.release();
    for update in updates {
        update.done().await.unwrap();
    }
    assert_eq!(store.view().services().len(), 3);
    let events: Vec<usize> = told(&mut commits).iter().map(|(_, events, _)| *events).collect();
    assert_eq!(events, [2, 1]);
}

/// What raft commits while a closure still runs on the tables that it shares with that.
#[test]
fn commits_do_not_wait_for_a_closure_and_it_goes_on_from_what_it_saw() {
    #[derive(Clone, Copy, Debug)]
    enum End {
        Commits,
        Fails,
        Panics,
    }
    for (end, committed) in
        [End::Commits, End::Fails, End::Panics].into_iter().flat_map(|end| [(end, 1), (end, 2), (end, 3)])
    {
        let (store, raft) = LoopbackProposer::store();
        let (_, mut commits) = store.view_and_subscribe();
        raft.hold();
        let mut before: Vec<_> = (0..3).map(|_| Started::new(store.update(|tx| count(tx, "c")))).collect();
        raft.wait_for_queue(3);
        let (running, runs) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let goes_on = Mutex::new(goes_on);
        std::thread::scope(|scope| {
            let late = scope.spawn(|| {
                block_on(store.update(|tx| {
                    let counted = count(tx, "c")?;
                    running.send(()).unwrap();
                    goes_on.lock().unwrap().recv().unwrap();
                    match end {
                        End::Commits => Ok(counted),
                        End::Fails => Err(Error::NotExist),
                        End::Panics => panic!("in the middle"),
                    }
                }))
            });
            runs.recv().unwrap();
            raft.step(committed);
            for (n, update) in (1..).zip(before.drain(..committed)) {
                assert_eq!(block_on(update.done()).unwrap().0, n);
            }
            assert_eq!(counter(&store, "c"), committed as u64, "{end:?}");
            go_on.send(()).unwrap();
            raft.release();
            let late = late.join();
            match end {
                End::Commits => assert_eq!(late.unwrap().unwrap().0, 4),
                End::Fails => assert_eq!(late.unwrap().unwrap_err(), Error::NotExist),
                End::Panics => assert!(late.is_err()),
            }
        });
        let counted = 3 + u64::from(matches!(end, End::Commits));
        for (n, update) in (committed as u64 + 1..).zip(before) {
            assert_eq!(block_on(update.done()).unwrap().0, n);
        }
        assert_eq!(block_on(store.update(|tx| count(tx, "c"))).unwrap().0, counted + 1);
        let told = told(&mut commits);
        assert_eq!(told.iter().map(|(_, events, _)| events).sum::<usize>() as u64, counted + 1, "{told:?}");
    }
}

#[tokio::test]
async fn what_fails_among_others_leaves_nothing_behind() {
    let (store, raft) = LoopbackProposer::store();
    store.update(|tx| create_service(tx, "old", "old")).await.unwrap();
    raft.hold();
    let first = Started::new(store.update(|tx| count(tx, "c")));
    let failed = Started::new(store.update(|tx| {
        count(tx, "c")?;
        create_service(tx, "s1", "web")?;
        tx.remove::<Service>("old")?;
        Err::<(), _>(Error::NotExist)
    }));
    let last = Started::new(store.update(|tx| {
        assert!(tx.get::<Service>("s1").is_none() && tx.get::<Service>("old").is_some());
        create_service(tx, "s2", "web")?;
        count(tx, "c")
    }));
    raft.release();
    assert_eq!(first.done().await.unwrap().0, 1);
    assert_eq!(failed.done().await.unwrap_err(), Error::NotExist);
    assert_eq!(last.done().await.unwrap().0, 2);
    let view = store.view();
    let names: Vec<&str> = view.services().iter().map(|s| s.spec.annotations.name.as_str()).collect();
    assert_eq!((names, counter(&store, "c")), (vec!["c", "old", "web"], 2));
}

#[tokio::test]
async fn versions_grow_strictly_and_stay_below_the_index_of_their_entry() {
    let (store, raft) = LoopbackProposer::store();
    raft.hold();
    let updates: Vec<_> = (0..20).map(|_| Started::new(store.update(|tx| count(tx, "c")))).collect();
    raft.wait_for_queue(20);
    raft.release();
    for update in updates {
        update.done().await.unwrap();
    }
    let log = raft.log();
    let mut last = 0;
    for (index, entry) in (1..).zip(log).filter(|(_, data)| !data.is_empty()) {
        let request = InternalRaftRequest::decode(entry).unwrap();
        assert_eq!(request.id >> 48, 0x4242, "the proposer's prefix");
        for action in request.action {
            let object = swarm_api::Object::from_action(&action).unwrap();
            let version = object.meta().version.index;
            assert!(last < version && version < index, "{last} < {version} < {index}");
            last = version;
        }
    }
    assert!(last > 0);
}

#[tokio::test]
async fn versions_of_refused_transactions_are_used_again() {
    let (store, raft) = LoopbackProposer::store();
    raft.hold();
    let mut updates: Vec<_> = (0..20).map(|_| Started::new(store.update(|tx| count(tx, "c")))).collect();
    raft.wait_for_queue(20);
    raft.refuse_next();
    raft.settle();
    for update in &mut updates {
        assert!(update.poll().is_none());
    }
    raft.release();
    for update in updates {
        update.done().await.unwrap();
    }
    let view = store.view();
    let counter = view.get::<Service>("c").unwrap();
    assert_eq!(counter.spec.task.force_update, 20);
    assert!(counter.meta.version.index < view.index(), "{} {}", counter.meta.version.index, view.index());
}

#[tokio::test]
async fn names_are_checked_against_what_is_in_flight() {
    let (store, raft) = LoopbackProposer::store();
    raft.hold();
    let first = Started::new(store.update(|tx| create_service(tx, "s1", "web")));
    let mut second = Started::new(store.update(|tx| create_service(tx, "s2", "WEB")));
    assert!(second.poll().is_none(), "the conflict rests on what may still come to nothing");
    raft.release();
    assert!(first.done().await.is_ok());
    assert_eq!(second.done().await.unwrap_err(), Error::NameConflict);
}

/// What a leader does that froze, was replaced, and wakes.
#[tokio::test]
async fn a_refusal_waits_until_it_is_certain_that_this_manager_leads() {
    let (store, raft) = LoopbackProposer::store();
    store.update(|tx| create_service(tx, "s1", "web")).await.unwrap();
    raft.hold();
    let refused = Started::new(store.update(|tx| create_service(tx, "s2", "web")));
    let unchanged = Started::new(store.update(|tx| Ok::<_, Error>(tx.get::<Service>("s1").is_some())));
    raft.lose_leadership(0);
    raft.release();
    assert_eq!(refused.done().await.unwrap_err(), Error::LostLeadership);
    assert_eq!(unchanged.done().await.unwrap_err(), Error::LostLeadership);
    // It leads, and the answer is the same as before.
    raft.lead();
    assert_eq!(store.update(|tx| create_service(tx, "s2", "web")).await.unwrap_err(), Error::NameConflict);
}

#[tokio::test]
async fn a_refusal_by_what_was_true_in_an_earlier_term_is_none() {
    let (store, raft) = LoopbackProposer::store();
    store.update(|tx| create_service(tx, "s1", "web")).await.unwrap();
    raft.hold();
    let late = Started::new(store.update(|tx| create_service(tx, "s2", "web")));
    raft.lose_leadership(0);
    let gone = swarm_api::Object::from(swarm_api::Shared::new(service("s1", "web")));
    let action =
        StoreAction { action: StoreActionKind::StoreActionRemove as i32, target: Some(gone.to_target()) };
    raft.foreign(InternalRaftRequest { id: 1, action: vec![action] }.encode_to_vec().into());
    raft.lead();
    raft.release();
    assert!(late.done().await.is_ok(), "the name was free when it asked");
}

#[tokio::test]
async fn a_conflict_with_a_refused_transaction_is_no_conflict() {
    let (store, raft) = LoopbackProposer::store();
    raft.hold();
    let cancelled = Started::new(store.update(|tx| create_service(tx, "s1", "web")));
    let second = Started::new(store.update(|tx| create_service(tx, "s2", "web")));
    drop(cancelled); // so that it is not run again
    raft.refuse_next();
    raft.settle();
    raft.release();
    assert!(second.done().await.is_ok());
    assert!(store.view().get::<Service>("s1").is_none());
    assert!(store.view().get::<Service>("s2").is_some());
}

#[tokio::test]
async fn nothing_to_change_is_answered_when_what_it_read_is_committed() {
    let (store, raft) = LoopbackProposer::store();
    raft.hold();
    let first = Started::new(store.update(|tx| count(tx, "c")));
    let mut second = Started::new(
        store.update(|tx| Ok::<_, Error>(tx.get::<Service>("c").map(|s| s.spec.task.force_update))),
    );
    assert!(second.poll().is_none());
    raft.release();
    first.done().await.unwrap();
    let (seen, committed) = second.done().await.unwrap();
    assert_eq!((seen, committed.index), (Some(1), store.view().index()));
    let entries = raft.log().len();
    let ((), committed) = store.update(|_| Ok::<_, Error>(())).await.unwrap();
    assert_eq!((raft.log().len(), committed.index), (entries, store.view().index()));
}

#[tokio::test]
async fn refused_transactions_run_again_on_the_committed_state() {
    let (store, raft) = LoopbackProposer::store();
    let runs = AtomicU32::new(0);
    raft.hold();
    let updates: Vec<_> = (0..3)
        .map(|_| {
            Started::new(store.update(|tx| {
                runs.fetch_add(1, Ordering::Relaxed);
                count(tx, "c")
            }))
        })
        .collect();
    raft.wait_for_queue(3);
    raft.step(1);
    raft.settle();
    raft.refuse_next();
    raft.settle();
    raft.release();
    let mut counts = Vec::new();
    for update in updates {
        counts.push(update.done().await.unwrap().0);
    }
    assert_eq!(counts, [1, 2, 3]);
    assert_eq!(runs.load(Ordering::Relaxed), 5, "the first was committed before the refusal");
    assert_eq!(counter(&store, "c"), 3);
}

#[tokio::test]
async fn endless_refusal_is_told() {
    let (store, raft) = LoopbackProposer::store();
    raft.set_full(true);
    assert_eq!(store.update(|tx| count(tx, "c")).await.unwrap_err(), Error::Dropped);
    raft.set_full(false);
    assert_eq!(store.update(|tx| count(tx, "c")).await.unwrap().0, 1);
}

#[tokio::test]
async fn a_full_queue_is_waited_out() {
    let (store, raft) = LoopbackProposer::store();
    raft.hold();
    let first = Started::new(store.update(|tx| count(tx, "c")));
    raft.set_full(true);
    let mut second = Started::new(store.update(|tx| count(tx, "c")));
    raft.set_full(false);
    let mut third = Started::new(store.update(|tx| count(tx, "c")));
    assert!(second.poll().is_none() && third.poll().is_none());
    raft.wait_for_queue(1);
    raft.release();
    assert_eq!(first.done().await.unwrap().0, 1);
    let mut counts = [second.done().await.unwrap().0, third.done().await.unwrap().0];
    counts.sort_unstable();
    assert_eq!(counts, [2, 3]);
}

#[tokio::test]
async fn lost_leadership_fails_everything_in_flight_and_its_outcome_is_unknown() {
    let (store, raft) = LoopbackProposer::store();
    raft.hold();
    let updates: Vec<_> = (0..4).map(|_| Started::new(store.update(|tx| count(tx, "c")))).collect();
    let rested = Started::new(store.update(|tx| create_service(tx, "c", "other")));
    raft.wait_for_queue(4);
    raft.lose_leadership(2);
    for update in updates {
        assert_eq!(update.done().await.unwrap_err(), Error::LostLeadership);
    }
    assert_eq!(rested.done().await.unwrap_err(), Error::LostLeadership);
    raft.settle();
    assert_eq!(counter(&store, "c"), 2, "two were in the next leader's log");
    assert_eq!(store.update(|tx| count(tx, "c")).await.unwrap_err(), Error::LostLeadership);
    raft.release();
    raft.lead();
    assert_eq!(store.update(|tx| count(tx, "c")).await.unwrap().0, 3);
    assert_eq!(store.divergence(), None);
}

#[tokio::test]
async fn an_entry_of_another_manager_goes_beneath_what_is_staged() {
    let (other, other_raft) = LoopbackProposer::store();
    other.update(|tx| create_service(tx, "x", "theirs")).await.unwrap();
    let entry = other_raft.log().pop().unwrap();

    let (store, raft) = LoopbackProposer::store();
    raft.hold();
    let ours = Started::new(store.update(|tx| create_service(tx, "s1", "ours")));
    let clash = Started::new(store.update(|tx| create_service(tx, "s2", "theirs")));
    raft.wait_for_queue(2);
    raft.foreign(entry);
    raft.settle();
    assert!(store.view().get::<Service>("x").is_some());
    raft.release();
    ours.done().await.unwrap();
    assert_eq!(clash.done().await.unwrap_err(), Error::NameConflict);
    let view = store.view();
    assert!(view.get::<Service>("x").is_some() && view.get::<Service>("s1").is_some());
    assert!(view.get::<Service>("s2").is_none());
}

#[tokio::test]
async fn a_replica_fed_with_the_entries_has_the_same_tables() {
    let (store, raft) = LoopbackProposer::store();
    for n in 0..5 {
        store.update(|tx| create_service(tx, &format!("s{n}"), &format!("web{n}"))).await.unwrap();
    }
    store.update(|tx| tx.remove::<Service>("s3").map(drop)).await.unwrap();
    let replica = Store::new();
    for (index, entry) in (1..).zip(raft.log()) {
        replica.apply(index, entry, None).unwrap();
    }
    assert_eq!(replica.view().to_snapshot(), store.view().to_snapshot());
    assert_eq!(replica.view().index(), store.view().index());
}

#[tokio::test]
async fn a_transaction_that_does_not_fit_an_entry_is_refused() {
    let (store, raft) = LoopbackProposer::store();
    let big = |tx: &mut swarm_store::Tx| {
        let mut service = crate::support::service("s1", "web");
        service.spec.annotations.labels.insert("l".to_owned(), "x".repeat(1_572_864));
        tx.create(service).map(drop)
    };
    let error = store.update(big).await.unwrap_err();
    assert_eq!(error.to_string(), "raft: raft message is too large and can't be sent");
    assert!(store.view().services().is_empty());
    assert_eq!(raft.log().iter().filter(|e| !e.is_empty()).count(), 0);
}

#[tokio::test]
async fn a_batch_packs_items_into_few_entries_and_a_failing_item_fails_alone() {
    let (store, raft) = LoopbackProposer::store();
    let items: Vec<usize> = (0..100).collect();
    let results = store
        .batch(&items, |tx, &n| {
            let mut service = crate::support::service(&format!("s{n:03}"), &format!("web{n}"));
            service.spec.annotations.labels.insert("l".to_owned(), "x".repeat(30_000));
            tx.create(service)?;
            if n % 10 == 7 { Err(Error::Exists) } else { Ok(n) }
        })
        .await;
    for (n, result) in results.iter().enumerate() {
        match result {
            Ok((answer, committed)) => {
                assert_eq!(*answer, n);
                assert!(committed.index > 0);
            }
            Err(error) => assert_eq!((n % 10, error), (7, &Error::Exists)),
        }
    }
    assert_eq!(store.view().services().len(), 90);
    let sizes: Vec<usize> = raft.log().iter().filter(|e| !e.is_empty()).map(Bytes::len).collect();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 1_179_648 + 16), "{sizes:?}");
}

#[tokio::test]
async fn a_batch_item_that_is_too_large_fails_alone() {
    let (store, _raft) = LoopbackProposer::store();
    let results = store
        .batch(&[10, 1_300_000, 10, 2_000_000, 10], |tx, &size| {
            let mut service = crate::support::service(&format!("s{}", tx.services().len()), "");
            service.spec.annotations.name = service.id.clone();
            service.spec.annotations.labels.insert("l".to_owned(), "x".repeat(size));
            tx.create(service).map(drop)
        })
        .await;
    let errors: Vec<_> = results.into_iter().map(Result::err).collect();
    assert_eq!(errors, [None, None, None, Some(Error::TooLarge), None]);
    assert_eq!(store.view().services().len(), 4);
}

#[tokio::test]
async fn lost_leadership_fails_the_rest_of_a_batch() {
    let (store, raft) = LoopbackProposer::store();
    raft.hold();
    let items: Vec<usize> = (0..100).collect();
    let batch = Started::new(store.batch(&items, |tx, &n| {
        let mut service = crate::support::service(&format!("s{n:03}"), &format!("web{n}"));
        service.spec.annotations.labels.insert("l".to_owned(), "x".repeat(30_000));
        tx.create(service).map(drop)
    }));
    raft.wait_for_queue(1);
    raft.lose_leadership(0);
    let results = batch.done().await;
    assert_eq!(results.len(), 100);
    assert!(results.into_iter().all(|r| r.unwrap_err() == Error::LostLeadership));
}
