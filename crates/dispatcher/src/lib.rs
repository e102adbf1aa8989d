//! The dispatcher: what agents talk to. It runs on the leader only.
//!
//! - [`Dispatcher`]: one per manager; [`Dispatcher::run`] serves for as long as this manager leads, and
//!   [`Dispatcher::mark_unknown`] is the step before it that no reconciler may overtake.
//! - [`DispatcherService`]: its gRPC face. The caller's identity comes from the request's extensions
//!   ([`CallerNode`]), put there by whoever authenticated it.
//!
//! Inside: `registry` knows the sessions and when they expire, `assignments` turns tasks and what they need
//! into messages, `router` leads each commit to the streams that it concerns, `intake` gathers what nodes
//! report and writes it in few transactions. Nothing here knows why a task exists.

mod assignments;
mod caller;
mod config;
mod dispatcher;
mod driver_secrets;
mod error;
mod intake;
mod registry;
mod router;
mod service;
mod streams;
mod term;

pub use caller::CallerNode;
pub use config::{Config, Timings};
pub use dispatcher::Dispatcher;
pub use error::Error;
pub use service::DispatcherService;
