//! A call of somebody who wants lines.

use std::sync::Arc;

use swarm_api::v1::{SubscribeLogsMessage, SubscribeLogsRequest, SubscriptionMessage};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use crate::book::Progress;
use crate::broker::Term;
use crate::error::status;
use crate::mail::Mail;
use crate::selection::Selection;

/// A subscription, for as long as somebody takes from it.
pub(crate) struct Subscriber {
    term: Arc<Term>,
    id: String,
    mail: Arc<Mail>,
    ended: bool,
}

impl Subscriber {
    /// # Errors
    /// INVALID_ARGUMENT, or RESOURCE_EXHAUSTED if too many are open.
    pub(crate) fn open(term: Arc<Term>, request: SubscribeLogsRequest) -> Result<Subscriber, Status> {
        let selector = request.selector.ok_or_else(status::no_selector)?;
        if selector.service_ids.is_empty() && selector.node_ids.is_empty() && selector.task_ids.is_empty() {
            return Err(status::empty_selector());
        }
        let options = request.options.unwrap_or_default();
        if options.tail > 0 {
            return Err(status::tail_from_start());
        }
        if let Some(stream) = options.streams.iter().find(|stream| !(0..=2).contains(*stream)) {
            return Err(status::unknown_stream(*stream));
        }
        if options.since.is_some_and(|since| !(0..1_000_000_000).contains(&since.nanos)) {
            return Err(status::bad_since());
        }
        let id = swarm_api::id::random();
        let selection = Selection::new(&selector);
        let message = SubscriptionMessage {
            id: id.clone(),
            selector: Some(selector),
            // Some agents can't do without.
            options: Some(options),
            close: false,
        };
        let mail = term.with(|book| {
            // Commits that are routed after this view do no harm; one that was routed before it is in it.
            book.subscribe(message, selection, &term.store().view(), Instant::now())
        })?;
        tracing::debug!(subscription.id = id, "logs subscribed to");
        Ok(Subscriber { term, id, mail, ended: false })
    }

    /// The next message; `None` at the end of a subscription that is complete.
    pub(crate) async fn next(&mut self) -> Option<Result<SubscribeLogsMessage, Status>> {
        if self.ended {
            return None;
        }
        loop {
            // Before the look into the mail: what came before the end is there then.
            let progress = match self.term.is_closed() {
                true => Progress::Ended(Err(status::cancelled())),
                false => self.term.book().progress(&self.id, Instant::now()),
            };
            if let Some(messages) = self.mail.take() {
                return Some(Ok(SubscribeLogsMessage { messages }));
            }
            let until = match progress {
                Progress::Open(until) => until,
                Progress::Ended(result) => {
                    self.ended = true;
                    return result.err().map(Err);
                }
            };
            let time_is_over = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.mail.changed() => {}
                () = time_is_over => {}
                () = self.term.closed() => {}
            }
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        tracing::debug!(subscription.id = self.id, "logs unsubscribed from");
        self.term.book().unsubscribe(&self.id);
    }
}
