//! The binary against a control service on a socket, with a store but no cluster behind it.

#![allow(clippy::unwrap_used)] // a test that can't be set up has failed

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use swarm_api::swarmd::services_server::ServicesServer;
use swarm_api::v1::control_server::ControlServer;
use swarm_api::v1::{
    Cluster, Network, Node, NodeDescription, NodeRole, Task, TaskState, node_spec, node_status,
};
use swarm_control::{Alone, Control};
use swarm_store::{Indexed, Store};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

/// A server on a socket of its own; it ends with the test.
struct Swarm {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    runtime: tokio::runtime::Runtime,
}

impl Swarm {
    fn start() -> Swarm {
        Swarm::serving(true)
    }

    /// One that has nothing but what the contract knows.
    fn of_another_make() -> Swarm {
        Swarm::serving(false)
    }

    fn serving(ours: bool) -> Swarm {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::local();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let control = Control::new(store.clone(), Arc::new(Alone));
        let path = dir.path().join("swarmd.sock");
        runtime.spawn(async move {
            let incoming = UnixListenerStream::new(UnixListener::bind(path).unwrap());
            let services = ours.then(|| ServicesServer::new(control.clone()));
            let server = tonic::transport::Server::builder()
                .add_optional_service(services)
                .add_service(ControlServer::new(control));
            server.serve_with_incoming(incoming).await.unwrap();
        });
        let swarm = Swarm { dir, store, runtime };
        while std::os::unix::net::UnixStream::connect(swarm.socket()).is_err() {
            std::thread::yield_now();
        }
        swarm
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("swarmd.sock")
    }

    fn put<T: Indexed>(&self, object: T) {
        self.runtime.block_on(self.store.update(|tx| tx.create(object.clone()))).unwrap();
    }

    fn node(&self, id: &str, hostname: &str) {
        let mut node = Node { id: id.into(), role: NodeRole::Worker as i32, ..Default::default() };
        node.spec.membership = node_spec::Membership::Accepted as i32;
        node.status.state = node_status::State::Ready as i32;
        node.description = Some(NodeDescription { hostname: hostname.into(), ..Default::default() });
        self.put(node);
    }

    fn run(&self, words: &[&str]) -> Output {
        self.run_with(words, b"")
    }

    fn run_with(&self, words: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_swarmctl"));
        command.args(words).env("SWARM_SOCKET", self.socket());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// What a command prints that must work.
    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {errors}");
        assert_eq!(errors, "", "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A command that must fail, and what it says.
    #[track_caller]
    fn fails(&self, words: &[&str], code: i32, text: &str) {
        let output = self.run(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {errors}");
        assert!(errors.contains(text), "{words:?}: {errors}");
        assert!(output.stdout.is_empty(), "{words:?}");
    }
}

#[test]
fn a_service_is_created_shown_changed_and_removed() {
    let swarm = Swarm::start();
    let id = swarm.ok(&["service", "create", "--name", "web", "--image", "redis:7", "--replicas", "2"]);
    let id = id.trim();
    let listed = swarm.ok(&["service", "ls"]);
    assert_eq!(
        listed.lines().last().unwrap().split_whitespace().collect::<Vec<_>>(),
        [id, "web", "redis:7", "0/2"]
    );
    assert_eq!(swarm.ok(&["service", "ls", "-q"]), format!("{id}\n"));
    for given in ["web", id, &id[..8]] {
        assert!(swarm.ok(&["service", "inspect", given]).contains("Image"), "{given}");
    }
    assert_eq!(swarm.ok(&["svc", "update", "web", "--replicas=5", "--env", "A=1"]), format!("{id}\n"));
    let page = swarm.ok(&["service", "inspect", "web"]);
    assert!(page.contains(": 0/5\n") && page.contains(": [A=1]\n"), "{page}");
    swarm.fails(&["service", "update", "web"], 1, "Error: no changes detected");
    swarm.fails(&["service", "update", "web", "--name", "other"], 1, "renaming services is not supported");
    swarm.fails(
        &["service", "create", "--name", "web", "--image", "x"],
        1,
        "name conflicts with an existing object: service web already exists",
    );
    swarm.fails(&["service", "create", "--image", "x"], 2, "--name must be given");
    swarm.fails(
        &["service", "create", "--name", "big", "--image", "x", "--replicas", "1099511627776"],
        1,
        "more than the 10000000 tasks",
    );
    assert_eq!(swarm.ok(&["service", "rm", "web"]), "web\n");
    swarm.fails(&["service", "inspect", "web"], 1, "service \"web\" not found");
}

#[test]
fn a_wait_gives_the_id_at_once_and_ends_with_the_service() {
    let swarm = Swarm::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_swarmctl"));
    command.args(["service", "create", "--name", "web", "--image", "x", "--detach=false"]);
    command.env("SWARM_SOCKET", swarm.socket()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let (mut id, mut line) = (String::new(), String::new());
    out.read_line(&mut id).unwrap();
    err.read_line(&mut line).unwrap();
    assert_eq!((id.trim(), line.as_str()), (swarm.ok(&["service", "ls", "-q"]).trim(), "web: 0/1 running\n"));
    swarm.ok(&["service", "rm", "web"]);
    let mut rest = String::new();
    err.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("Error: service web was removed meanwhile"), "{rest}");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

/// A directory for PATH with a credential helper, and a client's configuration that names it.
fn helper(script: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"auths": {"localhost:5000": {}}, "credHelpers": {"localhost:5000": "test"}}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let program = dir.path().join("docker-credential-test");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

#[test]
fn credential_helpers_are_asked() {
    let swarm = Swarm::start();
    let run = |script: &str, words: &[&str]| {
        let dir = helper(script);
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_swarmctl"));
        command.args(words).env("SWARM_SOCKET", swarm.socket()).env("PATH", path);
        let output = command.env("DOCKER_CONFIG", dir.path()).output().unwrap();
        let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap_or_default();
        (output.status.code(), String::from_utf8(output.stderr).unwrap(), asked)
    };
    let auth = |name: &str| {
        let services = swarm.store.view();
        let service = services.services().iter().find(|s| s.spec.annotations.name == name).unwrap();
        let Some(swarm_api::v1::task_spec::Runtime::Container(container)) = &service.spec.task.runtime else {
            panic!("a container")
        };
        let options = container.pull_options.as_ref()?;
        Some(URL_SAFE.decode(&options.registry_auth).map(|json| String::from_utf8(json).unwrap()).unwrap())
    };
    let create =
        ["service", "create", "--name", "web", "--image", "localhost:5000/x", "--with-registry-auth"];
    let answer = r#"printf '%s %s' "$1" "$(cat)" >"${0%/*}/asked"; echo '{"ServerURL":"","Username":"me","Secret":"s3cret"}'"#;
    assert_eq!(run(answer, &create), (Some(0), String::new(), "get localhost:5000".into()));
    let expected = r#"{"password":"s3cret","serveraddress":"localhost:5000","username":"me"}"#;
    assert_eq!(auth("web").as_deref(), Some(expected));

    let update = ["service", "update", "web", "--image", "localhost:5000/y", "--with-registry-auth"];
    let token = r#"echo '{"Username":"<token>","Secret":"t0ken"}'"#;
    assert_eq!(run(token, &update), (Some(0), String::new(), String::new()));
    assert_eq!(auth("web").as_deref(), Some(r#"{"identitytoken":"t0ken","serveraddress":"localhost:5000"}"#));

    for (script, text) in [
        (
            "echo 'the keychain is locked'; exit 1",
            "docker-credential-test failed (exit status: 1): the keychain is locked",
        ),
        (
            "echo '{\"Secret\":\"s3cret\"}'",
            "docker-credential-test did not answer with a JSON object that has",
        ),
        ("echo '{\"Secret\":\"s3cret\"}'; exit 1", "docker-credential-test failed (exit status: 1)"),
        ("echo 's3cret'", "docker-credential-test did not answer with a JSON object that has"),
        (
            "echo 'credentials not found in native keychain'; exit 1",
            "no credentials for localhost:5000, and docker-credential-test has none: `docker login localhost:5000`",
        ),
        ("exec sleep 1000", "docker-credential-test did not answer within 10s"),
    ] {
        let (code, err, _) = run(script, &update);
        assert_eq!(code, Some(1), "{script}");
        assert!(err.contains("--with-registry-auth: ") && err.contains(text), "{script}: {err}");
        assert!(!err.contains("s3cret"), "{err}");
    }

    // What is for one registry is not for another.
    let other = swarm.run(&["service", "update", "web", "--image", "quay.io/x"]);
    let err = String::from_utf8(other.stderr).unwrap();
    assert!(
        other.status.success() && err.starts_with("Note: the service's credentials for localhost:5000 "),
        "{err}"
    );
    assert_eq!(auth("web"), None);
}

#[test]
fn a_service_goes_back_to_what_it_was() {
    let swarm = Swarm::start();
    swarm.ok(&["service", "create", "--name", "web", "--image", "redis:6"]);
    swarm.fails(&["service", "rollback", "web"], 1, "does not have a previous spec");
    swarm.ok(&["service", "update", "web", "--image", "redis:7"]);
    swarm.ok(&["service", "rollback", "web"]);
    let page = swarm.ok(&["service", "inspect", "web"]);
    assert!(page.contains(": redis:6\n") && page.contains(": ROLLBACK_STARTED\n"), "{page}");
    assert!(page.contains(": manually requested rollback\n"), "{page}");
    swarm.ok(&["service", "update", "--rollback", "web"]);
    assert!(swarm.ok(&["service", "inspect", "web"]).contains(": redis:7\n"));
}

#[test]
fn an_even_spread_is_asked_for() {
    let swarm = Swarm::start();
    swarm.ok(&["service", "create", "--name", "web", "--image", "redis", "--rebalance", "auto"]);
    let even = "no task has to move: the spread is as even as it can be\n";
    assert_eq!(swarm.ok(&["service", "rebalance", "web"]), even);
    swarm.fails(&["service", "rebalance", "nobody"], 1, "service \"nobody\" not found");
    swarm.ok(&["service", "create", "--name", "all", "--image", "redis", "--mode", "global"]);
    swarm.fails(&["service", "rebalance", "all"], 1, "only replicated services can be rebalanced");
    let packed = ["service", "update", "web", "--placement-strategy", "binpack"];
    swarm.fails(&packed, 1, "would go back to the fullest node");
    swarm.ok(&[&packed[..], &["--rebalance", "off"]].concat());
    swarm.fails(&["service", "rebalance", "web"], 1, "placement strategy is binpack");
}

#[test]
fn strategy_and_priority_are_shown() {
    let swarm = Swarm::start();
    let policy = ["--placement-strategy", "binpack", "--priority", "5"];
    swarm.ok(&[&["service", "create", "--name", "web", "--image", "redis"], &policy[..]].concat());
    let shown = |words: &[&str]| {
        let page = swarm.ok(&["service", "inspect", "web"]);
        let words = words.join(" ");
        assert!(page.split_whitespace().collect::<Vec<_>>().join(" ").contains(&words), "{page}");
    };
    shown(&["Strategy", ":", "binpack", "Priority", ":", "5"]);
    swarm.ok(&["service", "update", "web", "--priority", "-1"]);
    shown(&["Priority", ":", "-1"]);
    swarm.fails(&["service", "update", "web", "--priority", "1.5"], 2, "--priority");
    swarm.fails(&["service", "update", "web", "--placement-strategy", "x"], 2, "expected spread or binpack");
}

#[test]
fn restarts_updates_and_rollbacks_are_shown_and_changed() {
    let swarm = Swarm::start();
    let policy = [
        "--restart-max-attempts=3",
        "--update-monitor=20s",
        "--update-max-failure-ratio=0.25",
        "--rollback-parallelism=0",
        "--placement-pref=spread=node.labels.zone",
        "--generic-resource=fpga=2",
        "--stop-grace-period=1m",
    ];
    swarm.ok(&[&["service", "create", "--name", "web", "--image", "redis"], &policy[..]].concat());
    let shown = |text: &str| {
        let page = swarm.ok(&["service", "inspect", "web"]);
        assert!(page.split_whitespace().collect::<Vec<_>>().join(" ").contains(text), "{page}");
    };
    shown(
        "Update Config Parallelism : 1 Delay : 0s Monitor : 20s Max Failure Ratio : 0.25 On Failure : pause",
    );
    shown("Rollback Config Parallelism : all at once Delay : 0s Monitor : 5s");
    shown("Restart Condition : any Delay : 5s Max Attempts : 3");
    shown("Stop Grace Period : 1m0s Spread Over : node.labels.zone");
    shown("Generic Resources fpga : 2");
    let update = ["--update-failure-action=rollback", "--rollback-monitor=0", "--placement-pref="];
    swarm.ok(&[&["service", "update", "web"], &update[..]].concat());
    shown("Monitor : 20s Max Failure Ratio : 0.25 On Failure : rollback Order : stop-first Rollback Config");
    shown("Parallelism : all at once Delay : 0s Monitor : 0s");
    shown("Stop Grace Period : 1m0s Resources Reservations: Generic Resources fpga : 2 Restart");
    swarm.ok(&["service", "update", "web", "--generic-resource="]);
    shown("Stop Grace Period : 1m0s Restart");
    swarm.fails(
        &["service", "update", "web", "--update-max-failure-ratio", "25"],
        2,
        "expected a share from 0 to 1",
    );
}

#[test]
fn a_dry_run_shows_what_would_happen_and_makes_nothing() {
    let swarm = Swarm::start();
    let web = ["service", "create", "--name", "web", "--image", "redis:6", "--replicas", "3"];
    let dry = [&web[..], &["--dry-run"]].concat();
    let refused = |words: &[&str], text: &str| {
        let output = swarm.run(words);
        let page = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(3), "{words:?}: {output:?}");
        assert!(page.contains(text) && output.stderr.is_empty(), "{page}");
    };
    refused(&dry, "3 tasks  1-3             no suitable node\n");
    swarm.node("n1", "one");
    let page = swarm.ok(&dry);
    assert!(page.starts_with("Dry run of service web, from the state at index "), "{page}");
    assert!(page.contains("\none   3    0          0     0        1-3\n"), "{page}");
    assert!(page.ends_with("\nTasks: 3 placed.\n"), "{page}");
    assert_eq!(swarm.ok(&["service", "ls", "-q"]), "");

    swarm.ok(&web);
    let update = ["service", "update", "web", "--image", "redis:7", "--replicas", "4"];
    let page = swarm.ok(&[&update[..], &["--dry-run"]].concat());
    assert!(page.contains("\nimage: redis:6 → redis:7"), "{page}");
    assert!(page.contains("\nnumber of tasks: 3 → 4    in place\n"), "{page}");
    let nowhere = ["--constraint", "node.id==two", "--dry-run"];
    refused(&[&update[..], &nowhere[..]].concat(), "scheduling constraints not satisfied on 1 node");
    assert!(swarm.ok(&["service", "inspect", "web"]).contains(": redis:6\n"));

    // What is wrong is as wrong as without it.
    swarm.fails(&dry, 1, "name conflicts with an existing object: service web already exists");
    swarm.fails(&["service", "create", "--image", "x", "--dry-run"], 2, "--name must be given");
    swarm.fails(&["service", "update", "web", "--dry-run"], 1, "Error: no changes detected");
    swarm.fails(&["service", "update", "nobody", "--dry-run", "--force"], 1, "service \"nobody\" not found");
    swarm.fails(&["service", "update", "web", "--rollback", "--dry-run"], 1, "does not have a previous spec");
    swarm.fails(&["service", "rollback", "web", "--dry-run"], 1, "does not have a previous spec");
    swarm.fails(&["service", "update", "web", "--name", "b", "--dry-run"], 1, "renaming services is not");
    swarm.fails(&["service", "rm", "web", "--dry-run"], 2, "--dry-run");
    swarm.ok(&["service", "update", "web", "--image", "redis:7"]);
    let page = swarm.ok(&["service", "update", "web", "--rollback", "--dry-run"]);
    assert!(page.contains("image: redis:7 → redis:6"), "{page}");
    assert_eq!(swarm.ok(&["service", "rollback", "web", "--dry-run"]), page);
    assert!(swarm.ok(&["service", "inspect", "web"]).contains(": redis:7\n"));
}

#[test]
fn a_job_is_a_service_too() {
    let swarm = Swarm::start();
    let job = &["--mode", "replicated-job", "--total-completions", "9", "--max-concurrent", "2"];
    swarm.ok(&[&["service", "create", "--name", "job", "--image", "redis"], &job[..]].concat());
    assert!(swarm.ok(&["service", "ls"]).contains("0/2 (0/9 completed)"));
    swarm.ok(&["service", "update", "job", "--force"]);
    let page = swarm.ok(&["service", "inspect", "job"]);
    let words: Vec<_> = page.split_whitespace().collect();
    assert!(words.join(" ").contains("Iteration : 1"), "{page}");
    swarm.fails(&["service", "update", "job", "--update-delay", "1s"], 1, "may not have update config");
}

#[test]
fn a_native_process_is_a_service_too() {
    let swarm = Swarm::start();
    swarm.ok(&["service", "create", "--name", "n", "--runtime", "process", "--", "sleep", "100"]);
    let page = swarm.ok(&["service", "inspect", "n"]);
    assert!(page.contains(": \"sleep 100\"\n"), "{page}");
    assert!(page.contains("engine.labels.swarmd.runtime.process==1"), "{page}");
    swarm.ok(&["service", "update", "n", "--env", "A=1", "--user", "nobody"]);
    assert!(swarm.ok(&["service", "ls"]).contains("sleep"));
    // The manager puts its constraint back.
    swarm.fails(&["service", "update", "n", "--constraint", ""], 1, "no changes detected");
    let worker = ["service", "update", "n", "--constraint", "node.role==worker"];
    swarm.ok(&worker);
    swarm.fails(&worker, 1, "no changes detected");
    swarm.fails(&[&worker[..], &["--dry-run"]].concat(), 1, "no changes detected");
    assert!(swarm.ok(&["service", "inspect", "n"]).contains("engine.labels.swarmd.runtime.process==1"));
}

#[test]
fn the_routing_mesh_is_warned_of_when_a_port_comes_to_need_it() {
    let swarm = Swarm::start();
    let create = ["service", "create", "--name", "web", "--image", "redis", "--publish"];
    let create = [&create[..], &["published=8080,target=80,mode=ingress"]].concat();
    swarm.fails(&create, 1, "Error: service needs ingress network");
    let mut mesh = Network { id: "mesh".into(), ..Default::default() };
    mesh.spec.annotations.name = "ingress".into();
    mesh.spec.ingress = true;
    swarm.put(mesh);
    let warned = |words: &[&str]| {
        let output = swarm.run(words);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let warning = "Warning: port 8080 is published through the routing mesh, which only nodes of Docker Engine serve: \
                   publish it with mode=host to reach it on nodes of swarmd\n";
    assert_eq!(warned(&create), warning);
    swarm.ok(&["service", "update", "web", "--replicas", "2"]);
    swarm.ok(&["service", "update", "web", "--publish-add", "9000:90"]);
    let more = warned(&["service", "update", "web", "--publish-add", "published=53,target=53,mode=ingress"]);
    assert!(more.starts_with("Warning: port 53 is ") && more.lines().count() == 1, "{more}");
    swarm.ok(&["service", "rollback", "web"]);
}

#[test]
fn nodes_are_found_by_id_name_or_prefix() {
    let swarm = Swarm::start();
    swarm.node("aaa1", "one");
    swarm.node("aab2", "same");
    swarm.node("b3", "same");
    assert_eq!(swarm.ok(&["node", "ls", "-q"]), "aaa1\naab2\nb3\n");
    assert!(swarm.ok(&["node", "inspect", "one"]).starts_with("ID"));
    assert_eq!(swarm.ok(&["node", "drain", "aaa"]), "");
    swarm.fails(&["node", "drain", "one"], 1, "Error: node one is already drained");
    swarm.ok(&["node", "activate", "one"]);
    swarm.fails(
        &["node", "inspect", "same"],
        1,
        "node \"same\" is ambiguous: 2 of them have this name (aab2, b3)",
    );
    swarm.fails(&["node", "inspect", "aa"], 1, "2 of them have this ID prefix");
    swarm.fails(&["node", "inspect", "zzz"], 1, "node \"zzz\" not found");
    swarm.fails(&["node", "inspect", ""], 1, "not found");
    swarm.fails(&["node", "inspect"], 2, "<NODE>");
    swarm.ok(&["node", "update", "one", "--label", "a=1,b=2"]);
    swarm.ok(&["node", "update", "one", "--label", "c=3"]);
    assert!(swarm.ok(&["node", "inspect", "one"]).contains(": c=3\n"));
    swarm.fails(&["node", "update", "one", "--label", "c=3"], 1, "unchanged");
    swarm.fails(&["node", "update", "one", "--label", "c"], 2, "no key=value");
    swarm.fails(&["node", "rm", "one"], 1, "node aaa1 is not down and can't be removed");
    let mut cluster = Cluster { id: "c".into(), ..Default::default() };
    cluster.spec.annotations.name = "default".into();
    swarm.put(cluster);
    swarm.ok(&["node", "rm", "-f", "one"]);
    assert_eq!(swarm.ok(&["cluster", "ls"]), "ID  Name\n--  ----\nc   default\n");
    assert!(swarm.ok(&["cluster", "inspect"]).contains("Join Tokens:"));
}

#[test]
fn tasks_that_wait_say_why() {
    let swarm = Swarm::start();
    let service = swarm.ok(&["service", "create", "--name", "web", "--image", "redis"]);
    let mut task = Task { id: "t1".into(), service_id: service.trim().into(), slot: 1, ..Default::default() };
    task.service_annotations.name = "web".into();
    task.desired_state = TaskState::Running as i32;
    task.status.state = TaskState::Pending as i32;
    task.status.err = "no suitable node (1 node not available)".into();
    let before = Task { id: "s1".into(), desired_state: TaskState::Shutdown as i32, ..task.clone() };
    swarm.put(task);
    swarm.put(before);
    let by_slot = ["task", "inspect", "web.1"];
    for words in [&["task", "ls"][..], &["service", "inspect", "web"], &["task", "inspect", "t"], &by_slot] {
        let text = swarm.ok(words);
        assert!(text.contains("no suitable node (1 node not available)"), "{words:?}: {text}");
    }
    assert!(swarm.ok(&by_slot).contains(": t1\n"), "the one that is to run");
    swarm.fails(&["task", "inspect", "web.2"], 1, "task \"web.2\" not found");
    assert!(swarm.ok(&["task", "ls"]).contains("web.1"));
    assert!(!swarm.ok(&["task", "ls", "-n"]).contains("web.1"));
    assert_eq!(swarm.ok(&["task", "rm", "t1"]), "t1\n");
    swarm.fails(&["task", "rm", "t1"], 1, "task \"t1\" not found");
}

#[test]
fn the_first_task_of_a_job_is_found_by_its_slot() {
    let swarm = Swarm::start();
    let mode = ["--mode", "replicated-job", "--total-completions", "2"];
    let job = swarm.ok(&[&["service", "create", "--name", "job", "--image", "redis"], &mode[..]].concat());
    let task = |id: &str, slot, desired: TaskState| {
        let mut task = Task { id: id.into(), service_id: job.trim().into(), slot, ..Default::default() };
        task.node_id = "n1".into();
        task.service_annotations.name = "job".into();
        task.desired_state = desired as i32;
        task.status.state = TaskState::Running as i32;
        swarm.put(task);
    };
    task("t0", 0, TaskState::Shutdown);
    task("t1", 0, TaskState::Complete);
    task("t2", 1, TaskState::Complete);
    assert!(swarm.ok(&["task", "ls"]).contains("job.0"));
    assert!(swarm.ok(&["task", "inspect", "job.0"]).contains(": t1\n"));
    assert!(swarm.ok(&["task", "inspect", "job.1"]).contains(": t2\n"));
    swarm.fails(&["task", "inspect", "job.2"], 1, "task \"job.2\" not found");
    swarm.fails(&["task", "inspect", "other.0"], 1, "task \"other.0\" not found");
    task("t3", 0, TaskState::Complete);
    let text = "task \"job.0\" is ambiguous: 2 of them have this slot";
    swarm.fails(&["task", "inspect", "job.0"], 1, text);
}

/// As those of another make.
#[test]
fn a_manager_that_lets_nobody_into_tasks_is_named() {
    let swarm = Swarm::start();
    let mut task = Task { id: "t1".into(), node_id: "n1".into(), slot: 1, ..Default::default() };
    task.status.state = TaskState::Running as i32;
    swarm.put(task);
    let text = "Error: the manager that leads knows no exec, attach and stats: it is no swarmd, or too old";
    swarm.fails(&["task", "exec", "t1", "true"], 1, text);
    swarm.fails(&["task", "attach", "t1"], 1, text);
    let output = swarm.run(&["task", "stats", "--no-stream", "t1"]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{table}");
    assert!(table.contains("knows no exec, attach and stats"), "{table}");
}

#[test]
fn a_manager_that_neither_rebalances_nor_looks_ahead_is_named() {
    let swarm = Swarm::of_another_make();
    let web = ["service", "create", "--name", "web", "--image", "redis"];
    let text = "Error: the manager that leads knows no dry runs: it is no swarmd, or too old";
    swarm.fails(&[&web[..], &["--dry-run"]].concat(), 1, text);
    swarm.ok(&web);
    let text = "Error: the manager that leads can't rebalance services: it is no swarmd, or too old";
    swarm.fails(&["service", "rebalance", "web"], 1, text);
}

#[test]
fn secrets_and_configs_come_from_the_standard_input() {
    let swarm = Swarm::start();
    let created = swarm.run_with(&["secret", "create", "password"], b"hush\n");
    assert!(created.status.success(), "{created:?}");
    assert!(swarm.ok(&["secret", "ls"]).contains("password"));
    assert!(!swarm.ok(&["secret", "inspect", "PASSWORD"]).contains("hush"));
    swarm.fails(&["secret", "create", "empty"], 1, "must be larger than 0");
    swarm.ok(&["service", "create", "--name", "web", "--image", "redis", "--secret", "password"]);
    swarm.fails(&["secret", "rm", "password"], 1, "is in use by the following service: web");
    swarm.fails(
        &["service", "create", "--name", "b", "--image", "x", "--secret", "nope"],
        1,
        "secret \"nope\" not found",
    );
    assert!(swarm.run_with(&["config", "create", "settings"], b"a = 1\n\xff").status.success());
    let page = swarm.run(&["config", "inspect", "settings"]).stdout;
    assert!(page.ends_with(b"Payload:\n\na = 1\n\xff"), "{page:?}");
}

#[test]
fn help_goes_to_the_standard_output_and_mistakes_do_not() {
    let swarm = Swarm::start();
    for words in [&[][..], &["node"], &["node", "ls", "--help"], &["service", "create", "-h"]] {
        assert!(swarm.ok(words).contains("Usage:"), "{words:?}");
    }
    assert!(swarm.ok(&["version"]).contains(env!("CARGO_PKG_VERSION")));
    swarm.fails(&["nodee"], 2, "node");
    swarm.fails(&["node", "foo"], 2, "foo");
    swarm.fails(&["--socket", "/nonexistent", "node", "ls"], 1, "can't reach a manager at /nonexistent: ");
}
