//! The program of a member: it takes commands on its standard input, one a line, and answers on its standard output.
//! At a point that it was told, it aborts, and so does nothing more of anything.
//!
//! | command | answer |
//! | --- | --- |
//! | `arm POINT SPARE`: abort there, after it was passed so many times | `armed` |
//! | `write NAME` | `+NAME` or `-NAME` |
//! | `settings INTERVAL SLOW`: of snapshots | `set` |
//! | `tick COUNT` | none |
//! | `status` | `status LEADS APPLIED SNAPSHOTS ENTRIES` |
//! | `digest` | `digest INDEX` and a digest of store and membership |
//! | `names` | `names` and all of them |
//! | `add ID NAME ADDR`, `remove ID`: a member | `changed`, `unchanged` |
//! | `reseal`: with another key | `resealed` |

use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use swarm_api::v1::{ClusterSnapshot, RaftConfig};
use swarm_pki::{Clock, Dek, RootCa, Sealer};
use swarm_raft::{Change, Config, Origin, Point, Points, Role};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::grpc::{Host, Lab, member};
use crate::support::in_time;

pub(super) const DIR: &str = "SWARM_RAFT_MEMBER_DIR";
pub(super) const NAME: &str = "SWARM_RAFT_MEMBER_NAME";
pub(super) const ADDR: &str = "SWARM_RAFT_MEMBER_ADDR";
/// `new`, `existing`, or the raft id and the encoded members.
pub(super) const ORIGIN: &str = "SWARM_RAFT_MEMBER_ORIGIN";
/// What [`arm`](self) takes, from the start on; may be empty.
pub(super) const ARMED: &str = "SWARM_RAFT_MEMBER_ARMED";

type Armed = Arc<Mutex<Option<(Point, u64)>>>;

fn parse_armed(words: &str) -> Option<(Point, u64)> {
    let (point, spare) = words.split_once(' ')?;
    Some((Point::named(point).unwrap(), spare.parse().unwrap()))
}

fn points(armed: &Armed) -> Points {
    let armed = armed.clone();
    Points::call(Arc::new(move |point| {
        let mut armed = armed.lock();
        match &mut *armed {
            Some((at, 0)) if *at == point => std::process::abort(),
            Some((at, spare)) if *at == point => *spare -= 1,
            _ => {}
        }
    }))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// The keys of a member's directory, the newest first; stands for its key file.
struct Keys(PathBuf);

impl Keys {
    fn read(&self) -> Vec<Dek> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().map(|line| Dek::from_bytes(&from_hex(line))).collect()
    }

    fn write(&self, keys: &[Dek]) {
        let text: String = keys.iter().map(|key| to_hex(key.expose()) + "\n").collect();
        let temporary = self.0.with_extension("tmp");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(&temporary, &self.0).unwrap();
    }

    fn sealer(&self) -> Arc<Sealer> {
        let keys = self.read();
        Arc::new(Sealer::with_older(&keys[0], &keys[1..]))
    }
}

pub(super) fn origin_of(members: &ClusterSnapshot, raft_id: u64) -> String {
    format!("{raft_id} {}", to_hex(&members.encode_to_vec()))
}

fn parse_origin(text: &str) -> Origin {
    match text.split_once(' ') {
        None if text == "new" => Origin::NewGroup,
        None => Origin::Existing,
        Some((raft_id, members)) => {
            let members = ClusterSnapshot::decode(&*from_hex(members)).unwrap().members;
            Origin::Joined { raft_id: raft_id.parse().unwrap(), members }
        }
    }
}

pub(super) fn load_root(dir: &Path) -> RootCa {
    let [bundle, key] = ["root.pem", "root.key"].map(|name| std::fs::read(dir.join(name)).unwrap());
    RootCa::load(&bundle, Some((&bundle, &key)), &[], Clock::system().now()).unwrap()
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The parent is gone when this fails; so is the reason to go on.
    if writeln!(out, "\n={line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// The lines of the standard input. When that ends, so does the process.
fn commands() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
        std::process::exit(0);
    });
    receiver
}

/// Does nothing in an ordinary test run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_that_takes_commands() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let variable = |name: &str| std::env::var(name).unwrap();
    let name = variable(NAME);
    let lab = Lab::shared(load_root(&dir), dir.clone());
    let keys = Arc::new(Keys(dir.join(format!("{name}.keys"))));
    if keys.read().is_empty() {
        keys.write(&[Dek::generate()]);
    }
    let armed: Armed = Arc::new(Mutex::new(parse_armed(&variable(ARMED))));
    let addr: SocketAddr = variable(ADDR).parse().unwrap();
    let listener = TcpListener::bind(addr).await.unwrap();
    let change = |config| Config { points: points(&armed), sealer: keys.sealer(), ..config };
    let host = Arc::new(lab.start_with(&name, listener, parse_origin(&variable(ORIGIN)), change));
    say(&format!("ready {}", host.manager.raft.raft_id()));
    let mut commands = commands();
    while let Some(line) = commands.recv().await {
        let (command, words) = line.split_once(' ').unwrap_or((&line, ""));
        let (first, second) = words.split_once(' ').unwrap_or((words, ""));
        match command {
            "arm" => {
                *armed.lock() = parse_armed(words);
                say("armed");
            }
            "tick" => (0..first.parse::<u64>().unwrap()).for_each(|_| host.manager.raft.tick()),
            "status" => say(&status(&host)),
            "digest" => say(&digest(&host)),
            "names" => say(&format!("names {}", host.manager.names().join(","))),
            _ => {
                let (host, keys) = (host.clone(), keys.clone());
                let (command, first, second) = (command.to_owned(), first.to_owned(), second.to_owned());
                tokio::spawn(async move { act(&host, &keys, &command, &first, &second).await });
            }
        }
    }
}

/// What takes its time.
async fn act(host: &Host, keys: &Keys, command: &str, first: &str, second: &str) {
    let Host { manager, .. } = host;
    match command {
        "write" => match manager.write_sized(first, 40).await {
            Ok(_) => say(&format!("+{first}")),
            Err(error) => say(&format!("-{first} {error}")),
        },
        "settings" => {
            let (interval, slow) = (first.parse().unwrap(), second.parse().unwrap());
            let raft = RaftConfig {
                snapshot_interval: interval,
                log_entries_for_slow_followers: slow,
                ..RaftConfig::default()
            };
            manager.settings(raft).await;
            say("set");
        }
        "add" | "remove" => {
            let raft_id: u64 = first.parse().unwrap();
            let change = match second.split_once(' ') {
                Some((name, addr)) => Change::Add(member(name, raft_id, addr.parse().unwrap())),
                None => Change::Remove(raft_id),
            };
            let changed = in_time("a change", manager.raft.change_membership(change)).await.is_ok();
            say(if changed { "changed" } else { "unchanged" });
        }
        "reseal" => {
            // One that was interrupted is gone on with.
            if let [only] = keys.read().as_slice() {
                keys.write(&[Dek::generate(), only.clone()]);
            }
            in_time("resealing", manager.raft.reseal(keys.sealer())).await.unwrap();
            let new = keys.read().swap_remove(0);
            keys.write(&[new]);
            say("resealed");
        }
        other => panic!("{other} is no command"),
    }
}

fn status(host: &Host) -> String {
    let raft = &host.manager.raft;
    let leads = raft.status().role == Role::Leader;
    format!("status {leads} {} {} {}", raft.applied_index(), raft.counts().snapshots, raft.counts().entries)
}

/// A digest of the store in its canonical form, which is the contract's encoding: objects in the order of their ids,
/// maps in that of their keys.
fn digest(host: &Host) -> String {
    let view = host.manager.store.view();
    let members: Vec<u64> = host.manager.raft.membership().members().map(|m| m.raft_id).collect();
    let digest = Sha256::digest(view.to_snapshot().encode_to_vec());
    format!("digest {} {} {members:?}", view.index(), to_hex(&digest))
}
