//! The image of a host: busybox, `nft`, `libfaketime`, and the libraries that they and this workspace's programs need.
//!
//! Everything is copied from this machine, so that no registry is asked and the libraries are those that the programs
//! were linked with. The image's tag is a hash of its contents: it is made again whenever one of them changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use bollard::Docker;
use sha2::{Digest as _, Sha256};

use crate::archive::{Archive, Kind};
use crate::daemon::program;
use crate::image;

/// Name of the image; the tag tells what is in it.
const NAME: &str = "swarm-test/node";
/// Where `libfaketime` is in the image.
pub(super) const FAKETIME: &str = "/lib/libfaketime.so";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n";
const GROUP: &str = "root:x:0:\n";

/// Makes sure that the image is in the engine, and gives its name with its tag.
///
/// # Errors
/// If this machine lacks what belongs into it.
pub(super) async fn make(docker: &Docker) -> Result<String> {
    let archive = root_file_system()?;
    let hash: String = Sha256::digest(&archive).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let image = format!("{NAME}:{hash}");
    if docker.inspect_image(&image).await.is_err() {
        image::import(docker, NAME, &hash, Vec::new(), archive).await?;
    }
    Ok(image)
}

fn root_file_system() -> Result<Vec<u8>> {
    let busybox = image::busybox_path()?;
    let nft = first(["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"].map(PathBuf::from))
        .context("no nft on this machine: install the package nftables")?;
    let faketime = faketime().context("no libfaketime on this machine: install the package libfaketime")?;
    let mut needed = BTreeSet::new();
    for file in [&nft, &faketime, &program("swarmd")?] {
        needed.extend(libraries(file)?);
    }

    let mut directories: BTreeSet<PathBuf> =
        ["bin", "dev", "etc", "lab", "lib", "proc", "root", "run", "sbin", "state", "sys"]
            .map(PathBuf::from)
            .into();
    for library in &needed {
        directories.extend(relative(library).ancestors().skip(1).map(Path::to_path_buf));
    }
    directories.retain(|directory| !directory.as_os_str().is_empty());

    let mut archive = Archive::default();
    for directory in &directories {
        archive.entry(utf8(directory)?, Kind::Directory, 0o755);
    }
    archive.entry("tmp", Kind::Directory, 0o1777);
    image::add_busybox(&mut archive, &busybox, &std::fs::read(&busybox)?)?;
    archive.entry("sbin/nft", Kind::File(&std::fs::read(&nft)?), 0o755);
    archive.entry(utf8(relative(Path::new(FAKETIME)))?, Kind::File(&std::fs::read(&faketime)?), 0o644);
    for library in &needed {
        archive.entry(utf8(relative(library))?, Kind::File(&std::fs::read(library)?), 0o755);
    }
    archive.entry("etc/passwd", Kind::File(PASSWD.as_bytes()), 0o644);
    archive.entry("etc/group", Kind::File(GROUP.as_bytes()), 0o644);
    Ok(archive.finish())
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

fn first(paths: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    paths.into_iter().find(|path| path.exists())
}

/// The library for programs with several threads, in the directory of whatever machine this is.
fn faketime() -> Option<PathBuf> {
    let architectures = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|e| e.path());
    first(architectures.map(|path| path.join("faketime/libfaketimeMT.so.1")))
}

/// The shared libraries of a program, and its loader.
fn libraries(file: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(file).output().context("can't run ldd")?;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success() && !text.contains("not found"), "ldd {}: {text}", file.display());
    let words = text.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let found: Vec<PathBuf> = words.map(PathBuf::from).collect();
    if found.is_empty() {
        bail!("ldd names no library of {}", file.display());
    }
    Ok(found)
}
