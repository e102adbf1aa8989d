//! What an engine can and how it is set up, as far as it matters for containers.

use bollard::models::SystemInfo;
use swarm_agent::ControllerError;
use swarm_api::v1::Platform;

/// A version of the engine's interface: major, minor.
pub type Api = (usize, usize);

/// What an engine can and how it is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// The version of its interface that is spoken: the newest that both sides know.
    pub api: Api,
    /// Its own version, for messages.
    pub version: String,
    /// Containers are confined by SELinux: what they are to read has to be relabelled.
    pub selinux: bool,
    /// User and group on the host that are root in containers.
    pub root: (u32, u32),
    /// Its own platform, in its own words; nothing if it did not say.
    pub platform: Platform,
}

impl EngineFacts {
    /// An engine that can everything, as it is installed.
    pub const fn newest() -> EngineFacts {
        let platform = Platform { architecture: String::new(), os: String::new() };
        EngineFacts { api: (usize::MAX, 0), version: String::new(), selinux: false, root: (0, 0), platform }
    }

    /// What an engine says of itself.
    pub(crate) fn of(api: Api, info: &SystemInfo) -> EngineFacts {
        let options = info.security_options.iter().flatten();
        let names: Vec<&str> = options
            .flat_map(|option| option.split(','))
            .filter_map(|word| word.strip_prefix("name="))
            .collect();
        // With user namespaces the engine's directory is named after whom root in containers is: …/165536.165536.
        let remapped = || {
            let (user, group) = info.docker_root_dir.as_deref()?.rsplit('/').next()?.split_once('.')?;
            Some((user.parse().ok()?, group.parse().ok()?))
        };
        let root = if names.contains(&"userns") { remapped().unwrap_or((0, 0)) } else { (0, 0) };
        EngineFacts {
            api,
            version: info.server_version.clone().unwrap_or_default(),
            selinux: names.contains(&"selinux"),
            root,
            platform: Platform {
                architecture: info.architecture.clone().unwrap_or_default(),
                os: info.os_type.clone().unwrap_or_default(),
            },
        }
    }

    /// Refuses what came into the interface later than what this engine has.
    pub(crate) fn needs(&self, what: &str, (api, engine): (Api, &str)) -> Result<(), ControllerError> {
        if self.api >= api {
            return Ok(());
        }
        Err(ControllerError::Fatal(format!(
            "{what} needs Docker Engine {engine} or later (API {}.{}), and the engine of this node is {} (API {}.{})",
            api.0, api.1, self.version, self.api.0, self.api.1
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_up_is_read_from_the_engines_words() {
        let info = |options: &[&str], directory: &str| SystemInfo {
            server_version: Some("20.10.24".into()),
            security_options: Some(options.iter().map(|option| (*option).to_owned()).collect()),
            docker_root_dir: Some(directory.into()),
            architecture: Some("x86_64".into()),
            os_type: Some("linux".into()),
            ..Default::default()
        };
        let of = |options: &[&str], directory: &str| EngineFacts::of((1, 41), &info(options, directory));
        let plain = of(&["name=seccomp,profile=default"], "/var/lib/docker/5.5");
        let version = "20.10.24".to_owned();
        let platform = Platform { architecture: "x86_64".into(), os: "linux".into() };
        assert_eq!(plain, EngineFacts { api: (1, 41), version, selinux: false, root: (0, 0), platform });
        assert!(of(&["name=apparmor", "name=selinux"], "/var/lib/docker").selinux);
        assert_eq!(of(&["name=userns"], "/var/lib/docker/165536.165537").root, (165_536, 165_537));
        assert_eq!(of(&["name=userns"], "/var/lib/docker").root, (0, 0));
    }

    #[test]
    fn what_is_too_new_is_refused_with_both_versions() {
        let old = EngineFacts { api: (1, 41), version: "20.10.24".into(), ..EngineFacts::newest() };
        assert_eq!(old.needs("x", ((1, 41), "20.10")), Ok(()));
        assert_eq!(
            old.needs("a start interval", ((1, 44), "25.0")),
            Err(ControllerError::Fatal(
                "a start interval needs Docker Engine 25.0 or later (API 1.44), and the engine of this node is \
                 20.10.24 (API 1.41)"
                    .into()
            ))
        );
        assert_eq!(EngineFacts::newest().needs("x", ((1, 99), "99")), Ok(()));
    }
}
