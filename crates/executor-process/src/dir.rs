//! A task's directory: its files, its lock, and what they tell of the task.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::launch::Launch;
use crate::procfs::Identity;

const LAUNCH: &str = "launch.json";
const LOCK: &str = "lock";
const STARTED: &str = "started";
const RUNNING: &str = "running.json";
const EXIT: &str = "exit.json";
const HEALTH: &str = "health.json";
/// Prefix of the directories of init tasks.
const INIT: &str = "init-";
/// A pipe whose writing end the shim holds as long as it lives: readers wait for its end.
const ALIVE: &str = "alive";
/// A pipe for requests to the shim.
const CONTROL: &str = "control";
/// Working directory of a command that has no other.
const WORK: &str = "work";
/// What a shim says when something is wrong with it.
const SHIM_LOG: &str = "shim.log";
/// Prefix of directories that are being deleted.
pub(crate) const REMOVED: &str = ".removed-";

/// The command runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    /// The command's process; the leader of its session and group.
    pub(crate) process: Identity,
    /// Nanoseconds since 1970.
    pub(crate) started_at: u64,
}

/// How it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// Exit code; 128 + signal number where a signal ended it.
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    /// The kernel killed something of the task for want of memory.
    pub(crate) out_of_memory: bool,
    /// Why it could not be started, or why nobody knows how it ended.
    pub(crate) error: Option<String>,
    /// It never ran.
    pub(crate) never_started: bool,
    /// It was stopped since its health check failed.
    #[serde(default)]
    pub(crate) unhealthy: bool,
    /// Nanoseconds since 1970.
    pub(crate) ended_at: u64,
}

/// What the last health checks said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wellness {
    Healthy,
    Unhealthy,
}

/// What the files tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// There is no (complete) directory.
    Absent,
    /// Nothing has been started. A shim may be about to.
    Prepared,
    /// A shim holds the lock.
    Running,
    /// It was started, and its shim is gone without a word.
    Lost,
    Ended(Exit),
}

/// A task's directory.
#[derive(Debug, Clone)]
pub(crate) struct TaskDir {
    path: PathBuf,
}

/// The directory's lock; free again when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl TaskDir {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        TaskDir { path: path.into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn alive(&self) -> PathBuf {
        self.file(ALIVE)
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.file(CONTROL)
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.file(WORK)
    }

    pub(crate) fn shim_log(&self) -> PathBuf {
        self.file(SHIM_LOG)
    }

    /// The newest log file; older ones have `.1`, `.2`, … behind.
    pub(crate) fn log(&self) -> PathBuf {
        self.file("log")
    }

    /// Makes everything that a shim needs. The instructions come last: they tell that the rest is there.
    /// Says whether there was anything to do.
    pub(crate) fn prepare(&self, launch: &Launch) -> io::Result<bool> {
        if fs::exists(self.file(LAUNCH))? {
            return Ok(false);
        }
        self.make_work(launch)?;
        for pipe in [self.alive(), self.control()] {
            match mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        private().create(true).append(true).open(self.file(LOCK))?;
        self.write(LAUNCH, launch)?;
        // The directory's own entry.
        sync_dir(self.path.parent().unwrap_or(&self.path))?;
        Ok(true)
    }

    /// Makes the command's working directory, unless it is there.
    pub(crate) fn make_work(&self, launch: &Launch) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        let work = self.work();
        match fs::DirBuilder::new().mode(0o700).create(&work) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if let Some(identity) = &launch.identity {
            chown(&work, Some(identity.uid), Some(identity.gid))?;
        }
        Ok(())
    }

    /// The directory of the init task with this number.
    pub(crate) fn init(&self, number: usize) -> TaskDir {
        TaskDir::new(self.file(&format!("{INIT}{number}")))
    }

    /// The directories of its init tasks that are there.
    pub(crate) fn inits(&self) -> io::Result<Vec<TaskDir>> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(INIT) {
                found.push(TaskDir::new(entry.path()));
            }
        }
        Ok(found)
    }

    /// Somebody took the directory away.
    pub(crate) fn is_missing(&self) -> bool {
        fs::symlink_metadata(&self.path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    pub(crate) fn launch(&self) -> io::Result<Launch> {
        self.read(LAUNCH)?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the task is not prepared"))
    }

    pub(crate) fn running(&self) -> io::Result<Option<Running>> {
        self.read(RUNNING)
    }

    pub(crate) fn set_running(&self, running: &Running) -> io::Result<()> {
        self.write(RUNNING, running)
    }

    pub(crate) fn exit(&self) -> io::Result<Option<Exit>> {
        self.read(EXIT)
    }

    pub(crate) fn set_exit(&self, exit: &Exit) -> io::Result<()> {
        self.write(EXIT, exit)
    }

    /// Absent as long as nothing can be said.
    pub(crate) fn health(&self) -> io::Result<Option<Wellness>> {
        self.read(HEALTH)
    }

    pub(crate) fn set_health(&self, wellness: Wellness) -> io::Result<()> {
        self.write(HEALTH, &wellness)
    }

    pub(crate) fn state(&self) -> io::Result<State> {
        // In this order: a shim writes how the task ended before it lets go of the lock.
        let locked = self.is_locked()?;
        if let Some(exit) = self.exit()? {
            return Ok(State::Ended(exit));
        }
        Ok(match (locked, fs::exists(self.file(STARTED))?, fs::exists(self.file(LAUNCH))?) {
            (true, _, _) => State::Running,
            (false, true, _) => match self.exit()? {
                // Both happened since the lock was looked at.
                _ if self.is_locked()? => State::Running,
                Some(exit) => State::Ended(exit),
                None => State::Lost,
            },
            (false, false, true) => State::Prepared,
            (false, false, false) => State::Absent,
        })
    }

    /// From here on the task counts as started, whatever happens. `false`: it did so before.
    pub(crate) fn mark_started(&self) -> io::Result<bool> {
        match private().create_new(true).open(self.file(STARTED)) {
            Ok(file) => file.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(error),
        }
        sync_dir(&self.path)?;
        Ok(true)
    }

    /// Whether somebody holds the lock.
    fn is_locked(&self) -> io::Result<bool> {
        // Only looked at: that goes on a read-only disk too.
        let file = match OpenOptions::new().read(true).open(self.file(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        let mut lock = whole_file();
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
    }

    /// Takes the lock; `None` if somebody holds it.
    pub(crate) fn lock(&self) -> io::Result<Option<Lock>> {
        let file = private().open(self.file(LOCK))?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
            Ok(_) => Ok(Some(Lock { _file: file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the whole directory out of the way at once, then deletes it.
    pub(crate) fn delete(&self) -> io::Result<()> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let aside = self.path.with_file_name(format!("{REMOVED}{name}"));
        remove_tree(&aside)?;
        match fs::rename(&self.path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        remove_tree(&aside)
    }

    /// A reader sees the file as it was before or as it is now, even after a power loss.
    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let temporary = self.file(&format!("{name}.tmp"));
        let mut file = private().create(true).truncate(true).open(&temporary)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        fs::rename(&temporary, self.file(name))?;
        sync_dir(&self.path)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let path = self.file(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| io::Error::other(format!("{}: {error}", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Deletes a tree, also where a command took away its own permissions; nothing there is no error.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            fs::set_permissions(path.join(WORK), Permissions::from_mode(0o700))?;
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A write lock on everything. Locks of this kind belong to the open file, not to the process: a second one in
/// the same process conflicts too, and closing another file does not free it.
fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch() -> Launch {
        Launch {
            task_id: "t".into(),
            node_id: "n".into(),
            argv: vec!["true".into()],
            env: Vec::new(),
            dir: None,
            identity: None,
            rlimits: Vec::new(),
            stop_signal: 15,
            stop_grace_ms: 0,
            log_max_size: 1,
            log_max_files: 1,
            group: None,
            files: None,
            init: Vec::new(),
            pre_stop: Vec::new(),
            health: None,
            isolation: None,
            work: None,
        }
    }

    #[test]
    fn state_follows_the_files() {
        let root = tempfile::tempdir().unwrap();
        let dir = TaskDir::new(root.path().join("t"));
        assert_eq!(dir.state().unwrap(), State::Absent);
        assert!(dir.prepare(&launch()).unwrap());
        assert!(!dir.prepare(&launch()).unwrap());
        assert_eq!((dir.state().unwrap(), dir.launch().unwrap()), (State::Prepared, launch()));

        let lock = dir.lock().unwrap();
        assert!(lock.is_some() && dir.lock().unwrap().is_none());
        assert_eq!(dir.state().unwrap(), State::Running);
        assert!(dir.mark_started().unwrap() && !dir.mark_started().unwrap());
        drop(lock);
        assert_eq!(dir.state().unwrap(), State::Lost);

        let exit = Exit { code: 3, ..Default::default() };
        dir.set_exit(&exit).unwrap();
        assert_eq!(dir.state().unwrap(), State::Ended(exit));
        dir.delete().unwrap();
        dir.delete().unwrap();
        assert_eq!(dir.state().unwrap(), State::Absent);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn half_made_directory_is_no_task() {
        let root = tempfile::tempdir().unwrap();
        let dir = TaskDir::new(root.path().join("t"));
        fs::create_dir_all(dir.work()).unwrap();
        fs::write(dir.path().join("launch.json.tmp"), "{").unwrap();
        assert_eq!(dir.state().unwrap(), State::Absent);
        assert!(dir.prepare(&launch()).unwrap());
        assert_eq!(dir.state().unwrap(), State::Prepared);
    }
}
