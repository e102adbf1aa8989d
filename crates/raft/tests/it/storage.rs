//! The rules of log storage, held against every implementation.

use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use raft_proto::eraftpb::{Entry, HardState};
use swarm_raft::storage::{Identity, LogStorage, MemoryDisk, Position, Recovered, SledLog, Write};
use swarm_raft::{MaskSealer, PlainSealer};

/// A place where a log is kept while it is closed and opened again.
trait Place {
    fn open(&self) -> Box<dyn LogStorage>;
}

struct OnSled(PathBuf, #[expect(dead_code, reason = "removed when dropped")] tempfile::TempDir);

impl Place for OnSled {
    fn open(&self) -> Box<dyn LogStorage> {
        Box::new(SledLog::open(&self.0, Arc::new(MaskSealer(3))).unwrap())
    }
}

impl Place for MemoryDisk {
    fn open(&self) -> Box<dyn LogStorage> {
        Box::new(MemoryDisk::open(self))
    }
}

fn on_sled() -> OnSled {
    let dir = tempfile::tempdir().unwrap();
    OnSled(dir.path().join("log"), dir)
}

/// Runs a test for each implementation.
fn everywhere(test: impl Fn(&dyn Place)) {
    test(&on_sled());
    test(&MemoryDisk::new());
}

fn entry(index: u64, term: u64, size: usize) -> Entry {
    let data: Vec<u8> = (0..size).map(|i| (i as u64 * 31 + index + term) as u8).collect();
    Entry { index, term, data: data.into(), ..Entry::default() }
}

fn entries(indexes: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    indexes.map(|i| entry(i, term, 20)).collect()
}

fn identity() -> Identity {
    Identity { raft_id: 77, node_id: "node".into() }
}

fn write(log: &mut dyn LogStorage, write: Write<'_>) {
    log.write(&write).unwrap();
    log.sync().unwrap();
}

fn append(log: &mut dyn LogStorage, entries: &[Entry]) {
    let hard_state = HardState { term: entries.last().unwrap().term, vote: 5, commit: 1 };
    let identity = identity();
    let hard_state = Some(&hard_state);
    write(log, Write { entries, hard_state, identity: Some(&identity), ..Write::default() });
}

/// Opens the log and reads everything, as the node does.
fn reopen(place: &dyn Place) -> (Box<dyn LogStorage>, Recovered, Vec<Entry>) {
    let mut log = place.open();
    let mut all: Vec<Entry> = Vec::new();
    let recovered = log
        .recover(&mut |entry| {
            all.retain(|e| e.index < entry.index);
            all.push(entry);
        })
        .unwrap();
    (log, recovered, all)
}

#[test]
fn a_new_log_is_empty() {
    everywhere(|place| {
        let (_, recovered, all) = reopen(place);
        assert_eq!((recovered, all), (Recovered::default(), vec![]));
    });
}

#[test]
fn what_was_synced_is_there_again() {
    everywhere(|place| {
        let (mut log, ..) = reopen(place);
        append(&mut *log, &entries(1..=3, 1));
        append(&mut *log, &entries(4..=9, 2));
        drop(log);
        let (log, recovered, all) = reopen(place);
        assert_eq!(recovered.identity, Some(identity()));
        assert_eq!(recovered.hard_state, HardState { term: 2, vote: 5, commit: 1 });
        assert_eq!(all, [entries(1..=3, 1), entries(4..=9, 2)].concat());
        assert_eq!(log.read(2, 6, u64::MAX).unwrap(), all[1..5]);
        assert_eq!(log.read(9, 10, 0).unwrap(), all[8..], "at least one");
        assert_eq!(log.read(1, 10, 100).unwrap().len(), 3, "as many as fit");
    });
}

#[test]
fn a_conflict_replaces_the_tail() {
    everywhere(|place| {
        let (mut log, ..) = reopen(place);
        append(&mut *log, &entries(1..=8, 1));
        append(&mut *log, &entries(9..=10, 1));
        append(&mut *log, &entries(6..=7, 2));
        append(&mut *log, &entries(8..=8, 2));
        append(&mut *log, &entries(7..=7, 3));
        let expected = [entries(1..=5, 1), entries(6..=6, 2), entries(7..=7, 3)].concat();
        assert_eq!(log.read(1, 8, u64::MAX).unwrap(), expected);
        drop(log);
        let (mut log, _, all) = reopen(place);
        assert_eq!(all, expected);
        append(&mut *log, &entries(8..=12, 3));
        drop(log);
        assert_eq!(reopen(place).2.len(), 12);
    });
}

#[test]
fn compaction_frees_what_is_before() {
    everywhere(|place| {
        let (mut log, ..) = reopen(place);
        for i in 0..10 {
            append(&mut *log, &entries(i * 10 + 1..=i * 10 + 10, 1));
        }
        let before = log.bytes();
        let compact = Some(Position { index: 55, term: 1 });
        write(&mut *log, Write { compact, snapshot: compact, ..Write::default() });
        assert!(log.bytes() < before * 6 / 10, "{} of {before}", log.bytes());
        assert!(log.read(55, 57, u64::MAX).is_err());
        assert_eq!(log.read(56, 58, u64::MAX).unwrap(), entries(56..=57, 1));
        drop(log);
        let (mut log, recovered, all) = reopen(place);
        assert_eq!((recovered.base, recovered.snapshot), (Position { index: 55, term: 1 }, compact));
        assert_eq!(all, entries(56..=100, 1));
        let compact = Some(Position { index: 100, term: 1 });
        write(&mut *log, Write { compact, ..Write::default() });
        assert_eq!(log.bytes(), 0);
        append(&mut *log, &entries(101..=102, 2));
        drop(log);
        assert_eq!(reopen(place).2, entries(101..=102, 2));
    });
}

#[test]
fn a_log_is_compacted_in_pieces() {
    everywhere(|place| {
        let (mut log, ..) = reopen(place);
        assert_eq!(log.oldest(9, u64::MAX), 0, "nothing is there");
        (1..=10).for_each(|index| append(&mut *log, &[entry(index, 1, 1000)]));
        assert_eq!(log.oldest(3, u64::MAX), 3);
        assert_eq!(log.oldest(30, u64::MAX), 10);
        assert_eq!((log.oldest(0, u64::MAX), log.oldest(9, 0)), (1, 1), "one at least");
        assert_eq!(log.oldest(9, 3_900), 3, "no more bytes than were asked for");
        let (mut at, mut steps) = (0, 0);
        while at < 9 {
            at = log.oldest(2, u64::MAX).min(9);
            let compact = Some(Position { index: at, term: 1 });
            log.write(&Write { compact, ..Write::default() }).unwrap();
            steps += 1;
        }
        assert_eq!(steps, 5);
        append(&mut *log, &[entry(11, 1, 10)]);
        drop(log);
        let (log, recovered, all) = reopen(place);
        assert_eq!(recovered.base, Position { index: 9, term: 1 });
        assert_eq!(all, [entry(10, 1, 1000), entry(11, 1, 10)]);
        assert_eq!(log.oldest(1, u64::MAX), 10);
    });
}

#[test]
fn a_received_snapshot_begins_the_log_anew() {
    everywhere(|place| {
        let (mut log, ..) = reopen(place);
        append(&mut *log, &entries(1..=30, 1));
        let at = Position { index: 500, term: 7 };
        let tail = entries(501..=503, 7);
        write(&mut *log, Write { install: Some(at), snapshot: Some(at), entries: &tail, ..Write::default() });
        drop(log);
        let (_, recovered, all) = reopen(place);
        assert_eq!((recovered.base, recovered.snapshot), (at, Some(at)));
        assert_eq!(all, tail);
    });
}

#[test]
fn large_entries_are_stored_in_chunks() {
    everywhere(|place| {
        let (mut log, ..) = reopen(place);
        let all = [entry(1, 1, 10), entry(2, 1, 300_000), entry(3, 1, 1_572_864), entry(4, 1, 262_144)];
        append(&mut *log, &all);
        append(&mut *log, &[entry(5, 1, 700_000)]);
        assert_eq!(log.read(3, 4, u64::MAX).unwrap(), [all[2].clone()]);
        append(&mut *log, &[entry(5, 2, 3)]);
        drop(log);
        let (mut log, _, found) = reopen(place);
        assert_eq!(found[..4], all);
        assert_eq!(found[4], entry(5, 2, 3));
        let compact = Some(Position { index: 4, term: 1 });
        write(&mut *log, Write { compact, ..Write::default() });
        assert!(log.bytes() < 1000);
        drop(log);
        assert_eq!(reopen(place).2, [entry(5, 2, 3)]);
    });
}

#[test]
fn sled_has_no_page_so_large_that_it_would_not_be_synced() {
    let place = on_sled();
    let (mut log, ..) = reopen(&place);
    let mut index = 1;
    for round in 0..20 {
        let sizes = [1_572_864, 262_144, 130_000, 40_000, 6_100, 6_000, 500, 0];
        let count = [1, 2, 8, 64][round % 4];
        let sizes = sizes.iter().cycle().skip(round).step_by(3).take(count).map(|s| s / count.max(4) * 4);
        let entries: Vec<Entry> = (index..).zip(sizes).map(|(i, size)| entry(i, 1, size)).collect();
        index += count as u64;
        append(&mut *log, &entries);
        let blobs = std::fs::read_dir(place.0.join("blobs")).unwrap().count();
        assert_eq!(blobs, 0, "after round {round}");
    }
}

#[test]
fn entries_must_follow_each_other() {
    everywhere(|place| {
        let (mut log, ..) = reopen(place);
        append(&mut *log, &entries(1..=3, 1));
        let gap = entries(5..=5, 1);
        assert!(log.write(&Write { entries: &gap, ..Write::default() }).is_err());
        let compact = Some(Position { index: 2, term: 1 });
        log.write(&Write { compact, ..Write::default() }).unwrap();
        let compacted = entries(2..=2, 1);
        assert!(log.write(&Write { entries: &compacted, ..Write::default() }).is_err());
    });
}

#[test]
fn another_key_does_not_open_the_log() {
    let place = on_sled();
    let (mut log, ..) = reopen(&place);
    append(&mut *log, &entries(1..=3, 1));
    drop(log);
    let mut log = SledLog::open(&place.0, Arc::new(MaskSealer(4))).unwrap();
    let error = log.recover(&mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("another data encryption key"), "{error}");
    drop(log);
    let mut log = SledLog::open(&place.0, Arc::new(PlainSealer)).unwrap();
    assert!(log.recover(&mut |_| {}).is_err());
}

#[test]
fn a_log_in_use_is_not_opened_twice() {
    let place = on_sled();
    let _log = reopen(&place).0;
    let error = SledLog::open(&place.0, Arc::new(MaskSealer(3))).unwrap_err().to_string();
    assert!(error.contains("in use by another process"), "{error}");
}

#[test]
fn nothing_of_an_entry_is_readable_in_the_files() {
    let place = on_sled();
    let (mut log, ..) = reopen(&place);
    let secret = Entry { index: 1, term: 1, data: "BEGIN PRIVATE KEY".into(), ..Entry::default() };
    append(&mut *log, &[secret]);
    drop(log);
    let mut files = vec![place.0.parent().unwrap().to_owned()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(13).any(|w| w == b"BEGIN PRIVATE"), "{}", path.display());
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append { back: u64, sizes: Vec<usize> },
    Compact { keep: u64 },
    Install { ahead: u64 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let sizes = prop::collection::vec(prop_oneof![9 => 0..300usize, 1 => 100_000..400_000usize], 1..8);
    prop_oneof![
        8 => (prop_oneof![4 => Just(0u64), 1 => 0..12u64], sizes)
            .prop_map(|(back, sizes)| Step::Append { back, sizes }),
        2 => (0..10u64).prop_map(|keep| Step::Compact { keep }),
        1 => (1..50u64).prop_map(|ahead| Step::Install { ahead }),
        2 => Just(Step::Reopen),
    ]
}

/// Any history gives the same log on sled as in a plain list.
fn same_as_a_list(place: &dyn Place, steps: &[Step]) {
    let (mut log, ..) = reopen(place);
    append(&mut *log, &entries(1..=1, 1));
    let mut base = Position::default();
    let mut list = entries(1..=1, 1);
    for (term, step) in (2..).zip(steps) {
        match step {
            Step::Append { back, sizes } => {
                let last = base.index + list.len() as u64;
                let first = (last + 1 - back.min(&(list.len() as u64))).max(base.index + 1);
                let new: Vec<Entry> = (first..).zip(sizes).map(|(i, s)| entry(i, term, *s)).collect();
                list.retain(|e| e.index < first);
                list.extend(new.iter().cloned());
                append(&mut *log, &new);
            }
            Step::Compact { keep } => {
                let Some(at) = list.len().checked_sub(1 + *keep as usize).map(|i| &list[i]) else { continue };
                base = Position { index: at.index, term: at.term };
                list.retain(|e| e.index > base.index);
                write(&mut *log, Write { compact: Some(base), ..Write::default() });
            }
            Step::Install { ahead } => {
                base = Position { index: base.index + list.len() as u64 + ahead, term };
                list.clear();
                write(&mut *log, Write { install: Some(base), snapshot: Some(base), ..Write::default() });
            }
            Step::Reopen => {
                drop(log);
                let (reopened, recovered, all) = reopen(place);
                assert_eq!((recovered.base, &all), (base, &list));
                log = reopened;
            }
        }
        if let (Some(first), Some(last)) = (list.first(), list.last()) {
            assert_eq!(log.read(first.index, last.index + 1, u64::MAX).unwrap(), list);
            let middle = (first.index + last.index) / 2;
            assert_eq!(log.read(middle, middle + 1, 0).unwrap()[0].index, middle);
        }
    }
    drop(log);
    assert_eq!(reopen(place).2, list);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn every_history_reads_back(steps in prop::collection::vec(step(), 1..25)) {
        same_as_a_list(&MemoryDisk::new(), &steps);
        same_as_a_list(&on_sled(), &steps);
    }
}

/// Bytes of the files in a directory and those below it.
fn size_on_disk(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_on_disk(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0, // removed meanwhile
    });
    sizes.sum()
}

/// How many entries a turn has, and of how many bytes.
type Shape<'a> = &'a dyn Fn(u64) -> (u64, usize);

/// Writes turns of entries, compacts as a manager does with these settings, and returns the largest size on disk in
/// each tenth of the run.
fn sizes(turns: u64, shape: Shape<'_>, interval: u64, slow: u64) -> Vec<u64> {
    let place = on_sled();
    let mut log = place.open();
    log.recover(&mut |_| ()).unwrap();
    let mut largest = Vec::new();
    let (mut last, mut snapshot) = (0, 0);
    for turn in 0..turns {
        let (per_turn, size) = shape(turn);
        let turn_entries: Vec<Entry> = (last + 1..=last + per_turn).map(|i| entry(i, 1, size)).collect();
        last += per_turn;
        append(&mut *log, &turn_entries);
        if last - snapshot >= interval {
            snapshot = last;
            let at = |index| Some(Position { index, term: 1 });
            write(&mut *log, Write { snapshot: at(last), compact: at(last - slow), ..Write::default() });
        }
        if turn.is_multiple_of(64) {
            let tenth = (turn * 10 / turns) as usize;
            largest.resize(largest.len().max(tenth + 1), 0);
            largest[tenth] = largest[tenth].max(size_on_disk(&place.0));
        }
    }
    largest
}

#[test]
#[ignore = "long suite"]
fn long_a_compacted_log_does_not_grow() {
    // Like the load of a busy day: one writer and many, small entries and larger ones, in waves and mixed.
    let waves = |turn: u64| if turn % 8_000 < 4_000 { (40, 1_100) } else { (8, 150) };
    let mixed = |turn: u64| {
        let drawn = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        (drawn % 64 + 1, (drawn >> 6) as usize % 1_200 + 1)
    };
    let shapes: [(&str, Shape<'_>); 5] = [
        ("one entry of 600 bytes", &|_| (1, 600)),
        ("16 entries of 600 bytes", &|_| (16, 600)),
        ("64 entries of 300 bytes", &|_| (64, 300)),
        ("40 entries of 1,100 bytes, then 8 of 150", &waves),
        ("1 to 64 entries of up to 1,200 bytes", &mixed),
    ];
    for (name, shape) in shapes {
        let largest = sizes(40_000, shape, 10_000, 500);
        println!("{name} in each turn: {largest:?}");
        let (early, late) = (largest[2..5].iter().max().unwrap(), largest[5..].iter().max().unwrap());
        assert!(*late < early + early / 2, "it went on growing: {largest:?}");
    }
}
