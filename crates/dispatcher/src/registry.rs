//! Sessions of nodes, and when they end. No I/O; the time is an argument.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use crate::config::Timings;
use crate::error::status;
use crate::streams::{AssignmentBox, SessionBox};

/// A session and its open streams; at most one of each kind, the newest.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: Arc<str>,
    pub(crate) session: Arc<SessionBox>,
    pub(crate) assignments: Option<Arc<AssignmentBox>>,
}

impl Session {
    fn close(&self, status: &Status) {
        self.session.close(status.clone(), false);
        if let Some(assignments) = &self.assignments {
            assignments.close(status.clone());
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// `None` for a node that has not come back since this manager became leader.
    session: Option<Session>,
    deadline: Instant,
    /// The earliest timer that is set for the node; never later than `deadline`.
    scheduled: Instant,
    grace: Duration,
    registered_at: Option<Instant>,
    attempts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Heartbeat,
    Orphan,
}

/// A time that has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// The node was silent for too long.
    Silent {
        node_id: Arc<str>,
        /// It never came back after the change of leaders.
        unknown: bool,
    },
    /// The node has been down for so long that its tasks are given up.
    Orphan { node_id: Arc<str> },
}

/// Every node that has a session, may come back to one, or is down.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    nodes: HashMap<Arc<str>, Entry>,
    down: HashMap<Arc<str>, Instant>,
    /// Each node has a timer at or before its deadline; one that comes too early is set anew, so that a
    /// heartbeat costs no more than writing a deadline.
    timers: BinaryHeap<Reverse<(Instant, Timer, Arc<str>)>>,
}

impl Registry {
    /// A node that must come back within `grace`.
    pub(crate) fn expect(&mut self, node_id: &str, grace: Duration, now: Instant) {
        let node_id: Arc<str> = node_id.into();
        let deadline = now + grace;
        let entry =
            Entry { session: None, deadline, scheduled: deadline, grace, registered_at: None, attempts: 0 };
        self.nodes.insert(node_id.clone(), entry);
        self.timers.push(Reverse((deadline, Timer::Heartbeat, node_id)));
    }

    /// A node that is down: its tasks are given up after `after`.
    pub(crate) fn expect_orphans(&mut self, node_id: Arc<str>, after: Duration, now: Instant) {
        let at = now + after;
        self.down.insert(node_id.clone(), at);
        self.timers.push(Reverse((at, Timer::Orphan, node_id)));
    }

    /// Counts a registration and refuses one too many. Only nodes with an entry are counted.
    pub(crate) fn admit(&mut self, node_id: &str, timings: &Timings, now: Instant) -> Result<(), Status> {
        let Some(entry) = self.nodes.get_mut(node_id) else { return Ok(()) };
        if entry.registered_at.is_none_or(|at| now.duration_since(at) > timings.registration_window) {
            entry.attempts = 0;
        }
        entry.attempts = entry.attempts.saturating_add(1);
        if entry.attempts > timings.registrations {
            return Err(status::rate_limited(node_id));
        }
        entry.registered_at = Some(now);
        Ok(())
    }

    /// Gives the node a new session, which ends the one it had.
    pub(crate) fn register(
        &mut self,
        node_id: &Arc<str>,
        session: Session,
        grace: Duration,
        now: Instant,
    ) -> bool {
        self.down.remove(node_id);
        let deadline = now + grace;
        if let Some(entry) = self.nodes.get_mut(node_id) {
            if let Some(old) = entry.session.replace(session) {
                old.close(&status::session_invalid());
            }
            return self.move_deadline(node_id, grace, now);
        }
        let entry = Entry {
            session: Some(session),
            deadline,
            scheduled: deadline,
            grace,
            registered_at: Some(now),
            attempts: 0,
        };
        self.nodes.insert(node_id.clone(), entry);
        self.push(deadline, Timer::Heartbeat, node_id.clone())
    }

    /// The node's session, if this is its id.
    pub(crate) fn session(&mut self, node_id: &str, session_id: &str) -> Result<&mut Session, Status> {
        let entry = self.nodes.get_mut(node_id).ok_or_else(status::not_registered)?;
        match &mut entry.session {
            Some(session) if !session_id.is_empty() && *session.id == *session_id => Ok(session),
            _ => Err(status::session_invalid()),
        }
    }

    /// The node's session, whatever its id.
    pub(crate) fn current(&mut self, node_id: &str) -> Option<&mut Session> {
        self.nodes.get_mut(node_id)?.session.as_mut()
    }

    /// Takes a heartbeat; returns whether the run loop has to look at its timers anew.
    pub(crate) fn heartbeat(
        &mut self,
        node_id: &str,
        session_id: &str,
        grace: Duration,
        now: Instant,
    ) -> Result<bool, Status> {
        self.session(node_id, session_id)?;
        Ok(self.move_deadline(node_id, grace, now))
    }

    fn move_deadline(&mut self, node_id: &str, grace: Duration, now: Instant) -> bool {
        let Some(entry) = self.nodes.get_mut(node_id) else { return false };
        entry.deadline = now + grace;
        entry.grace = grace;
        if entry.deadline >= entry.scheduled {
            return false;
        }
        entry.scheduled = entry.deadline;
        let at = entry.deadline;
        self.push(at, Timer::Heartbeat, node_id.into())
    }

    fn push(&mut self, at: Instant, timer: Timer, node_id: Arc<str>) -> bool {
        let earlier = self.timers.peek().is_none_or(|Reverse((first, ..))| at < *first);
        self.timers.push(Reverse((at, timer, node_id)));
        earlier
    }

    /// Forgets a node whose object was removed; its streams end.
    pub(crate) fn remove(&mut self, node_id: &str) {
        self.down.remove(node_id);
        if let Some(session) = self.nodes.remove(node_id).and_then(|entry| entry.session) {
            session.close(&status::not_registered());
        }
    }

    /// When to call [`Registry::expire`] next.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, ..))| *at)
    }

    /// Everything whose time has come. Silent nodes lose their entry and their streams.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Expired> {
        let mut expired = Vec::new();
        while let Some(Reverse((at, ..))) = self.timers.peek()
            && *at <= now
            && let Some(Reverse((at, timer, node_id))) = self.timers.pop()
        {
            match timer {
                Timer::Orphan => {
                    if self.down.get(&node_id).is_some_and(|due| *due == at) {
                        self.down.remove(&node_id);
                        expired.push(Expired::Orphan { node_id });
                    }
                }
                Timer::Heartbeat => {
                    let Some(entry) = self.nodes.get_mut(&node_id) else { continue };
                    if at != entry.scheduled {
                        continue; // another timer is set for this node
                    }
                    if entry.deadline > now {
                        entry.scheduled = entry.deadline;
                        self.timers.push(Reverse((entry.deadline, Timer::Heartbeat, node_id)));
                        continue;
                    }
                    let session = self.nodes.remove(&node_id).and_then(|entry| entry.session);
                    if let Some(session) = &session {
                        session.close(&status::not_registered());
                    }
                    expired.push(Expired::Silent { node_id, unknown: session.is_none() });
                }
            }
        }
        expired
    }

    /// This process stood still (a paused or overloaded host): nobody's heartbeat could arrive, so everybody
    /// gets their time again.
    pub(crate) fn forgive(&mut self, now: Instant) {
        for entry in self.nodes.values_mut() {
            entry.deadline = entry.deadline.max(now + entry.grace);
        }
    }

    /// All sessions.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.nodes.values().filter_map(|entry| entry.session.as_ref())
    }
}
