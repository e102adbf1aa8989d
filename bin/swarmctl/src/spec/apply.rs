//! Applies flags to a spec.

use swarm_api::extensions::{self, PlacementPolicy};
use swarm_api::v1::endpoint_spec::ResolutionMode;
use swarm_api::v1::restart_policy::RestartCondition;
use swarm_api::v1::service_spec;
use swarm_api::v1::update_config::{FailureAction, UpdateOrder};
use swarm_api::v1::{
    ContainerSpec, Driver, GlobalJob, GlobalService, Placement, ReplicatedJob, ReplicatedService,
    RestartPolicy, ServiceSpec, TaskSpec, UpdateConfig, task_spec,
};
use swarm_placement::{Constraint, generic};

use super::container::set;
use super::flags::{EndpointMode, Mode, OnFailure, OnRollbackFailure, Order, Rebalance, Restart, Runtime};
use super::lists::{attached, published};
use super::{Changes, CreateFlags, Found, ServiceFlags, container, process, references, start};
use crate::error::{Error, Result};
use crate::values::csv::join;
use crate::values::{pair, port, preference};

/// The spec of a new service, before the flags that create has in common with update.
pub(crate) fn new_spec(create: &CreateFlags, flags: &ServiceFlags) -> Result<ServiceSpec> {
    if flags.name.is_none() {
        return Err(Error::usage("--name must be given"));
    }
    let runtime = match create.runtime {
        Some(Runtime::Process) => {
            let command = flags.command.is_some() || flags.entrypoint.is_some();
            if !command && flags.words.is_empty() {
                return Err(Error::usage("--command, or words after --, must say which process to run"));
            }
            if !command && flags.args.is_some() {
                let text =
                    "with --args, words after -- are arguments too: --command must say which process to run";
                return Err(Error::usage(text));
            }
            task_spec::Runtime::Generic(process::encode(&Default::default()))
        }
        _ if flags.image.is_none() => {
            return Err(Error::usage("--image must be given (or --runtime process for a native process)"));
        }
        _ => task_spec::Runtime::Container(ContainerSpec::default()),
    };
    let mode = match create.mode {
        Some(Mode::Global) => service_spec::Mode::Global(GlobalService {}),
        Some(Mode::GlobalJob) => service_spec::Mode::GlobalJob(GlobalJob {}),
        Some(Mode::ReplicatedJob) => {
            let total_completions = flags.total_completions.or(flags.replicas).unwrap_or(1);
            service_spec::Mode::ReplicatedJob(ReplicatedJob {
                max_concurrent: total_completions,
                total_completions,
            })
        }
        _ => service_spec::Mode::Replicated(ReplicatedService { replicas: 1 }),
    };
    let task = TaskSpec { runtime: Some(runtime), restart: Some(any()), ..Default::default() };
    Ok(ServiceSpec { task: task.into(), mode: Some(mode), ..Default::default() })
}

/// The spec to send in place of the one before, with the constraints that the manager would put there itself; `None` if that
/// is no change.
pub(crate) fn changed(mut spec: ServiceSpec, before: &ServiceSpec) -> Option<ServiceSpec> {
    // What another make stored without them is not changed by those who ask for nothing.
    if spec == *before {
        return None;
    }
    extensions::guard(&mut spec.task);
    (spec != *before).then_some(spec)
}

fn any() -> RestartPolicy {
    RestartPolicy { condition: RestartCondition::Any as i32, ..Default::default() }
}

/// Applies the flags that were given.
pub(crate) fn apply(
    spec: &mut ServiceSpec,
    flags: &ServiceFlags,
    changes: &Changes,
    found: &Found,
) -> Result<()> {
    if let Some(name) = &flags.name {
        spec.annotations.name.clone_from(name);
    }
    if let Some(terms) = join(flags.label.as_ref()) {
        // Ours are set by flags of their own.
        spec.annotations.labels.retain(|label, _| label.starts_with(extensions::PREFIX));
        spec.annotations.labels.extend(pair::labels(&terms).map_err(Error::Usage)?);
    }
    if flags.placement_strategy.is_some() || flags.priority.is_some() {
        let labels = &mut spec.annotations.labels;
        let mut policy = PlacementPolicy::read(labels).map_err(Error::Plain)?;
        policy.strategy = flags.placement_strategy.unwrap_or(policy.strategy);
        policy.priority = flags.priority.unwrap_or(policy.priority);
        policy.write(labels);
    }
    start::apply_order(spec, flags, found);
    rebalance(spec, flags)?;
    mode(spec, flags)?;
    let before = super::extensions::Before::of(spec)?;
    runtime(spec, flags, changes, found)?;
    resources(spec, flags)?;
    endpoint(spec, flags)?;
    if let Some(networks) = flags.networks()? {
        spec.task.networks =
            networks.iter().map(|network| attached(network, found)).collect::<Result<_>>()?;
    }
    changes.lists.apply(spec, found)?;
    restart(spec, flags);
    Pace::of_updates(flags).apply(&mut spec.update);
    Pace::of_rollbacks(flags).apply(&mut spec.rollback);
    if let Some(texts) = join(flags.constraint.as_ref()) {
        Constraint::parse_all(&texts).map_err(|error| Error::usage(error.to_string()))?;
        if let Some(placement) = placement(spec, texts.is_empty()) {
            placement.constraints = texts;
        }
    }
    super::extensions::apply(spec, flags, changes, before)?;
    if let Some(texts) = join(flags.placement_pref.as_ref()) {
        let preferences = texts.iter().map(|text| preference::parse(text)).collect::<Result<_, _>>();
        if let Some(placement) = placement(spec, texts.is_empty()) {
            placement.preferences = preferences.map_err(Error::Usage)?;
        }
    }
    if let Some(name) = &flags.log_driver {
        let options = pair::options(&join(flags.log_opt.as_ref()).unwrap_or_default());
        spec.task.log_driver = (!name.is_empty()).then(|| Driver { name: name.clone(), options });
    }
    Ok(())
}

/// The section to write to; `None` if there is none and what is to be written is nothing. An empty one is not the
/// same as none: tasks would be replaced.
fn section<T: Default>(present: &mut Option<T>, is_empty: bool) -> Option<&mut T> {
    match is_empty {
        true => present.as_mut(),
        false => Some(present.get_or_insert_default()),
    }
}

/// The placement to write to, if there is one or something is to be written.
pub(super) fn placement(spec: &mut ServiceSpec, is_empty: bool) -> Option<&mut Placement> {
    section(&mut spec.task.placement, is_empty)
}

/// What is published, and how.
fn endpoint(spec: &mut ServiceSpec, flags: &ServiceFlags) -> Result<()> {
    let ports = join(flags.ports.as_ref());
    let ports = ports.map(|texts| texts.iter().map(|text| port::parse(text)).collect::<Result<Vec<_>, _>>());
    let ports = ports.transpose().map_err(Error::Usage)?;
    let published = published(flags.publish.as_ref())?;
    if ports.is_some() || published.is_some() {
        let ports: Vec<_> = ports.into_iter().chain(published).flatten().collect();
        if let Some(endpoint) = section(&mut spec.endpoint, ports.is_empty()) {
            endpoint.ports = ports;
        }
    }
    match flags.endpoint_mode {
        None => {}
        // What is not there is that.
        Some(EndpointMode::Vip) => {
            if let Some(endpoint) = &mut spec.endpoint {
                endpoint.mode = ResolutionMode::Vip as i32;
            }
        }
        Some(EndpointMode::Dnsrr) => {
            spec.endpoint.get_or_insert_default().mode = ResolutionMode::Dnsrr as i32;
        }
    }
    Ok(())
}

fn rebalance(spec: &mut ServiceSpec, flags: &ServiceFlags) -> Result<()> {
    let labels = &mut spec.annotations.labels;
    match flags.rebalance {
        None => {}
        Some(Rebalance::Off) => drop(labels.remove(extensions::REBALANCE)),
        Some(Rebalance::Auto) if !matches!(spec.mode, Some(service_spec::Mode::Replicated(_))) => {
            return Err(Error::usage("--rebalance is only for replicated services"));
        }
        Some(Rebalance::Auto) => drop(labels.insert(extensions::REBALANCE.into(), "auto".into())),
    }
    Ok(())
}

fn mode(spec: &mut ServiceSpec, flags: &ServiceFlags) -> Result<()> {
    let (total, at_once) = (flags.total_completions, flags.max_concurrent);
    match &mut spec.mode {
        Some(service_spec::Mode::ReplicatedJob(job)) => {
            set(&mut job.total_completions, total.or(flags.replicas).as_ref());
            set(&mut job.max_concurrent, at_once.as_ref());
        }
        _ if total.is_some() || at_once.is_some() => {
            return Err(Error::usage(
                "--total-completions and --max-concurrent are only for replicated jobs",
            ));
        }
        Some(service_spec::Mode::Replicated(replicated)) => {
            set(&mut replicated.replicas, flags.replicas.as_ref());
        }
        _ if flags.replicas.is_some() => {
            return Err(Error::usage("--replicas is only for replicated services"));
        }
        _ => {}
    }
    if let Some(most) = flags.replicas_max_per_node {
        use service_spec::Mode::{Replicated, ReplicatedJob};
        if !matches!(spec.mode, Some(Replicated(_) | ReplicatedJob(_))) {
            return Err(Error::usage("--replicas-max-per-node is only for replicated services"));
        }
        if let Some(placement) = placement(spec, most == 0) {
            placement.max_replicas = most;
        }
    }
    Ok(())
}

fn runtime(spec: &mut ServiceSpec, flags: &ServiceFlags, changes: &Changes, found: &Found) -> Result<()> {
    match &mut spec.task.runtime {
        Some(task_spec::Runtime::Container(spec)) => {
            changes.remove_mounts(spec);
            container::apply(spec, flags, found)?;
            changes.apply(spec, found)
        }
        Some(task_spec::Runtime::Generic(generic)) => match process::decode(generic) {
            Some(before) => {
                let mut now = before.clone();
                process::apply(&mut now, flags)?;
                changes.apply_to_process(&mut now, found)?;
                *generic = process::encode(&now);
                let present = &spec.task.resource_references;
                let references = references::resource_references(present, &before, &now);
                if references != *present {
                    spec.task.resource_references = references;
                }
                Ok(())
            }
            None => {
                Err(Error::plain(format!("this command can't change tasks of runtime {:?}", generic.kind)))
            }
        },
        _ => Err(Error::plain("this command can't change a service without a runtime")),
    }
}

fn resources(spec: &mut ServiceSpec, flags: &ServiceFlags) -> Result<()> {
    let generic = flags.generic_resources.as_ref().map(|texts| {
        let texts: Vec<&str> = texts.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        texts.join(",")
    });
    if generic.as_deref() == Some("")
        && let Some(reservations) = spec.task.resources.as_mut().and_then(|r| r.reservations.as_mut())
    {
        reservations.generic.clear();
    }
    let generic = generic.filter(|text| !text.is_empty());
    let asks = |flag: Option<i64>| flag.is_some_and(|amount| amount != 0);
    let limits = asks(flags.memory_limit) || asks(flags.cpu_limit);
    let reservations = asks(flags.memory_reservation) || asks(flags.cpu_reservation) || generic.is_some();
    let (swap, swappiness) = (flags.container.memory_swap, flags.container.memory_swappiness);
    let is_empty = !limits && !reservations && swap.is_none() && swappiness.is_none();
    let Some(resources) = section(&mut spec.task.resources, is_empty) else { return Ok(()) };
    resources.swap_bytes = swap.or(resources.swap_bytes);
    resources.memory_swappiness = swappiness.or(resources.memory_swappiness);
    if let Some(limits) = section(&mut resources.limits, !limits) {
        set(&mut limits.memory_bytes, flags.memory_limit.as_ref());
        set(&mut limits.nano_cpus, flags.cpu_limit.as_ref());
    }
    if resources.limits.as_ref().is_none_or(|limits| limits.memory_bytes <= 0) {
        if swap.is_some() {
            return Err(Error::usage(
                "--memory-swap is the swap beside a memory limit, and there is none: --memory-limit sets one",
            ));
        }
        // Who takes the limit away takes what lies beside it.
        if flags.memory_limit.is_some() {
            resources.swap_bytes = None;
        }
    }
    if let Some(reservations) = section(&mut resources.reservations, !reservations) {
        set(&mut reservations.memory_bytes, flags.memory_reservation.as_ref());
        set(&mut reservations.nano_cpus, flags.cpu_reservation.as_ref());
        if let Some(text) = generic {
            reservations.generic =
                generic::parse_request(&text).map_err(|error| Error::usage(error.to_string()))?;
        }
    }
    Ok(())
}

fn restart(spec: &mut ServiceSpec, flags: &ServiceFlags) {
    let given = flags.restart_condition.is_some()
        || flags.restart_delay.is_some()
        || flags.restart_max_attempts.is_some()
        || flags.restart_window.is_some();
    if !given {
        return;
    }
    let policy = spec.task.restart.get_or_insert_with(any);
    if let Some(condition) = flags.restart_condition {
        policy.condition = match condition {
            Restart::Any => RestartCondition::Any,
            Restart::Failure => RestartCondition::OnFailure,
            Restart::None => RestartCondition::None,
        } as i32;
    }
    set(&mut policy.max_attempts, flags.restart_max_attempts.as_ref());
    if flags.restart_delay.is_some() {
        policy.delay = flags.restart_delay;
    }
    if flags.restart_window.is_some() {
        policy.window = flags.restart_window;
    }
}

/// What the flags say of updates, or of rollbacks.
struct Pace {
    parallelism: Option<u64>,
    delay: Option<prost_types::Duration>,
    monitor: Option<prost_types::Duration>,
    max_failure_ratio: Option<f32>,
    failure_action: Option<FailureAction>,
    order: Option<Order>,
}

impl Pace {
    fn of_updates(flags: &ServiceFlags) -> Pace {
        Pace {
            parallelism: flags.update_parallelism,
            delay: flags.update_delay,
            monitor: flags.update_monitor,
            max_failure_ratio: flags.update_max_failure_ratio,
            failure_action: flags.update_on_failure.map(|action| match action {
                OnFailure::Pause => FailureAction::Pause,
                OnFailure::Continue => FailureAction::Continue,
                OnFailure::Rollback => FailureAction::Rollback,
            }),
            order: flags.update_order,
        }
    }

    fn of_rollbacks(flags: &ServiceFlags) -> Pace {
        Pace {
            parallelism: flags.rollback_parallelism,
            delay: flags.rollback_delay,
            monitor: flags.rollback_monitor,
            max_failure_ratio: flags.rollback_max_failure_ratio,
            failure_action: flags.rollback_on_failure.map(|action| match action {
                OnRollbackFailure::Pause => FailureAction::Pause,
                OnRollbackFailure::Continue => FailureAction::Continue,
            }),
            order: flags.rollback_order,
        }
    }

    /// Applies what was given. A section that is new starts from what applies without it: one task at a time.
    fn apply(self, config: &mut Option<UpdateConfig>) {
        let Pace { parallelism, delay, monitor, max_failure_ratio, failure_action, order } = self;
        let mut new = config.unwrap_or(UpdateConfig { parallelism: 1, ..Default::default() });
        set(&mut new.parallelism, parallelism.as_ref());
        set(&mut new.delay, delay.as_ref());
        set(&mut new.max_failure_ratio, max_failure_ratio.as_ref());
        set(&mut new.failure_action, failure_action.map(i32::from).as_ref());
        let order = order.map(|order| match order {
            Order::StopFirst => UpdateOrder::StopFirst as i32,
            Order::StartFirst => UpdateOrder::StartFirst as i32,
        });
        set(&mut new.order, order.as_ref());
        new.monitor = monitor.or(new.monitor);
        let given = parallelism.is_some()
            || delay.is_some()
            || monitor.is_some()
            || max_failure_ratio.is_some()
            || failure_action.is_some()
            || order.is_some();
        if given {
            *config = Some(new);
        }
    }
}
