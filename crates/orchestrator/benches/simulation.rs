//! How fast the simulation of the brain goes: `cargo bench -p swarm-orchestrator --bench simulation`. A step is one
//! turn of one reconciler in which it is told of commits; the checks of every commit are part of it. CPU time of one thread (Linux).
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

#[path = "../tests/simulation/acts.rs"]
mod acts;
#[path = "../tests/simulation/agents.rs"]
mod agents;
#[path = "../tests/simulation/authors.rs"]
mod authors;
#[path = "../tests/simulation/broken.rs"]
mod broken;
#[path = "../tests/simulation/checks.rs"]
mod checks;
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/simulation/dice.rs"]
mod dice;
#[path = "../tests/simulation/ends.rs"]
mod ends;
#[path = "../tests/simulation/healing.rs"]
mod healing;
#[path = "../tests/simulation/history.rs"]
mod history;
#[path = "../tests/simulation/order.rs"]
mod order;
#[path = "../tests/simulation/pace.rs"]
mod pace;
#[path = "../tests/simulation/placing.rs"]
mod placing;
#[path = "../tests/simulation/room.rs"]
mod room;
#[path = "../tests/simulation/run.rs"]
mod run;
#[path = "../tests/simulation/specs.rs"]
mod specs;
#[path = "../tests/simulation/watched.rs"]
mod watched;
#[path = "../tests/simulation/world.rs"]
mod world;

/// CPU time of the only thread, in seconds.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn main() {
    for (seeds, length) in [(300, 40), (20, 400)] {
        let begin = cpu();
        let steps: u64 =
            (1..=seeds).map(|seed| run::run(&acts::plan(seed, length), None).unwrap().steps).sum();
        let took = cpu() - begin;
        println!(
            "{seeds} histories of {length}: {steps} steps, {:.0} a second, {:.1} ms a history",
            steps as f64 / took,
            took * 1e3 / seeds as f64
        );
    }
}
