//! Points of the raft node at which a test ends it, as a crash would.
//!
//! [`Points`] goes into a node's [`Config`](crate::Config) and is told of every point that is passed by one of its
//! threads. In builds without debug assertions, so in every release, nothing of this is left: [`reach`] is empty,
//! whatever is configured (decision 0064).

use std::sync::Arc;

/// Who passes a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Leaders and followers.
    Any,
    /// Leaders only.
    Leader,
    /// Followers only.
    Follower,
}

macro_rules! points {
    ($($(#[doc = $doc:literal])+ $name:ident by $by:ident,)+) => {
        /// A moment in the life of a raft node.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Point {
            /// All of them.
            pub const ALL: &[Point] = &[$(Point::$name),+];

            /// Who passes it.
            pub fn by(self) -> By {
                match self {
                    $(Point::$name => By::$by,)+
                }
            }
        }
    };
}

points! {
    /// A leader's messages have left; its own disk has not what they say.
    Sent by Leader,
    /// Entries, or a new hard state, are about to be written.
    Writing by Any,
    /// Entries are written, and not synced.
    Written by Any,
    /// The log is synced, its watermark is not written.
    Synced by Any,
    /// The watermark is written, and not synced.
    MarkWritten by Any,
    /// The watermark is synced.
    MarkSynced by Any,
    /// The watermark was lowered, for entries that will be replaced.
    MarkLowered by Follower,
    /// Everything of a turn is safe; what rests on it, such as a follower's answer, was not sent.
    Persisted by Any,
    /// That was sent.
    Answered by Follower,
    /// A vote, or a new term, is safe and nobody was told.
    Voted by Any,
    /// Committed entries are about to be applied.
    Applying by Any,
    /// One was applied and, where that is due, acknowledged.
    Applied by Any,
    /// A snapshot's file is written under its temporary name, and not synced.
    SnapshotWritten by Any,
    /// The file is synced, and not renamed.
    SnapshotSynced by Any,
    /// The file has its name, which is not synced.
    SnapshotRenamed by Any,
    /// The own snapshot is safe; the log does not know it.
    SnapshotSaved by Any,
    /// The log names the snapshot and begins behind what it covers; neither is synced.
    Compacted by Any,
    /// Both are synced; older snapshots are still there.
    CompactionSynced by Any,
    /// They are removed.
    SnapshotsCollected by Any,
    /// A leader's snapshot is safe; the log does not know it.
    ReceivedSaved by Follower,
    /// The log begins behind it, which is not synced.
    ReceivedInstalled by Follower,
    /// The log is synced; the store does not have the content.
    ReceivedSynced by Follower,
    /// The store has it; older snapshots are still there.
    ReceivedRestored by Follower,
    /// A membership change was appended.
    ChangeAppended by Leader,
    /// An entry with a membership change is safe.
    ChangePersisted by Any,
    /// A membership change is about to be applied.
    ChangeApplying by Any,
    /// It was applied; who waits for it was not told.
    ChangeApplied by Any,
    /// A change of the key on disk was begun.
    ResealBegun by Any,
    /// The log was copied, sealed with the new key, under a temporary name.
    ResealCopied by Any,
    /// The copy has its final name, which is not synced.
    ResealRenamed by Any,
    /// The copy is the log; the old one is still there.
    ResealSwitched by Any,
    /// The old log is removed; old snapshots are still there.
    ResealCleaned by Any,
    /// Nothing is left of the old key; who waits was not told.
    Resealed by Any,
}

impl Point {
    /// The point of this name.
    pub fn named(name: &str) -> Option<Point> {
        Point::ALL.iter().copied().find(|point| format!("{point:?}") == name)
    }
}

/// What is told of the points.
#[derive(Clone, Default)]
pub struct Points(#[cfg(debug_assertions)] Option<Arc<dyn Fn(Point) + Send + Sync>>);

impl std::fmt::Debug for Points {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Points")
    }
}

impl Points {
    /// Calls this at every point, on the thread that passes it.
    #[cfg_attr(not(debug_assertions), expect(unused_variables, reason = "nothing is told in such a build"))]
    pub fn call(reached: Arc<dyn Fn(Point) + Send + Sync>) -> Points {
        Points(
            #[cfg(debug_assertions)]
            Some(reached),
        )
    }

    /// Those of the thread, for a thread that it starts.
    pub(crate) fn here() -> Points {
        #[cfg(debug_assertions)]
        return HERE.with_borrow(Clone::clone);
        #[cfg(not(debug_assertions))]
        Points()
    }

    /// From now on this thread tells these; the earlier ones when the answer is dropped.
    pub(crate) fn enter(&self) -> Entered {
        Entered(
            #[cfg(debug_assertions)]
            HERE.replace(self.clone()),
        )
    }
}

/// Until this is dropped, the thread tells certain [`Points`].
#[must_use]
pub(crate) struct Entered(#[cfg(debug_assertions)] Points);

impl Drop for Entered {
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        HERE.set(std::mem::take(&mut self.0));
    }
}

#[cfg(debug_assertions)]
thread_local! {
    static HERE: std::cell::RefCell<Points> = std::cell::RefCell::default();
}

/// This point is passed.
#[inline(always)]
#[cfg_attr(not(debug_assertions), expect(unused_variables, reason = "nothing is told in such a build"))]
pub(crate) fn reach(point: Point) {
    #[cfg(debug_assertions)]
    {
        // So the names are in every build that has the points, and their absence shows that a release has none.
        tracing::trace!(?point, "point");
        if let Some(told) = Points::here().0 {
            told(point);
        }
    }
}
