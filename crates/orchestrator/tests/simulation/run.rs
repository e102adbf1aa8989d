//! One history from beginning to end.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use swarm_api::v1::Service;
use swarm_api::v1::update_status::UpdateState;
use swarm_reconcile::Reconciler;

use crate::acts::{Act, Plan};
use crate::broken::{Broken, Held, PANIC, broken};
use crate::checks::{Checks, is_live, may_ever_have_two, place};
use crate::common::{Sim, leader, secs};
use crate::ends::{converged, satisfied};
use crate::history::History;
use crate::specs::is_job;
use crate::watched::{Log, Watched};
use crate::world::World;

/// What a history came to.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Done {
    /// News told to reconcilers.
    pub(crate) steps: u64,
    /// Decisions that met a change that they did not know of.
    pub(crate) refused: u64,
}

/// Puts a fault into a reconciler.
pub(crate) type Fault = fn(Box<dyn Reconciler>) -> Box<dyn Reconciler>;

/// Lets a plan happen, then everything heal, and waits for what was asked for and for rest.
pub(crate) fn run(plan: &Plan, fault: Option<Fault>) -> Result<Done, Broken> {
    logged(plan, fault, &Arc::default())
}

/// What happens in a history, step by step: what is decided, and what is written.
pub(crate) fn trace(plan: &Plan, fault: Option<Fault>) -> String {
    let log = Arc::new(Mutex::new(Log { trace: Some(Vec::new()), ..Log::default() }));
    let _ = logged(plan, fault, &log);
    let log = open(&log);
    log.trace.iter().flatten().map(|line| format!("{}\n", line.replace("000000000000000", ""))).collect()
}

fn open(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn logged(plan: &Plan, fault: Option<Fault>, log: &Arc<Mutex<Log>>) -> Result<Done, Broken> {
    catch_unwind(AssertUnwindSafe(|| history(plan, fault, log))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        broken(PANIC, text.or(panic.downcast_ref().copied()).unwrap_or("without a text"))
    })
}

fn history(plan: &Plan, fault: Option<Fault>, log: &Arc<Mutex<Log>>) -> Result<Done, Broken> {
    let leader = || -> Vec<Box<dyn Reconciler>> {
        let faulty = |r| if let Some(fault) = fault { fault(r) } else { r };
        let watch = |inner| Box::new(Watched::new(inner, log.clone())) as Box<dyn Reconciler>;
        leader().into_iter().map(faulty).map(watch).collect()
    };
    let world = World::new(&leader, plan);
    let checks = Checks::new(&world);
    let mut history = Running { world, checks, log };
    for step in &plan.steps {
        open(log).note(|| format!("{step:?}"));
        if step.act == Some(Act::Day) {
            history.day()?;
        }
        history.world.step(step);
        history.look()?;
    }
    open(log).note(|| "nodes and agents heal".into());
    history.world.mend();
    history.rests()?;
    satisfied(&history.world, &open(log))?;
    open(log).note(|| "everything heals".into());
    history.world.heal();
    history.rests()?;
    converged(&history.world)?;
    let steps = open(log).steps;
    Ok(Done { steps, refused: history.world.sim.refused as u64 })
}

/// A brain may wake up so often in a day in which nothing happens.
const MOST_IDLE_TURNS: u64 = 100;

struct Running<'a> {
    world: World<'a>,
    checks: Checks,
    log: &'a Mutex<Log>,
}

impl Running<'_> {
    fn look(&mut self) -> Held {
        self.checks.look(&self.world, &mut open(self.log))
    }

    /// Lets time pass; everybody acts whenever there is something to do.
    fn pass(&mut self, time: Duration, act: fn(&mut Sim)) -> Held {
        let end = self.world.sim.now().mono + time;
        loop {
            act(&mut self.world.sim);
            self.look()?;
            let Some(at) = self.world.sim.wake_at().filter(|at| *at <= end) else { break };
            self.world.sim.pass_until(at);
        }
        self.world.sim.pass_until(end);
        act(&mut self.world.sim);
        self.look()
    }

    /// An update goes on, perhaps one that a new leader begins anew, which does not say so.
    fn is_updating(&self) -> bool {
        use UpdateState::{RollbackStarted, Updating};
        let state = |s: &Service| s.update_status.as_ref().map(|s| s.state());
        let view = self.world.sim.view();
        let updates = |s: &Service| matches!(state(s), Some(Updating | RollbackStarted));
        let two = |s: &Service| {
            let mut places = BTreeSet::new();
            may_ever_have_two(&s.id)
                && view.tasks().by_service(&s.id).any(|t| is_live(t) && !places.insert(place(t)))
        };
        view.services().iter().any(|s| !is_job(s) && (updates(s) || two(s)))
    }

    /// A day in which no agent says anything.
    fn day(&mut self) -> Held {
        self.world.begin_day();
        self.pass(secs(24 * 3600), Sim::think)?;
        self.world.end_day();
        self.look()
    }

    /// Lets time pass until nothing has happened for longer than anybody waits, and then a day.
    fn rests(&mut self) -> Held {
        let (mut still, mut rounds) = (0, 0);
        // Nobody waits for anything for more than ten minutes; but an update may do so for place after place.
        while still < if self.is_updating() { 50_000 } else { 750 } {
            let index = self.world.sim.view().index();
            self.pass(secs(if still < 60 { 5 } else { 50 }), Sim::settle)?;
            let wrote = self.world.sim.view().index() != index;
            still = if wrote { 0 } else { still + if still < 60 { 5 } else { 50 } };
            rounds += 1;
            if rounds > 4_000 {
                return broken("it comes to rest", "something is written all the time");
            }
        }
        let (index, turns) = (self.world.sim.view().index(), open(self.log).turns);
        self.pass(secs(24 * 3600), Sim::settle)?;
        if self.world.sim.view().index() != index {
            return broken("it stays at rest", "something is written although nothing changes");
        }
        let turns = open(self.log).turns - turns;
        if turns > MOST_IDLE_TURNS {
            return broken(
                "it stays at rest",
                format!("{turns} decisions in a day in which nothing changes"),
            );
        }
        History::is_short(&self.world)?;
        self.checks.everything(&self.world, &open(self.log))
    }
}
