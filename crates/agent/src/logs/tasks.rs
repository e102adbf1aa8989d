//! The tasks of this node that have logs.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use swarm_api::Shared;
use swarm_api::v1::{LogSelector, Task};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Controller;

/// Every task with a controller. The worker keeps it, whoever reads logs looks at it. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Tasks(Arc<Inner>);

#[derive(Default)]
struct Inner {
    entries: Mutex<HashMap<String, Entry>>,
    changed: watch::Sender<()>,
}

/// One of them.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) task_id: String,
    pub(crate) service_id: String,
    pub(crate) controller: Arc<dyn Controller>,
    /// Cancelled when the task is removed from the node: its log goes too, soon.
    pub(crate) removed: CancellationToken,
}

impl Tasks {
    pub(crate) fn put(&self, task: &Shared<Task>, controller: &Arc<dyn Controller>) {
        let entry = Entry {
            task_id: task.id.to_string(),
            service_id: task.service_id.to_string(),
            controller: controller.clone(),
            removed: CancellationToken::new(),
        };
        self.0.entries.lock().insert(task.id.to_string(), entry);
        self.0.changed.send_replace(());
    }

    pub(crate) fn remove(&self, task_id: &str) {
        let removed = self.0.entries.lock().remove(task_id);
        if let Some(entry) = removed {
            entry.removed.cancel();
            self.0.changed.send_replace(());
        }
    }

    pub(crate) fn find(&self, task_id: &str) -> Option<Entry> {
        self.0.entries.lock().get(task_id).cloned()
    }

    pub(super) fn has(&self, task_id: &str) -> bool {
        self.0.entries.lock().contains_key(task_id)
    }

    /// Those that a selector means; all of them if it names this node.
    pub(super) fn selected(&self, selector: &LogSelector, node_id: &str) -> Vec<Entry> {
        let all = selector.node_ids.iter().any(|id| id == node_id);
        let wanted = |entry: &&Entry| {
            all || selector.task_ids.contains(&entry.task_id)
                || selector.service_ids.contains(&entry.service_id)
        };
        self.0.entries.lock().values().filter(wanted).cloned().collect()
    }

    /// Notifies of tasks that come and go.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }
}
