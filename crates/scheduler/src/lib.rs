//! Which task runs on which node.
//!
//! - [`Scheduler`]: puts tasks that wait on nodes, and confirms those that come with a node.
//! - [`ConstraintEnforcer`]: rejects tasks whose node no longer satisfies their constraints or reservations.
//! - [`VolumeEnforcer`]: rejects tasks that have a cluster volume which is being drained.
//! - [`Wishes`]: whether a task would fit on a node, for those who move tasks.
//! - [`circle`]: whether services would wait for each other for ever.
//! - [`ended_by_manager`]: whether a task's end is its own.
//!
//! Inside: `filter` says what a task asks of a node and whether the node has it; `spread` chooses among nodes that
//! have it, from the `pools` of those that fulfil a set of needs; `facets` knows what nodes have in common; `verdict` puts into words why none has; `nodes`,
//! `services`, `topology` and `queue` hold what is remembered of nodes, of who runs where, of branches, and of tasks
//! that wait, `volumes` of cluster volumes; `placing` gives nodes to groups, `bound` looks at tasks that come with theirs; `depends` holds back services that wait for others; `preempt` makes room for those with a higher priority, which have `claims` on it; `ended` says what the
//! end of a task means for its node; `track` keeps all that in step with the tables.
//!
//! Work follows what changed (`docs/decisions/0076-pools-of-nodes.md`). A task that finds no node waits in a group with
//! others that ask the same; when a node changes, or a task leaves it, only that node is asked again for each group.

mod bound;
mod claims;
mod depends;
#[cfg(test)]
mod effort;
mod ended;
mod enforcer;
mod facets;
mod filter;
mod nodes;
mod places;
mod placing;
mod pools;
mod preempt;
#[cfg(test)]
mod properties;
mod queue;
mod scheduler;
mod services;
mod spread;
mod topology;
mod track;
mod verdict;
mod volume_enforcer;
mod volumes;
mod wishes;

pub use depends::{WAITING, circle, shows_start, shows_start_of};
pub use ended::ended_by_manager;
pub use enforcer::ConstraintEnforcer;
pub use preempt::is_displaced_by;
pub use scheduler::Scheduler;
pub use volume_enforcer::VolumeEnforcer;
pub use wishes::Wishes;
