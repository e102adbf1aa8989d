//! What a history says before any order is looked for: which call wrote what was seen, under which id and version.
//!
//! Every write has a content of its own, so whoever sees an object knows which call made it so. That gives even calls
//! whose outcome is unknown the version that they got, if anybody saw what they wrote.

use std::collections::{HashMap, HashSet};

use super::history::{Answer, Call, History, Operation, Seen};

/// What one call wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Write {
    /// The call, by its place in the history.
    pub(super) operation: usize,
    /// The name, by its place among the names.
    pub(super) name: usize,
    /// It made the object, as against: changed it.
    pub(super) creates: bool,
    /// What somebody has seen of it.
    pub(super) result: Option<Written>,
}

/// The object that a call has made or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) id: u32,
    pub(super) version: u64,
    /// The end of the first operation that saw it, and which one that is: by then it had been written.
    pub(super) by: (u64, usize),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Facts<'h> {
    pub(super) names: Vec<&'h str>,
    pub(super) ids: Vec<&'h str>,
    /// The name of each id, by the places of both.
    pub(super) name_of: Vec<usize>,
    /// All writes that were not refused, by content.
    pub(super) writes: HashMap<&'h str, Write>,
    name_places: HashMap<&'h str, usize>,
    id_places: HashMap<&'h str, u32>,
    versions: HashMap<u64, &'h str>,
}

impl<'h> Facts<'h> {
    /// Gathers the facts.
    ///
    /// # Errors
    /// If two of them contradict each other; the text says how.
    pub(super) fn gather(history: &'h History) -> Result<Facts<'h>, String> {
        let mut facts = Facts::default();
        for (place, operation) in history.operations.iter().enumerate() {
            facts.add_write(place, operation);
        }
        for (place, operation) in history.operations.iter().enumerate() {
            let mut names = HashSet::new();
            for seen in seen(&operation.answer) {
                if !names.insert(&seen.name) {
                    return Err(format!("{operation}\nshows two objects with the name {}", seen.name));
                }
                facts.add_seen(history, place, seen)?;
            }
        }
        for operation in &history.operations {
            facts.matches_call(operation)?;
        }
        Ok(facts)
    }

    fn add_write(&mut self, place: usize, operation: &'h Operation) {
        let (name, tag, creates) = match &operation.call {
            Call::Create { name, tag } => (name, tag, true),
            Call::Update { name, tag, .. } => (name, tag, false),
            Call::Get { .. } | Call::Remove { .. } | Call::List => return,
        };
        let name = self.name(name);
        if matches!(operation.answer, Answer::Object(_) | Answer::Unknown(_)) {
            self.writes.insert(tag, Write { operation: place, name, creates, result: None });
        }
    }

    fn name(&mut self, name: &'h str) -> usize {
        *self.name_places.entry(name).or_insert_with(|| {
            self.names.push(name);
            self.names.len() - 1
        })
    }

    fn add_seen(&mut self, history: &'h History, place: usize, seen: &'h Seen) -> Result<(), String> {
        let operation = &history.operations[place];
        let name = self.name(&seen.name);
        let id = *self.id_places.entry(&seen.id).or_insert_with(|| {
            self.ids.push(&seen.id);
            self.name_of.push(name);
            u32::try_from(self.ids.len() - 1).expect("a history has fewer objects than there are numbers")
        });
        if self.name_of[id as usize] != name {
            let other = self.names[self.name_of[id as usize]];
            return Err(format!("the id {} is that of {other} and of {}: {operation}", seen.id, seen.name));
        }
        let Some(write) = self.writes.get_mut(&*seen.tag) else {
            return Err(format!(
                "{operation}\nshows {} = {}, which no call wrote that may have had an effect",
                seen.name, seen.tag
            ));
        };
        let cause = &history.operations[write.operation];
        let fits = match &cause.call {
            Call::Create { name, .. } => *name == seen.name,
            Call::Update { id, name, version, .. } => {
                *id == seen.id && *name == seen.name && *version < seen.version
            }
            _ => false,
        };
        if !fits {
            return Err(format!("{operation}\nshows {seen}, which is not what this wrote:\n{cause}"));
        }
        let by = (operation.returned, place);
        let written = write.result.get_or_insert(Written { id, version: seen.version, by });
        if (written.id, written.version) != (id, seen.version) {
            return Err(format!(
                "{cause}\ntook effect twice: as {} at version {}, and as in\n{operation}",
                self.ids[written.id as usize], written.version
            ));
        }
        written.by = written.by.min(by);
        if let Some(other) = self.versions.insert(seen.version, &seen.tag)
            && *other != *seen.tag
        {
            return Err(format!(
                "version {} was given to {other} and to {}: {operation}",
                seen.version, seen.tag
            ));
        }
        Ok(())
    }

    /// The answer is one to this call.
    fn matches_call(&self, operation: &Operation) -> Result<(), String> {
        let fits = match (&operation.call, &operation.answer) {
            (Call::Create { tag, .. } | Call::Update { tag, .. }, Answer::Object(seen)) => seen.tag == *tag,
            (Call::Get { id }, Answer::Object(seen)) => seen.id == *id,
            (Call::List, Answer::All(_)) | (Call::Create { .. }, Answer::Exists) => true,
            // What nobody has ever seen is not there.
            (Call::Get { .. } | Call::Update { .. } | Call::Remove { .. }, Answer::NotFound) => true,
            (Call::Update { id, .. }, Answer::OutOfSequence) | (Call::Remove { id }, Answer::Removed) => {
                self.id(id).is_some()
            }
            (_, Answer::Refused(_) | Answer::Unknown(_)) => true,
            _ => false,
        };
        if fits { Ok(()) } else { Err(format!("this is no answer to the call: {operation}")) }
    }

    /// The place of an id, if anybody has ever seen it.
    pub(super) fn id(&self, id: &str) -> Option<u32> {
        self.id_places.get(id).copied()
    }

    /// The place of a name, if it occurs.
    pub(super) fn name_place(&self, name: &str) -> Option<usize> {
        self.name_places.get(name).copied()
    }

    /// The write with this content.
    pub(super) fn write(&self, tag: &str) -> Option<&Write> {
        self.writes.get(tag)
    }
}

/// All objects in an answer.
pub(super) fn seen(answer: &Answer) -> &[Seen] {
    match answer {
        Answer::Object(seen) => std::slice::from_ref(seen),
        Answer::All(all) => all,
        _ => &[],
    }
}
