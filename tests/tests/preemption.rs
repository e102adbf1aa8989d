//! Priorities on real daemons: a service gets the room of another one with a lower priority once the operator allows it,
//! and that one comes back when there is room.

use anyhow::{Context as _, Result, ensure};
use swarm_api::Shared;
use swarm_api::extensions::PRIORITY;
use swarm_api::v1::list_tasks_request::Filters;
use swarm_api::v1::{ListTasksRequest, ResourceRequirements, Resources, ServiceSpec, Task, TaskState};
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::wait::until;
use swarm_tests::{SOON, create, process_service, with_logs};

/// A service with one task that leaves no room for another one on a node with so many CPUs.
fn most_of_a_node(name: &str, nano_cpus: i64) -> ServiceSpec {
    let mut spec = process_service(name, 1);
    let reservations = Some(Resources { nano_cpus: nano_cpus / 5 * 3, ..Default::default() });
    spec.task.resources = Some(ResourceRequirements { reservations, ..Default::default() });
    spec
}

/// Waits until a task of the service is like this.
async fn one_task(
    cluster: &Cluster,
    service: &str,
    what: &str,
    is_so: impl Fn(&Task) -> bool,
) -> Result<Shared<Task>> {
    let (control, is_so) = (&cluster.control, &is_so);
    until(what, SOON, || async move {
        let filters = Filters { service_ids: vec![service.to_owned()], ..Default::default() };
        let request = ListTasksRequest { filters: Some(filters) };
        let tasks = control.clone().list_tasks(request).await?.into_inner().tasks;
        let found = tasks.iter().find(|t| is_so(t)).cloned();
        found.with_context(|| format!("{:?}", tasks.iter().map(|t| &t.status).collect::<Vec<_>>()))
    })
    .await
}

async fn room_for_who_matters(cluster: &mut Cluster) -> Result<()> {
    let node = cluster.node("manager").await?;
    let resources = node.description.as_ref().and_then(|d| d.resources.as_ref());
    let cpus = resources.context("a node without resources")?.nano_cpus;
    let low = create(cluster, most_of_a_node("low", cpus)).await?;
    let victim = cluster.running(&low, 1, SOON).await?.remove(0);
    let mut spec = most_of_a_node("high", cpus);
    spec.annotations.labels.insert(PRIORITY.into(), "5".into());
    let high = create(cluster, spec).await?;
    let no_room = "no suitable node (insufficient resources on 1 node)";
    one_task(cluster, &high, "the task to say that there is no room", |t| t.status.err == no_room).await?;

    cluster.ctl_ok(&["cluster", "update", "--preemption"])?;
    cluster.running(&high, 1, SOON).await?;
    let gone =
        one_task(cluster, &low, "a displaced task", |t| t.status.state() == TaskState::Rejected).await?;
    ensure!(gone.id == victim.id && gone.status.message == "task preempted by scheduler", "{gone:?}");
    let waits = |t: &Task| t.status.state() == TaskState::Pending && t.status.err == no_room;
    let next = one_task(cluster, &low, "its successor to wait", waits).await?;

    cluster.add_worker().await?;
    let back = cluster.running(&low, 1, SOON).await?.remove(0);
    let worker = cluster.node("worker-1").await?.id.clone();
    ensure!((&back.id, back.node_id.as_str()) == (&next.id, worker.as_str()), "{back:?} is not {next:?}");
    cluster.running(&high, 1, SOON).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_with_a_priority_gets_the_room_of_another_one() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = room_for_who_matters(&mut cluster).await;
    with_logs(&cluster, result)
}
