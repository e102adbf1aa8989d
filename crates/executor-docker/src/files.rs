//! The files of secrets and configs: where they are for this engine, and writing those of one task.
//!
//! The engine mounts files of the host, so daemon and engine must see the same files. Whether they do is asked once: a
//! request for a container of an image that can't exist is refused for the mount's missing source before the image is
//! looked for, and only then.

use std::sync::Arc;

use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};
use bollard::query_parameters::CreateContainerOptions;
use swarm_agent::ControllerError;
use swarm_agent::memory::{MemoryDir, MemoryFile, MemoryRoot};
use swarm_agent::payloads::{PayloadKind, Payloads};
use swarm_api::id;

use crate::client::Engine;
use crate::error;
use crate::spec::PlannedFile;

/// Kind of the directories of containers' files.
pub(crate) const KIND: &str = "containers";

/// A directory in memory that the engine sees; or why there is none, for the user.
pub(crate) async fn root(engine: &Engine) -> Result<MemoryRoot, String> {
    let root = MemoryRoot::find()?;
    let probe = root.of("probe", KIND).task(&id::random()).map_err(|error| error.to_string())?;
    let file = MemoryFile { name: "0".into(), content: Vec::new(), owner: None, mode: 0o400 };
    let there = |error: std::io::Error| format!("{}: {error}", root.path().display());
    probe.write(None, &[file]).map_err(there)?;
    let seen = sees(engine, &probe).await;
    probe.remove().map_err(there)?;
    if seen {
        return Ok(root);
    }
    Err(format!(
        "the Docker Engine at {} does not see {} of this host",
        engine.address,
        root.path().display()
    ))
}

async fn sees(engine: &Engine, probe: &MemoryDir) -> bool {
    let source = probe.path().join("0").to_string_lossy().into_owned();
    let mount = Mount {
        typ: Some(MountType::BIND),
        source: Some(source.clone()),
        target: Some("/probe".into()),
        read_only: Some(true),
        ..Default::default()
    };
    let body = ContainerCreateBody {
        image: Some(format!("sha256:{}", "0".repeat(64))),
        host_config: Some(HostConfig { mounts: Some(vec![mount]), ..Default::default() }),
        ..Default::default()
    };
    match engine.docker.create_container(None::<CreateContainerOptions>, body).await {
        // It says which path it misses.
        Err(error) if error::status(&error) == Some(400) => !error::message(&error).contains(&source),
        // The image is what it misses. Anything else says nothing, and will be said again where it matters.
        _ => true,
    }
}

/// The files of one task.
pub(crate) struct TaskFiles {
    pub(crate) dir: MemoryDir,
    pub(crate) files: Vec<PlannedFile>,
    /// Whom root in the container is on the host: it must be able to enter the directory.
    pub(crate) root: (u32, u32),
    pub(crate) payloads: Arc<Payloads>,
}

impl TaskFiles {
    /// Writes all of them, unless they are there.
    pub(crate) async fn ensure(&self) -> Result<(), ControllerError> {
        let dir = self.dir.clone();
        if on_thread("looking for", move || dir.is_written()).await? {
            return Ok(());
        }
        let files = self.files.iter().map(|file| {
            let content = self.payloads.get(file.kind, &file.id)?;
            Ok(MemoryFile { name: (&file.name).into(), content, owner: Some(file.owner), mode: file.mode })
        });
        let files: Vec<MemoryFile> = files.collect::<Result<_, ControllerError>>()?;
        let (dir, root) = (self.dir.clone(), self.root);
        on_thread("writing", move || dir.write(Some(root), &files)).await
    }

    /// Removes them: nothing will read them any more.
    pub(crate) async fn remove(&self) -> Result<(), ControllerError> {
        let dir = self.dir.clone();
        on_thread("removing", move || dir.remove()).await
    }
}

/// The credential spec as the engine takes it from outside: the payload itself.
pub(crate) fn credential(payloads: &Payloads, config: &str) -> Result<String, ControllerError> {
    let payload = payloads.get(PayloadKind::Config, config)?;
    let text = String::from_utf8(payload).map_err(|_| {
        ControllerError::Fatal(format!("credential spec: config {config} is not text in UTF-8"))
    })?;
    Ok(format!("credentialspec=raw://{text}"))
}

/// Work on files, away from the threads that others wait for. What goes wrong may pass (memory that runs out).
async fn on_thread<T: Send + 'static>(
    doing: &str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, ControllerError> {
    let failed = |reason: String| {
        ControllerError::Temporary(format!("{doing} the files of the task's secrets and configs: {reason}"))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| failed(error.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}
