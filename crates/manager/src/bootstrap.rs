//! What the first leader of a new cluster writes: the cluster object, its own node, the networks.
//!
//! All of it is one transaction, run each time a manager becomes leader; on any but a fresh cluster it changes nothing.

use prost_types::Duration as WireDuration;
use swarm_api::authorization::MANAGER_OU;
use swarm_api::network::PREDEFINED;
use swarm_api::v1::{
    CaConfig, Certificate, Cluster, ClusterSpec, DispatcherConfig, Driver, EncryptionConfig, EncryptionKey,
    IpamOptions, IssuanceStatus, JoinTokens, Network, NetworkSpec, Node, NodeRole, NodeSpec,
    OrchestrationConfig, RaftConfig, RootCa, encryption_key, issuance_status, node_spec,
};
use swarm_api::{Shared, defaults, duration, id};
use swarm_pki::Kek;
use swarm_store::{Error, Store, Tx};
use tracing::info;

/// What the first leader needs to know of itself.
pub struct Bootstrap {
    /// Organization of the certificates: the cluster's id.
    pub cluster_id: String,
    /// The leader's node id.
    pub node_id: String,
    /// Availability of the leader's own node.
    pub availability: node_spec::Availability,
    /// Trust root, PEM: the exact bytes whose digest is in the tokens.
    pub ca_cert: Vec<u8>,
    /// Signing key, PEM; empty if this node does not hold it.
    pub ca_key: Vec<u8>,
    /// `sha256:<hex>` of the root.
    pub ca_cert_hash: String,
    /// Fresh join token for workers.
    pub worker_token: String,
    /// Fresh join token for managers.
    pub manager_token: String,
    /// What managers lock themselves with, if they shall.
    pub unlock_key: Option<Kek>,
    /// Raft ticks as this process was started with.
    pub heartbeat_tick: u32,
    /// See `heartbeat_tick`.
    pub election_tick: u32,
    /// Networks that every engine of this platform has: name and driver.
    pub predefined_networks: Vec<(String, String)>,
}

impl std::fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bootstrap")
            .field("cluster_id", &self.cluster_id)
            .field("node_id", &self.node_id)
            .finish_non_exhaustive()
    }
}

impl Bootstrap {
    /// Writes what is missing. Harmless on a cluster that has it all.
    ///
    /// # Errors
    /// Those of [`Store::update`].
    pub async fn run(&self, store: &Store) -> Result<(), Error> {
        let (fresh, _) = store.update(|tx| self.write(tx)).await?;
        if fresh {
            info!(cluster.id = %self.cluster_id, node.id = %self.node_id, "Creating default ingress network");
        }
        Ok(())
    }

    /// Returns whether the cluster is fresh.
    fn write(&self, tx: &mut Tx) -> Result<bool, Error> {
        if tx.cluster().is_none() {
            tx.create(self.cluster())?;
        }
        let fresh = tx.nodes().get(&self.node_id).is_none();
        if fresh {
            let vxlan_port = tx.cluster().map_or(0, |c| c.vxlanudp_port);
            tx.create(self.node(vxlan_port))?;
            if !tx.networks().iter().any(|n| n.spec.is_ingress()) {
                tx.create(ingress())?;
            }
        }
        for (name, driver) in &self.predefined_networks {
            if tx.networks().by_name(name).next().is_none() {
                tx.create(predefined(name, driver))?;
            }
        }
        Ok(fresh)
    }

    fn cluster(&self) -> Cluster {
        let mut spec = ClusterSpec {
            orchestration: OrchestrationConfig {
                task_history_retention_limit: defaults::TASK_HISTORY_RETENTION_LIMIT,
            },
            raft: RaftConfig {
                snapshot_interval: defaults::SNAPSHOT_INTERVAL,
                log_entries_for_slow_followers: defaults::LOG_ENTRIES_FOR_SLOW_FOLLOWERS,
                heartbeat_tick: self.heartbeat_tick,
                election_tick: self.election_tick,
                ..Default::default()
            },
            dispatcher: DispatcherConfig { heartbeat_period: Some(wire(defaults::HEARTBEAT_PERIOD)) },
            ca_config: CaConfig {
                node_cert_expiry: Some(wire(defaults::NODE_CERT_EXPIRY)),
                ..Default::default()
            },
            encryption_config: EncryptionConfig { auto_lock_managers: self.unlock_key.is_some() },
            ..Default::default()
        };
        spec.annotations.name = defaults::CLUSTER_NAME.to_owned();
        Cluster {
            id: self.cluster_id.clone(),
            spec,
            root_ca: RootCa {
                ca_key: self.ca_key.clone(),
                ca_cert: self.ca_cert.clone(),
                ca_cert_hash: self.ca_cert_hash.clone(),
                join_tokens: JoinTokens {
                    worker: self.worker_token.clone(),
                    manager: self.manager_token.clone(),
                },
                ..Default::default()
            },
            unlock_keys: self.unlock_key.iter().map(unlock_key).collect(),
            ..Default::default()
        }
    }

    /// The observed role is left unset, as in the original: the role manager raises it moments later.
    fn node(&self, vxlan_port: u32) -> Node {
        Node {
            id: self.node_id.clone(),
            spec: NodeSpec {
                desired_role: NodeRole::Manager as i32,
                membership: node_spec::Membership::Accepted as i32,
                availability: self.availability as i32,
                ..Default::default()
            },
            certificate: Certificate {
                cn: self.node_id.clone(),
                role: NodeRole::Manager as i32,
                status: IssuanceStatus { state: issuance_status::State::Issued as i32, ..Default::default() },
                ..Default::default()
            },
            vxlanudp_port: vxlan_port,
            ..Default::default()
        }
    }
}

fn unlock_key(kek: &Kek) -> EncryptionKey {
    EncryptionKey {
        subsystem: MANAGER_OU.to_owned(),
        algorithm: encryption_key::Algorithm::Aes128Gcm as i32,
        key: kek.expose().to_vec(),
        lamport_time: 0,
    }
}

fn wire(d: std::time::Duration) -> WireDuration {
    duration::from_std(d)
}

fn ingress() -> Shared<Network> {
    let mut spec = NetworkSpec {
        ingress: true,
        driver_config: Some(Driver::default()),
        ipam: Some(IpamOptions { driver: Some(Driver::default()), configs: Vec::new() }),
        ..Default::default()
    };
    spec.annotations.name = "ingress".to_owned();
    Network { id: id::random(), spec, ..Default::default() }.into()
}

fn predefined(name: &str, driver: &str) -> Shared<Network> {
    let mut spec = NetworkSpec {
        driver_config: Some(Driver { name: driver.to_owned(), ..Default::default() }),
        ..Default::default()
    };
    spec.annotations.name = name.to_owned();
    spec.annotations.labels.insert(PREDEFINED.to_owned(), "true".to_owned());
    Network { id: id::random(), spec, ..Default::default() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bootstrap() -> Bootstrap {
        Bootstrap {
            cluster_id: "cluster".into(),
            node_id: "node".into(),
            availability: node_spec::Availability::Active,
            ca_cert: b"cert".to_vec(),
            ca_key: b"key".to_vec(),
            ca_cert_hash: "sha256:00".into(),
            worker_token: "w".into(),
            manager_token: "m".into(),
            unlock_key: None,
            heartbeat_tick: 1,
            election_tick: 10,
            predefined_networks: vec![("bridge".into(), "bridge".into()), ("host".into(), "host".into())],
        }
    }

    #[tokio::test]
    async fn a_fresh_cluster_gets_its_objects_and_a_second_leader_adds_nothing() {
        let store = Store::local();
        bootstrap().run(&store).await.unwrap();
        let first = store.view();
        let cluster = first.cluster().unwrap();
        assert_eq!(cluster.id, "cluster");
        assert_eq!(cluster.spec.orchestration.task_history_retention_limit, 5);
        assert_eq!(cluster.root_ca.join_tokens.worker, "w");
        let node = first.nodes().get("node").unwrap();
        assert_eq!((node.spec.desired_role(), node.role()), (NodeRole::Manager, NodeRole::Worker));
        let mut networks: Vec<_> =
            first.networks().iter().map(|n| n.spec.annotations.name.as_str()).collect();
        networks.sort_unstable();
        assert_eq!(networks, ["bridge", "host", "ingress"]);

        bootstrap().run(&store).await.unwrap();
        assert_eq!(store.view().index(), first.index());
    }

    #[tokio::test]
    async fn an_ingress_network_of_an_old_cluster_is_the_only_one() {
        let store = Store::local();
        let mut old = Network { id: "old".into(), ..Network::default() };
        old.spec.annotations.name = "ingress".to_owned();
        old.spec.annotations.labels.insert("com.docker.swarm.internal".to_owned(), String::new());
        store.update(|tx| tx.create(old.clone()).map(drop)).await.unwrap();
        bootstrap().run(&store).await.unwrap();
        let view = store.view();
        let ingress: Vec<_> = view.networks().iter().filter(|n| n.spec.is_ingress()).collect();
        assert_eq!(ingress.iter().map(|n| n.id.as_str()).collect::<Vec<_>>(), ["old"]);
    }

    #[tokio::test]
    async fn an_ingress_network_that_was_removed_stays_removed() {
        let store = Store::local();
        bootstrap().run(&store).await.unwrap();
        let id = store.view().networks().by_name("ingress").next().unwrap().id.clone();
        store.update(|tx| tx.remove::<Network>(&id).map(drop)).await.unwrap();
        bootstrap().run(&store).await.unwrap();
        assert!(store.view().networks().by_name("ingress").next().is_none());
    }
}
