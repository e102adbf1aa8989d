//! Configs: as secrets, but their data is shown.

use swarm_api::v1::list_configs_request::Filters;
use swarm_api::v1::{Config, ConfigSpec, ResourceType, UpdateConfigRequest};
use swarm_api::{Shared, StoreObject as _, id};

use super::secret::{unused, users};
use super::{Control, Pending, version};
use crate::error::{Error, Result};
use crate::filter::{labels, union};
use crate::validate::name;

/// First size that is too large, in bytes.
const MAX: usize = 1_024_000;

impl Control {
    pub(crate) async fn create_config(&self, spec: Option<ConfigSpec>) -> Result<Shared<Config>> {
        let spec = spec.ok_or_else(Error::invalid)?;
        name::secret_or_config(&spec.annotations.name)?;
        if spec.data.is_empty() || spec.data.len() >= MAX {
            return Err(Error::argument(format!(
                "config data must be larger than 0 and less than {MAX} bytes"
            )));
        }
        let mut pending = Pending::new(Config { id: id::random(), spec, ..Default::default() });
        let taken = |config: &Config| {
            Error::AlreadyExists(format!("config {} already exists", config.annotations().name))
        };
        let (config, _) = self.update(|tx| pending.create(tx, taken)).await?;
        tracing::info!(config.id = config.id, config.name = config.annotations().name, "config created");
        Ok(config)
    }

    pub(crate) async fn get_config(&self, id: &str) -> Result<Shared<Config>> {
        given(id)?;
        let view = self.view().await?;
        view.configs().get(id).cloned().ok_or_else(|| Error::not_found("config", id))
    }

    pub(crate) async fn list_configs(&self, filters: Option<Filters>) -> Result<Vec<Shared<Config>>> {
        let view = self.view().await?;
        let filters = filters.unwrap_or_default();
        let configs = union(view.configs(), &filters.names, &filters.name_prefixes, &filters.id_prefixes);
        let pass = |config: &&Shared<Config>| labels(&filters.labels, &config.annotations().labels);
        Ok(configs.into_iter().filter(pass).cloned().collect())
    }

    pub(crate) async fn update_config(&self, request: UpdateConfigRequest) -> Result<Shared<Config>> {
        let UpdateConfigRequest { config_id, config_version, spec } = request;
        let base = version(&config_id, config_version)?;
        let spec = spec.ok_or_else(Error::invalid)?;
        let (config, _) = self
            .update(|tx| {
                let config =
                    tx.configs().get(&config_id).ok_or_else(|| Error::not_found("config", &config_id))?;
                let same_data = spec.data.is_empty() || spec.data == config.spec.data;
                if spec.annotations.name != config.annotations().name || !same_data {
                    return Err(Error::argument("only updates to Labels are allowed"));
                }
                let mut config = config.clone();
                config.meta.version = base;
                config.spec.annotations.labels.clone_from(&spec.annotations.labels);
                Ok(tx.update(config)?)
            })
            .await?;
        Ok(config)
    }

    pub(crate) async fn remove_config(&self, id: &str) -> Result<()> {
        given(id)?;
        self.update(|tx| {
            let config =
                tx.configs().get(id).ok_or_else(|| Error::Missing(format!("could not find config {id}")))?;
            let users = users(tx, ResourceType::Config, id, tx.services().by_config(id));
            unused("config", &config.annotations().name, &users)?;
            tx.remove::<Config>(id)?;
            Ok::<_, Error>(())
        })
        .await?;
        tracing::info!(config.id = id, "config removed");
        Ok(())
    }
}

fn given(id: &str) -> Result<()> {
    if id.is_empty() { Err(Error::argument("config ID must be provided")) } else { Ok(()) }
}
