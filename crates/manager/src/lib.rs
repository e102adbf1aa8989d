//! A manager: a member of the raft group that answers the cluster's APIs and, while it leads, runs everything
//! that decides.
//!
//! - [`Manager`]: listeners, raft, store and services put together.
//! - [`Group`]: joining and leaving the raft group.
//! - [`LeaderLink`]: the way to the leader, for calls that only it can answer.
//! - [`auth`]: who may call what, and who a handler's caller is.
//! - [`bootstrap`]: what the first leader of a new cluster writes.
//! - [`ca`]: admits nodes and signs their certificates.
//! - `brain`: runs the leader's reconcilers.
//! - [`keys`]: the network keys in the cluster object. [`roles`]: the observed roles of nodes.
//! - [`forward`]: passes calls on to the leader.
//! - [`lock`]: what a manager does whose key file is encrypted. [`backup`]: the cluster's state in a file.
//! - [`control_socket`]: the socket that `swarmctl` talks to.

pub mod attachments;
pub mod auth;
pub mod backup;
pub mod bootstrap;
pub mod brain;
pub mod ca;
pub mod control_socket;
mod dead_managers;
mod disk_keys;
mod error;
pub mod forward;
#[doc(hidden)]
pub mod fuzz;
mod group;
mod join;
pub mod keys;
mod leader;
mod leader_link;
mod leadership;
pub mod lock;
mod manager;
mod membership;
mod open;
pub mod roles;

pub use error::Error;
pub use group::Group;
pub use leader_link::{LeaderLink, NoLeader, RaftSlot, Route};
pub use manager::{Config, Manager};
