//! Two calls become one session, and it ends whenever one of them does.

use swarm_api::swarmd::{StdinEnd, TaskStarted, task_input, task_output};
use swarm_api::v1::{Task, node_status};
use tonic::Code;

use crate::harness::{Harness, Listening, Serving, Session, exec, start};

async fn joined(harness: &Harness) -> (Session, Serving, Listening) {
    let mut agent = harness.agent("n1").await;
    let mut listening = agent.listen().await.unwrap();
    let opening = harness.open(exec("t-n1")).await;
    let invitation = listening.next().await;
    let serving = agent.serve(&invitation.session_id).await.unwrap();
    (opening.opened().await.unwrap(), serving, listening)
}

fn out(text: &'static str) -> task_output::Item {
    task_output::Item::Stdout(text.as_bytes().into())
}

#[tokio::test(start_paused = true)]
async fn what_one_sends_the_other_gets() {
    let harness = start().await;
    let (mut session, mut serving, _listening) = joined(&harness).await;
    let started = task_output::Item::Started(TaskStarted { stdin: true, tty: false });
    serving.output(started.clone()).await;
    assert_eq!(session.next().await.unwrap(), Some(started));
    session.send("in").await;
    assert_eq!(serving.next().await.unwrap(), Some(task_input::Item::Stdin("in".into())));
    serving.output(out("one")).await;
    serving.output(task_output::Item::Stderr("two".into())).await;
    assert_eq!(session.next().await.unwrap(), Some(out("one")));
    assert_eq!(session.next().await.unwrap(), Some(task_output::Item::Stderr("two".into())));
    // Who has nothing more to say may still listen.
    session.sender = None;
    assert_eq!(serving.next().await.unwrap(), Some(task_input::Item::StdinEnd(StdinEnd {})));
    serving.output(out("three")).await;
    serving.end(7).await;
    assert_eq!(session.next().await.unwrap(), Some(out("three")));
    assert!(
        matches!(session.next().await.unwrap(), Some(task_output::Item::Ended(ended)) if ended.code == 7)
    );
    assert_eq!(session.next().await.unwrap(), None);
    // The node's call ends too.
    assert_eq!(serving.next().await.unwrap_err().code(), Code::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_node_says_why_a_session_can_not_begin() {
    let harness = start().await;
    let (mut session, serving, _listening) = joined(&harness).await;
    serving.fail(Code::FailedPrecondition, "no such user").await;
    let error = session.next().await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, "no such user"));
}

#[tokio::test(start_paused = true)]
async fn what_a_node_says_is_not_believed_whatever_it_is() {
    let harness = start().await;
    let (mut session, serving, _listening) = joined(&harness).await;
    serving.fail(Code::Ok, "all is well").await;
    assert_eq!(session.next().await.unwrap_err().code(), Code::Internal);
    let (mut session, serving, _listening) = joined(&harness).await;
    serving.fail(Code::Unknown, &"é".repeat(10_000)).await;
    assert_eq!(session.next().await.unwrap_err().message(), "é".repeat(1024));
}

#[tokio::test(start_paused = true)]
async fn the_node_hears_when_whoever_opened_it_has_gone() {
    let harness = start().await;
    let (session, mut serving, _listening) = joined(&harness).await;
    drop(session);
    let mut end = serving.next().await;
    if end.as_ref().is_ok_and(|item| *item == Some(task_input::Item::StdinEnd(StdinEnd {}))) {
        end = serving.next().await;
    }
    assert_eq!(end.unwrap_err().code(), Code::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn whoever_opened_it_hears_when_the_node_has_gone() {
    let harness = start().await;
    let (mut session, mut serving, _listening) = joined(&harness).await;
    serving.output(out("last words")).await;
    serving.close();
    drop(serving);
    let mut last = session.next().await;
    if last.as_ref().is_ok_and(|item| *item == Some(out("last words"))) {
        last = session.next().await;
    }
    let error = last.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("the connection to node host-n1 was lost"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_change_of_leaders_ends_it() {
    let mut harness = start().await;
    let (mut session, mut serving, mut listening) = joined(&harness).await;
    harness.stop().await;
    for error in [session.next().await.unwrap_err(), serving.next().await.unwrap_err()] {
        assert_eq!(error.code(), Code::Aborted);
        assert!(error.message().contains("the leader of the cluster has changed"), "{error}");
    }
    assert!(!listening.is_silent().await, "the listener is told by the end of its call");
    assert_eq!(harness.refused(exec("t-n1")).await.code(), Code::Unavailable);
    let before = listening.term;
    harness.lead().await;
    let mut agent = harness.agent("n1").await;
    assert_ne!(agent.listen().await.unwrap().term, before, "agents can tell leaders apart");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_goes_down_ends_it() {
    let harness = start().await;
    let (mut session, mut serving, _listening) = joined(&harness).await;
    harness.node_state("n2", node_status::State::Down).await;
    session.send("still there").await;
    assert!(serving.next().await.unwrap().is_some());
    harness.node_state("n1", node_status::State::Down).await;
    let error = session.next().await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unavailable, "node host-n1 is down"));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_removed_ends_it() {
    let harness = start().await;
    let (mut session, _serving, _listening) = joined(&harness).await;
    harness.remove::<Task>("t-n1").await;
    let error = session.next().await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Aborted, "task t-n1 was removed"));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_late_is_told() {
    let harness = start().await;
    let opening = harness.open(exec("t-n1")).await;
    let mut agent = harness.agent("n1").await;
    let mut first = agent.listen().await.unwrap();
    let told = first.next().await;
    // What it was told in a call that broke it is told again.
    let mut agent = harness.agent("n1").await;
    let mut second = agent.listen().await.unwrap();
    let again = second.next().await;
    assert_eq!(told.session_id, again.session_id);
    agent.serve(&again.session_id).await.unwrap();
    opening.opened().await.unwrap();
    let error = agent.serve(&again.session_id).await.err().unwrap();
    assert_eq!(error.code(), Code::NotFound, "a session is served once");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stands_still_stops_the_writer_and_nobody_else() {
    const PIECE: usize = 16 * 1024;
    /// More than all windows and queues on the way.
    const LIMIT: usize = 4 * 1024 * 1024 / PIECE;
    let harness = start().await;
    let (mut stalled, serving, mut listening) = joined(&harness).await;
    let mut sent = 0;
    while sent < LIMIT {
        let piece = task_output::Item::Stdout(vec![b'x'; PIECE].into());
        if serving.try_output(piece) {
            sent += 1;
        } else {
            let before = sent;
            // Whatever can move does, while the clock stands still.
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            if !serving.try_output(out("one more")) {
                assert_eq!(sent, before);
                break;
            }
        }
    }
    assert!(sent < LIMIT, "nothing was held back");
    // Another session of the same node goes on.
    let opening = harness.open(exec("t-n1")).await;
    let invitation = listening.next().await;
    let mut agent = harness.agent("n1").await;
    let other = agent.serve(&invitation.session_id).await.unwrap();
    let mut session = opening.opened().await.unwrap();
    other.output(out("here")).await;
    assert_eq!(session.next().await.unwrap(), Some(out("here")));
    // And what was held back comes when it is read.
    let mut bytes = 0;
    while bytes < sent * PIECE {
        match stalled.next().await.unwrap() {
            Some(task_output::Item::Stdout(data)) => bytes += data.len(),
            other => panic!("{other:?}"),
        }
    }
}
