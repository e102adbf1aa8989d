//! Leads each commit to the streams that it concerns. A change costs as much as the nodes it concerns.

use std::collections::BTreeSet;

use swarm_api::v1::{Cluster, Task, TaskState, Volume};
use swarm_api::{Kind, Object, Shared, StoreObject};
use swarm_store::{Event, Indexed, Kinds, Table, View};

use crate::assignments::{published_to, task_change};
use crate::config::Timings;
use crate::term::{Common, State, Term};

/// What [`route`] looks at. Secrets and configs never change under a task; they are read with the task.
pub(crate) const FOLLOWED: Kinds = Kinds::of(&[Kind::Task, Kind::Node, Kind::Cluster, Kind::Volume]);

/// Takes a commit, or the sum of several.
pub(crate) fn route(state: &mut State, timings: &Timings, events: &[Event], view: &View) {
    for event in events {
        match (event.old(), event.new()) {
            (old, Some(Object::Task(new))) => task(state, old.and_then(as_task), Some(new)),
            (Some(Object::Task(old)), None) => task(state, Some(old), None),
            (_, Some(Object::Node(node))) => {
                if let Some(session) = state.registry.current(&node.id) {
                    session.session.put_node(node);
                }
            }
            (Some(Object::Node(old)), None) => state.registry.remove(&old.id),
            (_, Some(Object::Cluster(new))) => cluster(state, timings, new),
            (old, Some(Object::Volume(new))) => volume(state, old.and_then(as_volume), Some(new)),
            (Some(Object::Volume(old)), None) => volume(state, Some(old), None),
            _ => {}
        }
    }
    state.routed = view.clone();
}

/// Catches up with a view after commits were missed.
pub(crate) fn catch_up(state: &mut State, timings: &Timings, view: &View) {
    let old = state.routed.clone();
    let mut events = Vec::new();
    differences::<Cluster>(&old, view, &mut events);
    differences::<swarm_api::v1::Node>(&old, view, &mut events);
    differences::<Volume>(&old, view, &mut events);
    differences::<Task>(&old, view, &mut events);
    route(state, timings, &events, view);
}

fn differences<T: Indexed>(old: &View, new: &View, events: &mut Vec<Event>) {
    let (before, after): (&Table<T>, &Table<T>) = (T::table(old), T::table(new));
    for object in after.iter() {
        match before.get(object.id()) {
            Some(was) if Shared::ptr_eq(was, object) => {}
            Some(was) => events.push(Event::Updated {
                old: T::into_object(was.clone()),
                new: T::into_object(object.clone()),
            }),
            None => events.push(Event::Created(T::into_object(object.clone()))),
        }
    }
    let gone = before.iter().filter(|was| after.get(was.id()).is_none());
    events.extend(gone.map(|was| Event::Removed(T::into_object(was.clone()))));
}

fn as_task(object: &Object) -> Option<&Shared<Task>> {
    Task::from_object(object)
}

fn as_volume(object: &Object) -> Option<&Shared<Volume>> {
    Volume::from_object(object)
}

fn task(state: &mut State, old: Option<&Shared<Task>>, new: Option<&Shared<Task>>) {
    log(old, new);
    let (before, after) = (old.map(|t| t.node_id.as_str()), new.map(|t| t.node_id.as_str()));
    let moved = before.filter(|node_id| after != Some(*node_id));
    for node_id in moved.into_iter().chain(after).filter(|id| !id.is_empty()) {
        let Some(assignments) = state.registry.current(node_id).and_then(|s| s.assignments.as_ref()) else {
            continue;
        };
        if let (Some(change), Some(task)) = (task_change(node_id, old, new), new.or(old)) {
            assignments.put_task(&task.id, change);
        }
    }
}

/// Tells an operator what became of a task, once it is committed: at `info` that it runs and how it ended.
fn log(old: Option<&Shared<Task>>, new: Option<&Shared<Task>>) {
    let (Some(old), Some(new)) = (old, new) else { return };
    let (before, state) = (old.status.state(), new.status.state());
    if before == state {
        return;
    }
    macro_rules! say {
        ($level:ident) => {
            tracing::$level!(
                task.id = new.id.as_str(),
                service.id = new.service_id.as_str(),
                node.id = new.node_id.as_str(),
                state.transition = format!("{}->{}", before.name(), state.name()),
                task.message = new.status.message.as_str(),
                err = new.status.err.as_str(),
                "task state changed"
            )
        };
    }
    if state >= TaskState::Running {
        say!(info);
    } else {
        say!(debug);
    }
}

fn cluster(state: &mut State, timings: &Timings, new: &Shared<Cluster>) {
    if new.spec.annotations.name != swarm_api::defaults::CLUSTER_NAME {
        return;
    }
    state.period = timings.period(Some(new));
    let common = Common {
        managers: state.common.managers.clone(),
        keys: new.network_bootstrap_keys.clone(),
        root_ca: new.root_ca.ca_cert.clone(),
    };
    Term::set_common(state, common);
}

fn volume(state: &mut State, old: Option<&Shared<Volume>>, new: Option<&Shared<Volume>>) {
    let Some(id) = new.or(old).map(|v| v.id.clone()) else { return };
    let nodes = |volume: Option<&Shared<Volume>>| -> BTreeSet<String> {
        volume.map(|v| published_to(v).map(str::to_owned).collect()).unwrap_or_default()
    };
    let (before, after) = (nodes(old), nodes(new));
    for node_id in &after {
        state.volumes.entry(node_id.clone()).or_default().insert(id.clone());
    }
    for node_id in before.difference(&after) {
        if let Some(volumes) = state.volumes.get_mut(node_id) {
            volumes.remove(&id);
            if volumes.is_empty() {
                state.volumes.remove(node_id);
            }
        }
    }
    for node_id in before.union(&after) {
        if let Some(assignments) = state.registry.current(node_id).and_then(|s| s.assignments.as_ref()) {
            assignments.put_volume(&id, new.cloned());
        }
    }
}
