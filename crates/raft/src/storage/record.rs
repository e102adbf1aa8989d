//! Records: runs of consecutive entries, the unit that is sealed and stored.
//!
//! A turn's entries make one record (more, when they are large), because what a key-value store and a cipher
//! cost is mostly per record. Each entry's checksum includes the one of the entry before it, so a record that
//! vanished, came back or changed places shows.
//!
//! The hard state rides along, so that a turn is one value to write. It is numbered: the newest one counts.
//!
//! Layout, all numbers big-endian: version (1 byte), number (8), term (8), vote (8) and commit index (8) of the hard
//! state, first index (8), checksum before the first entry (4), number of entries (4), then per entry term (8), type
//! (1), length (4) and data.

use bytes::{Buf, Bytes};
use raft_proto::eraftpb::{Entry, EntryType, HardState};

const VERSION: u8 = 2;
const HEADER: usize = 1 + NUMBERED + 8 + 4 + 4;
const NUMBERED: usize = 4 * 8;
const ENTRY_HEADER: usize = 8 + 1 + 4;

/// Records are cut when their entries exceed this many bytes, so that a sealed one stays below the size at which
/// it would have to be stored in chunks.
const CUT: usize = 128 * 1024;

/// A hard state, and the number of the write that it came with.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Numbered {
    pub(super) number: u64,
    pub(super) hard_state: HardState,
}

impl Numbered {
    pub(super) fn encode(&self) -> [u8; NUMBERED] {
        let HardState { term, vote, commit } = self.hard_state;
        let mut bytes = [0; NUMBERED];
        for (to, number) in bytes.chunks_exact_mut(8).zip([self.number, term, vote, commit]) {
            to.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    /// `None`: there are too few bytes. More may follow.
    pub(super) fn decode(bytes: &mut impl Buf) -> Option<Numbered> {
        if bytes.remaining() < NUMBERED {
            return None;
        }
        let number = bytes.get_u64();
        let hard_state = HardState { term: bytes.get_u64(), vote: bytes.get_u64(), commit: bytes.get_u64() };
        Some(Numbered { number, hard_state })
    }
}

/// A run of entries as it was stored.
#[derive(Debug, PartialEq)]
pub(crate) struct Record {
    /// As of when it was written.
    pub(crate) state: Numbered,
    pub(crate) first: u64,
    /// Checksum before the first entry.
    pub(crate) chain: u32,
    pub(crate) entries: Vec<Entry>,
}

/// The checksum after an entry, given the one before it.
pub(crate) fn chain(before: u32, entry: &Entry) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&before.to_be_bytes());
    hasher.update(&entry.index.to_be_bytes());
    hasher.update(&entry.term.to_be_bytes());
    hasher.update(&[entry.entry_type as u8]);
    hasher.update(&entry.data);
    hasher.finalize()
}

/// The checksum where a log begins without the entries before it.
pub(super) fn chain_start(at: super::Position) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&at.index.to_be_bytes());
    hasher.update(&at.term.to_be_bytes());
    hasher.finalize()
}

/// Splits entries into runs that become one record each.
pub(super) fn runs(entries: &[Entry]) -> impl Iterator<Item = &[Entry]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut size = 0;
        let fitting = rest
            .iter()
            .take_while(|e| {
                size += e.data.len() + ENTRY_HEADER;
                size <= CUT
            })
            .count();
        let (run, after) = rest.split_at_checked(fitting.max(1))?;
        rest = after;
        Some(run)
    })
}

/// Encodes a run that follows the checksum `before`; also returns the checksum after it.
pub(super) fn encode(state: &Numbered, before: u32, run: &[Entry]) -> (Vec<u8>, u32) {
    let size: usize = run.iter().map(|e| e.data.len() + ENTRY_HEADER).sum();
    let mut out = Vec::with_capacity(HEADER + size);
    out.push(VERSION);
    out.extend_from_slice(&state.encode());
    out.extend_from_slice(&run.first().map_or(0, |e| e.index).to_be_bytes());
    out.extend_from_slice(&before.to_be_bytes());
    out.extend_from_slice(&(run.len() as u32).to_be_bytes());
    let mut after = before;
    for entry in run {
        out.extend_from_slice(&entry.term.to_be_bytes());
        out.push(entry.entry_type as u8);
        out.extend_from_slice(&(entry.data.len() as u32).to_be_bytes());
        out.extend_from_slice(&entry.data);
        after = chain(after, entry);
    }
    (out, after)
}

/// Reads a record; the error says what is wrong with it.
pub(crate) fn decode(mut bytes: Bytes) -> Result<Record, String> {
    if bytes.len() < HEADER {
        return Err("a record is cut short".to_owned());
    }
    let version = bytes.get_u8();
    if version != VERSION {
        return Err(format!("a record has version {version}, which is not known here"));
    }
    let state = Numbered::decode(&mut bytes).ok_or("a record is cut short")?;
    let first = bytes.get_u64();
    let chain = bytes.get_u32();
    let count = bytes.get_u32();
    // There is a number for the entry after them too.
    if first.checked_add(u64::from(count)).is_none() {
        return Err(format!("a record has {count} entries from {first} on, which is more than there can be"));
    }
    let mut entries = Vec::with_capacity((count as usize).min(bytes.len() / ENTRY_HEADER));
    for i in 0..u64::from(count) {
        let short = || format!("the record of entry {} is cut short", first + i);
        if bytes.len() < ENTRY_HEADER {
            return Err(short());
        }
        let term = bytes.get_u64();
        let entry_type = i32::from(bytes.get_u8());
        let length = bytes.get_u32() as usize;
        if bytes.len() < length {
            return Err(short());
        }
        if EntryType::try_from(entry_type).is_err() {
            return Err(format!("entry {} is of the unknown type {entry_type}", first + i));
        }
        let data = bytes.split_to(length);
        entries.push(Entry { entry_type, term, index: first + i, data, ..Entry::default() });
    }
    if !bytes.is_empty() || entries.is_empty() {
        return Err(format!("the record of entry {first} has the wrong size"));
    }
    Ok(Record { state, first, chain, entries })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(from: u64, sizes: &[usize]) -> Vec<Entry> {
        (from..)
            .zip(sizes)
            .map(|(index, size)| Entry { index, term: 2, data: vec![7u8; *size].into(), ..Entry::default() })
            .collect()
    }

    #[test]
    fn a_record_reads_back_as_it_was() {
        let run = entries(5, &[0, 10, 1000]);
        let state = Numbered { number: 1, hard_state: HardState { term: 2, vote: 3, commit: 4 } };
        let (bytes, after) = encode(&state, 9, &run);
        assert_eq!(after, run.iter().fold(9, chain));
        assert_eq!(decode(bytes.into()).unwrap(), Record { state, first: 5, chain: 9, entries: run });
    }

    #[test]
    fn damaged_records_are_refused() {
        let (bytes, _) = encode(&Numbered::default(), 0, &entries(1, &[3, 4]));
        for cut in 0..bytes.len() {
            assert!(decode(bytes[..cut].to_vec().into()).is_err(), "cut at {cut}");
        }
        let mut long = bytes.clone();
        long.push(0);
        assert!(decode(long.into()).is_err());
        let mut version = bytes.clone();
        version[0] = 1;
        assert!(decode(version.into()).unwrap_err().contains("version 1"));
        let mut first = bytes.clone();
        first[HEADER - 16..HEADER - 8].fill(0xff);
        assert!(decode(first.into()).unwrap_err().contains("more than there can be"));
        let mut kind = bytes;
        kind[HEADER + 8] = 9;
        assert!(decode(kind.into()).unwrap_err().contains("unknown type 9"));
    }

    #[test]
    fn large_entries_get_records_of_their_own() {
        let all = entries(1, &[100, 100, CUT, 5, CUT / 2, CUT, 1_500_000, 3]);
        let sizes: Vec<usize> = runs(&all).map(<[Entry]>::len).collect();
        assert_eq!(sizes, [2, 1, 2, 1, 1, 1]);
        assert_eq!(runs(&[]).count(), 0);
    }

    #[test]
    fn the_checksum_depends_on_everything_before() {
        let run = entries(1, &[8, 8]);
        let normal = run.iter().fold(0, chain);
        let swapped = run.iter().rev().fold(0, chain);
        let other_start = run.iter().fold(1, chain);
        assert_ne!(normal, swapped);
        assert_ne!(normal, other_start);
    }
}
