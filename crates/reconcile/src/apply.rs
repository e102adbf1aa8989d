//! Writing groups: on plain tables, and inside a transaction of the store.

use std::collections::BTreeSet;
use std::sync::Arc;

use swarm_api::{Kind, Object};
use swarm_store::{Event, Tables, Tx};

use crate::assign;
use crate::{Batch, Effect, Group, Patch, Refused, bulk};

/// Applies a group to plain tables, as a whole or not at all. Returns what changed.
pub(crate) fn apply_group(tables: &mut Tables, group: &Group) -> Result<Vec<Event>, Refused> {
    if let Some((_, tasks)) = bulk::tasks(group) {
        bulk::apply(tables, &[group]).pop().unwrap_or(Ok(()))?;
        return Ok(tasks.map(|task| Event::Created(Object::Task(task.clone()))).collect());
    }
    let mut done = Vec::with_capacity(group.patches.len());
    for patch in &group.patches {
        match patch.apply(tables) {
            Ok(event) => done.extend(event),
            Err(refused) => {
                undo(tables, done);
                return Err(refused);
            }
        }
    }
    Ok(done)
}

fn undo(tables: &mut Tables, events: Vec<Event>) {
    for event in events.into_iter().rev() {
        let undone = match event {
            Event::Created(o) => tables.remove(o.kind(), o.id()),
            Event::Updated { old, .. } => tables.replace(old),
            Event::Removed(o) => tables.insert(o),
        };
        debug_assert!(undone.is_ok(), "what was there before fits again: {undone:?}");
    }
}

impl Batch {
    /// Writes everything in it: one result per group, then one per list of assignments. To be called in the closure of
    /// [`swarm_store::Store::update_alone`], for the brain knows its own commits by what is in them.
    ///
    /// Meanwhile the transaction's changes of a task are several; in its entry they are one.
    ///
    /// # Errors
    /// Only if the store refuses a change that passed its evaluation: then the whole transaction must end.
    pub fn apply(&self, tx: &mut Tx) -> Result<Vec<Result<(), Refused>>, swarm_store::Error> {
        let mut results = write_groups(tx, &self.groups)?;
        if !self.assignments.is_empty() {
            let refused = assign::apply(&self.assignments, tx).into_iter();
            results.extend(refused.map(|refused| match refused.is_empty() {
                true => Ok(()),
                false => Err(Refused::Assignments(refused)),
            }));
        }
        if !self.groups.is_empty() {
            tx.merge_task_changes();
        }
        Ok(results)
    }
}

/// Evaluates each group on the transaction's tables and writes it, as a whole or not at all; groups do not depend on each
/// other's fate.
fn write_groups(tx: &mut Tx, groups: &[Arc<Group>]) -> Result<Vec<Result<(), Refused>>, swarm_store::Error> {
    let mut results = Vec::with_capacity(groups.len());
    let mut bulk: Vec<&Group> = Vec::new();
    for group in groups {
        if bulk::tasks(group).is_some() {
            bulk.push(group);
            continue;
        }
        if !bulk.is_empty() {
            results.extend(bulk::apply(tx, &std::mem::take(&mut bulk)));
        }
        results.push(if is_simple(&group.patches) {
            match evaluate(tx, group) {
                Ok(effects) => {
                    for effect in effects {
                        write(tx, effect)?;
                    }
                    Ok(())
                }
                Err(refused) => Err(refused),
            }
        } else {
            tx.group(|tx| {
                for patch in &group.patches {
                    let effect = patch.evaluate(tx)?;
                    write(tx, effect)?;
                }
                Ok(())
            })
        });
    }
    if !bulk.is_empty() {
        results.extend(bulk::apply(tx, &bulk));
    }
    Ok(results)
}

/// What a simple group comes to, without changing anything.
fn evaluate(tables: &Tables, group: &Group) -> Result<Vec<Effect>, Refused> {
    let effect = |patch: &Patch| {
        let effect = patch.evaluate(tables)?;
        match &effect {
            Effect::Create(o) if tables.object(o.kind(), o.id()).is_some() => {
                Err(Refused::Store(swarm_store::Error::Exists))
            }
            _ => Ok(effect),
        }
    };
    group.patches.iter().map(effect).collect()
}

/// Patches of different tasks: none can see another's effect, and tasks have no unique names, so that nothing
/// but the evaluation can refuse them, and no way back is needed.
fn is_simple(patches: &[Patch]) -> bool {
    let tasks = patches.iter().all(|p| p.write.target().0 == Kind::Task);
    if patches.len() == 1 {
        return tasks;
    }
    let mut seen = BTreeSet::new();
    tasks && patches.iter().all(|p| seen.insert(p.write.target().1))
}

fn write(tx: &mut Tx, effect: Effect) -> Result<(), swarm_store::Error> {
    macro_rules! each {
        ($object:expr, $method:ident, $($kind:ident),*) => {
            match $object {
                $(Object::$kind(mut o) => {
                    if let Some(stored) = tx.get::<swarm_api::v1::$kind>(&o.id) {
                        // The patch was evaluated on this very version, or on a change of this transaction to it.
                        o.meta.version = stored.meta.version;
                    }
                    tx.$method(o).map(drop)
                })*
            }
        };
    }
    macro_rules! remove {
        ($kind:expr, $id:expr, $($name:ident),*) => {
            match $kind {
                $(Kind::$name => tx.remove::<swarm_api::v1::$name>($id).map(drop),)*
            }
        };
    }
    match effect {
        Effect::Create(o) => {
            each!(
                o, create, Node, Service, Task, Network, Cluster, Secret, Resource, Extension, Config, Volume
            )
        }
        Effect::Update(o) => {
            each!(
                o, update, Node, Service, Task, Network, Cluster, Secret, Resource, Extension, Config, Volume
            )
        }
        Effect::Remove(kind, id) => remove!(
            kind, &id, Node, Service, Task, Network, Cluster, Secret, Resource, Extension, Config, Volume
        ),
        Effect::Nothing => Ok(()),
    }
}
