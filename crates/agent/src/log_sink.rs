//! Where controllers put the lines of a task's log.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::LogLine;

/// Bytes that wait for the reader of a log at most, plus one line; what a line costs beside its text is counted.
const ROOM: usize = 64 * 1024;
const OVERHEAD: usize = 64;

/// Nobody reads these lines any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads this log any more")]
pub struct Closed;

/// Takes log lines. Bounded in bytes: a slow reader slows the task's log, not the agent.
#[derive(Debug)]
pub struct LogSink(Arc<Pipe>);

/// The other end of a [`LogSink`].
#[derive(Debug)]
pub struct LogLines(Arc<Pipe>);

#[derive(Debug, Default)]
struct Pipe {
    state: Mutex<State>,
    filled: Notify,
    emptied: Notify,
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<LogLine>,
    bytes: usize,
    ended: bool,
}

impl LogSink {
    /// A sink, and what reads from it.
    pub fn new() -> (LogSink, LogLines) {
        let pipe = Arc::<Pipe>::default();
        (LogSink(pipe.clone()), LogLines(pipe))
    }

    /// Puts a line in, once there is room. For one caller at a time.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn send(&self, line: LogLine) -> Result<(), Closed> {
        loop {
            {
                let mut state = self.0.state.lock();
                if self.0.closed.is_cancelled() {
                    return Err(Closed);
                }
                if state.bytes < ROOM {
                    state.bytes += cost(&line);
                    state.lines.push(line);
                    let first = state.lines.len() == 1;
                    drop(state);
                    if first {
                        self.0.filled.notify_one();
                    }
                    return Ok(());
                }
            }
            tokio::select! {
                () = self.0.emptied.notified() => {}
                () = self.0.closed.cancelled() => {}
            }
        }
    }

    /// Completes when nobody reads any more.
    pub async fn closed(&self) {
        self.0.closed.cancelled().await;
    }
}

fn cost(line: &LogLine) -> usize {
    let attributes = line.attrs.iter().map(|(key, value)| key.len() + value.len() + OVERHEAD);
    line.data.len() + OVERHEAD + attributes.sum::<usize>()
}

impl Drop for LogSink {
    fn drop(&mut self) {
        self.0.state.lock().ended = true;
        self.0.filled.notify_one();
    }
}

impl LogLines {
    /// All lines that are there, as soon as there are some; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Vec<LogLine>> {
        loop {
            {
                let mut state = self.0.state.lock();
                if !state.lines.is_empty() {
                    state.bytes = 0;
                    let lines = std::mem::take(&mut state.lines);
                    drop(state);
                    self.0.emptied.notify_one();
                    return Some(lines);
                }
                if state.ended {
                    return None;
                }
            }
            self.0.filled.notified().await;
        }
    }

    /// Everything until the end.
    pub async fn collect(mut self) -> Vec<LogLine> {
        let mut all = Vec::new();
        while let Some(lines) = self.next().await {
            all.extend(lines);
        }
        all
    }
}

impl Drop for LogLines {
    fn drop(&mut self) {
        self.0.closed.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use tokio::time::timeout;

    use super::*;
    use crate::LogStream;

    fn line(length: usize) -> LogLine {
        LogLine {
            timestamp: UNIX_EPOCH,
            stream: LogStream::Stdout,
            data: vec![b'x'; length].into(),
            attrs: Default::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_in_bytes() {
        let (sink, mut lines) = LogSink::new();
        let mut count = 0;
        while timeout(Duration::from_secs(1), sink.send(line(10_000))).await.is_ok() {
            count += 1;
        }
        assert_eq!(count, 7);
        assert_eq!(lines.next().await.unwrap().len(), 7);
        sink.send(line(1 << 20)).await.unwrap();
        assert!(timeout(Duration::from_secs(1), sink.send(line(0))).await.is_err());
        let (sent, taken) = tokio::join!(sink.send(line(1)), lines.next());
        assert_eq!((sent, taken.unwrap().len()), (Ok(()), 1));
        drop(sink);
        assert_eq!(lines.collect().await.len(), 1);
    }

    #[test]
    fn attributes_count_as_well() {
        let attrs = [("key".to_owned(), "v".repeat(1000))].into();
        assert_eq!(cost(&LogLine { attrs, ..line(10) }), 10 + 3 + 1000 + 2 * OVERHEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_sends_learns_that_nobody_reads() {
        let (sink, lines) = LogSink::new();
        sink.send(line(1 << 20)).await.unwrap();
        let (sent, ()) = tokio::join!(sink.send(line(1)), async { drop(lines) });
        assert_eq!(sent, Err(Closed));
        sink.closed().await;
        assert_eq!(sink.send(line(1)).await, Err(Closed));
    }
}
