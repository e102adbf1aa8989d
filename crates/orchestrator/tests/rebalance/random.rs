//! Spreads at random: the fewest tasks move that make them even.

use std::cmp::Reverse;

use super::*;
use crate::dice::Dice;

/// Spreads of each kind.
const SPREADS: u64 = 200;

/// A node: the number of its zone, and how many tasks of the service are there.
type Given = (usize, usize);

/// How many must go at least, or be gone before others come, for nodes that have so many to have `all` together, and the
/// same. Where that does not come out even, the fullest keep one more.
fn fewest(mut have: Vec<usize>, all: usize) -> usize {
    have.sort_unstable_by_key(|tasks| Reverse(*tasks));
    let (each, more) = (all / have.len(), all % have.len());
    let kept = (0..).map(|at| each + usize::from(at < more));
    have.iter().zip(kept).map(|(tasks, kept)| tasks.saturating_sub(kept)).sum()
}

fn is_even(loads: &[usize]) -> bool {
    loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1
}

/// The nodes of a zone, by their numbers.
fn in_zone(given: &[Given], zone: usize) -> impl Iterator<Item = usize> {
    (0..given.len()).filter(move |at| given[*at].0 == zone)
}

/// Nodes with these tasks of the service, which run; nodes without any come only then. How many have moved when all is at
/// rest, and how many run on each node.
fn rebalanced(web: &Service, given: &[Given]) -> (usize, Vec<usize>) {
    let id = |at: usize| format!("n{at}");
    let made = |at: usize| {
        let mut node = node(&id(at));
        node.spec.annotations.labels.insert("zone".into(), format!("z{}", given[at].0));
        node
    };
    let mut sim = Sim::new(|tx| {
        tx.create(web.clone()).unwrap();
        let mut slot = 0;
        for (at, (_, tasks)) in given.iter().enumerate().filter(|(_, (_, tasks))| *tasks > 0) {
            tx.create(made(at)).unwrap();
            for _ in 0..*tasks {
                slot += 1;
                tx.create(task(web, &format!("t{slot}"), slot, &id(at), Running, Running)).unwrap();
            }
        }
    });
    sim.lead(leader());
    sim.settle();
    for at in (0..given.len()).filter(|at| given[*at].1 == 0) {
        sim.write(|tx| drop(tx.create(made(at)).unwrap()));
    }
    assert_eq!(moved(&sim), 0, "not before nodes have come to rest");
    sim.advance(secs(120));
    let running = sim.running("web");
    let loads = (0..given.len()).map(|at| running.get(&id(at)).copied().unwrap_or(0)).collect();
    (moved(&sim), loads)
}

#[test]
fn whatever_the_spread_is_the_fewest_tasks_move_that_make_it_even() {
    for seed in 0..SPREADS {
        let mut dice = Dice::new(seed);
        let nodes = 2 + dice.roll(7);
        let mut given: Vec<Given> = vec![(0, 0); nodes];
        let (old, tasks) = (1 + dice.roll(nodes), 1 + dice.roll(30));
        for _ in 0..tasks {
            given[dice.roll(old)].1 += 1;
        }
        let parallelism = dice.roll(3) as u64;
        let update = if dice.one_in(2) { started_first(parallelism) } else { at_once(parallelism) };
        let (moved, loads) = rebalanced(&automatic(tasks as u64, update), &given);
        let what = format!("seed {seed}: {given:?} become {loads:?}");
        assert_eq!(loads.iter().sum::<usize>(), tasks, "{what}");
        assert!(is_even(&loads), "{what}");
        let have = given.iter().map(|(_, tasks)| *tasks).collect();
        assert_eq!(moved, fewest(have, tasks), "{what}");
    }
}

/// As many tasks as come out even over the zones: else which zone keeps one more says how many must move inside.
#[test]
fn whatever_the_spread_over_branches_is_the_fewest_tasks_move_that_make_it_even() {
    for seed in 0..SPREADS {
        let mut dice = Dice::new(seed);
        let zones = 2 + dice.roll(2);
        let nodes = zones + dice.roll(9 - zones);
        let mut given: Vec<Given> = (0..zones).map(|zone| (zone, 0)).collect();
        given.extend((zones..nodes).map(|_| (dice.roll(zones), 0)));
        let (old, each) = (1 + dice.roll(nodes), 1 + dice.roll(10));
        for _ in 0..zones * each {
            given[dice.roll(old)].1 += 1;
        }
        let parallelism = dice.roll(3) as u64;
        let update = if dice.one_in(2) { started_first(parallelism) } else { at_once(parallelism) };
        let mut web = automatic((zones * each) as u64, update);
        prefer(&mut web, "node.labels.zone");
        let (moved, loads) = rebalanced(&web, &given);
        let what = format!("seed {seed}: {given:?} become {loads:?}");
        let mut must_move = 0;
        for zone in 0..zones {
            let inside: Vec<usize> = in_zone(&given, zone).map(|at| loads[at]).collect();
            assert_eq!(inside.iter().sum::<usize>(), each, "{what}");
            assert!(is_even(&inside), "{what}");
            must_move += fewest(in_zone(&given, zone).map(|at| given[at].1).collect(), each);
        }
        assert_eq!(moved, must_move, "{what}");
    }
}
