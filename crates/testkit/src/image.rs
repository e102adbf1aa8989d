//! A tiny image for tests and demonstrations, made of nothing but a statically linked busybox.
//!
//! No registry is asked: the root file system is packed here and imported into the engine. Debian's package
//! `busybox-static` has the binary; `SWARM_TEST_BUSYBOX` names another one.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};
use bollard::Docker;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::StreamExt;

/// Name of the image; the tag tells which busybox is in it.
pub const NAME: &str = "swarm-test/busybox";

/// Accounts in the image, for tests of users and groups: `app` is 1000:1000, `extra` is the group 2000.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/tmp:/bin/sh\n";
const GROUP: &str = "root:x:0:\napp:x:1000:\nextra:x:2000:\n";
/// Runs until told to end, then ends at once.
const COMMAND: &str = r#"CMD ["/bin/sh","-c","trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"]"#;

/// Makes sure that the image is in the engine, and gives its name with its tag.
///
/// # Errors
/// If there is no statically linked busybox on this machine, or the engine refuses.
pub async fn busybox(docker: &Docker) -> anyhow::Result<String> {
    let path = busybox_path()?;
    let binary = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    if binary.windows(9).any(|window| window == b"/ld-linux") {
        bail!("{} is not statically linked: install the package busybox-static", path.display());
    }
    let tag = format!("{:08x}", checksum(&binary));
    let image = format!("{NAME}:{tag}");
    if docker.inspect_image(&image).await.is_ok() {
        return Ok(image);
    }
    let archive = root_file_system(&path, &binary)?;
    let options = CreateImageOptionsBuilder::new()
        .from_src("-")
        .repo(NAME)
        .tag(&tag)
        .changes(vec![COMMAND.to_owned()])
        .build();
    let mut answers = docker.create_image(Some(options), Some(bollard::body_full(archive.into())), None);
    while let Some(answer) = answers.next().await {
        answer.context("importing the test image")?;
    }
    Ok(image)
}

/// The image's only layer, a tar archive: for a registry.
///
/// # Errors
/// If there is no busybox on this machine.
pub fn busybox_layer() -> anyhow::Result<Vec<u8>> {
    let path = busybox_path()?;
    let binary = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    root_file_system(&path, &binary)
}

fn busybox_path() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("SWARM_TEST_BUSYBOX") {
        return Ok(path.into());
    }
    for path in ["/bin/busybox", "/usr/bin/busybox"] {
        if std::fs::exists(path)? {
            return Ok(path.into());
        }
    }
    bail!("no busybox on this machine: install the package busybox-static");
}

fn root_file_system(path: &std::path::Path, binary: &[u8]) -> anyhow::Result<Vec<u8>> {
    let list = Command::new(path).arg("--list").output().context("asking busybox for its commands")?;
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "etc", "proc", "root", "run", "sys"] {
        archive.entry(directory, Kind::Directory, 0o755);
    }
    archive.entry("tmp", Kind::Directory, 0o1777);
    archive.entry("bin/busybox", Kind::File(binary), 0o755);
    for name in String::from_utf8_lossy(&list.stdout).lines().filter(|name| !matches!(*name, "" | "busybox"))
    {
        archive.entry(&format!("bin/{name}"), Kind::Link("busybox"), 0o777);
    }
    archive.entry("etc/passwd", Kind::File(PASSWD.as_bytes()), 0o644);
    archive.entry("etc/group", Kind::File(GROUP.as_bytes()), 0o644);
    Ok(archive.finish())
}

/// FNV-1a: tells one busybox from another, no more.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

enum Kind<'a> {
    Directory,
    File(&'a [u8]),
    Link(&'a str),
}

/// A tar archive in the ustar format (POSIX.1-1988), owned by root.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn entry(&mut self, name: &str, kind: Kind<'_>, mode: u32) {
        let (flag, link, data): (u8, &str, &[u8]) = match kind {
            Kind::Directory => (b'5', "", &[]),
            Kind::File(data) => (b'0', "", data),
            Kind::Link(target) => (b'2', target, &[]),
        };
        let mut header = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0000000\x000000000\0");
        put(124, format!("{:011o}", data.len()).as_bytes());
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, &[flag]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
