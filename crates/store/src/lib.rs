//! The replicated object store.
//!
//! As its users see it:
//!
//! - [`Store`]: one committed state, one writer. [`Store::update`] runs a closure on a [`Tx`], turns its changes
//!   into one log entry, and returns when that entry is committed and applied. [`Store::batch`] packs many small
//!   changes.
//! - [`View`]: an immutable snapshot of the committed [`Tables`], with the log index it stands for. Taking one
//!   is O(1) and never waits.
//! - [`Commit`]: what every applied entry is broadcast as, its events and the view after it. [`diff`] makes
//!   events of any two sets of tables.
//! - [`Proposer`] and [`StateMachine`]: the two sides of the border to raft. [`snapshot`]: the contract's
//!   encoding of everything.
//!
//! ```
//! use swarm_api::v1::Service;
//! use swarm_store::{Error, Store};
//!
//! # futures::executor::block_on(async {
//! let store = Store::local(); // a manager's is `Store::new()`, `attach`ed to raft
//! let (_, mut commits) = store.view_and_subscribe();
//! let mut web = Service { id: "w1".to_owned(), ..Default::default() };
//! web.spec.annotations.name = "web".to_owned();
//! let (_, committed) = store.update(|tx| tx.create(web.clone())).await?;
//!
//! let view = store.view();
//! assert_eq!(view.index(), committed.index);
//! assert_eq!(view.services().by_name("WEB").count(), 1);
//! assert!(matches!(commits.next().await, swarm_store::Received::Commit(c) if c.events.len() == 1));
//!
//! let taken = Service { id: "w2".to_owned(), ..web };
//! let refused = store.update(|tx| tx.create(taken.clone())).await;
//! assert_eq!(refused.unwrap_err(), Error::NameConflict);
//! # Ok::<_, Error>(()) }).unwrap();
//! ```
//!
//! Inside: `writer` stages transactions on top of those in flight (`docs/decisions/0006-staged-writer.md`), `apply`
//! takes what raft commits, `table` keeps one kind's objects and indexes in `rows` and `sorted`
//! (`docs/decisions/0007-tables.md`), `index` says which keys each kind has, `intern` lets the tasks of a service
//! share what they have in common.
//!
//! The store knows nothing of raft or gRPC. Only it applies changes, on every manager the same way and in log
//! order. Fields that this version does not know are lost when an object is rewritten, as with other managers.

mod apply;
mod batch;
mod commit;
mod diff;
mod error;
mod index;
mod intern;
mod parallel;
mod proposer;
mod queries;
mod rows;
pub mod snapshot;
mod sorted;
mod store;
mod table;
mod tables;
#[doc(hidden)]
pub mod testing;
mod tx;
mod writer;

pub use batch::Item;
pub use commit::{Commit, Event, Kinds, Received, Subscription};
pub use diff::diff;
pub use error::{Error, Result};
pub use index::place_of;
#[doc(hidden)]
pub use index::{Emit, Key};
pub use proposer::{ApplyError, Lost, Proposer, StateMachine, Ticket};
pub use store::{Committed, Store};
pub use table::Table;
pub use tables::{Indexed, Tables, View};
pub use tx::Tx;
