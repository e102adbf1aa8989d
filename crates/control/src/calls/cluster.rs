//! The cluster object. What is secret in it never leaves through this service, except for the join tokens.

use prost_types::Duration;
use swarm_api::extensions::ClusterPolicy;
use swarm_api::v1::list_clusters_request::Filters;
use swarm_api::v1::{
    Cluster, ClusterSpec, EncryptionKey, KeyRotation, RootRotation, UpdateClusterRequest, encryption_key,
};

use swarm_api::{Shared, StoreObject as _, authorization, defaults};
use swarm_pki::{JoinToken, Kek, RootCa, RootDigest};
use swarm_store::Tx;

use super::{Control, get, node, version};
use crate::error::{Error, Result};
use crate::filter::{Common, labels, pick};
use crate::validate::duration;

/// Shortest validity of node certificates, in nanoseconds.
const MIN_CERT_EXPIRY: i64 = 3_600_000_000_000;
/// Addresses of networks where the cluster names no pool.
const DEFAULT_POOL: &str = "10.0.0.0/8";
/// Bits of a network's subnet where the cluster does not say.
const DEFAULT_SUBNET_SIZE: u32 = 24;
/// UDP port of the data path where the cluster does not say.
const DEFAULT_VXLAN_PORT: u32 = 4789;

impl Control {
    pub(crate) async fn get_cluster(&self, id: &str) -> Result<Shared<Cluster>> {
        let view = self.view().await?;
        Ok(redacted(get::<Cluster>(&view, "cluster", id)?).into())
    }

    pub(crate) async fn list_clusters(&self, filters: Option<Filters>) -> Result<Vec<Shared<Cluster>>> {
        let view = self.view().await?;
        let filters = filters.unwrap_or_default();
        let common = Common {
            names: &filters.names,
            name_prefixes: &filters.name_prefixes,
            id_prefixes: &filters.id_prefixes,
        };
        let pass = |cluster: &Cluster| {
            common.matches(cluster) && labels(&filters.labels, &cluster.annotations().labels)
        };
        let clusters = match common.candidates(view.clusters()) {
            Some(found) => pick(found.into_vec(), pass),
            None => pick(view.clusters().iter(), pass),
        };
        Ok(clusters.iter().map(|cluster| redacted(cluster).into()).collect())
    }

    pub(crate) async fn update_cluster(&self, request: UpdateClusterRequest) -> Result<Shared<Cluster>> {
        let UpdateClusterRequest { cluster_id, cluster_version, spec, rotation } = request;
        let base = version(&cluster_id, cluster_version)?;
        let spec = spec.ok_or_else(Error::invalid)?;
        check(&spec)?;
        let (cluster, _) = self
            .update(|tx| {
                let mut cluster = get::<Cluster>(tx, "cluster", &cluster_id)?.clone();
                check_ca(tx, &cluster, &spec)?;
                cluster.meta.version = base;
                cluster.spec = spec.clone();
                node::prune(&mut cluster, tx.now(), node::KEEP_EXPIRED);
                rotate_tokens(&mut cluster, &rotation);
                rotate_unlock_key(&mut cluster, rotation.manager_unlock_key);
                Ok::<_, Error>(tx.update(cluster)?)
            })
            .await?;
        tracing::info!(
            cluster.id = cluster.id,
            worker_token = rotation.worker_join_token,
            manager_token = rotation.manager_join_token,
            "cluster updated"
        );
        Ok(redacted(&cluster).into())
    }
}

fn check(spec: &ClusterSpec) -> Result<()> {
    // Tasks have a copy of its log driver.
    crate::validate::size("cluster", spec)?;
    let nanos = |duration: &Duration| duration::nanos(duration).map_err(|_| Error::invalid());
    if let Some(expiry) = &spec.ca_config.node_cert_expiry
        && nanos(expiry)? < MIN_CERT_EXPIRY
    {
        return Err(Error::argument("minimum certificate expiry time is: 1h0m0s"));
    }
    #[allow(deprecated)] // still checked, as peers do
    for policy in &spec.acceptance_policy.policies {
        if let Some(secret) = &policy.secret
            && !secret.alg.eq_ignore_ascii_case("bcrypt")
        {
            return Err(Error::argument(format!("hashing algorithm is not supported: {}", secret.alg)));
        }
    }
    if let Some(period) = &spec.dispatcher.heartbeat_period
        && nanos(period)? < 0
    {
        return Err(Error::argument("heartbeat time period cannot be a negative duration"));
    }
    if spec.annotations.name != defaults::CLUSTER_NAME {
        return Err(Error::argument("modification of cluster name is not allowed"));
    }
    ClusterPolicy::read(&spec.annotations.labels).map(drop).map_err(Error::argument)
}

/// The cluster's root can be used, and the update does not ask for another one: rotating roots and external
/// CAs are not available yet.
fn check_ca(tx: &Tx, cluster: &Cluster, spec: &ClusterSpec) -> Result<()> {
    let root = &cluster.root_ca;
    let signer = (!root.ca_key.is_empty()).then_some((root.ca_cert.as_slice(), root.ca_key.as_slice()));
    if let Err(error) = RootCa::load(&root.ca_cert, signer, &[], tx.now()) {
        tracing::error!(cluster.id, %error, "the cluster's root CA can't be used");
        return Err(Error::Internal("error loading cluster rootCA for update".into()));
    }
    let ca = &spec.ca_config;
    if !ca.signing_ca_key.is_empty() && ca.signing_ca_cert.is_empty() {
        return Err(Error::argument(
            "if a signing CA key is provided, the signing CA cert must also be provided",
        ));
    }
    if !ca.signing_ca_cert.is_empty() || ca.force_rotate != root.last_forced_rotation {
        return Err(Error::unimplemented("this manager can't rotate the root CA yet"));
    }
    if ca.external_cas != cluster.spec.ca_config.external_cas {
        return Err(Error::unimplemented("this manager can't use external CAs yet"));
    }
    Ok(())
}

fn rotate_tokens(cluster: &mut Cluster, rotation: &KeyRotation) {
    let digest = RootDigest::of(&cluster.root_ca.ca_cert);
    let token = || JoinToken::generate(digest, cluster.fips).expose().to_owned();
    let worker = rotation.worker_join_token.then(token);
    let manager = rotation.manager_join_token.then(token);
    let tokens = &mut cluster.root_ca.join_tokens;
    tokens.worker = worker.unwrap_or_else(|| std::mem::take(&mut tokens.worker));
    tokens.manager = manager.unwrap_or_else(|| std::mem::take(&mut tokens.manager));
}

/// Managers have an unlock key exactly while they lock themselves; those of other subsystems stay.
fn rotate_unlock_key(cluster: &mut Cluster, rotate: bool) {
    let ours = |key: &EncryptionKey| key.subsystem == authorization::MANAGER_OU;
    if !cluster.spec.encryption_config.auto_lock_managers {
        cluster.unlock_keys.retain(|key| !ours(key));
        return;
    }
    let has_one = cluster.unlock_keys.iter().any(ours);
    if has_one && !rotate {
        return;
    }
    let key = EncryptionKey {
        subsystem: authorization::MANAGER_OU.into(),
        algorithm: encryption_key::Algorithm::Aes128Gcm as i32,
        key: Kek::generate().expose().to_vec(),
        lamport_time: 0,
    };
    match cluster.unlock_keys.iter_mut().find(|key| ours(key)) {
        Some(old) => *old = key,
        None => cluster.unlock_keys.push(key),
    }
}

/// What is shown of the cluster. Signing certificate and key are left out together, so that writing back what
/// was read does not change the CA.
pub(crate) fn redacted(cluster: &Cluster) -> Cluster {
    let mut spec = cluster.spec.clone();
    spec.ca_config.signing_ca_cert.clear();
    spec.ca_config.signing_ca_key.clear();
    let mut root_ca = cluster.root_ca.clone();
    root_ca.ca_key.clear();
    if let Some(RootRotation { ca_key, .. }) = &mut root_ca.root_rotation {
        ca_key.clear();
    }
    let mut shown = Cluster {
        id: cluster.id.clone(),
        meta: cluster.meta,
        spec,
        root_ca,
        blacklisted_certificates: cluster.blacklisted_certificates.clone(),
        default_address_pool: cluster.default_address_pool.clone(),
        subnet_size: cluster.subnet_size,
        vxlanudp_port: cluster.vxlanudp_port,
        ..Default::default()
    };
    if shown.default_address_pool.is_empty() {
        shown.default_address_pool = vec![DEFAULT_POOL.into()];
        shown.subnet_size = DEFAULT_SUBNET_SIZE;
    }
    if shown.vxlanudp_port == 0 {
        shown.vxlanudp_port = DEFAULT_VXLAN_PORT;
    }
    shown
}
