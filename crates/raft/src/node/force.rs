//! A new group out of one survivor's log.
//!
//! Membership is changed as it always is, by entries of the log, except that nobody else is asked: the entries that
//! remove the others are written as committed. What was in the log already counts as committed too. An entry of which
//! that is not known may have been acknowledged all the same: the commit index on disk lags behind, and the members
//! that could tell are gone.

use prost::Message as _;
use raft::{GetEntriesContext, Storage as _};
use raft_proto::eraftpb::{Entry, EntryType, HardState};
use swarm_api::raftpb::ConfChange;
use swarm_api::v1::RaftMember;

use crate::log::Log;
use crate::storage::{Identity, Write};
use crate::{Change, Config, Error, Membership, Result};

/// Bytes of entries that are looked through at a time.
const READ: u64 = 4 * 1024 * 1024;

/// Reduces the group to this member. `membership` is that of the newest snapshot, and what is left when this returns.
pub(super) fn force_new_group(
    log: &mut Log,
    membership: &mut Membership,
    identity: &Identity,
    config: &Config,
) -> Result<()> {
    let own = identity.raft_id;
    each_change(log, |change| {
        membership.apply(change);
    })?;
    if membership.is_removed(own) {
        return Err(Error::ForceRemoved);
    }
    let others: Vec<u64> = membership.members().map(|m| m.raft_id).filter(|id| *id != own).collect();
    let mut changes: Vec<Change> = others.iter().map(|id| Change::Remove(*id)).collect();
    if membership.get(own).is_none() {
        changes.push(Change::Add(RaftMember {
            raft_id: own,
            node_id: config.node_id.clone(),
            addr: config.addr.clone(),
            ..RaftMember::default()
        }));
    }
    if changes.is_empty() {
        tracing::info!("this manager is the only member already");
        return Ok(());
    }
    let last = log.last_index().map_err(Error::Start)?;
    let state = log.initial_state().map_err(Error::Start)?.hard_state;
    // Without an entry there is no term yet.
    let term = state.term.max(log.term_of(last).unwrap_or(0)).max(1);
    let prefix = u64::from(crate::handle::id_prefix(own)) << 48;
    let entries: Vec<Entry> = (last + 1..)
        .zip(&changes)
        .map(|(index, change)| {
            let change = change.to_conf_change(prefix | index);
            membership.apply(&change);
            let data = change.encode_to_vec().into();
            Entry { entry_type: EntryType::EntryConfChange as i32, term, index, data, ..Entry::default() }
        })
        .collect();
    let commit = last + entries.len() as u64;
    let hard_state = HardState { term, commit, ..state };
    log.write(&Write { entries: &entries, hard_state: Some(&hard_state), ..Write::default() }, true)?;
    tracing::warn!(
        removed = others.len(),
        kept = commit.saturating_sub(state.commit),
        "made a new group of this manager alone; the other managers must never come back with their old state"
    );
    Ok(())
}

/// Visits the membership changes after the newest snapshot.
fn each_change(log: &Log, mut visit: impl FnMut(&ConfChange)) -> Result<()> {
    let snapshot = log.snapshot_at().map_or(0, |at| at.index);
    let last = log.last_index().map_err(Error::Start)?;
    let mut next = log.base().index.max(snapshot) + 1;
    while next <= last {
        let entries = log.entries(next, last + 1, Some(READ), GetEntriesContext::empty(false));
        for entry in entries.map_err(Error::Start)? {
            next = entry.index + 1;
            if entry.entry_type() == EntryType::EntryConfChange
                && let Ok(change) = ConfChange::decode(&*entry.data)
            {
                visit(&change);
            }
        }
    }
    Ok(())
}
