//! What services are given beyond the contract, what nodes say that they have, and images ahead of tasks: by the command
//! line, on real daemons.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use bollard::Docker;
use bollard::query_parameters::{InspectContainerOptions, RemoveImageOptionsBuilder};
use swarm_api::v1::generic_resource::Resource;
use swarm_api::v1::{Node, Task, TaskState, task_status};
use swarm_api::{Shared, id};
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::image::{busybox, busybox_layer};
use swarm_testkit::registry::Registry;
use swarm_testkit::wait::until;
use swarm_tests::{SOON, with_logs};

async fn docker() -> Result<Docker> {
    Ok(Docker::connect_with_unix_defaults()?.negotiate_version().await?)
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
        let filters = swarm_api::v1::list_tasks_request::Filters {
            service_ids: vec![service.to_owned()],
            ..Default::default()
        };
        let request = swarm_api::v1::ListTasksRequest { filters: Some(filters) };
        let tasks = control.clone().list_tasks(request).await?.into_inner().tasks;
        let found = tasks.iter().find(|task| is_so(task)).cloned();
        found.with_context(|| format!("{:?}", tasks.iter().map(|t| &t.status).collect::<Vec<_>>()))
    })
    .await
}

fn container_of(task: &Task) -> Result<String> {
    match &task.status.runtime_status {
        Some(task_status::RuntimeStatus::Container(status)) => Ok(status.container_id.clone()),
        None => anyhow::bail!("the task has no container"),
    }
}

async fn privileges(cluster: &mut Cluster) -> Result<()> {
    let docker = docker().await?;
    let image = busybox(&docker).await?;
    let create = ["service", "create", "--name", "web", "--image", &image, "--stop-grace-period", "0s"];
    let more = ["--restart-condition", "none", "--privileged", "--", "sleep", "1000"];
    let service = cluster.ctl_ok(&[&create[..], &more].concat())?.trim().to_owned();
    let text = "no suitable node (privileged containers not allowed on 2 nodes)";
    one_task(cluster, &service, "the task to say why it waits", |t| t.status.err == text).await?;
    let page = cluster.ctl_ok(&["service", "inspect", "web"])?;
    ensure!(page.contains("Privileged") && page.contains(text), "{page}");

    cluster.workers[0].stop().await?;
    cluster.workers[0].extra.push("--allow-privileged".into());
    cluster.workers[0].start().await?;
    let worker = cluster.node("worker-1").await?.id.clone();
    // Whether this host's engine may start such a container is another matter.
    let made = |t: &Task| t.node_id == worker && t.status.state >= TaskState::Ready as i32;
    let task = one_task(cluster, &service, "the task on the node that allows it", made).await?;
    ensure!(task.status.state() != TaskState::Rejected, "{:?}", task.status);
    let name = swarm_api::naming::task_name(&task);
    let container = docker.inspect_container(&name, None::<InspectContainerOptions>).await?;
    let host = container.host_config.context("no host configuration")?;
    ensure!(host.privileged == Some(true), "{host:?}");
    let page = cluster.ctl_ok(&["node", "inspect", "worker-1"])?;
    ensure!(has_abilities(&page, &["devices", "gpus", "privileged"]), "{page}");

    // Without privileges it goes anywhere.
    cluster.ctl_ok(&[
        "service",
        "update",
        "web",
        "--privileged=false",
        "--constraint",
        "node.hostname==manager",
    ])?;
    let manager = cluster.node("manager").await?.id.clone();
    let running = |t: &Task| t.node_id == manager && t.status.state() == TaskState::Running;
    one_task(cluster, &service, "the task without privileges", running).await?;
    let page = cluster.ctl_ok(&["service", "inspect", "web"])?;
    ensure!(!page.contains("rivileged"), "{page}");
    cluster.ctl_ok(&["service", "remove", "web"])?;
    Ok(())
}

/// Whether `node inspect` shows these abilities, among others.
fn has_abilities(page: &str, abilities: &[&str]) -> bool {
    let line = page.lines().find(|line| line.trim_start().starts_with("Abilities"));
    let shown: Vec<&str> =
        line.and_then(|l| l.split_once(": ")).map_or(Vec::new(), |(_, l)| l.split(", ").collect());
    abilities.iter().all(|ability| shown.contains(ability))
}

async fn devices(cluster: &mut Cluster) -> Result<()> {
    let image = busybox(&docker().await?).await?;
    let create = ["service", "create", "--name", "dev", "--image", &image, "--stop-grace-period", "0s"];
    let more = ["--device", "/dev/fuse:/dev/nothing:r", "--", "sleep", "1000"];
    let service = cluster.ctl_ok(&[&create[..], &more].concat())?.trim().to_owned();
    let inside = |task: &Task, script: &str| -> Result<bool> {
        let container = container_of(task)?;
        Ok(Command::new("docker").args(["exec", &container, "sh", "-c", script]).status()?.success())
    };
    let task = cluster.running(&service, 1, SOON).await?.remove(0);
    ensure!(
        inside(&task, "test -c /dev/nothing && ! echo x > /dev/nothing")?,
        "it is not there, or not read-only"
    );
    let page = cluster.ctl_ok(&["service", "inspect", "dev"])?;
    ensure!(page.contains("[/dev/fuse:/dev/nothing:r]"), "{page}");
    cluster.ctl_ok(&[
        "service",
        "update",
        "dev",
        "--device-rm",
        "/dev/nothing",
        "--device-add",
        "/dev/zero:/dev/z",
    ])?;
    let before = task.id.clone();
    let next = |t: &Task| t.id != before && t.status.state() == TaskState::Running;
    let task = one_task(cluster, &service, "the next task", next).await?;
    ensure!(inside(&task, "test -c /dev/z && ! test -e /dev/nothing")?, "the devices are not the next ones");
    cluster.ctl_ok(&["service", "remove", "dev"])?;

    let refused = cluster.ctl(&[
        "service",
        "create",
        "--name",
        "p",
        "--runtime",
        "process",
        "--device",
        "/dev/fuse",
        "--",
        "true",
    ])?;
    let text = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(2) && text.contains("--device is for containers"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_privileged_services_wait_for_a_node_that_allows_them() -> Result<()> {
    let mut cluster = Cluster::start(Engine::Docker, 1).await?;
    let result = privileges(&mut cluster).await;
    with_logs(&cluster, result)?;
    let result = devices(&mut cluster).await;
    with_logs(&cluster, result)
}

/// The generic resources of a node, in the words of its flag.
fn generic(node: &Node) -> Vec<String> {
    let resources = node.description.as_ref().and_then(|d| d.resources.as_ref());
    let one = |resource: &Resource| match resource {
        Resource::NamedResourceSpec(named) => format!("{}={}", named.kind, named.value),
        Resource::DiscreteResourceSpec(discrete) => format!("{}={}", discrete.kind, discrete.value),
    };
    resources.iter().flat_map(|r| &r.generic).filter_map(|r| r.resource.as_ref()).map(one).collect()
}

async fn offers(cluster: &mut Cluster, expected: &[&str]) -> Result<()> {
    let control = cluster.control.clone();
    until(&format!("the node to offer {expected:?}"), SOON, || {
        let mut control = control.clone();
        async move {
            let nodes =
                control.list_nodes(swarm_api::v1::ListNodesRequest::default()).await?.into_inner().nodes;
            let offered = generic(nodes.first().context("no node")?);
            ensure!(offered == expected, "{offered:?}");
            Ok(())
        }
    })
    .await
}

async fn resources(cluster: &mut Cluster, host: &std::path::Path) -> Result<()> {
    // A GPU that its driver shows, a file with more, and what was given.
    offers(cluster, &["fpga=2", "tpu=a", "gpu=GPU-1"]).await?;
    let page = cluster.ctl_ok(&["node", "inspect", "manager"])?;
    for text in ["fpga", "GPU-1", "Runtimes", "container, process"] {
        ensure!(page.contains(text), "{text} is not in {page}");
    }
    ensure!(has_abilities(&page, &["devices", "gpus"]), "{page}");
    let image = busybox(&docker().await?).await?;
    let create = ["service", "create", "--name", "learn", "--image", &image, "--restart-condition", "none"];
    let gpus = ["--gpus", "device=GPU-2", "--", "sleep", "1000"];
    let service = cluster.ctl_ok(&[&create[..], &gpus].concat())?.trim().to_owned();
    let waits = "no suitable node (insufficient resources on 1 node)";
    one_task(cluster, &service, "the task to wait for its GPU", |t| t.status.err == waits).await?;

    // Another GPU is found, and the file is changed, while the daemon runs.
    let slot = host.join("proc/driver/nvidia/gpus/0000:02:00.0");
    std::fs::create_dir_all(&slot)?;
    std::fs::write(slot.join("information"), "GPU UUID: \t GPU-2\n")?;
    std::fs::write(host.join("resources"), "tpu=a,tpu=b")?;
    offers(cluster, &["fpga=2", "tpu=a", "tpu=b", "gpu=GPU-1", "gpu=GPU-2"]).await?;
    // There is none here for real: the engine says so.
    let refused =
        |t: &Task| t.status.state >= TaskState::Failed as i32 && t.status.err.contains("device driver");
    let task = one_task(cluster, &service, "the engine to look for the GPU", refused).await?;
    let assigned: Vec<_> =
        task.assigned_generic_resources.iter().filter_map(|r| r.resource.clone()).collect();
    ensure!(
        matches!(&assigned[..], [Resource::NamedResourceSpec(n)] if n.kind == "gpu" && n.value == "GPU-2"),
        "{assigned:?}"
    );
    std::fs::remove_file(host.join("resources"))?;
    std::fs::remove_dir_all(host.join("proc"))?;
    offers(cluster, &["fpga=2"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_nodes_say_what_they_have_while_it_changes() -> Result<()> {
    let host = tempfile::tempdir()?;
    let slot = host.path().join("proc/driver/nvidia/gpus/0000:01:00.0");
    std::fs::create_dir_all(&slot)?;
    std::fs::write(slot.join("information"), "GPU UUID: \t GPU-1\n")?;
    let file = host.path().join("resources");
    std::fs::write(&file, "tpu=a # one so far\nfpga=9 # the flag has the say\n")?;
    let (root, file) = (host.path().to_str().context("UTF-8")?, file.to_str().context("UTF-8")?);
    let flags = [
        "--generic-node-resources",
        "fpga=2",
        "--generic-node-resources-file",
        file,
        "--discover-gpus",
        root,
    ];
    let mut cluster = Cluster::start_with(Engine::Docker, 0, &flags).await?;
    let result = resources(&mut cluster, host.path()).await;
    with_logs(&cluster, result)
}

/// What `swarmctl image pull` prints, its notes, and its exit code.
fn pull(cluster: &Cluster, words: &[&str]) -> Result<(String, String, Option<i32>)> {
    let out = cluster.ctl(&[&["image", "pull"], words].concat())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&out.stdout), text(&out.stderr), out.status.code()))
}

async fn images(cluster: &mut Cluster, registry: &Registry) -> Result<()> {
    let docker = docker().await?;
    let name = id::random();
    let image = format!("{}/{name}:1", registry.address());
    registry.push(&name, "1", busybox_layer()?, &["/bin/sleep", "1000"])?;
    let (out, notes, code) = pull(cluster, &[&image])?;
    ensure!(out == "3 of 3 nodes have the image\n" && code == Some(0), "{out}{notes}");
    for node in ["manager", "worker-1", "worker-2"] {
        ensure!(notes.contains(&format!("{node}: done\n")), "{notes}");
    }
    docker.inspect_image(&image).await.context("the image is not here")?;
    let forget = RemoveImageOptionsBuilder::new().force(true).build();
    docker.remove_image(&image, Some(forget), None).await?;

    let missing = format!("{}/{name}:2", registry.address());
    let (out, _, code) = pull(cluster, &[&missing, "--on", "node.hostname==worker-1", "--quiet"])?;
    let expected = format!("worker-1  FAILED  pulling image {missing} failed: ");
    ensure!(out.contains(&expected) && code == Some(1), "{out}");
    ensure!(out.ends_with("0 of 1 node has the image, 1 failed\n"), "{out}");
    let (_, notes, code) = pull(cluster, &[&image, "--on", "node.labels.zone==b"])?;
    ensure!(notes.contains("no node matches node.labels.zone==b") && code == Some(1), "{notes}");

    // A node that is away is named, and keeps nobody waiting for ever.
    cluster.workers[1].stop().await?;
    let (out, _, code) = pull(cluster, &[&image, "--on", "node.role==worker"])?;
    ensure!(code == Some(1) && out.contains("worker-2  UNAVAILABLE  the node"), "{out}");
    ensure!(out.ends_with("1 of 2 nodes have the image, 1 could not be asked\n"), "{out}");
    docker.remove_image(&image, Some(RemoveImageOptionsBuilder::new().force(true).build()), None).await?;
    cluster.workers[1].start().await
}

async fn progress(cluster: &mut Cluster, registry: &Registry) -> Result<()> {
    let name = id::random();
    let image = format!("{}/{name}:1", registry.address());
    let mut layer = busybox_layer()?;
    layer.resize(layer.len() + (8 << 20), 0);
    registry.push(&name, "1", layer, &["/bin/sleep", "1000"])?;
    registry.hold(true);
    let create = ["service", "create", "--name", "slow", "--image", &image, "--stop-grace-period", "0s"];
    let service = cluster.ctl_ok(&create)?.trim().to_owned();
    let pulling = |t: &Task| {
        t.status.state() == TaskState::Preparing
            && t.status.message.starts_with("pulling ")
            && t.status.message != "pulling 0 %"
    };
    let task = one_task(cluster, &service, "the task to say how far the pull is", pulling).await?;
    let list = cluster.ctl_ok(&["task", "ls"])?;
    ensure!(list.contains("PREPARING ") && list.contains(" (pulling "), "{list}");
    registry.hold(false);
    let task_id = task.id.clone();
    let running = |t: &Task| t.id == task_id && t.status.state() == TaskState::Running;
    let task = one_task(cluster, &service, "the same task to run", running).await?;
    ensure!(task.status.message == "started", "{:?}", task.status);
    cluster.ctl_ok(&["service", "remove", "slow"])?;
    let docker = docker().await?;
    let container = swarm_api::naming::task_name(&task);
    until("the container to be gone", SOON, || async {
        let there = docker.inspect_container(&container, None::<InspectContainerOptions>).await.is_ok();
        ensure!(!there, "it is there");
        Ok(())
    })
    .await?;
    docker.remove_image(&image, Some(RemoveImageOptionsBuilder::new().force(true).build()), None).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_images_are_pulled_ahead_of_tasks_and_say_how_far_they_are() -> Result<()> {
    let registry = Registry::start(None).await?;
    let mut cluster = Cluster::start(Engine::Docker, 2).await?;
    let result = images(&mut cluster, &registry).await;
    with_logs(&cluster, result)?;
    let result = progress(&mut cluster, &registry).await;
    with_logs(&cluster, result)
}
