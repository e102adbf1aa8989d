//! Clients of real managers that die and freeze: one order of all calls explains what they were told.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::linear::{self, Anomaly, Answer, Call, Clients, ControlDoor, Door, Load, Seen};
use swarm_testkit::quorum::{PATIENCE, same};
use swarm_testkit::wait::until;
use swarm_tests::with_logs;

const ALL: [&str; 3] = ["manager", "manager-2", "manager-3"];

fn sockets(cluster: &Cluster) -> Vec<PathBuf> {
    ALL.iter().map(|name| cluster.socket_of(name)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_are_told_is_linearizable_while_managers_die_and_freeze() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    for _ in 0..2 {
        cluster.add_manager().await?;
    }
    let result = killed_and_frozen(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn killed_and_frozen(cluster: &mut Cluster) -> Result<()> {
    // Whoever asks one that is frozen loses this much time.
    let deadline = Duration::from_secs(2);
    let clients = Clients::start(&sockets(cluster), Load { seed: 1, deadline, ..Load::default() });
    clients.progress(100).await?;
    // The leader dies, the others go on, and it comes back.
    let first = cluster.last_leader()?.name.clone();
    cluster.daemon_mut(&first)?.kill()?;
    clients.progress(100).await?;
    cluster.daemon_mut(&first)?.start().await?;
    clients.progress(100).await?;
    // The next one freezes until another one leads and has written. It wakes with calls in its hands that it takes
    // itself for the leader of.
    let second = cluster.last_leader()?.name.clone();
    cluster.daemon_named(&second)?.pause()?;
    until("another one to lead", PATIENCE, || async {
        ensure!(cluster.last_leader()?.name != second, "{second} leads");
        Ok(())
    })
    .await?;
    clients.progress(15).await?;
    cluster.daemon_named(&second)?.resume()?;
    clients.progress(100).await?;
    let history = clients.finish().await?;
    println!("{:?}", history.outcomes());
    println!("{}", linear::check(&history)?);
    cluster.one_leader_a_term()?;
    same(&*cluster, &ALL).await.map(drop)
}

/// How a door lies.
#[derive(Debug, Clone, Copy)]
enum Lie {
    /// It acknowledges updates that it never sends.
    LostWrite,
    /// It keeps what it first showed of an object, and shows that for ever.
    StaleRead,
    /// It refuses creations, as if there were no leader, that it has sent.
    FalseRefusal,
}

/// A door that lies once it has been used for a while.
struct Liar {
    honest: ControlDoor,
    lie: Lie,
    calls: AtomicU32,
    lies: AtomicU32,
    copies: Mutex<HashMap<String, Seen>>,
}

/// Calls before a door begins to lie.
const HONEST: u32 = 40;
/// How often it does: what happens at the same time may make up for one lie.
const LIES: u32 = 5;

impl Liar {
    /// Counts a lie, if it may still lie.
    fn lies(&self) -> bool {
        self.lies.fetch_add(1, Ordering::SeqCst) < LIES
    }

    /// The object as it was when this door was first asked for it.
    fn copy(&self, seen: &Seen) -> Seen {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copies.entry(seen.id.clone()).or_insert_with(|| seen.clone()).clone()
    }
}

#[tonic::async_trait]
impl Door for Liar {
    fn name(&self) -> &str {
        "liar"
    }

    async fn call(&self, call: &Call) -> Answer {
        let lies = self.calls.fetch_add(1, Ordering::SeqCst) >= HONEST;
        match (self.lie, call) {
            (Lie::LostWrite, Call::Update { id, name, version, tag }) if lies && self.lies() => {
                let (id, name, tag) = (id.clone(), name.clone(), tag.clone());
                return Answer::Object(Seen { name, id, version: version + 1, tag });
            }
            _ => {}
        }
        match (self.lie, call, self.honest.call(call).await) {
            (Lie::StaleRead, Call::Get { .. }, Answer::Object(seen)) => {
                let copy = self.copy(&seen);
                if lies && copy != seen {
                    self.lies();
                    return Answer::Object(copy);
                }
                Answer::Object(seen)
            }
            (Lie::FalseRefusal, Call::Create { .. }, Answer::Object(_)) if lies && self.lies() => {
                Answer::Refused("there is no leader".into())
            }
            (_, _, answer) => answer,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planted_fault_in_a_real_run_is_caught() -> Result<()> {
    let cluster = Cluster::start(Engine::None, 0).await?;
    let result = faults_are_caught(&cluster).await;
    with_logs(&cluster, result)
}

async fn faults_are_caught(cluster: &Cluster) -> Result<()> {
    let load = Load { seed: 3, names: 3, pause: Duration::from_millis(5), ..Load::default() };
    let honest = |prefix: &str| ControlDoor::new(&cluster.socket(), prefix);
    let clients = Clients::start_at(vec![Arc::new(honest("honest-"))], load.clone());
    clients.progress(200).await?;
    println!("{}", linear::check(&clients.finish().await?)?);
    for lie in [Lie::LostWrite, Lie::StaleRead, Lie::FalseRefusal] {
        let honest = honest(&format!("{lie:?}-"));
        let (calls, lies, copies) = Default::default();
        let liar = Arc::new(Liar { honest: honest.clone(), lie, calls, lies, copies });
        let clients = Clients::start_at(vec![Arc::new(honest), liar.clone()], load.clone());
        until("some lies", PATIENCE, || async {
            let lies = liar.lies.load(Ordering::SeqCst);
            ensure!(lies >= LIES, "{lies} lies");
            Ok(())
        })
        .await?;
        let history = clients.finish().await?;
        match linear::check(&history) {
            Err(Anomaly::NotLinearizable(why)) => println!("{lie:?}: {why}\n"),
            other => bail!("{lie:?} was not caught: {other:?}"),
        }
    }
    Ok(())
}
