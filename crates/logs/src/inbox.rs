//! What an agent was not told yet of subscriptions.

use std::collections::VecDeque;

use parking_lot::Mutex;
use swarm_api::v1::SubscriptionMessage;
use tokio::sync::Notify;

/// The messages of one ListenSubscriptions call that are still to be sent. At most one for each subscription: the
/// newest says it all. So it is bounded by the subscriptions that are open and those that the agent was told of.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    waiting: Mutex<VecDeque<SubscriptionMessage>>,
    changed: Notify,
}

impl Inbox {
    pub(crate) fn put(&self, message: SubscriptionMessage) {
        let mut waiting = self.waiting.lock();
        match waiting.iter_mut().find(|before| before.id == message.id) {
            Some(before) => *before = message,
            None => waiting.push_back(message),
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// The next message, in the order in which subscriptions were first spoken of. One caller at a time.
    pub(crate) async fn next(&self) -> SubscriptionMessage {
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
