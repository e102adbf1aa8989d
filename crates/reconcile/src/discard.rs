//! Giving back what is not needed any more, on a thread of its own.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use swarm_store::Commit;

/// Commits with fewer changes are given back at once: waking a thread would cost more.
const MANY: usize = 256;

/// Commits that wait to be given back, at most. One that finds no room is given back at once.
const QUEUE: usize = 64;

/// Takes commits that a [`Brain`](crate::Brain) has seen.
///
/// Where a commit changed much, whoever lets go of it last frees what it replaced: for tens of thousands of tasks that is a
/// quarter of what a brain's thread does otherwise.
#[derive(Debug)]
pub struct Discard {
    /// The last one seen: the brain has its tables until it sees another one.
    last: Option<Arc<Commit>>,
    queue: Option<SyncSender<Arc<Commit>>>,
}

impl Default for Discard {
    fn default() -> Discard {
        Discard::new()
    }
}

impl Discard {
    /// Starts a thread that ends with this. Without one, everything is given back at once.
    pub fn new() -> Discard {
        let (queue, received) = sync_channel::<Arc<Commit>>(QUEUE);
        let thread = std::thread::Builder::new().name("discard".to_owned());
        let started = thread.spawn(move || received.into_iter().for_each(drop));
        Discard { last: None, queue: started.is_ok().then_some(queue) }
    }

    /// The brain has taken in this commit.
    pub fn seen(&mut self, commit: Arc<Commit>) {
        let Some(before) = self.last.replace(commit) else { return };
        if before.events.len() >= MANY
            && let Some(queue) = &self.queue
        {
            // What comes back is dropped here.
            let _ = queue.try_send(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use std::time::{Duration, Instant};
    use swarm_api::v1::Task;
    use swarm_store::{Error, Received, Store};

    #[test]
    fn all_but_the_last_commit_are_given_back() {
        let store = Store::local();
        let (_, mut commits) = store.view_and_subscribe();
        let mut discard = Discard::new();
        let mut seen = Vec::new();
        for (n, tasks) in [(0, MANY), (1, 1), (2, MANY + 7), (3, 2)] {
            let written = block_on(store.update::<_, Error, _>(|tx| {
                for task in 0..tasks {
                    tx.create(Task { id: format!("{n}-{task}").into(), ..Default::default() })?;
                }
                Ok(())
            }));
            written.unwrap();
            let Some(Received::Commit(commit)) = commits.try_next() else { panic!("a commit") };
            seen.push(Arc::downgrade(&commit));
            discard.seen(commit);
        }
        // The store itself keeps none.
        let deadline = Instant::now() + Duration::from_secs(60);
        while seen[..3].iter().any(|commit| commit.strong_count() > 0) {
            assert!(Instant::now() < deadline, "a commit is kept");
            std::thread::yield_now();
        }
        assert_eq!(seen[3].strong_count(), 1);
        drop(discard);
        assert_eq!(seen[3].strong_count(), 0);
    }
}
