//! References to secrets and configs inside a container spec.

use std::collections::BTreeSet;

use swarm_api::v1::{ContainerSpec, config_reference, privileges, secret_reference};

use crate::error::{Error, Result};

/// References to secrets: id, name and target given, file names unique.
pub(crate) fn secrets(container: &ContainerSpec) -> Result<()> {
    let mut files = BTreeSet::new();
    for reference in &container.secrets {
        if reference.secret_id.is_empty() || reference.secret_name.is_empty() {
            return Err(Error::argument("malformed secret reference"));
        }
        let Some(secret_reference::Target::File(file)) = &reference.target else {
            return Err(Error::argument("malformed secret reference, no target provided"));
        };
        if file.name.is_empty() {
            return Err(Error::argument(
                "malformed file secret reference, invalid target file name provided",
            ));
        }
        if !files.insert(file.name.as_str()) {
            return Err(Error::argument(format!(
                "secret references '{}' have a conflicting target: '{}'",
                reference.secret_name, file.name
            )));
        }
    }
    Ok(())
}

/// References to configs: as secrets, but a runtime target needs no file; a config that serves as credential
/// spec must have such a reference.
pub(crate) fn configs(container: &ContainerSpec) -> Result<()> {
    let mut files = BTreeSet::new();
    for reference in &container.configs {
        if reference.config_id.is_empty() || reference.config_name.is_empty() {
            return Err(Error::argument("malformed config reference"));
        }
        match &reference.target {
            None => return Err(Error::argument("malformed config reference, no target provided")),
            Some(config_reference::Target::Runtime(_)) => {}
            Some(config_reference::Target::File(file)) if file.name.is_empty() => {
                return Err(Error::argument(
                    "malformed file config reference, invalid target file name provided",
                ));
            }
            Some(config_reference::Target::File(file)) => {
                if !files.insert(file.name.as_str()) {
                    return Err(Error::argument(format!(
                        "config references '{}' have a conflicting target: '{}'",
                        reference.config_name, file.name
                    )));
                }
            }
        }
    }
    let credential = container.privileges.as_ref().and_then(|p| p.credential_spec.as_ref());
    if let Some(privileges::credential_spec::Source::Config(id)) = credential.and_then(|c| c.source.as_ref())
    {
        let found = container.configs.iter().any(|reference| {
            reference.config_id == *id
                && matches!(reference.target, Some(config_reference::Target::Runtime(_)))
        });
        if !found {
            return Err(Error::argument(format!(
                "CredentialSpec config {id} is not referenced with a runtime target"
            )));
        }
    }
    Ok(())
}
