//! Clients of all managers' sockets while a seed kills, freezes, cuts and moves managers: what the clients were told has
//! one order that explains it, no acknowledged write is lost, and all managers hold the same afterwards.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use swarm_testkit::lab::managers::{Managers, Setup};
use swarm_testkit::lab::nemesis;
use swarm_testkit::linear::{self, Clients, Load};
use swarm_testkit::quorum::same;

/// Acknowledged writes before the first fault, and after the last.
const CALM: u64 = 50;

async fn plagued(count: usize, seed: u64, total: Duration) -> Result<()> {
    let mut managers = Managers::start(count, Setup::quick()).await?;
    let result = plague(&mut managers, seed, total).await;
    managers.with_logs(result)
}

async fn plague(managers: &mut Managers, seed: u64, total: Duration) -> Result<()> {
    let names = managers.lab.names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let sockets: Vec<PathBuf> = names.iter().map(|name| managers.socket(name)).collect::<Result<_>>()?;
    let clients = Clients::start(&sockets, Load { seed, ..Load::default() });
    clients.progress(CALM).await?;
    let faults = nemesis::schedule(seed, total);
    nemesis::run(managers, &faults).await?;
    clients.progress(CALM).await?;
    let history = clients.finish().await?;
    let report = linear::check(&history)?;
    same(managers, &names).await?;
    managers.one_leader_per_term()?;
    println!("seed {seed}, {} managers, {} faults, terms {:?}", names.len(), faults.len(), managers.terms());
    println!("{report}: {:?}", history.outcomes());
    // A run in which nobody could write, or nothing ever went wrong, would show nothing.
    ensure!(report.acknowledged > 10 * faults.len() && report.unknown > 0, "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_histories_are_linearizable_whatever_happens_to_managers() -> Result<()> {
    plagued(3, 1, Duration::from_secs(45)).await
}

/// At least two minutes of faults for each of these seeds, with so many managers.
macro_rules! long {
    ($($name:ident: $managers:literal managers, seed $seed:literal;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "long suite"]
        async fn $name() -> Result<()> {
            plagued($managers, $seed, Duration::from_secs(130)).await
        }
    )*};
}

long! {
    long_docker_histories_are_linearizable_with_seed_11: 3 managers, seed 11;
    long_docker_histories_are_linearizable_with_seed_12: 3 managers, seed 12;
    long_docker_histories_are_linearizable_with_seed_13: 3 managers, seed 13;
    long_docker_histories_are_linearizable_with_seed_14: 3 managers, seed 14;
    long_docker_histories_are_linearizable_with_seed_15: 3 managers, seed 15;
    long_docker_histories_are_linearizable_with_seed_16: 3 managers, seed 16;
    long_docker_histories_are_linearizable_with_seed_17: 3 managers, seed 17;
    long_docker_histories_are_linearizable_with_seed_18: 5 managers, seed 18;
    long_docker_histories_are_linearizable_with_seed_19: 5 managers, seed 19;
    long_docker_histories_are_linearizable_with_seed_20: 5 managers, seed 20;
    long_docker_histories_are_linearizable_with_seed_21: 5 managers, seed 21;
    long_docker_histories_are_linearizable_with_seed_22: 7 managers, seed 22;
}
