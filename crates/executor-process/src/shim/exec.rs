//! The step between shim and command: a process that becomes what the command needs, and then the command.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::sys::prctl;
use nix::sys::resource::{getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{AccessFlags, Gid, Uid, access, fchown, getppid, setgid, setgroups, setsid, setuid};

use super::{SESSION_ENV, Visit};
use crate::dir::TaskDir;
use crate::launch::{Identity, Launch, Rlimit, resource};

/// Exit codes of shells for a command that is not there, and for one that can't be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Becomes the command. Standard input is a pipe to the shim that says why not; it is closed by success.
pub(super) fn run(directory: &Path) -> ExitCode {
    let Ok(report) = std::io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let (code, text) = become_command(&TaskDir::new(directory));
    // The shim is gone if this fails, and this process with it.
    let _ = File::from(report).write_all(text.as_bytes());
    ExitCode::from(code)
}

/// Becomes a command that somebody executes in the task. What is wrong is said where its output goes.
pub(super) fn run_session(directory: &Path) -> ExitCode {
    let dir = TaskDir::new(directory);
    let (code, text) = match visit(&dir) {
        Ok((launch, tty)) => execute(&dir, launch, tty, None),
        Err(text) => (NOT_EXECUTABLE, text),
    };
    eprintln!("swarmd: {text}");
    ExitCode::from(code)
}

/// The task's instructions with what is different for the command; whether it has a terminal.
fn visit(dir: &TaskDir) -> Result<(Launch, bool), String> {
    let text = std::env::var(SESSION_ENV).map_err(|error| error.to_string())?;
    let visit: Visit = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let mut launch = dir.launch().map_err(|error| error.to_string())?;
    launch.argv = visit.argv;
    for (name, value) in visit.env {
        launch.env.retain(|(known, _)| *known != name);
        launch.env.push((name, value));
    }
    launch.dir = visit.dir.or(launch.dir);
    launch.identity = visit.identity.or(launch.identity);
    Ok((launch, visit.tty))
}

/// Returns only if it fails.
fn become_command(dir: &TaskDir) -> (u8, String) {
    match dir.launch() {
        Ok(launch) => execute(dir, launch, false, Some(Stdio::null())),
        Err(error) => (NOT_EXECUTABLE, error.to_string()),
    }
}

/// Returns only if it fails. The standard input stays as it is unless another one is given.
fn execute(dir: &TaskDir, launch: Launch, tty: bool, stdin: Option<Stdio>) -> (u8, String) {
    let shim = getppid();
    match prepare(dir, &launch, tty) {
        Err(text) => (NOT_EXECUTABLE, text),
        Ok(program) => {
            // After the change of the user, which would forget it.
            if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
                return (NOT_EXECUTABLE, format!("asking to die with the supervisor: {error}"));
            }
            if getppid() != shim {
                return (NOT_EXECUTABLE, "the supervisor is gone".to_owned());
            }
            // The shim has some blocked, and that would be inherited.
            if let Err(error) = SigSet::empty().thread_set_mask() {
                return (NOT_EXECUTABLE, format!("unblocking signals: {error}"));
            }
            let mut command = Command::new(&program);
            command
                .arg0(&launch.argv[0])
                .args(&launch.argv[1..])
                .env_clear()
                .envs(launch.env.iter().map(|(name, value)| (name, value)));
            if let Some(stdin) = stdin {
                command.stdin(stdin);
            }
            let error = command.exec();
            let code = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
            (code, format!("executing {}: {error}", program.display()))
        }
    }
}

fn prepare(dir: &TaskDir, launch: &Launch, tty: bool) -> Result<PathBuf, String> {
    // A session of its own, so that the whole of it can be signalled and found.
    setsid().map_err(|error| format!("creating a session: {error}"))?;
    if tty {
        take_terminal(launch.identity.as_ref()).map_err(|error| format!("taking the terminal: {error}"))?;
    }
    if let Some(group) = &launch.group {
        group.join().map_err(|error| format!("joining the control group: {error}"))?;
    }
    launch.rlimits.iter().try_for_each(limit)?;
    if launch.dir.is_none() {
        // While still allowed to: the state directory above it is nobody else's business.
        std::env::set_current_dir(dir.work())
            .map_err(|error| format!("changing to the task's directory: {error}"))?;
    }
    if let Some(identity) = &launch.identity {
        change_identity(identity)?;
    }
    if let Some(path) = &launch.dir {
        std::env::set_current_dir(path)
            .map_err(|error| format!("changing to the directory {path}: {error}"))?;
    }
    find_program(launch)
}

/// Makes the standard input the controlling terminal, and the user's own, as a login does.
fn take_terminal(identity: Option<&Identity>) -> std::io::Result<()> {
    let terminal = std::io::stdin();
    rustix::process::ioctl_tiocsctty(&terminal)?;
    if let Some(identity) = identity {
        fchown(&terminal, Some(Uid::from_raw(identity.uid)), None)?;
    }
    Ok(())
}

fn limit(limit: &Rlimit) -> Result<(), String> {
    let number = |limit: u64| if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() };
    let resource = resource(&limit.name).ok_or_else(|| format!("unknown resource limit {}", limit.name))?;
    setrlimit(resource, limit.soft, limit.hard).map_err(|error| {
        let now = getrlimit(resource)
            .map_or_else(|_| String::new(), |(_, hard)| format!("; the hard limit is {}", number(hard)));
        let (soft, hard) = (number(limit.soft), number(limit.hard));
        format!("setting the limit {} to {soft}:{hard}: {error}{now}", limit.name)
    })
}

fn change_identity(identity: &Identity) -> Result<(), String> {
    let groups: Vec<_> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    if Uid::effective().is_root() {
        setgroups(&groups).map_err(|error| format!("setting the groups {:?}: {error}", identity.groups))?;
    }
    setgid(Gid::from_raw(identity.gid))
        .map_err(|error| format!("becoming group {}: {error}", identity.gid))?;
    setuid(Uid::from_raw(identity.uid)).map_err(|error| format!("becoming user {}: {error}", identity.uid))
}

/// A name without a slash is looked for in the PATH of the command's own environment, by its own rights.
fn find_program(launch: &Launch) -> Result<PathBuf, String> {
    let name = &launch.argv[0];
    if name.contains('/') {
        return Ok(name.into());
    }
    let path = launch.env.iter().find(|(variable, _)| variable == "PATH").map_or("", |(_, value)| value);
    let candidates = path.split(':').filter(|part| !part.is_empty()).map(|part| Path::new(part).join(name));
    let executable = |file: &PathBuf| file.is_file() && access(file, AccessFlags::X_OK).is_ok();
    // Named without a directory, it will not be found: the error then says so.
    Ok(candidates.into_iter().find(executable).unwrap_or_else(|| name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_can_not_be_set_is_named_in_words() {
        // More than the hard limit is refused whoever asks.
        let error = limit(&Rlimit { name: "core".into(), soft: u64::MAX, hard: 1 }).unwrap_err();
        assert!(error.starts_with("setting the limit core to unlimited:1: EINVAL"), "{error}");
        assert!(error.contains("; the hard limit is "), "{error}");
    }
}
