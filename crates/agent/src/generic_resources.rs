//! What a node offers beside CPUs and memory: as its operator says, as its engine is set up, and as devices are found.
//!
//! Several sources may speak of a kind. The first one that does has the say, in this order: what was given, files, the
//! engine, patterns of device files, GPUs that were found. Files and devices are looked at each time that the node describes
//! itself, so that what comes and goes is offered and withdrawn without a restart.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use swarm_api::extensions::container::GPU_KIND;
use swarm_api::v1::generic_resource::Resource;
use swarm_api::v1::{GenericResource, Resources};
use swarm_placement::generic;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;
/// Most devices of one kind.
const MOST: usize = 1024;
/// Longest time for all files. One on a file system that hangs must not keep the node from describing itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the generic resources of a node come from.
#[derive(Debug, Clone, Default)]
pub struct GenericSources {
    /// Those that the operator gave.
    pub given: Vec<GenericResource>,
    /// Files with more: lines of `kind=value`, several of them separated by commas; what follows a `#` is a comment.
    pub files: Vec<PathBuf>,
    /// Device files whose paths are offered by name.
    pub devices: Vec<DevicePattern>,
    /// Root of the file system where NVIDIA's GPUs are looked for, below `proc/driver/nvidia` and `dev`.
    pub gpus: Option<PathBuf>,
}

/// Device files that are offered as generic resources of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePattern {
    kind: String,
    directory: PathBuf,
    /// Pieces of the file's name, with anything between them.
    name: Vec<String>,
}

impl DevicePattern {
    /// Reads `kind=/path`; the last part of the path may hold `*` for any text.
    ///
    /// # Errors
    /// What was expected instead.
    pub fn parse(text: &str) -> Result<DevicePattern, String> {
        let wrong = || format!("{text:?}: expected kind=/path/of/devices, with * only behind the last slash");
        let (kind, path) = text.split_once('=').ok_or_else(wrong)?;
        let (kind, path) = (kind.trim(), path.trim());
        let (directory, name) = path.rsplit_once('/').ok_or_else(wrong)?;
        let absolute = directory.is_empty() || directory.starts_with('/');
        if kind.is_empty() || name.is_empty() || !absolute || directory.contains('*') {
            return Err(wrong());
        }
        Ok(DevicePattern {
            kind: kind.to_owned(),
            directory: PathBuf::from(if directory.is_empty() { "/" } else { directory }),
            name: name.split('*').map(str::to_owned).collect(),
        })
    }

    fn matches(&self, name: &str) -> bool {
        let Some((first, rest)) = self.name.split_first() else { return false };
        let Some(mut left) = name.strip_prefix(first.as_str()) else { return false };
        let Some((last, middle)) = rest.split_last() else { return left.is_empty() };
        for piece in middle {
            let Some(at) = left.find(piece.as_str()) else { return false };
            left = &left[at + piece.len()..];
        }
        left.ends_with(last.as_str())
    }

    fn find(&self) -> Vec<GenericResource> {
        let mut paths: Vec<String> = names(&self.directory)
            .into_iter()
            .filter(|name| self.matches(name))
            .filter_map(|name| Some(self.directory.join(name).to_str()?.to_owned()))
            .filter(|path| !path.contains([',', '=', '\n']))
            .collect();
        paths.sort_unstable();
        paths.truncate(MOST);
        paths.into_iter().map(|path| generic::named(self.kind.clone(), path)).collect()
    }
}

impl GenericSources {
    /// Whether all files that are there can be read.
    ///
    /// # Errors
    /// What is wrong with the first one that can't.
    pub fn check(&self) -> Result<(), String> {
        self.files.iter().try_for_each(|file| read(file).map(drop))
    }

    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.devices.is_empty() && self.gpus.is_none()
    }

    fn look(&self) -> Look {
        Look {
            files: self.files.iter().map(|file| read(file)).collect(),
            devices: self.devices.iter().map(DevicePattern::find).collect(),
            gpus: self.gpus.as_deref().map(gpus).unwrap_or_default(),
        }
    }
}

/// What was found at one time.
#[derive(Debug, Clone, Default)]
struct Look {
    files: Vec<Result<Vec<GenericResource>, String>>,
    devices: Vec<Vec<GenericResource>>,
    gpus: Vec<GenericResource>,
}

/// The generic resources of a node.
#[derive(Debug)]
pub(crate) struct GenericResources {
    sources: GenericSources,
    /// The last look.
    last: Look,
    /// What each file said when it could last be read.
    good: Vec<Vec<GenericResource>>,
    /// What is wrong with each file, as it was logged.
    trouble: Vec<Option<String>>,
}

impl GenericResources {
    pub(crate) fn new(sources: GenericSources) -> GenericResources {
        let files = sources.files.len();
        GenericResources {
            sources,
            last: Look::default(),
            good: vec![vec![]; files],
            trouble: vec![None; files],
        }
    }

    /// Looks at files and devices again.
    pub(crate) async fn refresh(&mut self) {
        if self.sources.is_empty() {
            return;
        }
        let sources = self.sources.clone();
        let look = tokio::task::spawn_blocking(move || sources.look());
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(Ok(look)) => self.take(look),
            Ok(Err(error)) => tracing::error!(%error, "looking for generic resources failed"),
            Err(_) => tracing::warn!("files with generic resources can't be read in time"),
        }
    }

    /// A file that can't be understood keeps what it said before: a typing error must not end tasks.
    fn take(&mut self, look: Look) {
        for (n, result) in look.files.iter().enumerate() {
            match result {
                Ok(resources) => {
                    self.good[n].clone_from(resources);
                    self.trouble[n] = None;
                }
                Err(error) => {
                    if self.trouble[n].as_ref() != Some(error) {
                        tracing::warn!(error, "generic resources stay as they were");
                    }
                    self.trouble[n] = Some(error.clone());
                }
            }
        }
        self.last = look;
    }

    /// Adds what was found to what the engine says.
    pub(crate) fn complete(&self, mut resources: Resources) -> Resources {
        let engine = std::mem::take(&mut resources.generic);
        let sources = std::iter::once(&self.sources.given)
            .chain(&self.good)
            .chain(std::iter::once(&engine))
            .chain(&self.last.devices)
            .chain(std::iter::once(&self.last.gpus));
        let mut known = BTreeSet::new();
        for source in sources {
            let new: Vec<_> = source
                .iter()
                .filter(|r| kind(r).is_some_and(|kind| !known.contains(kind)))
                .cloned()
                .collect();
            known.extend(new.iter().filter_map(kind).map(str::to_owned));
            resources.generic.extend(new);
        }
        resources
    }
}

fn kind(resource: &GenericResource) -> Option<&str> {
    match resource.resource.as_ref()? {
        Resource::NamedResourceSpec(named) => Some(&named.kind),
        Resource::DiscreteResourceSpec(discrete) => Some(&discrete.kind),
    }
}

/// What a file says; nothing if it is not there.
fn read(path: &Path) -> Result<Vec<GenericResource>, String> {
    let failed = |reason: String| format!("{}: {reason}", path.display());
    let size = match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Err(failed("it is no regular file".to_owned())),
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error.to_string())),
    };
    if size > MAX_FILE {
        return Err(failed(format!("it has {size} bytes, more than the {MAX_FILE} that are read")));
    }
    match fs::read_to_string(path) {
        Ok(text) => parse(&text).map_err(failed),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// The content of a file.
pub(crate) fn parse(text: &str) -> Result<Vec<GenericResource>, String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    generic::parse(&lines.join(",")).map_err(|error| error.to_string())
}

/// Names of what is in a directory; none if it can't be read.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// NVIDIA's GPUs: by the ids that the driver gives them, else by the names of their device files.
fn gpus(root: &Path) -> Vec<GenericResource> {
    let directory = root.join("proc/driver/nvidia/gpus");
    let mut slots = names(&directory);
    slots.sort_unstable();
    let of_driver = slots.iter().filter_map(|slot| {
        let text = fs::read_to_string(directory.join(slot).join("information")).ok()?;
        name_of_gpu(&text)
    });
    let mut found: Vec<String> = of_driver.collect();
    if found.is_empty() {
        let devices = names(&root.join("dev")).into_iter();
        let mut numbers: Vec<u32> =
            devices.filter_map(|name| name.strip_prefix("nvidia")?.parse().ok()).collect();
        numbers.sort_unstable();
        found = numbers.iter().map(|number| format!("nvidia{number}")).collect();
    }
    found.truncate(MOST);
    found.into_iter().map(|name| generic::named(GPU_KIND, name)).collect()
}

/// The id in what the driver says of a GPU. Where it hides it, the name of its device file.
pub(crate) fn name_of_gpu(information: &str) -> Option<String> {
    let field = |name: &str| {
        let line = information.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix(':'));
        line.map(str::trim).filter(|value| !value.is_empty())
    };
    let good = |id: &&str| id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let minor = || Some(format!("nvidia{}", field("Device Minor")?.parse::<u32>().ok()?));
    field("GPU UUID").filter(good).map(str::to_owned).or_else(minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(resources: &[GenericResource]) -> Vec<String> {
        let one = |resource: &GenericResource| match resource.resource.as_ref().unwrap() {
            Resource::NamedResourceSpec(n) => format!("{}={}", n.kind, n.value),
            Resource::DiscreteResourceSpec(d) => format!("{}={}", d.kind, d.value),
        };
        resources.iter().map(one).collect()
    }

    async fn offered(resources: &mut GenericResources, engine: &str) -> Vec<String> {
        resources.refresh().await;
        let generic = if engine.is_empty() { vec![] } else { generic::parse(engine).unwrap() };
        texts(&resources.complete(Resources { generic, ..Default::default() }).generic)
    }

    #[tokio::test]
    async fn the_first_source_that_knows_a_kind_has_the_say() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resources");
        fs::write(&file, "fpga=7 # overruled\nssd=a\nssd=b\n").unwrap();
        let dev = dir.path().join("dev");
        fs::create_dir(&dev).unwrap();
        for name in ["nvidia1", "nvidia0", "nvidiactl", "nvidia-uvm", "ttyUSB0"] {
            fs::write(dev.join(name), "").unwrap();
        }
        let pattern = |kind: &str, name: &str| {
            DevicePattern::parse(&format!("{kind}={}/{name}", dev.display())).unwrap()
        };
        let mut resources = GenericResources::new(GenericSources {
            given: generic::parse("fpga=2").unwrap(),
            files: vec![file],
            devices: vec![pattern("tty", "ttyUSB*"), pattern("ssd", "*"), pattern("none", "nothing*")],
            gpus: Some(dir.path().to_owned()),
        });
        let tty = format!("tty={}/ttyUSB0", dev.display());
        assert_eq!(
            offered(&mut resources, "ssd=9,tpu=4").await,
            ["fpga=2", "ssd=a", "ssd=b", "tpu=4", &tty, "gpu=nvidia0", "gpu=nvidia1"]
        );
        assert_eq!(offered(&mut resources, "gpu=x").await[3..], ["gpu=x".to_owned(), tty]);
    }

    #[tokio::test]
    async fn what_changes_while_the_daemon_runs_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resources");
        let sources = GenericSources { files: vec![file.clone()], ..Default::default() };
        let mut resources = GenericResources::new(sources.clone());
        assert_eq!(sources.check(), Ok(()), "a file that is not there yet is no error");
        for (content, expected) in [
            (None, &[][..]),
            (Some("gpu=2"), &["gpu=2"]),
            (Some("gpu=2,gpu=a"), &["gpu=2"]),
            (Some("gpu=a\n\n# more\ngpu=b"), &["gpu=a", "gpu=b"]),
            (Some("# nothing"), &[]),
            (Some("gpu=1"), &["gpu=1"]),
            (None, &[]),
        ] {
            match content {
                Some(content) => fs::write(&file, content).unwrap(),
                None => drop(fs::remove_file(&file)),
            }
            assert_eq!(offered(&mut resources, "").await, expected, "{content:?}");
        }
        fs::write(&file, "gpu").unwrap();
        let error = sources.check().unwrap_err();
        assert!(error.ends_with("generic resource \"gpu\" is invalid: expected kind=value"), "{error}");
        fs::write(&file, "x".repeat(70_000)).unwrap();
        assert!(sources.check().unwrap_err().contains("it has 70000 bytes"));
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(sources.check().unwrap_err().contains("no regular file"));
    }

    #[tokio::test]
    async fn gpus_have_the_ids_that_their_driver_gives_them() {
        let dir = tempfile::tempdir().unwrap();
        let gpu = |slot: &str, information: &str| {
            let slot = dir.path().join("proc/driver/nvidia/gpus").join(slot);
            fs::create_dir_all(&slot).unwrap();
            fs::write(slot.join("information"), information).unwrap();
        };
        let sources = GenericSources { gpus: Some(dir.path().to_owned()), ..Default::default() };
        let mut resources = GenericResources::new(sources);
        assert_eq!(offered(&mut resources, "").await, [] as [&str; 0]);
        gpu(
            "0000:3b:00.0",
            "Model: \t\t Tesla T4\nGPU UUID: \t GPU-5a3c-11\nBus Location: \t 0000:3b:00.0\nDevice Minor: \t 1\n",
        );
        gpu("0000:1a:00.0", "Model: T4\nGPU UUID: GPU-????????-????\nDevice Minor: 0\n");
        gpu("0000:5e:00.0", "nothing of use");
        assert_eq!(offered(&mut resources, "").await, ["gpu=nvidia0", "gpu=GPU-5a3c-11"]);
    }

    #[test]
    fn patterns_match_names_as_shells_do() {
        for (pattern, name, expected) in [
            ("ttyUSB*", "ttyUSB0", true),
            ("ttyUSB*", "ttyUSB", true),
            ("ttyUSB*", "ttyS0", false),
            ("*", "anything", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("fuse", "fuse", true),
            ("fuse", "fused", false),
            ("a*a", "a", false),
        ] {
            let parsed = DevicePattern::parse(&format!("k=/dev/{pattern}")).unwrap();
            assert_eq!(parsed.matches(name), expected, "{pattern} {name}");
        }
        for bad in ["", "k", "k=", "k=dev/x", "=/dev/x", "k=/dev/*/x", "k=/dev/"] {
            let error = DevicePattern::parse(bad).unwrap_err();
            assert!(error.contains("expected kind=/path/of/devices"), "{bad}: {error}");
        }
    }
}
