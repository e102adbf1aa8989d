//! Secrets and configs of a process: files in memory, in a directory that only its user may enter.

use std::path::Path;
use std::sync::Arc;

use swarm_agent::memory::{MemoryDir, MemoryFile};
use swarm_agent::payloads::{PayloadKind, Payloads};
use swarm_agent::template::Context;
use swarm_agent::{ControllerError, Dependencies};
use swarm_api::Shared;
use swarm_api::swarmd::ProcessSpec;
use swarm_api::v1::{FileTarget, Task, config_reference, secret_reference};

use crate::launch::{Identity, Launch};

/// Kind of the directories of processes' files.
pub(crate) const KIND: &str = "processes";
/// Names of the directories within a task's own.
pub(crate) const SECRETS: &str = "secrets";
pub(crate) const CONFIGS: &str = "configs";

/// Mode of a file for which none was given: its owner may read it.
const DEFAULT_MODE: u32 = 0o400;

/// The files of one task.
pub(crate) struct TaskFiles {
    dir: MemoryDir,
    owner: Option<(u32, u32)>,
    files: Vec<PlannedFile>,
    payloads: Payloads,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PlannedFile {
    kind: PayloadKind,
    id: String,
    name: String,
    owner: Option<(u32, u32)>,
    mode: u32,
}

impl TaskFiles {
    /// The files of a task; `None` if it has none.
    pub(crate) fn new(
        task: &Shared<Task>,
        spec: &ProcessSpec,
        dir: Option<MemoryDir>,
        launch: &Launch,
        context: Context,
        dependencies: Arc<dyn Dependencies>,
    ) -> Result<Option<TaskFiles>, ControllerError> {
        let Some(dir) = dir.filter(|_| launch.files.is_some()) else { return Ok(None) };
        let env = launch.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let references = (&spec.secrets[..], &spec.configs[..]);
        Ok(Some(TaskFiles {
            dir,
            owner: launch.identity.as_ref().map(|identity| (identity.uid, identity.gid)),
            files: plan(spec, launch.identity.as_ref())?,
            payloads: Payloads::new(task, context, env, references, dependencies),
        }))
    }

    /// Writes all of them, unless they are there. Blocks.
    pub(crate) fn ensure(&self) -> Result<(), ControllerError> {
        let failed = |error: std::io::Error| {
            ControllerError::Temporary(format!("the files of the task's secrets and configs: {error}"))
        };
        if self.dir.is_written().map_err(failed)? {
            return Ok(());
        }
        let files = self.files.iter().map(|file| {
            let content = self.payloads.get(file.kind, &file.id)?;
            let directory = match file.kind {
                PayloadKind::Secret => SECRETS,
                PayloadKind::Config => CONFIGS,
            };
            let name = Path::new(directory).join(&file.name);
            Ok(MemoryFile { name, content, owner: file.owner, mode: file.mode })
        });
        let files: Vec<MemoryFile> = files.collect::<Result<_, ControllerError>>()?;
        self.dir.write(self.owner, &files).map_err(failed)
    }
}

fn plan(spec: &ProcessSpec, identity: Option<&Identity>) -> Result<Vec<PlannedFile>, ControllerError> {
    let secrets = spec.secrets.iter().map(|reference| {
        let file = reference.target.as_ref().map(|secret_reference::Target::File(file)| file);
        (PayloadKind::Secret, &reference.secret_id, &reference.secret_name, file)
    });
    let configs = spec.configs.iter().map(|reference| {
        let file = match &reference.target {
            Some(config_reference::Target::File(file)) => Some(file),
            _ => None,
        };
        (PayloadKind::Config, &reference.config_id, &reference.config_name, file)
    });
    secrets.chain(configs).map(|(kind, id, object, file)| planned(kind, id, object, file, identity)).collect()
}

fn planned(
    kind: PayloadKind,
    id: &str,
    object: &str,
    file: Option<&FileTarget>,
    identity: Option<&Identity>,
) -> Result<PlannedFile, ControllerError> {
    let bad = |what: String| ControllerError::Fatal(format!("process: {} {object:?}: {what}", kind.name()));
    let file = file.ok_or_else(|| bad("it has no file".to_owned()))?;
    if file.name.is_empty() || file.name.contains(['/', '\0']) || matches!(file.name.as_str(), "." | "..") {
        return Err(bad(format!("its file must be a name without slashes, and is {:?}", file.name)));
    }
    let number = |what: &str, text: &str, own: Option<u32>| match (text, own) {
        ("", own) => Ok(own),
        (text, _) => {
            let number = text.parse().map(Some);
            number.map_err(|_| bad(format!("the {what} {text:?} of its file is not a number")))
        }
    };
    let user = number("user", &file.uid, identity.map(|identity| identity.uid))?;
    let group = number("group", &file.gid, identity.map(|identity| identity.gid))?;
    let owner = match (user, group) {
        (None, None) => None,
        (user, group) => {
            let (uid, gid) = (nix::unistd::Uid::effective(), nix::unistd::Gid::effective());
            Some((user.unwrap_or(uid.as_raw()), group.unwrap_or(gid.as_raw())))
        }
    };
    let mode = if file.mode == 0 { DEFAULT_MODE } else { file.mode & 0o777 };
    Ok(PlannedFile { kind, id: id.to_owned(), name: file.name.clone(), owner, mode })
}

#[cfg(test)]
mod tests {
    use swarm_api::v1::{ConfigReference, RuntimeTarget, SecretReference};

    use super::*;

    fn spec(name: &str, uid: &str, mode: u32) -> ProcessSpec {
        let file = FileTarget { name: name.into(), uid: uid.into(), gid: String::new(), mode };
        let secret = SecretReference {
            secret_id: "s".into(),
            secret_name: "password".into(),
            target: Some(secret_reference::Target::File(file)),
        };
        ProcessSpec { secrets: vec![secret], ..Default::default() }
    }

    #[test]
    fn files_are_the_processs_own_unless_they_say_otherwise() {
        let app = Identity { uid: 1000, gid: 100, groups: Vec::new() };
        let of = |spec: &ProcessSpec, identity| {
            let file = plan(spec, identity).unwrap().remove(0);
            (file.owner, file.mode)
        };
        assert_eq!(of(&spec("pw", "", 0), None), (None, 0o400));
        assert_eq!(of(&spec("pw", "", 0o440), Some(&app)), (Some((1000, 100)), 0o440));
        assert_eq!(of(&spec("pw", "7", 0o4444), Some(&app)), (Some((7, 100)), 0o444));
    }

    #[test]
    fn a_file_is_a_name_and_its_owner_a_number() {
        let refused = |spec: &ProcessSpec| plan(spec, None).unwrap_err().to_string();
        for bad in ["", ".", "..", "a/b", "/etc/pw"] {
            let text = format!(
                "process: secret \"password\": its file must be a name without slashes, and is {bad:?}"
            );
            assert_eq!(refused(&spec(bad, "", 0)), text);
        }
        let text = "process: secret \"password\": the user \"app\" of its file is not a number";
        assert_eq!(refused(&spec("pw", "app", 0)), text);
        let config = ConfigReference {
            config_name: "c".into(),
            target: Some(config_reference::Target::Runtime(RuntimeTarget {})),
            ..Default::default()
        };
        let text = "process: config \"c\": it has no file";
        assert_eq!(refused(&ProcessSpec { configs: vec![config], ..Default::default() }), text);
    }
}
