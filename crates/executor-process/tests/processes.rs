//! Tasks as real processes of this host.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Uid;
use swarm_agent::{ControllerError, Executor, LogOptions, LogStream};
use swarm_api::swarmd::{ProcessSpec, process_spec::Rlimit};
use swarm_api::v1::Node;
use swarm_testkit::wait::until;

use common::*;

#[tokio::test]
async fn task_runs_to_its_end_and_says_how() {
    let lab = Lab::new();
    for (script, expected, code) in [
        ("true", Ok(()), 0),
        ("exit 3", exit(3), 3),
        ("kill -9 $$", exit(137), 137),
        ("kill -15 $$", exit(143), 143),
    ] {
        let task = lab.run(script);
        assert_eq!(task.container_status().await, None);
        within(task.prepare()).await.unwrap();
        assert_eq!(task.prepare().await, Err(ControllerError::AlreadyPrepared));
        within(task.start()).await.unwrap();
        assert_eq!(within(task.wait()).await, expected, "{script}");
        assert_eq!(within(task.start()).await, Err(ControllerError::AlreadyStarted));
        let status = task.container_status().await.unwrap();
        assert_eq!((status.pid, status.exit_code), (0, code));
        within(task.remove()).await.unwrap();
        within(task.remove()).await.unwrap();
        assert_eq!(task.container_status().await, None);
    }
    lab.done().await;
}

#[tokio::test]
async fn a_wait_may_be_cancelled_and_is_woken_by_the_end() {
    let lab = Lab::new();
    let record = lab.task(&shell(&format!("{}; exit 4", wait_for("go"))));
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    assert!(pid_of(task.as_ref()).await > 0);
    assert!(tokio::time::timeout(Duration::from_millis(50), task.wait()).await.is_err());
    lab.tell(&record, "go");
    assert_eq!(within(task.wait()).await, exit(4));
    lab.done().await;
}

#[tokio::test]
async fn environment_directory_and_arguments_are_the_tasks() {
    let lab = Lab::new();
    let mut spec = shell("echo $0 $1 $PWD $A $SWARMD_TASK_NAME; env | wc -l");
    spec.args = vec!["zero".into(), "{{one}}".into()];
    spec.env = vec!["A={{.Task.Slot}}-{{.Service.Name}}".into()];
    spec.dir = "/tmp".into();
    let record = lab.task(&spec);
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    within(task.wait()).await.unwrap();
    let lines = output(task.as_ref()).await;
    assert_eq!(lines[0], format!("zero {{{{one}}}} /tmp 1-proctest proctest.1.{}", record.id));
    // PATH, A, six of the identity, and PWD, which the shell adds.
    assert_eq!(lines[1].trim(), "9", "nothing of the daemon's environment");

    let own = lab.controller(&lab.task(&shell("pwd; echo x > file; ls")));
    start(own.as_ref()).await;
    within(own.wait()).await.unwrap();
    let lines = output(own.as_ref()).await;
    assert!(lines[0].ends_with("/work") && lines[1] == "file", "{lines:?}");
    lab.done().await;
}

#[tokio::test]
async fn signals_of_the_command_are_not_the_daemons() {
    let lab = Lab::new();
    let task = lab.run("(yes; echo $? >&2) | head -n 1");
    start(task.as_ref()).await;
    within(task.wait()).await.unwrap();
    let lines: BTreeSet<_> = output(task.as_ref()).await.into_iter().collect();
    assert_eq!(lines, ["141", "y"].map(str::to_owned).into(), "a closed pipe ends the writer");

    // Without a shell, which has signals of its own.
    let command = ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"].map(str::to_owned).to_vec();
    let task = lab.controller(&lab.task(&ProcessSpec { command, ..Default::default() }));
    start(task.as_ref()).await;
    within(task.wait()).await.unwrap();
    for line in output(task.as_ref()).await {
        let mask = u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
        // 32 and 33 are the C library's.
        assert_eq!(mask & !0x1_8000_0000, 0, "{line}");
    }
    lab.done().await;
}

#[tokio::test]
async fn user_groups_and_limits_are_set() {
    assert!(Uid::effective().is_root(), "this test needs root");
    let lab = Lab::new();
    let mut spec = shell(
        "id -u; id -g; id -G; ulimit -n; touch ok && echo writable; cat /proc/1/environ || echo hidden",
    );
    spec.user = "4711:4712".into();
    spec.groups = vec!["4713".into()];
    spec.rlimits = vec![Rlimit { name: "nofile".into(), soft: 64, hard: 64 }];
    let task = lab.controller(&lab.task(&spec));
    start(task.as_ref()).await;
    within(task.wait()).await.unwrap();
    let lines =
        logs(task.as_ref(), LogOptions { streams: vec![LogStream::Stdout], ..Default::default() }).await;
    assert_eq!(texts(&lines), ["4711", "4712", "4712 4713", "64", "writable", "hidden"]);
    lab.done().await;
}

#[tokio::test]
async fn what_can_not_be_started_says_why_also_after_a_restart() {
    let mut lab = Lab::new();
    let spec = |command: &str| ProcessSpec { command: vec![command.into()], ..Default::default() };
    let file = lab.state.path().join("plain");
    std::fs::write(&file, "").unwrap();
    let plain = file.to_str().unwrap().to_owned();
    let cases = [
        (spec("no-such-program"), 127, "executing no-such-program: No such file"),
        (spec(&plain), 126, "Permission denied"),
        (
            ProcessSpec { dir: "/nonexistent".into(), ..spec("true") },
            126,
            "changing to the directory /nonexistent: ",
        ),
    ];
    for (spec, code, part) in cases {
        let record = lab.task(&spec);
        let task = lab.controller(&record);
        within(task.prepare()).await.unwrap();
        for _ in 0..2 {
            let text = fatal(within(lab.controller(&record).start()).await);
            assert!(text.starts_with("starting process failed: ") && text.contains(part), "{text}");
            assert_eq!(lab.controller(&record).container_status().await.unwrap().exit_code, code);
            lab.restart();
        }
    }
    lab.done().await;
}

#[tokio::test]
async fn shutdown_asks_the_group_then_kills_all_of_it() {
    let lab = Lab::new();
    // Waiting, it hears of a signal at any time; a shell that is about to start something would do that first.
    let polite = lab.task(&shell("trap 'exit 7' TERM; sleep 1000 & echo up; wait"));
    let task = lab.controller(&polite);
    start(task.as_ref()).await;
    until_lines(task.as_ref(), 1).await;
    within(task.shutdown()).await.unwrap();
    assert_eq!(within(task.wait()).await, exit(7));
    assert_eq!(processes_of(&polite.id), BTreeSet::new());

    // One that does not listen, with a child that left the group and the session.
    let mut spec = shell("trap '' TERM; setsid sleep 1000 & sleep 1000 & while :; do sleep 1; done");
    spec.stop_grace_period = Some(prost_types::Duration { seconds: 2, nanos: 0 });
    let stubborn = lab.task(&spec);
    let task = lab.controller(&stubborn);
    start(task.as_ref()).await;
    until_processes(&stubborn, 4).await;
    let began = std::time::Instant::now();
    within(task.shutdown()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(2), "the grace period is given");
    assert_eq!(within(task.wait()).await, exit(137));
    assert_eq!(processes_of(&stubborn.id), BTreeSet::new());
    within(task.shutdown()).await.unwrap();
    lab.done().await;
}

#[tokio::test]
async fn stop_signal_of_the_spec_is_sent() {
    let lab = Lab::new();
    let mut spec = shell("trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done");
    spec.stop_signal = "SIGUSR1".into();
    let task = lab.controller(&lab.task(&spec));
    start(task.as_ref()).await;
    until_lines(task.as_ref(), 1).await;
    within(task.shutdown()).await.unwrap();
    assert_eq!(within(task.wait()).await, exit(9));
    lab.done().await;
}

#[tokio::test]
async fn what_the_command_leaves_behind_ends_with_it() {
    let lab = Lab::new();
    let record = lab.task(&shell("setsid sleep 1000 & sleep 1000 & exit 5"));
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    assert_eq!(within(task.wait()).await, exit(5));
    assert_eq!(processes_of(&record.id), BTreeSet::new());
    lab.done().await;
}

#[tokio::test]
async fn terminate_and_shutdown_may_come_at_any_time() {
    let lab = Lab::new();
    let task = lab.run(SLEEP);
    within(task.terminate()).await.unwrap();
    within(task.shutdown()).await.unwrap();
    start(task.as_ref()).await;
    within(task.terminate()).await.unwrap();
    assert_eq!(within(task.wait()).await, exit(137));

    // Once it was to be ended, it does not start any more.
    let task = lab.run(SLEEP);
    within(task.prepare()).await.unwrap();
    within(task.shutdown()).await.unwrap();
    assert_eq!(within(task.start()).await, Err(ControllerError::AlreadyStarted));
    assert_eq!(fatal(within(task.wait()).await), "the process was never started");
    lab.done().await;
}

#[tokio::test]
async fn restarted_daemon_finds_the_process_its_output_and_its_end() {
    let mut lab = Lab::new();
    let record = lab.task(&shell("echo before; read -r _ < fifo; echo after; exit 6"));
    let task = lab.controller(&record);
    within(task.prepare()).await.unwrap();
    nix::unistd::mkfifo(&lab.dir(&record).join("work/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    within(task.start()).await.unwrap();
    let pid = pid_of(task.as_ref()).await;
    lab.restart();
    let adopted = lab.controller(&record);
    assert_eq!(adopted.prepare().await, Err(ControllerError::AlreadyPrepared));
    assert_eq!(within(adopted.start()).await, Err(ControllerError::AlreadyStarted));
    assert_eq!(pid_of(adopted.as_ref()).await, pid, "the same process");
    // It ends while no daemon looks.
    std::fs::write(lab.dir(&record).join("work/fifo"), "\n").unwrap();
    until_processes(&record, 0).await;
    lab.restart();
    let adopted = lab.controller(&record);
    assert_eq!(within(adopted.start()).await, Err(ControllerError::AlreadyStarted));
    assert_eq!(within(adopted.wait()).await, exit(6));
    assert_eq!(output(adopted.as_ref()).await, ["before", "after"]);
    lab.done().await;
}

#[tokio::test]
async fn lost_shim_takes_the_whole_task_along() {
    let lab = Lab::new();
    let record = lab.task(&shell("setsid sleep 1000 & sleep 1000 & wait"));
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    until_processes(&record, 3).await;
    let waiting = {
        let task = task.clone();
        tokio::spawn(async move { task.wait().await })
    };
    kill(shim_of(task.as_ref()).await, Signal::SIGKILL).unwrap();
    let Err(ControllerError::Exit { code: 137, cause: Some(cause) }) = within(waiting).await.unwrap() else {
        panic!("not lost");
    };
    assert!(cause.starts_with("the supervisor of the process was lost"), "{cause}");
    assert_eq!(processes_of(&record.id), BTreeSet::new());
    assert_eq!(
        within(task.start()).await,
        Err(ControllerError::AlreadyStarted),
        "it does not run a second time"
    );
    lab.done().await;
}

#[tokio::test]
async fn a_task_whose_state_directory_was_deleted_ends() {
    let lab = Lab::new();
    let record = lab.task(&shell(SLEEP));
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    until_processes(&record, 1).await;
    std::fs::remove_dir_all(lab.dir(&record)).unwrap();
    until_processes(&record, 0).await;
    lab.done().await;
}

/// A shim is killed after a random time, again and again, while a daemon tries to get the task started. Whatever
/// the moment was: the command runs at most once, and the daemon always learns what became of it.
#[tokio::test]
async fn killed_at_any_point_a_task_neither_runs_twice_nor_is_forgotten() {
    let lab = Lab::new();
    let count = lab.state.path().join("runs");
    let (mut never, mut once) = (0, 0);
    for round in 0..60_u64 {
        let _ = std::fs::remove_file(&count);
        let record = lab.task(&shell(&format!("echo run >> {}; exec sleep 1000", count.display())));
        let task = lab.controller(&record);
        within(task.prepare()).await.unwrap();
        // The first never come to their first instruction, the last have run the command, whatever the machine's
        // speed; those between are killed at any point.
        let hold = if round < 3 { "kill -STOP $$; exec \"$0\" \"$@\"" } else { "exec \"$0\" \"$@\"" };
        let shim = std::process::Command::new("sh")
            .args(["-c", hold, env!("CARGO_BIN_EXE_swarm-process-shim"), "__swarmd-task-shim"])
            .arg(lab.dir(&record))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn();
        let mut shim = shim.unwrap();
        match round {
            // Any point will do: nothing is waited for.
            #[allow(clippy::disallowed_methods)]
            0..57 => std::thread::sleep(Duration::from_micros(round * 100)),
            _ => until_lines_of(&count, 1).await,
        }
        shim.kill().unwrap();
        shim.wait().unwrap();
        let ran_before = std::fs::read_to_string(&count).unwrap_or_default().lines().count();
        assert!(ran_before <= 1);

        // A new daemon goes on where the task's record says: the start is tried again.
        match within(task.start()).await {
            Ok(()) => {
                until_lines_of(&count, 1).await;
                // A process that becomes another program has no environment for a moment.
                until_processes(&record, 1).await;
                within(task.terminate()).await.unwrap();
                never += 1;
            }
            Err(ControllerError::AlreadyStarted) => {
                assert!(within(task.wait()).await.is_err(), "its end is known");
                once += 1;
            }
            other => panic!("round {round}: {other:?}"),
        }
        assert_eq!(processes_of(&record.id), BTreeSet::new(), "round {round}");
        let runs = std::fs::read_to_string(&count).unwrap_or_default().lines().count();
        assert!(runs <= 1, "round {round}: ran {runs} times");
        within(task.remove()).await.unwrap();
    }
    assert!(never > 0 && once > 0, "both sides of the point of no return were hit: {never}, {once}");
    lab.done().await;
}

async fn until_lines_of(file: &Path, count: usize) {
    let looked = || async {
        anyhow::ensure!(std::fs::read_to_string(file).unwrap_or_default().lines().count() == count);
        Ok(())
    };
    until("the command's trace", LONG, looked).await.unwrap();
}

#[tokio::test]
async fn many_starts_at_once_start_it_once() {
    let lab = Lab::new();
    let count = lab.state.path().join("runs");
    let record = lab.task(&shell(&format!("echo run >> {}; exec sleep 1000", count.display())));
    lab.controller(&record).prepare().await.unwrap();
    let starts: Vec<_> = (0..8).map(|_| lab.controller(&record)).collect();
    let results = within(futures::future::join_all(starts.iter().map(|task| task.start()))).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    assert!(
        results.iter().all(|r| matches!(r, Ok(()) | Err(ControllerError::AlreadyStarted))),
        "{results:?}"
    );
    until_lines_of(&count, 1).await;
    assert_eq!(processes_of(&record.id).len(), 1);
    lab.done().await;
}

#[tokio::test]
async fn a_start_that_was_cancelled_is_not_forgotten() {
    let lab = Lab::new();
    for micros in (0..20_000).step_by(1_000) {
        let record = lab.task(&shell(SLEEP));
        let task = lab.controller(&record);
        task.prepare().await.unwrap();
        let _ = tokio::time::timeout(Duration::from_micros(micros), task.start()).await;
        // The shim may be on its way; the removal must not be overtaken by it.
        within(task.remove()).await.unwrap();
        assert_eq!(task.container_status().await, None);
        until_no_shim(&lab, &record).await;
        assert_eq!(processes_of(&record.id), BTreeSet::new(), "after {micros} µs");
    }
    lab.done().await;
}

#[tokio::test]
async fn sweep_ends_what_nobody_knows() {
    let mut lab = Lab::new();
    let (known, orphan, ended) = (lab.task(&shell(SLEEP)), lab.task(&shell(SLEEP)), lab.task(&shell("true")));
    for task in [&known, &orphan, &ended] {
        start(lab.controller(task).as_ref()).await;
    }
    within(lab.controller(&ended).wait()).await.unwrap();
    std::fs::create_dir_all(lab.state.path().join("processes/halfmade/work")).unwrap();
    lab.restart();
    lab.executor.configure(&Node { id: "n".into(), ..Default::default() }.into()).await.unwrap();
    within(lab.executor.sweep(std::slice::from_ref(&known.id.to_string()))).await.unwrap();
    assert_eq!((processes_of(&known.id).len(), processes_of(&orphan.id).len()), (1, 0));
    let left: Vec<_> = std::fs::read_dir(lab.state.path().join("processes")).unwrap().flatten().collect();
    assert_eq!((left.len(), left[0].file_name().to_str()), (1, Some(known.id.as_str())));
    lab.done().await;
}

#[tokio::test]
async fn logs_keep_order_streams_and_long_lines() {
    let lab = Lab::new();
    // Each waits until the one before it is in the log: two pipes have no order.
    let (one, two) = (wait_for("one"), wait_for("two"));
    let script = format!("echo one; {one}; echo two >&2; {two}; printf '%040000d\\n' 0; printf tail");
    let record = lab.task(&shell(&script));
    let task = lab.controller(&record);
    let following = {
        let task = task.clone();
        tokio::spawn(
            async move { logs(task.as_ref(), LogOptions { follow: true, ..Default::default() }).await },
        )
    };
    start(task.as_ref()).await;
    for (count, file) in [(1, "one"), (2, "two")] {
        until_lines(task.as_ref(), count).await;
        lab.tell(&record, file);
    }
    within(task.wait()).await.unwrap();
    let all = logs(task.as_ref(), LogOptions::default()).await;
    let long = "0".repeat(40_000);
    assert!(texts(&all) == ["one", "two", long.as_str(), "tail"], "{} lines", all.len());
    assert_eq!(all[1].stream, LogStream::Stderr);
    assert!(all.windows(2).all(|pair| pair[0].timestamp <= pair[1].timestamp));
    assert!(within(following).await.unwrap() == all, "a follower that came first sees the same");

    let with = |options| logs(task.as_ref(), options);
    let tail = with(LogOptions { tail: Some(1), ..Default::default() }).await;
    assert_eq!(texts(&tail), ["tail"]);
    assert_eq!(with(LogOptions { tail: Some(0), ..Default::default() }).await, []);
    let errors = with(LogOptions { streams: vec![LogStream::Stderr], ..Default::default() }).await;
    assert_eq!(texts(&errors), ["two"]);
    let since = with(LogOptions { since: Some(all[2].timestamp), ..Default::default() }).await;
    assert!(since == all[2..]);
    lab.done().await;
}

#[tokio::test]
async fn much_output_is_rotated_and_followed_without_a_gap() {
    let lab = Lab::new();
    let mut spec = shell(
        "i=0; while [ $i -lt 20000 ]; do echo line $i of some length to fill the file; i=$((i+1)); done",
    );
    spec.log_max_size = 1;
    spec.log_max_files = 2;
    let record = lab.task(&spec);
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    within(task.wait()).await.unwrap();
    let lines = output(task.as_ref()).await;
    assert!(lines.len() > 100 && lines.len() < 20_000, "{}", lines.len());
    assert_eq!(lines.last().unwrap(), "line 19999 of some length to fill the file");
    let size = |name: &str| std::fs::metadata(lab.dir(&record).join(name)).unwrap().len();
    // A file may exceed its size by what came in at once.
    assert!(size("log") + size("log.1") < 2 << 20);
    assert!(!lab.dir(&record).join("log.2").exists());
    lab.done().await;
}

#[tokio::test]
async fn instructions_are_for_the_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let record = lab.task(&shell("true"));
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    within(task.wait()).await.unwrap();
    for entry in std::fs::read_dir(lab.dir(&record)).unwrap().flatten() {
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?} {mode:o}", entry.path());
    }
    lab.done().await;
}
