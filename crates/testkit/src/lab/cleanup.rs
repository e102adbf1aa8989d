//! Removing what labs made in the engine: one's own at the end, and those of tests that were killed.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListNetworksOptionsBuilder, ListVolumesOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveVolumeOptionsBuilder,
};

use super::{LAB, OWNER};

type Labels = HashMap<String, String>;

/// This process, as told apart from all others that use the same engine: machine and boot, process namespace, process id
/// and the time at which it began.
pub(super) fn owner() -> String {
    format!("{}/{}/{}", place(), std::process::id(), began(std::process::id()).unwrap_or_default())
}

/// Where process ids mean the same as here.
fn place() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{}/{}", boot.trim(), namespace.display())
}

/// When a process began, in clock ticks since the boot.
fn began(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19).map(str::to_owned)
}

/// The process that made this was one of this machine, and is gone.
fn is_orphan(labels: &Labels) -> bool {
    let Some(rest) = labels.get(OWNER).and_then(|owner| owner.strip_prefix(&format!("{}/", place()))) else {
        return false;
    };
    let Some((pid, begin)) = rest.split_once('/') else { return false };
    pid.parse().is_ok_and(|pid| began(pid).as_deref() != Some(begin))
}

/// Removes what tests left behind that were killed.
///
/// # Errors
/// If the engine does not do it.
pub(super) async fn sweep(docker: &Docker) -> Result<()> {
    remove(docker, OWNER, is_orphan).await
}

/// Removes everything of one lab.
///
/// # Errors
/// If the engine does not do it.
pub(super) fn remove_lab(name: &str) -> Result<()> {
    let label = format!("{LAB}={name}");
    // On a thread of its own: the caller is being dropped, perhaps by a runtime.
    let removal = move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
            remove(&docker, &label, |_| true).await
        })
    };
    std::thread::spawn(removal).join().unwrap_or_else(|_| bail!("the removal of the lab panicked"))
}

async fn remove(docker: &Docker, label: &str, doomed: impl Fn(&Labels) -> bool) -> Result<()> {
    let filters = HashMap::from([("label", vec![label])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    for container in docker.list_containers(Some(options)).await? {
        if doomed(&container.labels.unwrap_or_default()) {
            let id = container.id.unwrap_or_default();
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            // Ending a frozen one is not possible everywhere.
            let _ = docker.unpause_container(&id).await;
            gone(docker.remove_container(&id, Some(options)).await)
                .with_context(|| format!("container {id}"))?;
        }
    }
    let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
    for volume in docker.list_volumes(Some(options)).await?.volumes.unwrap_or_default() {
        if doomed(&volume.labels) {
            let options = RemoveVolumeOptionsBuilder::new().force(true).build();
            gone(docker.remove_volume(&volume.name, Some(options)).await).context("removing a volume")?;
        }
    }
    let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
    for network in docker.list_networks(Some(options)).await? {
        if doomed(&network.labels.unwrap_or_default()) {
            let id = network.id.unwrap_or_default();
            gone(docker.remove_network(&id).await).with_context(|| format!("network {id}"))?;
        }
    }
    Ok(())
}

/// What somebody else removed, or is removing, is gone too.
fn gone(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
        other => other,
    }
}
