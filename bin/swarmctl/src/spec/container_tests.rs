//! Flags that only containers have, and files of native processes.

use swarm_api::v1::container_spec::Isolation;
use swarm_api::v1::mount::Type;
use swarm_api::v1::privileges::{app_armor_opts::AppArmorMode, credential_spec, seccomp_opts::SeccompMode};
use swarm_api::v1::{HealthConfig, ResourceType, config_reference, secret_reference};

use super::tests::{WEB, container, create, process, refused, update, web, wrong};

#[test]
fn containers_are_set_up_by_flags() {
    let spec = web(&[
        "--mount",
        "type=bind,source=/s,target=/t,readonly",
        "--mount",
        "type=tmpfs,target=/m,tmpfs-size=1m",
        "--dns",
        "1.1.1.1,9.9.9.9",
        "--dns-search",
        "lan",
        "--dns-option",
        "ndots:2",
        "--host",
        "db:10.0.0.1,six:fd00::1,me:host-gateway",
        "--sysctl",
        "net.core.somaxconn=99",
        "--cap-add",
        "NET_ADMIN",
        "--cap-drop",
        "CHOWN,KILL",
        "--isolation",
        "hyperv",
        "--memory-limit",
        "64m",
        "--memory-swap",
        "1m",
        "--memory-swappiness",
        "10",
    ]);
    let made = container(&spec);
    let kinds: Vec<Type> = made.mounts.iter().map(|mount| mount.r#type()).collect();
    assert_eq!(kinds, [Type::Bind, Type::Tmpfs]);
    let dns = made.dns_config.as_ref().unwrap();
    assert_eq!(
        (dns.nameservers.join(" "), dns.search.join(" "), dns.options.join(" ")),
        ("1.1.1.1 9.9.9.9".into(), "lan".into(), "ndots:2".into())
    );
    assert_eq!(made.hosts, ["10.0.0.1 db", "fd00::1 six", "host-gateway me"]);
    assert_eq!(made.sysctls["net.core.somaxconn"], "99");
    assert_eq!(
        (made.capability_add.join(" "), made.capability_drop.join(" ")),
        ("NET_ADMIN".into(), "CHOWN KILL".into())
    );
    assert_eq!(made.isolation(), Isolation::Hyperv);
    let resources = spec.task.resources.as_ref().unwrap();
    assert_eq!((resources.swap_bytes, resources.memory_swappiness), (Some(1 << 20), Some(10)));

    let spec = update(spec, &["--dns=", "--dns-search=", "--dns-option=", "--memory-swap=-1", "--cap-drop="])
        .unwrap();
    assert_eq!((&container(&spec).dns_config, container(&spec).capability_drop.len()), (&None, 0));
    assert_eq!(spec.task.resources.as_ref().unwrap().swap_bytes, Some(-1));
}

#[test]
fn swap_needs_a_memory_limit_and_goes_with_it() {
    let text = "--memory-swap is the swap beside a memory limit, and there is none";
    wrong(create(&[WEB, &["--memory-swap", "1m"]].concat()), text);
    wrong(create(&[WEB, &["--memory-swap=-1", "--cpu-limit", "1", "--memory-limit", "0"]].concat()), text);
    wrong(update(web(&["--memory-swappiness", "0"]), &["--memory-swap", "1m"]), text);

    let resources = |spec: &swarm_api::v1::ServiceSpec| spec.task.resources.clone().unwrap();
    let spec = web(&["--memory-limit", "64m", "--memory-swap", "1m", "--memory-swappiness", "5"]);
    let spec = update(spec, &["--memory-limit", "32m"]).unwrap();
    assert_eq!(resources(&spec).swap_bytes, Some(1 << 20));
    let spec = update(spec, &["--memory-limit", "0"]).unwrap();
    assert_eq!((resources(&spec).swap_bytes, resources(&spec).memory_swappiness), (None, Some(5)));

    // What other clients have written stays as it is.
    let mut spec = web(&[]);
    spec.task.resources.get_or_insert_default().swap_bytes = Some(1 << 20);
    let spec = update(spec, &["--cpu-limit", "1", "--memory-swappiness", "5"]).unwrap();
    assert_eq!(resources(&spec).swap_bytes, Some(1 << 20));
}

#[test]
fn a_mount_goes_before_another_takes_its_place() {
    let spec = web(&["--bind", "/a:/t", "--volume", "/v"]);
    let spec = update(spec, &["--rm-mount", "/t,/none", "--mount", "source=data,target=/t"]).unwrap();
    let mounts: Vec<_> =
        container(&spec).mounts.iter().map(|mount| (mount.r#type(), mount.target.as_str())).collect();
    assert_eq!(mounts, [(Type::Volume, "/v"), (Type::Volume, "/t")]);
}

#[test]
fn capabilities_move_between_what_is_added_and_what_is_dropped() {
    let lists =
        |spec: &_| (container(spec).capability_add.join(" "), container(spec).capability_drop.join(" "));
    let spec = web(&["--cap-add", "NET_ADMIN,SYS_TIME", "--cap-drop", "CHOWN"]);
    let spec = update(spec, &["--cap-add", "CAP_CHOWN,net_admin", "--cap-drop=SYS_TIME,KILL"]).unwrap();
    assert_eq!(lists(&spec), ("NET_ADMIN CAP_CHOWN".into(), "SYS_TIME KILL".into()));
    let spec = update(spec, &["--add-capability", "kill", "--rm-capability", "CHOWN"]).unwrap();
    assert_eq!(lists(&spec), ("NET_ADMIN kill".into(), "SYS_TIME CHOWN".into()));
    let spec = update(spec, &["--cap-add=", "--cap-drop", "NET_ADMIN"]).unwrap();
    assert_eq!(lists(&spec), ("".into(), "SYS_TIME CHOWN NET_ADMIN".into()));
    assert_eq!(lists(&web(&["--cap-add", "KILL", "--cap-drop", "KILL"])), ("KILL".into(), "".into()));
}

#[test]
fn credentials_stay_with_their_registry() {
    use super::lost_credentials;
    let with_credentials = |image: &str| {
        let mut spec = web(&["--image", image]);
        let Some(swarm_api::v1::task_spec::Runtime::Container(made)) = &mut spec.task.runtime else {
            panic!("a container")
        };
        made.pull_options.get_or_insert_default().registry_auth = "e30=".into();
        spec
    };
    for (before, after, expected) in [
        ("quay.io/a", "quay.io/b:2", None),
        ("quay.io/a", "docker.io/a", Some("quay.io")),
        ("redis", "docker.io/library/redis:7", None),
        ("redis", "localhost:5000/redis", Some("docker.io")),
    ] {
        let spec = with_credentials(before);
        let changed = update(spec.clone(), &["--image", after]).unwrap();
        assert_eq!(lost_credentials(&spec, &changed), expected, "{before} {after}");
        assert_eq!(container(&changed).pull_options.is_none(), expected.is_some(), "{before} {after}");
    }
    let spec = with_credentials("quay.io/a");
    assert!(container(&update(spec, &["--replicas", "2"]).unwrap()).pull_options.is_some());
}

#[test]
fn a_mount_takes_the_place_of_the_one_with_its_target() {
    let mounts = |spec: &_| -> Vec<(String, String)> {
        container(spec).mounts.iter().map(|mount| (mount.source.clone(), mount.target.clone())).collect()
    };
    let pair = |source: &str, target: &str| (source.to_owned(), target.to_owned());
    let spec = web(&["--mount", "source=old,target=/t", "--mount", "source=other,target=/o"]);
    let spec = update(spec, &["--mount-add", "source=new,target=/t,readonly"]).unwrap();
    assert_eq!(mounts(&spec), [pair("new", "/t"), pair("other", "/o")]);
    assert!(container(&spec).mounts[0].readonly);
    let same = update(spec.clone(), &["--mount-add", "source=new,target=/t,readonly"]).unwrap();
    assert_eq!(same, spec);
    // What one command asks for twice is the manager's to refuse.
    let twice = update(spec, &["--mount", "source=a,target=/t", "--mount", "source=b,target=/t"]).unwrap();
    assert_eq!(mounts(&twice), [pair("a", "/t"), pair("other", "/o"), pair("b", "/t")]);
    let both = web(&["--bind", "/a:/t", "--mount", "source=b,target=/t"]);
    assert_eq!(mounts(&both), [pair("/a", "/t"), pair("b", "/t")]);
}

#[test]
fn health_checks_are_given_changed_and_taken_away() {
    let check = |spec: &_| container(spec).healthcheck.clone();
    let spec =
        web(&["--health-cmd", "wget -q localhost", "--health-interval", "5s", "--health-retries", "2"]);
    let given = check(&spec).unwrap();
    assert_eq!(given.test, ["CMD-SHELL", "wget -q localhost"]);
    assert_eq!((given.interval.unwrap().seconds, given.retries, given.timeout), (5, 2, None));
    let more = ["--health-timeout", "1s", "--health-start-period=2s", "--health-start-interval=3s"];
    let spec = update(spec, &more).unwrap();
    let changed = check(&spec).unwrap();
    let seconds = |time: Option<prost_types::Duration>| time.unwrap().seconds;
    assert_eq!(
        (
            seconds(changed.interval),
            seconds(changed.timeout),
            seconds(changed.start_period),
            seconds(changed.start_interval)
        ),
        (5, 1, 2, 3)
    );
    let spec = update(spec, &["--no-healthcheck"]).unwrap();
    assert_eq!(check(&spec), Some(HealthConfig { test: vec!["NONE".into()], ..Default::default() }));
    wrong(update(spec.clone(), &["--health-retries", "3"]), "--health-cmd gives it one");
    assert_eq!(
        check(&update(spec.clone(), &["--health-cmd", "x"]).unwrap()).unwrap().test,
        ["CMD-SHELL", "x"]
    );
    let spec = update(spec, &["--no-healthcheck=false"]).unwrap();
    assert_eq!(check(&spec), None);
    refused(&["--no-healthcheck", "--health-cmd", "x"], "cannot be used with");
    refused(&["--health-interval", "5"], "expected numbers with a unit");
}

#[test]
fn privileges_are_given_and_taken_away() {
    let profile = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(profile.path(), "{\"defaultAction\":\"SCMP_ACT_ALLOW\"}").unwrap();
    let path = profile.path().to_str().unwrap();
    let spec = web(&[
        "--no-new-privileges",
        "--apparmor=disabled",
        "--seccomp",
        path,
        "--selinux",
        "level=s0:c1,type=t",
        "--credential-spec",
        "config://settings",
    ]);
    let made = container(&spec);
    let given = made.privileges.clone().unwrap();
    assert!(given.no_new_privileges);
    assert_eq!(given.apparmor.unwrap().mode(), AppArmorMode::Disabled);
    let seccomp = given.seccomp.unwrap();
    assert_eq!((seccomp.mode(), seccomp.profile.starts_with(b"{")), (SeccompMode::Custom, true));
    let context = given.selinux_context.unwrap();
    assert_eq!((context.level.as_str(), context.r#type.as_str()), ("s0:c1", "t"));
    let source = given.credential_spec.unwrap().source;
    assert_eq!(source, Some(credential_spec::Source::Config("cid".into())));
    assert!(matches!(&made.configs[0].target, Some(config_reference::Target::Runtime(_))));

    let spec = update(spec, &["--credential-spec", "file://f.json", "--seccomp=unconfined"]).unwrap();
    assert!(container(&spec).configs.is_empty(), "its reference goes with it");
    let given = container(&spec).privileges.clone().unwrap();
    assert_eq!(given.credential_spec.unwrap().source, Some(credential_spec::Source::File("f.json".into())));
    assert_eq!(given.seccomp.unwrap().mode(), SeccompMode::Unconfined);
    let none = [
        "--credential-spec=",
        "--seccomp=default",
        "--selinux=",
        "--apparmor=default",
        "--no-new-privileges=false",
    ];
    assert_eq!(container(&update(spec, &none).unwrap()).privileges, None);
    assert_eq!(update(web(&[]), &none).unwrap(), web(&[]));
}

#[test]
fn mistaken_flags_of_containers_are_told() {
    for (words, text) in [
        (&["--mount", "type=disk,target=/t"][..], "mount \"type=disk,target=/t\""),
        (&["--host", "db"], "host \"db\" is no name:address"),
        (&["--host", "db:nowhere"], "host \"db:nowhere\" is no name:address"),
        (&["--sysctl", "a"], "no key=value"),
        (&["--selinux", "x=y"], "SELinux label \"x=y\" is not one of"),
        (&["--credential-spec", "raw://x"], "credential spec \"raw://x\" is not one of"),
        (&["--secret", "source=s,mode=abc"], "mode \"abc\""),
    ] {
        wrong(create(&[WEB, words].concat()), text);
    }
    let missing = create(&[WEB, &["--seccomp", "/nowhere/x.json"]].concat()).unwrap_err();
    assert!(missing.to_string().starts_with("seccomp profile \"/nowhere/x.json\": "), "{missing}");
    refused(&["--memory-swappiness", "101"], "from 0 to 100, or -1");
    refused(&["--memory-swap", "-2"], "no amount of memory");
    refused(&["--isolation", "x"], "default, process, hyperv");
}

#[test]
fn files_say_whose_they_are() {
    let spec = web(&["--secret", "source=password,target=/etc/pw,uid=5,mode=0400", "--config", "settings"]);
    let Some(secret_reference::Target::File(file)) = &container(&spec).secrets[0].target else {
        panic!("a file")
    };
    assert_eq!(
        (file.name.as_str(), file.uid.as_str(), file.gid.as_str(), file.mode),
        ("/etc/pw", "5", "0", 0o400)
    );
}

#[test]
fn processes_have_files_too_and_everybody_can_see_which() {
    let base = ["--name", "n", "--runtime", "process", "--command", "x"];
    let spec =
        create(&[&base[..], &["--secret", "password:pw", "--config", "source=settings,mode=444"]].concat());
    let spec = spec.unwrap();
    let made = process(&spec);
    let Some(secret_reference::Target::File(file)) = &made.secrets[0].target else { panic!("a file") };
    assert_eq!((file.name.as_str(), file.uid.as_str(), file.mode), ("pw", "", 0o400));
    let Some(config_reference::Target::File(file)) = &made.configs[0].target else { panic!("a file") };
    assert_eq!((file.name.as_str(), file.mode), ("settings", 0o444));
    let listed = |spec: &swarm_api::v1::ServiceSpec| -> Vec<(String, ResourceType)> {
        let references = spec.task.resource_references.iter();
        references.map(|r| (r.resource_id.clone(), r.resource_type())).collect()
    };
    assert_eq!(listed(&spec), [("sid".into(), ResourceType::Secret), ("cid".into(), ResourceType::Config)]);
    let spec = update(spec, &["--rm-secret", "password"]).unwrap();
    assert_eq!(listed(&spec), [("cid".into(), ResourceType::Config)]);
}

#[test]
fn devices_and_privileges_are_given_changed_and_taken_away() {
    use swarm_api::extensions::{ContainerExtensions, Feature};
    let given = |spec: &_| {
        let read = ContainerExtensions::read(&container(spec).labels).unwrap();
        (read.devices.iter().map(ToString::to_string).collect::<Vec<_>>(), read.privileged)
    };
    let mut spec =
        web(&["--device", "/dev/fuse,/dev/null:/dev/zero:r", "--privileged", "--container-label", "a=1"]);
    let fuse = "/dev/fuse:/dev/fuse:rwm".to_owned();
    assert_eq!(given(&spec), (vec![fuse.clone(), "/dev/null:/dev/zero:r".into()], true));
    // As the manager would have it.
    let constraints = [Feature::Devices, Feature::Privileged].map(|feature| feature.constraint().to_owned());
    spec.task.placement.get_or_insert_default().constraints = constraints.to_vec();
    // Labels of containers are others.
    let spec = update(spec, &["--container-label", "b=2"]).unwrap();
    assert!(given(&spec).1 && container(&spec).labels["b"] == "2");
    assert!(!container(&spec).labels.contains_key("a"));
    let spec = update(spec, &["--rm-device", "/dev/zero", "--device-add", "/dev/null:r"]).unwrap();
    assert_eq!(given(&spec).0, [fuse, "/dev/null:/dev/null:r".into()]);
    let spec = update(spec, &["--device-rm", "/dev/null,/dev/fuse,/dev/none"]).unwrap();
    assert_eq!(given(&spec), (vec![], true));
    let constraints =
        |spec: &swarm_api::v1::ServiceSpec| spec.task.placement.as_ref().unwrap().constraints.clone();
    assert_eq!(constraints(&spec), [Feature::Privileged.constraint()]);
    let spec = update(spec, &["--privileged=false"]).unwrap();
    assert_eq!(given(&spec), (vec![], false));
    assert_eq!((constraints(&spec).len(), container(&spec).labels.len()), (0, 1));

    wrong(create(&[WEB, &["--device", "/dev/a:/x,/dev/b:/x"]].concat()), "two devices would be \"/x\"");
    wrong(create(&[WEB, &["--device", "fuse"]].concat()), "the path on the host must be absolute");
}

#[test]
fn gpus_are_reserved_and_their_kind_is_noted() {
    use swarm_placement::generic::{ALL, discrete, named};
    let reserved = |spec: &swarm_api::v1::ServiceSpec| {
        spec.task.resources.as_ref().unwrap().reservations.as_ref().unwrap().generic.clone()
    };
    let label = |spec: &_| container(spec).labels.get("swarmd.gpus").cloned();
    let spec = web(&["--gpus", "2", "--generic-resources", "fpga=1"]);
    assert_eq!(reserved(&spec), [discrete("fpga", 1), discrete("gpu", 2)]);
    assert_eq!(label(&spec).as_deref(), Some("gpu"));
    // Other generic resources are replaced without them.
    let spec = update(spec, &["--generic-resources", "tpu=3"]).unwrap();
    assert_eq!(reserved(&spec), [discrete("tpu", 3), discrete("gpu", 2)]);
    let spec = update(spec, &["--gpus", "device=GPU-1,kind=a100"]).unwrap();
    assert_eq!(reserved(&spec), [discrete("tpu", 3), named("a100", "GPU-1")]);
    assert_eq!(label(&spec).as_deref(), Some("a100"));
    let spec = update(spec, &["--gpus", "all"]).unwrap();
    assert_eq!(reserved(&spec), [discrete("tpu", 3), discrete("gpu", ALL)]);
    let spec = update(spec, &["--gpus", "none"]).unwrap();
    assert_eq!((reserved(&spec), label(&spec)), (vec![discrete("tpu", 3)], None));
    wrong(create(&[WEB, &["--gpus", "some"]].concat()), "--gpus: \"some\" is no number of GPUs");
}
