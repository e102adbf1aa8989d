//! A raft node: opening what is on disk, and starting the thread that owns it.

mod begin;
mod changes;
mod compaction;
mod force;
mod fuzz;
mod incoming;
mod leadership;
mod proposals;
mod reads;
mod ready;
mod reseal;
mod turn;

pub(crate) use compaction::step_back;
pub(crate) use fuzz::messages;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use raft_proto::eraftpb::ConfState;
use swarm_api::v1::StoreSnapshot;
use swarm_store::{Proposer, StateMachine};

use crate::handle::{RaftProposer, Shared};
use crate::log::Log;
use crate::snapshot::{Meta, Snapshots};
use crate::storage::{LogStorage, Position, SledLog};
use crate::{Change, Config, Error, Membership, Origin, RaftHandle, Result};

/// Directories of the original's log, of all its generations.
const FOREIGN: &[&str] = &["wal-v3-encrypted", "wal-v3", "wal"];

/// The largest raft id.
const LARGEST_ID: u64 = (1 << 63) - 1;

/// A raft node that was opened, but does not run yet: between the two the store is made, which needs the node's
/// [`Proposer`] and is its state machine.
pub struct RaftNode {
    pub(crate) config: Config,
    pub(crate) log: Log,
    pub(crate) snapshots: Snapshots,
    pub(crate) shared: Arc<Shared>,
    pub(crate) membership: Membership,
    /// Where the newest snapshot is, and its content until the state machine has it.
    pub(crate) restore: Option<(Meta, Option<StoreSnapshot>)>,
}

impl std::fmt::Debug for RaftNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNode").field("config", &self.config).finish_non_exhaustive()
    }
}

impl RaftNode {
    /// Opens the log in the state directory, or begins one. Blocks: reads the whole log and the newest snapshot.
    ///
    /// # Errors
    /// If what is there belongs to somebody else, can't be decrypted, is damaged, or is not all that was written.
    pub fn open(config: Config) -> Result<RaftNode> {
        let _entered = config.points.enter();
        let dir = config.state_dir.join("raft");
        refuse_foreign(&dir)?;
        if config.origin == Origin::Existing
            && fs::read_dir(&dir).map_or(true, |mut files| files.next().is_none())
        {
            return Err(Error::NoLog { path: dir });
        }
        crate::disk::create_dir(&dir)?;
        let log = dir.join("log");
        // sled panics at some kinds of damage.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let storage = SledLog::open(&log, config.sealer.clone())?;
            RaftNode::open_with(config, Box::new(storage))
        }));
        opened.unwrap_or_else(|panic| Err(Error::damaged(&log, turn::panic_text(&*panic))))
    }

    /// The same with a log of another kind. Snapshots are files in the state directory nevertheless.
    ///
    /// # Errors
    /// As [`RaftNode::open`].
    pub fn open_with(config: Config, storage: Box<dyn LogStorage>) -> Result<RaftNode> {
        let dir = config.state_dir.join("raft");
        let snapshots = Snapshots::open(&dir.join("snapshots"), config.sealer.clone())?;
        let (mut log, identity) = Log::open(storage)?;
        if let Some(at) = log.snapshot_at() {
            // It ended right after the log began with it.
            snapshots.adopt_fetched(at)?;
        }
        snapshots.remove_fetched(config.fetched.as_ref().map(|fetched| &*fetched.path))?;
        if config.fetched.is_some() && (identity.is_some() || !matches!(config.origin, Origin::Joined { .. }))
        {
            return Err(Error::Fetched("there is a log already".to_owned()));
        }
        let identity = match identity {
            Some(identity) if identity.node_id != config.node_id => {
                return Err(Error::OtherNode {
                    path: dir.join("log"),
                    found: identity.node_id,
                    expected: config.node_id,
                });
            }
            Some(identity) => identity,
            None if !snapshots.list()?.is_empty() => {
                return Err(Error::damaged(&dir.join("log"), "it is empty, but there are snapshots of it"));
            }
            None if config.origin == Origin::Existing => return Err(Error::NoLog { path: dir }),
            None => begin::begin(&mut log, &config, &snapshots)?,
        };
        let mut membership = Membership::default();
        let mut restore = None;
        if let Some(fetched) = &config.fetched {
            log.set_start(Some(fetched.meta.at), fetched.meta.conf_state.clone());
            membership = fetched.membership.clone();
            restore = Some((fetched.meta.clone(), None));
        } else if let Some((meta, snapshot)) = load_newest(&log, &snapshots)? {
            log.set_start(Some(meta.at), meta.conf_state.clone());
            membership = Membership::from_snapshot(&snapshot.membership);
            restore = Some((meta, Some(snapshot.store)));
        } else {
            log.set_start(None, ConfState::default());
        }
        let new = membership.is_empty() || config.fetched.is_some();
        if let (Origin::Joined { members, .. }, true) = (&config.origin, new) {
            // Until the log has come so far.
            for member in members {
                membership.apply(&Change::Add(member.clone()).to_conf_change(0));
            }
        }
        if config.force_new_group {
            force::force_new_group(&mut log, &mut membership, &identity, &config)?;
        }
        let shared = Shared::new(identity.raft_id);
        Ok(RaftNode { config, log, snapshots, shared, membership, restore })
    }

    /// Own raft id.
    pub fn raft_id(&self) -> u64 {
        self.shared.raft_id
    }

    /// What the store proposes through.
    pub fn proposer(&self) -> Arc<dyn Proposer> {
        Arc::new(RaftProposer(self.shared.clone()))
    }

    /// Starts the raft thread. It brings the state machine to where the log is, and a group of one has its leader
    /// right after that.
    ///
    /// # Errors
    /// If no thread can be started. Everything later shows in [`RaftHandle::ended`].
    pub fn start(self, state_machine: Arc<dyn StateMachine>) -> Result<RaftHandle> {
        let shared = self.shared.clone();
        let (ticks, transport) = (self.config.ticks, self.config.transport.clone());
        let name = "raft".to_owned();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || turn::run(self, state_machine))
            .map_err(Error::io("start a thread for", Path::new("raft")))?;
        Ok(RaftHandle::new(shared, thread, transport, ticks))
    }
}

fn refuse_foreign(dir: &Path) -> Result<()> {
    match FOREIGN.iter().map(|name| dir.join(name)).find(|path| path.exists()) {
        Some(path) => Err(Error::ForeignFormat { path }),
        None => Ok(()),
    }
}

/// Loads the newest snapshot from which the log leads on. One that can't be read is put aside for an older one, if
/// the log still reaches back to that.
fn load_newest(log: &Log, snapshots: &Snapshots) -> Result<Option<(Meta, swarm_api::v1::Snapshot)>> {
    let Some(newest) = log.snapshot_at() else { return Ok(None) };
    let mut all: Vec<Position> = snapshots.list()?.into_iter().filter(|at| *at <= newest).collect();
    if all.last() != Some(&newest) {
        all.push(newest);
    }
    let mut first_error = None;
    for at in all.into_iter().rev().filter(|at| at.index >= log.base().index) {
        match snapshots.load(at) {
            Ok(loaded) => return Ok(Some(loaded)),
            Err(error) => {
                tracing::error!(index = at.index, %error, "a snapshot can't be read");
                let missing = matches!(&error, Error::Damaged { .. });
                first_error.get_or_insert(error);
                if missing {
                    snapshots.set_aside(at)?;
                }
            }
        }
    }
    match first_error {
        // Everything since the first entry is in the log: no snapshot is needed.
        Some(_) if log.base().index == 0 => Ok(None),
        Some(error) => Err(error),
        None => Ok(None),
    }
}
