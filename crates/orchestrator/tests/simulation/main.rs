//! The whole brain in a cluster where everything happens: orchestrators, allocator, scheduler, enforcer and reaper
//! under random but repeatable histories of updates, failures, lies, lost nodes and lost leaders.
//!
//! [`acts`] is what happens, [`world`] who does it, [`checks`] and [`watched`] what must hold, [`run`] one history.
//! A history that shows a fault is made as short as it can be, and printed; `SEED=n` repeats it.
#![allow(clippy::unwrap_used)]

mod acts;
mod checks;
#[path = "../common/mod.rs"]
mod common;
mod dice;
mod faults;
mod run;
mod watched;
mod world;

use run::{Done, run, shrink, trace};

/// Runs these seeds, on all cores.
fn seeds(first: u64, count: u64, length: usize) {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse().ok());
    let (first, count) = match number("SEED") {
        Some(seed) => (seed, 1),
        None => (first, number("SEEDS").unwrap_or(count)),
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(count);
    let totals: Vec<Done> = std::thread::scope(|scope| {
        let part = |thread| {
            move || {
                let mut total = Done::default();
                for seed in (first..first + count).skip(thread as usize).step_by(threads as usize) {
                    let plan = acts::plan(seed, length);
                    match run(&plan, None) {
                        Ok(done) => {
                            total.steps += done.steps;
                            total.refused += done.refused;
                        }
                        Err(fault) => {
                            let (plan, fault) = shrink(plan, fault, None);
                            panic!("seed {seed}, length {length}: {fault}\nafter:\n{}", trace(&plan));
                        }
                    }
                }
                total
            }
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(part(thread))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let steps: u64 = totals.iter().map(|t| t.steps).sum();
    println!("{count} seeds, {steps} steps");
    let refused: u64 = totals.iter().map(|t| t.refused).sum();
    assert!(count == 1 || refused > 0, "no decision ever met a change that it did not know of: too tame");
}

#[test]
fn whatever_happens_the_cluster_comes_to_what_was_asked_for_and_to_rest() {
    seeds(1, 1_000, 40);
}

#[test]
fn it_does_so_after_long_histories_too() {
    seeds(1_000_000, 12, 400);
}

/// Seeds of the long suite that failed once: a job's slot that was completed twice counted twice for those who waited for the job, and
/// the scheduler was told of what had become of a task before it put it on a node, but not that it was there.
#[test]
fn what_failed_once_does_not_fail_again() {
    for seed in [2_021_845, 2_034_118, 2_044_024] {
        seeds(seed, 1, 60);
    }
}

#[test]
#[ignore = "long suite"]
fn long_whatever_happens_the_cluster_comes_to_what_was_asked_for() {
    seeds(2_000_000, 60_000, 60);
    seeds(3_000_000, 2_000, 1_000);
}
