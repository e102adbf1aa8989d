//! Tasks on the real engine. Without one these tests fail.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::{Given, Lab, controller, waited, within};
use swarm_agent::{Controller, ControllerError, Executor, LogLine, LogOptions, LogSink, LogStream};
use swarm_api::v1::port_config::PublishMode;
use swarm_api::v1::{ContainerSpec, Driver, Endpoint, HealthConfig, Mount, PortConfig, Task, mount};
use swarm_testkit::wait::until;

const SLEEP: &str = "trap 'exit 7' TERM; while :; do sleep 100 & wait $!; done";
/// Ends with this code when it is told to, see [`Lab::signal`].
const FIVE: &str = "trap 'exit 5' USR1; while :; do sleep 100 & wait $!; done";

/// Enough to end by itself, however slow the machine is.
const LONG_GRACE: Option<prost_types::Duration> = Some(prost_types::Duration { seconds: 60, nanos: 0 });

#[track_caller]
fn fatal(result: Result<(), ControllerError>) -> String {
    match result {
        Err(ControllerError::Fatal(text)) => text,
        other => panic!("not final: {other:?}"),
    }
}

fn exit(code: i32) -> Result<(), ControllerError> {
    Err(ControllerError::Exit { code, cause: None })
}

async fn logs(controller: &dyn Controller, options: LogOptions) -> Vec<LogLine> {
    let (sink, lines) = LogSink::new();
    let (done, lines) = within(async { tokio::join!(controller.logs(options, sink), lines.collect()) }).await;
    done.unwrap();
    lines
}

/// For messages: lengths instead of long lines.
fn brief(lines: &[LogLine]) -> Vec<(std::time::SystemTime, LogStream, usize)> {
    lines.iter().map(|line| (line.timestamp, line.stream, line.data.len())).collect()
}

fn texts(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| std::str::from_utf8(&line.data).unwrap()).collect()
}

#[tokio::test]
async fn task_runs_to_its_end_and_says_how() {
    let lab = Lab::new().await;
    for (command, expected) in
        [("true", Ok(())), ("exit 3", exit(3)), ("sh -c 'kill -9 $$'; exit $?", exit(137))]
    {
        let task = lab.run(command);
        within(task.prepare()).await.unwrap();
        assert_eq!(task.container_status().await.unwrap().pid, 0);
        within(task.start()).await.unwrap();
        assert_eq!(within(task.wait()).await, expected, "{command}");
        let code = match expected {
            Err(ControllerError::Exit { code, .. }) => code,
            _ => 0,
        };
        let status = task.container_status().await.unwrap();
        assert_eq!((status.exit_code, status.pid, status.container_id.len()), (code, 0, 64));
        within(task.remove()).await.unwrap();
        assert_eq!(task.container_status().await, None);
        within(task.remove()).await.unwrap();
    }
    lab.done().await;
}

#[tokio::test]
async fn a_running_task_has_a_process_and_waits_are_woken_by_its_end() {
    let lab = Lab::new().await;
    let task = lab.run(FIVE);
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    assert!(task.container_status().await.unwrap().pid > 0);
    until_child(&lab, task.as_ref()).await;
    // Cancelling a wait and calling it again is allowed at any moment.
    assert!(tokio::time::timeout(Duration::from_millis(100), task.wait()).await.is_err());
    lab.signal(task.as_ref()).await;
    assert_eq!(within(task.wait()).await, exit(5));
    lab.done().await;
}

#[tokio::test]
async fn shutdown_asks_then_kills() {
    let lab = Lab::new().await;
    let stubborn = lab.spec("trap '' TERM; while :; do sleep 1; done");
    let polite = ContainerSpec { stop_grace_period: LONG_GRACE, ..lab.spec(SLEEP) };
    for (spec, expected) in [(polite, 7), (stubborn, 137)] {
        let task = lab.controller(&lab.task(spec));
        task.prepare().await.unwrap();
        task.start().await.unwrap();
        // The shell has set its trap once it has a child.
        until_child(&lab, task.as_ref()).await;
        within(task.shutdown()).await.unwrap();
        let status = task.container_status().await.unwrap();
        assert_eq!((status.exit_code, status.pid), (expected, 0));
        within(task.shutdown()).await.unwrap();
    }
    lab.done().await;
}

async fn until_child(lab: &Lab, task: &dyn Controller) {
    let id = task.container_status().await.unwrap().container_id;
    let asked = || async {
        let top = lab.docker.top_processes(&id, None::<bollard::query_parameters::TopOptions>).await?;
        anyhow::ensure!(top.processes.unwrap_or_default().len() > 1);
        Ok(())
    };
    until("the shell's child", common::LONG, asked).await.unwrap();
}

#[tokio::test]
async fn stop_signal_of_the_spec_is_sent() {
    let lab = Lab::new().await;
    let spec = ContainerSpec {
        stop_signal: "SIGUSR1".into(),
        stop_grace_period: LONG_GRACE,
        ..lab.spec("trap 'exit 9' USR1; while :; do sleep 100 & wait $!; done")
    };
    let task = lab.controller(&lab.task(spec));
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    until_child(&lab, task.as_ref()).await;
    within(task.shutdown()).await.unwrap();
    assert_eq!(task.container_status().await.unwrap().exit_code, 9);
    lab.done().await;
}

#[tokio::test]
async fn terminate_kills_and_may_come_at_any_time() {
    let lab = Lab::new().await;
    let task = lab.run(SLEEP);
    within(task.terminate()).await.unwrap();
    within(task.shutdown()).await.unwrap();
    task.prepare().await.unwrap();
    within(task.terminate()).await.unwrap();
    task.start().await.unwrap();
    within(task.terminate()).await.unwrap();
    assert_eq!(within(task.wait()).await, exit(137));
    lab.done().await;
}

#[tokio::test]
async fn restarted_daemon_adopts_the_container_at_every_stage() {
    let lab = Lab::new().await;
    let task = lab.task(lab.spec(FIVE));
    controller(&lab.executor, &task).prepare().await.unwrap();

    let second = lab.restarted().await;
    let adopted = controller(&second, &task);
    assert_eq!(adopted.prepare().await, Err(ControllerError::AlreadyPrepared));
    adopted.start().await.unwrap();
    let pid = adopted.container_status().await.unwrap().pid;

    let third = lab.restarted().await;
    let adopted = controller(&third, &task);
    assert_eq!(adopted.start().await, Err(ControllerError::AlreadyStarted));
    assert_eq!(adopted.container_status().await.unwrap().pid, pid, "the same process");
    until_child(&lab, adopted.as_ref()).await;
    lab.signal(adopted.as_ref()).await;
    assert_eq!(within(adopted.wait()).await, exit(5));

    let fourth = lab.restarted().await;
    let adopted = controller(&fourth, &task);
    assert_eq!(adopted.start().await, Err(ControllerError::AlreadyStarted), "it is not started again");
    assert_eq!(within(adopted.wait()).await, exit(5));
    assert_eq!(lab.containers().await, 1);
    for executor in [second, third, fourth] {
        executor.close().await;
    }
    lab.done().await;
}

#[tokio::test]
async fn a_name_taken_by_something_else_is_not_adopted() {
    let lab = Lab::new().await;
    let task = lab.task(lab.spec("true"));
    let mut other = task.clone();
    other.id = swarm_api::id::random().into();
    let name = swarm_api::naming::task_name(&task);
    other.annotations.name = name.clone();
    controller(&lab.executor, &other).prepare().await.unwrap();
    let text = fatal(controller(&lab.executor, &task).prepare().await);
    assert!(text.starts_with(&format!("the container name {name} is in use by the container ")), "{text}");
    lab.done().await;
}

#[tokio::test]
async fn sweep_leaves_known_tasks_and_other_nodes_alone() {
    let (lab, foreign) = (Lab::new().await, Lab::new().await);
    let (kept, orphan, theirs) =
        (lab.task(lab.spec(SLEEP)), lab.task(lab.spec(SLEEP)), foreign.task(foreign.spec(SLEEP)));
    for (lab, task) in [(&lab, &kept), (&lab, &orphan), (&foreign, &theirs)] {
        let controller = lab.controller(task);
        controller.prepare().await.unwrap();
        controller.start().await.unwrap();
    }
    within(lab.executor.sweep(std::slice::from_ref(&kept.id.to_string()))).await.unwrap();
    assert!(lab.controller(&kept).container_status().await.unwrap().pid > 0);
    assert_eq!(lab.controller(&orphan).container_status().await, None);
    assert!(foreign.controller(&theirs).container_status().await.unwrap().pid > 0);
    foreign.done().await;
    lab.done().await;
}

#[tokio::test]
async fn identity_and_process_options_reach_the_container() {
    let lab = Lab::new().await;
    let spec = ContainerSpec {
        env: vec!["A={{.Task.Slot}}-{{.Service.Name}}".into()],
        dir: "/tmp".into(),
        user: "app".into(),
        groups: vec!["extra".into()],
        hostname: "h-{{.Task.Slot}}".into(),
        read_only: true,
        ..lab.spec("echo $A $PWD $(id -u) $(id -G) $(hostname); touch /x 2>/dev/null || echo read-only")
    };
    let task = lab.controller(&lab.task(spec));
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    within(task.wait()).await.unwrap();
    let lines = logs(task.as_ref(), LogOptions::default()).await;
    assert_eq!(texts(&lines), ["1-exectest /tmp 1000 1000 2000 h-1", "read-only"]);
    lab.done().await;
}

#[tokio::test]
async fn logs_keep_order_streams_and_long_lines() {
    let lab = Lab::new().await;
    // Each waits until the one before it is in the log: two pipes have no order.
    let task = lab.run(
        "trap 'told=1$told' USR1; echo one; until [ \"$told\" = 1 ]; do sleep 0.05; done; \
         echo two >&2; until [ \"$told\" = 11 ]; do sleep 0.05; done; printf '%040000d\\n' 0; printf tail",
    );
    let following = {
        let task = task.clone();
        tokio::spawn(
            async move { logs(task.as_ref(), LogOptions { follow: true, ..Default::default() }).await },
        )
    };
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    for count in 1..=2 {
        let looked = || async {
            anyhow::ensure!(logs(task.as_ref(), LogOptions::default()).await.len() == count);
            Ok(())
        };
        until("output", common::LONG, looked).await.unwrap();
        lab.signal(task.as_ref()).await;
    }
    within(task.wait()).await.unwrap();
    let all = logs(task.as_ref(), LogOptions::default()).await;
    let long = "0".repeat(40_000);
    assert!(texts(&all) == ["one", "two", long.as_str(), "tail"], "{:?}", brief(&all));
    assert_eq!(all[1].stream, LogStream::Stderr);
    assert!(all.windows(2).all(|pair| pair[0].timestamp <= pair[1].timestamp));
    let followed = within(following).await.unwrap();
    assert!(followed == all, "a follower that came first sees the same, not {:?}", brief(&followed));

    let with = |options| logs(task.as_ref(), options);
    let tail = with(LogOptions { tail: Some(1), ..Default::default() }).await;
    assert_eq!(texts(&tail), ["tail"]);
    let errors = with(LogOptions { streams: vec![LogStream::Stderr], ..Default::default() }).await;
    assert_eq!(texts(&errors), ["two"]);
    let since = with(LogOptions { since: Some(all[2].timestamp), ..Default::default() }).await;
    assert_eq!(since, all[2..]);
    lab.done().await;
}

#[tokio::test]
async fn terminal_output_is_one_stream_of_lines() {
    let lab = Lab::new().await;
    let task = lab.controller(&lab.task(ContainerSpec { tty: true, ..lab.spec("echo a; echo b >&2") }));
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    within(task.wait()).await.unwrap();
    let lines = logs(task.as_ref(), LogOptions::default()).await;
    assert_eq!(texts(&lines), ["a", "b"]);
    assert!(lines.iter().all(|line| line.stream == LogStream::Stdout));
    lab.done().await;
}

#[tokio::test]
async fn lines_have_the_attributes_that_the_log_driver_is_asked_for() {
    let lab = Lab::new().await;
    let team = "a b,c=d+e%41 ä";
    let options = [("labels", "team,absent"), ("env", "REGION"), ("tag", "mine")];
    for tty in [false, true] {
        let spec = ContainerSpec {
            labels: BTreeMap::from([("team".into(), team.into()), ("other".into(), "x".into())]),
            env: common::words(&["REGION=eu", "OTHER=x"]),
            tty,
            ..lab.spec("echo one=two; echo; printf '%040000d\\n' 0")
        };
        for (options, attributes) in [
            (&options[..], &[("REGION", "eu"), ("tag", "mine"), ("team", team)][..]),
            (&[("max-size", "1m")][..], &[][..]),
        ] {
            let mut task = lab.task(spec.clone());
            let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
                pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
            };
            task.log_driver = Some(Box::new(Driver { name: "json-file".into(), options: pairs(options) }));
            let task = lab.controller(&task);
            task.prepare().await.unwrap();
            task.start().await.unwrap();
            within(task.wait()).await.unwrap();
            let lines = logs(task.as_ref(), LogOptions::default()).await;
            assert_eq!(texts(&lines)[..2], ["one=two", ""]);
            let expected = pairs(attributes);
            assert!(lines.iter().all(|line| line.attrs == expected), "{tty}: {:?}", lines[0].attrs);
            // Pieces of a long line can't be told from each other behind a terminal.
            assert!(tty || lines[2].data.len() == 40_000);
        }
    }
    lab.done().await;
}

#[tokio::test]
async fn host_ports_are_published_and_reported() {
    let lab = Lab::new().await;
    let mut task = lab.task(lab.spec(SLEEP));
    let port = PortConfig { target_port: 80, publish_mode: PublishMode::Host.into(), ..Default::default() };
    task.endpoint = Some(Endpoint { ports: vec![port], ..Default::default() }.into());
    let first = lab.controller(&task);
    assert_eq!(first.port_status().await, None);
    first.prepare().await.unwrap();
    first.start().await.unwrap();
    let ports = first.port_status().await.unwrap().ports;
    assert_eq!((ports[0].target_port, ports[0].publish_mode()), (80, PublishMode::Host));
    assert!(ports[0].published_port > 0);

    // The same port again: the engine's text reaches the user.
    let mut second = lab.task(lab.spec(SLEEP));
    second.endpoint = Some(Endpoint { ports: ports.clone(), ..Default::default() }.into());
    let second = lab.controller(&second);
    second.prepare().await.unwrap();
    let text = fatal(second.start().await);
    assert!(text.starts_with("starting container failed: ") && text.contains("already allocated"), "{text}");
    lab.done().await;
}

#[tokio::test]
async fn start_waits_for_health_and_ends_the_unhealthy() {
    let lab = Lab::new().await;
    let check = |test: &str, start_period| {
        let period = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        Some(HealthConfig {
            test: vec!["CMD-SHELL".into(), test.into()],
            interval: period(0, 200_000_000),
            start_period: period(start_period, 0),
            retries: 1,
            ..Default::default()
        })
    };
    // Failures within the first minutes don't count.
    let spec = ContainerSpec {
        healthcheck: check("test -e /tmp/up", 600),
        ..lab.spec("sleep 1; touch /tmp/up; sleep 100")
    };
    let good = lab.controller(&lab.task(spec));
    good.prepare().await.unwrap();
    let began = std::time::Instant::now();
    within(good.start()).await.unwrap();
    assert!(began.elapsed() > Duration::from_millis(900), "started only once healthy");

    // It fails once the shell listens to signals.
    let spec = ContainerSpec {
        healthcheck: check("test ! -e /tmp/listens", 0),
        stop_grace_period: LONG_GRACE,
        ..lab.spec("trap 'exit 7' TERM; touch /tmp/listens; while :; do sleep 100 & wait $!; done")
    };
    let bad = lab.controller(&lab.task(spec));
    bad.prepare().await.unwrap();
    assert_eq!(
        within(bad.start()).await,
        Err(ControllerError::Exit { code: 7, cause: Some("dockerexec: unhealthy container".into()) })
    );
    lab.done().await;
}

#[tokio::test]
async fn what_the_engine_refuses_is_final_and_says_why() {
    let lab = Lab::new().await;
    let missing = lab.controller(
        &lab.task(ContainerSpec { image: "127.0.0.1:9/nobody/nothing:1".into(), ..lab.spec("") }),
    );
    let text = fatal(within(missing.prepare()).await);
    assert!(text.starts_with("pulling image 127.0.0.1:9/nobody/nothing:1 failed: "), "{text}");

    let id = format!("sha256:{}", "0".repeat(64));
    let missing = lab.controller(&lab.task(ContainerSpec { image: id, ..lab.spec("") }));
    let text = fatal(within(missing.prepare()).await);
    assert!(text.starts_with("No such image: sha256:000"), "{text}");

    let command = ContainerSpec { command: vec!["/nowhere".into()], ..lab.spec("") };
    let task = lab.controller(&lab.task(command));
    task.prepare().await.unwrap();
    let text = fatal(within(task.start()).await);
    assert!(text.starts_with("starting container failed: ") && text.contains("/nowhere"), "{text}");
    assert_eq!(task.container_status().await.unwrap().exit_code, 127);
    lab.done().await;
}

#[tokio::test]
async fn container_removed_by_somebody_is_noticed() {
    let lab = Lab::new().await;
    let task = lab.run(SLEEP);
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    let id = task.container_status().await.unwrap().container_id;
    let waiting = waited(&task);
    let options = bollard::query_parameters::RemoveContainerOptionsBuilder::new().force(true).build();
    lab.docker.remove_container(&id, Some(options)).await.unwrap();
    // Killed first, then gone: which of the two is seen is a race.
    match within(waiting).await.unwrap() {
        Err(ControllerError::Fatal(text)) => assert_eq!(text, "dockerexec: container destroyed"),
        other => assert_eq!(other, exit(137)),
    }
    assert!(task.start().await.is_err());
    lab.done().await;
}

#[tokio::test]
async fn a_container_that_somebody_else_starts_has_started() {
    let lab = Lab::new().await;
    let record = lab.task(lab.spec("echo started; sleep 1000"));
    let task = lab.controller(&record);
    task.prepare().await.unwrap();
    let id = task.container_status().await.unwrap().container_id;
    let options = None::<bollard::query_parameters::StartContainerOptions>;
    lab.docker.start_container(&id, options).await.unwrap();
    within(task.start()).await.unwrap();
    let restarted = lab.restarted().await;
    assert_eq!(within(controller(&restarted, &record).start()).await, Err(ControllerError::AlreadyStarted));
    let written = || async {
        anyhow::ensure!(!logs(task.as_ref(), LogOptions::default()).await.is_empty());
        Ok(())
    };
    until("output", common::LONG, written).await.unwrap();
    let lines = logs(task.as_ref(), LogOptions::default()).await;
    assert_eq!(texts(&lines), ["started"], "once");
    restarted.close().await;
    lab.done().await;
}

/// A task's controller as the agent has it once the task has ended.
fn kept(task: &Arc<dyn Controller>) -> tokio::task::JoinHandle<()> {
    let task = task.clone();
    tokio::spawn(async move { match task.keep_ended().await {} })
}

#[tokio::test]
async fn a_container_whose_task_has_ended_is_stopped_if_somebody_starts_it() {
    let lab = Lab::new().await;
    let (record, other) = (lab.task(lab.spec(FIVE)), lab.task(lab.spec(SLEEP)));
    let (task, replacement) = (lab.controller(&record), lab.controller(&other));
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    until_child(&lab, task.as_ref()).await;
    lab.signal(task.as_ref()).await;
    assert_eq!(within(task.wait()).await, exit(5));
    let id = task.container_status().await.unwrap().container_id;
    replacement.prepare().await.unwrap();
    replacement.start().await.unwrap();
    let pid = replacement.container_status().await.unwrap().pid;

    let keeping = kept(&task);
    for _ in 0..2 {
        lab.start_by_hand(&id).await;
        lab.until_ended(&id).await;
    }
    keeping.abort();
    let _ = keeping.await;
    assert_eq!(task.container_status().await.unwrap().exit_code, 5, "what is said of the task stays");

    // Nobody was there when it was started; who comes finds it.
    lab.start_by_hand(&id).await;
    let second = lab.restarted().await;
    let adopted = controller(&second, &record);
    let keeping = kept(&adopted);
    lab.until_ended(&id).await;
    keeping.abort();
    assert_eq!(replacement.container_status().await.unwrap().pid, pid, "who is wanted is left alone");
    assert!(lab.runs(&replacement.container_status().await.unwrap().container_id).await);
    second.close().await;
    lab.done().await;
}

#[tokio::test]
async fn a_container_that_is_restarted_by_somebody_fails_its_task_and_does_not_run() {
    let lab = Lab::new().await;
    let task = lab.run(SLEEP);
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    let id = task.container_status().await.unwrap().container_id;
    let waiting = waited(&task);
    let options = bollard::query_parameters::RestartContainerOptionsBuilder::new().t(0).build();
    lab.docker.restart_container(&id, Some(options)).await.unwrap();
    // It was seen to end, or to be another one: which of the two is a race.
    let error = within(waiting).await.unwrap().unwrap_err();
    let cause = "dockerexec: container was restarted by somebody else";
    match &error {
        ControllerError::Exit { cause: None, .. } => {}
        ControllerError::Exit { cause: Some(text), .. } | ControllerError::Fatal(text) => {
            assert_eq!(text, cause);
        }
        other => panic!("{other:?}"),
    }
    let keeping = kept(&task);
    lab.until_ended(&id).await;
    keeping.abort();
    lab.done().await;
}

#[tokio::test]
async fn a_container_of_no_task_of_the_node_is_stopped_once_it_is_known_what_belongs_here() {
    let lab = Lab::new().await;
    let [known, unknown, late] = [(); 3].map(|()| lab.task(lab.spec(SLEEP)));
    let second = lab.restarted().await;
    let run = async |executor: &swarm_executor_docker::DockerExecutor, record| {
        let task = controller(executor, record);
        task.prepare().await.unwrap();
        task.start().await.unwrap();
        let id = task.container_status().await.unwrap().container_id;
        (task, id)
    };
    // The first daemon is for what the second one does not know of.
    let (_, kept) = run(&lab.executor, &known).await;
    within(second.sweep(std::slice::from_ref(&known.id.to_string()))).await.unwrap();
    let (of_late, own) = run(&second, &late).await;
    // A daemon that stops lets go of its tasks before it stops to listen.
    drop(of_late);
    let (_, stray) = run(&lab.executor, &unknown).await;
    for _ in 0..2 {
        lab.until_ended(&stray).await;
        lab.start_by_hand(&stray).await;
    }
    lab.until_ended(&stray).await;
    assert!(lab.runs(&kept).await && lab.runs(&own).await);
    second.close().await;
    lab.done().await;
}

#[tokio::test]
async fn what_runs_of_a_task_that_nobody_can_look_after_any_more_is_stopped() {
    let lab = Lab::new().await;
    let record = lab.task(lab.spec(SLEEP));
    let task = lab.controller(&record);
    task.prepare().await.unwrap();
    task.start().await.unwrap();
    let id = task.container_status().await.unwrap().container_id;
    let second = lab.restarted().await;
    // As if the engine, or the daemon, were not any more what the task needs.
    let mount = Mount { r#type: mount::Type::Cluster as i32, target: "/data".into(), ..Default::default() };
    let unfit =
        Task { id: record.id.clone(), ..lab.task(ContainerSpec { mounts: vec![mount], ..lab.spec(SLEEP) }) };
    second.controller(&unfit.into(), Arc::new(Given::default())).err().expect("it can't be had");
    within(second.sweep(std::slice::from_ref(&record.id.to_string()))).await.unwrap();
    // A start that nobody waits for has everything compared soon.
    let unknown = lab.run(SLEEP);
    unknown.prepare().await.unwrap();
    unknown.start().await.unwrap();
    lab.until_ended(&id).await;
    second.close().await;
    lab.done().await;
}

async fn rename(lab: &Lab, id: &str) {
    let name = format!("renamed-{}", swarm_api::id::random());
    let options = bollard::query_parameters::RenameContainerOptionsBuilder::new().name(&name).build();
    lab.docker.rename_container(id, options).await.unwrap();
}

#[tokio::test]
async fn a_container_that_somebody_renames_is_still_the_tasks() {
    let lab = Lab::new().await;
    let mut record = lab.task(lab.spec(FIVE));
    let task = lab.controller(&record);
    task.prepare().await.unwrap();
    let id = task.container_status().await.unwrap().container_id;
    rename(&lab, &id).await;
    // A daemon that was restarted in the middle of it makes no second one.
    record.status.state = swarm_api::TaskState::Preparing as i32;
    let second = lab.restarted().await;
    let adopted = controller(&second, &record);
    assert_eq!(within(adopted.prepare()).await, Err(ControllerError::AlreadyPrepared));
    within(adopted.start()).await.unwrap();
    let pid = adopted.container_status().await.unwrap().pid;

    // Somebody else's container has the name now.
    let mut other = lab.task(lab.spec(SLEEP));
    other.annotations.name = swarm_api::naming::task_name(&record);
    let other = lab.controller(&other);
    other.prepare().await.unwrap();
    other.start().await.unwrap();
    let others = other.container_status().await.unwrap().container_id;
    rename(&lab, &id).await;
    let third = lab.restarted().await;
    let found = controller(&third, &record);
    assert_eq!(within(found.start()).await, Err(ControllerError::AlreadyStarted));
    let status = found.container_status().await.unwrap();
    assert_eq!((status.container_id, status.pid), (id.clone(), pid), "it runs, and is the same");
    until_child(&lab, found.as_ref()).await;
    lab.signal(found.as_ref()).await;
    for task in [&adopted, &found] {
        assert_eq!(within(task.wait()).await, exit(5));
    }
    // A daemon that has never seen it removes it all the same, and nothing else.
    let fourth = lab.restarted().await;
    within(controller(&fourth, &record).remove()).await.unwrap();
    assert_eq!(lab.containers().await, 1);
    assert!(lab.runs(&others).await);
    for executor in [second, third, fourth] {
        executor.close().await;
    }
    lab.done().await;
}

#[tokio::test]
async fn engine_describes_its_host() {
    let lab = Lab::new().await;
    let description = lab.executor.describe().await.unwrap();
    let resources = description.resources.unwrap();
    assert!(resources.nano_cpus >= 1_000_000_000 && resources.memory_bytes > 0);
    assert_eq!(
        (description.os.as_deref(), lab.executor.runtimes()),
        (Some("linux"), vec!["container".into()])
    );
    assert!(!description.engine_version.is_empty() && !description.architecture.unwrap().is_empty());
    let drivers: Vec<&str> =
        description.plugins.iter().filter(|p| p.r#type == "Network").map(|p| p.name.as_str()).collect();
    assert!(drivers.contains(&"bridge"), "{drivers:?}");
    assert!(!drivers.contains(&"overlay"), "nothing is announced that would be rejected: {drivers:?}");
    lab.done().await;
}
