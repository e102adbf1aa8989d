//! What is refused, and in which words.

use swarm_api::swarmd::open_task::What;
use swarm_api::swarmd::{AttachTask, ExecTask};
use swarm_api::v1::TaskState;
use swarm_task_sessions::{MAX_OF_NODE, MAX_SESSIONS};
use tonic::Code;

use crate::harness::{exec, start, stats};

#[tokio::test(start_paused = true)]
async fn nodes_that_can_not_serve_are_told_apart() {
    let harness = start().await;
    for (node, code, text) in [
        ("down", Code::Unavailable, "node host-down is down"),
        (
            "locked",
            Code::PermissionDenied,
            "node host-locked lets nobody into its tasks: its daemon was started with --no-exec",
        ),
        (
            "old",
            Code::FailedPrecondition,
            "node host-old runs an older version of swarmd, which knows no exec, attach and stats: update it",
        ),
        (
            "engine",
            Code::FailedPrecondition,
            "node host-engine is a Docker Engine (20.10.24), which knows no exec, attach and stats through the swarm: use \
             docker on that host",
        ),
    ] {
        let error = harness.refused(exec(&format!("t-{node}"))).await;
        assert_eq!((error.code(), error.message()), (code, text));
    }
    // Its figures are no secret.
    let mut listening = harness.agent("locked").await.listen().await.unwrap();
    let _opening = harness.open(stats(&["t-locked"])).await;
    assert!(listening.next().await.open.is_some());
}

#[tokio::test(start_paused = true)]
async fn tasks_that_do_not_run_are_refused() {
    let harness = start().await;
    harness.task("waits", "", TaskState::Pending).await;
    harness.task("begins", "n1", TaskState::Preparing).await;
    harness.task("over", "n1", TaskState::Failed).await;
    for (task, code, text) in [
        ("nothing", Code::NotFound, "task nothing not found"),
        ("waits", Code::FailedPrecondition, "task waits has no node yet: it is pending"),
        ("begins", Code::FailedPrecondition, "task begins does not run: it is preparing"),
        ("over", Code::FailedPrecondition, "task over does not run: it is failed"),
    ] {
        for what in [exec(task), What::Attach(AttachTask { task_id: task.into(), ..Default::default() })] {
            let error = harness.refused(what).await;
            assert_eq!((error.code(), error.message()), (code, text));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_make_no_sense_are_refused() {
    let harness = start().await;
    let command = |command: &[&str], env: &str| {
        let command = command.iter().map(|word| word.to_string()).collect();
        What::Exec(ExecTask { task_id: "t-n1".into(), command, env: vec![env.into()], ..Default::default() })
    };
    for (what, text) in [
        (command(&[], ""), "a command is needed"),
        (command(&[""], ""), "a command is needed"),
        (command(&["a\0"], ""), "a NUL byte"),
        (command(&["a"], "A=\0"), "a NUL byte"),
        (command(&["a", &"x".repeat(64 * 1024)], ""), "at most 65536 are allowed"),
        (stats(&[]), "name at least one task"),
        (stats(&["t-n1", "t-n2"]), "is on another node"),
    ] {
        let error = harness.refused(what).await;
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(text), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_answer_is_given_up() {
    let harness = start().await;
    let error = harness.refused(exec("t-n1")).await;
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("node host-n1 did not take the session within 10 s"), "{error}");
    // One that listens, but does not serve, as well. It is told nothing of what is given up.
    let mut listening = harness.agent("n1").await.listen().await.unwrap();
    assert_eq!(harness.refused(exec("t-n1")).await.code(), Code::Unavailable);
    let late = listening.next().await;
    let error = harness.agent("n1").await.serve(&late.session_id).await.err().unwrap();
    assert_eq!(error.code(), Code::NotFound);
    assert!(listening.is_silent().await);
}

#[tokio::test(start_paused = true)]
async fn nodes_get_and_serve_sessions_of_their_own_tasks_only() {
    let harness = start().await;
    let mut other = harness.agent("n2").await;
    let mut other_listens = other.listen().await.unwrap();
    let mut listening = harness.agent("n1").await.listen().await.unwrap();
    let opening = harness.open(exec("t-n1")).await;
    let invitation = listening.next().await;
    for id in [invitation.session_id.as_str(), "nothing"] {
        let error = other.serve(id).await.err().unwrap();
        assert_eq!(
            (error.code(), error.message()),
            (Code::NotFound, "no such task session waits for this node")
        );
    }
    assert_eq!(other.serve("").await.err().unwrap().code(), Code::InvalidArgument);
    // Nobody took it away.
    harness.agent("n1").await.serve(&invitation.session_id).await.unwrap();
    opening.opened().await.unwrap();
    assert!(other_listens.is_silent().await);
    // A caller without a certificate is nobody.
    let error = harness.agent("").await.listen().await.err().unwrap();
    assert_eq!(error.code(), Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn there_are_limits() {
    let harness = start().await;
    let mut open = Vec::new();
    let mut listening = harness.agent("n1").await.listen().await.unwrap();
    for _ in 0..MAX_OF_NODE {
        open.push(harness.open(exec("t-n1")).await);
        listening.next().await;
    }
    let error = harness.refused(exec("t-n1")).await;
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("64 with node host-n1 are open"), "{error}");
    // Another node has its own; those that are given up make room.
    let mut other = harness.agent("n2").await.listen().await.unwrap();
    open.push(harness.open(exec("t-n2")).await);
    other.next().await;
    drop(open);
    let _next = harness.open(exec("t-n1")).await;
    listening.next().await;
    const { assert!(MAX_SESSIONS > MAX_OF_NODE) };
}
