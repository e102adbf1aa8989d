//! Tasks whose volumes are being drained.

use std::collections::{BTreeMap, BTreeSet};

use swarm_api::Kind;
use swarm_api::v1::{Task, TaskState, Volume, volume_spec};
use swarm_reconcile::{Ctx, Decision, Group, Guard, Outcome, Patch, Reconciler, Settled, Write};
use swarm_store::{Event, Tables};

use crate::ended::REJECTED_BY_VOLUMES;

/// What the user is told of a rejected task.
const WHY: &str = "attached to volume which is being drained";

/// Rejects tasks that have a volume with availability DRAIN. That a volume is paused keeps new tasks away, and nothing
/// else.
///
/// As with the [`ConstraintEnforcer`](crate::ConstraintEnforcer), what is wanted of a task is its orchestrator's.
#[derive(Debug, Default)]
pub struct VolumeEnforcer {
    /// Volumes to look at.
    look: BTreeSet<String>,
    /// Decisions under way, with their volume.
    pending: BTreeMap<u64, String>,
    tag: u64,
}

impl VolumeEnforcer {
    /// An enforcer that knows nothing yet.
    pub fn new() -> VolumeEnforcer {
        VolumeEnforcer::default()
    }

    fn reject(&mut self, ctx: &Ctx<'_>, volume: &str, task: &Task) -> Group {
        tracing::info!(task.id = %task.id, volume.id = %volume, service.id = %task.service_id, "task rejected: its volume is being drained");
        self.tag += 1;
        self.pending.insert(self.tag, volume.to_owned());
        let guards = vec![
            Guard::DesiredAtMost(task.id.to_string(), TaskState::Complete),
            Guard::TaskBelow(task.id.to_string(), TaskState::Complete),
        ];
        let write = Write::RaiseState {
            task: task.id.to_string(),
            state: TaskState::Rejected,
            message: REJECTED_BY_VOLUMES.to_owned(),
            err: WHY.to_owned(),
            at: ctx.now.wall,
        };
        Group { tag: self.tag, patches: vec![Patch { guards, write }] }
    }
}

fn is_drained(volume: &Volume) -> bool {
    volume.spec.availability() == volume_spec::VolumeAvailability::Drain
}

impl Reconciler for VolumeEnforcer {
    fn name(&self) -> &'static str {
        "volume enforcer"
    }

    fn init(&mut self, _ctx: &mut Ctx<'_>, tables: &Tables) {
        let look = tables.volumes().iter().filter(|v| is_drained(v)).map(|v| v.id.clone()).collect();
        *self = VolumeEnforcer { tag: self.tag, look, ..Default::default() };
    }

    fn observe(&mut self, _ctx: &mut Ctx<'_>, events: &[Event], _tables: &Tables) {
        self.look.extend(events.iter().filter(|e| e.kind() == Kind::Volume).map(|e| e.id().to_owned()));
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let mut groups = Vec::new();
        for id in std::mem::take(&mut self.look) {
            if tables.volumes().get(&id).is_none_or(|volume| !is_drained(volume)) {
                continue;
            }
            let lives = |task: &&swarm_api::Shared<Task>| {
                task.desired_state <= TaskState::Complete as i32 && !task.status.reached(TaskState::Complete)
            };
            let tasks: Vec<_> = tables.tasks().by_volume(&id).filter(lives).cloned().collect();
            groups.extend(tasks.iter().map(|task| self.reject(ctx, &id, task)));
        }
        Decision { groups, wake_at: None }
    }

    fn settled(&mut self, _ctx: &mut Ctx<'_>, settled: &Settled, _tables: &Tables) {
        let Some(volume) = self.pending.remove(&settled.tag) else { return };
        if !matches!(settled.outcome, Outcome::Committed(_)) {
            self.look.insert(volume);
        }
    }
}
