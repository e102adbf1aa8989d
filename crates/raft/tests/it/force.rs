//! A new group out of one survivor.

use swarm_api::v1::RaftConfig;
use swarm_raft::{Change, Config, Origin, RaftNode};

use crate::group::{Group, same};
use crate::support::{begin, config, copy, in_time, start};

/// What a crash of member `name` leaves, opened with force.
async fn survive(group: &Group, name: &str, expected: &[String]) {
    let image = tempfile::tempdir().unwrap();
    copy(&group.dir.path().join(name), image.path());
    let (config, _) = group.config(name, Origin::NewGroup);
    let config = Config { state_dir: image.path().to_owned(), force_new_group: true, ..config };
    // Once more with the flag, and once without: the group stays what it is.
    for force_new_group in [true, true, false] {
        let manager = begin(RaftNode::open(Config { force_new_group, ..config.clone() }).unwrap());
        manager.leads().await;
        assert_eq!(manager.names(), expected);
        let membership = manager.raft.membership();
        assert_eq!(membership.len(), 1);
        assert!(membership.by_node_id(name).is_some());
        assert!(
            [1, 2, 3, manager.raft.raft_id()].iter().filter(|id| membership.is_removed(**id)).count() >= 1
        );
        manager.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_can_survive_alone_with_all_that_was_acknowledged() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    let c = group.join(&a, "m3", 3).await;
    a.write_many(0..20).await;
    same(&[&a, &b, &c]).await;
    let names = a.names();
    for name in ["m1", "m2", "m3"] {
        survive(&group, name, &names).await;
    }
    // The same from snapshots instead of entries.
    let settings =
        RaftConfig { snapshot_interval: 5, log_entries_for_slow_followers: 0, ..RaftConfig::default() };
    a.settings(settings).await;
    a.write_many(20..40).await;
    same(&[&a, &b, &c]).await;
    let names = a.names();
    for manager in [a, b, c] {
        crate::support::eventually("a snapshot", || manager.raft.counts().snapshots > 0).await;
        group.stop(manager).await;
    }
    for name in ["m1", "m2", "m3"] {
        survive(&group, name, &names).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_removed_can_not_go_on_alone() {
    let group = Group::new();
    let a = group.first().await;
    let b = group.join(&a, "m2", 2).await;
    same(&[&a, &b]).await;
    in_time("removal", a.raft.change_membership(Change::Remove(2))).await.unwrap();
    in_time("the end", b.raft.ended()).await;
    let (config, _) = group.config("m2", Origin::NewGroup);
    let config = Config { force_new_group: true, ..config };
    let error = RaftNode::open(config).unwrap_err().to_string();
    assert!(error.contains("was removed from the cluster before"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn force_without_a_log_or_without_others_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let force = Config { force_new_group: true, ..config(dir.path()) };
    let manager = start(force.clone()).await;
    manager.write_many(0..3).await;
    let (id, membership) = (manager.raft.raft_id(), manager.raft.membership());
    manager.stop().await;
    let manager = start(force).await;
    assert_eq!(manager.raft.raft_id(), id);
    assert_eq!(manager.names().len(), 3);
    assert_eq!(manager.raft.membership(), membership);
    manager.stop().await;
}
