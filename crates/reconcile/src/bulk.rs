//! Many new tasks as one group.
//!
//! An orchestrator decides each task by itself; ten thousand of them differ in nothing but their names and places. Groups
//! that create one task each, on the same conditions, are refused or written for the same reasons, so that they can
//! be one: conditions are looked at once, and tables change once for all.

use swarm_api::defaults::MAX_BATCH_BYTES;
use swarm_api::v1::Task;
use swarm_api::{Kind, Object, Shared};
use swarm_store::{Tables, Tx};

use crate::{Group, Guard, Patch, Refused, Sizer, Write};

/// What the tasks of one group may take in a log entry, in bytes: what comes to them until they are written must fit too.
const MOST_BYTES: usize = MAX_BATCH_BYTES / 4;

fn created(patch: &Patch) -> Option<&Shared<Task>> {
    match &patch.write {
        Write::Create(Object::Task(task)) => Some(task),
        _ => None,
    }
}

/// New tasks and nothing else, with conditions only at the first: as good as conditions for each, for nothing in the
/// group can change what is true of them.
pub(crate) fn tasks(group: &Group) -> Option<(&[Guard], impl Iterator<Item = &Shared<Task>>)> {
    let (first, others) = group.patches.split_first()?;
    let bulk = !others.is_empty()
        && created(first).is_some()
        && first.guards.iter().all(|guard| guard.subject().0 != Kind::Task)
        && others.iter().all(|patch| patch.guards.is_empty() && created(patch).is_some());
    bulk.then(|| (&first.guards[..], group.patches.iter().filter_map(created)))
}

/// Makes neighbours that only create tasks, on the same conditions and with the same mark, one group.
pub(crate) fn join(groups: Vec<Group>) -> Vec<Group> {
    let mut joined: Vec<Group> = Vec::new();
    let (mut bytes, mut open, mut sizer) = (0, false, Sizer::default());
    for mut group in groups {
        let task = match &group.patches[..] {
            [patch] if patch.guards.iter().all(|guard| guard.subject().0 != Kind::Task) => created(patch),
            _ => None,
        };
        let Some(task) = task else {
            open = false;
            joined.push(group);
            continue;
        };
        let own = sizer.bytes_of(task);
        match joined.last_mut().filter(|_| open) {
            Some(last)
                if bytes + own <= MOST_BYTES
                    && last.tag == group.tag
                    && last.patches[0].guards == group.patches[0].guards =>
            {
                bytes += own;
                last.patches.extend(group.patches.pop().map(|patch| Patch::new(patch.write)));
            }
            _ => {
                (bytes, open) = (own, true);
                joined.push(group);
            }
        }
    }
    joined
}

/// What a group takes in a log entry at most, in bytes, if it is one of new tasks.
pub(crate) fn bytes(group: &Group) -> Option<usize> {
    let mut sizer = Sizer::default();
    tasks(group).map(|(_, tasks)| tasks.map(|task| sizer.bytes_of(task)).sum())
}

/// Where tasks are added.
pub(crate) trait Place {
    /// What is there.
    fn tables(&self) -> &Tables;
    /// Adds tasks, all or none.
    fn add(&mut self, tasks: Vec<Shared<Task>>) -> swarm_store::Result<()>;
}

impl Place for Tables {
    fn tables(&self) -> &Tables {
        self
    }
    fn add(&mut self, tasks: Vec<Shared<Task>>) -> swarm_store::Result<()> {
        self.insert_tasks(&tasks)
    }
}

impl Place for Tx {
    fn tables(&self) -> &Tables {
        self
    }
    fn add(&mut self, tasks: Vec<Shared<Task>>) -> swarm_store::Result<()> {
        self.create_tasks(tasks)
    }
}

/// Adds the tasks of neighbouring groups of new tasks, each group as a whole or not at all: all at once if they fit.
pub(crate) fn apply(to: &mut impl Place, groups: &[&Group]) -> Vec<Result<(), Refused>> {
    let mut results: Vec<Result<(), Refused>> = groups
        .iter()
        .map(|group| {
            let guards = tasks(group).map_or(&[][..], |(guards, _)| guards);
            match guards.iter().find(|guard| !guard.holds(to.tables())) {
                Some(guard) => Err(Refused::Guard(guard.clone())),
                None => Ok(()),
            }
        })
        .collect();
    let of =
        |group: &&Group| tasks(group).into_iter().flat_map(|(_, tasks)| tasks.cloned()).collect::<Vec<_>>();
    let fit = groups.iter().zip(&results).filter(|(_, result)| result.is_ok());
    if to.add(fit.flat_map(|(group, _)| of(group)).collect()).is_err() {
        for (group, result) in groups.iter().zip(&mut results).filter(|(_, result)| result.is_ok()) {
            *result = to.add(of(group)).map_err(Refused::from);
        }
    }
    results
}
