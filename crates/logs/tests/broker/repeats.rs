//! Nodes that begin again.

use swarm_api::v1::LogSubscriptionOptions;
use tonic::Code;

use crate::harness::*;

#[tokio::test(start_paused = true)]
async fn a_call_that_breaks_is_made_again_and_no_line_is_lost_or_doubled() {
    let h = start().await;
    for options in [once(), follow()] {
        let mut n1 = h.agent("n1").await;
        let mut subscriber = h.subscribe(nodes(&["n1"]), options.clone()).await.unwrap();
        let told = n1.next().await;
        assert_eq!(told.options.unwrap().since, None);
        let broken = h.publisher("n1", &told.id).await;
        for (seconds, text) in [(1, "one"), (2, "two"), (2, "also two")] {
            broken.line("a", seconds, text).await;
        }
        let mut lines = Vec::new();
        while lines.len() < 3 {
            lines.extend(subscriber.next().await);
        }
        broken.lose().await;
        let again = n1.next().await;
        assert_eq!((again.id.as_str(), again.close), (told.id.as_str(), false));
        assert_eq!(again.options.unwrap().since.unwrap().seconds, 2, "older ones need not come");
        let publisher = h.publisher("n1", &told.id).await;
        for (seconds, text) in [(1, "one"), (2, "two"), (2, "also two"), (2, "again two"), (3, "three")] {
            publisher.line("a", seconds, text).await;
        }
        while lines.len() < 5 {
            lines.extend(subscriber.next().await);
        }
        assert_eq!(lines, ["a:one", "a:two", "a:also two", "a:again two", "a:three"]);
        publisher.close().await.unwrap();
        if !options.follow {
            let (lines, end) = subscriber.rest().await;
            assert!(lines.is_empty() && end.is_ok(), "{lines:?} {end:?}");
        }
    }
}

/// What was published before cannot be left out of the last so many lines: which ones are they now?
#[tokio::test(start_paused = true)]
async fn the_last_lines_are_not_asked_for_twice() {
    let h = start().await;
    let mut n1 = h.agent("n1").await;
    let options = LogSubscriptionOptions { tail: -3, ..Default::default() };
    let mut subscriber = h.subscribe(nodes(&["n1"]), options).await.unwrap();
    let id = n1.next().await.id;
    h.publisher("n1", &id).await.lose().await;
    let broken = h.publisher("n1", &id).await;
    broken.line("a", 1, "one").await;
    assert_eq!(subscriber.next().await, ["a:one"]);
    broken.lose().await;
    assert_eq!(subscriber.missing().await.1, "node n1 disconnected unexpectedly");
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_calls_break_all_the_time_is_given_up() {
    let h = start().await;
    let mut n1 = h.agent("n1").await;
    let mut subscriber = h.subscribe(nodes(&["n1"]), once()).await.unwrap();
    let id = n1.next().await.id;
    let mut calls = 0;
    let end = loop {
        let publisher = h.publisher("n1", &id).await;
        publisher.send(message(&id, &[])).await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        publisher.lose().await;
        calls += 1;
        let soon = std::time::Duration::from_secs(1);
        if let Ok(end) = tokio::time::timeout(soon, subscriber.rest()).await {
            break end;
        }
        assert!(calls < 20);
    };
    assert!(end.1.unwrap_err().message().ends_with("node n1 disconnected unexpectedly"));
    assert_eq!(calls, 6);
}

#[tokio::test(start_paused = true)]
async fn a_second_call_of_a_node_takes_the_place_of_the_first() {
    let h = start().await;
    let mut n1 = h.agent("n1").await;
    let mut subscriber = h.subscribe(nodes(&["n1"]), follow()).await.unwrap();
    let id = n1.next().await.id;
    let first = h.publisher("n1", &id).await;
    first.line("a", 1, "one").await;
    assert_eq!(subscriber.next().await, ["a:one"]);
    let second = h.publisher("n1", &id).await;
    second.line("a", 1, "one").await;
    second.line("a", 2, "two").await;
    assert_eq!(subscriber.next().await, ["a:two"]);
    assert_eq!(first.end().await.unwrap_err().code(), Code::Aborted);
    n1.nothing().await;
    second.line("a", 3, "three").await;
    assert_eq!(subscriber.next().await, ["a:three"]);
}

/// An agent that was restarted in good order has said that this was all. It was not.
#[tokio::test(start_paused = true)]
async fn who_is_followed_is_told_again_when_it_is_back() {
    let h = start().await;
    let mut n1 = h.agent("n1").await;
    let mut subscriber = h.subscribe(nodes(&["n1"]), follow()).await.unwrap();
    let id = n1.next().await.id;
    let publisher = h.publisher("n1", &id).await;
    publisher.line("a", 7, "one").await;
    assert_eq!(subscriber.next().await, ["a:one"]);
    publisher.close().await.unwrap();
    drop(n1);
    let told = h.agent("n1").await.next().await;
    assert_eq!((told.id, told.options.unwrap().since.unwrap().seconds), (id, 7));
}
