//! Secrets and configs that a change of a service names.

use swarm_api::Shared;
use swarm_api::v1::{
    Config, ConfigReference, ContainerSpec, FileTarget, Secret, SecretReference, config_reference,
    secret_reference,
};

use crate::error::{Error, Result};
use crate::values::List;
use crate::values::csv::join;
use crate::values::reference::{self, Reference};

use super::{CreateFlags, UpdateFlags};

/// Mode of the files: everybody in the container may read them.
const FILE_MODE: u32 = 0o444;

/// What is given to tasks, and what is taken from them.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) add_secrets: Vec<Reference>,
    pub(crate) rm_secrets: Vec<Reference>,
    pub(crate) add_configs: Vec<Reference>,
    pub(crate) rm_configs: Vec<Reference>,
    pub(crate) add_capabilities: Vec<String>,
    pub(crate) rm_capabilities: Vec<String>,
}

fn references(lists: Option<&Vec<List>>) -> Result<Vec<Reference>> {
    let texts = join(lists).unwrap_or_default();
    texts.iter().map(|text| reference::parse(text)).collect::<Result<_, _>>().map_err(Error::Usage)
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
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        let Changes { add_secrets, rm_secrets, add_configs, rm_configs, add_capabilities, rm_capabilities } =
            self;
        add_secrets.is_empty()
            && rm_secrets.is_empty()
            && add_configs.is_empty()
            && rm_configs.is_empty()
            && add_capabilities.is_empty()
            && rm_capabilities.is_empty()
    }

    /// Makes the changes; what is added must be among what was found.
    pub(super) fn apply(&self, container: &mut ContainerSpec, found: &Found) -> Result<()> {
        for reference in &self.add_secrets {
            let secret = found.secrets.iter().find(|s| s.spec.annotations.name == reference.name);
            let secret =
                secret.ok_or_else(|| Error::NotFound { kind: "secret", given: reference.name.clone() })?;
            container.secrets.push(SecretReference {
                secret_id: secret.id.clone(),
                secret_name: reference.name.clone(),
                target: Some(secret_reference::Target::File(file(&reference.target))),
            });
        }
        container.secrets.retain(|has| !self.rm_secrets.iter().any(|rm| rm.name == has.secret_name));
        for reference in &self.add_configs {
            let config = found.configs.iter().find(|c| c.spec.annotations.name == reference.name);
            let config =
                config.ok_or_else(|| Error::NotFound { kind: "config", given: reference.name.clone() })?;
            container.configs.push(ConfigReference {
                config_id: config.id.clone(),
                config_name: reference.name.clone(),
                target: Some(config_reference::Target::File(file(&reference.target))),
            });
        }
        container.configs.retain(|has| !self.rm_configs.iter().any(|rm| rm.name == has.config_name));
        for name in &self.add_capabilities {
            move_to(name, &mut container.capability_drop, &mut container.capability_add);
        }
        for name in &self.rm_capabilities {
            move_to(name, &mut container.capability_add, &mut container.capability_drop);
        }
        Ok(())
    }
}

/// Objects that were looked up by name before the spec is made.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) secrets: Vec<Shared<Secret>>,
    pub(crate) configs: Vec<Shared<Config>>,
    /// Id of the network that was asked for.
    pub(crate) network: Option<String>,
}

/// Owner and group are written as numbers: engines can't read an empty text.
fn file(name: &str) -> FileTarget {
    FileTarget { name: name.to_owned(), uid: "0".into(), gid: "0".into(), mode: FILE_MODE }
}

fn move_to(name: &str, from: &mut Vec<String>, to: &mut Vec<String>) {
    from.retain(|has| has != name);
    if !to.iter().any(|has| has == name) {
        to.push(name.to_owned());
    }
}
