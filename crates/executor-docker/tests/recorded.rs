//! What the engine of the test machine can't do, as requests to one that only keeps them.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Given, within};
use serde_json::{Value, json};
use swarm_agent::{Controller, ControllerError, Executor};
use swarm_api::Shared;
use swarm_api::v1::container_spec::Isolation;
use swarm_api::v1::mount::bind_options::Propagation;
use swarm_api::v1::mount::{BindOptions, Type, VolumeOptions};
use swarm_api::v1::network_spec::ConfigFrom;
use swarm_api::v1::privileges::{CredentialSpec, SeLinuxContext, credential_spec};
use swarm_api::v1::{
    Annotations, ConfigReference, ContainerSpec, Driver, FileTarget, HealthConfig, Mount, Network,
    NetworkAttachment, Node, Privileges, RuntimeTarget, SecretReference, Task, TaskSpec, config_reference,
    secret_reference, task_spec,
};
use swarm_executor_docker::DockerExecutor;
use swarm_testkit::fake_engine::{Character, FakeEngine};

fn task(spec: ContainerSpec) -> Task {
    Task {
        id: swarm_api::id::random(),
        node_id: "recorded".into(),
        slot: 1,
        service_annotations: Annotations { name: "web".into(), ..Default::default() }.into(),
        spec: TaskSpec { runtime: Some(task_spec::Runtime::Container(spec)), ..Default::default() }.into(),
        ..Default::default()
    }
}

fn image() -> ContainerSpec {
    ContainerSpec { image: "web:1".into(), ..Default::default() }
}

async fn executor(engine: &FakeEngine) -> DockerExecutor {
    let executor = DockerExecutor::connect(&engine.address()).await.unwrap();
    let node: Shared<Node> = Node { id: "recorded".into(), ..Default::default() }.into();
    executor.configure(&node).await.unwrap();
    executor
}

fn controller(executor: &DockerExecutor, task: &Task, given: &Given) -> Arc<dyn Controller> {
    executor.controller(&task.clone().into(), Arc::new(given.clone())).unwrap()
}

/// The body of the request for the container of a task.
async fn body(character: Character, task: &Task, given: &Given) -> Value {
    let engine = FakeEngine::start(character).unwrap();
    let executor = executor(&engine).await;
    let controller = controller(&executor, task, given);
    within(controller.prepare()).await.unwrap();
    let bodies = engine.bodies("/containers/create?name=");
    within(controller.remove()).await.unwrap();
    executor.close().await;
    assert_eq!(bodies.len(), 1);
    bodies.into_iter().next().unwrap()
}

#[tokio::test]
async fn options_of_newer_engines_are_passed_on() {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let bind = |target: &str, options: BindOptions| Mount {
        source: "/srv".into(),
        target: target.into(),
        readonly: true,
        bind_options: Some(options),
        ..Default::default()
    };
    let propagation = Propagation::Rshared.into();
    let volume_options = Some(VolumeOptions { subpath: "a".into(), nocopy: true, ..Default::default() });
    let spec = ContainerSpec {
        healthcheck: Some(HealthConfig {
            test: vec!["CMD".into(), "true".into()],
            start_period: seconds(9),
            start_interval: seconds(1),
            ..Default::default()
        }),
        mounts: vec![
            bind("/a", BindOptions { propagation, createmountpoint: true, ..Default::default() }),
            bind("/b", BindOptions { readonlynonrecursive: true, ..Default::default() }),
            bind(
                "/c",
                BindOptions { readonlyforcerecursive: true, nonrecursive: true, ..Default::default() },
            ),
            Mount {
                r#type: Type::Volume.into(),
                source: "v".into(),
                target: "/d".into(),
                volume_options,
                ..Default::default()
            },
        ],
        ..image()
    };
    let body = body(Character::default(), &task(spec), &Given::default()).await;
    assert_eq!(
        body["Healthcheck"],
        json!({
            "Test": ["CMD", "true"], "Retries": 0, "StartPeriod": 9_000_000_000_u64,
            "StartInterval": 1_000_000_000,
        })
    );
    let bind = |target: &str, options: Value| json!({"Type": "bind", "Source": "/srv", "Target": target, "ReadOnly": true, "BindOptions": options});
    assert_eq!(
        body["HostConfig"]["Mounts"],
        json!([
            bind("/a", json!({"Propagation": "rshared", "CreateMountpoint": true})),
            bind("/b", json!({"Propagation": "rprivate", "ReadOnlyNonRecursive": true})),
            bind("/c", json!({
                "Propagation": "rprivate", "NonRecursive": true, "ReadOnlyForceRecursive": true,
            })),
            {"Type": "volume", "Source": "v", "Target": "/d", "ReadOnly": false,
                "VolumeOptions": {"NoCopy": true, "Subpath": "a"}},
        ])
    );
}

#[tokio::test]
async fn what_only_windows_has_is_passed_on() {
    let given = Given::default().config("cred", "{\"CmsPlugins\":[]}", "").config("file", "x", "");
    let config = |id: &str, target| ConfigReference {
        config_id: id.into(),
        config_name: id.into(),
        target: Some(target),
    };
    let spec = ContainerSpec {
        isolation: Isolation::Hyperv.into(),
        mounts: vec![Mount {
            r#type: Type::Npipe.into(),
            source: r"\\.\pipe\docker_engine".into(),
            target: r"\\.\pipe\docker_engine".into(),
            ..Default::default()
        }],
        configs: vec![config("cred", config_reference::Target::Runtime(RuntimeTarget {}))],
        privileges: Some(Privileges {
            credential_spec: Some(CredentialSpec {
                source: Some(credential_spec::Source::Config("cred".into())),
            }),
            no_new_privileges: true,
            ..Default::default()
        }),
        ..image()
    };
    let body = body(Character::default(), &task(spec), &given).await;
    let host = &body["HostConfig"];
    assert_eq!(host["Isolation"], json!("hyperv"));
    let pipe = r"\\.\pipe\docker_engine";
    assert_eq!(host["Mounts"], json!([{"Type": "npipe", "Source": pipe, "Target": pipe, "ReadOnly": false}]));
    assert_eq!(
        host["SecurityOpt"],
        json!(["credentialspec=raw://{\"CmsPlugins\":[]}", "no-new-privileges=true"])
    );
}

fn secret() -> SecretReference {
    let file = FileTarget { name: "pw".into(), uid: "5".into(), gid: "6".into(), mode: 0o400 };
    SecretReference {
        secret_id: "s".into(),
        secret_name: "s".into(),
        target: Some(secret_reference::Target::File(file)),
    }
}

#[tokio::test]
async fn under_selinux_labels_are_set_and_files_relabelled() {
    let context = SeLinuxContext {
        user: "u".into(),
        role: "r".into(),
        r#type: "t".into(),
        level: "s0:c1".into(),
        ..Default::default()
    };
    let spec = ContainerSpec {
        privileges: Some(Privileges { selinux_context: Some(context), ..Default::default() }),
        secrets: vec![secret()],
        ..image()
    };
    let character = Character { security_options: &["name=selinux"], ..Default::default() };
    let task = task(spec);
    let body = body(character, &task, &Given::default().secret("s", "x", "")).await;
    let host = &body["HostConfig"];
    assert_eq!(
        host["SecurityOpt"],
        json!(["label=user:u", "label=role:r", "label=level:s0:c1", "label=type:t"])
    );
    let bind = host["Binds"][0].as_str().unwrap();
    assert!(bind.ends_with(&format!("/recorded/containers/{}/0:/run/secrets/pw:ro,z", task.id)), "{bind}");
}

#[tokio::test]
async fn with_user_namespaces_files_belong_to_the_containers_users() {
    use std::os::unix::fs::MetadataExt as _;
    let character = Character { security_options: &["name=userns"], ..Default::default() };
    let engine = FakeEngine::start(character).unwrap();
    let executor = executor(&engine).await;
    let task = task(ContainerSpec { secrets: vec![secret()], ..image() });
    let controller = controller(&executor, &task, &Given::default().secret("s", "x", ""));
    within(controller.prepare()).await.unwrap();
    let bodies = engine.bodies("/containers/create?name=");
    let source = bodies[0]["HostConfig"]["Mounts"][0]["Source"].as_str().unwrap().to_owned();
    let file = std::fs::metadata(&source).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (100_005, 100_006, 0o400));
    let directory = std::fs::metadata(std::path::Path::new(&source).parent().unwrap()).unwrap();
    assert_eq!((directory.uid(), directory.mode() & 0o7777), (100_000, 0o700));
    within(controller.remove()).await.unwrap();
    assert!(!std::fs::exists(source).unwrap());
    executor.close().await;
}

#[tokio::test]
async fn an_engine_that_does_not_see_this_hosts_files_gets_no_tasks_with_secrets() {
    let engine = FakeEngine::start(Character { sees_files: false, ..Default::default() }).unwrap();
    let executor = executor(&engine).await;
    let task = task(ContainerSpec { secrets: vec![secret()], ..image() });
    let made = executor.controller(&task.clone().into(), Arc::new(Given::default()));
    let Err(ControllerError::Fatal(text)) = made.map(drop) else { panic!("it was taken") };
    let expected = format!(
        "this node can't give secrets and configs to containers: the Docker Engine at {} does not see ",
        engine.address()
    );
    assert!(text.starts_with(&expected), "{text}");
    let plain = self::task(image());
    within(controller(&executor, &plain, &Given::default()).prepare()).await.unwrap();
    executor.close().await;
}

#[tokio::test]
async fn networks_that_this_kernel_lacks_are_asked_for() {
    let attachment = |id: &str, driver: &str, config_from: Option<&str>| {
        let mut network = Network { id: id.into(), ..Default::default() };
        network.spec.annotations.name = format!("net-{id}");
        network.spec.config_from = config_from.map(|name| ConfigFrom::Network(name.into()));
        network.driver_state = Some(Driver { name: driver.into(), ..Default::default() });
        NetworkAttachment {
            network: Some(network.into()),
            aliases: vec![format!("alias-{id}")],
            ..Default::default()
        }
    };
    let engine = FakeEngine::start(Character::default()).unwrap();
    let executor = executor(&engine).await;
    let mut task = task(image());
    task.networks = vec![attachment("a", "ipvlan", Some("lan")), attachment("b", "macvlan", None)];
    let controller = controller(&executor, &task, &Given::default());
    within(controller.prepare()).await.unwrap();
    assert_eq!(
        engine.bodies("/networks/create"),
        [
            json!({"Name": "net-a", "Driver": "ipvlan", "ConfigFrom": {"Network": "lan"}}),
            json!({
                "Name": "net-b", "Driver": "macvlan",
                "Labels": {"com.docker.swarm.network.id": "b", "com.docker.swarm.node.id": "recorded"},
            }),
        ]
    );
    let body = &engine.bodies("/containers/create?name=")[0];
    assert_eq!(body["HostConfig"]["NetworkMode"], json!("net-a"));
    assert_eq!(body["NetworkingConfig"], json!({"EndpointsConfig": {"net-a": {"Aliases": ["alias-a"]}}}));
    let name = swarm_api::naming::task_name(&task);
    assert_eq!(
        engine.bodies("/networks/net-b/connect"),
        [json!({"Container": name, "EndpointConfig": {"Aliases": ["alias-b"]}})]
    );
    within(controller.remove()).await.unwrap();
    let removed: Vec<String> = engine
        .requests()
        .into_iter()
        .filter(|request| request.method == "DELETE")
        .map(|request| request.path.split('?').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(removed, [format!("/containers/{name}"), "/networks/n1".into(), "/networks/n1".into()]);
    executor.close().await;
}
