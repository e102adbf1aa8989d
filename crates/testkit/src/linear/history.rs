//! What clients asked and what they heard, in an order that follows real time.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What a client asks for. Objects are named by what the client knows of them, which may be outdated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A new object with a name of its own.
    Create {
        /// The name; two objects never have the same at one time.
        name: String,
        /// Its content, which no other call of the history writes.
        tag: String,
    },
    /// The object with this id.
    Get {
        /// The id.
        id: String,
    },
    /// Another content for an object, if it is still at the version that the client knows.
    Update {
        /// The id.
        id: String,
        /// The object's name, which the call repeats.
        name: String,
        /// The version that it is based on.
        version: u64,
        /// Its content, which no other call of the history writes.
        tag: String,
    },
    /// The end of an object.
    Remove {
        /// The id.
        id: String,
    },
    /// All objects.
    List,
}

impl Call {
    /// It changes nothing.
    pub fn is_read(&self) -> bool {
        matches!(self, Call::Get { .. } | Call::List)
    }
}

/// An object as a manager showed it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: u64,
    /// Its content.
    pub tag: String,
}

/// What a manager said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The object as it is: after the call, if that was a write.
    Object(Seen),
    /// All objects.
    All(Vec<Seen>),
    /// It was removed.
    Removed,
    /// Refused: an object has this name.
    Exists,
    /// Refused: no object has this id.
    NotFound,
    /// Refused: the object has another version.
    OutOfSequence,
    /// Certainly without an effect, and it says nothing about the objects.
    Refused(String),
    /// The call may have had an effect, may still have it at any time, or never.
    Unknown(String),
}

/// A call and its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Number of the client.
    pub client: usize,
    /// The manager that was asked, for people.
    pub door: String,
    /// What was asked.
    pub call: Call,
    /// What came back.
    pub answer: Answer,
    /// Place of the call's begin in the order of all begins and ends: one that is smaller was earlier in real time.
    pub called: u64,
    /// Place of its end.
    pub returned: u64,
    /// Begin and end since the recording began, for people.
    pub time: (Duration, Duration),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (begin, end) = (self.time.0.as_secs_f64(), self.time.1.as_secs_f64());
        write!(f, "[{}–{}, {begin:.3}–{end:.3} s] ", self.called, self.returned)?;
        write!(f, "client {} at {}: ", self.client, self.door)?;
        match &self.call {
            Call::Create { name, tag } => write!(f, "create {name} = {tag}")?,
            Call::Get { id } => write!(f, "get {id}")?,
            Call::Update { id, name, version, tag } => {
                write!(f, "update {id} ({name}) at version {version} = {tag}")?;
            }
            Call::Remove { id } => write!(f, "remove {id}")?,
            Call::List => f.write_str("list")?,
        }
        f.write_str(" → ")?;
        match &self.answer {
            Answer::Object(seen) => write!(f, "{seen}"),
            Answer::All(all) => {
                write!(f, "{} objects:", all.len())?;
                all.iter().try_for_each(|seen| write!(f, " {seen};"))
            }
            Answer::Removed => f.write_str("removed"),
            Answer::Exists => f.write_str("exists already"),
            Answer::NotFound => f.write_str("not found"),
            Answer::OutOfSequence => f.write_str("out of sequence"),
            Answer::Refused(why) => write!(f, "refused: {why}"),
            Answer::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} (id {}, version {})", self.name, self.tag, self.id, self.version)
    }
}

/// Operations in the order of their calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// The operations.
    pub operations: Vec<Operation>,
}

impl History {
    /// Puts the operations in order.
    pub fn new(mut operations: Vec<Operation>) -> History {
        operations.sort_by_key(|operation| operation.called);
        History { operations }
    }

    /// How many calls had which outcome.
    pub fn outcomes(&self) -> BTreeMap<&'static str, usize> {
        let mut count = BTreeMap::new();
        for operation in &self.operations {
            let outcome = match (&operation.call, &operation.answer) {
                (Call::Create { .. }, Answer::Object(_)) => "created",
                (Call::Update { .. }, Answer::Object(_)) => "updated",
                (_, Answer::Removed) => "removed",
                (Call::Get { .. } | Call::Remove { .. } | Call::List, Answer::Object(_))
                | (_, Answer::All(_)) => "read",
                (_, Answer::Exists) => "exists already",
                (_, Answer::NotFound) => "not found",
                (_, Answer::OutOfSequence) => "out of sequence",
                (_, Answer::Refused(_)) => "refused",
                (call, Answer::Unknown(_)) if call.is_read() => "unread",
                (_, Answer::Unknown(_)) => "unknown",
            };
            *count.entry(outcome).or_default() += 1;
        }
        count
    }

    /// Writes that were acknowledged.
    pub fn acknowledged(&self) -> usize {
        let outcomes = self.outcomes();
        ["created", "updated", "removed"].iter().filter_map(|outcome| outcomes.get(outcome)).sum()
    }
}
