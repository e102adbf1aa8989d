//! Commands before a container starts and before it is asked to stop, on the real engine.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::query_parameters::{
    InspectContainerOptions, RemoveVolumeOptions, RenameContainerOptionsBuilder,
};
use common::{Lab, controller, output, within, words};
use swarm_agent::{Controller, ControllerError};
use swarm_api::extensions::{InitTask, Steps};
use swarm_api::v1::{ContainerSpec, HealthConfig, Mount, Task, mount};
use swarm_testkit::wait::until;

fn script(script: &str) -> Vec<String> {
    words(&["/bin/sh", "-c", script])
}

/// A volume that the containers of a task share; removed at the end of the test.
fn shared(lab: &Lab) -> Mount {
    let source = format!("swarmd-test-{}", lab.node_id);
    Mount { r#type: mount::Type::Volume as i32, source, target: "/data".into(), ..Default::default() }
}

async fn done(lab: Lab) {
    lab.executor_sweep().await;
    let volume = shared(&lab).source;
    lab.docker.remove_volume(&volume, None::<RemoveVolumeOptions>).await.unwrap();
    lab.done().await;
}

fn with_init(lab: &Lab, main: &str, init: &[&str]) -> ContainerSpec {
    let task = |text: &&str| InitTask { image: String::new(), command: script(text) };
    let mut spec = lab.spec(main);
    spec.mounts.push(shared(lab));
    Steps { init_tasks: init.iter().map(task).collect(), ..Default::default() }.write(&mut spec.labels);
    spec
}

fn with_pre_stop(lab: &Lab, main: &str, pre_stop: &str, grace: i64) -> ContainerSpec {
    let mut spec = lab.spec(main);
    spec.stop_grace_period = Some(prost_types::Duration { seconds: grace, nanos: 0 });
    Steps { pre_stop: script(pre_stop), ..Default::default() }.write(&mut spec.labels);
    spec
}

async fn is_running(lab: &Lab, name: &str) -> bool {
    let answer = lab.docker.inspect_container(name, None::<InspectContainerOptions>).await;
    answer.is_ok_and(|answer| answer.state.and_then(|state| state.running) == Some(true))
}

fn init_name(task: &Task, number: u32) -> String {
    format!("exectest.1.{}.init{number}", task.id)
}

async fn until_running(lab: &Lab, name: &str) {
    let looked = || async {
        anyhow::ensure!(is_running(lab, name).await, "{name} does not run");
        Ok(())
    };
    until("an init task", common::LONG, looked).await.unwrap();
}

fn prepare_in_background(task: &Arc<dyn Controller>) -> tokio::task::JoinHandle<Result<(), ControllerError>> {
    let task = task.clone();
    tokio::spawn(async move { task.prepare().await })
}

/// Runs a task to its end.
async fn output_of_prepared(task: &dyn Controller) -> Vec<String> {
    within(task.start()).await.unwrap();
    within(task.wait()).await.unwrap();
    let (sink, lines) = swarm_agent::LogSink::new();
    let (_, lines) =
        within(async { tokio::join!(task.logs(Default::default(), sink), lines.collect()) }).await;
    lines.iter().map(|line| String::from_utf8_lossy(&line.data).into_owned()).collect()
}

#[track_caller]
fn fatal(result: Result<(), ControllerError>) -> String {
    match result {
        Err(ControllerError::Fatal(text)) => text,
        other => panic!("not final: {other:?}"),
    }
}

#[tokio::test]
async fn init_tasks_run_in_their_order_with_the_containers_mounts_and_environment() {
    let lab = Lab::new().await;
    let init = ["echo one-$A-$(hostname) >> /data/log", "cat /data/log; echo two >> /data/log"];
    let mut spec = with_init(&lab, "cat /data/log", &init);
    spec.env = vec!["A={{.Task.Slot}}".into()];
    spec.hostname = "it".into();
    // What it does not have of the container's own: a check that fails.
    spec.healthcheck = Some(HealthConfig { test: words(&["CMD", "true"]), ..Default::default() });
    let record = lab.task(spec);
    let task = lab.controller(&record);
    assert_eq!(output(task.as_ref()).await, ["one-1-it", "two"]);
    assert_eq!(lab.containers().await, 1, "their containers are gone");
    done(lab).await;
}

#[tokio::test]
async fn an_init_task_that_fails_fails_the_task_with_its_last_line() {
    let lab = Lab::new().await;
    let init = ["true", "echo trying; echo 'no database here' >&2; echo; exit 3", "touch /data/never"];
    let record = lab.task(with_init(&lab, "true", &init));
    let task = lab.controller(&record);
    let text = fatal(within(task.prepare()).await);
    assert_eq!(text, "init task 2 of 3 failed with exit code 3: no database here");
    assert_eq!(task.container_status().await, None, "its container was never made");
    assert_eq!(fatal(within(task.prepare()).await), text, "nothing runs twice");
    assert_eq!(lab.containers().await, 2, "they stay, to be looked at");
    within(task.remove()).await.unwrap();
    assert_eq!(lab.containers().await, 0);

    let mut spec = with_init(&lab, "true", &[]);
    let missing = InitTask { image: String::new(), command: words(&["/no/such/program"]) };
    Steps { init_tasks: vec![missing], ..Default::default() }.write(&mut spec.labels);
    let text = fatal(within(lab.controller(&lab.task(spec)).prepare()).await);
    assert!(
        text.starts_with("starting init task 1 of 1 failed: ") && text.contains("/no/such/program"),
        "{text}"
    );
    done(lab).await;
}

#[tokio::test]
async fn a_restart_in_the_middle_neither_repeats_nor_forgets_an_init_task() {
    let lab = Lab::new().await;
    let waits = "echo two >> /data/log; until [ -e /tmp/go ]; do sleep 0.05; done";
    let init = ["echo one >> /data/log", waits, "echo three >> /data/log"];
    let record = lab.task(with_init(&lab, "cat /data/log", &init));
    let task = lab.controller(&record);
    let mut progress = task.progress().unwrap();
    let preparing = prepare_in_background(&task);
    within(progress.wait_for(|said| said == "running init task 2 of 3")).await.unwrap();
    until_running(&lab, &init_name(&record, 2)).await;
    preparing.abort();
    let restarted = lab.restarted().await;
    let task = controller(&restarted, &record);
    let preparing = prepare_in_background(&task);
    let touch = std::process::Command::new("docker")
        .args(["exec", &init_name(&record, 2), "touch", "/tmp/go"])
        .status()
        .unwrap();
    assert!(touch.success());
    within(preparing).await.unwrap().unwrap();
    let third = lab.restarted().await;
    let task = controller(&third, &record);
    assert_eq!(within(task.prepare()).await, Err(ControllerError::AlreadyPrepared));
    assert_eq!(output_of_prepared(task.as_ref()).await, ["one", "two", "three"]);
    restarted.close().await;
    third.close().await;
    done(lab).await;
}

async fn rename(lab: &Lab, name: &str) -> String {
    let new = format!("renamed-{}", swarm_api::id::random());
    let options = RenameContainerOptionsBuilder::new().name(&new).build();
    lab.docker.rename_container(name, options).await.unwrap();
    new
}

#[tokio::test]
async fn an_init_task_whose_container_is_renamed_runs_once_and_stops_with_its_task() {
    let lab = Lab::new().await;
    let init = ["echo once >> /data/log; until [ -e /tmp/go ]; do sleep 0.05; done"];
    let record = lab.task(with_init(&lab, "cat /data/log", &init));
    let first = lab.controller(&record);
    let preparing = prepare_in_background(&first);
    until_running(&lab, &init_name(&record, 1)).await;
    rename(&lab, &init_name(&record, 1)).await;
    preparing.abort();
    // Somebody who does not know its id, and may end it.
    let restarted = lab.restarted().await;
    let task = controller(&restarted, &record);
    let mut progress = task.progress().unwrap();
    let preparing = prepare_in_background(&task);
    within(progress.wait_for(|said| said == "running init task 1 of 1")).await.unwrap();
    let label = format!("label=com.docker.swarm.task.id={}", record.id);
    let touch = format!("docker exec $(docker ps -q --filter {label}) touch /tmp/go");
    let touch = std::process::Command::new("sh").args(["-c", &touch]).status().unwrap();
    assert!(touch.success(), "one runs");
    within(preparing).await.unwrap().unwrap();
    assert_eq!(lab.containers().await, 1, "its container is gone");
    assert_eq!(output_of_prepared(task.as_ref()).await, ["once"]);
    within(task.remove()).await.unwrap();

    let record = lab.task(with_init(&lab, "true", &["exec sleep 1000"]));
    let task = lab.controller(&record);
    let preparing = prepare_in_background(&task);
    until_running(&lab, &init_name(&record, 1)).await;
    let new = rename(&lab, &init_name(&record, 1)).await;
    preparing.abort();
    within(task.shutdown()).await.unwrap();
    assert!(!is_running(&lab, &new).await);
    within(task.remove()).await.unwrap();
    assert_eq!(lab.containers().await, 0);
    restarted.close().await;
    done(lab).await;
}

#[tokio::test]
async fn a_task_that_stops_takes_its_init_task_along() {
    let lab = Lab::new().await;
    let record = lab.task(with_init(&lab, "true", &["exec sleep 1000"]));
    let task = lab.controller(&record);
    let preparing = prepare_in_background(&task);
    until_running(&lab, &init_name(&record, 1)).await;
    preparing.abort();
    within(task.shutdown()).await.unwrap();
    assert!(!is_running(&lab, &init_name(&record, 1)).await);
    within(task.remove()).await.unwrap();
    assert_eq!(lab.containers().await, 0);

    // One that nobody knows goes too.
    let record = lab.task(with_init(&lab, "true", &["exec sleep 1000"]));
    let task = lab.controller(&record);
    let preparing = prepare_in_background(&task);
    until_running(&lab, &init_name(&record, 1)).await;
    preparing.abort();
    done(lab).await;
}

#[tokio::test]
async fn the_pre_stop_command_runs_in_the_container_before_the_signal_and_once() {
    let lab = Lab::new().await;
    let main = "trap 'cat /tmp/said; exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let record = lab.task(with_pre_stop(&lab, main, "echo pre-$A >> /tmp/said", 60));
    let task = lab.controller(&record);
    within(task.prepare()).await.unwrap();
    within(task.start()).await.unwrap();
    let mut progress = task.progress().unwrap();
    within(task.shutdown()).await.unwrap();
    assert_eq!(*progress.borrow_and_update(), "running pre-stop command");
    within(task.shutdown()).await.unwrap();
    assert_eq!(within(task.wait()).await, Err(ControllerError::Exit { code: 7, cause: None }));
    let (sink, lines) = swarm_agent::LogSink::new();
    let (_, lines) =
        within(async { tokio::join!(task.logs(Default::default(), sink), lines.collect()) }).await;
    let lines: Vec<_> = lines.iter().map(|line| String::from_utf8_lossy(&line.data).into_owned()).collect();
    assert_eq!(lines, ["up", "pre-"]);
    lab.done().await;
}

#[tokio::test]
async fn a_pre_stop_command_has_the_grace_period_and_no_more_and_may_fail() {
    let lab = Lab::new().await;
    let polite = "trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let record =
        lab.task(with_pre_stop(&lab, "trap '' TERM; while :; do sleep 1; done", "exec sleep 1000", 2));
    let task = lab.controller(&record);
    within(task.prepare()).await.unwrap();
    within(task.start()).await.unwrap();
    let began = Instant::now();
    within(task.shutdown()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert_eq!(within(task.wait()).await, Err(ControllerError::Exit { code: 137, cause: None }));

    for (command, text) in [(script("exit 4"), "exit code 4"), (words(&["/no/such"]), "/no/such")] {
        let mut spec = with_pre_stop(&lab, polite, "true", 60);
        Steps { pre_stop: command, ..Default::default() }.write(&mut spec.labels);
        let task = lab.controller(&lab.task(spec));
        within(task.prepare()).await.unwrap();
        within(task.start()).await.unwrap();
        let mut progress = task.progress().unwrap();
        within(task.shutdown()).await.unwrap();
        let said = progress.borrow_and_update().clone();
        assert!(said.starts_with("stopping; the pre-stop command failed: ") && said.contains(text), "{said}");
        assert_eq!(within(task.wait()).await, Err(ControllerError::Exit { code: 7, cause: None }));
    }
    lab.done().await;
}

#[tokio::test]
async fn a_pre_stop_command_that_runs_already_is_waited_for_by_the_next_daemon() {
    let lab = Lab::new().await;
    let main = "trap 'cat /tmp/said; exit 7' TERM; while :; do sleep 0.05; done";
    let pre_stop = "echo once >> /tmp/said; touch /tmp/began; until [ -e /tmp/go ]; do sleep 0.05; done";
    let record = lab.task(with_pre_stop(&lab, main, pre_stop, 60));
    let task = lab.controller(&record);
    within(task.prepare()).await.unwrap();
    within(task.start()).await.unwrap();
    let name = format!("exectest.1.{}", record.id);
    let exec = |args: &[&str]| {
        let command = std::process::Command::new("docker").args([&["exec", &name], args].concat()).status();
        command.unwrap().success()
    };
    let stopping = tokio::spawn({
        let task = task.clone();
        async move { task.shutdown().await }
    });
    let looked = || async {
        anyhow::ensure!(exec(&["test", "-e", "/tmp/began"]));
        Ok(())
    };
    until("the pre-stop command", common::LONG, looked).await.unwrap();
    stopping.abort();
    let restarted = lab.restarted().await;
    let task = controller(&restarted, &record);
    let mut progress = task.progress().unwrap();
    let stopping = tokio::spawn({
        let task = task.clone();
        async move { task.shutdown().await }
    });
    within(progress.wait_for(|said| said == "running pre-stop command")).await.unwrap();
    assert!(exec(&["touch", "/tmp/go"]));
    within(stopping).await.unwrap().unwrap();
    assert_eq!(within(task.wait()).await, Err(ControllerError::Exit { code: 7, cause: None }));
    let (sink, lines) = swarm_agent::LogSink::new();
    let (_, lines) =
        within(async { tokio::join!(task.logs(Default::default(), sink), lines.collect()) }).await;
    let lines: Vec<_> = lines.iter().map(|line| String::from_utf8_lossy(&line.data).into_owned()).collect();
    assert_eq!(lines, ["once"]);
    restarted.close().await;
    lab.done().await;
}

#[tokio::test]
async fn a_container_that_is_executed_and_not_healthy_yet_says_so() {
    let lab = Lab::new().await;
    let mut spec = lab.spec("exec sleep 1000");
    spec.healthcheck = Some(HealthConfig {
        test: words(&["CMD", "test", "-e", "/tmp/well"]),
        interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        start_period: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        ..Default::default()
    });
    let record = lab.task(spec);
    let task = lab.controller(&record);
    within(task.prepare()).await.unwrap();
    let mut progress = task.progress().unwrap();
    let starting = tokio::spawn({
        let task = task.clone();
        async move { task.start().await }
    });
    within(progress.wait_for(|said| said == "started, waiting for the health check")).await.unwrap();
    assert!(task.container_status().await.unwrap().pid > 0);
    let name = format!("exectest.1.{}", record.id);
    let well =
        std::process::Command::new("docker").args(["exec", &name, "touch", "/tmp/well"]).status().unwrap();
    assert!(well.success());
    within(starting).await.unwrap().unwrap();
    lab.done().await;
}
