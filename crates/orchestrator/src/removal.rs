//! What is left of services that are gone: their tasks are stopped and forgotten, whatever kind they were.

use std::collections::BTreeSet;

use swarm_api::v1::{Service, Task, TaskState};
use swarm_api::{Kind, Object, Shared};
use swarm_reconcile::{Ctx, Decision, Group, Patch, Reconciler, Write};
use swarm_store::{Event, Tables};

use crate::update::remove;

/// Most tasks raised to REMOVE in one turn.
const MOST: usize = 10_000;

/// Raises the tasks of services that are gone, or are being deleted, to REMOVE, so that agents stop them in good
/// order and the reaper forgets them. A service marked for deletion goes when its last task has.
///
/// The original deletes such tasks at once when leadership begins, without a graceful stop
/// (`orchestration.md` §20.9).
#[derive(Debug, Default)]
pub struct Removal {
    services: BTreeSet<String>,
}

fn is_going(service: Option<&Shared<Service>>) -> bool {
    service.is_none_or(|s| s.pending_delete)
}

fn to_remove(task: &Task) -> bool {
    task.desired_state < TaskState::Remove as i32
}

impl Reconciler for Removal {
    fn name(&self) -> &'static str {
        "removal"
    }

    fn init(&mut self, _: &mut Ctx<'_>, tables: &Tables) {
        let going = tables.services().iter().filter(|s| s.pending_delete).map(|s| s.id.clone());
        self.services = going.collect();
        let orphans = tables.tasks().iter().filter(|t| !t.service_id.is_empty());
        let orphans = orphans.filter(|t| tables.services().get(&t.service_id).is_none());
        self.services.extend(orphans.map(|t| t.service_id.to_string()));
    }

    fn observe(&mut self, _: &mut Ctx<'_>, events: &[Event], tables: &Tables) {
        for event in events {
            let service = match (event.new(), event.object()) {
                (_, Object::Service(service)) => service.id.as_str(),
                // Of those that are to be removed already, only the last one matters, to a service that waits for it.
                (Some(_), Object::Task(task)) if !to_remove(task) => continue,
                (None, Object::Task(task)) if tables.services().get(&task.service_id).is_none() => continue,
                (_, Object::Task(task)) if !task.service_id.is_empty() => task.service_id.as_str(),
                _ => continue,
            };
            if is_going(tables.services().get(service)) && !self.services.contains(service) {
                self.services.insert(service.to_owned());
            }
        }
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let mut groups = Vec::new();
        while let Some(service) = self.services.pop_first() {
            let known = tables.services().get(&service);
            if !is_going(known) {
                continue;
            }
            let tasks = tables.tasks().by_service(&service);
            let raise = |task: &Shared<Task>| Group { tag: 0, patches: vec![remove(task)] };
            groups.extend(tasks.filter(|t| to_remove(t)).take(MOST - groups.len()).map(raise));
            if groups.len() == MOST {
                self.services.insert(service);
                return Decision { groups, wake_at: Some(ctx.now.mono) };
            }
            if known.is_some() && tables.tasks().by_service(&service).next().is_none() {
                tracing::info!(service.id = service, "service is deleted, its last task is gone");
                let write = Write::Remove(Kind::Service, service);
                groups.push(Group { tag: 0, patches: vec![Patch::new(write)] });
            } else if known.is_none() && !groups.is_empty() {
                tracing::info!(service.id = service, "tasks of a deleted service are removed");
            }
        }
        Decision { groups, wake_at: None }
    }
}
