//! Starting again on what is on disk, and refusing to.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use swarm_api::v1::RaftConfig;
use swarm_raft::{Config, MaskSealer, Outcome};

use crate::support::{Manager, config, copy, eventually, in_time, snapshot_files, start, try_start};

fn settings(snapshot_interval: u64, keep_old_snapshots: u64, slow: u64) -> RaftConfig {
    RaftConfig {
        snapshot_interval,
        keep_old_snapshots,
        log_entries_for_slow_followers: slow,
        ..RaftConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_manager_has_its_data_and_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    let id = manager.raft.raft_id();
    manager.write_many(0..30).await;
    let view = manager.store.view();
    manager.stop().await;
    for _ in 0..3 {
        let manager = start(config(dir.path())).await;
        assert_eq!(manager.raft.raft_id(), id);
        assert_eq!(manager.store.view().to_snapshot(), view.to_snapshot());
        assert_eq!(manager.raft.membership().len(), 1);
        manager.stop().await;
    }
}

/// One snapshot is taken after the other, however long that takes; returns how many objects there are then.
async fn write_until_snapshots(manager: &Manager, written: usize, snapshots: u64) -> usize {
    let mut written = written;
    in_time("snapshots", async {
        while manager.raft.counts().snapshots < snapshots {
            manager.write(&format!("x{written}")).await;
            written += 1;
        }
    })
    .await;
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_replace_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    manager.settings(settings(9, 0, 3)).await;
    write_until_snapshots(&manager, 0, 3).await;
    in_time("a compacted log", async {
        while manager.raft.entries(0, u64::MAX, u64::MAX).await.unwrap().len() >= 20 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    eventually("one snapshot file", || snapshot_files(dir.path()).len() == 1).await;
    let before = manager.names();
    manager.stop().await;

    let manager = start(config(dir.path())).await;
    assert_eq!(manager.names(), before);
    assert_eq!(manager.raft.membership().len(), 1);
    manager.write("after").await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_settings_hold_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    manager.settings(settings(0, 0, 0)).await;
    manager.write_many(0..40).await;
    assert_eq!(manager.raft.counts().snapshots, 0);
    manager.settings(settings(5, 2, 0)).await;
    let written = write_until_snapshots(&manager, 40, 4).await;
    eventually("two old snapshots", || snapshot_files(dir.path()).len() == 3).await;
    manager.stop().await;
    assert_eq!(start(config(dir.path())).await.names().len(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_snapshot_is_put_aside_for_an_older_one_if_the_log_allows() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    manager.settings(settings(10, 1, 1000)).await;
    let written = manager
        .write_until("two snapshots", || {
            manager.raft.counts().snapshots >= 2 && snapshot_files(dir.path()).len() == 2
        })
        .await;
    manager.stop().await;
    // All but the oldest: beside the one that the log begins from there may be one that was not taken over in time.
    for newer in &snapshot_files(dir.path())[1..] {
        fs::write(dir.path().join("raft/snapshots").join(newer), b"garbage").unwrap();
    }

    let manager = start(config(dir.path())).await;
    assert_eq!(manager.names().len(), written);
    assert!(snapshot_files(dir.path()).iter().any(|f| f.ends_with(".snap.broken")));
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_snapshot_a_compacted_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    manager.settings(settings(5, 0, 0)).await;
    manager.write_many(0..20).await;
    eventually("a snapshot", || manager.raft.counts().snapshots >= 1).await;
    manager.stop().await;
    for file in snapshot_files(dir.path()) {
        fs::remove_file(dir.path().join("raft/snapshots").join(file)).unwrap();
    }
    let error = refused(config(dir.path()));
    assert!(error.contains(".snap"), "{error}");
}

fn refused(config: Config) -> String {
    match try_start(config) {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_original_s_directory_is_refused_and_left_alone() {
    for name in ["wal-v3-encrypted", "wal-v3", "wal"] {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("raft").join(name);
        fs::create_dir_all(&wal).unwrap();
        fs::write(wal.join("0.wal"), b"theirs").unwrap();
        let error = refused(config(dir.path()));
        assert!(error.contains(name) && error.contains("join the cluster as a new manager"), "{error}");
        let left: Vec<_> = fs::read_dir(dir.path().join("raft")).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing was added");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_or_another_node_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    manager.write("a").await;
    manager.stop().await;
    let error = refused(Config { sealer: Arc::new(MaskSealer(8)), ..config(dir.path()) });
    assert!(error.contains("another data encryption key"), "{error}");
    let error = refused(Config { node_id: "node-2".into(), ..config(dir.path()) });
    assert!(error.contains("belongs to node node-1, not to this node (node-2)"), "{error}");
    assert!(start(config(dir.path())).await.has("a"), "neither did any harm");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_does_not_reach_its_watermark_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let old = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    manager.write_many(0..5).await;
    manager.stop().await;
    copy(&dir.path().join("raft/log"), old.path());
    let manager = start(config(dir.path())).await;
    manager.write_many(5..9).await;
    manager.stop().await;

    // The log is gone as a whole, with or without the snapshots of it.
    fs::rename(dir.path().join("raft/log"), dir.path().join("aside")).unwrap();
    let error = refused(config(dir.path()));
    assert!(error.contains("it is empty, but entry"), "{error}");
    fs::remove_dir_all(dir.path().join("raft/log")).unwrap();
    fs::rename(dir.path().join("aside"), dir.path().join("raft/log")).unwrap();
    // As is its file alone.
    fs::rename(dir.path().join("raft/log/db"), dir.path().join("aside")).unwrap();
    let error = refused(config(dir.path()));
    assert!(error.contains("raft/log is"), "{error}");
    fs::rename(dir.path().join("aside"), dir.path().join("raft/log/db")).unwrap();

    // The log goes back to what it was, as a disk that lied, or sled after a damaged record, would have it.
    fs::remove_dir_all(dir.path().join("raft/log")).unwrap();
    copy(old.path(), &dir.path().join("raft/log"));
    let error = refused(config(dir.path()));
    assert!(error.contains("incomplete: it ends at entry"), "{error}");
    assert!(error.contains("raft/watermark"), "it names the file that knows better: {error}");
    fs::remove_file(dir.path().join("raft/watermark")).unwrap();
    let error = refused(config(dir.path()));
    assert!(error.contains("how far it should reach is unknown"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_cut_short_or_damaged_is_never_started_from() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    for i in 0..40 {
        manager.write_sized(&format!("c{i}"), 2000).await.unwrap();
    }
    let written = manager.names();
    manager.stop().await;
    let whole = fs::read(dir.path().join("raft/log/db")).unwrap();
    let content = whole.iter().rposition(|b| *b != 0).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    for step in 1..12 {
        let at = content * step / 12;
        for damage in ["flip", "cut"] {
            let target = scratch.path().join(format!("{damage}-{step}"));
            copy(&dir.path().join("raft"), &target.join("raft"));
            let mut bytes = whole.clone();
            match damage {
                "flip" => bytes[at] ^= 0x5a,
                _ => bytes.truncate(at),
            }
            fs::write(target.join("raft/log/db"), bytes).unwrap();
            // Either it says what is wrong, or the damage was in no place that matters and nothing is missing.
            match try_start(config(&target)) {
                Err(error) => assert!(!error.to_string().is_empty()),
                Ok(manager) => {
                    manager.leads().await;
                    assert_eq!(manager.names(), written, "{damage} at {at}");
                    manager.stop().await;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_address_is_told_to_the_group() {
    let dir = tempfile::tempdir().unwrap();
    start(config(dir.path())).await.stop().await;
    let moved = Config { addr: "10.1.2.3:4242".into(), ..config(dir.path()) };
    let manager = start(moved).await;
    let own = manager.raft.raft_id();
    eventually("the new address", || {
        manager.raft.membership().get(own).is_some_and(|m| m.addr == "10.1.2.3:4242")
    })
    .await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_can_t_be_applied_is_told_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start(config(dir.path())).await;
    manager.write("a").await;
    let ticket = swarm_store::Ticket { epoch: u64::MAX, number: u64::MAX };
    manager.raft.proposer().propose(ticket, bytes::Bytes::from_static(&[0xff, 0xff])).unwrap();
    eventually("the divergence", || manager.raft.status().diverged).await;
    assert_eq!(manager.raft.counts().failed, 1);
    let ended = tokio::time::timeout(std::time::Duration::from_millis(50), manager.raft.ended()).await;
    assert!(ended.is_err(), "the node goes on");
    let outcome = in_time("the end", manager.raft.stop()).await;
    assert!(matches!(outcome, Outcome::Stopped));
}
