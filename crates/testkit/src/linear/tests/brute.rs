//! The checker against one that tries everything, on small histories.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{Anomaly, check};
use super::generated::{Shape, generate};
use super::*;

/// The store as its description says, with the versions that the history gives.
#[derive(Debug, Clone, Default)]
struct Plain {
    objects: BTreeMap<String, Seen>,
    version: u64,
}

/// What is known of each write of a content: who saw it, saw it like this.
type Witnesses = BTreeMap<String, Seen>;

impl Plain {
    /// The store after a call, if its answer may have been this.
    fn after(&self, call: &Call, answer: &Answer, witnesses: &Witnesses) -> Option<Plain> {
        let by_id = |id: &str| self.objects.values().find(|seen| seen.id == *id);
        let same = |holds: bool| holds.then(|| self.clone());
        match (call, answer) {
            (Call::List, Answer::All(all)) => {
                let mut all = all.clone();
                all.sort();
                same(self.objects.values().cloned().collect::<Vec<_>>() == all)
            }
            (Call::Get { id }, Answer::Object(seen)) => same(by_id(id) == Some(seen)),
            (Call::Create { name, .. }, Answer::Exists) => same(self.objects.contains_key(name)),
            (Call::Update { id, version, .. }, Answer::OutOfSequence) => {
                same(by_id(id).is_some_and(|seen| seen.version != *version))
            }
            (Call::Get { id } | Call::Update { id, .. } | Call::Remove { id }, Answer::NotFound) => {
                same(by_id(id).is_none())
            }
            (Call::Create { name, tag }, Answer::Object(_) | Answer::Unknown(_)) => {
                let free = !self.objects.contains_key(name);
                let hidden = seen(name, &format!("hidden-{tag}"), 0, tag);
                free.then(|| self.with(witnesses.get(tag).unwrap_or(&hidden), tag, answer))?
            }
            (Call::Update { id, name, version, tag }, Answer::Object(_) | Answer::Unknown(_)) => {
                let fits = by_id(id).is_some_and(|seen| seen.version == *version && seen.name == *name);
                let hidden = seen(name, id, 0, tag);
                fits.then(|| self.with(witnesses.get(tag).unwrap_or(&hidden), tag, answer))?
            }
            (Call::Remove { id }, Answer::Removed | Answer::Unknown(_)) => {
                let name = by_id(id)?.name.clone();
                let mut next = self.clone();
                next.objects.remove(&name);
                Some(next)
            }
            _ => None,
        }
    }

    fn with(&self, written: &Seen, tag: &str, answer: &Answer) -> Option<Plain> {
        let said = match answer {
            Answer::Object(said) => said == written,
            _ => true,
        };
        let grows = written.version == 0 || written.version > self.version;
        (said && grows && written.tag == tag).then(|| {
            let mut next = self.clone();
            next.version = next.version.max(written.version);
            next.objects.insert(written.name.clone(), written.clone());
            next
        })
    }
}

/// Some order of the operations that are left explains them.
fn explained(store: &Plain, left: &[&Operation], witnesses: &Witnesses) -> bool {
    let is_unknown = |operation: &Operation| matches!(operation.answer, Answer::Unknown(_));
    if left.iter().all(|operation| is_unknown(operation)) {
        return true;
    }
    let first_end = left.iter().filter(|o| !is_unknown(o)).map(|o| o.returned).min().unwrap_or(u64::MAX);
    left.iter().enumerate().filter(|(_, operation)| operation.called <= first_end).any(|(at, operation)| {
        let rest: Vec<&Operation> =
            left.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, o)| *o).collect();
        let next = store.after(&operation.call, &operation.answer, witnesses);
        next.is_some_and(|next| explained(&next, &rest, witnesses))
    })
}

/// Tries everything.
fn brute(history: &History) -> bool {
    let mut witnesses = Witnesses::new();
    for operation in &history.operations {
        for seen in super::super::facts::seen(&operation.answer) {
            if witnesses.insert(seen.tag.clone(), seen.clone()).is_some_and(|other| other != *seen) {
                return false;
            }
        }
    }
    let says_something = |operation: &&Operation| {
        let unread = operation.call.is_read() && matches!(operation.answer, Answer::Unknown(_));
        !unread && !matches!(operation.answer, Answer::Refused(_))
    };
    let left: Vec<&Operation> = history.operations.iter().filter(says_something).collect();
    explained(&Plain::default(), &left, &witnesses)
}

/// Changes one answer or one moment into something that may or may not be possible.
fn disturb(history: &mut History, place: usize, how: u8, other: usize) {
    let (place, other) = (place % history.operations.len(), other % history.operations.len());
    let answer = history.operations[other].answer.clone();
    let operation = &mut history.operations[place];
    match how {
        0 => operation.answer = Answer::NotFound,
        1 => operation.answer = Answer::Exists,
        2 => operation.answer = Answer::OutOfSequence,
        3 => operation.answer = unknown(),
        4 => operation.answer = Answer::Refused("no".into()),
        5 => operation.answer = answer,
        6 => {
            if let Answer::All(all) = &mut operation.answer {
                all.pop();
            }
        }
        7 => {
            if let Answer::Object(seen) = &mut operation.answer {
                seen.version += 1;
            }
        }
        8 => operation.called = operation.called.saturating_sub(6),
        _ => {
            operation.called += 12;
            operation.returned = operation.returned.max(operation.called + 1);
        }
    }
    history.operations.sort_by_key(|operation| operation.called);
}

#[test]
fn the_checker_agrees_with_one_that_tries_everything() {
    let cases = (any::<u64>(), 4_usize..9, 2_usize..5, 1_usize..3, 0_usize..3);
    let changes = proptest::collection::vec((any::<usize>(), 0_u8..10, any::<usize>()), 0..3);
    let counts = [const { Cell::new(0) }; 2];
    let config = ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() };
    proptest::test_runner::TestRunner::new(config)
        .run(&(cases, changes), |((seed, operations, clients, names, lost), changes)| {
            let shape = Shape { operations, clients, names, lost: lost as f64 * 0.15 };
            let mut history = generate(seed, shape);
            for (place, how, other) in changes {
                disturb(&mut history, place, how, other);
            }
            let expected = brute(&history);
            let count = &counts[usize::from(expected)];
            count.set(count.get() + 1);
            match check(&history) {
                Ok(_) => prop_assert!(expected, "a fault was not found: {history:#?}"),
                Err(Anomaly::NotLinearizable(why)) => prop_assert!(!expected, "{why}\n{history:#?}"),
                Err(error) => prop_assert!(false, "{error}"),
            }
            Ok(())
        })
        .unwrap();
    assert!(counts.iter().all(|count| count.get() > 500), "{counts:?} refused and accepted");
}
