//! `Shared<T>`: a message behind a reference count that is copied when written to.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytes::{Buf, BufMut};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType};

/// A message with one default value for the whole program, so that an empty [`Shared`] needs no memory.
pub trait SharedMessage: prost::Message + Default + Clone + 'static {
    /// The default value.
    fn empty() -> &'static Self;
}

/// A message behind a reference count. Cloning copies a pointer; writing through [`DerefMut`] copies the
/// message first if anybody else holds it. The default value takes no memory.
///
/// ```
/// use swarm_api::{Shared, v1::TaskSpec};
/// let a: Shared<TaskSpec> = TaskSpec { force_update: 1, ..Default::default() }.into();
/// let mut b = a.clone();
/// b.force_update = 2;
/// assert_eq!((a.force_update, b.force_update), (1, 2));
/// ```
pub struct Shared<T>(Option<Arc<T>>);

impl<T: SharedMessage> Shared<T> {
    /// Wraps a message.
    pub fn new(value: T) -> Self {
        Shared(Some(Arc::new(value)))
    }

    /// Both are the same allocation (or both empty): equal without a look at the content.
    pub fn ptr_eq(a: &Self, b: &Self) -> bool {
        match (&a.0, &b.0) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The message itself, copied only if it is shared.
    pub fn into_inner(self) -> T {
        match self.0 {
            None => T::default(),
            Some(arc) => Arc::try_unwrap(arc).unwrap_or_else(|arc| (*arc).clone()),
        }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Shared(self.0.clone())
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared(None)
    }
}

impl<T: SharedMessage> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => T::empty(),
        }
    }
}

impl<T: SharedMessage> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(self.0.get_or_insert_with(|| Arc::new(T::default())))
    }
}

impl<T: SharedMessage> AsRef<T> for Shared<T> {
    fn as_ref(&self) -> &T {
        self
    }
}

impl<T: SharedMessage> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Shared::new(value)
    }
}

impl<T: SharedMessage> From<Arc<T>> for Shared<T> {
    fn from(value: Arc<T>) -> Self {
        Shared(Some(value))
    }
}

impl<T: SharedMessage> From<Shared<T>> for Arc<T> {
    fn from(value: Shared<T>) -> Self {
        value.0.unwrap_or_else(|| Arc::new(T::default()))
    }
}

impl<T: SharedMessage + PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        Shared::ptr_eq(self, other) || **self == **other
    }
}

impl<T: SharedMessage + Eq> Eq for Shared<T> {}

impl<T: SharedMessage + Hash> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl<T: SharedMessage + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: SharedMessage> prost::Message for Shared<T> {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        (**self).encode_raw(buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        (**self).merge_field(tag, wire_type, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        (**self).encoded_len()
    }

    fn clear(&mut self) {
        self.0 = None;
    }
}

macro_rules! shared_message {
    ($($name:ident),* $(,)?) => {$(
        impl SharedMessage for crate::v1::$name {
            fn empty() -> &'static Self {
                static EMPTY: std::sync::LazyLock<crate::v1::$name> = std::sync::LazyLock::new(Default::default);
                &EMPTY
            }
        }
    )*};
}

shared_message!(
    Annotations,
    Cluster,
    Config,
    Endpoint,
    Extension,
    Network,
    Node,
    Resource,
    Secret,
    Service,
    Task,
    TaskSpec,
    Volume,
);
