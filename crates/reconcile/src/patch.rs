//! Guarded changes.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use swarm_api::v1::{GenericResource, Service, Task, TaskState, VolumeAttachment, volume_spec};
use swarm_api::{Kind, Object, Shared, Text};
use swarm_store::{Event, Tables};

use crate::assign::is_usable;

/// Something that must still be true when a patch is applied.
#[derive(Debug, Clone, PartialEq)]
pub enum Guard {
    /// The object is there.
    Exists(Kind, String),
    /// The object still has this version.
    Version(Kind, String, u64),
    /// The service is there, is not being deleted, and its spec and the one before have these versions
    /// (`spec_version.index` and `previous_spec_version.index`, 0 if absent). A rollback brings a version back, but not
    /// with the one before it.
    ServiceSpec(String, [u64; 2]),
    /// The node is READY and ACTIVE.
    NodeUsable(String),
    /// The cluster volume is ACTIVE, and not being deleted.
    VolumeUsable(String),
    /// The task was last seen in exactly this state.
    TaskState(String, TaskState),
    /// The task was last seen below this state.
    TaskBelow(String, TaskState),
    /// The task was last seen above this state.
    TaskAbove(String, TaskState),
    /// The task is wanted at or below this state.
    DesiredAtMost(String, TaskState),
    /// The task is wanted above this state.
    DesiredAbove(String, TaskState),
    /// The task is on this node (the empty id: not assigned yet).
    TaskOnNode(String, String),
}

/// Why a group was not written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// A guard does not hold.
    #[error("guard does not hold: {0:?}")]
    Guard(Guard),
    /// The object to change is gone.
    #[error("the {kind} {id} is gone", kind = .0.name(), id = .1)]
    Gone(Kind, String),
    /// Of a list of assignments, those in these places do not hold; the others are written.
    #[error("{} assignments do not hold", .0.len())]
    Assignments(Vec<u32>),
    /// The store refused the change.
    #[error("{0}")]
    Store(#[from] swarm_store::Error),
}

/// Computes the new object from the present one; `None` leaves it as it is.
pub type Edit = Arc<dyn Fn(&Object) -> Option<Object> + Send + Sync>;

/// A change of one object.
#[derive(Clone)]
pub enum Write {
    /// Adds an object.
    Create(Object),
    /// Removes an object; one that is gone already is fine.
    Remove(Kind, String),
    /// Raises what is wanted of a task; a task wanted in a later state stays as it is.
    RaiseDesired(String, TaskState),
    /// Raises the observed state of a task (the manager's own transitions); a task seen in this or a later
    /// state stays as it is.
    RaiseState {
        /// The task.
        task: String,
        /// Its new state.
        state: TaskState,
        /// How it was reached.
        message: String,
        /// What went wrong, if anything.
        err: String,
        /// Time of the observation.
        at: SystemTime,
    },
    /// Says why a task waits, without changing its state; written only if the text changes.
    Explain {
        /// The task.
        task: String,
        /// The text for the user.
        err: String,
        /// Time of the observation.
        at: SystemTime,
    },
    /// Puts a PENDING task on a node: ASSIGNED.
    Assign {
        /// The task.
        task: String,
        /// The node.
        node: String,
        /// Named and discrete generic resources taken on the node.
        generic: Vec<GenericResource>,
        /// Cluster volumes chosen.
        volumes: Vec<VolumeAttachment>,
        /// How the node was found.
        message: String,
        /// Time of the decision.
        at: SystemTime,
    },
    /// Any other change, with a name for traces.
    Edit {
        /// The kind of the object.
        kind: Kind,
        /// The object.
        id: String,
        /// What is done to it.
        what: &'static str,
        /// Computes the new object.
        edit: Edit,
    },
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Write::Create(o) => write!(f, "create {} {}", o.kind().name(), o.id()),
            Write::Remove(kind, id) => write!(f, "remove {} {id}", kind.name()),
            Write::RaiseDesired(id, state) => write!(f, "desire {} of task {id}", state.name()),
            Write::RaiseState { task, state, err, .. } => write!(f, "{} task {task} {err:?}", state.name()),
            Write::Explain { task, err, .. } => write!(f, "explain task {task}: {err:?}"),
            Write::Assign { task, node, .. } => write!(f, "assign task {task} to node {node}"),
            Write::Edit { kind, id, what, .. } => write!(f, "{what} {} {id}", kind.name()),
        }
    }
}

/// One guarded change.
#[derive(Debug, Clone)]
pub struct Patch {
    /// All of these must hold, else the group is refused.
    pub guards: Vec<Guard>,
    /// The change.
    pub write: Write,
}

fn spec_versions(service: &Service) -> [u64; 2] {
    [service.spec_version, service.previous_spec_version].map(|version| version.map_or(0, |v| v.index))
}

impl Guard {
    /// The service is there to stay, and asks for what it asks for now.
    pub fn spec_of(service: &Service) -> Guard {
        Guard::ServiceSpec(service.id.clone(), spec_versions(service))
    }

    /// Whether it holds on these tables.
    pub fn holds(&self, tables: &Tables) -> bool {
        match self {
            Guard::Exists(kind, id) => tables.object(*kind, id).is_some(),
            Guard::Version(kind, id, version) => {
                tables.object(*kind, id).is_some_and(|o| o.meta().version.index == *version)
            }
            Guard::ServiceSpec(id, versions) => {
                tables.services().get(id).is_some_and(|s| !s.pending_delete && spec_versions(s) == *versions)
            }
            Guard::NodeUsable(id) => is_usable(tables.nodes(), id),
            Guard::VolumeUsable(id) => tables.volumes().get(id).is_some_and(|v| {
                v.spec.availability() == volume_spec::VolumeAvailability::Active && !v.pending_delete
            }),
            Guard::TaskState(id, state) => tables.tasks().get(id).is_some_and(|t| t.status.state() == *state),
            Guard::TaskAbove(id, state) => {
                tables.tasks().get(id).is_some_and(|t| t.status.state > *state as i32)
            }
            Guard::TaskBelow(id, state) => tables.tasks().get(id).is_some_and(|t| !t.status.reached(*state)),
            Guard::DesiredAbove(id, state) => {
                tables.tasks().get(id).is_some_and(|t| t.desired_state > *state as i32)
            }
            Guard::DesiredAtMost(id, state) => {
                tables.tasks().get(id).is_some_and(|t| t.desired_state <= *state as i32)
            }
            Guard::TaskOnNode(id, node) => tables.tasks().get(id).is_some_and(|t| t.node_id == *node),
        }
    }
}

impl Write {
    /// The object that is written.
    pub fn target(&self) -> (Kind, &str) {
        match self {
            Write::Create(o) => (o.kind(), o.id()),
            Write::Remove(kind, id) => (*kind, id),
            Write::Edit { kind, id, .. } => (*kind, id),
            Write::RaiseDesired(id, _) => (Kind::Task, id),
            Write::RaiseState { task, .. } | Write::Explain { task, .. } | Write::Assign { task, .. } => {
                (Kind::Task, task)
            }
        }
    }
}

/// What a patch comes to on given tables.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Add this object.
    Create(Object),
    /// Replace the object of the same id by this one.
    Update(Object),
    /// Remove the object.
    Remove(Kind, String),
    /// Nothing to do.
    Nothing,
}

impl Patch {
    /// A change without guards.
    pub fn new(write: Write) -> Patch {
        Patch { guards: Vec::new(), write }
    }

    /// Adds a guard.
    pub fn guard(mut self, guard: Guard) -> Patch {
        self.guards.push(guard);
        self
    }

    /// What the patch comes to on these tables, or why it is refused.
    pub fn evaluate(&self, tables: &Tables) -> Result<Effect, Refused> {
        for guard in &self.guards {
            if !guard.holds(tables) {
                return Err(Refused::Guard(guard.clone()));
            }
        }
        let task = |id: &str| -> Result<Shared<Task>, Refused> {
            tables.tasks().get(id).cloned().ok_or_else(|| Refused::Gone(Kind::Task, id.to_owned()))
        };
        Ok(match &self.write {
            Write::Create(o) => Effect::Create(o.clone()),
            Write::Remove(kind, id) if tables.object(*kind, id).is_some() => {
                Effect::Remove(*kind, id.clone())
            }
            Write::Remove(..) => Effect::Nothing,
            Write::RaiseDesired(id, state) => {
                let mut task = task(id)?;
                if task.desired_state >= *state as i32 {
                    return Ok(Effect::Nothing);
                }
                task.desired_state = *state as i32;
                Effect::Update(task.into())
            }
            Write::RaiseState { task: id, state, message, err, at } => {
                let mut task = task(id)?;
                if task.status.reached(*state) {
                    return Ok(Effect::Nothing);
                }
                let status = &mut task.status;
                status.state = *state as i32;
                status.message = message.as_str().into();
                status.err = err.as_str().into();
                status.timestamp = Some((*at).into());
                Effect::Update(task.into())
            }
            Write::Explain { task: id, err, at } => {
                let mut task = task(id)?;
                if task.status.err == *err {
                    return Ok(Effect::Nothing);
                }
                task.status.err = err.as_str().into();
                task.status.timestamp = Some((*at).into());
                Effect::Update(task.into())
            }
            Write::Assign { task: id, node, generic, volumes, message, at } => {
                let mut task = task(id)?;
                if task.status.reached(TaskState::Assigned) {
                    return Err(Refused::Guard(Guard::TaskBelow(id.clone(), TaskState::Assigned)));
                }
                task.node_id = node.as_str().into();
                task.assigned_generic_resources.clone_from(generic);
                task.volumes.clone_from(volumes);
                let status = &mut task.status;
                status.state = TaskState::Assigned as i32;
                status.message = message.as_str().into();
                status.err = Text::default();
                status.timestamp = Some((*at).into());
                Effect::Update(task.into())
            }
            Write::Edit { kind, id, edit, .. } => {
                let object = tables.object(*kind, id).ok_or_else(|| Refused::Gone(*kind, id.clone()))?;
                match edit(&object) {
                    Some(new) => Effect::Update(new),
                    None => Effect::Nothing,
                }
            }
        })
    }

    /// Applies the patch to staged tables, without stamping a version. Returns what changed.
    pub fn apply(&self, tables: &mut Tables) -> Result<Option<Event>, Refused> {
        Ok(match self.evaluate(tables)? {
            Effect::Create(o) => Some(tables.insert(o)?),
            Effect::Update(o) => Some(tables.replace(o)?),
            Effect::Remove(kind, id) => Some(tables.remove(kind, &id)?),
            Effect::Nothing => None,
        })
    }
}
