//! The power goes at every point of a member's work, on that member or on all of them at once: what was synced is
//! there afterwards, what was not may be gone, and no acknowledged write is lost.
//!
//! Disks are simulated, so that they lose what was not synced; `matrix` does the same with real processes and disks.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use swarm_api::v1::RaftConfig;
use swarm_raft::storage::{Faults, MemoryDisk};
use swarm_raft::{By, Change, Config, MaskSealer, Origin, Point, Points, RaftNode};
use tokio::task::JoinSet;

use crate::group::{Group, leads, member};
use crate::support::{Manager, eventually, in_time};

/// What makes a member pass a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    Writes,
    Snapshots,
    /// A member that was away gets a snapshot.
    Catches,
    Election,
    /// A leader comes back whose last entries nobody else has.
    Diverged,
    Membership,
    Reseal,
}

/// What makes a member pass this point.
pub(crate) fn activity(point: Point) -> Activity {
    use Point as P;
    match point {
        P::Sent | P::Writing | P::Written | P::Synced | P::MarkWritten | P::MarkSynced => Activity::Writes,
        P::Persisted | P::Answered | P::Applying | P::Applied => Activity::Writes,
        P::Voted => Activity::Election,
        P::MarkLowered => Activity::Diverged,
        P::SnapshotWritten | P::SnapshotSynced | P::SnapshotRenamed | P::SnapshotSaved => Activity::Snapshots,
        P::Compacted | P::CompactionSynced | P::SnapshotsCollected => Activity::Snapshots,
        P::ReceivedSaved | P::ReceivedInstalled | P::ReceivedSynced | P::ReceivedRestored => {
            Activity::Catches
        }
        P::ChangeAppended | P::ChangePersisted | P::ChangeApplying | P::ChangeApplied => Activity::Membership,
        P::ResealBegun | P::ResealCopied | P::ResealRenamed => Activity::Reseal,
        P::ResealSwitched | P::ResealCleaned | P::Resealed => Activity::Reseal,
    }
}

/// Every point with everybody who passes it: the point, what makes it be passed, and if that is the leader.
pub(crate) fn cases() -> Vec<(Point, Activity, bool)> {
    let mut cases = Vec::new();
    for point in Point::ALL.iter().copied() {
        let roles: &[bool] = match point.by() {
            By::Any => &[true, false],
            By::Leader => &[true],
            By::Follower => &[false],
        };
        cases.extend(roles.iter().map(|leader| (point, activity(point), *leader)));
    }
    // Snapshots that a leader sends are written in the same way.
    for point in [Point::SnapshotWritten, Point::SnapshotSynced, Point::SnapshotRenamed] {
        cases.push((point, Activity::Catches, false));
    }
    cases
}

/// These are steps of the log in sled.
fn only_on_real_disks(point: Point) -> bool {
    use Point as P;
    matches!(
        point,
        P::Synced | P::MarkWritten | P::MarkSynced | P::MarkLowered | P::ResealRenamed | P::ResealSwitched
    )
}

const MEMBERS: usize = 3;

/// When, and for whom, the power goes.
struct Outage {
    victim: usize,
    point: Point,
    /// For all members at once.
    everywhere: bool,
    /// So many times the point may be passed before.
    spare: u64,
    rng: StdRng,
}

/// What all members of a group hang on.
struct Power {
    disks: [MemoryDisk; MEMBERS],
    dirs: [PathBuf; MEMBERS],
    next: Mutex<Option<Outage>>,
    out: [AtomicBool; MEMBERS],
}

impl Power {
    fn points(self: &Arc<Power>, member: usize) -> Points {
        let power = self.clone();
        Points::call(Arc::new(move |point| power.passed(member, point)))
    }

    fn passed(&self, member: usize, point: Point) {
        let mut next = self.next.lock();
        if let Some(outage) = next.as_mut().filter(|o| (o.victim, o.point) == (member, point)) {
            match outage.spare.checked_sub(1) {
                Some(left) => outage.spare = left,
                None => next.take().into_iter().for_each(|outage| self.go_out(outage)),
            }
        }
        drop(next);
        if self.out[member].load(Ordering::Acquire) {
            std::panic::resume_unwind(Box::new("no power"));
        }
    }

    fn go_out(&self, Outage { victim, point, everywhere, mut rng, .. }: Outage) {
        for member in (0..MEMBERS).filter(|member| everywhere || *member == victim) {
            self.out[member].store(true, Ordering::Release);
            let gone = Some("no power".to_owned());
            self.disks[member].set_faults(Faults {
                fail_writes: gone.clone(),
                fail_syncs: gone,
                ..Faults::default()
            });
            // The disk may have got some of what it was not told to keep.
            self.disks[member].lose_power_after(rng.random_range(0..3));
        }
        // The file system too: an unfinished file is cut short, and a new name may be gone.
        let files = std::fs::read_dir(self.dirs[victim].join("raft/snapshots")).unwrap();
        let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        match point {
            Point::SnapshotWritten => {
                let file = files.iter().find(|file| file.extension().is_some_and(|e| e == "tmp")).unwrap();
                let length = std::fs::metadata(file).unwrap().len();
                let file = std::fs::File::options().write(true).open(file).unwrap();
                file.set_len(rng.random_range(0..length)).unwrap();
            }
            Point::SnapshotRenamed if rng.random() => {
                std::fs::remove_file(files.last().unwrap()).unwrap();
            }
            _ => {}
        }
    }

    fn is_out(&self, member: usize) -> bool {
        self.out[member].load(Ordering::Acquire)
    }
}

/// A group of three whose power can go.
struct Lab {
    group: Group,
    power: Arc<Power>,
    members: Vec<Manager>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    named: Arc<AtomicU64>,
    /// Writers end.
    enough: Arc<AtomicBool>,
}

const NAMES: [&str; MEMBERS] = ["m1", "m2", "m3"];

impl Lab {
    async fn new() -> Lab {
        let group = Group::new();
        let power = Arc::new(Power {
            disks: Default::default(),
            dirs: NAMES.map(|name| group.dir.path().join(name)),
            next: Mutex::default(),
            out: Default::default(),
        });
        let acknowledged = Arc::default();
        let mut lab = Lab {
            group,
            power,
            members: Vec::new(),
            acknowledged,
            named: Arc::default(),
            enough: Arc::default(),
        };
        let first = lab.start(0, Origin::NewGroup);
        first.leads().await;
        lab.members.push(first);
        for (i, name) in NAMES.iter().enumerate().skip(1) {
            let (leader, raft_id) = (&lab.members[0].raft, i as u64 + 1);
            let change = Change::Add(member(name, raft_id));
            in_time("joining", leader.change_membership(change)).await.unwrap();
            let members = leader.membership().members().cloned().collect();
            let joined = lab.start(i, Origin::Joined { raft_id, members });
            lab.members.push(joined);
        }
        lab
    }

    fn start(&self, i: usize, origin: Origin) -> Manager {
        let (config, port) = self.group.config(NAMES[i], origin);
        let config = Config { points: self.power.points(i), ..config };
        let disk = self.power.disks[i].open();
        self.group.run(RaftNode::open_with(config, Box::new(disk)).unwrap(), &port)
    }

    /// Writes through the leader, several at a time, until the member has no power any more.
    fn write_until_enough(&self, leader: usize) -> JoinSet<()> {
        let mut writers = JoinSet::new();
        for _ in 0..3 {
            let (store, raft) = (self.members[leader].store.clone(), self.members[leader].raft.clone());
            let (acknowledged, named) = (self.acknowledged.clone(), self.named.clone());
            let enough = self.enough.clone();
            writers.spawn(async move {
                let manager = Manager { store, raft };
                while !enough.load(Ordering::Relaxed) {
                    let number = named.fetch_add(1, Ordering::Relaxed);
                    if number > 300 {
                        // It is at something that takes its time.
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    let name = format!("c{number:05}");
                    match manager.write_sized(&name, 10).await {
                        Ok(_) => acknowledged.lock().push(name),
                        Err(_) => return,
                    }
                }
            });
        }
        writers
    }

    /// Lets time pass until one of these leads; its number.
    async fn elect(&self, among: &[usize]) -> usize {
        let mut found = None;
        eventually("a leader", || {
            found = among.iter().copied().find(|i| leads(&self.members[*i]));
            if found.is_none() {
                among.iter().for_each(|i| (0..100).for_each(|_| self.members[*i].raft.tick()));
            }
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// All hold the same, under a leader.
    async fn converge(&self) {
        in_time("all managers to be equal", async {
            loop {
                self.elect(&[0, 1, 2]).await;
                let first = &self.members[0];
                let equal = self.members.iter().all(|m| {
                    m.store.view().to_snapshot() == first.store.view().to_snapshot()
                        && m.raft.membership().len() == MEMBERS
                        && m.raft.applied_index() == first.raft.applied_index()
                });
                if equal {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// Writes through whichever of these leads, which may change meanwhile.
    async fn write(&self, among: &[usize], name: &str) {
        for attempt in 0.. {
            let leader = self.elect(among).await;
            let name = format!("{name}-{attempt}");
            if self.members[leader].write_sized(&name, 10).await.is_ok() {
                self.acknowledged.lock().push(name);
                return;
            }
        }
    }
}

fn settings(snapshot_interval: u64, slow: u64) -> RaftConfig {
    RaftConfig { snapshot_interval, log_entries_for_slow_followers: slow, ..RaftConfig::default() }
}

/// The raft id of a member that is never there.
const GHOST: u64 = 99;

async fn power_goes(point: Point, activity: Activity, by_leader: bool, seed: u64) {
    let seed = seed << 8 | (point as u64) << 1 | u64::from(by_leader);
    let mut rng = StdRng::seed_from_u64(seed);
    let everywhere = rng.random();
    let spare = match activity {
        Activity::Writes => rng.random_range(0..20),
        Activity::Snapshots => rng.random_range(0..2),
        _ => 0,
    };
    let mut lab = Lab::new().await;
    let victim = usize::from(!by_leader || activity == Activity::Election);
    let (leader, other) = (0, 2);
    lab.members[leader]
        .settings(if activity == Activity::Snapshots {
            settings(7, rng.random_range(0..4))
        } else {
            settings(0, 0)
        })
        .await;
    lab.write(&[leader], "first").await;
    lab.converge().await;
    let arm = |lab: &Lab| {
        let rng = StdRng::seed_from_u64(seed);
        let outage = Outage { victim, point, everywhere, spare, rng };
        *lab.power.next.lock() = Some(outage);
    };

    let mut running = JoinSet::new();
    match activity {
        Activity::Writes | Activity::Snapshots => {
            arm(&lab);
            running = lab.write_until_enough(leader);
        }
        Activity::Catches => {
            lab.group.cut_off(&lab.members[victim], true);
            lab.members[leader].settings(settings(3, 0)).await;
            let before = lab.members[leader].raft.counts().snapshots;
            for i in 0..20 {
                lab.write(&[leader], &format!("away{i}")).await;
            }
            let raft = &lab.members[leader].raft;
            eventually("a snapshot", || raft.counts().snapshots > before).await;
            arm(&lab);
            lab.group.cut_off(&lab.members[victim], false);
            running = lab.write_until_enough(leader);
        }
        Activity::Election => {
            lab.group.cut_off(&lab.members[leader], true);
            arm(&lab);
            // One that asks for votes first votes for itself.
            let ticked: &[usize] = if by_leader { &[victim] } else { &[victim, other] };
            eventually("an election", || {
                ticked.iter().for_each(|i| (0..100).for_each(|_| lab.members[*i].raft.tick()));
                lab.power.is_out(victim)
            })
            .await;
            lab.group.cut_off(&lab.members[leader], false);
        }
        Activity::Membership => {
            arm(&lab);
            let raft = lab.members[leader].raft.clone();
            running = lab.write_until_enough(leader);
            running.spawn(async move {
                let _ = raft.change_membership(Change::Add(member("ghost", GHOST))).await;
            });
        }
        Activity::Reseal => {
            arm(&lab);
            let raft = lab.members[victim].raft.clone();
            running = lab.write_until_enough(leader);
            running.spawn(async move {
                let _ = raft.reseal(Arc::new(MaskSealer(7))).await;
            });
        }
        Activity::Diverged => unreachable!("passed on real disks only"),
    }
    eventually("the power to go", || lab.power.is_out(victim)).await;
    lab.enough.store(true, Ordering::Relaxed);

    // Who has no power any more ends, if only because it is asked to.
    let down: Vec<usize> = (0..MEMBERS).filter(|i| everywhere || *i == victim).collect();
    for i in &down {
        lab.group.forget(&lab.members[*i]);
        in_time("the end", lab.members[*i].raft.stop()).await;
        lab.members[*i].store.close();
    }
    let up: Vec<usize> = (0..MEMBERS).filter(|i| !down.contains(i)).collect();
    let ghost = lab.members[other].raft.membership().get(GHOST).is_some();
    // A member that is never there makes a quorum of three.
    if !everywhere && !ghost && activity != Activity::Membership {
        lab.write(&up, "meanwhile").await;
    }
    for i in down {
        lab.power.out[i].store(false, Ordering::Release);
        lab.power.disks[i].set_faults(Faults::default());
        lab.members[i] = lab.start(i, Origin::Existing);
    }
    in_time("the writers", running.join_all()).await;

    let all: Vec<usize> = (0..MEMBERS).collect();
    lab.write(&all, "last").await;
    in_time("the removal", async {
        loop {
            let raft = &lab.members[lab.elect(&all).await].raft;
            let there = raft.membership().get(GHOST).is_some();
            if !there || raft.change_membership(Change::Remove(GHOST)).await.is_ok() {
                break;
            }
        }
    })
    .await;
    lab.converge().await;
    let lost: Vec<String> =
        lab.acknowledged.lock().iter().filter(|name| !lab.members[0].has(name)).cloned().collect();
    assert!(lost.is_empty(), "{lost:?} were acknowledged and are lost");
    for manager in std::mem::take(&mut lab.members) {
        lab.group.stop(manager).await;
    }
}

async fn power_goes_everywhere(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        for (point, activity, leader) in cases() {
            if only_on_real_disks(point) {
                continue;
            }
            let case = format!("{point:?} by a {}, seed {seed}", if leader { "leader" } else { "follower" });
            println!("{case}");
            let begin = std::time::Instant::now();
            power_goes(point, activity, leader, seed).await;
            println!("    {:?}", begin.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_write_is_lost_wherever_the_power_goes() {
    power_goes_everywhere(0..2).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long suite"]
async fn long_no_acknowledged_write_is_lost_wherever_the_power_goes() {
    power_goes_everywhere(2..200).await;
}
