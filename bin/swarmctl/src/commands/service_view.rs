//! Pages and tables of services.

use std::time::SystemTime;

use swarm_api::Shared;
use swarm_api::v1::endpoint_spec::ResolutionMode;
use swarm_api::v1::node_status::State;
use swarm_api::v1::port_config::Protocol;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::{Driver, Node, Resources, Service, Task, TaskSpec, TaskState, task_spec};

use super::node::generic;
use super::{policy_view, runtime_view, task_view, update_view};
use crate::output::{Names, Table, time};
use crate::spec::decode_process;
use crate::values::{cpu, size};

/// How many tasks of a service there are; of a job, those of its present run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Count {
    running: usize,
    completed: usize,
    /// To complete, and not there yet.
    open: usize,
}

impl Count {
    /// Tasks for which `up` does not hold run on nodes that are down.
    pub(super) fn of(service: &Service, tasks: &[Shared<Task>], up: impl Fn(&Task) -> bool) -> Count {
        let iteration = iteration(service);
        let mut count = Count::default();
        let of_job = |task: &Task| iteration.is_none() || task.job_iteration.map(|i| i.index) == iteration;
        for task in tasks.iter().filter(|t| t.service_id == service.id && of_job(t)) {
            let (state, desired) = (task.status.state(), task.desired_state());
            count.running += usize::from(state == TaskState::Running && up(task));
            count.completed += usize::from(state == TaskState::Complete);
            count.open += usize::from(desired == TaskState::Complete && state != TaskState::Complete);
        }
        count
    }

    /// How many tasks are what they should be, of how many, and what that is.
    pub(super) fn progress(self, service: &Service, tasks: &[Shared<Task>]) -> (u64, u64, &'static str) {
        // Those that are meant to end are not meant.
        let current = tasks.iter().filter(|t| t.service_id == service.id && task_view::is_current(t));
        let running = current.clone().filter(|t| t.status.state() == TaskState::Running).count();
        match &service.spec.mode {
            Some(Mode::Replicated(mode)) => (running as u64, mode.replicas, "running"),
            Some(Mode::Global(_)) | None => (running as u64, current.count() as u64, "running"),
            Some(Mode::ReplicatedJob(mode)) => (self.completed as u64, mode.total_completions, "completed"),
            Some(Mode::GlobalJob(_)) => {
                (self.completed as u64, (self.open + self.completed) as u64, "completed")
            }
        }
    }

    /// Running and wanted tasks.
    fn replicas(self, service: &Service) -> String {
        let Count { running, completed, open } = self;
        match &service.spec.mode {
            Some(Mode::Replicated(mode)) => format!("{running}/{}", mode.replicas),
            Some(Mode::Global(_)) => "global".to_owned(),
            Some(Mode::ReplicatedJob(mode)) => {
                format!(
                    "{running}/{} ({completed}/{} completed)",
                    mode.max_concurrent, mode.total_completions
                )
            }
            Some(Mode::GlobalJob(_)) => {
                format!("{running}/{open} ({completed}/{} completed)", open + completed)
            }
            None => String::new(),
        }
    }
}

/// Number of a job's run.
fn iteration(service: &Service) -> Option<u64> {
    let is_job = matches!(service.spec.mode, Some(Mode::ReplicatedJob(_) | Mode::GlobalJob(_)));
    is_job.then(|| service.job_status.as_ref().map_or(0, |status| status.job_iteration.index))
}

/// `service ls`. Tasks on nodes that are down do not count as running.
pub(super) fn list(services: &[Shared<Service>], nodes: &[Shared<Node>], tasks: &[Shared<Task>]) -> String {
    let up =
        |task: &Task| nodes.iter().any(|node| node.id == task.node_id && node.status.state() != State::Down);
    let mut table = Table::list();
    table.header(&["ID", "Name", "Image", "Replicas"]);
    for service in services {
        let cells = [
            service.id.clone(),
            service.spec.annotations.name.clone(),
            task_view::image(service.spec.task.runtime.as_ref()),
            Count::of(service, tasks, up).replicas(service),
        ];
        table.line(cells.join("\t"));
    }
    table.finish()
}

/// The page of `service inspect` above its table.
pub(super) fn summary(
    service: &Service,
    count: Count,
    tasks: &[Shared<Task>],
    names: &Names,
    now: SystemTime,
) -> String {
    let mut page = Table::summary();
    let spec = &service.spec;
    page.pair("ID", &service.id);
    page.pair("Name", &spec.annotations.name);
    let mut labels = policy_view::plain_labels(&spec.annotations.labels).peekable();
    if labels.peek().is_some() {
        page.line("Labels\t");
        for (key, value) in labels {
            page.pair(&format!("  {key}"), value);
        }
    }
    let replicas = count.replicas(service);
    if !replicas.is_empty() {
        page.pair("Replicas", replicas);
    }
    job_status(&mut page, service, now);
    update_view::lines(&mut page, service, tasks, names, now);
    policy_view::pace(&mut page, "Update Config", spec.update.as_ref());
    policy_view::pace(&mut page, "Rollback Config", spec.rollback.as_ref());
    page.line("Template\t");
    match &spec.task.runtime {
        Some(task_spec::Runtime::Container(container)) => {
            page.line(" Container\t");
            runtime_view::template(&mut page, "  ", container);
        }
        Some(task_spec::Runtime::Generic(kind)) => match decode_process(kind) {
            Some(process) => {
                page.line(" Process\t");
                runtime_view::process_lines(&mut page, "  ", &process);
            }
            None => page.pair(" Runtime", &kind.kind),
        },
        _ => {}
    }
    policy_view::placement(&mut page, spec.task.placement.as_ref(), &spec.annotations.labels);
    resources(&mut page, &spec.task);
    policy_view::restart(&mut page, spec.task.restart.as_ref());
    networks(&mut page, &spec.task);
    endpoint_mode(&mut page, service);
    ports(&mut page, service);
    if let Some(task_spec::Runtime::Container(container)) = &spec.task.runtime {
        runtime_view::files(&mut page, "  ", container);
    }
    log_driver(&mut page, spec.task.log_driver.as_ref());
    page.finish()
}

fn job_status(page: &mut Table, service: &Service, now: SystemTime) {
    let Some(iteration) = iteration(service) else { return };
    page.line("Job Status\t");
    page.pair(" Iteration", iteration);
    let started = service.job_status.as_ref().and_then(|status| status.last_execution.as_ref());
    if started.is_some() {
        page.pair(" Started", time::relative(started, now));
    }
}

/// What is reserved and what is limited; what was taken back is not there.
fn resources(page: &mut Table, task: &TaskSpec) {
    let Some(resources) = &task.resources else { return };
    let all = [("Reservations:", &resources.reservations), ("Limits:", &resources.limits)];
    let set = |amounts: &&Resources| **amounts != Resources::default();
    let all: Vec<_> =
        all.iter().filter_map(|(name, amounts)| Some((name, amounts.as_ref().filter(set)?))).collect();
    if all.is_empty() {
        return;
    }
    page.line("  Resources\t");
    for (name, amounts) in all {
        page.line(format!("    {name}\t"));
        amounts_of(page, amounts);
    }
}

fn amounts_of(page: &mut Table, amounts: &Resources) {
    if amounts.nano_cpus != 0 {
        page.pair("      CPU", cpu::format(amounts.nano_cpus));
    }
    if amounts.memory_bytes != 0 {
        page.pair("      Memory", size::format(amounts.memory_bytes));
    }
    if !amounts.generic.is_empty() {
        page.line("      Generic Resources\t");
        for resource in &amounts.generic {
            generic(page, "        ", resource);
        }
    }
}

fn networks(page: &mut Table, task: &TaskSpec) {
    if !task.networks.is_empty() {
        let ids: Vec<&str> = task.networks.iter().map(|network| network.target.as_str()).collect();
        page.line(format!("  Networks: {}", ids.join(" ")));
    }
    for network in &task.networks {
        let aliases = network.aliases.join(", ");
        let options = network.driver_attachment_opts.iter().map(|(key, value)| format!("{key}={value}"));
        let options = options.collect::<Vec<_>>().join(", ");
        for (name, list) in [("aliases", aliases), ("driver options", options)] {
            if !list.is_empty() {
                page.line(format!("    {} of {}: [{list}]", name, network.target));
            }
        }
    }
}

fn endpoint_mode(page: &mut Table, service: &Service) {
    let mode = service.spec.endpoint.as_ref().map(|endpoint| endpoint.mode());
    if mode == Some(ResolutionMode::Dnsrr) {
        page.line("  Endpoint Mode: dnsrr");
    }
}

fn ports(page: &mut Table, service: &Service) {
    let ports: Vec<_> = service.endpoint.iter().flat_map(|endpoint| &endpoint.ports).collect();
    if ports.is_empty() {
        return;
    }
    page.line("");
    page.line("Ports:");
    for port in ports {
        let protocol = match port.protocol() {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        };
        page.line(format!("    - Name\t= {}", port.name));
        page.line(format!("      Protocol\t= {protocol}"));
        page.line(format!("      Port\t= {}", port.target_port));
        page.line(format!("      SwarmPort\t= {}", port.published_port));
    }
}

fn log_driver(page: &mut Table, driver: Option<&Driver>) {
    let Some(driver) = driver else { return };
    page.pair("  LogDriver", &driver.name);
    for (option, value) in &driver.options {
        if value.is_empty() {
            page.line(format!("    {option}\t"));
        } else {
            page.pair(&format!("    {option}"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost::{Message as _, Name as _};
    use prost_types::Timestamp;
    use swarm_api::swarmd::ProcessSpec;
    use swarm_api::v1::update_status::UpdateState;
    use swarm_api::v1::{
        ContainerSpec, Endpoint, EndpointSpec, FileTarget, GenericRuntimeSpec, GlobalJob, GlobalService,
        JobStatus, NetworkAttachmentConfig, Placement, PortConfig, ReplicatedJob, ReplicatedService,
        ResourceRequirements, SecretReference, UpdateStatus, Version, secret_reference,
    };

    use super::*;

    fn container_service(name: &str, mode: Mode) -> Service {
        let mut service = Service { id: format!("id-{name}"), ..Default::default() };
        service.spec.annotations.name = name.into();
        service.spec.mode = Some(mode);
        service.spec.task.runtime = Some(task_spec::Runtime::Container(ContainerSpec {
            image: "redis:3.0.5".into(),
            ..Default::default()
        }));
        service
    }

    fn process_service() -> Service {
        let mut service = container_service("native", Mode::Replicated(ReplicatedService { replicas: 1 }));
        let process = ProcessSpec {
            command: vec!["sleep".into()],
            args: vec!["1000".into()],
            user: "daemon".into(),
            stop_grace_period: Some(prost_types::Duration { seconds: 90, nanos: 0 }),
            ..Default::default()
        };
        service.spec.task.runtime = Some(task_spec::Runtime::Generic(GenericRuntimeSpec {
            kind: "process".into(),
            payload: Some(prost_types::Any {
                type_url: ProcessSpec::type_url(),
                value: process.encode_to_vec(),
            }),
        }));
        service
    }

    #[test]
    fn tasks_on_nodes_that_are_down_do_not_run() {
        let node = |id: &str, state: State| {
            let mut node = Node { id: id.into(), ..Default::default() };
            node.status.state = state as i32;
            Shared::from(node)
        };
        let task = |node: &str| {
            let mut task = Task { service_id: "id-web".into(), node_id: node.into(), ..Default::default() };
            task.status.state = TaskState::Running as i32;
            Shared::from(task)
        };
        let services = [
            container_service("web", Mode::Replicated(ReplicatedService { replicas: 3 })),
            container_service("everywhere", Mode::Global(GlobalService {})),
            process_service(),
        ];
        let nodes = [node("up", State::Ready), node("down", State::Down)];
        let tasks = [task("up"), task("down"), task("gone"), task("up")];
        assert_eq!(
            list(&services.map(Shared::from), &nodes, &tasks),
            "ID             Name        Image        Replicas
--             ----        -----        --------
id-web         web         redis:3.0.5  2/3
id-everywhere  everywhere  redis:3.0.5  global
id-native      native      sleep        0/1
"
        );
    }

    #[test]
    fn a_job_is_shown_with_how_far_its_present_run_is() {
        let mut job = container_service(
            "job",
            Mode::ReplicatedJob(ReplicatedJob { max_concurrent: 2, total_completions: 9 }),
        );
        job.job_status = Some(JobStatus {
            job_iteration: Version { index: 3 },
            last_execution: Some(Timestamp { seconds: 820, nanos: 0 }),
        });
        let mut everywhere = container_service("everywhere", Mode::GlobalJob(GlobalJob {}));
        everywhere.job_status = job.job_status;
        let task = |service: &Service, state: TaskState, iteration: u64| {
            let mut task = Task { service_id: service.id.as_str().into(), ..Default::default() };
            task.status.state = state as i32;
            task.desired_state = TaskState::Complete as i32;
            task.job_iteration = Some(Version { index: iteration });
            Shared::from(task)
        };
        let (running, complete) = (TaskState::Running, TaskState::Complete);
        let of = |service: &Service| {
            [(running, 3), (complete, 3), (complete, 3), (complete, 2)].map(|(s, i)| task(service, s, i))
        };
        let tasks = [of(&job), of(&everywhere)].concat();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let count = |service| Count::of(service, &tasks, |_| true);
        assert_eq!(count(&job).replicas(&job), "1/2 (2/9 completed)");
        assert_eq!(count(&everywhere).replicas(&everywhere), "1/1 (2/3 completed)");
        let page = summary(&job, count(&job), &tasks, &Names::default(), now);
        let words: Vec<_> = page.split_whitespace().collect();
        assert!(words.join(" ").contains("Job Status Iteration : 3 Started : 3 minutes ago"), "{page}");
    }

    #[test]
    fn a_service_is_shown_with_everything_that_was_asked_for() {
        let mut service = container_service("web", Mode::Replicated(ReplicatedService { replicas: 1 }));
        service.spec.annotations.labels = [("b".into(), "2".into()), ("a".into(), "1".into())].into();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        service.update_status = Some(UpdateStatus {
            state: UpdateState::Completed as i32,
            started_at: Some(Timestamp { seconds: 820, nanos: 0 }),
            completed_at: Some(Timestamp { seconds: 940, nanos: 0 }),
            message: "update completed".into(),
        });
        let task = &mut *service.spec.task;
        let Some(task_spec::Runtime::Container(container)) = &mut task.runtime else { panic!() };
        container.command = vec!["sh".into(), "-c".into(), "x".into()];
        container.args = vec!["a".into(), "b".into()];
        container.env = vec!["A=1".into(), "B=2".into()];
        container.mounts = vec![crate::values::mount::bind("/y:/x").unwrap()];
        container.secrets = vec![SecretReference {
            secret_id: "sid".into(),
            secret_name: "password".into(),
            target: Some(secret_reference::Target::File(FileTarget {
                name: "pw".into(),
                ..Default::default()
            })),
        }];
        let constraints = vec!["a==b".into(), "c!=d".into()];
        task.placement = Some(Placement { constraints, ..Default::default() });
        task.resources = Some(ResourceRequirements {
            reservations: Some(Resources {
                nano_cpus: 500_000_000,
                memory_bytes: 512 << 20,
                generic: swarm_placement::generic::parse("fpga=1").unwrap(),
            }),
            ..Default::default()
        });
        task.networks = vec![NetworkAttachmentConfig {
            target: "net1".into(),
            aliases: vec!["db".into(), "store".into()],
            driver_attachment_opts: [("mtu".into(), "1400".into())].into(),
            ..Default::default()
        }];
        service.spec.endpoint =
            Some(EndpointSpec { mode: ResolutionMode::Dnsrr as i32, ..Default::default() });
        let options = [("max-size".into(), "1m".into()), ("x".into(), String::new())].into();
        task.log_driver = Some(Driver { name: "json-file".into(), options });
        let port =
            PortConfig { name: "web".into(), target_port: 80, published_port: 8080, ..Default::default() };
        service.endpoint = Some(Endpoint { ports: vec![port], ..Default::default() }.into());
        assert_eq!(
            summary(&service, Count { running: 1, ..Default::default() }, &[], &Names::default(), now),
            "ID                             : id-web
Name                           : web
Labels                         
  a                            : 1
  b                            : 2
Replicas                       : 1/1
Update Status                  
 State                         : COMPLETED
 Started                       : 3 minutes ago
 Completed                     : 1 minute ago
 Message                       : update completed
Template                       
 Container                     
  Image                        : redis:3.0.5
  Command                      : \"sh -c x\"
  Args                         : [a, b]
  Env                          : [A=1, B=2]
  Constraints                  : a==b, c!=d
  Resources                    
    Reservations:              
      CPU                      : 0.5
      Memory                   : 512 MiB
      Generic Resources        
        fpga                   : 1
  Networks: net1
    aliases of net1: [db, store]
    driver options of net1: [mtu=1400]
  Endpoint Mode: dnsrr

Ports:
    - Name             = web
      Protocol         = TCP
      Port             = 80
      SwarmPort        = 8080
  Mounts:
    - target = /x
      source = /y
      readonly = false
      type = bind
  Secrets:
    [FILE] password@sid:pw
  LogDriver         : json-file
    max-size        : 1m
    x               
"
        );
    }

    #[test]
    fn a_process_is_shown_in_place_of_a_container() {
        assert_eq!(
            summary(&process_service(), Count::default(), &[], &Names::default(), SystemTime::UNIX_EPOCH),
            "ID                         : id-native
Name                       : native
Replicas                   : 0/1
Template                   
 Process                   
  Command                  : \"sleep\"
  Args                     : [1000]
  User                     : daemon
  Stop Grace Period        : 1m30s
"
        );
    }
}
