//! Hosts that fail their manager: a full disk, a clock that jumps.

use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use swarm_api::v1::node_status;
use swarm_testkit::lab::managers::{Managers, Setup};
use swarm_testkit::lab::{Disk, HostOptions};
use swarm_testkit::quorum::{contents, leader, same};
use swarm_testkit::wait::until;

use crate::common::{ALL, PATIENCE, has, others, write};

/// Seconds. A minute less than an hour: as the contract has it, a certificate is valid from an hour before it was made,
/// rounded to the minute, and these are new.
const HOUR: i64 = 59 * 60;

/// A manager whose disk is full acknowledges nothing more; the others go on, and it comes back once there is room.
async fn full(managers: &mut Managers, leads: bool) -> Result<()> {
    write(managers, &ALL, "before").await?;
    same(managers, &ALL).await?;
    let first = leader(managers, &ALL).await?;
    let full = if leads { first.clone() } else { others(&first)[0].to_owned() };
    let rest = others(&full);
    managers.lab.fill_disk(&full).await?;
    // The first write that does not fit is its last; some may still fit.
    let mut number = 0;
    while managers.lab.runs(&full).await? {
        number += 1;
        ensure!(number < 10_000, "a manager with a full disk writes on");
        write(managers, &ALL, &format!("while-it-fills-{number}")).await?;
    }
    ensure!(managers.lab.ended(&full).await? == 1, "a manager that can't write stops");
    let leads_now = leader(managers, &rest).await?;
    ensure!(leads || leads_now == first, "a follower's full disk cost the leader its office");
    write(managers, &rest, "while-it-was-full").await?;
    let log = managers.lab.host(&full)?.log();
    ensure!(
        log.lines().last().is_some_and(|line| line.contains("No space left on device")),
        "it does not say why"
    );
    same(managers, &rest).await?;
    // As long as there is no room it does not start, and says why again.
    managers.lab.start(&full).await?;
    ensure!(managers.lab.ended(&full).await? == 1);
    managers.lab.free_disk(&full).await?;
    managers.lab.start(&full).await?;
    same(managers, &ALL).await?;
    ensure!(has(managers, &full, "while-it-was-full").await? && has(managers, &full, "before").await?);
    write(managers, &[&full], "after").await
}

/// Has a leader stamp something and fails if its clock is not so many seconds off. Returns the true time, in seconds.
async fn stamp(managers: &Managers, leader: &str, seconds: i64) -> Result<u64> {
    let name = format!("config-{}", swarm_api::id::random());
    write(managers, &others(leader), &name).await?;
    let held = contents(managers, leader).await?;
    let config = held.configs.iter().find(|c| c.spec.annotations.name == name).context("no config")?;
    let created = config.meta.created_at.context("no time")?.seconds;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let off = created - i64::try_from(now)? - seconds;
    ensure!(off.abs() < 60, "the leader's clock is {off} s off");
    Ok(now)
}

/// Managers whose clocks jump lead, follow and run their nodes as before.
async fn jumps(managers: &mut Managers) -> Result<()> {
    let first = leader(managers, &ALL).await?;
    let [follower, _] = others(&first);
    let terms = managers.terms();
    for (leaders, followers) in [(HOUR, -HOUR), (0, 0)] {
        managers.lab.set_clock(&first, leaders)?;
        managers.lab.set_clock(follower, followers)?;
        // The leader stamps what is written: that is how its clock is seen to have jumped.
        let begin =
            until("the leader's clock to jump", PATIENCE, || stamp(managers, &first, leaders)).await?;
        // Longer than any manager waits for a leader, and than any node for its session.
        while stamp(managers, &first, leaders).await? < begin + 20 {
            for node in contents(managers, follower).await?.nodes {
                ensure!(node.status.state() == node_status::State::Ready, "{:?}", node.status);
            }
        }
        ensure!(managers.terms() == terms, "a jump of the clock made an election");
        same(managers, &ALL).await?;
    }
    ensure!(leader(managers, &ALL).await? == first);
    Ok(())
}

async fn fills_up(leads: bool) -> Result<()> {
    let host = HostOptions { disk: Disk::Small(48), ..HostOptions::default() };
    let mut managers = Managers::start(3, Setup { host, ..Setup::quick() }).await?;
    let result = full(&mut managers, leads).await;
    managers.with_logs(result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_leader_with_a_full_disk_stops_and_comes_back_when_there_is_room() -> Result<()> {
    fills_up(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_follower_with_a_full_disk_stops_and_its_leader_goes_on() -> Result<()> {
    fills_up(false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_clocks_that_jump_by_an_hour_do_no_harm() -> Result<()> {
    let host = HostOptions { clock: true, ..HostOptions::default() };
    let mut managers = Managers::start(3, Setup { host, ..Setup::default() }).await?;
    let result = jumps(&mut managers).await;
    managers.with_logs(result)
}
