//! Every order, and how far each of its nodes is: a plain state machine, to which time is told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use swarm_api::swarmd::pull_state::Phase;
use swarm_api::swarmd::{PullOrder, PullState, PullUpdate};
use swarm_brokers::Inbox;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

use crate::error::{reason, status};

/// Most orders that are open at the same time.
pub(crate) const MOST_ORDERS: usize = 16;
/// How long a node that does not listen is waited for: after a change of leaders all of them are away for a moment.
const ABSENCE: Duration = Duration::from_secs(10);
/// How long a node that was told may say nothing. Agents say something every 10 s.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest text of a node that is kept, in bytes.
const MAX_MESSAGE: usize = 4 * 1024;

/// What was told, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Book {
    orders: BTreeMap<String, Order>,
    listeners: HashMap<String, Listener>,
    /// Number of the next call in which somebody listens.
    next: u64,
}

#[derive(Debug)]
struct Listener {
    number: u64,
    inbox: Arc<Inbox<PullOrder>>,
}

#[derive(Debug)]
struct Order {
    order: PullOrder,
    nodes: BTreeMap<String, Progress>,
    /// Nodes of which there is something new to tell.
    news: BTreeSet<String>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Progress {
    state: PullState,
    /// When it counts as unavailable, and why, if nothing happens until then.
    deadline: Option<(Instant, &'static str)>,
}

/// What there is to tell of an order.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) updates: Vec<PullUpdate>,
    /// Nothing will change any more.
    pub(crate) over: bool,
    /// When to look again, if nothing changes before.
    pub(crate) next: Option<Instant>,
}

fn has_ended(phase: Phase) -> bool {
    matches!(phase, Phase::Done | Phase::Failed | Phase::Unavailable)
}

fn unavailable(reason: &str) -> PullState {
    PullState { phase: Phase::Unavailable.into(), percent: None, message: reason.to_owned() }
}

impl Order {
    /// A node has come: it is told, unless it has ended already.
    fn tell(&mut self, node_id: &str, inbox: &Inbox<PullOrder>, now: Instant) {
        if let Some(progress) = self.nodes.get_mut(node_id).filter(|p| !has_ended(p.state.phase())) {
            progress.deadline = Some((now + SILENCE, reason::SILENT));
            inbox.put(self.order.clone());
        }
    }

    fn set(&mut self, node_id: &str, state: PullState, now: Instant) {
        let Some(progress) = self.nodes.get_mut(node_id) else { return };
        progress.deadline = (!has_ended(state.phase())).then_some((now + SILENCE, reason::SILENT));
        if progress.state != state {
            progress.state = state;
            self.news.insert(node_id.to_owned());
            self.changed.notify_one();
        }
    }

    fn expire(&mut self, now: Instant) {
        for (id, progress) in &mut self.nodes {
            if let Some((deadline, reason)) = progress.deadline
                && deadline <= now
            {
                *progress = Progress { state: unavailable(reason), deadline: None };
                self.news.insert(id.clone());
            }
        }
    }
}

impl Book {
    /// Opens an order for these nodes. Those with a reason are not asked. Gives what says that there is news.
    pub(crate) fn open(
        &mut self,
        order: PullOrder,
        nodes: Vec<(String, Option<&'static str>)>,
        now: Instant,
    ) -> Result<Arc<Notify>, Status> {
        if self.orders.len() >= MOST_ORDERS {
            return Err(status::too_many(MOST_ORDERS));
        }
        let nodes: BTreeMap<_, _> = nodes
            .into_iter()
            .map(|(id, reason)| {
                let progress = match reason {
                    Some(reason) => Progress { state: unavailable(reason), deadline: None },
                    None => Progress {
                        state: PullState::default(),
                        deadline: Some((now + ABSENCE, reason::ABSENT)),
                    },
                };
                (id, progress)
            })
            .collect();
        let (news, changed) = (nodes.keys().cloned().collect(), Arc::new(Notify::new()));
        let mut open = Order { order, nodes, news, changed: changed.clone() };
        for (id, listener) in &self.listeners {
            open.tell(id, &listener.inbox, now);
        }
        self.orders.insert(open.order.id.clone(), open);
        Ok(changed)
    }

    /// Nobody waits for an order any more.
    pub(crate) fn close(&mut self, id: &str) {
        let Some(order) = self.orders.remove(id) else { return };
        for (node_id, progress) in &order.nodes {
            if let Some(listener) = self.listeners.get(node_id)
                && !has_ended(progress.state.phase())
            {
                let close = PullOrder { id: id.to_owned(), close: true, ..Default::default() };
                listener.inbox.put(close);
            }
        }
    }

    /// A node listens, in place of an earlier call of it. It is told of every order that it has not done yet.
    pub(crate) fn listen(&mut self, node_id: &str, now: Instant) -> (u64, Arc<Inbox<PullOrder>>) {
        let (number, inbox) = (self.next, Arc::new(Inbox::default()));
        self.next += 1;
        self.orders.values_mut().for_each(|order| order.tell(node_id, &inbox, now));
        self.listeners.insert(node_id.to_owned(), Listener { number, inbox: inbox.clone() });
        (number, inbox)
    }

    /// A call in which a node listened has ended. It may have another one.
    pub(crate) fn unlisten(&mut self, node_id: &str, number: u64, now: Instant) {
        if self.listeners.get(node_id).is_none_or(|listener| listener.number != number) {
            return;
        }
        self.listeners.remove(node_id);
        for order in self.orders.values_mut() {
            if let Some(progress) = order.nodes.get_mut(node_id).filter(|p| !has_ended(p.state.phase())) {
                progress.deadline = Some((now + ABSENCE, reason::ABSENT));
                // Whoever waits has to look at the clock sooner.
                order.changed.notify_one();
            }
        }
    }

    /// A node says how far it is. One that was given up counts again.
    pub(crate) fn report(
        &mut self,
        node_id: &str,
        id: &str,
        mut state: PullState,
        now: Instant,
    ) -> Result<(), Status> {
        if !matches!(state.phase(), Phase::Pulling | Phase::Done | Phase::Failed) {
            return Err(status::bad_report());
        }
        state.percent = state.percent.map(|percent| percent.min(100));
        state.message.truncate(state.message.floor_char_boundary(MAX_MESSAGE));
        let order = self.orders.get_mut(id).ok_or_else(status::unknown_order)?;
        let progress = order.nodes.get(node_id).ok_or_else(status::unknown_order)?;
        // What has ended has ended: an earlier word may arrive later.
        if !matches!(progress.state.phase(), Phase::Done | Phase::Failed) {
            order.set(node_id, state, now);
        }
        Ok(())
    }

    /// What is new of an order since it was asked last.
    pub(crate) fn news(&mut self, id: &str, now: Instant) -> News {
        let Some(order) = self.orders.get_mut(id) else {
            return News { updates: Vec::new(), over: true, next: None };
        };
        order.expire(now);
        let updates = std::mem::take(&mut order.news).into_iter().filter_map(|node_id| {
            let state = order.nodes.get(&node_id)?.state.clone();
            Some(PullUpdate { node_id, state: Some(state) })
        });
        let updates = updates.collect();
        let over = order.nodes.values().all(|progress| has_ended(progress.state.phase()));
        let next = order.nodes.values().filter_map(|progress| progress.deadline).map(|(at, _)| at).min();
        News { updates, over, next }
    }

    /// Wakes everybody who waits for news: there will be none.
    pub(crate) fn wake_all(&self) {
        self.orders.values().for_each(|order| order.changed.notify_one());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "order";

    fn state(phase: Phase, percent: Option<u32>, message: &str) -> PullState {
        PullState { phase: phase.into(), percent, message: message.to_owned() }
    }

    fn open(book: &mut Book, nodes: &[&str], now: Instant) {
        let order = PullOrder { id: ID.into(), image: "a:1".into(), ..Default::default() };
        book.open(order, nodes.iter().map(|id| ((*id).to_owned(), None)).collect(), now).unwrap();
    }

    fn told(book: &mut Book, now: Instant) -> Vec<(String, Phase, String)> {
        let one = |update: PullUpdate| {
            let state = update.state.unwrap();
            (update.node_id, state.phase(), state.message)
        };
        book.news(ID, now).updates.into_iter().map(one).collect()
    }

    #[tokio::test]
    async fn a_node_that_comes_later_is_told_and_one_that_goes_is_told_again() {
        let (mut book, now) = (Book::default(), Instant::now());
        open(&mut book, &["n1"], now);
        let (first, inbox) = book.listen("n1", now);
        assert_eq!(inbox.next().await.image, "a:1");
        book.report("n1", ID, state(Phase::Pulling, Some(7), ""), now).unwrap();
        let (_, again) = book.listen("n1", now);
        assert_eq!(again.next().await.image, "a:1");
        book.unlisten("n1", first, now + SILENCE);
        assert_eq!(
            book.news(ID, now).next,
            Some(now + SILENCE),
            "the end of an old call makes nobody absent"
        );
        book.report("n1", ID, state(Phase::Done, None, ""), now).unwrap();
        let (_, third) = book.listen("n1", now);
        book.close(ID);
        let nothing = tokio::time::timeout(Duration::from_millis(1), third.next()).await;
        assert!(nothing.is_err(), "what is done is not told again");
    }

    #[test]
    fn who_is_not_there_or_says_nothing_is_given_up_with_the_reason() {
        let (mut book, now) = (Book::default(), Instant::now());
        let (number, _inbox) = book.listen("goes", now);
        let (_, _other) = book.listen("silent", now);
        open(&mut book, &["absent", "goes", "silent"], now);
        assert_eq!(told(&mut book, now).len(), 3);
        book.unlisten("goes", number, now + Duration::from_secs(20));
        let absent = |id: &str| (id.to_owned(), Phase::Unavailable, reason::ABSENT.to_owned());
        assert_eq!(told(&mut book, now + ABSENCE), [absent("absent")]);
        assert_eq!(told(&mut book, now + Duration::from_secs(30)), [absent("goes")]);
        let news = book.news(ID, now + SILENCE);
        assert_eq!(news.updates[0].state.as_ref().unwrap().message, reason::SILENT);
        assert!(news.over);
        // A word of it after all.
        book.report("silent", ID, state(Phase::Pulling, None, ""), now + SILENCE).unwrap();
        assert!(!book.news(ID, now + SILENCE).over);
    }

    #[test]
    fn what_has_ended_stays_and_nonsense_is_refused() {
        let (mut book, now) = (Book::default(), Instant::now());
        open(&mut book, &["n1"], now);
        for bad in [Phase::Waiting, Phase::Unavailable] {
            let error = book.report("n1", ID, state(bad, None, ""), now).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
        }
        for (node, id) in [("n2", ID), ("n1", "other")] {
            let error = book.report(node, id, state(Phase::Done, None, ""), now).unwrap_err();
            assert_eq!(error.code(), tonic::Code::NotFound);
        }
        let long = "ä".repeat(MAX_MESSAGE);
        book.report("n1", ID, state(Phase::Failed, Some(700), &long), now).unwrap();
        book.report("n1", ID, state(Phase::Pulling, Some(3), ""), now).unwrap();
        let news = book.news(ID, now);
        let told = news.updates[0].state.clone().unwrap();
        assert_eq!((told.phase(), told.percent, told.message.len()), (Phase::Failed, Some(100), MAX_MESSAGE));
        assert!(news.over && news.next.is_none());
        assert!(book.news(ID, now).updates.is_empty(), "nothing is told twice");
    }

    #[test]
    fn there_are_only_so_many_orders() {
        let (mut book, now) = (Book::default(), Instant::now());
        for n in 0..=MOST_ORDERS {
            let order = PullOrder { id: n.to_string(), ..Default::default() };
            let opened = book.open(order, Vec::new(), now);
            assert_eq!(opened.is_ok(), n < MOST_ORDERS);
            if let Err(error) = opened {
                assert_eq!(error.code(), tonic::Code::ResourceExhausted);
            }
        }
        book.close("3");
        assert!(book.open(PullOrder::default(), Vec::new(), now).is_ok());
    }
}
