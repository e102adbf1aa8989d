//! How simulated tasks behave.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use swarm_api::v1::{Task, task_spec};

/// A time drawn evenly from a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// Shortest.
    pub from: Duration,
    /// Longest.
    pub to: Duration,
}

impl Delay {
    /// No time at all.
    pub const NONE: Delay = Delay { from: Duration::ZERO, to: Duration::ZERO };

    /// Always the same time.
    pub const fn fixed(time: Duration) -> Delay {
        Delay { from: time, to: time }
    }

    pub(crate) fn draw(self, rng: &mut StdRng) -> Duration {
        if self.to <= self.from {
            return self.from;
        }
        self.from + (self.to - self.from).mul_f64(rng.random_range(0.0..1.0))
    }
}

/// How long tasks run, and how they end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Run {
    /// Until they are stopped.
    Forever,
    /// For some time.
    For {
        /// How long.
        time: Delay,
        /// Exit code of those that fail.
        code: i32,
        /// How many of them fail, from 0 to 1; the others exit with zero.
        failing: f64,
    },
}

/// How long things take and how often they fail. Rates are from 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Behaviour {
    /// Time that preparing takes.
    pub prepare: Delay,
    /// Time that starting takes.
    pub start: Delay,
    /// Time from the stop signal to the end.
    pub stop: Delay,
    /// Time that removing takes.
    pub remove: Delay,
    /// How tasks run.
    pub run: Run,
    /// How often preparing fails for good.
    pub prepare_fails: f64,
    /// How often starting fails for good.
    pub start_fails: f64,
    /// How often any operation fails in a way that is worth another try.
    pub hiccups: f64,
    /// Every operation fails so: the engine is away.
    pub away: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Behaviour {
            prepare: Delay::NONE,
            start: Delay::NONE,
            stop: Delay::NONE,
            remove: Delay::NONE,
            run: Run::Forever,
            prepare_fails: 0.0,
            start_fails: 0.0,
            hiccups: 0.0,
            away: false,
        }
    }
}

/// What a task asks of its simulation, in its container's environment: `SIM_RUN=1500` (milliseconds) and
/// `SIM_EXIT=3` (exit code).
pub(crate) fn asked_of(task: &Task) -> Option<(Duration, i32)> {
    let Some(task_spec::Runtime::Container(container)) = &task.spec.runtime else { return None };
    let value = |name: &str| {
        let mut entries = container.env.iter().filter_map(|entry| entry.split_once('='));
        entries.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse::<u64>().ok())
    };
    let code = value("SIM_EXIT").and_then(|code| i32::try_from(code).ok());
    let time = value("SIM_RUN").map(Duration::from_millis);
    (code.is_some() || time.is_some()).then(|| (time.unwrap_or_default(), code.unwrap_or(0)))
}

/// Randomness of one operation of one task.
pub(crate) fn rng(seed: u64, task_id: &str, number: u64) -> StdRng {
    // FNV-1a, so that equal seeds give equal runs on every platform and release.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ seed;
    for byte in task_id.bytes().chain(number.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    StdRng::seed_from_u64(hash)
}
