//! A registry of images on 127.0.0.1, as small as an engine's pull allows (OCI distribution, pull only).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

const INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Blobs below this size are never held back: descriptions of images.
const SMALL: usize = 64 * 1024;
/// In how many pieces the first half of a blob that is held back is sent, and the pause between them.
const PIECES: usize = 16;
const PAUSE: Duration = Duration::from_millis(50);

/// Serves the images it was given until it is dropped.
pub struct Registry {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// They end with it.
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    /// Value of the `Authorization` header that is asked for.
    authorization: Option<String>,
    blobs: Mutex<BTreeMap<String, Bytes>>,
    /// `name:tag` and `name:digest` to manifests, and what kind of one each is.
    manifests: Mutex<BTreeMap<String, (&'static str, Bytes)>>,
    /// Manifests asked for by tag or digest, with GET or HEAD.
    resolved: AtomicUsize,
    refused: AtomicUsize,
    /// Blobs are sent to their middle only, as long as this is so.
    held: watch::Sender<bool>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Registry {
    /// A registry for everybody, or for who sends this `Authorization` header.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn start(authorization: Option<String>) -> Result<Registry> {
        Registry::start_on(std::net::TcpListener::bind("127.0.0.1:0")?, authorization)
    }

    /// The same on a socket that listens already, perhaps in another network.
    ///
    /// # Errors
    /// If the socket can't be used.
    pub fn start_on(listener: std::net::TcpListener, authorization: Option<String>) -> Result<Registry> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { authorization, ..Shared::default() });
        let mut registry = Registry { address, shared, tasks: JoinSet::new() };
        registry.serve(listener)?;
        Ok(registry)
    }

    /// Serves on a further socket; its images' names stay those of the first one.
    ///
    /// # Errors
    /// If the socket can't be used.
    pub fn serve(&mut self, listener: std::net::TcpListener) -> Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let state = self.shared.clone();
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        let state = state.clone();
                        connections.spawn(async move {
                            let service = hyper_util::service::TowerToHyperService::new(tower::service_fn(
                                move |request| {
                                    let answer = state.answer(&request);
                                    async move { Ok::<_, Infallible>(answer) }
                                },
                            ));
                            // An engine that hangs up is no error of the test.
                            let _ = auto::Builder::new(TokioExecutor::new())
                                .serve_connection(TokioIo::new(stream), service)
                                .await;
                        });
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(())
    }

    /// `127.0.0.1:port`, the first part of its images' names.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Serves an image of one layer (a tar archive) under `name:tag`, in place of what was there; gives the
    /// digest of its manifest.
    ///
    /// # Errors
    /// Only if JSON can't be written.
    pub fn push(&self, name: &str, tag: &str, layer: Vec<u8>, command: &[&str]) -> Result<String> {
        let manifest = self.push_for("amd64", name, tag, layer, command)?;
        let manifest_digest = digest(&manifest);
        self.shared.manifests.lock().insert(format!("{name}:{tag}"), (MANIFEST, manifest));
        Ok(manifest_digest)
    }

    /// Serves an image of one layer for each of these architectures under `name:tag`, in place of what was there. The command
    /// of each is the name of its architecture.
    ///
    /// # Errors
    /// Only if JSON can't be written.
    pub fn push_many(&self, name: &str, tag: &str, layer: &[u8], architectures: &[&str]) -> Result<()> {
        let mut list = Vec::new();
        for architecture in architectures {
            let manifest = self.push_for(architecture, name, tag, layer.to_vec(), &[architecture])?;
            list.push(serde_json::json!({
                "mediaType": MANIFEST, "size": manifest.len(), "digest": digest(&manifest),
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let index = serde_json::to_vec(
            &serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": list}),
        )?;
        self.shared.manifests.lock().insert(format!("{name}:{tag}"), (INDEX, index.into()));
        Ok(())
    }

    /// Serves an image by the digest of its manifest, which it gives.
    fn push_for(
        &self,
        architecture: &str,
        name: &str,
        tag: &str,
        layer: Vec<u8>,
        command: &[&str],
    ) -> Result<Bytes> {
        let layer_digest = digest(&layer);
        let config = serde_json::to_vec(&serde_json::json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": command, "Labels": {"tag": tag}},
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        }))?;
        let manifest = serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "size": config.len(), "digest": digest(&config)},
            "layers": [{"mediaType": LAYER, "size": layer.len(), "digest": layer_digest}],
        }))?;
        let mut blobs = self.shared.blobs.lock();
        blobs.insert(digest(&config), config.into());
        blobs.insert(layer_digest, layer.into());
        let manifest = Bytes::from(manifest);
        let by_digest = format!("{name}:{}", digest(&manifest));
        self.shared.manifests.lock().insert(by_digest, (MANIFEST, manifest.clone()));
        Ok(manifest)
    }

    /// How often an image was asked for by its tag or digest.
    pub fn resolved(&self) -> usize {
        self.shared.resolved.load(Ordering::SeqCst)
    }

    /// Sends blobs slowly from now on, and only to their middle; or also the rest again.
    pub fn hold(&self, held: bool) {
        self.shared.held.send_replace(held);
    }

    /// Requests without the right credentials.
    pub fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::SeqCst)
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

impl Shared {
    fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let given = request.headers().get(http::header::AUTHORIZATION);
        if let Some(wanted) = &self.authorization
            && given.is_none_or(|given| given.as_bytes() != wanted.as_bytes())
        {
            self.refused.fetch_add(1, Ordering::SeqCst);
            let mut answer = plain(StatusCode::UNAUTHORIZED, "application/json", error("UNAUTHORIZED"));
            let scheme = http::HeaderValue::from_static("Basic realm=\"test\"");
            answer.headers_mut().insert(http::header::WWW_AUTHENTICATE, scheme);
            return answer;
        }
        let path = request.uri().path();
        let Some(path) = path.strip_prefix("/v2/") else { return missing() };
        if path.is_empty() {
            return plain(StatusCode::OK, "application/json", Bytes::from_static(b"{}"));
        }
        if let Some((name, reference)) = path.split_once("/manifests/") {
            self.resolved.fetch_add(1, Ordering::SeqCst);
            let manifests = self.manifests.lock();
            return match manifests.get(&format!("{name}:{reference}")) {
                Some((kind, manifest)) => plain(StatusCode::OK, kind, manifest.clone()),
                None => missing(),
            };
        }
        match path.split_once("/blobs/").and_then(|(_, digest)| self.blobs.lock().get(digest).cloned()) {
            Some(blob) => self.held_back(blob),
            None => missing(),
        }
    }
}

impl Shared {
    fn held_back(&self, blob: Bytes) -> Response<Body> {
        let mut answer = plain(StatusCode::OK, "application/octet-stream", blob.clone());
        let mut held = self.held.subscribe();
        if !*held.borrow_and_update() {
            return answer;
        }
        let length = blob.len();
        if length < SMALL {
            return answer;
        }
        let (first, rest) = (blob.slice(..length / 2), blob.slice(length / 2..));
        // Engines speak of progress as data comes, and not more often than every tenth of a second.
        let pieces: Vec<Bytes> = first.chunks(length / 2 / PIECES + 1).map(Bytes::copy_from_slice).collect();
        let slowly = futures::stream::iter(pieces).then(|piece| async move {
            tokio::time::sleep(PAUSE).await;
            Ok(Frame::data(piece))
        });
        let frames = slowly.chain(futures::stream::once(async move {
            // A registry that is dropped holds nothing back.
            let _ = held.wait_for(|held| !held).await;
            Ok(Frame::data(rest))
        }));
        *answer.body_mut() = StreamBody::new(frames).boxed_unsync();
        answer.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
        answer
    }
}

fn error(code: &str) -> Bytes {
    format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"{code}\"}}]}}").into()
}

fn missing() -> Response<Body> {
    plain(StatusCode::NOT_FOUND, "application/json", error("MANIFEST_UNKNOWN"))
}

fn plain(status: StatusCode, kind: &str, body: Bytes) -> Response<Body> {
    let mut answer = Response::new(Full::new(body.clone()).boxed_unsync());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for (name, value) in [
        ("content-type", kind.to_owned()),
        ("docker-content-digest", digest(&body)),
        ("docker-distribution-api-version", "registry/2.0".to_owned()),
    ] {
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    }
    answer
}
