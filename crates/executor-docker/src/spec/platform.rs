//! The platform that image and container are asked for.

use swarm_api::v1::{Platform, Task};
use swarm_placement::NormalPlatform;

use crate::facts::EngineFacts;

/// Names that images have for architectures. Of 32-bit ARM there are several, which the contract can't tell apart: the engine
/// knows which of them it is.
const ARCHITECTURES: [&str; 8] =
    ["386", "amd64", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x"];

/// A platform in the words of images.
fn normal(platform: &Platform) -> NormalPlatform {
    NormalPlatform::from(&Platform {
        os: platform.os.to_lowercase(),
        architecture: platform.architecture.to_lowercase(),
    })
}

/// The first of the platforms that the task may run on that is the engine's, as engines write it: `linux/amd64`. None if the task
/// names none, or leaves the architecture to the engine: the images that it has may be of others, which the kernel can run too.
pub(super) fn platform(task: &Task, facts: &EngineFacts) -> Option<String> {
    let wanted = task.spec.placement.as_ref()?;
    let own = normal(&facts.platform);
    let named = |wanted: &NormalPlatform| !(wanted.os.is_empty() && wanted.architecture.is_empty());
    let mut wanted = wanted.platforms.iter().map(normal).filter(named);
    let NormalPlatform { os, architecture } = wanted.find(|wanted| own.serves(wanted))?;
    let os = if os.is_empty() { own.os } else { os };
    ARCHITECTURES.contains(&architecture.as_str()).then(|| format!("{os}/{architecture}"))
}

/// Whether what an image says of itself is the platform; what it does not say may be anything.
pub(crate) fn is_of(platform: &str, (os, architecture): (&str, &str)) -> bool {
    let (wanted_os, wanted_architecture) = platform.split_once('/').unwrap_or((platform, ""));
    let is = normal(&Platform { os: os.to_owned(), architecture: architecture.to_owned() });
    let fits = |wanted: &str, is: &str| wanted.is_empty() || is.is_empty() || wanted == is;
    fits(wanted_os, &is.os) && fits(wanted_architecture, &is.architecture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_platform_that_is_the_engines_is_asked_for() {
        let x86 = ("linux", "x86_64");
        for (engine, wanted, expected) in [
            (x86, &[][..], None),
            (x86, &[("linux", "amd64")], Some("linux/amd64")),
            (x86, &[("Linux", "X86_64")], Some("linux/amd64")),
            (x86, &[("windows", "amd64"), ("linux", "arm64"), ("linux", "amd64")], Some("linux/amd64")),
            (x86, &[("linux", ""), ("linux", "amd64")], None),
            (x86, &[("", "amd64")], Some("linux/amd64")),
            (x86, &[("", "")], None),
            (x86, &[("", ""), ("linux", "amd64")], Some("linux/amd64")),
            (x86, &[("linux", "arm64")], None),
            (("linux", "aarch64"), &[("linux", "amd64"), ("linux", "arm64")], Some("linux/arm64")),
            (("linux", "armv7l"), &[("linux", "armv7l")], None),
            (("", ""), &[("linux", "amd64")], None),
        ] {
            let platform = |(os, architecture): (&str, &str)| Platform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
            };
            let facts = EngineFacts { platform: platform(engine), ..EngineFacts::newest() };
            let mut task = Task::default();
            let platforms = wanted.iter().copied().map(platform).collect();
            task.spec.placement = Some(swarm_api::v1::Placement { platforms, ..Default::default() });
            assert_eq!(super::platform(&task, &facts).as_deref(), expected, "{engine:?} {wanted:?}");
        }
    }

    #[test]
    fn an_image_that_says_nothing_of_its_platform_may_be_of_any() {
        for (platform, image, expected) in [
            ("linux/amd64", ("linux", "amd64"), true),
            ("linux/amd64", ("Linux", "x86_64"), true),
            ("linux/amd64", ("linux", "arm64"), false),
            ("linux/amd64", ("windows", "amd64"), false),
            ("linux/amd64", ("", ""), true),
            ("linux/amd64", ("linux", ""), true),
            ("linux", ("linux", "arm"), true),
            ("linux", ("windows", "amd64"), false),
        ] {
            assert_eq!(is_of(platform, image), expected, "{platform} {image:?}");
        }
    }
}
