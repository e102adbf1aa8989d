//! Fields of a spec, as a container of the real engine has them: seen from inside, or by an inspection.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use bollard::models::MountPoint;
use common::{Given, Lab, inspect, output, within};
use swarm_agent::{ControllerError, Executor, LogOptions, LogSink};
use swarm_api::v1::container_spec::{DnsConfig, Ulimit};
use swarm_api::v1::mount::{TmpfsOptions, Type, VolumeOptions};
use swarm_api::v1::port_config::{Protocol, PublishMode};
use swarm_api::v1::privileges::{
    AppArmorOpts, SeccompOpts, app_armor_opts::AppArmorMode, seccomp_opts::SeccompMode,
};
use swarm_api::v1::{
    ConfigReference, ContainerSpec, Driver, Endpoint, FileTarget, HealthConfig, Mount, PortConfig,
    Privileges, ResourceRequirements, Resources, SecretReference, Task, config_reference, secret_reference,
};

const PROFILE: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]
}"#;

#[tokio::test]
async fn a_container_is_set_up_as_its_spec_says() {
    let lab = Lab::new().await;
    let script = "
        grep '^10.9.8.7' /etc/hosts | tr '\\t' ' '
        cat /etc/resolv.conf | grep -v '^#'
        echo oom $(cat /proc/self/oom_score_adj)
        echo files $(ulimit -n) $(ulimit -Hn)
        echo sysctl $(cat /proc/sys/net/core/somaxconn)
        echo init $(cat /proc/1/comm)
        grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr '\\t' ' '
        mkdir /tmp/x 2>/dev/null || echo no mkdir
    ";
    let spec = ContainerSpec {
        hosts: common::words(&["10.9.8.7 db alias"]),
        dns_config: Some(DnsConfig {
            nameservers: common::words(&["10.9.8.1"]),
            search: common::words(&["lan.test"]),
            options: common::words(&["ndots:3"]),
        }),
        oom_score_adj: 321,
        ulimits: vec![Ulimit { name: "nofile".into(), soft: 111, hard: 222 }],
        sysctls: BTreeMap::from([("net.core.somaxconn".into(), "77".into())]),
        init: Some(true),
        pids_limit: 55,
        tty: true,
        open_stdin: true,
        stop_signal: "SIGUSR2".into(),
        capability_add: common::words(&["NET_ADMIN"]),
        capability_drop: common::words(&["CHOWN"]),
        labels: BTreeMap::from([("team".into(), "x".into())]),
        privileges: Some(Privileges {
            no_new_privileges: true,
            seccomp: Some(SeccompOpts { mode: SeccompMode::Custom.into(), profile: PROFILE.into() }),
            apparmor: Some(AppArmorOpts { mode: AppArmorMode::Disabled.into() }),
            ..Default::default()
        }),
        ..lab.spec(script)
    };
    let mut record = lab.task(spec);
    record.spec.resources = Some(ResourceRequirements {
        limits: Some(Resources { nano_cpus: 500_000_000, memory_bytes: 32 << 20, ..Default::default() }),
        swap_bytes: Some(1 << 20),
        memory_swappiness: Some(7),
        ..Default::default()
    });
    let options = BTreeMap::from([("max-size".into(), "1m".into()), ("max-file".into(), "2".into())]);
    record.log_driver = Some(Box::new(Driver { name: "json-file".into(), options }));
    let task = lab.controller(&record);
    let lines = output(task.as_ref()).await;
    // Docker's capabilities, with NET_ADMIN (bit 12) and without CHOWN (bit 0).
    let expected = [
        "10.9.8.7 db",
        "10.9.8.7 alias",
        "nameserver 10.9.8.1",
        "search lan.test",
        "options ndots:3",
        "oom 321",
        "files 111 222",
        "sysctl 77",
        "init docker-init",
        "CapBnd: 00000000a80435fa",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "no mkdir",
    ];
    let mut search_first = expected;
    search_first.swap(2, 3);
    assert!(lines == expected || lines == search_first, "{lines:#?}");

    let seen = inspect(&lab, task.as_ref()).await;
    let (config, host) = (seen.config.unwrap(), seen.host_config.unwrap());
    assert_eq!((config.tty, config.open_stdin), (Some(true), Some(true)));
    assert_eq!(config.stop_signal.as_deref(), Some("SIGUSR2"));
    let labels = config.labels.unwrap();
    assert_eq!(
        (labels["team"].as_str(), labels["com.docker.swarm.task.id"].as_str()),
        ("x", record.id.as_str())
    );
    assert_eq!((host.nano_cpus, host.memory, host.pids_limit), (Some(500_000_000), Some(32 << 20), Some(55)));
    assert_eq!((host.memory_swap, host.memory_swappiness), (Some(33 << 20), Some(7)));
    let log = host.log_config.unwrap();
    assert_eq!(log.typ.as_deref(), Some("json-file"));
    assert_eq!(log.config.unwrap()["max-file"], "2");
    assert!(host.security_opt.unwrap().contains(&"apparmor=unconfined".to_owned()));
    lab.done().await;
}

fn mount(kind: Type, source: &str, target: &str) -> Mount {
    Mount { r#type: kind.into(), source: source.into(), target: target.into(), ..Default::default() }
}

#[tokio::test]
async fn mounts_of_every_kind_are_there() {
    let lab = Lab::new().await;
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("given"), "from the host").unwrap();
    let source = host.path().to_str().unwrap().to_owned();
    let volume = format!("vol-{}", lab.node_id);
    let memory = |target: &str, options: TmpfsOptions, readonly| Mount {
        tmpfs_options: Some(options),
        readonly,
        ..mount(Type::Tmpfs, "", target)
    };
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    // Eight hundred, by a template.
    let o = "size=2m,nr_inodes={{len .Service.Name}}00";
    let driver = Driver {
        name: "local".into(),
        options: [pair("type", "tmpfs"), pair("device", "tmpfs"), pair("o", o)].into(),
    };
    let options = VolumeOptions {
        labels: [pair("of", "{{.Task.Slot}}")].into(),
        driver_config: Some(driver),
        ..Default::default()
    };
    let bytes = |size_bytes, mode, options: &str| TmpfsOptions { size_bytes, mode, options: options.into() };
    let script = "
        cat /bind/given; echo; echo written > /bind/back
        touch /ro/x 2>/dev/null || echo ro bind
        df -k /sized /free /volume | tail -n +2 | awk '{print $6, $2}'
        stat -c '%n %a %u' /sized /free
        grep -E ' /(sized|free|rom) ' /proc/mounts | while read a b c d rest; do
            for o in noexec ro; do case ,$d, in *,$o,*) echo $b $o;; esac; done
        done | sort
        grep -c ' /anonymous ' /proc/mounts
        touch /x 2>/dev/null || echo ro root
    ";
    let spec = ContainerSpec {
        read_only: true,
        mounts: vec![
            mount(Type::Bind, &source, "/bind"),
            Mount { readonly: true, ..mount(Type::Bind, &source, "/ro") },
            memory("/sized", bytes(1 << 20, 0o750, ""), false),
            memory("/free", bytes(3 << 20, 0o711, r#"[["exec"],["uid","1000"]]"#), false),
            memory("/rom", bytes(0, 0, "noexec"), true),
            Mount { volume_options: Some(options), ..mount(Type::Volume, &volume, "/volume") },
            mount(Type::Volume, "", "/anonymous"),
        ],
        ..lab.spec(script)
    };
    let record = lab.task(spec);
    let task = lab.controller(&record);
    assert_eq!(
        output(task.as_ref()).await,
        [
            "from the host",
            "ro bind",
            "/sized 1024",
            "/free 3072",
            "/volume 2048",
            "/sized 750 0",
            "/free 711 1000",
            "/rom noexec",
            "/rom ro",
            "/sized noexec",
            "1",
            "ro root",
        ]
    );
    assert_eq!(std::fs::read_to_string(host.path().join("back")).unwrap(), "written\n");
    let seen = lab.docker.inspect_volume(&volume).await.unwrap();
    assert_eq!(seen.labels["of"], "1");
    assert_eq!(seen.options["o"], "size=2m,nr_inodes=800");
    let mounts = inspect(&lab, task.as_ref()).await.mounts.unwrap();
    let anonymous = |mount: &&MountPoint| mount.destination.as_deref() == Some("/anonymous");
    let name = mounts.iter().find(anonymous).unwrap().name.clone().unwrap();
    within(task.remove()).await.unwrap();
    assert!(lab.docker.inspect_volume(&name).await.is_err(), "an anonymous volume goes with its container");
    lab.docker.remove_volume(&volume, None::<bollard::query_parameters::RemoveVolumeOptions>).await.unwrap();

    // What is wrong with a mount is told before anything is made.
    let nowhere =
        ContainerSpec { mounts: vec![mount(Type::Bind, "/nowhere/at/all", "/t")], ..lab.spec("true") };
    let error = within(lab.controller(&lab.task(nowhere)).prepare()).await.unwrap_err();
    assert!(error.to_string().contains("source path does not exist: /nowhere/at/all"), "{error}");
    lab.done().await;
}

#[tokio::test]
async fn what_this_engine_is_too_old_for_is_refused_by_name() {
    let lab = Lab::new().await;
    let version = lab.docker.version().await.unwrap();
    let api: (u32, u32) = {
        let text = version.api_version.unwrap();
        let (major, minor) = text.split_once('.').unwrap();
        (major.parse().unwrap(), minor.parse().unwrap())
    };
    let start_interval = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let healthcheck = Some(HealthConfig { start_interval, ..Default::default() });
    let record: swarm_api::Shared<Task> = lab.task(ContainerSpec { healthcheck, ..lab.spec("true") }).into();
    let made = lab.executor.controller(&record, std::sync::Arc::new(Given::default())).map(drop);
    if api >= (1, 44) {
        assert_eq!(made, Ok(()));
    } else {
        let Err(ControllerError::Fatal(text)) = made else { panic!("it was taken") };
        assert!(
            text.starts_with(
                "the start interval of a health check needs Docker Engine 25.0 or later (API 1.44), "
            ) && text.contains(&version.version.unwrap()),
            "{text}"
        );
    }
    lab.done().await;
}

fn file(name: &str, (uid, gid): (&str, &str), mode: u32) -> FileTarget {
    FileTarget { name: name.into(), uid: uid.into(), gid: gid.into(), mode }
}

fn secret(id: &str, file: FileTarget) -> SecretReference {
    SecretReference {
        secret_id: id.into(),
        secret_name: id.into(),
        target: Some(secret_reference::Target::File(file)),
    }
}

fn config(id: &str, file: FileTarget) -> ConfigReference {
    ConfigReference {
        config_id: id.into(),
        config_name: id.into(),
        target: Some(config_reference::Target::File(file)),
    }
}

#[tokio::test]
async fn secrets_and_configs_are_files_in_memory_for_as_long_as_the_task_lives() {
    let lab = Lab::new().await;
    // Told apart from everything else on this host.
    let password = format!("pw-{}", lab.node_id);
    let given = Given::default()
        .secret("s", &password, "")
        .secret("t", "{{.Service.Name}} {{env \"WHO\"}} {{secret \"pw\"}}", "golang")
        .config("c", "{{.Task.Slot}}: {{config \"/etc/plain\"}} {{secret \"deep/pw\"}}", "golang")
        .config("p", "{{not expanded}}", "");
    let script = "
        trap 'exit 0' TERM
        for f in /run/secrets/pw /run/secrets/deep/pw /run/secrets/t /opt/pw /app.conf /etc/plain; do
            stat -c '%n %a %u:%g' $f; cat $f; echo
        done
        (echo x > /run/secrets/pw) 2>/dev/null || echo read-only
        (chmod 777 /run/secrets/pw) 2>/dev/null || echo unchangeable
        grep ' /run/secrets/pw ' /proc/mounts | cut -d' ' -f1,3
        echo done; while :; do sleep 100 & wait $!; done
    ";
    let spec = ContainerSpec {
        env: common::words(&["WHO=slot {{.Task.Slot}}"]),
        secrets: vec![
            secret("s", file("pw", ("", ""), 0o444)),
            secret("s", file("deep/pw", ("1000", "2000"), 0o440)),
            secret("t", file("t", ("0", "0"), 0o400)),
            secret("s", file("/opt/pw", ("1000", "0"), 0o777)),
        ],
        configs: vec![
            config("c", file("app.conf", ("1000", "1000"), 0o644)),
            config("p", file("/etc/plain", ("0", "0"), 0o444)),
        ],
        read_only: true,
        ..lab.spec(script)
    };
    let record = lab.task(spec);
    let shared: swarm_api::Shared<Task> = record.clone().into();
    let task = lab.executor.controller(&shared, std::sync::Arc::new(given.clone())).unwrap();
    within(task.prepare()).await.unwrap();
    let seen = inspect(&lab, task.as_ref()).await;
    let mounts = seen.host_config.unwrap().mounts.unwrap();
    let source = mounts[0].source.clone().unwrap();
    let directory = std::path::Path::new(&source).parent().unwrap().to_owned();
    assert_eq!(std::fs::read_to_string(&source).unwrap(), password);
    // A restart of the host takes the files away: a daemon that finds the container writes them again.
    std::fs::remove_dir_all(&directory).unwrap();
    let again = lab.restarted().await;
    let task = again.controller(&shared, std::sync::Arc::new(given)).unwrap();
    assert_eq!(within(task.prepare()).await, Err(ControllerError::AlreadyPrepared));
    within(task.start()).await.unwrap();

    let (sink, mut lines) = LogSink::new();
    let follow = LogOptions { follow: true, ..Default::default() };
    let mut told = Vec::new();
    let read = async {
        while let Some(lines) = lines.next().await {
            for line in lines {
                let line = String::from_utf8(line.data.to_vec()).unwrap();
                if line == "done" {
                    return;
                }
                told.push(line);
            }
        }
    };
    within(async {
        tokio::select! {
            result = task.logs(follow, sink) => panic!("the log ended: {result:?}"),
            () = read => {}
        }
    })
    .await;
    let templated = format!("exectest slot 1 {password}");
    let conf = format!("1: {{{{not expanded}}}} {password}");
    assert_eq!(
        told,
        [
            "/run/secrets/pw 444 0:0",
            &password,
            "/run/secrets/deep/pw 440 1000:2000",
            &password,
            "/run/secrets/t 400 0:0",
            &templated,
            "/opt/pw 777 1000:0",
            &password,
            "/app.conf 644 1000:1000",
            &conf,
            "/etc/plain 444 0:0",
            "{{not expanded}}",
            "read-only",
            "unchangeable",
            "tmpfs tmpfs",
        ]
    );

    // Nothing of it is in what the engine keeps of the container.
    let kept = seen.graph_driver.unwrap().data;
    let upper = kept.get("UpperDir").expect("these tests need the overlay2 driver");
    let found = std::process::Command::new("grep").args(["-rl", "--", &password, upper]).output().unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap(), "");

    within(task.shutdown()).await.unwrap();
    assert!(!directory.exists(), "a task that has ended has no files");
    within(task.remove()).await.unwrap();
    again.close().await;
    lab.done().await;
}

#[tokio::test]
async fn a_secret_that_has_not_come_is_waited_for_and_one_that_is_wrong_is_not() {
    let lab = Lab::new().await;
    let spec = ContainerSpec { secrets: vec![secret("s", file("pw", ("", ""), 0))], ..lab.spec("true") };
    let record: swarm_api::Shared<Task> = lab.task(spec).into();
    let with = |given: Given| lab.executor.controller(&record, std::sync::Arc::new(given)).unwrap();
    let missing = within(with(Given::default()).prepare()).await;
    let text = "dependency not ready: secret s not found";
    assert_eq!(missing, Err(ControllerError::Temporary(text.into())));
    let wrong = within(with(Given::default().secret("s", "{{.Nope}}", "golang")).prepare()).await;
    let text = "failed to expand templated secret s: there is no field Nope";
    assert_eq!(wrong, Err(ControllerError::Fatal(text.into())));
    assert_eq!(lab.containers().await, 0);
    lab.done().await;
}

#[tokio::test]
async fn a_sweep_removes_files_of_tasks_that_nobody_knows() {
    let lab = Lab::new().await;
    let given = Given::default().secret("s", "x", "");
    let spec =
        ContainerSpec { secrets: vec![secret("s", file("pw", ("", ""), 0))], ..lab.spec("sleep 1000") };
    let mut sources = Vec::new();
    let records: Vec<swarm_api::Shared<Task>> = (0..2).map(|_| lab.task(spec.clone()).into()).collect();
    for record in &records {
        let task = lab.executor.controller(record, std::sync::Arc::new(given.clone())).unwrap();
        within(task.prepare()).await.unwrap();
        let mounts = inspect(&lab, task.as_ref()).await.host_config.unwrap().mounts.unwrap();
        sources.push(mounts[0].source.clone().unwrap());
    }
    let restarted = lab.restarted().await;
    restarted.sweep(&[records[0].id.to_string()]).await.unwrap();
    let there: Vec<bool> = sources.iter().map(|source| std::fs::exists(source).unwrap()).collect();
    assert_eq!(there, [true, false]);
    restarted.close().await;
    lab.done().await;
    assert!(!std::fs::exists(&sources[0]).unwrap());
}

#[tokio::test]
async fn ports_are_reported_by_name_and_once() {
    let lab = Lab::new().await;
    let mut record = lab.task(lab.spec("sleep 1000"));
    let port = |name: &str, target_port, protocol: Protocol| PortConfig {
        name: name.into(),
        target_port,
        protocol: protocol.into(),
        publish_mode: PublishMode::Host.into(),
        ..Default::default()
    };
    let ports = vec![port("web", 80, Protocol::Tcp), port("dns", 53, Protocol::Udp)];
    record.endpoint = Some(Endpoint { ports, ..Default::default() }.into());
    let task = lab.controller(&record);
    within(task.prepare()).await.unwrap();
    within(task.start()).await.unwrap();
    let ports = task.port_status().await.unwrap().ports;
    let mut numbers: Vec<_> = ports.iter().map(|p| (p.target_port, p.protocol, p.published_port)).collect();
    numbers.dedup();
    assert_eq!(numbers.len(), ports.len(), "{ports:?}");
    let mut told: Vec<_> =
        ports.iter().map(|p| (p.name.as_str(), p.target_port, p.protocol(), p.published_port > 0)).collect();
    // An engine counts free ports of IPv4 and IPv6 by themselves: both have the same number only as long as nothing else on
    // the host has taken one of them.
    told.dedup();
    assert_eq!(told, [("dns", 53, Protocol::Udp, true), ("web", 80, Protocol::Tcp, true)]);
    lab.done().await;
}

#[tokio::test]
async fn devices_of_the_node_are_there_under_the_names_that_were_asked_for() {
    let lab = Lab::new().await;
    let with = |devices: &str, script: &str| {
        let mut spec = lab.spec(script);
        spec.labels.insert("swarmd.devices".into(), devices.into());
        lab.controller(&lab.task(spec))
    };
    let script = "
        stat -c '%F %t:%T' /dev/nothing
        echo lost > /dev/nothing && echo written
        head -c 0 /dev/other && echo opened
        echo more > /dev/other || echo read only
    ";
    let task = with("/dev/null:/dev/nothing:rwm,/dev/fuse:/dev/other:r", script);
    let expected = ["character special file 1:3", "written", "opened", "read only"];
    let told = output(&*task).await;
    let told: Vec<&str> =
        told.iter().map(String::as_str).filter(|line| !line.contains("can't create")).collect();
    assert_eq!(told, expected);
    let absent = with("/dev/no-such-device:/dev/x:rwm", "true");
    let result = match within(absent.prepare()).await {
        Ok(()) => within(absent.start()).await,
        error => error,
    };
    let error = result.unwrap_err();
    assert!(matches!(error, swarm_agent::ControllerError::Fatal(_)), "{error:?}");
    assert!(error.to_string().contains("/dev/no-such-device"), "{error}");
    lab.done().await;
}
