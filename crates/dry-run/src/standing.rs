//! The constraint enforcer of a leader that has led for a while.

use swarm_reconcile::{Ctx, Decision, Reconciler, Settled};
use swarm_scheduler::ConstraintEnforcer;
use swarm_store::{Event, Tables};

/// An enforcer that has looked at every node already. A new leader's rejects at once what stands where its service does
/// not allow it any more; the one that leads has left that to the update, and looks at a node when the node changes.
#[derive(Debug, Default)]
pub(crate) struct Standing(ConstraintEnforcer);

impl Reconciler for Standing {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn init(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) {
        self.0.init(ctx, tables);
        drop(self.0.decide(ctx, tables));
    }

    fn observe(&mut self, ctx: &mut Ctx<'_>, events: &[Event], tables: &Tables) {
        self.0.observe(ctx, events, tables);
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        self.0.decide(ctx, tables)
    }

    fn settled(&mut self, ctx: &mut Ctx<'_>, settled: &Settled, tables: &Tables) {
        self.0.settled(ctx, settled, tables);
    }
}
