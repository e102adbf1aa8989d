//! What waits for one member, and which messages can be joined to one (decision 0082).

use prost::Message as _;
use swarm_api::raftpb::{Message, MessageType};
use tokio::sync::mpsc;

/// Bytes of messages that are joined to one; far below what a member accepts, as one that is longer goes alone.
const MOST_JOINED: usize = 1 << 20;

/// What waits to be sent to a member.
pub(super) struct Queue {
    waiting: mpsc::Receiver<Message>,
    /// Taken out, but not what the message before it could be joined with.
    next: Option<Message>,
}

impl Queue {
    pub(super) fn new(waiting: mpsc::Receiver<Message>) -> Queue {
        Queue { waiting, next: None }
    }

    /// The next message, joined with those behind it as far as one says what all of them do. What gathered while others
    /// were on their way so takes one turn of the receiver's and one sync. `None` if there will be no more.
    pub(super) async fn next(&mut self) -> Option<Message> {
        let mut message = match self.next.take() {
            Some(message) => message,
            None => self.waiting.recv().await?,
        };
        let mut bytes = message.encoded_len();
        while let Ok(mut next) = self.waiting.try_recv() {
            bytes += next.encoded_len();
            if goes_on(&message, &next) && bytes <= MOST_JOINED {
                message.entries.append(&mut next.entries);
                message.commit = next.commit;
            } else if supersedes(&next, &message) {
                message = next;
            } else {
                self.next = Some(next);
                break;
            }
        }
        Some(message)
    }

    /// Drops everything that waits.
    pub(super) fn clear(&mut self) {
        self.next = None;
        while self.waiting.try_recv().is_ok() {}
    }
}

fn is_of(r#type: MessageType, message: &Message, next: &Message) -> bool {
    [message, next].iter().all(|m| m.r#type == r#type as i32)
        && (next.term, next.from, next.to) == (message.term, message.from, message.to)
}

/// Whether two appends say the same as one with the entries of both.
fn goes_on(message: &Message, next: &Message) -> bool {
    let end =
        message.entries.last().map_or((message.index, message.log_term), |last| (last.index, last.term));
    is_of(MessageType::MsgApp, message, next)
        && (next.index, next.log_term) == end
        && next.commit >= message.commit
}

/// Whether an answer to an append says all that the one before it did.
fn supersedes(next: &Message, message: &Message) -> bool {
    is_of(MessageType::MsgAppResp, message, next)
        && !message.reject
        && !next.reject
        && next.index >= message.index
        && next.commit >= message.commit
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use swarm_api::raftpb::Entry;

    use super::super::QUEUE;

    use super::*;

    fn append(index: u64, log_term: u64, entries: &[(u64, u64)], commit: u64) -> Message {
        let entry =
            |&(index, term)| Entry { index, term, data: Some(vec![1; 10].into()), ..Entry::default() };
        let entries = entries.iter().map(entry).collect();
        let r#type = MessageType::MsgApp as i32;
        Message { r#type, to: 2, from: 1, term: 3, index, log_term, entries, commit, ..Message::default() }
    }

    fn answer(index: u64, reject: bool) -> Message {
        let r#type = MessageType::MsgAppResp as i32;
        Message { r#type, to: 2, from: 1, term: 3, index, reject, ..Message::default() }
    }

    /// What is sent of these.
    fn sent(messages: Vec<Message>) -> Vec<Message> {
        let (sender, waiting) = mpsc::channel(QUEUE);
        for message in messages {
            sender.try_send(message).unwrap();
        }
        drop(sender);
        let queue = Queue::new(waiting);
        let sent = stream::unfold(queue, async |mut queue| Some((queue.next().await?, queue)));
        futures::executor::block_on_stream(Box::pin(sent)).collect()
    }

    #[test]
    fn appends_that_go_on_are_sent_as_one() {
        let one = append(4, 2, &[(5, 2), (6, 3)], 4);
        let rest = [append(6, 3, &[(7, 3)], 5), append(7, 3, &[], 6), append(7, 3, &[(8, 3)], 6)];
        let all = std::iter::once(one).chain(rest).collect();
        assert_eq!(sent(all), [append(4, 2, &[(5, 2), (6, 3), (7, 3), (8, 3)], 6)]);
    }

    #[test]
    fn appends_that_do_not_go_on_are_sent_as_they_are() {
        let first = append(4, 2, &[(5, 3)], 4);
        let other_term = Message { term: 4, ..append(5, 3, &[(6, 3)], 4) };
        for next in [
            append(4, 2, &[(5, 3)], 4),
            append(5, 2, &[(6, 3)], 4),
            append(6, 3, &[(7, 3)], 4),
            append(5, 3, &[(6, 3)], 3),
            other_term,
            Message { r#type: MessageType::MsgHeartbeat as i32, ..append(5, 3, &[], 4) },
            answer(5, false),
        ] {
            assert_eq!(sent(vec![first.clone(), next.clone()]), [first.clone(), next]);
        }
    }

    #[test]
    fn appends_are_joined_up_to_a_limit() {
        let long = |index| {
            let mut message = append(index, 3, &[(index + 1, 3)], 0);
            message.entries[0].data = Some(vec![0; MOST_JOINED / 2 - 100].into());
            message
        };
        let lengths: Vec<_> = sent((0..5).map(long).collect()).iter().map(|m| m.entries.len()).collect();
        assert_eq!(lengths, [2, 2, 1]);
    }

    #[test]
    fn the_last_of_several_answers_is_enough_unless_one_refuses() {
        let (five, six) = (answer(5, false), answer(6, false));
        assert_eq!(sent(vec![five.clone(), six.clone()]), std::slice::from_ref(&six));
        assert_eq!(sent(vec![six.clone(), five.clone()]), [six.clone(), five.clone()]);
        let refusal = answer(6, true);
        assert_eq!(sent(vec![five.clone(), refusal.clone()]), [five, refusal.clone()]);
        assert_eq!(sent(vec![refusal.clone(), six.clone()]), [refusal, six]);
    }
}
