//! An engine that runs nothing: it says yes, and keeps what it was asked. For what the engine of this machine is too old
//! for, or its kernel can't do.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// A request as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// `POST`
    pub method: String,
    /// Path and query, without the version of the interface.
    pub path: String,
    /// The body, if there was one.
    pub body: Value,
}

/// Listens on a socket until it is dropped.
pub struct FakeEngine {
    path: PathBuf,
    requests: Arc<Mutex<Vec<Recorded>>>,
    character: Arc<Mutex<Character>>,
    _directory: tempfile::TempDir,
    // Ends the listener and all connections with it.
    _tasks: JoinSet<()>,
}

/// How the engine describes itself.
#[derive(Debug, Clone)]
pub struct Character {
    /// Newest version of the interface, such as `1.47`.
    pub api: &'static str,
    /// Version of the engine.
    pub version: &'static str,
    /// As in the engine's information: `name=selinux`.
    pub security_options: &'static [&'static str],
    /// It sees the files of this host.
    pub sees_files: bool,
    /// Its labels, `key=value`.
    pub labels: &'static [&'static str],
    /// Its plug-ins for volumes.
    pub volume_plugins: &'static [&'static str],
    /// Memory of its host, in bytes.
    pub memory: i64,
    /// System and architecture of its host.
    pub platform: (&'static str, &'static str),
    /// System and architecture that its images say they are for.
    pub image_platform: (&'static str, &'static str),
    /// Its images came from a registry.
    pub pulled: bool,
}

impl Default for Character {
    fn default() -> Self {
        Character {
            api: "1.47",
            version: "27.0.0",
            security_options: &[],
            sees_files: true,
            labels: &[],
            volume_plugins: &["local"],
            memory: 1 << 30,
            platform: ("linux", "x86_64"),
            image_platform: ("linux", "amd64"),
            pulled: false,
        }
    }
}

impl FakeEngine {
    /// Starts it.
    ///
    /// # Errors
    /// If its socket can't be made.
    pub fn start(character: Character) -> Result<FakeEngine> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("engine.sock");
        let listener = UnixListener::bind(&path).context("binding the engine's socket")?;
        let requests = Arc::new(Mutex::new(Vec::new()));
        let character = Arc::new(Mutex::new(character));
        let mut tasks = JoinSet::new();
        let (record, shared) = (requests.clone(), character.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (character, record) = (shared.clone(), record.clone());
                connections.spawn(async move {
                    // A client that goes away is no trouble of ours.
                    let _ = serve(stream, &character, &record).await;
                });
            }
        });
        Ok(FakeEngine { path, requests, character, _directory: directory, _tasks: tasks })
    }

    /// Makes it another one, as an engine that was set up anew and restarted.
    pub fn become_like(&self, character: Character) {
        *self.character.lock() = character;
    }

    /// The address for clients.
    pub fn address(&self) -> String {
        format!("unix://{}", self.path().display())
    }

    fn path(&self) -> &Path {
        &self.path
    }

    /// Everything that was asked so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.requests.lock().clone()
    }

    /// Bodies of the requests with this beginning of a path.
    pub fn bodies(&self, path: &str) -> Vec<Value> {
        let requests = self.requests();
        requests
            .into_iter()
            .filter(|request| request.path.starts_with(path))
            .map(|request| request.body)
            .collect()
    }
}

async fn serve(
    mut stream: UnixStream,
    character: &Mutex<Character>,
    record: &Mutex<Vec<Recorded>>,
) -> Result<()> {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = buffer.drain(..end + 4).collect();
                break String::from_utf8(head)?;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        let length = length.unwrap_or(0);
        while buffer.len() < length {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let body: Vec<u8> = buffer.drain(..length).collect();
        let mut words = head.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path =
            path.strip_prefix("/v").and_then(|rest| rest.find('/').map(|at| &rest[at..])).unwrap_or(path);
        let request = Recorded {
            method: method.to_owned(),
            path: path.to_owned(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        };
        let (status, answer) = answer(&request, &character.lock());
        record.lock().push(request);
        let text = if status == 204 { String::new() } else { answer.to_string() };
        let head = format!(
            "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        );
        stream.write_all(head.as_bytes()).await?;
    }
}

fn answer(request: &Recorded, character: &Character) -> (u16, Value) {
    let path = request.path.split('?').next().unwrap_or_default();
    match (request.method.as_str(), path) {
        ("GET", "/version") => (200, json!({"ApiVersion": character.api, "Version": character.version})),
        ("GET", "/info") => (
            200,
            json!({
                "ServerVersion": character.version,
                "SecurityOptions": character.security_options,
                "DockerRootDir": "/var/lib/docker/100000.100000",
                "Labels": character.labels,
                "Plugins": {"Volume": character.volume_plugins},
                "MemTotal": character.memory,
                "OSType": character.platform.0,
                "Architecture": character.platform.1,
            }),
        ),
        ("GET", "/plugins" | "/containers/json" | "/networks") => (200, json!([])),
        ("GET", image) if image.starts_with("/images/") => {
            let (os, architecture) = character.image_platform;
            let digests = if character.pulled { vec!["web@sha256:1"] } else { Vec::new() };
            let image = json!({
                "Id": "sha256:1", "RepoDigests": digests, "Os": os, "Architecture": architecture,
            });
            (200, image)
        }
        ("GET", _) => (404, json!({"message": "nothing is here"})),
        ("POST", "/containers/create") => {
            let image = request.body["Image"].as_str().unwrap_or_default();
            let source = &request.body["HostConfig"]["Mounts"][0]["Source"];
            if !image.starts_with("sha256:000") {
                (201, json!({"Id": "c1", "Warnings": []}))
            } else if character.sees_files {
                (404, json!({"message": format!("No such image: {image}")}))
            } else {
                let source = source.as_str().unwrap_or_default();
                (400, json!({"message": format!("bind source path does not exist: {source}")}))
            }
        }
        ("POST", "/networks/create") => (201, json!({"Id": "n1", "Warning": ""})),
        ("POST", "/volumes/create") => (
            201,
            json!({
                "Name": "v", "Driver": "local", "Mountpoint": "", "Labels": {}, "Scope": "local", "Options": {},
            }),
        ),
        ("POST", path) if path.ends_with("/connect") => (200, json!({})),
        _ => (204, Value::Null),
    }
}
