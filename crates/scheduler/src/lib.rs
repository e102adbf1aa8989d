//! Which task runs on which node.
//!
//! - [`Scheduler`]: puts tasks that wait on nodes, and confirms those that come with a node.
//! - [`ConstraintEnforcer`]: rejects tasks whose node no longer satisfies their constraints or reservations.
//! - [`Wishes`]: whether a task would fit on a node, for those who move tasks.
//!
//! Inside: `filter` says what a task asks of a node and whether the node has it; `spread` chooses among nodes that
//! have it; `verdict` puts into words why none has; `nodes` and `queue` hold what is remembered of nodes and of
//! tasks that wait; `ended` says what the end of a task means for its node; `track` keeps all that in
//! step with the tables.
//!
//! Work follows what changed. A task that finds no node waits in a group with others that ask the same; when a
//! node changes, or a task leaves it, only that node is asked again for each group.

mod ended;
mod enforcer;
mod filter;
mod nodes;
#[cfg(test)]
mod properties;
mod queue;
mod scheduler;
mod spread;
mod track;
mod verdict;
mod wishes;

pub use enforcer::ConstraintEnforcer;
pub use scheduler::Scheduler;
pub use wishes::Wishes;
