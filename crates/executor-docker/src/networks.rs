//! Networks of the cluster that each node makes for itself: made for the first task that needs one, removed after the last.
//!
//! Nothing of it is written down. What a network was made for stands in its labels, and the engine itself refuses to
//! remove one that a running container is attached to. A container that was made and not yet started does not count
//! there: should its network go away, it is made again when the container is started.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bollard::models::NetworkInspect;
use bollard::query_parameters::{InspectNetworkOptions, ListNetworksOptionsBuilder};
use swarm_agent::ControllerError;
use tokio::sync::Mutex;

use crate::client::Engine;
use crate::error;
use crate::spec::{NETWORK_ID_LABEL, NODE_ID_LABEL, PlannedNetwork};

/// The networks of one engine.
pub(crate) struct Networks {
    engine: Arc<Engine>,
    /// By name. The lock is held while the engine is asked, so that none is made twice, or removed while another task
    /// asks for it.
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Default)]
struct Known {
    /// Tasks that need it.
    users: HashSet<String>,
    /// The engine's id of a network that was made here. Those that take their set-up from elsewhere have no labels.
    made: Option<String>,
}

impl Networks {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Networks { engine, known: Mutex::default() }
    }

    /// Makes the network unless it is there, for this task.
    pub(crate) async fn ensure(
        &self,
        network: &PlannedNetwork,
        task_id: &str,
    ) -> Result<(), ControllerError> {
        let name = &network.request.name;
        let mut known = self.known.lock().await;
        let entry = known.entry(name.clone()).or_default();
        entry.users.insert(task_id.to_owned());
        if self.find(network).await? {
            return Ok(());
        }
        let failed = |error| self.failed(&format!("creating network {name} failed"), &error);
        let created = self.engine.docker.create_network(network.request.clone()).await.map_err(failed)?;
        if created.warning.is_empty() {
            tracing::info!(network.id = network.id, network.name = name, "network created");
            entry.made = Some(created.id);
            return Ok(());
        }
        // Older engines take a name twice, and say so here. Another daemon on this engine was quicker.
        self.engine.docker.remove_network(&created.id).await.map_err(failed)?;
        match self.find(network).await? {
            true => Ok(()),
            false => Err(ControllerError::Temporary(format!("the network {name} has just vanished"))),
        }
    }

    /// Whether the network is there. One of the same name that is none of the cluster's is an error.
    async fn find(&self, network: &PlannedNetwork) -> Result<bool, ControllerError> {
        let name = &network.request.name;
        match self.engine.docker.inspect_network(name, None::<InspectNetworkOptions>).await {
            Ok(found) if is_made_for(&found, network) => Ok(true),
            // A name may also be the beginning of an id.
            Ok(found) if found.name.as_ref() != Some(name) => Ok(false),
            Ok(found) => Err(ControllerError::Fatal(format!(
                "the engine has a network {name} already, {}, which is not the cluster's network {}",
                found.id.unwrap_or_default(),
                network.id
            ))),
            Err(error) if error::is_not_found(&error) => Ok(false),
            Err(error) => Err(self.failed("inspecting network failed", &error)),
        }
    }

    /// The task does not need the network any more; after the last one it is removed.
    pub(crate) async fn release(
        &self,
        network: &PlannedNetwork,
        task_id: &str,
    ) -> Result<(), ControllerError> {
        let name = &network.request.name;
        let mut known = self.known.lock().await;
        let entry = known.entry(name.clone()).or_default();
        entry.users.remove(task_id);
        if !entry.users.is_empty() {
            return Ok(());
        }
        // What was made with labels is known by them, also after a restart.
        let id = match (&entry.made, &network.request.labels) {
            (Some(id), _) => Some(id.clone()),
            (None, None) => None,
            (None, Some(_)) => {
                match self.engine.docker.inspect_network(name, None::<InspectNetworkOptions>).await {
                    Ok(found) if is_made_for(&found, network) => found.id,
                    Ok(_) => None,
                    Err(error) if error::is_not_found(&error) => None,
                    Err(error) => return Err(self.failed("inspecting network failed", &error)),
                }
            }
        };
        if let Some(id) = id {
            self.remove(&id).await?;
        }
        known.remove(name);
        Ok(())
    }

    /// Removes the networks that an earlier run of this node made and that nothing is attached to.
    pub(crate) async fn sweep(&self, node_id: &str) -> Result<(), ControllerError> {
        let known = self.known.lock().await;
        let own = format!("{NODE_ID_LABEL}={node_id}");
        let filters = HashMap::from([("label", vec![own.as_str()])]);
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        let found = self.engine.docker.list_networks(Some(options)).await;
        for network in found.map_err(|error| self.failed("removing old networks", &error))? {
            let labels = network.labels.unwrap_or_default();
            // The engine's filter is believed, and checked.
            if labels.get(NODE_ID_LABEL).map(String::as_str) != Some(node_id)
                || !labels.contains_key(NETWORK_ID_LABEL)
            {
                continue;
            }
            if let (Some(id), Some(name)) = (network.id, network.name)
                && !known.contains_key(&name)
            {
                self.remove(&id).await?;
            }
        }
        Ok(())
    }

    /// Removes a network, unless something is attached to it.
    async fn remove(&self, id: &str) -> Result<(), ControllerError> {
        match self.engine.docker.remove_network(id).await {
            Ok(()) => {
                tracing::info!(network = id, "network removed");
                Ok(())
            }
            // In use, or gone.
            Err(error) if matches!(error::status(&error), Some(403 | 404 | 409)) => Ok(()),
            Err(error) => match self.failed("removing network failed", &error) {
                ControllerError::Fatal(text) => Err(ControllerError::Temporary(text)),
                other => Err(other),
            },
        }
    }

    fn failed(&self, step: &str, error: &bollard::errors::Error) -> ControllerError {
        error::of_step(step, &self.engine.address, error)
    }
}

/// The engine's network is the one that is asked for.
fn is_made_for(found: &NetworkInspect, wanted: &PlannedNetwork) -> bool {
    let request = &wanted.request;
    if found.name.as_ref() != Some(&request.name) {
        return false;
    }
    match &request.config_from {
        // It has no labels; its origin says enough.
        Some(origin) => {
            found.driver == request.driver
                && found.config_from.as_ref().and_then(|from| from.network.as_ref())
                    == origin.network.as_ref()
        }
        None => found.labels.as_ref().and_then(|labels| labels.get(NETWORK_ID_LABEL)) == Some(&wanted.id),
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::{ConfigReference, NetworkCreateRequest};

    use super::*;

    #[test]
    fn a_network_is_known_by_its_label_or_by_its_origin() {
        let planned = |config_from: Option<&str>| PlannedNetwork {
            id: "n1".into(),
            request: NetworkCreateRequest {
                name: "lan".into(),
                driver: Some("macvlan".into()),
                config_from: config_from.map(|name| ConfigReference { network: Some(name.into()) }),
                ..Default::default()
            },
            endpoint: Default::default(),
        };
        let found = |label: &str, driver: &str, origin: &str| NetworkInspect {
            name: Some("lan".into()),
            driver: Some(driver.into()),
            labels: Some(HashMap::from([(NETWORK_ID_LABEL.into(), label.into())])),
            config_from: Some(ConfigReference { network: Some(origin.into()) }),
            ..Default::default()
        };
        let by_label = planned(None);
        assert!(is_made_for(&found("n1", "macvlan", ""), &by_label));
        assert!(!is_made_for(&found("n2", "macvlan", ""), &by_label));
        assert!(!is_made_for(&NetworkInspect { name: Some("lan".into()), ..Default::default() }, &by_label));
        let by_origin = planned(Some("setup"));
        assert!(is_made_for(&found("", "macvlan", "setup"), &by_origin));
        assert!(!is_made_for(&found("", "macvlan", "other"), &by_origin));
        assert!(!is_made_for(&found("n1", "bridge", "setup"), &by_origin));
        let other_name = NetworkInspect { name: Some("x".into()), ..found("n1", "macvlan", "setup") };
        assert!(!is_made_for(&other_name, &by_label) && !is_made_for(&other_name, &by_origin));
    }
}
