//! The first records of a log.

use prost::Message as _;
use raft_proto::eraftpb::{ConfState, Entry, EntryType, HardState};
use rand::RngExt as _;
use swarm_api::v1::{ClusterSnapshot, RaftMember, Snapshot, StoreSnapshot};

use super::{LARGEST_ID, RaftNode};
use crate::log::Log;
use crate::snapshot::{Meta, Snapshots};
use crate::storage::{Identity, Position, SledLog, Write};
use crate::{Change, Config, Error, Origin, Result};

fn member(raft_id: u64, config: &Config) -> RaftMember {
    RaftMember {
        raft_id,
        node_id: config.node_id.clone(),
        addr: config.addr.clone(),
        ..RaftMember::default()
    }
}

/// Writes the first records of a new log.
pub(super) fn begin(log: &mut Log, config: &Config, snapshots: &Snapshots) -> Result<Identity> {
    let raft_id = match (&config.origin, config.seed) {
        (Origin::Joined { raft_id, .. }, _) => *raft_id,
        (_, Some(seed)) => seed % LARGEST_ID + 1,
        (_, None) => rand::rng().random_range(1..=LARGEST_ID),
    };
    let identity = Identity { raft_id, node_id: config.node_id.clone() };
    if let Origin::Joined { members, .. } = &config.origin {
        let Some(fetched) = &config.fetched else {
            log.write(&Write { identity: Some(&identity), ..Write::default() }, true)?;
            return Ok(identity);
        };
        fetched.check(raft_id, members).map_err(Error::Fetched)?;
        // As after a snapshot of the leader. The vote is free: a new member has given none in any term.
        let at = fetched.meta.at;
        let hard_state = HardState { term: fetched.term, vote: 0, commit: at.index };
        let write = Write {
            identity: Some(&identity),
            hard_state: Some(&hard_state),
            install: Some(at),
            snapshot: Some(at),
            ..Write::default()
        };
        log.write(&write, true)?;
        snapshots.adopt_fetched(at)?;
        return Ok(identity);
    }
    // As the original begins: the first entry adds the first member, and is committed.
    let id = u64::from(crate::handle::id_prefix(raft_id)) << 48;
    let first = Entry {
        entry_type: EntryType::EntryConfChange as i32,
        term: 1,
        index: 1,
        data: Change::Add(member(raft_id, config)).to_conf_change(id).encode_to_vec().into(),
        ..Entry::default()
    };
    let hard_state = HardState { term: 1, vote: 0, commit: 1 };
    let write = Write {
        identity: Some(&identity),
        entries: &[first],
        hard_state: Some(&hard_state),
        ..Write::default()
    };
    log.write(&write, true)?;
    Ok(identity)
}

impl RaftNode {
    /// Begins a group of one with this content, as of a position in a log that never was: what is restored from a
    /// backup. Its raft id is a new one; `removed` are those that may never come back. Blocks.
    ///
    /// # Errors
    /// If there is a log already, and those of writing.
    pub fn begin_from(config: &Config, at: Position, removed: Vec<u64>, store: StoreSnapshot) -> Result<()> {
        let dir = config.state_dir.join("raft");
        crate::disk::create_dir(&dir)?;
        let log_dir = dir.join("log");
        let (mut log, found) = Log::open(Box::new(SledLog::open(&log_dir, config.sealer.clone())?))?;
        if found.is_some() {
            return Err(Error::damaged(&log_dir, "there is a log already"));
        }
        let raft_id = loop {
            let id = rand::rng().random_range(1..=LARGEST_ID);
            if !removed.contains(&id) {
                break id;
            }
        };
        let identity = Identity { raft_id, node_id: config.node_id.clone() };
        let membership = ClusterSnapshot { members: vec![member(raft_id, config)], removed };
        let meta = Meta { at, conf_state: ConfState { voters: vec![raft_id], ..ConfState::default() } };
        let snapshot = Snapshot { membership, store, ..Snapshot::default() };
        let snapshots = Snapshots::open(&dir.join("snapshots"), config.sealer.clone())?;
        snapshots.save_bytes(&meta, &snapshot.encode_to_vec())?;
        let hard_state = HardState { term: at.term, vote: 0, commit: at.index };
        let write = Write {
            identity: Some(&identity),
            hard_state: Some(&hard_state),
            install: Some(at),
            snapshot: Some(at),
            ..Write::default()
        };
        log.write(&write, true)
    }
}
