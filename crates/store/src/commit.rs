//! What an applied entry looks like to those who watch the store.

use std::sync::Arc;

use swarm_api::{Kind, Object};
use tokio::sync::broadcast;

use crate::View;

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

/// One applied entry.
#[derive(Debug)]
pub struct Commit {
    /// Log index of the entry.
    pub index: u64,
    /// Its changes, in order.
    pub events: Vec<Event>,
    /// The tables after it.
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

/// A stream of commits: exactly those after the view it came with.
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
