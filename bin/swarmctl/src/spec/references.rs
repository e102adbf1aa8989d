//! Secrets and configs that a change of a service names.

use swarm_api::Shared;
use swarm_api::extensions::Device;
use swarm_api::swarmd::ProcessSpec;
use swarm_api::v1::{
    Config, ConfigReference, ContainerSpec, FileTarget, ResourceReference, ResourceType, Secret,
    SecretReference, config_reference, secret_reference,
};

use crate::error::{Error, Result};
use crate::values::List;
use crate::values::csv::join;
use crate::values::reference::{self, Reference};

use super::lists::Lists;
use super::privileges::move_capability;
use super::{CreateFlags, UpdateFlags, extensions};

/// Mode of the files: everybody in the container may read them.
const FILE_MODE: u32 = 0o444;
/// Mode of the files of a native process.
const PRIVATE_FILE_MODE: u32 = 0o400;

/// What is given to tasks, and what is taken from them.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) add_secrets: Vec<Reference>,
    pub(crate) rm_secrets: Vec<Reference>,
    pub(crate) add_configs: Vec<Reference>,
    pub(crate) rm_configs: Vec<Reference>,
    pub(crate) add_capabilities: Vec<String>,
    pub(crate) rm_capabilities: Vec<String>,
    /// Targets of mounts.
    pub(crate) rm_mounts: Vec<String>,
    pub(crate) add_devices: Vec<Device>,
    /// Paths of devices.
    pub(crate) rm_devices: Vec<String>,
    pub(crate) lists: Lists,
}

fn references(lists: Option<&Vec<List>>) -> Result<Vec<Reference>> {
    let found = lists.into_iter().flatten().map(|list| reference::parse_all(&list.0));
    Ok(found.collect::<Result<Vec<_>, _>>().map_err(Error::Usage)?.concat())
}

impl Changes {
    pub(crate) fn of_create(flags: &CreateFlags) -> Result<Changes> {
        Ok(Changes {
            add_secrets: references(flags.secret.as_ref())?,
            add_configs: references(flags.config.as_ref())?,
            ..Default::default()
        })
    }

    pub(crate) fn of_update(flags: &UpdateFlags) -> Result<Changes> {
        Ok(Changes {
            add_secrets: references(flags.add_secret.as_ref())?,
            rm_secrets: references(flags.rm_secret.as_ref())?,
            add_configs: references(flags.add_config.as_ref())?,
            rm_configs: references(flags.rm_config.as_ref())?,
            add_capabilities: join(flags.add_capability.as_ref()).unwrap_or_default(),
            rm_capabilities: join(flags.rm_capability.as_ref()).unwrap_or_default(),
            rm_mounts: join(flags.rm_mount.as_ref()).unwrap_or_default(),
            add_devices: extensions::devices(&join(flags.add_device.as_ref()).unwrap_or_default())?,
            rm_devices: join(flags.rm_device.as_ref()).unwrap_or_default(),
            lists: Lists::of(&flags.lists)?,
        })
    }

    /// Makes the changes of a container; what is added must be among what was found.
    pub(super) fn apply(&self, container: &mut ContainerSpec, found: &Found) -> Result<()> {
        self.secrets(&mut container.secrets, found, &file)?;
        self.configs(&mut container.configs, found, &file)?;
        for name in &self.add_capabilities {
            move_capability(name, &mut container.capability_drop, &mut container.capability_add);
        }
        for name in &self.rm_capabilities {
            move_capability(name, &mut container.capability_add, &mut container.capability_drop);
        }
        self.lists.apply_to_container(container)
    }

    /// Takes mounts away: before others are added, which may have the same targets.
    pub(super) fn remove_mounts(&self, container: &mut ContainerSpec) {
        container.mounts.retain(|mount| !self.rm_mounts.contains(&mount.target));
    }

    /// Makes the changes of a native process.
    pub(super) fn apply_to_process(&self, process: &mut ProcessSpec, found: &Found) -> Result<()> {
        let of_containers =
            [&self.add_capabilities, &self.rm_capabilities, &self.rm_mounts, &self.rm_devices];
        if of_containers.iter().any(|list| !list.is_empty()) || !self.add_devices.is_empty() {
            return Err(Error::usage(
                "capabilities, mounts and devices are for containers, and this service runs native processes",
            ));
        }
        self.lists.apply_to_process(process)?;
        self.secrets(&mut process.secrets, found, &private_file)?;
        self.configs(&mut process.configs, found, &private_file)
    }

    /// As with all lists, what is taken goes first.
    fn secrets(
        &self,
        secrets: &mut Vec<SecretReference>,
        found: &Found,
        file: &dyn Fn(&Reference) -> FileTarget,
    ) -> Result<()> {
        secrets.retain(|has| !self.rm_secrets.iter().any(|rm| rm.name == has.secret_name));
        for reference in &self.add_secrets {
            let secret = found.secrets.iter().find(|s| s.spec.annotations.name == reference.name);
            let secret =
                secret.ok_or_else(|| Error::NotFound { kind: "secret", given: reference.name.clone() })?;
            secrets.push(SecretReference {
                secret_id: secret.id.clone(),
                secret_name: reference.name.clone(),
                target: Some(secret_reference::Target::File(file(reference))),
            });
        }
        Ok(())
    }

    fn configs(
        &self,
        configs: &mut Vec<ConfigReference>,
        found: &Found,
        file: &dyn Fn(&Reference) -> FileTarget,
    ) -> Result<()> {
        configs.retain(|has| !self.rm_configs.iter().any(|rm| rm.name == has.config_name));
        for reference in &self.add_configs {
            let config = found.configs.iter().find(|c| c.spec.annotations.name == reference.name);
            let config =
                config.ok_or_else(|| Error::NotFound { kind: "config", given: reference.name.clone() })?;
            configs.push(ConfigReference {
                config_id: config.id.clone(),
                config_name: reference.name.clone(),
                target: Some(config_reference::Target::File(file(reference))),
            });
        }
        Ok(())
    }
}

/// What a process's payload refers to, as everybody can read it. Others that the task has stay.
pub(super) fn resource_references(
    present: &[ResourceReference],
    before: &ProcessSpec,
    now: &ProcessSpec,
) -> Vec<ResourceReference> {
    let of = |process: &ProcessSpec| -> Vec<ResourceReference> {
        let one = |id: &str, kind: ResourceType| ResourceReference {
            resource_id: id.to_owned(),
            resource_type: kind as i32,
        };
        let secrets = process.secrets.iter().map(|r| one(&r.secret_id, ResourceType::Secret));
        secrets.chain(process.configs.iter().map(|r| one(&r.config_id, ResourceType::Config))).collect()
    };
    let (before, now) = (of(before), of(now));
    let mut all: Vec<_> =
        present.iter().filter(|r| !before.contains(r) || now.contains(r)).cloned().collect();
    for reference in now {
        if !all.contains(&reference) {
            all.push(reference);
        }
    }
    all
}

/// Objects that were looked up by name before the spec is made.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) secrets: Vec<Shared<Secret>>,
    pub(crate) configs: Vec<Shared<Config>>,
    /// Networks as they were named, and their ids.
    pub(crate) networks: Vec<(String, String)>,
    /// Services that are to be waited for.
    pub(crate) dependencies: Vec<swarm_api::extensions::Dependency>,
}

impl Found {
    /// The id of a network that was named.
    pub(super) fn network(&self, given: &str) -> Result<&str> {
        let found = self.networks.iter().find(|(name, _)| name == given);
        let not_found = || Error::NotFound { kind: "network", given: given.to_owned() };
        found.map(|(_, id)| id.as_str()).ok_or_else(not_found)
    }
}

/// Owner and group are written as numbers: engines can't read an empty text.
fn file(reference: &Reference) -> FileTarget {
    FileTarget {
        name: reference.target.clone(),
        uid: reference.uid.unwrap_or(0).to_string(),
        gid: reference.gid.unwrap_or(0).to_string(),
        mode: reference.mode.unwrap_or(FILE_MODE),
    }
}

/// A native process owns its files, and only its user may read them, unless something else was asked for.
fn private_file(reference: &Reference) -> FileTarget {
    let number = |number: Option<u32>| number.map(|number| number.to_string()).unwrap_or_default();
    FileTarget {
        name: reference.target.clone(),
        uid: number(reference.uid),
        gid: number(reference.gid),
        mode: reference.mode.unwrap_or(PRIVATE_FILE_MODE),
    }
}
