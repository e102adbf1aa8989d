//! One history from beginning to end, and the shortest one that still shows a fault.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use swarm_reconcile::Reconciler;

use crate::acts::Step;
use crate::checks::{Checks, converged};
use crate::common::{leader, secs};
use crate::watched::{Log, Watched};
use crate::world::World;

/// What a history came to.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Done {
    /// Commits delivered to reconcilers.
    pub(crate) steps: u64,
    /// Decisions that met a change that they did not know of.
    pub(crate) refused: u64,
}

/// Puts a fault into a reconciler.
pub(crate) type Fault = fn(Box<dyn Reconciler>) -> Box<dyn Reconciler>;

/// Lets a plan happen, then everything heal, and waits for what was asked for and for rest.
pub(crate) fn run(plan: &[Step], fault: Option<Fault>) -> Result<Done, String> {
    logged(plan, fault, &Arc::default())
}

/// What happens in a history, step by step, and what is decided.
pub(crate) fn trace(plan: &[Step]) -> String {
    let log = Arc::new(Mutex::new(Log { trace: Some(Vec::new()), ..Log::default() }));
    let _ = logged(plan, None, &log);
    let log = log.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    log.trace.iter().flatten().map(|line| format!("{}\n", line.replace("000000000000000", ""))).collect()
}

fn logged(plan: &[Step], fault: Option<Fault>, log: &Arc<Mutex<Log>>) -> Result<Done, String> {
    catch_unwind(AssertUnwindSafe(|| history(plan, fault, log))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!("panic: {}", text.or(panic.downcast_ref().copied()).unwrap_or("without a text")))
    })
}

fn history(plan: &[Step], fault: Option<Fault>, log: &Arc<Mutex<Log>>) -> Result<Done, String> {
    let leader = || -> Vec<Box<dyn Reconciler>> {
        let faulty = |r| if let Some(fault) = fault { fault(r) } else { r };
        let watch = |inner| Box::new(Watched::new(inner, log.clone())) as Box<dyn Reconciler>;
        leader().into_iter().map(faulty).map(watch).collect()
    };
    let mut world = World::new(&leader);
    let mut checks = Checks::new(&world);
    for step in plan {
        if let Some(trace) = &mut log.lock().unwrap().trace {
            trace.push(format!("{step:?}"));
        }
        world.step(step);
        checks.look(&world, &mut log.lock().unwrap())?;
    }
    if let Some(trace) = &mut log.lock().unwrap().trace {
        trace.push("everything heals".into());
    }
    world.heal();
    let mut state = converged(&world);
    let mut still = 0;
    // An update may take long; but nobody waits for more than a minute without doing anything.
    for _ in 0..400 {
        if state.is_ok() || still == 15 {
            break;
        }
        let index = world.sim.view().index();
        world.sim.advance(secs(5));
        checks.look(&world, &mut log.lock().unwrap())?;
        state = converged(&world);
        still = if world.sim.view().index() == index { still + 1 } else { 0 };
    }
    state?;
    world.sim.advance(secs(600));
    converged(&world)?;
    let index = world.sim.view().index();
    world.sim.advance(secs(24 * 3600));
    if world.sim.view().index() != index {
        return Err("something is written although nothing changes".into());
    }
    checks.look(&world, &mut log.lock().unwrap())?;
    let steps = log.lock().unwrap().steps;
    Ok(Done { steps, refused: world.sim.refused as u64 })
}

/// The same fault with as few steps as can be found: whole stretches are taken away, then single steps, then
/// what happens in them.
pub(crate) fn shrink(mut plan: Vec<Step>, mut fault: String, planted: Option<Fault>) -> (Vec<Step>, String) {
    let mut stretch = plan.len().div_ceil(2);
    while stretch > 0 {
        let mut at = 0;
        while at < plan.len() {
            let mut shorter = plan.clone();
            shorter.drain(at..(at + stretch).min(plan.len()));
            match run(&shorter, planted) {
                Err(error) => (plan, fault) = (shorter, error),
                Ok(_) => at += stretch,
            }
        }
        stretch /= 2;
    }
    for at in 0..plan.len() {
        for simpler in
            [Step { act: None, ..plan[at] }, Step { agents: None, ..plan[at] }, Step { pass: 0, ..plan[at] }]
        {
            let mut candidate = plan.clone();
            candidate[at] = simpler;
            if let Err(error) = run(&candidate, planted) {
                (plan, fault) = (candidate, error);
            }
        }
    }
    (plan, fault)
}
