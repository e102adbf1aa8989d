//! What a task has written, and writes, out of its log.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use swarm_agent::{ControllerError, Gone, LogLine, LogOptions, LogSink, Output, TaskOutput};
use tokio::time::sleep;

use crate::controller::disk;
use crate::dir::{Exit, State, TaskDir};
use crate::log::Reader;
use crate::outcome::fatal;

/// Time between two looks at a log that is followed.
const FOLLOW: Duration = Duration::from_millis(100);

/// Sends the lines that are wanted, until there are no more or nobody takes them.
pub(crate) async fn copy(dir: &TaskDir, options: &LogOptions, sink: &LogSink) -> Result<(), ControllerError> {
    let wanted = |line: &LogLine| {
        (options.streams.is_empty() || options.streams.contains(&line.stream))
            && options.since.is_none_or(|since| line.timestamp >= since)
    };
    let mut reader = Reader::new(&dir.log());
    // The last lines, until there are no more before them.
    let mut tail = options.tail.map(|count| (usize::try_from(count).unwrap_or(usize::MAX), VecDeque::new()));
    let mut was_there = false;
    loop {
        // Before the read: what is written until the end is then read for sure.
        let state = dir.state().map_err(|error| disk(&error))?;
        let over = match state {
            State::Ended(_) | State::Lost => true,
            // Removed; of what was open the rest can still be read.
            State::Absent => was_there,
            State::Prepared | State::Running => false,
        };
        was_there |= state != State::Absent;
        let (again, batch) = read_batch(reader).await?;
        reader = again;
        let at_end = batch.is_empty();
        let lines: Vec<LogLine> = match &mut tail {
            None => batch.into_iter().filter(wanted).collect(),
            Some((count, last)) => {
                for line in batch.into_iter().filter(wanted) {
                    last.push_back(line);
                    if last.len() > *count {
                        last.pop_front();
                    }
                }
                if !at_end {
                    continue;
                }
                let last = std::mem::take(last).into();
                tail = None;
                last
            }
        };
        for line in lines {
            if sink.send(line).await.is_err() {
                return Ok(());
            }
        }
        if at_end {
            if over || !options.follow {
                return Ok(());
            }
            tokio::select! {
                () = sink.closed() => return Ok(()),
                () = sleep(FOLLOW) => {}
            }
        }
    }
}

/// Shows what the process writes from now on, until it ends.
pub(crate) async fn show(dir: &TaskDir, output: &TaskOutput) -> Result<Result<Exit, Gone>, ControllerError> {
    let mut reader = Reader::new(&dir.log());
    let mut began = false;
    loop {
        // Before the read: what is written until the end is then read for sure.
        let state = dir.state().map_err(|error| disk(&error))?;
        let (again, batch) = read_batch(reader).await?;
        reader = again;
        let sent = if !batch.is_empty() {
            let lines = batch.into_iter().filter(|_| began);
            send_lines(lines, output).await
        } else if !began {
            // What was there before has been passed.
            began = true;
            output.send(Output::Started { stdin: false, tty: false }).await
        } else {
            match state {
                State::Ended(exit) => return Ok(Ok(exit)),
                State::Absent | State::Lost => return Err(fatal("the task is gone")),
                State::Prepared | State::Running => {}
            }
            tokio::select! {
                () = output.gone() => Err(Gone),
                () = sleep(FOLLOW) => Ok(()),
            }
        };
        if let Err(gone) = sent {
            return Ok(Err(gone));
        }
    }
}

/// The next lines of a log; none at its end for now.
async fn read_batch(mut reader: Reader) -> Result<(Reader, Vec<LogLine>), ControllerError> {
    let read = tokio::task::spawn_blocking(move || {
        let batch = reader.batch()?;
        Ok::<_, io::Error>((reader, batch))
    });
    let read = read.await.map_err(|error| fatal(format!("reading logs failed: {error}")))?;
    read.map_err(|error| fatal(format!("reading logs failed: {error}")))
}

/// Sends lines as they were written.
async fn send_lines(lines: impl Iterator<Item = LogLine>, output: &TaskOutput) -> Result<(), Gone> {
    for line in lines {
        let mut data = BytesMut::from(line.data.as_ref());
        data.extend_from_slice(b"\n");
        output.send_all(line.stream, data.freeze()).await?;
    }
    Ok(())
}
