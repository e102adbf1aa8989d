//! Finding plug-ins and calling them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

/// The type of requests and answers in the protocol.
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1+json";
/// Longest answer that is read, in bytes: a secret in base64, and room for an error.
const MAX_ANSWER: usize = 1024 * 1024;
/// Longest name of a plug-in, in bytes.
const MAX_NAME: usize = 128;
/// Longest file that names a socket, in bytes.
const MAX_SPEC: u64 = 4096;

/// Why a plug-in could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// Names are file names.
    #[error(
        "{0:?} can't be the name of a plug-in: it has up to {MAX_NAME} letters, digits, dots, dashes and underscores"
    )]
    Name(String),
    /// No directory has it.
    #[error("no plug-in {name:?} in {places}; plug-ins that an engine manages itself can't be used here")]
    Absent {
        /// The plug-in.
        name: String,
        /// Where it was searched for.
        places: String,
    },
    /// Its file names something else than a UNIX socket.
    #[error("{file} names {address:?}: only unix:// addresses are supported")]
    Address {
        /// The file.
        file: String,
        /// What it says.
        address: String,
    },
    /// It does something else.
    #[error("plug-in {name:?} does not implement {capability}, only {has}")]
    Capability {
        /// The plug-in.
        name: String,
        /// What was wanted of it.
        capability: String,
        /// What it says that it implements.
        has: String,
    },
    /// The call failed.
    #[error("plug-in {name:?} at {socket}, {method}: {reason}")]
    Call {
        /// The plug-in.
        name: String,
        /// Its socket.
        socket: String,
        /// What was called.
        method: String,
        /// What went wrong.
        reason: String,
    },
    /// What it answered is no secret.
    #[error("plug-in {name:?}: {reason}")]
    Answer {
        /// The plug-in.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Where plug-ins are looked for.
#[derive(Debug, Clone)]
pub struct Plugins {
    sockets: Vec<PathBuf>,
    specs: Vec<PathBuf>,
    timeout: Duration,
}

impl Plugins {
    /// The directories that Docker Engine searches: `/run/docker/plugins` for sockets, `/etc/docker/plugins` and
    /// `/usr/lib/docker/plugins` for files that name one. A call may take 10 s.
    pub fn of_this_host() -> Plugins {
        Plugins::in_directories(
            ["/run/docker/plugins".into()],
            ["/etc/docker/plugins".into(), "/usr/lib/docker/plugins".into()],
            Duration::from_secs(10),
        )
    }

    /// Other directories: for `NAME.sock` and `NAME/NAME.sock`, and for `NAME.spec`. Each call may take `timeout`.
    pub fn in_directories(
        sockets: impl IntoIterator<Item = PathBuf>,
        specs: impl IntoIterator<Item = PathBuf>,
        timeout: Duration,
    ) -> Plugins {
        Plugins { sockets: sockets.into_iter().collect(), specs: specs.into_iter().collect(), timeout }
    }

    /// The plug-in of this name, if it is there, answers, and implements `capability`.
    ///
    /// # Errors
    /// Any [`PluginError`] but [`PluginError::Answer`].
    pub async fn find(&self, name: &str, capability: &str) -> Result<Plugin, PluginError> {
        let socket = self.socket(name).await?;
        let plugin = Plugin { name: name.to_owned(), socket, timeout: self.timeout };
        let manifest: Manifest = plugin.call("Plugin.Activate", &None::<()>).await?;
        if manifest.implements.iter().any(|one| one.eq_ignore_ascii_case(capability)) {
            return Ok(plugin);
        }
        let has = match &*manifest.implements.join(", ") {
            "" => "nothing".to_owned(),
            has => has.chars().take(200).collect(),
        };
        Err(PluginError::Capability { name: name.to_owned(), capability: capability.to_owned(), has })
    }

    async fn socket(&self, name: &str) -> Result<PathBuf, PluginError> {
        // It becomes a part of a path.
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.len() > MAX_NAME || name.starts_with('.') || !name.chars().all(known) {
            return Err(PluginError::Name(name.chars().take(MAX_NAME).collect()));
        }
        for directory in &self.sockets {
            let file = format!("{name}.sock");
            for path in [directory.join(&file), directory.join(name).join(&file)] {
                if tokio::fs::try_exists(&path).await.unwrap_or(false) {
                    return Ok(path);
                }
            }
        }
        for directory in &self.specs {
            if let Some(socket) = in_spec(&directory.join(format!("{name}.spec"))).await? {
                return Ok(socket);
            }
        }
        let places: Vec<_> =
            self.sockets.iter().chain(&self.specs).map(|d| d.display().to_string()).collect();
        Err(PluginError::Absent { name: name.to_owned(), places: places.join(", ") })
    }
}

/// The socket that a `.spec` file names, if the file is there.
async fn in_spec(path: &Path) -> Result<Option<PathBuf>, PluginError> {
    match tokio::fs::metadata(path).await {
        Ok(found) if found.is_file() && found.len() <= MAX_SPEC => {}
        _ => return Ok(None),
    }
    let Ok(text) = tokio::fs::read_to_string(path).await else { return Ok(None) };
    let address = text.trim();
    match address.strip_prefix("unix://") {
        Some(socket) if socket.starts_with('/') => Ok(Some(socket.into())),
        _ => Err(PluginError::Address {
            file: path.display().to_string(),
            address: address.chars().take(200).collect(),
        }),
    }
}

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(rename = "Implements", default)]
    implements: Vec<String>,
}

/// A plug-in that answered.
#[derive(Debug, Clone)]
pub struct Plugin {
    name: String,
    socket: PathBuf,
    timeout: Duration,
}

impl Plugin {
    /// The name by which it was found.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls a method, as `SecretProvider.GetSecret`, on a connection of its own.
    ///
    /// # Errors
    /// [`PluginError::Call`]: it did not answer in time, not with 200, or not with what was expected.
    pub async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: &str,
        request: &Q,
    ) -> Result<A, PluginError> {
        let failed = |reason: String| PluginError::Call {
            name: self.name.clone(),
            socket: self.socket.display().to_string(),
            method: method.to_owned(),
            reason,
        };
        let body = serde_json::to_vec(request).map_err(|e| failed(e.to_string()))?;
        match tokio::time::timeout(self.timeout, self.exchange(method, body)).await {
            Ok(Ok(answer)) => serde_json::from_slice(&answer).map_err(|error| {
                // The error's own text may quote the answer, which may be secret.
                failed(format!("the answer can't be read (line {}, column {})", error.line(), error.column()))
            }),
            Ok(Err(reason)) => Err(failed(reason)),
            Err(_) => Err(failed(format!("no answer within {:?}", self.timeout))),
        }
    }

    async fn exchange(&self, method: &str, body: Vec<u8>) -> Result<Bytes, String> {
        let text = |error: &dyn fmt::Display| error.to_string();
        let stream = UnixStream::connect(&self.socket).await.map_err(|e: io::Error| text(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| text(&e))?;
        let request = Request::post(format!("/{method}"))
            .header(header::HOST, "plugin")
            .header(header::ACCEPT, MEDIA_TYPE)
            .header(header::CONTENT_TYPE, MEDIA_TYPE)
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| text(&e))?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|e| text(&e))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| text(&e))?;
            if status == StatusCode::OK {
                return Ok(body.to_bytes());
            }
            Err(format!("it answered {status}"))
        };
        // The connection is driven here, so that dropping this future closes it.
        tokio::pin!(answer, connection);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = &mut connection => match ended {
                Ok(()) => answer.await,
                Err(error) => Err(text(&error)),
            },
        }
    }
}
