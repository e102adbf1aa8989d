//! The terminal that this runs in, and the two ends of a session: what is typed, and what is shown.

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use bytes::Bytes;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use swarm_api::swarmd::TerminalSize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// Most bytes of one message.
const CHUNK: usize = 32 * 1024;
/// Messages that wait for each other at most.
const QUEUE: usize = 4;

/// The standard input is a terminal.
pub(crate) fn is_there() -> bool {
    io::stdin().is_terminal()
}

/// Its size, if there is one.
pub(crate) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdin()).or_else(|_| tcgetwinsize(io::stdout())).ok()?;
    let known = size.ws_row > 0 && size.ws_col > 0;
    known.then_some(TerminalSize { rows: size.ws_row.into(), columns: size.ws_col.into() })
}

/// The terminal passes every key on as it is. It is as it was before when this is dropped: at a return, an error, and a
/// panic; signals that would end this program are waited for meanwhile ([`Ending`]).
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    pub(crate) fn enter() -> io::Result<Raw> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Signals that ask this program to end.
pub(crate) struct Ending {
    signals: [(i32, Signal); 4],
}

impl Ending {
    pub(crate) fn watch() -> io::Result<Ending> {
        let of = |kind: SignalKind| Ok::<_, io::Error>((kind.as_raw_value(), signal(kind)?));
        let signals = [
            of(SignalKind::terminate())?,
            of(SignalKind::hangup())?,
            of(SignalKind::interrupt())?,
            of(SignalKind::quit())?,
        ];
        Ok(Ending { signals })
    }

    /// The number of the next one.
    pub(crate) async fn next(&mut self) -> i32 {
        let [a, b, c, d] = &mut self.signals;
        tokio::select! {
            _ = a.1.recv() => a.0,
            _ = b.1.recv() => b.0,
            _ = c.1.recv() => c.0,
            _ = d.1.recv() => d.0,
        }
    }
}

/// What is typed, piece by piece. The thread that reads it ends with the process.
pub(crate) fn typed() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(count @ 1..) => {
                    if sender.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return,
            }
        }
    });
    receiver
}

/// Where output goes. A thread writes it, so that a terminal that stands still keeps nothing else waiting.
pub(crate) struct Shown {
    sender: mpsc::Sender<(Stream, Bytes)>,
    done: oneshot::Receiver<io::Result<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Shown {
    pub(crate) fn start() -> Shown {
        let (sender, mut receiver) = mpsc::channel::<(Stream, Bytes)>(QUEUE);
        let (result, done) = oneshot::channel();
        std::thread::spawn(move || {
            let mut copy = || {
                while let Some((stream, data)) = receiver.blocking_recv() {
                    match stream {
                        Stream::Stdout => {
                            let mut out = io::stdout().lock();
                            out.write_all(&data).and_then(|()| out.flush())?;
                        }
                        Stream::Stderr => io::stderr().lock().write_all(&data)?,
                    }
                }
                Ok(())
            };
            let _ = result.send(copy()); // nobody may wait for it
        });
        Shown { sender, done }
    }

    /// `false` if nothing can be written any more.
    pub(crate) async fn show(&self, stream: Stream, data: Bytes) -> bool {
        self.sender.send((stream, data)).await.is_ok()
    }

    /// Waits until everything is written.
    pub(crate) async fn finish(self) -> io::Result<()> {
        drop(self.sender);
        self.done.await.unwrap_or(Ok(()))
    }
}
