//! How far the slots of a replicated job are.

use std::collections::BTreeSet;

use super::Standing;

/// The slots of a replicated job that are not free, counted as they change: looking at all of them with every task
/// that ends would cost a long job the square of its length.
#[derive(Debug, Default)]
pub(super) struct Tally {
    active: BTreeSet<u64>,
    over: BTreeSet<u64>,
    /// Free slots below `next`.
    freed: BTreeSet<u64>,
    /// No slot from here on was ever given away by this tally.
    next: u64,
}

impl Tally {
    pub(super) fn set(&mut self, slot: u64, standing: Standing) {
        self.active.remove(&slot);
        self.over.remove(&slot);
        self.freed.remove(&slot);
        match standing {
            Standing::Active => drop(self.active.insert(slot)),
            Standing::Over => drop(self.over.insert(slot)),
            Standing::Free if slot < self.next => drop(self.freed.insert(slot)),
            Standing::Free => (),
        }
    }

    /// Number of slots that have a task.
    pub(super) fn active(&self) -> u64 {
        self.active.len() as u64
    }

    /// Gives away the lowest free slot below `total`.
    pub(super) fn take_free(&mut self, total: u64) -> Option<u64> {
        let slot = match self.freed.first().copied() {
            Some(slot) => slot,
            None => {
                while self.active.contains(&self.next) || self.over.contains(&self.next) {
                    self.next += 1;
                }
                self.next
            }
        };
        if slot >= total {
            return None;
        }
        self.next = self.next.max(slot + 1);
        self.set(slot, Standing::Active);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_slot_is_given_away() {
        let mut tally = Tally::default();
        tally.set(1, Standing::Active);
        tally.set(2, Standing::Over);
        assert_eq!([tally.take_free(5), tally.take_free(5)], [Some(0), Some(3)]);
        assert_eq!(tally.active(), 3);
        tally.set(1, Standing::Free);
        tally.set(4, Standing::Free);
        assert_eq!([tally.take_free(5), tally.take_free(5), tally.take_free(5)], [Some(1), Some(4), None]);
        assert_eq!(tally.active(), 4);
    }

    #[test]
    fn slots_beyond_the_total_count_and_are_never_given_away() {
        let mut tally = Tally::default();
        tally.set(u64::MAX, Standing::Active);
        assert_eq!((tally.take_free(1), tally.take_free(1), tally.active()), (Some(0), None, 2));
    }
}
