use swarm_api::v1::{
    ContainerSpec, GenericRuntimeSpec, GlobalJob, NetworkAttachmentSpec, Placement, ReplicatedJob,
    ReplicatedService, ResourceRequirements, Resources, SecretReference,
};
use tonic::Code;

use super::*;

fn valid() -> ServiceSpec {
    let mut spec = ServiceSpec::default();
    spec.annotations.name = "web".into();
    spec.task.runtime =
        Some(task_spec::Runtime::Container(ContainerSpec { image: "redis".into(), ..Default::default() }));
    spec.mode = Some(Mode::Replicated(ReplicatedService { replicas: 1 }));
    spec
}

fn check(change: impl FnOnce(&mut ServiceSpec), text: &str) {
    check_code(change, Code::InvalidArgument, text);
}

fn check_code(change: impl FnOnce(&mut ServiceSpec), code: Code, text: &str) {
    let mut spec = valid();
    change(&mut spec);
    let error = service(&spec).expect_err(text);
    assert_eq!(error.code(), code, "{error}");
    assert!(error.to_string().contains(text), "{error} has no {text}");
}

fn container(spec: &mut ServiceSpec) -> &mut ContainerSpec {
    match &mut spec.task.runtime {
        Some(task_spec::Runtime::Container(container)) => container,
        _ => panic!("a container"),
    }
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn generic(kind: &str, type_url: &str, value: &[u8]) -> Option<task_spec::Runtime> {
    let payload = prost_types::Any { type_url: type_url.into(), value: value.to_vec() };
    Some(task_spec::Runtime::Generic(GenericRuntimeSpec { kind: kind.into(), payload: Some(payload) }))
}

#[test]
fn a_plain_spec_is_valid() {
    assert_eq!(service(&valid()), Ok(()));
}

#[test]
fn every_rule_has_its_text_and_code() {
    check(|s| s.annotations.name.clear(), "meta: name must be provided");
    check(|s| s.annotations.name = "a.b".into(), "name must be valid as a DNS name component");
    check(|s| _ = s.annotations.labels.insert("swarmd.x".into(), String::new()), "\"swarmd.x\" is not known");
    let label = |label: &'static str, value: &'static str| {
        move |s: &mut ServiceSpec| _ = s.annotations.labels.insert(label.into(), value.into())
    };
    check(label(extensions::PRIORITY, "high"), "must be an integer of 32 bits, not \"high\"");
    check(label(extensions::PLACEMENT_STRATEGY, "pack"), "must be \"spread\" or \"binpack\", not \"pack\"");
    let limits = |r| Some(ResourceRequirements { limits: Some(r), ..Default::default() });
    check(
        |s| s.task.resources = limits(Resources { nano_cpus: 1, ..Default::default() }),
        "must be at least 0.001",
    );
    let policy = |delay, window| Some(RestartPolicy { delay, window, ..Default::default() });
    check(|s| s.task.restart = policy(Some(seconds(-1)), None), "TaskSpec: restart-delay cannot be negative");
    check(
        |s| s.task.restart = policy(None, Some(seconds(-1))),
        "TaskSpec: restart-window cannot be negative",
    );
    check(|s| s.task.restart = policy(Some(seconds(i64::MAX)), None), "duration: ");
    let constraint = |c: &str| Some(Placement { constraints: vec![c.into()], ..Default::default() });
    check(|s| s.task.placement = constraint("node.role=x"), "expected one of the operators ==, !=");
    check(|s| container(s).secrets = vec![SecretReference::default()], "malformed secret reference");
    check(|s| container(s).configs = vec![Default::default()], "malformed config reference");
    check(|s| s.task.runtime = None, "TaskSpec: missing runtime");
    let attachment = task_spec::Runtime::Attachment(NetworkAttachmentSpec::default());
    check_code(|s| s.task.runtime = Some(attachment), Code::Unimplemented, "unimplemented runtime");
    check(|s| s.task.runtime = generic("ab", "t", b"x"), "Invalid name");
    check(|s| s.task.runtime = generic("Container", "t", b"x"), "reserved name");
    check(|s| s.task.runtime = generic("plugin", "", b"x"), "missing payload type");
    check(|s| s.task.runtime = generic("plugin", "t", b""), "empty payload");
    let bare = GenericRuntimeSpec { kind: "plugin".into(), payload: None };
    check(|s| s.task.runtime = Some(task_spec::Runtime::Generic(bare)), "missing payload");
    check(|s| s.task.runtime = generic("Process", "t", b"x"), "lower case");
    check(|s| s.task.runtime = generic("process", "t", b"x"), "ProcessSpec");
    check(|s| container(s).image = "X".into(), "not a valid repository/tag");
    check(|s| s.mode = None, "mode must be provided");
    let replicas = |replicas| Some(Mode::Replicated(ReplicatedService { replicas }));
    check(|s| s.mode = replicas(1 << 63), "below 2^63");
    check(|s| s.mode = replicas(1 << 40), "is 1099511627776, more than the 10000000 tasks");
    let job = |max_concurrent, total_completions| {
        Some(Mode::ReplicatedJob(ReplicatedJob { max_concurrent, total_completions }))
    };
    check(|s| s.mode = job(1 << 63, 1), "max concurrent");
    check(|s| s.mode = job(1, 1 << 63), "total completions");
    check(
        |s| {
            s.mode = Some(Mode::GlobalJob(GlobalJob {}));
            s.update = Some(UpdateConfig::default());
        },
        "job-mode services may not have update config",
    );
    let update = |c| move |s: &mut ServiceSpec| s.update = Some(c);
    check(
        update(UpdateConfig { delay: seconds(-1), ..Default::default() }),
        "update-delay cannot be negative",
    );
    check(
        update(UpdateConfig { monitor: Some(seconds(-1)), ..Default::default() }),
        "update-monitor cannot be negative",
    );
    for ratio in [-0.1, 1.1, f32::NAN] {
        check(
            update(UpdateConfig { max_failure_ratio: ratio, ..Default::default() }),
            "update-maxfailureratio",
        );
    }
    let no_number = UpdateConfig { max_failure_ratio: f32::NAN, ..Default::default() };
    check(|s| s.rollback = Some(no_number), "TaskSpec: rollback-maxfailureratio must be a number");
}

#[test]
fn rules_are_reported_in_order() {
    check(
        |s| {
            s.annotations.name.clear();
            s.mode = None;
            s.task.runtime = None;
        },
        "meta: name must be provided",
    );
    check(
        |s| {
            s.mode = None;
            s.task.runtime = None;
        },
        "missing runtime",
    );
}

#[test]
fn rollback_is_not_checked_and_jobs_may_have_one() {
    let mut spec = valid();
    spec.rollback = Some(UpdateConfig { max_failure_ratio: 7.0, delay: seconds(-1), ..Default::default() });
    assert_eq!(service(&spec), Ok(()));
    spec.mode = Some(Mode::ReplicatedJob(ReplicatedJob { max_concurrent: 1, total_completions: 1 }));
    assert_eq!(service(&spec), Ok(()));
}

#[test]
fn a_spec_that_is_too_large_is_refused_with_its_size() {
    check(|s| container(s).args = vec!["x".repeat(3 << 20)], "bytes, more than the 524288");
    let mut spec = valid();
    container(&mut spec).args = vec!["x".repeat(500 << 10)];
    assert_eq!(service(&spec), Ok(()));
}

#[test]
fn processes_are_kept_on_nodes_that_can_run_them() {
    let mut spec = valid();
    complete(&mut spec);
    assert_eq!(spec, valid());
    spec.task.runtime = generic("process", "t", b"x");
    complete(&mut spec);
    complete(&mut spec);
    assert_eq!(
        spec.task.placement.as_ref().unwrap().constraints,
        ["engine.labels.swarmd.runtime.process==1"]
    );
}

#[test]
fn what_a_container_is_given_keeps_it_on_nodes_that_can_give_it() {
    let mut spec = valid();
    let labels = &mut container(&mut spec).labels;
    labels.insert("swarmd.privileged".into(), "1".into());
    labels.insert("swarmd.devices".into(), "/dev/fuse".into());
    spec.task.placement.get_or_insert_default().constraints.push("node.role==worker".into());
    complete(&mut spec);
    complete(&mut spec);
    assert_eq!(
        spec.task.placement.as_ref().unwrap().constraints,
        ["node.role==worker", "engine.labels.swarmd.devices==1", "engine.labels.swarmd.privileged==1"]
    );
    container(&mut spec).labels.clear();
    complete(&mut spec);
    assert_eq!(spec.task.placement.as_ref().unwrap().constraints, ["node.role==worker"]);
}
