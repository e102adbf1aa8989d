//! Task sessions: a command in a task, its own input and output, what it uses. The broker joins the call of somebody who
//! wants in with a call of the node that runs the task. It runs on the leader only.
//!
//! - [`Broker`]: one per manager; [`Broker::run`] serves for as long as this manager leads.
//! - [`TasksService`], [`TaskSessionsService`]: its gRPC faces, for those who want in and for agents. Who an agent is comes
//!   from the request's extensions ([`CallerNode`](swarm_dispatcher::CallerNode)).
//!
//! Inside: `target` says which node is asked, or why none is; `book` knows every session and who listens; `caller` says who
//! wants in, for the record; `joint` is a session whose two calls are joined.
//!
//! **Invariant.** Nothing is kept here of what goes through: each call's messages are read when the other call has room for
//! them, and HTTP/2's windows do the rest (decision 0089).

mod book;
mod broker;
mod caller;
mod error;
mod joint;
mod service;
mod target;

pub use book::{MAX_OF_NODE, MAX_SESSIONS};
pub use broker::Broker;
pub use caller::LOCAL_PEER;
pub use service::{TaskSessionsService, TasksService};
pub use swarm_brokers::Error;
