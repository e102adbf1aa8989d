//! The managers that a node knows, and which of them to talk to.

use std::collections::BTreeMap;

use async_trait::async_trait;
use parking_lot::Mutex;
use rand::{Rng, RngExt as _};
use swarm_api::v1::{Peer, WeightedPeer};
use tokio::sync::watch;
use tonic::transport::Channel;

/// How to reach a manager. The node brings the TLS identity.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// A channel to the manager that runs in this very process, if one does. It is preferred to all others.
    fn local(&self) -> Option<Channel>;

    /// Connects to a manager, with the node's identity as of now. The text of an error is for people.
    async fn connect(&self, manager: &Peer) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>>;

    /// A connection that nothing else uses: to a manager, or to the one in this process for `None`.
    async fn apart(
        &self,
        manager: Option<&Peer>,
    ) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
        match manager {
            Some(manager) => self.connect(manager).await,
            None => self.local().ok_or_else(|| "no manager runs here any more".into()),
        }
    }
}

/// A bad experience with a manager.
pub(crate) const FAILED: i64 = -10;

/// Known managers with weights: what was observed of them, halved with each new observation.
#[derive(Debug, Default)]
pub struct Remotes {
    peers: Mutex<BTreeMap<(String, String), i64>>,
    changed: watch::Sender<()>,
}

impl Remotes {
    /// Managers known from the beginning, all of the same weight.
    pub fn new(peers: impl IntoIterator<Item = Peer>) -> Remotes {
        let remotes = Remotes::default();
        remotes.peers.lock().extend(peers.into_iter().map(|peer| (key(&peer), 0)));
        remotes
    }

    /// Every known manager with its weight, for the node to keep on disk.
    pub fn peers(&self) -> Vec<WeightedPeer> {
        let peers = self.peers.lock();
        peers.iter().map(|(key, weight)| WeightedPeer { peer: Some(peer(key)), weight: *weight }).collect()
    }

    /// Notifies of every change in the set of managers (not of their weights).
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Takes an experience with a manager into account, good or bad; a new manager becomes known.
    pub fn observe(&self, manager: &Peer, observed: i64) {
        const LIMIT: i64 = 256;
        let mut peers = self.peers.lock();
        let before = peers.len();
        let weight = peers.entry(key(manager)).or_insert(0);
        // ceil((observed + old) / 2)
        *weight = (observed.clamp(-LIMIT, LIMIT) + *weight + 1).div_euclid(2).clamp(-LIMIT, LIMIT);
        if peers.len() != before {
            self.changed.send_replace(());
        }
    }

    /// Takes the complete list that a manager sent: those in it are observed, all others forgotten. Entries
    /// without an address are skipped, and a list without any is not believed.
    pub fn replace(&self, list: &[WeightedPeer]) {
        let list: Vec<(&Peer, i64)> = list
            .iter()
            .filter_map(|entry| Some((entry.peer.as_ref()?, entry.weight)))
            .filter(|(peer, _)| !peer.addr.is_empty())
            .collect();
        if list.is_empty() {
            return;
        }
        for (peer, weight) in &list {
            self.observe(peer, *weight);
        }
        let mut peers = self.peers.lock();
        let before = peers.len();
        peers.retain(|known, _| list.iter().any(|(peer, _)| key(peer) == *known));
        if peers.len() != before {
            self.changed.send_replace(());
        }
    }

    /// Forgets a manager.
    pub fn remove(&self, manager: &Peer) {
        if self.peers.lock().remove(&key(manager)).is_some() {
            self.changed.send_replace(());
        }
    }

    /// A manager at random, better ones more often; `None` if none is known.
    pub fn select(&self) -> Option<Peer> {
        self.select_with(&mut rand::rng())
    }

    fn select_with(&self, rng: &mut impl Rng) -> Option<Peer> {
        let chance = |weight: &i64| (*weight).max(0) as f64 + 0.001;
        let peers = self.peers.lock();
        let total: f64 = peers.values().map(chance).sum();
        let mut left = rng.random_range(0.0..1.0) * total;
        for (key, weight) in peers.iter() {
            left -= chance(weight);
            if left < 0.0 {
                return Some(peer(key));
            }
        }
        peers.keys().next_back().map(peer)
    }
}

fn key(peer: &Peer) -> (String, String) {
    (peer.node_id.clone(), peer.addr.clone())
}

fn peer(key: &(String, String)) -> Peer {
    Peer { node_id: key.0.clone(), addr: key.1.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(id: &str) -> Peer {
        Peer { node_id: id.into(), addr: format!("{id}:1") }
    }

    fn weights(remotes: &Remotes) -> Vec<(String, i64)> {
        remotes.peers().into_iter().map(|p| (p.peer.unwrap().node_id, p.weight)).collect()
    }

    #[test]
    fn observations_are_averaged_and_bounded() {
        let remotes = Remotes::new([named("a")]);
        for (observed, expected) in [(10, 5), (10, 8), (-10, -1), (-10, -5), (100_000, 126)] {
            remotes.observe(&named("a"), observed);
            assert_eq!(weights(&remotes), [("a".to_owned(), expected)]);
        }
    }

    #[test]
    fn better_managers_are_chosen_more_often_and_bad_ones_still_sometimes() {
        let remotes = Remotes::new([named("good"), named("bad")]);
        assert!(Remotes::default().select().is_none());
        remotes.observe(&named("good"), 2);
        remotes.observe(&named("bad"), -10);
        let mut bad = 0;
        for _ in 0..100_000 {
            bad += u32::from(remotes.select().unwrap().node_id == "bad");
        }
        assert!(bad > 20 && bad < 300, "{bad} of 100000, expected about 100");
    }

    #[test]
    fn a_list_replaces_what_was_known() {
        let remotes = Remotes::new([named("a"), named("b")]);
        let mut changes = remotes.changes();
        changes.mark_unchanged();
        let entry = |peer: Peer| WeightedPeer { peer: Some(peer), weight: 10 };
        remotes.replace(&[entry(named("b")), entry(named("c")), entry(Peer::default())]);
        assert_eq!(weights(&remotes), [("b".to_owned(), 5), ("c".to_owned(), 5)]);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        remotes.replace(&[entry(named("b")), entry(named("c"))]);
        assert!(!changes.has_changed().unwrap());
        remotes.replace(&[]);
        assert_eq!(weights(&remotes).len(), 2, "nobody is left without managers");
    }
}
