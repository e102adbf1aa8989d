//! Counts what is looked at, so that tests can tell what something costs without a clock.

use std::cell::Cell;

thread_local! {
    static LOOKED_AT: Cell<usize> = const { Cell::new(0) };
}

/// A task was taken up, or a node was asked for one.
pub(crate) fn count() {
    LOOKED_AT.set(LOOKED_AT.get() + 1);
}

/// How often that was since this was asked last.
pub(crate) fn take() -> usize {
    LOOKED_AT.take()
}
