//! Start, run, stop.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use swarm_store::{Kinds, Received, Store, Subscription};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::error::Error;
use crate::term::{Book, Term};

/// The terms of a broker: one at a time, and none while its manager does not lead.
pub struct Terms<B> {
    store: Arc<Store>,
    current: ArcSwapOption<Term<B>>,
}

impl<B> std::fmt::Debug for Terms<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terms").field("running", &self.current.load().is_some()).finish_non_exhaustive()
    }
}

impl<B: Book> Terms<B> {
    /// No term yet.
    pub fn new(store: Arc<Store>) -> Terms<B> {
        Terms { store, current: ArcSwapOption::empty() }
    }

    /// The term that calls are to be served in.
    ///
    /// # Errors
    /// [`Book::not_running`] if there is none.
    pub fn current(&self) -> Result<Arc<Term<B>>, Status> {
        self.current.load_full().ok_or_else(B::not_running)
    }

    /// A term: until `cancel`, which is to be cancelled as soon as leadership is lost. When this returns, every call has
    /// been told to end.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`]; [`Error::StoreClosed`], unless the book follows no commits.
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), Error> {
        // Before anybody finds the term: what is opened in it misses no commit.
        let commits = (!B::KINDS.is_empty()).then(|| self.store.view_and_follow(Kinds::of(B::KINDS)).1);
        let term = Arc::new(Term::new(self.store.clone()));
        let idle = self.current.compare_and_swap(&None::<Arc<Term<B>>>, Some(term.clone()));
        if idle.is_some() {
            return Err(Error::AlreadyRunning);
        }
        // Whatever ends this future, dropping it included, ends the term.
        let _running = Running { terms: self, term: &term };
        tokio::select! {
            () = cancel.cancelled() => Ok(()),
            result = follow(&term, commits) => result,
        }
    }
}

/// Ends the term when it goes out of scope.
struct Running<'a, B: Book> {
    terms: &'a Terms<B>,
    term: &'a Term<B>,
}

impl<B: Book> Drop for Running<'_, B> {
    fn drop(&mut self) {
        self.terms.current.store(None);
        self.term.close();
    }
}

async fn follow<B: Book>(term: &Term<B>, commits: Option<Subscription>) -> Result<(), Error> {
    let Some(mut commits) = commits else { return std::future::pending().await };
    loop {
        match commits.next().await {
            Received::Commit(commit) => term.book().route(&commit),
            Received::Lagged(view) => term.book().catch_up(&view),
            Received::Closed => return Err(Error::StoreClosed),
        }
    }
}

#[cfg(test)]
mod tests {
    use swarm_api::Kind;
    use swarm_api::v1::{Node, Task};
    use swarm_store::{Commit, View};

    use super::*;

    #[derive(Default)]
    struct Heard {
        ids: Vec<String>,
        closed: bool,
    }

    impl Book for Heard {
        const KINDS: &'static [Kind] = &[Kind::Task];

        fn not_running() -> Status {
            Status::unavailable("not running")
        }

        fn ended() -> Status {
            Status::aborted("ended")
        }

        fn route(&mut self, commit: &Commit) {
            self.ids.extend(commit.events.iter().map(|event| event.id().to_owned()));
        }

        fn catch_up(&mut self, _: &View) {}

        fn close_all(&mut self) {
            self.closed = true;
        }
    }

    #[tokio::test]
    async fn a_term_hears_of_what_its_book_follows_and_nothing_is_opened_after_its_end() {
        let store = Store::local();
        let terms = Arc::new(Terms::<Heard>::new(store.clone()));
        assert_eq!(terms.current().unwrap_err().message(), "not running");
        let (running, cancel) = (terms.clone(), CancellationToken::new());
        let run = tokio::spawn({
            let cancel = cancel.clone();
            async move { running.run(cancel).await }
        });
        let term = loop {
            match terms.current() {
                Ok(term) => break term,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let twice = terms.run(CancellationToken::new()).await.unwrap_err();
        assert_eq!(twice.to_string(), "broker is already running");
        let node = Node { id: "n".to_owned(), ..Default::default() };
        let task = Task { id: "t".into(), ..Default::default() };
        store.update(|tx| tx.create(node.clone()).map(|_| ())).await.unwrap();
        store.update(|tx| tx.create(task.clone()).map(|_| ())).await.unwrap();
        while term.book().ids.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(term.with(|book| Ok(book.ids.clone())).unwrap(), ["t"]);
        cancel.cancel();
        run.await.unwrap().unwrap();
        assert!(term.is_closed() && term.book().closed);
        assert_eq!(term.with(|_| Ok(())).unwrap_err().message(), "ended");
        assert!(terms.current().is_err());
    }
}
