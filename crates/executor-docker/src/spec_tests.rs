use std::collections::BTreeMap;

use serde_json::{Value, json};
use swarm_api::v1::container_spec::{DnsConfig, PullOptions, Ulimit};
use swarm_api::v1::mount::bind_options::Propagation;
use swarm_api::v1::mount::{BindOptions, TmpfsOptions, Type, VolumeOptions};
use swarm_api::v1::privileges::{
    AppArmorOpts, SeLinuxContext, SeccompOpts, app_armor_opts::AppArmorMode, seccomp_opts::SeccompMode,
};
use swarm_api::v1::{
    Annotations, Driver, Endpoint, GenericResource, Mount, NamedGenericResource, Privileges,
    ResourceRequirements, Resources, TaskSpec, generic_resource,
};

use super::*;

pub(super) fn task(spec: ContainerSpec) -> Task {
    Task {
        id: "tid".into(),
        service_id: "sid".into(),
        node_id: "nid".into(),
        slot: 2,
        service_annotations: Annotations { name: "web".into(), ..Default::default() }.into(),
        spec: TaskSpec { runtime: Some(task_spec::Runtime::Container(spec)), ..Default::default() }.into(),
        ..Default::default()
    }
}

pub(super) fn image() -> ContainerSpec {
    ContainerSpec { image: "busybox:1".into(), ..Default::default() }
}

/// An engine that can everything, and a place for files.
fn around() -> Surroundings<'static> {
    Surroundings { files: Ok(Path::new("/mem/t")), ..Default::default() }
}

pub(super) fn body(task: &Task) -> Value {
    serde_json::to_value(plan(task, &around()).expect("a plan").body).unwrap()
}

/// The spec's body holds `expected` at `pointer`.
#[track_caller]
fn check(spec: ContainerSpec, pointer: &str, expected: Value) {
    let body = body(&task(spec));
    assert_eq!(body.pointer(pointer).cloned().unwrap_or_default(), expected, "{pointer} in {body}");
}

#[track_caller]
fn check_refused(spec: ContainerSpec, text: &str) {
    assert_eq!(plan(&task(spec), &around()), Err(ControllerError::Fatal(text.to_owned())));
}

#[test]
fn simple_fields() {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    check(image(), "/Image", json!("busybox:1"));
    check(ContainerSpec { command: words(&["a", "b"]), ..image() }, "/Entrypoint", json!(["a", "b"]));
    check(ContainerSpec { args: words(&["c"]), ..image() }, "/Cmd", json!(["c"]));
    check(ContainerSpec { args: words(&["c"]), ..image() }, "/Entrypoint", json!(null));
    check(ContainerSpec { env: words(&["A=1", "B"]), ..image() }, "/Env", json!(["A=1", "B"]));
    check(ContainerSpec { dir: "/d".into(), ..image() }, "/WorkingDir", json!("/d"));
    check(ContainerSpec { user: "1:2".into(), ..image() }, "/User", json!("1:2"));
    check(ContainerSpec { groups: words(&["g"]), ..image() }, "/HostConfig/GroupAdd", json!(["g"]));
    check(
        ContainerSpec { hostname: "{{.Service.Name}}-{{.Task.Slot}}".into(), ..image() },
        "/Hostname",
        json!("web-2"),
    );
    check(ContainerSpec { tty: true, ..image() }, "/Tty", json!(true));
    check(ContainerSpec { open_stdin: true, ..image() }, "/OpenStdin", json!(true));
    check(ContainerSpec { stop_signal: "SIGINT".into(), ..image() }, "/StopSignal", json!("SIGINT"));
    check(ContainerSpec { read_only: true, ..image() }, "/HostConfig/ReadonlyRootfs", json!(true));
    check(ContainerSpec { init: Some(false), ..image() }, "/HostConfig/Init", json!(false));
    check(image(), "/HostConfig/Init", json!(null));
    check(ContainerSpec { pids_limit: 7, ..image() }, "/HostConfig/PidsLimit", json!(7));
    check(ContainerSpec { pids_limit: -1, ..image() }, "/HostConfig/PidsLimit", json!(null));
    check(
        ContainerSpec { capability_add: words(&["NET_ADMIN"]), ..image() },
        "/HostConfig/CapAdd",
        json!(["NET_ADMIN"]),
    );
    check(
        ContainerSpec { capability_drop: words(&["ALL"]), ..image() },
        "/HostConfig/CapDrop",
        json!(["ALL"]),
    );
    check(ContainerSpec { oom_score_adj: 5, ..image() }, "/HostConfig/OomScoreAdj", json!(5));
    check(
        ContainerSpec { ulimits: vec![Ulimit { name: "nofile".into(), soft: 1, hard: 2 }], ..image() },
        "/HostConfig/Ulimits",
        json!([{"Name": "nofile", "Soft": 1, "Hard": 2}]),
    );
    check(
        ContainerSpec { sysctls: BTreeMap::from([("a.b".into(), "1".into())]), ..image() },
        "/HostConfig/Sysctls",
        json!({"a.b": "1"}),
    );
    check(
        ContainerSpec { hosts: words(&["10.0.0.1 db alias", "10.0.0.2"]), ..image() },
        "/HostConfig/ExtraHosts",
        json!(["db:10.0.0.1", "alias:10.0.0.1"]),
    );
    let dns =
        DnsConfig { nameservers: words(&["1.1.1.1"]), search: words(&["x"]), options: words(&["ndots:1"]) };
    for (pointer, expected) in [("Dns", "1.1.1.1"), ("DnsSearch", "x"), ("DnsOptions", "ndots:1")] {
        check(
            ContainerSpec { dns_config: Some(dns.clone()), ..image() },
            &format!("/HostConfig/{pointer}"),
            json!([expected]),
        );
    }
}

#[test]
fn name_and_labels_tell_whose_container_it_is() {
    let mut spec = image();
    spec.labels =
        BTreeMap::from([("a".into(), "spec".into()), ("com.docker.swarm.task.id".into(), "forged".into())]);
    let mut task = task(spec);
    assert_eq!(plan(&task, &around()).unwrap().name, "web.2.tid");
    assert_eq!(
        body(&task)["Labels"],
        json!({
            "a": "spec",
            "com.docker.swarm.task": "",
            "com.docker.swarm.task.id": "tid",
            "com.docker.swarm.task.name": "web.2.tid",
            "com.docker.swarm.node.id": "nid",
            "com.docker.swarm.service.id": "sid",
            "com.docker.swarm.service.name": "web",
        })
    );
    task.slot = 0;
    assert_eq!(plan(&task, &around()).unwrap().name, "web.nid.tid");
    task.annotations.name = "own.name".into();
    assert_eq!(plan(&task, &around()).unwrap().name, "own.name");
    task.annotations.name = "../x".into();
    assert!(matches!(plan(&task, &around()), Err(ControllerError::Fatal(text)) if text.contains("../x")));
}

#[test]
fn resources_are_limits_only() {
    let mut task = task(image());
    let limits = Resources { nano_cpus: 500_000_000, memory_bytes: 1 << 20, ..Default::default() };
    let requirements = |swap_bytes| ResourceRequirements {
        limits: Some(limits.clone()),
        reservations: Some(Resources { memory_bytes: 1 << 19, ..Default::default() }),
        swap_bytes,
        memory_swappiness: Some(10),
    };
    for (swap, expected) in [(None, Value::Null), (Some(-1), json!(-1)), (Some(1 << 20), json!(2 << 20))] {
        task.spec.resources = Some(requirements(swap));
        let host = &body(&task)["HostConfig"];
        assert_eq!(host.get("MemorySwap").cloned().unwrap_or_default(), expected, "{swap:?}");
        assert_eq!((&host["NanoCpus"], &host["Memory"]), (&json!(500_000_000), &json!(1 << 20)));
        assert_eq!(host["MemorySwappiness"], json!(10));
        assert!(host.get("MemoryReservation").is_none());
    }
    let swappiness = ResourceRequirements { memory_swappiness: Some(0), ..Default::default() };
    task.spec.resources = Some(ResourceRequirements { swap_bytes: Some(1 << 20), ..swappiness });
    let host = &body(&task)["HostConfig"];
    assert_eq!((&host["MemorySwappiness"], host.get("MemorySwap")), (&json!(0), None), "without limits");
    task.assigned_generic_resources = vec![GenericResource {
        resource: Some(generic_resource::Resource::NamedResourceSpec(NamedGenericResource {
            kind: "gpu".into(),
            value: "0".into(),
        })),
    }];
    assert_eq!(body(&task)["Env"], json!(["DOCKER_RESOURCE_GPU=0"]));
}

#[test]
fn only_host_mode_ports_are_published() {
    let port = |target_port, published_port, mode: PublishMode, protocol: Protocol| PortConfig {
        target_port,
        published_port,
        publish_mode: mode.into(),
        protocol: protocol.into(),
        ..Default::default()
    };
    let mut task = task(image());
    let ports = vec![
        port(80, 8080, PublishMode::Host, Protocol::Tcp),
        port(80, 8081, PublishMode::Host, Protocol::Tcp),
        port(53, 0, PublishMode::Host, Protocol::Udp),
        port(443, 443, PublishMode::Ingress, Protocol::Tcp),
        port(70_000, 1, PublishMode::Host, Protocol::Tcp),
    ];
    task.endpoint = Some(Endpoint { ports, ..Default::default() }.into());
    let body = body(&task);
    assert_eq!(body["ExposedPorts"], json!({"80/tcp": {}, "53/udp": {}}));
    assert_eq!(
        body["HostConfig"]["PortBindings"],
        json!({"80/tcp": [{"HostPort": "8080"}, {"HostPort": "8081"}], "53/udp": [{"HostPort": ""}]})
    );
}

fn mounted(kind: Type, source: &str, target: &str) -> Mount {
    Mount { r#type: kind.into(), source: source.into(), target: target.into(), ..Default::default() }
}

#[test]
fn mounts_by_type() {
    let with = |mount| ContainerSpec { mounts: vec![mount], ..image() };
    let bind = Mount {
        readonly: true,
        bind_options: Some(BindOptions {
            propagation: Propagation::Rslave.into(),
            nonrecursive: true,
            ..Default::default()
        }),
        ..mounted(Type::Bind, "/s/{{.Task.ID}}", "/t")
    };
    check(
        with(bind),
        "/HostConfig/Mounts",
        json!([{
            "Type": "bind", "Source": "/s/tid", "Target": "/t", "ReadOnly": true,
            "BindOptions": {"Propagation": "rslave", "NonRecursive": true}
        }]),
    );
    let driver = Driver { name: "local".into(), options: BTreeMap::from([("o".into(), "1".into())]) };
    let volume = Mount {
        volume_options: Some(VolumeOptions {
            nocopy: true,
            driver_config: Some(driver),
            ..Default::default()
        }),
        ..mounted(Type::Volume, "data", "/t")
    };
    check(
        with(volume.clone()),
        "/HostConfig/Mounts/0/VolumeOptions",
        json!({"NoCopy": true, "DriverConfig": {"Name": "local", "Options": {"o": "1"}}}),
    );
    let plan = plan(&task(with(volume)), &around()).unwrap();
    assert_eq!(plan.volumes.len(), 1);
    assert_eq!(
        (plan.volumes[0].name.as_deref(), plan.volumes[0].driver.as_deref()),
        (Some("data"), Some("local"))
    );

    let tmpfs = |options| Mount { tmpfs_options: options, ..mounted(Type::Tmpfs, "", "/t") };
    check(
        with(tmpfs(Some(TmpfsOptions { size_bytes: 1 << 20, mode: 0o755, ..Default::default() }))),
        "/HostConfig/Mounts",
        json!([{"Type": "tmpfs", "Target": "/t", "ReadOnly": false,
                "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o755}}]),
    );
    for options in ["exec,uid=1000", r#"[["exec"],["uid","1000"]]"#] {
        let options = TmpfsOptions { size_bytes: 4096, mode: 0o777 | 1 << 20, options: options.into() };
        let spec = with(tmpfs(Some(options)));
        check(spec.clone(), "/HostConfig/Tmpfs", json!({"/t": "mode=1777,size=4096,exec,uid=1000"}));
        check(spec, "/HostConfig/Mounts", json!(null));
    }
}

/// What the engine calls `Volumes` it makes without a name, whatever the mounts say.
#[test]
fn no_mount_is_asked_for_twice() {
    let unnamed = mounted(Type::Volume, "", "/unnamed");
    let mounts = vec![
        mounted(Type::Bind, "/s", "/bind"),
        mounted(Type::Volume, "data", "/volume"),
        unnamed,
        mounted(Type::Tmpfs, "", "/tmpfs"),
        mounted(Type::Npipe, "//./pipe/x", "//./pipe/x"),
    ];
    let body = body(&task(ContainerSpec { mounts, ..image() }));
    assert_eq!(body["HostConfig"]["Mounts"].as_array().map(Vec::len), Some(5));
    assert_eq!(
        body["HostConfig"]["Mounts"][2],
        json!({"Type": "volume", "Target": "/unnamed", "ReadOnly": false})
    );
    assert_eq!(body.get("Volumes"), None, "{body}");
}

#[test]
fn mistaken_mounts_are_refused_by_name() {
    let with = |mount| ContainerSpec { mounts: vec![mount], ..image() };
    check_refused(
        with(mounted(Type::Bind, "s", "/t")),
        "invalid bind mount source, must be an absolute path: s",
    );
    check_refused(with(mounted(Type::Bind, "/s", "t")), "invalid mount target, must be an absolute path: t");
    check_refused(
        with(mounted(Type::Volume, "/s", "/t")),
        "invalid volume mount source, must not be an absolute path: /s",
    );
    check_refused(with(mounted(Type::Tmpfs, "s", "/t")), "invalid tmpfs source, source must be empty");
    check_refused(with(mounted(Type::Npipe, "", "t")), "invalid npipe source, source must not be empty");
    check_refused(
        with(mounted(Type::Cluster, "group:db", "/t")),
        "cluster volume \"group:db\": this node has no CSI plug-ins",
    );
    check_refused(
        with(Mount { r#type: 99, target: "/t".into(), ..Default::default() }),
        "invalid mount type: 99",
    );
}

#[test]
fn health_check_in_nanoseconds() {
    let second = |seconds| Some(prost_types::Duration { seconds, nanos: 5 });
    let check_ = swarm_api::v1::HealthConfig {
        test: vec!["CMD".into(), "true".into()],
        interval: second(1),
        timeout: None,
        retries: 3,
        start_period: second(2),
        start_interval: None,
    };
    check(
        ContainerSpec { healthcheck: Some(check_), ..image() },
        "/Healthcheck",
        json!({"Test": ["CMD", "true"], "Interval": 1_000_000_005_i64, "Retries": 3, "StartPeriod": 2_000_000_005_i64}),
    );
    check(image(), "/Healthcheck", json!(null));
}

#[test]
fn privileges_in_the_engines_order() {
    let privileges = Privileges {
        selinux_context: Some(SeLinuxContext { disable: true, user: "u".into(), ..Default::default() }),
        seccomp: Some(SeccompOpts { mode: SeccompMode::Custom.into(), profile: b"{}".to_vec() }),
        apparmor: Some(AppArmorOpts { mode: AppArmorMode::Disabled.into() }),
        no_new_privileges: true,
        ..Default::default()
    };
    check(
        ContainerSpec { privileges: Some(privileges), ..image() },
        "/HostConfig/SecurityOpt",
        json!([
            "label=disable",
            "label=user:u",
            "seccomp={}",
            "apparmor=unconfined",
            "no-new-privileges=true"
        ]),
    );
}

#[test]
fn log_driver_and_stop_grace_and_credentials() {
    let mut task = task(ContainerSpec {
        stop_grace_period: Some(prost_types::Duration { seconds: 3, nanos: 0 }),
        pull_options: Some(PullOptions { registry_auth: "abc".into() }),
        ..image()
    });
    let options = BTreeMap::from([("max-size".into(), "1m".into())]);
    task.log_driver = Some(Box::new(Driver { name: "json-file".into(), options }));
    let plan = plan(&task, &around()).unwrap();
    assert_eq!((plan.stop_grace, plan.registry_auth.as_str()), (Duration::from_secs(3), "abc"));
    assert_eq!(
        body(&task)["HostConfig"]["LogConfig"],
        json!({"Type": "json-file", "Config": {"max-size": "1m"}})
    );
    assert_eq!(
        super::plan(&super::tests::task(image()), &around()).unwrap().stop_grace,
        defaults::STOP_GRACE_PERIOD
    );
}

#[test]
fn what_is_no_container_is_refused() {
    check_refused(ContainerSpec::default(), "dockerexec: image required");
    let mut none = task(image());
    none.spec.runtime = None;
    assert_eq!(plan(&none, &around()), Err(ControllerError::UnsupportedRuntime));
    check_refused(
        ContainerSpec { env: vec!["A={{.B}}".into()], ..image() },
        "expanding env failed: expanding env \"A={{.B}}\": there is no field B",
    );
}
