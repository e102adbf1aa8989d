//! Commands beside the task's own.

use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{EXEC_ARG, Role};
use crate::dir::TaskDir;
use crate::launch::{Launch, MARKER};

/// Starts one; its number, and its output, which also says why it could not be executed.
pub(super) fn start(dir: &TaskDir, launch: &Launch, role: Role) -> io::Result<(i32, PipeReader)> {
    let (output, writer) = io::pipe()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(EXEC_ARG)
        .arg(dir.path())
        .arg(role.word())
        .env_clear()
        .env(MARKER, &launch.task_id)
        .stdin(Stdio::from(writer.try_clone()?))
        .stdout(writer.try_clone()?)
        .stderr(writer);
    // It is waited for with all others.
    let child = command.spawn()?;
    drop(command);
    fcntl(output.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Ok((pid, output))
}
