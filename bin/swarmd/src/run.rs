//! From flags to a running node, and to its orderly end.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use swarm_agent::{Executor, GenericSources};
use swarm_node::{Config, Join, Node};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::flags::Flags;
use crate::secrets;

/// Runs a node until a signal ends it.
pub(crate) async fn run(flags: Flags) -> Result<()> {
    ensure!(
        flags.election_tick > flags.heartbeat_tick && flags.heartbeat_tick > 0,
        "--election-tick {} must exceed --heartbeat-tick {}, and that must be at least 1",
        flags.election_tick,
        flags.heartbeat_tick
    );
    let (unlock_key, restore) = (secrets::unlock_key(&flags)?, secrets::restore(&flags)?);
    let mut terminate = signal(SignalKind::terminate()).context("can't listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for signals")?;
    info!(version = env!("CARGO_PKG_VERSION"), state_dir = %flags.state_dir.display(), "starting swarmd");
    warn_unreachable(&flags);

    let generic_resources = GenericSources {
        given: flags.generic_node_resources.clone().map(|list| list.0).unwrap_or_default(),
        files: flags.generic_node_resources_file.clone(),
        devices: flags.discover_devices.clone(),
        gpus: flags.discover_gpus.0.clone(),
    };
    generic_resources.check().map_err(|error| anyhow::anyhow!("--generic-node-resources-file: {error}"))?;
    let executors = executors(&flags)?;
    let config = Config {
        state_dir: flags.state_dir,
        join: flags.join_addr.zip(flags.join_token).map(|(addr, token)| Join { addr, token }),
        listen_remote_api: flags.listen_remote_api,
        advertise_remote_api: flags.advertise_remote_api,
        listen_control_api: flags.listen_control_api,
        hostname: flags.hostname,
        executors,
        exec: !flags.no_exec,
        generic_resources,
        heartbeat_tick: flags.heartbeat_tick,
        election_tick: flags.election_tick,
        unlock_key,
        autolock: flags.autolock,
        force_new_cluster: flags.force_new_cluster,
        restore,
    };
    let node = tokio::select! {
        // Its errors say everything in one text; their causes would say it again.
        node = Node::start(config) => node.map_err(|error| anyhow::anyhow!("{error}"))?,
        _ = terminate.recv() => anyhow::bail!("stopped by a signal before the node had started"),
        _ = interrupt.recv() => anyhow::bail!("stopped by a signal before the node had started"),
    };
    let ended = tokio::select! {
        ended = node.ended() => Some(ended),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    match ended {
        Some(result) => {
            node.stop().await;
            result.map_err(|error| anyhow::anyhow!("{error}"))
        }
        None => {
            info!("stopping; tasks go on running. A second signal ends the daemon at once");
            tokio::select! {
                () = node.stop() => {
                    info!("stopped");
                    Ok(())
                }
                _ = terminate.recv() => anyhow::bail!("ended by a second signal"),
                _ = interrupt.recv() => anyhow::bail!("ended by a second signal"),
            }
        }
    }
}

/// Says so if the address that others are told is one that they can't use.
fn warn_unreachable(flags: &Flags) {
    if flags.advertise_remote_api.is_some() {
        return;
    }
    if let Ok(addr) = flags.listen_remote_api.parse::<SocketAddr>()
        && (addr.ip().is_unspecified() || addr.ip().is_loopback())
    {
        println!(
            "Warning: nodes on other hosts can't reach {addr}: give --advertise-remote-api an address that they can"
        );
    }
}

fn executors(flags: &Flags) -> Result<Vec<Arc<dyn Executor>>> {
    if flags.simulate {
        warn!("tasks are simulated: nothing really runs");
        let world = swarm_executor_sim::World::new(0);
        let name = flags.hostname.clone().unwrap_or_default();
        return Ok(vec![Arc::new(swarm_executor_sim::SimExecutor::new(&world, name))]);
    }
    let mut executors: Vec<Arc<dyn Executor>> = Vec::new();
    if flags.engine_addr != "none" {
        let docker = swarm_executor_docker::DockerExecutor::new(&flags.engine_addr)
            .context("give --engine-addr the address of an engine, or \"none\" for native processes only")?;
        executors.push(Arc::new(docker.with_privileged(flags.allow_privileged)));
    }
    executors.push(Arc::new(swarm_executor_process::ProcessExecutor::new(&flags.state_dir)?));
    Ok(executors)
}
