//! What a container may do, as security options of the engine.

use swarm_agent::ControllerError;
use swarm_api::v1::Privileges;
use swarm_api::v1::privileges::{
    SeLinuxContext, app_armor_opts::AppArmorMode, credential_spec, seccomp_opts::SeccompMode,
};

use super::fatal;

/// The security options, in the contract's order, and the id of the config that is to stand before them as the
/// credential spec: its payload is known only where the container is made.
pub(super) fn security_options(
    privileges: &Privileges,
) -> Result<(Vec<String>, Option<String>), ControllerError> {
    let mut options = Vec::new();
    let mut config = None;
    match privileges.credential_spec.as_ref().and_then(|spec| spec.source.as_ref()) {
        None => {}
        Some(credential_spec::Source::File(file)) => options.push(format!("credentialspec=file://{file}")),
        Some(credential_spec::Source::Registry(value)) => {
            options.push(format!("credentialspec=registry://{value}"));
        }
        Some(credential_spec::Source::Config(id)) => config = Some(id.clone()),
    }
    if let Some(context) = &privileges.selinux_context {
        options.extend(selinux(context));
    }
    if let Some(seccomp) = &privileges.seccomp {
        match seccomp.mode() {
            SeccompMode::Default => {}
            SeccompMode::Unconfined => options.push("seccomp=unconfined".to_owned()),
            SeccompMode::Custom => {
                let profile = std::str::from_utf8(&seccomp.profile)
                    .ok()
                    .filter(|text| {
                        serde_json::from_str::<serde_json::Value>(text).is_ok_and(|json| json.is_object())
                    })
                    .ok_or_else(|| fatal("the seccomp profile is not a JSON object"))?;
                options.push(format!("seccomp={profile}"));
            }
        }
    }
    if privileges.apparmor.as_ref().is_some_and(|apparmor| apparmor.mode() == AppArmorMode::Disabled) {
        options.push("apparmor=unconfined".to_owned());
    }
    if privileges.no_new_privileges {
        options.push("no-new-privileges=true".to_owned());
    }
    Ok((options, config))
}

fn selinux(context: &SeLinuxContext) -> Vec<String> {
    let mut options = Vec::new();
    if context.disable {
        options.push("label=disable".to_owned());
    }
    for (key, value) in [
        ("user", &context.user),
        ("role", &context.role),
        ("level", &context.level),
        ("type", &context.r#type),
    ] {
        if !value.is_empty() {
            options.push(format!("label={key}:{value}"));
        }
    }
    options
}
