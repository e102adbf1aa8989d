//! A simulated way of running tasks, for tests and benchmarks of everything above it.
//!
//! - [`World`]: what really runs, on all simulated nodes; it survives agents as containers survive a daemon,
//!   and counts whatever must not happen ([`World::violations`]).
//! - [`SimExecutor`]: one node's executor in that world.
//! - [`Behaviour`]: how long things take and how often they fail; it can be changed at any time.
//!
//! Everything random is drawn from the world's seed, the task's id and the operation's number, so a run does not
//! depend on the order in which tasks happen to be scheduled.

mod behaviour;
mod controller;
mod executor;
mod world;

pub use behaviour::{Behaviour, Delay, Run};
pub use executor::SimExecutor;
pub use world::World;
