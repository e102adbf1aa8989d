//! Orchestrators: they compare what services ask for with the tasks there are, and create, restart, replace and
//! remove tasks. Pure reconcilers; where a task runs is the scheduler's business.
//!
//! - [`Replicated`]: services with a number of replicas; restarts and rolling updates are part of it, so that
//!   one reconciler owns the desired states of a service's tasks.
//! - [`Global`]: services with one task on every node that suits.
//! - [`Jobs`]: services whose tasks are to complete, replicated and global.
//! - [`Removal`]: tasks of services that are gone.
//! - [`Reaper`]: forgets tasks that were removed, and history beyond the limit.
//!
//! They run in the order of [`reconcilers`], the allocator and the scheduler between the orchestrators and the
//! reaper. References like §5.2 are to the project's notes on the original, `orchestration.md`.

mod create;
mod delay;
mod dirty;
mod global;
mod jobs;
mod place;
mod plan;
mod reaper;
mod rebalance;
mod removal;
mod replicated;
mod restart;
mod spec;
mod status;
mod update;

pub use global::Global;
pub use jobs::Jobs;
pub use reaper::Reaper;
pub use removal::Removal;
pub use replicated::Replicated;

use std::time::Duration;

use swarm_api::v1::{Service, Task, UpdateConfig};
use swarm_reconcile::{Now, Reconciler};
use swarm_store::Tables;

/// The orchestrators, in the order in which they run before allocator and scheduler.
pub fn reconcilers() -> Vec<Box<dyn Reconciler>> {
    vec![
        Box::<Removal>::default(),
        Box::<Replicated>::default(),
        Box::<Global>::default(),
        Box::<Jobs>::default(),
    ]
}

/// Whether a task is what its service asks for now, so that an update would keep it.
pub fn is_up_to_date(tables: &Tables, service: &Service, task: &Task) -> bool {
    !dirty::is_dirty(tables, service, task)
}

/// How an update of the service, or its rollback if it goes back, replaces tasks.
pub fn pace(service: &Service) -> UpdateConfig {
    update::config_of(service)
}

/// What rebalancing a service would come to now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unevenness {
    /// How many tasks would move.
    pub tasks: usize,
    /// More would, if tasks could move that do not run yet.
    pub waits: bool,
}

/// What rebalancing a service would come to at this time. It costs a look at all tasks of the cluster.
pub fn unevenness(now: &Now, tables: &Tables, service: &Service) -> Unevenness {
    let found = rebalance::look(now, tables, service);
    Unevenness { tasks: found.moves.len(), waits: found.waits }
}

/// How long nothing must become of the tasks of a service until rebalancing it is over; zero if it does not ask for that.
pub fn rebalances_within(service: &Service) -> Duration {
    rebalance::within(service)
}
