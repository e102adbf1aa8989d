//! A process that writes is killed at random points, again and again; every write that it had acknowledged is
//! there when it starts again.
//!
//! The child is this test's own executable, told by an environment variable what to do. It says `+name` on its
//! standard output for each acknowledged write, and first of all `=names`, what it found.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use swarm_api::v1::RaftConfig;

use crate::support::{config, start};

const DIR: &str = "SWARM_RAFT_CRASH_DIR";
const ROUND: &str = "SWARM_RAFT_CRASH_ROUND";
const KILLS: u64 = 55;

/// The child: writes with eight writers until it is killed. Does nothing in an ordinary test run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_writes_until_it_is_killed() {
    let (Some(dir), Ok(round)) = (std::env::var_os(DIR), std::env::var(ROUND)) else { return };
    let manager = Arc::new(start(config(Path::new(&dir))).await);
    say(&format!("={}", manager.names().join(",")));
    manager
        .settings(RaftConfig {
            snapshot_interval: 200,
            log_entries_for_slow_followers: 20,
            ..RaftConfig::default()
        })
        .await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let (manager, round) = (manager.clone(), round.clone());
        writers.spawn(async move {
            for i in 0.. {
                let name = format!("{round}-{writer}-{i}");
                let large = writer == 0 && i == 3 && round.ends_with('0');
                let size = if large { 300_000 } else { 50 };
                manager.write_sized(&name, size).await.unwrap();
                say(&format!("+{name}"));
            }
        });
    }
    writers.join_all().await;
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The parent is gone when this fails; so is the reason to go on.
    if writeln!(out, "\n{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Runs the child until it has acknowledged so many writes and then for a moment more, kills it, and returns what it
/// found and what it acknowledged.
fn run(dir: &Path, round: u64, writes: usize, moment: Duration) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child_that_writes_until_it_is_killed", "--nocapture"])
        .env(DIR, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut found, mut acknowledged) = (None, BTreeSet::new());
    for line in lines.by_ref().map_while(Result::ok) {
        if let Some(names) = line.strip_prefix('=') {
            found = Some(names.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect());
        } else if let Some(name) = line.strip_prefix('+') {
            acknowledged.insert(name.to_owned());
        }
        if found.is_some() && acknowledged.len() >= writes {
            break;
        }
    }
    let begin = Instant::now();
    while begin.elapsed() < moment {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    // What it had said before it died counts.
    let rest = lines.map_while(Result::ok).filter_map(|l| l.strip_prefix('+').map(str::to_owned));
    acknowledged.extend(rest);
    let output = child.wait_with_output().unwrap();
    let found =
        found.unwrap_or_else(|| panic!("it did not start: {}", String::from_utf8_lossy(&output.stderr)));
    (found, acknowledged)
}

#[test]
fn every_acknowledged_write_survives_being_killed() {
    kill(KILLS);
}

#[test]
#[ignore = "long suite"]
fn long_every_acknowledged_write_survives_being_killed_a_thousand_times() {
    kill(1_000);
}

fn kill(kills: u64) {
    let dir = tempfile::tempdir().unwrap();
    let seed: u64 = rand::random();
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let mut acknowledged = BTreeSet::new();
    for round in 0..=kills {
        // Counted in writes, so that neither a fast nor a slow disk makes this a test of little.
        let writes = if round % 8 == 0 { 0 } else { rng.random_range(1..100) };
        let moment = Duration::from_micros(rng.random_range(0..4_000));
        let (found, new) = run(dir.path(), round, writes, moment);
        let missing: Vec<&String> = acknowledged.difference(&found).collect();
        assert!(
            missing.is_empty(),
            "seed {seed}, round {round}: {missing:?} of {} are gone",
            acknowledged.len()
        );
        acknowledged.extend(new);
    }
    assert!(
        acknowledged.len() as u64 >= kills - kills / 8,
        "it hardly wrote anything: {}",
        acknowledged.len()
    );
}
