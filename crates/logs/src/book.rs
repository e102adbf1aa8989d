//! Every subscription, and how far each of its nodes is. Plain state: the time is an argument, and nothing waits here.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use swarm_api::Object;
use swarm_api::log_lines::Seen;
use swarm_api::v1::{SubscriptionMessage, Task, node_status};
use swarm_brokers::Inbox;
use swarm_store::{Event, View};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::error::{reason, status};
use crate::mail::Mail;
use crate::selection::Selection;

/// Subscriptions that may be open at a time. With [`ROOM`](crate::ROOM) this bounds what waits here: 128 MiB.
const MAX_SUBSCRIPTIONS: usize = 256;
/// Time that a node has to come back before its lines count as missing: longer than an agent pauses between sessions.
const GRACE: Duration = Duration::from_secs(10);
/// Calls of a node that may break one after the other, without a line, before it is given up.
const MAX_BROKEN: u32 = 5;

/// Open ListenSubscriptions calls by node. A node that reconnects has two for a while.
type Listeners = HashMap<String, Vec<(u64, Arc<Inbox<SubscriptionMessage>>)>>;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Book {
    subscriptions: HashMap<String, Subscription>,
    listeners: Listeners,
    numbers: u64,
}

#[derive(Debug)]
struct Subscription {
    /// As agents are told.
    message: SubscriptionMessage,
    selection: Selection,
    follow: bool,
    parts: HashMap<String, Part>,
    /// Wanted tasks without a node.
    waiting: BTreeSet<String>,
    /// Why lines are missing.
    reasons: Vec<String>,
    mail: Arc<Mail>,
}

/// A node's part in a subscription.
#[derive(Debug)]
struct Part {
    state: State,
    /// The node has heard of the subscription at least once.
    told: bool,
    /// It became part when a task came to it: all its lines are new, and none is left out for being too old.
    later: bool,
    /// Calls that broke since one delivered anything.
    broken: u32,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug)]
enum State {
    /// The node does not listen; after `until` its lines count as missing.
    Absent { until: Option<Instant> },
    /// It was told, and has not begun.
    Told,
    /// It publishes in the call with this number.
    Publishing { number: u64, cancel: CancellationToken },
    /// Nothing more comes from it.
    Done,
}

/// A call in which a node publishes.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) number: u64,
    pub(crate) mail: Arc<Mail>,
    pub(crate) seen: Arc<Mutex<Seen>>,
    /// Cancelled when the node publishes in another call.
    pub(crate) cancel: CancellationToken,
}

/// How such a call ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All was sent.
    Complete,
    /// The broker would not have it, and why.
    Refused(String),
    /// The connection was lost. `delivered` says whether a line had come.
    Broken { delivered: bool },
}

/// How far a subscription is.
#[derive(Debug)]
pub(crate) enum Progress {
    /// More may come; to be looked at again at this time at the latest.
    Open(Option<Instant>),
    /// Everything that comes is in its mail.
    Ended(Result<(), Status>),
}

impl Subscription {
    /// What a node is told. One that begins again need not send what is here already.
    fn message_for(&self, part: &Part) -> SubscriptionMessage {
        let mut message = self.message.clone();
        if let Some(options) = &mut message.options {
            let since = part.seen.lock().since();
            if part.later || since.is_some() {
                options.tail = 0;
            }
            options.since = since.or(options.since);
        }
        message
    }

    /// A node that begins again can send what is missing, and nothing else.
    fn can_repeat(&self, part: &Part) -> bool {
        let tail = self.message.options.as_ref().is_some_and(|options| options.tail != 0);
        self.follow || !tail || part.seen.lock().since().is_none()
    }

    fn grace(&self, now: Instant) -> Option<Instant> {
        (!self.follow).then(|| now + GRACE)
    }
}

impl Book {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Opens a subscription, and tells the nodes that have wanted tasks.
    pub(crate) fn subscribe(
        &mut self,
        message: SubscriptionMessage,
        selection: Selection,
        view: &View,
        now: Instant,
    ) -> Result<Arc<Mail>, Status> {
        if self.subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return Err(status::too_many(MAX_SUBSCRIPTIONS));
        }
        let follow = message.options.as_ref().is_some_and(|options| options.follow);
        let selected = selection.look(view, follow);
        let mail = Arc::new(Mail::new());
        let mut subscription = Subscription {
            message,
            selection,
            follow,
            parts: HashMap::new(),
            waiting: selected.waiting,
            reasons: selected.unknown.iter().map(|id| reason::not_found(id)).collect(),
            mail: mail.clone(),
        };
        for node_id in &selected.nodes {
            add(&mut subscription, &self.listeners, node_id, false, view, now);
        }
        self.subscriptions.insert(subscription.message.id.clone(), subscription);
        Ok(mail)
    }

    /// Ends a subscription; nodes that may still work for it are told.
    pub(crate) fn unsubscribe(&mut self, id: &str) {
        let Some(subscription) = self.subscriptions.remove(id) else { return };
        subscription.mail.close();
        let close = SubscriptionMessage { close: true, ..subscription.message };
        for (node_id, part) in &subscription.parts {
            if part.told && !matches!(part.state, State::Done) {
                tell(&self.listeners, node_id, &close);
            }
        }
    }

    /// How far a subscription is; nodes whose time is over are given up.
    pub(crate) fn progress(&mut self, id: &str, now: Instant) -> Progress {
        let Some(subscription) = self.subscriptions.get_mut(id) else {
            return Progress::Ended(Err(status::cancelled()));
        };
        let (mut next, mut open) = (None::<Instant>, subscription.follow);
        let mut gone = Vec::new();
        for (node_id, part) in &mut subscription.parts {
            match part.state {
                State::Absent { until: Some(until) } if until <= now => {
                    part.state = State::Done;
                    let reason = if part.told { reason::disconnected } else { reason::not_available };
                    gone.push(reason(node_id));
                }
                State::Absent { until } => {
                    open = true;
                    next = [next, until].into_iter().flatten().min();
                }
                State::Told | State::Publishing { .. } => open = true,
                State::Done => {}
            }
        }
        gone.sort_unstable();
        subscription.reasons.extend(gone);
        if open {
            return Progress::Open(next);
        }
        let mut reasons = subscription.reasons.clone();
        reasons.extend(subscription.waiting.iter().map(|id| reason::not_scheduled(id)));
        Progress::Ended(if reasons.is_empty() { Ok(()) } else { Err(status::incomplete(&reasons)) })
    }

    /// A node listens: it is told of every subscription that it is still to work for.
    pub(crate) fn listen(&mut self, node_id: &str) -> (u64, Arc<Inbox<SubscriptionMessage>>) {
        let (number, inbox) = (self.number(), Arc::new(Inbox::default()));
        for subscription in self.subscriptions.values_mut() {
            let follow = subscription.follow;
            let Some(part) = subscription.parts.get_mut(node_id) else { continue };
            let again = match part.state {
                State::Absent { .. } | State::Told => true,
                // An agent that ended in good order and is back: what is followed goes on.
                State::Done => follow,
                // If that call is of an earlier life of the agent, its end will be noticed, and the node told then.
                State::Publishing { .. } => false,
            };
            if again {
                (part.state, part.told) = (State::Told, true);
                let part = &subscription.parts[node_id];
                inbox.put(subscription.message_for(part));
            }
        }
        self.listeners.entry(node_id.to_owned()).or_default().push((number, inbox.clone()));
        (number, inbox)
    }

    /// A node stopped listening in one of its calls.
    pub(crate) fn unlisten(&mut self, node_id: &str, number: u64, now: Instant) {
        let Some(open) = self.listeners.get_mut(node_id) else { return };
        open.retain(|(other, _)| *other != number);
        if !open.is_empty() {
            return;
        }
        self.listeners.remove(node_id);
        for subscription in self.subscriptions.values_mut() {
            let until = subscription.grace(now);
            if let Some(part) = subscription.parts.get_mut(node_id)
                && matches!(part.state, State::Told)
            {
                part.state = State::Absent { until };
                subscription.mail.look();
            }
        }
    }

    /// A node begins to publish. Another call in which it does so for the same subscription is over.
    pub(crate) fn begin(&mut self, node_id: &str, id: &str) -> Result<Begun, Status> {
        let number = self.number();
        let subscription = self.subscriptions.get_mut(id).ok_or_else(status::unknown_subscription)?;
        let part = subscription.parts.get_mut(node_id).ok_or_else(status::unknown_subscription)?;
        match &part.state {
            State::Done => return Err(status::unknown_subscription()),
            State::Publishing { cancel, .. } => cancel.cancel(),
            State::Absent { .. } | State::Told => {}
        }
        // After the other call was cancelled: whatever it puts into the mail from now on is not counted as seen.
        part.seen.lock().begin();
        let cancel = CancellationToken::new();
        part.state = State::Publishing { number, cancel: cancel.clone() };
        part.told = true;
        Ok(Begun { number, mail: subscription.mail.clone(), seen: part.seen.clone(), cancel })
    }

    /// A call in which a node published has ended.
    pub(crate) fn finish(&mut self, node_id: &str, id: &str, call: u64, outcome: Outcome, now: Instant) {
        let Some(subscription) = self.subscriptions.get_mut(id) else { return };
        let Some(mut part) = subscription.parts.remove(node_id) else { return };
        if matches!(part.state, State::Publishing { number, .. } if number == call) {
            part.state = match outcome {
                Outcome::Complete => State::Done,
                Outcome::Refused(text) => {
                    subscription.reasons.push(text);
                    State::Done
                }
                Outcome::Broken { delivered } => {
                    part.broken = if delivered { 1 } else { part.broken + 1 };
                    if part.broken > MAX_BROKEN || !subscription.can_repeat(&part) {
                        subscription.reasons.push(reason::disconnected(node_id));
                        State::Done
                    } else if tell(&self.listeners, node_id, &subscription.message_for(&part)) {
                        State::Told
                    } else {
                        State::Absent { until: subscription.grace(now) }
                    }
                }
            };
            subscription.mail.look();
        }
        subscription.parts.insert(node_id.to_owned(), part);
    }

    /// Takes note of tasks that came to nodes, or may.
    pub(crate) fn route(&mut self, events: &[Event], view: &View, now: Instant) {
        if !self.subscriptions.values().any(|subscription| subscription.follow) {
            return;
        }
        for event in events {
            match event {
                Event::Created(Object::Task(task)) | Event::Updated { new: Object::Task(task), .. } => {
                    self.task(task, view, now);
                }
                Event::Removed(Object::Task(task)) => {
                    for subscription in self.subscriptions.values_mut() {
                        // Who does not follow is to hear that it got nothing of it.
                        if subscription.follow {
                            subscription.waiting.remove(task.id.as_str());
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn task(&mut self, task: &Task, view: &View, now: Instant) {
        for subscription in self.subscriptions.values_mut().filter(|s| s.follow && s.selection.has(task)) {
            if task.node_id.is_empty() {
                subscription.waiting.insert(task.id.to_string());
            } else {
                subscription.waiting.remove(task.id.as_str());
                add(subscription, &self.listeners, &task.node_id, true, view, now);
            }
        }
    }

    /// The same from a view, after commits were missed.
    pub(crate) fn catch_up(&mut self, view: &View, now: Instant) {
        for subscription in self.subscriptions.values_mut().filter(|s| s.follow) {
            let selected = subscription.selection.look(view, true);
            subscription.waiting = selected.waiting;
            for node_id in &selected.nodes {
                add(subscription, &self.listeners, node_id, true, view, now);
            }
        }
    }

    /// Ends everything.
    pub(crate) fn close(&mut self) {
        for subscription in self.subscriptions.drain() {
            subscription.1.mail.close();
        }
    }
}

/// Makes a node part of a subscription, unless it is.
fn add(
    subscription: &mut Subscription,
    listeners: &Listeners,
    node_id: &str,
    later: bool,
    view: &View,
    now: Instant,
) {
    if subscription.parts.contains_key(node_id) {
        return;
    }
    let mut part = Part { state: State::Told, told: true, later, broken: 0, seen: Arc::default() };
    if !tell(listeners, node_id, &subscription.message_for(&part)) {
        // A node that is down, or gone, is not waited for.
        let alive = |node: &swarm_api::Shared<swarm_api::v1::Node>| {
            !matches!(node.status.state(), node_status::State::Down)
        };
        let alive = view.nodes().get(node_id).is_some_and(alive);
        let until = if alive { subscription.grace(now) } else { Some(now).filter(|_| !subscription.follow) };
        (part.state, part.told) = (State::Absent { until }, false);
    }
    subscription.parts.insert(node_id.to_owned(), part);
}

/// Tells a node in all calls in which it listens; `false` if it does not listen.
fn tell(listeners: &Listeners, node_id: &str, message: &SubscriptionMessage) -> bool {
    let open = listeners.get(node_id).map(Vec::as_slice).unwrap_or_default();
    for (_, inbox) in open {
        inbox.put(message.clone());
    }
    !open.is_empty()
}
