//! Long histories from a store that does everything right, with any number of calls under way at a time.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::super::{Limits, check, check_within};
use super::*;

/// The store: the object of each name, and the log's last index.
#[derive(Debug, Clone, Default)]
pub(super) struct Simulated {
    objects: BTreeMap<String, Seen>,
    index: u64,
    ids: u64,
}

impl Simulated {
    /// Carries out a call.
    pub(super) fn answer(&mut self, call: &Call) -> Answer {
        let by_id = |id: &str| self.objects.values().find(|seen| seen.id == *id).cloned();
        match call {
            Call::List => Answer::All(self.objects.values().cloned().collect()),
            Call::Get { id } => by_id(id).map_or(Answer::NotFound, Answer::Object),
            Call::Create { name, .. } if self.objects.contains_key(name) => Answer::Exists,
            Call::Create { name, tag } => {
                self.ids += 1;
                let id = format!("id{}", self.ids);
                self.put(Seen { name: name.clone(), id, version: 0, tag: tag.clone() })
            }
            Call::Update { id, version, tag, .. } => match by_id(id) {
                None => Answer::NotFound,
                Some(seen) if seen.version != *version => Answer::OutOfSequence,
                Some(seen) => self.put(Seen { tag: tag.clone(), ..seen }),
            },
            Call::Remove { id } => match by_id(id) {
                None => Answer::NotFound,
                Some(seen) => {
                    self.index += 1;
                    self.objects.remove(&seen.name);
                    Answer::Removed
                }
            },
        }
    }

    fn put(&mut self, seen: Seen) -> Answer {
        // Other entries come in between.
        self.index += 1 + self.index % 3;
        let seen = Seen { version: self.index, ..seen };
        self.objects.insert(seen.name.clone(), seen.clone());
        Answer::Object(seen)
    }
}

/// A call under way.
struct Running {
    client: usize,
    call: Call,
    called: u64,
    /// What the store has said, once it has.
    answer: Option<Answer>,
    lost: bool,
}

/// What a history is to be like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) operations: usize,
    pub(super) clients: usize,
    pub(super) names: usize,
    /// Share of calls whose answer is lost.
    pub(super) lost: f64,
}

/// A history, with all calls answered or lost at the end.
pub(super) fn generate(seed: u64, shape: Shape) -> History {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut store = Simulated::default();
    let mut known: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
    let mut running: Vec<Running> = Vec::new();
    // Calls whose client has given up, but which may still be carried out.
    let mut stray: Vec<Call> = Vec::new();
    let mut done = Vec::new();
    let (mut time, mut begun) = (0, 0);
    while done.len() < shape.operations {
        time += 1;
        if !stray.is_empty() && rng.random_bool(0.02) {
            let call = stray.swap_remove(rng.random_range(0..stray.len()));
            store.answer(&call);
        }
        let idle: Vec<usize> =
            (0..shape.clients).filter(|client| running.iter().all(|r| r.client != *client)).collect();
        if begun < shape.operations && !idle.is_empty() && rng.random_bool(0.4) {
            let client = idle[rng.random_range(0..idle.len())];
            let call = draw(&mut rng, &known, shape.names, begun);
            begun += 1;
            let lost = rng.random_bool(shape.lost);
            running.push(Running { client, call, called: time, answer: None, lost });
            continue;
        }
        if running.is_empty() {
            continue;
        }
        let at = rng.random_range(0..running.len());
        let one = &mut running[at];
        if one.answer.is_none() && !(one.lost && rng.random_bool(0.3)) {
            one.answer = Some(store.answer(&one.call));
            continue;
        }
        let Running { client, call, called, answer, lost } = running.swap_remove(at);
        let answer = match answer {
            Some(answer) if !lost => answer,
            Some(_) => unknown(),
            None => {
                stray.push(call.clone());
                unknown()
            }
        };
        for seen in super::super::facts::seen(&answer) {
            known.entry(seen.name.clone()).or_default().push(seen.clone());
        }
        let times = (Duration::from_millis(called), Duration::from_millis(time));
        done.push(Operation { client, door: "x".into(), call, answer, called, returned: time, time: times });
    }
    History::new(done)
}

fn draw(rng: &mut StdRng, known: &BTreeMap<String, Vec<Seen>>, names: usize, number: usize) -> Call {
    let name = format!("n{}", rng.random_range(0..names));
    let tag = format!("t{number}");
    let all = known.get(&name).map_or(&[][..], Vec::as_slice);
    let age = if rng.random_bool(0.2) { rng.random_range(0..3) } else { 0 };
    match (rng.random_range(0..10), all.iter().rev().nth(age)) {
        (0..=1, _) => Call::List,
        (2..=3, Some(seen)) => Call::Get { id: seen.id.clone() },
        (4..=6, Some(seen)) => Call::Update { id: seen.id.clone(), name, version: seen.version, tag },
        (7, Some(seen)) => Call::Remove { id: seen.id.clone() },
        _ => Call::Create { name, tag },
    }
}

#[test]
fn right_histories_are_accepted() {
    for seed in 0..60 {
        let clients = 2 + usize::try_from(seed % 8).unwrap();
        let history = generate(seed, Shape { operations: 400, clients, names: 4, lost: 0.05 });
        if let Err(error) = check(&history) {
            panic!("seed {seed}: {error}");
        }
    }
}

#[test]
fn a_long_history_is_decided() {
    let history = generate(7, Shape { operations: 25_000, clients: 10, names: 6, lost: 0.02 });
    let limits = Limits { configurations: 500_000, ..Limits::default() };
    let report = check_within(&history, limits).unwrap();
    assert_eq!(report.operations, 25_000);
    assert!(report.unknown > 200 && report.acknowledged > 3_000, "{report}");
}
