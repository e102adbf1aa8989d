//! What goes beyond the contract, and rides in labels that a peer of another make carries along unharmed.
//!
//! Labels that begin with [`PREFIX`] are ours: what shapes a task stands among its container's labels, policy of
//! a service among the service's, policy of the cluster among the cluster's, and abilities of a node among its
//! engine labels. Each extension that a node must understand comes with a constraint on that ability, so that
//! any leader places it right.

pub mod container;
mod features;
mod rebalance;
mod start_order;
mod steps;

use std::collections::BTreeMap;
use std::time::Duration;

pub use container::{ContainerExtensions, Device};
pub use features::{Feature, guard};
pub use rebalance::{REBALANCE, REBALANCE_NOW, can_rebalance, put_request, take_request};
pub use start_order::{Condition, DEPENDS_ON, Dependency, StartOrder};
pub use steps::{INIT_TASKS, InitTask, MOST_INIT_TASKS, PRE_STOP, Steps, check_count, check_words};

use crate::v1::ServiceSpec;

/// Prefix of the labels that are ours.
pub const PREFIX: &str = "swarmd.";

/// Kind of the generic runtime whose tasks are native processes; its payload is a
/// [`ProcessSpec`](crate::swarmd::ProcessSpec).
pub const PROCESS_RUNTIME: &str = "process";

/// Engine label of nodes that run native processes; its value is `1`.
pub const PROCESS_ABILITY: &str = "swarmd.runtime.process";

/// The constraint that keeps native processes on nodes that can run them.
pub const PROCESS_CONSTRAINT: &str = "engine.labels.swarmd.runtime.process==1";

/// Prefix of the engine labels that name runtimes: `1` where a node has the runtime, `0` where it has not.
pub const RUNTIME_ABILITY_PREFIX: &str = "swarmd.runtime.";

/// Engine label of nodes of ours; its value is `0` where there is no engine. A node that says nothing is a plain
/// Docker Engine and runs containers.
pub const CONTAINER_ABILITY: &str = "swarmd.runtime.container";

/// Engine label of nodes that serve task sessions: `1` where commands may be executed in tasks and tasks attached to, `0`
/// where only figures are to be had.
pub const EXEC_ABILITY: &str = "swarmd.exec";

/// Name of the runtime of containers, as [`naming::runtime`](crate::naming::runtime) gives it.
pub const CONTAINER_RUNTIME: &str = "container";

/// Whether a node with these engine labels runs tasks of this runtime. Containers are what everybody runs who
/// does not say otherwise, and a node that says nothing of runtimes is a plain Docker Engine, which has generic
/// runtimes of its own; it never has ours, and what a node of ours has is announced.
pub fn node_runs(engine_labels: &BTreeMap<String, String>, runtime: &str) -> bool {
    match engine_labels.get(&format!("{RUNTIME_ABILITY_PREFIX}{runtime}")) {
        Some(ability) if runtime == CONTAINER_RUNTIME => ability != "0",
        Some(ability) => ability == "1",
        None if runtime == CONTAINER_RUNTIME => true,
        None => {
            runtime != PROCESS_RUNTIME
                && !engine_labels.keys().any(|label| label.starts_with(RUNTIME_ABILITY_PREFIX))
        }
    }
}

/// Takes our labels out of what an engine reports of itself: only a node's own daemon may announce abilities.
pub fn strip(engine_labels: &mut BTreeMap<String, String>) {
    engine_labels.retain(|label, _| !label.starts_with(PREFIX));
}

/// Cluster label: how long a manager may be unreachable before the leader demotes it, as whole seconds (`600s`).
pub const DEAD_MANAGER_TIMEOUT: &str = "swarmd.dead-manager-timeout";

/// Shortest [`DEAD_MANAGER_TIMEOUT`]: below it, whoever restarts would be taken for dead.
pub const LEAST_DEAD_MANAGER_TIMEOUT: Duration = Duration::from_secs(10);

/// Cluster label: `on` lets tasks of services with a [`PRIORITY`] take the place of others.
pub const PREEMPTION: &str = "swarmd.preemption";

/// Service label: which of the nodes that fit get its tasks; see [`Strategy`].
pub const PLACEMENT_STRATEGY: &str = "swarmd.placement-strategy";

/// Service label: an integer of 32 bits, 0 if absent; where preemption is on, tasks of a service that find no node
/// take the place of others with a lower one.
pub const PRIORITY: &str = "swarmd.priority";

/// Which of the nodes that fit get the tasks of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Equal shares for all.
    #[default]
    Spread,
    /// The fullest, so that others stay free.
    Binpack,
}

impl Strategy {
    /// Its name in labels and flags.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Spread => "spread",
            Strategy::Binpack => "binpack",
        }
    }

    /// The strategy of this name.
    pub fn parse(name: &str) -> Option<Strategy> {
        [Strategy::Spread, Strategy::Binpack].into_iter().find(|strategy| strategy.name() == name)
    }
}

/// What the labels of a service say of the placement of its tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlacementPolicy {
    /// Which nodes are preferred.
    pub strategy: Strategy,
    /// Whose place its tasks may take, and who may take theirs.
    pub priority: i32,
}

impl PlacementPolicy {
    /// Reads the labels of a service's spec.
    ///
    /// # Errors
    /// What is wrong with a value.
    pub fn read(labels: &BTreeMap<String, String>) -> Result<PlacementPolicy, String> {
        let mut policy = PlacementPolicy::default();
        if let Some(name) = labels.get(PLACEMENT_STRATEGY) {
            policy.strategy = Strategy::parse(name).ok_or_else(|| {
                format!("label {PLACEMENT_STRATEGY:?} must be \"spread\" or \"binpack\", not {name:?}")
            })?;
        }
        if let Some(number) = labels.get(PRIORITY) {
            policy.priority = number
                .parse()
                .map_err(|_| format!("label {PRIORITY:?} must be an integer of 32 bits, not {number:?}"))?;
        }
        Ok(policy)
    }

    /// Writes it into the labels of a service's spec, in place of what they said; what is usual is not written.
    pub fn write(&self, labels: &mut BTreeMap<String, String>) {
        labels.remove(PLACEMENT_STRATEGY);
        labels.remove(PRIORITY);
        if self.strategy != Strategy::default() {
            labels.insert(PLACEMENT_STRATEGY.to_owned(), self.strategy.name().to_owned());
        }
        if self.priority != 0 {
            labels.insert(PRIORITY.to_owned(), self.priority.to_string());
        }
    }
}

/// Policy of the cluster that goes beyond the contract: what the labels of its spec say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// A manager that the leader could not reach for so long is demoted; never if absent.
    pub dead_manager_timeout: Option<Duration>,
    /// Tasks of services with a priority may take the place of others with a lower one.
    pub preemption: bool,
}

impl ClusterPolicy {
    /// Reads the labels of a cluster's spec.
    ///
    /// # Errors
    /// What is wrong with the first label of ours that this version does not understand.
    pub fn read(labels: &BTreeMap<String, String>) -> Result<ClusterPolicy, String> {
        let mut policy = ClusterPolicy::default();
        for (label, value) in labels.iter().filter(|(label, _)| label.starts_with(PREFIX)) {
            match label.as_str() {
                DEAD_MANAGER_TIMEOUT => {
                    let seconds = value.strip_suffix('s').and_then(|number| number.parse().ok());
                    let timeout =
                        seconds.map(Duration::from_secs).filter(|t| *t >= LEAST_DEAD_MANAGER_TIMEOUT);
                    policy.dead_manager_timeout = Some(timeout.ok_or_else(|| {
                        let least = LEAST_DEAD_MANAGER_TIMEOUT.as_secs();
                        format!(
                            "label {label:?} must be a number of seconds, at least {least}s, not {value:?}"
                        )
                    })?);
                }
                PREEMPTION => {
                    policy.preemption = match value.as_str() {
                        "on" => true,
                        "off" => false,
                        _ => return Err(format!("label {label:?} must be \"on\" or \"off\", not {value:?}")),
                    }
                }
                _ => return Err(not_known(label)),
            }
        }
        Ok(policy)
    }

    /// Writes it into the labels of a cluster's spec, in place of what they said.
    pub fn write(&self, labels: &mut BTreeMap<String, String>) {
        labels.remove(DEAD_MANAGER_TIMEOUT);
        labels.remove(PREEMPTION);
        if self.preemption {
            labels.insert(PREEMPTION.to_owned(), "on".to_owned());
        }
        if let Some(timeout) = self.dead_manager_timeout {
            labels.insert(DEAD_MANAGER_TIMEOUT.to_owned(), format!("{}s", timeout.as_secs()));
        }
    }
}

/// What is said of a label that has our prefix and that this version does not understand.
pub fn not_known(label: &str) -> String {
    format!("label {label:?} is not known; labels that begin with {PREFIX:?} are reserved")
}

/// Labels of services that are ours and that this version understands, with the value they have.
const OF_SERVICES: &[(&str, &str)] = &[(REBALANCE, "auto"), (REBALANCE_NOW, "1")];

/// Those whose values [`PlacementPolicy`] and [`StartOrder`] read.
const OF_PLACEMENT: &[&str] = &[PLACEMENT_STRATEGY, PRIORITY, DEPENDS_ON];

/// Checks the labels of a service's spec.
///
/// # Errors
/// What is wrong with the first label of ours that this version does not understand.
pub fn check_service(labels: &BTreeMap<String, String>) -> Result<(), String> {
    for (label, value) in labels.iter().filter(|(label, _)| label.starts_with(PREFIX)) {
        match OF_SERVICES.iter().find(|(known, _)| known == label) {
            Some((_, wanted)) if wanted == value => {}
            Some((_, wanted)) => return Err(format!("label {label:?} must be {wanted:?}, not {value:?}")),
            None if OF_PLACEMENT.contains(&label.as_str()) => {}
            None => return Err(not_known(label)),
        }
    }
    StartOrder::read(labels)?;
    PlacementPolicy::read(labels).map(drop)
}

/// Checks the labels of a service's spec, and whether they go with the rest of it.
///
/// # Errors
/// What is wrong with the first label of ours that this version does not understand, or that makes no sense here.
pub fn check_service_spec(spec: &ServiceSpec) -> Result<(), String> {
    check_service(&spec.annotations.labels)?;
    rebalance::check(spec)
}

/// Labels of containers that are ours and that this version understands, sorted; [`ContainerExtensions`] and [`Steps`] read them.
pub const KNOWN: &[&str] =
    &[container::DEVICES, container::GPUS, INIT_TASKS, PRE_STOP, container::PRIVILEGED];

/// The first label that has our prefix and that this version does not understand.
pub fn unknown<'a>(labels: impl IntoIterator<Item = &'a String>) -> Option<&'a str> {
    labels
        .into_iter()
        .map(String::as_str)
        .find(|label| label.starts_with(PREFIX) && KNOWN.binary_search(label).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_ours_are_known_or_unknown() {
        let labels = ["a".to_owned(), "swarmd.nonsense".to_owned(), "swarmdx".to_owned()];
        assert_eq!(unknown(&labels), Some("swarmd.nonsense"));
        assert_eq!(unknown(&labels[..1]), None);
        assert!(KNOWN.is_sorted());
        assert_eq!(PROCESS_CONSTRAINT, format!("engine.labels.{PROCESS_ABILITY}==1"));
        assert_eq!(PROCESS_ABILITY, format!("{RUNTIME_ABILITY_PREFIX}{PROCESS_RUNTIME}"));
        assert_eq!(CONTAINER_ABILITY, format!("{RUNTIME_ABILITY_PREFIX}{CONTAINER_RUNTIME}"));
    }

    #[test]
    fn the_policy_of_a_cluster_is_in_its_labels() {
        let read = |pairs: &[(&str, &str)]| ClusterPolicy::read(&labels(pairs));
        assert_eq!(read(&[("mine", "x")]), Ok(ClusterPolicy::default()));
        let ten_minutes =
            ClusterPolicy { dead_manager_timeout: Some(Duration::from_secs(600)), ..Default::default() };
        assert_eq!(read(&[(DEAD_MANAGER_TIMEOUT, "600s"), ("mine", "x")]), Ok(ten_minutes.clone()));
        for bad in ["", "s", "9s", "-600s", "600", "10m", "99999999999999999999s"] {
            let error = read(&[(DEAD_MANAGER_TIMEOUT, bad)]).unwrap_err();
            assert!(error.contains("at least 10s") && error.ends_with(&format!("not {bad:?}")), "{error}");
        }
        assert!(read(&[("swarmd.nonsense", "1")]).unwrap_err().contains("is not known"));

        let mut written = labels(&[("mine", "x")]);
        ten_minutes.write(&mut written);
        assert_eq!(ClusterPolicy::read(&written), Ok(ten_minutes));
        ClusterPolicy::default().write(&mut written);
        assert_eq!(written, labels(&[("mine", "x")]));
    }

    #[test]
    fn preemption_is_off_unless_the_cluster_says_otherwise() {
        let read = |pairs: &[(&str, &str)]| ClusterPolicy::read(&labels(pairs));
        assert!(!read(&[]).unwrap().preemption);
        assert!(!read(&[(PREEMPTION, "off")]).unwrap().preemption);
        assert!(read(&[(PREEMPTION, "maybe")]).is_err());
        let on = read(&[(PREEMPTION, "on")]).unwrap();
        let mut written = labels(&[]);
        on.write(&mut written);
        assert_eq!(written, labels(&[(PREEMPTION, "on")]));
    }

    #[test]
    fn the_placement_of_a_service_is_in_its_labels() {
        let read = |pairs: &[(&str, &str)]| PlacementPolicy::read(&labels(pairs));
        assert_eq!(read(&[("mine", "x")]), Ok(PlacementPolicy::default()));
        let policy = PlacementPolicy { strategy: Strategy::Binpack, priority: -7 };
        let mut written = labels(&[(PRIORITY, "5"), ("mine", "x")]);
        policy.write(&mut written);
        assert_eq!(written, labels(&[(PLACEMENT_STRATEGY, "binpack"), (PRIORITY, "-7"), ("mine", "x")]));
        assert_eq!(PlacementPolicy::read(&written), Ok(policy));
        PlacementPolicy::default().write(&mut written);
        assert_eq!(written, labels(&[("mine", "x")]));
        for bad in
            [(PLACEMENT_STRATEGY, "Binpack"), (PRIORITY, ""), (PRIORITY, "2147483648"), (PRIORITY, "1.5")]
        {
            let error = read(&[bad]).unwrap_err();
            assert!(error.ends_with(&format!("not {:?}", bad.1)), "{error}");
        }
    }

    fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn everybody_runs_containers_who_does_not_say_otherwise() {
        assert!(node_runs(&labels(&[]), "container"));
        assert!(node_runs(&labels(&[(CONTAINER_ABILITY, "1")]), "container"));
        assert!(!node_runs(&labels(&[(CONTAINER_ABILITY, "0")]), "container"));
    }

    #[test]
    fn other_runtimes_are_announced() {
        assert!(!node_runs(&labels(&[]), "process"));
        assert!(!node_runs(&labels(&[(PROCESS_ABILITY, "0")]), "process"));
        assert!(node_runs(&labels(&[(PROCESS_ABILITY, "1")]), "process"));
        assert!(!node_runs(&labels(&[(PROCESS_ABILITY, "1")]), "wasm"));
        assert!(node_runs(&labels(&[]), "plugin"), "a Docker Engine's own");
    }

    #[test]
    fn an_engine_can_not_announce_abilities() {
        let mut reported = labels(&[("disk", "ssd"), (PROCESS_ABILITY, "1"), ("swarmdx", "y")]);
        strip(&mut reported);
        assert_eq!(reported, labels(&[("disk", "ssd"), ("swarmdx", "y")]));
    }
}
