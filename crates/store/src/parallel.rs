//! Work on many objects, on two threads.

use std::cmp::Ordering;
use std::sync::LazyLock;
use std::sync::atomic::{self, AtomicBool};

use parking_lot::Mutex;
use rayon_core::{ThreadPool, ThreadPoolBuilder};

/// Work on fewer objects than this is not worth another thread.
pub(crate) const MANY: usize = 1024;

/// The other thread. It stays, as what it has of the allocator would have to be given back and taken again with each new one.
static OTHER: LazyLock<Option<ThreadPool>> = LazyLock::new(|| {
    ThreadPoolBuilder::new().num_threads(1).thread_name(|_| "store".to_owned()).build().ok()
});

/// Somebody has the other thread.
static TAKEN: AtomicBool = AtomicBool::new(false);

struct Taken;

impl Taken {
    /// Takes the other thread, unless somebody has it.
    fn new() -> Option<Taken> {
        (!TAKEN.swap(true, atomic::Ordering::Acquire)).then_some(Taken)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        TAKEN.store(false, atomic::Ordering::Release);
    }
}

/// Does both, at the same time if it is work on many objects and nobody else has the other thread: nobody waits for the
/// work of others.
pub(crate) fn both<A, B: Send>(
    objects: usize,
    a: impl FnOnce() -> A,
    b: impl FnOnce() -> B + Send,
) -> (A, B) {
    let taken = if objects < MANY { None } else { Taken::new() };
    let (Some(_taken), Some(other)) = (taken, OTHER.as_ref()) else { return (a(), b()) };
    // Whoever takes it does it.
    let b = Mutex::new(Some(b));
    let take = || b.lock().take();
    let mut theirs = None;
    let (a, own) = other.in_place_scope(|scope| {
        scope.spawn(|_| theirs = take().map(|b| b()));
        let a = a();
        // If it has not begun yet.
        (a, take().map(|b| b()))
    });
    match own.or(theirs) {
        Some(b) => (a, b),
        None => unreachable!("one of the two took it"),
    }
}

/// Two lists that are in order, as one.
pub(crate) fn merged<E: Copy>(a: Vec<E>, b: Vec<E>, order: impl Fn(&E, &E) -> Ordering) -> Vec<E> {
    if b.is_empty() {
        return a;
    }
    let mut merged = Vec::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (&a[..], &b[..]);
    while let (Some(x), Some(y)) = (a.first(), b.first()) {
        if order(y, x).is_lt() {
            merged.push(*y);
            b = &b[1..];
        } else {
            merged.push(*x);
            a = &a[1..];
        }
    }
    merged.extend_from_slice(a);
    merged.extend_from_slice(b);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_done_however_many_objects_there_are() {
        for objects in [1, MANY] {
            let mut own = vec![1];
            let (a, b) = both(objects, || own.push(2), || 3);
            assert_eq!((a, b, own), ((), 3, vec![1, 2]));
        }
    }

    #[test]
    fn one_within_another_or_beside_it_is_done_without_waiting() {
        let nested = || both(MANY, || both(MANY, || 1, || 2), || both(MANY, || 3, || 4));
        let expected = ((1, 2), (3, 4));
        assert_eq!(nested(), expected);
        std::thread::scope(|scope| {
            let others: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..200).all(|_| nested() == expected))).collect();
            assert!(others.into_iter().all(|other| other.join().unwrap()));
        });
    }

    #[test]
    fn a_panic_of_either_is_passed_on_and_leaves_the_thread_to_others() {
        let panics = |first: bool| {
            std::panic::catch_unwind(|| both(MANY, || assert!(!first, "first"), || assert!(first, "second")))
        };
        for first in [true, false] {
            assert!(panics(first).is_err());
            assert_eq!(both(MANY, || 1, || 2), (1, 2));
        }
    }

    #[test]
    fn two_lists_in_order_become_one() {
        assert_eq!(merged(vec![1, 4, 5], vec![0, 4, 9], u8::cmp), [0, 1, 4, 4, 5, 9]);
        assert_eq!(merged(vec![1], vec![], u8::cmp), [1]);
        assert_eq!(merged(vec![], vec![1], u8::cmp), [1]);
    }
}
