//! Managers that come and go while clients write: 1, 3, 5, 3, 1, by every way there is. No write is lost, no term has two
//! leaders, and the tasks on all these nodes notice nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use swarm_api::v1::raft_member_status::Reachability;
use swarm_api::v1::raft_membership_client::RaftMembershipClient;
use swarm_api::v1::{LeaveRequest, ManagerStatus, NodeRole, RaftMember};
use swarm_testkit::daemon::{Cluster, Engine, free_address};
use swarm_testkit::linear::{self, Clients, Load};
use swarm_testkit::quorum::{PATIENCE, same};
use swarm_testkit::wait::until;
use swarm_tests::roles::{Marked, ctl, has_role, node};
use swarm_tests::{SOON, create, with_logs};

/// Nodes that are there all the time, in whatever role.
const STAY: [&str; 3] = ["manager", "worker-1", "worker-2"];
/// Writes between two changes: enough that each change happens amid them.
const WRITES: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn managers_come_and_go_under_load() -> Result<()> {
    churn(1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "long suite"]
async fn long_managers_come_and_go_under_load() -> Result<()> {
    churn(8).await
}

async fn churn(rounds: u64) -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 2).await?;
    let result = several_rounds(&mut cluster, rounds).await;
    with_logs(&cluster, result)
}

async fn several_rounds(cluster: &mut Cluster, rounds: u64) -> Result<()> {
    let mut services = Vec::new();
    for name in STAY {
        let marked = Marked::new();
        let service = create(cluster, marked.service(&format!("on-{name}"), 2, Some(name))).await?;
        cluster.running(&service, 2, SOON).await?;
        services.push(marked);
    }
    let pids = |services: &[Marked]| -> Vec<BTreeSet<u32>> { services.iter().map(Marked::pids).collect() };
    let before = pids(&services);
    ensure!(before.iter().all(|pids| pids.len() == 2), "{before:?}");
    let mut churn = Churn { cluster, managers: vec!["manager".into()], clients: None };
    for round in 0..rounds {
        churn.round(round).await?;
        ensure!(pids(&services) == before, "{before:?} became {:?}", pids(&services));
    }
    Ok(())
}

struct Churn<'c> {
    cluster: &'c mut Cluster,
    /// Names of those that are managers.
    managers: Vec<String>,
    clients: Option<Clients>,
}

impl Churn<'_> {
    async fn round(&mut self, round: u64) -> Result<()> {
        let next = self.cluster.managers.len() + 2;
        let joiners = [0, 1].map(|number| format!("manager-{}", next + number));
        let all: Vec<&str> = STAY.into_iter().chain(joiners.iter().map(String::as_str)).collect();
        self.start_clients(round * 2, &all);
        // In later rounds the last manager may be another one.
        for name in &STAY[..2] {
            self.promote(name).await?;
        }
        self.cluster.reconnect();
        let (stays, dies) = (self.join().await?, self.join().await?);
        self.promote(STAY[2]).await?;
        ensure!(self.managers.len() == 5, "{:?}", self.managers);
        self.check(|_| true).await?;
        same(&*self.cluster, &all).await?;
        self.start_clients(round * 2 + 1, &all);
        self.progress().await?;

        self.move_leader().await?;
        self.remove_dead(&dies).await?;
        let leader = self.leader()?;
        self.demote(&leader).await?;
        self.leave_and_return().await?;
        ensure!(self.managers.len() == 3, "{:?}", self.managers);
        // The one that joined leaves for good; the others stay as workers.
        while self.managers.len() > 1 {
            let next = if self.managers.contains(&stays) { stays.clone() } else { self.leader()? };
            self.demote(&next).await?;
        }
        self.cluster.daemon_mut(&stays)?.stop().await?;
        self.ctl_until(&self.managers[0], &["node", "rm", "--force", &stays], "not found").await?;
        self.progress().await?;
        let last = self.door(&self.managers[0]);
        self.check(|name| name == last).await?;
        self.cluster.one_leader_a_term()
    }

    /// Clients of managers, some of which are to become so.
    fn start_clients(&mut self, seed: u64, names: &[&str]) {
        let sockets: Vec<PathBuf> = names.iter().map(|name| self.cluster.socket_of(name)).collect();
        self.clients = Some(Clients::start(&sockets, Load { seed, clients: 4, ..Load::default() }));
    }

    /// What clients call a manager.
    fn door(&self, name: &str) -> String {
        let socket = self.cluster.socket_of(name);
        socket.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    async fn progress(&self) -> Result<()> {
        self.clients.as_ref().context("no clients")?.progress(WRITES).await
    }

    async fn check(&mut self, lists: impl Fn(&str) -> bool) -> Result<()> {
        let history = self.clients.take().context("no clients")?.finish_at(lists).await?;
        println!("{:?}", history.outcomes());
        println!("{}", linear::check(&history)?);
        Ok(())
    }

    fn leader(&self) -> Result<String> {
        Ok(self.cluster.last_leader()?.name.clone())
    }

    /// A manager that is not this one.
    fn other(&self, name: &str) -> Result<String> {
        self.managers.iter().find(|other| *other != name).cloned().context("there is no other manager")
    }

    /// Repeats a command until it succeeds, or until an error says that an earlier attempt did.
    async fn ctl_until(&self, at: &str, args: &[&str], done: &str) -> Result<()> {
        until(&format!("swarmctl {args:?} at {at}"), PATIENCE, || async {
            let out = ctl(self.cluster, at, args)?;
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            ensure!(out.status.success() || text.contains(done), "{text}");
            Ok(())
        })
        .await
    }

    /// Makes a manager of a node, unless it is one.
    async fn promote(&mut self, name: &str) -> Result<()> {
        if self.managers.iter().any(|manager| manager == name) {
            return Ok(());
        }
        let at = self.managers[0].clone();
        self.ctl_until(&at, &["node", "promote", name], "already a manager").await?;
        has_role(self.cluster, &at, name, NodeRole::Manager).await?;
        self.managers.push(name.to_owned());
        self.progress().await
    }

    async fn demote(&mut self, name: &str) -> Result<()> {
        let at = self.other(name)?;
        self.ctl_until(&at, &["node", "demote", name], "already a worker").await?;
        has_role(self.cluster, &at, name, NodeRole::Worker).await?;
        self.managers.retain(|manager| manager != name);
        self.progress().await
    }

    async fn join(&mut self) -> Result<String> {
        let name = self.cluster.spawn_manager().await?;
        has_role(self.cluster, "manager", &name, NodeRole::Manager).await?;
        self.managers.push(name.clone());
        self.progress().await?;
        Ok(name)
    }

    async fn status(&self, at: &str, name: &str) -> Result<ManagerStatus> {
        let node = node(self.cluster, at, name).await?;
        let status = node.manager_status.clone().with_context(|| format!("{name} is no member"))?;
        ensure!(status.reachability() == Reachability::Reachable, "{name} is not reachable");
        Ok(status)
    }

    /// The leader is killed and comes back with another address.
    async fn move_leader(&mut self) -> Result<()> {
        let leader = self.leader()?;
        let at = self.other(&leader)?;
        let before = self.status(&at, &leader).await?;
        let daemon = self.cluster.daemon_mut(&leader)?;
        daemon.kill()?;
        daemon.set_flag("--listen-remote-api", &free_address())?;
        daemon.spawn()?;
        until("the new address to be known", PATIENCE, || async {
            let status = self.status(&at, &leader).await?;
            ensure!(status.addr != before.addr && status.raft_id == before.raft_id, "{status:?}");
            Ok(())
        })
        .await?;
        self.progress().await
    }

    /// A manager dies and never comes back.
    async fn remove_dead(&mut self, name: &str) -> Result<()> {
        self.cluster.daemon_mut(name)?.kill()?;
        let at = self.other(name)?;
        self.progress().await?;
        let out = ctl(self.cluster, &at, &["node", "rm", "--force", name])?;
        ensure!(!out.status.success(), "a member of the group was removed while it was one");
        self.ctl_until(&at, &["node", "demote", name], "already a worker").await?;
        until("it to be no member", PATIENCE, || async {
            let node = node(self.cluster, &at, name).await?;
            ensure!(node.role() == NodeRole::Worker && node.manager_status.is_none(), "it still is");
            Ok(())
        })
        .await?;
        self.ctl_until(&at, &["node", "rm", "--force", name], "not found").await?;
        self.managers.retain(|manager| manager != name);
        self.progress().await
    }

    /// A manager that does not lead leaves the raft group. It is still meant to be a manager, so it comes back, as another
    /// member.
    async fn leave_and_return(&self) -> Result<()> {
        let leader = self.leader()?;
        let name = self.other(&leader)?;
        let before = self.status(&leader, &name).await?;
        until("it to be let go", PATIENCE, || async {
            let mut members = RaftMembershipClient::new(self.cluster.tls_channel(&leader)?);
            let node = RaftMember { raft_id: before.raft_id, ..RaftMember::default() };
            match members.leave(LeaveRequest { node: Some(node) }).await {
                // An earlier attempt whose outcome was not known.
                Err(status) if status.message().contains("member not found") => Ok(()),
                result => Ok(result.map(drop)?),
            }
        })
        .await?;
        until("it to be another member", PATIENCE, || async {
            let status = self.status(&leader, &name).await?;
            ensure!(status.raft_id != before.raft_id, "it is the same member");
            Ok(())
        })
        .await?;
        self.progress().await
    }
}
