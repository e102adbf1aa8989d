//! The log broker: brings lines from the agents that have them to those who ask for them. It runs on the leader only.
//!
//! - [`Broker`]: one per manager; [`Broker::run`] serves for as long as this manager leads.
//! - [`LogsService`], [`LogBrokerService`]: its gRPC faces, for subscribers and for agents. Who an agent is comes from
//!   the request's extensions ([`CallerNode`](swarm_dispatcher::CallerNode)).
//!
//! Inside: `selection` says whose lines are wanted, `book` knows every subscription and how far each of its nodes is,
//! [`Inbox`](swarm_brokers::Inbox) holds what an agent was not told yet, `mail` what a subscriber has not taken yet.
//!
//! **Invariant.** Nothing here grows with what is written: [`ROOM`] bytes wait for a subscriber, and who has more to
//! say to it waits with its call, which is on a connection of its own (decision 0087).

mod book;
mod broker;
mod error;
mod mail;
mod publication;
mod selection;
mod service;
mod subscriber;

pub use broker::Broker;
pub use mail::ROOM;
pub use service::{LogBrokerService, LogsService};
pub use swarm_brokers::Error;
