//! What a change of a service would come to, without making it.
//!
//! - [`reconcilers`]: everything that decides on a leader, in its order.
//! - [`dry_run`]: runs all of it on a copy of the state in which the change is made, in simulated time, until the
//!   service is at rest, and says what became of its tasks.
//!
//! Inside: `rehearsal` lets the brain and the agents act, `cast` follows the service's tasks and those that make room
//! for them, `standing` keeps what stands where it should not from being judged anew, `answer` sums up what became of
//! them, `differences` says what in the spec replaces tasks.
//!
//! Limits: agents never fail, tasks start and stop at once, and those of other services stay as they are. Of nodes that
//! are equal in everything a leader takes the one that it has known longest, which is not known here.

mod answer;
mod cast;
mod differences;
mod rehearsal;
mod standing;

pub use rehearsal::{Change, Limits, dry_run};

use swarm_reconcile::Reconciler;

/// Everything that decides on a leader, in the order in which they see each other's decisions within one turn.
pub fn reconcilers() -> Vec<Box<dyn Reconciler>> {
    with_enforcer(Box::new(swarm_scheduler::ConstraintEnforcer::new()))
}

fn with_enforcer(enforcer: Box<dyn Reconciler>) -> Vec<Box<dyn Reconciler>> {
    let mut all = swarm_orchestrator::reconcilers();
    all.push(Box::<swarm_allocator::Allocator>::default());
    all.push(Box::new(swarm_scheduler::Scheduler::new()));
    all.push(enforcer);
    all.push(Box::new(swarm_scheduler::VolumeEnforcer::new()));
    all.push(Box::new(swarm_orchestrator::Reaper::default()));
    all
}
