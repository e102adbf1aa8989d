//! Faults that a seed draws, one after the other, while clients are at work.
//!
//! The schedule is drawn as a whole before anything happens. What hits "the leader" hits whoever leads then: that, and
//! what the managers do, is not in the seed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::managers::Managers;
use crate::quorum::{PATIENCE, seen_by};
use crate::wait::until;

/// How long to ask one manager who leads.
const ASK: Duration = Duration::from_secs(1);

/// One manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The one that leads then; the first one if nobody does.
    Leader,
    /// By its place among all, counted round and round.
    Number(usize),
}

/// What happens to managers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its host loses power.
    Kill(Who),
    /// All hosts lose power at once.
    KillAll,
    /// It is stopped in good order.
    Stop(Who),
    /// It is killed and comes back with another address. The next fault waits until all managers know it: they find
    /// each other as long as no more than a minority moves at once.
    Move(Who),
    /// Its host does nothing for a while.
    Freeze(Who),
    /// It and the others don't hear each other.
    Split(Who),
    /// It hears nobody.
    Deafen(Who),
    /// Nobody hears it.
    Mute(Who),
    /// It hears all, but those before and those behind it don't hear each other.
    Bridge(Who),
    /// The link to the one behind it answers with resets.
    Reset(Who),
}

/// A fault, how long it lasts, and how long the managers are left alone afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What happens.
    pub fault: Fault,
    /// Until it is undone.
    pub lasts: Duration,
    /// Until the next one.
    pub rest: Duration,
}

/// Draws faults that take so long altogether, or somewhat longer.
pub fn schedule(seed: u64, total: Duration) -> Vec<Step> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut steps = Vec::new();
    let mut length = Duration::ZERO;
    while length < total {
        let who = if rng.random_bool(0.6) { Who::Leader } else { Who::Number(rng.random_range(0..64)) };
        let fault = match rng.random_range(0..10) {
            0 => Fault::Kill(who),
            1 => Fault::KillAll,
            2 => Fault::Stop(who),
            3 => Fault::Move(who),
            4 => Fault::Freeze(who),
            5 => Fault::Split(who),
            6 => Fault::Deafen(who),
            7 => Fault::Mute(who),
            8 => Fault::Bridge(who),
            _ => Fault::Reset(who),
        };
        // From shorter than an election with `Setup::quick` to much longer.
        let lasts = Duration::from_millis(rng.random_range(500..8_000));
        let rest = Duration::from_millis(rng.random_range(200..6_000));
        length += lasts + rest;
        steps.push(Step { fault, lasts, rest });
    }
    steps
}

/// Carries a schedule out. Afterwards all managers run and hear each other again.
///
/// # Errors
/// If a manager ends by itself, or the lab fails.
pub async fn run(managers: &mut Managers, steps: &[Step]) -> Result<()> {
    for (number, step) in steps.iter().enumerate() {
        let struck = async {
            let down = strike(managers, step.fault).await?;
            tokio::time::sleep(step.lasts).await;
            recover(managers, &down).await?;
            if let (Fault::Move(_), [moved]) = (step.fault, &*down) {
                known(managers, moved).await?;
            }
            tokio::time::sleep(step.rest).await;
            Ok::<(), anyhow::Error>(())
        };
        struck.await.with_context(|| format!("fault {number}: {step:?}"))?;
    }
    all_run(managers, &[]).await
}

/// Makes a fault, and returns the names of those managers that are down by it.
async fn strike(managers: &mut Managers, fault: Fault) -> Result<Vec<String>> {
    managers.lab.note(format!("{fault:?}"));
    let names = managers.lab.names();
    let who = match fault {
        Fault::Kill(who)
        | Fault::Stop(who)
        | Fault::Move(who)
        | Fault::Freeze(who)
        | Fault::Split(who)
        | Fault::Deafen(who)
        | Fault::Mute(who)
        | Fault::Bridge(who)
        | Fault::Reset(who) => place(managers, &names, who).await,
        Fault::KillAll => 0,
    };
    let name = names[who].clone();
    // Round and round from there: those behind it, then those before it.
    let others: Vec<&str> = (1..names.len()).map(|step| &*names[(who + step) % names.len()]).collect();
    let lab = &mut managers.lab;
    match fault {
        Fault::Kill(_) => lab.kill(&name).await?,
        Fault::Stop(_) => {
            let code = lab.stop(&name).await?;
            ensure!(code == 0, "{name} ended with {code} when it was stopped");
        }
        Fault::Move(_) => {
            lab.kill(&name).await?;
            lab.move_host(&name).await?;
        }
        Fault::KillAll => {
            for name in &names {
                lab.kill(name).await?;
            }
            return Ok(names);
        }
        Fault::Freeze(_) => return lab.pause(&name).await.map(|()| Vec::new()),
        Fault::Split(_) => return lab.partition(&[&[&name], &others]).await.map(|()| Vec::new()),
        Fault::Bridge(_) => {
            let (behind, before) = others.split_at(others.len() / 2);
            let [one, other] = [behind, before].map(|side| [side, &[&name]].concat());
            return lab.partition(&[&one, &other]).await.map(|()| Vec::new());
        }
        Fault::Deafen(_) | Fault::Mute(_) => {
            for other in others {
                let (from, to) =
                    if matches!(fault, Fault::Mute(_)) { (&*name, other) } else { (other, &*name) };
                lab.cut_one_way(from, to).await?;
            }
            return Ok(Vec::new());
        }
        Fault::Reset(_) => {
            let other = others.first().context("one manager has no links")?;
            return lab.reset_link(&name, other).await.map(|()| Vec::new());
        }
    }
    Ok(vec![name])
}

/// Undoes whatever there is.
async fn recover(managers: &mut Managers, down: &[String]) -> Result<()> {
    all_run(managers, down).await?;
    managers.lab.heal().await?;
    for name in managers.lab.names() {
        if down.contains(&name) {
            managers.lab.start(&name).await?;
        } else if !managers.lab.host(&name)?.is_awake() {
            managers.lab.unpause(&name).await?;
        }
    }
    Ok(())
}

/// Waits until all managers know the address of one.
async fn known(managers: &Managers, name: &str) -> Result<()> {
    let address = managers.address(name)?;
    until(&format!("the address of {name} to be known"), PATIENCE, || async {
        for by in managers.lab.names() {
            let seen = seen_by(managers, &by).await?;
            let (_, status) = seen.iter().find(|(member, _)| member == name).context("it is no member")?;
            ensure!(status.addr == address, "{by} sees {status:?}");
        }
        Ok(())
    })
    .await
}

/// Checks that all managers run but those that are down: no fault may end one.
async fn all_run(managers: &Managers, down: &[String]) -> Result<()> {
    for name in managers.lab.names() {
        ensure!(down.contains(&name) || managers.lab.runs(&name).await?, "{name} ended by itself");
    }
    Ok(())
}

/// The place of a manager among all names.
async fn place(managers: &Managers, names: &[String], who: Who) -> usize {
    if let Who::Number(number) = who {
        return number % names.len();
    }
    for (place, name) in names.iter().enumerate() {
        // By its own word: one that leads no more does not know that yet, which is as good a victim.
        if let Ok(Ok(seen)) = tokio::time::timeout(ASK, seen_by(managers, name)).await
            && seen.iter().any(|(member, status)| member == name && status.leader)
        {
            return place;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_draws_the_same_faults() {
        let total = Duration::from_secs(60);
        let steps = schedule(7, total);
        assert_eq!(steps, schedule(7, total));
        assert_ne!(steps, schedule(8, total));
        let length: Duration = steps.iter().map(|step| step.lasts + step.rest).sum();
        assert!(length >= total && length < total + Duration::from_secs(14), "{length:?}");
    }

    #[test]
    fn a_long_schedule_has_every_kind_of_fault() {
        let steps = schedule(1, Duration::from_secs(3600));
        let kinds: std::collections::HashSet<_> =
            steps.iter().map(|step| std::mem::discriminant(&step.fault)).collect();
        assert_eq!(kinds.len(), 10);
    }
}
