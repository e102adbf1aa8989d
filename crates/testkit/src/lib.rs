//! What tests of whole clusters share.
//!
//! - [`daemon`]: real `swarmd` processes on this host, with state directories of their own.
//! - [`fake_engine`]: an engine that runs nothing and keeps what it was asked.
//! - [`image`]: a tiny image, made here and imported into the engine.
//! - [`lab`]: hosts as containers, which can be killed, frozen, cut off and moved.
//! - [`linear`]: concurrent clients, and a check that what they were told is linearizable.
//! - [`private_engine`]: a Docker Engine of a test's own, which may be killed and made a manager.
//! - [`proxy`]: a socket in front of another one, that can be cut.
//! - [`quorum`]: what tests ask of several managers.
//! - [`registry`]: a registry of images on this host.
//! - [`teardown`]: ending what daemons that were killed leave running.
//! - [`visit`]: commands in tasks, and what they write.
//! - [`wait`]: waiting for conditions with a deadline.

mod archive;
pub mod daemon;
pub mod fake_engine;
pub mod image;
pub mod lab;
pub mod linear;
pub mod private_engine;
pub mod proxy;
pub mod quorum;
pub mod registry;
pub mod teardown;
pub mod visit;
pub mod wait;
