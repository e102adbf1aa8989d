//! Commits as their subscribers see them.

use std::sync::Arc;

use swarm_api::Kind;
use swarm_api::v1::Service;
use swarm_store::testing::LoopbackProposer;
use swarm_store::{Error, Event, Kinds, Received, StateMachine as _, Store, Subscription, Tables, diff};

use crate::support::{count, create_service, node, service};

fn commit(received: Received) -> Arc<swarm_store::Commit> {
    match received {
        Received::Commit(commit) => commit,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_subscription_yields_each_commit_after_its_view_once_and_in_order() {
    let (store, _raft) = LoopbackProposer::store();
    store.update(|tx| count(tx, "c")).await.unwrap();
    let (view, mut commits) = store.view_and_subscribe();
    assert!(commits.try_next().is_none());
    for _ in 0..3 {
        store.update(|tx| count(tx, "c")).await.unwrap();
    }
    for n in 1..=3 {
        let commit = commit(commits.next().await);
        assert_eq!(commit.index, view.index() + n);
        assert_eq!(commit.view.index(), commit.index);
        assert_eq!(commit.events.len(), 1);
        let seen = commit.view.get::<Service>("c").unwrap().spec.task.force_update;
        assert_eq!(seen, n + 1);
    }
    assert!(commits.try_next().is_none());
}

#[tokio::test]
async fn one_that_follows_some_kinds_gets_all_commits_with_one_of_them_and_no_others() {
    let store = Store::local();
    let nodes = Kinds::of(&[Kind::Node, Kind::Volume]);
    let (_, mut all) = store.view_and_subscribe();
    let (_, mut first) = store.view_and_follow(nodes);
    let (_, mut second) = store.view_and_follow(nodes);
    store.update(|tx| create_service(tx, "s1", "web")).await.unwrap();
    store.update(|tx| tx.create(node("n1")).map(drop)).await.unwrap();
    store
        .update(|tx| {
            create_service(tx, "s2", "api")?;
            tx.create(node("n2")).map(drop)
        })
        .await
        .unwrap();
    store.update(|tx| tx.remove::<Service>("s1").map(drop)).await.unwrap();
    let followed = |commits: &mut Subscription| {
        std::iter::from_fn(|| commits.try_next()).map(|c| commit(c).index).collect::<Vec<_>>()
    };
    assert_eq!(followed(&mut all), [1, 2, 3, 4]);
    let both = commit(first.next().await);
    assert_eq!((both.index, both.view.services().len()), (2, 1), "what came before it shows in its view");
    let both = commit(first.next().await);
    assert_eq!((both.index, both.events.len()), (3, 2), "a commit comes whole");
    assert!(first.try_next().is_none());
    assert_eq!(followed(&mut second), [2, 3]);
    drop((first, second));
    let (_, mut later) = store.view_and_follow(Kinds::of(&[Kind::Service]));
    store.update(|tx| create_service(tx, "s3", "db")).await.unwrap();
    assert_eq!(followed(&mut later), [5]);
}

#[tokio::test]
async fn a_transaction_that_fails_makes_no_event() {
    let store = Store::local();
    let (_, mut commits) = store.view_and_subscribe();
    let failed = store
        .update(|tx| {
            create_service(tx, "s1", "web")?;
            Err::<(), _>(Error::Exists)
        })
        .await;
    assert_eq!(failed.unwrap_err(), Error::Exists);
    assert!(commits.try_next().is_none());
    assert!(store.view().services().is_empty());
}

#[tokio::test]
async fn one_that_lags_starts_over_and_misses_nothing_after_it() {
    let store = Store::local();
    let (_, mut slow) = store.view_and_subscribe();
    let (_, mut quick) = store.view_and_subscribe();
    for n in 1..=5000 {
        store.update(|tx| count(tx, "c")).await.unwrap();
        assert_eq!(commit(quick.next().await).index, n, "others are not affected");
    }
    let Received::Lagged(view) = slow.next().await else { panic!("it lags") };
    assert_eq!(view.get::<Service>("c").unwrap().spec.task.force_update, 5000);
    assert!(slow.try_next().is_none(), "what is in the view does not come again");
    store.update(|tx| count(tx, "c")).await.unwrap();
    assert_eq!(commit(slow.next().await).index, view.index() + 1);
}

#[test]
fn subscribing_amid_commits_loses_none_and_doubles_none() {
    let store = Store::local();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..3000 {
                futures::executor::block_on(store.update(|tx| count(tx, "c"))).unwrap();
            }
        });
        let mut rounds = 0;
        while !writer.is_finished() || rounds == 0 {
            rounds += 1;
            let (view, mut commits) = store.view_and_subscribe();
            let mut last = view.index();
            for _ in 0..20 {
                if store.view().index() >= 3000 && last == 3000 {
                    break;
                }
                let commit = commit(futures::executor::block_on(commits.next()));
                assert_eq!(commit.index, last + 1);
                last = commit.index;
            }
        }
    });
}

#[tokio::test]
async fn a_restore_is_one_commit_with_the_differences() {
    let (store, _raft) = LoopbackProposer::store();
    for id in ["kept", "changed", "gone"] {
        store.update(|tx| create_service(tx, id, id)).await.unwrap();
    }
    let mut tables = store.view().to_tables();
    tables.remove(swarm_api::Kind::Service, "gone").unwrap();
    let mut changed = service("changed", "changed");
    changed.spec.task.force_update = 7;
    tables.replace(changed.into()).unwrap();
    tables.insert(service("new", "new").into()).unwrap();

    let (old, mut commits) = store.view_and_subscribe();
    store.restore(100, tables.to_snapshot()).unwrap();
    let commit = commit(commits.next().await);
    assert_eq!((commit.index, commit.view.index()), (100, 100));
    let summary: Vec<_> = commit
        .events
        .iter()
        .map(|event| match event {
            Event::Removed(o) => ("removed", o.id()),
            Event::Updated { new, .. } => ("updated", new.id()),
            Event::Created(o) => ("created", o.id()),
        })
        .collect();
    assert_eq!(summary, [("removed", "gone"), ("updated", "changed"), ("created", "new")]);
    let mut replayed = old.to_tables();
    replayed.replay(&commit.events);
    assert_eq!(replayed.to_snapshot(), commit.view.to_snapshot());
}

#[test]
fn names_that_trade_places_are_replayed() {
    let tables = |a: &str, b: &str| {
        let mut tables = Tables::default();
        tables.insert(service("a", a).into()).unwrap();
        tables.insert(service("b", b).into()).unwrap();
        tables
    };
    let (old, new) = (tables("one", "two"), tables("two", "one"));
    let events = diff(&old, &new);
    assert_eq!(events.len(), 2);
    let mut replayed = old.clone();
    replayed.replay(&events);
    assert_eq!(replayed.services().by_name("one").next().unwrap().id, "b");
    assert_eq!(replayed.services().by_name("two").next().unwrap().id, "a");
    assert!(diff(&replayed, &new).is_empty());
}
