//! The allocator: it gives services their published ports and takes tasks from NEW to PENDING.
//!
//! - [`Allocator`]: the reconciler.
//! - `ports`: numbers of ports published through the ingress network.
//! - `endpoint`: what a service publishes.
//! - `network`: networks that need no addresses from us: those that each node makes for itself.
//!
//! Limits: overlay networks get no addresses yet; a task that asks for one stays NEW and says so. Ports in
//! ingress mode get their numbers, but no virtual address. Those that another manager gave are kept.

mod allocator;
mod endpoint;
mod network;
mod ports;

/// Most bytes of an object that is allocated: what fits into an entry of the log, and still does when what becomes of the
/// object later is added.
const MOST_BYTES: usize = swarm_api::defaults::MAX_TRANSACTION_BYTES - 64 * 1024;

pub use allocator::Allocator;
