//! Faults as a broken cluster would show them, planted into long histories that are right.

use super::super::{Anomaly, check};
use super::generated::{Shape, generate};
use super::*;

const SHAPE: Shape = Shape { operations: 800, clients: 6, names: 4, lost: 0.01 };

/// Plants a fault into a history of each of some seeds, and has all of them found.
fn caught(what: &str, plant: impl Fn(&mut History) -> bool) {
    let mut planted = 0;
    for seed in 100..108 {
        let mut history = generate(seed, SHAPE);
        assert_eq!(check(&history).map(|report| report.operations), Ok(SHAPE.operations));
        if !plant(&mut history) {
            continue;
        }
        planted += 1;
        match check(&history) {
            Err(Anomaly::NotLinearizable(text)) if seed == 100 => eprintln!("{what}: {text}\n"),
            Err(Anomaly::NotLinearizable(_)) => {}
            other => panic!("{what} was not found with seed {seed}: {other:?}"),
        }
    }
    assert!(planted >= 4, "{what} was planted only {planted} times");
}

/// The first operation after some of the history that fits.
fn find<T>(history: &History, from: usize, pick: impl Fn(usize, &Operation) -> Option<T>) -> Option<T> {
    history.operations.iter().enumerate().skip(from).find_map(|(place, operation)| pick(place, operation))
}

/// An acknowledged update of an object, after which it is read at that version by a call that began later.
fn update_and_read(history: &History) -> Option<(usize, usize)> {
    find(history, 200, |written, operation| match (&operation.call, &operation.answer) {
        (Call::Update { .. }, Answer::Object(seen)) => find(history, written, |read, later| {
            let reads =
                matches!(&later.call, Call::Get { .. }) && later.answer == Answer::Object(seen.clone());
            (reads && later.called > operation.returned).then_some((written, read))
        }),
        _ => None,
    })
}

/// The state that an update replaced.
fn before(history: &History, written: usize) -> Option<Seen> {
    let Call::Update { id, version, .. } = &history.operations[written].call else { return None };
    find(history, 0, |_, operation| {
        let all = super::super::facts::seen(&operation.answer);
        all.iter().find(|seen| seen.id == *id && seen.version == *version).cloned()
    })
}

/// Something after everything else.
fn append(history: &mut History, call: Call, answer: Answer) {
    let end = history.operations.iter().map(|operation| operation.returned).max().unwrap_or_default();
    history.operations.push(Operation {
        client: 99,
        door: "x".into(),
        call,
        answer,
        called: end + 1,
        returned: end + 2,
        time: (Duration::from_millis(end + 1), Duration::from_millis(end + 2)),
    });
}

/// The list after everything else.
fn last_list(history: &History) -> Option<Vec<Seen>> {
    let mut known = std::collections::BTreeMap::new();
    for operation in &history.operations {
        for seen in super::super::facts::seen(&operation.answer) {
            let known = known.entry(seen.name.clone()).or_insert_with(|| seen.clone());
            if known.version < seen.version {
                *known = seen.clone();
            }
        }
    }
    let mut all: Vec<Seen> = known.into_values().collect();
    for operation in &history.operations {
        if let Call::Remove { id } = &operation.call {
            all.retain(|seen| seen.id != *id);
        }
    }
    let mut complete = history.clone();
    append(&mut complete, Call::List, Answer::All(all.clone()));
    check(&complete).is_ok().then_some(all)
}

#[test]
fn an_acknowledged_write_that_is_lost() {
    // Everything goes on as if it had not been: the object is still there as it was before.
    caught("a lost write", |history| {
        let Some((written, read)) = update_and_read(history) else { return false };
        let Some(before) = before(history, written) else { return false };
        history.operations[read].answer = Answer::Object(before);
        true
    });
    // An acknowledged creation that nobody ever sees.
    caught("a lost creation", |history| {
        append(history, create("another", "never"), object("another", "lost", 9_999_999, "never"));
        let Some(all) = last_list(&History { operations: history.operations[..SHAPE.operations].to_vec() })
        else {
            return false;
        };
        append(history, Call::List, Answer::All(all));
        true
    });
}

#[test]
fn a_stale_read() {
    caught("a stale read", |history| {
        let Some((written, _)) = update_and_read(history) else { return false };
        let Some(before) = before(history, written) else { return false };
        let Call::Update { id, .. } = history.operations[written].call.clone() else { return false };
        append(history, get(&id), Answer::Object(before));
        true
    });
    // Refusals read too.
    caught("a stale refusal", |history| {
        let Some(all) = last_list(history) else { return false };
        let Some(seen) = all.first() else { return false };
        append(history, update(&seen.name, &seen.id, seen.version, "late"), Answer::OutOfSequence);
        true
    });
}

#[test]
fn an_object_that_comes_back() {
    caught("a resurrected object", |history| {
        let found = find(history, 200, |_, operation| match (&operation.call, &operation.answer) {
            (Call::Remove { id }, Answer::Removed) => find(history, 0, |_, other| {
                let all = super::super::facts::seen(&other.answer);
                all.iter().filter(|seen| seen.id == *id).max_by_key(|seen| seen.version).cloned()
            }),
            _ => None,
        });
        let Some(seen) = found else { return false };
        append(history, get(&seen.id), Answer::Object(seen.clone()));
        true
    });
}

#[test]
fn a_creation_that_happens_twice() {
    caught("two objects with one name", |history| {
        let Some(all) = last_list(history) else { return false };
        let Some(seen) = all.first() else { return false };
        append(history, create(&seen.name, "second"), object(&seen.name, "other", 9_999_999, "second"));
        true
    });
    caught("one creation, two objects", |history| {
        let Some(all) = last_list(history) else { return false };
        let Some(seen) = all.first() else { return false };
        let twin = Seen { id: "twin".into(), version: 9_999_999, ..seen.clone() };
        append(history, Call::List, Answer::All(vec![twin]));
        true
    });
}

#[test]
fn two_updates_of_one_version() {
    caught("two updates of one version", |history| {
        let found = find(history, 200, |_, operation| match (&operation.call, &operation.answer) {
            (Call::Update { id, version, name, .. }, Answer::Object(_)) => {
                Some((id.clone(), *version, name.clone()))
            }
            _ => None,
        });
        let Some((id, version, name)) = found else { return false };
        append(history, update(&name, &id, version, "again"), object(&name, &id, 9_999_999, "again"));
        true
    });
}

#[test]
fn a_list_without_an_acknowledged_object() {
    caught("a list without an object", |history| {
        let Some(mut all) = last_list(history) else { return false };
        if all.pop().is_none() {
            return false;
        }
        append(history, Call::List, Answer::All(all));
        true
    });
}

#[test]
fn a_list_that_is_torn() {
    // Of two writes that it overlaps it shows the later one only.
    caught("a torn list", |history| {
        let Some(mut all) = last_list(history) else { return false };
        let (Some(a), Some(b)) = (all.pop(), all.pop()) else { return false };
        let (a1, b1) = (
            Seen { version: 9_999_998, tag: "a1".into(), ..a.clone() },
            Seen { version: 9_999_999, tag: "b1".into(), ..b.clone() },
        );
        append(history, update(&a.name, &a.id, a.version, "a1"), Answer::Object(a1));
        append(history, update(&b.name, &b.id, b.version, "b1"), Answer::Object(b1.clone()));
        all.extend([a, b1]);
        append(history, Call::List, Answer::All(all));
        let end = history.operations.len();
        let last = history.operations[end - 1].returned;
        for (at, operation) in history.operations[end - 3..].iter_mut().enumerate() {
            (operation.called, operation.returned) = (last + at as u64, last + 10 + at as u64);
        }
        true
    });
}

#[test]
fn a_refused_write_that_had_an_effect() {
    caught("a refusal that was none", |history| {
        // If nobody had seen it, nobody could tell.
        let Some((written, _)) = update_and_read(history) else { return false };
        history.operations[written].answer = Answer::Refused("there is no leader".into());
        true
    });
}
