//! The ten kinds of objects that the store holds, behind one trait and one enum.

use crate::v1::{
    self, Annotations, Cluster, Config, Extension, Meta, Network, Node, Resource, Secret, Service,
    StoreAction, Task, Volume, store_action,
};
use crate::{Shared, SharedMessage};

/// A kind of objects; one table each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`Node`]
    Node,
    /// [`Service`]
    Service,
    /// [`Task`]
    Task,
    /// [`Network`]
    Network,
    /// [`Cluster`]
    Cluster,
    /// [`Secret`]
    Secret,
    /// [`Resource`]
    Resource,
    /// [`Extension`]
    Extension,
    /// [`Config`]
    Config,
    /// [`Volume`]
    Volume,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 10] = [
        Kind::Node,
        Kind::Service,
        Kind::Task,
        Kind::Network,
        Kind::Cluster,
        Kind::Secret,
        Kind::Resource,
        Kind::Extension,
        Kind::Config,
        Kind::Volume,
    ];

    /// The name as the Watch API and people use it, lower case.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Node => "node",
            Kind::Service => "service",
            Kind::Task => "task",
            Kind::Network => "network",
            Kind::Cluster => "cluster",
            Kind::Secret => "secret",
            Kind::Resource => "resource",
            Kind::Extension => "extension",
            Kind::Config => "config",
            Kind::Volume => "volume",
        }
    }
}

/// What all kinds of objects have in common.
pub trait StoreObject: SharedMessage + PartialEq + Send + Sync {
    /// Which kind this is.
    const KIND: Kind;
    /// The object's identifier, unique in its table.
    fn id(&self) -> &str;
    /// Version and times.
    fn meta(&self) -> &Meta;
    /// Version and times, to be written by the store.
    fn meta_mut(&mut self) -> &mut Meta;
    /// Name, labels and custom index keys: the spec's, or the object's own for tasks, resources and extensions.
    fn annotations(&self) -> &Annotations;
    /// Puts the object into the enum of all kinds.
    fn into_object(this: Shared<Self>) -> Object;
    /// Takes the object out of the enum, if it is of this kind.
    fn from_object(object: &Object) -> Option<&Shared<Self>>;
}

/// An object of any kind.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Object {
    Node(Shared<Node>),
    Service(Shared<Service>),
    Task(Shared<Task>),
    Network(Shared<Network>),
    Cluster(Shared<Cluster>),
    Secret(Shared<Secret>),
    Resource(Shared<Resource>),
    Extension(Shared<Extension>),
    Config(Shared<Config>),
    Volume(Shared<Volume>),
}

macro_rules! each {
    ($self:expr, $o:ident => $e:expr) => {
        match $self {
            Object::Node($o) => $e,
            Object::Service($o) => $e,
            Object::Task($o) => $e,
            Object::Network($o) => $e,
            Object::Cluster($o) => $e,
            Object::Secret($o) => $e,
            Object::Resource($o) => $e,
            Object::Extension($o) => $e,
            Object::Config($o) => $e,
            Object::Volume($o) => $e,
        }
    };
}

impl Object {
    /// Which kind this is.
    pub fn kind(&self) -> Kind {
        fn kind<T: StoreObject>(_: &Shared<T>) -> Kind {
            T::KIND
        }
        each!(self, o => kind(o))
    }

    /// The object's identifier.
    pub fn id(&self) -> &str {
        each!(self, o => StoreObject::id(&**o))
    }

    /// Version and times.
    pub fn meta(&self) -> &Meta {
        each!(self, o => StoreObject::meta(&**o))
    }

    /// Name, labels and custom index keys.
    pub fn annotations(&self) -> &Annotations {
        each!(self, o => StoreObject::annotations(&**o))
    }

    /// Both hold the same allocation.
    pub fn ptr_eq(a: &Object, b: &Object) -> bool {
        match (a, b) {
            (Object::Node(a), Object::Node(b)) => Shared::ptr_eq(a, b),
            (Object::Service(a), Object::Service(b)) => Shared::ptr_eq(a, b),
            (Object::Task(a), Object::Task(b)) => Shared::ptr_eq(a, b),
            (Object::Network(a), Object::Network(b)) => Shared::ptr_eq(a, b),
            (Object::Cluster(a), Object::Cluster(b)) => Shared::ptr_eq(a, b),
            (Object::Secret(a), Object::Secret(b)) => Shared::ptr_eq(a, b),
            (Object::Resource(a), Object::Resource(b)) => Shared::ptr_eq(a, b),
            (Object::Extension(a), Object::Extension(b)) => Shared::ptr_eq(a, b),
            (Object::Config(a), Object::Config(b)) => Shared::ptr_eq(a, b),
            (Object::Volume(a), Object::Volume(b)) => Shared::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The target of a store action, taken out of it.
    pub fn from_target(target: store_action::Target) -> Object {
        use store_action::Target;
        match target {
            Target::Node(o) => Object::Node(o),
            Target::Service(o) => Object::Service(o),
            Target::Task(o) => Object::Task(o),
            Target::Network(o) => Object::Network(o),
            Target::Cluster(o) => Object::Cluster(o),
            Target::Secret(o) => Object::Secret(o),
            Target::Resource(o) => Object::Resource(o),
            Target::Extension(o) => Object::Extension(o),
            Target::Config(o) => Object::Config(o),
            Target::Volume(o) => Object::Volume(o),
        }
    }

    /// The target of a store action, `None` if it has none that this version knows.
    pub fn from_action(action: &StoreAction) -> Option<Object> {
        use store_action::Target;
        Some(match action.target.as_ref()? {
            Target::Node(o) => Object::Node(o.clone()),
            Target::Service(o) => Object::Service(o.clone()),
            Target::Task(o) => Object::Task(o.clone()),
            Target::Network(o) => Object::Network(o.clone()),
            Target::Cluster(o) => Object::Cluster(o.clone()),
            Target::Secret(o) => Object::Secret(o.clone()),
            Target::Resource(o) => Object::Resource(o.clone()),
            Target::Extension(o) => Object::Extension(o.clone()),
            Target::Config(o) => Object::Config(o.clone()),
            Target::Volume(o) => Object::Volume(o.clone()),
        })
    }

    /// The object as the target of a store action.
    pub fn to_target(&self) -> store_action::Target {
        use store_action::Target;
        match self {
            Object::Node(o) => Target::Node(o.clone()),
            Object::Service(o) => Target::Service(o.clone()),
            Object::Task(o) => Target::Task(o.clone()),
            Object::Network(o) => Target::Network(o.clone()),
            Object::Cluster(o) => Target::Cluster(o.clone()),
            Object::Secret(o) => Target::Secret(o.clone()),
            Object::Resource(o) => Target::Resource(o.clone()),
            Object::Extension(o) => Target::Extension(o.clone()),
            Object::Config(o) => Target::Config(o.clone()),
            Object::Volume(o) => Target::Volume(o.clone()),
        }
    }
}

macro_rules! store_object {
    ($type:ident, $annotations:ident $(. $rest:ident)*) => {
        impl StoreObject for v1::$type {
            const KIND: Kind = Kind::$type;
            fn id(&self) -> &str {
                &self.id
            }
            fn meta(&self) -> &Meta {
                &self.meta
            }
            fn meta_mut(&mut self) -> &mut Meta {
                &mut self.meta
            }
            fn annotations(&self) -> &Annotations {
                &self.$annotations$(.$rest)*
            }
            fn into_object(this: Shared<Self>) -> Object {
                Object::$type(this)
            }
            fn from_object(object: &Object) -> Option<&Shared<Self>> {
                match object {
                    Object::$type(o) => Some(o),
                    _ => None,
                }
            }
        }

        impl From<Shared<v1::$type>> for Object {
            fn from(o: Shared<v1::$type>) -> Object {
                Object::$type(o)
            }
        }

        impl From<v1::$type> for Object {
            fn from(o: v1::$type) -> Object {
                Object::$type(o.into())
            }
        }
    };
}

store_object!(Node, spec.annotations);
store_object!(Service, spec.annotations);
store_object!(Task, annotations);
store_object!(Network, spec.annotations);
store_object!(Cluster, spec.annotations);
store_object!(Secret, spec.annotations);
store_object!(Resource, annotations);
store_object!(Extension, annotations);
store_object!(Config, spec.annotations);
store_object!(Volume, spec.annotations);
