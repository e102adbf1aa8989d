//! Tasks whose volumes are being drained.

use std::collections::{BTreeMap, BTreeSet};

use swarm_api::v1::{Task, TaskState, Volume, volume_spec};
use swarm_api::{Kind, Object, Shared};
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
    /// Decisions under way, with the task's volumes.
    pending: BTreeMap<u64, Vec<String>>,
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
        self.pending.insert(self.tag, task.volumes.iter().map(|volume| volume.id.clone()).collect());
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

fn is_wanted(task: &Task) -> bool {
    task.desired_state <= TaskState::Complete as i32
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
        for event in events {
            match event {
                // That it was to stop was decided, and came to nothing.
                Event::Updated { old: Object::Task(old), new: Object::Task(new) }
                    if !is_wanted(old) && is_wanted(new) =>
                {
                    self.look.extend(new.volumes.iter().map(|volume| volume.id.clone()));
                }
                event if event.kind() == Kind::Volume => drop(self.look.insert(event.id().to_owned())),
                _ => {}
            }
        }
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        // A task may have several of them.
        let mut gone = BTreeMap::new();
        for id in std::mem::take(&mut self.look) {
            if tables.volumes().get(&id).is_none_or(|volume| !is_drained(volume)) {
                continue;
            }
            let lives = |task: &&Shared<Task>| is_wanted(task) && !task.status.reached(TaskState::Complete);
            let tasks = tables.tasks().by_volume(&id).filter(lives);
            gone.extend(tasks.map(|task| (&task.id, (id.clone(), task))));
        }
        let groups = gone.into_values().map(|(volume, task)| self.reject(ctx, &volume, task)).collect();
        Decision { groups, wake_at: None }
    }

    fn settled(&mut self, _ctx: &mut Ctx<'_>, settled: &Settled, _tables: &Tables) {
        let Some(volumes) = self.pending.remove(&settled.tag) else { return };
        if !matches!(settled.outcome, Outcome::Committed(_)) {
            self.look.extend(volumes);
        }
    }
}
