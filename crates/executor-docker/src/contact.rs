//! The first contact with an engine. The daemon may be there long before it, and waits for it.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use swarm_agent::ControllerError;
use swarm_agent::memory::MemoryRoot;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use crate::client::Engine;
use crate::error::Error;
use crate::files;

/// Pauses between attempts. An attempt takes 10 s more where the engine does not answer at all.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How often the same trouble is told again.
const REMIND: Duration = Duration::from_secs(300);

/// What is known once the engine has answered.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    /// Where files for containers are, or why there can't be any.
    pub(crate) files: Result<MemoryRoot, String>,
}

/// How far it is.
#[derive(Debug, Clone)]
enum State {
    /// The first attempt is under way.
    Unknown,
    /// The last attempt failed, for this reason.
    Failed(Arc<str>),
    Made(Made),
}

/// Whether the engine has ever answered. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Contact {
    state: watch::Sender<State>,
    /// It was made, and nobody has looked since.
    news: Arc<Notify>,
}

impl Contact {
    pub(crate) fn new() -> Contact {
        Contact { state: watch::Sender::new(State::Unknown), news: Arc::default() }
    }

    /// One attempt.
    pub(crate) async fn attempt(&self, engine: &Engine) -> Result<(), Error> {
        if let Err(error) = engine.reach().await {
            self.state.send_replace(State::Failed(error.to_string().into()));
            return Err(error);
        }
        let files = files::root(engine).await;
        if let Err(reason) = &files {
            tracing::warn!(reason, "tasks with secrets or configs can't run in containers here");
        }
        self.state.send_replace(State::Made(Made { files }));
        self.news.notify_one();
        Ok(())
    }

    /// Tries until the engine answers, and says what is to be done meanwhile.
    pub(crate) async fn keep_trying(&self, engine: &Engine) {
        let mut pause = RETRY_MIN;
        let mut told: Option<(String, Instant)> = None;
        while let Err(error) = self.attempt(engine).await {
            let reason = error.to_string();
            if told.as_ref().is_none_or(|(before, at)| *before != reason || at.elapsed() > REMIND) {
                tracing::warn!(
                    reason,
                    "no containers run on this node until its engine answers: start it, or say with --engine-addr where it \
                     is (\"none\": this node is for native processes only)"
                );
                told = Some((reason, Instant::now()));
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
        if told.is_some() {
            tracing::info!(engine = engine.address, "the engine answers now");
        }
    }

    /// What is known, if the engine has answered.
    pub(crate) fn made(&self) -> Option<Made> {
        match &*self.state.borrow() {
            State::Made(made) => Some(made.clone()),
            _ => None,
        }
    }

    /// Waits until the engine has answered.
    pub(crate) async fn wait(&self) -> Made {
        let mut state = self.state.subscribe();
        loop {
            if let State::Made(made) = &*state.borrow_and_update() {
                return made.clone();
            }
            // The sender is ours.
            let _ = state.changed().await;
        }
    }

    /// Waits for the first attempt's outcome.
    ///
    /// # Errors
    /// [`ControllerError::Temporary`] while the engine has not answered.
    pub(crate) async fn outcome(&self) -> Result<Made, ControllerError> {
        let mut state = self.state.subscribe();
        loop {
            match &*state.borrow_and_update() {
                State::Unknown => {}
                State::Failed(reason) => return Err(ControllerError::Temporary(reason.to_string())),
                State::Made(made) => return Ok(made.clone()),
            }
            // The sender is ours.
            let _ = state.changed().await;
        }
    }

    /// Why there is none yet; `None` if there is, or if nobody knows.
    pub(crate) fn trouble(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Failed(reason) => Some(reason.to_string()),
            _ => None,
        }
    }

    /// Completes once after it was made, unless [`Contact::seen`] was called since.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }

    /// What there is to know is about to be looked at.
    pub(crate) fn seen(&self) {
        let _ = self.news.notified().now_or_never();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_waits_hears_of_the_contact_and_of_the_trouble() {
        let contact = Contact::new();
        assert!(contact.made().is_none() && contact.trouble().is_none());
        let engine = Engine::new("unix:///nonexistent/docker.sock", 1).unwrap();
        let error = contact.attempt(&engine).await.unwrap_err().to_string();
        assert!(error.contains("unix:///nonexistent/docker.sock"), "{error}");
        assert_eq!(contact.trouble().as_ref(), Some(&error));
        assert_eq!(contact.outcome().await.unwrap_err(), ControllerError::Temporary(error));

        contact.state.send_replace(State::Made(Made { files: Err("none".into()) }));
        contact.news.notify_one();
        assert_eq!(contact.wait().await.files, Err("none".into()));
        assert_eq!(contact.outcome().await.unwrap().files, Err("none".into()));
        assert!(contact.made().is_some() && contact.trouble().is_none());
        contact.news().await;
        contact.news.notify_one();
        contact.seen();
        let again = tokio::time::timeout(Duration::from_millis(10), contact.news()).await;
        assert!(again.is_err(), "it was seen");
    }
}
