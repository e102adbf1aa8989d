//! Who may decide what: each arrow of a task's life has one owner, and so has each kind of object.

use std::collections::BTreeMap;

use swarm_api::v1::{Task, TaskState};
use swarm_api::{Kind, Object, Shared};
use swarm_reconcile::{Effect, Group, Write};
use swarm_store::Tables;

use crate::broken::{Held, broken};
use crate::checks::{is_current, may_run, of_place, place, summary};
use crate::history::{RULE, kept};

const OWNERS: &str = "each transition has its owner";

fn is_orchestrator(name: &str) -> bool {
    matches!(name, "replicated" | "global" | "jobs" | "removal")
}

/// The states through which this reconciler may take a task (`orchestration.md` §2.3).
fn may_move(name: &str, from: TaskState, to: TaskState) -> bool {
    use TaskState::{Assigned, Complete, New, Pending, Rejected, Shutdown};
    from == to
        || match name {
            "allocator" => (from, to) == (New, Pending),
            // What makes room for others is rejected.
            "scheduler" => {
                (from == Pending && matches!(to, Assigned | Shutdown))
                    || ((Assigned..Complete).contains(&from) && to == Rejected)
            }
            "constraint enforcer" | "volume enforcer" => from < Complete && to == Rejected,
            _ => false,
        }
}

/// Whoever decides changes only what is his.
pub(crate) fn keeps_to_its_own(name: &str, tables: &Tables, groups: &[Group]) -> Held {
    let mut removed = BTreeMap::new();
    for patch in groups.iter().flat_map(|g| &g.patches) {
        let fault = |what: &str| broken(OWNERS, format!("{name}: {what}: {:?}", patch.write));
        match &patch.write {
            Write::Create(Object::Task(task)) => {
                if !is_orchestrator(name) || task.status.state() != TaskState::New {
                    return fault("it makes a task");
                }
            }
            Write::Remove(Kind::Task, id) => {
                let Some(task) = tables.tasks().get(id) else { continue };
                if may_run(task) {
                    return broken("nothing that runs is forgotten", format!("{name}: {}", summary(task)));
                }
                if name != "reaper" {
                    return fault("it deletes a task");
                }
                history_is_kept(tables, task, &mut removed)?;
            }
            Write::Create(_) | Write::Remove(..) => return fault("it is not its own"),
            write => {
                let (kind, id) = write.target();
                // What was made just now is not there yet.
                let Some(old) = tables.object(kind, id) else { continue };
                let Ok(Effect::Update(new)) = patch.evaluate(tables) else { continue };
                match (&old, &new) {
                    (Object::Task(old), Object::Task(new)) => task_is_its_own(name, old, new)?,
                    (Object::Service(_), _) if is_orchestrator(name) || name == "allocator" => (),
                    (Object::Network(_), _) if name == "allocator" => (),
                    (Object::Volume(_), _) if name == "scheduler" => (),
                    _ => return fault("it is not its own"),
                }
            }
        }
    }
    Ok(())
}

fn task_is_its_own(name: &str, old: &Task, new: &Task) -> Held {
    let (from, to) = (old.status.state(), new.status.state());
    let wants = old.desired_state != new.desired_state;
    if !may_move(name, from, to) || (wants && !is_orchestrator(name)) {
        return broken(OWNERS, format!("{name}: {} becomes {}", summary(old), summary(new)));
    }
    Ok(())
}

/// No more is deleted than the limit says.
fn history_is_kept(
    tables: &Tables,
    task: &Shared<Task>,
    removed: &mut BTreeMap<(String, String), usize>,
) -> Held {
    let Some(service) = tables.services().get(&task.service_id) else { return Ok(()) };
    if task.desired_state() == TaskState::Remove {
        return Ok(());
    }
    let at = place(task);
    let gone = removed.entry((service.id.clone(), at.clone())).or_default();
    *gone += 1;
    let all = of_place(tables, &service.id, &at).len();
    match kept(tables, service) {
        Some(least) if all >= *gone + least => Ok(()),
        least => broken(RULE, format!("{} of {all} tasks go, limit {least:?}: {}", gone, summary(task))),
    }
}

/// No job does again what is done.
pub(crate) fn nothing_done_twice(tables: &Tables, groups: &[Group]) -> Held {
    for patch in groups.iter().flat_map(|g| &g.patches) {
        let Write::Create(Object::Task(new)) = &patch.write else { continue };
        let Some(service) = tables.services().get(&new.service_id) else { continue };
        let complete = |t: &&Shared<Task>| is_current(service, t) && t.status.state() == TaskState::Complete;
        if let Some(done) = of_place(tables, &service.id, &place(new)).into_iter().find(complete) {
            let what = format!("{} is made, but {} has completed", new.id, done.id);
            return broken("no job does again what is done", what);
        }
    }
    Ok(())
}
