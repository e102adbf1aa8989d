//! Commands before a process starts and before it is asked to stop, as real processes.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{
    Lab, exit, fatal, output, processes_of, shell, start, until_lines, until_processes, wait_for, within,
};
use swarm_agent::{Controller, Executor};
use swarm_api::swarmd::ProcessSpec;
use swarm_api::swarmd::process_spec::Command;
use swarm_api::v1::Task;
use swarm_testkit::wait::until;

fn words(script: &str) -> Vec<String> {
    vec!["sh".into(), "-c".into(), script.into()]
}

/// A command with these before it.
fn with_init(script: &str, init: &[&str]) -> ProcessSpec {
    let init_tasks = init.iter().map(|script| Command { words: words(script) }).collect();
    ProcessSpec { init_tasks, ..shell(script) }
}

fn with_pre_stop(script: &str, pre_stop: &str, grace: i64) -> ProcessSpec {
    let stop_grace_period = Some(prost_types::Duration { seconds: grace, nanos: 0 });
    ProcessSpec { pre_stop: words(pre_stop), stop_grace_period, ..shell(script) }
}

/// Waits until a file is in the task's working directory.
async fn until_file(lab: &Lab, task: &Task, file: &str) {
    let path = lab.dir(task).join("work").join(file);
    let looked = || async {
        anyhow::ensure!(path.exists(), "{} is not there", path.display());
        Ok(())
    };
    until("a file", common::LONG, looked).await.unwrap();
}

fn prepare_in_background(task: &Arc<dyn Controller>) -> tokio::task::JoinHandle<()> {
    let task = task.clone();
    tokio::spawn(async move { drop(task.prepare().await) })
}

#[tokio::test]
async fn init_tasks_run_in_their_order_in_the_tasks_directory_before_its_command() {
    let lab = Lab::new();
    let init = ["echo one-$A >> log", "cat log; echo two >> log"];
    let mut spec = with_init("cat log; echo $SWARMD_TASK_SLOT", &init);
    spec.env = vec!["A={{.Task.Slot}}".into()];
    let record = lab.task(&spec);
    let task = lab.controller(&record);
    let mut progress = task.progress().unwrap();
    start(task.as_ref()).await;
    assert_eq!(*progress.borrow_and_update(), "preparing", "it has said what it did");
    within(task.wait()).await.unwrap();
    assert_eq!(output(task.as_ref()).await, ["one-1", "two", "1"]);
    lab.done().await;
}

#[tokio::test]
async fn an_init_task_that_fails_fails_the_task_with_its_last_line() {
    let lab = Lab::new();
    let init = ["true", "echo trying; echo 'no database here' >&2; echo; exit 3", "touch never"];
    let record = lab.task(&with_init("true", &init));
    let task = lab.controller(&record);
    let text = fatal(within(task.prepare()).await);
    assert_eq!(text, "init task 2 of 3 failed with exit code 3: no database here");
    assert!(!lab.dir(&record).join("work/never").exists());
    assert_eq!(task.container_status().await, None, "its command never ran");
    // The same again, and nothing runs twice.
    assert_eq!(fatal(within(task.prepare()).await), text);
    let missing =
        ProcessSpec { init_tasks: vec![Command { words: vec!["no-such-program".into()] }], ..shell("true") };
    let task = lab.controller(&lab.task(&missing));
    let text = fatal(within(task.prepare()).await);
    assert!(
        text.starts_with("init task 1 of 1 failed: starting process failed: executing no-such"),
        "{text}"
    );
    lab.done().await;
}

#[tokio::test]
async fn a_restart_in_the_middle_neither_repeats_nor_forgets_an_init_task() {
    let mut lab = Lab::new();
    let second = format!("echo two >> log; touch began; {}", wait_for("go"));
    let record = lab.task(&with_init("cat log", &["echo one >> log", &second, "echo three >> log"]));
    let task = lab.controller(&record);
    let preparing = prepare_in_background(&task);
    until_file(&lab, &record, "began").await;
    assert_eq!(*task.progress().unwrap().borrow(), "running init task 2 of 3");
    preparing.abort();
    lab.restart();
    let task = lab.controller(&record);
    let preparing = prepare_in_background(&task);
    lab.tell(&record, "go");
    within(preparing).await.unwrap();
    // Prepared is prepared, whoever asks.
    lab.restart();
    let task = lab.controller(&record);
    assert_eq!(within(task.prepare()).await, Err(swarm_agent::ControllerError::AlreadyPrepared));
    within(task.start()).await.unwrap();
    within(task.wait()).await.unwrap();
    assert_eq!(output(task.as_ref()).await, ["one", "two", "three"]);
    lab.done().await;
}

#[tokio::test]
async fn a_task_that_stops_or_is_forgotten_takes_its_init_task_along() {
    let lab = Lab::new();
    let spec = with_init("true", &["touch began; exec sleep 1000"]);
    for sweep in [false, true] {
        let record = lab.task(&spec);
        let task = lab.controller(&record);
        let preparing = prepare_in_background(&task);
        until_file(&lab, &record, "began").await;
        preparing.abort();
        if sweep {
            within(lab.executor.sweep(&[])).await.unwrap();
        } else {
            within(task.shutdown()).await.unwrap();
        }
        until_processes(&record, 0).await;
        if !sweep {
            let text = fatal(within(task.prepare()).await);
            assert_eq!(text, "init task 1 of 1 failed with exit code 143", "it does not begin again");
        }
    }
    lab.done().await;
}

#[tokio::test]
async fn the_pre_stop_command_runs_beside_the_process_before_the_signal() {
    let mut lab = Lab::new();
    let record = lab.task(&with_pre_stop(
        "trap 'cat said; exit 7' TERM; echo up; while :; do sleep 0.02; done",
        "echo pre-$SWARMD_TASK_SLOT > said; echo told; exit 4",
        60,
    ));
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    until_lines(task.as_ref(), 1).await;
    // Asked by a daemon that goes away meanwhile, and again by the next one.
    lab.restart();
    let task = lab.controller(&record);
    let mut progress = task.progress().unwrap();
    within(task.shutdown()).await.unwrap();
    assert_eq!(*progress.borrow_and_update(), "stopping, with the pre-stop command first");
    assert_eq!(within(task.wait()).await, exit(7));
    let mut lines = output(task.as_ref()).await;
    lines.retain(|line| line != "Terminated"); // what some shells say of their children
    let expected = ["up", "told", "the pre-stop command ended with exit code 4", "pre-1"];
    let (mut sorted, mut wanted) = (lines.clone(), expected.to_vec());
    sorted.sort();
    wanted.sort_unstable();
    assert_eq!(sorted, wanted, "{lines:?}");
    let at = |line: &str| lines.iter().position(|l| l == line).unwrap();
    assert!(at("told") < at("pre-1"), "{lines:?}");
    lab.done().await;
}

#[tokio::test]
async fn a_pre_stop_command_has_the_grace_period_and_no_more() {
    let lab = Lab::new();
    let record = lab.task(&with_pre_stop("echo up; exec sleep 1000", "exec sleep 1000", 2));
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    until_lines(task.as_ref(), 1).await;
    let began = std::time::Instant::now();
    within(task.shutdown()).await.unwrap();
    assert!(began.elapsed() >= std::time::Duration::from_secs(2));
    assert_eq!(within(task.wait()).await, exit(137));
    assert!(processes_of(&record.id).is_empty());

    // A kill does not wait for it.
    let record = lab.task(&with_pre_stop("echo up; exec sleep 1000", "exec sleep 1000", 600));
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    until_lines(task.as_ref(), 1).await;
    within(task.terminate()).await.unwrap();
    assert_eq!(within(task.wait()).await, exit(137));
    lab.done().await;
}
