//! Every target on its seeds, and on some thousand inputs that resemble them. A finding leaves the input in a file, and
//! says which.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::Instant;

use swarm_fuzz::{MEMORY, Mutator, TARGETS, Target, corpus};

#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

/// Runs a target on an input. One that needs too much memory, or never ends, takes the process with it.
fn execute(target: &Target, input: &[u8], what: &str) -> bool {
    static REPORTS: Once = Once::new();
    // What says where a panic was may need more.
    REPORTS.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            ALLOCATOR.set_limit(usize::MAX).unwrap();
            report(info);
        }));
    });
    ALLOCATOR.set_limit(ALLOCATOR.allocated() + MEMORY).unwrap();
    let result = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    ALLOCATOR.set_limit(usize::MAX).unwrap();
    if result.is_err() {
        let path = std::env::temp_dir().join(format!("finding-{}-{}", target.name, std::process::id()));
        std::fs::write(&path, input).unwrap();
        panic!("{}, {what}: see {}", target.name, path.display());
    }
    result.unwrap()
}

#[test]
fn every_seed_is_understood() {
    for target in TARGETS {
        let seeds = corpus(target.name).unwrap();
        assert!(seeds.len() >= 2, "{} has {} seeds", target.name, seeds.len());
        for (i, seed) in seeds.iter().enumerate() {
            assert!(execute(target, seed, &format!("seed {i}")), "{}: seed {i} makes no sense", target.name);
        }
    }
}

fn fuzz(executions: u64, number: u64) {
    for target in TARGETS {
        let seeds = corpus(target.name).unwrap();
        let mut mutator = Mutator::new(&seeds, number);
        let begin = Instant::now();
        let executions = executions / 10u64.pow(target.cost);
        let mut understood = 0;
        for i in 0..executions {
            let input = mutator.next_input();
            understood += u64::from(execute(target, &input, &format!("input {i} of {number}")));
        }
        println!("{}: {executions} in {:?}, {understood} understood", target.name, begin.elapsed());
        // Or nothing behind the first check is ever reached.
        assert!(understood > 0, "{}: nothing made sense", target.name);
    }
}

#[test]
fn no_input_makes_a_decoder_panic_hang_or_eat_memory() {
    fuzz(20_000, 1);
}

#[test]
#[ignore = "long suite"]
fn long_no_input_makes_a_decoder_panic_hang_or_eat_memory() {
    for number in 2..12 {
        fuzz(100_000, number);
    }
}
