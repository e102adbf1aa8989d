//! Lines that a subscriber has not taken yet.

use std::collections::VecDeque;

use parking_lot::Mutex;
use swarm_api::log_lines::RawLogMessage;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

/// Bytes that wait for one subscriber at most, what lines cost beside their text included. Nodes with more wait.
pub const ROOM: usize = 512 * 1024;
/// Bytes in one message to a subscriber, about.
const BATCH: usize = 64 * 1024;

/// A bounded queue of lines, from many nodes to one subscriber.
#[derive(Debug)]
pub(crate) struct Mail {
    queue: Mutex<VecDeque<(Vec<RawLogMessage>, u32)>>,
    /// Its waiters are served in their order, so a node with much to say does not crowd others out.
    room: Semaphore,
    changed: Notify,
    gone: CancellationToken,
}

/// Room in the queue; free again when dropped unused.
pub(crate) struct Room<'a> {
    mail: &'a Mail,
    permit: SemaphorePermit<'a>,
    size: u32,
}

impl Mail {
    pub(crate) fn new() -> Mail {
        Mail {
            queue: Mutex::default(),
            room: Semaphore::new(ROOM),
            changed: Notify::new(),
            gone: CancellationToken::new(),
        }
    }

    /// Waits for room for these lines; `None` if the subscriber is gone. Lines that would never fit wait for all of it.
    pub(crate) async fn room(&self, lines: &[RawLogMessage]) -> Option<Room<'_>> {
        let cost: usize = lines.iter().map(RawLogMessage::cost).sum();
        let size = u32::try_from(cost.min(ROOM)).unwrap_or(u32::MAX);
        let permit = self.room.acquire_many(size).await.ok()?;
        Some(Room { mail: self, permit, size })
    }

    /// Lines that wait, as many as one message should have; `None` if there are none. For one caller at a time.
    pub(crate) fn take(&self) -> Option<Vec<RawLogMessage>> {
        let mut queue = self.queue.lock();
        let (mut lines, size) = queue.pop_front()?;
        let mut taken = size as usize;
        // Those of agents that send each line by itself.
        while let Some((_, size)) = queue.front()
            && taken + *size as usize <= BATCH
        {
            if let Some((more, size)) = queue.pop_front() {
                lines.extend(more);
                taken += size as usize;
            }
        }
        drop(queue);
        self.room.add_permits(taken);
        Some(lines)
    }

    /// Waits until there may be something to take, or something else to be looked at.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Has whoever takes from it look again.
    pub(crate) fn look(&self) {
        self.changed.notify_one();
    }

    /// The subscriber is gone: whoever waits for room is told.
    pub(crate) fn close(&self) {
        self.room.close();
        self.gone.cancel();
        self.queue.lock().clear();
    }

    /// Completes when the subscriber is gone.
    pub(crate) async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

impl Room<'_> {
    /// Puts lines there. They may be fewer than the room was for.
    pub(crate) fn put(self, lines: Vec<RawLogMessage>) {
        if lines.is_empty() {
            return;
        }
        self.permit.forget();
        self.mail.queue.lock().push_back((lines, self.size));
        self.mail.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use swarm_api::v1::LogMessage;
    use tokio::time::timeout;

    use super::*;

    fn line(length: usize) -> RawLogMessage {
        (&LogMessage { data: vec![b'x'; length], ..Default::default() }).into()
    }

    async fn put(mail: &Mail, lines: Vec<RawLogMessage>) -> bool {
        let soon = timeout(Duration::from_secs(1), mail.room(&lines)).await;
        let Ok(Some(room)) = soon else { return false };
        room.put(lines);
        true
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_and_taking_makes_room() {
        let mail = Mail::new();
        let mut count = 0;
        while put(&mail, vec![line(10_000)]).await {
            count += 1;
        }
        assert!(count * 10_000 <= ROOM && count > 40, "{count}");
        assert!(!put(&mail, vec![line(10_000)]).await);
        let taken = mail.take().unwrap().len();
        assert!(taken > 1 && taken * 10_000 <= BATCH, "{taken}");
        assert!(put(&mail, vec![line(10_000)]).await);
        while mail.take().is_some() {}
        assert_eq!(mail.room.available_permits(), ROOM, "nothing is lost of it");
    }

    #[tokio::test(start_paused = true)]
    async fn lines_that_never_fit_wait_for_all_the_room() {
        let mail = Mail::new();
        assert!(put(&mail, vec![line(1)]).await);
        assert!(!put(&mail, vec![line(2 * ROOM)]).await);
        mail.take().unwrap();
        assert!(put(&mail, vec![line(2 * ROOM)]).await);
        assert_eq!(mail.take().unwrap().len(), 1);
        assert_eq!(mail.room.available_permits(), ROOM);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_subscriber_that_is_gone() {
        let mail = Mail::new();
        assert!(put(&mail, vec![line(2 * ROOM)]).await);
        let lines = [line(1)];
        let (room, ()) = tokio::join!(mail.room(&lines), async { mail.close() });
        assert!(room.is_none());
        mail.gone().await;
    }
}
