//! When a snapshot is taken, and how much of the log stays behind it.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use swarm_api::defaults;
use swarm_store::View;

use super::reseal::Reseal;
use super::turn::Turns;
use crate::counters::add;
use crate::inbox::Request;
use crate::points::{Point, Points, reach};
use crate::snapshot::{Meta, Snapshots};
use crate::storage::{Position, Write};
use crate::{Error, Result};

/// A snapshot is taken when the log takes more room than this, whatever the number of entries.
const MAX_LOG_BYTES: u64 = 256 * 1024 * 1024;
/// Bytes of entries after which a snapshot is taken, whatever their number; half of the last snapshot's, if that is more. A
/// manager that starts applies all that came after its snapshot, which takes several times as long as reading them from one
/// (decision 0085).
const MAX_REPLAY_BYTES: u64 = 16 * 1024 * 1024;
/// Pieces of the log, and bytes, that are removed in one turn. All at once would keep writers waiting.
const PIECES_AT_ONCE: usize = 64;
const BYTES_AT_ONCE: u64 = 512 * 1024;
/// How much a thread that writes a snapshot lets others go first, of 19.
const NICE: i32 = 10;
/// How long entries are kept for a manager that has fetched what they follow.
const KEPT: Duration = Duration::from_secs(120);
/// Managers that entries are kept for at a time.
const MOST_KEPT: usize = 8;
/// Entries until the next try, after a snapshot could not be written.
const RETRY_AFTER: u64 = 100;

/// What the cluster says of snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    /// Entries between two snapshots; 0: none for that reason.
    pub(super) interval: u64,
    /// Old snapshots that stay.
    pub(super) keep_old: u64,
    /// Entries that stay behind a snapshot.
    pub(super) slow_followers: u64,
}

impl Settings {
    pub(super) fn of(view: &View) -> Settings {
        let raft = view.cluster().map(|cluster| cluster.spec.raft);
        raft.map_or(
            Settings {
                interval: defaults::SNAPSHOT_INTERVAL,
                keep_old: 0,
                slow_followers: defaults::LOG_ENTRIES_FOR_SLOW_FOLLOWERS,
            },
            |raft| Settings {
                interval: raft.snapshot_interval,
                keep_old: raft.keep_old_snapshots,
                slow_followers: raft.log_entries_for_slow_followers,
            },
        )
    }
}

/// The state of snapshots.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    /// Index of the newest snapshot.
    pub(super) newest: u64,
    /// The thread that writes one.
    running: Option<JoinHandle<()>>,
    /// No try before this index.
    not_before: u64,
    /// Bytes of entries that were applied since the newest, or the one under way, was begun.
    since: u64,
    /// The same when the one under way was begun.
    before: u64,
    /// Bytes of the newest.
    size: u64,
    /// Entries up to this one are to be removed, in as many turns as it takes.
    to: u64,
    /// `since` when the last were.
    since_removed: u64,
    /// The thread that removes old snapshots.
    collecting: Option<JoinHandle<()>>,
    /// Entries after these indexes are kept until then.
    kept: Vec<(u64, Instant)>,
}

impl Compaction {
    pub(super) fn after(newest: u64) -> Compaction {
        Compaction { newest, ..Compaction::default() }
    }

    /// A snapshot is being written.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// A snapshot is due.
    pub(super) fn due(&self, applied: u64, settings: Settings, log_bytes: u64, wanted: bool) -> bool {
        if self.running.is_some() || applied <= self.newest || applied < self.not_before {
            return false;
        }
        let by_interval = settings.interval > 0 && applied - self.newest >= settings.interval;
        let by_size = self.since > MAX_REPLAY_BYTES.max(self.size / 2);
        by_interval || by_size || wanted || log_bytes > MAX_LOG_BYTES
    }

    /// An entry with so many bytes was applied.
    pub(super) fn applied(&mut self, bytes: usize) {
        self.since += bytes as u64;
    }

    pub(super) fn started(&mut self, thread: JoinHandle<()>) {
        self.running = Some(thread);
        self.before = std::mem::take(&mut self.since);
    }

    /// One came from the leader, with so many bytes.
    pub(super) fn received(&mut self, index: u64, bytes: usize) {
        self.newest = self.newest.max(index);
        (self.since, self.size, self.to) = (0, bytes as u64, 0);
    }

    /// A manager that is about to join has the state as of this index: it shall not need another snapshot.
    pub(super) fn keep_after(&mut self, index: u64, now: Instant) {
        self.kept.retain(|(_, until)| *until > now);
        if self.kept.len() == MOST_KEPT {
            self.kept.remove(0);
        }
        self.kept.push((index, now + KEPT));
    }

    /// The last entry that nobody is about to need.
    fn not_kept(&self, now: Instant) -> u64 {
        let kept = self.kept.iter().filter(|(_, until)| *until > now);
        kept.map(|(index, _)| *index).min().unwrap_or(u64::MAX)
    }

    /// There are entries left that are not needed any more.
    pub(super) fn is_behind(&self) -> bool {
        self.to > 0
    }

    /// How many bytes of the log may be removed now: more than were added since.
    fn allowance(&mut self) -> u64 {
        let added = self.since.saturating_sub(std::mem::replace(&mut self.since_removed, self.since));
        BYTES_AT_ONCE + 2 * added
    }

    /// The thread has said how it went: the bytes that it wrote, if it did.
    pub(super) fn ended(&mut self, at: Position, written: Option<u64>) {
        self.wait();
        match written {
            Some(size) => {
                self.newest = self.newest.max(at.index);
                self.size = size;
            }
            None => {
                self.not_before = at.index + RETRY_AFTER;
                self.since += self.before;
            }
        }
    }

    /// Waits for the thread that writes a snapshot, if there is one.
    pub(super) fn wait(&mut self) {
        if let Some(thread) = self.running.take() {
            let _ = thread.join();
        }
    }

    /// Waits until old snapshots that are being removed are gone.
    pub(super) fn wait_for_collected(&mut self) {
        if let Some(thread) = self.collecting.take() {
            let _ = thread.join();
        }
    }
}

/// This thread lets others go first: it has seconds of work where the cluster is large, and nobody waits for it.
pub(crate) fn step_back() {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "snapshots are written with the usual priority");
    }
}

impl Turns {
    pub(super) fn maybe_snapshot(&mut self) {
        let raft = &self.raw.raft;
        let applied = raft.raft_log.applied;
        let wanted = self.raw.store().take_wanted();
        let reseal =
            self.reseal.as_ref().is_some_and(Reseal::wants_snapshot) && !self.compaction.is_running();
        if (applied <= self.compaction.newest && !reseal) || self.stopping {
            return;
        }
        let view = self.machine.view();
        let log_bytes = self.raw.store().bytes();
        if !reseal && !self.compaction.due(applied, Settings::of(&view), log_bytes, wanted) {
            return;
        }
        let Ok(term) = raft.raft_log.term(applied) else { return };
        let at = Position { index: applied, term };
        if let Some(reseal) = self.reseal.as_mut().filter(|_| reseal) {
            reseal.snapshot_begun(at);
        }
        let meta = Meta { at, conf_state: self.raw.store().conf_state.clone() };
        let membership = self.membership.to_snapshot();
        let (snapshots, shared) = (self.snapshots.clone(), self.shared.clone());
        let points = Points::here();
        let thread = std::thread::Builder::new().name("raft-snapshot".to_owned()).spawn(move || {
            let _entered = points.enter();
            if !wanted {
                step_back();
            }
            let written = snapshots.save(&meta, &membership, &view);
            shared.inbox.request(Request::SnapshotTaken(at, written));
        });
        match thread {
            Ok(thread) => self.compaction.started(thread),
            Err(error) => {
                tracing::error!(%error, "can't start a thread for a snapshot");
                let error = Error::io("start a thread for", Path::new("a raft snapshot"))(error);
                self.shared.inbox.request(Request::SnapshotTaken(at, Err(error)));
            }
        }
    }

    pub(super) fn snapshot_taken(&mut self, at: Position, written: Result<()>) -> Result<()> {
        let written = written.and_then(|()| self.snapshots.size(at));
        self.compaction.ended(at, written.as_ref().ok().copied());
        if let Err(error) = written {
            tracing::error!(%error, index = at.index, "a raft snapshot could not be written");
            return self.reseal_snapshot_taken(at, Err(error));
        }
        self.take_over_snapshot(at)?;
        self.reseal_snapshot_taken(at, Ok(()))
    }

    fn take_over_snapshot(&mut self, at: Position) -> Result<()> {
        if self.raw.store().snapshot_at().is_some_and(|newest| newest.index >= at.index) {
            return Ok(());
        }
        add(&self.shared.counters.snapshots, 1);
        let settings = Settings::of(&self.machine.view());
        let log = self.raw.mut_store();
        let not_kept = self.compaction.not_kept(Instant::now());
        self.compaction.to = compact_to(at.index, settings, log.bytes(), log.first_cached(), not_kept);
        tracing::debug!(index = at.index, compact_to = self.compaction.to, "took a raft snapshot");
        let compact = self.next_to_compact();
        reach(Point::SnapshotSaved);
        self.raw.mut_store().write(&Write { snapshot: Some(at), compact, ..Write::default() }, true)?;
        reach(Point::CompactionSynced);
        self.collect(at);
        Ok(())
    }

    /// Removes some of the entries that are not needed any more, if there are such. Nothing rests on their being gone, so
    /// that is not synced.
    pub(super) fn compact_some(&mut self) -> Result<()> {
        match self.next_to_compact() {
            Some(at) => self.raw.mut_store().write(&Write { compact: Some(at), ..Write::default() }, false),
            None => Ok(()),
        }
    }

    fn next_to_compact(&mut self) -> Option<Position> {
        if !self.compaction.is_behind() {
            return None;
        }
        let bytes = self.compaction.allowance();
        let (log, to) = (self.raw.store(), self.compaction.to);
        let next = log.oldest(PIECES_AT_ONCE, bytes).min(to);
        let at = Position { index: next, term: log.term_of(next).unwrap_or_default() };
        if next == to || next <= log.base().index {
            self.compaction.to = 0;
        }
        (next > log.base().index).then_some(at)
    }

    /// Removes snapshots that are not needed any more. Large files are removed by another thread, for that takes a while.
    pub(super) fn collect(&mut self, newest: Position) {
        let settings = Settings::of(&self.machine.view());
        let old = match self.snapshots.collect(newest, settings.keep_old) {
            Ok(old) => old,
            Err(error) => return not_collected(&error),
        };
        self.compaction.wait_for_collected();
        let points = Points::here();
        let remove = move || {
            let _entered = points.enter();
            step_back();
            remove_all(&old);
            reach(Point::SnapshotsCollected);
        };
        match std::thread::Builder::new().name("raft-collect".to_owned()).spawn(remove) {
            Ok(thread) => self.compaction.collecting = Some(thread),
            Err(error) => tracing::warn!(%error, "can't start a thread that removes old raft snapshots"),
        }
    }
}

fn remove_all(old: &[PathBuf]) {
    for path in old {
        if let Err(error) = Snapshots::remove(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            not_collected(&Error::io("remove", path)(error));
        }
    }
}

fn not_collected(error: &Error) {
    tracing::warn!(%error, "old raft snapshots could not be removed");
}

/// The last entry that is no longer needed after a snapshot at `at`; nobody but a slow follower needs those up to
/// `not_kept`. `recent` is the first entry in memory, and all that stay when the log is too large.
fn compact_to(at: u64, settings: Settings, log_bytes: u64, recent: u64, not_kept: u64) -> u64 {
    let to = at.saturating_sub(settings.slow_followers);
    if log_bytes > MAX_LOG_BYTES { to.max(recent.saturating_sub(1)).min(at) } else { to.min(not_kept) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { interval: 9, keep_old: 0, slow_followers: 3 };

    #[test]
    fn snapshots_are_due_by_entries_by_size_and_on_demand() {
        let compaction = Compaction { newest: 10, ..Compaction::default() };
        assert!(!compaction.due(18, SETTINGS, 0, false));
        assert!(compaction.due(19, SETTINGS, 0, false));
        assert!(compaction.due(11, SETTINGS, MAX_LOG_BYTES + 1, false));
        assert!(compaction.due(11, SETTINGS, 0, true));
        assert!(!compaction.due(10, SETTINGS, MAX_LOG_BYTES + 1, true), "there is one already");
        let never = Settings { interval: 0, ..SETTINGS };
        assert!(!compaction.due(1_000_000, never, 0, false));
    }

    #[test]
    fn a_failed_snapshot_is_tried_again_later() {
        let mut compaction = Compaction::default();
        compaction.ended(Position { index: 20, term: 1 }, None);
        assert!(!compaction.due(21, SETTINGS, 0, false));
        assert!(compaction.due(20 + RETRY_AFTER, SETTINGS, 0, false));
    }

    #[test]
    fn what_a_start_applies_is_bounded_by_bytes_too() {
        let never = Settings { interval: 0, ..SETTINGS };
        let mut compaction = Compaction::default();
        compaction.applied(MAX_REPLAY_BYTES as usize);
        assert!(!compaction.due(1, never, 0, false));
        compaction.applied(1);
        assert!(compaction.due(1, never, 0, false));

        let at = |index| Position { index, term: 1 };
        compaction.started(std::thread::spawn(|| {}));
        compaction.ended(at(1), None);
        assert!(compaction.due(1 + RETRY_AFTER, never, 0, false), "it was not written");
        compaction.started(std::thread::spawn(|| {}));
        compaction.applied(5);
        compaction.ended(at(150), Some(4 * MAX_REPLAY_BYTES));
        compaction.applied(2 * MAX_REPLAY_BYTES as usize - 5);
        assert!(!compaction.due(200, never, 0, false), "the larger the snapshot, the rarer");
        compaction.applied(1);
        assert!(compaction.due(200, never, 0, false));
    }

    #[test]
    fn more_of_the_log_is_removed_than_is_added() {
        let mut compaction = Compaction { to: 9, ..Compaction::default() };
        assert!(compaction.is_behind());
        assert_eq!(compaction.allowance(), BYTES_AT_ONCE);
        compaction.applied(1000);
        assert_eq!(compaction.allowance(), BYTES_AT_ONCE + 2000);
        assert_eq!(compaction.allowance(), BYTES_AT_ONCE);
        compaction.received(20, 0);
        assert!(!compaction.is_behind(), "a received snapshot begins the log anew");
    }

    #[test]
    fn entries_stay_for_slow_followers() {
        let to = |at, log_bytes, recent| compact_to(at, SETTINGS, log_bytes, recent, u64::MAX);
        assert_eq!(to(20, 0, 1), 17);
        assert_eq!(to(2, 0, 1), 0);
        assert_eq!(to(20, MAX_LOG_BYTES + 1, 19), 18, "the log is too large");
        assert_eq!(to(20, MAX_LOG_BYTES + 1, 90), 20);
    }

    #[test]
    fn entries_stay_for_a_while_for_who_has_fetched_what_they_follow() {
        let now = Instant::now();
        let mut compaction = Compaction::default();
        assert_eq!(compaction.not_kept(now), u64::MAX);
        compaction.keep_after(9, now);
        compaction.keep_after(12, now + KEPT / 2);
        assert_eq!(compaction.not_kept(now), 9);
        assert_eq!(compact_to(20, SETTINGS, 0, 1, 9), 9);
        assert_eq!(compact_to(20, SETTINGS, MAX_LOG_BYTES + 1, 90, 9), 20, "but not at any price");
        assert_eq!(compaction.not_kept(now + KEPT), 12);
        assert_eq!(compaction.not_kept(now + KEPT * 2), u64::MAX);
        (0..100).for_each(|index| compaction.keep_after(index, now));
        assert_eq!(compaction.kept.len(), MOST_KEPT);
    }
}
