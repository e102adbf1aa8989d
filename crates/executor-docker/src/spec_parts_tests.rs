//! Files, networks, privileges, and what an engine is too old for.

use serde_json::{Value, json};
use swarm_api::v1::mount::{BindOptions, Type, VolumeOptions};
use swarm_api::v1::network_spec::ConfigFrom;
use swarm_api::v1::privileges::{CredentialSpec, SeccompOpts, credential_spec, seccomp_opts::SeccompMode};
use swarm_api::v1::{
    ConfigReference, Driver, FileTarget, IpamConfig, IpamOptions, Mount, Network, NetworkAttachment,
    NetworkSpec, Privileges, RuntimeTarget, SecretReference, config_reference, secret_reference,
};

use super::tests::{image, task};
use super::*;

/// What the plan is on this engine, with the files in `/mem/t`.
fn on(spec: ContainerSpec, engine: &EngineFacts) -> Result<ContainerPlan, ControllerError> {
    let around = Surroundings { node: None, engine, files: Ok(Path::new("/mem/t")), allow_privileged: false };
    plan(&task(spec), &around)
}

fn newest(spec: ContainerSpec) -> ContainerPlan {
    on(spec, &EngineFacts::newest()).expect("a plan")
}

#[track_caller]
fn refused(spec: ContainerSpec, engine: &EngineFacts, text: &str) {
    assert_eq!(on(spec, engine).err(), Some(ControllerError::Fatal(text.to_owned())));
}

fn json(plan: &ContainerPlan) -> Value {
    serde_json::to_value(&plan.body).unwrap()
}

fn secret(name: &str, (uid, gid): (&str, &str), mode: u32) -> SecretReference {
    let file = FileTarget { name: name.into(), uid: uid.into(), gid: gid.into(), mode };
    SecretReference {
        secret_id: "s".into(),
        secret_name: "password".into(),
        target: Some(secret_reference::Target::File(file)),
    }
}

fn config(target: config_reference::Target) -> ConfigReference {
    ConfigReference { config_id: "c".into(), config_name: "settings".into(), target: Some(target) }
}

fn file(name: &str) -> config_reference::Target {
    config_reference::Target::File(FileTarget { name: name.into(), ..Default::default() })
}

fn with_files() -> ContainerSpec {
    ContainerSpec {
        secrets: vec![
            secret("pw", ("1000", "20"), 0o440),
            secret("/etc/pw", ("", ""), 0o444 | 1 << 23),
            SecretReference::default(),
        ],
        configs: vec![
            config(file("settings")),
            config(file("/etc/app.conf")),
            config(config_reference::Target::Runtime(RuntimeTarget {})),
        ],
        ..image()
    }
}

#[test]
fn each_reference_is_a_file_of_its_own() {
    let plan = newest(with_files());
    let files: Vec<_> = plan
        .files
        .iter()
        .map(|f| (f.kind.name(), f.id.as_str(), f.name.as_str(), f.target.as_str(), f.owner, f.mode))
        .collect();
    assert_eq!(
        files,
        [
            ("secret", "s", "0", "/run/secrets/pw", (1000, 20), 0o440),
            ("secret", "s", "1", "/etc/pw", (0, 0), 0o4444),
            ("config", "c", "2", "/settings", (0, 0), 0),
            ("config", "c", "3", "/etc/app.conf", (0, 0), 0),
        ]
    );
    assert_eq!(plan.files_dir.as_deref(), Some(Path::new("/mem/t")));
    let mounts = &json(&plan)["HostConfig"]["Mounts"];
    assert_eq!(mounts.as_array().map(Vec::len), Some(4));
    let first = json!({"Type": "bind", "Source": "/mem/t/0", "Target": "/run/secrets/pw", "ReadOnly": true});
    assert_eq!(mounts[0], first);
    assert_eq!(newest(image()).files_dir, None);
}

#[test]
fn files_belong_to_whom_the_engine_makes_root() {
    let engine = EngineFacts { root: (100_000, 200_000), ..EngineFacts::newest() };
    let plan = on(with_files(), &engine).unwrap();
    assert_eq!((plan.files[0].owner, plan.files[1].owner), ((101_000, 200_020), (100_000, 200_000)));
}

#[test]
fn under_selinux_files_are_relabelled() {
    let engine = EngineFacts { selinux: true, ..EngineFacts::newest() };
    let plan = on(with_files(), &engine).unwrap();
    let host = &json(&plan)["HostConfig"];
    assert_eq!(host["Binds"][0], json!("/mem/t/0:/run/secrets/pw:ro,z"));
    assert_eq!((host["Binds"].as_array().map(Vec::len), host.get("Mounts")), (Some(4), None));
    let colon = ContainerSpec { secrets: vec![secret("a:b", ("", ""), 0)], ..image() };
    refused(
        colon,
        &engine,
        "secret file \"/run/secrets/a:b\": with SELinux there can't be a colon in its name",
    );
}

#[test]
fn mistaken_files_are_refused_by_name() {
    let with = |secret| ContainerSpec { secrets: vec![secret], ..image() };
    let engine = EngineFacts::newest();
    let text = "secret \"password\": the user \"app\" of its file is not a number";
    refused(with(secret("pw", ("app", "0"), 0)), &engine, text);
    let text = "secret \"password\": the group \"-1\" of its file is not a number";
    refused(with(secret("pw", ("0", "-1"), 0)), &engine, text);
    let text = "secret \"password\": the name of its file is missing";
    refused(with(secret("", ("0", "0"), 0)), &engine, text);
    let around = Surroundings { files: Err("it is too far away"), ..Default::default() };
    let text = "this node can't give secrets and configs to containers: it is too far away";
    assert_eq!(plan(&task(with_files()), &around).err(), Some(ControllerError::Fatal(text.into())));
    assert!(plan(&task(image()), &around).is_ok(), "who has none does not miss it");
}

#[test]
fn a_credential_spec_in_a_config_is_left_to_who_knows_its_payload() {
    let with = |source| {
        let credential_spec = Some(CredentialSpec { source: Some(source) });
        let privileges = Some(Privileges { credential_spec, no_new_privileges: true, ..Default::default() });
        newest(ContainerSpec { privileges, ..image() })
    };
    let plan = with(credential_spec::Source::Config("c".into()));
    assert_eq!(plan.credential_config.as_deref(), Some("c"));
    assert_eq!(json(&plan)["HostConfig"]["SecurityOpt"], json!(["no-new-privileges=true"]));
    for (source, expected) in [
        (credential_spec::Source::File("f.json".into()), "credentialspec=file://f.json"),
        (credential_spec::Source::Registry("r".into()), "credentialspec=registry://r"),
    ] {
        let plan = with(source);
        assert_eq!(json(&plan)["HostConfig"]["SecurityOpt"], json!([expected, "no-new-privileges=true"]));
        assert_eq!(plan.credential_config, None);
    }
}

#[test]
fn a_seccomp_profile_is_json() {
    let with = |profile: &[u8]| {
        let seccomp = Some(SeccompOpts { mode: SeccompMode::Custom.into(), profile: profile.to_vec() });
        ContainerSpec { privileges: Some(Privileges { seccomp, ..Default::default() }), ..image() }
    };
    for bad in [&b""[..], b"[]", b"{", b"\xff"] {
        refused(with(bad), &EngineFacts::newest(), "the seccomp profile is not a JSON object");
    }
    assert_eq!(json(&newest(with(b"{}")))["HostConfig"]["SecurityOpt"], json!(["seccomp={}"]));
}

#[test]
fn what_the_engine_is_too_old_for_is_refused() {
    let old = EngineFacts { api: (1, 41), version: "20.10.24".into(), ..EngineFacts::newest() };
    let too_old = |what: &str, engine: &str, api: &str| {
        format!(
            "{what} needs Docker Engine {engine} or later (API {api}), and the engine of this node is 20.10.24 (API 1.41)"
        )
    };
    let mounted =
        |mount: Mount| ContainerSpec { mounts: vec![Mount { target: "/t".into(), ..mount }], ..image() };
    let bind = |options: BindOptions| {
        mounted(Mount { source: "/s".into(), bind_options: Some(options), ..Default::default() })
    };
    let volume_options = Some(VolumeOptions { subpath: "a/b".into(), ..Default::default() });
    let volume =
        Mount { r#type: Type::Volume.into(), source: "v".into(), volume_options, ..Default::default() };
    let start_interval = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let healthcheck = Some(swarm_api::v1::HealthConfig { start_interval, ..Default::default() });
    let cases = [
        (
            ContainerSpec { healthcheck, ..image() },
            too_old("the start interval of a health check", "25.0", "1.44"),
            ("/Healthcheck/StartInterval", json!(1_000_000_000)),
        ),
        (
            bind(BindOptions { createmountpoint: true, ..Default::default() }),
            too_old("mount /t: making a missing source", "23.0", "1.42"),
            ("/HostConfig/Mounts/0/BindOptions/CreateMountpoint", json!(true)),
        ),
        (
            bind(BindOptions { readonlyforcerecursive: true, ..Default::default() }),
            too_old("mount /t: recursive read-only", "25.0", "1.44"),
            ("/HostConfig/Mounts/0/BindOptions/ReadOnlyForceRecursive", json!(true)),
        ),
        (
            mounted(volume),
            too_old("mount /t: a path within a volume", "26.0", "1.45"),
            ("/HostConfig/Mounts/0/VolumeOptions/Subpath", json!("a/b")),
        ),
    ];
    for (spec, text, (pointer, expected)) in cases {
        refused(spec.clone(), &old, &text);
        assert_eq!(json(&newest(spec)).pointer(pointer), Some(&expected), "{pointer}");
    }
    // What older engines always do.
    let shallow = bind(BindOptions { readonlynonrecursive: true, ..Default::default() });
    let pointer = "/HostConfig/Mounts/0/BindOptions/ReadOnlyNonRecursive";
    assert_eq!(json(&on(shallow.clone(), &old).unwrap()).pointer(pointer), None);
    assert_eq!(json(&newest(shallow)).pointer(pointer), Some(&json!(true)));
    let ancient = EngineFacts { api: (1, 39), ..old };
    let flat = bind(BindOptions { nonrecursive: true, ..Default::default() });
    assert!(on(flat, &ancient).unwrap_err().to_string().contains("needs Docker Engine 19.03 or later"));
}

fn attachment(name: &str, driver: &str, change: impl FnOnce(&mut NetworkSpec)) -> NetworkAttachment {
    let mut spec = NetworkSpec::default();
    spec.annotations.name = name.into();
    change(&mut spec);
    let driver_state = Some(Driver { name: driver.into(), ..Default::default() });
    let network = Network { id: format!("id-{name}"), spec, driver_state, ..Default::default() };
    NetworkAttachment { network: Some(network.into()), ..Default::default() }
}

fn attached(networks: Vec<NetworkAttachment>) -> Result<ContainerPlan, ControllerError> {
    let mut task = task(image());
    task.networks = networks;
    plan(&task, &Default::default())
}

#[test]
fn predefined_networks_are_modes_and_overlays_are_refused() {
    let predefined = |spec: &mut NetworkSpec| {
        spec.annotations.labels.insert("com.docker.swarm.predefined".into(), "true".into());
    };
    let ingress = attachment("ingress", "overlay", |spec| spec.ingress = true);
    let plan = attached(vec![ingress, attachment("host", "host", predefined)]).unwrap();
    assert_eq!(json(&plan)["HostConfig"]["NetworkMode"], json!("host"));
    assert_eq!((plan.networks.len(), json(&plan).get("NetworkingConfig")), (0, None));
    // The mesh of an old cluster.
    let internal = |spec: &mut NetworkSpec| {
        spec.annotations.labels.insert("com.docker.swarm.internal".into(), String::new());
    };
    assert_eq!(attached(vec![attachment("ingress", "overlay", internal)]).unwrap().networks, []);
    let text = "network \"mine\": this node can't attach containers to networks of the driver \"overlay\"";
    let overlay = attached(vec![attachment("mine", "overlay", |_| {})]);
    assert_eq!(overlay, Err(ControllerError::Fatal(text.into())));
    let odd = attached(vec![attachment("../x", "bridge", |_| {})]);
    assert_eq!(odd, Err(ControllerError::Fatal("invalid network name \"../x\"".into())));
}

#[test]
fn networks_of_the_node_are_made_as_the_cluster_has_them() {
    let options = Driver { name: "bridge".into(), options: [("a".to_owned(), "1".to_owned())].into() };
    let mut lan = attachment("lan", "bridge", |spec| {
        spec.annotations.labels.insert("team".into(), "x".into());
        spec.driver_config = Some(options);
        spec.internal = true;
        spec.attachable = true;
        spec.ipv6_enabled = true;
        let config = IpamConfig {
            subnet: "10.9.0.0/16".into(),
            range: "10.9.1.0/24".into(),
            gateway: "10.9.0.1".into(),
            ..Default::default()
        };
        spec.ipam = Some(IpamOptions { configs: vec![config], ..Default::default() });
    });
    lan.aliases = vec!["db".into()];
    lan.driver_attachment_opts.insert("o".into(), "v".into());
    lan.addresses = vec!["10.9.1.7/16".into(), "fd00::7/64".into()];
    let second = attachment("setup-from", "macvlan", |spec| {
        spec.config_from = Some(ConfigFrom::Network("setup".into()));
        spec.internal = true;
    });
    let plan = attached(vec![lan, second]).unwrap();
    let endpoint = json!({
        "Aliases": ["db", "web"],
        "DriverOpts": {"o": "v"},
        "IPAMConfig": {"IPv4Address": "10.9.1.7", "IPv6Address": "fd00::7"},
    });
    // The engine is told of the first; the other one is for a request of its own.
    assert_eq!(json(&plan)["NetworkingConfig"], json!({"EndpointsConfig": {"lan": endpoint}}));
    assert_eq!(json(&plan)["HostConfig"]["NetworkMode"], json!("lan"));
    let requests: Vec<_> =
        plan.networks.iter().map(|network| serde_json::to_value(&network.request).unwrap()).collect();
    assert_eq!(
        requests,
        [
            json!({
                "Name": "lan", "Driver": "bridge", "Internal": true, "Attachable": true, "EnableIPv6": true,
                "Options": {"a": "1"},
                "IPAM": {
                    "Driver": "default",
                    "Config": [{"Subnet": "10.9.0.0/16", "IPRange": "10.9.1.0/24", "Gateway": "10.9.0.1"}],
                },
                "Labels": {
                    "team": "x", "com.docker.swarm.network.id": "id-lan", "com.docker.swarm.node.id": "nid",
                },
            }),
            json!({
                "Name": "setup-from", "Driver": "macvlan", "Internal": true, "ConfigFrom": {"Network": "setup"},
            }),
        ]
    );
}
