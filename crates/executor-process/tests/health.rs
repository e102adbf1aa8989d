//! Health checks of real processes.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{LONG, Lab, fatal, output, processes_of, shell, start, wait_for, within};
use swarm_agent::ControllerError;
use swarm_api::swarmd::ProcessSpec;
use swarm_api::v1::HealthConfig;
use swarm_testkit::wait::until;

fn millis(millis: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: i64::from(millis / 1000), nanos: millis % 1000 * 1_000_000 })
}

/// A command that is checked by a script, often.
fn checked(script: &str, check: &str) -> ProcessSpec {
    let healthcheck = HealthConfig {
        test: vec!["CMD-SHELL".into(), check.into()],
        interval: millis(50),
        timeout: millis(20_000),
        retries: 3,
        ..Default::default()
    };
    ProcessSpec { healthcheck: Some(healthcheck), ..shell(script) }
}

#[tokio::test]
async fn a_task_has_started_once_its_check_succeeds() {
    let mut lab = Lab::new();
    let mut spec = checked("exec sleep 1000", "echo x >> checks; test -e well");
    spec.healthcheck.as_mut().unwrap().start_period = millis(600_000);
    spec.healthcheck.as_mut().unwrap().start_interval = millis(50);
    let record = lab.task(&spec);
    let task = lab.controller(&record);
    within(task.prepare()).await.unwrap();
    let mut progress = task.progress().unwrap();
    let starting = tokio::spawn({
        let task = task.clone();
        async move { task.start().await }
    });
    within(progress.wait_for(|said| said == "started, waiting for the health check")).await.unwrap();
    // More failures than make it unhealthy: within the start period they do not count.
    let checks = lab.dir(&record).join("work/checks");
    let looked = || async {
        anyhow::ensure!(std::fs::read_to_string(&checks).unwrap_or_default().lines().count() > 5);
        Ok(())
    };
    until("checks", LONG, looked).await.unwrap();
    assert!(!starting.is_finished());
    assert!(task.container_status().await.unwrap().pid > 0, "it is running already");
    starting.abort();
    // The next daemon waits on.
    lab.restart();
    let task = lab.controller(&record);
    lab.tell(&record, "well");
    assert_eq!(within(task.start()).await, Err(ControllerError::AlreadyStarted));
    within(task.remove()).await.unwrap();
    lab.done().await;
}

#[tokio::test]
async fn a_process_that_is_not_well_any_more_is_stopped_and_has_failed() {
    let lab = Lab::new();
    let script = format!("touch well; trap 'echo stopping; exit 0' TERM; echo up; {}", wait_for("never"));
    let record = lab.task(&checked(&script, "test -e well || { echo broken; exit 1; }"));
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    std::fs::remove_file(lab.dir(&record).join("work/well")).unwrap();
    let text = fatal(within(task.wait()).await);
    assert_eq!(text, "unhealthy: the check ended with exit code 1: broken");
    let mut lines = output(task.as_ref()).await;
    lines.retain(|line| line != "Terminated"); // what some shells say of their children
    assert_eq!(lines, ["up", "stopping"], "checks write nothing into its log");
    assert!(processes_of(&record.id).is_empty());
    lab.done().await;
}

#[tokio::test]
async fn a_check_that_takes_too_long_counts_as_failed_and_is_killed() {
    let lab = Lab::new();
    let mut spec = checked("exec sleep 1000", "sleep 1000 & sleep 1000");
    let check = spec.healthcheck.as_mut().unwrap();
    (check.timeout, check.retries) = (millis(100), 2);
    let record = lab.task(&spec);
    let task = lab.controller(&record);
    within(task.prepare()).await.unwrap();
    let error = within(task.start()).await.unwrap_err();
    let cause = Some("unhealthy: the check took longer than 100ms".to_owned());
    assert_eq!(error, ControllerError::Exit { code: 143, cause });
    assert!(processes_of(&record.id).is_empty(), "no check is left");
    lab.done().await;
}

#[tokio::test]
async fn a_process_that_ends_before_its_first_check_is_told_as_it_ended() {
    let lab = Lab::new();
    let mut spec = checked("exit 5", "true");
    spec.healthcheck.as_mut().unwrap().interval = millis(600_000);
    let task = lab.controller(&lab.task(&spec));
    within(task.prepare()).await.unwrap();
    within(task.start()).await.unwrap();
    assert_eq!(within(task.wait()).await, common::exit(5));
    tokio::time::timeout(Duration::from_secs(60), lab.done()).await.unwrap();
}
