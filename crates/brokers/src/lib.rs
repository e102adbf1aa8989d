//! What the brokers of a leader have in common: they serve for a term, and each has a book of what is open in it.
//!
//! - [`Book`]: what a broker knows, as plain state. It is empty when a term begins.
//! - [`Terms`]: one per broker; [`Terms::run`] is a term, [`Terms::current`] the [`Term`] that calls are served in.
//! - [`Inbox`]: what an agent was not told yet.
//!
//! **Invariant.** Nothing is opened in a term that has ended: whoever ends it, and [`Term::with`], hold the book's lock.

mod error;
mod inbox;
mod term;
mod terms;

pub use error::Error;
pub use inbox::{Inbox, Word};
pub use term::{Book, Term};
pub use terms::Terms;
