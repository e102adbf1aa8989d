//! What an applied entry looks like to those who watch the store.

use std::sync::Arc;

use swarm_api::{Kind, Object};
use tokio::sync::broadcast;

use crate::View;

/// Commits kept for slow subscribers; one that falls further behind is told to start over.
const QUEUE: usize = 4096;

/// A change of one object.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The object is new.
    Created(Object),
    /// The object was replaced.
    Updated {
        /// As it was.
        old: Object,
        /// As it is.
        new: Object,
    },
    /// The object is gone; this is what it was.
    Removed(Object),
}

impl Event {
    /// The object as it is, or as it was before it was removed.
    pub fn object(&self) -> &Object {
        match self {
            Event::Created(o) | Event::Removed(o) | Event::Updated { new: o, .. } => o,
        }
    }

    /// The object as it was before, if there was one.
    pub fn old(&self) -> Option<&Object> {
        match self {
            Event::Created(_) => None,
            Event::Removed(o) | Event::Updated { old: o, .. } => Some(o),
        }
    }

    /// The object as it is now, if it is still there.
    #[allow(clippy::new_ret_no_self)] // the opposite of `old`, no constructor
    pub fn new(&self) -> Option<&Object> {
        match self {
            Event::Removed(_) => None,
            Event::Created(o) | Event::Updated { new: o, .. } => Some(o),
        }
    }

    /// The change that takes this one back.
    pub(crate) fn inverse(self) -> Event {
        match self {
            Event::Created(o) => Event::Removed(o),
            Event::Removed(o) => Event::Created(o),
            Event::Updated { old, new } => Event::Updated { old: new, new: old },
        }
    }

    /// Kind of the object.
    pub fn kind(&self) -> Kind {
        self.object().kind()
    }

    /// Identifier of the object.
    pub fn id(&self) -> &str {
        self.object().id()
    }
}

/// What was applied at once: a log entry, or several that were written together, if they are small. An object may
/// have changed more than once in it.
#[derive(Debug)]
pub struct Commit {
    /// Log index of the last of its entries.
    pub index: u64,
    /// The changes, in order.
    pub events: Vec<Event>,
    /// The tables after all of them.
    pub view: View,
}

/// What a subscription yields.
#[derive(Debug, Clone)]
pub enum Received {
    /// The next commit.
    Commit(Arc<Commit>),
    /// Commits were missed: start over from this view. The next commit is the one right after it.
    Lagged(View),
    /// The store is closed.
    Closed,
}

/// A set of kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds(u16);

impl Kinds {
    /// Every kind.
    pub const ALL: Kinds = Kinds::of(&Kind::ALL);

    /// Exactly these kinds.
    pub const fn of(kinds: &[Kind]) -> Kinds {
        let (mut set, mut i) = (0, 0);
        while i < kinds.len() {
            set |= 1 << kinds[i] as u16;
            i += 1;
        }
        Kinds(set)
    }

    fn of_events(events: &[Event]) -> Kinds {
        Kinds(events.iter().fold(0, |set, event| set | 1 << event.kind() as u16))
    }

    fn meets(self, other: Kinds) -> bool {
        self.0 & other.0 != 0
    }
}

/// Who is told of commits: a channel for each set of kinds that somebody follows. Nobody is woken for a commit that
/// has nothing of what they follow, for with a few writers at work wake-ups are most of what a write costs.
#[derive(Debug, Default)]
pub(crate) struct Followers(Vec<(Kinds, broadcast::Sender<Arc<Commit>>)>);

impl Followers {
    pub(crate) fn subscribe(&mut self, kinds: Kinds) -> broadcast::Receiver<Arc<Commit>> {
        if let Some((_, followers)) = self.0.iter().find(|(k, _)| *k == kinds) {
            return followers.subscribe();
        }
        // Those whose followers are all gone, before there is one more.
        self.0.retain(|(_, followers)| followers.receiver_count() > 0);
        let (followers, receiver) = broadcast::channel(QUEUE);
        self.0.push((kinds, followers));
        receiver
    }

    pub(crate) fn send(&self, commit: Commit) {
        let kinds = Kinds::of_events(&commit.events);
        let commit = Arc::new(commit);
        for (_, followers) in self.0.iter().filter(|(followed, _)| followed.meets(kinds)) {
            let _ = followers.send(commit.clone());
        }
    }
}

/// A stream of commits: exactly those after the view it came with that change an object of a kind that is followed.
#[derive(Debug)]
pub struct Subscription {
    pub(crate) receiver: broadcast::Receiver<Arc<Commit>>,
    /// Number of the last commit that was handed out or is in the view handed out.
    pub(crate) seen: u64,
    pub(crate) current: Arc<arc_swap::ArcSwap<View>>,
}

impl Subscription {
    /// Waits for the next commit.
    pub async fn next(&mut self) -> Received {
        loop {
            match self.receiver.recv().await {
                Ok(commit) if commit.view.sequence() <= self.seen => continue,
                Ok(commit) => {
                    self.seen = commit.view.sequence();
                    return Received::Commit(commit);
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    let view = View::clone(&self.current.load());
                    self.seen = view.sequence();
                    return Received::Lagged(view);
                }
                Err(broadcast::error::RecvError::Closed) => return Received::Closed,
            }
        }
    }

    /// The next commit if it is there already.
    pub fn try_next(&mut self) -> Option<Received> {
        loop {
            match self.receiver.try_recv() {
                Ok(commit) if commit.view.sequence() <= self.seen => continue,
                Ok(commit) => {
                    self.seen = commit.view.sequence();
                    return Some(Received::Commit(commit));
                }
                Err(broadcast::error::TryRecvError::Empty) => return None,
                Err(broadcast::error::TryRecvError::Lagged(_)) => {
                    let view = View::clone(&self.current.load());
                    self.seen = view.sequence();
                    return Some(Received::Lagged(view));
                }
                Err(broadcast::error::TryRecvError::Closed) => return Some(Received::Closed),
            }
        }
    }
}
