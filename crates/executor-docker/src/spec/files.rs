//! Secrets and configs of a container: which files there are to be, and how they come into it.
//!
//! Each is a file of the host, in memory, that is mounted read-only. A secret named `x` is at `/run/secrets/x`, a config
//! named `x` at `/x`; an absolute name is taken as it is.

use std::path::Path;

use bollard::models::{HostConfig, MountType};
use swarm_agent::ControllerError;
use swarm_agent::payloads::PayloadKind;
use swarm_api::v1::{ContainerSpec, FileTarget, config_reference, secret_reference};

use super::{fatal, unix_mode};
use crate::facts::EngineFacts;

/// Where secrets are unless their name says otherwise.
const SECRETS: &str = "/run/secrets";

/// A file that is to be written before the container is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// What it is made from.
    pub kind: PayloadKind,
    /// The secret's or config's id.
    pub id: String,
    /// Its name on the host, within the task's directory.
    pub name: String,
    /// Where it is in the container.
    pub target: String,
    /// User and group on the host.
    pub owner: (u32, u32),
    /// Permission bits.
    pub mode: u32,
}

/// The files that the spec asks for. A config that serves the engine itself is none.
pub(super) fn files(spec: &ContainerSpec, facts: &EngineFacts) -> Result<Vec<PlannedFile>, ControllerError> {
    let secrets = spec.secrets.iter().filter_map(|reference| {
        let secret_reference::Target::File(file) = reference.target.as_ref()?;
        Some((PayloadKind::Secret, &reference.secret_id, &reference.secret_name, file))
    });
    let configs = spec.configs.iter().filter_map(|reference| match &reference.target {
        Some(config_reference::Target::File(file)) => {
            Some((PayloadKind::Config, &reference.config_id, &reference.config_name, file))
        }
        _ => None,
    });
    // Each reference has a file of its own: two of one secret may differ in owner and mode.
    secrets
        .chain(configs)
        .enumerate()
        .map(|(number, (kind, id, object, file))| {
            let bad = |what: String| fatal(format!("{} {object:?}: {what}", kind.name()));
            Ok(PlannedFile {
                kind,
                id: id.clone(),
                name: number.to_string(),
                target: target(kind, file)
                    .ok_or_else(|| bad("the name of its file is missing".to_owned()))?,
                owner: (
                    owner("user", &file.uid, facts.root.0).map_err(bad)?,
                    owner("group", &file.gid, facts.root.1).map_err(bad)?,
                ),
                mode: unix_mode(file.mode),
            })
        })
        .collect()
}

fn target(kind: PayloadKind, file: &FileTarget) -> Option<String> {
    match (kind, file.name.as_str()) {
        (_, "") => None,
        (_, absolute) if absolute.starts_with('/') => Some(absolute.to_owned()),
        (PayloadKind::Secret, name) => Some(format!("{SECRETS}/{name}")),
        (PayloadKind::Config, name) => Some(format!("/{name}")),
    }
}

/// A number in the container as one of the host. The original's command writes nothing at all for root.
fn owner(what: &str, number: &str, root: u32) -> Result<u32, String> {
    let number = if number.is_empty() { "0" } else { number };
    number
        .parse::<u32>()
        .ok()
        .and_then(|number| number.checked_add(root))
        .ok_or_else(|| format!("the {what} {number:?} of its file is not a number"))
}

/// Mounts the files, which lie in `directory`. Under SELinux they go in by the older way, the only one that can have
/// them relabelled.
pub(super) fn mount(
    host: &mut HostConfig,
    files: &[PlannedFile],
    directory: &Path,
    facts: &EngineFacts,
) -> Result<(), ControllerError> {
    for file in files {
        let source = directory.join(&file.name).to_string_lossy().into_owned();
        if facts.selinux {
            if file.target.contains(':') {
                let kind = file.kind.name();
                return Err(fatal(format!(
                    "{kind} file {:?}: with SELinux there can't be a colon in its name",
                    file.target
                )));
            }
            host.binds.get_or_insert_default().push(format!("{source}:{}:ro,z", file.target));
        } else {
            host.mounts.get_or_insert_default().push(bollard::models::Mount {
                typ: Some(MountType::BIND),
                source: Some(source),
                target: Some(file.target.clone()),
                read_only: Some(true),
                ..Default::default()
            });
        }
    }
    Ok(())
}
