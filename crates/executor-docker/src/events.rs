//! One event stream for all containers of a node.
//!
//! An event says "look again", nothing more. So it does no harm that the engine replays old events to a new
//! stream, and it is repaired when some are lost: after each reconnection everybody is told to look, and once in a while
//! everybody whose container does not run.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bollard::query_parameters::{EventsOptionsBuilder, ListContainersOptionsBuilder};
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::Engine;
use crate::error;
use crate::spec::{NODE_ID_LABEL, TASK_ID_LABEL};

/// Pauses between attempts to reach the engine again.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// When everything is compared after the stream was opened, and how often from then on.
const FIRST_CHECK: Duration = Duration::from_millis(250);
const CHECK_EVERY: Duration = Duration::from_secs(30);

type Subscribers = Mutex<HashMap<String, watch::Sender<()>>>;

/// Who wants to know of which task's container.
#[derive(Default)]
pub(crate) struct Events {
    subscribers: Arc<Subscribers>,
}

/// Wakes its owner when there may be news of one container. Clones have seen what the original has.
#[derive(Clone)]
pub(crate) struct News {
    receiver: watch::Receiver<()>,
    _guard: Arc<Guard>,
}

struct Guard {
    task_id: String,
    subscribers: Arc<Subscribers>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut subscribers = self.subscribers.lock();
        // The receivers beside this guard are gone by now: they are dropped first.
        if subscribers.get(&self.task_id).is_some_and(|sender| sender.receiver_count() == 0) {
            subscribers.remove(&self.task_id);
        }
    }
}

impl News {
    /// What came so far has been taken note of. Call it *before* looking at the container.
    pub(crate) fn mark_seen(&mut self) {
        self.receiver.mark_unchanged();
    }

    /// Something came since.
    pub(crate) fn is_there(&self) -> bool {
        self.receiver.has_changed().unwrap_or(true)
    }

    /// Waits until something comes.
    pub(crate) async fn wait(&mut self) {
        if self.receiver.changed().await.is_err() {
            // The executor is gone; whoever waits is about to be cancelled.
            std::future::pending::<()>().await;
        }
    }
}

impl Events {
    pub(crate) fn subscribe(&self, task_id: &str) -> News {
        let mut subscribers = self.subscribers.lock();
        let sender = subscribers.entry(task_id.to_owned()).or_insert_with(|| watch::Sender::new(()));
        let guard = Guard { task_id: task_id.to_owned(), subscribers: self.subscribers.clone() };
        News { receiver: sender.subscribe(), _guard: Arc::new(guard) }
    }

    /// Tells everybody who wants to know of this task's container.
    pub(crate) fn wake(&self, task_id: &str) {
        if let Some(sender) = self.subscribers.lock().get(task_id) {
            sender.send_replace(());
        }
    }

    fn wake_all_but(&self, running: &HashSet<String>) {
        for (task_id, sender) in self.subscribers.lock().iter() {
            if !running.contains(task_id) {
                sender.send_replace(());
            }
        }
    }

    /// Listens to the engine until cancelled.
    pub(crate) async fn listen(&self, engine: &Engine, node_id: &str, stop: &CancellationToken) {
        let mut pause = RETRY_MIN;
        let mut lost = false;
        while !stop.is_cancelled() {
            let began = tokio::time::Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.follow(engine, node_id, &mut lost) => ended,
            };
            if !lost {
                tracing::warn!(
                    node.id = node_id,
                    engine = engine.address,
                    reason = ended,
                    "lost the engine's events"
                );
                lost = true;
            }
            pause = if began.elapsed() > RETRY_MAX { RETRY_MIN } else { (pause * 2).min(RETRY_MAX) };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One connection, until it breaks; says why.
    async fn follow(&self, engine: &Engine, node_id: &str, lost: &mut bool) -> String {
        if *lost {
            // The engine may have come back as an older version.
            if let Err(error) = engine.docker.clone().negotiate_version().await {
                return error::chain(&error);
            }
            tracing::info!(node.id = node_id, engine = engine.address, "engine is back");
        }
        let own = format!("{NODE_ID_LABEL}={node_id}");
        let filters = HashMap::from([
            ("type", vec!["container"]),
            ("label", vec![own.as_str()]),
            // Starts are our own doing.
            ("event", vec!["die", "destroy", "health_status"]),
        ]);
        // From the start of time: whatever the engine still remembers closes the gap before the stream.
        let options = EventsOptionsBuilder::new().since("0").filters(&filters).build();
        let mut stream = std::pin::pin!(engine.docker.events(Some(options)));
        let mut check = tokio::time::interval_at(tokio::time::Instant::now() + FIRST_CHECK, CHECK_EVERY);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = stream.next() => match event {
                    None => return "the stream ended".to_owned(),
                    Some(Err(error)) => return error::chain(&error),
                    Some(Ok(event)) => {
                        let attributes = event.actor.and_then(|actor| actor.attributes).unwrap_or_default();
                        if let Some(task_id) = attributes.get(TASK_ID_LABEL) {
                            self.wake(task_id);
                        }
                    }
                },
                _ = check.tick() => {
                    match running(engine, &own).await {
                        // A container may also have become healthy meanwhile, and nobody says so twice.
                        Ok(_) if *lost => self.wake_all_but(&HashSet::new()),
                        Ok(running) => self.wake_all_but(&running),
                        Err(error) => return error::chain(&error),
                    }
                    *lost = false;
                }
            }
        }
    }
}

/// Tasks of this node whose containers run.
async fn running(engine: &Engine, own: &str) -> Result<HashSet<String>, bollard::errors::Error> {
    let filters = HashMap::from([("label", vec![own]), ("status", vec!["running"])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let containers = engine.docker.list_containers(Some(options)).await?;
    Ok(containers.into_iter().filter_map(|container| container.labels?.remove(TASK_ID_LABEL)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn news_before_a_look_is_not_waited_for_again() {
        let events = Events::default();
        let mut news = events.subscribe("t");
        assert!(!news.is_there());
        events.wake("t");
        assert!(news.is_there());
        let seen_later = news.clone();
        news.mark_seen();
        assert!(!news.is_there() && seen_later.is_there());
        events.wake_all_but(&HashSet::from(["t".to_owned()]));
        assert!(!news.is_there());
        events.wake_all_but(&HashSet::new());
        news.wait().await;
    }

    #[test]
    fn nobody_left_is_forgotten() {
        let events = Events::default();
        let (a, b) = (events.subscribe("t"), events.subscribe("t"));
        let c = a.clone();
        drop(a);
        drop(b);
        assert_eq!(events.subscribers.lock().len(), 1);
        drop(c);
        assert_eq!(events.subscribers.lock().len(), 0);
    }
}
