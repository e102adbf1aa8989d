//! Managers as real processes that join, lead, die, move, lose their log and are removed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use swarm_api::swarmd::AttendRequest;
use swarm_api::swarmd::peers_client::PeersClient;
use swarm_api::v1::raft_member_status::Reachability;
use swarm_api::v1::raft_membership_client::RaftMembershipClient;
use swarm_api::v1::{ConfigSpec, CreateConfigRequest, LeaveRequest, ManagerStatus, NodeRole, RaftMember};
use swarm_testkit::daemon::{Cluster, Engine, free_address};
use swarm_testkit::quorum::{PATIENCE, leader, reachable, same, seen_by};
use swarm_testkit::wait::until;
use swarm_tests::{compact_soon, with_logs};

async fn three() -> Result<Cluster> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    for _ in 0..2 {
        cluster.add_manager().await?;
    }
    Ok(cluster)
}

async fn status_of(cluster: &Cluster, by: &str, name: &str) -> Result<ManagerStatus> {
    let seen = seen_by(cluster, by).await?;
    seen.into_iter().find(|(n, _)| n == name).map(|(_, s)| s).with_context(|| format!("{name} is no member"))
}

/// Writes a config through the leader, whoever that is.
async fn write(cluster: &Cluster, alive: &[&str], name: &str) -> Result<()> {
    until(&format!("{name} to be written"), PATIENCE, || async {
        let mut error = None;
        for manager in alive {
            let mut spec = ConfigSpec { data: name.into(), ..ConfigSpec::default() };
            spec.annotations.name = name.to_owned();
            let request = CreateConfigRequest { spec: Some(spec) };
            match cluster.tls(manager)?.create_config(request).await {
                Ok(_) => return Ok(()),
                // An earlier attempt whose outcome was not known.
                Err(status) if status.code() == tonic::Code::AlreadyExists => return Ok(()),
                Err(status) => error = Some(status),
            }
        }
        bail!("{error:?}")
    })
    .await
}

async fn has(cluster: &Cluster, manager: &str, config: &str) -> Result<bool> {
    Ok(cluster.contents(manager).await?.configs.iter().any(|c| c.spec.annotations.name == config))
}

const ALL: [&str; 3] = ["manager", "manager-2", "manager-3"];

async fn a_quorum(cluster: &mut Cluster) -> Result<()> {
    reachable(cluster, "manager").await?;
    for i in 0..20 {
        write(cluster, &ALL, &format!("config-{i}")).await?;
    }
    same(cluster, &ALL).await?;
    until("the table to show them", PATIENCE, || async {
        let table = cluster.ctl_ok(&["node", "ls"])?;
        let states = [" REACHABLE *", " REACHABLE"].map(|state| table.matches(state).count());
        ensure!(states == [1, 3], "{table}");
        Ok(())
    })
    .await?;

    // What a dead leader is noticed by.
    let mut leading = 0;
    for name in ALL {
        let mut peers = PeersClient::new(cluster.tls_channel(name)?);
        let mut stream = peers.attend(AttendRequest {}).await?.into_inner();
        let first = stream.message().await?.context("no answer")?;
        ensure!(first.raft_id == status_of(cluster, name, name).await?.raft_id, "{first:?}");
        leading += usize::from(first.leads);
    }
    ensure!(leading == 1, "{leading} lead");

    let first = hand_over(cluster).await?;
    let rest: Vec<&str> = ALL.into_iter().filter(|name| *name != first).collect();
    let second = leader(cluster, &rest).await?;
    write(cluster, &rest, "without-the-first").await?;
    until("the first to be shown as unreachable", PATIENCE, || async {
        let status = status_of(cluster, &second, &first).await?;
        ensure!(status.reachability() == Reachability::Unreachable && !status.leader, "{status:?}");
        Ok(())
    })
    .await?;
    cluster.daemon_mut(&first)?.spawn()?;
    same(cluster, &ALL).await?;
    reachable(cluster, &second).await?;
    ensure!(has(cluster, &first, "without-the-first").await?);
    Ok(())
}

/// Stops the leader in good order, which hands over first; its name.
async fn hand_over(cluster: &mut Cluster) -> Result<String> {
    for _ in 0..5 {
        let first = leader(cluster, &ALL).await?;
        let daemon = cluster.daemon_mut(&first)?;
        let status = daemon.stop().await?;
        ensure!(status.success(), "{status}");
        if daemon.log().contains("handed leadership over") {
            return Ok(first);
        }
        // On a very busy machine another one may have taken over just before.
        daemon.spawn()?;
    }
    bail!("no leader handed over")
}

async fn leader_killed(cluster: &mut Cluster) -> Result<()> {
    write(cluster, &ALL, "before").await?;
    same(cluster, &ALL).await?;
    cluster.manager.kill()?;
    let rest = ["manager-2", "manager-3"];
    let second = leader(cluster, &rest).await?;
    for i in 0..10 {
        write(cluster, &rest, &format!("after-{i}")).await?;
    }
    same(cluster, &rest).await?;
    ensure!(has(cluster, &second, "before").await?, "an acknowledged write was lost");
    cluster.manager.spawn()?;
    same(cluster, &ALL).await?;
    ensure!(has(cluster, "manager", "after-9").await?);
    Ok(())
}

async fn leader_frozen(cluster: &mut Cluster) -> Result<()> {
    reachable(cluster, "manager").await?;
    write(cluster, &ALL, "before").await?;
    let first = leader(cluster, &ALL).await?;
    let rest: Vec<&str> = ALL.into_iter().filter(|name| *name != first).collect();
    cluster.daemon_named(&first)?.pause()?;
    leader(cluster, &rest).await?;
    write(cluster, &rest, "while-it-was-frozen").await?;
    same(cluster, &rest).await?;
    // It takes itself for the leader until it hears from the others.
    cluster.daemon_named(&first)?.resume()?;
    leader(cluster, &ALL).await?;
    same(cluster, &ALL).await?;
    ensure!(has(cluster, &first, "while-it-was-frozen").await?);
    write(cluster, &ALL, "afterwards").await?;
    same(cluster, &ALL).await.map(drop)
}

async fn all_killed(cluster: &mut Cluster) -> Result<()> {
    write(cluster, &ALL, "before").await?;
    same(cluster, &ALL).await?;
    cluster.daemon_mut("manager-2")?.kill()?;
    cluster.daemon_mut("manager-3")?.kill()?;
    // Alone, a manager acknowledges nothing.
    let mut spec = ConfigSpec::default();
    spec.annotations.name = "alone".into();
    let request = CreateConfigRequest { spec: Some(spec) };
    let mut control = cluster.tls("manager")?;
    let alone = tokio::time::timeout(Duration::from_secs(5), control.create_config(request)).await;
    ensure!(!matches!(alone, Ok(Ok(_))), "a minority acknowledged a write");
    let missing =
        [cluster.daemon_named("manager-2")?.address()?, cluster.daemon_named("manager-3")?.address()?];
    until("the error to say who is missing", PATIENCE, || async {
        let out = cluster.ctl(&["node", "ls"])?;
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(!out.status.success() && text.contains("The swarm does not have a leader."), "{text}");
        ensure!(text.contains("Of 3 known managers, 2 must be online; this one reaches 1"), "{text}");
        ensure!(missing.iter().all(|addr| text.contains(addr)), "{text}");
        Ok(())
    })
    .await?;
    cluster.manager.kill()?;
    for name in ALL {
        cluster.daemon_mut(name)?.spawn()?;
    }
    write(cluster, &ALL, "together-again").await?;
    same(cluster, &ALL).await?;
    for written in ["before", "together-again"] {
        ensure!(has(cluster, "manager", written).await?, "{written} was lost");
    }
    Ok(())
}

/// Removes a member, by any manager.
async fn leave(cluster: &Cluster, by: &str, raft_id: u64) -> Result<()> {
    until("the member to be removed", PATIENCE, || async {
        let mut members = RaftMembershipClient::new(cluster.tls_channel(by)?);
        let node = RaftMember { raft_id, ..RaftMember::default() };
        match members.leave(LeaveRequest { node: Some(node) }).await {
            Ok(_) => Ok(()),
            // An earlier attempt whose outcome was not known.
            Err(status) if status.message().contains("member not found") => Ok(()),
            Err(status) => Err(status.into()),
        }
    })
    .await
}

async fn says_that_it_was_removed(cluster: &Cluster, name: &str) -> Result<()> {
    until("the removed manager to say so", PATIENCE, || async {
        let log = cluster.daemon_named(name)?.log();
        ensure!(log.contains("this manager was removed from the cluster"), "it does not");
        Ok(())
    })
    .await
}

async fn removed(cluster: &mut Cluster) -> Result<()> {
    reachable(cluster, "manager").await?;
    let status = status_of(cluster, "manager", "manager-3").await?;
    let mut members = RaftMembershipClient::new(cluster.tls_channel("manager")?);
    let refused = members.leave(LeaveRequest::default()).await.err().context("it left nobody")?;
    ensure!(refused.code() == tonic::Code::InvalidArgument, "{refused}");
    leave(cluster, "manager", status.raft_id).await?;
    says_that_it_was_removed(cluster, "manager-3").await?;
    let rest = ["manager", "manager-2"];
    write(cluster, &rest, "without-the-third").await?;
    same(cluster, &rest).await?;
    // It is still meant to be a manager; but the member that it was is gone for good.
    let again = until("it to be a new member", PATIENCE, || async {
        let status = status_of(cluster, "manager", "manager-3").await?;
        ensure!(status.reachability() == Reachability::Reachable, "{status:?}");
        Ok(status)
    })
    .await?;
    ensure!(again.raft_id != status.raft_id, "it came back as the member that was removed");
    same(cluster, &ALL).await.map(drop)
}

async fn leader_leaves(cluster: &mut Cluster) -> Result<()> {
    reachable(cluster, "manager").await?;
    let first = leader(cluster, &ALL).await?;
    let status = status_of(cluster, "manager", &first).await?;
    let rest: Vec<&str> = ALL.into_iter().filter(|name| *name != first).collect();
    leave(cluster, rest[0], status.raft_id).await?;
    says_that_it_was_removed(cluster, &first).await?;
    leader(cluster, &rest).await?;
    write(cluster, &rest, "without-the-first").await?;
    same(cluster, &rest).await.map(drop)
}

async fn moved_and_wiped(cluster: &mut Cluster) -> Result<()> {
    reachable(cluster, "manager").await?;
    let before = status_of(cluster, "manager", "manager-3").await?;
    cluster.daemon_mut("manager-3")?.stop().await?;
    cluster.daemon_mut("manager-3")?.set_flag("--listen-remote-api", &free_address())?;
    cluster.daemon_mut("manager-3")?.spawn()?;
    let moved = until("the new address to be known", PATIENCE, || async {
        let status = status_of(cluster, "manager", "manager-3").await?;
        ensure!(status.addr != before.addr && status.reachability() == Reachability::Reachable, "{status:?}");
        Ok(status)
    })
    .await?;
    ensure!(moved.raft_id == before.raft_id, "a member that moved is still the same member");
    write(cluster, &ALL, "moved").await?;
    same(cluster, &ALL).await?;

    // Its log is gone: it may not vote as the one that it was.
    cluster.daemon_mut("manager-3")?.kill()?;
    std::fs::remove_dir_all(cluster.daemon_named("manager-3")?.state_dir().join("raft"))?;
    cluster.daemon_mut("manager-3")?.spawn()?;
    until("the wiped manager to be a new member", PATIENCE, || async {
        let status = status_of(cluster, "manager", "manager-3").await?;
        ensure!(status.raft_id != before.raft_id, "{status:?}");
        ensure!(status.reachability() == Reachability::Reachable, "{status:?}");
        Ok(())
    })
    .await?;
    same(cluster, &ALL).await?;
    ensure!(seen_by(cluster, "manager").await?.len() == 3);
    Ok(())
}

/// Has snapshots taken so often that no manager's log reaches back to its first entry.
async fn compacted(cluster: &mut Cluster) -> Result<()> {
    compact_soon(cluster).await?;
    for i in 0..40 {
        write(cluster, &["manager"], &format!("old-{i}")).await?;
    }
    until("a snapshot", PATIENCE, || async {
        ensure!(has_files(cluster, "manager", ".snap")?);
        Ok(())
    })
    .await
}

/// Whether a manager has files that end like this beside its log.
fn has_files(cluster: &Cluster, name: &str, ending: &str) -> Result<bool> {
    let dir = cluster.daemon_named(name)?.state_dir().join("raft/snapshots");
    // It may not be there yet.
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    Ok(files.into_iter().any(|file| file.file_name().to_string_lossy().ends_with(ending)))
}

const FETCHED: &str = "fetched the cluster's state before joining the raft group";

async fn fetched(cluster: &mut Cluster) -> Result<()> {
    compacted(cluster).await?;
    for _ in 0..2 {
        cluster.add_manager().await?;
    }
    for i in 0..20 {
        write(cluster, &ALL, &format!("new-{i}")).await?;
    }
    same(cluster, &ALL).await?;
    for name in ["manager-2", "manager-3"] {
        ensure!(cluster.daemon_named(name)?.log().contains(FETCHED), "{name} did not fetch it");
        ensure!(!has_files(cluster, name, ".fetched")?, "something is left of it");
    }
    for text in ["sending a raft snapshot", "took over a snapshot from the leader"] {
        ensure!(!cluster.logs().contains(text), "a snapshot was sent all the same");
    }
    // Those that joined so come back as all others do.
    for name in ALL {
        cluster.daemon_mut(name)?.kill()?;
    }
    for name in ALL {
        cluster.daemon_mut(name)?.spawn()?;
    }
    write(cluster, &ALL, "together-again").await?;
    same(cluster, &ALL).await?;
    ensure!(has(cluster, "manager-3", "old-0").await? && has(cluster, "manager-3", "new-19").await?);
    Ok(())
}

/// The third manager is killed on its way into the group, earlier and later; it comes back until it is a member like the others.
async fn killed_while_it_joins(cluster: &mut Cluster) -> Result<()> {
    compacted(cluster).await?;
    cluster.add_manager().await?;
    let name = cluster.spawn_manager().await?;
    for round in 0..3 {
        until("it to be on its way", PATIENCE, || async {
            let daemon = cluster.daemon_named(&name)?;
            let on_its_way = match round {
                0 => has_files(cluster, &name, "")?,
                1 => daemon.log().contains(FETCHED),
                _ => daemon.state_dir().join("raft/log").exists(),
            };
            ensure!(on_its_way, "it is not");
            Ok(())
        })
        .await?;
        cluster.daemon_mut(&name)?.kill()?;
        // Whatever became of it, the others go on.
        write(cluster, &["manager", "manager-2"], &format!("round-{round}")).await?;
        cluster.daemon_mut(&name)?.spawn()?;
    }
    // Its store may have everything before it is a member.
    until("it to be a member", PATIENCE, || async {
        let seen = seen_by(cluster, &name).await?;
        ensure!(seen.len() == 3 && seen_by(cluster, "manager").await?.len() == 3, "{seen:?}");
        Ok(())
    })
    .await?;
    ensure!(!has_files(cluster, &name, ".fetched")?, "something is left of it");
    write(cluster, &ALL, "afterwards").await?;
    same(cluster, &ALL).await.map(drop)
}

async fn unreachable_joiner(cluster: &mut Cluster) -> Result<()> {
    let (address, token) = (cluster.address()?, cluster.manager_token().await?);
    let socket = cluster.socket_of("manager-x");
    let socket = socket.to_str().context("a path in UTF-8")?;
    let mut joiner = cluster.daemon(
        "manager-x",
        &[
            "--listen-remote-api",
            "127.0.0.1:0",
            "--advertise-remote-api",
            "127.0.0.1:1",
            "--listen-control-api",
            socket,
            "--join-addr",
            &address,
            "--join-token",
            &token,
        ],
    );
    joiner.spawn()?;
    let status = joiner.ended(PATIENCE).await?;
    let log = joiner.log();
    ensure!(!status.success(), "{log}");
    let text = "could not connect to prospective new cluster member using its advertised address";
    ensure!(log.contains(text), "{log}");
    let seen = seen_by(cluster, "manager").await?;
    ensure!(seen.len() == 1, "{seen:?}");
    // The node is known, but no member.
    let nodes = cluster.nodes().await?;
    ensure!(nodes.iter().filter(|n| n.role() == NodeRole::Manager).count() == 2, "{nodes:?}");
    write(cluster, &["manager"], "unharmed").await
}

/// Keeps every core busy twice until dropped.
struct Busy(std::sync::Arc<AtomicBool>);

impl Busy {
    fn begin() -> Busy {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) * 2 {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Busy(stop)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// For half an hour writes go on while nothing else is idle, and the leader stays in its term.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long suite"]
async fn long_no_election_is_held_while_all_cores_are_busy() -> Result<()> {
    let mut cluster = three().await?;
    reachable(&cluster, "manager").await?;
    let first = leader(&cluster, &ALL).await?;
    let elections = |cluster: &Cluster| cluster.logs().matches("this manager leads the cluster").count();
    let before = elections(&cluster);
    let busy = Busy::begin();
    let end = Instant::now() + Duration::from_secs(30 * 60);
    let mut number = 0;
    while Instant::now() < end {
        write(&cluster, &ALL, &format!("config-{number}")).await?;
        number += 1;
    }
    drop(busy);
    let result = async {
        ensure!(elections(&cluster) == before, "there was an election");
        ensure!(leader(&cluster, &ALL).await? == first, "another one leads");
        Ok(())
    };
    let result = result.await;
    println!("{number} writes");
    cluster.reconnect();
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_managers_form_a_quorum_and_hold_the_same() -> Result<()> {
    let mut cluster = three().await?;
    let result = a_quorum(&mut cluster).await;
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_manager_leads_when_the_leader_is_killed() -> Result<()> {
    let mut cluster = three().await?;
    let result = leader_killed(&mut cluster).await;
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_is_replaced_and_follows_when_it_wakes() -> Result<()> {
    let mut cluster = three().await?;
    let result = leader_frozen(&mut cluster).await;
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_that_were_all_killed_go_on_where_they_were() -> Result<()> {
    let mut cluster = three().await?;
    let result = all_killed(&mut cluster).await;
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_manager_says_so_and_comes_back_as_a_new_member_only() -> Result<()> {
    let mut cluster = three().await?;
    let result = removed(&mut cluster).await;
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_removed_hands_over_first() -> Result<()> {
    let mut cluster = three().await?;
    let result = leader_leaves(&mut cluster).await;
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_may_move_and_a_wiped_one_joins_afresh() -> Result<()> {
    let mut cluster = three().await?;
    let result = moved_and_wiped(&mut cluster).await;
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_that_nobody_can_reach_is_refused() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = unreachable_joiner(&mut cluster).await;
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_fetches_the_state_before_it_joins_and_needs_no_snapshot() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = fetched(&mut cluster).await;
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_is_killed_while_it_joins_comes_back_as_a_member() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = killed_while_it_joins(&mut cluster).await;
    with_logs(&cluster, result)
}
