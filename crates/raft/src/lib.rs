//! The raft node: log, snapshots, membership and the loop that owns them. It knows nothing of what entries mean.
//!
//! - [`RaftNode`] opens a log and starts the loop; [`RaftHandle`] is what the manager holds then. The store's
//!   [`Proposer`](swarm_store::Proposer) comes from either.
//! - [`LogStorage`](storage::LogStorage): where entries go; sled with a watermark beside it, or a disk in memory
//!   that fails as a test wants.
//! - [`snapshot`]: sealed files with the contract's snapshot message.
//! - [`Sealer`]: the border to the key that everything on disk is encrypted with.
//! - [`Transport`]: the border to other members. Messages from them come in by [`RaftHandle::step`].
//! - [`GrpcTransport`] and [`RaftService`]: both over gRPC, as the contract has it. [`PeersService`]: what members of ours
//!   ask each other beside that.
//! - [`Membership`] and [`Change`]: who is in the group. [`Fetched`]: its state, fetched before joining it.
//! - [`Points`]: where tests let a node crash.
//!
//! The order in which the loop does things is told in `node/turn.rs`; what a message from a peer must satisfy, in
//! `check.rs`; when a leader counts as gone before an election timeout has passed, in `failover.rs`.

mod check;
mod config;
mod convert;
mod counters;
mod disk;
mod error;
mod failover;
mod fetch;
#[doc(hidden)]
pub mod fuzz;
mod grpc;
mod handle;
mod inbox;
mod log;
mod logger;
mod membership;
mod node;
mod points;
mod sealer;
pub mod snapshot;
pub mod storage;
mod transport;

pub use config::{Config, Origin, Ticks};
pub use counters::Counts;
pub use error::{Error, Result};
pub use fetch::{FetchError, Fetched};
pub use grpc::{GrpcTransport, PeersService, RaftService, check_health};
pub use handle::{Outcome, RaftHandle, Role, Status};
pub use membership::{Change, Membership, MembershipError};
pub use node::RaftNode;
pub use points::{By, Point, Points};
pub use sealer::{MaskSealer, PlainSealer, SealError, Sealer};
pub use transport::{NoTransport, Outgoing, Transport};
