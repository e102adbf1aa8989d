//! Files that must never reach a disk: secrets and configs of tasks, while the tasks need them.
//!
//! They lie on a file system of the host that is in memory (tmpfs), below a directory that nobody else may look
//! into: `<root>/<node id>/<kind>/<task id>/`. Several daemons share a host, so nothing of another node's id is
//! touched. After a restart of the daemon the files are still there; after one of the host they are gone, and so is
//! what used them.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::Uid;

use crate::ControllerError;

/// Directories above those of tasks may be passed through, not listed.
const PASSAGE: u32 = 0o711;
/// Suffix of a directory that is still being filled.
const UNFINISHED: &str = ".new";

/// A directory in memory that belongs to this user's daemons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryRoot {
    path: PathBuf,
}

impl MemoryRoot {
    /// The first of `/run/swarmd` and `/dev/shm/swarmd-<user id>` that is in memory and can be made.
    ///
    /// # Errors
    /// Why none can be used, for the user.
    pub fn find() -> Result<MemoryRoot, String> {
        let candidates =
            [("/run", "swarmd".to_owned()), ("/dev/shm", format!("swarmd-{}", Uid::effective()))];
        let mut reasons = Vec::new();
        for (parent, name) in candidates {
            match MemoryRoot::within(Path::new(parent), &name) {
                Ok(root) => return Ok(root),
                Err(reason) => reasons.push(format!("{parent}: {reason}")),
            }
        }
        Err(format!("this host has no directory in memory for them ({})", reasons.join("; ")))
    }

    /// The directory `name` in `parent`, made if it is not there.
    ///
    /// # Errors
    /// Why it can't be used: not in memory, somebody else's, or not to be made.
    pub fn within(parent: &Path, name: &str) -> Result<MemoryRoot, String> {
        let text = |error: io::Error| error.to_string();
        let kind = statfs(parent).map_err(|error| text(error.into()))?.filesystem_type();
        if kind != TMPFS_MAGIC {
            return Err("it is not in memory".to_owned());
        }
        let path = parent.join(name);
        passage(&path).map_err(text)?;
        // In a directory that is everybody's, somebody else may have been first.
        let found = fs::symlink_metadata(&path).map_err(text)?;
        let own = found.is_dir() && found.uid() == Uid::effective().as_raw() && found.mode() & 0o022 == 0;
        if !own {
            return Err(format!("{} is not a directory of this user alone", path.display()));
        }
        Ok(MemoryRoot { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files of one node's tasks of one kind (`containers`, `processes`).
    pub fn of(&self, node_id: &str, kind: &str) -> MemoryStore {
        MemoryStore { root: self.clone(), path: self.path.join(node_id).join(kind) }
    }
}

/// The files of one node's tasks of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryStore {
    root: MemoryRoot,
    path: PathBuf,
}

impl MemoryStore {
    /// The directory of one task. Nothing is made yet.
    ///
    /// # Errors
    /// [`ControllerError::Fatal`] for an id that can't be the name of a directory.
    pub fn task(&self, task_id: &str) -> Result<MemoryDir, ControllerError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if task_id.is_empty() || task_id.len() > 128 || !task_id.bytes().all(plain) {
            return Err(ControllerError::Fatal(format!("unusable task id {task_id:?}")));
        }
        Ok(MemoryDir { root: self.root.path.clone(), path: self.path.join(task_id) })
    }

    /// Removes the files of all tasks but these.
    ///
    /// # Errors
    /// What can't be read or removed.
    pub fn sweep(&self, known_tasks: &HashSet<&str>) -> io::Result<()> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Also one that is being filled just now.
            if !known_tasks.contains(name.strip_suffix(UNFINISHED).unwrap_or(&name)) {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// A file to write. Its content stays out of every log.
pub struct MemoryFile {
    /// Its path within the task's directory, relative and without `..`.
    pub name: PathBuf,
    /// Its bytes.
    pub content: Vec<u8>,
    /// User and group; the daemon's own if absent.
    pub owner: Option<(u32, u32)>,
    /// Permission bits.
    pub mode: u32,
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryFile { name, content, owner, mode } = self;
        f.debug_struct("MemoryFile")
            .field("name", name)
            .field("bytes", &content.len())
            .field("owner", owner)
            .field("mode", &format_args!("{mode:o}"))
            .finish()
    }
}

/// The files of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryDir {
    root: PathBuf,
    path: PathBuf,
}

impl MemoryDir {
    /// A directory whose path was written down by [`MemoryDir::path`], to be removed.
    pub fn known(path: PathBuf) -> MemoryDir {
        MemoryDir { root: path.parent().unwrap_or(&path).to_owned(), path }
    }

    /// Where it is, or will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of its files are there.
    ///
    /// # Errors
    /// If that can't be found out.
    pub fn is_written(&self) -> io::Result<bool> {
        fs::exists(&self.path)
    }

    /// Makes the directory with these files in it, and nothing else; all at once, so that there never are some of
    /// them. The directories belong to `owner` (user and group), who alone may enter them.
    ///
    /// # Errors
    /// What can't be made; then there is nothing.
    pub fn write(&self, owner: Option<(u32, u32)>, files: &[MemoryFile]) -> io::Result<()> {
        let between = self.path.strip_prefix(&self.root).ok().and_then(Path::parent).into_iter();
        let mut above = self.root.clone();
        passage(&above)?;
        for part in between.flat_map(Path::components) {
            above.push(part);
            passage(&above)?;
        }
        let unfinished = self.unfinished();
        remove_tree(&unfinished)?;
        let filled = fill(&unfinished, owner, files).and_then(|()| {
            remove_tree(&self.path)?;
            fs::rename(&unfinished, &self.path)
        });
        if filled.is_err() {
            // The first error counts. What is left is swept at the next start.
            let _ = remove_tree(&unfinished);
        }
        filled
    }

    /// Removes everything. Nothing there is no error.
    ///
    /// # Errors
    /// What can't be removed.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.unfinished())?;
        remove_tree(&self.path)
    }

    fn unfinished(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(UNFINISHED);
        name.into()
    }
}

fn fill(directory: &Path, owner: Option<(u32, u32)>, files: &[MemoryFile]) -> io::Result<()> {
    private_directory(directory, owner)?;
    for file in files {
        let mut above = directory.to_owned();
        for part in file.name.parent().into_iter().flat_map(Path::components) {
            above.push(part);
            if !fs::exists(&above)? {
                private_directory(&above, owner)?;
            }
        }
        let path = directory.join(&file.name);
        let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        open.write_all(&file.content)?;
        // The owner first: it takes away bits of the mode.
        if let Some((user, group)) = file.owner {
            std::os::unix::fs::fchown(&open, Some(user), Some(group))?;
        }
        open.set_permissions(Permissions::from_mode(file.mode & 0o7777))?;
    }
    Ok(())
}

fn private_directory(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    match owner {
        Some((user, group)) => chown(path, Some(user), Some(group)),
        None => Ok(()),
    }
}

/// A directory on the way to those of tasks.
fn passage(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(PASSAGE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        // The umask has nothing to say here.
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(PASSAGE)),
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, MemoryRoot) {
        let parent = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = MemoryRoot::within(parent.path(), "r").unwrap();
        (parent, root)
    }

    fn file(name: &str, content: &str, mode: u32) -> MemoryFile {
        MemoryFile { name: name.into(), content: content.into(), owner: None, mode }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn files_are_there_together_and_go_together() {
        let (_parent, root) = root();
        let store = root.of("node", "containers");
        let dir = store.task("t1").unwrap();
        assert!(!dir.is_written().unwrap());
        dir.write(None, &[file("0", "a", 0o444), file("secrets/1", "b", 0o4400)]).unwrap();
        assert!(dir.is_written().unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("0")).unwrap(), "a");
        assert_eq!((mode(&dir.path().join("0")), mode(&dir.path().join("secrets/1"))), (0o444, 0o4400));
        assert_eq!((mode(dir.path()), mode(&dir.path().join("secrets"))), (0o700, 0o700));
        assert_eq!((mode(root.path()), mode(dir.path().parent().unwrap())), (PASSAGE, PASSAGE));
        // Written again, there is what was written last.
        dir.write(None, &[file("0", "c", 0o400)]).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("0")).unwrap(), "c");
        assert!(!dir.path().join("secrets").exists());
        // A failure leaves nothing of it, and what was there.
        assert!(dir.write(None, &[file("x", "", 0o400), file("x", "", 0o400)]).is_err());
        assert_eq!(fs::read_dir(dir.path().parent().unwrap()).unwrap().count(), 1);
        MemoryDir::known(dir.path().to_owned()).remove().unwrap();
        dir.remove().unwrap();
        assert!(!dir.is_written().unwrap());
    }

    #[test]
    fn a_sweep_touches_what_is_unknown_and_of_this_node_only() {
        let (_parent, root) = root();
        let own = root.of("n1", "containers");
        own.sweep(&HashSet::new()).unwrap();
        let dirs: Vec<_> = [
            (&own, "a"),
            (&own, "b"),
            (&root.of("n2", "containers"), "c"),
            (&root.of("n1", "processes"), "d"),
        ]
        .map(|(store, id)| store.task(id).unwrap())
        .into();
        dirs.iter().for_each(|dir| dir.write(None, &[file("0", "x", 0o400)]).unwrap());
        own.sweep(&HashSet::from(["a"])).unwrap();
        let left: Vec<_> = dirs.iter().map(|dir| dir.is_written().unwrap()).collect();
        assert_eq!(left, [true, false, true, true]);
    }

    #[test]
    fn a_directory_that_is_on_disk_or_somebody_elses_is_not_used() {
        assert_eq!(MemoryRoot::within(Path::new("/proc"), "x").unwrap_err(), "it is not in memory");
        let (parent, root) = root();
        fs::set_permissions(root.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(
            MemoryRoot::within(parent.path(), "r")
                .unwrap_err()
                .contains("not a directory of this user alone")
        );
        std::os::unix::fs::symlink("/dev/shm", parent.path().join("l")).unwrap();
        assert!(
            MemoryRoot::within(parent.path(), "l")
                .unwrap_err()
                .contains("not a directory of this user alone")
        );
    }

    #[test]
    fn an_id_is_no_path() {
        let (_parent, root) = root();
        for bad in ["", "..", "a/b", "a.new"] {
            assert!(root.of("n", "k").task(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn contents_are_not_shown() {
        let shown = format!("{:?}", file("n", "hunter2", 0o400));
        assert!(!shown.contains("hunter2") && shown.contains("bytes: 7"), "{shown}");
    }
}
