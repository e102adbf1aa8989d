//! A task as the body of the request that creates its container. Pure: no engine is asked.

mod devices;
mod files;
mod init;
mod mounts;
mod networks;
mod platform;
mod privileges;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigIsolationEnum, HostConfigLogConfig,
    NetworkingConfig, PortBinding, ResourcesUlimits, VolumeCreateRequest,
};
use swarm_agent::ControllerError;
use swarm_agent::template::{Context, expand_container_spec, resource_env};
use swarm_api::extensions::Steps;
use swarm_api::v1::container_spec::Isolation;
use swarm_api::v1::port_config::{Protocol, PublishMode};
use swarm_api::v1::{ContainerSpec, NodeDescription, PortConfig, Task, task_spec};
use swarm_api::{defaults, duration, naming};

pub(crate) use devices::knows_gpus;
pub use files::PlannedFile;
pub(crate) use init::NUMBER_LABEL as INIT_NUMBER_LABEL;
pub use init::PlannedInit;
pub(crate) use networks::NETWORK_ID_LABEL;
pub use networks::PlannedNetwork;
pub(crate) use platform::is_of;

use crate::facts::{Api, EngineFacts};

/// Which engine first had it, by the version notes of its interface.
const START_INTERVAL: (Api, &str) = ((1, 44), "25.0");

/// Label whose value is the id of the node that made a container: nobody else may touch it.
pub(crate) const NODE_ID_LABEL: &str = "com.docker.swarm.node.id";
/// Label whose value is the id of a container's task.
pub(crate) const TASK_ID_LABEL: &str = "com.docker.swarm.task.id";

/// What the engine is asked for, to run a task.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerPlan {
    /// The container's name: the handle for all requests.
    pub name: String,
    /// The image, as the spec has it.
    pub image: String,
    /// Base64url JSON for the registry; empty for none.
    pub registry_auth: String,
    /// The platform that image and container are to be of, such as `linux/amd64`; none if the task does not say.
    pub platform: Option<String>,
    /// Volumes that need a request of their own, before the container's.
    pub volumes: Vec<VolumeCreateRequest>,
    /// Networks that must be there before the container is started. The first one is in the body, unless that has a
    /// network of the engine's own; the container is attached to the others by requests of their own.
    pub networks: Vec<PlannedNetwork>,
    /// Files that must be there before the container is made.
    pub files: Vec<PlannedFile>,
    /// Directory of those files.
    pub files_dir: Option<PathBuf>,
    /// Id of the config whose payload is the credential spec.
    pub credential_config: Option<String>,
    /// Body of the request that creates the container, but for that credential spec.
    pub body: ContainerCreateBody,
    /// Containers that must end with exit code 0, one after the other, before the container is made.
    pub init: Vec<PlannedInit>,
    /// Command that is run in the container before it is asked to stop; none if empty.
    pub pre_stop: Vec<String>,
    /// Ports that are published on the node, as the spec names them.
    pub ports: Vec<PortConfig>,
    /// Time between the stop signal and the kill.
    pub stop_grace: Duration,
    /// The container has a terminal: its output is one stream.
    pub tty: bool,
}

/// What shapes a container beside its task.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The node as templates see it.
    pub node: Option<&'a NodeDescription>,
    /// The engine that is to take the requests.
    pub engine: &'a EngineFacts,
    /// Where the files of the task's secrets and configs are, or why there can't be any.
    pub files: Result<&'a Path, &'a str>,
    /// The operator of this node allows containers that have all privileges.
    pub allow_privileged: bool,
}

impl Default for Surroundings<'static> {
    /// An engine that can everything, but has no place for files, and no privileges to give.
    fn default() -> Self {
        static ENGINE: EngineFacts = EngineFacts::newest();
        Surroundings {
            node: None,
            engine: &ENGINE,
            files: Err("there is no place for them"),
            allow_privileged: false,
        }
    }
}

fn fatal(text: impl Into<String>) -> ControllerError {
    ControllerError::Fatal(text.into())
}

/// Works out what the engine is to be asked for. The text of an error tells the user which field is wrong.
///
/// # Errors
/// [`ControllerError::UnsupportedRuntime`] for a task that is no container, [`ControllerError::Fatal`] for a
/// spec that can't be carried out.
pub fn plan(task: &Task, around: &Surroundings<'_>) -> Result<ContainerPlan, ControllerError> {
    let Some(task_spec::Runtime::Container(spec)) = &task.spec.runtime else {
        return Err(ControllerError::UnsupportedRuntime);
    };
    if spec.image.is_empty() {
        return Err(fatal("dockerexec: image required"));
    }
    let name = naming::task_name(task);
    check_name(&name)?;
    let context = Context::new(task, around.node);
    let spec = expand_container_spec(spec, &context).map_err(|error| fatal(error.to_string()))?;
    let facts = around.engine;
    spec.mounts.iter().try_for_each(|mount| mounts::check_mount(mount, facts))?;
    let files = files::files(&spec, facts)?;
    let steps = Steps::read(&spec.labels).map_err(fatal)?;
    let (security_options, credential_config) =
        spec.privileges.as_ref().map(privileges::security_options).transpose()?.unwrap_or_default();
    let (mode, networks) = networks::networks(task)?;

    let mut host = host_config(task, &spec, facts);
    host.security_opt = list(&security_options);
    devices::apply(&mut host, task, &spec, around)?;
    let files_dir = match (files.is_empty(), around.files) {
        (true, _) => None,
        (false, Ok(directory)) => {
            files::mount(&mut host, &files, directory, facts)?;
            Some(directory.to_owned())
        }
        (false, Err(reason)) => {
            return Err(fatal(format!("this node can't give secrets and configs to containers: {reason}")));
        }
    };
    // A network of the engine's own comes first; else the first of the others is what the container is made with.
    let first = networks.first().filter(|_| mode.is_none());
    let networking = first.map(|network| NetworkingConfig {
        endpoints_config: Some(HashMap::from([(network.request.name.clone(), network.endpoint.clone())])),
    });
    host.network_mode = mode.or_else(|| first.map(|network| network.request.name.clone()));
    let ports: Vec<PortConfig> = host_ports(task).cloned().collect();
    host.port_bindings = (!ports.is_empty()).then(|| bindings(&ports));
    let mut exposed: Vec<_> = ports.iter().map(port_key).collect();
    exposed.sort_unstable();
    exposed.dedup();

    let mut env = spec.env.clone();
    env.extend(resource_env(&task.assigned_generic_resources));
    let body = ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint: list(&spec.command),
        cmd: list(&spec.args),
        hostname: text(&spec.hostname),
        env: list(&env),
        working_dir: text(&spec.dir),
        user: text(&spec.user),
        tty: Some(spec.tty),
        open_stdin: Some(spec.open_stdin),
        stop_signal: text(&spec.stop_signal),
        healthcheck: healthcheck(&spec, facts)?,
        labels: Some(labels(task, &spec, &name)),
        exposed_ports: list(&exposed),
        host_config: Some(host),
        networking_config: networking,
        ..Default::default()
    };
    let registry_auth = spec.pull_options.as_ref().map(|options| options.registry_auth.as_str());
    Ok(ContainerPlan {
        init: init::plan(&name, &body, &steps.init_tasks, registry_auth.unwrap_or_default()),
        pre_stop: steps.pre_stop,
        image: spec.image.clone(),
        registry_auth: spec
            .pull_options
            .as_ref()
            .map(|options| options.registry_auth.clone())
            .unwrap_or_default(),
        platform: platform::platform(task, facts),
        volumes: spec.mounts.iter().filter_map(mounts::volume_request).collect(),
        networks,
        files,
        files_dir,
        credential_config,
        body,
        ports,
        stop_grace: spec.stop_grace_period.as_ref().map_or(defaults::STOP_GRACE_PERIOD, duration::to_std),
        tty: spec.tty,
        name,
    })
}

/// Engines take these names only; and a name is part of a request's path.
fn check_name(name: &str) -> Result<(), ControllerError> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.len() > 1 && name.chars().all(good) {
        return Ok(());
    }
    Err(fatal(format!("invalid container name {name:?}: letters, digits, '_', '.' and '-' are allowed")))
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn list(values: &[String]) -> Option<Vec<String>> {
    (!values.is_empty()).then(|| values.to_vec())
}

fn labels(task: &Task, spec: &ContainerSpec, name: &str) -> HashMap<String, String> {
    let user = spec.labels.iter().chain(&task.annotations.labels);
    let mut labels: HashMap<_, _> = user.map(|(key, value)| (key.clone(), value.clone())).collect();
    for (key, value) in [
        ("com.docker.swarm.task", ""),
        (TASK_ID_LABEL, &task.id),
        ("com.docker.swarm.task.name", name),
        (NODE_ID_LABEL, &task.node_id),
        ("com.docker.swarm.service.id", &task.service_id),
        ("com.docker.swarm.service.name", &task.service_annotations.name),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

fn host_config(task: &Task, spec: &ContainerSpec, facts: &EngineFacts) -> HostConfig {
    let dns = spec.dns_config.as_ref();
    let mut host = HostConfig {
        readonly_rootfs: spec.read_only.then_some(true),
        group_add: list(&spec.groups),
        init: spec.init,
        isolation: match spec.isolation() {
            Isolation::Default => None,
            Isolation::Process => Some(HostConfigIsolationEnum::PROCESS),
            Isolation::Hyperv => Some(HostConfigIsolationEnum::HYPERV),
        },
        pids_limit: (spec.pids_limit > 0).then_some(spec.pids_limit),
        ulimits: (!spec.ulimits.is_empty()).then(|| {
            let one = |limit: &swarm_api::v1::container_spec::Ulimit| ResourcesUlimits {
                name: Some(limit.name.clone()),
                soft: Some(limit.soft),
                hard: Some(limit.hard),
            };
            spec.ulimits.iter().map(one).collect()
        }),
        sysctls: (!spec.sysctls.is_empty()).then(|| spec.sysctls.clone().into_iter().collect()),
        cap_add: list(&spec.capability_add),
        cap_drop: list(&spec.capability_drop),
        oom_score_adj: (spec.oom_score_adj != 0).then_some(spec.oom_score_adj),
        extra_hosts: list(&extra_hosts(&spec.hosts)),
        dns: dns.and_then(|dns| list(&dns.nameservers)),
        dns_search: dns.and_then(|dns| list(&dns.search)),
        dns_options: dns.and_then(|dns| list(&dns.options)),
        log_config: task.log_driver.as_ref().map(|driver| HostConfigLogConfig {
            typ: text(&driver.name),
            config: Some(driver.options.clone().into_iter().collect()),
        }),
        ..Default::default()
    };
    let resources = task.spec.resources.as_ref();
    // Needs no limits. (The original leaves it out where there are none.)
    host.memory_swappiness = resources.and_then(|resources| resources.memory_swappiness);
    if let Some(limits) = resources.and_then(|resources| resources.limits.as_ref()) {
        host.nano_cpus = (limits.nano_cpus > 0).then_some(limits.nano_cpus);
        host.memory = (limits.memory_bytes > 0).then_some(limits.memory_bytes);
        let swap = resources.and_then(|resources| resources.swap_bytes).filter(|_| limits.memory_bytes > 0);
        host.memory_swap =
            swap.map(|swap| if swap < 0 { -1 } else { limits.memory_bytes.saturating_add(swap) });
    }
    // Free options of a tmpfs go the older way, which every engine understands.
    let (tmpfs, mounts): (Vec<_>, Vec<_>) =
        spec.mounts.iter().partition(|mount| mounts::as_tmpfs_option(mount));
    let mounts: Vec<_> = mounts.into_iter().map(|mount| mounts::engine_mount(mount, facts)).collect();
    host.mounts = (!mounts.is_empty()).then_some(mounts);
    let tmpfs: HashMap<_, _> =
        tmpfs.into_iter().map(|mount| (mount.target.clone(), mounts::tmpfs_options(mount))).collect();
    host.tmpfs = (!tmpfs.is_empty()).then_some(tmpfs);
    host
}

/// `IP name alias…` as the engine's `name:IP`, once for each name. (The original drops the aliases.)
fn extra_hosts(hosts: &[String]) -> Vec<String> {
    let one = |entry: &String| {
        let mut words = entry.split_whitespace().map(str::to_owned);
        let address = words.next().unwrap_or_default();
        words.map(move |name| format!("{name}:{address}")).collect::<Vec<_>>()
    };
    hosts.iter().flat_map(one).collect()
}

/// Absent: the image's own. A zero within it is the image's too.
fn healthcheck(spec: &ContainerSpec, facts: &EngineFacts) -> Result<Option<HealthConfig>, ControllerError> {
    let Some(check) = &spec.healthcheck else { return Ok(None) };
    if check.start_interval.as_ref().is_some_and(|interval| !duration::to_std(interval).is_zero()) {
        facts.needs("the start interval of a health check", START_INTERVAL)?;
    }
    let nanos = |time: &Option<prost_types::Duration>| {
        let time = time.as_ref().map(duration::to_std)?;
        Some(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
    };
    Ok(Some(HealthConfig {
        test: list(&check.test),
        interval: nanos(&check.interval),
        timeout: nanos(&check.timeout),
        retries: Some(i64::from(check.retries)),
        start_period: nanos(&check.start_period),
        start_interval: nanos(&check.start_interval).filter(|interval| *interval > 0),
    }))
}

/// The ports to publish on the node itself. Ports of the routing mesh are not the engine's matter.
fn host_ports(task: &Task) -> impl Iterator<Item = &PortConfig> {
    let ports = task.endpoint.as_ref().map_or(&[][..], |endpoint| &endpoint.ports);
    ports.iter().filter(|port| port.publish_mode() == PublishMode::Host && port.target_port <= 65_535)
}

fn bindings(ports: &[PortConfig]) -> HashMap<String, Option<Vec<PortBinding>>> {
    let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for port in ports {
        let host_port =
            if port.published_port == 0 { String::new() } else { port.published_port.to_string() };
        let binding = PortBinding { host_ip: None, host_port: Some(host_port) };
        bindings.entry(port_key(port)).or_default().get_or_insert_default().push(binding);
    }
    bindings
}

fn port_key(port: &PortConfig) -> String {
    let protocol = match port.protocol() {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    format!("{}/{protocol}", port.target_port)
}

/// Permission bits in the contract's form (setuid, setgid and sticky stand high) as the kernel has them.
fn unix_mode(mode: u32) -> u32 {
    let moved = |from: u32, to: u32| if mode & (1 << from) == 0 { 0 } else { to };
    (mode & 0o7777) | moved(23, 0o4000) | moved(22, 0o2000) | moved(20, 0o1000)
}

#[cfg(test)]
#[path = "spec_parts_tests.rs"]
mod parts_tests;
#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
