//! The reconciler: what waits for what, and what is written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use swarm_api::v1::{Endpoint, NetworkAttachment, Service, Task, TaskState};
use swarm_api::{Kind, Object, Shared, Text};
use swarm_reconcile::{Ctx, Decision, Group, Guard, Patch, Reconciler, Sizer, Write};
use swarm_store::{Event, Tables};

use crate::network::Missing;
use crate::ports::Ports;
use crate::{endpoint, network};

/// Most tasks allocated in one turn: as a rule all that orchestrators create in it, so that both is written at once.
const MOST: usize = 100_000;

/// How soon services that can't be allocated are tried again after another service has changed: not everything that
/// could help them frees a number. Where nothing changes, trying again would come to the same.
const RETRY: Duration = Duration::from_secs(60);

/// Gives services their endpoints, and takes tasks from NEW to PENDING once everything they need is there.
#[derive(Debug, Default)]
pub struct Allocator {
    ports: Ports,
    networks: BTreeSet<String>,
    services: BTreeSet<String>,
    tasks: BTreeSet<String>,
    /// Services that can't be allocated, and why.
    stuck: BTreeMap<String, String>,
    /// When they are tried again.
    retry_at: Option<Duration>,
    /// Services have changed since that was set.
    changed: bool,
    /// Tasks that wait for a service or a network.
    waiting: BTreeMap<(Kind, String), BTreeSet<String>>,
    waits_for: BTreeMap<String, (Kind, String)>,
    sizer: Sizer,
}

/// Waits for the allocator, and is still wanted.
fn is_open(task: &Task) -> bool {
    !task.status.reached(TaskState::Pending) && task.desired_state <= TaskState::Complete as i32
}

impl Allocator {
    fn wake(&mut self, kind: Kind, id: &str) {
        for task in self.waiting.remove(&(kind, id.to_owned())).unwrap_or_default() {
            self.waits_for.remove(&task);
            self.tasks.insert(task);
        }
    }

    fn wait(&mut self, task: &str, what: (Kind, String)) {
        self.forget(task);
        self.waits_for.insert(task.to_owned(), what.clone());
        self.waiting.entry(what).or_default().insert(task.to_owned());
    }

    fn forget(&mut self, task: &str) {
        let Some(what) = self.waits_for.remove(task) else { return };
        if let Some(waiting) = self.waiting.get_mut(&what) {
            waiting.remove(task);
            if waiting.is_empty() {
                self.waiting.remove(&what);
            }
        }
    }

    fn service_gone(&mut self, id: &str) {
        self.changed = true;
        self.services.remove(id);
        self.stuck.remove(id);
        self.wake(Kind::Service, id);
        self.ports.release(id);
    }

    /// Services that can't be allocated are tried again once a number is free, or it is time.
    fn retry(&mut self, ctx: &Ctx<'_>) {
        let due = self.retry_at.is_some_and(|at| at <= ctx.now.mono);
        if due {
            self.retry_at = None;
        }
        if self.ports.take_freed() || due {
            self.services.extend(self.stuck.keys().cloned());
        }
    }

    fn wake_at(&mut self, ctx: &Ctx<'_>) -> Option<Duration> {
        let changed = std::mem::take(&mut self.changed);
        if self.stuck.is_empty() {
            self.retry_at = None;
        } else if changed {
            self.retry_at.get_or_insert(ctx.now.mono + RETRY);
        }
        let more = !self.tasks.is_empty() || !self.services.is_empty();
        if more { Some(ctx.now.mono) } else { self.retry_at }
    }

    /// The endpoint that the service has then; `None` if it can't have one now.
    fn allocate_service(
        &mut self,
        tables: &Tables,
        service: &Shared<Service>,
        groups: &mut Vec<Group>,
    ) -> Option<Option<Shared<Endpoint>>> {
        let wanted = match endpoint::wanted(tables, &mut self.ports, service) {
            Ok(wanted) => wanted,
            Err(error) => {
                let reason = error.to_string();
                if self.stuck.get(&service.id) != Some(&reason) {
                    tracing::warn!(service.id = service.id, %error, "a service can't be allocated");
                    self.stuck.insert(service.id.clone(), reason);
                    self.changed = true;
                    // Its tasks are told.
                    self.wake(Kind::Service, &service.id);
                }
                return None;
            }
        };
        self.stuck.remove(&service.id);
        self.wake(Kind::Service, &service.id);
        if wanted == service.endpoint {
            return Some(wanted);
        }
        let endpoint = wanted.clone();
        let edit = move |object: &Object| {
            let Object::Service(service) = object else { return None };
            (service.endpoint != endpoint).then(|| {
                let mut service = service.clone();
                service.endpoint.clone_from(&endpoint);
                service.into()
            })
        };
        let patch = Patch::new(Write::Edit {
            kind: Kind::Service,
            id: service.id.clone(),
            what: "allocate",
            edit: Arc::new(edit),
        });
        groups.push(Group { tag: 0, patches: vec![patch.guard(Guard::spec_of(service))] });
        tracing::debug!(service.id = service.id, "service is allocated");
        Some(wanted)
    }

    fn allocate_task(
        &mut self,
        ctx: &Ctx<'_>,
        tables: &Tables,
        task: &Task,
        fresh: &BTreeMap<String, Option<Shared<Endpoint>>>,
        groups: &mut Vec<Group>,
    ) {
        let service = tables.services().get(&task.service_id);
        let blocked = if task.service_id.is_empty() {
            None
        } else if service.is_none() {
            let reason = format!("could not find service {} for task {}", task.service_id, task.id);
            Some((Kind::Service, task.service_id.to_string(), reason))
        } else {
            self.stuck.get(task.service_id.as_str()).map(|why| {
                let name = &task.service_annotations.name;
                let reason =
                    format!("service {name} to which the task belongs has pending allocations: {why}");
                (Kind::Service, task.service_id.to_string(), reason)
            })
        };
        let known = fresh.get(task.service_id.as_str()).cloned();
        let endpoint = known.unwrap_or_else(|| service.and_then(|s| s.endpoint.clone()));
        let networks = match blocked {
            None => networks_of(tables, &mut self.sizer, task, service, endpoint.as_deref())
                .map_err(|missing| (Kind::Network, missing.network, missing.reason)),
            Some(blocked) => Err(blocked),
        };
        match networks {
            Ok(networks) => {
                // Numbers that we chose may not be written yet, and are not if the service changes first.
                let guard =
                    service.filter(|_| endpoint.as_deref().is_some_and(endpoint::has_dynamic_numbers));
                groups.push(to_pending(ctx, task, networks, endpoint, guard.map(|s| Guard::spec_of(s))));
            }
            Err((kind, id, reason)) => {
                self.wait(&task.id, (kind, id));
                let write = Write::Explain { task: task.id.to_string(), err: reason, at: ctx.now.wall };
                let guard = Guard::TaskBelow(task.id.to_string(), TaskState::Pending);
                groups.push(Group { tag: 0, patches: vec![Patch::new(write).guard(guard)] });
            }
        }
    }
}

/// The networks that a task has, or is to have, as far as it can have them.
fn networks_of(
    tables: &Tables,
    sizer: &mut Sizer,
    task: &Task,
    service: Option<&Shared<Service>>,
    endpoint: Option<&Endpoint>,
) -> Result<Vec<NetworkAttachment>, Missing> {
    let networks = match task.networks.is_empty() {
        true => network::attach(tables, task, service.map(|s| &**s))?,
        false => task.networks.clone(),
    };
    network::fit(sizer, task, &networks, endpoint)?;
    Ok(networks)
}

/// Gives a task its networks, its service's endpoint, and the next state.
fn allocate(
    task: &mut Task,
    networks: Vec<NetworkAttachment>,
    endpoint: Option<&Shared<Endpoint>>,
    at: SystemTime,
) {
    task.networks = networks;
    if endpoint.is_some() {
        task.endpoint = endpoint.cloned();
    }
    task.status.state = TaskState::Pending as i32;
    task.status.message = "pending task scheduling".into();
    task.status.err = Text::default();
    task.status.timestamp = Some(at.into());
}

/// The change by which a task comes to have everything it needs, if the guard still holds.
fn to_pending(
    ctx: &Ctx<'_>,
    task: &Task,
    networks: Vec<NetworkAttachment>,
    endpoint: Option<Shared<Endpoint>>,
    guard: Option<Guard>,
) -> Group {
    let at = ctx.now.wall;
    let edit = move |object: &Object| {
        let Object::Task(task) = object else { return None };
        if task.status.reached(TaskState::Pending) {
            return None;
        }
        let mut task = task.clone();
        allocate(&mut task, networks.clone(), endpoint.as_ref(), at);
        Some(task.into())
    };
    tracing::debug!(task.id = task.id.as_str(), service.id = task.service_id.as_str(), "task is allocated");
    let write =
        Write::Edit { kind: Kind::Task, id: task.id.to_string(), what: "allocate", edit: Arc::new(edit) };
    Group { tag: 0, patches: vec![Patch { guards: guard.into_iter().collect(), write }] }
}

impl Reconciler for Allocator {
    fn name(&self) -> &'static str {
        "allocator"
    }

    fn init(&mut self, _: &mut Ctx<'_>, tables: &Tables) {
        // Older services keep what two of them claim.
        let mut services: Vec<&Shared<Service>> = tables.services().iter().collect();
        services.sort_by_key(|s| (s.meta.created_at.map(|t| (t.seconds, t.nanos)), &s.id));
        for service in services {
            if let Some(endpoint) = &service.endpoint {
                self.ports.restore(&service.id, endpoint);
            }
        }
        self.networks = tables.networks().iter().map(|n| n.id.clone()).collect();
        self.services = tables.services().iter().map(|s| s.id.clone()).collect();
        self.tasks = tables.tasks().by_observed_state(TaskState::New).map(|t| t.id.to_string()).collect();
    }

    fn observe(&mut self, _: &mut Ctx<'_>, events: &[Event], _: &Tables) {
        for event in events {
            match (event.old(), event.new()) {
                (_, Some(Object::Task(task))) if is_open(task) => {
                    _ = self.tasks.insert(task.id.to_string());
                }
                (_, Some(Object::Task(_))) => (),
                (Some(Object::Task(task)), None) => self.forget(&task.id),
                (Some(Object::Service(old)), Some(Object::Service(new)))
                    if old.spec == new.spec && old.endpoint == new.endpoint => {}
                (_, Some(Object::Service(service))) => {
                    self.changed = true;
                    self.services.insert(service.id.clone());
                }
                (Some(Object::Service(service)), None) => self.service_gone(&service.id),
                (_, Some(Object::Network(network))) | (Some(Object::Network(network)), None) => {
                    self.networks.insert(network.id.clone());
                }
                _ => (),
            }
        }
    }

    fn prepare(&mut self, ctx: &mut Ctx<'_>, tasks: &mut [&mut Shared<Task>], tables: &Tables) {
        for task in tasks.iter_mut().filter(|task| is_open(task)) {
            let Some(service) = tables.services().get(&task.service_id) else { continue };
            if self.services.contains(&service.id)
                || self.stuck.contains_key(&service.id)
                || !endpoint::is_settled(tables, service)
            {
                continue;
            }
            let endpoint = service.endpoint.as_deref();
            let networks = networks_of(tables, &mut self.sizer, task, Some(service), endpoint);
            let Ok(networks) = networks else { continue };
            allocate(task, networks, service.endpoint.as_ref(), ctx.now.wall);
        }
    }

    fn decide(&mut self, ctx: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let mut groups = Vec::new();
        for id in std::mem::take(&mut self.networks) {
            self.wake(Kind::Network, &id);
            self.services.extend(tables.services().by_network(&id).map(|s| s.id.clone()));
            let Some(network) = tables.networks().get(&id) else { continue };
            if network.spec.is_node_local() && !network::is_allocated(network) {
                let edit = Arc::new(network::allocate);
                let write = Write::Edit { kind: Kind::Network, id: id.clone(), what: "allocate", edit };
                groups.push(Group { tag: 0, patches: vec![Patch::new(write)] });
            }
        }
        self.retry(ctx);
        let mut fresh = BTreeMap::new();
        for id in std::mem::take(&mut self.services) {
            let Some(service) = tables.services().get(&id) else { continue };
            if let Some(endpoint) = self.allocate_service(tables, service, &mut groups) {
                fresh.insert(id, endpoint);
            }
        }
        self.retry(ctx);
        while groups.len() < MOST
            && let Some(id) = self.tasks.pop_first()
        {
            if let Some(task) = tables.tasks().get(&id).filter(|t| is_open(t)) {
                self.allocate_task(ctx, tables, task, &fresh, &mut groups);
            }
        }
        Decision { groups, wake_at: self.wake_at(ctx) }
    }
}
