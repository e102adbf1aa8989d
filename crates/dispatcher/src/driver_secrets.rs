//! Secrets that drivers provide: a plug-in on the leader's host is asked for each task that refers to one, when the
//! task goes to its node. Tasks wait for that, other tasks of the node do not (decision 0098).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, Stream, StreamExt as _};
use swarm_api::v1::{Secret, Service, Task, TaskState, task_spec};
use swarm_api::{Shared, naming};
use swarm_plugins::{
    PluginError, Plugins, Port, SECRET_PROVIDER, SecretRequest, ServiceEndpoint, get_secret,
};
use swarm_store::Tables;
use tokio::sync::Semaphore;

use crate::assignments::{Pending, TaskChange, secret_ids};

/// Plug-ins that are asked at the same time.
const CALLS: usize = 16;
/// After a failure, the plug-in is asked again this much later.
const RETRY: Duration = Duration::from_secs(10);

/// The plug-ins, as all streams of a manager share them.
#[derive(Debug, Clone)]
pub(crate) struct Drivers {
    plugins: Arc<Plugins>,
    calls: Arc<Semaphore>,
}

impl Drivers {
    pub(crate) fn new(plugins: Arc<Plugins>) -> Drivers {
        Drivers { plugins, calls: Arc::new(Semaphore::new(CALLS)) }
    }

    /// The secret as a task gets it.
    async fn ask(&self, secret: &Secret, request: &SecretRequest) -> Result<Shared<Secret>, PluginError> {
        let _turn = self.calls.acquire().await;
        let driver = secret.spec.driver.as_ref().map_or("", |driver| &driver.name);
        let plugin = self.plugins.find(driver, SECRET_PROVIDER).await?;
        let answer = get_secret(&plugin, request).await?;
        let mut made = secret.clone();
        made.spec.data = answer.value;
        if answer.do_not_reuse {
            made.id = own_id(&secret.id, &request.task_id);
            made.internal = true;
        }
        Ok(made.into())
    }
}

/// The id of a secret that is for one task alone.
fn own_id(secret_id: &str, task_id: &str) -> String {
    format!("{secret_id}.{task_id}")
}

/// What drivers gave for the tasks of one node.
#[derive(Debug, Default)]
pub(crate) struct Made {
    objects: BTreeMap<String, Shared<Secret>>,
}

impl Made {
    /// The id under which a task's secret is sent.
    pub(crate) fn sent_as(&self, secret_id: &str, task_id: &str) -> Option<String> {
        let own = own_id(secret_id, task_id);
        self.objects.contains_key(&own).then_some(own)
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Shared<Secret>> {
        self.objects.get(id)
    }

    pub(crate) fn put(&mut self, secret: Shared<Secret>) {
        self.objects.insert(secret.id.clone(), secret);
    }

    pub(crate) fn forget(&mut self, id: &str) {
        self.objects.remove(id);
    }

    /// Secrets of a task that a driver has to be asked for.
    fn missing(&self, task: &Task, tables: &Tables) -> Vec<Shared<Secret>> {
        let there = |id: &str| self.objects.contains_key(id) || self.sent_as(id, &task.id).is_some();
        let mut ids: Vec<&str> = secret_ids(task).filter(|id| !there(id)).collect();
        ids.sort_unstable();
        ids.dedup();
        let secrets = ids.into_iter().filter_map(|id| tables.secrets().get(id));
        secrets.filter(|secret| secret.spec.driver.is_some()).cloned().collect()
    }
}

/// What became of asking for one task.
struct Asked {
    task_id: String,
    made: Vec<Shared<Secret>>,
    failed: bool,
}

type Asking = Pin<Box<dyn Future<Output = Asked> + Send>>;

/// Questions to drivers for the tasks of one stream.
pub(crate) struct Gate {
    drivers: Option<Drivers>,
    node_id: Arc<str>,
    asking: FuturesUnordered<Asking>,
    /// Tasks that were asked for, until they have everything or are gone.
    asked: HashSet<String>,
    /// Tasks that the node does not know yet and that wait, as they were last.
    held: BTreeMap<String, Shared<Task>>,
}

impl Gate {
    pub(crate) fn new(drivers: Option<Drivers>, node_id: Arc<str>) -> Gate {
        Gate {
            drivers,
            node_id,
            asking: FuturesUnordered::new(),
            asked: HashSet::new(),
            held: BTreeMap::new(),
        }
    }

    /// Asks for all tasks of a node at once, for at most `limit`. What is not answered then comes later.
    pub(crate) async fn ask_for_all<'a>(
        &mut self,
        tasks: impl Iterator<Item = &'a Shared<Task>>,
        made: &mut Made,
        tables: &Tables,
        limit: Duration,
    ) {
        for task in tasks.filter(|task| wants_secrets(task)) {
            self.ask(task, made, tables);
        }
        let answers = async {
            // Not for what is asked again.
            for _ in 0..self.asking.len() {
                let Some(asked) = self.asking.next().await else { break };
                self.settle(asked, made, tables);
            }
        };
        let _ = tokio::time::timeout(limit, answers).await;
    }

    /// Starts to ask for what a task lacks; says whether there is something.
    fn ask(&mut self, task: &Shared<Task>, made: &Made, tables: &Tables) -> bool {
        let Some(drivers) = &self.drivers else { return false };
        let missing = made.missing(task, tables);
        if missing.is_empty() {
            return false;
        }
        if self.asked.insert(task.id.to_string()) {
            let service = tables.services().get(&task.service_id);
            let asking = questions(drivers.clone(), task, service, &self.node_id, missing);
            self.asking.push(asking.boxed());
        }
        true
    }

    /// Takes out of `pending` the tasks that have to wait for a driver. `known` says which the node has already.
    pub(crate) fn hold(
        &mut self,
        pending: &mut Pending,
        made: &Made,
        tables: &Tables,
        known: impl Fn(&str) -> bool,
    ) {
        if self.drivers.is_none() {
            return;
        }
        let mut waiting = BTreeSet::new();
        for (id, change) in &pending.tasks {
            let held = self.held.remove(id).is_some();
            let TaskChange::Changed { task, .. } = change else {
                self.asked.remove(id);
                continue;
            };
            if !wants_secrets(task) {
                self.asked.remove(id);
                continue;
            }
            // One that was given up on goes without.
            let first = !self.asked.contains(id);
            if self.ask(task, made, tables) && !known(id) && (held || first) {
                self.held.insert(id.clone(), task.clone());
                waiting.insert(id.clone());
            }
        }
        pending.tasks.retain(|id, _| !waiting.contains(id));
    }

    /// The next task for which drivers have answered, or not in time; its node is to be told anew.
    pub(crate) fn poll_answer(
        &mut self,
        made: &mut Made,
        tables: impl Fn() -> swarm_store::View,
        cx: &mut Context<'_>,
    ) -> Poll<(String, Option<Shared<Task>>)> {
        loop {
            match Pin::new(&mut self.asking).poll_next(cx) {
                Poll::Ready(Some(asked)) => {
                    let id = asked.task_id.clone();
                    if self.settle(asked, made, &tables()) {
                        return Poll::Ready((id.clone(), self.held.remove(&id)));
                    }
                }
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Takes answers in; says whether the task still wants them. Asks again later for what failed.
    fn settle(&mut self, asked: Asked, made: &mut Made, tables: &Tables) -> bool {
        if !self.asked.contains(&asked.task_id) {
            return false;
        }
        for secret in asked.made {
            made.put(secret);
        }
        if !asked.failed {
            self.asked.remove(&asked.task_id);
            return true;
        }
        let task = tables.tasks().get(&asked.task_id).filter(|task| wants_secrets(task));
        let (Some(drivers), Some(task)) = (&self.drivers, task) else {
            self.asked.remove(&asked.task_id);
            return true;
        };
        let missing = made.missing(task, tables);
        let service = tables.services().get(&task.service_id);
        let again = questions(drivers.clone(), task, service, &self.node_id, missing);
        self.asking.push(tokio::time::sleep(RETRY).then(|()| again).boxed());
        true
    }
}

/// The task is to run, or does.
fn wants_secrets(task: &Task) -> bool {
    task.desired_state <= TaskState::Complete as i32 && !task.status.state().is_terminal()
}

fn questions(
    drivers: Drivers,
    task: &Task,
    service: Option<&Shared<Service>>,
    node_id: &str,
    secrets: Vec<Shared<Secret>>,
) -> impl Future<Output = Asked> + Send + use<> {
    let base = request(task, service.map(|service| &**service), node_id);
    let task_id = task.id.clone();
    async move {
        let questions: FuturesUnordered<_> = secrets
            .into_iter()
            .map(|secret| {
                let annotations = &secret.spec.annotations;
                let request = SecretRequest {
                    secret_name: annotations.name.clone(),
                    secret_labels: annotations.labels.clone(),
                    ..base.clone()
                };
                let drivers = drivers.clone();
                async move {
                    let answer = drivers.ask(&secret, &request).await;
                    if let Err(error) = &answer {
                        tracing::warn!(
                            task.id = request.task_id,
                            secret.id = secret.id,
                            secret.name = request.secret_name,
                            %error,
                            "the secret's driver gave nothing; it is asked again in {RETRY:?}"
                        );
                    }
                    answer.ok()
                }
            })
            .collect();
        let answers: Vec<Option<Shared<Secret>>> = questions.collect().await;
        let failed = answers.iter().any(Option::is_none);
        Asked { task_id: task_id.to_string(), made: answers.into_iter().flatten().collect(), failed }
    }
}

/// What a plug-in is told of a task.
fn request(task: &Task, service: Option<&Service>, node_id: &str) -> SecretRequest {
    let container = match &task.spec.runtime {
        Some(task_spec::Runtime::Container(container)) => Some(container),
        _ => None,
    };
    let endpoint = service.and_then(|service| service.spec.endpoint.as_ref());
    let ports = endpoint.map(|endpoint| {
        let ports = endpoint.ports.iter().map(|port| Port {
            name: port.name.clone(),
            protocol: port.protocol,
            published_port: port.published_port,
            target_port: port.target_port,
            publish_mode: port.publish_mode,
        });
        ServiceEndpoint { mode: endpoint.mode, ports: ports.collect() }
    });
    SecretRequest {
        service_hostname: container.map(|c| c.hostname.clone()).unwrap_or_default(),
        service_id: task.service_id.to_string(),
        service_name: task.service_annotations.name.clone(),
        service_labels: task.service_annotations.labels.clone(),
        task_id: task.id.to_string(),
        task_name: naming::task_name(task),
        task_image: container.map(|c| c.image.clone()).unwrap_or_default(),
        node_id: node_id.to_owned(),
        service_endpoint_spec: ports,
        ..SecretRequest::default()
    }
}
