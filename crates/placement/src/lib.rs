//! Whether a task fits on a node: what both the scheduler, which puts tasks on nodes, and the enforcers and
//! orchestrators, which ask whether they may stay, must answer alike.
//!
//! - [`Constraint`]: the grammar of placement constraints, and whether one holds on a node.
//! - [`generic`]: generic resources, as text and as a [`Ledger`] of what a node has and its tasks hold.
//! - [`Demand`]: what a task takes on a node, read from its spec.
//! - [`NodeInfo`]: the account of one node: what it has, what its tasks take, which host ports they use, how many
//!   are wanted there, and which services keep failing there.
//! - [`NormalPlatform`]: an operating system and an architecture, whichever of its names is used.
//!
//! Everything is whole numbers. Sums are wide enough that no specs, however large, make them wrap.

mod constraint;
pub mod csv;
mod demand;
mod failures;
pub mod generic;
mod node;
mod platform;

pub use constraint::{Constraint, ConstraintError, Key, all_hold, constraints_of};
pub use demand::{Demand, Holding, HostPort, Reserved};
pub use failures::{FAILURE_LIMIT, FAILURE_WINDOW, Failures};
pub use generic::{GenericError, Ledger, Request};
pub use node::NodeInfo;
pub use platform::NormalPlatform;
