//! A UNIX socket in front of another one, that can be cut, notes what passes, and treats requests as a test wants.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

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

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// It waits until the rules are changed, as with an engine that does not answer.
    Hold,
    /// It waits for this time.
    Delay(Duration),
    /// It is answered with this status and this text, and the connection is closed.
    Refuse(u16, &'static str),
}

/// Which requests are treated how: method, something that their path and query contain, and the treatment. The first
/// that fits counts; an empty text fits everything.
pub type Rule = (&'static str, &'static str, Treatment);

struct State {
    down: AtomicBool,
    /// Connections that came while it was cut.
    refused: AtomicUsize,
    requests: Mutex<Vec<String>>,
    cut: watch::Sender<()>,
    rules: watch::Sender<Vec<Rule>>,
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
            refused: AtomicUsize::new(0),
            requests: Mutex::default(),
            cut: watch::Sender::new(()),
            rules: watch::Sender::default(),
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

    /// Number of connections that were closed because it was cut.
    pub fn refused(&self) -> usize {
        self.state.refused.load(Ordering::SeqCst)
    }

    /// Treats requests like this from now on, those that wait too.
    pub fn treat(&self, rules: &[Rule]) {
        self.state.rules.send_replace(rules.to_vec());
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
                if state.down.load(Ordering::SeqCst) {
                    state.refused.fetch_add(1, Ordering::SeqCst);
                } else {
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
        let (mut buffer, mut rest, mut body) = (vec![0; 64 * 1024], vec![0; 64 * 1024], Vec::new());
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            // The request line of each request stands at the beginning of a write of the client.
            let end = buffer[..count].iter().position(|byte| *byte == b'\r').unwrap_or(0);
            if buffer[..end].ends_with(b" HTTP/1.1") {
                let line = String::from_utf8_lossy(&buffer[..end]).into_owned();
                state.requests.lock().push(line.clone());
                let treated = state.treated(&line);
                tokio::pin!(treated);
                loop {
                    tokio::select! {
                        refused = &mut treated => match refused {
                            None => break,
                            refused => return refused,
                        },
                        // The rest of the request, or the end of a client that does not wait any longer: what it
                        // gave up is not to be carried out later.
                        more = from_client.read(&mut rest) => match more {
                            Ok(more @ 1..) => body.extend_from_slice(&rest[..more]),
                            Ok(0) | Err(_) => return None,
                        },
                    }
                }
            }
            body.splice(0..0, buffer[..count].iter().copied());
            if to_server.write_all(&body).await.is_err() {
                break;
            }
            body.clear();
        }
        None
    };
    let refused = tokio::select! {
        refused = requests => refused,
        _ = copy(&mut from_server, &mut to_client) => None,
        _ = cut.changed() => None,
    };
    if let Some((status, text)) = refused {
        let body = serde_json::json!({ "message": text }).to_string();
        let head = format!("HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nConnection: close\r\n");
        let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        // A client that went away does not miss it.
        let _ = to_client.write_all(answer.as_bytes()).await;
        let _ = to_client.shutdown().await;
    }
}

impl State {
    /// Returns when a request may go on, with the answer if it is not to go further.
    async fn treated(&self, line: &str) -> Option<(u16, &'static str)> {
        let mut rules = self.rules.subscribe();
        loop {
            let fits = |(method, part, _): &&Rule| line.starts_with(method) && line.contains(part);
            let found = rules.borrow_and_update().iter().find(fits).map(|(.., treatment)| *treatment);
            match found {
                None => return None,
                Some(Treatment::Refuse(status, text)) => return Some((status, text)),
                Some(Treatment::Delay(time)) => {
                    tokio::time::sleep(time).await;
                    return None;
                }
                // The sender is ours.
                Some(Treatment::Hold) => drop(rules.changed().await),
            }
        }
    }
}
