//! Networks. There is no call to update one.

use std::net::IpAddr;

use swarm_api::extensions::{self, PREFIX};
use swarm_api::network::{DEFAULT_IPAM, NODE_LOCAL, OVERLAY, PREDEFINED};
use swarm_api::v1::list_networks_request::Filters;
use swarm_api::v1::port_config::PublishMode;
use swarm_api::v1::{Driver, IpamConfig, Network, NetworkSpec, TaskState};
use swarm_api::{Shared, StoreObject as _, id};

use super::{Control, Pending, get, ingress};
use crate::error::{Error, Result};
use crate::filter::{Common, labels, pick};
use crate::validate::{name, size, subnet::Subnet};

/// What a plug-in must be able to do to have networks.
const NETWORK_PLUGIN: &str = "NetworkDriver";
/// What it must be able to do to give addresses.
const IPAM_PLUGIN: &str = "IpamDriver";

impl Control {
    pub(crate) async fn create_network(&self, spec: Option<NetworkSpec>) -> Result<Shared<Network>> {
        let spec = spec.ok_or_else(Error::invalid)?;
        self.check_network(&spec).await?;
        let waits = !spec.is_ingress() && !spec.is_node_local();
        let mut pending = Pending::new(Network { id: id::random(), spec, ..Default::default() });
        let (network, _) = self
            .update(|tx| {
                if pending.get().spec.is_ingress()
                    && let Some(other) = ingress(tx)
                {
                    return Err(Error::AlreadyExists(format!(
                        "ingress network ({}) is already present",
                        other.id
                    )));
                }
                pending.create(tx, |_| swarm_store::Error::NameConflict.into())
            })
            .await?;
        tracing::info!(network.id = network.id, network.name = network.annotations().name, "network created");
        if waits {
            tracing::warn!(
                network.id = network.id,
                "this version gives no addresses in networks of the driver {OVERLAY}: tasks on it will wait"
            );
        }
        Ok(network)
    }

    async fn check_network(&self, spec: &NetworkSpec) -> Result<()> {
        size("network", spec)?;
        if spec.attachable && spec.is_ingress() {
            return Err(Error::argument("ingress network cannot be attachable"));
        }
        name::dns(&spec.annotations.name)?;
        if spec.annotations.labels.contains_key(PREDEFINED) {
            return Err(Error::PermissionDenied(format!(
                "label {PREDEFINED} is for internally created predefined networks and cannot be applied by users"
            )));
        }
        if let Some(label) = spec.annotations.labels.keys().find(|label| label.starts_with(PREFIX)) {
            return Err(Error::argument(extensions::not_known(label)));
        }
        if spec.is_ingress() && spec.driver_config.as_ref().is_some_and(|driver| driver.name != OVERLAY) {
            return Err(Error::unimplemented(
                "only overlay driver is currently supported for ingress network",
            ));
        }
        let known = |name: &str| name == OVERLAY || NODE_LOCAL.contains(&name);
        self.check_driver(spec.driver_config.as_ref(), known, NETWORK_PLUGIN).await?;
        let Some(ipam) = &spec.ipam else { return Ok(()) };
        self.check_driver(ipam.driver.as_ref(), |name| name == DEFAULT_IPAM, IPAM_PLUGIN).await?;
        ipam.configs.iter().try_for_each(check_ipam)
    }

    /// The driver is one of ours. No plug-in serves: those of an engine's own kind can't be found from here.
    async fn check_driver(
        &self,
        driver: Option<&Driver>,
        known: impl Fn(&str) -> bool,
        kind: &str,
    ) -> Result<()> {
        let Some(Driver { name, .. }) = driver else { return Ok(()) };
        if name.is_empty() {
            return Err(Error::argument("driver name: if driver is specified name is required"));
        }
        if known(name) {
            return Ok(());
        }
        Err(Error::argument(match &self.plugins {
            None => format!("plugin {name} not supported"),
            Some(plugins) => match plugins.find(name, kind).await {
                Ok(_) => format!("legacy plugin {name} of type {kind} is not supported in swarm mode"),
                Err(error) => format!("error during lookup of plugin {name}: {error}"),
            },
        }))
    }

    pub(crate) async fn get_network(&self, id: &str) -> Result<Shared<Network>> {
        Ok(get::<Network>(&*self.view().await?, "network", id)?.clone())
    }

    pub(crate) async fn list_networks(&self, filters: Option<Filters>) -> Result<Vec<Shared<Network>>> {
        let view = self.view().await?;
        let filters = filters.unwrap_or_default();
        let common = Common {
            names: &filters.names,
            name_prefixes: &filters.name_prefixes,
            id_prefixes: &filters.id_prefixes,
        };
        let pass = |network: &Network| {
            common.matches(network) && labels(&filters.labels, &network.annotations().labels)
        };
        Ok(match common.candidates(view.networks()) {
            Some(found) => pick(found.into_vec(), pass),
            None => pick(view.networks().iter(), pass),
        })
    }

    pub(crate) async fn remove_network(&self, id: &str) -> Result<()> {
        self.update(|tx| {
            let network = get::<Network>(tx, "network", id)?;
            let annotations = network.annotations();
            if annotations.labels.get(PREDEFINED).is_some_and(|value| value == "true") {
                return Err(Error::precondition(format!(
                    "network {id} ({}) is a swarm predefined network and cannot be removed",
                    annotations.name
                )));
            }
            if network.spec.is_ingress() {
                let user = tx.services().iter().find(|service| {
                    let ports = service.spec.endpoint.iter().flat_map(|e| &e.ports);
                    ports.into_iter().any(|port| port.publish_mode() == PublishMode::Ingress)
                });
                if let Some(service) = user {
                    return Err(Error::precondition(format!(
                        "ingress network cannot be removed because service {} depends on it",
                        service.id
                    )));
                }
            } else if let Some(service) = tx.services().by_network(id).next() {
                return Err(Error::precondition(format!("network {id} is in use by service {}", service.id)));
            }
            let running = TaskState::Running as i32;
            let live = |task: &&Shared<swarm_api::v1::Task>| {
                task.desired_state <= running && task.status.state <= running
            };
            if let Some(task) = tx.tasks().by_network(id).find(live) {
                return Err(Error::precondition(format!("network {id} is in use by task {}", task.id)));
            }
            tx.remove::<Network>(id)?;
            Ok(())
        })
        .await?;
        tracing::info!(network.id = id, "network removed");
        Ok(())
    }
}

fn check_ipam(config: &IpamConfig) -> Result<()> {
    let refuse = |text: String| Error::argument(format!("ipam configuration: {text}"));
    let subnet =
        Subnet::parse(&config.subnet).ok_or_else(|| refuse(format!("invalid subnet {}", config.subnet)))?;
    if !config.range.is_empty() {
        let range =
            Subnet::parse(&config.range).ok_or_else(|| refuse(format!("invalid range {}", config.range)))?;
        if !subnet.contains(range.address()) {
            return Err(refuse(format!("subnet {} does not contain range {}", config.subnet, config.range)));
        }
    }
    if !config.gateway.is_empty() {
        let gateway: IpAddr =
            config.gateway.parse().map_err(|_| refuse(format!("invalid gateway {}", config.gateway)))?;
        if !subnet.contains(gateway) {
            return Err(refuse(format!(
                "subnet {} does not contain gateway {}",
                config.subnet, config.gateway
            )));
        }
    }
    Ok(())
}
