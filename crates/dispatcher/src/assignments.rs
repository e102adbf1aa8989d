//! What a node must have: from tasks and volumes to the messages of one Assignments stream. No I/O, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_api::v1::{
    Assignment, AssignmentChange, AssignmentsMessage, Config, ResourceType, Secret, Task, TaskState, Volume,
    VolumeAssignment, assignment, assignment_change::AssignmentAction, assignments_message, task_spec,
    volume_publish_status,
};
use swarm_api::{Shared, StoreObject};
use swarm_store::Tables;

use crate::driver_secrets::Made;

/// A change of a task, as its node's stream has to look at it.
#[derive(Debug, Clone)]
pub(crate) enum TaskChange {
    /// The task as it is. With `send` unset nothing but its status changed, which the node knows; only what it
    /// needs may have to be released.
    Changed {
        /// The task.
        task: Shared<Task>,
        /// The node has to be told.
        send: bool,
    },
    /// The task is gone.
    Removed,
}

/// Changes that wait for the next message of a stream; a later one of the same object takes the place of an
/// earlier one.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) tasks: BTreeMap<String, TaskChange>,
    pub(crate) volumes: BTreeMap<String, Option<Shared<Volume>>>,
}

impl Pending {
    pub(crate) fn len(&self) -> usize {
        self.tasks.len() + self.volumes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.volumes.is_empty()
    }

    pub(crate) fn put_task(&mut self, id: &str, mut change: TaskChange) {
        if let (Some(TaskChange::Changed { send: true, .. }), TaskChange::Changed { send, .. }) =
            (self.tasks.get(id), &mut change)
        {
            *send = true;
        }
        self.tasks.insert(id.to_owned(), change);
    }

    pub(crate) fn put_volume(&mut self, id: &str, volume: Option<Shared<Volume>>) {
        self.volumes.insert(id.to_owned(), volume);
    }
}

/// The task is one that `node_id` has to know: assigned to it, whatever has become of it since.
pub(crate) fn concerns(task: &Task, node_id: &str) -> bool {
    task.node_id == node_id && task.status.reached(TaskState::Assigned)
}

/// What a node has to be told when a task changes from `old` to `new`; `None` if nothing.
pub(crate) fn task_change(
    node_id: &str,
    old: Option<&Shared<Task>>,
    new: Option<&Shared<Task>>,
) -> Option<TaskChange> {
    let was = old.filter(|task| concerns(task, node_id));
    let is = new.filter(|task| concerns(task, node_id));
    match (was, is) {
        (_, Some(new)) => {
            let known = was.filter(|_| new.status.state > TaskState::Assigned as i32);
            let send = !known.is_some_and(|old| Task::is_same_to_its_node(old, new));
            let ends =
                was.is_some_and(|old| !old.status.state().is_terminal()) && new.status.state().is_terminal();
            (send || ends).then(|| TaskChange::Changed { task: new.clone(), send })
        }
        (Some(_), None) => Some(TaskChange::Removed),
        (None, None) => None,
    }
}

/// Something that a task or a volume needs on its node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Dependency {
    Secret(String),
    Config(String),
}

#[derive(Debug)]
struct Use {
    users: usize,
    /// The object was found and sent.
    sent: bool,
}

#[derive(Debug)]
struct KnownVolume {
    state: i32,
    secrets: Vec<Dependency>,
}

/// What one stream has told its node.
#[derive(Debug)]
pub(crate) struct AssignmentSet {
    node_id: Arc<str>,
    sequence: u64,
    tasks: BTreeMap<String, Vec<Dependency>>,
    volumes: BTreeMap<String, KnownVolume>,
    in_use: BTreeMap<Dependency, Use>,
    pub(crate) made: Made,
}

/// The message being built.
#[derive(Default)]
struct Draft {
    changes: Vec<AssignmentChange>,
    /// Dependencies whose users changed, and whether they had any before.
    touched: BTreeMap<Dependency, bool>,
}

impl Draft {
    fn push(&mut self, action: AssignmentAction, item: assignment::Item) {
        self.changes.push(AssignmentChange {
            assignment: Some(Assignment { item: Some(item) }),
            action: action as i32,
        });
    }
}

impl AssignmentSet {
    pub(crate) fn new(node_id: Arc<str>) -> Self {
        AssignmentSet {
            node_id,
            sequence: 0,
            tasks: BTreeMap::new(),
            volumes: BTreeMap::new(),
            in_use: BTreeMap::new(),
            made: Made::default(),
        }
    }

    /// The node was told of this task.
    pub(crate) fn knows(&self, task_id: &str) -> bool {
        self.tasks.contains_key(task_id)
    }

    /// The first message of the stream: everything. `volumes` are those with a publish status for the node.
    pub(crate) fn complete(
        &mut self,
        tables: &Tables,
        volumes: impl IntoIterator<Item = String>,
    ) -> AssignmentsMessage {
        let mut draft = Draft::default();
        let node_id = self.node_id.clone();
        for task in tables.tasks().by_node(&node_id).filter(|task| concerns(task, &node_id)) {
            self.changed_task(task, true, &mut draft);
        }
        for volume in volumes.into_iter().filter_map(|id| tables.volumes().get(&id)) {
            self.changed_volume(volume, &mut draft);
        }
        self.finish(draft, tables, assignments_message::Type::Complete)
    }

    /// The message for these changes; `None` if the node need not hear of them. What tasks refer to is looked
    /// up in `tables`.
    pub(crate) fn incremental(&mut self, pending: Pending, tables: &Tables) -> Option<AssignmentsMessage> {
        let mut draft = Draft::default();
        for (id, change) in pending.tasks {
            match change {
                TaskChange::Changed { task, send } => self.changed_task(&task, send, &mut draft),
                TaskChange::Removed => self.removed_task(id, &mut draft),
            }
        }
        for (id, volume) in pending.volumes {
            match volume {
                Some(volume) => self.changed_volume(&volume, &mut draft),
                None => self.forget_volume(&id, &mut draft),
            }
        }
        if draft.changes.is_empty() && draft.touched.is_empty() {
            return None;
        }
        let before = self.sequence;
        let message = self.finish(draft, tables, assignments_message::Type::Incremental);
        if message.changes.is_empty() {
            self.sequence = before;
            return None;
        }
        Some(message)
    }

    fn changed_task(&mut self, task: &Shared<Task>, send: bool, draft: &mut Draft) {
        let known = self.tasks.contains_key(task.id.as_str());
        if send || !known {
            draft.push(AssignmentAction::Update, assignment::Item::Task(task.clone()));
        }
        let wanted =
            if task.status.state().is_terminal() { Vec::new() } else { dependencies(task, &self.made) };
        // Take before giving back, so that what both need is not sent anew.
        for dependency in &wanted {
            self.take(dependency, draft);
        }
        if let Some(held) = self.tasks.insert(task.id.to_string(), wanted) {
            self.give_back(held, draft);
        }
    }

    fn removed_task(&mut self, id: String, draft: &mut Draft) {
        let held = self.tasks.remove(&id).unwrap_or_default();
        self.give_back(held, draft);
        let task = Task { id: id.into(), ..Default::default() };
        draft.push(AssignmentAction::Remove, assignment::Item::Task(task.into()));
    }

    fn changed_volume(&mut self, volume: &Shared<Volume>, draft: &mut Draft) {
        use volume_publish_status::State;
        let Some(status) = volume.publish_status.iter().find(|s| *s.node_id == *self.node_id) else {
            return self.forget_volume(&volume.id, draft);
        };
        let known = self.volumes.get(&volume.id);
        if known.is_some_and(|known| known.state == status.state) {
            return;
        }
        let action = match status.state() {
            State::PendingPublish => return,
            State::PendingUnpublish => return self.forget_volume(&volume.id, draft),
            State::Published => AssignmentAction::Update,
            State::PendingNodeUnpublish => AssignmentAction::Remove,
        };
        let secrets: Vec<Dependency> =
            volume.spec.secrets.iter().map(|s| Dependency::Secret(s.secret.clone())).collect();
        for secret in &secrets {
            self.take(secret, draft);
        }
        let now = KnownVolume { state: status.state, secrets };
        if let Some(held) = self.volumes.insert(volume.id.clone(), now) {
            self.give_back(held.secrets, draft);
        }
        let info = volume.volume_info.as_ref();
        let assignment = VolumeAssignment {
            id: volume.id.clone(),
            volume_id: info.map(|i| i.volume_id.clone()).unwrap_or_default(),
            driver: volume.spec.driver.clone(),
            volume_context: info.map(|i| i.volume_context.clone()).unwrap_or_default(),
            publish_context: status.publish_context.clone(),
            access_mode: volume.spec.access_mode.clone(),
            secrets: volume.spec.secrets.clone(),
        };
        draft.push(action, assignment::Item::Volume(assignment));
    }

    fn forget_volume(&mut self, id: &str, draft: &mut Draft) {
        if let Some(held) = self.volumes.remove(id) {
            self.give_back(held.secrets, draft);
        }
    }

    fn take(&mut self, dependency: &Dependency, draft: &mut Draft) {
        let entry = self.in_use.entry(dependency.clone()).or_insert(Use { users: 0, sent: false });
        draft.touched.entry(dependency.clone()).or_insert(entry.users > 0);
        entry.users += 1;
    }

    fn give_back(&mut self, dependencies: Vec<Dependency>, draft: &mut Draft) {
        for dependency in dependencies {
            let Some(entry) = self.in_use.get_mut(&dependency) else { continue };
            draft.touched.entry(dependency).or_insert(entry.users > 0);
            entry.users -= 1;
        }
    }

    fn finish(
        &mut self,
        mut draft: Draft,
        tables: &Tables,
        kind: assignments_message::Type,
    ) -> AssignmentsMessage {
        let mut objects = Draft::default();
        let mut released = Draft::default();
        for (dependency, before) in std::mem::take(&mut draft.touched) {
            let Some(entry) = self.in_use.get_mut(&dependency) else { continue };
            if entry.users > 0 {
                if !entry.sent
                    && let Some(item) = lookup(&dependency, &self.made, tables)
                {
                    entry.sent = true;
                    objects.push(AssignmentAction::Update, item);
                }
            } else {
                self.in_use.remove(&dependency);
                if let Dependency::Secret(id) = &dependency {
                    self.made.forget(id);
                }
                if before {
                    released.push(AssignmentAction::Remove, only_id(dependency));
                }
            }
        }
        let mut changes = objects.changes;
        changes.append(&mut draft.changes);
        changes.append(&mut released.changes);
        let applies_to = match kind {
            assignments_message::Type::Complete => String::new(),
            assignments_message::Type::Incremental => self.sequence.to_string(),
        };
        self.sequence += 1;
        AssignmentsMessage { r#type: kind as i32, applies_to, results_in: self.sequence.to_string(), changes }
    }
}

fn references(task: &Task, kind: ResourceType) -> impl Iterator<Item = &str> {
    let references = task.spec.resource_references.iter();
    references.filter(move |r| r.resource_type == kind as i32).map(|r| r.resource_id.as_str())
}

/// Secrets that a task refers to; it may name one twice.
pub(crate) fn secret_ids(task: &Task) -> impl Iterator<Item = &str> {
    let container = match &task.spec.runtime {
        Some(task_spec::Runtime::Container(container)) => Some(container),
        _ => None,
    };
    let named = container.into_iter().flat_map(|c| c.secrets.iter().map(|s| s.secret_id.as_str()));
    references(task, ResourceType::Secret).chain(named)
}

/// Secrets and configs that a task refers to, each once. Secrets that were made for it go by their own ids.
fn dependencies(task: &Task, made: &Made) -> Vec<Dependency> {
    let sent_as = |id: &str| made.sent_as(id, &task.id).unwrap_or_else(|| id.to_owned());
    let mut found: Vec<Dependency> = secret_ids(task).map(|id| Dependency::Secret(sent_as(id))).collect();
    found.extend(references(task, ResourceType::Config).map(|id| Dependency::Config(id.to_owned())));
    if let Some(task_spec::Runtime::Container(container)) = &task.spec.runtime {
        found.extend(container.configs.iter().map(|c| Dependency::Config(c.config_id.clone())));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The object as it is sent. A secret with a driver is what the driver made of it.
fn lookup(dependency: &Dependency, made: &Made, tables: &Tables) -> Option<assignment::Item> {
    let found = match dependency {
        Dependency::Secret(id) => {
            let stored = || tables.secrets().get(id).filter(|secret| secret.spec.driver.is_none());
            made.get(id).or_else(stored).cloned().map(assignment::Item::Secret)
        }
        Dependency::Config(id) => tables.configs().get(id).cloned().map(assignment::Item::Config),
    };
    if found.is_none() {
        tracing::debug!(?dependency, "a task refers to something that can't be sent");
    }
    found
}

fn only_id(dependency: Dependency) -> assignment::Item {
    match dependency {
        Dependency::Secret(id) => assignment::Item::Secret(Secret { id, ..Default::default() }.into()),
        Dependency::Config(id) => assignment::Item::Config(Config { id, ..Default::default() }.into()),
    }
}

/// Nodes that a volume has a publish status for.
pub(crate) fn published_to(volume: &Volume) -> impl Iterator<Item = &str> {
    debug_assert!(!StoreObject::id(volume).is_empty());
    volume.publish_status.iter().map(|status| status.node_id.as_str())
}
