//! Logs: what managers want of this node's tasks, and sending it.
//!
//! `tasks` knows the controllers that have logs, `publish` reads and sends for one subscription, `position` says how far
//! a log was read.
//!
//! A subscription comes on the session's connection, which carries nothing else of logs. What is published for it goes
//! over a connection of its own, so that a subscriber that stands still holds up neither heartbeats nor other
//! subscriptions (decision 0087); and it goes on when the session is replaced by another one.

mod position;
mod publish;
mod tasks;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use swarm_api::v1::log_broker_client::LogBrokerClient;
use swarm_api::v1::{ListenSubscriptionsRequest, Peer, SubscriptionMessage};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::remotes::Connector;

pub(crate) use tasks::{Entry, Tasks};

/// First and longest pause before something that failed is tried again.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// After so long without a failure the pauses are short again.
const QUIET: Duration = Duration::from_secs(30);

/// What this node publishes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Logs(Arc<Inner>);

struct Inner {
    node_id: String,
    tasks: Tasks,
    connector: Arc<dyn Connector>,
    /// Subscriptions by id; what was started last for one of them counts.
    running: Mutex<HashMap<String, Running>>,
    /// Owns everything that is started here.
    tracker: TaskTracker,
    stop: CancellationToken,
}

struct Running {
    /// Cancels it, and tells it apart from another one under the same id.
    cancel: Arc<CancellationToken>,
}

impl Logs {
    /// Everything that is started ends with `stop`, and runs in `tracker`.
    pub(crate) fn new(
        node_id: String,
        tasks: Tasks,
        connector: Arc<dyn Connector>,
        tracker: TaskTracker,
        stop: CancellationToken,
    ) -> Logs {
        Logs(Arc::new(Inner { node_id, tasks, connector, running: Mutex::default(), tracker, stop }))
    }

    /// Listens to a manager for as long as the session with it lasts. Trouble with logs never ends a session.
    pub(crate) async fn listen(&self, channel: Channel, manager: Option<&Peer>) -> std::convert::Infallible {
        let mut client = LogBrokerClient::new(channel);
        let mut pauses = Pauses::default();
        loop {
            let error = self.listen_once(&mut client, manager).await;
            if error.code() == Code::Unimplemented {
                tracing::warn!("the manager takes no logs");
                std::future::pending::<()>().await;
            }
            // Leadership changes like this; the session ends then too.
            tracing::debug!(%error, "log subscriptions are listened to anew");
            pauses.pause().await;
        }
    }

    async fn listen_once(&self, client: &mut LogBrokerClient<Channel>, manager: Option<&Peer>) -> Status {
        let mut stream = match client.listen_subscriptions(ListenSubscriptionsRequest {}).await {
            Ok(stream) => stream.into_inner(),
            Err(error) => return error,
        };
        loop {
            match stream.message().await {
                Ok(Some(message)) => self.take(message, manager.cloned()),
                Ok(None) => return Status::unavailable("the manager closed the stream"),
                Err(error) => return error,
            }
        }
    }

    /// Begins or ends a subscription. One that is told again begins again, as told now: the manager knows that what it
    /// had of it was lost.
    fn take(&self, message: SubscriptionMessage, manager: Option<Peer>) {
        let mut running = self.0.running.lock();
        if let Some(before) = running.remove(&message.id) {
            before.cancel.cancel();
        }
        if message.close || self.0.stop.is_cancelled() {
            return;
        }
        let cancel = Arc::new(self.0.stop.child_token());
        running.insert(message.id.clone(), Running { cancel: cancel.clone() });
        drop(running);
        let inner = self.0.clone();
        self.0.tracker.spawn(async move {
            let id = message.id.clone();
            let publish = Box::pin(publish::publish(&inner, message, manager));
            cancel.run_until_cancelled(publish).await;
            let mut running = inner.running.lock();
            if running.get(&id).is_some_and(|now| Arc::ptr_eq(&now.cancel, &cancel)) {
                running.remove(&id);
            }
        });
    }
}

/// Pauses that grow while things fail.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    next: Option<Duration>,
    last: Option<Instant>,
}

impl Pauses {
    pub(crate) async fn pause(&mut self) {
        let now = Instant::now();
        if self.last.is_none_or(|last| now - last > QUIET) {
            self.next = None;
        }
        let pause = self.next.unwrap_or(PAUSE);
        self.next = Some((pause * 2).min(LONGEST_PAUSE));
        sleep(pause).await;
        self.last = Some(Instant::now());
    }
}
