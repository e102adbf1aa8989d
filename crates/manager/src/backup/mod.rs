//! The cluster's state in a file, and a new cluster out of such a file.
//!
//! - [`format`](mod@format): what a file looks like.
//! - [`Recovery`]: the call that writes one from a running manager.
//! - [`restore`]: what a new manager begins from.

pub mod format;
pub mod restore;
mod service;

pub use format::{Backup, Problem};
pub use service::Recovery;
