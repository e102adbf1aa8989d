//! The Control, Watch and Health APIs of a manager.
//!
//! - [`Control`]: the calls on objects. A write is validated, then done in one transaction; a read on the
//!   leader is linearizable. How what is asked for comes about is not known here.
//! - [`Watch`]: the stream of changes.
//! - [`Health`]: which services of this process serve.
//! - [`Membership`]: what the manager tells of its raft group.
//! - [`Error`]: why a call was refused, with its gRPC code and the contract's text.
//!
//! Who may call is decided before: by the TLS port's authorization, or by the permissions of the local socket.

mod calls;
mod deps;
mod error;
mod filter;
mod health;
mod rpc;
mod validate;
mod watch;

pub use calls::Control;
pub use deps::{Alone, Membership};
pub use error::Error;
pub use health::{CONTROL_API, Health, RAFT};
pub use validate::is_image_reference;
pub use watch::Watch;
