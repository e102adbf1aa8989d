//! The streams to agents. Each has a box that the router puts changes into; the stream takes them out when the
//! connection has room for a message. An idle stream has no timer and no task of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use swarm_api::Shared;
use swarm_api::v1::{AssignmentsMessage, Node, SessionMessage, TasksMessage, Volume};
use tokio::time::{Instant, Sleep};
use tonic::Status;

use crate::assignments::{AssignmentSet, Pending, TaskChange, concerns};
use crate::driver_secrets::Gate;
use crate::term::{Common, Term};

/// What a Session stream has not told its node yet.
#[derive(Debug, Default)]
pub(crate) struct SessionBox {
    inner: Mutex<SessionNews>,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct SessionNews {
    node: Option<Shared<Node>>,
    common: bool,
    end: Option<End>,
}

#[derive(Debug)]
struct End {
    status: Status,
    /// One more message goes out before it.
    farewell: bool,
}

impl SessionBox {
    pub(crate) fn put_node(&self, node: &Shared<Node>) {
        self.inner.lock().node = Some(node.clone());
        self.waker.wake();
    }

    pub(crate) fn put_common(&self) {
        self.inner.lock().common = true;
        self.waker.wake();
    }

    pub(crate) fn close(&self, status: Status, farewell: bool) {
        self.inner.lock().end.get_or_insert(End { status, farewell });
        self.waker.wake();
    }
}

/// A Session stream.
pub(crate) struct SessionStream {
    term: Arc<Term>,
    news: Arc<SessionBox>,
    session_id: Arc<str>,
    node: Shared<Node>,
    common: Arc<Common>,
    started: bool,
    ended: bool,
}

impl SessionStream {
    pub(crate) fn new(
        term: Arc<Term>,
        news: Arc<SessionBox>,
        session_id: Arc<str>,
        node: Shared<Node>,
    ) -> SessionStream {
        let common = term.common();
        SessionStream { term, news, session_id, node, common, started: false, ended: false }
    }

    fn message(&self) -> SessionMessage {
        SessionMessage {
            session_id: self.session_id.to_string(),
            node: Some(self.node.clone()),
            managers: self.common.managers.clone(),
            network_bootstrap_keys: self.common.keys.clone(),
            root_ca: self.common.root_ca.clone(),
        }
    }
}

/// Nothing that an agent acts on differs: its status is what it told us itself.
fn same_to_agents(a: &Shared<Node>, b: &Shared<Node>) -> bool {
    if Shared::ptr_eq(a, b) {
        return true;
    }
    let mut a = (**a).clone();
    a.meta = b.meta;
    a.status = b.status.clone();
    a == **b
}

impl Stream for SessionStream {
    type Item = Result<SessionMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if !self.started {
            self.started = true;
            return Poll::Ready(Some(Ok(self.message())));
        }
        self.news.waker.register(cx.waker());
        let (node, common, end) = {
            let mut news = self.news.inner.lock();
            let end = news.end.as_mut().map(|end| {
                (end.status.clone(), std::mem::take(&mut end.farewell)) // the farewell is said once
            });
            (news.node.take(), std::mem::take(&mut news.common), end)
        };
        let mut changed = false;
        // The stream began with the store's newest; the router may still be on its way there.
        if let Some(node) = node.filter(|node| node.meta.version.index >= self.node.meta.version.index) {
            changed = !same_to_agents(&self.node, &node);
            self.node = node;
        }
        if common {
            let common = self.term.common();
            changed |= *common != *self.common;
            self.common = common;
        }
        match end {
            Some((_, true)) => Poll::Ready(Some(Ok(self.message()))),
            Some((status, false)) => {
                self.ended = true;
                Poll::Ready(Some(Err(status)))
            }
            None if changed => Poll::Ready(Some(Ok(self.message()))),
            None => Poll::Pending,
        }
    }
}

/// Changes that an Assignments (or Tasks) stream has not told its node yet.
#[derive(Debug, Default)]
pub(crate) struct AssignmentBox {
    inner: Mutex<AssignmentNews>,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct AssignmentNews {
    pending: Pending,
    end: Option<Status>,
}

impl AssignmentBox {
    pub(crate) fn put_task(&self, id: &str, change: TaskChange) {
        self.put(|pending| pending.put_task(id, change));
    }

    /// Puts a task back that waited, unless there is newer of it.
    fn put_back(&self, id: &str, change: TaskChange) {
        self.put(|pending| {
            pending.tasks.entry(id.to_owned()).or_insert(change);
        });
    }

    pub(crate) fn put_volume(&self, id: &str, volume: Option<Shared<Volume>>) {
        self.put(|pending| pending.put_volume(id, volume));
    }

    fn put(&self, f: impl FnOnce(&mut Pending)) {
        let mut news = self.inner.lock();
        if news.end.is_none() {
            f(&mut news.pending);
            drop(news);
            self.waker.wake();
        }
    }

    /// Ends the stream; what it has not told is dropped, the node gets everything anew on its next one.
    pub(crate) fn close(&self, status: Status) {
        let mut news = self.inner.lock();
        news.pending = Pending::default();
        news.end.get_or_insert(status);
        drop(news);
        self.waker.wake();
    }
}

/// When a stream with changes may send them.
struct Pace {
    gather: Duration,
    limit: usize,
    last: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn new(term: &Term) -> Pace {
        Pace {
            gather: term.timings.assignment_gather,
            limit: term.timings.assignment_limit,
            last: None,
            timer: None,
        }
    }

    /// Ready when `waiting` changes may leave.
    fn poll(&mut self, waiting: usize, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.last.map(|last| last + self.gather);
        if let Some(due) = due.filter(|due| waiting < self.limit && *due > Instant::now()) {
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            ready!(timer.as_mut().poll(cx));
        }
        self.timer = None;
        Poll::Ready(())
    }

    fn sent(&mut self) {
        self.last = Some(Instant::now());
    }
}

/// Takes what waits in the box once it may leave.
fn poll_pending(
    news: &AssignmentBox,
    pace: &mut Pace,
    cx: &mut Context<'_>,
) -> Poll<Result<Pending, Status>> {
    news.waker.register(cx.waker());
    let mut inner = news.inner.lock();
    if let Some(status) = &inner.end {
        return Poll::Ready(Err(status.clone()));
    }
    if inner.pending.is_empty() {
        return Poll::Pending;
    }
    ready!(pace.poll(inner.pending.len(), cx));
    Poll::Ready(Ok(std::mem::take(&mut inner.pending)))
}

/// An Assignments stream.
pub(crate) struct AssignmentStream {
    term: Arc<Term>,
    news: Arc<AssignmentBox>,
    set: AssignmentSet,
    gate: Gate,
    pace: Pace,
    first: Option<AssignmentsMessage>,
    ended: bool,
}

impl AssignmentStream {
    /// `first` is the complete set that `set` made; `gate` may have questions that are not answered yet.
    pub(crate) fn new(
        term: Arc<Term>,
        news: Arc<AssignmentBox>,
        set: AssignmentSet,
        gate: Gate,
        first: AssignmentsMessage,
    ) -> AssignmentStream {
        let pace = Pace::new(&term);
        AssignmentStream { term, news, set, gate, pace, first: Some(first), ended: false }
    }

    /// Tasks whose secrets were made may go on.
    fn take_answers(&mut self, cx: &mut Context<'_>) {
        let store = &self.term.store;
        while let Poll::Ready((id, held)) = self.gate.poll_answer(&mut self.set.made, || store.view(), cx) {
            let change = match held {
                Some(task) => TaskChange::Changed { task, send: true },
                // The node has the task, and is only given what it needs.
                None => match store.view().tasks().get(&id) {
                    Some(task) => TaskChange::Changed { task: task.clone(), send: false },
                    None => continue,
                },
            };
            self.news.put_back(&id, change);
        }
    }
}

impl Stream for AssignmentStream {
    type Item = Result<AssignmentsMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            this.take_answers(cx);
            match ready!(poll_pending(&this.news, &mut this.pace, cx)) {
                Err(status) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(status)));
                }
                Ok(mut pending) => {
                    let view = this.term.store.view();
                    this.gate.hold(&mut pending, &this.set.made, &view, |id| this.set.knows(id));
                    if let Some(message) = this.set.incremental(pending, &view) {
                        this.pace.sent();
                        return Poll::Ready(Some(Ok(message)));
                    }
                }
            }
        }
    }
}

impl Drop for AssignmentStream {
    fn drop(&mut self) {
        self.news.close(crate::error::status::cancelled());
    }
}

/// A Tasks stream, for agents of old: each message is the whole list.
pub(crate) struct TasksStream {
    term: Arc<Term>,
    news: Arc<AssignmentBox>,
    node_id: Arc<str>,
    pace: Pace,
    started: bool,
    ended: bool,
}

impl TasksStream {
    pub(crate) fn new(term: Arc<Term>, news: Arc<AssignmentBox>, node_id: Arc<str>) -> TasksStream {
        let pace = Pace::new(&term);
        TasksStream { term, news, node_id, pace, started: false, ended: false }
    }

    fn message(&self) -> TasksMessage {
        let view = self.term.store.view();
        let tasks = view.tasks().by_node(&self.node_id).filter(|task| concerns(task, &self.node_id));
        TasksMessage { tasks: tasks.cloned().collect() }
    }
}

impl Stream for TasksStream {
    type Item = Result<TasksMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        if !this.started {
            this.started = true;
            return Poll::Ready(Some(Ok(this.message())));
        }
        loop {
            match ready!(poll_pending(&this.news, &mut this.pace, cx)) {
                Err(status) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(status)));
                }
                Ok(pending) => {
                    let news =
                        |change: &TaskChange| !matches!(change, TaskChange::Changed { send: false, .. });
                    if pending.tasks.values().any(news) {
                        this.pace.sent();
                        return Poll::Ready(Some(Ok(this.message())));
                    }
                }
            }
        }
    }
}

impl Drop for TasksStream {
    fn drop(&mut self) {
        self.news.close(crate::error::status::cancelled());
    }
}
