//! The pull broker: has nodes pull images before tasks need them, and says how far they are. It runs on the leader only.
//!
//! - [`Broker`]: one per manager; [`Broker::run`] serves for as long as this manager leads.
//! - [`ImagesService`], [`PullBrokerService`]: its gRPC faces, for operators and for agents. Who an agent is comes from the
//!   request's extensions ([`CallerNode`](swarm_dispatcher::CallerNode)).
//!
//! Inside: `book` knows every order and how far each of its nodes is, `selection` says which nodes those are,
//! [`Inbox`](swarm_brokers::Inbox) holds what an agent was not told yet.
//!
//! **Invariant.** Nothing here grows with what is told: of a node and an order the last word is kept, and no more. Credentials
//! are in memory for as long as their order is open, and nowhere else.

mod book;
mod broker;
mod error;
mod selection;
mod service;

pub use broker::Broker;
pub use service::{ImagesService, PullBrokerService};
pub use swarm_brokers::Error;
