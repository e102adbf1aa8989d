//! Tasks of one service share what they have in common. A decoded task brings copies of its service's spec,
//! annotations and endpoint and of its networks; each that equals one that is there already is given up for it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use swarm_api::v1::{Annotations, Endpoint, Network, Service, StoreSnapshot, Task, TaskSpec};
use swarm_api::{Shared, SharedMessage, Text};

use crate::Tables;

/// Versions of a service's parts that are remembered while a snapshot is read: the present one, the one before,
/// and a few that older tasks still have.
const VERSIONS: usize = 4;

/// Texts that are remembered while a snapshot is read.
const TEXTS: usize = 1 << 18;

/// Replaces `own` by the first of `others` that equals it.
fn share<'a, T: SharedMessage + PartialEq>(
    own: &mut Shared<T>,
    others: impl IntoIterator<Item = &'a Shared<T>>,
) -> bool {
    match others.into_iter().find(|other| *other == own) {
        Some(other) => {
            *own = other.clone();
            true
        }
        None => false,
    }
}

fn share_text(own: &mut Text, other: &Text) {
    if own == other {
        own.clone_from(other);
    }
}

/// Lets a task that was read from the log share with its former version, its service and its networks.
pub(crate) fn task(task: &mut Shared<Task>, tables: &Tables) {
    let old = tables.tasks().get(&task.id);
    let service = tables.services().get(&task.service_id);
    let task = &mut **task;
    if let Some(old) = old {
        let texts = [
            (&mut task.id, &old.id),
            (&mut task.service_id, &old.service_id),
            (&mut task.node_id, &old.node_id),
            (&mut task.status.message, &old.status.message),
            (&mut task.status.err, &old.status.err),
            (&mut task.status.applied_by, &old.status.applied_by),
        ];
        texts.into_iter().for_each(|(own, old)| share_text(own, old));
    }
    let specs = service.map(|s| [Some(&s.spec.task), s.previous_spec.as_ref().map(|p| &p.task)]);
    share(&mut task.spec, old.map(|t| &t.spec).into_iter().chain(specs.into_iter().flatten().flatten()));
    let annotations = service.map(|s| &s.spec.annotations);
    share(&mut task.service_annotations, old.map(|t| &t.service_annotations).into_iter().chain(annotations));
    if let Some(own) = &mut task.endpoint {
        let endpoints = [old.and_then(|t| t.endpoint.as_ref()), service.and_then(|s| s.endpoint.as_ref())];
        share(own, endpoints.into_iter().flatten());
    }
    for own in task.networks.iter_mut().filter_map(|attachment| attachment.network.as_mut()) {
        let olds = old.into_iter().flat_map(|t| t.networks.iter().filter_map(|a| a.network.as_ref()));
        let network = tables.networks().get(&own.id);
        share(own, olds.filter(|n| n.id == own.id).chain(network).cloned().collect::<Vec<_>>().iter());
    }
}

/// The shared parts of a snapshot's tasks. Services and networks come before tasks in it.
#[derive(Default)]
pub(crate) struct Interner {
    services: HashMap<Text, Parts>,
    networks: HashMap<String, Vec<Shared<Network>>>,
    /// Ids of nodes, and what statuses say most.
    texts: HashSet<Text>,
}

#[derive(Default)]
struct Parts {
    specs: Vec<Shared<TaskSpec>>,
    annotations: Vec<Shared<Annotations>>,
    endpoints: Vec<Shared<Endpoint>>,
}

fn intern<T: SharedMessage + PartialEq>(own: &mut Shared<T>, known: &mut Vec<Shared<T>>) {
    if !share(own, known.iter()) {
        if known.len() >= VERSIONS {
            known.remove(0);
        }
        known.push(own.clone());
    }
}

impl Interner {
    pub(crate) fn service(&mut self, service: &Shared<Service>) {
        let parts = self.services.entry(service.id.as_str().into()).or_default();
        parts.specs.push(service.spec.task.clone());
        parts.specs.extend(service.previous_spec.as_ref().map(|spec| spec.task.clone()));
        parts.annotations.push(service.spec.annotations.clone());
        parts.endpoints.extend(service.endpoint.clone());
    }

    pub(crate) fn network(&mut self, network: &Shared<Network>) {
        self.networks.insert(network.id.clone(), vec![network.clone()]);
    }

    pub(crate) fn task(&mut self, task: &mut Shared<Task>) {
        let task = &mut **task;
        let known = self.services.entry(task.service_id.clone());
        if let Entry::Occupied(known) = &known {
            task.service_id = known.key().clone();
        }
        let parts = known.or_default();
        let texts = [&mut task.node_id, &mut task.status.message, &mut task.status.applied_by];
        for own in texts.into_iter().filter(|own| !own.is_empty()) {
            match self.texts.get(own) {
                Some(known) => own.clone_from(known),
                None if self.texts.len() < TEXTS => drop(self.texts.insert(own.clone())),
                None => {}
            }
        }
        intern(&mut task.spec, &mut parts.specs);
        intern(&mut task.service_annotations, &mut parts.annotations);
        if let Some(endpoint) = &mut task.endpoint {
            intern(endpoint, &mut parts.endpoints);
        }
        for network in task.networks.iter_mut().filter_map(|attachment| attachment.network.as_mut()) {
            match self.networks.get_mut(&network.id) {
                Some(known) => intern(network, known),
                None => drop(self.networks.insert(network.id.clone(), vec![network.clone()])),
            }
        }
    }

    /// Lets the tasks of a whole snapshot share.
    pub(crate) fn snapshot(snapshot: &mut StoreSnapshot) {
        let mut interner = Interner::default();
        snapshot.services.iter().for_each(|s| interner.service(s));
        snapshot.networks.iter().for_each(|n| interner.network(n));
        snapshot.tasks.iter_mut().for_each(|t| interner.task(t));
    }
}
