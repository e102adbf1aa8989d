//! What the engine of the test machine can't do, as requests to one that only keeps them.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Given, within};
use serde_json::{Value, json};
use swarm_agent::{Controller, ControllerError, Executor};
use swarm_api::Shared;
use swarm_api::extensions::Feature;
use swarm_api::v1::container_spec::Isolation;
use swarm_api::v1::generic_resource::Resource;
use swarm_api::v1::mount::bind_options::Propagation;
use swarm_api::v1::mount::{BindOptions, Type, VolumeOptions};
use swarm_api::v1::network_spec::ConfigFrom;
use swarm_api::v1::privileges::{CredentialSpec, SeLinuxContext, credential_spec};
use swarm_api::v1::{
    Annotations, ConfigReference, ContainerSpec, DiscreteGenericResource, Driver, FileTarget,
    GenericResource, HealthConfig, Mount, NamedGenericResource, Network, NetworkAttachment, Node, Privileges,
    RuntimeTarget, SecretReference, Task, TaskSpec, config_reference, secret_reference, task_spec,
};
use swarm_executor_docker::DockerExecutor;
use swarm_testkit::fake_engine::{Character, FakeEngine};

fn task(spec: ContainerSpec) -> Task {
    Task {
        id: swarm_api::id::random().into(),
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

/// For a task that may run on these platforms: the pull, if there was one, and the request for the container.
async fn requests_of(
    executor: &DockerExecutor,
    engine: &FakeEngine,
    platforms: &[(&str, &str)],
) -> Vec<String> {
    let mut task = task(image());
    let platform = |(os, architecture): &(&str, &str)| swarm_api::v1::Platform {
        os: (*os).into(),
        architecture: (*architecture).into(),
    };
    let platforms = platforms.iter().map(platform).collect();
    task.spec.placement = Some(swarm_api::v1::Placement { platforms, ..Default::default() });
    let before = engine.requests().len();
    within(controller(executor, &task, &Given::default()).prepare()).await.unwrap();
    let asked = engine.requests().split_off(before).into_iter().map(|request| request.path);
    let name = format!("name={}&", swarm_api::naming::task_name(&task));
    asked.filter(|path| path.contains("/create?")).map(|path| path.replace(&name, "")).collect()
}

#[tokio::test]
async fn the_nodes_own_platform_of_a_task_is_asked_for() {
    let both = &[("windows", "amd64"), ("linux", "X86_64")][..];
    let pull = |platform: &str| {
        format!("/images/create?fromImage=web&tag=1&platform={}", platform.replace('/', "%2F"))
    };
    let create = |platform: &str| format!("/containers/create?platform={}", platform.replace('/', "%2F"));
    let local = Character::default();
    let pulled = Character { pulled: true, ..local.clone() };
    let arm = Character { image_platform: ("linux", "arm64"), ..local.clone() };
    let old = Character { api: "1.40", ..pulled.clone() };
    let unknown = Character { image_platform: ("", ""), ..local.clone() };
    let own = "linux/amd64";
    for (what, character, platforms, expected) in [
        ("from a registry", &pulled, both, vec![pull(own), create(own)]),
        ("made here", &local, both, vec![create(own)]),
        ("for another platform", &arm, both, vec![pull(own), create(own)]),
        ("of an older engine", &old, both, vec![pull(own), create("")]),
        ("of no known platform", &unknown, both, vec![create("")]),
        ("for any architecture", &pulled, &[("linux", "")], vec![pull(""), create("")]),
        ("for anything", &pulled, &[("", "")], vec![pull(""), create("")]),
        ("without a wish", &pulled, &[], vec![pull(""), create("")]),
        ("for others only", &pulled, &[("linux", "arm64")], vec![pull(""), create("")]),
    ] {
        let engine = FakeEngine::start(character.clone()).unwrap();
        let executor = executor(&engine).await;
        assert_eq!(requests_of(&executor, &engine, platforms).await, expected, "{what}");
        executor.close().await;
    }
}

#[tokio::test]
async fn tasks_share_the_pull_of_an_image_only_for_one_platform() {
    let engine = FakeEngine::start(Character { pulled: true, ..Default::default() }).unwrap();
    let executor = executor(&engine).await;
    for (platforms, pulls) in
        [(&[][..], 1), (&[("linux", "amd64")], 1), (&[("", "amd64")], 0), (&[("linux", "")], 0), (&[], 0)]
    {
        let asked = requests_of(&executor, &engine, platforms).await;
        let count = asked.iter().filter(|path| path.starts_with("/images/create?")).count();
        assert_eq!(count, pulls, "{platforms:?}: {asked:?}");
    }
    executor.close().await;
}

#[tokio::test]
async fn what_only_windows_has_is_passed_on() {
    let given = Given::default().config("cred", "{\"CmsPlugins\":[]}", "").config("file", "x", "");
    let config = |id: &str, target| ConfigReference {
        config_id: id.into(),
        config_name: id.into(),
        target: Some(target),
    };
    let pipes = [r"\\.\pipe\docker_engine", "//./pipe/docker_engine"];
    let pipe = |path: &str| Mount {
        r#type: Type::Npipe.into(),
        source: path.into(),
        target: path.into(),
        ..Default::default()
    };
    let spec = ContainerSpec {
        isolation: Isolation::Hyperv.into(),
        mounts: pipes.map(pipe).into(),
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
    let pipe = |path| json!({"Type": "npipe", "Source": path, "Target": path, "ReadOnly": false});
    assert_eq!(host["Mounts"], json!(pipes.map(pipe)));
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
    let aliases = |own: &str| json!({"Aliases": [own, task.service_annotations.name]});
    assert_eq!(body["NetworkingConfig"], json!({"EndpointsConfig": {"net-a": aliases("alias-a")}}));
    assert_eq!(
        engine.bodies("/networks/net-b/connect"),
        [json!({"Container": "c1", "EndpointConfig": aliases("alias-b")})]
    );
    within(controller.remove()).await.unwrap();
    let removed: Vec<String> = engine
        .requests()
        .into_iter()
        .filter(|request| request.method == "DELETE")
        .map(|request| request.path.split('?').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(removed, ["/containers/c1", "/networks/n1", "/networks/n1"]);
    executor.close().await;
}

fn generic(resources: &[(&str, &str)]) -> Vec<GenericResource> {
    let one = |(kind, value): &(&str, &str)| {
        let (kind, value) = ((*kind).to_owned(), (*value).to_owned());
        let resource = match value.parse() {
            Ok(value) => Resource::DiscreteResourceSpec(DiscreteGenericResource { kind, value }),
            Err(_) => Resource::NamedResourceSpec(NamedGenericResource { kind, value }),
        };
        GenericResource { resource: Some(resource) }
    };
    resources.iter().map(one).collect()
}

fn given(labels: &[(&str, &str)]) -> ContainerSpec {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    ContainerSpec { labels, ..image() }
}

/// Running it for real needs a host whose containers may have all privileges, and GPUs.
#[tokio::test]
async fn privileges_devices_and_gpus_are_asked_for() {
    let engine = FakeEngine::start(Character::default()).unwrap();
    let executor = executor(&engine).await.with_privileged(true);
    let features = executor.describe().await.unwrap().features;
    assert_eq!(
        features.into_iter().collect::<Vec<_>>(),
        [Feature::Devices, Feature::Gpus, Feature::Privileged, Feature::InitTasks, Feature::PreStop]
    );
    for (assigned, expected) in [
        (&[("gpu", "GPU-1"), ("gpu", "nvidia2"), ("fpga", "x")][..], json!({"DeviceIDs": ["GPU-1", "2"]})),
        (&[("gpu", "2")], json!({"Count": 2})),
    ] {
        let mut task = task(given(&[
            ("swarmd.privileged", "1"),
            ("swarmd.gpus", "gpu"),
            ("swarmd.devices", "/dev/fuse:/dev/fuse:rwm,/dev/null:/dev/nothing:r"),
        ]));
        task.assigned_generic_resources = generic(assigned);
        let controller = controller(&executor, &task, &Given::default());
        within(controller.prepare()).await.unwrap();
        let bodies = engine.bodies("/containers/create?name=");
        let host = &bodies.last().unwrap()["HostConfig"];
        assert_eq!(host["Privileged"], json!(true));
        assert_eq!(
            host["Devices"],
            json!([
                {"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"},
                {"PathOnHost": "/dev/null", "PathInContainer": "/dev/nothing", "CgroupPermissions": "r"},
            ])
        );
        let mut request = expected;
        request["Capabilities"] = json!([["gpu"]]);
        assert_eq!(host["DeviceRequests"], json!([request]));
    }
    executor.close().await;
}

#[tokio::test]
async fn a_node_checks_for_itself_what_it_gives() {
    let engine = FakeEngine::start(Character::default()).unwrap();
    let strict = executor(&engine).await;
    let refused = |labels: &[(&str, &str)]| {
        let task = task(given(labels));
        match strict.controller(&task.into(), Arc::new(Given::default())) {
            Err(ControllerError::Fatal(text)) => text,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("{labels:?} was taken"),
        }
    };
    assert_eq!(
        refused(&[("swarmd.privileged", "1")]),
        "this node does not allow privileged containers: its daemon was not started with --allow-privileged"
    );
    assert_eq!(
        refused(&[("swarmd.gpus", "gpu")]),
        "the task wants GPUs, and no generic resource of kind \"gpu\" was assigned to it"
    );
    assert!(refused(&[("swarmd.devices", "fuse")]).contains("the path on the host must be absolute"));
    let features = strict.describe().await.unwrap().features;
    assert!(features.contains(&Feature::Gpus) && !features.contains(&Feature::Privileged), "{features:?}");
    strict.close().await;
    let old = FakeEngine::start(Character { api: "1.39", version: "18.09.1", ..Default::default() }).unwrap();
    let old = executor(&old).await;
    assert!(!old.describe().await.unwrap().features.contains(&Feature::Gpus), "it is too old for them");
    old.close().await;
}

#[tokio::test]
async fn an_engine_that_was_set_up_anew_is_described_anew() {
    let engine = FakeEngine::start(Character::default()).unwrap();
    let executor = executor(&engine).await;
    let described = async || {
        let description = executor.describe().await.unwrap();
        let volumes = description.plugins.iter().filter(|plugin| plugin.r#type == "Volume");
        let volumes: Vec<String> = volumes.map(|plugin| plugin.name.clone()).collect();
        let memory = description.resources.unwrap().memory_bytes;
        (description.engine_version, description.engine_labels, volumes, memory)
    };
    let before = described().await;
    assert_eq!(before, ("27.0.0".into(), Default::default(), vec!["local".into()], 1 << 30));
    engine.become_like(Character {
        version: "28.0.0",
        labels: &["disk=ssd", "swarmd.privileged=1"],
        volume_plugins: &["local", "nfs"],
        memory: 1 << 31,
        ..Default::default()
    });
    let labels = [("disk".to_owned(), "ssd".to_owned())].into();
    assert_eq!(described().await, ("28.0.0".into(), labels, vec!["local".into(), "nfs".into()], 1 << 31));
    executor.close().await;
}
