//! An engine that goes away and comes back, seen through a socket that can be cut.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{LONG, Lab, controller, within};
use swarm_agent::{ControllerError, Executor};
use swarm_executor_docker::DockerExecutor;
use swarm_testkit::proxy::Proxy;
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
    let waiting = {
        let task = task.clone();
        tokio::spawn(async move { task.wait().await })
    };
    tokio::task::yield_now().await;
    proxy.cut();
    // Somebody else ends it.
    within(controller(&lab.executor, &record).terminate()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    proxy.mend();
    assert_eq!(within(waiting).await.unwrap(), Err(ControllerError::Exit { code: 137, cause: None }));
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
async fn an_engine_that_is_not_there_at_the_start_is_named() {
    let lab = Lab::new().await;
    let proxy = Proxy::new(Path::new("/var/run/docker.sock")).unwrap();
    proxy.cut();
    let address = format!("unix://{}", proxy.path().display());
    let text = DockerExecutor::connect(&address).await.err().unwrap().to_string();
    assert!(text.starts_with(&format!("can't reach the Docker Engine at {address}: ")), "{text}");
    proxy.mend();
    let connected = || async { Ok(DockerExecutor::connect(&address).await?) };
    until("the engine", LONG, connected).await.unwrap();
    lab.done().await;
}
