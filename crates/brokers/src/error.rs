//! Errors.

/// Why a broker does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// [`Terms::run`](crate::Terms::run) was called while another call of it is under way.
    #[error("broker is already running")]
    AlreadyRunning,
    /// The store was closed.
    #[error("the store is closed")]
    StoreClosed,
}
