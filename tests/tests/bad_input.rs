//! What operators get for wrong input: a message that says what is wrong and what would be right, the right
//! code, and a cluster that goes on as before.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use swarm_api::TaskState;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::{CreateServiceRequest, NodeRole, Placement, ReplicatedService, service_spec};
use swarm_pki::{Clock, Credentials, Dialer, KekChange, KeyStore, NodeSubject, RootCa, ServerRole};
use swarm_testkit::daemon::{Cluster, Engine, loopback, program};
use swarm_testkit::registry::Registry;
use swarm_testkit::wait::until;
use swarm_tests::{SOON, container_service, create, process_service, with_logs};
use tonic::Code;

/// Runs a daemon that must fail, and returns its exit code and what it wrote to standard error.
fn failing_daemon(args: &[&str]) -> Result<(Option<i32>, String)> {
    let dir = tempfile::tempdir()?;
    let mut command = std::process::Command::new(program("swarmd")?);
    // What is not the matter of the test is free for sure.
    for (flag, value) in [
        ("--state-dir", dir.path().join("state").into_os_string()),
        ("--engine-addr", "none".into()),
        ("--listen-control-api", dir.path().join("control.sock").into_os_string()),
        ("--listen-remote-api", format!("{}:0", loopback()).into()),
    ] {
        if !args.contains(&flag) {
            command.arg(flag).arg(value);
        }
    }
    let mut child = command.args(args).stderr(std::process::Stdio::piped()).spawn()?;
    let mut stderr = child.stderr.take().context("stderr is piped")?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stderr, &mut text).map(|_| text)
    });
    let end = std::time::Instant::now() + SOON;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if std::time::Instant::now() > end {
            child.kill()?;
            child.wait()?;
            anyhow::bail!(
                "swarmd {args:?} did not end: {}",
                reader.join().expect("the reader does not panic")?
            );
        }
        std::thread::park_timeout(Duration::from_millis(20));
    };
    Ok((status.code(), reader.join().expect("the reader does not panic")?))
}

fn check_daemon(args: &[&str], expected: &[&str]) -> Result<()> {
    let (code, text) = failing_daemon(args)?;
    ensure!(code == Some(1), "swarmd {args:?} exited with {code:?}: {text}");
    for part in expected {
        ensure!(text.contains(part), "swarmd {args:?} does not say {part:?}: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_can_not_join_says_why_and_exits_with_1() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let (address, token) = (cluster.address()?, cluster.worker_token().await?);
    let join = |token: &str| -> Vec<String> {
        ["--join-addr", &address, "--join-token", token].iter().map(|s| (*s).to_owned()).collect()
    };
    let check = |token: &str, expected: &[&str]| {
        let args = join(token);
        check_daemon(&args.iter().map(String::as_str).collect::<Vec<_>>(), expected)
    };
    check("nonsense", &["invalid join token", "SWMTKN-1-"])?;
    // The digest of another root: the secret is right, the cluster is not the one that the token names.
    let mut parts: Vec<&str> = token.split('-').collect();
    let digest = parts[2].to_owned();
    let other: String = digest
        .chars()
        .map(|c| if c == '0' { '1' } else { '0' })
        .take(1)
        .chain(digest.chars().skip(1))
        .collect();
    parts[2] = &other;
    check(&parts.join("-"), &["remote CA does not match fingerprint"])?;
    // The right digest with a secret that is not this cluster's.
    let mut parts: Vec<&str> = token.split('-').collect();
    let (kept, last) = parts[3].split_at(parts[3].len() - 1);
    let secret = format!("{kept}{}", if last == "0" { '1' } else { '0' });
    parts[3] = &secret;
    check(&parts.join("-"), &["A valid join token is necessary to join this cluster"])?;
    // The cluster is none the worse.
    ensure!(cluster.nodes().await?.len() == 1);
    cluster.add_worker().await?;
    ensure!(cluster.nodes().await?.len() == 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_or_socket_in_use_is_named() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    check_daemon(&["--listen-remote-api", &address], &[&address, "in use"])?;

    let cluster = Cluster::start(Engine::None, 0).await?;
    let socket = cluster.socket();
    let socket = socket.to_str().context("UTF-8")?;
    check_daemon(&["--listen-control-api", socket], &[socket, "another daemon"])?;
    // The living daemon still has its socket.
    cluster.ctl_ok(&["node", "ls"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_is_refused() -> Result<()> {
    let first = Cluster::start(Engine::None, 0).await?;
    let mut second = Cluster::start(Engine::None, 1).await?;
    let token = second.worker_token().await?;
    // The state directory of a worker of the second cluster, told to join the first.
    second.workers[0].stop().await?;
    let state = second.workers[0].state_dir().to_owned();
    let state = state.to_str().context("UTF-8")?;
    check_daemon(
        &["--state-dir", state, "--join-addr", &first.address()?, "--join-token", &token],
        &["certificate", "cluster"],
    )
}

#[test]
fn an_address_that_can_be_no_engines_is_refused() -> Result<()> {
    for (address, right) in [
        ("docker.sock", "tcp://host:port"),
        ("unix://docker.sock", "unix:///path"),
        ("ssh://host", "tcp://host:port"),
        ("tcp://", "tcp://host:port"),
    ] {
        check_daemon(&["--engine-addr", address], &[address, "--engine-addr", right, "\"none\""])?;
    }
    Ok(())
}

#[test]
fn an_expired_certificate_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let then = SystemTime::now() - Duration::from_secs(30 * 24 * 3600);
    let root = RootCa::create(then)?;
    let subject =
        NodeSubject { node_id: "node".into(), role: NodeRole::Worker, organization: "cluster".into() };
    let credentials = Credentials::issue(&root, &subject, Duration::from_secs(24 * 3600), then)?;
    let keys = KeyStore::open(dir.path().join("certificates"))?;
    keys.save_root(&root)?;
    keys.save(credentials.certificate_pem(), credentials.key(), KekChange::Set(None, 0))?;
    let state = dir.path().to_str().context("UTF-8")?;
    check_daemon(&["--state-dir", state], &["certificates", "not valid after"])
}

/// A channel to a manager's TLS port with the certificate of a node's state directory.
fn channel_as(state: &std::path::Path, address: &str) -> Result<tonic::transport::Channel> {
    let (clock, now) = (Clock::system(), SystemTime::now());
    let keys = KeyStore::open(state.join("certificates"))?;
    let root = keys.load_root(now)?;
    let pair = keys.load(None)?;
    let credentials = Credentials::new(&pair.certificate, pair.key, &root, now, false)?;
    Ok(Dialer::with_credentials(&root, &credentials, ServerRole::Manager, &clock)?.channel(address)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_may_not_call_what_is_for_managers() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    let address = cluster.address()?;
    let request = swarm_api::v1::ListNodesRequest::default;
    let worker = channel_as(cluster.workers[0].state_dir(), &address)?;
    let status =
        ControlClient::new(worker).list_nodes(request()).await.err().context("a worker listed nodes")?;
    ensure!(status.code() == Code::PermissionDenied, "{status:?}");
    // The same call with a manager's certificate.
    let manager = channel_as(cluster.manager.state_dir(), &address)?;
    let nodes = ControlClient::new(manager).list_nodes(request()).await?.into_inner().nodes;
    ensure!(nodes.len() == cluster.nodes().await?.len());
    // Without any certificate.
    let (clock, now) = (Clock::system(), SystemTime::now());
    let root = KeyStore::open(cluster.manager.state_dir().join("certificates"))?.load_root(now)?;
    let nobody = Dialer::joining(&root, &clock)?.channel(&address)?;
    let status =
        ControlClient::new(nobody).list_nodes(request()).await.err().context("a stranger listed nodes")?;
    ensure!(status.code() == Code::PermissionDenied, "{status:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_an_image_that_does_not_exist_is_said_in_the_task() -> Result<()> {
    let mut cluster = Cluster::start(Engine::Docker, 0).await?;
    let registry = Registry::start(None).await?;
    let image = format!("{}/no-such-image:1", registry.address());
    let service = create(&mut cluster, container_service("ghost", &image, 1)).await?;
    let text = until("the task to be rejected", SOON, || {
        let mut control = cluster.control.clone();
        let service = service.clone();
        async move {
            let tasks =
                control.list_tasks(swarm_api::v1::ListTasksRequest::default()).await?.into_inner().tasks;
            let task =
                tasks.iter().find(|t| t.service_id == service && t.status.state() == TaskState::Rejected);
            Ok(task.context("no task is rejected yet")?.status.err.clone())
        }
    })
    .await?;
    ensure!(text.contains("no-such-image"), "{text:?}");
    let shown = cluster.ctl_ok(&["task", "ls", "--all"])?;
    ensure!(shown.contains("no-such-image"), "{shown}");
    let request = swarm_api::v1::RemoveServiceRequest { service_id: service };
    cluster.control.remove_service(request).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_get_their_code_and_text_and_change_nothing() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    create(&mut cluster, process_service("taken", 0)).await?;
    let index = cluster.services().await?.len();

    let mut huge = process_service("huge", 1);
    huge.annotations.labels.insert("big".into(), "x".repeat(3 * 1024 * 1024));
    let mut many = process_service("many", 0);
    many.mode = Some(service_spec::Mode::Replicated(ReplicatedService { replicas: 1 << 40 }));
    let mut bad_constraint = process_service("constraint", 1);
    bad_constraint.task.placement =
        Some(Placement { constraints: vec!["node.role=manager".into()], ..Default::default() });
    let cases = [
        ("a name that is taken", process_service("taken", 1), Code::AlreadyExists, "name"),
        ("a name that is taken but for its case", process_service("TAKEN", 1), Code::AlreadyExists, "name"),
        ("a malformed name", process_service("no spaces", 1), Code::InvalidArgument, "name"),
        ("2^40 replicas", many, Code::InvalidArgument, "1099511627776"),
        ("a spec of 3 MB", huge, Code::InvalidArgument, "bytes"),
        ("a constraint without a comparison", bad_constraint, Code::InvalidArgument, "constraint"),
    ];
    for (what, spec, code, text) in cases {
        let answer = cluster.control.create_service(CreateServiceRequest { spec: Some(spec) }).await;
        let status = answer.err().with_context(|| format!("{what} was accepted"))?;
        ensure!(status.code() == code && status.message().contains(text), "{what}: {status:?}");
    }
    ensure!(cluster.services().await?.len() == index);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swarmctl_says_what_is_wrong_and_exits_with_1_or_2() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    for name in ["alpha", "beta"] {
        create(&mut cluster, process_service(name, 0)).await?;
    }
    let check = |args: &[&str], code: i32, texts: &[&str]| -> Result<()> {
        let out = cluster.ctl(args)?;
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(
            out.status.code() == Some(code),
            "swarmctl {args:?} exited with {:?}: {text}",
            out.status.code()
        );
        for part in texts {
            ensure!(text.contains(part), "swarmctl {args:?} does not say {part:?}: {text}");
        }
        Ok(())
    };
    check(&["service", "inspect", "nobody"], 1, &["nobody", "not found"])?;
    check(&["node", "inspect", "nobody"], 1, &["nobody", "not found"])?;
    check(&["task", "inspect", "nobody"], 1, &["nobody", "not found"])?;
    // Every identifier begins with the empty prefix.
    check(&["service", "inspect", ""], 1, &[])?;
    check(&["service", "create", "--name", "x"], 1, &["image"])
        .or_else(|_| check(&["service", "create", "--name", "x"], 2, &["image"]))?;
    check(&["service", "create", "--nonsense"], 2, &["--nonsense"])?;
    let out = std::process::Command::new(program("swarmctl")?)
        .args(["--socket", "/nowhere.sock", "node", "ls"])
        .output()?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.code() == Some(1) && text.contains("/nowhere.sock"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_fits_nowhere_says_why_and_is_placed_when_that_changes() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = placed_later(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn placed_later(cluster: &mut Cluster) -> Result<()> {
    let mut spec = process_service("picky", 1);
    spec.task.placement =
        Some(Placement { constraints: vec!["node.labels.disk==ssd".into()], ..Default::default() });
    let service = create(cluster, spec).await?;
    until("the task to say why it waits", SOON, || {
        let mut control = cluster.control.clone();
        async move {
            let tasks =
                control.list_tasks(swarm_api::v1::ListTasksRequest::default()).await?.into_inner().tasks;
            let task = tasks.first().context("no task")?;
            ensure!(
                task.status
                    .err
                    .starts_with("no suitable node (scheduling constraints not satisfied on 1 node"),
                "{:?}",
                task.status.err
            );
            ensure!(task.status.state() == TaskState::Pending, "{:?}", task.status.state());
            Ok(())
        }
    })
    .await?;
    for args in [&["task", "ls"][..], &["service", "inspect", "picky"][..]] {
        let text = cluster.ctl_ok(args)?;
        ensure!(text.contains("no suitable node"), "swarmctl {args:?}:\n{text}");
    }
    until("the label to be set", SOON, || async {
        // Something else about the node may have been written since it was read.
        cluster.ctl_ok(&["node", "update", "manager", "--label", "disk=ssd"])
    })
    .await?;
    cluster.running(&service, 1, SOON).await?;
    Ok(())
}
