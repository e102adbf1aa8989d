//! An engine that goes away and comes back, seen through a socket that can be cut.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{LONG, Lab, controller, waited, within};
use swarm_agent::{ControllerError, Executor};
use swarm_api::v1::{ContainerSpec, HealthConfig};
use swarm_executor_docker::DockerExecutor;
use swarm_testkit::proxy::{Proxy, Treatment};
use swarm_testkit::wait::until;

async fn through_proxy(lab: &Lab) -> (Proxy, DockerExecutor) {
    let proxy = Proxy::new(Path::new("/var/run/docker.sock")).unwrap();
    let executor = DockerExecutor::connect(&format!("unix://{}", proxy.path().display())).await.unwrap();
    executor.configure(&lab.node()).await.unwrap();
    (proxy, executor)
}

#[tokio::test]
async fn an_absent_engine_is_no_fault_of_the_task() {
    let lab = Lab::new().await;
    let (proxy, executor) = through_proxy(&lab).await;
    let task = controller(&executor, &lab.task(lab.spec("sleep 1000")));
    proxy.cut();
    for _ in 0..2 {
        let Err(ControllerError::Temporary(text)) = within(task.prepare()).await else {
            panic!("not temporary")
        };
        assert!(
            text.contains(&format!("the Docker Engine at unix://{} does not", proxy.path().display())),
            "{text}"
        );
    }
    assert!(matches!(executor.describe().await, Err(ControllerError::Temporary(_))));
    proxy.mend();
    within(task.prepare()).await.unwrap();
    proxy.cut();
    assert!(matches!(within(task.start()).await, Err(ControllerError::Temporary(_))));
    proxy.mend();
    within(task.start()).await.unwrap();
    proxy.cut();
    for result in [within(task.shutdown()).await, within(task.terminate()).await, within(task.remove()).await]
    {
        assert!(matches!(result, Err(ControllerError::Temporary(_))), "{result:?}");
    }
    assert_eq!(lab.containers().await, 1);
    proxy.mend();
    within(task.remove()).await.unwrap();
    executor.close().await;
    lab.done().await;
}

#[tokio::test]
async fn an_end_during_an_outage_is_noticed_after_it() {
    let lab = Lab::new().await;
    let (proxy, executor) = through_proxy(&lab).await;
    let record = lab.task(lab.spec("sleep 1000"));
    let task = controller(&executor, &record);
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    let waiting = waited(&task);
    tokio::task::yield_now().await;
    proxy.cut();
    // Somebody else ends it.
    within(controller(&lab.executor, &record).terminate()).await.unwrap();
    // The engine is asked again, more than once, and that it does not answer says nothing of the task.
    let before = proxy.refused();
    let asked = || async {
        anyhow::ensure!(proxy.refused() >= before + 2, "{} connections", proxy.refused() - before);
        Ok(())
    };
    until("the engine to be asked again", LONG, asked).await.unwrap();
    assert!(!waiting.is_finished());
    proxy.mend();
    assert_eq!(within(waiting).await.unwrap(), Err(ControllerError::Exit { code: 137, cause: None }));
    executor.close().await;
    lab.done().await;
}

/// With the word that it waits for a start ends, with the next one a healthy task.
const HEALTH: &str = "trap 'if test -e /tmp/up; then rm /tmp/up; else touch /tmp/up; fi' USR1
    while :; do sleep 100 & wait $!; done";

#[tokio::test]
async fn a_change_of_health_that_nobody_was_told_of_is_noticed() {
    let lab = Lab::new().await;
    let proxy = Proxy::new(Path::new("/var/run/docker.sock")).unwrap();
    // The engine's events never come, and the connection does not break.
    proxy.treat(&[("GET", "/events?", Treatment::Hold)]);
    let address = format!("unix://{}", proxy.path().display());
    let often = Duration::from_millis(500);
    let executor = DockerExecutor::connect(&address).await.unwrap().with_checks_every(often);
    executor.configure(&lab.node()).await.unwrap();
    let time = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let healthcheck = HealthConfig {
        test: common::words(&["CMD-SHELL", "test -e /tmp/up"]),
        interval: time(0, 200_000_000),
        // Failures count once it has been healthy.
        start_period: time(600, 0),
        retries: 1,
        ..Default::default()
    };
    let stop_grace_period = time(0, 0);
    let spec = ContainerSpec { healthcheck: Some(healthcheck), stop_grace_period, ..lab.spec(HEALTH) };
    let checked = controller(&executor, &lab.task(spec));
    let plain = controller(&executor, &lab.task(lab.spec("sleep 1000")));
    for task in [&checked, &plain] {
        within(task.prepare()).await.unwrap();
    }
    within(plain.start()).await.unwrap();
    let id = plain.container_status().await.unwrap().container_id;
    let looks = || {
        let of_plain = format!("/containers/{id}/json");
        let requests = proxy.requests();
        let count = |what: &str| requests.iter().filter(|line| line.contains(what)).count();
        (count(&of_plain), count("/containers/json"))
    };
    let waiting = waited(&plain);
    let (before, checks) = looks();

    let starting = {
        let checked = checked.clone();
        tokio::spawn(async move { checked.start().await })
    };
    let mut words = checked.progress().unwrap();
    within(words.wait_for(|text| text == "started, waiting for the health check")).await.unwrap();
    let listens = || async {
        let id = checked.container_status().await.unwrap().container_id;
        let top = lab.docker.top_processes(&id, None::<bollard::query_parameters::TopOptions>).await?;
        anyhow::ensure!(top.processes.unwrap_or_default().len() > 1);
        Ok(())
    };
    until("the shell's child", LONG, listens).await.unwrap();
    assert!(!starting.is_finished());
    lab.signal(checked.as_ref()).await;
    assert_eq!(within(starting).await.unwrap(), Ok(()));

    lab.signal(checked.as_ref()).await;
    let Err(error) = within(checked.wait()).await else { panic!("it was taken for healthy") };
    assert!(error.to_string().ends_with("dockerexec: unhealthy container"), "{error}");
    let (after, more) = looks();
    assert!(more > checks, "nothing was compared");
    assert_eq!(after, before, "nothing contradicts a container that runs and has no health check");
    assert!(!waiting.is_finished());
    waiting.abort();
    executor.close().await;
    lab.done().await;
}

#[tokio::test]
async fn a_container_costs_its_creation_its_start_and_one_look() {
    let lab = Lab::new().await;
    let (proxy, executor) = through_proxy(&lab).await;
    let warm = controller(&executor, &lab.task(lab.spec("true")));
    warm.prepare().await.unwrap();
    warm.start().await.unwrap();
    within(warm.wait()).await.unwrap();
    // The listener's own first requests, of which this is the last, are over.
    let compares = |requests: &[String]| requests.iter().any(|line| line.contains("/containers/json"));
    let compared = || async {
        anyhow::ensure!(compares(&proxy.requests()));
        Ok(())
    };
    until("the first comparison", LONG, compared).await.unwrap();
    let mut counted = Vec::new();
    while counted.is_empty() {
        let tasks: Vec<_> =
            (0..5).map(|_| controller(&executor, &lab.task(lab.spec("sleep 1000")))).collect();
        let before = proxy.requests().len();
        for task in &tasks {
            task.prepare().await.unwrap();
            assert_eq!(task.container_status().await.unwrap().pid, 0);
            task.start().await.unwrap();
            assert!(task.container_status().await.unwrap().pid > 0);
            assert_eq!(task.port_status().await, None);
            assert!(tokio::time::timeout(Duration::from_millis(50), task.wait()).await.is_err());
        }
        let requests = proxy.requests().split_off(before);
        // Each half minute everything is compared, and everybody may look again.
        if !compares(&requests) {
            counted = requests;
        }
    }
    assert_eq!(counted.len(), 3 * 5, "{counted:#?}");
    executor.close().await;
    lab.done().await;
}

#[tokio::test]
async fn an_engine_that_comes_later_finds_its_tasks_waiting() {
    let lab = Lab::new().await;
    let proxy = Proxy::new(Path::new("/var/run/docker.sock")).unwrap();
    let address = format!("unix://{}", proxy.path().display());
    let running = lab.task(lab.spec("sleep 1000"));
    let task = controller(&lab.executor, &running);
    task.prepare().await.unwrap();
    task.start().await.unwrap();

    proxy.cut();
    let executor = DockerExecutor::new(&address).unwrap();
    executor.configure(&lab.node()).await.unwrap();
    let reason = format!("can't reach the Docker Engine at {address}: ");
    let temporary = |error: ControllerError| {
        let ControllerError::Temporary(text) = error else { panic!("{error:?}") };
        assert!(text.starts_with(&reason), "{text}");
    };
    temporary(within(executor.describe()).await.unwrap_err());
    let (adopted, new) =
        (controller(&executor, &running), controller(&executor, &lab.task(lab.spec("echo here"))));
    for pending in [adopted.wait(), new.prepare(), executor.sweep(&[])] {
        assert!(tokio::time::timeout(Duration::from_millis(100), pending).await.is_err(), "it waits");
    }
    assert!(new.hindrance().unwrap().starts_with(&reason));
    assert_eq!(adopted.container_status().await, None);
    temporary(adopted.stats().await.unwrap_err());
    let (sink, lines) = swarm_agent::LogSink::new();
    temporary(adopted.logs(Default::default(), sink).await.unwrap_err());
    drop(lines);

    proxy.mend();
    within(executor.changed()).await;
    let description = within(executor.describe()).await.unwrap();
    assert!(!description.engine_version.is_empty());
    assert_eq!(common::output(new.as_ref()).await, ["here"]);
    assert_eq!(new.hindrance(), None);
    let waiting = waited(&adopted);
    // Somebody else ends it, and its events are heard.
    within(task.terminate()).await.unwrap();
    assert_eq!(within(waiting).await.unwrap(), Err(ControllerError::Exit { code: 137, cause: None }));
    assert_eq!(adopted.container_status().await.unwrap().exit_code, 137);
    within(executor.sweep(std::slice::from_ref(&running.id.to_string()))).await.unwrap();
    assert_eq!(lab.containers().await, 1, "what is known stays");
    executor.close().await;
    lab.done().await;
}

#[tokio::test]
async fn a_task_that_can_not_be_is_refused_when_its_engine_answers() {
    let lab = Lab::new().await;
    let proxy = Proxy::new(Path::new("/var/run/docker.sock")).unwrap();
    proxy.cut();
    let executor = DockerExecutor::new(&format!("unix://{}", proxy.path().display())).unwrap();
    executor.configure(&lab.node()).await.unwrap();
    let mut spec = lab.spec("true");
    spec.healthcheck = Some(swarm_api::v1::HealthConfig {
        start_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    });
    let task = controller(&executor, &lab.task(spec));
    proxy.mend();
    let Err(ControllerError::Fatal(text)) = within(task.prepare()).await else { panic!("it was taken") };
    assert!(text.starts_with("the start interval of a health check needs Docker Engine 25.0"), "{text}");
    executor.close().await;
    lab.done().await;
}
