//! Status polls that wait for a node's certificate: each is woken by a change of its node, and by nothing else.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Default)]
pub(super) struct Waiters(Mutex<HashMap<String, Entry>>);

#[derive(Default)]
struct Entry {
    polls: usize,
    changed: Arc<Notify>,
}

/// One poll; it is forgotten when dropped.
pub(super) struct Waiter {
    waiters: Arc<Waiters>,
    node_id: String,
    pub(super) changed: Arc<Notify>,
}

impl Waiters {
    /// Registers a poll. Look at the node only after that, and after `changed.notified()` was enabled.
    pub(super) fn register(self: &Arc<Self>, node_id: &str) -> Waiter {
        let mut entries = self.0.lock();
        let entry = entries.entry(node_id.to_owned()).or_default();
        entry.polls += 1;
        Waiter { waiters: self.clone(), node_id: node_id.to_owned(), changed: entry.changed.clone() }
    }

    pub(super) fn wake(&self, node_id: &str) {
        if let Some(entry) = self.0.lock().get(node_id) {
            entry.changed.notify_waiters();
        }
    }

    pub(super) fn wake_all(&self) {
        self.0.lock().values().for_each(|entry| entry.changed.notify_waiters());
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut entries = self.waiters.0.lock();
        if let Some(entry) = entries.get_mut(&self.node_id) {
            entry.polls -= 1;
            if entry.polls == 0 {
                entries.remove(&self.node_id);
            }
        }
    }
}
