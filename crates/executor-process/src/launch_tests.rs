use std::collections::BTreeMap;
use std::path::PathBuf;

use swarm_api::swarmd::process_spec::Rlimit as SpecLimit;
use swarm_api::v1::{Annotations, GenericRuntimeSpec, ResourceRequirements, Resources, TaskSpec};

use super::*;
use crate::cgroup::Directory;

fn task(spec: &ProcessSpec) -> Task {
    let payload = prost_types::Any { type_url: ProcessSpec::type_url(), value: spec.encode_to_vec() };
    let runtime = GenericRuntimeSpec { kind: "process".into(), payload: Some(payload) };
    Task {
        id: "tid".into(),
        service_id: "sid".into(),
        node_id: "nid".into(),
        slot: 2,
        service_annotations: Annotations { name: "web".into(), ..Default::default() }.into(),
        spec: TaskSpec { runtime: Some(task_spec::Runtime::Generic(runtime)), ..Default::default() }.into(),
        ..Default::default()
    }
}

fn command() -> ProcessSpec {
    ProcessSpec { command: vec!["prog".into(), "a".into()], ..Default::default() }
}

fn made(spec: &ProcessSpec) -> Launch {
    launch(&task(spec), None, None, Ok(Path::new("/mem/t"))).expect("instructions")
}

#[track_caller]
fn check_refused(spec: &ProcessSpec, part: &str) {
    match launch(&task(spec), None, None, Ok(Path::new("/mem/t"))) {
        Err(ControllerError::Fatal(text)) => assert!(text.contains(part), "{text}"),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn defaults_and_plain_fields() {
    let spec = ProcessSpec { args: vec!["{{.Task.ID}}".into()], ..command() };
    let launch = made(&spec);
    assert_eq!(launch.argv, ["prog", "a", "{{.Task.ID}}"], "arguments are not expanded");
    assert_eq!((launch.stop_signal, launch.stop_grace_ms), (15, 10_000));
    assert_eq!((launch.log_max_size, launch.log_max_files), (10 << 20, 3));
    assert_eq!((launch.dir, launch.identity, launch.group), (None, None, None));
    let spec = ProcessSpec {
        stop_signal: "usr1".into(),
        stop_grace_period: Some(prost_types::Duration { seconds: 0, nanos: 5_000_000 }),
        log_max_size: 1,
        log_max_files: 1_000_000,
        dir: "/tmp".into(),
        ..command()
    };
    let launch = made(&spec);
    assert_eq!((launch.stop_signal, launch.stop_grace_ms), (10, 5));
    assert_eq!(
        (launch.log_max_size, launch.log_max_files, launch.dir.as_deref()),
        (64 << 10, 100, Some("/tmp"))
    );
}

#[test]
fn environment_has_templates_and_an_identity_that_nobody_forges() {
    let env = ["A={{.Service.Name}}.{{.Task.Slot}}", "PATH=/p", "SWARMD_TASK_ID=x", "B=1", "B"];
    let spec = ProcessSpec { env: env.map(str::to_owned).to_vec(), ..command() };
    let env: BTreeMap<_, _> = made(&spec).env.into_iter().collect();
    let expected = [
        ("A", "web.2"),
        ("PATH", "/p"),
        ("SWARMD_TASK_ID", "tid"),
        ("SWARMD_TASK_NAME", "web.2.tid"),
        ("SWARMD_TASK_SLOT", "2"),
        ("SWARMD_SERVICE_ID", "sid"),
        ("SWARMD_SERVICE_NAME", "web"),
        ("SWARMD_NODE_ID", "nid"),
    ];
    assert_eq!(env, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert!(made(&command()).env.contains(&("PATH".into(), DEFAULT_PATH.into())));
}

#[test]
fn users_and_groups_are_looked_up() {
    let root = made(&ProcessSpec { user: "root".into(), ..command() });
    let identity = root.identity.unwrap();
    assert_eq!((identity.uid, identity.gid), (0, 0));
    assert!(root.env.contains(&("USER".into(), "root".into())));
    let numbers = made(&ProcessSpec { user: "4711:4712".into(), groups: vec!["4713".into()], ..command() });
    assert_eq!(numbers.identity, Some(Identity { uid: 4711, gid: 4712, groups: vec![4713] }));
    check_refused(&ProcessSpec { user: "nobody-here".into(), ..command() }, "no user \"nobody-here\"");
    check_refused(&ProcessSpec { user: "0:none-here".into(), ..command() }, "no group \"none-here\"");
}

#[test]
fn limits_go_to_the_control_group_or_to_setrlimit() {
    let mut task = task(&command());
    let limits = Resources { memory_bytes: 1 << 20, ..Default::default() };
    task.spec.resources = Some(ResourceRequirements { limits: Some(limits), ..Default::default() });
    let without = launch(&task, None, None, Ok(Path::new("/mem/t"))).unwrap();
    assert_eq!(without.rlimits, [Rlimit { name: "as".into(), soft: 1 << 20, hard: 1 << 20 }]);
    let group = TaskGroup {
        directories: vec![Directory {
            path: PathBuf::from("/g"),
            settings: vec![("memory.max".into(), "1048576".into())],
        }],
    };
    assert!(group.limits_memory());
    let limit = SpecLimit { name: "nofile".into(), soft: 1, hard: 2 };
    let spec = ProcessSpec { rlimits: vec![limit.clone()], ..command() };
    assert_eq!(made(&spec).rlimits, [Rlimit { name: "nofile".into(), soft: 1, hard: 2 }]);
    let with = |limit| ProcessSpec { rlimits: vec![limit], ..command() };
    check_refused(&with(SpecLimit { soft: 3, ..limit.clone() }), "soft 3 above hard 2");
    check_refused(&with(SpecLimit { name: "none".into(), ..limit }), "unknown resource limit \"none\"");
}

#[test]
fn what_can_not_run_is_refused() {
    check_refused(&ProcessSpec::default(), "command required");
    check_refused(&ProcessSpec { command: vec![String::new()], ..command() }, "command required");
    check_refused(&ProcessSpec { args: vec!["a\0".into()], ..command() }, "NUL");
    check_refused(&ProcessSpec { dir: "tmp".into(), ..command() }, "absolute path: tmp");
    check_refused(&ProcessSpec { stop_signal: "SIGNO".into(), ..command() }, "unknown stop signal \"SIGNO\"");
    check_refused(&ProcessSpec { env: vec!["A={{.B}}".into()], ..command() }, "expanding env");

    let mut foreign = task(&command());
    foreign.id = "../x".into();
    assert!(launch(&foreign, None, None, Ok(Path::new("/mem/t"))).is_err());
    foreign = task(&command());
    let Some(task_spec::Runtime::Generic(generic)) = &mut foreign.spec.runtime else { unreachable!() };
    generic.payload.as_mut().unwrap().type_url = "types.docker.com/RuntimePlugin".into();
    assert!(
        matches!(launch(&foreign, None, None, Ok(Path::new("/mem/t"))), Err(ControllerError::Fatal(text)) if text.contains("RuntimePlugin"))
    );
    foreign.spec.runtime = None;
    assert_eq!(
        launch(&foreign, None, None, Ok(Path::new("/mem/t"))),
        Err(ControllerError::UnsupportedRuntime)
    );
}

#[test]
fn files_are_told_in_the_environment() {
    let spec = ProcessSpec { secrets: vec![Default::default()], ..command() };
    let told = |launch: &Launch| -> Vec<(String, String)> {
        launch.env.iter().filter(|(name, _)| name.ends_with("_DIR")).cloned().collect()
    };
    let with = launch(&task(&spec), None, None, Ok(Path::new("/mem/t"))).unwrap();
    assert_eq!(with.files, Some(PathBuf::from("/mem/t")));
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let expected =
        [pair("SWARMD_SECRETS_DIR", "/mem/t/secrets"), pair("SWARMD_CONFIGS_DIR", "/mem/t/configs")];
    assert_eq!(told(&with), expected);
    let text = "this node can't give secrets and configs to processes: no memory";
    assert_eq!(
        launch(&task(&spec), None, None, Err("no memory")),
        Err(ControllerError::Fatal(text.to_owned()))
    );
    let without = launch(&task(&command()), None, None, Err("no memory")).unwrap();
    assert_eq!((without.files.clone(), told(&without)), (None, Vec::new()));
}
