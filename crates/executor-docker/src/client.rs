//! The connection to an engine.

use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error as ApiError;
use bollard::models::SystemInfo;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use futures::future::BoxFuture;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::RwLock;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::error::{self, Error};
use crate::facts::{Api, EngineFacts};
use crate::waiting::{self, Waiting};

/// Where an engine listens unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "unix:///var/run/docker.sock";

/// Time for the head of an answer. A busy engine may take a minute to create a container.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Time for the first answers of all, so that a wrong address is reported soon.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// Longest text of an error, in bytes.
const MAX_ERROR: usize = 64 * 1024;
/// Idle connections kept, and how long.
const IDLE_CONNECTIONS: usize = 16;
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Sends a request as it is.
type Raw = Arc<dyn Fn(BollardRequest) -> BoxFuture<'static, Result<Answer, ApiError>> + Send + Sync>;
type Answer = http::Response<Incoming>;

/// One engine, shared by all controllers.
pub(crate) struct Engine {
    pub(crate) docker: Docker,
    /// For requests that the library does not make as they should be, and what their addresses begin with.
    raw: (Raw, String),
    /// As users know it, for messages.
    pub(crate) address: String,
    /// Creations and starts that run at the same time: an engine slows down when it is given more.
    pub(crate) heavy: Semaphore,
    /// Requests without an answer.
    waiting: Arc<Waiting>,
    /// As of the last time that it was asked for its description.
    facts: RwLock<EngineFacts>,
}

impl Engine {
    /// A handle; connects to nothing yet.
    pub(crate) fn new(address: &str, parallelism: usize) -> Result<Arc<Engine>, Error> {
        let address = if address.is_empty() { DEFAULT_ADDRESS } else { address };
        let (docker, raw, waiting) = open(address)?;
        Ok(Arc::new(Engine {
            docker,
            raw,
            address: address.to_owned(),
            heavy: Semaphore::new(parallelism.max(1)),
            waiting,
            facts: RwLock::new(EngineFacts::newest()),
        }))
    }

    /// Settles on the newest version of the interface that both sides know, and takes note of what the engine is.
    pub(crate) async fn reach(&self) -> Result<(), Error> {
        let reach = async {
            // All handles have the version in common.
            self.docker.clone().negotiate_version().await?;
            self.info().await
        };
        let reason = match tokio::time::timeout(FIRST_ANSWER, reach).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error::chain(&error),
            Err(_) => format!("no answer within {} s", FIRST_ANSWER.as_secs()),
        };
        Err(Error::Unreachable { address: self.address.clone(), reason })
    }

    /// Asks the engine for its description, and takes note of it.
    pub(crate) async fn info(&self) -> Result<SystemInfo, bollard::errors::Error> {
        let info = self.docker.info().await?;
        *self.facts.write() = EngineFacts::of(self.api(), &info);
        Ok(info)
    }

    /// What is known of the engine. The version of the interface is the present one: an engine may have come back as
    /// another one.
    pub(crate) fn facts(&self) -> EngineFacts {
        EngineFacts { api: self.api(), ..self.facts.read().clone() }
    }

    /// Makes a request whose answer is a connection: what is written goes to a process, what is read comes from it.
    pub(crate) async fn hijack(
        &self,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Result<TokioIo<Upgraded>, ApiError> {
        let (major, minor) = self.api();
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = http::Request::post(format!("{}/v{major}.{minor}{path}", self.raw.1))
            .header(http::header::CONNECTION, "Upgrade")
            .header(http::header::UPGRADE, "tcp")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(bollard::body_full(bytes::Bytes::from(body)))?;
        let answer = self.head(request).await?;
        if matches!(answer.status().as_u16(), 101 | 200) {
            return Ok(TokioIo::new(hyper::upgrade::on(answer).await?));
        }
        Err(refusal(answer).await)
    }

    /// Makes a request whose answer goes on for as long as it is read.
    pub(crate) async fn stream(&self, path: &str) -> Result<Incoming, ApiError> {
        let (major, minor) = self.api();
        let request = http::Request::get(format!("{}/v{major}.{minor}{path}", self.raw.1))
            .body(bollard::body_full(bytes::Bytes::new()))?;
        let answer = self.head(request).await?;
        if answer.status().is_success() { Ok(answer.into_body()) } else { Err(refusal(answer).await) }
    }

    /// Waits for the head of an answer.
    async fn head(&self, request: BollardRequest) -> Result<Answer, ApiError> {
        let answer = tokio::time::timeout(TIMEOUT, (self.raw.0)(request)).await;
        answer.map_err(|_| ApiError::RequestTimeoutError)?
    }

    /// What to tell users whose request (its path has one of these words) has no answer for long, or who wait while the
    /// engine answers nobody.
    pub(crate) fn hindrance(&self, words: &[&str]) -> Option<String> {
        self.waiting.is_late(words, Instant::now()).then(|| {
            let (address, patience) = (&self.address, waiting::PATIENCE.as_secs());
            format!("the Docker Engine at {address} has not answered for more than {patience} s")
        })
    }

    fn api(&self) -> Api {
        let version = self.docker.client_version();
        (version.major_version, version.minor_version)
    }

    /// A handle whose requests may take this long, for those that wait by nature.
    pub(crate) fn patient(&self, time: Duration) -> Docker {
        self.docker.clone().with_timeout(time.saturating_add(TIMEOUT))
    }
}

/// What an engine says when it does not do what it was asked for.
async fn refusal(answer: Answer) -> ApiError {
    let status_code = answer.status().as_u16();
    let text = Limited::new(answer.into_body(), MAX_ERROR).collect().await;
    let text = text.map(|text| text.to_bytes()).unwrap_or_default();
    let message = serde_json::from_slice::<serde_json::Value>(&text).ok();
    let message = message.as_ref().and_then(|value| value.get("message")?.as_str());
    let message = message.map_or_else(|| String::from_utf8_lossy(&text).into_owned(), str::to_owned);
    ApiError::DockerResponseServerError { status_code, message }
}

/// A handle, the way to connections that an engine gives over, and what the engine has not answered.
type Opened = (Docker, (Raw, String), Arc<Waiting>);

/// A handle for an address; connects to nothing yet.
fn open(address: &str) -> Result<Opened, Error> {
    let bad = |reason: &str| Error::BadAddress { address: address.to_owned(), reason: reason.to_owned() };
    match address.split_once("://") {
        None if address.starts_with('/') => unix(address),
        Some(("unix", path)) if path.starts_with('/') => unix(path),
        Some(("unix", _)) => return Err(bad("the path of a UNIX socket is absolute: unix:///path")),
        Some(("tcp" | "http", host)) if !host.trim_end_matches('/').is_empty() => {
            let mut connector = HttpConnector::new();
            connector.set_nodelay(true);
            connector.set_keepalive(Some(Duration::from_secs(30)));
            connector.set_connect_timeout(Some(FIRST_ANSWER));
            pooled(connector, &format!("http://{}", host.trim_end_matches('/')))
        }
        _ => return Err(bad("expected unix:///path, an absolute path, or tcp://host:port")),
    }
    .map_err(|error| bad(&error::chain(&error)))
}

fn unix(path: &str) -> Result<Opened, ApiError> {
    // The connector finds the socket's path in the place of the host, in hexadecimal.
    pooled(hyperlocal::UnixConnector, &format!("unix://{}", hex::encode(path)))
}

/// The library's own transports open a connection per request; this one keeps them.
fn pooled<C>(connector: C, address: &str) -> Result<Opened, ApiError>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .build(connector);
    let raw = client.clone();
    let raw: Raw = Arc::new(move |request| {
        let raw = raw.clone();
        Box::pin(async move { raw.request(request).await.map_err(ApiError::from) })
    });
    let waiting = Arc::<Waiting>::default();
    let noted = waiting.clone();
    let transport = move |mut request: BollardRequest| {
        url_safe_credentials(&mut request);
        let (client, waiting) = (client.clone(), noted.clone());
        async move {
            let asked = waiting.ask(request.uri(), Instant::now());
            let answer = client.request(request).await;
            if answer.is_ok() {
                asked.answered(Instant::now());
            }
            answer.map_err(ApiError::from)
        }
    };
    let timeout = TIMEOUT.as_secs();
    let docker =
        Docker::connect_with_custom_transport(transport, Some(address), timeout, API_DEFAULT_VERSION)?;
    Ok((docker, (raw, address.to_owned()), waiting))
}

/// Engines want the URL-safe alphabet of base64 in this header, the library writes the standard one.
fn url_safe_credentials(request: &mut BollardRequest) {
    let Some(value) = request.headers_mut().get_mut("X-Registry-Auth") else { return };
    let safe = value.as_bytes().iter().map(|byte| match byte {
        b'+' => b'-',
        b'/' => b'_',
        other => *other,
    });
    if let Ok(mut safe) = bollard_header(safe.collect()) {
        safe.set_sensitive(true);
        *value = safe;
    }
}

fn bollard_header(bytes: Vec<u8>) -> Result<http::HeaderValue, http::header::InvalidHeaderValue> {
    http::HeaderValue::from_maybe_shared(bytes::Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        for good in ["unix:///run/x.sock", "/run/x.sock", "tcp://10.0.0.1:2375", "http://engine:2375/"] {
            assert!(open(good).is_ok(), "{good}");
        }
        for bad in ["unix://run/x.sock", "docker.sock", "tcp://", "ssh://host", "https://host:2376"] {
            let error = open(bad).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(bad), "{bad}: {error}");
        }
    }

    #[tokio::test]
    async fn absent_engine_is_named() {
        let engine = Engine::new("unix:///nonexistent/docker.sock", 1).unwrap();
        let error = engine.reach().await.unwrap_err().to_string();
        assert!(error.contains("unix:///nonexistent/docker.sock"), "{error}");
        assert!(error.contains("No such file or directory"), "{error}");
    }

    #[test]
    fn credentials_are_sent_in_the_url_safe_alphabet() {
        let mut request = BollardRequest::new(bollard::body_full(bytes::Bytes::new()));
        request.headers_mut().insert("X-Registry-Auth", http::HeaderValue::from_static("a+/b=="));
        url_safe_credentials(&mut request);
        assert_eq!(request.headers()["X-Registry-Auth"], "a-_b==");
    }
}
