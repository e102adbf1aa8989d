//! Reconcilers: everything that *decides* on the leader, as plain synchronous state machines.
//!
//! - [`Reconciler`]: the trait. It sees tables and events, and answers with guarded changes and the moment at
//!   which it wants to be woken. No I/O, no clock and no randomness of its own: those come with [`Ctx`].
//! - [`Patch`]: one guarded change of one object, evaluated inside the transaction on what is there then. So
//!   an agent's report that arrives in between never makes a decision fail that does not contradict it.
//! - [`Group`]: patches that are written together or not at all.
//! - [`Assignments`]: many tasks put on nodes at once, each for itself.
//! - [`Decision`] and [`Settled`]: what goes in and what came of it.
//! - [`Brain`]: all reconcilers of a leader, what they know, and what they decided that is not settled yet.
//! - [`Batch::apply`]: writes what was decided inside a transaction of the store.
//! - [`Stage`]: a brain on a store of its own, in simulated time.
//!
//! Reconcilers run in a fixed order in one thread. Each sees the tables as they will be when everything
//! decided before it is written, so a task may be created, allocated and assigned in one log entry.

mod apply;
mod assign;
mod brain;
mod bulk;
mod ctx;
mod discard;
mod journal;
mod overlay;
mod patch;
#[cfg(feature = "sim")]
pub mod sim;
mod stage;

pub use assign::{Assignment, Assignments, Sizer, same_for_placement};
pub use brain::{Batch, Brain, Fate, MAX_IN_FLIGHT};
pub use ctx::{Ctx, IdSource, Now, RandomIds, SequentialIds};
pub use discard::Discard;
pub use patch::{Edit, Effect, Guard, Patch, Refused, Write};
pub use stage::Stage;

use swarm_api::Shared;
use swarm_api::v1::Task;
use swarm_store::{Event, Tables};

/// Everything a reconciler decided in one turn.
#[derive(Debug, Default)]
pub struct Decision {
    /// Changes, in order. The driver packs groups into transactions; it never splits one. Neighbours with the same mark that
    /// only create tasks, on the same conditions, may become one group.
    pub groups: Vec<Group>,
    /// When to call [`Reconciler::decide`] again even if nothing happens, on the monotonic clock. Replaces what was
    /// asked for before; `None` means that there is nothing to wait for.
    pub wake_at: Option<std::time::Duration>,
}

/// Changes that are written together or not at all.
#[derive(Debug, Clone)]
pub struct Group {
    /// The reconciler's own mark, given back in [`Settled`].
    pub tag: u64,
    /// The changes, in order.
    pub patches: Vec<Patch>,
}

/// What became of a group.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Written, with the log index of the entry.
    Committed(u64),
    /// A guard said no: nothing of the group was written, or not all of a list of assignments.
    Refused(Refused),
    /// Leadership was lost or the proposal was refused: the group may or may not be written.
    Lost,
}

/// A group of an earlier decision and what became of it.
#[derive(Debug, Clone)]
pub struct Settled {
    /// The group's mark.
    pub tag: u64,
    /// Its outcome.
    pub outcome: Outcome,
}

/// One part of the leader's mind.
///
/// The driver calls `init` once when leadership begins, and from then on, in every turn: `settled` for each
/// group whose fate is known, `observe` with what changed since the last call, `decide`. The tables always
/// contain the changes this and earlier reconcilers decided that are not committed yet; if they come to
/// nothing, their absence is observed like any other change.
pub trait Reconciler: Send {
    /// Name for logs and traces.
    fn name(&self) -> &'static str;

    /// Leadership begins: learn everything from the tables.
    fn init(&mut self, ctx: &mut Ctx<'_>, tables: &Tables);

    /// Takes note of changes. Events may repeat what is known already, and several changes of one object may
    /// arrive as one; so they say where to look, and the tables say what is true.
    fn observe(&mut self, ctx: &mut Ctx<'_>, events: &[Event], tables: &Tables);

    /// Says what to change now.
    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision;

    /// Tasks that one before this one has just decided to create. What this one would make of them at once, whatever else
    /// happens, it makes of them here, before anybody sees them: that costs no second version of each.
    ///
    /// Of what was decided together with them the tables show nothing yet. Tasks of services that were changed there are left
    /// out.
    fn prepare(&mut self, ctx: &mut Ctx<'_>, tasks: &mut [&mut Shared<Task>], tables: &Tables) {
        let _ = (ctx, tasks, tables);
    }

    /// Assignments that `decide` came to beside its groups; called right after it.
    ///
    /// Unlike groups they show in the tables, for everybody, only with their commit. So whoever decides them must know
    /// by itself, until they are settled, that a task which the tables show waiting is on its way.
    fn assignments(&mut self) -> Vec<Assignments> {
        Vec::new()
    }

    /// Learns what became of a group, or of a list of assignments.
    fn settled(&mut self, ctx: &mut Ctx<'_>, settled: &Settled, tables: &Tables) {
        let _ = (ctx, settled, tables);
    }
}
