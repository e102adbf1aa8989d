//! What tests of whole clusters share.
//!
//! - [`daemon`]: real `swarmd` processes on this host, with state directories of their own.
//! - [`image`]: a tiny image, made here and imported into the engine.
//! - [`proxy`]: a socket in front of another one, that can be cut.
//! - [`registry`]: a registry of images on this host.
//! - [`teardown`]: ending what daemons that were killed leave running.
//! - [`wait`]: waiting for conditions with a deadline.

pub mod daemon;
pub mod image;
pub mod proxy;
pub mod registry;
pub mod teardown;
pub mod wait;
