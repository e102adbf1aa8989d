//! Services and nodes of all shapes.

use swarm_api::extensions::{PlacementPolicy, REBALANCE, Strategy};
use swarm_api::v1::generic_resource::Resource;
use swarm_api::v1::placement_preference::Preference;
use swarm_api::v1::port_config::{Protocol, PublishMode};
use swarm_api::v1::restart_policy::RestartCondition;
use swarm_api::v1::update_config::{FailureAction, UpdateOrder};
use swarm_api::v1::{
    ContainerSpec, DiscreteGenericResource, Driver, EndpointSpec, EngineDescription, GenericResource,
    GlobalJob, GlobalService, JobStatus, NamedGenericResource, NetworkAttachmentConfig, Node,
    NodeDescription, Placement, PlacementPreference, Platform, PluginDescription, PortConfig, ReplicatedJob,
    ResourceRequirements, Resources, RestartPolicy, Service, ServiceSpec, SpreadOver, TaskSpec, UpdateConfig,
    service_spec, task_spec,
};

use crate::common::{node, secs, service, wire};
use crate::dice::Dice;

/// The network that nodes make for themselves.
pub(crate) const NETWORK: &str = "net";

pub(crate) fn container(image: &str) -> Option<task_spec::Runtime> {
    Some(task_spec::Runtime::Container(ContainerSpec { image: image.into(), ..Default::default() }))
}

fn discrete(kind: &str, value: i64) -> GenericResource {
    let spec = DiscreteGenericResource { kind: kind.into(), value };
    GenericResource { resource: Some(Resource::DiscreteResourceSpec(spec)) }
}

fn named(kind: &str, value: &str) -> GenericResource {
    let spec = NamedGenericResource { kind: kind.into(), value: value.into() };
    GenericResource { resource: Some(Resource::NamedResourceSpec(spec)) }
}

/// What a node of this size has. Those of odd sizes have an engine without the plugin of the network.
pub(crate) fn described(size: u64) -> NodeDescription {
    let names = (0..size.min(3)).map(|n| named("gpu", &format!("g{n}")));
    let resources = Resources {
        nano_cpus: size as i64,
        memory_bytes: 2 * size as i64,
        generic: names.chain([discrete("disk", size as i64)]).collect(),
    };
    let architecture = if size.is_multiple_of(3) { "aarch64" } else { "x86_64" };
    let platform = Platform { os: "linux".into(), architecture: architecture.into() };
    let plugin = |kind: &str, name: &str| PluginDescription { r#type: kind.into(), name: name.into() };
    let mut plugins = vec![plugin("Log", "json-file")];
    if size.is_multiple_of(2) {
        plugins.extend([plugin("Network", "bridge"), plugin("Log", "syslog")]);
    }
    let engine = EngineDescription { plugins, ..Default::default() };
    NodeDescription {
        resources: Some(resources),
        platform: Some(platform),
        engine: Some(engine),
        ..Default::default()
    }
}

/// A node that can be given everything that a service asks for.
pub(crate) fn new_node(id: &str, size: u64) -> Node {
    let mut node = node(id);
    node.description = Some(described(size));
    node
}

pub(crate) fn new_service(shape: u64, number: usize, large: bool) -> Service {
    let mut dice = Dice::new(shape);
    let kind = dice.pick(["replicated", "replicated", "global", "replicated-job", "global-job"]);
    let order = dice.pick(["start-first", "either-start-first", "stop-first", "stop-first", "stop-first"]);
    let most = if large { 60 } else { 6 };
    let mut new = service(&format!("{kind}-{number}-{order}"), dice.roll(most) as u64);
    let job = |dice: &mut Dice| ReplicatedJob {
        max_concurrent: dice.roll(4) as u64,
        total_completions: dice.roll(most + 2) as u64,
    };
    new.spec.mode = match kind {
        "global" => Some(service_spec::Mode::Global(GlobalService {})),
        "replicated-job" => Some(service_spec::Mode::ReplicatedJob(job(&mut dice))),
        "global-job" => Some(service_spec::Mode::GlobalJob(GlobalJob {})),
        _ => new.spec.mode,
    };
    new.job_status = is_job(&new).then(JobStatus::default);
    new.spec.task = TaskSpec { runtime: container("v0"), ..Default::default() }.into();
    let (id, mut spec) = (new.id.clone(), new.spec);
    reshape(&mut spec, &id, dice.next());
    new.spec = spec;
    new
}

pub(crate) fn is_job(service: &Service) -> bool {
    service.id.contains("job")
}

/// Gives a spec another shape, whatever its mode.
pub(crate) fn reshape(spec: &mut ServiceSpec, id: &str, shape: u64) {
    let mut dice = Dice::new(shape);
    let mut config = || {
        let starts_first = id.ends_with("start-first") && !(id.contains("either") && dice.one_in(2));
        let order = if starts_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        let config = UpdateConfig {
            parallelism: dice.roll(4) as u64,
            delay: wire(secs(dice.pick([0, 0, 3]))).unwrap(),
            failure_action: dice.pick([
                FailureAction::Pause,
                FailureAction::Continue,
                FailureAction::Rollback,
            ]) as i32,
            max_failure_ratio: dice.pick([0.0, 0.3, 1.0]),
            order: order as i32,
            monitor: dice.pick([None, None, Some(1), Some(20)]).and_then(|s| wire(secs(s))),
        };
        (order == UpdateOrder::StartFirst || !dice.one_in(4)).then_some(config)
    };
    (spec.update, spec.rollback) = if id.contains("job") { (None, None) } else { (config(), config()) };
    let mut dice = Dice::new(shape ^ 0xabcd);
    let is_replicated = id.starts_with("replicated-") && !id.contains("job");
    if is_replicated && dice.one_in(3) {
        spec.annotations.labels.insert(REBALANCE.into(), "auto".into());
    } else {
        spec.annotations.labels.remove(REBALANCE);
    }
    let policy = PlacementPolicy {
        strategy: dice.pick([Strategy::Spread, Strategy::Spread, Strategy::Binpack]),
        priority: dice.pick([0, 0, 5, -3]),
    };
    policy.write(&mut spec.annotations.labels);
    spec.endpoint = endpoint(&mut dice, id);
    let task = &mut *spec.task;
    task.restart = Some(restart(&mut dice));
    task.placement = Some(placement(&mut dice, id));
    task.resources = resources(&mut dice);
    let attached = NetworkAttachmentConfig { target: NETWORK.into(), ..Default::default() };
    task.networks = if dice.one_in(6) { vec![attached] } else { Vec::new() };
    task.log_driver = dice
        .pick([None, None, None, None, Some("json-file"), Some("syslog")])
        .map(|name| Driver { name: name.into(), ..Default::default() });
}

fn restart(dice: &mut Dice) -> RestartPolicy {
    let condition = dice.pick([
        RestartCondition::Any,
        RestartCondition::Any,
        RestartCondition::OnFailure,
        RestartCondition::None,
    ]);
    RestartPolicy {
        condition: condition as i32,
        delay: wire(secs(dice.pick([0, 1, 5]))),
        max_attempts: dice.pick([0, 0, 0, 1, 3]),
        window: dice.one_in(3).then(|| wire(secs(20))).flatten(),
    }
}

fn placement(dice: &mut Dice, id: &str) -> Placement {
    let constraint = match dice.roll(12) {
        0..=1 => Some("node.labels.zone==a"),
        2..=3 => Some("node.labels.zone!=b"),
        4 => Some("node.id!=m00"),
        5 => Some("node.platform.arch==x86_64"),
        _ => None,
    };
    let spread = |label: &str| {
        let over = SpreadOver { spread_descriptor: label.into() };
        PlacementPreference { preference: Some(Preference::Spread(over)) }
    };
    let preferences = match dice.roll(6) {
        0 => vec![spread("node.labels.zone")],
        1 => vec![spread("node.labels.zone"), spread("node.labels.rack")],
        _ => Vec::new(),
    };
    let arm = Platform { os: "linux".into(), architecture: "arm64".into() };
    let amd = Platform { os: String::new(), architecture: "amd64".into() };
    Placement {
        constraints: constraint.map(str::to_owned).into_iter().collect(),
        max_replicas: if id.starts_with("replicated") { dice.pick([0, 0, 0, 2]) } else { 0 },
        preferences,
        platforms: match dice.roll(12) {
            0 => vec![amd],
            1 => vec![amd, arm],
            _ => Vec::new(),
        },
    }
}

fn resources(dice: &mut Dice) -> Option<ResourceRequirements> {
    let generic = match dice.roll(12) {
        0 => vec![discrete("gpu", 1)],
        1 => vec![discrete("disk", 2)],
        2 => vec![discrete("disk", 1), discrete("gpu", 2)],
        _ => Vec::new(),
    };
    let reserved =
        Resources { nano_cpus: dice.pick([0, 0, 1, 2]), memory_bytes: dice.pick([0, 0, 0, 1, 3]), generic };
    (reserved != Resources::default())
        .then(|| ResourceRequirements { reservations: Some(reserved), ..Default::default() })
}

fn endpoint(dice: &mut Dice, id: &str) -> Option<EndpointSpec> {
    let port = |mode: PublishMode, protocol: Protocol, published_port: u32| PortConfig {
        target_port: 80,
        published_port,
        publish_mode: mode as i32,
        protocol: protocol as i32,
        ..Default::default()
    };
    let (tcp, udp, host, ingress) = (Protocol::Tcp, Protocol::Udp, PublishMode::Host, PublishMode::Ingress);
    // As the control API sees to it, no two services publish the same one.
    let own =
        9_000 + id.bytes().filter(u8::is_ascii_digit).fold(0, |n, d| n * 10 + u32::from(d - b'0')) % 1_000;
    let ports = match dice.roll(18) {
        0..=2 => vec![port(host, tcp, 8080)],
        3 => vec![port(host, udp, 8080)],
        4 => vec![port(host, tcp, 8080), port(host, udp, 8080), port(host, tcp, 8081)],
        5 => vec![port(ingress, tcp, 0)],
        6 => vec![port(ingress, tcp, own), port(host, tcp, 8081)],
        _ => return None,
    };
    Some(EndpointSpec { ports, ..Default::default() })
}
