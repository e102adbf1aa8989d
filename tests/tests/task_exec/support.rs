//! `swarmctl` with an input, and in a terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};
use nix::pty::{OpenptyResult, openpty};
use parking_lot::Mutex;
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use swarm_api::Shared;
use swarm_api::v1::Task;
use swarm_testkit::daemon::{Cluster, program};
use swarm_testkit::wait::until;
use swarm_tests::SOON;

pub(crate) fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// Runs `swarmctl` to its end with this input.
pub(crate) fn ctl_with(socket: &Path, args: &[&str], input: &[u8]) -> Result<Output> {
    let mut command = Command::new(program("swarmctl")?);
    command.arg("--socket").arg(socket).args(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("it was asked for")?;
    let input = input.to_vec();
    // It may end before it has read everything.
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    Ok(output)
}

/// The task on the node with this hostname.
pub(crate) fn on_node(cluster: &Cluster, tasks: &[Shared<Task>], name: &str) -> Result<Shared<Task>> {
    let id = cluster.node_id(name)?;
    tasks
        .iter()
        .find(|task| task.node_id == id)
        .cloned()
        .with_context(|| format!("no task on {name}: {tasks:?}"))
}

/// A `swarmctl` in a terminal of its own. It is ended with this.
pub(crate) struct InTerminal {
    child: Child,
    master: File,
    slave: Option<File>,
    before: Termios,
    shown: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl InTerminal {
    /// Starts it in a terminal of this size.
    pub(crate) fn start(socket: &Path, args: &[&str], size: (u16, u16)) -> Result<InTerminal> {
        let OpenptyResult { master, slave } = openpty(None, None)?;
        let (master, slave) = (File::from(master), File::from(slave));
        resize(&master, size)?;
        let before = tcgetattr(&slave)?;
        // Its controlling terminal: whoever changes the size has it told.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(program("swarmctl")?).arg("--socket").arg(socket).args(args);
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave.try_clone()?);
        let child = command.spawn()?;
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let (into, mut from) = (shown.clone(), master.try_clone()?);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                into.lock().extend_from_slice(&buffer[..count]);
            }
        });
        Ok(InTerminal { child, master, slave: Some(slave), before, shown, reader: Some(reader) })
    }

    pub(crate) fn shown(&self) -> String {
        text(&self.shown.lock())
    }

    pub(crate) async fn until(&self, what: &str) -> Result<()> {
        until(&format!("{what:?} on the terminal"), SOON, || async {
            let shown = self.shown();
            ensure!(shown.contains(what), "{shown:?}");
            Ok(())
        })
        .await
    }

    pub(crate) fn say(&mut self, keys: &str) -> Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    pub(crate) fn resize(&self, size: (u16, u16)) -> Result<()> {
        resize(&self.master, size)
    }

    /// Keys are passed on as they are.
    pub(crate) fn is_raw(&self) -> Result<bool> {
        let slave = self.slave.as_ref().context("it is open")?;
        Ok(tcgetattr(slave)?.local_modes != self.before.local_modes)
    }

    /// Sends a signal to `swarmctl`.
    pub(crate) fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.id().to_string();
        ensure!(Command::new("kill").args(["-s", name, &pid]).status()?.success(), "kill failed");
        Ok(())
    }

    /// Waits for its end. The terminal must be as it was.
    pub(crate) async fn end(mut self) -> Result<(ExitStatus, String)> {
        let status = until("swarmctl to end", SOON, || {
            let ended = self.child.try_wait();
            async move { ended?.context("it still runs") }
        })
        .await?;
        let slave = self.slave.take().context("it is open")?;
        let now = tcgetattr(&slave)?;
        // With the last one who has it open ends what can be read.
        drop(slave);
        let read = self.reader.take().is_some_and(|reader| reader.join().is_ok());
        ensure!(read, "the reader panicked");
        let modes = |of: &Termios| (of.input_modes, of.output_modes, of.control_modes, of.local_modes);
        ensure!(modes(&now) == modes(&self.before), "the terminal is {now:?}, and was {:?}", self.before);
        Ok((status, self.shown()))
    }
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(terminal: &File, (rows, columns): (u16, u16)) -> Result<()> {
    Ok(tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}
