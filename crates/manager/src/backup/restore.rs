//! A new manager, and with it a new raft group, out of a backup.
//!
//! Objects keep their ids. Nothing that the old cluster could still do may be mistaken for the new one's: the raft id
//! is new and all old ones count as removed, the log begins above every version in the backup, join tokens are new, and
//! so are the network keys, which the first leader makes.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use swarm_api::v1::{
    Certificate, Cluster, IssuanceStatus, Meta, Node, NodeRole, NodeSpec, RaftMember, StoreSnapshot, Version,
    issuance_status, node_spec,
};
use swarm_api::{Shared, StoreObject as _, duration, id};
use swarm_pki::{Credentials, DEFAULT_NODE_EXPIRY, JoinToken, Kek, KekChange, KeyStore, NodeSubject, RootCa};
use swarm_raft::RaftNode;
use swarm_raft::storage::Position;

use super::Backup;
use crate::{Error, disk_keys};

/// What the node needs to know of its restored manager.
pub struct Restored {
    /// What its key file is encrypted with, if managers lock themselves.
    pub unlock_key: Option<Kek>,
}

impl std::fmt::Debug for Restored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restored").finish_non_exhaustive()
    }
}

/// Whether a manager can begin from a backup.
///
/// # Errors
/// What it lacks.
pub fn check(backup: &Backup) -> Result<(), Error> {
    let cluster = backup.store.clusters.first().ok_or(Error::Restore("it holds no cluster"))?;
    match cluster.root_ca.ca_key.is_empty() {
        true => Err(Error::Restore(
            "it does not hold the key of the CA, which a new manager's certificate needs: the cluster used an external CA",
        )),
        false => Ok(()),
    }
}

/// Writes certificates and a raft log into a state directory that has neither.
///
/// # Errors
/// A backup without a cluster or without the key that signs certificates; any of the file system's.
pub fn restore(
    backup: &Backup,
    state_dir: &Path,
    keys: &Arc<KeyStore>,
    addr: &str,
    now: SystemTime,
) -> Result<Restored, Error> {
    check(backup)?;
    let Backup { info, membership, .. } = backup;
    let mut store = backup.store.clone();
    let index = newest_version(&store).max(info.index) + 1;
    let cluster = store.clusters.first_mut().ok_or(Error::Restore("it holds no cluster"))?;
    let mut renewed = Cluster::clone(cluster);
    let root_ca = &mut renewed.root_ca;
    let root = RootCa::load(&root_ca.ca_cert, Some((&root_ca.ca_cert, &root_ca.ca_key)), &[], now)?;
    let token = || JoinToken::generate(root.digest(), renewed.fips).expose().to_owned();
    (root_ca.join_tokens.worker, root_ca.join_tokens.manager) = (token(), token());
    renewed.network_bootstrap_keys.clear();
    renewed.meta.version = Version { index };
    let (unlock_key, _) = disk_keys::unlock_key(&renewed);

    let subject =
        NodeSubject { node_id: id::random(), role: NodeRole::Manager, organization: renewed.id.clone() };
    let expiry = renewed.spec.ca_config.node_cert_expiry.as_ref();
    let expiry = expiry.map_or(DEFAULT_NODE_EXPIRY, duration::to_std);
    let credentials = Credentials::issue(&root, &subject, expiry, now)?;
    let time = Some(now.into());
    let meta = Meta { version: Version { index }, created_at: time, updated_at: time };
    store.nodes.push(node(&subject.node_id, meta, renewed.vxlanudp_port).into());
    *cluster = Shared::from(renewed);

    keys.save_root(&root)?;
    keys.save(credentials.certificate_pem(), credentials.key(), KekChange::Set(unlock_key.clone(), index))?;
    let sealer = Arc::new(disk_keys::sealer(keys, state_dir)?);
    let config = swarm_raft::Config::new(&subject.node_id, addr, state_dir, sealer);
    let members = membership.members.iter().map(|member: &RaftMember| member.raft_id);
    let removed = members.chain(membership.removed.iter().copied()).collect();
    RaftNode::begin_from(&config, Position { index, term: info.term + 1 }, removed, store)?;
    Ok(Restored { unlock_key })
}

/// The new manager's own node, a member from the start.
fn node(node_id: &str, meta: Meta, vxlan_port: u32) -> Node {
    Node {
        id: node_id.to_owned(),
        meta,
        role: NodeRole::Manager as i32,
        spec: NodeSpec {
            desired_role: NodeRole::Manager as i32,
            membership: node_spec::Membership::Accepted as i32,
            availability: node_spec::Availability::Active as i32,
            ..NodeSpec::default()
        },
        certificate: Certificate {
            cn: node_id.to_owned(),
            role: NodeRole::Manager as i32,
            status: IssuanceStatus { state: issuance_status::State::Issued as i32, ..Default::default() },
            ..Certificate::default()
        },
        vxlanudp_port: vxlan_port,
        ..Node::default()
    }
}

/// The highest version of any object.
fn newest_version(store: &StoreSnapshot) -> u64 {
    macro_rules! newest {
        ($($table:ident),*) => {
            [$(store.$table.iter().map(|object| object.meta().version.index).max()),*]
        };
    }
    let all =
        newest!(nodes, services, networks, tasks, clusters, secrets, resources, extensions, configs, volumes);
    all.into_iter().flatten().max().unwrap_or(0)
}
