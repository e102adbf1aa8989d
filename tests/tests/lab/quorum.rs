//! A quorum through deaths, cuts, freezing and moves: whoever has the majority goes on, and all hold the same afterwards.

use anyhow::{Context as _, Result, ensure};
use swarm_api::v1::raft_member_status::Reachability;
use swarm_api::v1::{ConfigSpec, CreateConfigRequest, ListConfigsRequest};
use swarm_testkit::lab::managers::{Managers, Setup};
use swarm_testkit::quorum::{leader, reachable, same, seen_by};
use swarm_testkit::wait::until;
use tonic::Code;

use crate::common::{ALL, PATIENCE, create_services, has, knows_no_leader, others, remove, write};

/// Every service that `swarmctl service create` said was made is there at the end, on all managers, though the leader
/// was killed again and again.
async fn leaders_killed(managers: &mut Managers, kills: usize) -> Result<()> {
    let sockets = ALL.map(|name| managers.socket(name));
    let created = create_services(sockets.into_iter().collect::<Result<_>>()?);
    let more = async |count: usize| {
        let before = created.acknowledged().len();
        until("more services to be made", PATIENCE, || async {
            let now = created.acknowledged().len();
            ensure!(now >= before + count, "{now} were made, {before} before");
            Ok(())
        })
        .await
    };
    for _ in 0..kills {
        let first = leader(managers, &ALL).await?;
        more(5).await?;
        managers.lab.kill(&first).await?;
        // In the middle of the election, and after it.
        more(5).await?;
        leader(managers, &others(&first)).await?;
        managers.lab.start(&first).await?;
    }
    let acknowledged = created.finish().await?;
    let held = same(managers, &ALL).await?;
    let names: std::collections::BTreeSet<_> =
        held.services.iter().map(|service| service.spec.annotations.name.clone()).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|name| !names.contains(*name)).collect();
    println!(
        "{kills} leaders were killed, {} services acknowledged, {} lost",
        acknowledged.len(),
        lost.len()
    );
    ensure!(lost.is_empty(), "these of {} acknowledged services are lost: {lost:?}", acknowledged.len());
    managers.one_leader_per_term()
}

/// A leader that is cut off with a minority, in both directions or one, gives up, and the others go on.
async fn cut_off(managers: &mut Managers, cut: Cut) -> Result<()> {
    write(managers, &ALL, &format!("before-{cut:?}")).await?;
    let first = leader(managers, &ALL).await?;
    let rest = others(&first);
    match cut {
        Cut::Both => managers.lab.partition(&[&[&first], &rest]).await?,
        Cut::Outwards => {
            for other in rest {
                managers.lab.cut_one_way(&first, other).await?;
            }
        }
        Cut::Inwards => {
            for other in rest {
                managers.lab.cut_one_way(other, &first).await?;
            }
        }
    }
    leader(managers, &rest).await?;
    let during = format!("during-{cut:?}");
    write(managers, &rest, &during).await?;
    same(managers, &rest).await?;
    if matches!(cut, Cut::Both) {
        knows_no_leader(managers, &first, 1).await?;
    }
    ensure!(!has(managers, &first, &during).await?, "it was not cut off");
    managers.lab.heal().await?;
    same(managers, &ALL).await?;
    let now = leader(managers, &ALL).await?;
    reachable(managers, &now).await?;
    write(managers, &[&first], &format!("after-{cut:?}")).await
}

#[derive(Debug, Clone, Copy)]
enum Cut {
    Both,
    Outwards,
    Inwards,
}

/// Two managers that can't hear each other, and one between them that hears both: where the one between or one of the
/// others leads, it goes on to lead.
async fn bridge(managers: &mut Managers) -> Result<()> {
    let first = leader(managers, &ALL).await?;
    let [one, other] = others(&first);
    let before = managers.terms();
    managers.lab.partition(&[&[&first, one], &[&first, other]]).await?;
    write(managers, &[one], "over-the-bridge").await?;
    write(managers, &[other], "over-the-bridge-too").await?;
    until("the link to be noticed", PATIENCE, || async {
        let seen = seen_by(managers, one).await?;
        let (_, status) = seen.iter().find(|(name, _)| name == other).context("it is no member")?;
        ensure!(status.reachability() == Reachability::Unreachable, "{status:?}");
        Ok(())
    })
    .await?;
    same(managers, &ALL).await?;
    ensure!(leader(managers, &ALL).await? == first && managers.terms() == before);
    managers.lab.heal().await?;

    managers.lab.partition(&[&[one, &first], &[one, other]]).await?;
    knows_no_leader(managers, other, 2).await?;
    for number in 0..20 {
        write(managers, &[&first, one], &format!("beside-the-bridge-{number}")).await?;
    }
    same(managers, &[&first, one]).await?;
    ensure!(!has(managers, other, "beside-the-bridge-19").await?);
    ensure!(leader(managers, &[&first, one]).await? == first && managers.terms() == before);
    managers.lab.heal().await?;
    same(managers, &ALL).await.map(drop)
}

/// A firewall that resets the way between the leader and one other looks from there as if the leader were gone. Nobody else
/// thinks so, however often that one would have itself elected, and when the way is free again everything is as before.
async fn link_reset(managers: &mut Managers) -> Result<()> {
    let first = leader(managers, &ALL).await?;
    let [one, other] = others(&first);
    let before = managers.terms();
    managers.lab.reset_link(&first, one).await?;
    // Ten ticks, several election timeouts.
    knows_no_leader(managers, one, 2).await?;
    write(managers, &[&first, other], "beside-the-firewall").await?;
    managers.lab.heal().await?;
    same(managers, &ALL).await?;
    ensure!(leader(managers, &ALL).await? == first && managers.terms() == before, "there was an election");
    ensure!(has(managers, one, "beside-the-firewall").await?);
    Ok(())
}

/// A frozen leader is superseded, and follows when it wakes.
async fn frozen(managers: &mut Managers) -> Result<()> {
    write(managers, &ALL, "removed-meanwhile").await?;
    let first = leader(managers, &ALL).await?;
    let rest = others(&first);
    managers.lab.pause(&first).await?;
    let second = leader(managers, &rest).await?;
    write(managers, &rest, "while-it-was-frozen").await?;
    remove(managers, &rest, "removed-meanwhile").await?;
    let before = managers.terms();
    // What waits for it when it wakes comes after all that, though it does not know so yet.
    let mut control = [managers.control(&first)?, managers.control(&first)?];
    let mut spec = ConfigSpec { data: b"x".to_vec(), ..ConfigSpec::default() };
    spec.annotations.name = "removed-meanwhile".into();
    let [creating, listing] = &mut control;
    let create = creating.create_config(CreateConfigRequest { spec: Some(spec) });
    let list = listing.list_configs(ListConfigsRequest::default());
    let wake = async {
        // Both are under way.
        tokio::task::yield_now().await;
        managers.lab.unpause(&first).await
    };
    let (created, listed, woken) = tokio::join!(create, list, wake);
    woken?;
    if let Err(status) = created {
        ensure!(status.code() != Code::AlreadyExists, "refused for what is gone: {status}");
    }
    if let Ok(listed) = listed {
        let names: Vec<_> =
            listed.into_inner().configs.iter().map(|c| c.spec.annotations.name.clone()).collect();
        ensure!(
            names.contains(&"while-it-was-frozen".to_owned()),
            "it shows what was there before: {names:?}"
        );
    }
    write(managers, &[&first], "by-the-one-that-woke").await?;
    same(managers, &ALL).await?;
    ensure!(leader(managers, &ALL).await? == second);
    ensure!(managers.terms() == before, "the one that woke disturbed the leader");
    ensure!(has(managers, &first, "while-it-was-frozen").await?);
    Ok(())
}

/// Each manager in turn goes down and comes back with another address: the same member, found by all.
async fn moved(managers: &mut Managers) -> Result<()> {
    for name in ALL {
        let others = others(name);
        let before = seen_by(managers, name).await?;
        if name == "m2" {
            managers.lab.kill(name).await?;
        } else {
            managers.lab.stop(name).await?;
        }
        leader(managers, &others).await?;
        managers.lab.move_host(name).await?;
        managers.lab.start(name).await?;
        let address = managers.address(name)?;
        for by in ALL {
            until("the new address to be known", PATIENCE, || async {
                let seen = seen_by(managers, by).await?;
                let (_, status) =
                    seen.iter().find(|(member, _)| member == name).context("it is no member")?;
                ensure!(status.addr == address, "{by} sees {status:?}");
                let (_, old) =
                    before.iter().find(|(member, _)| member == name).context("it was no member")?;
                ensure!(status.raft_id == old.raft_id, "it is another member: {status:?}");
                Ok(())
            })
            .await?;
        }
        write(managers, &[name], &format!("{name}-moved")).await?;
        same(managers, &ALL).await?;
    }
    let by = leader(managers, &ALL).await?;
    reachable(managers, &by).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_acknowledged_services_survive_leaders_that_are_killed() -> Result<()> {
    let mut managers = Managers::start(3, Setup::quick()).await?;
    let result = leaders_killed(&mut managers, 3).await;
    managers.with_logs(result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long suite"]
async fn long_docker_acknowledged_services_survive_thirty_leaders_that_are_killed() -> Result<()> {
    // With elections as they are by default.
    let mut managers = Managers::start(3, Setup::default()).await?;
    let result = leaders_killed(&mut managers, 30).await;
    managers.with_logs(result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_leader_that_is_cut_off_gives_up_and_the_others_go_on() -> Result<()> {
    let mut managers = Managers::start(3, Setup::quick()).await?;
    for cut in [Cut::Both, Cut::Outwards, Cut::Inwards] {
        let result = cut_off(&mut managers, cut).await;
        managers.with_logs(result.with_context(|| format!("{cut:?}")))?;
    }
    managers.one_leader_per_term()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_link_that_a_firewall_resets_causes_no_election() -> Result<()> {
    let mut managers = Managers::start(3, Setup::quick()).await?;
    let result = link_reset(&mut managers).await;
    managers.with_logs(result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_leader_stays_where_one_manager_sees_both_sides() -> Result<()> {
    let mut managers = Managers::start(3, Setup::quick()).await?;
    let result = bridge(&mut managers).await;
    managers.with_logs(result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_frozen_leader_is_superseded_and_managers_may_move() -> Result<()> {
    let mut managers = Managers::start(3, Setup::quick()).await?;
    let result = async {
        frozen(&mut managers).await?;
        moved(&mut managers).await
    }
    .await;
    managers.with_logs(result)
}
