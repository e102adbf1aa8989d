//! Linearizable reads: all that wait share one round, in which a quorum confirms the leader.

use std::collections::VecDeque;

use swarm_store::Error;
use tokio::sync::oneshot;

type Waiter = oneshot::Sender<Result<(), Error>>;

#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Not asked for yet.
    waiting: Vec<Waiter>,
    /// Rounds under way, oldest first.
    rounds: VecDeque<(u64, Vec<Waiter>)>,
    /// Confirmed: complete once this index is applied.
    confirmed: VecDeque<(u64, Vec<Waiter>)>,
    next: u64,
}

impl Reads {
    pub(super) fn add(&mut self, waiter: Waiter) {
        self.waiting.push(waiter);
    }

    /// Starts a round for all that wait; the number identifies it.
    pub(super) fn start_round(&mut self) -> Option<u64> {
        if self.waiting.is_empty() {
            return None;
        }
        self.next += 1;
        self.rounds.push_back((self.next, std::mem::take(&mut self.waiting)));
        Some(self.next)
    }

    /// A quorum confirmed a round when `index` was committed. Rounds before it are confirmed with it.
    pub(super) fn confirmed(&mut self, round: u64, index: u64) {
        while let Some((_, waiters)) = self.rounds.pop_front_if(|(number, _)| *number <= round) {
            self.confirmed.push_back((index, waiters));
        }
    }

    /// Entries up to `index` are applied.
    pub(super) fn applied(&mut self, index: u64) {
        while let Some((_, waiters)) = self.confirmed.pop_front_if(|(at, _)| *at <= index) {
            for waiter in waiters {
                let _ = waiter.send(Ok(()));
            }
        }
    }

    /// Nobody can be answered any more.
    pub(super) fn fail(&mut self, error: &Error) {
        let rounds = self.rounds.drain(..).chain(self.confirmed.drain(..)).flat_map(|(_, waiters)| waiters);
        for waiter in std::mem::take(&mut self.waiting).into_iter().chain(rounds) {
            let _ = waiter.send(Err(error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(reads: &mut Reads) -> oneshot::Receiver<Result<(), Error>> {
        let (reply, answer) = oneshot::channel();
        reads.add(reply);
        answer
    }

    #[test]
    fn a_read_waits_for_its_round_and_for_the_index() {
        let mut reads = Reads::default();
        let mut first = wait(&mut reads);
        let mut second = wait(&mut reads);
        let round = reads.start_round().unwrap();
        let mut later = wait(&mut reads);
        assert_eq!(reads.start_round(), Some(round + 1));
        reads.confirmed(round, 7);
        reads.applied(6);
        assert!(first.try_recv().is_err());
        reads.applied(7);
        assert_eq!(first.try_recv(), Ok(Ok(())));
        assert_eq!(second.try_recv(), Ok(Ok(())));
        assert!(later.try_recv().is_err());
        reads.fail(&Error::LostLeadership);
        assert_eq!(later.try_recv(), Ok(Err(Error::LostLeadership)));
        assert_eq!(reads.start_round(), None);
    }
}
