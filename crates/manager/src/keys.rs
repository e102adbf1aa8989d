//! The key manager: keys that the nodes' overlay networks use among themselves, kept in the cluster object.
//!
//! Three keys each for gossip and for IPsec, the oldest replaced every twelve hours. The clock beside them
//! counts up before a key takes it, so it is the last number given out.

use std::time::Duration;

use rand::Rng as _;
use swarm_api::v1::{Cluster, EncryptionKey, encryption_key};
use swarm_store::{Error, Store};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Subsystem of gossip keys.
pub const GOSSIP: &str = "networking:gossip";
/// Subsystem of IPsec keys.
pub const IPSEC: &str = "networking:ipsec";
/// Keys kept per subsystem.
pub const KEYS_PER_SUBSYSTEM: usize = 3;
/// Time between two rotations.
pub const ROTATION: Duration = Duration::from_secs(12 * 3600);
/// Length of a key in bytes.
const KEY_BYTES: usize = 16;

/// Makes the keys if there are none, then rotates them until cancelled.
pub async fn run(store: &Store, cancel: CancellationToken) {
    let mut rotate = false;
    loop {
        let work = store.update(|tx| {
            let Some(cluster) = tx.cluster().cloned() else { return Ok(false) };
            let mut cluster = cluster.into_inner();
            let changed = if rotate { rotate_keys(&mut cluster) } else { ensure_keys(&mut cluster) };
            if changed {
                tx.update::<Cluster>(cluster)?;
            }
            Ok::<bool, Error>(changed)
        });
        match work.await {
            Ok((true, _)) if rotate => info!("network keys rotated"),
            Ok(_) => {}
            Err(Error::LostLeadership | Error::Stopped) => return,
            Err(error) => warn!(%error, "network keys could not be written"),
        }
        rotate = true;
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(ROTATION) => {}
        }
    }
}

/// A key of each subsystem, several times, where the cluster has none at all.
fn ensure_keys(cluster: &mut Cluster) -> bool {
    if !cluster.network_bootstrap_keys.is_empty() {
        return false;
    }
    if cluster.encryption_key_lamport_clock == 0 {
        cluster.encryption_key_lamport_clock = u64::from(rand::rng().next_u32() as u16);
    }
    for subsystem in [GOSSIP, IPSEC] {
        for _ in 0..KEYS_PER_SUBSYSTEM {
            add_key(cluster, subsystem);
        }
    }
    true
}

fn rotate_keys(cluster: &mut Cluster) -> bool {
    for subsystem in [GOSSIP, IPSEC] {
        let keys = &mut cluster.network_bootstrap_keys;
        let held = keys.iter().filter(|k| k.subsystem == subsystem).count();
        if held >= KEYS_PER_SUBSYSTEM
            && let Some(oldest) = (0..keys.len())
                .filter(|i| keys[*i].subsystem == subsystem)
                .min_by_key(|i| keys[*i].lamport_time)
        {
            keys.remove(oldest);
        }
        add_key(cluster, subsystem);
    }
    // Readers of the contract take the first key of a subsystem for the oldest.
    cluster
        .network_bootstrap_keys
        .sort_by(|a, b| (&a.subsystem, a.lamport_time).cmp(&(&b.subsystem, b.lamport_time)));
    true
}

fn add_key(cluster: &mut Cluster, subsystem: &str) {
    cluster.encryption_key_lamport_clock += 1;
    let mut key = vec![0; KEY_BYTES];
    rand::rng().fill_bytes(&mut key);
    cluster.network_bootstrap_keys.push(EncryptionKey {
        subsystem: subsystem.to_owned(),
        algorithm: encryption_key::Algorithm::Aes128Gcm as i32,
        key,
        lamport_time: cluster.encryption_key_lamport_clock,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(cluster: &Cluster, subsystem: &str) -> Vec<u64> {
        let keys = cluster.network_bootstrap_keys.iter().filter(|k| k.subsystem == subsystem);
        keys.map(|k| k.lamport_time).collect()
    }

    #[test]
    fn a_rotation_replaces_the_oldest_key_of_each_subsystem() {
        let mut cluster = Cluster::default();
        assert!(ensure_keys(&mut cluster));
        assert!(!ensure_keys(&mut cluster));
        let before = (times(&cluster, GOSSIP), times(&cluster, IPSEC));
        assert_eq!((before.0.len(), before.1.len()), (3, 3));
        rotate_keys(&mut cluster);
        let after = (times(&cluster, GOSSIP), times(&cluster, IPSEC));
        assert_eq!(after.0[..2], before.0[1..]);
        assert_eq!(after.1[..2], before.1[1..]);
        assert_eq!(cluster.encryption_key_lamport_clock, *after.1.last().unwrap());
        assert!(cluster.network_bootstrap_keys.iter().all(|k| k.key.len() == 16));
    }
}
