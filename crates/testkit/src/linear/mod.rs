//! Linearizability: what clients were told must be explained by one order of all calls, in which each took effect at one
//! moment between its begin and its end.
//!
//! ```no_run
//! # async fn example(sockets: Vec<std::path::PathBuf>) -> anyhow::Result<()> {
//! use swarm_testkit::linear::{self, Clients, Load};
//!
//! let clients = Clients::start(&sockets, Load { seed: 7, ..Load::default() });
//! // … kill, pause and cut managers, then let them recover …
//! clients.progress(100).await?; // so many writes more have been acknowledged
//! let history = clients.finish().await?; // with a list at each manager as its last operations
//! println!("{}", linear::check(&history)?);
//! # Ok(())
//! # }
//! ```
//!
//! - [`history`]: calls, answers, and their order in real time.
//! - [`clients`]: concurrent clients of real managers, whose operations a seed draws.
//! - [`door`]: a manager's control API as the clients use it, and which errors are certain.
//!
//! [`check`] looks in four steps, the cheap ones first, since they say best what is wrong:
//!
//! 1. Contradictions that need no order (`facts`): an object that nobody wrote, one id with two names, two objects with
//!    one name in a list, a version given twice, a call that took effect twice.
//! 2. The order that versions give (`snapshots`): they grow with the log across all objects, so every list must be as of
//!    one version, and real time must not contradict them.
//! 3. Each name by itself (`search`, `model`): creations fail if and only if the name is taken, updates if and only if the
//!    object has another version, and so on. A list counts as a read of this name.
//! 4. All names together, with lists as reads of everything at one moment. This is the whole condition, and what it
//!    accepts is linearizable; the others are there to find and name a fault soon.
//!
//! A search that takes too long gives up, which is an error like any other.

pub mod clients;
pub mod door;
pub mod history;

mod facts;
mod model;
mod search;
mod snapshots;
#[cfg(test)]
mod tests;

use std::fmt;

use facts::Facts;
use model::{Objects, State};
use search::{Found, Stuck};

pub use clients::{Clients, Load};
pub use door::{ControlDoor, Door};
pub use history::{Answer, Call, History, Operation, Seen};
pub use search::Limits;

/// Why a history is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Anomaly {
    /// There is no order that explains it. The text names the operations that can't be explained.
    #[error("the history is not linearizable: {0}")]
    NotLinearizable(String),
    /// The search took more than the limits allow: nothing is known.
    #[error("the search for an order of {0} gave up: this history shows nothing")]
    GaveUp(String),
}

/// What was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Operations in the history.
    pub operations: usize,
    /// Those with an unknown outcome.
    pub unknown: usize,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { operations, unknown, acknowledged } = self;
        write!(
            f,
            "{operations} operations ({acknowledged} acknowledged writes, {unknown} with unknown outcome)"
        )
    }
}

/// Checks a history with the usual limits.
///
/// # Errors
/// If it is not linearizable, or can't be decided in two minutes per search.
pub fn check(history: &History) -> Result<Report, Anomaly> {
    check_within(history, Limits::default())
}

/// Checks a history.
///
/// # Errors
/// If it is not linearizable, or can't be decided within the limits (of each search).
pub fn check_within(history: &History, limits: Limits) -> Result<Report, Anomaly> {
    let facts = Facts::gather(history).map_err(Anomaly::NotLinearizable)?;
    let times = snapshots::check(history, &facts).map_err(Anomaly::NotLinearizable)?;
    for name in (0..facts.names.len()).map(Some).chain([None]) {
        search(history, &facts, &times, name, limits)?;
    }
    let unknown = |operation: &&Operation| matches!(operation.answer, Answer::Unknown(_));
    Ok(Report {
        operations: history.operations.len(),
        unknown: history.operations.iter().filter(unknown).count(),
        acknowledged: history.acknowledged(),
    })
}

fn search(
    history: &History,
    facts: &Facts<'_>,
    times: &[(u64, u64)],
    only: Option<usize>,
    limits: Limits,
) -> Result<(), Anomaly> {
    let entries = model::entries(history, facts, times, only);
    let model = Objects::new(if only.is_some() { 1 } else { facts.names.len() }, &entries);
    let what = only.map_or("all objects together", |name| facts.names[name]);
    match search::search(&model, &entries, limits) {
        Found::Order(_) => Ok(()),
        Found::Nothing(stuck) => Err(Anomaly::NotLinearizable(explain(history, facts, only, &stuck))),
        Found::GaveUp => Err(Anomaly::GaveUp(what.to_owned())),
    }
}

/// The farthest point that a search came to, for people.
fn explain(history: &History, facts: &Facts<'_>, only: Option<usize>, stuck: &Stuck<State>) -> String {
    use std::fmt::Write as _;
    let mut text = match only {
        Some(name) => format!("no order of the calls explains what was seen of {}.", facts.names[name]),
        None => "no order of the calls explains what was seen of all objects together.".to_owned(),
    };
    let _ = write!(text, "\nThe best one that was tried ends with:");
    for place in &stuck.last {
        let _ = write!(text, "\n  {}", history.operations[*place]);
    }
    let _ = write!(text, "\nAfter that there is:");
    for (place, object) in stuck.state.objects.iter().enumerate() {
        let name = facts.names[only.unwrap_or(place)];
        let Some(object) = object else {
            let _ = write!(text, "\n  no {name}");
            continue;
        };
        let id = facts.ids.get(object.id as usize).unwrap_or(&"unknown");
        let cause = &history.operations[object.write as usize];
        let _ = write!(text, "\n  {name} with id {id} at version {}, by {cause}", object.version);
    }
    let _ = write!(text, "\nIt can't go on with the first of these, nor with the others before it:");
    for place in &stuck.next {
        let _ = write!(text, "\n  {}", history.operations[*place]);
    }
    text
}
