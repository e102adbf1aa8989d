//! Whether an image is there, and getting it.
//!
//! A digest or an image id that is present is never pulled. A tag is pulled, since it may have moved, unless the
//! image never came from a registry; if that fails, an image that is present serves. An image of another platform than
//! the one that is wanted counts as absent. One pull serves all tasks that want the same image of the same platform with the
//! same credentials, goes on when one of them is cancelled, and its result holds for a while. All of them hear how far it
//! is.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use bollard::auth::DockerCredentials;
use bollard::models::ImageInspect;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::future::{BoxFuture, FutureExt, Shared};
use futures::{StreamExt, TryFutureExt};
use parking_lot::Mutex;
use swarm_agent::ControllerError;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::Engine;
use crate::error;
use crate::pull_progress::Layers;
use crate::spec::is_of;

/// How long an image counts as looked after.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// How long a failure holds: long enough for the many tasks of one service, short for who corrects it.
const BAD_FOR: Duration = Duration::from_secs(5);
/// How long an image serves whose pull failed, before it is tried again.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// A pull that says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// Set to `1`, it makes any image that is present serve without a pull.
const PREFER_OFFLINE: &str = "DOCKER_SERVICE_PREFER_OFFLINE_IMAGE";

/// An image that is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// Why a pull of it failed: an older one serves.
    kept: Option<String>,
    /// It says what platform it is for: engines refuse a container of a platform if it does not.
    pub(crate) says_platform: bool,
}

type Outcome = Result<Found, ControllerError>;

/// An image that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    /// Its name, as the spec has it.
    pub(crate) image: String,
    /// Base64url JSON for its registry, or nothing.
    pub(crate) auth: String,
    /// As engines write it, such as `linux/amd64`; none leaves it to the engine.
    pub(crate) platform: Option<String>,
}

impl Wanted {
    /// For messages.
    fn text(&self) -> String {
        match &self.platform {
            Some(platform) => format!("{} for {platform}", self.image),
            None => self.image.clone(),
        }
    }

    /// What is there is of the platform that is wanted, or does not say.
    fn may_be(&self, found: &ImageInspect) -> bool {
        self.platform.as_ref().is_none_or(|platform| is_of(platform, platform_of(found)))
    }
}

/// System and architecture that an image says it is for.
fn platform_of(image: &ImageInspect) -> (&str, &str) {
    (image.os.as_deref().unwrap_or_default(), image.architecture.as_deref().unwrap_or_default())
}

/// Whether an engine makes a container of this image if it is asked for one of the platform: variants, of which the contract has
/// none, are compared too.
fn says_platform(image: &ImageInspect) -> bool {
    let (os, architecture) = platform_of(image);
    let usual = match image.variant.as_deref().unwrap_or_default() {
        "" => true,
        variant => (architecture, variant) == ("arm64", "v8"),
    };
    usual && !os.is_empty() && !architecture.is_empty()
}

struct Entry {
    outcome: Shared<BoxFuture<'static, Outcome>>,
    progress: watch::Receiver<Option<u8>>,
    /// When it ended, and how long it holds from then.
    ended: Arc<OnceLock<(Instant, Duration)>>,
}

impl Entry {
    fn holds(&self) -> bool {
        self.ended.get().is_none_or(|(at, time)| at.elapsed() < *time)
    }
}

/// The images of one engine.
pub(crate) struct Images {
    engine: Arc<Engine>,
    tracker: TaskTracker,
    stop: CancellationToken,
    entries: Mutex<HashMap<Wanted, Entry>>,
}

impl Images {
    pub(crate) fn new(engine: Arc<Engine>, tracker: TaskTracker, stop: CancellationToken) -> Self {
        Images { engine, tracker, stop, entries: Mutex::default() }
    }

    /// Makes sure that the image is there. Says how far a pull is, in percent, once it has begun.
    pub(crate) async fn ensure(&self, wanted: &Wanted, tell: impl FnMut(u8)) -> Outcome {
        self.get(wanted, tell).await
    }

    /// As [`Images::ensure`], but what was found before does not count, only a pull that is under way; and an older image does
    /// not make up for a pull that failed.
    pub(crate) async fn pull(
        &self,
        image: &str,
        auth: &str,
        tell: impl FnMut(u8),
    ) -> Result<(), ControllerError> {
        self.forget(image);
        let wanted = Wanted { image: image.to_owned(), auth: auth.to_owned(), platform: None };
        match self.get(&wanted, tell).await?.kept {
            None => Ok(()),
            Some(reason) => Err(ControllerError::Fatal(format!(
                "pulling image {image} failed: {reason} (the one that is here may be an older one)"
            ))),
        }
    }

    async fn get(&self, wanted: &Wanted, mut tell: impl FnMut(u8)) -> Outcome {
        let (mut outcome, mut progress) = {
            let mut entries = self.entries.lock();
            entries.retain(|_, entry| entry.holds());
            let entry = entries.entry(wanted.clone()).or_insert_with(|| self.begin(wanted.clone()));
            (entry.outcome.clone(), entry.progress.clone())
        };
        progress.mark_changed();
        loop {
            tokio::select! {
                biased;
                outcome = &mut outcome => return outcome,
                Ok(()) = progress.changed() => {
                    if let Some(percent) = *progress.borrow_and_update() {
                        tell(percent);
                    }
                }
            }
        }
    }

    /// Forgets what is known of an image: it has vanished from the engine, or somebody wants to know anew.
    pub(crate) fn forget(&self, image: &str) {
        self.entries.lock().retain(|known, entry| known.image != image || entry.ended.get().is_none());
    }

    fn begin(&self, wanted: Wanted) -> Entry {
        let ended = Arc::new(OnceLock::new());
        let (tell, progress) = watch::channel(None);
        let task = {
            let (engine, stop, ended) = (self.engine.clone(), self.stop.clone(), ended.clone());
            async move {
                let outcome = match stop.run_until_cancelled_owned(provide(&engine, &wanted, &tell)).await {
                    Some(outcome) => outcome,
                    None => Err(ControllerError::Temporary("the daemon is stopping".to_owned())),
                };
                let holds = match &outcome {
                    Ok(Found { kept: None, .. }) => GOOD_FOR,
                    // Tasks run with it; whoever corrects the reason need not wait for long.
                    Ok(Found { kept: Some(_), .. }) => KEPT_FOR,
                    Err(ControllerError::Temporary(_)) => Duration::ZERO,
                    Err(_) => BAD_FOR,
                };
                // Nobody else sets it.
                let _ = ended.set((Instant::now(), holds));
                outcome
            }
        };
        let outcome = self
            .tracker
            .spawn(task)
            .unwrap_or_else(|error| Err(ControllerError::Temporary(format!("pulling the image: {error}"))))
            .boxed()
            .shared();
        Entry { outcome, progress, ended }
    }
}

async fn look(engine: &Engine, image: &str) -> Result<Option<ImageInspect>, ControllerError> {
    match engine.docker.inspect_image(image).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error::is_not_found(&error) => Ok(None),
        Err(error) => Err(error::of_step("looking for the image", &engine.address, &error)),
    }
}

async fn provide(engine: &Engine, wanted: &Wanted, tell: &watch::Sender<Option<u8>>) -> Outcome {
    let image = wanted.image.as_str();
    let (mut present, mut other) = (look(engine, image).await?, String::new());
    if let Some(found) = present.take_if(|found| !wanted.may_be(found)) {
        let (os, architecture) = platform_of(&found);
        other = format!(" (the one that is here is for {os}/{architecture})");
    }
    match &present {
        Some(found) if !worth_a_pull(image, found, std::env::var(PREFER_OFFLINE).is_ok_and(|v| v == "1")) => {
            return Ok(Found { kept: None, says_platform: says_platform(found) });
        }
        None if is_id(image) => {
            let text = wanted.text();
            return Err(ControllerError::Fatal(format!(
                "No such image: {text} (an image id can't be pulled){other}"
            )));
        }
        _ => {}
    }
    let credentials = match decode_auth(&wanted.auth) {
        Ok(credentials) => credentials,
        Err(reason) => {
            tracing::warn!(image, reason, "invalid registry credentials: pulling without any");
            None
        }
    };
    let mut pulled = pull(engine, wanted, credentials.clone(), tell).await;
    if credentials.is_some() && matches!(&pulled, Err(PullError::Engine(error)) if is_unauthorized(error)) {
        tracing::info!(image, "registry refused the credentials: pulling without any");
        // The first refusal says more than what anonymous users are told.
        pulled = pull(engine, wanted, None, tell).await.or(pulled);
    }
    let text = wanted.text();
    match (pulled, present) {
        (Ok(()), _) if wanted.platform.is_none() => Ok(Found::default()),
        // Removed again meanwhile: the engine says so when it is asked for the container.
        (Ok(()), _) => {
            let says_platform = look(engine, image).await?.is_none_or(|found| says_platform(&found));
            Ok(Found { kept: None, says_platform })
        }
        (Err(reason), Some(found)) => {
            tracing::warn!(image, %reason, "pulling image failed: using the one that is here");
            Ok(Found { kept: Some(reason.to_string()), says_platform: says_platform(&found) })
        }
        // A registry that can't be reached is the image's trouble, an engine that can't is not.
        (Err(PullError::Engine(error)), None)
            if error::status(&error).is_none() && error::is_temporary(&error) =>
        {
            Err(error::of_step(&format!("pulling image {text} failed"), &engine.address, &error))
        }
        (Err(reason), None) => {
            Err(ControllerError::Fatal(format!("pulling image {text} failed: {reason}{other}")))
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error("{}", error::message(.0))]
    Engine(bollard::errors::Error),
    #[error("no progress for {} s", SILENCE.as_secs())]
    Silent,
}

async fn pull(
    engine: &Engine,
    wanted: &Wanted,
    credentials: Option<DockerCredentials>,
    tell: &watch::Sender<Option<u8>>,
) -> Result<(), PullError> {
    let image = wanted.image.as_str();
    let (name, tag) = split_reference(image);
    let platform = wanted.platform.as_deref().unwrap_or_default();
    tracing::info!(image, platform, "pulling image");
    let options = CreateImageOptionsBuilder::new().from_image(name).tag(tag).platform(platform).build();
    let mut messages = std::pin::pin!(engine.docker.create_image(Some(options), None, credentials));
    let mut layers = Layers::default();
    tell.send_replace(Some(0));
    loop {
        match tokio::time::timeout(SILENCE, messages.next()).await {
            Err(_) => return Err(PullError::Silent),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(PullError::Engine(error)),
            Ok(Some(Ok(info))) => {
                tracing::trace!(image, layer = info.id, status = info.status, "pull progress");
                let percent = Some(layers.percent(&info));
                tell.send_if_modified(|told| std::mem::replace(told, percent) != percent);
            }
        }
    }
    tracing::info!(image, "image pulled");
    Ok(())
}

fn is_unauthorized(error: &bollard::errors::Error) -> bool {
    let text = error::message(error).to_lowercase();
    error::status(error) == Some(401)
        || text.contains("unauthorized")
        || text.contains("incorrect username or password")
}

/// Whether an image that is present should be pulled anyway.
fn worth_a_pull(image: &str, found: &ImageInspect, prefer_offline: bool) -> bool {
    let from_registry = found.repo_digests.as_ref().is_some_and(|digests| !digests.is_empty());
    from_registry && !prefer_offline && !is_id(image) && !image.contains('@')
}

/// An image id rather than a name.
fn is_id(image: &str) -> bool {
    let hex = image.strip_prefix("sha256:").unwrap_or(image);
    hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Name, and tag or digest; a missing one is `latest`.
fn split_reference(image: &str) -> (&str, &str) {
    if let Some((name, digest)) = image.split_once('@') {
        return (without_tag(name).0, digest);
    }
    let (name, tag) = without_tag(image);
    (name, tag.unwrap_or("latest"))
}

/// The colon of a tag stands behind the last slash; others belong to a port.
fn without_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    }
}

fn decode_auth(auth: &str) -> Result<Option<DockerCredentials>, String> {
    if auth.is_empty() {
        return Ok(None);
    }
    let engine = base64::engine::GeneralPurpose::new(
        &base64::alphabet::URL_SAFE,
        base64::engine::GeneralPurposeConfig::new()
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    let json = engine.decode(auth).map_err(|error| error.to_string())?;
    // The text of a JSON error may quote the credentials: only its place is told.
    serde_json::from_slice(&json).map(Some).map_err(|error| format!("no JSON at byte {}", error.column()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart() {
        for (image, expected) in [
            ("busybox", ("busybox", "latest")),
            ("busybox:1.35", ("busybox", "1.35")),
            ("127.0.0.1:5000/a/b", ("127.0.0.1:5000/a/b", "latest")),
            ("127.0.0.1:5000/a/b:c", ("127.0.0.1:5000/a/b", "c")),
            ("a/b@sha256:00", ("a/b", "sha256:00")),
            ("h:1/a:t@sha256:00", ("h:1/a", "sha256:00")),
        ] {
            assert_eq!(split_reference(image), expected, "{image}");
        }
    }

    #[test]
    fn only_a_tag_from_a_registry_is_worth_a_pull() {
        let remote = ImageInspect { repo_digests: Some(vec!["a@sha256:00".into()]), ..Default::default() };
        let local = ImageInspect { repo_digests: Some(Vec::new()), ..Default::default() };
        let id = format!("sha256:{}", "a".repeat(64));
        for (image, found, offline, expected) in [
            ("a:1", &remote, false, true),
            ("a", &remote, false, true),
            ("a:1", &remote, true, false),
            ("a:1", &local, false, false),
            ("a@sha256:00", &remote, false, false),
            (id.as_str(), &remote, false, false),
        ] {
            assert_eq!(worth_a_pull(image, found, offline), expected, "{image} {offline}");
        }
    }

    #[test]
    fn credentials_are_decoded_with_or_without_padding() {
        for auth in ["eyJ1c2VybmFtZSI6InUifQ==", "eyJ1c2VybmFtZSI6InUifQ"] {
            assert_eq!(decode_auth(auth).unwrap().unwrap().username.as_deref(), Some("u"));
        }
        assert!(decode_auth("").unwrap().is_none());
        assert!(decode_auth("{}").is_err());
        let secret = base64::engine::general_purpose::URL_SAFE.encode("hunter2");
        assert!(!decode_auth(&secret).unwrap_err().contains("hunter2"));
    }
}
