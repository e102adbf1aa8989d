//! What an agent was not told yet.

use std::collections::VecDeque;

use parking_lot::Mutex;
use swarm_api::swarmd::PullOrder;
use swarm_api::v1::SubscriptionMessage;
use tokio::sync::Notify;

/// A message that takes the place of an earlier one about the same.
pub trait Word {
    /// Identifier of what it is about.
    fn about(&self) -> &str;
}

impl Word for SubscriptionMessage {
    fn about(&self) -> &str {
        &self.id
    }
}

impl Word for PullOrder {
    fn about(&self) -> &str {
        &self.id
    }
}

/// The messages of one call, in which an agent listens, that are still to be sent. At most one for each thing that they
/// are about: the newest says it all. So it is bounded by the things that are open and those that the agent was told of.
#[derive(Debug)]
pub struct Inbox<W> {
    waiting: Mutex<VecDeque<W>>,
    changed: Notify,
}

impl<W> Default for Inbox<W> {
    fn default() -> Self {
        Inbox { waiting: Mutex::default(), changed: Notify::new() }
    }
}

impl<W: Word> Inbox<W> {
    /// Adds a message, in place of an earlier one about the same.
    pub fn put(&self, message: W) {
        let mut waiting = self.waiting.lock();
        match waiting.iter_mut().find(|before| before.about() == message.about()) {
            Some(before) => *before = message,
            None => waiting.push_back(message),
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// The next message, in the order in which things were first spoken of. One caller at a time.
    pub async fn next(&self) -> W {
        loop {
            if let Some(message) = self.waiting.lock().pop_front() {
                return message;
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_newest_word_on_a_subscription_is_kept() {
        let inbox = Inbox::default();
        let message = |id: &str, close| SubscriptionMessage { id: id.into(), close, ..Default::default() };
        inbox.put(message("a", false));
        inbox.put(message("b", false));
        inbox.put(message("a", true));
        let next = inbox.next().await;
        assert_eq!((next.id.as_str(), next.close), ("a", true));
        assert_eq!(inbox.next().await.id, "b");
        assert!(inbox.waiting.lock().is_empty());
    }
}
