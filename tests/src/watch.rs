//! What becomes of services and tasks, commit by commit: a state between two looks is missed by whoever asks again and
//! again, and what must never be may be just that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use swarm_api::Shared;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::watch_client::WatchClient;
use swarm_api::v1::watch_message::Event;
use swarm_api::v1::watch_request::WatchEntry;
use swarm_api::v1::{
    Node, Service, Task, TaskState, WatchActionKind, WatchMessage, WatchRequest, node_spec, object,
};
use swarm_testkit::daemon::Cluster;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;

/// Time within which what is waited for must come.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// It runs, and is to go on.
pub fn is_up(task: &Task) -> bool {
    task.status.state() == TaskState::Running && task.desired_state() == TaskState::Running
}

/// It may run, or may come to.
pub fn has_not_ended(task: &Task) -> bool {
    task.status.state <= TaskState::Running as i32
}

/// The cluster as it was after a commit.
#[derive(Debug, Default)]
pub struct Picture {
    services: BTreeMap<String, Shared<Service>>,
    tasks: BTreeMap<String, Shared<Task>>,
    /// Every task there ever was, as it was last.
    ever: BTreeMap<String, Shared<Task>>,
    /// Nodes that changed since the watch began.
    nodes: BTreeMap<String, Shared<Node>>,
}

impl Picture {
    fn apply(&mut self, event: Event) -> Result<()> {
        let removed = event.action() == WatchActionKind::WatchActionRemove;
        match event.object.and_then(|object| object.object).context("an event without an object")? {
            object::Object::Service(service) if removed => drop(self.services.remove(&service.id)),
            object::Object::Service(service) => drop(self.services.insert(service.id.clone(), service)),
            object::Object::Task(task) => {
                match removed {
                    true => drop(self.tasks.remove(task.id.as_str())),
                    false => drop(self.tasks.insert(task.id.to_string(), task.clone())),
                }
                self.ever.insert(task.id.to_string(), task);
            }
            object::Object::Node(node) => drop(self.nodes.insert(node.id.clone(), node)),
            other => bail!("nobody asked for {other:?}"),
        }
        Ok(())
    }

    /// Tasks of a service.
    pub fn tasks(&self, service: &str) -> impl Iterator<Item = &Shared<Task>> {
        self.tasks.values().filter(move |task| task.service_id == service)
    }

    /// Tasks that a service has or had.
    pub fn ever(&self, service: &str) -> impl Iterator<Item = &Shared<Task>> {
        self.ever.values().filter(move |task| task.service_id == service)
    }

    /// Tasks of a service that run and are to go on.
    pub fn up(&self, service: &str) -> impl Iterator<Item = &Shared<Task>> {
        self.tasks(service).filter(|task| is_up(task))
    }

    /// Slots with a task that runs and is to go on.
    pub fn slots_up(&self, service: &str) -> BTreeSet<u64> {
        self.up(service).map(|task| task.slot).collect()
    }

    /// How far the update of a service is, and what is said about it.
    pub fn update(&self, service: &str) -> (UpdateState, &str) {
        let status = self.services.get(service).and_then(|service| service.update_status.as_ref());
        status.map_or((UpdateState::Unknown, ""), |status| (status.state(), &status.message))
    }

    /// A node, if it changed since the watch began.
    pub fn node(&self, node: &str) -> Option<&Shared<Node>> {
        self.nodes.get(node)
    }

    /// The node is to be empty.
    pub fn is_drained(&self, node: &str) -> bool {
        let node = self.nodes.get(node);
        node.is_some_and(|node| node.spec.availability() == node_spec::Availability::Drain)
    }

    /// For the text of a failing test.
    fn text(&self) -> String {
        let services = self.services.values().map(|service| {
            let (state, message) = self.update(&service.id);
            format!("service {} {} {message}\n", service.spec.annotations.name, state.as_str_name())
        });
        let mut tasks: Vec<&Shared<Task>> = self.tasks.values().collect();
        tasks.sort_by_key(|task| (&task.service_id, task.slot, task.meta.version.index));
        let tasks = tasks.into_iter().map(|task| {
            let (state, desired) = (task.status.state().name(), task.desired_state().name());
            format!("{} {} {state}→{desired} {} {}\n", task.slot, task.id, task.node_id, task.status.err)
        });
        services.chain(tasks).collect()
    }
}

/// Sees every commit since it began.
#[derive(Debug)]
pub struct Watcher {
    messages: tonic::Streaming<WatchMessage>,
    /// After the last commit that was looked at.
    pub picture: Picture,
}

impl Watcher {
    /// Begins in a cluster that has no services yet: so nothing is missed.
    pub async fn new(cluster: &Cluster) -> Result<Watcher> {
        Watcher::on(cluster.channel()).await
    }

    /// The same by the store of this manager.
    pub async fn on(manager: Channel) -> Result<Watcher> {
        use WatchActionKind::{WatchActionCreate, WatchActionRemove, WatchActionUpdate};
        let action = WatchActionCreate as i32 | WatchActionUpdate as i32 | WatchActionRemove as i32;
        let entry = |kind: &str| WatchEntry { kind: kind.into(), action, filters: Vec::new() };
        let entries = ["service", "task", "node"].map(entry).to_vec();
        let request = WatchRequest { entries, ..Default::default() };
        let mut messages = WatchClient::new(manager).watch(request).await?.into_inner();
        // The empty one, which says that the watch stands.
        messages.message().await?.context("the watch ended before it began")?;
        Ok(Watcher { messages, picture: Picture::default() })
    }

    /// Looks at the cluster as it is and after every further commit, until what is waited for is there. What must never
    /// be is an error of `look`.
    pub async fn until(&mut self, what: &str, mut look: impl FnMut(&Picture) -> Result<bool>) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match look(&self.picture) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => bail!("waiting for {what}: {error:#}\n{}", self.picture.text()),
            }
            let Ok(message) = timeout_at(end, self.messages.message()).await else {
                bail!("waited {PATIENCE:?} for {what}:\n{}", self.picture.text());
            };
            for event in message?.context("the watch ended")?.events {
                self.picture.apply(event)?;
            }
        }
    }
}
