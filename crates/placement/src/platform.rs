//! Platforms: which of those that a task may run on are a node's.

use swarm_api::v1::Platform;

/// An operating system and an architecture, the latter under the name that images have for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NormalPlatform {
    /// `linux`
    pub os: String,
    /// `amd64`
    pub architecture: String,
}

impl NormalPlatform {
    /// A node that is of this platform may have tasks that want that one. What a wish leaves out may be anything.
    pub fn serves(&self, wanted: &NormalPlatform) -> bool {
        let fits = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        fits(&wanted.os, &self.os) && fits(&wanted.architecture, &self.architecture)
    }
}

impl From<&Platform> for NormalPlatform {
    fn from(platform: &Platform) -> Self {
        let architecture = match platform.architecture.as_str() {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        NormalPlatform { os: platform.os.clone(), architecture: architecture.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_has_two_names_and_a_wish_may_be_half_of_one() {
        let platform = |os: &str, architecture: &str| {
            NormalPlatform::from(&Platform { os: os.into(), architecture: architecture.into() })
        };
        for (node, wanted, serves) in [
            (("linux", "x86_64"), ("linux", "amd64"), true),
            (("linux", "amd64"), ("linux", "x86_64"), true),
            (("linux", "aarch64"), ("linux", "arm64"), true),
            (("linux", "x86_64"), ("", "amd64"), true),
            (("linux", "x86_64"), ("linux", ""), true),
            (("linux", "x86_64"), ("", ""), true),
            (("linux", "x86_64"), ("linux", "arm64"), false),
            (("linux", "x86_64"), ("windows", "amd64"), false),
            (("", ""), ("linux", "amd64"), false),
        ] {
            let (is, wish) = (platform(node.0, node.1), platform(wanted.0, wanted.1));
            assert_eq!(is.serves(&wish), serves, "{node:?} {wanted:?}");
        }
    }
}
