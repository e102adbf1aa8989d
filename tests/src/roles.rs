//! Nodes and their roles, as managers show them.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use swarm_api::Shared;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::raft_member_status::Reachability;
use swarm_api::v1::{ListNodesRequest, Node, NodeRole, Placement, ServiceSpec, task_spec};
use swarm_testkit::daemon::{Cluster, channel};
use swarm_testkit::quorum::PATIENCE;
use swarm_testkit::wait::until;

use crate::{process_service, processes_with};

/// Processes of one service, recognised by their environment.
#[derive(Debug)]
pub struct Marked {
    mark: String,
}

impl Marked {
    /// With a mark of their own.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Marked {
        Marked { mark: format!("ROLES={}", swarm_api::id::random()) }
    }

    /// A service of such processes, on the node with this hostname or on any.
    pub fn service(&self, name: &str, replicas: u64, node: Option<&str>) -> ServiceSpec {
        let mut spec = process_service(name, replicas);
        let mut task = (*spec.task).clone();
        if let Some(task_spec::Runtime::Generic(generic)) = &mut task.runtime
            && let Some(payload) = &mut generic.payload
        {
            let mut process: swarm_api::swarmd::ProcessSpec = payload.to_msg().expect("it decodes");
            process.env = vec![self.mark.clone()];
            *payload = prost_types::Any::from_msg(&process).expect("it encodes");
        }
        if let Some(node) = node {
            let constraints = vec![format!("node.hostname=={node}")];
            task.placement = Some(Placement { constraints, ..Default::default() });
        }
        spec.task = task.into();
        spec
    }

    /// Process ids of those that run.
    pub fn pids(&self) -> BTreeSet<u32> {
        let sleeps = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
        };
        processes_with(&self.mark).into_iter().filter(sleeps).collect()
    }
}

/// The nodes as the manager with this name shows them on its socket.
pub async fn nodes(cluster: &Cluster, at: &str) -> Result<Vec<Shared<Node>>> {
    let mut control = ControlClient::new(channel(cluster.socket_of(at)));
    Ok(control.list_nodes(ListNodesRequest::default()).await?.into_inner().nodes)
}

/// The node with this hostname, as the manager `at` shows it.
pub async fn node(cluster: &Cluster, at: &str, name: &str) -> Result<Shared<Node>> {
    let nodes = nodes(cluster, at).await?;
    let found = nodes.into_iter().find(|n| n.description.as_ref().is_some_and(|d| d.hostname == name));
    found.with_context(|| format!("no node {name}"))
}

/// Waits until a node has this role, and is a reachable member of the raft group or none.
pub async fn has_role(cluster: &Cluster, at: &str, name: &str, role: NodeRole) -> Result<()> {
    until(&format!("{name} to be a {}", role.as_str_name()), PATIENCE, || async {
        let node = node(cluster, at, name).await?;
        ensure!(node.role() == role, "its role is {}", node.role().as_str_name());
        let reachable = node.manager_status.as_ref().map(|status| status.reachability());
        let expected = (role == NodeRole::Manager).then_some(Reachability::Reachable);
        ensure!(reachable == expected, "as a manager it is {reachable:?}");
        let unit = match role {
            NodeRole::Manager => "swarm-manager",
            NodeRole::Worker => "swarm-worker",
        };
        let path = cluster.daemon_named(name)?.state_dir().join("certificates/swarm-node.crt");
        let certificate = swarm_pki::Certificate::from_pem_bundle(&std::fs::read(path)?)?;
        let identity = swarm_pki::PeerIdentity::of(certificate.first().context("no certificate")?);
        ensure!(identity.has_unit(unit), "its certificate is of {:?}", identity.units);
        Ok(())
    })
    .await
}

/// Runs `swarmctl` against the socket of the manager with this name.
pub fn ctl(cluster: &Cluster, at: &str, args: &[&str]) -> Result<std::process::Output> {
    let program = swarm_testkit::daemon::program("swarmctl")?;
    Ok(std::process::Command::new(program).arg("--socket").arg(cluster.socket_of(at)).args(args).output()?)
}

/// The same; what it printed. Fails if it does.
pub fn ctl_ok(cluster: &Cluster, at: &str, args: &[&str]) -> Result<String> {
    let out = ctl(cluster, at, args)?;
    ensure!(out.status.success(), "swarmctl {args:?} at {at}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
