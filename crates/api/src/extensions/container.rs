//! What containers are given beyond the contract: devices of their node, all privileges, GPUs. It stands in labels of the
//! container, so that it is part of what a task is, and each is a [`Feature`](super::Feature) that a node must have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Container label: devices, `HOST:CONTAINER:PERMISSIONS` each, separated by commas.
pub const DEVICES: &str = "swarmd.devices";

/// Container label: the kind of the generic resources that the task reserves and that are GPUs. The engine is asked for
/// exactly those that were assigned to the task.
pub const GPUS: &str = "swarmd.gpus";

/// Container label: the container has all privileges on its node; its value is `1`.
pub const PRIVILEGED: &str = "swarmd.privileged";

/// Kind of generic resources that are GPUs, unless somebody says otherwise.
pub const GPU_KIND: &str = "gpu";

/// Most devices of one container.
const MOST_DEVICES: usize = 64;

/// A device of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Its path on the node.
    pub host: String,
    /// Its path in the container.
    pub container: String,
    /// What the container may do with it: some of `r` (read), `w` (write), `m` (make nodes of it).
    pub permissions: String,
}

impl Device {
    /// Reads `HOST[:CONTAINER[:PERMISSIONS]]`. The path in the container is that of the host, and everything is permitted,
    /// where nothing else is said.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<Device, String> {
        let mut parts = text.split(':');
        let host = parts.next().unwrap_or_default();
        let second = parts.next();
        let third = parts.next();
        // As Docker reads it: two parts may be a path and permissions.
        let (container, permissions) = match (second, third) {
            (Some(second), None) if !second.starts_with('/') => (host, second),
            (second, third) => (second.unwrap_or(host), third.unwrap_or("rwm")),
        };
        if parts.next().is_some() {
            return Err(format!("device {text:?} has too many colons: expected HOST[:CONTAINER[:rwm]]"));
        }
        for (whose, path) in [("on the host", host), ("in the container", container)] {
            if !is_path(path) {
                return Err(format!(
                    "device {text:?}: the path {whose} must be absolute, without \"..\" and commas, and is {path:?}"
                ));
            }
        }
        if !are_permissions(permissions) {
            return Err(format!(
                "device {text:?}: permissions are some of r, w and m, each once, and not {permissions:?}"
            ));
        }
        let text = str::to_owned;
        Ok(Device { host: text(host), container: text(container), permissions: text(permissions) })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.host, self.container, self.permissions)
    }
}

fn is_path(path: &str) -> bool {
    path.len() > 1
        && path.starts_with('/')
        && !path.contains([',', '\0', '\n'])
        && !path.split('/').any(|part| part == "..")
}

fn are_permissions(text: &str) -> bool {
    let all: BTreeSet<char> = text.chars().collect();
    !text.is_empty() && all.len() == text.len() && all.iter().all(|c| "rwm".contains(*c))
}

/// What the labels of a container say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerExtensions {
    /// Devices of the node, in the order in which they were asked for.
    pub devices: Vec<Device>,
    /// All privileges.
    pub privileged: bool,
    /// Kind of the generic resources that are GPUs.
    pub gpus: Option<String>,
}

impl ContainerExtensions {
    /// Reads the labels of a container's spec. Others of ours than those are not looked at.
    ///
    /// # Errors
    /// What is wrong with a value.
    pub fn read(labels: &BTreeMap<String, String>) -> Result<ContainerExtensions, String> {
        let mut extensions = ContainerExtensions::default();
        if let Some(text) = labels.get(DEVICES) {
            let devices: Result<Vec<_>, _> = text.split(',').map(Device::parse).collect();
            extensions.devices = devices.map_err(|error| format!("label {DEVICES:?}: {error}"))?;
            check_devices(&extensions.devices).map_err(|error| format!("label {DEVICES:?}: {error}"))?;
        }
        if let Some(value) = labels.get(PRIVILEGED) {
            if value != "1" {
                return Err(format!("label {PRIVILEGED:?} must be \"1\", not {value:?}"));
            }
            extensions.privileged = true;
        }
        if let Some(kind) = labels.get(GPUS) {
            if kind.trim().is_empty() || kind.contains(['=', ',']) {
                return Err(format!("label {GPUS:?} must be a kind of generic resources, not {kind:?}"));
            }
            extensions.gpus = Some(kind.clone());
        }
        Ok(extensions)
    }

    /// Writes it into the labels of a container's spec, in place of what they said; what is usual is not written.
    pub fn write(&self, labels: &mut BTreeMap<String, String>) {
        for label in [DEVICES, GPUS, PRIVILEGED] {
            labels.remove(label);
        }
        if !self.devices.is_empty() {
            let devices: Vec<String> = self.devices.iter().map(Device::to_string).collect();
            labels.insert(DEVICES.to_owned(), devices.join(","));
        }
        if self.privileged {
            labels.insert(PRIVILEGED.to_owned(), "1".to_owned());
        }
        if let Some(kind) = &self.gpus {
            labels.insert(GPUS.to_owned(), kind.clone());
        }
    }
}

/// No path of a container is there twice, and they are not too many.
///
/// # Errors
/// What is wrong.
pub fn check_devices(devices: &[Device]) -> Result<(), String> {
    if devices.len() > MOST_DEVICES {
        return Err(format!("{} devices are more than the {MOST_DEVICES} that are allowed", devices.len()));
    }
    let mut seen = BTreeSet::new();
    match devices.iter().find(|device| !seen.insert(device.container.as_str())) {
        Some(twice) => Err(format!("two devices would be {:?} in the container", twice.container)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_docker_reads_them() {
        for (text, expected) in [
            ("/dev/fuse", "/dev/fuse:/dev/fuse:rwm"),
            ("/dev/fuse:/dev/f", "/dev/fuse:/dev/f:rwm"),
            ("/dev/fuse:r", "/dev/fuse:/dev/fuse:r"),
            ("/dev/sda:/dev/xvda:rw", "/dev/sda:/dev/xvda:rw"),
        ] {
            let device = Device::parse(text).unwrap();
            assert_eq!(device.to_string(), expected);
            assert_eq!(Device::parse(expected).unwrap(), device);
        }
        for bad in [
            "",
            "/",
            "dev/fuse",
            "/dev/a:/dev/b:x",
            "/dev/a:/dev/b:rr",
            "/dev/a:/dev/b:",
            "/dev/a:",
            "/dev/a:/dev/b:r:w",
            "/dev/../etc:/x",
            "/dev/a:/x/../y",
            "/dev/a:rwx",
        ] {
            assert!(Device::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn what_a_container_is_given_is_in_its_labels() {
        let read = |pairs: &[(&str, &str)]| ContainerExtensions::read(&labels(pairs));
        assert_eq!(read(&[("mine", "x")]), Ok(ContainerExtensions::default()));
        let all = ContainerExtensions {
            devices: vec![
                Device::parse("/dev/fuse").unwrap(),
                Device::parse("/dev/null:/dev/zero:r").unwrap(),
            ],
            privileged: true,
            gpus: Some("gpu".into()),
        };
        let mut written = labels(&[("mine", "x")]);
        all.write(&mut written);
        let expected = [
            ("mine", "x"),
            (DEVICES, "/dev/fuse:/dev/fuse:rwm,/dev/null:/dev/zero:r"),
            (GPUS, "gpu"),
            (PRIVILEGED, "1"),
        ];
        assert_eq!(written, labels(&expected));
        assert_eq!(ContainerExtensions::read(&written), Ok(all));
        ContainerExtensions::default().write(&mut written);
        assert_eq!(written, labels(&[("mine", "x")]));
    }

    #[test]
    fn values_that_mean_nothing_are_refused() {
        for (label, value, text) in [
            (PRIVILEGED, "true", "must be \"1\", not \"true\""),
            (GPUS, "", "must be a kind of generic resources"),
            (GPUS, "gpu=1", "must be a kind of generic resources"),
            (DEVICES, "", "must be absolute"),
            (DEVICES, "/dev/a:/x:r,/dev/b:/x:r", "two devices would be \"/x\" in the container"),
        ] {
            let error = ContainerExtensions::read(&labels(&[(label, value)])).unwrap_err();
            assert!(error.contains(text) && error.contains(label), "{error}");
        }
        let many: Vec<String> = (0..=MOST_DEVICES).map(|n| format!("/dev/a:/dev/b{n}")).collect();
        let error = ContainerExtensions::read(&labels(&[(DEVICES, &many.join(","))])).unwrap_err();
        assert!(error.contains("65 devices are more than the 64"), "{error}");
    }
}
