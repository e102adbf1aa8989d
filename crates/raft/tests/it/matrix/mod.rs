//! The crash matrix: a member of a group of three processes ends at every point of its work, as leader and as
//! follower; the others go on, it comes back, and then all hold the same, with every acknowledged write.
//!
//! The members are this test's own executable; see [`program`]. They have real logs and talk over gRPC, and aborting
//! leaves of them what a kill leaves: what they had given to the kernel. `power` adds what a disk would lose.

mod program;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use swarm_api::v1::ClusterSnapshot;
use swarm_pki::{Clock, RootCa};
use swarm_raft::Point;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use self::program::{ADDR, ARMED, DIR, NAME, ORIGIN, origin_of};
use crate::grpc::member;
use crate::power::{Activity, cases};
use crate::support::{PATIENCE, in_time};

const MEMBERS: usize = 3;
/// The signal of an abort.
const ABORTED: i32 = 6;
/// Writes that a point must be passed in.
const MOST_WRITES: u64 = 2_000;

/// A member's process.
struct Process {
    child: Child,
    stdin: ChildStdin,
    answers: mpsc::UnboundedReceiver<String>,
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
}

impl Process {
    /// The next answer that begins with one of these words; `None` if the process ended before.
    async fn answer(&mut self, words: &[&str]) -> Option<String> {
        in_time(&format!("an answer: {words:?}"), async {
            while let Some(line) = self.answers.recv().await {
                if let Some(name) = line.strip_prefix('+') {
                    self.acknowledged.lock().insert(name.to_owned());
                }
                if words.iter().any(|word| line.starts_with(word)) {
                    return Some(line);
                }
            }
            None
        })
        .await
    }

    async fn tell(&mut self, command: &str) {
        // It may have ended; that shows in the answers.
        let _ = self.stdin.write_all(format!("{command}\n").as_bytes()).await;
    }

    async fn ask(&mut self, command: &str, words: &[&str]) -> Option<String> {
        self.tell(command).await;
        self.answer(words).await
    }

    /// It ended by itself, at the point that it was told.
    async fn has_aborted(&mut self) -> bool {
        match self.child.try_wait().unwrap() {
            Some(status) => {
                assert_eq!(status.signal(), Some(ABORTED), "{status}");
                while self.answer(&[]).await.is_some() {}
                true
            }
            None => false,
        }
    }

    async fn kill(&mut self) {
        self.child.kill().await.unwrap();
        while self.answer(&[]).await.is_some() {}
    }
}

/// What a member says of itself.
struct Status {
    leads: bool,
    snapshots: u64,
    entries: u64,
}

struct Matrix {
    dir: tempfile::TempDir,
    addrs: [SocketAddr; MEMBERS],
    members: Vec<Process>,
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
    named: u64,
    /// What was said of the last write that was not acknowledged.
    refused: String,
    /// Raft id of the next member that is added, and never there.
    ghost: u64,
}

/// A loopback address that is no other test's, nor any connection's: who comes back finds its port free.
fn addr(member: usize) -> SocketAddr {
    let host = u32::from_be_bytes([127, 0, 0, 0]) | 3 << 22 | (std::process::id() & 0x3f_fffe);
    SocketAddr::from((std::net::Ipv4Addr::from(host), 4242 + member as u16))
}

fn name(member: usize) -> String {
    format!("m{}", member + 1)
}

impl Matrix {
    async fn new() -> Matrix {
        let dir = tempfile::tempdir().unwrap();
        let root = RootCa::create(Clock::system().now()).unwrap();
        std::fs::write(dir.path().join("root.pem"), root.pem()).unwrap();
        let key = root.signer().unwrap().key_pem();
        std::fs::write(dir.path().join("root.key"), key.expose()).unwrap();
        let mut matrix = Matrix {
            dir,
            addrs: std::array::from_fn(addr),
            members: Vec::new(),
            acknowledged: Arc::default(),
            named: 0,
            refused: String::new(),
            ghost: 100,
        };
        let (first, first_id) = matrix.start(0, "new", "").await;
        matrix.members.push(first.unwrap());
        assert_eq!(matrix.elect(&[0]).await, 0);
        let mut members = vec![member(&name(0), first_id.unwrap(), matrix.addrs[0])];
        for i in 1..MEMBERS {
            let raft_id = i as u64 + 1;
            members.push(member(&name(i), raft_id, matrix.addrs[i]));
            let add = format!("add {raft_id} {} {}", name(i), matrix.addrs[i]);
            let changed = matrix.members[0].ask(&add, &["changed", "unchanged"]).await;
            assert_eq!(changed.as_deref(), Some("changed"));
            let listed = ClusterSnapshot { members: members.clone(), ..ClusterSnapshot::default() };
            let (joined, _) = matrix.start(i, &origin_of(&listed, raft_id), "").await;
            matrix.members.push(joined.unwrap());
        }
        matrix
    }

    /// Starts a member; `None` if it ended at once, as it was told. Also its raft id.
    async fn start(&self, i: usize, origin: &str, armed: &str) -> (Option<Process>, Option<u64>) {
        let log = self.dir.path().join(format!("{}.log", name(i)));
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "matrix::program::member_that_takes_commands", "--nocapture"])
            .env(DIR, self.dir.path())
            .env(NAME, name(i))
            .env(ADDR, self.addrs[i].to_string())
            .env(ORIGIN, origin)
            .env(ARMED, armed)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (sender, answers) = mpsc::unbounded_channel();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(line) = line.strip_prefix('=') {
                    let _ = sender.send(line.to_owned());
                }
            }
        });
        let stdin = child.stdin.take().unwrap();
        let mut process = Process { child, stdin, answers, acknowledged: self.acknowledged.clone() };
        let ready = process.answer(&["ready"]).await;
        let raft_id = ready.as_deref().and_then(|line| line.split_once(' ')?.1.parse().ok());
        (Some(process), raft_id)
    }

    async fn restart(&mut self, i: usize, armed: &str) {
        let (process, raft_id) = self.start(i, "existing", armed).await;
        assert!(raft_id.is_some() || !armed.is_empty(), "{} did not start: {}", name(i), self.log(i));
        self.members[i] = process.unwrap();
    }

    fn log(&self, i: usize) -> String {
        let text = std::fs::read_to_string(self.dir.path().join(format!("{}.log", name(i)))).unwrap();
        let last = text.lines().count().saturating_sub(30);
        text.lines().skip(last).collect::<Vec<_>>().join("\n")
    }

    async fn status(&mut self, i: usize) -> Option<Status> {
        let line = self.members[i].ask("status", &["status"]).await?;
        let mut words = line.split(' ').skip(1);
        let leads = words.next()? == "true";
        let mut numbers = words.map(|word| word.parse().unwrap());
        let (_applied, snapshots, entries) = (numbers.next()?, numbers.next()?, numbers.next()?);
        Some(Status { leads, snapshots, entries })
    }

    /// Lets time pass for some members until one of them leads; its number.
    async fn elect(&mut self, among: &[usize]) -> usize {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            for i in among {
                if self
                    .status(*i)
                    .await
                    .unwrap_or_else(|| panic!("{} ended: {}", name(*i), self.log(*i)))
                    .leads
                {
                    return *i;
                }
            }
            assert!(tokio::time::Instant::now() < end, "nobody leads");
            for i in among {
                self.members[*i].tell("tick 60").await;
            }
            pause().await;
        }
    }

    /// Writes through a member, a few at a time; false if it ended, or did not write all.
    async fn write(&mut self, i: usize, count: usize) -> bool {
        for _ in 0..count {
            self.named += 1;
            let command = format!("write c{:06}", self.named);
            self.members[i].tell(&command).await;
        }
        let mut all = true;
        for _ in 0..count {
            let Some(line) = self.members[i].answer(&["+", "-"]).await else { return false };
            if !line.starts_with('+') {
                all = false;
                self.refused = line;
            }
        }
        all
    }

    /// Writes through whichever of these leads, until all of it is acknowledged: a leader may lose its office meanwhile.
    async fn write_through_one_of(&mut self, among: &[usize], count: usize) -> usize {
        loop {
            let leader = self.elect(among).await;
            if self.write(leader, count).await {
                return leader;
            }
        }
    }

    async fn settings(&mut self, leader: usize, interval: u64, slow: u64) {
        let set = self.members[leader].ask(&format!("settings {interval} {slow}"), &["set"]).await;
        assert!(set.is_some(), "{}", self.log(leader));
    }

    /// All members have the same store, at the same index, with everything that was acknowledged.
    async fn converge(&mut self, case: &str) -> usize {
        let leader = self.elect(&[0, 1, 2]).await;
        let end = tokio::time::Instant::now() + PATIENCE;
        let mut digests = Vec::new();
        while digests.len() != MEMBERS || digests.iter().any(|digest| *digest != digests[0]) {
            assert!(tokio::time::Instant::now() < end, "{case}: {digests:#?}");
            pause().await;
            digests.clear();
            for i in 0..MEMBERS {
                let digest = self.members[i].ask("digest", &["digest"]).await;
                digests.push(digest.unwrap_or_else(|| panic!("{case}: {} ended: {}", name(i), self.log(i))));
            }
        }
        let names = self.members[leader].ask("names", &["names"]).await.unwrap();
        let names: BTreeSet<&str> = names.trim_start_matches("names ").split(',').collect();
        let acknowledged = self.acknowledged.lock();
        let lost: Vec<&String> = acknowledged.iter().filter(|name| !names.contains(name.as_str())).collect();
        assert!(lost.is_empty(), "{case}: {lost:?} of {} are lost", acknowledged.len());
        leader
    }

    /// One cell: a member ends at a point, the others go on, it comes back.
    async fn crash(&mut self, point: Point, activity: Activity, by_leader: bool, spare: u64) {
        let case =
            format!("{point:?} by a {}, {spare} spared", if by_leader { "leader" } else { "follower" });
        let begin = std::time::Instant::now();
        let mut tries = 1;
        while !self.try_to_crash(&case, point, activity, by_leader, spare).await {
            tries += 1;
            assert!(tries < 10, "{case}: no leader stays in office");
        }
        println!("{case}: {:?}", begin.elapsed());
    }

    /// False if another member came to lead, of ticks that were still under way, before the point was passed.
    async fn try_to_crash(
        &mut self,
        case: &str,
        point: Point,
        activity: Activity,
        by_leader: bool,
        spare: u64,
    ) -> bool {
        let mut leader = self.converge(case).await;
        let followers = [(leader + 1) % MEMBERS, (leader + 2) % MEMBERS];
        let victim = match activity {
            Activity::Election => followers[0],
            Activity::Diverged => leader,
            _ if by_leader => leader,
            _ => followers[0],
        };
        let up: Vec<usize> = (0..MEMBERS).filter(|i| *i != victim).collect();
        let armed = format!("{point:?} {spare}");
        let snapshots = if activity == Activity::Snapshots { (7, 2) } else { (0, 0) };
        self.settings(leader, snapshots.0, snapshots.1).await;
        if !matches!(activity, Activity::Catches | Activity::Diverged) {
            let arm = format!("arm {armed}");
            assert!(self.members[victim].ask(&arm, &["armed"]).await.is_some(), "{case}");
        }
        match activity {
            Activity::Writes | Activity::Snapshots => {}
            Activity::Catches => {
                self.members[victim].kill().await;
                self.settings(leader, 3, 0).await;
                let before = self.status(leader).await.unwrap().snapshots;
                assert!(self.write(leader, 20).await, "{case}");
                while self.status(leader).await.unwrap().snapshots == before {
                    pause().await;
                }
                self.restart(victim, &armed).await;
            }
            Activity::Election => {
                self.members[leader].kill().await;
                // One that asks for votes first votes for itself.
                let ticked: &[usize] = if by_leader { &[victim] } else { &followers };
                while !self.members[victim].has_aborted().await {
                    for i in ticked {
                        self.members[*i].tell("tick 60").await;
                    }
                    pause().await;
                }
                self.restart(leader, "").await;
            }
            Activity::Diverged => {
                for i in followers {
                    self.members[i].kill().await;
                }
                let before = self.status(leader).await.unwrap().entries;
                self.members[leader].tell("write lonely").await;
                while self.status(leader).await.unwrap().entries == before {
                    pause().await;
                }
                self.members[leader].kill().await;
                for i in followers {
                    self.restart(i, "").await;
                }
                leader = self.write_through_one_of(&followers, 5).await;
                // It comes back to entries that take the place of its own.
                self.restart(victim, &armed).await;
            }
            Activity::Membership => {
                self.ghost += 1;
                let add = format!("add {} ghost 127.0.0.1:1", self.ghost);
                self.members[leader].tell(&add).await;
            }
            Activity::Reseal => self.members[victim].tell("reseal").await,
        }
        let (limit, end) = (self.named + MOST_WRITES, tokio::time::Instant::now() + PATIENCE);
        while !self.members[victim].has_aborted().await {
            // A new leader refuses what comes before it may write.
            assert!(
                self.named < limit || tokio::time::Instant::now() < end,
                "{case}: the point was never passed; refused last: {}",
                self.refused
            );
            // A ghost and a crash are two of four: nobody answers any more.
            match activity {
                Activity::Membership | Activity::Election => pause().await,
                _ if self.write(leader, 4).await || self.members[victim].has_aborted().await => {}
                _ if self.status(leader).await.is_some_and(|status| !status.leads) => {
                    self.members[victim].kill().await;
                    self.restart(victim, "").await;
                    return false;
                }
                _ => pause().await,
            }
        }
        match activity {
            Activity::Membership | Activity::Election => {}
            _ => {
                self.write_through_one_of(&up, 3).await;
            }
        }
        self.restart(victim, "").await;
        if activity == Activity::Membership {
            leader = self.elect(&[0, 1, 2]).await;
            self.members[leader].tell(&format!("remove {}", self.ghost)).await;
            self.members[leader].answer(&["changed", "unchanged"]).await;
        }
        self.write_through_one_of(&[0, 1, 2], 1).await;
        self.converge(case).await;
        true
    }
}

/// Waits for a moment, in a loop that has a condition.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

async fn crash_everywhere(rounds: impl Iterator<Item = u64>) {
    let mut matrix = Matrix::new().await;
    for spare in rounds {
        for (point, activity, by_leader) in cases() {
            // Other things happen once.
            let often = matches!(activity, Activity::Writes | Activity::Snapshots);
            if spare == 0 || often {
                matrix.crash(point, activity, by_leader, spare).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_at_any_point_all_members_hold_the_same() {
    crash_everywhere(0..1).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long suite"]
async fn long_after_a_crash_at_any_point_all_members_hold_the_same() {
    crash_everywhere([0, 1, 0, 2, 3, 0, 5, 8, 0, 13].into_iter()).await;
}
