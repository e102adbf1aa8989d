//! Which tasks must move for a spread to be even, as the scheduler understands it: outermost branches first, then
//! those inside, then nodes.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use swarm_api::v1::{Node, Service, Task, TaskState};
use swarm_api::{Shared, Text, extensions};
use swarm_placement::{Demand, FAILURE_LIMIT, Holding, NodeInfo};
use swarm_reconcile::Now;
use swarm_scheduler::Wishes;
use swarm_store::Tables;

use super::balance::Move;
use super::branches::{Branches, ROOT};
use crate::dirty::is_dirty;
use crate::place::{Place, by_place};
use crate::spec::{has_ended, is_live, may_run};

/// What is held on the nodes that take tasks now, whosever it is: made once for all services that are looked at.
#[derive(Debug, Default)]
pub(crate) struct Accounts(Vec<NodeInfo>);

impl Accounts {
    pub(crate) fn of(tables: &Tables) -> Accounts {
        let usable = tables.nodes().iter().filter(|n| n.is_usable());
        Accounts(usable.map(|node| account(tables, node, may_run)).collect())
    }
}

/// A task that is to move.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) place: Place,
    pub(crate) task: Text,
    /// The node to which it moves.
    pub(crate) to: Text,
}

/// What a look at the spread of a service has found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The tasks to move, in order.
    pub(crate) moves: VecDeque<Planned>,
    /// With these the spread is not even yet, and would be if tasks could move that do not run yet.
    pub(crate) waits: bool,
}

/// A node that takes tasks of the service.
struct Spot<'a> {
    info: Cow<'a, NodeInfo>,
    leaf: usize,
    /// Tasks of the service in that account that are wanted.
    of_service: u32,
    /// Tasks of the service that are wanted there.
    count: usize,
    /// Those that may move, the last of them first.
    movable: Vec<(Place, &'a Shared<Task>)>,
    /// Those that may move when they run.
    coming: usize,
    /// How often the service failed there lately.
    failures: usize,
}

/// What must move. Places in `at_work` are moving already. Only nodes that take tasks now count: what is on others is left
/// there.
pub(crate) fn look(
    now: &Now,
    tables: &Tables,
    accounts: &Accounts,
    service: &Service,
    at_work: &BTreeMap<Place, Move>,
) -> Found {
    let live = live_tasks(tables, service, at_work);
    let Some((_, sample)) = live.first().filter(|_| extensions::can_rebalance(&service.spec)) else {
        return Found::default();
    };
    let wishes = Wishes::of(sample);
    let mut spread = Spread::new(wishes, accounts);
    for task in tables.tasks().by_service(&service.id) {
        let failed = spread.wishes.is_failure(now, task);
        if let Some(spot) = spread.spot(&task.node_id) {
            spot.of_service += u32::from(may_run(task) && is_live(task));
            spot.failures += usize::from(failed);
        }
    }
    let mut waiting = 0;
    for (place, task) in &live {
        let Some(spot) = spread.spot(&task.node_id) else {
            waiting += usize::from(task.node_id.is_empty());
            continue;
        };
        spot.count += 1;
        let at_work = at_work.get(place);
        if at_work.is_none() && runs(task) && !is_dirty(tables, service, task) {
            spot.movable.push((place.clone(), task));
        } else {
            // What a move of ours comes to does not count: else those that land elsewhere would move for ever.
            spot.coming += usize::from(!runs(task) && at_work.is_none_or(|m| m.found));
        }
    }
    spread.begin();
    // Those that wait for a node will go where there are fewest.
    for _ in 0..waiting {
        spread.take(sample);
    }
    let mut moves = VecDeque::new();
    spread.even_out(ROOT, &mut moves);
    Found { moves, waits: spread.waits() }
}

/// The scheduler would put one more like this task on the node as it is now.
pub(super) fn still_fits(tables: &Tables, like: &Task, node: &str) -> bool {
    let Some(node) = tables.nodes().get(node).filter(|node| node.is_usable()) else { return false };
    // Those that come with this node and are not there yet count as well.
    let counts = |t: &Task| may_run(t) || (is_live(t) && !has_ended(t));
    let info = account(tables, node, counts);
    let of_service = tables.tasks().by_node(&node.id).filter(|t| t.service_id == like.service_id);
    let of_service = of_service.filter(|t| counts(t) && is_live(t)).count();
    Wishes::of(like).fit(&info, of_service as u32)
}

/// What is held on a node by those tasks that count.
fn account(tables: &Tables, node: &Shared<Node>, counts: impl Fn(&Task) -> bool) -> NodeInfo {
    let mut info = NodeInfo::new(Shared::clone(node));
    for task in tables.tasks().by_node(&node.id).filter(|t| counts(t)) {
        let generic = &task.assigned_generic_resources;
        info.add(Holding { active: is_live(task), ..Holding::of(task, generic) });
    }
    info
}

/// It runs and is meant to.
pub(super) fn runs(task: &Task) -> bool {
    task.status.state() == TaskState::Running && task.desired_state() == TaskState::Running
}

/// The tasks that are wanted, by place. Where one moves, the new one counts where it will be.
fn live_tasks<'a>(
    tables: &'a Tables,
    service: &Service,
    at_work: &BTreeMap<Place, Move>,
) -> Vec<(Place, &'a Shared<Task>)> {
    let mut tasks = Vec::new();
    for (place, all) in by_place(tables, service) {
        let mut live: Vec<_> = all.into_iter().filter(|t| is_live(t) && !has_ended(t)).collect();
        if at_work.contains_key(&place) {
            live.sort_by_key(|t| (t.meta.created_at.map(|at| (at.seconds, at.nanos)), t.id.clone()));
            live.drain(..live.len().saturating_sub(1));
        }
        tasks.extend(live.into_iter().map(|t| (place.clone(), t)));
    }
    tasks
}

struct Spread<'a> {
    wishes: Wishes,
    spots: Vec<Spot<'a>>,
    by_node: BTreeMap<&'a str, usize>,
    branches: Branches,
    /// Whose leaf it is.
    by_leaf: BTreeMap<usize, usize>,
}

impl<'a> Spread<'a> {
    fn new(wishes: Wishes, accounts: &'a Accounts) -> Spread<'a> {
        let mut branches = Branches::new();
        let mut known = BTreeMap::new();
        let mut spots = Vec::new();
        for info in &accounts.0 {
            let mut at = ROOT;
            for label in wishes.branches(info.node()) {
                at = *known.entry((at, label)).or_insert_with(|| branches.add(at));
            }
            let (leaf, info) = (branches.add(at), Cow::Borrowed(info));
            let (movable, count) = (Vec::new(), 0);
            spots.push(Spot { info, leaf, of_service: 0, count, movable, coming: 0, failures: 0 });
        }
        let by_node = accounts.0.iter().enumerate().map(|(at, info)| (info.node().id.as_str(), at)).collect();
        let by_leaf = spots.iter().enumerate().map(|(at, spot)| (spot.leaf, at)).collect();
        Spread { wishes, spots, by_node, branches, by_leaf }
    }

    fn spot(&mut self, node: &str) -> Option<&mut Spot<'a>> {
        self.by_node.get(node).map(|at| &mut self.spots[*at])
    }

    /// Everything that is there has been entered.
    fn begin(&mut self) {
        for at in 0..self.spots.len() {
            self.spots[at].movable.sort_by(|a, b| a.0.cmp(&b.0));
            self.enter(at);
        }
    }

    /// A node has more or less than before.
    fn enter(&mut self, at: usize) {
        let spot = &self.spots[at];
        let fits = spot.failures < FAILURE_LIMIT && self.wishes.fit(&spot.info, spot.of_service);
        let takes = fits.then(|| spot.info.active());
        self.branches.set(spot.leaf, spot.count, spot.movable.len(), takes);
    }

    /// A task comes to where the scheduler would put it.
    fn take(&mut self, task: &Task) {
        if let Some(leaf) = self.branches.taker(ROOT) {
            self.take_at(leaf, task);
        }
    }

    fn take_at(&mut self, leaf: usize, task: &Task) {
        let Some(at) = self.by_leaf.get(&leaf).copied() else { return };
        let spot = &mut self.spots[at];
        let info = spot.info.to_mut();
        let generic = info.claim(&Demand::of(task)).unwrap_or_default();
        info.add_claimed(Holding::of(task, &generic));
        spot.of_service += 1;
        spot.count += 1;
        self.enter(at);
    }

    /// Moves tasks until a branch is even, then those inside. What happens inside leaves it even: its own branches keep
    /// what they have, and no more of them can give or take than before.
    fn even_out(&mut self, branch: usize, moves: &mut VecDeque<Planned>) {
        while let Some((from, to)) = self.branches.uneven(branch) {
            let Some(at) = self.by_leaf.get(&from).copied() else { return };
            let Some((place, task)) = self.spots[at].movable.pop() else { return };
            self.spots[at].count -= 1;
            self.enter(at);
            self.take_at(to, task);
            let to = self.by_leaf.get(&to).map(|to| Text::from(&self.spots[*to].info.node().id));
            moves.push_back(Planned { place, task: task.id.clone(), to: to.unwrap_or_default() });
        }
        for child in self.branches.children(branch).to_vec() {
            self.even_out(child, moves);
        }
    }

    /// Whether more would move if those that do not run yet could.
    fn waits(&mut self) -> bool {
        for spot in self.spots.iter().filter(|spot| spot.coming > 0) {
            let fits = spot.failures < FAILURE_LIMIT && self.wishes.fit(&spot.info, spot.of_service);
            let takes = fits.then(|| spot.info.active());
            self.branches.set(spot.leaf, spot.count, spot.movable.len() + spot.coming, takes);
        }
        self.branches.is_uneven(ROOT)
    }
}
