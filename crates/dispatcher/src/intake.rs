//! What nodes report, gathered and written in few transactions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message as _;
use swarm_api::v1::{
    Node, NodeDescription, Task, TaskState, TaskStatus, Volume, node_status, volume_publish_status,
};
use swarm_api::{Shared, StoreObject, Text, defaults, text};
use swarm_store::{Error, Indexed, Store, Tx};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// How a write of a registration ended.
pub(crate) type Written = Result<(), Error>;

/// A change of a node object that waits to be written.
#[derive(Debug, Default)]
pub(crate) struct NodeUpdate {
    pub(crate) state: node_status::State,
    pub(crate) message: String,
    pub(crate) addr: Option<IpAddr>,
    pub(crate) description: Option<NodeDescription>,
    waiters: Vec<oneshot::Sender<Written>>,
}

/// A task's status as its node reported it.
#[derive(Debug)]
struct Report {
    node_id: Arc<str>,
    status: TaskStatus,
}

#[derive(Debug, Default)]
struct Queue {
    tasks: BTreeMap<String, Report>,
    nodes: BTreeMap<Arc<str>, NodeUpdate>,
    unpublished: BTreeSet<(String, Arc<str>)>,
    closed: bool,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.nodes.is_empty() && self.unpublished.is_empty()
    }
}

/// The queue of reports. Calls put into it and return; one loop ([`Intake::run`]) writes it.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    queue: Mutex<Queue>,
    work: Notify,
    taken: Notify,
}

/// Longest text of a status that is stored, in bytes; an engine's error is a few hundred.
const MAX_TEXT: usize = 32 * 1024;
/// Largest status that is stored, in encoded bytes; an ordinary one has a few hundred.
const MAX_STATUS: usize = 128 * 1024;
/// First and longest pause before a refused write is tried again.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_REFUSED_PAUSE: Duration = Duration::from_secs(1);

impl Intake {
    /// Queues a node's new state. The receiver learns when it was written.
    pub(crate) fn node(
        &self,
        node_id: Arc<str>,
        state: node_status::State,
        message: &str,
        addr: Option<IpAddr>,
        description: Option<NodeDescription>,
    ) -> oneshot::Receiver<Written> {
        let (sender, receiver) = oneshot::channel();
        let mut queue = self.queue.lock();
        if !queue.closed {
            let update = queue.nodes.entry(node_id).or_default();
            update.state = state;
            message.clone_into(&mut update.message);
            update.addr = addr.or(update.addr);
            update.description = description.or(update.description.take());
            update.waiters.push(sender);
        }
        drop(queue);
        self.work.notify_one();
        receiver
    }

    /// Waits until fewer than `limit` reports are queued: the brake on agents when writes are slow.
    pub(crate) async fn room(&self, limit: usize) {
        loop {
            let taken = self.taken.notified();
            tokio::pin!(taken);
            taken.as_mut().enable();
            {
                let queue = self.queue.lock();
                if queue.closed || queue.tasks.len() < limit {
                    return;
                }
            }
            taken.await;
        }
    }

    /// Queues task statuses of a node. The highest state of a task stays, of equal ones the last.
    pub(crate) fn tasks(&self, node_id: &Arc<str>, updates: impl IntoIterator<Item = (String, TaskStatus)>) {
        let mut queue = self.queue.lock();
        if queue.closed {
            return;
        }
        for (task_id, mut status) in updates {
            bound(&mut status);
            if queue.tasks.get(&task_id).is_some_and(|queued| queued.status.state > status.state) {
                continue;
            }
            queue.tasks.insert(task_id, Report { node_id: node_id.clone(), status });
        }
        drop(queue);
        self.work.notify_one();
    }

    /// Queues volumes that a node has let go.
    pub(crate) fn unpublished(&self, node_id: &Arc<str>, volumes: impl IntoIterator<Item = String>) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            queue.unpublished.extend(volumes.into_iter().map(|id| (id, node_id.clone())));
        }
        drop(queue);
        self.work.notify_one();
    }

    /// Drops what is queued: agents report everything again to the next leader.
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock();
        *queue = Queue { closed: true, ..Queue::default() };
        drop(queue);
        self.work.notify_one();
        self.taken.notify_waiters();
    }

    /// Writes what is queued, until the queue is closed. A report that finds nothing before it is written at
    /// once; what comes within `gather` of a write waits for the end of that time, unless `limit` is reached.
    pub(crate) async fn run(&self, store: &Store, applied_by: &str, gather: Duration, limit: usize) {
        let mut last: Option<Instant> = None;
        loop {
            let due = last.map(|last| last + gather).unwrap_or_else(Instant::now);
            let batch = loop {
                match self.take(due, limit) {
                    Take::Batch(batch) => break batch,
                    Take::Closed => return,
                    Take::Nothing => self.work.notified().await,
                    Take::Later => tokio::select! {
                        () = self.work.notified() => {}
                        () = tokio::time::sleep_until(due) => {}
                    },
                }
            };
            self.taken.notify_waiters();
            last = Some(Instant::now());
            write(store, applied_by, batch).await;
        }
    }

    fn take(&self, due: Instant, limit: usize) -> Take {
        let mut queue = self.queue.lock();
        if queue.closed {
            Take::Closed
        } else if queue.is_empty() {
            Take::Nothing
        } else if Instant::now() >= due || queue.tasks.len() >= limit || queue.nodes.len() >= limit {
            Take::Batch(std::mem::take(&mut *queue))
        } else {
            Take::Later
        }
    }
}

enum Take {
    Batch(Queue),
    Nothing,
    Later,
    Closed,
}

/// Cuts a status down to what can be stored: a task near the size limit of a log entry could not be changed any more.
fn bound(status: &mut TaskStatus) {
    truncate(&mut status.message);
    truncate(&mut status.err);
    // Ours to say.
    status.applied_by = Text::default();
    if status.encoded_len() > MAX_STATUS {
        tracing::warn!(bytes = status.encoded_len(), limit = MAX_STATUS, "a task's status was cut down");
        (status.runtime_status, status.port_status) = (None, None);
    }
}

fn truncate(text: &mut Text) {
    if text.len() > MAX_TEXT {
        *text = Text::from(&text[..text.floor_char_boundary(MAX_TEXT)]);
    }
}

async fn write(store: &Store, applied_by: &str, batch: Queue) {
    let nodes: Vec<(Arc<str>, NodeUpdate)> = batch.nodes.into_iter().collect();
    let (changes, waiters): (Vec<_>, Vec<_>) = nodes
        .into_iter()
        .map(|(id, mut update)| {
            let waiters = std::mem::take(&mut update.waiters);
            ((id, update), waiters)
        })
        .unzip();
    let mut waiters = waiters.into_iter();
    in_chunks(store, "node states", &changes, change_node, |written, result| {
        for sender in waiters.by_ref().take(written).flatten() {
            let _ = sender.send(result.clone()); // the caller may have gone
        }
    })
    .await;

    let reports: Vec<(String, Report)> = batch.tasks.into_iter().collect();
    let apply = |tx: &mut Tx, chunk: &mut Chunk, report: &_| change_task(tx, chunk, report, applied_by);
    in_chunks(store, "task statuses", &reports, apply, |_, _| {}).await;

    let volumes: Vec<_> = batch.unpublished.into_iter().collect();
    in_chunks(store, "volume statuses", &volumes, change_volume, |_, _| {}).await;
}

/// One transaction of several: how much of a log entry it takes so far.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    bytes: usize,
}

/// Why a change was not made.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It has to wait for the next transaction.
    Full,
    /// It can't be made.
    Failed(Error),
}

impl Chunk {
    /// Updates an object, if it still fits.
    pub(crate) fn put<T: Indexed>(&mut self, tx: &mut Tx, object: Shared<T>) -> Result<(), Refused> {
        const OVERHEAD: usize = 64;
        let size = object.encoded_len() + OVERHEAD;
        if size > defaults::MAX_TRANSACTION_BYTES - OVERHEAD {
            return Err(Refused::Failed(Error::TooLarge));
        }
        if self.bytes > 0 && self.bytes + size > defaults::MAX_BATCH_BYTES {
            return Err(Refused::Full);
        }
        tx.update(object).map_err(Refused::Failed)?;
        self.bytes += size;
        Ok(())
    }
}

/// Applies `change` to each item, in as few transactions as their sizes allow. An item whose change fails is
/// left out; `done` hears how many items are settled and how.
pub(crate) async fn in_chunks<T: Sync>(
    store: &Store,
    what: &str,
    items: &[T],
    change: impl Fn(&mut Tx, &mut Chunk, &T) -> Result<(), Refused> + Send + Sync,
    mut done: impl FnMut(usize, Written),
) {
    let mut from = 0;
    let mut pause = REFUSED_PAUSE;
    while from < items.len() {
        let change = &change;
        let result = store
            .update(move |tx: &mut Tx| {
                let mut chunk = Chunk::default();
                let mut at = from;
                while at < items.len() {
                    match change(tx, &mut chunk, &items[at]) {
                        Ok(()) => {}
                        Err(Refused::Full) => break,
                        Err(Refused::Failed(error)) => {
                            tracing::warn!(%error, "one of the {what} was left out");
                        }
                    }
                    at += 1;
                }
                Ok::<usize, Error>(at)
            })
            .await;
        match result {
            Ok((to, _)) => {
                done(to - from, Ok(()));
                (from, pause) = (to, REFUSED_PAUSE);
            }
            // Refused with certainty: once more, for as long as it takes. An agent reports a status once, and nobody
            // else says that a node is down; what was taken from them must not be lost because the disk is slow.
            Err(Error::Dropped) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_REFUSED_PAUSE);
            }
            Err(error) => {
                tracing::warn!(%error, left = items.len() - from, "{what} could not be written");
                done(items.len() - from, Err(error));
                return;
            }
        }
    }
}

fn change_node(tx: &mut Tx, chunk: &mut Chunk, (id, update): &(Arc<str>, NodeUpdate)) -> Result<(), Refused> {
    let Some(stored) = tx.get::<Node>(id).cloned() else {
        return Err(Refused::Failed(Error::NotExist));
    };
    let mut node = stored.clone();
    node.status.state = update.state as i32;
    node.status.message.clone_from(&update.message);
    if let Some(addr) = update.addr {
        node.status.addr = addr.to_string();
    }
    if let Some(description) = &update.description {
        node.description = Some(description.clone());
    }
    if node == stored { Ok(()) } else { chunk.put(tx, node) }
}

fn change_task(
    tx: &mut Tx,
    chunk: &mut Chunk,
    (id, report): &(String, Report),
    applied_by: &str,
) -> Result<(), Refused> {
    let Some(stored) = tx.get::<Task>(id) else { return Ok(()) };
    if *stored.node_id != *report.node_id || stored.status.state > report.status.state {
        tracing::debug!(task.id = id.as_str(), "task status invalid transition");
        return Ok(());
    }
    let same = {
        let stored = &stored.status;
        TaskStatus {
            applied_by: stored.applied_by.clone(),
            applied_at: stored.applied_at,
            ..report.status.clone()
        } == *stored
    };
    if same {
        return Ok(()); // an agent that came back reports everything again
    }
    let mut task = stored.clone();
    task.status = report.status.clone();
    task.status.applied_by = applied_by.into();
    task.status.applied_at = Some(swarm_api::duration::timestamp(tx.now()));
    chunk.put(tx, task)
}

fn change_volume(tx: &mut Tx, chunk: &mut Chunk, (id, node_id): &(String, Arc<str>)) -> Result<(), Refused> {
    use volume_publish_status::State;
    let Some(stored) = tx.get::<Volume>(id).cloned() else { return Ok(()) };
    let mut volume = stored.clone();
    for status in volume.publish_status.iter_mut().filter(|s| *s.node_id == **node_id) {
        status.state = State::PendingUnpublish as i32;
    }
    if volume == stored { Ok(()) } else { chunk.put(tx, volume) }
}

/// Gives up a task of a node that will not come back.
pub(crate) fn orphan_task(
    tx: &mut Tx,
    chunk: &mut Chunk,
    id: &str,
    node_id: &str,
    applied_by: &str,
) -> Result<(), Refused> {
    let Some(stored) = tx.get::<Task>(id) else { return Ok(()) };
    let live = TaskState::Assigned as i32..=TaskState::Running as i32;
    if stored.node_id != node_id || !live.contains(&stored.status.state) {
        return Ok(());
    }
    let mut task = stored.clone();
    let now = swarm_api::duration::timestamp(tx.now());
    task.status.state = TaskState::Orphaned as i32;
    task.status.timestamp = Some(now);
    task.status.message = text!("node has been down for too long");
    task.status.applied_by = applied_by.into();
    task.status.applied_at = Some(now);
    debug_assert_eq!(StoreObject::id(&*task), id);
    chunk.put(tx, task)
}
