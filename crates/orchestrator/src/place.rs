//! Where one task of a service belongs: a numbered slot, or a node for global services.

use std::collections::BTreeMap;

use swarm_api::Shared;
use swarm_api::v1::{Service, Task, TaskState, update_status};
use swarm_store::Tables;

use crate::dirty::is_dirty;
use crate::restart::{ended_by_itself, should_restart};
use crate::spec::{Mode, created_at, ended_at, has_ended, heard_at, is_live, mode};

/// A virtual slot. It exists because tasks name it; several tasks in one are one that is live, and history.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Slot(u64),
    Node(String),
}

impl Place {
    pub(crate) fn of(service: &Service, task: &Task) -> Place {
        match mode(&service.spec) {
            Some(Mode::Global | Mode::GlobalJob) => Place::Node(task.node_id.to_string()),
            _ => Place::Slot(task.slot),
        }
    }

    /// Its tasks, in the order of their ids.
    pub(crate) fn tasks<'a>(&self, tables: &'a Tables, service: &str) -> Vec<&'a Shared<Task>> {
        match self {
            Place::Slot(slot) => tables.tasks().by_slot(service, *slot).collect(),
            Place::Node(node) => tables.tasks().by_node(node).filter(|t| t.service_id == service).collect(),
        }
    }

    pub(crate) fn slot(&self) -> u64 {
        match self {
            Place::Slot(slot) => *slot,
            Place::Node(_) => 0,
        }
    }

    pub(crate) fn node(&self) -> &str {
        match self {
            Place::Slot(_) => "",
            Place::Node(node) => node,
        }
    }
}

/// A service's tasks by place.
pub(crate) fn by_place<'a>(tables: &'a Tables, service: &Service) -> BTreeMap<Place, Vec<&'a Shared<Task>>> {
    let mut places = BTreeMap::<_, Vec<_>>::new();
    for task in tables.tasks().by_service(&service.id) {
        places.entry(Place::of(service, task)).or_default().push(task);
    }
    places
}

/// The tasks of a place that fill it, and that an update would replace (`orchestration.md` §4): those that are
/// wanted on; else the newest, if it has ended and is not to be restarted. Nothing: the place is dead.
pub(crate) fn fills<'a>(
    tables: &Tables,
    service: &Service,
    tasks: &[&'a Shared<Task>],
) -> Vec<&'a Shared<Task>> {
    let live: Vec<_> = tasks.iter().copied().filter(|t| is_live(t)).collect();
    if !live.is_empty() || is_rolling_back(service) {
        return live;
    }
    ended_for_good(tables, service, tasks).into_iter().collect()
}

/// Of the tasks of a place of which none is wanted any more, the last one, if its policy lets nobody take its place.
pub(crate) fn ended_for_good<'a>(
    tables: &Tables,
    service: &Service,
    tasks: &[&'a Shared<Task>],
) -> Option<&'a Shared<Task>> {
    last(tables, service, tasks).filter(|last| !should_restart(tables, service, last))
}

/// Of the tasks of a place, the one whose end decides what becomes of it: the newest. One of another spec says nothing, if
/// one of the present spec has ended by itself beside it: as in a start-first rollback, where the old task ends while the
/// new one stops. One that had ended before says nothing of today, even if its spec is the present one again.
pub(crate) fn last<'a>(
    tables: &Tables,
    service: &Service,
    tasks: &[&'a Shared<Task>],
) -> Option<&'a Shared<Task>> {
    let mut kept = tasks.to_vec();
    kept.retain(|t| t.desired_state < TaskState::Remove as i32);
    let last = newest(&kept)?;
    if !is_dirty(tables, service, last) {
        return Some(last);
    }
    // Of one that was given up later nobody knows when it ended.
    let beside = |t: &Task| {
        t.status.state() != TaskState::Orphaned && ended_at(t).is_some_and(|end| end > created_at(last))
    };
    kept.retain(|t| ended_by_itself(t) && beside(t) && !is_dirty(tables, service, t));
    Some(newest(&kept).unwrap_or(last))
}

/// The last of a place's tasks: one that is wanted on, else the one that something became of last. Versions tell that,
/// whatever clocks say. A task that was given up, or is stopping still, and is heard of when all is over, is not newer for
/// that than those that were made after it; nor is one that was lost and says later how it failed, where those have
/// failed or completed by themselves.
pub(crate) fn newest<'a>(tasks: &[&'a Shared<Task>]) -> Option<&'a Shared<Task>> {
    let last = |t: &&&'a Shared<Task>| (is_live(t), t.meta.version.index, heard_at(t), t.id.clone());
    let mut left = tasks.to_vec();
    loop {
        let found = left.iter().max_by_key(last).copied()?;
        let still_stops = !is_live(found) && !has_ended(found);
        // Where one had ended before this one was made, a clock was wrong.
        let was_over = |t: &Task| has_ended(t) && ended_at(t).is_some_and(|end| end <= created_at(found));
        left.retain(|t| created_at(t) > created_at(found) && !was_over(t));
        let is_late = still_stops
            || matches!(found.status.state(), TaskState::Shutdown | TaskState::Orphaned)
            || left.iter().any(|t| overtakes(t, found));
        if !is_late || left.is_empty() {
            return Some(found);
        }
    }
}

/// The second of these tasks was given up for the first one, and heard of when that had ended by itself. One that came to
/// nothing beside it, as in a start-first update, overtakes nobody; nor does a failure what was done.
fn overtakes(next: &Task, lost: &Task) -> bool {
    let tells = match next.status.state() {
        TaskState::Complete => true,
        TaskState::Failed | TaskState::Rejected => lost.status.state() != TaskState::Complete,
        _ => false,
    };
    let outlived = || ended_at(lost).is_some_and(|end| created_at(next) < end);
    tells && has_ended(lost) && !is_live(lost) && outlived()
}

pub(crate) fn is_rolling_back(service: &Service) -> bool {
    service.update_status.as_ref().is_some_and(|s| s.state() == update_status::UpdateState::RollbackStarted)
}
