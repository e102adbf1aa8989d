//! Networks. There is no call to update one.

use std::net::IpAddr;

use swarm_api::v1::list_networks_request::Filters;
use swarm_api::v1::port_config::PublishMode;
use swarm_api::v1::{Driver, IpamConfig, Network, NetworkSpec, TaskState};
use swarm_api::{Shared, StoreObject as _, id};

use super::{Control, Pending, get, ingress, is_ingress};
use crate::error::{Error, Result};
use crate::filter::{Common, labels, pick};
use crate::validate::{name, subnet::Subnet};

/// Label of the networks that the managers make themselves.
const PREDEFINED: &str = "com.docker.swarm.predefined";
/// The driver of networks that span nodes.
const OVERLAY: &str = "overlay";

impl Control {
    pub(crate) async fn create_network(&self, spec: Option<NetworkSpec>) -> Result<Shared<Network>> {
        let spec = spec.ok_or_else(Error::invalid)?;
        self.check_network(&spec)?;
        let mut pending = Pending::new(Network { id: id::random(), spec, ..Default::default() });
        let (network, _) = self
            .update(|tx| {
                if pending.get().spec.ingress
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
        Ok(network)
    }

    fn check_network(&self, spec: &NetworkSpec) -> Result<()> {
        if spec.attachable && spec.ingress {
            return Err(Error::argument("ingress network cannot be attachable"));
        }
        name::dns(&spec.annotations.name)?;
        if spec.annotations.labels.contains_key(PREDEFINED) {
            return Err(Error::PermissionDenied(format!(
                "label {PREDEFINED} is for internally created predefined networks and cannot be applied by users"
            )));
        }
        if spec.ingress && spec.driver_config.as_ref().is_some_and(|driver| driver.name != OVERLAY) {
            return Err(Error::unimplemented(
                "only overlay driver is currently supported for ingress network",
            ));
        }
        self.check_driver(spec.driver_config.as_ref(), false)?;
        let Some(ipam) = &spec.ipam else { return Ok(()) };
        self.check_driver(ipam.driver.as_ref(), true)?;
        ipam.configs.iter().try_for_each(check_ipam)
    }

    fn check_driver(&self, driver: Option<&Driver>, ipam: bool) -> Result<()> {
        match driver {
            None => Ok(()),
            Some(driver) if driver.name.is_empty() => {
                Err(Error::argument("driver name: if driver is specified name is required"))
            }
            Some(driver) if ipam && driver.name == "default" && !self.drivers.is_empty() => Ok(()),
            Some(driver) if !ipam && self.drivers.contains(&driver.name) => Ok(()),
            Some(driver) => Err(Error::argument(format!("plugin {} not supported", driver.name))),
        }
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
            if is_ingress(network) {
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
