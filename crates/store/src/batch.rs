//! Many small changes in as few log entries as fit.

use prost::Message as _;
use prost::encoding::encoded_len_varint;
use swarm_api::defaults::MAX_BATCH_BYTES;

use crate::store::Committed;
use crate::tx::action;
use crate::{Error, Event, Store, Tx};

/// What became of one item of a batch.
pub type Item<R, E> = Result<(R, Committed), E>;

impl Store {
    /// Runs `f` for each item, many items in one transaction: as many as stay below 1,179,648 encoded bytes
    /// (three quarters of what an entry can hold). Each item is atomic for itself: if `f` fails for it, its
    /// changes are undone and its error is returned, and the others go on.
    ///
    /// Returns one result per item, in their order. If an entry fails (lost leadership, …) all items in it get
    /// that error, and so do the items behind it, which were not tried. As with [`Store::update`], `f` may run
    /// again for an item.
    pub async fn batch<T, R, E, F>(&self, items: &[T], mut f: F) -> Vec<Item<R, E>>
    where
        T: Sync,
        F: FnMut(&mut Tx, &T) -> Result<R, E> + Send,
        R: Send,
        E: From<Error> + Send,
    {
        let mut results: Vec<Item<R, E>> = Vec::with_capacity(items.len());
        while results.len() < items.len() {
            let rest = &items[results.len()..];
            match self.update(|tx| Ok::<_, Error>(fill(tx, rest, &mut f))).await {
                Ok((part, committed)) => {
                    results.extend(part.into_iter().map(|item| item.map(|r| (r, committed))));
                }
                Err(error) => {
                    results.extend(rest.iter().map(|_| Err(E::from(error.clone()))));
                }
            }
        }
        results
    }
}

/// Runs items until the next one would make the entry too large. At least one is done.
fn fill<T, R, E: From<Error>>(
    tx: &mut Tx,
    items: &[T],
    f: &mut impl FnMut(&mut Tx, &T) -> Result<R, E>,
) -> Vec<Result<R, E>> {
    let mut results = Vec::new();
    let mut size = 0;
    for item in items {
        let events = tx.changes().len();
        let mut result = f(tx, item);
        let mut grown = size;
        if result.is_ok() {
            grown += tx.changes()[events..].iter().map(encoded_len).sum::<usize>();
            if grown > MAX_BATCH_BYTES {
                if size > 0 {
                    tx.undo(events);
                    break;
                }
                // Alone in its entry it may use all of it.
                if grown > swarm_api::defaults::MAX_TRANSACTION_BYTES - ID_BYTES {
                    result = Err(E::from(Error::TooLarge));
                }
            }
        }
        match result {
            Ok(_) => size = grown,
            Err(_) => tx.undo(events),
        }
        results.push(result);
        if size > MAX_BATCH_BYTES {
            break;
        }
    }
    results
}

/// Most bytes that the id of an entry takes.
const ID_BYTES: usize = 11;

/// Bytes that a change takes in an entry, its tag and length included.
fn encoded_len(event: &Event) -> usize {
    let len = action(event).encoded_len();
    1 + encoded_len_varint(len as u64) + len
}
