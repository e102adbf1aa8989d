//! The wire contract, and nothing that behaves.
//!
//! - [`v1`]: every message and service of `docker.swarmkit.v1`, generated from `proto/`.
//! - [`raftpb`]: raft's own messages as etcd puts them on the wire.
//! - [`swarmd`]: messages of our own package.
//! - [`Shared`]: the reference-counted, copy-on-write wrapper around objects of the store inside messages.
//! - [`Text`]: a text behind a reference count, for what every version of every task has.
//! - [`authorization`]: who may call which method, generated from the contract's method options.
//! - [`codec`]: how messages become bytes of calls.
//! - [`extensions`]: what goes beyond the contract, in labels.
//! - [`log_lines`]: messages with log lines, left as they are on the wire.
//! - [`id`]: random identifiers of objects. [`defaults`]: numbers that both sides assume. [`naming`]: names of tasks.
//!   [`network`]: kinds of networks.
//! - [`object`]: the ten kinds of objects behind one trait and one enum.
//!
//! Fields that the contract calls non-nullable are plain values: always written, and read as their default
//! when a peer left them out.

pub mod authorization;
pub mod codec;
pub mod defaults;
pub mod duration;
pub mod extensions;
pub mod hash;
pub mod id;
pub mod log_lines;
pub mod naming;
pub mod network;
mod node_state;
pub mod object;
mod published;
mod redact;
mod sameness;
mod shared;
mod task_spec;
mod task_state;
mod text;
mod update_status;

#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, rustdoc::all)]
#[rustfmt::skip]
#[path = "generated/v1.rs"]
pub mod v1;

#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, rustdoc::all)]
#[rustfmt::skip]
#[path = "generated/raftpb.rs"]
pub mod raftpb;

#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, rustdoc::all)]
#[rustfmt::skip]
#[path = "generated/swarmd.rs"]
pub mod swarmd;

pub use object::{Kind, Object, StoreObject};
pub use shared::{Shared, SharedMessage};
pub use text::{Text, text};
pub use update_status::BECAUSE_OF_TASK;
pub use v1::TaskState;
