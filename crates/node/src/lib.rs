//! A node: who it is, its agent, and its manager when its role says so.
//!
//! - [`Node`]: starts and stops everything on one host. [`Config`]: what it is started with.
//! - Inside: `identity` loads, makes or asks for certificates, `join` speaks to the cluster that is joined,
//!   `renewal` asks for new certificates, `supervisor` starts and stops the manager as the role changes,
//!   `restore` begins from a backup,
//!   `state` keeps the state directory, `connector` leads the agent to managers.

mod config;
mod connector;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod identity;
mod join;
mod node;
mod renewal;
mod restore;
mod state;
mod supervisor;

pub use config::{Config, Join, Restore};
pub use error::Error;
pub use join::JoinError;
pub use node::Node;
