//! Services by the command line, looked at from within their tasks: secrets and configs from the command to the file,
//! and what containers are given by flags.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::Docker;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::InspectContainerOptions;
use serde_json::{Value, json};
use swarm_api::v1::{Task, task_status};
use swarm_plugins::SECRET_PROVIDER;
use swarm_plugins::testing::TestPlugin;
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::wait::until;
use swarm_tests::{SOON, processes_with, with_logs};

/// Runs a command in a container by the engine's own client, and gives what it wrote.
fn inside(container: &str, script: &str) -> Result<String> {
    let out = Command::new("docker").args(["exec", container, "sh", "-c", script]).output()?;
    ensure!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn container_of(task: &Task) -> Result<String> {
    match &task.status.runtime_status {
        Some(task_status::RuntimeStatus::Container(status)) => Ok(status.container_id.clone()),
        None => anyhow::bail!("the task has no container"),
    }
}

/// The one task of a service, once it runs.
async fn task(cluster: &mut Cluster, service: &str) -> Result<swarm_api::Shared<Task>> {
    let tasks = cluster.running(service, 1, SOON).await?;
    tasks.into_iter().next().context("no task")
}

async fn inspect(container: &str) -> Result<ContainerInspectResponse> {
    let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
    Ok(docker.inspect_container(container, None::<InspectContainerOptions>).await?)
}

/// Makes a secret or a config of a text.
fn store(cluster: &Cluster, dir: &Path, kind: &str, name: &str, data: &str, more: &[&str]) -> Result<()> {
    let path = dir.join(format!("{kind}-{name}"));
    std::fs::write(&path, data)?;
    let file = path.to_str().context("the directory's name is UTF-8")?;
    cluster.ctl_ok(&[&[kind, "create", name, "-f", file], more].concat())?;
    std::fs::remove_file(path)?;
    Ok(())
}

/// Files below a directory that hold this text.
fn files_with(text: &str, directory: &Path) -> Result<String> {
    let Output { stdout, .. } = Command::new("grep").args(["-rla", "--", text]).arg(directory).output()?;
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

async fn gone(path: &Path) -> Result<()> {
    until(&format!("{} to be gone", path.display()), SOON, || async {
        ensure!(!path.exists(), "it is there");
        Ok(())
    })
    .await
}

/// Waits until a service and everything of it is gone from the managers.
async fn remove(cluster: &mut Cluster, service: &str) -> Result<()> {
    cluster.ctl_ok(&["service", "remove", service])?;
    Ok(())
}

async fn containers(cluster: &mut Cluster) -> Result<()> {
    let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
    let image = swarm_testkit::image::busybox(&docker).await?;
    let scratch = tempfile::tempdir()?;
    let password = format!("pw{}", swarm_api::id::random());
    store(cluster, scratch.path(), "secret", "password", &password, &[])?;
    let conf = "slot {{.Task.Slot}} on {{.Node.Hostname}} of {{.Service.Name}} as {{env \"ROLE\"}} with {{secret \"pw\"}}";
    store(cluster, scratch.path(), "config", "conf", conf, &["--template-driver", "golang"])?;
    cluster.ctl_ok(&["cluster", "update", "--log-driver", "json-file", "--log-opt", "max-size=3m"])?;

    let service = cluster.ctl_ok(&[
        "service",
        "create",
        "--name",
        "web",
        "--image",
        &image,
        "--env",
        "ROLE=role-{{.Task.Slot}}",
        "--hostname",
        "{{.Service.Name}}-{{.Task.Slot}}",
        "--secret",
        "source=password,target=pw,uid=1000,mode=0400",
        "--config",
        "conf:/etc/app.conf",
        "--mount",
        "type=tmpfs,target=/scratch,tmpfs-size=1m",
        "--health-cmd",
        "test -e /scratch/up",
        "--health-interval",
        "1s",
        "--command",
        "sh,-c",
        "--args",
        "sleep 1; touch /scratch/up; sleep 1000",
        "--stop-grace-period",
        "0s",
        "--ports",
        "http:8080",
        "--host",
        "db:10.1.2.3",
        "--cap-drop",
        "ALL",
        "--no-new-privileges",
        "--memory-limit",
        "64m",
        "--memory-swap",
        "0",
    ])?;
    let service = service.trim().to_owned();
    let running = task(cluster, &service).await?;
    let container = container_of(&running)?;
    let seen = inspect(&container).await?;
    let health = seen.state.and_then(|state| state.health).and_then(|health| health.status);
    ensure!(health == Some(bollard::models::HealthStatusEnum::HEALTHY), "it runs, and is {health:?}");
    let host = seen.host_config.context("no host configuration")?;
    let log = host.log_config.context("no log driver")?;
    let size = log.config.unwrap_or_default().remove("max-size");
    ensure!(
        (log.typ.as_deref(), size.as_deref()) == (Some("json-file"), Some("3m")),
        "the cluster's log driver is in force: {:?} {size:?}",
        log.typ
    );
    ensure!(host.memory_swap == Some(64 << 20), "swap {:?}", host.memory_swap);
    // Without the capability to pass over permissions, root can't read what is another user's.
    let told = inside(&container, "cat /run/secrets/pw");
    ensure!(told.is_err(), "root without capabilities read another user's file");
    let script = "stat -c '%a %u:%g' /run/secrets/pw; cat /run/secrets/pw; echo; cat /etc/app.conf";
    let out = Command::new("docker").args(["exec", "-u", "1000", &container, "sh", "-c", script]).output()?;
    let expected = format!("400 1000:0\n{password}\nslot 1 on manager of web as role-1 with {password}");
    ensure!(String::from_utf8_lossy(&out.stdout) == expected, "{out:?}");
    let script = "hostname; grep db /etc/hosts | tr '\\t' ' '; grep -E '^(CapBnd|NoNewPrivs)' /proc/1/status | tr '\\t' ' '";
    let expected = "web-1\n10.1.2.3 db\nCapBnd: 0000000000000000\nNoNewPrivs: 1\n";
    let told = inside(&container, script)?;
    ensure!(told == expected, "{told}");

    // The port is the engine's choice, which may be one for IPv4 and another for IPv6; it is reported, and answered.
    let ports = running.status.port_status.as_ref().context("no port status")?.ports.clone();
    ensure!(matches!(ports.len(), 1 | 2), "one port, not {ports:?}");
    let page = cluster.ctl_ok(&["task", "inspect", &running.id])?;
    for port in &ports {
        ensure!(port.name == "http" && port.target_port == 8080 && port.published_port > 0, "{port:?}");
        ensure!(page.contains(&port.published_port.to_string()), "{page}");
    }

    // Nowhere on disk: not in the daemons' directories, not in what the engine keeps.
    let source = host.mounts.unwrap_or_default().into_iter().filter_map(|mount| mount.source);
    let files: Vec<PathBuf> = source.map(PathBuf::from).filter(|path| path.is_file()).collect();
    ensure!(files.len() == 2, "{files:?}");
    let kept = seen.graph_driver.context("no graph driver")?.data;
    let upper = kept.get("UpperDir").context("these tests need the overlay2 driver")?;
    for directory in [Path::new(upper), cluster.workers[0].state_dir(), cluster.manager.state_dir()] {
        let found = files_with(&password, directory)?;
        ensure!(found.is_empty(), "the secret is in {found}");
    }

    // What is in use stays; with the last task the files go.
    let refused = cluster.ctl(&["secret", "remove", "password"])?;
    ensure!(!refused.status.success(), "a secret in use was removed");
    remove(cluster, "web").await?;
    for file in &files {
        gone(file).await?;
    }
    cluster.ctl_ok(&["secret", "remove", "password"])?;
    Ok(())
}

async fn networks(cluster: &mut Cluster) -> Result<()> {
    let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
    let image = swarm_testkit::image::busybox(&docker).await?;
    let lan = format!("lan-{}", swarm_api::id::random());
    cluster.ctl_ok(&["network", "create", "--name", &lan, "--driver", "bridge", "--internal"])?;
    let create = |network: &str| -> Result<String> {
        let name = ["--name", network, "--image", &image, "--network", network];
        let args = ["--command", "sleep", "--args", "1000", "--stop-grace-period", "0s"];
        Ok(cluster.ctl_ok(&[&["service", "create"], &name[..], &args[..]].concat())?.trim().to_owned())
    };
    let (of_cluster, of_host) = (create(&lan)?, create("host")?);
    let container = container_of(&*task(cluster, &of_cluster).await?)?;
    let networks = inspect(&container).await?.network_settings.and_then(|settings| settings.networks);
    ensure!(networks.as_ref().is_some_and(|all| all.contains_key(&lan)), "{networks:?}");
    let container = container_of(&*task(cluster, &of_host).await?)?;
    let mode = inspect(&container).await?.host_config.and_then(|host| host.network_mode);
    ensure!(mode.as_deref() == Some("host"), "{mode:?}");
    remove(cluster, &lan).await?;
    remove(cluster, "host").await?;
    until("the network to go with its last task", SOON, || async {
        let options = None::<bollard::query_parameters::InspectNetworkOptions>;
        ensure!(docker.inspect_network(&lan, options).await.is_err(), "it is there");
        Ok(())
    })
    .await
}

/// A service on two networks, with names there, that changes its networks while it runs.
async fn several_networks(cluster: &mut Cluster) -> Result<()> {
    let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
    let image = swarm_testkit::image::busybox(&docker).await?;
    let id = swarm_api::id::random();
    let [front, back] = ["front", "back"].map(|name| format!("{name}-{id}"));
    for name in [&front, &back] {
        cluster.ctl_ok(&["network", "create", "--name", name, "--driver", "bridge", "--internal"])?;
    }
    let named = format!("name={front},alias=store,alias=keeper");
    let rest = ["--stop-grace-period", "0s", "--command", "sleep", "--args", "1000"];
    let create = |name: &str, networks: &[&str]| -> Result<String> {
        let head = ["service", "create", "--name", name, "--image", &image, "--hostname", name];
        let networks: Vec<&str> = networks.iter().flat_map(|network| ["--network", *network]).collect();
        Ok(cluster.ctl_ok(&[&head[..], &networks, &rest].concat())?.trim().to_owned())
    };
    let db = create("db", &[&named, &back])?;
    let web = create("web", &[&format!("{front},{back}")])?;
    let container = container_of(&*task(cluster, &web).await?)?;
    task(cluster, &db).await?;
    // By its aliases on one of them, and by its service's name.
    for name in ["store", "keeper", "db"] {
        inside(&container, &format!("ping -c 1 -w 20 {name}"))?;
    }
    let attached = async |container: &str| -> Result<Vec<String>> {
        let networks = inspect(container).await?.network_settings.and_then(|settings| settings.networks);
        let mut names: Vec<String> = networks.unwrap_or_default().into_keys().collect();
        names.sort_unstable();
        Ok(names)
    };
    ensure!(
        attached(&container).await? == [back.clone(), front.clone()],
        "{:?}",
        attached(&container).await?
    );
    let page = cluster.ctl_ok(&["service", "inspect", "db"])?;
    ensure!(page.contains("[store, keeper]"), "{page}");

    let added = format!("name={back},alias=gate");
    cluster.ctl_ok(&["service", "update", "web", "--network-rm", &front, "--network-add", &added])?;
    until("the task to be replaced", SOON, || async {
        let request = swarm_api::v1::ListTasksRequest::default();
        let tasks = cluster.control.clone().list_tasks(request).await?.into_inner().tasks;
        let running = |task: &&swarm_api::Shared<Task>| {
            task.service_id == web && task.status.state() == swarm_api::TaskState::Running
        };
        let running: Vec<_> = tasks.iter().filter(running).collect();
        let [task] = running[..] else { anyhow::bail!("{} run", running.len()) };
        let container = container_of(task)?;
        ensure!(attached(&container).await? == [back.clone()], "{:?}", attached(&container).await?);
        Ok(())
    })
    .await?;
    let container = container_of(&*task(cluster, &db).await?)?;
    inside(&container, "ping -c 1 -w 20 gate")?;
    for service in ["db", "web"] {
        remove(cluster, service).await?;
    }
    until("the networks to go with their last tasks", SOON, || async {
        for name in [&front, &back] {
            let options = None::<bollard::query_parameters::InspectNetworkOptions>;
            ensure!(docker.inspect_network(name, options).await.is_err(), "{name} is there");
        }
        Ok(())
    })
    .await
}

async fn processes(cluster: &mut Cluster) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mark = format!("MARK={}", swarm_api::id::random());
    let password = format!("pw{}", swarm_api::id::random());
    store(cluster, scratch.path(), "secret", "password", &password, &[])?;
    store(cluster, scratch.path(), "config", "conf", "{{.Task.Slot}} {{secret \"pw\"}}", &["-t", "golang"])?;
    let out = scratch.path().join("out");
    let script = format!(
        "stat -c '%a' $SWARMD_SECRETS_DIR/pw > {out}.new; cat $SWARMD_SECRETS_DIR/pw >> {out}.new; echo >> {out}.new; \
         cat $SWARMD_CONFIGS_DIR/conf >> {out}.new; stat -f -c ' %T' $SWARMD_SECRETS_DIR >> {out}.new; \
         mv {out}.new {out}; exec sleep 1000",
        out = out.display()
    );
    let service = cluster.ctl_ok(&[
        "service",
        "create",
        "--name",
        "native",
        "--runtime",
        "process",
        "--env",
        &mark,
        "--secret",
        "password:pw",
        "--config",
        "conf",
        "--stop-grace-period",
        "0s",
        "--",
        "/bin/sh",
        "-c",
        &script,
    ])?;
    let running = task(cluster, service.trim()).await?;
    until("the task to have read its files", SOON, || async {
        ensure!(out.exists(), "it has not");
        Ok(())
    })
    .await?;
    let told = std::fs::read_to_string(&out)?;
    ensure!(told == format!("400\n{password}\n1 {password} tmpfs\n"), "{told}");
    let pid = *processes_with(&mark).first().context("no process")?;
    let environ = std::fs::read(format!("/proc/{pid}/environ"))?;
    let directory =
        environ.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"SWARMD_SECRETS_DIR="));
    let directory = PathBuf::from(String::from_utf8(directory.context("no directory")?.to_vec())?);
    ensure!(
        directory.join("pw").exists() && directory.to_string_lossy().contains(running.id.as_str()),
        "{directory:?}"
    );
    std::fs::remove_file(&out)?;
    for daemon in std::iter::once(&cluster.manager).chain(&cluster.workers) {
        let found = files_with(&password, daemon.state_dir())?;
        ensure!(found.is_empty(), "the secret is in {found}");
    }
    let refused = cluster.ctl(&["secret", "remove", "password"])?;
    ensure!(!refused.status.success(), "a secret in use was removed");
    // Without a manager the node has no secret any more, and its task has: it goes on.
    cluster.ctl_ok(&["service", "update", "native", "--rm-secret", "password", "--rm-config", "conf"])?;
    cluster.ctl_ok(&["service", "remove", "native"])?;
    gone(&directory).await?;
    cluster.ctl_ok(&["secret", "remove", "password"])?;
    Ok(())
}

/// A plug-in makes a password for each task, once it is there.
async fn drivers(cluster: &mut Cluster) -> Result<()> {
    let name = format!("swarmd-test-{}", swarm_api::id::random());
    let refused = cluster.ctl(&["secret", "create", "--driver", &name, "password"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && said.contains(&format!("secret driver plugin {name} not found")),
        "{said}"
    );
    let directory = Path::new("/run/docker/plugins");
    std::fs::create_dir_all(directory)?;
    let socket = directory.join(format!("{name}.sock"));
    let answer = |_, request: Value| {
        let (service, task) = (request["ServiceName"].as_str(), request["TaskID"].as_str());
        let password = format!("{} {}", service.unwrap_or_default(), task.unwrap_or_default());
        std::future::ready(Some(json!({ "Value": STANDARD.encode(password), "DoNotReuse": true })))
    };
    let plugin = TestPlugin::start(&socket, SECRET_PROVIDER, answer)?;
    let result = driven(cluster, &name).await;
    drop(plugin);
    std::fs::remove_file(&socket)?;
    result
}

async fn driven(cluster: &mut Cluster, driver: &str) -> Result<()> {
    cluster.ctl_ok(&["secret", "create", "--driver", driver, "password"])?;
    let listed = cluster.ctl_ok(&["secret", "ls"])?;
    ensure!(listed.contains(driver), "{listed}");
    let scratch = tempfile::tempdir()?;
    let script = format!(
        "cat $SWARMD_SECRETS_DIR/pw > {0}/$SWARMD_TASK_ID.new; mv {0}/$SWARMD_TASK_ID.new {0}/$SWARMD_TASK_ID; \
         exec sleep 1000",
        scratch.path().display()
    );
    let service = cluster.ctl_ok(&[
        "service",
        "create",
        "--name",
        "driven",
        "--replicas",
        "2",
        "--runtime",
        "process",
        "--secret",
        "password:pw",
        "--stop-grace-period",
        "0s",
        "--",
        "/bin/sh",
        "-c",
        &script,
    ])?;
    for task in cluster.running(service.trim(), 2, SOON).await? {
        let file = scratch.path().join(task.id.as_str());
        until("the task to have read its secret", SOON, || async {
            let told = std::fs::read_to_string(&file)?;
            ensure!(told == format!("driven {}", task.id), "{told:?}");
            Ok(())
        })
        .await?;
    }
    remove(cluster, "driven").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plug_in_gives_each_task_a_secret_of_its_own() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    let result = drivers(&mut cluster).await;
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_containers_are_what_the_command_line_says() -> Result<()> {
    let mut cluster = Cluster::start(Engine::Docker, 1).await?;
    // On the manager's node, so that its name is known.
    cluster.ctl_ok(&["node", "drain", "worker-1"])?;
    let result = containers(&mut cluster).await;
    with_logs(&cluster, result)?;
    let result = networks(&mut cluster).await;
    with_logs(&cluster, result)?;
    let result = several_networks(&mut cluster).await;
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_have_their_secrets_and_configs_in_memory() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = processes(&mut cluster).await;
    with_logs(&cluster, result)
}
