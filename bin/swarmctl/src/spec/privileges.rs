//! Flags that say what containers may do.

use swarm_api::v1::privileges::{
    AppArmorOpts, CredentialSpec, SeLinuxContext, SeccompOpts, app_armor_opts::AppArmorMode, credential_spec,
    seccomp_opts::SeccompMode,
};
use swarm_api::v1::{ConfigReference, ContainerSpec, Privileges, RuntimeTarget, config_reference};

use super::Found;
use super::container_flags::{AppArmor, ContainerFlags};
use crate::error::{Error, Result};
use crate::values::List;
use crate::values::csv::join;

/// Applies what was given.
pub(super) fn apply(container: &mut ContainerSpec, flags: &ContainerFlags, found: &Found) -> Result<()> {
    if let Some(text) = &flags.credential_spec {
        credential_spec(container, text, found)?;
    }
    if let Some(terms) = join(flags.selinux.as_ref()) {
        let context = selinux(&terms)?;
        container.privileges.get_or_insert_default().selinux_context = context;
    }
    if let Some(text) = &flags.seccomp {
        container.privileges.get_or_insert_default().seccomp = seccomp(text)?;
    }
    if let Some(how) = flags.apparmor {
        container.privileges.get_or_insert_default().apparmor = match how {
            AppArmor::Default => None,
            AppArmor::Disabled => Some(AppArmorOpts { mode: AppArmorMode::Disabled as i32 }),
        };
    }
    if let Some(only) = flags.no_new_privileges {
        container.privileges.get_or_insert_default().no_new_privileges = only;
    }
    // Nothing in it is nothing: an empty one would replace all tasks.
    if container.privileges.as_ref().is_some_and(|privileges| *privileges == Privileges::default()) {
        container.privileges = None;
    }
    Ok(())
}

/// What a flag says of one of the two lists of capabilities: its names come into it, and leave the other one. No names at all
/// empty it.
pub(super) fn capabilities(names: Option<&Vec<List>>, from: &mut Vec<String>, to: &mut Vec<String>) {
    let Some(names) = join(names) else { return };
    if names.is_empty() {
        to.clear();
    }
    names.iter().for_each(|name| move_capability(name, from, to));
}

/// Moves a capability from one list to the other, in whatever spelling it has there.
pub(super) fn move_capability(name: &str, from: &mut Vec<String>, to: &mut Vec<String>) {
    fn bare(name: &str) -> String {
        let upper = name.to_ascii_uppercase();
        upper.strip_prefix("CAP_").map_or_else(|| upper.clone(), str::to_owned)
    }
    let wanted = bare(name);
    from.retain(|has| bare(has) != wanted);
    if !to.iter().any(|has| bare(has) == wanted) {
        to.push(name.to_owned());
    }
}

fn credential_spec(container: &mut ContainerSpec, text: &str, found: &Found) -> Result<()> {
    // The reference that belonged to the former one goes with it.
    let former = container.privileges.as_mut().and_then(|privileges| privileges.credential_spec.take());
    if let Some(credential_spec::Source::Config(former)) = former.and_then(|former| former.source) {
        container.configs.retain(|reference| {
            reference.config_id != former
                || !matches!(reference.target, Some(config_reference::Target::Runtime(_)))
        });
    }
    let source = match text.split_once("://") {
        _ if text.is_empty() => return Ok(()),
        Some(("file", name)) if !name.is_empty() => credential_spec::Source::File(name.to_owned()),
        Some(("registry", name)) if !name.is_empty() => credential_spec::Source::Registry(name.to_owned()),
        Some(("config", name)) if !name.is_empty() => {
            let config = found.configs.iter().find(|config| config.spec.annotations.name == name);
            let config = config.ok_or_else(|| Error::NotFound { kind: "config", given: name.to_owned() })?;
            container.configs.push(ConfigReference {
                config_id: config.id.clone(),
                config_name: name.to_owned(),
                target: Some(config_reference::Target::Runtime(RuntimeTarget {})),
            });
            credential_spec::Source::Config(config.id.clone())
        }
        _ => {
            let known = "file://NAME, registry://NAME, config://NAME";
            return Err(Error::usage(format!("credential spec {text:?} is not one of {known}")));
        }
    };
    container.privileges.get_or_insert_default().credential_spec =
        Some(CredentialSpec { source: Some(source) });
    Ok(())
}

fn selinux(terms: &[String]) -> Result<Option<SeLinuxContext>> {
    let mut context = SeLinuxContext::default();
    for term in terms {
        let field = match term.split_once('=') {
            None if term == "disable" => {
                context.disable = true;
                continue;
            }
            Some(("user", value)) => (&mut context.user, value),
            Some(("role", value)) => (&mut context.role, value),
            Some(("type", value)) => (&mut context.r#type, value),
            Some(("level", value)) => (&mut context.level, value),
            _ => {
                let known = "disable, user=…, role=…, type=…, level=…";
                return Err(Error::usage(format!("SELinux label {term:?} is not one of {known}")));
            }
        };
        field.1.clone_into(field.0);
    }
    Ok((context != SeLinuxContext::default()).then_some(context))
}

fn seccomp(text: &str) -> Result<Option<SeccompOpts>> {
    let (mode, profile) = match text {
        "default" => return Ok(None),
        "unconfined" => (SeccompMode::Unconfined, Vec::new()),
        path => {
            let profile = std::fs::read(path)
                .map_err(|error| Error::plain(format!("seccomp profile {path:?}: {error}")))?;
            if !serde_json::from_slice::<serde_json::Value>(&profile).is_ok_and(|json| json.is_object()) {
                return Err(Error::plain(format!("seccomp profile {path:?} is not a JSON object")));
            }
            (SeccompMode::Custom, profile)
        }
    };
    Ok(Some(SeccompOpts { mode: mode as i32, profile }))
}
