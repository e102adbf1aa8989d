//! What runs in a simulation.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use swarm_api::v1::Task;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::behaviour::{Behaviour, Run, asked_of, rng};

/// Everything that runs on all nodes of a simulation. Cloning gives another handle to the same world.
#[derive(Debug, Clone)]
pub struct World {
    inner: Arc<Mutex<Inner>>,
    seed: u64,
}

#[derive(Debug, Default)]
struct Inner {
    behaviour: Behaviour,
    containers: BTreeMap<(String, String), Container>,
    counts: BTreeMap<String, Counts>,
    operations: BTreeMap<String, u64>,
    violations: Vec<String>,
}

#[derive(Debug, Default)]
struct Counts {
    starts: u64,
    most: usize,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) service_id: String,
    pub(crate) state: State,
    pub(crate) changed: Arc<Notify>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Created,
    /// Runs until it exits by itself or is stopped.
    Running {
        exit: Option<(Instant, i32)>,
    },
    Exited {
        code: i32,
    },
}

impl Container {
    /// The state as of now: a container that has run its time has exited.
    fn settle(&mut self) -> State {
        if let State::Running { exit: Some((at, code)) } = self.state
            && at <= Instant::now()
        {
            self.state = State::Exited { code };
        }
        self.state
    }
}

impl World {
    /// An empty world.
    pub fn new(seed: u64) -> World {
        World { inner: Arc::default(), seed }
    }

    /// How things behave from now on.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        let mut inner = self.inner.lock();
        inner.behaviour = behaviour;
        for container in inner.containers.values() {
            container.changed.notify_waiters();
        }
    }

    /// How things behave.
    pub fn behaviour(&self) -> Behaviour {
        self.inner.lock().behaviour.clone()
    }

    /// How many containers of a task run, on all nodes.
    pub fn running(&self, task_id: &str) -> usize {
        self.inner.lock().running(|(_, id), _| id == task_id)
    }

    /// How many containers run on a node.
    pub fn running_on(&self, node_id: &str) -> usize {
        self.inner.lock().running(|(node, _), _| node == node_id)
    }

    /// How many containers of a service run.
    pub fn running_of(&self, service_id: &str) -> usize {
        self.inner.lock().running(|_, container| container.service_id == service_id)
    }

    /// How many containers run.
    pub fn running_at_all(&self) -> usize {
        self.inner.lock().running(|_, _| true)
    }

    /// Ids of all tasks that have a container on a node, running or not.
    pub fn containers_on(&self, node_id: &str) -> Vec<String> {
        let inner = self.inner.lock();
        inner.containers.keys().filter(|(node, _)| node == node_id).map(|(_, task)| task.clone()).collect()
    }

    /// How often a task was started.
    pub fn starts(&self, task_id: &str) -> u64 {
        self.inner.lock().counts.get(task_id).map_or(0, |counts| counts.starts)
    }

    /// What must never happen and did: a task that ran twice at once, or was started again after it had run.
    pub fn violations(&self) -> Vec<String> {
        self.inner.lock().violations.clone()
    }

    /// Fails the test if anything happened that must not.
    ///
    /// # Panics
    /// See [`World::violations`].
    pub fn assert_sound(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "{violations:#?}");
    }

    /// Starts a task's container once more behind its agent's back, until it is stopped.
    pub fn start_again(&self, task_id: &str) {
        let mut inner = self.inner.lock();
        for ((_, id), container) in &mut inner.containers {
            if id == task_id && matches!(container.settle(), State::Exited { .. }) {
                container.state = State::Running { exit: None };
                container.changed.notify_waiters();
            }
        }
    }

    /// Ends a task's container behind its agent's back, with this exit code.
    pub fn kill(&self, task_id: &str, code: i32) {
        let mut inner = self.inner.lock();
        for ((_, id), container) in &mut inner.containers {
            if id == task_id && matches!(container.settle(), State::Running { .. }) {
                container.state = State::Exited { code };
                container.changed.notify_waiters();
            }
        }
    }

    /// Loses everything on a node, as when its host is switched off.
    pub fn wipe(&self, node_id: &str) {
        let mut inner = self.inner.lock();
        inner.containers.retain(|(node, _), container| {
            container.changed.notify_waiters();
            node != node_id
        });
    }

    pub(crate) fn exists(&self, node_id: &str, task_id: &str) -> bool {
        self.inner.lock().containers.contains_key(&key(node_id, task_id))
    }

    pub(crate) fn create(&self, node_id: &str, task: &Task) {
        let container = Container {
            service_id: task.service_id.to_string(),
            state: State::Created,
            changed: Arc::new(Notify::new()),
        };
        self.inner.lock().containers.insert(key(node_id, &task.id), container);
    }

    /// The container's state, and what tells of its changes.
    pub(crate) fn state(&self, node_id: &str, task_id: &str) -> Option<(State, Arc<Notify>)> {
        let mut inner = self.inner.lock();
        let container = inner.containers.get_mut(&key(node_id, task_id))?;
        Some((container.settle(), container.changed.clone()))
    }

    /// Starts a created container; what it has to say later is drawn now.
    pub(crate) fn start(&self, node_id: &str, task: &Task) {
        let mut rng = rng(self.seed, &task.id, u64::MAX);
        let mut inner = self.inner.lock();
        let exit = match (asked_of(task), inner.behaviour.run) {
            (Some((time, code)), _) => Some((Instant::now() + time, code)),
            (None, Run::Forever) => None,
            (None, Run::For { time, code, failing }) => {
                let at = Instant::now() + time.draw(&mut rng);
                let fails = rand::RngExt::random_bool(&mut rng, failing.clamp(0.0, 1.0));
                Some((at, if fails { code } else { 0 }))
            }
        };
        let Some(container) = inner.containers.get_mut(&key(node_id, &task.id)) else { return };
        if container.settle() != State::Created {
            let what = format!("task {} was started again in {:?}", task.id, container.state);
            inner.violations.push(what);
            return;
        }
        container.state = State::Running { exit };
        let running = inner.running(|(_, id), _| *id == task.id);
        let counts = inner.counts.entry(task.id.to_string()).or_default();
        counts.starts += 1;
        counts.most = counts.most.max(running);
        if counts.starts > 1 || running > 1 {
            let what =
                format!("task {} ran {running} times at once, started {} times", task.id, counts.starts);
            inner.violations.push(what);
        }
    }

    /// Ends a running container with the code of its signal.
    pub(crate) fn stop(&self, node_id: &str, task_id: &str, code: i32) {
        let mut inner = self.inner.lock();
        if let Some(container) = inner.containers.get_mut(&key(node_id, task_id))
            && matches!(container.settle(), State::Running { .. })
        {
            container.state = State::Exited { code };
            container.changed.notify_waiters();
        }
    }

    pub(crate) fn remove(&self, node_id: &str, task_id: &str) {
        if let Some(container) = self.inner.lock().containers.remove(&key(node_id, task_id)) {
            container.changed.notify_waiters();
        }
    }

    /// Randomness for the next operation on a task.
    pub(crate) fn next_rng(&self, task_id: &str) -> rand::rngs::StdRng {
        let mut inner = self.inner.lock();
        let number = inner.operations.entry(task_id.to_owned()).or_insert(0);
        *number += 1;
        rng(self.seed, task_id, *number)
    }
}

impl Inner {
    fn running(&mut self, which: impl Fn(&(String, String), &Container) -> bool) -> usize {
        let mut count = 0;
        for (key, container) in &mut self.containers {
            if matches!(container.settle(), State::Running { .. }) && which(key, container) {
                count += 1;
            }
        }
        count
    }
}

fn key(node_id: &str, task_id: &str) -> (String, String) {
    (node_id.to_owned(), task_id.to_owned())
}
