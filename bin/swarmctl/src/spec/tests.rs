use clap::Parser;
use swarm_api::v1::mount::Type;
use swarm_api::v1::restart_policy::RestartCondition;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::update_config::{FailureAction, UpdateOrder};
use swarm_api::v1::{Config, ContainerSpec, Secret, ServiceSpec, secret_reference, task_spec};

use super::*;
use crate::error::{Error, Result};

#[derive(Parser)]
pub(super) struct Create {
    #[command(flatten)]
    create: CreateFlags,
    #[command(flatten)]
    flags: ServiceFlags,
}

#[derive(Parser)]
pub(super) struct Update {
    #[command(flatten)]
    update: UpdateFlags,
    #[command(flatten)]
    flags: ServiceFlags,
}

pub(super) fn parse<T: Parser>(words: &[&str]) -> T {
    let command = T::command().args_override_self(true);
    let matches = command.try_get_matches_from([&["x"], words].concat()).unwrap();
    T::from_arg_matches(&matches).unwrap()
}

pub(super) fn create(words: &[&str]) -> Result<ServiceSpec> {
    let Create { create, flags } = parse(words);
    let changes = Changes::of_create(&create)?;
    let mut spec = new_spec(&create, &flags)?;
    apply(&mut spec, &flags, &changes, &found())?;
    Ok(spec)
}

pub(super) fn update(mut spec: ServiceSpec, words: &[&str]) -> Result<ServiceSpec> {
    let Update { update, flags } = parse(words);
    apply(&mut spec, &flags, &Changes::of_update(&update)?, &found())?;
    Ok(spec)
}

pub(super) fn found() -> Found {
    let mut secret = Secret { id: "sid".into(), ..Default::default() };
    secret.spec.annotations.name = "password".into();
    let mut config = Config { id: "cid".into(), ..Default::default() };
    config.spec.annotations.name = "settings".into();
    Found {
        secrets: vec![secret.into()],
        configs: vec![config.into()],
        networks: [("lan", "nid"), ("host", "hid"), ("nid", "nid")]
            .map(|(name, id)| (name.to_owned(), id.to_owned()))
            .into(),
        dependencies: Vec::new(),
    }
}

pub(super) const WEB: &[&str] = &["--name", "web", "--image", "redis"];

pub(super) fn web(words: &[&str]) -> ServiceSpec {
    create(&[WEB, words].concat()).unwrap()
}

pub(super) fn container(spec: &ServiceSpec) -> &ContainerSpec {
    match &spec.task.runtime {
        Some(task_spec::Runtime::Container(container)) => container,
        _ => panic!("a container"),
    }
}

pub(super) fn process(spec: &ServiceSpec) -> swarm_api::swarmd::ProcessSpec {
    match &spec.task.runtime {
        Some(task_spec::Runtime::Generic(generic)) => decode_process(generic).unwrap(),
        _ => panic!("a process"),
    }
}

#[track_caller]
pub(super) fn wrong(result: Result<ServiceSpec>, text: &str) {
    let error = result.expect_err(text);
    assert!(error.to_string().contains(text), "{error} has no {text}");
    assert_eq!(error.exit_code(), 2);
}

/// A value that is wrong whatever the service is.
#[track_caller]
pub(super) fn refused(words: &[&str], text: &str) {
    let words = [&["x"], WEB, words].concat();
    for result in [Create::try_parse_from(&words).map(drop), Update::try_parse_from(&words).map(drop)] {
        let error = result.expect_err(text).to_string();
        assert!(error.contains(text), "{error} has no {text}");
    }
}

#[test]
fn a_plain_service_is_a_replicated_container() {
    let spec = web(&[]);
    assert_eq!(spec.annotations.name, "web");
    assert_eq!(container(&spec).image, "redis");
    assert!(matches!(&spec.mode, Some(Mode::Replicated(mode)) if mode.replicas == 1));
    assert_eq!(spec.task.restart.unwrap().condition(), RestartCondition::Any);
    assert_eq!(
        (&spec.update, &spec.endpoint, &spec.task.resources, &spec.task.placement),
        (&None, &None, &None, &None)
    );
}

#[test]
fn name_and_what_to_run_must_be_given() {
    wrong(create(&["--image", "redis"]), "--name must be given");
    wrong(create(&["--name", "web"]), "--image must be given");
    wrong(create(&["--name", "web", "--runtime", "process"]), "which process to run");
    let only_arguments = ["--name", "web", "--runtime", "process", "--args", "5", "--", "sleep"];
    wrong(create(&only_arguments), "with --args, words after -- are arguments too");
}

#[test]
fn flags_of_modes_go_with_the_mode() {
    assert!(matches!(web(&["--mode", "global"]).mode, Some(Mode::Global(_))));
    wrong(
        create(&[WEB, &["--mode=global", "--replicas", "2"]].concat()),
        "--replicas is only for replicated",
    );
    let limited = &["--mode=global", "--replicas-max-per-node", "2"];
    wrong(create(&[WEB, limited].concat()), "--replicas-max-per-node is only for replicated");
    let spec = web(&["--replicas", "0x10", "--replicas-max-per-node=2"]);
    assert!(matches!(&spec.mode, Some(Mode::Replicated(mode)) if mode.replicas == 16));
    assert_eq!(spec.task.placement.as_ref().unwrap().max_replicas, 2);
}

#[test]
fn a_job_has_completions_and_a_limit_at_a_time() {
    let job = |words: &[&str]| match web(&[&["--mode=replicated-job"], words].concat()).mode {
        Some(Mode::ReplicatedJob(job)) => (job.max_concurrent, job.total_completions),
        other => panic!("a job: {other:?}"),
    };
    assert_eq!(job(&[]), (1, 1));
    assert_eq!(job(&["--total-completions", "30"]), (30, 30));
    assert_eq!(job(&["--replicas", "30", "--max-concurrent", "10"]), (10, 30));
    assert!(matches!(web(&["--mode", "global-job"]).mode, Some(Mode::GlobalJob(_))));
    wrong(create(&[WEB, &["--max-concurrent", "2"]].concat()), "only for replicated jobs");
    wrong(
        create(&[WEB, &["--mode=global-job", "--total-completions=2"]].concat()),
        "only for replicated jobs",
    );
    let spec = web(&["--mode=replicated-job", "--total-completions=30", "--max-concurrent=10"]);
    let more = update(spec, &["--replicas", "40"]).unwrap();
    assert!(
        matches!(more.mode, Some(Mode::ReplicatedJob(job)) if (job.max_concurrent, job.total_completions) == (10, 40))
    );
}

#[test]
fn tasks_move_to_new_nodes_if_the_service_says_so() {
    let label = swarm_api::extensions::REBALANCE;
    let spec = web(&["--rebalance", "auto", "--label", "a=b"]);
    assert_eq!(spec.annotations.labels[label], "auto");
    let spec = update(spec, &["--label", "c=d"]).unwrap();
    assert_eq!(spec.annotations.labels.keys().collect::<Vec<_>>(), ["c", label]);
    let spec = update(spec, &["--rebalance", "off"]).unwrap();
    assert_eq!(spec.annotations.labels.keys().collect::<Vec<_>>(), ["c"]);
    wrong(create(&[WEB, &["--mode=global", "--rebalance=auto"]].concat()), "only for replicated services");
}

#[test]
fn strategy_and_priority_are_labels_that_other_labels_leave_alone() {
    use swarm_api::extensions::{PLACEMENT_STRATEGY, PRIORITY};
    let labels = |spec: &ServiceSpec| -> Vec<(String, String)> {
        spec.annotations.labels.clone().into_iter().collect()
    };
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(labels(&web(&[])), []);
    let spec = web(&["--placement-strategy", "binpack", "--priority", "-7"]);
    assert_eq!(labels(&spec), [pair(PLACEMENT_STRATEGY, "binpack"), pair(PRIORITY, "-7")]);
    let spec = update(spec, &["--label", "a=b", "--priority=2147483647"]).unwrap();
    let expected = [pair("a", "b"), pair(PLACEMENT_STRATEGY, "binpack"), pair(PRIORITY, "2147483647")];
    assert_eq!(labels(&spec), expected);
    let spec = update(spec, &["--placement-strategy=spread", "--priority=0"]).unwrap();
    assert_eq!(labels(&spec), [pair("a", "b")], "what is the default is not written");
    for words in [["--placement-strategy", "random"], ["--priority", "2147483648"], ["--priority", "high"]] {
        assert!(Create::try_parse_from([&["x"], WEB, &words[..]].concat()).is_err(), "{words:?}");
    }
    let mut spec = web(&[]);
    spec.annotations.labels.insert(PRIORITY.into(), "much".into());
    assert!(update(spec, &["--placement-strategy", "binpack"]).is_err(), "what can't be read is not lost");
}

#[test]
fn a_flag_that_is_repeated_counts_as_given_last() {
    let spec = web(&["--image", "nginx", "--env", "A=1,B=2", "--env", "\"C=1,2\""]);
    assert_eq!(container(&spec).image, "nginx");
    assert_eq!(container(&spec).env, ["A=1", "B=2", "C=1,2"]);
}

#[test]
fn containers_get_their_fields() {
    let spec = web(&[
        "--command",
        "sh,-c",
        "--args",
        "-x",
        "--dir",
        "/w",
        "--user",
        "1:2",
        "--group",
        "a,b",
        "--hostname",
        "h",
        "--stop-signal",
        "INT",
        "--stop-grace-period",
        "1m",
        "--ulimit",
        "nofile=1:2",
        "--container-label",
        "k=v",
        "--tty",
        "--init=false",
        "--read-only=true",
        "--oom-score-adj",
        "-500",
        "--bind",
        "/y:/x",
        "--volume",
        "/v",
        "--tmpfs",
        "\"/t:size=1m,ro\"",
        "--label",
        " a = b ",
        "--",
        "last",
        "words",
    ]);
    let container = container(&spec);
    assert_eq!(
        (container.command.join(" "), container.args.join(" ")),
        ("sh -c".into(), "-x last words".into())
    );
    assert_eq!(
        (container.dir.as_str(), container.user.as_str(), container.hostname.as_str()),
        ("/w", "1:2", "h")
    );
    assert_eq!(container.groups, ["a", "b"]);
    assert_eq!((container.stop_signal.as_str(), container.stop_grace_period.unwrap().seconds), ("INT", 60));
    assert_eq!((container.ulimits[0].soft, container.ulimits[0].hard), (1, 2));
    assert_eq!(container.labels["k"], "v");
    assert_eq!((container.tty, container.init, container.read_only), (true, Some(false), true));
    assert_eq!(container.oom_score_adj, -500);
    let kinds: Vec<Type> = container.mounts.iter().map(|mount| mount.r#type()).collect();
    assert_eq!(kinds, [Type::Bind, Type::Volume, Type::Tmpfs]);
    assert_eq!(spec.annotations.labels["a"], "b");
}

#[test]
fn resources_restarts_and_updates_get_their_fields() {
    let spec = web(&[
        "--memory-limit",
        "512m",
        "--cpu-reservation",
        "1/2",
        "--generic-resources",
        "fpga=2",
        "--restart-condition",
        "failure",
        "--restart-delay",
        "2s",
        "--restart-max-attempts",
        "3",
        "--restart-window",
        "1m",
        "--update-delay",
        "10s",
        "--update-monitor",
        "1m",
        "--update-max-failure-ratio",
        "0.25",
        "--update-on-failure",
        "rollback",
        "--update-order",
        "start-first",
        "--rollback-parallelism",
        "0",
        "--rollback-delay",
        "3s",
        "--rollback-monitor",
        "0",
        "--rollback-max-failure-ratio",
        "1",
        "--rollback-failure-action",
        "continue",
        "--rollback-order",
        "start-first",
        "--constraint",
        "node.role==worker",
        "--ports",
        "web:80:8080",
        "--log-driver",
        "json-file",
        "--log-opt",
        "max-size=1m,plain",
    ]);
    let resources = spec.task.resources.as_ref().unwrap();
    assert_eq!(resources.limits.as_ref().unwrap().memory_bytes, 512 << 20);
    let reserved = resources.reservations.as_ref().unwrap();
    assert_eq!((reserved.nano_cpus, reserved.generic.len()), (500_000_000, 1));
    let restart = spec.task.restart.unwrap();
    assert_eq!((restart.condition(), restart.max_attempts), (RestartCondition::OnFailure, 3));
    assert_eq!((restart.delay.unwrap().seconds, restart.window.unwrap().seconds), (2, 60));
    let update = spec.update.unwrap();
    assert_eq!((update.parallelism, update.delay.seconds), (1, 10));
    assert_eq!((update.failure_action(), update.order()), (FailureAction::Rollback, UpdateOrder::StartFirst));
    assert_eq!((update.monitor.unwrap().seconds, update.max_failure_ratio), (60, 0.25));
    let rollback = spec.rollback.unwrap();
    assert_eq!((rollback.parallelism, rollback.delay.seconds), (0, 3));
    assert_eq!((rollback.monitor, rollback.max_failure_ratio), (Some(Default::default()), 1.0));
    assert_eq!(
        (rollback.failure_action(), rollback.order()),
        (FailureAction::Continue, UpdateOrder::StartFirst)
    );
    assert_eq!(spec.task.placement.as_ref().unwrap().constraints, ["node.role==worker"]);
    assert_eq!(spec.endpoint.as_ref().unwrap().ports[0].published_port, 8080);
    let driver = spec.task.log_driver.as_ref().unwrap();
    assert_eq!((driver.name.as_str(), driver.options.len()), ("json-file", 2));
}

#[test]
fn wrong_values_are_told() {
    for (words, text) in [
        (&["--label", "a"][..], "no key=value"),
        (&["--ports", "80"], "port \"80\""),
        (&["--ulimit", "foo=1"], "ulimit \"foo=1\""),
        (&["--bind", "x"], "mount \"x\""),
        (&["--volume", "a:b"], "volume \"a:b\""),
        (&["--tmpfs", "t"], "must be absolute"),
        (&["--generic-resources", "gpu=a"], "only a number"),
        (&["--placement-pref", "node.labels.zone"], "expected spread=node.labels.NAME"),
        (&["--constraint", "node.role"], "expected one of the operators"),
        (&["--secret", "s:"], "no name[:target]"),
    ] {
        wrong(create(&[WEB, words].concat()), text);
    }
}

#[test]
fn numbers_and_durations_that_make_no_sense_are_refused_with_what_would() {
    for flag in [
        "--update-delay",
        "--update-monitor",
        "--rollback-delay",
        "--rollback-monitor",
        "--restart-delay",
        "--restart-window",
        "--stop-grace-period",
    ] {
        refused(&[flag, "-5s"], "expected 0 or more, such as 1m30s");
        refused(&[flag, "5"], "expected numbers with a unit");
    }
    for flag in ["--update-max-failure-ratio", "--rollback-max-failure-ratio"] {
        for bad in ["1.5", "-0.1", "25%", "NaN"] {
            refused(&[flag, bad], "expected a share from 0 to 1, such as 0.25");
        }
    }
    for flag in ["--update-parallelism", "--rollback-parallelism", "--restart-max-attempts"] {
        refused(&[flag, "some"], "expected a number that is not negative");
    }
    refused(&["--update-on-failure", "stop"], "pause, continue, rollback");
    refused(&["--rollback-failure-action", "rollback"], "pause, continue]");
    refused(&["--rollback-order", "first"], "stop-first, start-first");
    refused(&["--restart-condition", "onfailure"], "any, failure, none");
    refused(&["--priority", "high"], "expected a whole number");
}

#[test]
fn a_change_of_the_pace_leaves_the_rest_of_it_alone() {
    let spec = web(&["--update-monitor", "20s"]);
    let update_config = spec.update.unwrap();
    assert_eq!((update_config.parallelism, update_config.monitor.unwrap().seconds), (1, 20));
    assert_eq!(spec.rollback, None);
    let spec = update(spec, &["--update-parallelism", "3", "--rollback-max-failure-ratio", "0.5"]).unwrap();
    let update_config = spec.update.unwrap();
    assert_eq!((update_config.parallelism, update_config.monitor.unwrap().seconds), (3, 20));
    let rollback = spec.rollback.unwrap();
    assert_eq!((rollback.parallelism, rollback.monitor, rollback.max_failure_ratio), (1, None, 0.5));
}

#[test]
fn lists_of_placement_and_resources_are_replaced_and_cleared() {
    let over = |spec: &ServiceSpec| -> Vec<String> {
        let preferences = spec.task.placement.iter().flat_map(|placement| &placement.preferences);
        preferences.map(|preference| crate::values::preference::format(preference).to_owned()).collect()
    };
    let twice = ["--placement-pref", "spread=node.labels.zone", "--placement-pref=spread=engine.labels.rack"];
    let spec = web(&[&twice[..], &["--generic-resource", "fpga=1", "--generic-resource=gpu=2"]].concat());
    assert_eq!(over(&spec), ["node.labels.zone", "engine.labels.rack"]);
    let generic = |spec: &ServiceSpec| {
        spec.task.resources.as_ref().unwrap().reservations.as_ref().unwrap().generic.len()
    };
    assert_eq!(generic(&spec), 2);
    let spec = update(spec, &["--placement-pref", "spread=node.labels.row", "--constraint", "node.id==a"]);
    let spec = update(spec.unwrap(), &["--generic-resources", "fpga=3"]).unwrap();
    assert_eq!((over(&spec).join(" "), generic(&spec)), ("node.labels.row".into(), 1));
    let spec = update(spec, &["--placement-pref=", "--generic-resources="]).unwrap();
    assert_eq!((over(&spec).len(), generic(&spec)), (0, 0));
    assert_eq!(spec.task.placement.as_ref().unwrap().constraints, ["node.id==a"]);
    // Where there was nothing, nothing is written: an empty placement would replace all tasks.
    let nothing = ["--placement-pref=", "--constraint=", "--replicas-max-per-node=0", "--generic-resources="];
    assert_eq!(update(web(&[]), &nothing).unwrap(), web(&[]));
}

#[test]
fn what_takes_away_what_is_not_there_changes_nothing() {
    for words in [
        &["--publish="][..],
        &["--ports="],
        &["--publish=", "--ports="],
        &["--memory-limit=0"],
        &["--cpu-limit=0"],
        &["--memory-reservation=0"],
        &["--cpu-reservation=0"],
        &["--memory-limit=0", "--cpu-limit=0", "--memory-reservation=0", "--cpu-reservation=0"],
        &["--log-driver="],
        &["--log-driver=", "--log-opt=max-size=1m"],
    ] {
        assert_eq!(update(web(&[]), words).unwrap(), web(&[]), "{words:?}");
    }
    let limited = web(&["--memory-limit=64m"]);
    assert_eq!(update(limited.clone(), &["--memory-reservation=0", "--cpu-limit=0"]).unwrap(), limited);
    let reserved = web(&["--cpu-reservation=1"]);
    assert_eq!(update(reserved.clone(), &["--memory-limit=0", "--cpu-limit=0"]).unwrap(), reserved);
    // What is there is taken away.
    let spec = web(&["--memory-limit=64m", "--cpu-reservation=1", "--publish=80:80", "--log-driver=none"]);
    let nothing = ["--memory-limit=0", "--cpu-reservation=0", "--publish=", "--log-driver="];
    let spec = update(spec, &nothing).unwrap();
    let resources = spec.task.resources.as_ref().unwrap();
    assert_eq!(resources.limits, Some(Default::default()));
    assert_eq!(resources.reservations, Some(Default::default()));
    assert_eq!(spec.endpoint, Some(Default::default()));
    assert_eq!(spec.task.log_driver, None);
}

#[test]
fn constraints_that_the_manager_puts_back_are_no_change() {
    use swarm_api::extensions::{PROCESS_CONSTRAINT, guard};
    let bare = native(&["--constraint=node.role==worker"]).unwrap();
    let mut stored = bare.clone();
    guard(&mut stored.task);
    for words in [&["--constraint=node.role==worker"][..], &["--constraint-rm", PROCESS_CONSTRAINT]] {
        assert_eq!(changed(update(stored.clone(), words).unwrap(), &stored), None, "{words:?}");
    }
    let alone = changed(update(stored.clone(), &["--constraint="]).unwrap(), &stored).unwrap();
    assert_eq!(alone.task.placement.as_ref().unwrap().constraints, [PROCESS_CONSTRAINT]);
    assert_eq!(changed(update(alone.clone(), &["--constraint="]).unwrap(), &alone), None);
    // A manager of another make puts nothing back.
    assert_eq!(changed(update(bare.clone(), &[]).unwrap(), &bare), None);
    let guarded = changed(update(bare.clone(), &["--replicas=2"]).unwrap(), &bare).unwrap();
    assert_eq!(guarded.task.placement, stored.task.placement);
}

#[test]
fn processes_are_native() {
    let spec = create(&["--name", "n", "--runtime", "process", "--", "sleep", "1000"]).unwrap();
    assert_eq!(process(&spec).command, ["sleep", "1000"]);
    let spec = create(&[
        "--name",
        "n",
        "--runtime=process",
        "--command",
        "python3",
        "--args",
        "-m,http.server",
        "--env",
        "A=1",
        "--dir",
        "/srv",
        "--user",
        "nobody",
        "--stop-signal",
        "INT",
        "--stop-grace-period",
        "3s",
        "--ulimit",
        "nofile=-1",
        "--memory-limit",
        "64m",
    ])
    .unwrap();
    let process = process(&spec);
    assert_eq!(
        (process.command.join(" "), process.args.join(" ")),
        ("python3".into(), "-m http.server".into())
    );
    assert_eq!(
        (process.dir.as_str(), process.user.as_str(), process.stop_signal.as_str()),
        ("/srv", "nobody", "INT")
    );
    assert_eq!(process.stop_grace_period.unwrap().seconds, 3);
    assert_eq!(process.rlimits[0].hard, u64::MAX);
    assert_eq!(spec.task.resources.as_ref().unwrap().limits.as_ref().unwrap().memory_bytes, 64 << 20);
    let image = &["--name", "n", "--runtime", "process", "--command", "x", "--image", "redis"];
    wrong(create(image), "--image is for containers");
    let native = create(&["--name", "n", "--runtime", "process", "--command", "x"]).unwrap();
    for words in [&["--add-capability", "ALL"], &["--add-device", "/dev/fuse"]] {
        wrong(update(native.clone(), words), "capabilities, mounts and devices are for containers");
    }
    wrong(update(native.clone(), &["--privileged"]), "--privileged is for containers");
    wrong(update(native.clone(), &["--device", "/dev/fuse"]), "--device is for containers");
    wrong(update(native, &["--gpus", "1"]), "--generic-resources gpu=N reserves some for them");
}

fn native(flags: &[&str]) -> Result<ServiceSpec> {
    create(&[&["--name", "n", "--runtime", "process", "--command", "x"], flags].concat())
}

#[test]
fn processes_have_health_checks_isolation_and_commands_beside_their_own() {
    let spec = native(&[
        "--health-cmd",
        "test -e /ready",
        "--health-interval",
        "2s",
        "--health-retries=5",
        "--isolate",
        "mount,pid",
        "--root",
        "/srv/root",
        "--pids-limit=9",
        "--init-task",
        "./prepare 'a b'",
        "--pre-stop",
        "sync",
    ])
    .unwrap();
    let there = process(&spec);
    let check = there.healthcheck.as_ref().unwrap();
    assert_eq!((check.test.join("|"), check.retries), ("CMD-SHELL|test -e /ready".into(), 5));
    assert!(there.mount_namespace && there.pid_namespace);
    assert_eq!((there.root.as_str(), there.pids_limit), ("/srv/root", 9));
    assert_eq!(
        (there.init_tasks[0].words.join("|"), there.pre_stop.join("|")),
        ("./prepare|a b".into(), "sync".into())
    );
    let all = [
        "--no-healthcheck",
        "--isolate",
        "",
        "--root",
        "",
        "--init-task",
        "",
        "--pre-stop",
        "",
        "--pids-limit=0",
    ];
    assert_eq!(update(spec, &all).unwrap(), native(&[]).unwrap());
    refused(&["--isolate", "net"], "expected mount or pid");
    wrong(native(&["--health-retries=1"]), "no health check without --health-cmd");
    wrong(update(web(&[]), &["--root", "/x"]), "--root is for native processes");
}

#[test]
fn updates_change_only_what_is_asked_for() {
    let before = web(&["--log-driver", "json-file", "--env", "A=1", "--bind", "/a:/b"]);
    assert_eq!(update(before.clone(), &[]).unwrap(), before);
    let after = update(before.clone(), &["--env", "", "--bind", "/c:/d", "--replicas", "5"]).unwrap();
    assert!(container(&after).env.is_empty());
    assert_eq!(container(&after).mounts.len(), 2);
    assert_eq!(after.task.log_driver, before.task.log_driver);
    let native = create(&["--name", "n", "--runtime", "process", "--", "sleep", "1"]).unwrap();
    let after = update(native, &["--env", "A=2"]).unwrap();
    assert_eq!((process(&after).env, process(&after).command.len()), (vec!["A=2".to_owned()], 2));
}

#[test]
fn an_entry_point_is_a_command_written_as_in_a_shell() {
    let spec = web(&["--entrypoint", "sh -c 'echo  $0'", "--args", "a"]);
    assert_eq!((container(&spec).command.len(), container(&spec).command[2].as_str()), (3, "echo  $0"));
    assert_eq!(container(&spec).args, ["a"]);
    let spec = update(spec, &["--entrypoint="]).unwrap();
    assert_eq!((container(&spec).command.len(), container(&spec).args.len()), (0, 1));
    wrong(create(&[WEB, &["--entrypoint", "a 'b"]].concat()), "a quotation mark is left open");
    let native = create(&["--name=p", "--runtime=process", "--entrypoint=/bin/sh -c", "--", "true"]).unwrap();
    assert_eq!(process(&native).command, ["/bin/sh", "-c"]);
    assert_eq!(process(&native).args, ["true"]);
}

#[test]
fn dockers_short_flags_and_names_of_values_work() {
    let short = ["-e", "A=1", "-e", "B=2", "-l", "a=b", "-p", "8080:80", "-t", "-u", "1000", "-w", "/srv"];
    let long = [
        "--env",
        "A=1,B=2",
        "--label",
        "a=b",
        "--publish",
        "8080:80",
        "--tty",
        "--user",
        "1000",
        "--dir",
        "/srv",
    ];
    assert_eq!(web(&short), web(&long));
    let restart =
        |word: &str| web(&["--restart-condition", word, "--no-resolve-image"]).task.restart.unwrap();
    assert_eq!(restart("on-failure").condition(), RestartCondition::OnFailure);
    assert_eq!(restart("on-failure"), restart("failure"));
}

#[test]
fn secrets_configs_and_capabilities_come_and_go() {
    let spec = web(&["--secret", "password:pw", "--config", "settings"]);
    let secret = &container(&spec).secrets[0];
    assert_eq!((secret.secret_id.as_str(), secret.secret_name.as_str()), ("sid", "password"));
    let Some(secret_reference::Target::File(file)) = &secret.target else { panic!("a file") };
    assert_eq!(
        (file.name.as_str(), file.mode, file.uid.as_str(), file.gid.as_str()),
        ("pw", 0o444, "0", "0")
    );
    assert_eq!(container(&spec).configs[0].config_id, "cid");
    let spec = update(spec, &["--rm-secret", "password", "--rm-config", "settings,other"]).unwrap();
    assert!(container(&spec).secrets.is_empty() && container(&spec).configs.is_empty());
    assert_eq!(update(spec.clone(), &["--rm-secret", "password"]).unwrap(), spec);
    // What is taken goes first.
    let again = ["--secret-rm=password", "--secret-add=source=password,target=new"];
    let again = [&again[..], &["--config-rm=settings", "--config-add=source=settings,target=/new"]].concat();
    let renewed = update(web(&["--secret", "password:pw", "--config", "settings"]), &again).unwrap();
    assert_eq!(renewed, web(&["--secret", "password:new", "--config", "settings:/new"]));
    let renewed = update(native(&[]).unwrap(), &again).unwrap();
    assert_eq!((process(&renewed).secrets.len(), process(&renewed).configs.len()), (1, 1));
    assert_eq!(renewed.task.resource_references.len(), 2);
    let missing = create(&[WEB, &["--secret", "Password"]].concat()).unwrap_err();
    assert!(matches!(missing, Error::NotFound { kind: "secret", .. }));
    let spec = update(spec, &["--add-capability", "NET_ADMIN"]).unwrap();
    assert_eq!(container(&spec).capability_add, ["NET_ADMIN"]);
    let spec = update(spec, &["--rm-capability", "NET_ADMIN"]).unwrap();
    assert!(container(&spec).capability_add.is_empty());
    assert_eq!(container(&spec).capability_drop, ["NET_ADMIN"]);
}
