//! One event stream for all containers of a node.
//!
//! An event says "look again", nothing more. So it does no harm that the engine replays old events to a new
//! stream, and it is repaired when some are lost: after each reconnection everybody is told to look, and once in a while
//! what runs is compared with what everybody believes ([`Awaited`]).
//!
//! What runs although no task of this node wants it is stopped here; what runs although its task has ended, by the task's
//! controller.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bollard::query_parameters::{EventsOptionsBuilder, StopContainerOptions};
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::Engine;
use crate::error;
use crate::labelled::{self, Labelled};
use crate::spec::{NODE_ID_LABEL, TASK_ID_LABEL};

/// Pauses between attempts to reach the engine again.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// When everything is compared after the stream was opened, and how often from then on.
const FIRST_CHECK: Duration = Duration::from_millis(250);
pub(crate) const CHECK_EVERY: Duration = Duration::from_secs(30);
/// Time that an engine gives a container to end, where nobody says how long.
const USUAL_GRACE: Duration = Duration::from_secs(10);

/// What was told of one container so far.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    /// Words that it ended, went away, or has another health; and ours that it was started.
    changes: u64,
    /// The engine's words that it was started.
    starts: u64,
    /// Comparisons, and whether it ran at the last one.
    compared: u64,
    runs: bool,
}

/// What is news to somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// For who believes that the container runs: it may not.
    End,
    /// For who believes that it has ended for good: it may run.
    Start,
    /// Everything but the engine's words of starts, which are mostly our own doing.
    Change,
}

type Subscribers = Mutex<HashMap<String, watch::Sender<Told>>>;

/// Who wants to know of which task's container.
#[derive(Default)]
pub(crate) struct Events {
    subscribers: Arc<Subscribers>,
    belonging: Mutex<Belonging>,
}

/// Which tasks' containers may run on this node.
#[derive(Debug, Default)]
struct Belonging {
    /// There was a sweep: what belongs here is known, though nobody may have asked for it yet.
    swept: bool,
    /// Tasks, until what was made for them is removed. Who looks after one may be gone before: the containers of a daemon that stops
    /// go on.
    tasks: HashSet<String>,
    /// Tasks that can't be looked after: what an earlier daemon made for them belongs to nobody.
    disowned: HashSet<String>,
}

/// Wakes its owner when there may be news of one container. Clones have seen what the original has.
#[derive(Clone)]
pub(crate) struct News {
    receiver: watch::Receiver<Told>,
    seen: Told,
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
        self.seen = *self.receiver.borrow_and_update();
    }

    /// Something came since.
    pub(crate) fn is_there(&self, awaited: Awaited) -> bool {
        let (seen, told) = (self.seen, *self.receiver.borrow());
        let compared = told.compared != seen.compared;
        match awaited {
            Awaited::End => told.changes != seen.changes || compared && !told.runs,
            Awaited::Start => told.starts != seen.starts || compared && told.runs,
            Awaited::Change => told.changes != seen.changes || compared,
        }
    }

    /// Waits until something is there.
    pub(crate) async fn wait(&mut self, awaited: Awaited) {
        while !self.is_there(awaited) {
            if self.receiver.changed().await.is_err() {
                // The executor is gone; whoever waits is about to be cancelled.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Events {
    pub(crate) fn subscribe(&self, task_id: &str) -> News {
        let mut belonging = self.belonging.lock();
        belonging.disowned.remove(task_id);
        belonging.tasks.insert(task_id.to_owned());
        drop(belonging);
        let mut subscribers = self.subscribers.lock();
        let sender = subscribers.entry(task_id.to_owned()).or_default();
        let guard = Guard { task_id: task_id.to_owned(), subscribers: self.subscribers.clone() };
        let receiver = sender.subscribe();
        let seen = *receiver.borrow();
        News { receiver, seen, _guard: Arc::new(guard) }
    }

    /// Tells everybody who wants to know of this task's container.
    pub(crate) fn wake(&self, task_id: &str) {
        self.tell(task_id, |told| told.changes += 1);
    }

    /// Whether there is anybody to be told.
    fn tell(&self, task_id: &str, change: impl FnOnce(&mut Told)) -> bool {
        let subscribers = self.subscribers.lock();
        subscribers.get(task_id).map(|sender| sender.send_modify(change)).is_some()
    }

    /// Tells everybody whether their container runs, or has all of them look.
    fn compare(&self, running: &HashSet<&str>, all: bool) {
        for (task_id, sender) in self.subscribers.lock().iter() {
            sender.send_modify(|told| {
                told.compared += 1;
                told.changes += u64::from(all);
                told.runs = running.contains(task_id.as_str());
            });
        }
    }

    /// What belonged to other tasks than these, and than those that came since, has been removed.
    pub(crate) fn swept(&self, known: &[String]) {
        let Belonging { swept, tasks, disowned } = &mut *self.belonging.lock();
        *swept = true;
        tasks.extend(known.iter().filter(|id| !disowned.contains(*id)).cloned());
    }

    /// Everything that was made for this task has been removed.
    pub(crate) fn removed(&self, task_id: &str) {
        self.belonging.lock().tasks.remove(task_id);
    }

    /// Nobody can look after this task, which has failed for that. If something runs for it, it must not go on.
    pub(crate) fn disown(&self, task_id: &str) {
        let mut belonging = self.belonging.lock();
        belonging.tasks.remove(task_id);
        belonging.disowned.insert(task_id.to_owned());
    }

    /// No task that this node runs has such a container. Nobody can tell before the first sweep.
    fn is_stray(&self, container: &Labelled) -> bool {
        let belonging = self.belonging.lock();
        belonging.swept
            && !belonging.tasks.contains(&container.task_id)
            && !self.subscribers.lock().contains_key(&container.task_id)
    }

    /// Listens to the engine until cancelled.
    pub(crate) async fn listen(
        &self,
        engine: &Engine,
        node_id: &str,
        every: Duration,
        stop: &CancellationToken,
    ) {
        let mut pause = RETRY_MIN;
        let mut lost = false;
        while !stop.is_cancelled() {
            let began = tokio::time::Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.follow(engine, node_id, every, &mut lost) => ended,
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
    async fn follow(&self, engine: &Engine, node_id: &str, every: Duration, lost: &mut bool) -> String {
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
            ("event", vec!["start", "die", "destroy", "health_status"]),
        ]);
        // From the start of time: whatever the engine still remembers closes the gap before the stream.
        let options = EventsOptionsBuilder::new().since("0").filters(&filters).build();
        let mut stream = std::pin::pin!(engine.docker.events(Some(options)));
        let mut check = tokio::time::interval_at(tokio::time::Instant::now() + FIRST_CHECK, every);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Dropped with the connection; what the engine was asked for it does all the same.
        let mut strays = Strays::default();
        loop {
            tokio::select! {
                event = stream.next() => match event {
                    None => return "the stream ended".to_owned(),
                    Some(Err(error)) => return error::chain(&error),
                    Some(Ok(event)) => {
                        let attributes = event.actor.and_then(|actor| actor.attributes).unwrap_or_default();
                        let Some(task_id) = attributes.get(TASK_ID_LABEL) else { continue };
                        let start = event.action.as_deref() == Some("start");
                        let wanted = self.tell(task_id, |told| match start {
                            true => told.starts += 1,
                            false => told.changes += 1,
                        });
                        if start && !wanted {
                            // What the engine replays is over: what counts is what runs.
                            check.reset_after(FIRST_CHECK);
                        }
                    }
                },
                Some(()) = strays.next() => {}
                _ = check.tick() => {
                    let running = match labelled::of_node(&engine.docker, node_id).await {
                        Ok(running) => running,
                        Err(error) => return error::chain(&error),
                    };
                    self.compare(&running.iter().map(|container| container.task_id.as_str()).collect(), *lost);
                    *lost = false;
                    for container in running.into_iter().filter(|container| self.is_stray(container)) {
                        strays.stop(engine, node_id, container);
                    }
                }
            }
        }
    }
}

/// Containers that are being stopped because no task of the node wants them.
#[derive(Default)]
struct Strays {
    ids: HashSet<String>,
    running: JoinSet<String>,
}

impl Strays {
    /// Stops it, unless that is being done.
    fn stop(&mut self, engine: &Engine, node_id: &str, container: Labelled) {
        if !self.ids.insert(container.id.clone()) {
            return;
        }
        tracing::warn!(
            task.id = container.task_id,
            node.id = node_id,
            container = container.id,
            "container was started by somebody else although this node does not have its task: stopping it"
        );
        let docker = engine.patient(USUAL_GRACE);
        self.running.spawn(async move {
            if let Err(error) = docker.stop_container(&container.id, None::<StopContainerOptions>).await
                && !matches!(error::status(&error), Some(304 | 404))
            {
                // The next comparison finds it.
                tracing::warn!(
                    container = container.id,
                    reason = error::chain(&error),
                    "it could not be stopped"
                );
            }
            container.id
        });
    }

    /// Waits for the next one to be stopped; `None` if there is none.
    async fn next(&mut self) -> Option<()> {
        // One whose stop panicked is not tried again on this connection.
        if let Ok(id) = self.running.join_next().await? {
            self.ids.remove(&id);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn news_before_a_look_is_not_waited_for_again() {
        let events = Events::default();
        let mut news = events.subscribe("t");
        assert!(!news.is_there(Awaited::Change));
        events.wake("t");
        assert!(news.is_there(Awaited::Change) && news.is_there(Awaited::End));
        let seen_later = news.clone();
        news.mark_seen();
        assert!(!news.is_there(Awaited::Change) && seen_later.is_there(Awaited::Change));
        events.wake("t");
        news.wait(Awaited::End).await;
    }

    #[test]
    fn a_comparison_is_news_to_those_whom_it_contradicts() {
        use Awaited::{Change, End, Start};
        let events = Events::default();
        let check = |what: &str, act: &dyn Fn(), expected: &[Awaited]| {
            let news = events.subscribe("t");
            act();
            let there: Vec<_> = [End, Start, Change].into_iter().filter(|a| news.is_there(*a)).collect();
            assert_eq!(there, expected, "{what}");
        };
        // The subscription of one is of no account to the next.
        let _stays = events.subscribe("t");
        check("nothing", &|| {}, &[]);
        check("a change", &|| events.wake("t"), &[End, Change]);
        check("a start", &|| _ = events.tell("t", |told| told.starts += 1), &[Start]);
        check("it runs", &|| events.compare(&HashSet::from(["t"]), false), &[Start, Change]);
        check("it does not run", &|| events.compare(&HashSet::new(), false), &[End, Change]);
        check(
            "it runs after an outage",
            &|| events.compare(&HashSet::from(["t"]), true),
            &[End, Start, Change],
        );
    }

    #[test]
    fn only_after_a_sweep_is_known_what_nobody_wants() {
        let events = Events::default();
        let of = |task_id: &str| Labelled {
            id: "c".into(),
            task_id: task_id.into(),
            init: None,
            runs: true,
            created: 0,
        };
        let _news = events.subscribe("here");
        events.disown("unfit");
        assert!(!events.is_stray(&of("gone")) && !events.is_stray(&of("unfit")));
        events.swept(&["known".to_owned(), "unfit".to_owned()]);
        assert!(events.is_stray(&of("gone")) && events.is_stray(&of("unfit")));
        assert!(!events.is_stray(&of("here")) && !events.is_stray(&of("known")));
        // Who looked after a task may be gone before what was made for it.
        drop(events.subscribe("left"));
        drop(events.subscribe("unfit"));
        assert!(!events.is_stray(&of("left")) && !events.is_stray(&of("unfit")));
        events.removed("left");
        events.removed("known");
        assert!(events.is_stray(&of("left")) && events.is_stray(&of("known")));
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
