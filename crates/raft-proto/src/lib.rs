//! Message types of the tikv raft crate, on today's prost.
//!
//! The published crate of this name and version generates its code with protoc for an older prost. This one has
//! the part of its interface that `raft` 0.7 uses, and is put in its place by the workspace's `[patch]`.
//!
//! - [`eraftpb`]: the messages, generated from `proto/eraftpb`, with the accessors that `raft` calls.
//! - [`ConfChangeI`] and its companions: membership changes of both generations.
//!
//! `raft` names rust-protobuf's `Message` trait where it wants a message's size or bytes; the implementation here
//! hands everything to prost.

mod accessors;
mod codec;
mod confchange;

/// The messages.
pub mod eraftpb {
    #![allow(clippy::all, unreachable_pub)]
    include!("generated/eraftpb.rs");
}

/// What users of the raft crate usually want.
pub mod prelude {
    pub use crate::confchange::ConfChangeI;
    pub use crate::eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry,
        EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
    };
}

pub use confchange::{ConfChangeI, conf_state_eq, new_conf_change_single};
