//! Histories that are right, and histories with a fault that must be found.

mod brute;
mod faults;
mod generated;
mod hand_made;

use std::time::Duration;

use super::history::{Answer, Call, History, Operation, Seen};

/// Name, id, version and content.
fn seen(name: &str, id: &str, version: u64, tag: &str) -> Seen {
    Seen { name: name.into(), id: id.into(), version, tag: tag.into() }
}

fn object(name: &str, id: &str, version: u64, tag: &str) -> Answer {
    Answer::Object(seen(name, id, version, tag))
}

fn create(name: &str, tag: &str) -> Call {
    Call::Create { name: name.into(), tag: tag.into() }
}

fn get(id: &str) -> Call {
    Call::Get { id: id.into() }
}

fn update(name: &str, id: &str, version: u64, tag: &str) -> Call {
    Call::Update { id: id.into(), name: name.into(), version, tag: tag.into() }
}

fn remove(id: &str) -> Call {
    Call::Remove { id: id.into() }
}

fn unknown() -> Answer {
    Answer::Unknown("no answer".into())
}

/// Begin, end, call and answer.
type Line = (u64, u64, Call, Answer);

fn history(lines: &[Line]) -> History {
    let operation = |(client, (called, returned, call, answer)): (usize, &Line)| Operation {
        client,
        door: "manager".into(),
        call: call.clone(),
        answer: answer.clone(),
        called: *called,
        returned: *returned,
        time: (Duration::from_millis(*called), Duration::from_millis(*returned)),
    };
    History::new(lines.iter().enumerate().map(operation).collect())
}
