//! What changed between two sets of tables.

use swarm_api::Kind;

use crate::{Event, Indexed, Table, Tables};

/// The order in which kinds are compared: that of the contract's restore. A kind comes after those that its
/// objects refer to by rule (resources after extensions).
const ORDER: [Kind; 10] = [
    Kind::Cluster,
    Kind::Config,
    Kind::Extension,
    Kind::Network,
    Kind::Node,
    Kind::Resource,
    Kind::Secret,
    Kind::Service,
    Kind::Task,
    Kind::Volume,
];

/// The events that turn `old` into `new`: by kind, and within a kind removed, updated and created objects, each
/// by id. Objects with equal content are left out. What the two share in memory is not looked at, so the cost
/// is that of the difference.
///
/// The events are those of many transactions at once: an id or a name may move from one object to another, so
/// they are for readers, and to be put on tables only by [`Tables::replay`].
pub fn diff(old: &Tables, new: &Tables) -> Vec<Event> {
    let mut events = Vec::new();
    for kind in ORDER {
        match kind {
            Kind::Node => table(old.nodes(), new.nodes(), &mut events),
            Kind::Service => table(old.services(), new.services(), &mut events),
            Kind::Task => table(old.tasks(), new.tasks(), &mut events),
            Kind::Network => table(old.networks(), new.networks(), &mut events),
            Kind::Cluster => table(old.clusters(), new.clusters(), &mut events),
            Kind::Secret => table(old.secrets(), new.secrets(), &mut events),
            Kind::Resource => table(old.resources(), new.resources(), &mut events),
            Kind::Extension => table(old.extensions(), new.extensions(), &mut events),
            Kind::Config => table(old.configs(), new.configs(), &mut events),
            Kind::Volume => table(old.volumes(), new.volumes(), &mut events),
        }
    }
    events
}

fn table<T: Indexed>(old: &Table<T>, new: &Table<T>, events: &mut Vec<Event>) {
    let (mut removed, mut updated, mut created) = (Vec::new(), Vec::new(), Vec::new());
    old.differences(new, |old, new| match (old, new) {
        (Some(old), Some(new)) => {
            updated
                .push(Event::Updated { old: T::into_object(old.clone()), new: T::into_object(new.clone()) });
        }
        (Some(old), None) => removed.push(Event::Removed(T::into_object(old.clone()))),
        (None, Some(new)) => created.push(Event::Created(T::into_object(new.clone()))),
        (None, None) => {}
    });
    events.append(&mut removed);
    events.append(&mut updated);
    events.append(&mut created);
}
