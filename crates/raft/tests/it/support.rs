//! Raft nodes with real stores in scratch directories.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use swarm_api::v1::{Annotations, Cluster, Config as ConfigObject, ConfigSpec, RaftConfig};
use swarm_raft::storage::LogStorage;
use swarm_raft::{Config, MaskSealer, RaftHandle, RaftNode, Result, Role, Ticks};
use swarm_store::{Error as StoreError, Store};

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A raft node and the store that it feeds.
pub(crate) struct Manager {
    pub(crate) raft: RaftHandle,
    pub(crate) store: Arc<Store>,
}

pub(crate) fn config(dir: &Path) -> Config {
    Config {
        ticks: Ticks { interval: Some(Duration::from_millis(20)), ..Ticks::default() },
        ..Config::new("node-1", "127.0.0.1:4242", dir, Arc::new(MaskSealer(7)))
    }
}

pub(crate) fn begin(node: RaftNode) -> Manager {
    begin_on(node, Store::new())
}

pub(crate) fn begin_on(node: RaftNode, store: Arc<Store>) -> Manager {
    store.attach(node.proposer());
    let raft = node.start(store.clone()).unwrap();
    Manager { raft, store }
}

/// Opens the log in a directory, as a daemon does.
pub(crate) fn try_start(config: Config) -> Result<Manager> {
    RaftNode::open(config).map(begin)
}

pub(crate) async fn start(config: Config) -> Manager {
    let manager = try_start(config).unwrap();
    manager.leads().await;
    manager
}

pub(crate) async fn start_on(config: Config, storage: impl LogStorage + 'static) -> Manager {
    let manager = begin(RaftNode::open_with(config, Box::new(storage)).unwrap());
    manager.leads().await;
    manager
}

pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// Polls until something holds that nothing announces.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    in_time(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

impl Manager {
    pub(crate) async fn leads(&self) {
        in_time("leadership", self.raft.wait_for(|s| s.role == Role::Leader)).await.unwrap();
    }

    /// Writes an object of this name and size; its log index.
    pub(crate) async fn write_sized(&self, name: &str, size: usize) -> Result<u64, StoreError> {
        let spec = ConfigSpec {
            annotations: Annotations { name: name.to_owned(), ..Annotations::default() }.into(),
            data: vec![b'x'; size],
            ..ConfigSpec::default()
        };
        let object = ConfigObject { id: name.to_owned(), spec, ..ConfigObject::default() };
        let written = self.store.update::<_, StoreError, _>(move |tx| tx.create(object.clone()).map(|_| ()));
        in_time("a write", written).await.map(|(_, committed)| committed.index)
    }

    pub(crate) async fn write(&self, name: &str) -> u64 {
        self.write_sized(name, 10).await.unwrap()
    }

    pub(crate) async fn write_many(&self, names: impl Iterator<Item = u64>) {
        for name in names {
            self.write(&format!("c{name}")).await;
        }
    }

    /// Writes until something holds that follows from writes at its own pace, such as snapshots; how many it took.
    pub(crate) async fn write_until(&self, what: &str, mut holds: impl FnMut() -> bool) -> usize {
        in_time(what, async {
            let mut written = 0;
            while !holds() {
                self.write(&format!("more{written}")).await;
                written += 1;
            }
            written
        })
        .await
    }

    /// Sets the cluster's raft settings.
    pub(crate) async fn settings(&self, raft: RaftConfig) {
        let written = self.store.update::<_, StoreError, _>(move |tx| {
            let Some(old) = tx.clusters().iter().next().cloned() else {
                let mut cluster = Cluster { id: "cluster".into(), ..Cluster::default() };
                cluster.spec.annotations.name = "default".into();
                cluster.spec.raft = raft;
                return tx.create(cluster).map(|_| ());
            };
            let mut cluster = old;
            cluster.spec.raft = raft;
            tx.update(cluster).map(|_| ())
        });
        in_time("settings", written).await.unwrap();
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.store.view().configs().iter().map(|c| c.id.clone()).collect()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.store.view().configs().get(name).is_some()
    }

    /// Ends it in good order.
    pub(crate) async fn stop(self) {
        self.store.close();
        let outcome = in_time("the end", self.raft.stop()).await;
        assert!(matches!(outcome, swarm_raft::Outcome::Stopped), "{outcome:?}");
    }
}

/// Copies a directory: of a node that is idle, what a crash would leave.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Names of snapshot files in a state directory.
pub(crate) fn snapshot_files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("raft/snapshots")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
