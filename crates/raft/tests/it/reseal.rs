//! Another data encryption key, and every moment at which that may be interrupted.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use swarm_api::v1::RaftConfig;
use swarm_pki::{Dek, Sealer};
use swarm_raft::Config;

use crate::support::{config, copy, in_time, snapshot_files, start, try_start};

struct Keys {
    old: Dek,
    new: Dek,
}

impl Keys {
    fn generate() -> Keys {
        Keys { old: Dek::generate(), new: Dek::generate() }
    }

    fn with_old(&self) -> Arc<Sealer> {
        Arc::new(Sealer::new(&self.old))
    }

    fn with_new(&self) -> Arc<Sealer> {
        Arc::new(Sealer::new(&self.new))
    }

    fn with_both(&self) -> Arc<Sealer> {
        Arc::new(Sealer::with_older(&self.new, std::slice::from_ref(&self.old)))
    }
}

fn with(sealer: Arc<Sealer>, dir: &Path) -> Config {
    Config { sealer, ..config(dir) }
}

/// Directories of the log.
fn logs(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("raft")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.starts_with("log"));
    names.sort();
    names
}

/// Only the new key is needed from now on, and opens everything.
async fn is_resealed(keys: &Keys, dir: &Path, names: &[String]) {
    assert_eq!(logs(dir).len(), 1);
    assert!(snapshot_files(dir).len() == 1);
    assert!(try_start(with(keys.with_old(), dir)).is_err(), "the old key opens it");
    let manager = start(with(keys.with_new(), dir)).await;
    assert_eq!(manager.names(), names);
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_change_of_the_key_the_old_one_opens_nothing() {
    let (dir, keys) = (tempfile::tempdir().unwrap(), Keys::generate());
    let manager = start(with(keys.with_old(), dir.path())).await;
    let raft = RaftConfig { snapshot_interval: 7, keep_old_snapshots: 3, ..RaftConfig::default() };
    manager.settings(raft).await;
    manager.write_many(0..40).await;
    manager.write_sized("large", 300_000).await.unwrap();
    in_time("resealing", manager.raft.reseal(keys.with_both())).await.unwrap();
    let names = manager.names();
    assert_eq!(logs(dir.path()), ["log-1"]);
    let image = tempfile::tempdir().unwrap();
    copy(dir.path(), image.path());
    is_resealed(&keys, image.path(), &names).await;

    // It goes on as before, and a second change is as good as the first.
    manager.write_many(40..60).await;
    let again = Keys { old: keys.new.clone(), new: Dek::generate() };
    in_time("resealing", manager.raft.reseal(again.with_both())).await.unwrap();
    let names = manager.names();
    manager.stop().await;
    assert_eq!(logs(dir.path()), ["log-2"]);
    is_resealed(&again, dir.path(), &names).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_point_of_the_change_loses_nothing() {
    let (dir, keys) = (tempfile::tempdir().unwrap(), Keys::generate());
    let manager = start(with(keys.with_old(), dir.path())).await;
    manager.settings(RaftConfig { snapshot_interval: 9, ..RaftConfig::default() }).await;
    manager.write_many(0..30).await;
    crate::support::eventually("a snapshot", || manager.raft.counts().snapshots > 0).await;
    manager.settings(RaftConfig::default()).await;
    manager.stop().await;
    // From now on none is taken by itself.
    let manager = start(with(keys.with_old(), dir.path())).await;
    // Both are what a kill would leave: the node does nothing while they are copied.
    let images = tempfile::tempdir().unwrap();
    let [before, after] = ["before", "after"].map(|name| images.path().join(name));
    copy(dir.path(), &before);
    in_time("resealing", manager.raft.reseal(keys.with_both())).await.unwrap();
    copy(dir.path(), &after);
    let names = manager.names();
    manager.stop().await;

    let new_snapshots = |target: &Path| copy(&after.join("raft/snapshots"), &target.join("raft/snapshots"));
    type Build<'a> = Box<dyn Fn(&Path) + 'a>;
    let states: Vec<(&str, Build<'_>)> = vec![
        ("nothing was done", Box::new(|target| copy(&before, target))),
        (
            "the snapshot was written",
            Box::new(|target| {
                copy(&before, target);
                new_snapshots(target);
            }),
        ),
        (
            "the snapshot was half written",
            Box::new(|target| {
                copy(&before, target);
                fs::write(target.join("raft/snapshots/0000000000000001-0000000000000001.tmp"), "x").unwrap();
            }),
        ),
        (
            "the new log was begun",
            Box::new(|target| {
                copy(&before, target);
                new_snapshots(target);
                fs::create_dir(target.join("raft/log-1.tmp")).unwrap();
                let whole = fs::read(after.join("raft/log-1/db")).unwrap();
                fs::write(target.join("raft/log-1.tmp/db"), &whole[..whole.len() / 2]).unwrap();
            }),
        ),
        (
            "the new log was not renamed",
            Box::new(|target| {
                copy(&before, target);
                new_snapshots(target);
                copy(&after.join("raft/log-1"), &target.join("raft/log-1.tmp"));
            }),
        ),
        (
            "the old log was not removed",
            Box::new(|target| {
                copy(&after, target);
                copy(&before.join("raft/log"), &target.join("raft/log"));
                copy(&before.join("raft/snapshots"), &target.join("raft/snapshots"));
                new_snapshots(target);
            }),
        ),
        (
            "the old log was half removed",
            Box::new(|target| {
                copy(&after, target);
                fs::create_dir(target.join("raft/log")).unwrap();
                fs::copy(before.join("raft/log/conf"), target.join("raft/log/conf")).unwrap();
            }),
        ),
        ("the key file was not written", Box::new(|target| copy(&after, target))),
    ];
    for (what, build) in states {
        let target = images.path().join(what);
        build(&target);
        let manager = try_start(with(keys.with_both(), &target)).unwrap_or_else(|e| panic!("{what}: {e}"));
        manager.leads().await;
        assert_eq!(manager.names(), names, "{what}");
        in_time("resealing", manager.raft.reseal(keys.with_both())).await.unwrap();
        assert_eq!(manager.names(), names, "{what}");
        manager.stop().await;
        is_resealed(&keys, &target, &names).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_can_t_be_written_is_tried_again_and_does_no_harm() {
    let (dir, keys) = (tempfile::tempdir().unwrap(), Keys::generate());
    let manager = start(with(keys.with_old(), dir.path())).await;
    manager.write_many(0..10).await;
    // A file where a directory should be: first of the snapshots, then of the new log.
    let (snapshots, aside) = (dir.path().join("raft/snapshots"), dir.path().join("aside"));
    fs::rename(&snapshots, &aside).unwrap();
    fs::write(&snapshots, "").unwrap();
    let error = in_time("resealing", manager.raft.reseal(keys.with_both())).await.unwrap_err().to_string();
    assert!(error.contains("raft/snapshots"), "{error}");
    fs::remove_file(&snapshots).unwrap();
    fs::rename(&aside, &snapshots).unwrap();
    let building = dir.path().join("raft/log-1.tmp");
    fs::write(&building, "").unwrap();
    let error = in_time("resealing", manager.raft.reseal(keys.with_both())).await.unwrap_err().to_string();
    assert!(error.contains("log-1.tmp"), "{error}");
    manager.write_many(10..20).await;
    fs::remove_file(&building).unwrap();
    in_time("resealing", manager.raft.reseal(keys.with_both())).await.unwrap();
    let names = manager.names();
    assert_eq!(names.len(), 20);
    manager.stop().await;
    is_resealed(&keys, dir.path(), &names).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_while_the_key_changes() {
    let (dir, mut keys) = (tempfile::tempdir().unwrap(), Keys::generate());
    let manager = Arc::new(start(with(keys.with_old(), dir.path())).await);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4u64 {
        let manager = manager.clone();
        writers.spawn(async move { manager.write_many(writer * 100..writer * 100 + 50).await });
    }
    for _ in 0..3 {
        in_time("resealing", manager.raft.reseal(keys.with_both())).await.unwrap();
        keys = Keys { old: keys.new.clone(), new: Dek::generate() };
    }
    writers.join_all().await;
    let names = manager.names();
    assert_eq!(names.len(), 200);
    in_time("the end", manager.raft.stop()).await;
    drop(manager);
    let manager = start(with(keys.with_old(), dir.path())).await;
    assert_eq!(manager.names(), names);
    manager.stop().await;
}
