//! All tables together, and snapshots of them.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

use swarm_api::v1::{
    Cluster, Config, Extension, Network, Node, Resource, Secret, Service, StoreSnapshot, Task, Volume,
};
use swarm_api::{Kind, Object, Shared, StoreObject};

use crate::index::{Emit, Moved};
use crate::{Error, Event, Result, Table};

/// What the store needs to know of a kind beyond [`StoreObject`].
pub trait Indexed: StoreObject {
    /// Names are unique in the table.
    const UNIQUE_NAME: bool;
    /// An entry that gives an object the name of another is refused. For resources Go checks that only on
    /// creation, and so must we when we apply what others wrote; transactions of our own check it always.
    #[doc(hidden)]
    const RENAME_CHECKED: bool = Self::UNIQUE_NAME && !matches!(Self::KIND, Kind::Resource);
    /// Names have stems.
    #[doc(hidden)]
    const STEMS: bool = matches!(Self::KIND, Kind::Task);
    /// The name that the name index holds.
    fn name(&self) -> Option<String> {
        self.name_text().map(Cow::into_owned)
    }
    /// The same without a copy where there is one.
    #[doc(hidden)]
    fn name_text(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.annotations().name))
    }
    /// If names are made up: what many names have in common, up to a `.` or all of it.
    #[doc(hidden)]
    fn stem(&self) -> Option<&str> {
        None
    }
    /// Its name ends with its id, by which it is found: it has no key for the name.
    #[doc(hidden)]
    fn is_named_by_id(&self) -> bool {
        false
    }
    /// The id that a name in lower case ends with, if it is the name of such an object.
    #[doc(hidden)]
    fn id_in_name(name: &str) -> Option<&str> {
        let _ = name;
        None
    }
    /// Emits every index key but name and custom ones.
    #[doc(hidden)]
    fn own_keys(&self, emit: &mut Emit<'_>);
    /// If it is easily told: which keys another version had and this one has not, and the other way round. False, and
    /// nothing is told, where all keys must be compared.
    #[doc(hidden)]
    fn moved_keys(&self, old: &Self, tell: &mut dyn FnMut(Moved)) -> bool {
        let _ = (old, tell);
        false
    }
    /// Looks at what is looked at when another version is made, so that the processor has it. A number that says nothing.
    #[doc(hidden)]
    fn look(&self) -> u64 {
        self.meta().version.index
    }
    /// The table of this kind.
    fn table(tables: &Tables) -> &Table<Self>
    where
        Self: Sized;
}

/// Says which table a kind is in.
macro_rules! in_table {
    ($table:ident) => {
        fn table(tables: &crate::Tables) -> &crate::Table<Self> {
            tables.$table()
        }
    };
}
pub(crate) use in_table;

pub(crate) fn id_of<T: StoreObject>(object: &Shared<T>) -> &str {
    StoreObject::id(&**object)
}

macro_rules! tables {
    ($($field:ident: $type:ident),* $(,)?) => {
        /// The tables, committed or staged. Cloning takes O(1).
        #[derive(Clone, Debug, Default)]
        pub struct Tables {
            $($field: Arc<Table<$type>>,)*
        }

        impl Tables {
            $(
                /// The table of this kind.
                pub fn $field(&self) -> &Table<$type> {
                    &self.$field
                }
            )*

            /// The object of a kind with this id.
            pub fn object(&self, kind: Kind, id: &str) -> Option<Object> {
                match kind {
                    $(Kind::$type => self.$field.get(id).cloned().map(Object::$type),)*
                }
            }

            /// Adds an object as it is: no version is stamped.
            pub fn insert(&mut self, object: Object) -> Result<Event> {
                self.check_insert(&object)?;
                match &object {
                    $(Object::$type(o) => Arc::make_mut(&mut self.$field).insert(o.clone())?,)*
                }
                Ok(Event::Created(object))
            }

            /// Replaces the object with the same id as it is: no version is checked or stamped.
            pub fn replace(&mut self, object: Object) -> Result<Event> {
                self.check_replace(&object)?;
                let old = match &object {
                    $(Object::$type(o) => Object::$type(Arc::make_mut(&mut self.$field).replace(o.clone())?),)*
                };
                Ok(Event::Updated { old, new: object })
            }

            /// Removes an object.
            pub fn remove(&mut self, kind: Kind, id: &str) -> Result<Event> {
                self.check_remove(kind, id)?;
                let old = match kind {
                    $(Kind::$type => Object::$type(Arc::make_mut(&mut self.$field).delete(id)?),)*
                };
                Ok(Event::Removed(old))
            }

            /// Makes changes without any check: what was created or updated is put in, what was removed is
            /// taken out. For copies of tables that follow the events of others.
            pub fn replay(&mut self, events: &[Event]) {
                for event in events {
                    match event {
                        $(Event::Removed(Object::$type(o)) => drop(Arc::make_mut(&mut self.$field).delete(id_of(o))),)*
                        $(Event::Created(Object::$type(new)) | Event::Updated { new: Object::$type(new), .. } => {
                            Arc::make_mut(&mut self.$field).put(new.clone());
                        })*
                    }
                }
            }
        }
    };
}

tables!(
    nodes: Node,
    services: Service,
    tasks: Task,
    networks: Network,
    clusters: Cluster,
    secrets: Secret,
    resources: Resource,
    extensions: Extension,
    configs: Config,
    volumes: Volume,
);

impl Tables {
    /// The object of type `T` with this id.
    pub fn get<T: Indexed>(&self, id: &str) -> Option<&Shared<T>> {
        T::table(self).get(id)
    }

    /// The one cluster object, once the first leader has made it.
    pub fn cluster(&self) -> Option<&Shared<Cluster>> {
        self.clusters().by_name(swarm_api::defaults::CLUSTER_NAME).next()
    }

    /// The table of nodes, shared: as long as another one is the same in memory, nothing in it has changed.
    pub fn shared_nodes(&self) -> Arc<Table<Node>> {
        self.nodes.clone()
    }

    pub(crate) fn tasks_mut(&mut self) -> &mut Table<Task> {
        Arc::make_mut(&mut self.tasks)
    }

    /// Adds many tasks as they are, which costs a fraction of as many [`Tables::insert`].
    ///
    /// # Errors
    /// [`Error::Exists`] if one of the ids is there, or comes twice: nothing is changed then.
    pub fn insert_tasks(&mut self, tasks: &[Shared<Task>]) -> Result<()> {
        self.tasks_mut().insert_many(tasks)
    }

    /// Puts other versions of many tasks in the place of those with their ids, which costs a fraction of as many
    /// [`Tables::replace`]. Tasks that are not there are left out; of an id that comes twice the first counts. Returns
    /// what changed, in the order of the tasks.
    pub fn replace_tasks(&mut self, tasks: &[Shared<Task>]) -> Vec<Event> {
        let ids: Vec<&str> = tasks.iter().map(|task| &*task.id).collect();
        let replaced = self.tasks_mut().replace_many(&ids, |at, _| Some(tasks[at].clone()));
        replaced.into_iter().map(Event::from).collect()
    }

    fn check_insert(&self, object: &Object) -> Result<()> {
        match object {
            Object::Resource(resource) => self.check_kind(resource),
            // The kinds of the tables themselves can't be extended.
            Object::Extension(extension) => {
                if Kind::ALL.iter().any(|kind| kind.name() == extension.annotations.name) {
                    return Err(Error::NameConflict);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn check_replace(&self, object: &Object) -> Result<()> {
        match object {
            Object::Resource(resource) => self.check_kind(resource),
            Object::Extension(_) => Err(Error::ImmutableExtension),
            _ => Ok(()),
        }
    }

    fn check_remove(&self, kind: Kind, id: &str) -> Result<()> {
        if kind == Kind::Extension
            && let Some(extension) = self.extensions().get(id)
            && self.resources().by_kind(&extension.annotations.name).next().is_some()
        {
            return Err(Error::ExtensionInUse);
        }
        Ok(())
    }

    fn check_kind(&self, resource: &Resource) -> Result<()> {
        match self.extensions().by_name(&resource.kind).next() {
            Some(_) => Ok(()),
            None => Err(Error::UnregisteredKind),
        }
    }

    /// Undoes these changes, which were the last ones.
    pub(crate) fn take_back(
        &mut self,
        events: impl IntoIterator<Item = Event, IntoIter: DoubleEndedIterator>,
    ) {
        let undone: Vec<Event> = events.into_iter().rev().map(Event::inverse).collect();
        self.replay(&undone);
    }

    /// Makes changes that were made elsewhere, with the checks that replicas make. All or nothing is the
    /// caller's: on failure these tables are to be thrown away, and the events are given back.
    pub(crate) fn apply(&mut self, events: Vec<Event>) -> Result<Vec<Event>, (Vec<Event>, Error)> {
        let mut applied = Vec::with_capacity(events.len());
        for event in &events {
            let result = match event {
                Event::Created(o) => self.insert(o.clone()),
                Event::Updated { new, .. } => self.replace(new.clone()),
                Event::Removed(o) => self.remove(o.kind(), o.id()),
            };
            match result {
                Ok(event) => applied.push(event),
                Err(error) => return Err((events, error)),
            }
        }
        Ok(applied)
    }

    /// Every object, as the contract's snapshot holds them.
    pub fn to_snapshot(&self) -> StoreSnapshot {
        StoreSnapshot {
            nodes: self.nodes().iter().cloned().collect(),
            services: self.services().iter().cloned().collect(),
            networks: self.networks().iter().cloned().collect(),
            tasks: self.tasks().iter().cloned().collect(),
            clusters: self.clusters().iter().cloned().collect(),
            secrets: self.secrets().iter().cloned().collect(),
            resources: self.resources().iter().cloned().collect(),
            extensions: self.extensions().iter().cloned().collect(),
            configs: self.configs().iter().cloned().collect(),
            volumes: self.volumes().iter().cloned().collect(),
        }
    }

    /// Tables with a snapshot's content.
    ///
    /// # Errors
    /// Two objects of a kind have one id, or a name that must be unique.
    pub fn from_snapshot(snapshot: StoreSnapshot) -> Result<Tables> {
        Ok(Tables {
            nodes: Table::load(snapshot.nodes)?.into(),
            services: Table::load(snapshot.services)?.into(),
            tasks: Table::load(snapshot.tasks)?.into(),
            networks: Table::load(snapshot.networks)?.into(),
            clusters: Table::load(snapshot.clusters)?.into(),
            secrets: Table::load(snapshot.secrets)?.into(),
            resources: Table::load(snapshot.resources)?.into(),
            extensions: Table::load(snapshot.extensions)?.into(),
            configs: Table::load(snapshot.configs)?.into(),
            volumes: Table::load(snapshot.volumes)?.into(),
        })
    }
}

/// An immutable snapshot of the tables.
#[derive(Clone, Debug, Default)]
pub struct View {
    tables: Arc<Tables>,
    index: u64,
    sequence: u64,
}

impl View {
    /// A view of these tables as of a log index.
    pub fn new(tables: Tables, index: u64) -> View {
        View { tables: Arc::new(tables), index, sequence: 0 }
    }

    /// Log index of the last entry in it; 0 for an empty log, or a number of its own in a store without raft.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Number of commits before it in this process; what subscriptions count by.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What it becomes by the next commit.
    pub(crate) fn after(&self, tables: Arc<Tables>, index: u64) -> View {
        View { tables, index, sequence: self.sequence + 1 }
    }

    /// The same at a later index.
    pub(crate) fn at(self, index: u64) -> View {
        View { index, ..self }
    }

    /// A copy of the tables that can be changed.
    pub fn to_tables(&self) -> Tables {
        (*self.tables).clone()
    }
}

impl Deref for View {
    type Target = Tables;
    fn deref(&self) -> &Tables {
        &self.tables
    }
}
