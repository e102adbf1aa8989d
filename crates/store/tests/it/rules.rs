//! What a transaction may do, and what it stamps.

use std::time::{Duration, SystemTime};

use swarm_api::v1::{Extension, Network, Resource, Service, Task};
use swarm_store::{Error, Store, Tx};

use crate::support::{create_service, named, node, service, task};

fn run<R>(store: &Store, f: impl FnMut(&mut Tx) -> Result<R, Error> + Send) -> Result<R, Error>
where
    R: Send,
{
    futures::executor::block_on(store.update(f)).map(|(r, _)| r)
}

fn extension(id: &str, name: &str) -> Extension {
    named(|e: &mut Extension| {
        e.id = id.to_owned();
        e.annotations.name = name.to_owned();
    })
}

fn resource(id: &str, name: &str, kind: &str) -> Resource {
    named(|r: &mut Resource| {
        r.id = id.to_owned();
        r.annotations.name = name.to_owned();
        r.kind = kind.to_owned();
    })
}

#[test]
fn ids_and_names_are_unique() {
    let store = Store::local();
    run(&store, |tx| create_service(tx, "s1", "web")).unwrap();
    assert_eq!(run(&store, |tx| create_service(tx, "s1", "other")).unwrap_err(), Error::Exists);
    assert_eq!(run(&store, |tx| create_service(tx, "s2", "WEB")).unwrap_err(), Error::NameConflict);
    assert_eq!(run(&store, |tx| tx.update(service("s9", "x"))).unwrap_err(), Error::NotExist);
    assert_eq!(run(&store, |tx| tx.remove::<Service>("s9")).unwrap_err(), Error::NotExist);
    run(&store, |tx| tx.create(named(|n: &mut Network| n.id = "web".to_owned()))).unwrap();
}

#[test]
fn a_name_may_be_kept_or_moved_to_a_free_one() {
    let store = Store::local();
    run(&store, |tx| create_service(tx, "s1", "web")).unwrap();
    run(&store, |tx| create_service(tx, "s2", "api")).unwrap();
    let rename = |name: &'static str| {
        run(&store, |tx| {
            let mut service = tx.get::<Service>("s1").cloned().unwrap();
            service.spec.annotations.name = name.to_owned();
            tx.update(service)
        })
    };
    rename("web").unwrap();
    rename("front").unwrap();
    assert_eq!(rename("Api").unwrap_err(), Error::NameConflict);
    let view = store.view();
    assert_eq!(view.services().by_name("FRONT").count(), 1);
    assert_eq!(view.services().by_name("web").count(), 0);
}

#[test]
fn nodes_and_tasks_may_share_names() {
    let store = Store::local();
    run(&store, |tx| {
        let web = service("s1", "web");
        for n in 0..2 {
            let mut node = node(&format!("n{n}"));
            node.description.get_or_insert_default().hostname = "host".to_owned();
            tx.create(node)?;
            let mut task = task(&format!("t{n}"), &web, 1);
            task.annotations.name = "host".to_owned();
            tx.create(task)?;
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(store.view().nodes().by_name("HOST").count(), 2);
    assert_eq!(store.view().tasks().by_name("host").count(), 2);
}

#[test]
fn a_stale_copy_is_refused_and_the_returned_one_is_good() {
    let store = Store::local();
    let first = run(&store, |tx| tx.create(service("s1", "web"))).unwrap();
    let second = run(&store, |tx| tx.update(first.clone())).unwrap();
    let error = run(&store, |tx| tx.update(first.clone())).unwrap_err();
    assert_eq!(error.to_string(), "update out of sequence");
    let third = run(&store, |tx| {
        let once = tx.update(second.clone())?;
        tx.update(once) // twice in one transaction
    })
    .unwrap();
    let versions = [first, second, third].map(|s| s.meta.version.index);
    assert!(versions[0] < versions[1] && versions[1] < versions[2], "{versions:?}");
}

#[test]
fn creation_sets_both_times_and_an_update_only_the_second() {
    let store = Store::local();
    let time = |n: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + n);
    let now = std::sync::atomic::AtomicU64::new(0);
    let now: &'static std::sync::atomic::AtomicU64 = Box::leak(Box::new(now));
    store.set_clock(move || time(now.load(std::sync::atomic::Ordering::Relaxed)));
    let first = run(&store, |tx| tx.create(service("s1", "web"))).unwrap();
    assert_eq!(first.meta.created_at, Some(time(0).into()));
    assert_eq!(first.meta.updated_at, Some(time(0).into()));
    now.store(5, std::sync::atomic::Ordering::Relaxed);
    let second = run(&store, |tx| tx.update(first.clone())).unwrap();
    assert_eq!(second.meta.created_at, Some(time(0).into()));
    assert_eq!(second.meta.updated_at, Some(time(5).into()));
    assert_eq!(store.view().get::<Service>("s1"), Some(&second));
}

#[test]
fn a_transaction_sees_its_own_changes_and_others_do_not() {
    let store = Store::local();
    run(&store, |tx| {
        create_service(tx, "s1", "web")?;
        assert_eq!(tx.services().by_name("web").count(), 1);
        assert!(store.view().services().is_empty());
        Ok(())
    })
    .unwrap();
    assert_eq!(store.view().services().len(), 1);
}

#[test]
fn a_group_that_fails_is_undone_alone() {
    let store = Store::local();
    run(&store, |tx| {
        create_service(tx, "s1", "web")?;
        let failed = tx.group(|tx| {
            create_service(tx, "s2", "api")?;
            create_service(tx, "s3", "api")
        });
        assert_eq!(failed.unwrap_err(), Error::NameConflict);
        create_service(tx, "s4", "api")
    })
    .unwrap();
    let ids: Vec<_> = store.view().services().iter().map(|s| s.id.clone()).collect();
    assert_eq!(ids, ["s1", "s4"]);
}

#[test]
fn a_group_that_fails_leaves_every_object_and_index_as_it_was() {
    let store = Store::local();
    run(&store, |tx| {
        create_service(tx, "s1", "web")?;
        create_service(tx, "s2", "api")
    })
    .unwrap();
    let before = store.view();
    run(&store, |tx| {
        let failed = tx.group(|tx| {
            tx.remove::<Service>("s1")?;
            let mut api = tx.get::<Service>("s2").cloned().unwrap();
            api.spec.annotations.name = "web".to_owned();
            tx.update(api)?;
            create_service(tx, "s3", "api")?;
            create_service(tx, "s1", "other")?;
            Err::<(), _>(Error::NotExist)
        });
        assert_eq!(failed.unwrap_err(), Error::NotExist);
        assert!(tx.is_unchanged());
        assert_eq!(swarm_store::diff(&before, tx), vec![]);
        for (name, id) in [("web", Some("s1")), ("api", Some("s2")), ("other", None)] {
            assert_eq!(tx.services().by_name(name).next().map(|s| &*s.id), id);
        }
        create_service(tx, "s3", "other")
    })
    .unwrap();
    assert_eq!(store.view().services().len(), 3);
}

#[test]
fn extensions_are_fixed_and_stay_while_they_are_used() {
    let store = Store::local();
    assert_eq!(run(&store, |tx| tx.create(extension("e0", "task"))).unwrap_err(), Error::NameConflict);
    assert_eq!(run(&store, |tx| tx.create(resource("r1", "a", "foo"))).unwrap_err(), Error::UnregisteredKind);
    let extension = run(&store, |tx| tx.create(extension("e1", "foo"))).unwrap();
    assert_eq!(run(&store, |tx| tx.update(extension.clone())).unwrap_err(), Error::ImmutableExtension);
    let made = run(&store, |tx| tx.create(resource("r1", "a", "foo"))).unwrap();
    assert_eq!(run(&store, |tx| tx.create(resource("r2", "A", "foo"))).unwrap_err(), Error::NameConflict);
    run(&store, |tx| tx.create(resource("r2", "b", "foo"))).unwrap();
    let renamed = run(&store, |tx| {
        let mut made = made.clone();
        made.annotations.name = "b".to_owned();
        tx.update(made)
    });
    assert_eq!(renamed.unwrap_err(), Error::NameConflict);
    assert_eq!(run(&store, |tx| tx.remove::<Extension>("e1")).unwrap_err(), Error::ExtensionInUse);
    run(&store, |tx| {
        tx.remove::<Resource>("r1")?;
        tx.remove::<Resource>("r2")?;
        tx.remove::<Extension>("e1")
    })
    .unwrap();
}

#[test]
fn a_task_is_named_after_service_slot_and_id() {
    let store = Store::local();
    run(&store, |tx| {
        let web = service("s1", "Web");
        tx.create(task("t1", &web, 3))?;
        let mut global = task("t2", &web, 0);
        global.node_id = "n1".into();
        tx.create(global)?;
        tx.create(task("t3", &web, 30))
    })
    .unwrap();
    let view = store.view();
    let named = |name: &str| view.tasks().by_name(name).map(|t| t.id.clone()).collect::<Vec<_>>();
    let begins = |name: &str| view.tasks().by_name_prefix(name).map(|t| t.id.clone()).collect::<Vec<_>>();
    assert_eq!(named("web.3.T1"), ["t1"]);
    assert_eq!(named("web.n1.t2"), ["t2"]);
    assert!(named("web.3").is_empty());
    assert_eq!(begins("WEB.3"), ["t1", "t3"]);
    assert_eq!(begins("web.3.t"), ["t1"]);
    assert_eq!(begins("web"), ["t1", "t3", "t2"]);
    assert_eq!(begins("we"), ["t1", "t3", "t2"]);
    assert!(begins("web.3.t1x").is_empty());
    let _: Option<&swarm_api::Shared<Task>> = view.get("t1");
}
