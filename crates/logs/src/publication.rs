//! A call in which a node publishes for one subscription.

use std::sync::Arc;

use swarm_api::log_lines::RawLogMessage;
use tokio::time::Instant;
use tonic::Status;

use crate::book::{Begun, Outcome};
use crate::broker::Term;
use crate::error::status;

/// The call from its first message on. When it is dropped without an end, its connection was lost.
pub(crate) struct Publication {
    term: Arc<Term>,
    node_id: String,
    subscription_id: String,
    begun: Begun,
    delivered: bool,
    outcome: Option<Outcome>,
}

impl Publication {
    /// # Errors
    /// NOT_FOUND if nothing is wanted of this node under this id.
    pub(crate) fn begin(
        term: Arc<Term>,
        node_id: &str,
        subscription_id: String,
    ) -> Result<Publication, Status> {
        let begun = term.with(|book| book.begin(node_id, &subscription_id))?;
        let node_id = node_id.to_owned();
        Ok(Publication { term, node_id, subscription_id, begun, delivered: false, outcome: None })
    }

    pub(crate) fn subscription_id(&self) -> &str {
        &self.subscription_id
    }

    /// Passes lines on, once the subscriber has room for them.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, PERMISSION_DENIED for lines of another node; why the call is over.
    pub(crate) async fn publish(&mut self, mut lines: Vec<RawLogMessage>) -> Result<(), Status> {
        for line in &lines {
            let line = line.read().map_err(|_| status::malformed())?;
            if line.node_id != self.node_id {
                return Err(status::foreign_node(&self.node_id, line.node_id));
            }
        }
        let room = tokio::select! {
            room = self.begun.mail.room(&lines) => room.ok_or_else(status::cancelled)?,
            status = self.over() => return Err(status),
        };
        let mut seen = self.begun.seen.lock();
        // Under the lock: a call that takes this one's place begins with what is noted there.
        if self.begun.cancel.is_cancelled() {
            return Err(status::superseded());
        }
        lines.retain(|line| line.read().is_ok_and(|line| seen.is_new(&line)));
        self.delivered |= !lines.is_empty();
        room.put(lines);
        Ok(())
    }

    /// Completes when nobody wants more of this call, and says why.
    pub(crate) async fn over(&self) -> Status {
        tokio::select! {
            () = self.begun.mail.gone() => status::cancelled(),
            () = self.begun.cancel.cancelled() => status::superseded(),
        }
    }

    /// The node has sent everything.
    pub(crate) fn complete(mut self) {
        self.outcome = Some(Outcome::Complete);
    }

    /// The call ends with this error, which the subscriber hears of.
    pub(crate) fn refuse(mut self, error: Status) -> Status {
        self.outcome = Some(Outcome::Refused(error.message().to_owned()));
        error
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or(Outcome::Broken { delivered: self.delivered });
        tracing::debug!(
            node.id = self.node_id,
            subscription.id = self.subscription_id,
            ?outcome,
            "published"
        );
        let mut book = self.term.book();
        book.finish(&self.node_id, &self.subscription_id, self.begun.number, outcome, Instant::now());
    }
}
