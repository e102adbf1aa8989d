//! Which changes a watcher wants.

use std::mem::{Discriminant, discriminant};

use swarm_api::v1::select_by::By;
use swarm_api::v1::watch_request::WatchEntry;
use swarm_api::v1::{SelectBy, WatchActionKind};
use swarm_api::{Kind, Object};
use swarm_store::Event;
use tonic::Status;

/// All entries of a request; a change that one of them selects is sent.
#[derive(Debug)]
pub(super) struct Selection(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    kind: Wanted,
    actions: i32,
    filters: Vec<By>,
}

/// A kind of objects, or the resources of one kind.
#[derive(Debug)]
enum Wanted {
    Kind(Kind),
    Resources(String),
}

impl Selection {
    pub(super) fn new(entries: Vec<WatchEntry>) -> Result<Selection, Status> {
        entries.into_iter().map(Entry::new).collect::<Result<_, _>>().map(Selection)
    }

    /// What happened to the object, if this is wanted.
    pub(super) fn action(&self, event: &Event) -> Option<WatchActionKind> {
        let action = match event {
            Event::Created(_) => WatchActionKind::WatchActionCreate,
            Event::Updated { .. } => WatchActionKind::WatchActionUpdate,
            Event::Removed(_) => WatchActionKind::WatchActionRemove,
        };
        self.0.iter().any(|entry| entry.matches(action, event.object())).then_some(action)
    }
}

impl Entry {
    fn new(entry: WatchEntry) -> Result<Entry, Status> {
        if entry.kind.is_empty() {
            return Err(Status::invalid_argument("no kind of object specified"));
        }
        use WatchActionKind::{WatchActionCreate, WatchActionRemove, WatchActionUpdate};
        let all = WatchActionCreate as i32 | WatchActionUpdate as i32 | WatchActionRemove as i32;
        if entry.action & all == 0 {
            return Err(Status::invalid_argument("unrecognized action"));
        }
        let filters: Vec<By> = entry.filters.into_iter().filter_map(|SelectBy { by }| by).collect();
        no_conflicts(&filters)?;
        // Resources are watched by the name of their own kind.
        let kind = Kind::ALL.iter().find(|kind| kind.name() == entry.kind && **kind != Kind::Resource);
        let kind = kind.map_or_else(|| Wanted::Resources(entry.kind.clone()), |kind| Wanted::Kind(*kind));
        Ok(Entry { kind, actions: entry.action, filters })
    }

    fn matches(&self, action: WatchActionKind, object: &Object) -> bool {
        let kind = match &self.kind {
            Wanted::Kind(kind) => object.kind() == *kind,
            Wanted::Resources(kind) => matches!(object, Object::Resource(resource) if resource.kind == *kind),
        };
        kind && self.actions & action as i32 != 0 && self.filters.iter().all(|filter| passes(filter, object))
    }
}

/// No field is given twice, nor two that exclude each other.
fn no_conflicts(filters: &[By]) -> Result<(), Status> {
    let kinds: Vec<Discriminant<By>> = filters.iter().map(discriminant).collect();
    let exclude = [
        [By::Id(String::new()), By::IdPrefix(String::new())],
        [By::Name(String::new()), By::NamePrefix(String::new())],
        [By::Custom(Default::default()), By::CustomPrefix(Default::default())],
        [By::Slot(Default::default()), By::ServiceId(String::new())],
    ];
    let twice = kinds.iter().enumerate().any(|(i, kind)| kinds[..i].contains(kind));
    let both = exclude.iter().any(|pair| pair.iter().all(|by| kinds.contains(&discriminant(by))));
    if twice || both { Err(Status::invalid_argument("conflicting filters specified")) } else { Ok(()) }
}

/// The object passes a filter; one that does not apply to its kind passes everything.
fn passes(filter: &By, object: &Object) -> bool {
    let custom = |index: &str, test: &dyn Fn(&str) -> bool| {
        object.annotations().indices.iter().any(|entry| entry.key == index && test(&entry.val))
    };
    match (filter, object) {
        (By::Id(id), _) => object.id() == id,
        (By::IdPrefix(prefix), _) => object.id().starts_with(prefix),
        (By::Name(name), _) => self::name(object).is_some_and(|own| own == name),
        (By::NamePrefix(prefix), _) => self::name(object).is_some_and(|own| own.starts_with(prefix)),
        (By::Custom(by), _) => custom(&by.index, &|value| value == by.value),
        (By::CustomPrefix(by), _) => custom(&by.index, &|value| value.starts_with(&by.value)),
        (By::ServiceId(id), Object::Task(task)) => task.service_id == *id,
        (By::NodeId(id), Object::Task(task)) => task.node_id == *id,
        (By::Slot(by), Object::Task(task)) => task.service_id == by.service_id && task.slot == by.slot,
        (By::DesiredState(state), Object::Task(task)) => task.desired_state == *state,
        (By::Role(role), Object::Node(node)) => node.role == *role,
        (By::Membership(membership), Object::Node(node)) => node.spec.membership == *membership,
        _ => true,
    }
}

/// The name that a watcher filters by: a node's is its hostname, and it has none before it is described.
fn name(object: &Object) -> Option<&str> {
    match object {
        Object::Node(node) => node.description.as_ref().map(|description| description.hostname.as_str()),
        _ => Some(&object.annotations().name),
    }
}
