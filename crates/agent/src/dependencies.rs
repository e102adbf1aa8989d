//! Secrets and configs that managers gave to this node. In memory only: they are gone with the process.

use std::collections::HashMap;

use parking_lot::RwLock;
use swarm_api::Shared;
use swarm_api::v1::{Config, ResourceType, Secret, Task, task_spec};
use tokio::sync::watch;

use crate::{Dependencies, DependencyError};

/// The store of all tasks' secrets and configs.
#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: RwLock<Objects>,
    complete: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Objects {
    secrets: HashMap<String, Shared<Secret>>,
    configs: HashMap<String, Shared<Config>>,
}

/// Changes of secrets and configs.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) secrets: Vec<Shared<Secret>>,
    pub(crate) configs: Vec<Shared<Config>>,
    pub(crate) removed_secrets: Vec<String>,
    pub(crate) removed_configs: Vec<String>,
}

impl Store {
    /// Takes changes; a complete set replaces everything at once.
    pub(crate) fn apply(&self, complete: bool, changes: Changes) {
        let mut objects = self.objects.write();
        if complete {
            *objects = Objects::default();
        } else {
            for id in &changes.removed_secrets {
                objects.secrets.remove(id);
            }
            for id in &changes.removed_configs {
                objects.configs.remove(id);
            }
        }
        objects.secrets.extend(changes.secrets.into_iter().map(|s| (s.id.clone(), s)));
        objects.configs.extend(changes.configs.into_iter().map(|c| (c.id.clone(), c)));
        drop(objects);
        if complete {
            self.complete.send_replace(true);
        }
    }

    /// Becomes true with the first complete set: until then it is unknown what a task from the database needs.
    pub(crate) fn complete(&self) -> watch::Receiver<bool> {
        self.complete.subscribe()
    }
}

impl Dependencies for Store {
    fn secret(&self, task: &Task, secret_id: &str) -> Result<Shared<Secret>, DependencyError> {
        let error = |refused| DependencyError { kind: "secret", id: secret_id.to_owned(), refused };
        if !references(task, ResourceType::Secret).any(|id| id == secret_id) {
            return Err(error(true));
        }
        let objects = self.objects.read();
        // A driver may have made one for this task alone; the task need not know.
        if let Some(own) = objects.secrets.get(&format!("{secret_id}.{}", task.id)) {
            let mut own = own.clone();
            secret_id.clone_into(&mut own.id);
            return Ok(own);
        }
        objects.secrets.get(secret_id).cloned().ok_or_else(|| error(false))
    }

    fn config(&self, task: &Task, config_id: &str) -> Result<Shared<Config>, DependencyError> {
        let error = |refused| DependencyError { kind: "config", id: config_id.to_owned(), refused };
        if !references(task, ResourceType::Config).any(|id| id == config_id) {
            return Err(error(true));
        }
        self.objects.read().configs.get(config_id).cloned().ok_or_else(|| error(false))
    }
}

/// Ids of the objects that a task may see. A container names them in its spec; other runtimes have only the
/// task's references.
fn references(task: &Task, kind: ResourceType) -> Box<dyn Iterator<Item = &str> + '_> {
    match (&task.spec.runtime, kind) {
        (Some(task_spec::Runtime::Container(container)), ResourceType::Secret) => {
            Box::new(container.secrets.iter().map(|s| s.secret_id.as_str()))
        }
        (Some(task_spec::Runtime::Container(container)), _) => {
            Box::new(container.configs.iter().map(|c| c.config_id.as_str()))
        }
        _ => {
            let references = task.spec.resource_references.iter();
            let references = references.filter(move |r| r.resource_type == kind as i32);
            Box::new(references.map(|r| r.resource_id.as_str()))
        }
    }
}

/// The credentials that a task brings for its image's registry, if it does; empty if it did, but they were not
/// kept.
pub(crate) fn credentials(task: &Task) -> Option<&str> {
    match &task.spec.runtime {
        Some(task_spec::Runtime::Container(container)) => {
            container.pull_options.as_ref().map(|options| options.registry_auth.as_str())
        }
        _ => None,
    }
}

/// The task needs something that is not kept on disk: secrets, configs, or credentials.
pub(crate) fn has_any(task: &Task) -> bool {
    references(task, ResourceType::Secret).next().is_some()
        || references(task, ResourceType::Config).next().is_some()
        || credentials(task).is_some_and(str::is_empty)
}

#[cfg(test)]
mod tests {
    use swarm_api::v1::{ConfigReference, ContainerSpec, ResourceReference, SecretReference};

    use super::*;

    fn secret(id: &str, data: &str) -> Shared<Secret> {
        let mut secret = Secret { id: id.into(), ..Default::default() };
        secret.spec.data = data.as_bytes().to_vec();
        secret.into()
    }

    fn container(secret: &str) -> Task {
        let secrets = vec![SecretReference { secret_id: secret.into(), ..Default::default() }];
        let configs = vec![ConfigReference { config_id: "c".into(), ..Default::default() }];
        let mut task = Task { id: "t".into(), ..Default::default() };
        task.spec.runtime =
            Some(task_spec::Runtime::Container(ContainerSpec { secrets, configs, ..Default::default() }));
        task
    }

    // 128, 129
    #[test]
    fn a_task_sees_what_it_refers_to() {
        let store = Store::default();
        let secrets = vec![secret("s", "shared"), secret("s.t", "own"), secret("other", "x")];
        store.apply(true, Changes { secrets, ..Default::default() });
        let task = container("s");
        assert_eq!(store.secret(&task, "s").unwrap().spec.data, b"own");
        assert_eq!(store.secret(&task, "s").unwrap().id, "s");
        let refused = store.secret(&task, "other").unwrap_err();
        assert_eq!(refused.to_string(), "task not authorized to access secret other");
        assert!(store.secret(&task, "s.t").unwrap_err().refused);
        let missing = store.config(&task, "c").unwrap_err();
        assert_eq!(missing.to_string(), "dependency not ready: config c not found");
        assert!(!missing.refused);
    }

    #[test]
    fn other_runtimes_see_their_references() {
        let store = Store::default();
        store.apply(true, Changes { secrets: vec![secret("s", "x")], ..Default::default() });
        let mut task = Task::default();
        assert!(!has_any(&task));
        task.spec.resource_references =
            vec![ResourceReference { resource_id: "s".into(), resource_type: ResourceType::Secret as i32 }];
        assert!(has_any(&task));
        assert!(store.secret(&task, "s").is_ok());
        assert!(store.config(&task, "s").unwrap_err().refused);
    }

    // 102
    #[test]
    fn removals_in_a_complete_set_mean_nothing() {
        let store = Store::default();
        let config: Shared<Config> = Config { id: "c".into(), ..Default::default() }.into();
        let changes = Changes {
            secrets: vec![secret("a", "x")],
            configs: vec![config],
            removed_secrets: vec!["a".into()],
            removed_configs: vec!["c".into()],
        };
        store.apply(true, changes);
        let task = container("a");
        assert!(store.secret(&task, "a").is_ok());
        assert!(store.config(&task, "c").is_ok());
    }

    #[test]
    fn a_complete_set_replaces_and_an_incremental_one_changes() {
        let store = Store::default();
        let complete = store.complete();
        assert!(!*complete.borrow());
        let put = |id: &str| Changes { secrets: vec![secret(id, "x")], ..Default::default() };
        store.apply(true, put("a"));
        assert!(*complete.borrow());
        store.apply(false, put("b"));
        assert!(store.secret(&container("a"), "a").is_ok());
        let removed = Changes { removed_secrets: vec!["a".into(), "unknown".into()], ..Default::default() };
        store.apply(false, removed);
        assert!(store.secret(&container("a"), "a").is_err());
        store.apply(true, put("c"));
        assert!(store.secret(&container("b"), "b").is_err());
        assert!(store.secret(&container("c"), "c").is_ok());
    }
}
