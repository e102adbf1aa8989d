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

use swarm_api::v1::{Service, Task, UpdateConfig};
use swarm_reconcile::Reconciler;
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

/// How many tasks of a service would move if it were rebalanced now; none of one that is not replicated.
pub fn tasks_to_move(tables: &Tables, service: &Service) -> usize {
    match spec::mode(&service.spec) {
        Some(spec::Mode::Replicated(_)) => rebalance::moves(tables, service).len(),
        _ => 0,
    }
}
