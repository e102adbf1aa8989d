//! The target that `SWARM_FUZZ_TARGET` names, in libFuzzer; see `cargo xtask fuzz`.

#![no_main]

use std::backtrace::Backtrace;
use std::sync::LazyLock;

use swarm_fuzz::{MEMORY, TARGETS, Target};

#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("SWARM_FUZZ_TARGET").unwrap_or_default();
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        panic!("SWARM_FUZZ_TARGET is {name:?}, but should be one of {}", names.join(", "))
    })
});

/// What says where a panic was needs more memory than a target may take: without it, it would wait for itself.
fn report_panics_without_a_limit() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let _ = ALLOCATOR.set_limit(usize::MAX);
        eprintln!("{}", Backtrace::force_capture());
        report(info);
    }));
}

libfuzzer_sys::fuzz_target!(init: report_panics_without_a_limit(), |bytes: &[u8]| {
    let target = *TARGET;
    // Whoever asks for more gets nothing, which ends the process.
    let _ = ALLOCATOR.set_limit(ALLOCATOR.allocated() + MEMORY);
    (target.run)(bytes);
    let _ = ALLOCATOR.set_limit(usize::MAX);
});
