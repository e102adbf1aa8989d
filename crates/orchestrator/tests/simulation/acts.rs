//! What happens in the world: a plan made from a seed alone. Every step carries its own chance, so that a plan from
//! which steps are taken away still means the same in what is left.

use crate::dice::Dice;

/// Something that somebody else than the brain does. Numbers choose among what there is then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    CreateService {
        shape: u64,
    },
    RemoveService {
        which: u64,
    },
    Scale {
        which: u64,
        to: u64,
    },
    /// So many tasks of a job at once.
    Concurrent {
        which: u64,
        to: u64,
    },
    /// A new image: `v3` is never found, and every other task of `v4` fails.
    Image {
        which: u64,
        version: u64,
    },
    /// The same again, with new tasks.
    Force {
        which: u64,
    },
    /// Another shape in all that is not the mode.
    Reshape {
        which: u64,
        shape: u64,
    },
    /// A service is to wait for another one before it starts, or for nobody.
    Depend {
        which: u64,
        on: u64,
        how: u64,
    },
    RollBack {
        which: u64,
    },
    Rebalance {
        which: u64,
    },
    /// The node is cut off, and its tasks run on.
    Down {
        which: u64,
    },
    Ready {
        which: u64,
    },
    Availability {
        which: u64,
        to: u64,
    },
    Zone {
        which: u64,
        to: u64,
    },
    Resize {
        which: u64,
        size: u64,
    },
    AddNode,
    RemoveNode {
        which: u64,
    },
    /// A running task ends: `how` of them complete.
    End {
        which: u64,
        how: u64,
    },
    DeleteTask {
        which: u64,
    },
    /// A container that runs on a node wants a network: a task without a service.
    Attach {
        which: u64,
    },
    /// From now on the node's agent says what it likes, or is honest again.
    Lie {
        which: u64,
    },
    /// One less than this.
    HistoryLimit {
        to: u64,
    },
    /// Tasks may take the place of others, or may not.
    Preemption {
        to: u64,
    },
    /// The leader is lost; so many of its transactions that are under way are still written. The next one's wall clock is
    /// so many seconds ahead of the true time.
    NewLeader {
        written: u64,
        ahead: u64,
    },
    /// A day in which no agent says anything: nodes that are down are given up.
    Day,
    /// The store refuses what is decided next.
    Refuse,
    /// The leader missed commits.
    Lag,
}

impl Act {
    /// Its numbers: the smaller they are, the simpler it is.
    pub(crate) fn numbers(&mut self) -> Vec<&mut u64> {
        use Act::*;
        match self {
            CreateService { shape } => vec![shape],
            RemoveService { which }
            | Force { which }
            | RollBack { which }
            | Rebalance { which }
            | Down { which }
            | Ready { which }
            | RemoveNode { which }
            | DeleteTask { which }
            | Attach { which }
            | Lie { which } => vec![which],
            Scale { which, to }
            | Concurrent { which, to }
            | Availability { which, to }
            | Zone { which, to }
            | Image { which, version: to }
            | Reshape { which, shape: to }
            | Resize { which, size: to }
            | End { which, how: to }
            | NewLeader { written: which, ahead: to } => vec![which, to],
            Depend { which, on, how } => vec![which, on, how],
            HistoryLimit { to } | Preemption { to } => vec![to],
            AddNode | Day | Refuse | Lag => Vec::new(),
        }
    }
}

/// One step: what happens, what agents do, and how far the brain gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) act: Option<Act>,
    /// Chance of the agents; none: they all are slow.
    pub(crate) agents: Option<u64>,
    /// Transactions that are written after it, of those under way.
    pub(crate) writes: u64,
    /// Milliseconds that pass.
    pub(crate) pass: u64,
}

impl Step {
    /// More transactions than ever are under way.
    pub(crate) const ALL: u64 = 9;
}

/// A history before it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Nodes in the beginning.
    pub(crate) nodes: u64,
    pub(crate) steps: Vec<Step>,
}

impl Plan {
    /// Whether the cluster is a large one.
    pub(crate) fn is_large(&self) -> bool {
        self.nodes > 9
    }
}

/// The plan of a seed; each thirtieth is of a large cluster.
pub(crate) fn plan(seed: u64, length: usize) -> Plan {
    let mut dice = Dice::new(seed);
    let large = seed % 30 == 9;
    let steps = (0..length).map(|n| step(&mut dice, n, large)).collect();
    Plan { nodes: if large { 25 } else { 5 }, steps }
}

fn step(dice: &mut Dice, n: usize, large: bool) -> Step {
    let act = if n < 2 {
        Some(Act::CreateService { shape: dice.next() })
    } else {
        dice.one_in(2).then(|| act(dice, large))
    };
    Step {
        act,
        agents: (!dice.one_in(3)).then(|| dice.next()),
        writes: dice.pick([0, 1, Step::ALL, Step::ALL, Step::ALL]),
        pass: dice.pick([0, 0, 100, 2_000, 7_000]),
    }
}

fn act(dice: &mut Dice, large: bool) -> Act {
    let which = dice.next();
    match dice.roll(52) {
        0..=2 => Act::CreateService { shape: dice.next() },
        3 => Act::RemoveService { which },
        4..=6 => Act::Scale { which, to: dice.roll(if large { 80 } else { 8 }) as u64 },
        7..=12 => Act::Image { which, version: dice.roll(5) as u64 },
        13..=14 => Act::Reshape { which, shape: dice.next() },
        15..=16 => Act::RollBack { which },
        17..=19 => Act::Down { which },
        20..=23 => Act::Ready { which },
        24..=25 => Act::Availability { which, to: dice.roll(3) as u64 },
        26 => Act::Zone { which, to: dice.roll(3) as u64 },
        27 => Act::Resize { which, size: dice.pick([2, 4, 9]) },
        28 => Act::AddNode,
        29 => Act::RemoveNode { which },
        30..=34 => Act::End { which, how: dice.next() },
        35 => Act::DeleteTask { which },
        36 => Act::Lie { which },
        37 => Act::HistoryLimit { to: dice.roll(5) as u64 },
        38..=39 => Act::NewLeader { written: dice.roll(4) as u64, ahead: dice.pick([0, 0, 0, 1, 30, 300]) },
        40 => Act::Refuse,
        41 => Act::Rebalance { which },
        42..=44 => Act::Depend { which, on: dice.next(), how: dice.next() },
        45 => Act::Force { which },
        46 => Act::Concurrent { which, to: dice.roll(4) as u64 },
        47 => Act::Attach { which },
        48 => Act::Preemption { to: dice.roll(2) as u64 },
        49 if dice.one_in(4) => Act::Day,
        _ => Act::Lag,
    }
}
