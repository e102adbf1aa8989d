//! Proposals under way: which entry of the log is which ticket, and which epochs are refused.

use std::collections::VecDeque;

use bytes::Bytes;
use swarm_store::Ticket;

#[derive(Debug)]
struct InFlight {
    index: u64,
    term: u64,
    ticket: Ticket,
}

/// Proposals that are in the log, but not applied yet.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    in_flight: VecDeque<InFlight>,
    /// Newest epoch that was seen.
    newest: u64,
    /// Proposals of this epoch and before are refused: one of them came to nothing, and those after it may build
    /// on it.
    refused: Option<u64>,
    /// Newest epoch of whose end the store was told.
    told: Option<u64>,
}

impl Proposals {
    /// Takes out what may be proposed. The tickets returned are the first refused ones of their epochs, for the
    /// store to be told.
    pub(super) fn admit(&mut self, queued: &mut Vec<(Ticket, Bytes)>, open: bool) -> Vec<Ticket> {
        let mut tell = Vec::new();
        queued.retain(|(ticket, _)| {
            self.newest = self.newest.max(ticket.epoch);
            if !open {
                self.refused = self.refused.max(Some(ticket.epoch));
            }
            let admitted = self.refused.is_none_or(|refused| ticket.epoch > refused);
            if !admitted {
                self.tell(*ticket, &mut tell);
            }
            admitted
        });
        tell
    }

    fn tell(&mut self, ticket: Ticket, tell: &mut Vec<Ticket>) {
        if self.told.is_none_or(|told| ticket.epoch > told) {
            self.told = Some(ticket.epoch);
            tell.push(ticket);
        }
    }

    /// The proposals were appended, the first as entry `first`.
    pub(super) fn appended(&mut self, first: u64, term: u64, tickets: impl Iterator<Item = Ticket>) {
        self.in_flight.extend((first..).zip(tickets).map(|(index, ticket)| InFlight { index, term, ticket }));
    }

    /// An entry is being applied: the ticket, if it is one of ours.
    pub(super) fn applied(&mut self, index: u64, term: u64) -> Option<Ticket> {
        while self.in_flight.front().is_some_and(|p| p.index < index) {
            self.in_flight.pop_front();
        }
        let own = self.in_flight.pop_front_if(|p| p.index == index)?;
        (own.term == term).then_some(own.ticket)
    }

    /// Everything under way is lost. Returns the first ticket of each epoch of whose end the store does not know.
    pub(super) fn lose(&mut self) -> Vec<Ticket> {
        // Transactions that are still to come were run before the store knew.
        self.refused = self.refused.max(Some(self.newest)).filter(|_| self.newest > 0);
        let mut tell = Vec::new();
        for lost in std::mem::take(&mut self.in_flight) {
            self.tell(lost.ticket, &mut tell);
        }
        tell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(epoch: u64, number: u64) -> Ticket {
        Ticket { epoch, number }
    }

    fn queued(tickets: &[(u64, u64)]) -> Vec<(Ticket, Bytes)> {
        tickets.iter().map(|(e, n)| (ticket(*e, *n), Bytes::new())).collect()
    }

    fn admit(proposals: &mut Proposals, tickets: &[(u64, u64)], open: bool) -> (Vec<u64>, Vec<u64>) {
        let mut queue = queued(tickets);
        let told = proposals.admit(&mut queue, open);
        (queue.iter().map(|(t, _)| t.number).collect(), told.iter().map(|t| t.number).collect())
    }

    #[test]
    fn after_a_refusal_the_rest_of_the_epoch_is_refused() {
        let mut proposals = Proposals::default();
        assert_eq!(admit(&mut proposals, &[(1, 1), (1, 2)], true), (vec![1, 2], vec![]));
        assert_eq!(admit(&mut proposals, &[(1, 3), (1, 4)], false), (vec![], vec![3]));
        // Open again, but these were run on top of what was refused.
        assert_eq!(admit(&mut proposals, &[(1, 5), (2, 6), (2, 7)], true), (vec![6, 7], vec![]));
    }

    #[test]
    fn each_refused_epoch_is_told_once() {
        let mut proposals = Proposals::default();
        assert_eq!(admit(&mut proposals, &[(1, 1), (2, 2), (2, 3)], false), (vec![], vec![1, 2]));
        assert_eq!(admit(&mut proposals, &[(2, 4), (3, 5)], false), (vec![], vec![5]));
    }

    #[test]
    fn own_entries_are_known_by_index_and_term() {
        let mut proposals = Proposals::default();
        proposals.appended(10, 3, (1..=3).map(|n| ticket(1, n)));
        assert_eq!(proposals.applied(9, 3), None);
        assert_eq!(proposals.applied(10, 3), Some(ticket(1, 1)));
        assert_eq!(proposals.applied(11, 4), None, "another leader's entry");
        assert_eq!(proposals.applied(12, 3), Some(ticket(1, 3)));
        assert!(proposals.in_flight.is_empty());
    }

    #[test]
    fn losing_leadership_ends_every_epoch_under_way() {
        let mut proposals = Proposals::default();
        admit(&mut proposals, &[(1, 1), (2, 2), (2, 3)], true);
        proposals.appended(5, 1, [ticket(1, 1), ticket(2, 2), ticket(2, 3)].into_iter());
        assert_eq!(proposals.lose(), [ticket(1, 1), ticket(2, 2)]);
        assert_eq!(proposals.applied(5, 1), None, "committed by the next leader, it is nobody's own");
        assert_eq!(admit(&mut proposals, &[(2, 4), (3, 5)], true), (vec![5], vec![]));
    }

    #[test]
    fn what_was_run_before_leadership_was_lost_is_refused_after_it_came_back() {
        let mut proposals = Proposals::default();
        admit(&mut proposals, &[(4, 1)], true);
        proposals.appended(5, 1, std::iter::once(ticket(4, 1)));
        proposals.applied(5, 1);
        assert_eq!(proposals.lose(), []);
        assert_eq!(admit(&mut proposals, &[(4, 2), (5, 3)], true), (vec![3], vec![2]));
    }
}
