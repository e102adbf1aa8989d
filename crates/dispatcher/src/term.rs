//! What lives from becoming leader to ceasing to be. A new term of leadership starts with nothing in memory;
//! streams of an old one hold on to it and find it closed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use swarm_api::v1::{EncryptionKey, Peer, WeightedPeer};
use swarm_store::{Store, View};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::config::Timings;
use crate::driver_secrets::Drivers;
use crate::error::status;
use crate::intake::Intake;
use crate::registry::Registry;

/// Weight of every manager in session messages: agents have no reason to prefer one.
const MANAGER_WEIGHT: i64 = 10;

/// The part of a session message that is the same for all nodes.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Common {
    pub(crate) managers: Vec<WeightedPeer>,
    pub(crate) keys: Vec<EncryptionKey>,
    pub(crate) root_ca: Vec<u8>,
}

pub(crate) struct Term {
    pub(crate) store: Arc<Store>,
    pub(crate) timings: Timings,
    pub(crate) intake: Intake,
    pub(crate) drivers: Option<Drivers>,
    /// An earlier timer was set than the run loop waits for.
    pub(crate) timer_set: Notify,
    pub(crate) closed: CancellationToken,
    state: Mutex<State>,
}

/// Everything that calls, commits and timers share.
pub(crate) struct State {
    pub(crate) registry: Registry,
    /// The view up to which commits were routed: a stream that begins with it misses nothing.
    pub(crate) routed: View,
    /// Volumes that have a publish status for a node.
    pub(crate) volumes: HashMap<String, BTreeSet<String>>,
    pub(crate) common: Arc<Common>,
    /// Base period of heartbeats.
    pub(crate) period: Duration,
}

impl Term {
    pub(crate) fn new(
        store: Arc<Store>,
        timings: Timings,
        drivers: Option<Drivers>,
        view: View,
        managers: &[Peer],
    ) -> Term {
        let now = Instant::now();
        let period = timings.period(view.cluster().map(|c| &**c));
        let mut registry = Registry::default();
        for node in view.nodes().iter() {
            if node.status.state() == swarm_api::v1::node_status::State::Down {
                registry.expect_orphans(node.id.as_str().into(), timings.orphan_after, now);
            } else {
                registry.expect(&node.id, timings.draw(period) * timings.unknown_grace_periods, now);
            }
        }
        let mut volumes: HashMap<String, BTreeSet<String>> = HashMap::new();
        for volume in view.volumes().iter() {
            for node_id in crate::assignments::published_to(volume) {
                volumes.entry(node_id.to_owned()).or_default().insert(volume.id.clone());
            }
        }
        let common = Arc::new(Common::of(&view, managers));
        Term {
            store,
            timings,
            intake: Intake::default(),
            drivers,
            timer_set: Notify::new(),
            closed: CancellationToken::new(),
            state: Mutex::new(State { registry, routed: view, volumes, common, period }),
        }
    }

    /// Runs `f` on the shared state; refused once the term has ended.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut State) -> Result<R, Status>) -> Result<R, Status> {
        let mut state = self.state.lock();
        // Under the lock: whoever closes the term takes it too, so nothing is registered after that.
        if self.closed.is_cancelled() {
            return Err(status::stopped());
        }
        f(&mut state)
    }

    pub(crate) fn lock(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(crate) fn common(&self) -> Arc<Common> {
        self.state.lock().common.clone()
    }

    /// Replaces what all sessions are told, and tells them if it differs.
    pub(crate) fn set_common(state: &mut State, common: Common) {
        if *state.common != common {
            state.common = Arc::new(common);
            for session in state.registry.sessions() {
                session.session.put_common();
            }
        }
    }

    /// Ends all sessions. No node is marked down by it.
    pub(crate) fn close(&self) {
        let state = self.state.lock();
        self.closed.cancel();
        for session in state.registry.sessions() {
            session.session.close(status::must_disconnect(), true);
            if let Some(assignments) = &session.assignments {
                assignments.close(status::cancelled());
            }
        }
        self.intake.close();
    }
}

impl Common {
    pub(crate) fn of(view: &View, managers: &[Peer]) -> Common {
        let cluster = view.cluster();
        Common {
            managers: weighted(managers),
            keys: cluster.map(|c| c.network_bootstrap_keys.clone()).unwrap_or_default(),
            root_ca: cluster.map(|c| c.root_ca.ca_cert.clone()).unwrap_or_default(),
        }
    }
}

pub(crate) fn weighted(managers: &[Peer]) -> Vec<WeightedPeer> {
    let peer = |peer: &Peer| WeightedPeer { peer: Some(peer.clone()), weight: MANAGER_WEIGHT };
    managers.iter().map(peer).collect()
}
