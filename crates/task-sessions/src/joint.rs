//! A session's two calls, joined: each one's answers are the other one's messages.

use std::sync::Arc;

use futures::{Stream, stream};
use swarm_api::swarmd::{ServeRequest, StdinEnd, TaskInput, TaskOutput, task_input, task_output};
use tonic::{Code, Status, Streaming};

use crate::book::End;
use crate::broker::Term;
use crate::error::status;

/// Longest text of a failure, in bytes: it travels in a header.
const MAX_TEXT: usize = 2048;

/// A session as whoever opened it has it. When it is dropped, the session is over; what came of it is on record then.
pub(crate) struct Opened {
    pub(crate) term: Arc<Term>,
    pub(crate) id: String,
    pub(crate) node_name: String,
    pub(crate) end: Arc<End>,
    /// Figures are no visit, and not for the record.
    pub(crate) figures: bool,
    /// What came of it, once that is known.
    pub(crate) outcome: Option<String>,
}

impl Opened {
    /// One message of the node, as it is passed on.
    fn take(&mut self, message: Result<Option<ServeRequest>, Status>) -> Result<TaskOutput, Status> {
        let result = match message {
            Ok(Some(ServeRequest { failure: Some(mut failure), .. })) => {
                failure.message.truncate(failure.message.floor_char_boundary(MAX_TEXT));
                match Code::from_i32(failure.code) {
                    // No failure has that one.
                    Code::Ok => Err(status::malformed(&self.node_name)),
                    code => Err(Status::new(code, failure.message)),
                }
            }
            Ok(Some(ServeRequest { output: Some(output), .. })) => Ok(output),
            Ok(Some(_)) => Err(status::malformed(&self.node_name)),
            Ok(None) | Err(_) => Err(status::node_lost(&self.node_name)),
        };
        if let Ok(TaskOutput { item: Some(task_output::Item::Ended(ended)) }) = &result {
            self.outcome = Some(format!("exit code {}", ended.code));
        }
        result
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.end.because(status::caller_gone());
        // A term that has ended has forgotten it already.
        let _ = self.term.with(|book| {
            book.close(&self.id);
            Ok(())
        });
        let outcome = self.outcome.as_deref().unwrap_or("the caller has gone");
        if self.figures {
            tracing::debug!(session.id = self.id, node = self.node_name, outcome, "task session ended");
        } else {
            tracing::info!(session.id = self.id, node = self.node_name, outcome, "task session ended");
        }
    }
}

/// What the task's node says, for whoever opened the session.
pub(crate) fn output(
    opened: Opened,
    messages: Streaming<ServeRequest>,
) -> impl Stream<Item = Result<TaskOutput, Status>> + Send {
    stream::unfold(Some((opened, messages)), |session| async move {
        let (mut opened, mut messages) = session?;
        let item = tokio::select! {
            // What has come is passed on first.
            biased;
            message = messages.message() => opened.take(message),
            reason = opened.end.reached() => Err(reason),
        };
        if let Err(status) = &item {
            opened.outcome = Some(status.message().to_owned());
        }
        let more = item.is_ok() && opened.outcome.is_none();
        Some((item, more.then_some((opened, messages))))
    })
}

/// What whoever opened the session sends, for the task's node.
pub(crate) fn input(
    end: Arc<End>,
    messages: Streaming<TaskInput>,
) -> impl Stream<Item = Result<TaskInput, Status>> + Send {
    stream::unfold(Some((end, Some(messages))), |session| async move {
        let (end, mut messages) = session?;
        let Some(stream) = &mut messages else {
            return Some((Err(end.reached().await), None));
        };
        let message = tokio::select! {
            message = stream.message() => message,
            reason = end.reached() => return Some((Err(reason), None)),
        };
        match message {
            Ok(Some(message)) => Some((Ok(message), Some((end, messages)))),
            // It has nothing more to say, and may still listen.
            Ok(None) => {
                let ended = TaskInput { item: Some(task_input::Item::StdinEnd(StdinEnd {})) };
                Some((Ok(ended), Some((end, None))))
            }
            // It has gone, or sends what is no message; in either case it is over.
            Err(error) => {
                end.because(error);
                Some((Err(end.reached().await), None))
            }
        }
    })
}
