//! The allocator: it gives services their published ports and takes tasks from NEW to PENDING.
//!
//! - [`Allocator`]: the reconciler.
//! - `ports`: numbers of ports published through the ingress network.
//! - `endpoint`: what a service publishes.
//! - `network`: networks that need no addresses from us: those that each node makes for itself.
//!
//! Limits: overlay networks get no addresses yet; a task that asks for one stays NEW and says so. Ports in
//! ingress mode get their numbers, but no virtual address.

mod allocator;
mod endpoint;
mod network;
mod ports;

pub use allocator::Allocator;
