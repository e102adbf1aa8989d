//! Namespaces and roots of real processes. These tests need root.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use common::{Lab, exit, fatal, output, processes_of, shell, start, until_lines, until_processes, within};
use swarm_agent::{Dependencies, DependencyError, Executor};
use swarm_api::Shared;
use swarm_api::extensions::Feature;
use swarm_api::swarmd::ProcessSpec;
use swarm_api::swarmd::process_spec::Command;
use swarm_api::v1::{Config, FileTarget, HealthConfig, Secret, SecretReference, Task, secret_reference};
use swarm_testkit::visit::Visit;

/// A root with a shell and its tools; the shell is linked statically.
fn root(lab: &Lab) -> PathBuf {
    let root = lab.state.path().join("root");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    let busybox = swarm_testkit::image::busybox_path().unwrap();
    std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for tool in
        ["sh", "cat", "ls", "sleep", "pwd", "id", "touch", "echo", "kill", "readlink", "mount", "grep"]
    {
        let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(tool));
    }
    std::fs::write(root.join("mark"), "inside\n").unwrap();
    root
}

fn in_root(lab: &Lab, script: &str) -> ProcessSpec {
    ProcessSpec { root: root(lab).to_str().unwrap().into(), ..shell(script) }
}

#[tokio::test]
async fn a_process_with_a_namespace_of_its_own_sees_no_others() {
    let lab = Lab::new();
    let spec = ProcessSpec { pid_namespace: true, ..shell("echo $$; ls /proc | grep -c '^[0-9]'; exit 3") };
    let record = lab.task(&spec);
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    assert_eq!(within(task.wait()).await, exit(3));
    let lines = output(task.as_ref()).await;
    // Its first process is ours, and takes in orphans.
    assert_eq!(lines[0], "2", "{lines:?}");
    assert!(lines[1].parse::<u32>().unwrap() <= 5, "{lines:?}");
    lab.done().await;
}

#[tokio::test]
async fn signals_stops_and_kills_reach_a_process_in_its_namespace() {
    let mut lab = Lab::new();
    let isolated = |script: &str| ProcessSpec { pid_namespace: true, ..shell(script) };
    let record =
        lab.task(&isolated("trap 'exit 7' TERM; setsid sleep 1000 & echo up; while :; do sleep 0.02; done"));
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    until_lines(task.as_ref(), 1).await;
    lab.restart();
    let task = lab.controller(&record);
    within(task.shutdown()).await.unwrap();
    assert_eq!(within(task.wait()).await, exit(7));
    assert!(processes_of(&record.id).is_empty());

    let mut stubborn = isolated("trap '' TERM; echo up; setsid sleep 1000 & while :; do sleep 1; done");
    stubborn.stop_grace_period = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let record = lab.task(&stubborn);
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    until_lines(task.as_ref(), 1).await;
    within(task.shutdown()).await.unwrap();
    assert_eq!(within(task.wait()).await, exit(137));

    // Killed by a signal of its own.
    let task = lab.controller(&lab.task(&isolated("kill -9 $$")));
    start(task.as_ref()).await;
    assert_eq!(within(task.wait()).await, exit(137));

    // Its supervisor is lost: nothing of it goes on.
    let record = lab.task(&isolated("setsid sleep 1000 & exec sleep 1000"));
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    until_processes(&record, 3).await;
    let shim = common::shim_of(task.as_ref()).await;
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(within(task.wait()).await.is_err());
    until_processes(&record, 0).await;
    lab.done().await;
}

#[tokio::test]
async fn mounts_of_a_process_are_seen_by_nobody_else() {
    let lab = Lab::new();
    let target = lab.state.path().join("mounted");
    std::fs::create_dir(&target).unwrap();
    let script = format!("mount -t tmpfs none {0} && touch {0}/file && ls {0}", target.display());
    let spec = ProcessSpec { mount_namespace: true, ..shell(&script) };
    let task = lab.controller(&lab.task(&spec));
    start(task.as_ref()).await;
    within(task.wait()).await.unwrap();
    assert_eq!(output(task.as_ref()).await, ["file"]);
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0, "the host sees none of it");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(target.to_str().unwrap()), "{mounts}");
    lab.done().await;
}

#[tokio::test]
async fn a_root_of_its_own_is_all_that_a_process_sees() {
    let lab = Lab::new();
    for pid_namespace in [false, true] {
        let script = "pwd; cat /mark; ls /; ls /..; echo > /dev/null; ls -d /proc/self/fd; id -u";
        let spec = ProcessSpec { pid_namespace, user: "4711:4712".into(), ..in_root(&lab, script) };
        let record = lab.task(&spec);
        let task = lab.controller(&record);
        start(task.as_ref()).await;
        within(task.wait()).await.unwrap();
        let all = ["bin", "dev", "mark", "proc"];
        let lines = output(task.as_ref()).await;
        assert_eq!(
            lines,
            [&["/", "inside"][..], &all, &all, &["/proc/self/fd", "4711"]].concat(),
            "{pid_namespace}"
        );
    }
    let host = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let dev = root(&lab).join("dev");
    assert!(!host.contains(dev.to_str().unwrap()), "the host's mounts are as they were: {host}");
    lab.done().await;
}

#[tokio::test]
async fn what_runs_beside_a_process_is_in_its_root_and_among_its_processes() {
    let lab = Lab::new();
    let mut spec = in_root(&lab, "trap 'cat /said; exit 7' TERM; echo up; while :; do sleep 0.05; done");
    spec.pid_namespace = true;
    spec.init_tasks = vec![Command { words: vec!["sh".into(), "-c".into(), "cat /mark > /made".into()] }];
    spec.pre_stop = vec!["sh".into(), "-c".into(), "cat /made > /said; ls /proc > /processes".into()];
    spec.healthcheck = Some(HealthConfig {
        test: ["CMD", "cat", "/made"].map(str::to_owned).to_vec(),
        interval: Some(prost_types::Duration { seconds: 0, nanos: 20_000_000 }),
        ..Default::default()
    });
    let task = lab.controller(&lab.task(&spec));
    start(task.as_ref()).await;
    within(task.shutdown()).await.unwrap();
    assert_eq!(within(task.wait()).await, exit(7));
    let mut lines = output(task.as_ref()).await;
    lines.retain(|line| line != "Terminated"); // what some shells say of their children
    assert_eq!(lines, ["up", "inside"]);
    let seen = std::fs::read_to_string(root(&lab).join("processes")).unwrap();
    let pids = seen.lines().filter(|name| name.parse::<u32>().is_ok()).count();
    assert!((2..8).contains(&pids), "its own processes only: {seen}");
    lab.done().await;
}

#[tokio::test]
async fn a_command_that_somebody_executes_is_in_the_root_and_among_the_processes() {
    let lab = Lab::new();
    let spec = ProcessSpec { pid_namespace: true, ..in_root(&lab, "exec sleep 1000") };
    let task = lab.controller(&lab.task(&spec));
    start(task.as_ref()).await;
    let script = "cat /mark; ls /proc | grep -c '^[0-9]'; readlink /proc/self/exe; kill -9 2; exit 5";
    let options = swarm_testkit::visit::shell(script);
    let (result, written) = within(Visit::exec(&task, options).end()).await.unwrap();
    assert_eq!(result, Ok(5), "{}", written.errors());
    let text = written.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[2]), ("inside", "/bin/busybox"), "{text}");
    assert!((2..8).contains(&lines[1].parse::<usize>().unwrap()), "{text}");
    // The task's command is the second process there.
    assert_eq!(within(task.wait()).await, exit(137));
    lab.done().await;
}

/// One secret.
struct Given(Shared<Secret>);

impl Dependencies for Given {
    fn secret(&self, _: &Task, _: &str) -> Result<Shared<Secret>, DependencyError> {
        Ok(self.0.clone())
    }
    fn config(&self, _: &Task, id: &str) -> Result<Shared<Config>, DependencyError> {
        Err(DependencyError { kind: "config", id: id.to_owned(), refused: false })
    }
}

#[tokio::test]
async fn secrets_are_found_in_a_root_of_its_own_and_can_not_be_written() {
    let lab = Lab::new();
    let mut spec = in_root(&lab, "cat $SWARMD_SECRETS_DIR/pw; touch $SWARMD_SECRETS_DIR/x || echo read-only");
    let file = FileTarget { name: "pw".into(), ..Default::default() };
    let target = Some(secret_reference::Target::File(file));
    spec.secrets = vec![SecretReference { secret_id: "s".into(), secret_name: "pw".into(), target }];
    let mut secret = Secret { id: "s".into(), ..Default::default() };
    secret.spec.data = b"hush\n".to_vec();
    let node = swarm_api::v1::Node { id: "n".into(), ..Default::default() };
    lab.executor.configure(&node.into()).await.unwrap();
    let record = lab.task(&spec);
    let task = lab.executor.controller(&record.into(), Arc::new(Given(secret.into()))).unwrap();
    start(task.as_ref()).await;
    within(task.wait()).await.unwrap();
    let lines = output(task.as_ref()).await;
    assert!(lines.contains(&"hush".to_owned()) && lines.contains(&"read-only".to_owned()), "{lines:?}");
    within(task.remove()).await.unwrap();
    lab.done().await;
}

#[tokio::test]
async fn a_root_that_can_not_be_used_says_why() {
    let lab = Lab::new();
    let refused = |root: &str| {
        let record = lab.task(&ProcessSpec { root: root.into(), ..shell("true") });
        let made = lab.executor.controller(&record.into(), Arc::new(common::Nothing));
        made.err().unwrap().to_string()
    };
    assert_eq!(refused("srv"), "process: the root must be an absolute path: srv");
    assert_eq!(refused("/nonexistent"), "process: the root /nonexistent is no directory on this node");
    // A place to mount on that leads out of it.
    let bad = lab.state.path().join("bad");
    std::fs::create_dir(&bad).unwrap();
    std::os::unix::fs::symlink("/tmp", bad.join("proc")).unwrap();
    std::fs::set_permissions(&bad, std::fs::Permissions::from_mode(0o755)).unwrap();
    let task =
        lab.controller(&lab.task(&ProcessSpec { root: bad.to_str().unwrap().into(), ..shell("true") }));
    within(task.prepare()).await.unwrap();
    let text = fatal(within(task.start()).await);
    assert!(text.contains("/bad/proc is no directory"), "{text}");
    lab.done().await;
}

/// An executor whose daemon is not root, in a process of its own: it is this test program, started again.
#[test]
fn a_daemon_that_is_not_root_refuses_isolation() {
    const INSIDE: &str = "SWARMD_TEST_AS_NOBODY";
    if std::env::var_os(INSIDE).is_some() {
        nix::unistd::setgroups(&[]).unwrap();
        nix::unistd::setgid(nix::unistd::Gid::from_raw(65534)).unwrap();
        nix::unistd::setuid(nix::unistd::Uid::from_raw(65534)).unwrap();
        let lab = Lab::new();
        let features = futures::executor::block_on(lab.executor.describe()).unwrap().features;
        let names: Vec<&str> = features.into_iter().map(Feature::label).collect();
        assert_eq!(names, ["swarmd.init-tasks", "swarmd.pre-stop", "swarmd.process-health"]);
        let specs: [fn(&mut ProcessSpec); 3] =
            [|p| p.mount_namespace = true, |p| p.pid_namespace = true, |p| p.root = "/".into()];
        for change in specs {
            let mut spec = shell("true");
            change(&mut spec);
            let record = lab.task(&spec);
            let made = lab.executor.controller(&record.into(), Arc::new(common::Nothing));
            let text = made.err().unwrap().to_string();
            assert!(text.contains("need a daemon that runs as root, which this node's does not"), "{text}");
        }
        return;
    }
    let name = "a_daemon_that_is_not_root_refuses_isolation";
    let again = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .env("TMPDIR", "/tmp")
        .output()
        .unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
}
