//! Secrets that a plug-in provides. Real sockets, so no paused clock.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};
use swarm_api::v1::endpoint_spec::ResolutionMode;
use swarm_api::v1::port_config::{Protocol, PublishMode};
use swarm_api::v1::{
    AssignmentsMessage, Driver, EndpointSpec, PortConfig, Secret, Service, Task, TaskState, assignment,
    task_spec,
};
use swarm_dispatcher::Timings;
use swarm_plugins::testing::TestPlugin;
use swarm_plugins::{Plugins, SECRET_PROVIDER};
use swarm_store::Store;
use tokio::sync::{mpsc, watch};

use crate::assignments::with_container;
use crate::harness::{Assignments, Harness, stopped_with, summary, task, timings};

const LONG: Duration = Duration::from_secs(60);

/// Base64 of `s1`, and of nothing that anybody expects.
const S1: &str = "czE=";

async fn started(dir: &Path) -> Harness {
    let plugins = Plugins::in_directories([dir.to_owned()], [], LONG);
    // No heartbeats are sent.
    let timings = Timings { heartbeat_period: LONG, ..timings() };
    let mut h = stopped_with(Store::local(), timings, Some(Arc::new(plugins))).await;
    h.start();
    h.settle().await;
    for (id, driver) in [("own", Some("p")), ("plain", None)] {
        let mut secret = Secret { id: id.into(), ..Default::default() };
        secret.spec.annotations.name = format!("name-{id}");
        secret.spec.driver = driver.map(|name| Driver { name: name.into(), ..Default::default() });
        secret.spec.data = if driver.is_none() { b"stored".to_vec() } else { Vec::new() };
        h.create(secret).await;
    }
    h
}

async fn next(stream: &mut Assignments) -> AssignmentsMessage {
    tokio::time::timeout(LONG, stream.stream.next()).await.expect("a message in time").unwrap().unwrap()
}

/// The secrets in a message: id, data, and whether it is for one task alone.
fn secrets(message: &AssignmentsMessage) -> Vec<(String, String, bool)> {
    let items = message.changes.iter().filter_map(|change| change.assignment.as_ref()?.item.as_ref());
    let secrets = items.filter_map(|item| match item {
        assignment::Item::Secret(secret) => Some(secret),
        _ => None,
    });
    secrets.map(|s| (s.id.clone(), String::from_utf8_lossy(&s.spec.data).into_owned(), s.internal)).collect()
}

fn assigned(id: &str, secrets: &[&str]) -> Task {
    with_container(task(id, "n1", TaskState::Assigned), secrets, &[])
}

/// Answers with `S1`; `do_not_reuse` and the requests as told.
fn provider(dir: &Path, do_not_reuse: bool) -> (TestPlugin, mpsc::UnboundedReceiver<Value>) {
    let (seen, requests) = mpsc::unbounded_channel();
    let answer = move |_, request: Value| {
        seen.send(request).unwrap();
        std::future::ready(Some(json!({ "Value": S1, "DoNotReuse": do_not_reuse })))
    };
    (TestPlugin::start(&dir.join("p.sock"), SECRET_PROVIDER, answer).unwrap(), requests)
}

#[tokio::test]
async fn a_task_gets_a_secret_of_its_own_and_it_goes_with_the_task() {
    let dir = tempfile::tempdir().unwrap();
    let (_plugin, mut requests) = provider(dir.path(), true);
    let h = started(dir.path()).await;
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    next(&mut stream).await;
    for id in ["a", "b"] {
        h.create(assigned(id, &["own"])).await;
        let message = next(&mut stream).await;
        assert_eq!(summary(&message), format!("+secret:own.{id} +task:{id}"));
        assert_eq!(secrets(&message), [(format!("own.{id}"), "s1".to_owned(), true)]);
        let request = requests.recv().await.unwrap();
        let seen = ["SecretName", "TaskID", "NodeID"].map(|key| request[key].as_str().unwrap().to_owned());
        assert_eq!(seen, ["name-own", id, "n1"]);
    }
    h.change::<Task>("a", |task| task.status.state = TaskState::Failed as i32).await;
    assert_eq!(summary(&next(&mut stream).await), "-secret:own.a");
    // A node that comes anew is given it anew, with everything else.
    drop(stream);
    let mut fresh = h.assignments("n1", &session.id).await.unwrap();
    assert_eq!(summary(&next(&mut fresh).await), "+secret:own.b +task:a +task:b");
}

// 53
#[tokio::test]
async fn a_driver_is_told_what_the_service_is_called_and_how_it_is_reached() {
    let dir = tempfile::tempdir().unwrap();
    let (_plugin, mut requests) = provider(dir.path(), false);
    let h = started(dir.path()).await;
    let labels = |text: &str| BTreeMap::from([("tier".to_owned(), text.to_owned())]);
    let mut service = Service { id: "sid".into(), ..Default::default() };
    service.spec.annotations.name = "web".into();
    service.spec.annotations.labels = labels("front");
    let port = PortConfig {
        name: "http".into(),
        protocol: Protocol::Udp.into(),
        published_port: 8080,
        target_port: 80,
        publish_mode: PublishMode::Host.into(),
    };
    let mode = ResolutionMode::Dnsrr.into();
    service.spec.endpoint = Some(EndpointSpec { mode, ports: vec![port] });
    let annotations = service.spec.annotations.clone();
    h.create(service).await;
    h.change::<Secret>("own", |secret| secret.spec.annotations.labels = labels("of the secret")).await;
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    next(&mut stream).await;
    let mut task = assigned("t", &["own"]);
    task.service_id = "sid".into();
    task.slot = 2;
    task.service_annotations = annotations;
    if let Some(task_spec::Runtime::Container(container)) = &mut task.spec.runtime {
        container.image = "image:1".into();
        container.hostname = "host".into();
    }
    h.create(task).await;
    assert_eq!(summary(&next(&mut stream).await), "+secret:own +task:t");
    let expected = json!({
        "SecretName": "name-own", "SecretLabels": {"tier": "of the secret"},
        "ServiceHostname": "host", "ServiceID": "sid", "ServiceName": "web",
        "ServiceLabels": {"tier": "front"},
        "TaskID": "t", "TaskName": "web.2.t", "TaskImage": "image:1", "NodeID": "n1",
        "ServiceEndpointSpec": {"Mode": 1, "Ports": [{
            "Name": "http", "Protocol": 1, "PublishedPort": 8080, "TargetPort": 80, "PublishMode": 1,
        }]},
    });
    assert_eq!(requests.recv().await.unwrap(), expected);
}

#[tokio::test]
async fn what_may_be_reused_is_asked_for_once_while_it_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (_plugin, mut requests) = provider(dir.path(), false);
    let h = started(dir.path()).await;
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    next(&mut stream).await;
    h.create(assigned("a", &["own", "plain"])).await;
    assert_eq!(summary(&next(&mut stream).await), "+secret:own +secret:plain +task:a");
    h.create(assigned("b", &["own"])).await;
    assert_eq!(summary(&next(&mut stream).await), "+task:b");
    for (id, message) in [("a", "-secret:plain -task:a"), ("b", "-secret:own -task:b")] {
        h.remove::<Task>(id).await;
        let mut told: Vec<String> = summary(&next(&mut stream).await).split(' ').map(str::to_owned).collect();
        told.sort();
        assert_eq!(told.join(" "), message);
    }
    h.create(assigned("c", &["own"])).await;
    assert_eq!(summary(&next(&mut stream).await), "+secret:own +task:c");
    assert_eq!(requests.recv().await.unwrap()["TaskID"], "a");
    assert_eq!(requests.recv().await.unwrap()["TaskID"], "c");
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn a_driver_that_hangs_holds_up_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (go, gate) = watch::channel(false);
    let answer = move |_, _| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|open| *open).await.unwrap();
            Some(json!({ "Value": S1, "DoNotReuse": true }))
        }
    };
    let _plugin = TestPlugin::start(&dir.path().join("p.sock"), SECRET_PROVIDER, answer).unwrap();
    let h = started(dir.path()).await;
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    next(&mut stream).await;
    h.create(assigned("slow", &["own"])).await;
    h.create(assigned("gone", &["own"])).await;
    h.create(assigned("other", &["plain"])).await;
    assert_eq!(summary(&next(&mut stream).await), "+secret:plain +task:other");
    // What changes meanwhile is what the node hears of.
    h.change::<Task>("slow", |task| task.slot = 7).await;
    h.change::<Task>("gone", |task| task.desired_state = TaskState::Remove as i32).await;
    assert_eq!(summary(&next(&mut stream).await), "+task:gone");
    go.send_replace(true);
    let message = next(&mut stream).await;
    assert_eq!(summary(&message), "+secret:own.slow +task:slow");
    let slots = message.changes.iter().filter_map(|c| match c.assignment.as_ref()?.item.as_ref()? {
        assignment::Item::Task(task) => Some(task.slot),
        _ => None,
    });
    assert_eq!(slots.collect::<Vec<_>>(), [7]);
}

#[tokio::test]
async fn without_its_driver_a_task_goes_alone_and_the_secret_follows() {
    let dir = tempfile::tempdir().unwrap();
    let h = started(dir.path()).await;
    h.create(assigned("early", &["own"])).await;
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    assert_eq!(summary(&next(&mut stream).await), "+task:early", "the plug-in is not there");
    h.create(assigned("late", &["own"])).await;
    assert_eq!(summary(&next(&mut stream).await), "+task:late");
    let (_plugin, _requests) = provider(dir.path(), true);
    let mut told = Vec::new();
    while told.len() < 2 {
        // What was never there is released too, without data.
        let sent = secrets(&next(&mut stream).await).into_iter().filter(|(_, data, _)| !data.is_empty());
        told.extend(sent.map(|(id, data, _)| format!("{id}={data}")));
    }
    told.sort();
    assert_eq!(told, ["own.early=s1", "own.late=s1"]);
}

// 55
#[tokio::test]
async fn a_driver_that_answers_an_error_keeps_no_task_from_its_node() {
    let dir = tempfile::tempdir().unwrap();
    let (go, gate) = watch::channel(false);
    let answer = move |_, _| {
        let answer = if *gate.borrow() { json!({ "Value": S1 }) } else { json!({ "Err": "sealed" }) };
        std::future::ready(Some(answer))
    };
    let _plugin = TestPlugin::start(&dir.path().join("p.sock"), SECRET_PROVIDER, answer).unwrap();
    let h = started(dir.path()).await;
    h.create(assigned("early", &["own", "plain"])).await;
    let session = h.session("n1").await;
    let mut stream = h.assignments("n1", &session.id).await.unwrap();
    assert_eq!(summary(&next(&mut stream).await), "+secret:plain +task:early");
    h.create(assigned("late", &["own"])).await;
    assert_eq!(summary(&next(&mut stream).await), "+task:late");
    go.send_replace(true);
    assert_eq!(secrets(&next(&mut stream).await), [("own".to_owned(), "s1".to_owned(), false)]);
}
