//! What a task asks of a node, and whether the node has it.
//!
//! Filters that look only at the node and the spec ([`Fixed`]) are asked once per node and kept until the node
//! changes, for all tasks with the same needs; those that look at the node's account are asked each time.

use std::collections::BTreeSet;

use swarm_api::extensions::{self, Feature};
use swarm_api::v1::{Mount, Node, Task, mount, task_spec};
use swarm_api::{Text, naming};
use swarm_placement::{Constraint, Demand, Key, NodeInfo, NormalPlatform, all_hold, constraints_of};

use crate::nodes::{Nodes, Slot};
use crate::services::ServiceNo;
use crate::verdict::Verdict;
use crate::volumes::{self, VolumeMount};

/// Needs that only a change of the node itself can fulfil.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fixed {
    /// Name of the runtime; none if any node will do.
    pub(crate) runtime: Option<String>,
    /// Kind and name.
    plugins: BTreeSet<(&'static str, String)>,
    pub(crate) constraints: Vec<Constraint>,
    /// System and architecture, normalised; an empty one is any.
    platforms: Vec<NormalPlatform>,
}

/// Everything a task asks of a node. Tasks of one version of a service ask the same, but for ports of the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Requirements {
    pub(crate) service: Text,
    pub(crate) version: u64,
    pub(crate) fixed: Fixed,
    pub(crate) demand: Demand,
    /// Most tasks of the service on one node; 0 is no limit.
    pub(crate) max_replicas: u64,
    pub(crate) volumes: Vec<VolumeMount>,
    /// Labels to spread over, outermost first.
    pub(crate) spread: Vec<SpreadLabel>,
}

/// A label whose values are the branches that tasks are spread over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SpreadLabel {
    Node(String),
    Engine(String),
}

impl SpreadLabel {
    fn parse(descriptor: &str) -> Option<SpreadLabel> {
        let name = |prefix: &str| {
            let head = descriptor.get(..prefix.len())?;
            let name = &descriptor[prefix.len()..];
            (head.eq_ignore_ascii_case(prefix) && !name.is_empty()).then(|| name.to_owned())
        };
        name("node.labels.")
            .map(SpreadLabel::Node)
            .or_else(|| name("engine.labels.").map(SpreadLabel::Engine))
    }

    /// The branch a node is on; nodes without the label share the empty one.
    pub(crate) fn branch<'a>(&self, node: &'a Node) -> &'a str {
        let label = match self {
            SpreadLabel::Node(name) => node.spec.annotations.labels.get(name),
            SpreadLabel::Engine(name) => {
                node.description.as_ref().and_then(|d| d.engine.as_ref()).and_then(|e| e.labels.get(name))
            }
        };
        label.map_or("", String::as_str)
    }
}

impl Requirements {
    /// What a task asks for.
    pub(crate) fn of(task: &Task) -> Requirements {
        let placement = task.spec.placement.as_ref();
        let platforms = placement.map_or(&[][..], |p| &p.platforms);
        let spread = placement.map_or(&[][..], |p| &p.preferences).iter().filter_map(|preference| {
            use swarm_api::v1::placement_preference::Preference;
            let Some(Preference::Spread(over)) = &preference.preference else { return None };
            SpreadLabel::parse(&over.spread_descriptor)
        });
        Requirements {
            service: task.service_id.clone(),
            version: task.spec_version.map_or(0, |v| v.index),
            fixed: Fixed {
                runtime: runtime(task),
                plugins: plugins(task),
                constraints: constraints_of(placement),
                platforms: platforms.iter().map(NormalPlatform::from).collect(),
            },
            demand: Demand::of(task),
            max_replicas: placement.map_or(0, |p| p.max_replicas),
            volumes: volumes::mounts(&task.spec).collect(),
            spread: spread.collect(),
        }
    }

    /// What the filters say of the node in a slot, given what the fixed ones said. The number is the service's.
    pub(crate) fn verdict(&self, fixed: Verdict, nodes: &Nodes, service: ServiceNo, slot: Slot) -> Verdict {
        #[cfg(test)]
        crate::effort::count();
        let Some(node) = nodes.all().get(slot).filter(|node| node.used) else { return Verdict::Absent };
        match self.verdict_without_volumes(fixed, &node.info, || nodes.services.on(service, slot)) {
            Verdict::Fits if self.volumes.is_empty() => Verdict::Fits,
            Verdict::Fits if nodes.volumes.choose(&self.volumes, node.info.node()).is_none() => {
                Verdict::Volumes
            }
            verdict => verdict,
        }
    }

    /// The node in a slot lacks resources or ports, and nothing else: what the other filters say is the same when there is
    /// room.
    pub(crate) fn lacks_only_room(
        &self,
        fixed: Verdict,
        nodes: &Nodes,
        service: ServiceNo,
        slot: Slot,
    ) -> bool {
        fixed == Verdict::Fits
            && matches!(self.verdict(fixed, nodes, service, slot), Verdict::Resources | Verdict::Ports)
            && !self.has_its_replicas(|| nodes.services.on(service, slot))
            && (self.volumes.is_empty()
                || nodes.volumes.choose(&self.volumes, nodes.get(slot).info.node()).is_some())
    }

    fn has_its_replicas(&self, of_service: impl FnOnce() -> u32) -> bool {
        self.max_replicas > 0 && u64::from(of_service()) >= self.max_replicas
    }

    /// What all filters but that of cluster volumes say of a node with this account and so many tasks of the service.
    pub(crate) fn verdict_without_volumes(
        &self,
        fixed: Verdict,
        info: &NodeInfo,
        of_service: impl FnOnce() -> u32,
    ) -> Verdict {
        if !info.is_ready() {
            return Verdict::NotReady;
        }
        if self.demand.has_resources() && !info.has_resources(&self.demand) {
            return Verdict::Resources;
        }
        if fixed != Verdict::Fits {
            return fixed;
        }
        if !info.has_ports(&self.demand) {
            return Verdict::Ports;
        }
        if self.has_its_replicas(of_service) {
            return Verdict::MaxReplicas;
        }
        Verdict::Fits
    }

    /// Name of the runtime for an explanation.
    pub(crate) fn runtime(&self) -> &str {
        self.fixed.runtime.as_deref().unwrap_or_default()
    }
}

impl Fixed {
    /// What the filters that look only at the node say.
    pub(crate) fn verdict(&self, node: &Node) -> Verdict {
        self.verdict_if(node, || all_hold(&self.constraints, node))
    }

    /// The same, if somebody else says whether all constraints hold.
    pub(crate) fn verdict_if(&self, node: &Node, constraints_hold: impl FnOnce() -> bool) -> Verdict {
        if !self.has_plugins(node) {
            Verdict::Plugins
        } else if !self.has_runtime(node) {
            Verdict::Runtime
        } else if !constraints_hold() {
            self.broken_constraint(node)
        } else if !self.has_platform(node) {
            Verdict::Platform
        } else {
            Verdict::Fits
        }
    }

    /// What is said of a node on which not all constraints hold. Those of what containers are given say it in their words,
    /// unless another one does not hold either.
    fn broken_constraint(&self, node: &Node) -> Verdict {
        let words = |constraint: &Constraint| match constraint.key() {
            Key::EngineLabel(label) => Feature::of_label(label).and_then(without),
            _ => None,
        };
        let mut broken = self.constraints.iter().filter(|constraint| !constraint.holds(node)).map(words);
        match (broken.next(), broken.all(|other| other.is_some())) {
            (Some(Some(verdict)), true) => verdict,
            _ => Verdict::Constraints,
        }
    }

    fn has_plugins(&self, node: &Node) -> bool {
        if self.plugins.is_empty() {
            return true;
        }
        let Some(engine) = node.description.as_ref().and_then(|d| d.engine.as_ref()) else { return true };
        self.plugins.iter().all(|(kind, name)| {
            let mut of_kind = engine.plugins.iter().filter(|p| p.r#type == *kind).peekable();
            // Engines did not always report their log drivers.
            (*kind == LOG && of_kind.peek().is_none())
                || of_kind
                    .any(|p| p.name.strip_suffix(":latest").unwrap_or(&p.name) == name || p.name == *name)
        })
    }

    fn has_runtime(&self, node: &Node) -> bool {
        let Some(runtime) = &self.runtime else { return true };
        let engine = node.description.as_ref().and_then(|d| d.engine.as_ref());
        let none = std::collections::BTreeMap::new();
        extensions::node_runs(engine.map_or(&none, |e| &e.labels), runtime)
    }

    fn has_platform(&self, node: &Node) -> bool {
        if self.platforms.is_empty() {
            return true;
        }
        let Some(platform) = node.description.as_ref().and_then(|d| d.platform.as_ref()) else {
            return false;
        };
        let platform = NormalPlatform::from(platform);
        self.platforms.iter().any(|wanted| platform.serves(wanted))
    }
}

/// What is said of a node that lacks a feature, if there are words for that one.
fn without(feature: Feature) -> Option<Verdict> {
    match feature {
        Feature::Devices => Some(Verdict::Devices),
        Feature::Gpus => Some(Verdict::Gpus),
        Feature::Privileged => Some(Verdict::Privileged),
        Feature::InitTasks | Feature::PreStop | Feature::ProcessHealth | Feature::ProcessIsolation => None,
    }
}

const VOLUME: &str = "Volume";
const NETWORK: &str = "Network";
const LOG: &str = "Log";

/// The runtime a node must have. Attachments stand for containers that run on their node already.
fn runtime(task: &Task) -> Option<String> {
    match &task.spec.runtime {
        Some(task_spec::Runtime::Attachment(_)) => None,
        runtime => naming::runtime(runtime.as_ref()),
    }
}

fn mounts(task: &Task) -> &[Mount] {
    match &task.spec.runtime {
        Some(task_spec::Runtime::Container(container)) => &container.mounts,
        _ => &[],
    }
}

fn plugins(task: &Task) -> BTreeSet<(&'static str, String)> {
    let volumes = mounts(task).iter().filter(|m| m.r#type() == mount::Type::Volume).filter_map(|m| {
        let driver = m.volume_options.as_ref()?.driver_config.as_ref()?;
        (!driver.name.is_empty() && driver.name != "local").then(|| (VOLUME, driver.name.clone()))
    });
    let networks = task.networks.iter().filter_map(|attachment| {
        let driver = attachment.network.as_ref()?.driver_state.as_ref()?;
        (!driver.name.is_empty()).then(|| (NETWORK, driver.name.clone()))
    });
    let log = task.spec.log_driver.iter().filter(|d| !d.name.is_empty() && d.name != "none");
    volumes.chain(networks).chain(log.map(|d| (LOG, d.name.clone()))).collect()
}
