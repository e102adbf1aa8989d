//! The whole brain in a cluster where everything happens: orchestrators, allocator, scheduler, enforcers and reaper
//! under random but repeatable histories of updates, failures, lies, lost nodes and lost leaders.
//!
//! [`acts`] is what happens, [`world`], [`agents`] and [`specs`] who does it and to what, [`run`] one history. What must
//! hold is said by [`checks`] and [`history`] for every commit, by [`watched`] with [`authors`], [`pace`] and [`placing`]
//! for every decision, and by [`ends`] for the end. A history that shows a fault is made as short as it can be
//! ([`shrink`]), and printed with the command that repeats it.
#![allow(clippy::unwrap_used)]

mod acts;
mod agents;
mod authors;
mod broken;
mod checks;
#[path = "../common/mod.rs"]
mod common;
mod dice;
mod ends;
mod faults;
mod healing;
mod history;
mod order;
mod pace;
mod placing;
mod room;
mod run;
mod shrink;
mod specs;
mod watched;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use run::{Done, run, trace};
use shrink::shrink;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// What happens in the shortest history that shows the same, and how to see it again.
fn report(seed: u64, length: usize) -> Option<String> {
    let plan = acts::plan(seed, length);
    let broken = run(&plan, None).err()?;
    let (plan, shortest) = shrink(plan, broken.clone(), None);
    Some(format!(
        "seed {seed}, length {length}: {broken}\n\nthe same in {} steps: {shortest}\n{plan:?}\n\n{}\nto repeat it:\n    \
         SEED={seed} LENGTH={length} cargo nextest run --locked -p swarm-orchestrator --test simulation whatever_happens\n",
        plan.steps.len(),
        trace(&plan, None)
    ))
}

/// Runs these seeds, on all cores, until one shows a fault. With `SURVEY` set, all that do are listed instead.
fn seeds(first: u64, count: u64, length: usize) {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(count);
    let (next, failed, total) = (AtomicU64::new(0), Mutex::new(None), Mutex::new(Done::default()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while failed.lock().unwrap().is_none() {
                    let seed = first + next.fetch_add(1, Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    match run(&acts::plan(seed, length), None) {
                        Ok(done) => {
                            let mut total = total.lock().unwrap();
                            total.steps += done.steps;
                            total.refused += done.refused;
                        }
                        Err(broken) if std::env::var("SURVEY").is_ok() => {
                            println!(
                                "SURVEY {seed} {}",
                                broken.to_string().chars().take(400).collect::<String>().replace('\n', " ")
                            );
                        }
                        Err(_) => *failed.lock().unwrap() = Some(seed),
                    }
                }
            });
        }
    });
    if let Some(seed) = failed.into_inner().unwrap() {
        panic!("{}", report(seed, length).unwrap_or(format!("seed {seed} does not repeat itself")));
    }
    let total = total.into_inner().unwrap();
    println!("{count} seeds from {first} of length {length}: {} steps", total.steps);
    assert!(
        count < 10 || total.refused > 0,
        "no decision ever met a change that it did not know of: too tame"
    );
}

/// `SEED` and `LENGTH` choose one history instead, of any of these tests.
#[test]
fn whatever_happens_the_cluster_comes_to_what_was_asked_for_and_to_rest() {
    match number("SEED") {
        Some(seed) => seeds(seed, number("SEEDS").unwrap_or(1), number("LENGTH").unwrap_or(40) as usize),
        None => seeds(1, 2_000, 20),
    }
}

/// Other histories every day. The seeds are printed.
#[test]
#[ignore = "long suite"]
fn long_what_nobody_has_tried_before_comes_to_rest_too() {
    let day = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() / 86_400;
    seeds(day * 100_000, 20_000, 40);
}

#[test]
fn it_does_so_after_long_histories_too() {
    seeds(1_000_000, 10, 400);
}

/// Twice the same, to the last decision: what fails once can be looked at again.
#[test]
fn a_history_repeats_itself() {
    for seed in 40..60 {
        let plan = acts::plan(seed, 30);
        let (once, again) = (trace(&plan, None), trace(&plan, None));
        let differs = once.lines().zip(again.lines()).find(|(one, other)| one != other);
        assert!(once == again && !once.is_empty(), "seed {seed}: {differs:?}");
    }
}

#[test]
#[ignore = "long suite"]
fn long_whatever_happens_the_cluster_comes_to_what_was_asked_for() {
    seeds(2_000_000, 60_000, 60);
    seeds(3_000_000, 2_000, 1_000);
}
