//! Commands in tasks that run as processes of this host, and what such tasks use.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::Uid;
use prost::{Message, Name};
use swarm_agent::{
    AttachOptions, Controller, ControllerError, Dependencies, DependencyError, ExecOptions, Executor, Input,
    Size,
};
use swarm_api::Shared;
use swarm_api::id;
use swarm_api::swarmd::ProcessSpec;
use swarm_api::v1::{
    Config, GenericRuntimeSpec, ResourceRequirements, Resources, Secret, Task, TaskSpec, task_spec,
};
use swarm_executor_process::ProcessExecutor;
use swarm_testkit::visit::{Visit, Written, shell};
use swarm_testkit::wait::until;

const LONG: Duration = Duration::from_secs(120);

struct Nothing;

impl Dependencies for Nothing {
    fn secret(&self, _: &Task, id: &str) -> Result<Shared<Secret>, DependencyError> {
        Err(DependencyError { kind: "secret", id: id.to_owned(), refused: false })
    }
    fn config(&self, _: &Task, id: &str) -> Result<Shared<Config>, DependencyError> {
        Err(DependencyError { kind: "config", id: id.to_owned(), refused: false })
    }
}

/// A task that runs. What is left of it is ended with this.
struct Running {
    _state: tempfile::TempDir,
    executor: ProcessExecutor,
    id: String,
    controller: Arc<dyn Controller>,
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("an answer in time")
}

async fn start(script: &str) -> Running {
    start_with(script, |_| {}).await
}

async fn start_with(script: &str, change: impl FnOnce(&mut Task)) -> Running {
    let state = tempfile::tempdir().unwrap();
    let shim = env!("CARGO_BIN_EXE_swarm-process-shim");
    let executor = ProcessExecutor::with_shim(state.path(), shim.into()).unwrap();
    let spec = ProcessSpec {
        command: vec!["sh".into(), "-c".into(), script.into()],
        env: vec!["COLOUR=blue".into(), "SHAPE=round".into()],
        ..Default::default()
    };
    let payload = prost_types::Any { type_url: ProcessSpec::type_url(), value: spec.encode_to_vec() };
    let runtime = GenericRuntimeSpec { kind: "process".into(), payload: Some(payload) };
    let mut task = Task {
        id: id::random().into(),
        node_id: "n".into(),
        spec: TaskSpec { runtime: Some(task_spec::Runtime::Generic(runtime)), ..Default::default() }.into(),
        ..Default::default()
    };
    change(&mut task);
    let id = task.id.clone();
    let controller = executor.controller(&task.into(), Arc::new(Nothing)).unwrap();
    within(controller.prepare()).await.unwrap();
    within(controller.start()).await.unwrap();
    Running { _state: state, executor, id: id.to_string(), controller }
}

impl Running {
    /// Executes a command to its end.
    async fn run(&self, options: ExecOptions) -> (Result<i32, ControllerError>, Written) {
        within(Visit::exec(&self.controller, options).end()).await.unwrap()
    }

    async fn sh(&self, script: &str) -> (i32, String, String) {
        let (result, written) = self.run(shell(script)).await;
        (result.unwrap(), written.text(), written.errors())
    }

    /// Living processes of the task, by the variable that all of them inherit.
    fn processes(&self) -> BTreeSet<i32> {
        let marker = format!("SWARMD_TASK_ID={}", self.id).into_bytes();
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.split(|byte| *byte == 0).any(|entry| entry == marker)
            })
            .collect()
    }

    async fn done(self) {
        within(self.executor.sweep(&[])).await.unwrap();
        assert_eq!(self.processes(), BTreeSet::new());
        self.executor.close().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_has_what_the_task_has_and_its_own_streams_and_code() {
    let task = start("exec sleep 1000").await;
    assert_eq!(task.sh("echo out; echo err >&2; exit 7").await, (7, "out\n".into(), "err\n".into()));
    assert_eq!(task.sh("kill -KILL $$").await.0, 137);
    let script = "echo $COLOUR $SWARMD_TASK_ID; cat; basename $PWD";
    assert_eq!(task.sh(script).await, (0, format!("blue {}\nwork\n", task.id), String::new()));
    let other = ExecOptions {
        dir: "/tmp".into(),
        env: vec!["COLOUR=red".into(), "SIZE=7=7".into(), "EMPTY=".into()],
        ..shell("echo $COLOUR $SHAPE $SIZE ${EMPTY-absent} $PWD")
    };
    let (result, written) = task.run(other).await;
    assert_eq!((result, written.text().as_str()), (Ok(0), "red round 7=7 /tmp\n"));
    assert_eq!(written.started, Some((false, false)));
    task.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_executed_says_why() {
    let task = start("exec sleep 1000").await;
    let command = |words: &[&str]| ExecOptions {
        command: words.iter().map(|word| word.to_string()).collect(),
        ..shell("")
    };
    let (result, written) = task.run(command(&["nonsense-nonsense"])).await;
    assert_eq!(result, Ok(127));
    assert_eq!(
        written.errors(),
        "swarmd: executing nonsense-nonsense: No such file or directory (os error 2)\n"
    );
    let (result, written) = task.run(command(&["/etc/passwd"])).await;
    assert_eq!(result, Ok(126));
    assert!(written.errors().contains("Permission denied"), "{written:?}");
    let (result, written) = task.run(ExecOptions { dir: "/nonsense".into(), ..shell("true") }).await;
    assert_eq!(result, Ok(126));
    assert!(written.errors().contains("changing to the directory /nonsense: No such file"), "{written:?}");
    for (options, text) in [
        (
            ExecOptions { user: "nobody-knows".into(), ..shell("true") },
            "no user \"nobody-knows\" on this node",
        ),
        (ExecOptions { dir: "tmp".into(), ..shell("true") }, "must be an absolute path"),
        (
            ExecOptions { env: vec!["SWARMD_TASK_ID=x".into()], ..shell("true") },
            "can't be in the environment",
        ),
    ] {
        let (result, written) = task.run(options).await;
        assert!(matches!(&result, Err(ControllerError::Fatal(error)) if error.contains(text)), "{result:?}");
        assert_eq!(written.started, None);
    }
    within(task.controller.terminate()).await.unwrap();
    let (result, _) = task.run(shell("true")).await;
    assert_eq!(result, Err(ControllerError::Fatal("the task does not run".into())));
    task.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_may_run_as_another_user() {
    if !Uid::effective().is_root() {
        panic!("this test needs root: only root can become another user");
    }
    let task = start("exec sleep 1000").await;
    let options =
        ExecOptions { user: "nobody".into(), dir: "/".into(), ..shell("id -un; id -gn; echo $HOME $USER") };
    let (result, written) = task.run(options).await;
    let text = written.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((result, lines[0], lines[1]), (Ok(0), "nobody", "nogroup"), "{written:?}");
    assert!(lines[2].ends_with(" nobody"), "{text}");
    let numbers = ExecOptions { user: "1234:2345".into(), dir: "/".into(), ..shell("id -u; id -g") };
    assert_eq!(task.run(numbers).await.1.text(), "1234\n2345\n");
    task.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_comes_whole_and_ends() {
    let task = start("exec sleep 1000").await;
    let visit = Visit::exec(&task.controller, ExecOptions { stdin: true, ..shell("md5sum; echo end") });
    let chunk = "0123456789abcdef".repeat(1024);
    for _ in 0..256 {
        visit.say(&chunk).await;
    }
    visit.send(Input::End).await;
    let (result, written) = within(visit.end()).await.unwrap();
    assert_eq!(result, Ok(0));
    // 4 MiB of it, as md5sum has it.
    let expected = std::process::Command::new("sh")
        .args(["-c", "yes 0123456789abcdef | tr -d '\\n' | head -c 4194304 | md5sum; echo end"])
        .output()
        .unwrap();
    assert_eq!(written.out, expected.stdout);
    // A command that reads nothing does not keep anybody.
    let visit = Visit::exec(&task.controller, ExecOptions { stdin: true, ..shell("exit 3") });
    for _ in 0..64 {
        visit.say(&chunk).await;
    }
    assert_eq!(within(visit.end()).await.unwrap().0, Ok(3));
    task.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_a_size_and_passes_keys_on() {
    let task = start("exec sleep 1000").await;
    let size = |rows, columns| Size { rows, columns };
    let script = "stty size; tty >/dev/null && echo terminal; trap 'echo changed; stty size' WINCH; \
                  trap 'echo interrupted' INT; echo ready $TERM; while [ \"$line\" != end ]; do read line && echo \"got $line\"; done";
    let options = ExecOptions { stdin: true, tty: true, size: Some(size(33, 99)), ..shell(script) };
    let mut visit = Visit::exec(&task.controller, options);
    within(visit.until("ready xterm")).await.unwrap();
    within(visit.until("33 99\r\nterminal\r\n")).await.unwrap();
    visit.send(Input::Size(size(12, 34))).await;
    within(visit.until("changed\r\n12 34")).await.unwrap();
    visit.say("hello\r").await;
    within(visit.until("got hello")).await.unwrap();
    visit.say("\x03").await;
    within(visit.until("interrupted")).await.unwrap();
    visit.say("end\r").await;
    let (result, written) = within(visit.end()).await.unwrap();
    assert_eq!((result, written.started), (Ok(0), Some((true, true))), "{}", written.text());
    // A terminal of another user belongs to that one.
    let options =
        ExecOptions { tty: true, user: "nobody".into(), dir: "/".into(), ..shell("stat -c %U $(tty)") };
    assert_eq!(task.run(options).await.1.text(), "nobody\r\n");
    task.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_ends_with_the_task_and_all_it_started_with_it() {
    let task = start("exec sleep 1000").await;
    let own = task.processes();
    // What it leaves in the background does not outlive it.
    let (code, out, _) = task.sh("sleep 1000 & (setsid sleep 1000 &) ; echo left").await;
    assert_eq!((code, out.as_str()), (0, "left\n"));
    assert_eq!(task.processes(), own);
    for tty in [false, true] {
        let script = "trap '' HUP; sleep 1000 & echo started; wait; sleep 1000";
        let mut visit = Visit::exec(&task.controller, ExecOptions { tty, stdin: true, ..shell(script) });
        within(visit.until("started")).await.unwrap();
        // While one begins another program, nobody can say whose it is.
        until("the shell and what it started", LONG, || async {
            let there = task.processes();
            anyhow::ensure!(there.len() >= own.len() + 2, "{there:?} beside {own:?}");
            Ok(())
        })
        .await
        .unwrap();
        // Nobody is there any more.
        let began = Instant::now();
        within(visit.leave()).await.unwrap().unwrap();
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(task.processes(), own);
    }
    let mut visit = Visit::exec(&task.controller, shell("echo started; exec sleep 1000"));
    within(visit.until("started")).await.unwrap();
    within(task.controller.terminate()).await.unwrap();
    let (result, _) = within(visit.end()).await.unwrap();
    assert!(result.is_ok_and(|code| code > 128), "a signal ended it");
    assert_eq!(task.processes(), BTreeSet::new());
    task.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attaching_shows_what_is_written_from_now_on() {
    let script = "echo before; until [ -e go ]; do sleep 0.02; done; echo after; echo wrong >&2; \
                  until [ -e end ]; do sleep 0.02; done; exit 5";
    let task = start(script).await;
    let file =
        |name: &str| task._state.path().join("processes").join(task.id.as_str()).join("work").join(name);
    let log = task._state.path().join("processes").join(task.id.as_str()).join("log");
    until("the first line", LONG, || async {
        anyhow::ensure!(std::fs::metadata(&log)?.len() > 0);
        Ok(())
    })
    .await
    .unwrap();
    let attach = AttachOptions { stdin: true, size: None };
    let mut visit = Visit::attach(&task.controller, attach);
    let mut other = Visit::attach(&task.controller, attach);
    // What was there before has been passed then.
    within(visit.started()).await.unwrap();
    within(other.started()).await.unwrap();
    std::fs::write(file("go"), "").unwrap();
    within(visit.until("after")).await.unwrap();
    within(other.until("after")).await.unwrap();
    within(other.leave()).await.unwrap().unwrap();
    assert!(!task.processes().is_empty(), "the task goes on");
    std::fs::write(file("end"), "").unwrap();
    let (result, written) = within(visit.end()).await.unwrap();
    assert_eq!((result, written.text().as_str(), written.errors().as_str()), (Ok(5), "after\n", "wrong\n"));
    assert_eq!(written.started, Some((false, false)));
    task.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_tell_a_busy_task_from_an_idle_one() {
    let limit = 512 << 20;
    let with_limit = |task: &mut Task| {
        let mut spec = (*task.spec).clone();
        let limits = Resources { memory_bytes: limit, ..Default::default() };
        spec.resources = Some(ResourceRequirements { limits: Some(limits), ..Default::default() });
        task.spec = spec.into();
    };
    let busy =
        start_with("x=$(head -c 20000000 /dev/zero | tr '\\0' x); while :; do :; done", with_limit).await;
    let idle = start("exec sleep 1000").await;
    let share = async |task: &Running| {
        let (before, began) = (task.controller.stats().await.unwrap(), Instant::now());
        tokio::time::sleep(Duration::from_secs(1)).await; // what is measured is time
        let after = task.controller.stats().await.unwrap();
        let nanos = after.cpu_nanos.unwrap() - before.cpu_nanos.unwrap();
        nanos as f64 / began.elapsed().as_nanos() as f64
    };
    until("20 MB in use", LONG, || async {
        let used = busy.controller.stats().await?.memory_bytes.unwrap();
        anyhow::ensure!(used > 20_000_000, "{used}");
        Ok(())
    })
    .await
    .unwrap();
    let (busy_share, idle_share) = (share(&busy).await, share(&idle).await);
    let cores = std::thread::available_parallelism().unwrap().get() as f64;
    assert!(busy_share > 0.1 && busy_share < cores + 0.2, "{busy_share}");
    assert!(idle_share < 0.05, "{idle_share}");
    let (of_busy, of_idle) = (busy.controller.stats().await.unwrap(), idle.controller.stats().await.unwrap());
    assert!((1..20_000_000).contains(&of_idle.memory_bytes.unwrap()), "{of_idle:?}");
    assert_eq!((of_busy.memory_limit, of_idle.memory_limit), (Some(limit as u64), None));
    assert_eq!((of_idle.pids, of_idle.received_bytes), (Some(1), None));
    within(idle.controller.terminate()).await.unwrap();
    assert!(idle.controller.stats().await.is_err());
    busy.done().await;
    idle.done().await;
}
