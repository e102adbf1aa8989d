//! What an agent was not told yet of orders.

use std::collections::VecDeque;

use parking_lot::Mutex;
use swarm_api::swarmd::PullOrder;
use tokio::sync::Notify;

/// The messages of one Listen call that are still to be sent. At most one for each order: the newest says it all. So it is
/// bounded by the orders that are open and those that the agent was told of.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    waiting: Mutex<VecDeque<PullOrder>>,
    changed: Notify,
}

impl Inbox {
    pub(crate) fn put(&self, order: PullOrder) {
        let mut waiting = self.waiting.lock();
        match waiting.iter_mut().find(|before| before.id == order.id) {
            Some(before) => *before = order,
            None => waiting.push_back(order),
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// The next message. One caller at a time.
    pub(crate) async fn next(&self) -> PullOrder {
        loop {
            if let Some(order) = self.waiting.lock().pop_front() {
                return order;
            }
            self.changed.notified().await;
        }
    }
}
