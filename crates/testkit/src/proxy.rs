//! A UNIX socket in front of another one, that can be cut, and that notes what passes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Forwards connections until it is dropped.
pub struct Proxy {
    path: PathBuf,
    state: Arc<State>,
    _directory: tempfile::TempDir,
    // Ends the listener and all connections with it.
    _tasks: JoinSet<()>,
}

struct State {
    down: AtomicBool,
    requests: Mutex<Vec<String>>,
    cut: watch::Sender<()>,
}

impl Proxy {
    /// Listens on a socket of its own, for the one at `target`.
    ///
    /// # Errors
    /// If the socket can't be made.
    pub fn new(target: &Path) -> Result<Proxy> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("proxy.sock");
        let listener = UnixListener::bind(&path).context("binding the proxy's socket")?;
        let state = Arc::new(State {
            down: AtomicBool::new(false),
            requests: Mutex::default(),
            cut: watch::Sender::new(()),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, target.to_owned(), state.clone()));
        Ok(Proxy { path, state, _directory: directory, _tasks: tasks })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Breaks all connections; new ones are closed at once.
    pub fn cut(&self) {
        self.state.down.store(true, Ordering::SeqCst);
        self.state.cut.send_replace(());
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.state.down.store(false, Ordering::SeqCst);
    }

    /// First lines of the HTTP/1.1 requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.state.requests.lock().clone()
    }
}

async fn accept(listener: UnixListener, target: PathBuf, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { return };
                if !state.down.load(Ordering::SeqCst) {
                    connections.spawn(forward(client, target.clone(), state.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn forward(mut client: UnixStream, target: PathBuf, state: Arc<State>) {
    let mut cut = state.cut.subscribe();
    let Ok(mut server) = UnixStream::connect(target).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let requests = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            // The request line of each request stands at the beginning of a write of the client.
            let end = buffer[..count].iter().position(|byte| *byte == b'\r').unwrap_or(0);
            if buffer[..end].ends_with(b" HTTP/1.1") {
                state.requests.lock().push(String::from_utf8_lossy(&buffer[..end]).into_owned());
            }
            if to_server.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        _ = copy(&mut from_server, &mut to_client) => {}
        _ = cut.changed() => {}
    }
}
