//! Handshakes in progress: each in its own task, so that a silent client holds up nobody.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};

/// A client that does not finish its handshake in this time is dropped.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at a time. Beyond, connections wait in the kernel's queue.
const MAXIMUM: usize = 1024;
/// After a failed accept (out of file descriptors, mostly).
const PAUSE: Duration = Duration::from_millis(100);

/// Owns the tasks: they end with it.
pub(super) struct Handshakes<S> {
    tasks: JoinSet<Option<S>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<S: Send + 'static> Handshakes<S> {
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new(), pause: None }
    }

    /// The next finished handshake. `accept` takes a connection from the listener and gives its handshake, which has
    /// logged its failure when it ends with `None`.
    pub(super) fn poll_next<H>(
        &mut self,
        cx: &mut Context<'_>,
        mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<H>>,
    ) -> Poll<S>
    where
        H: Future<Output = Option<S>> + Send + 'static,
    {
        loop {
            while let Poll::Ready(Some(done)) = self.tasks.poll_join_next(cx) {
                if let Ok(Some(stream)) = done {
                    return Poll::Ready(stream);
                }
            }
            if self.tasks.len() >= MAXIMUM {
                return Poll::Pending;
            }
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(accept(cx)) {
                Ok(handshake) => {
                    self.tasks.spawn(async move {
                        tokio::time::timeout(TIMEOUT, handshake).await.unwrap_or_else(|_| {
                            tracing::debug!("a client did not finish its handshake in time");
                            None
                        })
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed; trying again");
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}
