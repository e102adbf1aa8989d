//! What the control API promises of objects with unique names, as a model for the search.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::facts::{Facts, Written};
use super::history::{Answer, Call, History};
use super::search::{Entry, Model};

/// Version of a write that nobody has ever seen: no call can be based on it.
const UNSEEN: u64 = 0;
/// First id of objects that nobody has ever seen: no call can name them.
const NOBODY: u32 = 1 << 31;

/// The object of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Object {
    pub(super) id: u32,
    pub(super) version: u64,
    /// The call that wrote its content, by its place in the history.
    pub(super) write: u32,
}

/// The objects of some names, by the places of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) objects: Arc<[Option<Object>]>,
    /// The last version given: they grow from write to write.
    pub(super) version: u64,
}

/// An operation on the objects of the model.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// A name that is free gets this object.
    Create(usize, Object),
    /// The object of the name is at this version and becomes this one.
    Update(usize, u64, Object),
    /// The object of the name has this id, and ends.
    Remove(usize, u32),
    /// The name has this object.
    Read(usize, Object),
    /// The name has some object.
    Taken(usize),
    /// The name's object has this id, but not this version.
    Moved(usize, u32, u64),
    /// The name's object does not have this id.
    Gone(usize, u32),
    /// These are all objects.
    ReadAll(Arc<[Option<Object>]>),
}

/// The names, and what the whole history says of the order of the operations.
#[derive(Debug)]
pub(super) struct Objects {
    names: usize,
    /// All versions that writes are known to have got, in their order: the writes take effect in this one.
    versions: Vec<u64>,
    /// By write: the begin of the last operation that saw it. Until then it is there.
    seen_until: HashMap<u32, u64>,
    /// By id.
    lives: HashMap<u32, Life>,
    /// By name: the begin of the last operation that saw it without an object, or with one that somebody knows.
    known_until: Vec<u64>,
}

/// What definite operations say of an id.
#[derive(Debug, Clone, Copy, Default)]
struct Life {
    /// Its last version.
    last: u64,
    /// The begin of the last operation that it was there for.
    until: u64,
    /// The begin of the last operation that it was there for at a known version.
    known_until: u64,
}

impl Objects {
    /// The model for these operations.
    pub(super) fn new(names: usize, entries: &[Entry<Op>]) -> Objects {
        let mut objects = Objects {
            names,
            versions: Vec::new(),
            seen_until: HashMap::new(),
            lives: HashMap::new(),
            known_until: vec![0; names],
        };
        for entry in entries.iter().filter(|entry| entry.returned.is_some()) {
            objects.note(&entry.op, entry.called);
        }
        objects.versions.sort_unstable();
        objects
    }

    fn note(&mut self, op: &Op, called: u64) {
        let later = |time: &mut u64| *time = called.max(*time);
        match op {
            Op::Create(name, object) | Op::Update(name, _, object) => {
                later(&mut self.known_until[*name]);
                let life = self.lives.entry(object.id).or_default();
                later(&mut life.until);
                later(&mut life.known_until);
                life.last = object.version.max(life.last);
                self.versions.push(object.version);
            }
            Op::Remove(name, id) => {
                later(&mut self.known_until[*name]);
                later(&mut self.lives.entry(*id).or_default().until);
            }
            Op::Moved(name, id, _) => {
                later(&mut self.known_until[*name]);
                later(&mut self.lives.entry(*id).or_default().until);
            }
            Op::Read(name, object) => {
                later(&mut self.known_until[*name]);
                self.note_seen(*object, called);
            }
            Op::ReadAll(all) => {
                self.known_until.iter_mut().for_each(later);
                all.iter().flatten().for_each(|object| self.note_seen(*object, called));
            }
            Op::Taken(_) | Op::Gone(..) => {}
        }
    }

    fn note_seen(&mut self, object: Object, called: u64) {
        let later = |time: &mut u64| *time = called.max(*time);
        later(self.seen_until.entry(object.write).or_default());
        let life = self.lives.entry(object.id).or_default();
        later(&mut life.until);
        later(&mut life.known_until);
    }

    fn life(&self, id: u32) -> Life {
        self.lives.get(&id).copied().unwrap_or_default()
    }

    /// Whoever is to see this object has done so.
    fn may_end(&self, object: &Object, frontier: u64) -> bool {
        self.seen_until.get(&object.write).is_none_or(|until| *until <= frontier)
    }

    /// The name may get this object. One that nobody sees is there until it is removed, and has a version that nobody
    /// can name; of an object whose creation nobody has seen, nobody knows the id, so it stays.
    fn may_begin(&self, state: &State, name: usize, object: &Object, frontier: u64) -> bool {
        let life = self.life(object.id);
        match (object.version, object.id) {
            (UNSEEN, NOBODY..) => self.known_until[name] <= frontier,
            (UNSEEN, _) => life.known_until <= frontier && life.last <= state.version,
            (version, _) => {
                let next = self.versions.partition_point(|version| *version <= state.version);
                self.versions.get(next) == Some(&version)
            }
        }
    }

    fn put(&self, state: &State, name: usize, object: Object) -> State {
        let mut next = state.clone();
        next.version = next.version.max(object.version);
        Arc::make_mut(&mut next.objects)[name] = Some(object);
        next
    }
}

impl Model for Objects {
    type State = State;
    type Op = Op;

    fn init(&self) -> State {
        State { objects: vec![None; self.names].into(), version: 0 }
    }

    fn reads(&self, op: &Op) -> bool {
        !matches!(op, Op::Create(..) | Op::Update(..) | Op::Remove(..))
    }

    fn step(&self, state: &State, op: &Op, frontier: u64) -> Option<State> {
        let object = |name: &usize| state.objects[*name];
        let same = |holds: bool| holds.then(|| state.clone());
        match op {
            Op::Create(name, created) => {
                let may = object(name).is_none() && self.may_begin(state, *name, created, frontier);
                may.then(|| self.put(state, *name, *created))
            }
            Op::Update(name, version, updated) => {
                let now = object(name).filter(|now| now.id == updated.id && now.version == *version)?;
                let may = self.may_end(&now, frontier) && self.may_begin(state, *name, updated, frontier);
                may.then(|| self.put(state, *name, *updated))
            }
            Op::Remove(name, id) => {
                object(name).filter(|now| now.id == *id)?;
                let life = self.life(*id);
                if life.last > state.version || life.until > frontier {
                    return None;
                }
                let mut next = state.clone();
                Arc::make_mut(&mut next.objects)[*name] = None;
                Some(next)
            }
            Op::Read(name, seen) => same(object(name) == Some(*seen)),
            Op::Taken(name) => same(object(name).is_some()),
            Op::Moved(name, id, version) => {
                same(object(name).is_some_and(|now| now.id == *id && now.version != *version))
            }
            Op::Gone(name, id) => same(object(name).is_none_or(|now| now.id != *id)),
            Op::ReadAll(all) => same(state.objects == *all),
        }
    }
}

/// The operations of a history: on all names, or as far as they touch one name, which is then the only one of the model.
///
/// Of a list the latter keeps that it reads this name.
pub(super) fn entries(
    history: &History,
    facts: &Facts<'_>,
    times: &[(u64, u64)],
    only: Option<usize>,
) -> Vec<Entry<Op>> {
    let part = Part { facts, only };
    let mut entries = Vec::new();
    for (number, (operation, (called, returned))) in history.operations.iter().zip(times).enumerate() {
        let unknown = matches!(operation.answer, Answer::Unknown(_));
        if matches!(operation.answer, Answer::Refused(_)) || (unknown && operation.call.is_read()) {
            continue; // it says nothing
        }
        let Some(op) = part.op(number, &operation.call, &operation.answer) else { continue };
        let returned = (*returned != u64::MAX).then_some(*returned);
        entries.push(Entry { op, number, called: *called, returned });
    }
    // What is known to have been removed by one call was not removed by another.
    let removed: HashSet<u32> = entries.iter().filter_map(removes).collect();
    entries.retain(|entry| match entry.op {
        Op::Remove(_, id) => entry.returned.is_some() || !removed.contains(&id),
        _ => true,
    });
    entries
}

fn removes(entry: &Entry<Op>) -> Option<u32> {
    match entry.op {
        Op::Remove(_, id) if entry.returned.is_some() => Some(id),
        _ => None,
    }
}

/// What of a history is looked at.
struct Part<'a> {
    facts: &'a Facts<'a>,
    only: Option<usize>,
}

impl Part<'_> {
    /// The place of a name in the model, if it is there.
    fn place(&self, name: usize) -> Option<usize> {
        match self.only {
            None => Some(name),
            Some(only) => (name == only).then_some(0),
        }
    }

    /// The place of an id's name, and the id.
    fn known(&self, id: &str) -> Option<(usize, u32)> {
        let id = self.facts.id(id)?;
        Some((self.place(self.facts.name_of[id as usize])?, id))
    }

    /// The object that the write with this content made, if anybody has seen it.
    fn object(&self, tag: &str) -> Option<Object> {
        let write = self.facts.write(tag)?;
        let Written { id, version, .. } = write.result?;
        Some(Object { id, version, write: number(write.operation) })
    }

    /// What an operation is here; `None` if it touches none of the names, or can't have had an effect.
    fn op(&self, place: usize, call: &Call, answer: &Answer) -> Option<Op> {
        let unseen = |id| Object { id, version: UNSEEN, write: number(place) };
        match (call, answer) {
            (Call::List, Answer::All(all)) => {
                let mut objects = vec![None; if self.only.is_some() { 1 } else { self.facts.names.len() }];
                for object in all.iter().filter_map(|seen| self.object(&seen.tag)) {
                    if let Some(place) = self.place(self.facts.name_of[object.id as usize]) {
                        objects[place] = Some(object);
                    }
                }
                Some(Op::ReadAll(objects.into()))
            }
            (Call::Create { tag, .. }, Answer::Object(_) | Answer::Unknown(_)) => {
                let name = self.place(self.facts.write(tag)?.name)?;
                Some(Op::Create(name, self.object(tag).unwrap_or(unseen(NOBODY + number(place)))))
            }
            (Call::Update { id, version, tag, .. }, Answer::Object(_) | Answer::Unknown(_)) => {
                let (name, id) = self.known(id)?;
                Some(Op::Update(name, *version, self.object(tag).unwrap_or(unseen(id))))
            }
            (Call::Remove { id }, Answer::Removed | Answer::Unknown(_)) => {
                let (name, id) = self.known(id)?;
                Some(Op::Remove(name, id))
            }
            (Call::Get { id }, Answer::Object(seen)) => {
                let (name, _) = self.known(id)?;
                Some(Op::Read(name, self.object(&seen.tag)?))
            }
            (Call::Create { name, .. }, Answer::Exists) => {
                Some(Op::Taken(self.place(self.facts.name_place(name)?)?))
            }
            (Call::Update { id, version, .. }, Answer::OutOfSequence) => {
                let (name, id) = self.known(id)?;
                Some(Op::Moved(name, id, *version))
            }
            (Call::Get { id } | Call::Update { id, .. } | Call::Remove { id }, Answer::NotFound) => {
                let (name, id) = self.known(id)?;
                Some(Op::Gone(name, id))
            }
            _ => None,
        }
    }
}

fn number(place: usize) -> u32 {
    u32::try_from(place).expect("a history has fewer operations than there are numbers")
}
