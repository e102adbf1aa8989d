//! Members that fetch the group's state before they join, and what is left of one that ends on the way.

use std::path::PathBuf;
use std::sync::Arc;

use swarm_api::v1::{RaftConfig, StoreSnapshot};
use swarm_raft::{Change, Config, Error, FetchError, Fetched, MaskSealer, Origin, RaftNode, Role};
use swarm_store::Store;
use tokio::net::TcpListener;
use tonic::Code;

use crate::grpc::{Host, Lab, member, same};
use crate::support::{config, eventually, in_time};

/// A snapshot every few entries, and nothing left behind it.
fn often() -> RaftConfig {
    RaftConfig { snapshot_interval: 5, log_entries_for_slow_followers: 0, ..RaftConfig::default() }
}

/// A member whose log does not reach back to its first entry.
async fn compacted(lab: &Lab) -> Host {
    let leader = lab.first().await;
    leader.manager.settings(often()).await;
    compact(&leader, "old").await;
    leader
}

async fn compact(leader: &Host, name: &str) {
    let before = leader.manager.write(name).await;
    let mut written = 0;
    in_time("a compacted log", async {
        // Those that there are begin behind what was there before.
        let first =
            async || leader.manager.raft.entries(0, u64::MAX, u64::MAX).await.unwrap().first().map(|e| e.0);
        while first().await.is_some_and(|first| first <= before) {
            leader.manager.write_sized(&format!("{name}{written}"), 2000).await.unwrap();
            written += 1;
        }
    })
    .await;
}

/// A manager that is about to join.
struct Joiner<'a> {
    lab: &'a Lab,
    name: &'static str,
    raft_id: u64,
    store: Arc<Store>,
}

impl<'a> Joiner<'a> {
    fn new(lab: &'a Lab, name: &'static str, raft_id: u64) -> Joiner<'a> {
        Joiner { lab, name, raft_id, store: Store::new() }
    }

    fn config(&self) -> Config {
        Config { node_id: self.name.into(), ..config(&self.lab.dir.join(self.name)) }
    }

    async fn fetch(&self, from: &Host) -> Result<Fetched, FetchError> {
        let channel = self.lab.dialer(self.name).1.channel(&from.addr.to_string()).unwrap();
        in_time("the state", Fetched::fetch(channel, &self.config(), self.store.clone(), |_| Ok(()))).await
    }

    /// Is added to the group; its listener, and how it begins.
    async fn join(&self, leader: &Host) -> (TcpListener, Origin) {
        let listener = self.lab.listen().await;
        let change = Change::Add(member(self.name, self.raft_id, listener.local_addr().unwrap()));
        in_time("joining", leader.manager.raft.change_membership(change)).await.unwrap();
        let members = leader.manager.raft.membership().members().cloned().collect();
        (listener, Origin::Joined { raft_id: self.raft_id, members })
    }

    fn start(self, listener: TcpListener, origin: Origin, fetched: Option<Fetched>) -> Host {
        let Joiner { lab, name, store, .. } = self;
        lab.start_on(name, listener, origin, store, |config| Config { fetched, ..config })
    }

    fn snapshots(&self) -> PathBuf {
        self.lab.dir.join(self.name).join("raft/snapshots")
    }

    fn files(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.snapshots()).unwrap();
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn received(host: &Host) -> u64 {
    host.manager.raft.counts().received
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_fetched_the_state_needs_only_the_entries_that_followed() {
    let lab = Lab::new();
    let a = compacted(&lab).await;
    let joiner = Joiner::new(&lab, "m2", 2);
    let fetched = joiner.fetch(&a).await.unwrap();
    assert_eq!(fetched.from(), a.manager.raft.raft_id());
    assert_eq!(joiner.store.view().to_snapshot(), a.manager.store.view().to_snapshot());
    // Snapshots are taken meanwhile, but what follows stays.
    let snapshots = a.manager.raft.counts().snapshots;
    a.manager.write_until("more snapshots", || a.manager.raft.counts().snapshots > snapshots + 2).await;
    let (listener, origin) = joiner.join(&a).await;
    let b = joiner.start(listener, origin, Some(fetched));
    same(&[&a, &b]).await;
    assert_eq!(received(&b), 0);

    // The next one, while the second is needed for the quorum.
    let joiner = Joiner::new(&lab, "m3", 3);
    let fetched = joiner.fetch(&a).await.unwrap();
    a.manager.write("meanwhile").await;
    let (listener, origin) = joiner.join(&a).await;
    let c = joiner.start(listener, origin, Some(fetched));
    same(&[&a, &b, &c]).await;
    assert_eq!(received(&c), 0);

    // They are members like all others.
    in_time("the transfer", a.manager.raft.transfer_leadership(Some(3))).await.unwrap();
    c.manager.leads().await;
    c.manager.write("by the third").await;
    same(&[&a, &b, &c]).await;
    b.stop().await;
    let b = lab.start("m2", lab.listen().await, Origin::Existing).await;
    let moved = Change::Update(member("m2", 2, b.addr));
    in_time("the move", c.manager.raft.change_membership(moved)).await.unwrap();
    same(&[&a, &b, &c]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_when_the_entries_are_gone_gets_a_snapshot() {
    let lab = Lab::new();
    let a = compacted(&lab).await;
    let joiner = Joiner::new(&lab, "m2", 2);
    let fetched = joiner.fetch(&a).await.unwrap();
    a.stop().await;
    // It does not remember whom it kept entries for.
    let a = lab.start("m1", lab.listen().await, Origin::Existing).await;
    a.manager.leads().await;
    let (own, addr) = (a.manager.raft.raft_id(), a.addr.to_string());
    eventually("its address", || a.manager.raft.membership().get(own).is_some_and(|m| m.addr == addr)).await;
    compact(&a, "new").await;
    let (listener, origin) = joiner.join(&a).await;
    let b = joiner.start(listener, origin, Some(fetched));
    same(&[&a, &b]).await;
    // A leader that hears nothing of the first one for long sends another.
    assert!(received(&b) >= 1);
    a.manager.write("afterwards").await;
    same(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_lead_says_who_does_and_others_do_not_know_the_call() {
    let lab = Lab::new();
    let a = compacted(&lab).await;
    let b = lab.join(&a, "m2", 2).await;
    same(&[&a, &b]).await;
    eventually("a leader", || b.manager.raft.status().leader != 0).await;
    let joiner = Joiner::new(&lab, "m3", 3);
    match joiner.fetch(&b).await.unwrap_err() {
        FetchError::Call(status) => {
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            assert!(status.message().contains(&format!("manager m1 at {} leads", a.addr)), "{status}");
        }
        other => panic!("{other}"),
    }
    let foreign = Lab::foreign();
    let a = compacted(&foreign).await;
    let joiner = Joiner::new(&foreign, "m2", 2);
    let error = joiner.fetch(&a).await.unwrap_err();
    assert!(matches!(&error, FetchError::Call(s) if s.code() == Code::Unimplemented), "{error}");
    let (listener, origin) = joiner.join(&a).await;
    let b = joiner.start(listener, origin, None);
    same(&[&a, &b]).await;
    assert!(received(&b) >= 1, "the old way");
}

#[tokio::test(flavor = "multi_thread")]
async fn state_of_another_cluster_is_not_taken() {
    let (lab, other) = (Lab::new(), Lab::new());
    let a = compacted(&lab).await;
    let joiner = Joiner::new(&lab, "m2", 2);
    // The certificates do not fit.
    let channel = other.dialer("m2").1.channel(&a.addr.to_string()).unwrap();
    let config = joiner.config();
    let fetch = Fetched::fetch(channel, &config, joiner.store.clone(), |_| Ok(()));
    let error = in_time("the refusal", fetch).await.unwrap_err();
    assert!(matches!(error, FetchError::Call(_)), "{error}");
    // What is in it does not.
    let channel = lab.dialer("m2").1.channel(&a.addr.to_string()).unwrap();
    let refuse = |state: &StoreSnapshot| Err(format!("it holds cluster {}", state.clusters[0].id));
    let fetch = Fetched::fetch(channel, &config, joiner.store.clone(), refuse);
    let error = in_time("the refusal", fetch).await.unwrap_err();
    assert!(matches!(&error, FetchError::Refused(reason) if reason == "it holds cluster cluster"), "{error}");
    assert_eq!(joiner.store.view().index(), 0, "the store was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ends_before_the_first_write_has_no_log_and_nothing_of_what_was_fetched() {
    let lab = Lab::new();
    let a = compacted(&lab).await;
    let joiner = Joiner::new(&lab, "m2", 2);
    let fetched = joiner.fetch(&a).await.unwrap();
    assert_eq!(joiner.files().len(), 1);
    // A group that who gave it does not belong to is another one.
    let origin = Origin::Joined { raft_id: 2, members: vec![member("m9", 9, a.addr)] };
    let lost = Config { origin, fetched: Some(fetched), ..joiner.config() };
    let error = RaftNode::open(lost).unwrap_err();
    assert!(matches!(&error, Error::Fetched(reason) if reason.contains("no member of the group")), "{error}");
    assert!(error.to_string().contains("Start this manager again"), "{error}");

    let error = RaftNode::open(Config { origin: Origin::Existing, ..joiner.config() }).unwrap_err();
    assert!(matches!(error, Error::NoLog { .. }), "{error}");
    assert_eq!(joiner.files(), [""; 0]);
    // So it fetches it again; what is left of an earlier attempt does not matter.
    std::fs::write(joiner.snapshots().join("0000000000000001-0000000000000001.fetched"), b"half").unwrap();
    let joiner = Joiner::new(&lab, "m2", 2);
    let fetched = joiner.fetch(&a).await.unwrap();
    assert_eq!(joiner.files().len(), 1);
    let (listener, origin) = joiner.join(&a).await;
    let b = joiner.start(listener, origin, Some(fetched));
    same(&[&a, &b]).await;
    assert_eq!(received(&b), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ends_after_the_first_write_goes_on_from_what_was_fetched() {
    let lab = Lab::new();
    let a = compacted(&lab).await;
    let joiner = Joiner::new(&lab, "m2", 2);
    let fetched = joiner.fetch(&a).await.unwrap();
    let (listener, origin) = joiner.join(&a).await;
    drop(
        RaftNode::open(Config { origin: origin.clone(), fetched: Some(fetched), ..joiner.config() }).unwrap(),
    );
    assert!(joiner.files().iter().all(|file| file.ends_with(".snap")), "{:?}", joiner.files());
    // There is nothing to be fetched for who has a log.
    let third = Joiner::new(&lab, "m3", 3);
    let other = third.fetch(&a).await.unwrap();
    let again = Config { origin, fetched: Some(other), ..joiner.config() };
    assert!(matches!(RaftNode::open(again).unwrap_err(), Error::Fetched(_)));

    let other_key = Config { sealer: Arc::new(MaskSealer(9)), origin: Origin::Existing, ..joiner.config() };
    assert!(matches!(RaftNode::open(other_key).unwrap_err(), Error::WrongKey { .. }));
    let b = lab.start("m2", listener, Origin::Existing).await;
    same(&[&a, &b]).await;
    assert_eq!(received(&b), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ends_right_after_the_first_write_finds_what_its_log_names() {
    let lab = Lab::new();
    let a = compacted(&lab).await;
    let joiner = Joiner::new(&lab, "m2", 2);
    let fetched = joiner.fetch(&a).await.unwrap();
    let (listener, origin) = joiner.join(&a).await;
    let files = joiner.files();
    drop(RaftNode::open(Config { origin, fetched: Some(fetched), ..joiner.config() }).unwrap());
    // The log is written, and the file does not have its name.
    let [named] = &joiner.files()[..] else { panic!("{:?}", joiner.files()) };
    std::fs::rename(joiner.snapshots().join(named), joiner.snapshots().join(&files[0])).unwrap();
    let b = lab.start("m2", listener, Origin::Existing).await;
    same(&[&a, &b]).await;
    assert_eq!(received(&b), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_the_others_does_not_lead_with_what_was_fetched() {
    let lab = Lab::new();
    let a = compacted(&lab).await;
    let joiner = Joiner::new(&lab, "m2", 2);
    let fetched = joiner.fetch(&a).await.unwrap();
    let (listener, origin) = joiner.join(&a).await;
    a.stop().await;
    let b = joiner.start(listener, origin, Some(fetched));
    b.manager.raft.campaign();
    let before = b.manager.raft.ticks_without_leader();
    eventually("time to pass", || b.manager.raft.ticks_without_leader() > before + 20).await;
    assert_eq!(b.manager.raft.status().role, Role::Follower);
    assert_eq!(b.manager.raft.status().leader, 0);
}
