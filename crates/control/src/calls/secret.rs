//! Secrets. Their data never leaves through this service.

use swarm_api::v1::list_secrets_request::Filters;
use swarm_api::v1::{ResourceType, Secret, SecretSpec, Service, UpdateSecretRequest};
use swarm_api::{Shared, StoreObject as _, extensions, id, naming};
use swarm_plugins::SECRET_PROVIDER;
use swarm_store::Tables;

use super::{Control, Pending, version};
use crate::error::{Error, Result};
use crate::filter::{labels, union};
use crate::validate::name;

/// First size that is too large, in bytes.
const MAX: usize = 512_000;

impl Control {
    pub(crate) async fn create_secret(&self, spec: Option<SecretSpec>) -> Result<Shared<Secret>> {
        let spec = spec.ok_or_else(Error::invalid)?;
        check(&spec)?;
        self.driver(&spec).await?;
        let mut pending = Pending::new(Secret { id: id::random(), spec, ..Default::default() });
        let taken = |secret: &Secret| {
            Error::AlreadyExists(format!("secret {} already exists", secret.annotations().name))
        };
        let (secret, _) = self.update(|tx| pending.create(tx, taken)).await?;
        tracing::info!(secret.id = secret.id, secret.name = secret.annotations().name, "secret created");
        Ok(redacted(secret))
    }

    /// The driver that a secret names must be there, on this host.
    async fn driver(&self, spec: &SecretSpec) -> Result<()> {
        let Some(driver) = &spec.driver else { return Ok(()) };
        let missing = |why: &dyn std::fmt::Display| {
            Err(Error::argument(format!("secret driver plugin {} not found: {why}", driver.name)))
        };
        match &self.plugins {
            Some(plugins) => match plugins.find(&driver.name, SECRET_PROVIDER).await {
                Ok(_) => Ok(()),
                Err(error) => missing(&error),
            },
            None => missing(&"this manager looks for no plug-ins"),
        }
    }

    pub(crate) async fn get_secret(&self, id: &str) -> Result<Shared<Secret>> {
        given(id)?;
        let view = self.view().await?;
        view.secrets().get(id).cloned().map(redacted).ok_or_else(|| Error::not_found("secret", id))
    }

    pub(crate) async fn list_secrets(&self, filters: Option<Filters>) -> Result<Vec<Shared<Secret>>> {
        let view = self.view().await?;
        let filters = filters.unwrap_or_default();
        let secrets = union(view.secrets(), &filters.names, &filters.name_prefixes, &filters.id_prefixes);
        Ok(secrets
            .into_iter()
            .filter(|secret| !secret.internal && labels(&filters.labels, &secret.annotations().labels))
            .cloned()
            .map(redacted)
            .collect())
    }

    pub(crate) async fn update_secret(&self, request: UpdateSecretRequest) -> Result<Shared<Secret>> {
        let UpdateSecretRequest { secret_id, secret_version, spec } = request;
        let base = version(&secret_id, secret_version)?;
        let spec = spec.ok_or_else(Error::invalid)?;
        let (secret, _) = self
            .update(|tx| {
                let secret =
                    tx.secrets().get(&secret_id).ok_or_else(|| Error::not_found("secret", &secret_id))?;
                let same_data = spec.data.is_empty() || constant_time_eq(&spec.data, &secret.spec.data);
                if spec.annotations.name != secret.annotations().name || !same_data {
                    return Err(Error::argument("only updates to Labels are allowed"));
                }
                let mut secret = secret.clone();
                secret.meta.version = base;
                secret.spec.annotations.labels.clone_from(&spec.annotations.labels);
                Ok(tx.update(secret)?)
            })
            .await?;
        Ok(redacted(secret))
    }

    pub(crate) async fn remove_secret(&self, id: &str) -> Result<()> {
        given(id)?;
        self.update(|tx| {
            let secret =
                tx.secrets().get(id).ok_or_else(|| Error::Missing(format!("could not find secret {id}")))?;
            let users = users(tx, ResourceType::Secret, id, tx.services().by_secret(id));
            unused("secret", &secret.annotations().name, &users)?;
            tx.remove::<Secret>(id)?;
            Ok::<_, Error>(())
        })
        .await?;
        tracing::info!(secret.id = id, "secret removed");
        Ok(())
    }
}

fn check(spec: &SecretSpec) -> Result<()> {
    name::secret_or_config(&spec.annotations.name)?;
    match &spec.driver {
        Some(driver) if driver.name.is_empty() => Err(Error::argument("secret driver must have a name")),
        Some(_) => Ok(()),
        None if spec.data.is_empty() || spec.data.len() >= MAX => {
            Err(Error::argument(format!("secret data must be larger than 0 and less than {MAX} bytes")))
        }
        None => Ok(()),
    }
}

fn given(id: &str) -> Result<()> {
    if id.is_empty() { Err(Error::argument("secret ID must be provided")) } else { Ok(()) }
}

/// Without its data.
pub(crate) fn redacted(mut secret: Shared<Secret>) -> Shared<Secret> {
    if !secret.spec.data.is_empty() {
        // A copy of everything but the data, so that the data is not even copied.
        secret = Secret {
            id: secret.id.clone(),
            meta: secret.meta,
            spec: SecretSpec {
                annotations: secret.spec.annotations.clone(),
                data: Vec::new(),
                templating: secret.spec.templating.clone(),
                driver: secret.spec.driver.clone(),
            },
            internal: secret.internal,
        }
        .into();
    }
    secret
}

fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// Names of the services that refer to a secret or config: containers through the index (`indexed`), native
/// processes by their resource references.
pub(super) fn users<'t>(
    tables: &'t Tables,
    kind: ResourceType,
    id: &str,
    indexed: impl Iterator<Item = &'t Shared<Service>>,
) -> Vec<&'t str> {
    let processes = tables.services().by_runtime(extensions::PROCESS_RUNTIME).filter(|service| {
        let references = &service.spec.task.resource_references;
        debug_assert!(naming::runtime(service.spec.task.runtime.as_ref()).is_some());
        references.iter().any(|r| r.resource_type() == kind && r.resource_id == id)
    });
    let mut names: Vec<&str> = indexed.chain(processes).map(|s| s.annotations().name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Refuses the removal of what services use.
pub(super) fn unused(kind: &str, name: &str, users: &[&str]) -> Result<()> {
    match users {
        [] => Ok(()),
        [user] => Err(Error::argument(format!("{kind} '{name}' is in use by the following service: {user}"))),
        _ => Err(Error::argument(format!(
            "{kind} '{name}' is in use by the following services: {}",
            users.join(", ")
        ))),
    }
}
