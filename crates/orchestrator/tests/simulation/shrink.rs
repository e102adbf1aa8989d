//! The shortest history that still shows a fault.

use crate::acts::{Plan, Step};
use crate::broken::Broken;
use crate::run::{Fault, run};

/// Histories that are tried at most: what is left then is short enough.
const MOST: usize = 1_000;

struct Shrinking {
    plan: Plan,
    broken: Broken,
    planted: Option<Fault>,
    tried: usize,
}

/// The same fault with as few and as simple steps as can be found: whole stretches are taken away, then single steps,
/// then what happens in them and how much of it, until nothing more can be.
pub(crate) fn shrink(plan: Plan, broken: Broken, planted: Option<Fault>) -> (Plan, Broken) {
    let mut shrinking = Shrinking { plan, broken, planted, tried: 0 };
    while shrinking.tried < MOST && (shrinking.fewer() | shrinking.simpler()) {}
    (shrinking.plan, shrinking.broken)
}

impl Shrinking {
    /// Takes this plan if the same goes wrong with it.
    fn try_out(&mut self, plan: Plan) -> bool {
        if self.tried >= MOST {
            return false;
        }
        self.tried += 1;
        match run(&plan, self.planted) {
            Err(broken) if broken.is_like(&self.broken) => {
                (self.plan, self.broken) = (plan, broken);
                true
            }
            _ => false,
        }
    }

    fn fewer(&mut self) -> bool {
        let mut done = false;
        let mut stretch = self.plan.steps.len().div_ceil(2);
        while stretch > 0 {
            let mut at = 0;
            while at < self.plan.steps.len() {
                let mut shorter = self.plan.clone();
                shorter.steps.drain(at..(at + stretch).min(shorter.steps.len()));
                if self.try_out(shorter) {
                    done = true;
                } else {
                    at += stretch;
                }
            }
            stretch /= 2;
        }
        done
    }

    fn simpler(&mut self) -> bool {
        let mut done = false;
        for nodes in 1..self.plan.nodes {
            if self.try_out(Plan { nodes, ..self.plan.clone() }) {
                done = true;
                break;
            }
        }
        for at in 0..self.plan.steps.len() {
            // Each from what the one before it left.
            let simplify: [fn(&mut Step); 4] =
                [|s| s.act = None, |s| s.agents = None, |s| s.writes = Step::ALL, |s| s.pass = 0];
            for change in simplify {
                done |= self.change(at, change);
            }
            let numbers = self.plan.steps[at].act.as_mut().map_or(0, |act| act.numbers().len());
            for number in 0..numbers {
                done |= self.smaller(at, number);
            }
        }
        done
    }

    fn change(&mut self, at: usize, change: impl Fn(&mut Step)) -> bool {
        let mut plan = self.plan.clone();
        change(&mut plan.steps[at]);
        plan.steps[at] != self.plan.steps[at] && self.try_out(plan)
    }

    /// A number of what happens gets as small as it can be, or small at least.
    fn smaller(&mut self, at: usize, number: usize) -> bool {
        let present = |step: &mut Step| step.act.as_mut().map(|act| *act.numbers()[number]);
        let Some(now) = present(&mut self.plan.steps[at].clone()) else { return false };
        (0..8.min(now)).any(|small| {
            self.change(at, |step| {
                if let Some(act) = &mut step.act {
                    *act.numbers()[number] = small;
                }
            })
        })
    }
}
