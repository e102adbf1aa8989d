//! Which tasks must move for a spread to be even, as the scheduler understands it: outermost branches first, then
//! those inside, then nodes.

use std::collections::{BTreeMap, BTreeSet};

use swarm_api::Shared;
use swarm_api::v1::{Service, Task, TaskState};
use swarm_placement::{Demand, Holding, NodeInfo};
use swarm_scheduler::Wishes;
use swarm_store::Tables;

use crate::dirty::is_dirty;
use crate::place::{Place, by_place};
use crate::spec::{is_live, may_run};

/// Most moves that are worked out at once.
const MOST: usize = 1_000;

/// A node that takes tasks of the service.
struct Spot<'a> {
    branches: Vec<&'a str>,
    info: NodeInfo,
    /// Tasks of the service in that account that are wanted.
    of_service: u32,
    /// Tasks of the service that are wanted there.
    count: usize,
    /// Those that may move, the last of them first.
    movable: Vec<(Place, &'a Shared<Task>)>,
    /// One more would fit.
    fits: bool,
}

/// The tasks to move, in order. Those in `moving` are on their way already. Only nodes that take tasks now count: what
/// is on others is left there.
pub(super) fn moves(tables: &Tables, service: &Service, moving: &BTreeSet<Place>) -> Vec<Place> {
    let places = by_place(tables, service);
    let mut tasks: Vec<(Place, &Shared<Task>)> = Vec::new();
    for (place, all) in places {
        let mut live: Vec<_> = all.into_iter().filter(|t| is_live(t)).collect();
        if moving.contains(&place) {
            // The new one counts where it will be.
            live.sort_by_key(|t| (t.meta.created_at.map(|at| (at.seconds, at.nanos)), t.id.clone()));
            live.drain(..live.len().saturating_sub(1));
        }
        tasks.extend(live.into_iter().map(|t| (place.clone(), t)));
    }
    let Some(sample) = tasks.first().map(|(_, task)| *task) else { return Vec::new() };
    let wishes = Wishes::of(sample);
    let mut spots: Vec<Spot<'_>> = Vec::new();
    let mut by_node = BTreeMap::new();
    for node in tables.nodes().iter().filter(|n| n.is_usable()) {
        by_node.insert(&node.id[..], spots.len());
        let (mut info, mut of_service) = (NodeInfo::new(node.clone()), 0);
        for task in tables.tasks().by_node(&node.id).filter(|t| may_run(t)) {
            let generic = &task.assigned_generic_resources;
            info.add(Holding { active: is_live(task), ..Holding::of(task, generic) });
            of_service += u32::from(is_live(task) && task.service_id == service.id);
        }
        let fits = wishes.fit(&info, of_service);
        let branches = wishes.branches(node);
        spots.push(Spot { branches, info, of_service, count: 0, movable: Vec::new(), fits });
    }
    let mut waiting = 0;
    for (place, task) in tasks {
        let Some(spot) = by_node.get(&task.node_id[..]).map(|at| &mut spots[*at]) else {
            waiting += usize::from(task.node_id.is_empty());
            continue;
        };
        spot.count += 1;
        let runs = task.status.state() == TaskState::Running && task.desired_state() == TaskState::Running;
        if runs && !moving.contains(&place) && !is_dirty(tables, service, task) {
            spot.movable.push((place, task));
        }
    }
    spots.iter_mut().for_each(|s| s.movable.sort_by(|a, b| a.0.cmp(&b.0)));
    let all: Vec<usize> = (0..spots.len()).collect();
    // Those that wait for a node will go where there are fewest.
    for _ in 0..waiting {
        if let Some(to) = emptiest(&spots, &all, 0) {
            spots[to].take(&wishes, sample);
        }
    }
    let mut moves = Vec::new();
    while moves.len() < MOST
        && let Some((from, to)) = uneven(&spots, &all, 0)
    {
        let Some((place, task)) = spots[from].movable.pop() else { break };
        spots[from].count -= 1;
        spots[to].take(&wishes, task);
        moves.push(place);
    }
    moves
}

impl Spot<'_> {
    fn take(&mut self, wishes: &Wishes, task: &Task) {
        let generic = self.info.claim(&Demand::of(task)).unwrap_or_default();
        self.info.add_claimed(Holding::of(task, &generic));
        self.of_service += 1;
        self.count += 1;
        self.fits = wishes.fit(&self.info, self.of_service);
    }
}

/// Splits spots by their branch at a level; a single part if there are no more levels.
fn parts(spots: &[Spot<'_>], at: &[usize], level: usize) -> Option<Vec<Vec<usize>>> {
    let mut parts = BTreeMap::<&str, Vec<usize>>::new();
    for spot in at {
        parts.entry(*spots[*spot].branches.get(level)?).or_default().push(*spot);
    }
    Some(parts.into_values().collect())
}

fn count(spots: &[Spot<'_>], at: &[usize]) -> usize {
    at.iter().map(|spot| spots[*spot].count).sum()
}

/// Where the next task would go.
fn emptiest(spots: &[Spot<'_>], at: &[usize], level: usize) -> Option<usize> {
    match parts(spots, at, level) {
        None => {
            let fit = at.iter().copied().filter(|s| spots[*s].fits);
            fit.min_by_key(|s| (spots[*s].count, spots[*s].info.active(), *s))
        }
        Some(parts) => {
            let fit = parts.iter().filter(|part| part.iter().any(|s| spots[*s].fits));
            emptiest(spots, fit.min_by_key(|part| count(spots, part))?, level + 1)
        }
    }
}

/// Where a task is to be taken from first.
fn fullest(spots: &[Spot<'_>], at: &[usize], level: usize) -> Option<usize> {
    let can = |s: &usize| !spots[*s].movable.is_empty();
    match parts(spots, at, level) {
        None => at.iter().copied().filter(can).max_by_key(|s| (spots[*s].count, std::cmp::Reverse(*s))),
        Some(parts) => {
            let movable = parts.iter().filter(|part| part.iter().any(can));
            fullest(spots, movable.max_by_key(|part| count(spots, part))?, level + 1)
        }
    }
}

/// From where to where a task must move, if the spread is uneven.
fn uneven(spots: &[Spot<'_>], at: &[usize], level: usize) -> Option<(usize, usize)> {
    let (from, to) = (fullest(spots, at, level)?, emptiest(spots, at, level)?);
    let Some(parts) = parts(spots, at, level) else {
        return (spots[from].count >= spots[to].count + 2).then_some((from, to));
    };
    let part_of = |spot: usize| parts.iter().find(|part| part.contains(&spot)).map_or(0, |p| count(spots, p));
    if part_of(from) >= part_of(to) + 2 {
        return Some((from, to));
    }
    parts.iter().find_map(|part| uneven(spots, part, level + 1))
}
