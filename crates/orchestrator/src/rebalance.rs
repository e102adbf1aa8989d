//! Rebalancing: moves tasks of replicated services to nodes that came or returned, as few as restore an even spread,
//! at the pace of the service's updates (decisions 0071 and 0110). A service asks for it by a label; an operator by a request,
//! which stands in the service until it is done.

mod balance;
mod branches;
mod spread;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swarm_api::Object;
use swarm_api::extensions::{self, REBALANCE, REBALANCE_NOW};
use swarm_api::v1::{Node, Service, Task};
use swarm_reconcile::{Ctx, Now};
use swarm_store::{Event, Tables};

use crate::place::Place;
use crate::plan::Plan;
use crate::restart::Restarter;
use crate::spec::node_matters;
use crate::status;
use crate::update::Pace;
use balance::{Balance, Move};
use spread::{Accounts, Found};

/// How long nodes must have neither come nor returned before services that ask for it by themselves are looked at: after
/// a change of leaders, or of switches, they come one by one, and a node that flaps is no place to move to.
const QUIET: Duration = Duration::from_secs(10);

/// How long after something has become of its tasks a service is looked at again that waits for them: one that starts many
/// is not looked at for each.
const AGAIN: Duration = Duration::from_secs(1);

/// Most services that are looked at anew in one turn, so that a node that comes holds nothing else up.
const MOST: usize = 100;

/// What would be moved of a service now.
pub(crate) fn look(now: &Now, tables: &Tables, service: &Service) -> Found {
    Looker::default().look(now, tables, service, &BTreeMap::new())
}

/// How long nothing must become of the tasks of a service until rebalancing it is over; zero if it does not ask for that.
pub(crate) fn within(service: &Service) -> Duration {
    if !is_automatic(service) && !is_requested(service) {
        return Duration::ZERO;
    }
    // An update that comes to its end watches its last tasks first.
    let Pace { delay, monitor, .. } = Pace::of(service);
    QUIET + AGAIN + delay + monitor + AGAIN
}

/// Looks at services in one turn.
#[derive(Debug, Default)]
pub(crate) struct Looker {
    /// What is held on nodes: the same for all of them, and the dearest part of it.
    accounts: Option<Accounts>,
}

impl Looker {
    fn look(
        &mut self,
        now: &Now,
        tables: &Tables,
        service: &Service,
        at_work: &BTreeMap<Place, Move>,
    ) -> Found {
        let accounts = self.accounts.get_or_insert_with(|| Accounts::of(tables));
        spread::look(now, tables, accounts, service, at_work)
    }
}

/// The rebalancing of all replicated services.
#[derive(Debug, Default)]
pub(crate) struct Rebalancer {
    /// Services that are to be rebalanced whenever nodes come.
    automatic: BTreeSet<String>,
    /// When to look at services.
    due: BTreeMap<String, Duration>,
    running: BTreeMap<String, Balance>,
    /// Services that are uneven until tasks move that do not run yet.
    waiting: BTreeSet<String>,
    /// Services to look at when they are not updated any more. Their last change is one of ours, so no event tells of it.
    held_up: BTreeSet<String>,
    /// Services whose tasks did something.
    touched: BTreeSet<String>,
}

fn is_requested(service: &Service) -> bool {
    service.spec.annotations.labels.contains_key(REBALANCE_NOW)
}

fn is_automatic(service: &Service) -> bool {
    service.spec.annotations.labels.contains_key(REBALANCE) && extensions::can_rebalance(&service.spec)
}

impl Rebalancer {
    /// A service is new or has changed; or leadership begins.
    pub(crate) fn service_changed(&mut self, now: Duration, service: &Service) {
        let automatic = is_automatic(service);
        if automatic {
            self.automatic.insert(service.id.clone());
        } else {
            self.automatic.remove(&service.id);
        }
        if is_requested(service) {
            self.due.insert(service.id.clone(), now);
        } else if automatic {
            self.due.insert(service.id.clone(), now + QUIET);
        }
    }

    /// Takes note of what may make a service uneven, or even.
    pub(crate) fn observe(&mut self, now: Duration, event: &Event) {
        match (event.old(), event.new()) {
            (old, Some(Object::Node(node))) => {
                if comes(old, node) {
                    self.due.extend(self.automatic.iter().map(|id| (id.clone(), now + QUIET)));
                }
                if !matches!(old, Some(Object::Node(old)) if !node_matters(old, node)) {
                    self.running.values_mut().for_each(Balance::nodes_changed);
                }
            }
            (Some(Object::Node(_)), None) => self.running.values_mut().for_each(Balance::nodes_changed),
            (old, new) => self.task_changed(now, task_of(old), task_of(new)),
        }
    }

    fn task_changed(&mut self, now: Duration, old: Option<&Task>, new: Option<&Task>) {
        let Some(task) = new.or(old) else { return };
        let service: &str = &task.service_id;
        if let Some(balance) = self.running.get_mut(service) {
            balance.task_changed(old, new);
            self.touched.insert(service.to_owned());
        }
        if self.waiting.contains(service) {
            self.due.entry(service.to_owned()).or_insert(now + AGAIN);
        }
    }

    pub(crate) fn forget(&mut self, service: &str) {
        self.automatic.remove(service);
        self.due.remove(service);
        self.running.remove(service);
        self.waiting.remove(service);
        self.held_up.remove(service);
    }

    /// An update puts right what is under way, from now on: places and their new tasks.
    pub(crate) fn stop(&mut self, service: &str) -> Vec<(Place, String)> {
        self.waiting.remove(service);
        let moves = self.running.remove(service).map(|balance| balance.at_work).unwrap_or_default();
        moves.into_iter().map(|(place, at_work)| (place, at_work.new)).collect()
    }

    /// The task of the place is on its way: that there are two of them is as it should be.
    pub(crate) fn is_moving(&self, service: &str, place: &Place) -> bool {
        self.running.get(service).is_some_and(|b| b.at_work.contains_key(place))
    }

    /// When [`Rebalancer::advance`] is due even without news.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.due.values().copied().chain(self.running.values().filter_map(Balance::next)).min()
    }

    /// Moves on what is due or has news. `is_busy` tells of services that must wait, since they are being updated. Returns
    /// services of which a move was given up: the place may be without a task now.
    pub(crate) fn advance(
        &mut self,
        ctx: &mut Ctx<'_>,
        restarter: &mut Restarter,
        is_busy: impl Fn(&Service) -> bool,
        plan: &mut Plan<'_>,
    ) -> BTreeSet<String> {
        let now = ctx.now.mono;
        let mut again = BTreeSet::new();
        let mut due = std::mem::take(&mut self.held_up);
        let is_due = |_: &String, at: &mut Duration| *at <= now;
        due.extend(self.due.extract_if(.., is_due).map(|(id, _)| id).take(MOST));
        let mut services = std::mem::take(&mut self.touched);
        services.extend(due.iter().cloned());
        let has_news = |b: &Balance| b.next().is_some_and(|at| at <= now);
        services.extend(self.running.iter().filter(|(_, b)| has_news(b)).map(|(id, _)| id.clone()));
        let mut looker = Looker::default();
        for id in services {
            let tables = plan.tables_for(&id);
            let running = self.running.remove(&id);
            self.waiting.remove(&id);
            let service = crate::replicated::service(&tables, &id).map(|(service, _)| service);
            let (is_due, ran) = (due.contains(&id), running.is_some());
            let Some(service) = service else { continue };
            if is_busy(service) {
                if is_due {
                    self.held_up.insert(id);
                }
                continue;
            }
            let begin = || is_due.then(|| Balance::new(ctx.now, &tables, service));
            let Some(mut balance) = running.or_else(begin) else { continue };
            let has_work = if is_due {
                let found = looker.look(&ctx.now, &tables, service, &balance.at_work);
                balance.begin(found) || ran
            } else {
                true
            };
            let goes_on = has_work && balance.step(ctx, service, (restarter, &mut looker), plan);
            if std::mem::take(&mut balance.gave_up) {
                again.insert(id.clone());
            }
            if goes_on {
                self.running.insert(id, balance);
            } else if balance.waits {
                if balance.may_go_on() {
                    self.due.entry(id.clone()).or_insert(now + AGAIN);
                }
                self.waiting.insert(id);
            } else if is_requested(service) {
                plan.push_service(&service.id, status::rebalanced(service));
            }
        }
        again
    }
}

/// A change of a node after which it may take tasks that it did not take before.
fn comes(old: Option<&Object>, new: &Node) -> bool {
    new.is_usable() && !matches!(old, Some(Object::Node(old)) if old.is_usable())
}

fn task_of(object: Option<&Object>) -> Option<&Task> {
    match object {
        Some(Object::Task(task)) => Some(task),
        _ => None,
    }
}
