//! Publishes for one subscription.

use std::collections::HashSet;
use std::time::Duration;

use futures::stream::{self, FuturesUnordered};
use futures::{Stream, StreamExt as _};
use swarm_api::duration::to_system_time;
use swarm_api::log_lines::{ERROR_ATTRIBUTE, LineWriter, RawLogMessage};
use swarm_api::v1::log_broker_client::LogBrokerClient;
use swarm_api::v1::{
    LogContext, LogSelector, LogStream as WireStream, LogSubscriptionOptions, Peer, PublishLogsMessage,
    SubscriptionMessage,
};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

use super::position::Position;
use super::{Entry, Inner, Pauses, Tasks};
use crate::log_sink::{LogLines, LogSink};
use crate::{ControllerError, LogOptions, LogStream};

/// Bytes of lines in one message, about.
const FRAME: usize = 64 * 1024;
/// Messages that wait for the connection.
const QUEUE: usize = 2;
/// Longest time for a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time that is left for reading the log of a task that is removed from the node.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// The receiver of messages is gone, which has its own reason to tell.
struct Gone;

/// Publishes until all is sent, or nobody wants it any more. Lost connections are made anew, for as long as the
/// subscription is open; the broker leaves out what it has already.
pub(super) async fn publish(logs: &Inner, message: SubscriptionMessage, manager: Option<Peer>) {
    let mut pauses = Pauses::default();
    while let Err(error) = once(logs, &message, manager.as_ref()).await {
        if is_final(&error) {
            tracing::debug!(subscription.id = message.id, %error, "the manager wants no more of a log");
            return;
        }
        tracing::debug!(subscription.id = message.id, %error, "publishing logs failed; it begins again");
        pauses.pause().await;
    }
}

/// The broker has decided; other errors are the connection's.
fn is_final(error: &Status) -> bool {
    use Code::{Aborted, InvalidArgument, NotFound, PermissionDenied, Unimplemented};
    let decided = [Aborted, InvalidArgument, NotFound, PermissionDenied, Unimplemented];
    decided.contains(&error.code())
}

async fn once(logs: &Inner, message: &SubscriptionMessage, manager: Option<&Peer>) -> Result<(), Status> {
    let connected = timeout(PATIENCE, logs.connector.apart(manager)).await;
    let channel = connected
        .map_err(|_| Status::unavailable("connecting timed out"))?
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut client = LogBrokerClient::new(channel);
    let mut call = std::pin::pin!(client.publish_logs(until_close(receiver)));
    let messages = Messages { subscription_id: message.id.clone(), sender };
    let answer = tokio::select! {
        answer = &mut call => answer,
        () = everything(logs, message, messages) => {
            return match call.await {
                // Brokers of another make end the call without an answer, which is no trouble of the connection.
                Err(error)
                    if error.code() == Code::Internal && std::error::Error::source(&error).is_none() =>
                {
                    Ok(())
                }
                answer => answer.map(|_| ()),
            };
        }
    };
    match answer {
        Ok(_) => Ok(()), // it wants no more
        Err(error) => Err(error),
    }
}

/// The messages as they are sent. The stream ends with the message that says so, and with nothing else: brokers take every
/// end for a sign that all was sent, which is not true of one that is interrupted.
fn until_close(
    receiver: mpsc::Receiver<PublishLogsMessage>,
) -> impl Stream<Item = PublishLogsMessage> + Send {
    stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(message) => {
                let more = (!message.close).then_some(receiver);
                Some((message, more))
            }
            None => std::future::pending().await,
        }
    })
}

/// Where the lines of a subscription go.
struct Messages {
    subscription_id: String,
    sender: mpsc::Sender<PublishLogsMessage>,
}

impl Messages {
    async fn send(&self, messages: Vec<RawLogMessage>) -> Result<(), Gone> {
        let subscription_id = self.subscription_id.clone();
        let message = PublishLogsMessage { subscription_id, messages, close: false };
        self.sender.send(message).await.map_err(|_| Gone)
    }

    async fn close(self) {
        let close =
            PublishLogsMessage { subscription_id: self.subscription_id, messages: vec![], close: true };
        // Whoever does not take it does not wait for it either.
        let _ = self.sender.send(close).await;
    }
}

/// Sends all that is wanted, and that this is all. Who follows is sent the logs of later tasks as well, for ever.
async fn everything(logs: &Inner, message: &SubscriptionMessage, messages: Messages) {
    let selector = message.selector.clone().unwrap_or_default();
    let wanted = message.options.clone().unwrap_or_default();
    let mut options = options(&wanted);
    {
        let mut readers = FuturesUnordered::new();
        let mut changes = logs.tasks.changes();
        let mut seen = HashSet::new();
        loop {
            changes.mark_unchanged();
            for entry in fresh(&logs.tasks, &selector, &logs.node_id, &mut seen) {
                readers.push(Box::pin(read(&logs.node_id, entry, options.clone(), &messages)));
            }
            // Whatever tasks write that come later is new: none of it is too old.
            options.tail = None;
            if !wanted.follow {
                while readers.next().await.is_some() {}
                break;
            }
            loop {
                tokio::select! {
                    _ = changes.changed() => break,
                    _ = readers.next(), if !readers.is_empty() => {}
                }
            }
        }
    }
    messages.close().await;
}

/// Wanted tasks whose logs are not read yet.
fn fresh(tasks: &Tasks, selector: &LogSelector, node_id: &str, seen: &mut HashSet<String>) -> Vec<Entry> {
    seen.retain(|id| tasks.has(id));
    let mut fresh = tasks.selected(selector, node_id);
    fresh.retain(|entry| seen.insert(entry.task_id.clone()));
    fresh
}

/// What a controller is asked for.
fn options(wanted: &LogSubscriptionOptions) -> LogOptions {
    let streams = wanted.streams().filter_map(|stream| match stream {
        WireStream::Stdout => Some(LogStream::Stdout),
        WireStream::Stderr => Some(LogStream::Stderr),
        WireStream::Unknown => None,
    });
    LogOptions {
        streams: streams.collect(),
        follow: wanted.follow,
        // −1 is none, −2 the last one, and so on; brokers refuse what is above zero.
        tail: (wanted.tail < 0).then(|| wanted.tail.unsigned_abs() - 1),
        since: wanted.since.as_ref().map(to_system_time),
    }
}

/// Reads the log of one task and sends it.
async fn read(node_id: &str, entry: Entry, options: LogOptions, messages: &Messages) {
    let last_words = async {
        entry.removed.cancelled().await;
        sleep(LAST_WORDS).await;
    };
    tokio::select! {
        // An error means that nobody listens any more: whoever polls this knows better.
        _ = read_all(node_id, &entry, &options, messages) => {}
        () = last_words => {}
    }
}

async fn read_all(
    node_id: &str,
    entry: &Entry,
    options: &LogOptions,
    messages: &Messages,
) -> Result<(), Gone> {
    let context = LogContext {
        service_id: entry.service_id.clone(),
        node_id: node_id.to_owned(),
        task_id: entry.task_id.clone(),
    };
    let mut writer = LineWriter::new(&context);
    let mut position = Position::default();
    let mut pauses = Pauses::default();
    let mut now = options.clone();
    loop {
        let (sink, lines) = LogSink::new();
        let copy = entry.controller.logs(now, sink);
        let (result, sent) = tokio::join!(copy, send(lines, &mut writer, &mut position, messages));
        sent?;
        let error = match result {
            Ok(()) | Err(ControllerError::Closed) => return Ok(()),
            Err(error) => error,
        };
        tracing::warn!(task.id = entry.task_id, node.id = node_id, %error, "reading a log failed");
        if entry.removed.is_cancelled() {
            return Ok(());
        }
        if !options.follow {
            // Somebody waits for these lines, and is to know that they are missing.
            let text = format!("the log of this task could not be read: {error}");
            let reason = error.to_string();
            let time = std::time::SystemTime::now();
            writer.push(time, WireStream::Stderr, text.as_bytes(), [(ERROR_ATTRIBUTE, reason.as_str())]);
            return messages.send(writer.take()).await;
        }
        pauses.pause().await;
        now = position.again(options);
    }
}

/// Sends lines as they come, many at once where there are many.
async fn send(
    mut lines: LogLines,
    writer: &mut LineWriter,
    position: &mut Position,
    messages: &Messages,
) -> Result<(), Gone> {
    while let Some(batch) = lines.next().await {
        for line in batch.into_iter().filter(|line| position.is_new(line)) {
            let stream = match line.stream {
                LogStream::Stdout => WireStream::Stdout,
                LogStream::Stderr => WireStream::Stderr,
            };
            let attributes = line.attrs.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            writer.push(line.timestamp, stream, &line.data, attributes);
            if writer.bytes() >= FRAME {
                messages.send(writer.take()).await?;
            }
        }
        if writer.bytes() > 0 {
            messages.send(writer.take()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_counted_from_one_below_zero() {
        for (tail, expected) in
            [(0, None), (-1, Some(0)), (-2, Some(1)), (-11, Some(10)), (i64::MIN, Some(i64::MAX as u64))]
        {
            let wanted = LogSubscriptionOptions { tail, ..Default::default() };
            assert_eq!(options(&wanted).tail, expected, "{tail}");
        }
    }

    #[test]
    fn streams_are_chosen() {
        let streams = |numbers: &[i32]| {
            options(&LogSubscriptionOptions { streams: numbers.to_vec(), ..Default::default() }).streams
        };
        assert_eq!(streams(&[]), []);
        assert_eq!(streams(&[2]), [LogStream::Stderr]);
        assert_eq!(streams(&[1, 2]), [LogStream::Stdout, LogStream::Stderr]);
    }
}
