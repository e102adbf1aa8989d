//! What a task is given of its secrets and configs: the payload as it is, or with its templates expanded.
//!
//! A payload is expanded only where the object says so. Beside everything that templates of a spec have there are
//! `secret "file"` and `config "file"`, the raw payload behind another of the task's references by its file name, and
//! `env "NAME"`, a variable of the task's environment, empty if there is none.

use std::sync::Arc;

use parking_lot::Mutex;
use swarm_api::Shared;
use swarm_api::v1::{ConfigReference, Driver, SecretReference, Task, config_reference, secret_reference};
use swarm_template::{Context, Functions, TemplateError, Value};

use crate::{ControllerError, Dependencies};

/// Name of the only template language.
const LANGUAGE: &str = "golang";

/// The payloads of one task.
pub struct Payloads {
    task: Shared<Task>,
    context: Context,
    env: Vec<String>,
    secrets: Vec<Target>,
    configs: Vec<Target>,
    dependencies: Arc<dyn Dependencies>,
}

/// A file of the task, and the object behind it.
struct Target {
    file: String,
    id: String,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadKind {
    /// A secret.
    Secret,
    /// A config.
    Config,
}

impl PayloadKind {
    /// `secret` or `config`.
    pub fn name(self) -> &'static str {
        match self {
            PayloadKind::Secret => "secret",
            PayloadKind::Config => "config",
        }
    }
}

impl Payloads {
    /// The payloads of a task with these references; `env` is its environment, expanded.
    pub fn new(
        task: &Shared<Task>,
        context: Context,
        env: Vec<String>,
        (secrets, configs): (&[SecretReference], &[ConfigReference]),
        dependencies: Arc<dyn Dependencies>,
    ) -> Payloads {
        let secrets = secrets.iter().filter_map(|reference| {
            let secret_reference::Target::File(file) = reference.target.as_ref()?;
            Some(Target { file: file.name.clone(), id: reference.secret_id.clone() })
        });
        let configs = configs.iter().filter_map(|reference| match &reference.target {
            Some(config_reference::Target::File(file)) => {
                Some(Target { file: file.name.clone(), id: reference.config_id.clone() })
            }
            _ => None,
        });
        Payloads {
            task: task.clone(),
            context,
            env,
            secrets: secrets.collect(),
            configs: configs.collect(),
            dependencies,
        }
    }

    /// What the file of this secret or config holds.
    ///
    /// # Errors
    /// [`ControllerError::Temporary`] if no manager has sent it yet; [`ControllerError::Fatal`] if the task does not refer
    /// to it, or its templates can't be expanded.
    pub fn get(&self, kind: PayloadKind, id: &str) -> Result<Vec<u8>, ControllerError> {
        let (data, templating) = self.raw(kind, id)?;
        let Some(language) = templating else { return Ok(data) };
        let failed = |reason: String| {
            ControllerError::Fatal(format!("failed to expand templated {} {id}: {reason}", kind.name()))
        };
        if language.name != LANGUAGE {
            return Err(failed("unrecognized template type".to_owned()));
        }
        let text = String::from_utf8(data).map_err(|_| failed("it is not text in UTF-8".to_owned()))?;
        let functions = PayloadFunctions { payloads: self, missing: Mutex::default() };
        let expanded = self.context.expand_with(&text, &functions);
        match (expanded, functions.missing.into_inner()) {
            (Ok(text), _) => Ok(text.into_bytes()),
            // It may still come.
            (Err(_), Some(missing @ ControllerError::Temporary(_))) => Err(missing),
            (Err(error), _) => Err(failed(error.to_string())),
        }
    }

    fn raw(&self, kind: PayloadKind, id: &str) -> Result<(Vec<u8>, Option<Driver>), ControllerError> {
        Ok(match kind {
            PayloadKind::Secret => {
                let secret = self.dependencies.secret(&self.task, id)?;
                (secret.spec.data.clone(), secret.spec.templating.clone())
            }
            PayloadKind::Config => {
                let config = self.dependencies.config(&self.task, id)?;
                (config.spec.data.clone(), config.spec.templating.clone())
            }
        })
    }

    /// The raw payload behind the reference with this file name, as text.
    fn by_file(&self, kind: PayloadKind, file: &str) -> Result<String, Failure> {
        let name = kind.name();
        let targets = match kind {
            PayloadKind::Secret => &self.secrets,
            PayloadKind::Config => &self.configs,
        };
        let target = targets
            .iter()
            .find(|target| target.file == file)
            .ok_or_else(|| Failure::Template(format!("{name} target {file} not found")))?;
        let (data, _) = self.raw(kind, &target.id).map_err(Failure::Object)?;
        String::from_utf8(data)
            .map_err(|_| Failure::Template(format!("{name} target {file} is not text in UTF-8")))
    }

    fn variable(&self, name: &str) -> String {
        // Of several, the last one counts, as in the task itself.
        let found =
            self.env.iter().rev().find_map(|entry| entry.split_once('=').filter(|(known, _)| *known == name));
        found.map(|(_, value)| value.to_owned()).unwrap_or_default()
    }
}

enum Failure {
    Template(String),
    Object(ControllerError),
}

struct PayloadFunctions<'a> {
    payloads: &'a Payloads,
    /// An object that could not be had, for whom a text is not enough.
    missing: Mutex<Option<ControllerError>>,
}

impl Functions for PayloadFunctions<'_> {
    fn call(&self, name: &str, args: &[Value]) -> Option<Result<Value, TemplateError>> {
        let kind = match name {
            "secret" => Some(PayloadKind::Secret),
            "config" => Some(PayloadKind::Config),
            "env" => None,
            _ => return None,
        };
        let [Value::Str(argument)] = args else {
            return Some(Err(TemplateError(format!("{name} needs one argument, a text"))));
        };
        Some(match kind {
            None => Ok(Value::Str(self.payloads.variable(argument))),
            Some(kind) => match self.payloads.by_file(kind, argument) {
                Ok(text) => Ok(Value::Str(text)),
                Err(Failure::Template(text)) => Err(TemplateError(text)),
                Err(Failure::Object(error)) => {
                    let text = error.to_string();
                    *self.missing.lock() = Some(error);
                    Err(TemplateError(text))
                }
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use swarm_api::v1::{Annotations, ContainerSpec, FileTarget, NodeDescription, Secret, task_spec};
    use swarm_api::v1::{Config, Platform};

    use super::*;
    use crate::dependencies::{Changes, Store};

    fn language(name: &str) -> Option<Driver> {
        (!name.is_empty()).then(|| Driver { name: name.to_owned(), ..Default::default() })
    }

    fn secret(id: &str, data: &[u8], templating: &str) -> Shared<Secret> {
        let mut secret = Secret { id: id.into(), ..Default::default() };
        secret.spec.data = data.to_vec();
        secret.spec.templating = language(templating);
        secret.into()
    }

    fn config(id: &str, data: &[u8], templating: &str) -> Shared<Config> {
        let mut config = Config { id: id.into(), ..Default::default() };
        config.spec.data = data.to_vec();
        config.spec.templating = language(templating);
        config.into()
    }

    /// A task that refers to the secret `s` (file `pw`), to `later` and to `binary`, and to the config `c`, whose payload is
    /// given (file `/etc/app`), and to `other` (file `o`).
    fn payloads(payload: &[u8], templating: &str) -> Payloads {
        let file = |name: &str| FileTarget { name: name.into(), ..Default::default() };
        let secrets =
            [("s", "pw"), ("later", "later"), ("binary", "binary")].map(|(id, name)| SecretReference {
                secret_id: id.into(),
                secret_name: id.into(),
                target: Some(secret_reference::Target::File(file(name))),
            });
        let configs = [("c", "/etc/app"), ("other", "o")].map(|(id, name)| ConfigReference {
            config_id: id.into(),
            config_name: id.into(),
            target: Some(config_reference::Target::File(file(name))),
        });
        let mut task = Task { id: "t".into(), slot: 2, node_id: "n".into(), ..Default::default() };
        task.service_annotations = Annotations { name: "web".into(), ..Default::default() }.into();
        task.spec.runtime = Some(task_spec::Runtime::Container(ContainerSpec {
            secrets: secrets.to_vec(),
            configs: configs.to_vec(),
            ..Default::default()
        }));
        let store = Store::default();
        store.apply(
            true,
            Changes {
                secrets: vec![secret("s", b"p{{.Task.ID}}w", ""), secret("binary", b"\xff", "")],
                configs: vec![
                    config("c", payload, templating),
                    config("other", b"{{secret \"pw\"}}", "golang"),
                ],
                ..Default::default()
            },
        );
        let node = NodeDescription {
            hostname: "host".into(),
            platform: Some(Platform { architecture: "x86_64".into(), os: "linux".into() }),
            ..Default::default()
        };
        let context = Context::new(&task, Some(&node));
        let env = ["A=1", "B", "A=2"].map(str::to_owned).to_vec();
        Payloads::new(&task.into(), context, env, (&secrets, &configs), Arc::new(store))
    }

    #[track_caller]
    fn check(payload: &str, expected: &str) {
        let got = payloads(payload.as_bytes(), "golang").get(PayloadKind::Config, "c");
        assert_eq!(got, Ok(expected.as_bytes().to_vec()), "{payload}");
    }

    #[track_caller]
    fn refused(payload: &[u8], templating: &str, text: &str) {
        let error = payloads(payload, templating).get(PayloadKind::Config, "c").unwrap_err();
        let expected = format!("failed to expand templated config c: {text}");
        assert_eq!(error, ControllerError::Fatal(expected));
    }

    // 134, 136
    #[test]
    fn templates_have_every_field_and_what_else_the_task_was_given() {
        check(
            "{{.Service.Name}}.{{.Task.Slot}} on {{.Node.Hostname}}/{{.Node.Platform.OS}}",
            "web.2 on host/linux",
        );
        check("{{secret \"pw\"}}", "p{{.Task.ID}}w");
        check("{{config \"o\"}}", "{{secret \"pw\"}}");
        // Itself, once.
        check("{{config \"/etc/app\"}}", "{{config \"/etc/app\"}}");
        check("{{env \"A\"}}-{{env \"B\"}}-{{env \"none\"}}.", "2--.");
        check("{{join \",\" (secret \"pw\") (env \"A\")}}", "p{{.Task.ID}}w,2");
    }

    #[test]
    fn a_payload_is_left_alone_unless_it_asks_to_be_expanded() {
        let bytes = b"\xff{{.Nope";
        assert_eq!(payloads(bytes, "").get(PayloadKind::Config, "c"), Ok(bytes.to_vec()));
        assert_eq!(payloads(b"", "").get(PayloadKind::Secret, "s"), Ok(b"p{{.Task.ID}}w".to_vec()));
    }

    // 134, 135
    #[test]
    fn what_can_t_be_expanded_says_why() {
        refused(b"x", "jinja", "unrecognized template type");
        refused(b"\xff", "golang", "it is not text in UTF-8");
        refused(b"{{secret \"nope\"}}", "golang", "secret target nope not found");
        refused(b"{{config \"pw\"}}", "golang", "config target pw not found");
        refused(b"{{secret \"binary\"}}", "golang", "secret target binary is not text in UTF-8");
        refused(b"{{env}}", "golang", "env needs one argument, a text");
        refused(b"{{secret 1}}", "golang", "secret needs one argument, a text");
    }

    #[test]
    fn what_may_still_come_is_waited_for_and_what_is_foreign_is_not() {
        let later = "dependency not ready: secret later not found";
        let expected = Err(ControllerError::Temporary(later.into()));
        assert_eq!(payloads(b"{{secret \"later\"}}", "golang").get(PayloadKind::Config, "c"), expected);
        assert_eq!(payloads(b"", "").get(PayloadKind::Secret, "later"), expected);
        let foreign = ControllerError::Fatal("task not authorized to access secret foreign".into());
        assert_eq!(payloads(b"", "").get(PayloadKind::Secret, "foreign"), Err(foreign));
    }
}
