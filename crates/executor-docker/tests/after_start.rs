//! What becomes of containers after they have started, on the real engine. Without one these tests fail.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Lab, within};
use swarm_agent::ControllerError;
use swarm_api::v1::mount::Type;
use swarm_api::v1::{ContainerSpec, HealthConfig, Mount};

/// Enough to end by itself, however slow the machine is.
const LONG_GRACE: Option<prost_types::Duration> = Some(prost_types::Duration { seconds: 60, nanos: 0 });

// 142
#[tokio::test]
async fn a_container_that_turns_unhealthy_is_asked_to_stop_and_has_failed() {
    let lab = Lab::new().await;
    let period = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let spec = ContainerSpec {
        healthcheck: Some(HealthConfig {
            test: vec!["CMD-SHELL".into(), "test -e /tmp/listens && test ! -e /tmp/ill".into()],
            interval: period(0, 200_000_000),
            // Failures don't count before the first success.
            start_period: period(600, 0),
            retries: 1,
            ..Default::default()
        }),
        stop_grace_period: LONG_GRACE,
        ..lab.spec(
            "trap 'exit 7' TERM; trap 'touch /tmp/ill' USR1; touch /tmp/listens; \
             while :; do sleep 100 & wait $!; done",
        )
    };
    let task = lab.controller(&lab.task(spec));
    task.prepare().await.unwrap();
    within(task.start()).await.unwrap();
    let (ended, ()) = within(async { tokio::join!(task.wait(), lab.signal(task.as_ref())) }).await;
    let cause = Some("dockerexec: unhealthy container".to_owned());
    assert_eq!(ended, Err(ControllerError::Exit { code: 7, cause }));
    let status = task.container_status().await.unwrap();
    assert_eq!((status.exit_code, status.pid), (7, 0));
    lab.done().await;
}

// 145
#[tokio::test]
async fn what_runs_is_asked_to_stop_before_it_is_removed() {
    let lab = Lab::new().await;
    let host = tempfile::tempdir().unwrap();
    let mount = Mount {
        r#type: Type::Bind.into(),
        source: host.path().to_str().unwrap().into(),
        target: "/out".into(),
        ..Default::default()
    };
    let spec = ContainerSpec {
        mounts: vec![mount],
        stop_grace_period: LONG_GRACE,
        ..lab.spec(
            "trap 'echo asked > /out/end; exit' TERM; echo up > /out/begin; \
             while :; do sleep 100 & wait $!; done",
        )
    };
    let task = lab.controller(&lab.task(spec));
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    let listens = || async {
        anyhow::ensure!(host.path().join("begin").exists());
        Ok(())
    };
    swarm_testkit::wait::until("the shell to listen to signals", common::LONG, listens).await.unwrap();
    within(task.remove()).await.unwrap();
    assert_eq!(std::fs::read_to_string(host.path().join("end")).unwrap(), "asked\n");
    assert_eq!(task.container_status().await, None);
    assert_eq!(lab.containers().await, 0);
    lab.done().await;
}
