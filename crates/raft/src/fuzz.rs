//! What reads bytes of a peer or of a disk, as functions of bytes, for the fuzz targets. Not for anybody else.

use std::io::{Cursor, Read as _};
use std::path::Path;
use std::sync::Arc;

use prost::Message as _;
use swarm_api::raftpb;
use swarm_api::swarmd::{FetchEnd, FetchResponse};
use swarm_api::v1::{ClusterSnapshot, RaftMember};
use swarm_store::Store;

use crate::storage::{record, watermark};
use crate::{Config, Membership, PlainSealer, snapshot};

/// A member that is told what the bytes say; see `node::messages`. Its directory is given by the caller.
pub fn messages(script: &[u8], dir: &Path) {
    let _ = std::fs::remove_dir_all(dir.join("raft"));
    crate::node::messages(script, dir);
}

/// A record of the log, and the checksums of its entries.
pub fn record(bytes: &[u8]) -> bool {
    let record = record::decode(bytes.to_vec().into());
    record.is_ok_and(|record| {
        let _ = record.entries.iter().fold(record.chain, record::chain);
        true
    })
}

/// The watermark's file; also as if its checksums were right.
pub fn watermark(bytes: &[u8]) -> bool {
    let mut right = bytes.to_vec();
    watermark::correct(&mut right);
    let _ = watermark::newest(&right);
    watermark::newest(bytes).is_ok_and(|mark| mark.is_some())
}

/// What a leader answers to a manager that is about to join: answers, each behind its length. Also as if the last one were
/// right. The directory is given by the caller.
pub fn fetch(mut bytes: &[u8], dir: &Path) -> bool {
    let mut answers = Vec::new();
    while !bytes.is_empty() {
        let Ok(answer) = FetchResponse::decode_length_delimited(&mut bytes) else { break };
        answers.push(answer);
    }
    let mut right = answers.clone();
    if let Some(last) = right.last_mut() {
        let content: Vec<u8> = answers.iter().flat_map(|answer| answer.data.iter().copied()).collect();
        last.end = Some(fetch_end(&content));
    }
    let config = Config::new("m9", "a:1", dir, Arc::new(PlainSealer));
    let takes = |answers| {
        let store = Store::new();
        let taken = crate::fetch::take_in(answers, &config, &*store);
        assert!(taken || store.view().index() == 0, "something of it is in the store");
        store.close();
        taken
    };
    (right != answers && takes(right)) | takes(answers)
}

/// The last answer of such ones.
pub fn fetch_end(content: &[u8]) -> FetchEnd {
    FetchEnd { length: content.len() as u64, checksum: crc32fast::hash(content) }
}

/// An entry that changes the membership.
pub fn change(bytes: &[u8]) -> bool {
    let Ok(change) = raftpb::ConfChange::decode(bytes) else { return false };
    let members = (1..=4).map(|raft_id| RaftMember { raft_id, ..RaftMember::default() }).collect();
    let mut membership = Membership::from_snapshot(&ClusterSnapshot { members, removed: vec![9] });
    let _ = membership.validate(&change);
    membership.apply(&change);
    assert!(!membership.apply(&change), "a change has another effect the second time");
    assert_eq!(Membership::from_snapshot(&membership.to_snapshot()), membership);
    true
}

/// A snapshot's file, as it would be without encryption.
pub fn snapshot_file(bytes: &[u8]) -> bool {
    let Ok((_, mut frames)) = snapshot::open_frames(Cursor::new(bytes), Arc::new(PlainSealer)) else {
        return false;
    };
    let mut content = Vec::new();
    frames.read_to_end(&mut content).is_ok() && snapshot::decode(&*content).is_ok()
}
