//! Who is told of a subscription.

use swarm_api::v1::TaskState;

use crate::harness::*;

// 66
#[tokio::test(start_paused = true)]
async fn a_node_that_is_followed_is_told_now_or_when_it_comes() {
    let h = start().await;
    let (mut first, mut other) = (h.agent("n1").await, h.agent("other").await);
    let _subscriber = h.subscribe(nodes(&["n1", "n2"]), follow()).await.unwrap();
    let told = first.next().await;
    assert!(!told.close && !told.id.is_empty());
    assert_eq!(told.selector.unwrap().node_ids, ["n1", "n2"]);
    assert!(told.options.unwrap().follow);
    let mut late = h.agent("n2").await;
    let told = late.next().await;
    assert!(!told.close && told.options.is_some());
    other.nothing().await;
}

// 67
#[tokio::test(start_paused = true)]
async fn a_task_that_is_followed_is_looked_for_when_it_has_a_node() {
    let h = start().await;
    h.task("t", "s", "", TaskState::Pending).await;
    let (mut n1, mut n2) = (h.agent("n1").await, h.agent("n2").await);
    let _subscriber = h.subscribe(tasks(&["t"]), follow()).await.unwrap();
    n1.nothing().await;
    n2.nothing().await;
    h.change("t", |task| task.node_id = "n2".into()).await;
    assert!(!n2.next().await.close);
    n1.nothing().await;
    h.change("t", |task| task.slot = 7).await;
    n2.nothing().await;
}

// 68
#[tokio::test(start_paused = true)]
async fn a_service_that_is_followed_reaches_each_of_its_nodes_once() {
    let h = start().await;
    h.task("a", "s", "n1", TaskState::Running).await;
    let (mut n1, mut n2) = (h.agent("n1").await, h.agent("n2").await);
    let _subscriber = h.subscribe(services(&["s"]), follow()).await.unwrap();
    n1.next().await;
    h.task("b", "other", "n2", TaskState::Running).await;
    h.task("c", "s", "n1", TaskState::Assigned).await;
    n1.nothing().await;
    n2.nothing().await;
    h.task("d", "s", "n2", TaskState::Assigned).await;
    n2.next().await;
}

// 72, 73
#[tokio::test(start_paused = true)]
async fn what_never_ran_has_no_lines_and_what_waits_is_named() {
    let h = start().await;
    h.task("starting", "s", "n1", TaskState::Starting).await;
    h.task("waiting", "s", "", TaskState::Pending).await;
    let (lines, end) = h.subscribe(services(&["s"]), once()).await.unwrap().rest().await;
    assert!(lines.is_empty() && end.is_ok(), "{end:?}");
    let missing = h.subscribe(tasks(&["waiting"]), once()).await.unwrap().missing().await.1;
    assert_eq!(missing, "task waiting has not been scheduled");
    let missing = h.subscribe(tasks(&["nobody"]), once()).await.unwrap().missing().await.1;
    assert_eq!(missing, "task nobody not found");
}

// 70
#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_listen_is_named_and_the_others_lines_come() {
    let h = start().await;
    h.task("a", "s", "n1", TaskState::Running).await;
    h.task("b", "s", "n2", TaskState::Running).await;
    let mut n1 = h.agent("n1").await;
    let mut subscriber = h.subscribe(services(&["s"]), once()).await.unwrap();
    let publisher = h.publisher("n1", &n1.next().await.id).await;
    publisher.line("a", 1, "here").await;
    publisher.close().await.unwrap();
    let (lines, missing) = subscriber.missing().await;
    assert_eq!((lines, missing.as_str()), (vec!["a:here".to_owned()], "node n2 is not available"));
}

/// Nobody waits for a node that is known to be down, or for one that was removed.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_down_or_gone_is_not_waited_for() {
    let h = start().await;
    let began = tokio::time::Instant::now();
    let missing = h.subscribe(nodes(&["down", "gone"]), once()).await.unwrap().missing().await.1;
    assert_eq!(missing, "node down is not available, node gone is not available");
    assert!(began.elapsed().as_secs() < 1, "{:?}", began.elapsed());
}

// 81: it was never counted in the original, and its end was the manager's.
#[tokio::test(start_paused = true)]
async fn a_nodes_lines_can_be_asked_for() {
    let h = start().await;
    let mut n1 = h.agent("n1").await;
    let mut subscriber = h.subscribe(nodes(&["n1"]), once()).await.unwrap();
    let publisher = h.publisher("n1", &n1.next().await.id).await;
    publisher.line("a", 1, "one").await;
    publisher.line("b", 1, "two").await;
    publisher.close().await.unwrap();
    let (lines, end) = subscriber.rest().await;
    assert_eq!(lines, ["a:one", "b:two"]);
    end.unwrap();
}
