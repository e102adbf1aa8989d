//! Mounts and a root of a process's own.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chdir, pivot_root};

use crate::launch::Isolation;

/// Devices that every program expects.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// What else is in `/dev`, and where it leads.
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

const NOTHING: Option<&str> = None;

/// Gives the calling process, which must be alone in its address space, mounts of its own as they are to be. A root is
/// ready then, and not entered.
pub(super) fn own_mounts(isolation: &Isolation) -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("making a mount namespace: {error}"))?;
    // What is mounted from now on stays in here.
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)
        .map_err(|error| format!("making mounts private: {error}"))?;
    match &isolation.root {
        None if isolation.pid => proc_at(Path::new("/proc")),
        None => Ok(()),
        Some(root) => {
            bind(root, root)?;
            proc_at(&place(root, "proc")?)?;
            devices(&place(root, "dev")?)?;
            isolation.files.as_deref().map_or(Ok(()), |files| share(root, files))
        }
    }
}

/// Leaves the host's root for another one, for good.
pub(super) fn enter_root(root: &Path) -> Result<(), String> {
    let failed = |error: nix::Error| format!("entering the root {}: {error}", root.display());
    chdir(root).map_err(failed)?;
    // The old root is put on top of the new one, and taken away.
    pivot_root(".", ".").map_err(failed)?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed)?;
    chdir("/").map_err(failed)
}

/// Enters the mounts, and the root, of another process.
pub(super) fn join(pid: i32) -> Result<(), String> {
    let path = format!("/proc/{pid}/ns/mnt");
    let namespace = File::open(&path).map_err(|error| format!("opening {path}: {error}"))?;
    setns(namespace, CloneFlags::CLONE_NEWNS).map_err(|error| format!("entering the task's mounts: {error}"))
}

/// Lets the children of this process, which has one thread, be among another one's processes.
pub(super) fn join_processes(pid: i32) -> Result<(), String> {
    let path = format!("/proc/{pid}/ns/pid");
    let namespace = File::open(&path).map_err(|error| format!("opening {path}: {error}"))?;
    setns(namespace, CloneFlags::CLONE_NEWPID)
        .map_err(|error| format!("entering the task's processes: {error}"))
}

fn proc_at(path: &Path) -> Result<(), String> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), path, Some("proc"), flags, NOTHING)
        .map_err(|error| format!("mounting {}: {error}", path.display()))
}

/// A directory in the root to mount something on; made if it is not there.
fn place(root: &Path, name: &str) -> Result<PathBuf, String> {
    let path = root.join(name);
    // Not through a link out of the root.
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() => return Ok(path),
        Ok(_) => return Err(format!("{} is no directory", path.display())),
        Err(_) => {}
    }
    make(&path)?;
    Ok(path)
}

fn make(path: &Path) -> Result<(), String> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(format!("making {} to mount on: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A small `/dev` in memory, with the host's devices that are no danger.
fn devices(dev: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("filling {}: {error}", dev.display());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), dev, Some("tmpfs"), flags, Some("mode=755,size=65536k"))
        .map_err(|error| format!("mounting {}: {error}", dev.display()))?;
    for name in DEVICES {
        let host = Path::new("/dev").join(name);
        if host.exists() {
            File::create(dev.join(name)).map_err(failed)?;
            bind(&host, &dev.join(name))?;
        }
    }
    for (name, target) in LINKS {
        symlink(target, dev.join(name)).map_err(failed)?;
    }
    let shm = dev.join("shm");
    make(&shm)?;
    fs::set_permissions(&shm, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).map_err(failed)
}

/// Lets a directory of the host be found under its own path in the root, to be read only.
fn share(root: &Path, directory: &Path) -> Result<(), String> {
    let mut path = root.to_owned();
    for part in directory.strip_prefix("/").unwrap_or(directory).components() {
        path = place(&path, &part.as_os_str().to_string_lossy())?;
    }
    bind(directory, &path)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(NOTHING, &path, NOTHING, flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV, NOTHING)
        .map_err(|error| format!("making {} read-only: {error}", path.display()))
}

fn bind(from: &Path, to: &Path) -> Result<(), String> {
    mount(Some(from), to, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING)
        .map_err(|error| format!("mounting {} on {}: {error}", from.display(), to.display()))
}
