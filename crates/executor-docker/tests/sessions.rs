//! Commands in containers of a real engine, the input and output of containers, and what they use.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Lab, within};
use swarm_agent::{AttachOptions, Controller, ControllerError, ExecOptions, Input, Size};
use swarm_api::v1::{ContainerSpec, ResourceRequirements, Resources};
use swarm_testkit::visit::{Visit, shell};
use swarm_testkit::wait::until;

async fn start(lab: &Lab, spec: ContainerSpec) -> Arc<dyn Controller> {
    let task = lab.controller(&lab.task(spec));
    within(task.prepare()).await.unwrap();
    within(task.start()).await.unwrap();
    task
}

async fn run(task: &Arc<dyn Controller>, options: ExecOptions) -> (i32, String, String) {
    let (result, written) = within(Visit::exec(task, options).end()).await.unwrap();
    (result.unwrap(), written.text(), written.errors())
}

/// A container that does nothing, and ends when it is asked to.
const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 1; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_has_its_own_streams_and_code() {
    let lab = Lab::new().await;
    let spec = ContainerSpec { env: vec!["COLOUR=blue".into()], dir: "/tmp".into(), ..lab.spec(IDLE) };
    let task = start(&lab, spec).await;
    let result = run(&task, shell("echo out $COLOUR $PWD; echo err >&2; exit 7")).await;
    assert_eq!(result, (7, "out blue /tmp\n".into(), "err\n".into()));
    let other = ExecOptions {
        user: "1234:2345".into(),
        dir: "/".into(),
        env: vec!["COLOUR=red".into()],
        ..shell("echo $(id -u):$(id -g) $PWD $COLOUR")
    };
    assert_eq!(run(&task, other).await, (0, "1234:2345 / red\n".into(), String::new()));
    let absent = ExecOptions { command: vec!["nonsense".into()], ..shell("") };
    let (code, out, err) = run(&task, absent).await;
    assert!(code == 126 || code == 127, "{code}");
    assert!(format!("{out}{err}").contains("nonsense"), "{out} {err}");
    within(task.shutdown()).await.unwrap();
    let (result, written) = within(Visit::exec(&task, shell("true")).end()).await.unwrap();
    let error = match result {
        Err(ControllerError::Fatal(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(error.contains("executing a command failed") && error.contains("not running"), "{error}");
    assert_eq!(written.started, None);
    lab.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_comes_whole_and_ends() {
    let lab = Lab::new().await;
    let task = start(&lab, lab.spec(IDLE)).await;
    let visit = Visit::exec(&task, ExecOptions { stdin: true, ..shell("wc -c; echo end >&2") });
    let chunk = "0123456789abcdef".repeat(1024);
    for _ in 0..256 {
        visit.say(&chunk).await;
    }
    visit.send(Input::End).await;
    let (result, written) = within(visit.end()).await.unwrap();
    assert_eq!((result, written.text().trim(), written.errors().as_str()), (Ok(0), "4194304", "end\n"));
    lab.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_a_size_and_passes_every_byte_on() {
    let lab = Lab::new().await;
    let task = start(&lab, lab.spec(IDLE)).await;
    let script = "trap 'echo changed; stty size' WINCH; echo ready; while [ \"$line\" != end ]; do read line && echo \"got $line\" && stty size; done; \
                  printf '\\001\\002\\000bytes'; exit 9";
    let size = Some(Size { rows: 33, columns: 99 });
    let mut visit = Visit::exec(&task, ExecOptions { stdin: true, tty: true, size, ..shell(script) });
    within(visit.until("ready")).await.unwrap();
    // A size that was given comes a moment after the terminal.
    visit.say("hello\r").await;
    within(visit.until("got hello")).await.unwrap();
    within(visit.until("33 99")).await.unwrap();
    visit.send(Input::Size(Size { rows: 12, columns: 34 })).await;
    within(visit.until("12 34")).await.unwrap();
    visit.say("\x10\x11again\r").await;
    within(visit.until("again")).await.unwrap();
    visit.say("end\r").await;
    let (result, written) = within(visit.end()).await.unwrap();
    assert_eq!((result, written.started), (Ok(9), Some((true, true))));
    assert!(written.out.ends_with(b"\x01\x02\0bytes"), "{:?}", written.text());
    lab.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_ends_with_whoever_wanted_it_and_with_the_task() {
    let lab = Lab::new().await;
    let task = start(&lab, lab.spec(IDLE)).await;
    // What runs in the container, by its names.
    let count = async |what: &str| {
        let list = run(&task, shell("ps -o args")).await.1;
        list.lines().filter(|line| line.contains(what)).count()
    };
    for (tty, mark) in [(false, "4321"), (true, "5432")] {
        let script = format!("sleep {mark} & echo started; wait");
        let mut visit = Visit::exec(&task, ExecOptions { tty, stdin: true, ..shell(&script) });
        within(visit.until("started")).await.unwrap();
        assert!(count(&format!("sleep {mark}")).await > 0);
        let began = Instant::now();
        within(visit.leave()).await.unwrap().unwrap();
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        until("the command to be gone", common::LONG, || async {
            let left = count(&format!("sleep {mark}")).await;
            anyhow::ensure!(left == 0, "{left}");
            Ok(())
        })
        .await
        .unwrap();
    }
    let mut visit = Visit::exec(&task, shell("echo started; exec sleep 1000"));
    within(visit.until("started")).await.unwrap();
    within(task.terminate()).await.unwrap();
    let (result, _) = within(visit.end()).await.unwrap();
    assert!(result.is_ok_and(|code| code == 137), "it was killed with its container");
    lab.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attaching_joins_the_containers_own_process() {
    let lab = Lab::new().await;
    let script = "echo before; while read line; do echo \"got $line\"; [ \"$line\" = end ] && exit 5; done; echo no input";
    let task = start(&lab, ContainerSpec { open_stdin: true, ..lab.spec(script) }).await;
    let attach = AttachOptions { stdin: true, size: None };
    let mut visit = Visit::attach(&task, attach);
    within(visit.started()).await.unwrap();
    visit.say("one\n").await;
    within(visit.until("got one")).await.unwrap();
    within(visit.leave()).await.unwrap().unwrap();
    // The task goes on, and so does its input.
    let mut visit = Visit::attach(&task, attach);
    within(visit.started()).await.unwrap();
    visit.say("two\n").await;
    within(visit.until("got two")).await.unwrap();
    visit.say("end\n").await;
    let (result, written) = within(visit.end()).await.unwrap();
    assert_eq!((result, written.text().as_str()), (Ok(5), "got two\ngot end\n"));
    assert_eq!(written.started, Some((true, false)));

    // With a terminal.
    let script = "stty size; while read line; do stty size; [ \"$line\" = end ] && exit 6; done";
    let task = start(&lab, ContainerSpec { open_stdin: true, tty: true, ..lab.spec(script) }).await;
    let mut visit =
        Visit::attach(&task, AttachOptions { stdin: true, size: Some(Size { rows: 21, columns: 43 }) });
    within(visit.started()).await.unwrap();
    visit.say("x\r").await;
    within(visit.until("21 43")).await.unwrap();
    visit.send(Input::Size(Size { rows: 22, columns: 44 })).await;
    visit.say("end\r").await;
    let (result, written) = within(visit.end()).await.unwrap();
    assert_eq!((result, written.started), (Ok(6), Some((true, true))));
    assert!(written.text().contains("22 44"), "{}", written.text());

    // Without a standard input none is promised.
    let task = start(&lab, lab.spec(IDLE)).await;
    let mut visit = Visit::attach(&task, attach);
    within(visit.started()).await.unwrap();
    visit.say("x\n").await;
    within(task.shutdown()).await.unwrap();
    let (result, written) = within(visit.end()).await.unwrap();
    assert_eq!((result, written.started), (Ok(0), Some((false, false))));
    lab.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_tell_a_busy_container_from_an_idle_one() {
    let lab = Lab::new().await;
    let idle = start(&lab, lab.spec("exec sleep 1000")).await;
    let mut task = lab.task(lab.spec("while :; do :; done"));
    let limit = 64 << 20;
    let mut spec = (*task.spec).clone();
    let limits = Resources { memory_bytes: limit, ..Default::default() };
    spec.resources = Some(ResourceRequirements { limits: Some(limits), ..Default::default() });
    task.spec = spec.into();
    let busy = lab.controller(&task);
    within(busy.prepare()).await.unwrap();
    within(busy.start()).await.unwrap();
    let share = async |task: &Arc<dyn Controller>| {
        let (before, began) = (task.stats().await.unwrap(), Instant::now());
        tokio::time::sleep(Duration::from_secs(1)).await; // what is measured is time
        let after = task.stats().await.unwrap();
        let nanos = after.cpu_nanos.unwrap() - before.cpu_nanos.unwrap();
        nanos as f64 / began.elapsed().as_nanos() as f64
    };
    let (busy_share, idle_share) = (share(&busy).await, share(&idle).await);
    assert!(busy_share > 0.1 && busy_share < 1.5, "{busy_share}");
    assert!(idle_share < 0.05, "{idle_share}");
    let (of_busy, of_idle) = (busy.stats().await.unwrap(), idle.stats().await.unwrap());
    assert_eq!((of_busy.memory_limit, of_idle.memory_limit), (Some(limit as u64), None));
    assert!((1..20_000_000).contains(&of_idle.memory_bytes.unwrap()), "{of_idle:?}");
    assert_eq!(of_idle.pids, Some(1));
    within(idle.shutdown()).await.unwrap();
    within(idle.remove()).await.unwrap();
    assert!(idle.stats().await.is_err());
    lab.done().await;
}
