//! The order that versions give, across all objects.
//!
//! A version grows with every write to the store, whichever object it is to, and the log is in the same order
//! ("Versions" in the description of the store). So what anybody sees of the store stands for a point of that order: it has
//! every write up to some version and none above. For lists, that is more than that each object in it is right by itself:
//! all of them must be of one moment.
//!
//! What is not checked here, as removals have no version: in which order removals of different objects happened. The
//! search on all names together does that.

use std::collections::{BTreeMap, HashMap};

use super::facts::{Facts, seen};
use super::history::{Answer, Call, History, Operation, Seen};

/// Checks that, and narrows down when each operation took effect: the first and the last place in real time, by the place
/// of the operation. Of calls with unknown outcome only those have a last one that somebody has seen.
///
/// # Errors
/// With the operations that contradict each other.
pub(super) fn check(history: &History, facts: &Facts<'_>) -> Result<Vec<(u64, u64)>, String> {
    let order = Order::new(history, facts);
    let mut ranges = Vec::with_capacity(history.operations.len());
    for operation in &history.operations {
        order.check_write(operation)?;
        ranges.push(match (&operation.call, &operation.answer) {
            (Call::List, Answer::All(_)) => order.check_list(operation)?,
            _ => order.between(operation),
        });
    }
    let times = Times::new(history, facts);
    let narrow = |(operation, (low, high)): (&Operation, Range)| {
        let unknown = matches!(operation.answer, Answer::Unknown(_));
        let (mut called, mut after) = (operation.called, None);
        if let Some((time, cause)) = low.and_then(|version| times.after(version)).filter(|t| t.0 > called) {
            (called, after) = (time, Some(cause));
        }
        let (mut returned, mut before) = (if unknown { u64::MAX } else { operation.returned }, None);
        if let Some((time, cause)) = high.and_then(|version| times.before(version)).filter(|t| t.0 < returned)
        {
            (returned, before) = (time, Some(cause));
        }
        if called <= returned {
            return Ok((called, returned));
        }
        let mut text = format!("this can't have taken effect at any time:\n{operation}");
        for (when, cause) in [("not before the begin", after), ("not after the end", before)] {
            if let Some(cause) = cause {
                text += &format!("\nfor by what it saw it did so {when} of\n{}", history.operations[cause]);
            }
        }
        Err(text)
    };
    history.operations.iter().zip(ranges).map(narrow).collect()
}

/// When the writes took effect, as their order and real time tell together.
struct Times {
    /// By version: not before the begin, and not after the end of these operations.
    by_version: BTreeMap<u64, [(u64, usize); 2]>,
}

impl Times {
    fn new(history: &History, facts: &Facts<'_>) -> Times {
        let mut by_version = BTreeMap::new();
        for write in facts.writes.values() {
            if let Some(written) = write.result {
                let operation = &history.operations[write.operation];
                let unknown = matches!(operation.answer, Answer::Unknown(_));
                let end = if unknown { written.by } else { (operation.returned, write.operation) };
                by_version.insert(written.version, [(operation.called, write.operation), end]);
            }
        }
        let mut first = (0, 0);
        for [begin, _] in by_version.values_mut() {
            first = first.max(*begin);
            *begin = first;
        }
        let mut last = (u64::MAX, 0);
        for [_, end] in by_version.values_mut().rev() {
            last = last.min(*end);
            *end = last;
        }
        Times { by_version }
    }

    fn after(&self, version: u64) -> Option<(u64, usize)> {
        self.by_version.get(&version).map(|[begin, _]| *begin)
    }

    fn before(&self, version: u64) -> Option<(u64, usize)> {
        self.by_version.get(&version).map(|[_, end]| *end)
    }
}

/// Versions that an operation came after, and not after.
type Range = (Option<u64>, Option<u64>);

/// What is known of an id.
#[derive(Debug, Clone, Copy)]
struct Life {
    first: u64,
    last: u64,
    /// The begin of the first call that may have removed it.
    removed: Option<u64>,
}

struct Order<'a> {
    history: &'a History,
    facts: &'a Facts<'a>,
    /// By place in real time at which an operation ended: the highest version that anybody had seen by then, and the
    /// operation that saw it.
    seen_by: BTreeMap<u64, (u64, usize)>,
    /// By place in real time at which a write with a known version began: the lowest version of the writes that began
    /// then or later, and the write.
    from: BTreeMap<u64, (u64, usize)>,
    /// By name: the known versions and their writes.
    versions: Vec<BTreeMap<u64, usize>>,
    /// By id.
    lives: Vec<Life>,
}

impl<'a> Order<'a> {
    fn new(history: &'a History, facts: &'a Facts<'a>) -> Order<'a> {
        let operations = &history.operations;
        let mut ended: Vec<(u64, u64, usize)> = Vec::new();
        let mut removed: HashMap<u32, u64> = HashMap::new();
        for (place, operation) in operations.iter().enumerate() {
            if let Some(version) = seen(&operation.answer).iter().map(|seen| seen.version).max() {
                ended.push((operation.returned, version, place));
            }
            if let (Call::Remove { id }, Answer::Removed | Answer::Unknown(_)) =
                (&operation.call, &operation.answer)
                && let Some(id) = facts.id(id)
            {
                removed.entry(id).or_insert(operation.called);
            }
        }
        ended.sort_unstable();
        let mut seen_by = BTreeMap::new();
        let mut highest = (0, 0);
        for (returned, version, place) in ended {
            highest = highest.max((version, place));
            seen_by.insert(returned, highest);
        }
        let mut versions = vec![BTreeMap::new(); facts.names.len()];
        let mut lives: Vec<Life> = Vec::new();
        for id in 0..facts.ids.len() {
            let removed = removed.get(&u32::try_from(id).unwrap_or(u32::MAX)).copied();
            lives.push(Life { first: u64::MAX, last: 0, removed });
        }
        let mut began = Vec::new();
        for write in facts.writes.values() {
            let Some(written) = write.result else { continue };
            versions[write.name].insert(written.version, write.operation);
            began.push((operations[write.operation].called, written.version, write.operation));
            let life = &mut lives[written.id as usize];
            (life.first, life.last) = (life.first.min(written.version), life.last.max(written.version));
        }
        began.sort_unstable();
        let mut from = BTreeMap::new();
        let mut lowest = (u64::MAX, 0);
        for (called, version, place) in began.into_iter().rev() {
            lowest = lowest.min((version, place));
            from.insert(called, lowest);
        }
        Order { history, facts, seen_by, from, versions, lives }
    }

    /// Everything that ended before a write began has a lower version.
    fn check_write(&self, operation: &Operation) -> Result<(), String> {
        let (Call::Create { tag, .. } | Call::Update { tag, .. }) = &operation.call else { return Ok(()) };
        let Some(written) = self.facts.write(tag).and_then(|write| write.result) else { return Ok(()) };
        match self.seen_by.range(..operation.called).next_back() {
            Some((_, (version, earlier))) if *version >= written.version => Err(format!(
                "{operation}\nwrote version {}, but version {version} had been seen before it began:\n{}",
                written.version, self.history.operations[*earlier]
            )),
            _ => Ok(()),
        }
    }

    /// What versions say of an operation that is no list.
    fn between(&self, operation: &Operation) -> Range {
        let next =
            |name: usize, version: u64| self.versions[name].range(version + 1..).next().map(|(v, _)| *v);
        match (&operation.call, &operation.answer) {
            (Call::Create { tag, .. } | Call::Update { tag, .. }, Answer::Object(_) | Answer::Unknown(_)) => {
                let written = self.facts.write(tag).and_then(|write| write.result);
                (written.map(|w| w.version), written.map(|w| w.version))
            }
            (Call::Get { .. }, Answer::Object(seen)) => {
                let name = self.facts.name_place(&seen.name);
                (Some(seen.version), name.and_then(|name| next(name, seen.version)))
            }
            (Call::Remove { id }, answer @ (Answer::Removed | Answer::Unknown(_))) => {
                let Some(id) = self.facts.id(id) else { return (None, None) };
                let last = self.lives[id as usize].last;
                let next = next(self.facts.name_of[id as usize], last);
                (Some(last), next.filter(|_| *answer == Answer::Removed))
            }
            _ => (None, None),
        }
    }

    /// A list is as of a version: not below the highest that it must know of, and below the lowest that it does not
    /// show.
    fn check_list(&self, list: &'a Operation) -> Result<Range, String> {
        let objects = seen(&list.answer);
        let own = objects.iter().map(|seen| (seen.version, Why::Shows(seen)));
        let earlier = self.seen_by.range(..list.called).next_back();
        let earlier = earlier.map(|(_, (version, place))| (*version, Why::Heard(*place)));
        let low = own.chain(earlier).max_by_key(|(version, _)| *version);
        let later = self.from.range(list.returned + 1..).next();
        let mut high = later.map(|(_, (version, place))| (*version, Why::Began(*place)));
        let mut lower = |version: u64, why: Why<'a>| {
            if high.as_ref().is_none_or(|(lowest, _)| version < *lowest) {
                high = Some((version, why));
            }
        };
        let mut shown = vec![None; self.facts.names.len()];
        for seen in objects {
            if let Some(name) = self.facts.name_place(&seen.name) {
                shown[name] = Some(seen.version);
            }
        }
        for (name, shown) in shown.iter().enumerate() {
            let Some(version) = shown else { continue };
            if let Some((next, place)) = self.versions[name].range(version + 1..).next() {
                lower(*next, Why::Lacks(*place));
            }
        }
        for (id, life) in self.lives.iter().enumerate() {
            let may_be_removed = life.removed.is_some_and(|called| called <= list.returned);
            if shown[self.facts.name_of[id]].is_none() && !may_be_removed {
                lower(life.first, Why::Hides(id));
            }
        }
        match (low, high) {
            (Some((low, low_why)), Some((version, why))) if version <= low => Err(format!(
                "no moment has all that this shows:\n{list}\nIt must be as of version {low} or later, for {}\nbut as of \
                 before version {version}, for {}",
                self.explain(&low_why),
                self.explain(&why)
            )),
            (low, high) => Ok((low.map(|(version, _)| version), high.map(|(version, _)| version))),
        }
    }

    fn explain(&self, why: &Why<'_>) -> String {
        let operation = |place: &usize| &self.history.operations[*place];
        match why {
            Why::Shows(seen) => format!("it shows {seen}"),
            Why::Heard(place) => format!("before it, this was heard:\n{}", operation(place)),
            Why::Began(place) => format!("after it, this began:\n{}", operation(place)),
            Why::Lacks(place) => format!("it does not show this:\n{}", operation(place)),
            Why::Hides(id) => {
                let name = self.facts.names[self.facts.name_of[*id]];
                format!("it does not show {name} (id {}), which nobody had removed", self.facts.ids[*id])
            }
        }
    }
}

/// What a list says of the version that it is as of.
enum Why<'a> {
    Shows(&'a Seen),
    Heard(usize),
    Began(usize),
    Lacks(usize),
    Hides(usize),
}
