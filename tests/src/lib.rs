//! What the tests of whole clusters have in common: specs, and a look at what really runs on this host.

pub mod containers;
pub mod logs;
pub mod roles;
pub mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use prost_types::Any;
use swarm_api::swarmd::ProcessSpec;
use swarm_api::v1::{
    ContainerSpec, CreateServiceRequest, GenericRuntimeSpec, ReplicatedService, ServiceSpec, TaskSpec,
    UpdateClusterRequest, UpdateNodeRequest, UpdateServiceRequest, node_spec, service_spec, task_spec,
};
use swarm_api::{Shared, v1};
use swarm_testkit::daemon::Cluster;

/// Time within which a few tasks must run.
pub const SOON: Duration = Duration::from_secs(120);

/// A script of the shell that does nothing, and ends at once when it is told to.
pub const REST: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";

/// A service of native processes that do nothing for ever.
pub fn process_service(name: &str, replicas: u64) -> ServiceSpec {
    let spec = ProcessSpec {
        command: vec!["/bin/sleep".into()],
        args: vec!["1000000".into()],
        stop_grace_period: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
        ..Default::default()
    };
    let payload = Any::from_msg(&spec).unwrap_or_default();
    let runtime =
        task_spec::Runtime::Generic(GenericRuntimeSpec { kind: "process".into(), payload: Some(payload) });
    service(name, replicas, runtime)
}

/// Changes the process that the tasks of a service are.
///
/// # Panics
/// If its payload is no process.
pub fn edit_process(spec: &mut ServiceSpec, change: impl Fn(&mut ProcessSpec)) {
    if let Some(task_spec::Runtime::Generic(generic)) = &mut spec.task.runtime {
        let payload = generic.payload.as_mut().expect("the spec has a payload");
        let mut process = payload.to_msg().expect("it decodes");
        change(&mut process);
        *payload = Any::from_msg(&process).expect("it encodes");
    }
}

/// A service of containers that do nothing for ever.
pub fn container_service(name: &str, image: &str, replicas: u64) -> ServiceSpec {
    let container = ContainerSpec {
        image: image.into(),
        command: vec!["/bin/sleep".into()],
        args: vec!["1000000".into()],
        stop_grace_period: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    service(name, replicas, task_spec::Runtime::Container(container))
}

fn service(name: &str, replicas: u64, runtime: task_spec::Runtime) -> ServiceSpec {
    let mut spec = ServiceSpec {
        task: TaskSpec { runtime: Some(runtime), ..Default::default() }.into(),
        mode: Some(service_spec::Mode::Replicated(ReplicatedService { replicas })),
        ..Default::default()
    };
    spec.annotations.name = name.to_owned();
    spec
}

/// Has snapshots taken so often that soon no manager's log reaches back to its first entry.
pub async fn compact_soon(cluster: &mut Cluster) -> Result<()> {
    let object = cluster.cluster_object().await?;
    let mut spec = object.spec.clone();
    spec.raft.snapshot_interval = 10;
    spec.raft.log_entries_for_slow_followers = 0;
    let request = UpdateClusterRequest {
        cluster_id: object.id.clone(),
        cluster_version: Some(object.meta.version),
        spec: Some(spec),
        ..Default::default()
    };
    cluster.control.update_cluster(request).await?;
    Ok(())
}

/// Creates a service and returns its id.
pub async fn create(cluster: &mut Cluster, spec: ServiceSpec) -> Result<String> {
    let answer =
        cluster.control.create_service(CreateServiceRequest { spec: Some(spec) }).await?.into_inner();
    Ok(answer.service.context("an answer without a service")?.id.clone())
}

/// Changes a service's spec.
pub async fn update(cluster: &mut Cluster, id: &str, change: impl Fn(&mut ServiceSpec)) -> Result<()> {
    loop {
        let service = cluster.service(id).await?;
        let mut spec = service.spec.clone();
        change(&mut spec);
        let request = UpdateServiceRequest {
            service_id: id.to_owned(),
            service_version: Some(service.meta.version),
            spec: Some(spec),
            ..Default::default()
        };
        match cluster.control.update_service(request).await {
            Err(status) if out_of_sequence(&status) => {}
            result => return Ok(result.map(drop)?),
        }
    }
}

/// Somebody else has written the object since it was read.
pub fn out_of_sequence(status: &tonic::Status) -> bool {
    status.message().contains("update out of sequence")
}

/// Sets what a node is there for.
pub async fn set_availability(
    cluster: &mut Cluster,
    name: &str,
    availability: node_spec::Availability,
) -> Result<String> {
    loop {
        let node = cluster.node(name).await?;
        let mut spec = node.spec.clone();
        spec.availability = availability as i32;
        let request = UpdateNodeRequest {
            node_id: node.id.clone(),
            node_version: Some(node.meta.version),
            spec: Some(spec),
        };
        match cluster.control.update_node(request).await {
            Err(status) if out_of_sequence(&status) => {}
            result => return Ok(result.map(|_| node.id.clone())?),
        }
    }
}

/// Sets the number of replicas.
pub async fn scale(cluster: &mut Cluster, id: &str, replicas: u64) -> Result<()> {
    update(cluster, id, |spec| {
        spec.mode = Some(service_spec::Mode::Replicated(ReplicatedService { replicas }));
    })
    .await
}

/// Number of tasks per node id.
pub fn spread(tasks: &[Shared<v1::Task>]) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for task in tasks {
        *count.entry(task.node_id.to_string()).or_default() += 1;
    }
    count
}

/// Process ids of everything on this host that runs with this text in its environment.
pub fn processes_with(environment: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|b| *b == 0).any(|v| v == environment.as_bytes())
        })
        .collect()
}

/// Fails with what every daemon logged if the result is an error.
pub fn with_logs(cluster: &Cluster, result: Result<()>) -> Result<()> {
    result.map_err(|error| error.context(format!("the daemons' logs:\n{}", cluster.logs())))
}

/// Each element stands for itself only once.
pub fn all_different<T: Ord + std::fmt::Debug>(items: impl IntoIterator<Item = T>) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for item in items {
        ensure!(!seen.contains(&item), "{item:?} is there twice");
        seen.insert(item);
    }
    Ok(())
}
