//! What is refused, with codes and texts that clients and agents match on.

use swarm_api::log_lines::RawLogMessage;
use swarm_api::v1::{LogSelector, LogSubscriptionOptions, PublishLogsMessage, SubscribeLogsRequest};
use tonic::{Code, Status};

use crate::harness::*;

#[track_caller]
fn check(error: &Status, code: Code, text: &str) {
    assert_eq!((error.code(), error.message()), (code, text));
}

// 76
#[tokio::test(start_paused = true)]
async fn a_subscription_needs_a_selector() {
    let h = start().await;
    let refused = h.request(SubscribeLogsRequest::default()).await.err().unwrap();
    check(&refused, Code::InvalidArgument, "log selector must be provided");
    let refused = h.subscribe(LogSelector::default(), once()).await.err().unwrap();
    check(&refused, Code::InvalidArgument, "log selector must not be empty");
}

#[tokio::test(start_paused = true)]
async fn options_must_make_sense() {
    let h = start().await;
    let mut refused = Vec::new();
    for options in [
        LogSubscriptionOptions { tail: 1, ..Default::default() },
        LogSubscriptionOptions { streams: vec![1, 3], ..Default::default() },
        LogSubscriptionOptions {
            since: Some(prost_types::Timestamp { seconds: 1, nanos: -1 }),
            ..Default::default()
        },
    ] {
        let error = h.subscribe(nodes(&["n1"]), options).await.err().unwrap();
        assert_eq!(error.code(), Code::InvalidArgument);
        refused.push(error.message().to_owned());
    }
    assert!(refused[0].starts_with("tail relative to start of logs not supported"), "{refused:?}");
    assert_eq!(refused[1..], ["unknown log stream 3", "since is no valid timestamp"]);
    // Without any, all lines are meant; agents always get some.
    let mut n1 = h.agent("n1").await;
    let request = SubscribeLogsRequest { selector: Some(nodes(&["n1"])), options: None };
    let _subscriber = h.request(request).await.unwrap();
    assert_eq!(n1.next().await.options, Some(once()));
}

#[tokio::test(start_paused = true)]
async fn not_more_than_so_many_are_open() {
    let h = start().await;
    let mut open = Vec::new();
    let refused = loop {
        match h.subscribe(nodes(&["n1"]), follow()).await {
            Ok(subscriber) => open.push(subscriber),
            Err(error) => break error,
        }
    };
    assert_eq!(open.len(), 256);
    assert_eq!(refused.code(), Code::ResourceExhausted);
    open.pop();
    let mut n1 = h.agent("n1").await;
    for _ in 0..255 {
        n1.next().await;
    }
    h.subscribe(nodes(&["n1"]), follow()).await.unwrap();
}

// 75
#[tokio::test(start_paused = true)]
async fn a_publisher_names_its_subscription_and_stays_with_it() {
    let h = start().await;
    let unknown = h.publisher("n1", "unknown").await;
    unknown.line("a", 1, "x").await;
    check(&unknown.end().await.unwrap_err(), Code::NotFound, "unknown subscription ID");
    let without = h.publisher("n1", "").await;
    without.line("a", 1, "x").await;
    check(&without.end().await.unwrap_err(), Code::InvalidArgument, "missing subscription ID");
    let mut n1 = h.agent("n1").await;
    for (second, text) in
        [("other", "different subscription IDs in the same session"), ("", "missing subscription ID")]
    {
        let mut subscriber = h.subscribe(nodes(&["n1"]), once()).await.unwrap();
        let publisher = h.publisher("n1", &n1.next().await.id).await;
        publisher.line("a", 1, "x").await;
        publisher.send(message(second, &[line("n1", "a", 2, "y")])).await;
        check(&publisher.end().await.unwrap_err(), Code::InvalidArgument, text);
        let (lines, missing) = subscriber.missing().await;
        assert_eq!((lines, missing.as_str()), (vec!["a:x".to_owned()], text));
    }
}

/// Neither is it told of what others are asked for, nor may it answer.
#[tokio::test(start_paused = true)]
async fn a_node_that_was_not_asked_may_not_publish() {
    let h = start().await;
    let mut n1 = h.agent("n1").await;
    let mut subscriber = h.subscribe(nodes(&["n1"]), once()).await.unwrap();
    let id = n1.next().await.id;
    let stranger = h.publisher("n2", &id).await;
    stranger.line("a", 1, "x").await;
    check(&stranger.end().await.unwrap_err(), Code::NotFound, "unknown subscription ID");
    h.publisher("n1", &id).await.close().await.unwrap();
    assert!(subscriber.rest().await.0.is_empty());
}

// 74
#[tokio::test(start_paused = true)]
async fn a_node_speaks_for_itself_only() {
    let h = start().await;
    let mut n1 = h.agent("n1").await;
    for (foreign, received) in [(line("n2", "a", 1, "x"), "n2"), (Default::default(), "")] {
        let mut subscriber = h.subscribe(nodes(&["n1"]), once()).await.unwrap();
        let id = n1.next().await.id;
        let publisher = h.publisher("n1", &id).await;
        publisher.send(message(&id, &[line("n1", "a", 1, "mine"), foreign])).await;
        let text = format!("invalid NodeID: expected=n1;received={received}");
        check(&publisher.end().await.unwrap_err(), Code::PermissionDenied, &text);
        let (lines, missing) = subscriber.missing().await;
        assert_eq!((lines.len(), missing), (0, text));
    }
}

#[tokio::test(start_paused = true)]
async fn lines_that_make_no_sense_end_the_call_and_nothing_else() {
    let h = start().await;
    let mut n1 = h.agent("n1").await;
    let mut subscriber = h.subscribe(nodes(&["n1"]), once()).await.unwrap();
    let id = n1.next().await.id;
    let publisher = h.publisher("n1", &id).await;
    let messages = vec![RawLogMessage::new(b"\x0a\x7fshort".as_slice().into())];
    publisher.send(PublishLogsMessage { subscription_id: id, messages, close: false }).await;
    check(&publisher.end().await.unwrap_err(), Code::InvalidArgument, "malformed log message");
    assert_eq!(subscriber.missing().await.1, "malformed log message");
}

// The message with the end carries nothing else that counts.
#[tokio::test(start_paused = true)]
async fn lines_beside_the_end_are_dropped() {
    let h = start().await;
    let mut n1 = h.agent("n1").await;
    let mut subscriber = h.subscribe(nodes(&["n1"]), once()).await.unwrap();
    let id = n1.next().await.id;
    let publisher = h.publisher("n1", &id).await;
    publisher.send(PublishLogsMessage { close: true, ..message(&id, &[line("n1", "a", 1, "x")]) }).await;
    publisher.end().await.unwrap();
    let (lines, end) = subscriber.rest().await;
    assert!(lines.is_empty() && end.is_ok());
}
