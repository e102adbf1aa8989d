//! What lives from becoming leader to ceasing to be.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use swarm_api::Kind;
use swarm_store::{Commit, Store, View};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// What a broker knows in a term. It is plain state: nothing waits in it.
pub trait Book: Default + Send + 'static {
    /// Kinds of objects whose changes it is to hear of. Without any it hears of no commit.
    const KINDS: &'static [Kind];

    /// What callers are answered when this manager does not lead.
    fn not_running() -> Status;

    /// What callers are answered when the term has ended.
    fn ended() -> Status;

    /// Takes note of a commit that changed an object of [`Book::KINDS`].
    fn route(&mut self, commit: &Commit);

    /// The same from a view, after commits were missed.
    fn catch_up(&mut self, view: &View);

    /// Ends everything that is open.
    fn close_all(&mut self);
}

/// A time in which this manager leads, with the broker's book of it.
pub struct Term<B> {
    /// Tells terms apart, those of other managers too.
    pub id: String,
    store: Arc<Store>,
    book: Mutex<B>,
    closed: CancellationToken,
}

impl<B> std::fmt::Debug for Term<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Term")
            .field("id", &self.id)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl<B> Term<B> {
    /// The cluster's state.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The book, even if the term has ended: for what is to be taken back, or only looked at.
    pub fn book(&self) -> MutexGuard<'_, B> {
        self.book.lock()
    }

    /// The term has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Completes when the term ends.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl<B: Book> Term<B> {
    pub(crate) fn new(store: Arc<Store>) -> Term<B> {
        let (id, closed) = (swarm_api::id::random(), CancellationToken::new());
        Term { id, store, book: Mutex::default(), closed }
    }

    /// Runs `f` on the book.
    ///
    /// # Errors
    /// Those of `f`; [`Book::ended`] once the term has ended.
    pub fn with<R>(&self, f: impl FnOnce(&mut B) -> Result<R, Status>) -> Result<R, Status> {
        let mut book = self.book.lock();
        // Under the lock: whoever closes the term takes it too, so nothing is opened after that.
        if self.is_closed() {
            return Err(B::ended());
        }
        f(&mut book)
    }

    pub(crate) fn close(&self) {
        let mut book = self.book.lock();
        self.closed.cancel();
        book.close_all();
    }
}
