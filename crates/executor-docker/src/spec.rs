//! A task as the body of the request that creates its container. Pure: no engine is asked.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigIsolationEnum, HostConfigLogConfig,
    MountBindOptions, MountBindOptionsPropagationEnum, MountTmpfsOptions, MountType, MountVolumeOptions,
    MountVolumeOptionsDriverConfig, PortBinding, ResourcesUlimits, VolumeCreateRequest,
};
use swarm_agent::ControllerError;
use swarm_agent::template::{Context, expand_container_spec, resource_env};
use swarm_api::v1::container_spec::Isolation;
use swarm_api::v1::mount::{TmpfsOptions, Type, bind_options::Propagation};
use swarm_api::v1::port_config::{Protocol, PublishMode};
use swarm_api::v1::privileges::{app_armor_opts::AppArmorMode, credential_spec, seccomp_opts::SeccompMode};
use swarm_api::v1::{ContainerSpec, Mount, NodeDescription, PortConfig, Privileges, Task, task_spec};
use swarm_api::{defaults, duration, naming};

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
    /// Volumes that need a request of their own, before the container's.
    pub volumes: Vec<VolumeCreateRequest>,
    /// Body of the request that creates the container.
    pub body: ContainerCreateBody,
    /// Time between the stop signal and the kill.
    pub stop_grace: Duration,
    /// The container has a terminal: its output is one stream.
    pub tty: bool,
}

fn fatal(text: impl Into<String>) -> ControllerError {
    ControllerError::Fatal(text.into())
}

/// Works out what the engine is to be asked for. The text of an error tells the user which field is wrong.
///
/// # Errors
/// [`ControllerError::UnsupportedRuntime`] for a task that is no container, [`ControllerError::Fatal`] for a
/// spec that can't be carried out.
pub fn plan(task: &Task, node: Option<&NodeDescription>) -> Result<ContainerPlan, ControllerError> {
    let Some(task_spec::Runtime::Container(spec)) = &task.spec.runtime else {
        return Err(ControllerError::UnsupportedRuntime);
    };
    if spec.image.is_empty() {
        return Err(fatal("dockerexec: image required"));
    }
    let name = naming::task_name(task);
    check_name(&name)?;
    let spec =
        expand_container_spec(spec, &Context::new(task, node)).map_err(|error| fatal(error.to_string()))?;
    spec.mounts.iter().try_for_each(check_mount)?;
    unsupported(&spec)?;

    let mut host = host_config(task, &spec);
    host.network_mode = network_mode(task)?;
    let ports: Vec<_> = host_ports(task).collect();
    host.port_bindings = (!ports.is_empty()).then(|| {
        let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
        for port in &ports {
            let host_port =
                if port.published_port == 0 { String::new() } else { port.published_port.to_string() };
            let binding = PortBinding { host_ip: None, host_port: Some(host_port) };
            bindings.entry(port_key(port)).or_default().get_or_insert_default().push(binding);
        }
        bindings
    });
    let mut exposed: Vec<_> = ports.iter().map(|port| port_key(port)).collect();
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
        healthcheck: healthcheck(&spec),
        labels: Some(labels(task, &spec, &name)),
        exposed_ports: list(&exposed),
        host_config: Some(host),
        ..Default::default()
    };
    Ok(ContainerPlan {
        image: spec.image.clone(),
        registry_auth: spec
            .pull_options
            .as_ref()
            .map(|options| options.registry_auth.clone())
            .unwrap_or_default(),
        volumes: spec.mounts.iter().filter_map(volume_request).collect(),
        body,
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

/// What this node can't do is refused, not left out.
fn unsupported(spec: &ContainerSpec) -> Result<(), ControllerError> {
    if spec.secrets.iter().any(|secret| secret.target.is_some()) {
        return Err(fatal("secrets can't be given to containers on this node"));
    }
    if !spec.configs.is_empty() {
        return Err(fatal("configs can't be given to containers on this node"));
    }
    Ok(())
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

fn host_config(task: &Task, spec: &ContainerSpec) -> HostConfig {
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
        security_opt: spec.privileges.as_ref().and_then(|privileges| list(&security_options(privileges))),
        log_config: task.log_driver.as_ref().map(|driver| HostConfigLogConfig {
            typ: text(&driver.name),
            config: Some(driver.options.clone().into_iter().collect()),
        }),
        ..Default::default()
    };
    let resources = task.spec.resources.as_ref();
    if let Some(limits) = resources.and_then(|resources| resources.limits.as_ref()) {
        host.nano_cpus = (limits.nano_cpus > 0).then_some(limits.nano_cpus);
        host.memory = (limits.memory_bytes > 0).then_some(limits.memory_bytes);
        host.memory_swappiness = resources.and_then(|resources| resources.memory_swappiness);
        let swap = resources.and_then(|resources| resources.swap_bytes).filter(|_| limits.memory_bytes > 0);
        host.memory_swap =
            swap.map(|swap| if swap < 0 { -1 } else { limits.memory_bytes.saturating_add(swap) });
    }
    let mounts: Vec<_> =
        spec.mounts.iter().filter(|mount| !as_tmpfs_option(mount)).map(engine_mount).collect();
    host.mounts = (!mounts.is_empty()).then_some(mounts);
    let tmpfs: HashMap<_, _> = spec
        .mounts
        .iter()
        .filter(|mount| as_tmpfs_option(mount))
        .map(|mount| (mount.target.clone(), tmpfs_options(mount)))
        .collect();
    host.tmpfs = (!tmpfs.is_empty()).then_some(tmpfs);
    host
}

/// `IP name alias…` as the engine's `name:IP`; what has no name is left out.
fn extra_hosts(hosts: &[String]) -> Vec<String> {
    let one = |entry: &String| {
        let mut words = entry.split_whitespace();
        let (address, name) = (words.next()?, words.next()?);
        Some(format!("{name}:{address}"))
    };
    hosts.iter().filter_map(one).collect()
}

fn security_options(privileges: &Privileges) -> Vec<String> {
    let mut options = Vec::new();
    if let Some(source) = privileges.credential_spec.as_ref().and_then(|spec| spec.source.as_ref()) {
        options.push(match source {
            credential_spec::Source::File(file) => format!("credentialspec=file://{file}"),
            credential_spec::Source::Registry(value) => format!("credentialspec=registry://{value}"),
            credential_spec::Source::Config(config) => format!("credentialspec=config://{config}"),
        });
    }
    if let Some(selinux) = &privileges.selinux_context {
        if selinux.disable {
            options.push("label=disable".to_owned());
        }
        for (key, value) in [
            ("user", &selinux.user),
            ("role", &selinux.role),
            ("level", &selinux.level),
            ("type", &selinux.r#type),
        ] {
            if !value.is_empty() {
                options.push(format!("label={key}:{value}"));
            }
        }
    }
    if let Some(seccomp) = &privileges.seccomp {
        match seccomp.mode() {
            SeccompMode::Default => {}
            SeccompMode::Unconfined => options.push("seccomp=unconfined".to_owned()),
            SeccompMode::Custom => {
                options.push(format!("seccomp={}", String::from_utf8_lossy(&seccomp.profile)));
            }
        }
    }
    if privileges.apparmor.as_ref().is_some_and(|apparmor| apparmor.mode() == AppArmorMode::Disabled) {
        options.push("apparmor=unconfined".to_owned());
    }
    if privileges.no_new_privileges {
        options.push("no-new-privileges=true".to_owned());
    }
    options
}

/// Absent: the image's own. A zero within it is the image's too.
fn healthcheck(spec: &ContainerSpec) -> Option<HealthConfig> {
    let check = spec.healthcheck.as_ref()?;
    let nanos = |time: &Option<prost_types::Duration>| {
        let time = time.as_ref().map(duration::to_std)?;
        Some(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
    };
    Some(HealthConfig {
        test: list(&check.test),
        interval: nanos(&check.interval),
        timeout: nanos(&check.timeout),
        retries: Some(i64::from(check.retries)),
        start_period: nanos(&check.start_period),
        start_interval: nanos(&check.start_interval),
    })
}

/// The ports to publish on the node itself. Ports of the routing mesh are not the engine's matter.
fn host_ports(task: &Task) -> impl Iterator<Item = &PortConfig> {
    let ports = task.endpoint.as_ref().map_or(&[][..], |endpoint| &endpoint.ports);
    ports.iter().filter(|port| port.publish_mode() == PublishMode::Host && port.target_port <= 65_535)
}

fn port_key(port: &PortConfig) -> String {
    let protocol = match port.protocol() {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    format!("{}/{protocol}", port.target_port)
}

/// A predefined network is a mode of the engine; no network at all is its default. Attachments to the routing
/// mesh are left out here: they are not made by the engine.
fn network_mode(task: &Task) -> Result<Option<String>, ControllerError> {
    let mut mode = None;
    for attachment in &task.networks {
        let Some(network) = &attachment.network else { continue };
        let annotations = &network.spec.annotations;
        if network.spec.ingress {
            continue;
        }
        if annotations.labels.get("com.docker.swarm.predefined").is_some_and(|value| value == "true") {
            mode = mode.or_else(|| Some(annotations.name.clone()));
            continue;
        }
        let driver = network.driver_state.as_ref().map_or("unknown", |driver| &driver.name);
        return Err(fatal(format!(
            "network {:?}: this node can't attach containers to networks of the driver {driver:?}",
            annotations.name
        )));
    }
    Ok(mode)
}

fn check_mount(mount: &Mount) -> Result<(), ControllerError> {
    let absolute = |path: &str| path.starts_with('/');
    let kind =
        Type::try_from(mount.r#type).map_err(|_| fatal(format!("invalid mount type: {}", mount.r#type)))?;
    if kind != Type::Npipe && !absolute(&mount.target) {
        return Err(fatal(format!("invalid mount target, must be an absolute path: {}", mount.target)));
    }
    match kind {
        Type::Bind if !absolute(&mount.source) => {
            Err(fatal(format!("invalid bind mount source, must be an absolute path: {}", mount.source)))
        }
        Type::Volume if absolute(&mount.source) => {
            Err(fatal(format!("invalid volume mount source, must not be an absolute path: {}", mount.source)))
        }
        Type::Tmpfs if !mount.source.is_empty() => Err(fatal("invalid tmpfs source, source must be empty")),
        Type::Npipe if mount.source.is_empty() => {
            Err(fatal("invalid npipe source, source must not be empty"))
        }
        Type::Cluster => {
            Err(fatal(format!("cluster volume {:?}: this node has no CSI plug-ins", mount.source)))
        }
        _ => Ok(()),
    }
}

fn engine_mount(mount: &Mount) -> bollard::models::Mount {
    let mut out = bollard::models::Mount {
        target: Some(mount.target.clone()),
        source: text(&mount.source),
        read_only: Some(mount.readonly),
        ..Default::default()
    };
    match mount.r#type() {
        Type::Bind => {
            out.typ = Some(MountType::BIND);
            out.bind_options = mount.bind_options.as_ref().map(|options| MountBindOptions {
                propagation: Some(match options.propagation() {
                    Propagation::Rprivate => MountBindOptionsPropagationEnum::RPRIVATE,
                    Propagation::Private => MountBindOptionsPropagationEnum::PRIVATE,
                    Propagation::Rshared => MountBindOptionsPropagationEnum::RSHARED,
                    Propagation::Shared => MountBindOptionsPropagationEnum::SHARED,
                    Propagation::Rslave => MountBindOptionsPropagationEnum::RSLAVE,
                    Propagation::Slave => MountBindOptionsPropagationEnum::SLAVE,
                }),
                non_recursive: options.nonrecursive.then_some(true),
                create_mountpoint: options.createmountpoint.then_some(true),
                read_only_non_recursive: options.readonlynonrecursive.then_some(true),
                read_only_force_recursive: options.readonlyforcerecursive.then_some(true),
            });
        }
        Type::Volume => {
            out.typ = Some(MountType::VOLUME);
            out.volume_options = mount.volume_options.as_ref().map(|options| MountVolumeOptions {
                no_copy: Some(options.nocopy),
                labels: (!options.labels.is_empty()).then(|| options.labels.clone().into_iter().collect()),
                driver_config: options.driver_config.as_ref().map(|driver| MountVolumeOptionsDriverConfig {
                    name: text(&driver.name),
                    options: (!driver.options.is_empty())
                        .then(|| driver.options.clone().into_iter().collect()),
                }),
                subpath: text(&options.subpath),
            });
        }
        Type::Tmpfs => {
            out.typ = Some(MountType::TMPFS);
            out.tmpfs_options = mount.tmpfs_options.as_ref().map(|options| MountTmpfsOptions {
                size_bytes: (options.size_bytes > 0).then_some(options.size_bytes),
                mode: (options.mode > 0).then_some(i64::from(options.mode)),
                options: None,
            });
        }
        Type::Npipe => out.typ = Some(MountType::NPIPE),
        Type::Cluster => out.typ = Some(MountType::CLUSTER),
    }
    out
}

/// Free options of a tmpfs go the old way, which every engine understands.
fn as_tmpfs_option(mount: &Mount) -> bool {
    mount.r#type() == Type::Tmpfs
        && mount.tmpfs_options.as_ref().is_some_and(|options| !options.options.is_empty())
}

/// The options of a tmpfs as mount(8) writes them.
fn tmpfs_options(mount: &Mount) -> String {
    let mut words = Vec::new();
    if mount.readonly {
        words.push("ro".to_owned());
    }
    if let Some(options) = &mount.tmpfs_options {
        if options.mode != 0 {
            words.push(format!("mode={:o}", unix_mode(options.mode)));
        }
        if options.size_bytes > 0 {
            words.push(format!("size={}", options.size_bytes));
        }
        words.extend(free_tmpfs_options(options));
    }
    words.join(",")
}

/// Clients write a JSON array of arrays (`[["exec"],["uid","1000"]]`) or a comma-separated list.
fn free_tmpfs_options(options: &TmpfsOptions) -> Vec<String> {
    if let Ok(pairs) = serde_json::from_str::<Vec<Vec<String>>>(&options.options) {
        return pairs.into_iter().map(|pair| pair.join("=")).collect();
    }
    options.options.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Permission bits in the contract's form (setuid, setgid and sticky stand high) as the kernel has them.
fn unix_mode(mode: u32) -> u32 {
    let moved = |from: u32, to: u32| if mode & (1 << from) == 0 { 0 } else { to };
    (mode & 0o7777) | moved(23, 0o4000) | moved(22, 0o2000) | moved(20, 0o1000)
}

/// A volume with a driver of its own exists before its container.
fn volume_request(mount: &Mount) -> Option<VolumeCreateRequest> {
    let options = mount.volume_options.as_ref().filter(|_| mount.r#type() == Type::Volume)?;
    let driver = options.driver_config.as_ref().filter(|_| !mount.source.is_empty())?;
    Some(VolumeCreateRequest {
        name: Some(mount.source.clone()),
        driver: text(&driver.name),
        driver_opts: Some(driver.options.clone().into_iter().collect()),
        labels: Some(options.labels.clone().into_iter().collect()),
        cluster_volume_spec: None,
    })
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
