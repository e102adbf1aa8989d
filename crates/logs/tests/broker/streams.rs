//! Lines on their way, and how subscriptions end.

use std::time::Duration;

use swarm_api::v1::TaskState;
use tonic::Code;

use crate::harness::*;

// 69
#[tokio::test(start_paused = true)]
async fn lines_of_all_nodes_arrive_and_the_stream_ends() {
    let h = start().await;
    h.task("a", "s", "n1", TaskState::Running).await;
    h.task("b", "s", "n2", TaskState::Running).await;
    let (mut n1, mut n2) = (h.agent("n1").await, h.agent("n2").await);
    let mut subscriber = h.subscribe(services(&["s"]), once()).await.unwrap();
    let first = h.publisher("n1", &n1.next().await.id).await;
    first.line("a", 1, "one").await;
    assert_eq!(subscriber.next().await, ["a:one"]);
    first.close().await.unwrap();
    subscriber.nothing().await;
    let second = h.publisher("n2", &n2.next().await.id).await;
    second.line("b", 1, "two").await;
    second.end().await.expect("the end of the stream says it too");
    let (lines, end) = subscriber.rest().await;
    assert_eq!(lines, ["b:two"]);
    end.unwrap();
    n1.nothing().await;
    n2.nothing().await;
}

// 71
#[tokio::test(start_paused = true)]
async fn a_node_that_goes_away_for_good_is_named() {
    let h = start().await;
    let mut n1 = h.agent("n1").await;
    let mut subscriber = h.subscribe(nodes(&["n1"]), once()).await.unwrap();
    let publisher = h.publisher("n1", &n1.next().await.id).await;
    publisher.line("a", 1, "one").await;
    assert_eq!(subscriber.next().await, ["a:one"]);
    drop(n1);
    publisher.lose().await;
    assert_eq!(subscriber.missing().await.1, "node n1 disconnected unexpectedly");
}

// 80
#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_is_waited_for() {
    let h = start().await;
    let mut subscriber = h.subscribe(nodes(&["n1"]), once()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut n1 = h.agent("n1").await;
    let id = n1.next().await.id;
    drop(n1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut n1 = h.agent("n1").await;
    assert_eq!(n1.next().await.id, id, "it is told again");
    h.publisher("n1", &id).await.close().await.unwrap();
    subscriber.rest().await.1.unwrap();
}

/// The end of the older call is not the node's.
#[tokio::test(start_paused = true)]
async fn a_node_that_listens_twice_is_there_until_both_end() {
    let h = start().await;
    let (old, mut new) = (h.agent("n1").await, h.agent("n1").await);
    let mut subscriber = h.subscribe(nodes(&["n1"]), once()).await.unwrap();
    let id = new.next().await.id;
    drop(old);
    tokio::time::sleep(Duration::from_secs(30)).await;
    h.publisher("n1", &id).await.close().await.unwrap();
    subscriber.rest().await.1.unwrap();
}

// 77
#[tokio::test(start_paused = true)]
async fn many_publishers_lose_nothing() {
    const NODES: usize = 50;
    const LINES: usize = 200;
    let h = start().await;
    let names: Vec<String> = (0..NODES).map(|n| format!("n{n}")).collect();
    let mut agents = Vec::new();
    for name in &names {
        agents.push(h.agent(name).await);
    }
    let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut subscriber = h.subscribe(nodes(&wanted), once()).await.unwrap();
    let mut publishers = Vec::new();
    for agent in &mut agents {
        let id = agent.next().await.id;
        let publisher = h.publisher(&agent.id, &id).await;
        publishers.push(tokio::spawn(async move {
            for n in 0..LINES {
                publisher.line("t", n as i64, &n.to_string()).await;
            }
            publisher.close().await.unwrap();
        }));
    }
    let (lines, end) = subscriber.rest().await;
    end.unwrap();
    assert_eq!(lines.len(), NODES * LINES);
}

// 78
#[tokio::test(start_paused = true)]
async fn nodes_are_told_when_nobody_wants_their_lines_any_more() {
    let h = start().await;
    let (mut n1, mut n2) = (h.agent("n1").await, h.agent("n2").await);
    let mut subscriber = h.subscribe(nodes(&["n1", "n2"]), follow()).await.unwrap();
    let id = n1.next().await.id;
    assert_eq!(n2.next().await.id, id);
    let publisher = h.publisher("n1", &id).await;
    publisher.line("a", 1, "one").await;
    assert_eq!(subscriber.next().await, ["a:one"]);
    drop(subscriber);
    for agent in [&mut n1, &mut n2] {
        let closed = agent.next().await;
        assert_eq!((closed.id.as_str(), closed.close), (id.as_str(), true));
        assert!(closed.options.is_some());
    }
    assert_eq!(publisher.end().await.unwrap_err().code(), Code::Cancelled, "it need not go on");
    h.publisher("n1", &id).await.end().await.expect("nothing was said");
}

/// A subscriber that does not read stops its publishers, and nobody else.
#[tokio::test(start_paused = true)]
async fn a_subscriber_that_stands_still_holds_up_only_those_who_publish_for_it() {
    let h = start().await;
    let mut n1 = h.agent("n1").await;
    let mut stalled = h.subscribe(nodes(&["n1"]), follow()).await.unwrap();
    let stalled_id = n1.next().await.id;
    let chatty = h.publisher("n1", &stalled_id).await;
    let text = "x".repeat(10_000);
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_secs(10), chatty.line("t", sent, &text)).await.is_ok() {
        sent += 1;
    }
    let bytes = usize::try_from(sent).unwrap() * text.len();
    // The queue, the windows and buffers of two connections, and a few messages on their way.
    assert!(bytes > swarm_logs::ROOM && bytes < 8 * swarm_logs::ROOM, "{bytes} bytes were taken");
    // The same node, for somebody else.
    let mut other = h.subscribe(nodes(&["n1"]), once()).await.unwrap();
    let quiet = h.publisher("n1", &n1.next().await.id).await;
    quiet.line("t", 1, "quick").await;
    quiet.close().await.unwrap();
    assert_eq!(other.rest().await.0, ["t:quick"]);
    // Once it reads, all that was sent comes; the line that was being sent was given up with its caller.
    let mut got = 0;
    while got < sent {
        got += i64::try_from(stalled.next().await.len()).unwrap();
    }
    chatty.line("t", sent, "last").await;
    assert_eq!(stalled.next().await, ["t:last"]);
}

#[tokio::test(start_paused = true)]
async fn when_the_manager_stops_leading_everything_ends() {
    let mut h = start().await;
    let mut n1 = h.agent("n1").await;
    let mut subscriber = h.subscribe(nodes(&["n1"]), follow()).await.unwrap();
    let publisher = h.publisher("n1", &n1.next().await.id).await;
    publisher.line("a", 1, "one").await;
    assert_eq!(subscriber.next().await, ["a:one"]);
    h.stop().await;
    let end = subscriber.rest().await.1.unwrap_err();
    assert_eq!((end.code(), end.message()), (Code::Cancelled, "context canceled"));
    n1.ended().await.expect("a clean end");
    publisher.end().await.unwrap_err();
    let refused = h.subscribe(nodes(&["n1"]), once()).await.err().unwrap();
    assert_eq!((refused.code(), refused.message()), (Code::Unknown, "broker is not running"));
    h.lead().await;
    h.agent("n1").await.nothing().await;
    let twice = h.broker.run(Default::default()).await.unwrap_err();
    assert_eq!(twice.to_string(), "broker is already running");
}
