//! The daemon's end of a terminal that a command is executed in.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use swarm_agent::Size;
use tokio::net::unix::pipe;

/// See the module's documentation. Reading fails, instead of ending, when nobody holds the other end any more.
pub(crate) struct Terminal {
    pub(crate) output: pipe::Receiver,
    pub(crate) input: pipe::Sender,
}

impl Terminal {
    /// A new one, and the command's end of it.
    pub(crate) fn open(size: Option<Size>) -> io::Result<(Terminal, File)> {
        // Everything is closed on execution: other children of the daemon must not keep it open.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(ptsname_r(&master)?)?;
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        // No pipe, which is why nothing is checked here; it is read and written like one.
        let copy = || master.as_fd().try_clone_to_owned();
        let output = pipe::Receiver::from_owned_fd_unchecked(copy()?)?;
        let input = pipe::Sender::from_owned_fd_unchecked(copy()?)?;
        if let Some(size) = size {
            resize(&input, size)?;
        }
        Ok((Terminal { output, input }, slave))
    }
}

/// Gives it another size. Its processes are told by the kernel.
pub(crate) fn resize(terminal: &pipe::Sender, size: Size) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}
