//! Time and identifiers, given to reconcilers from outside.

use std::time::{Duration, SystemTime};

/// One moment on two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since an arbitrary start, never going back: for timers, wake-ups and monitoring windows.
    pub mono: Duration,
    /// Wall time: for stamps, and for comparison with stored times.
    pub wall: SystemTime,
}

impl Now {
    /// What is left of `delay` that began at a stored time, clamped to `0..=delay`, so that a wall clock that
    /// jumped can neither extend nor skip more than the delay itself.
    pub fn remaining(&self, since: SystemTime, delay: Duration) -> Duration {
        let elapsed = self.wall.duration_since(since).unwrap_or(Duration::ZERO);
        delay.saturating_sub(elapsed)
    }
}

/// Where new identifiers come from.
pub trait IdSource: Send {
    /// A new identifier.
    fn next(&mut self) -> String;
}

/// Random identifiers, as in a real cluster.
#[derive(Debug, Default, Clone, Copy)]
pub struct RandomIds;

impl IdSource for RandomIds {
    fn next(&mut self) -> String {
        swarm_api::id::random()
    }
}

/// Identifiers that count up, for simulations that repeat themselves.
#[derive(Debug, Default, Clone)]
pub struct SequentialIds(u64);

impl IdSource for SequentialIds {
    fn next(&mut self) -> String {
        self.0 += 1;
        format!("{:025}", self.0)
    }
}

/// What a reconciler may know of the world outside the tables.
pub struct Ctx<'a> {
    /// The time of this turn.
    pub now: Now,
    /// New identifiers.
    pub ids: &'a mut dyn IdSource,
}

impl std::fmt::Debug for Ctx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ctx").field("now", &self.now).finish_non_exhaustive()
    }
}
