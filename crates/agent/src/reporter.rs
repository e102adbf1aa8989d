//! What managers must still hear: the newest status of each task.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use parking_lot::Mutex;
use prost::Message as _;
use swarm_api::v1::TaskStatus;
use swarm_api::v1::update_task_status_request::TaskStatusUpdate;
use tokio::sync::Notify;

/// Newest statuses that no manager has taken yet; at most one per task.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    queue: Mutex<BTreeMap<String, TaskStatus>>,
    work: Notify,
}

/// Statuses on their way to a manager. They go back into the queue unless [`Batch::delivered`] is called, so
/// that nothing is lost when the call fails or is given up.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    reporter: &'a Reporter,
    pub(crate) updates: Vec<TaskStatusUpdate>,
}

impl Reporter {
    /// Queues a status. A lower state than the queued one is ignored.
    pub(crate) fn put(&self, task_id: &str, status: TaskStatus) {
        let mut queue = self.queue.lock();
        match queue.entry(task_id.to_owned()) {
            Entry::Vacant(entry) => {
                entry.insert(status);
            }
            Entry::Occupied(mut entry) if entry.get().state <= status.state => {
                entry.insert(status);
            }
            Entry::Occupied(_) => return,
        }
        drop(queue);
        self.work.notify_one();
    }

    /// Queues a status again that was queued before: whatever is queued now is newer.
    pub(crate) fn put_again(&self, task_id: String, status: TaskStatus) {
        self.queue.lock().entry(task_id).or_insert(status);
        self.work.notify_one();
    }

    /// Forgets a task that nobody asks for any more.
    pub(crate) fn forget(&self, task_id: &str) {
        self.queue.lock().remove(task_id);
    }

    /// Waits for statuses and takes as many as fit: `count` of them, and about `bytes` encoded.
    pub(crate) async fn take(&self, count: usize, bytes: usize) -> Batch<'_> {
        loop {
            let updates = self.pop(count, bytes);
            if !updates.is_empty() {
                return Batch { reporter: self, updates };
            }
            self.work.notified().await;
        }
    }

    fn pop(&self, count: usize, bytes: usize) -> Vec<TaskStatusUpdate> {
        let mut queue = self.queue.lock();
        let (mut updates, mut size) = (Vec::new(), 0);
        while let Some(entry) = queue.first_entry() {
            size += entry.key().len() + entry.get().encoded_len() + 8;
            if !updates.is_empty() && (size > bytes || updates.len() >= count) {
                break;
            }
            let (task_id, status) = entry.remove_entry();
            updates.push(TaskStatusUpdate { task_id, status: Some(status) });
        }
        updates
    }
}

impl Batch<'_> {
    /// A manager has taken them.
    pub(crate) fn delivered(mut self) {
        self.updates.clear();
    }

    /// Splits off the last status, to be sent on its own.
    pub(crate) fn split_last(&mut self) -> Option<Self> {
        let update = self.updates.pop()?;
        Some(Batch { reporter: self.reporter, updates: vec![update] })
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for update in self.updates.drain(..) {
            if let Some(status) = update.status {
                self.reporter.put_again(update.task_id, status);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};
    use swarm_api::TaskState;

    use super::*;

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus { state: state as i32, ..Default::default() }
    }

    fn taken(batch: &Batch<'_>) -> Vec<(String, TaskState)> {
        batch.updates.iter().map(|u| (u.task_id.clone(), u.status.as_ref().unwrap().state())).collect()
    }

    #[tokio::test]
    async fn lower_states_are_dropped_and_the_newest_wins() {
        let reporter = Reporter::default();
        reporter.put("a", status(TaskState::Running));
        reporter.put("a", status(TaskState::Starting));
        reporter.put("b", status(TaskState::Starting));
        reporter.put("b", status(TaskState::Failed));
        let batch = reporter.take(10, 1000).await;
        assert_eq!(taken(&batch), [("a".into(), TaskState::Running), ("b".into(), TaskState::Failed)]);
    }

    #[tokio::test]
    async fn what_was_not_delivered_comes_back_unless_newer_is_there() {
        let reporter = Reporter::default();
        reporter.put("a", status(TaskState::Starting));
        reporter.put("b", status(TaskState::Starting));
        let batch = reporter.take(10, 1000).await;
        reporter.put("b", status(TaskState::Running));
        drop(batch);
        let batch = reporter.take(10, 1000).await;
        assert_eq!(taken(&batch), [("a".into(), TaskState::Starting), ("b".into(), TaskState::Running)]);
        batch.delivered();
        assert!(reporter.pop(10, 1000).is_empty());
    }

    #[tokio::test]
    async fn batches_are_bounded_but_never_empty() {
        let reporter = Reporter::default();
        for i in 0..10 {
            let mut long = status(TaskState::Failed);
            long.err = "x".repeat(500).into();
            reporter.put(&format!("t{i}"), long);
        }
        assert_eq!(reporter.take(3, 1_000_000).await.updates.len(), 3);
        assert_eq!(reporter.take(100, 1100).await.updates.len(), 2);
        assert_eq!(reporter.take(100, 1).await.updates.len(), 1);
    }

    // Scenario 113: many writers, failing sends; every last state arrives, and none twice.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_final_state_arrives_once() {
        let reporter = Arc::new(Reporter::default());
        let mut writers = tokio::task::JoinSet::new();
        for i in 0..100 {
            let reporter = reporter.clone();
            writers.spawn(async move {
                let states =
                    [TaskState::Accepted, TaskState::Preparing, TaskState::Running, TaskState::Complete];
                for state in states {
                    reporter.put(&format!("t{i}"), status(state));
                    tokio::task::yield_now().await;
                }
            });
        }
        let mut rng = StdRng::seed_from_u64(7);
        let mut seen: BTreeMap<String, Vec<TaskState>> = BTreeMap::new();
        let done = |seen: &BTreeMap<String, Vec<TaskState>>| {
            seen.values().filter(|s| s.last() == Some(&TaskState::Complete)).count() == 100
        };
        while !done(&seen) {
            let batch = reporter.take(rng.random_range(1..10), 1000).await;
            tokio::task::yield_now().await;
            if rng.random_bool(0.1) {
                continue; // the send failed
            }
            for (id, state) in taken(&batch) {
                let states = seen.entry(id).or_default();
                assert!(states.last().is_none_or(|last| *last < state), "twice or backwards");
                states.push(state);
            }
            batch.delivered();
        }
        assert!(reporter.pop(1000, 1_000_000).is_empty());
    }
}
