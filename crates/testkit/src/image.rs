//! A tiny image for tests and demonstrations, made of nothing but a statically linked busybox.
//!
//! No registry is asked: the root file system is packed here and imported into the engine. Debian's package
//! `busybox-static` has the binary; `SWARM_TEST_BUSYBOX` names another one.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};
use bollard::Docker;
use bollard::query_parameters::{CreateImageOptionsBuilder, ImportImageOptionsBuilder};
use futures::StreamExt;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::archive::{Archive, Kind};

/// Name of the image; the tag tells which busybox is in it.
pub const NAME: &str = "swarm-test/busybox";
/// Name of the image that runs into an error.
const FAILING: &str = "swarm-test/failing";
/// Name of the image whose health check fails.
const UNHEALTHY: &str = "swarm-test/unhealthy";
const UNHEALTHY_CHECK: &str = "HEALTHCHECK --interval=200ms --retries=1 CMD false";
/// Name of the image that does not say what platform it is for.
const SILENT: &str = "swarm-test/silent";

/// Accounts in the image, for tests of users and groups: `app` is 1000:1000, `extra` is the group 2000.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/tmp:/bin/sh\n";
const GROUP: &str = "root:x:0:\napp:x:1000:\nextra:x:2000:\n";
/// Runs until told to end, then ends at once.
const COMMAND: &str = r#"CMD ["/bin/sh","-c","trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"]"#;
const FAILING_COMMAND: &str = r#"CMD ["/bin/sh","-c","echo as bad as can be >&2; exit 1"]"#;

/// Makes sure that the image is in the engine, and gives its name with its tag.
///
/// # Errors
/// If there is no statically linked busybox on this machine, or the engine refuses.
pub async fn busybox(docker: &Docker) -> anyhow::Result<String> {
    made(docker, NAME, &[COMMAND]).await
}

/// The same with another command: one that fails at once.
///
/// # Errors
/// As [`busybox`].
pub async fn failing(docker: &Docker) -> anyhow::Result<String> {
    made(docker, FAILING, &[FAILING_COMMAND]).await
}

/// The same with a health check that always fails.
///
/// # Errors
/// As [`busybox`].
pub async fn unhealthy(docker: &Docker) -> anyhow::Result<String> {
    made(docker, UNHEALTHY, &[COMMAND, UNHEALTHY_CHECK]).await
}

async fn made(docker: &Docker, name: &str, changes: &[&str]) -> anyhow::Result<String> {
    let path = busybox_path()?;
    let binary = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    if binary.windows(9).any(|window| window == b"/ld-linux") {
        bail!("{} is not statically linked: install the package busybox-static", path.display());
    }
    let tag = format!("{:08x}", checksum(&binary));
    let image = format!("{name}:{tag}");
    if docker.inspect_image(&image).await.is_ok() {
        return Ok(image);
    }
    let changes = changes.iter().map(|line| (*line).to_owned()).collect();
    import(docker, name, &tag, changes, root_file_system(&path, &binary)?).await?;
    Ok(image)
}

/// Makes an image of a root file system; `changes` are lines of a Dockerfile.
pub(crate) async fn import(
    docker: &Docker,
    name: &str,
    tag: &str,
    changes: Vec<String>,
    archive: Vec<u8>,
) -> anyhow::Result<()> {
    let options = CreateImageOptionsBuilder::new().from_src("-").repo(name).tag(tag).changes(changes).build();
    let mut answers = docker.create_image(Some(options), Some(bollard::body_full(archive.into())), None);
    while let Some(answer) = answers.next().await {
        answer.with_context(|| format!("importing the image {name}"))?;
    }
    Ok(())
}

/// The same as an image that does not say for which architecture it is.
///
/// # Errors
/// As [`busybox`].
pub async fn without_platform(docker: &Docker) -> anyhow::Result<String> {
    let layer = busybox_layer()?;
    let sum = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let image = format!("{SILENT}:{}", &sum[..8]);
    if docker.inspect_image(&image).await.is_ok() {
        return Ok(image);
    }
    let config = json!({
        "config": {"Cmd": ["/bin/sh", "-c", "exec sleep 3600"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]}]);
    let mut archive = Archive::default();
    archive.entry("config.json", Kind::File(config.to_string().as_bytes()), 0o644);
    archive.entry("manifest.json", Kind::File(manifest.to_string().as_bytes()), 0o644);
    archive.entry("layer.tar", Kind::File(&layer), 0o644);
    let archive = bollard::body_full(archive.finish().into());
    let options = ImportImageOptionsBuilder::new().quiet(true).build();
    let mut answers = std::pin::pin!(docker.import_image(options, archive, None));
    while let Some(answer) = answers.next().await {
        answer.with_context(|| format!("loading the image {image}"))?;
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

/// The statically linked busybox of this machine.
///
/// # Errors
/// If there is none.
pub fn busybox_path() -> anyhow::Result<PathBuf> {
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
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "etc", "proc", "root", "run", "sys"] {
        archive.entry(directory, Kind::Directory, 0o755);
    }
    archive.entry("tmp", Kind::Directory, 0o1777);
    add_busybox(&mut archive, path, binary)?;
    archive.entry("etc/passwd", Kind::File(PASSWD.as_bytes()), 0o644);
    archive.entry("etc/group", Kind::File(GROUP.as_bytes()), 0o644);
    Ok(archive.finish())
}

/// FNV-1a: tells one busybox from another, no more.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Puts busybox and a link for each of its commands into `bin`.
pub(crate) fn add_busybox(
    archive: &mut Archive,
    path: &std::path::Path,
    binary: &[u8],
) -> anyhow::Result<()> {
    let list = Command::new(path).arg("--list").output().context("asking busybox for its commands")?;
    archive.entry("bin/busybox", Kind::File(binary), 0o755);
    for name in String::from_utf8_lossy(&list.stdout).lines().filter(|name| !matches!(*name, "" | "busybox"))
    {
        archive.entry(&format!("bin/{name}"), Kind::Link("busybox"), 0o777);
    }
    Ok(())
}
