//! A proposer without raft, for tests of this and other crates: it commits what is proposed, in order, on a
//! thread of its own, and can misbehave in every way that raft can.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::{Error, Lost, Proposer, StateMachine, Store, Ticket};

/// Proposals that are applied together at most.
const TOGETHER: usize = 3;

enum Op {
    Propose(Ticket, Bytes),
    Foreign(Bytes),
    Barrier(oneshot::Sender<Result<(), Error>>),
    Refuse,
    Leadership { begins: bool, survivors: usize },
}

#[derive(Default)]
struct State {
    /// What is to be done, oldest first.
    ops: VecDeque<Op>,
    /// Proposals wait in the queue.
    held: bool,
    /// Proposals that may pass though held.
    steps: usize,
    /// A proposal to be refused next, and so its epoch.
    refuse: bool,
    /// Queue full: `propose` itself fails.
    full: bool,
    drops: usize,
    leader: bool,
    /// Highest epoch whose queued proposals are refused.
    dead: u64,
    /// Highest epoch that is not even queued.
    door: u64,
    /// Highest epoch seen.
    epoch: u64,
    /// Every entry; an empty one changes nothing.
    log: Vec<Bytes>,
    /// How often proposals were taken from the queue.
    turn: u64,
    /// Something is being done outside the lock.
    busy: bool,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// See the module.
pub struct LoopbackProposer {
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for LoopbackProposer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoopbackProposer").field("entries", &self.log().len()).finish_non_exhaustive()
    }
}

impl LoopbackProposer {
    /// A store that is led by the proposer returned.
    pub fn store() -> (Arc<Store>, Arc<LoopbackProposer>) {
        let store = Store::new();
        let proposer = LoopbackProposer::start(store.clone());
        store.attach(proposer.clone());
        proposer.lead();
        (store, proposer)
    }

    /// Starts without leadership. The thread keeps `machine` only weakly.
    pub fn start(machine: Arc<dyn StateMachine>) -> Arc<LoopbackProposer> {
        let shared = Arc::new(Shared::default());
        let worker = std::thread::spawn({
            let (shared, machine) = (shared.clone(), Arc::downgrade(&machine));
            move || {
                while let Some((op, index)) = shared.next() {
                    if let Some(machine) = machine.upgrade() {
                        shared.run(op, index, &*machine);
                    }
                    shared.state.lock().busy = false;
                    shared.changed.notify_all();
                }
            }
        });
        Arc::new(LoopbackProposer { shared, worker: Mutex::new(Some(worker)) })
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.shared.state.lock());
        self.shared.changed.notify_all();
    }

    fn wait(&self, mut until: impl FnMut(&State) -> bool) {
        let mut state = self.shared.state.lock();
        while !until(&state) {
            self.shared.changed.wait(&mut state);
        }
    }

    /// Begins leadership and waits for it: an empty entry first, as raft does.
    pub fn lead(&self) {
        self.change(|state| state.ops.push_back(Op::Leadership { begins: true, survivors: 0 }));
        self.settle();
    }

    /// Ends leadership and waits for it. What is queued is lost, but the first `survivors` of it are in the
    /// log of the next leader and are applied as foreign entries.
    pub fn lose_leadership(&self, survivors: usize) {
        self.change(|state| state.ops.push_front(Op::Leadership { begins: false, survivors }));
        self.wait(|state| !state.leader && !state.busy);
    }

    /// Keeps proposals in the queue from now on.
    pub fn hold(&self) {
        self.change(|state| state.held = true);
    }

    /// Commits what was held, and goes on.
    pub fn release(&self) {
        self.change(|state| (state.held, state.steps) = (false, 0));
    }

    /// Lets this many proposals pass though they are held.
    pub fn step(&self, proposals: usize) {
        self.change(|state| state.steps += proposals);
    }

    /// Refuses the oldest proposal that is queued (or the next that comes), and so all behind it.
    pub fn refuse_next(&self) {
        self.change(|state| {
            state.ops.push_front(Op::Refuse);
        });
    }

    /// While it is so, `propose` itself says "dropped".
    pub fn set_full(&self, full: bool) {
        self.change(|state| state.full = full);
    }

    /// Waits until `propose` itself has said "dropped" this often.
    pub fn wait_for_drops(&self, drops: usize) {
        self.wait(|state| state.drops >= drops);
    }

    /// Applies an entry of somebody else, ahead of what is queued.
    pub fn foreign(&self, data: Bytes) {
        self.change(|state| state.ops.push_front(Op::Foreign(data)));
    }

    /// Waits until this many proposals are queued.
    pub fn wait_for_queue(&self, proposals: usize) {
        self.wait(|state| state.ops.iter().filter(|op| matches!(op, Op::Propose(..))).count() >= proposals);
    }

    /// Waits until somebody waits at a read barrier. It passes with what is held.
    pub fn wait_for_barrier(&self) {
        self.wait(|state| state.ops.iter().any(|op| matches!(op, Op::Barrier(_))));
    }

    /// Waits until there is nothing to do but what is held.
    pub fn settle(&self) {
        self.wait(|state| !state.busy && state.ready().is_none());
    }

    /// Every entry so far; the first has index 1. An empty one changes nothing.
    pub fn log(&self) -> Vec<Bytes> {
        self.shared.state.lock().log.clone()
    }
}

impl State {
    /// Position of the next thing that can be done.
    fn ready(&self) -> Option<usize> {
        let proposals_pass = !self.held || self.steps > 0;
        self.ops.iter().position(|op| match op {
            Op::Propose(ticket, _) => proposals_pass || ticket.epoch <= self.dead,
            Op::Barrier(_) => !self.held,
            Op::Refuse => self.ops.iter().any(|op| matches!(op, Op::Propose(..))),
            Op::Foreign(_) | Op::Leadership { .. } => true,
        })
    }
}

impl Shared {
    /// The next thing to do, with the index of the last entry.
    fn next(&self) -> Option<(Op, u64)> {
        let mut state = self.state.lock();
        loop {
            if state.stop {
                return None;
            }
            if let Some(op) = state.ready().and_then(|at| state.ops.remove(at)) {
                state.busy = true;
                let index = state.log.len() as u64;
                return Some((op, index));
            }
            self.changed.wait(&mut state);
        }
    }

    fn append(&self, data: Bytes) {
        self.state.lock().log.push(data);
    }

    fn run(&self, op: Op, index: u64, machine: &dyn StateMachine) {
        match op {
            Op::Propose(ticket, data) => {
                let mut synced = Vec::new();
                {
                    let mut state = self.state.lock();
                    if ticket.epoch <= state.dead || !state.leader {
                        return; // the store knows
                    }
                    state.turn += 1;
                    state.steps = state.steps.saturating_sub(1);
                    if std::mem::take(&mut state.refuse) {
                        state.dead = ticket.epoch;
                        drop(state);
                        return machine.lost(ticket, Lost::Dropped);
                    }
                    synced.push((index + 1, data, ticket));
                    // As raft writes what has come meanwhile in one sync.
                    while synced.len() < TOGETHER && !state.held {
                        let next = state.ops.pop_front_if(
                            |op| matches!(op, Op::Propose(next, _) if next.epoch == ticket.epoch),
                        );
                        let Some(Op::Propose(ticket, data)) = next else { break };
                        synced.push((index + 1 + synced.len() as u64, data, ticket));
                    }
                    state.log.extend(synced.iter().map(|(_, data, _)| data.clone()));
                }
                machine.apply_own(synced);
            }
            Op::Foreign(data) => {
                self.append(data.clone());
                machine.apply_all(vec![(index + 1, data)]);
            }
            Op::Barrier(done) => {
                let leader = self.state.lock().leader;
                let _ = done.send(if leader { Ok(()) } else { Err(Error::LostLeadership) });
            }
            Op::Refuse => {
                let mut state = self.state.lock();
                state.refuse = true;
                if state.held {
                    state.steps += 1;
                }
            }
            Op::Leadership { begins: true, .. } => {
                self.append(Bytes::new());
                machine.advance(index + 1);
                self.state.lock().leader = true;
                machine.leadership(true);
            }
            Op::Leadership { begins: false, survivors } => {
                let mut lost = Vec::new();
                {
                    let mut state = self.state.lock();
                    state.leader = false;
                    let dead = state.dead;
                    state.ops.retain(|op| match op {
                        Op::Propose(ticket, data) => {
                            if ticket.epoch > dead {
                                lost.push((*ticket, data.clone()));
                            }
                            false
                        }
                        _ => true,
                    });
                    state.dead = state.epoch;
                }
                if let Some((first, _)) = lost.first() {
                    machine.lost(*first, Lost::LostLeadership);
                }
                machine.leadership(false);
                for (position, (_, data)) in lost.into_iter().take(survivors).enumerate() {
                    self.append(data.clone());
                    let _ = machine.apply(index + 1 + position as u64, data, None);
                }
            }
        }
    }
}

impl Proposer for LoopbackProposer {
    fn propose(&self, ticket: Ticket, data: Bytes) -> Result<(), Error> {
        let mut state = self.shared.state.lock();
        if state.stop {
            return Err(Error::Stopped);
        }
        if !state.leader {
            return Err(Error::LostLeadership);
        }
        state.epoch = state.epoch.max(ticket.epoch);
        if state.full || ticket.epoch <= state.door.max(state.dead) {
            state.door = state.door.max(ticket.epoch);
            state.drops += 1;
            drop(state);
            self.shared.changed.notify_all();
            return Err(Error::Dropped);
        }
        state.ops.push_back(Op::Propose(ticket, data));
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn turn(&self) -> u64 {
        self.shared.state.lock().turn
    }

    fn commit_index(&self) -> u64 {
        self.shared.state.lock().log.len() as u64
    }

    fn id_prefix(&self) -> u16 {
        0x4242
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<(), Error>> {
        let (done, barrier) = oneshot::channel();
        self.change(|state| state.ops.push_back(Op::Barrier(done)));
        async move { barrier.await.unwrap_or(Err(Error::Stopped)) }.boxed()
    }
}

impl Drop for LoopbackProposer {
    fn drop(&mut self) {
        self.change(|state| state.stop = true);
        if let Some(worker) = self.worker.lock().take()
            && worker.thread().id() != std::thread::current().id()
        {
            let _ = worker.join();
        }
    }
}
