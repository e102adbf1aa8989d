use super::*;
use futures::StreamExt as _;
use swarm_api::v1::select_by::By;
use swarm_api::v1::watch_request::WatchEntry;
use swarm_api::v1::{Secret, SelectBy, Task, WatchActionKind};
use tonic::Code;
use watch_server::Watch as _;

const ALL: i32 = 7;

fn entry(kind: &str, action: i32, filters: Vec<By>) -> WatchEntry {
    let filters = filters.into_iter().map(|by| SelectBy { by: Some(by) }).collect();
    WatchEntry { kind: kind.into(), action, filters }
}

async fn watch(store: &Arc<Store>, entries: Vec<WatchEntry>) -> Result<Messages, Status> {
    let request = WatchRequest { entries, resume_from: None, include_old_object: true };
    Ok(Watch::new(store.clone()).watch(Request::new(request)).await?.into_inner())
}

fn task(id: &str, service: &str) -> Task {
    Task { id: id.into(), service_id: service.into(), ..Default::default() }
}

async fn create(store: &Store, object: Task) -> Shared<Task> {
    store.update(|tx| tx.create(object.clone())).await.unwrap().0
}

#[tokio::test]
async fn a_watcher_gets_an_empty_message_and_then_what_it_selected() {
    let store = Store::local();
    let entries = vec![entry("task", ALL, vec![By::ServiceId("s".into())])];
    let mut messages = watch(&store, entries).await.unwrap();
    assert_eq!(messages.next().await.unwrap().unwrap(), WatchMessage::default());
    create(&store, task("other", "x")).await;
    let created = create(&store, task("mine", "s")).await;
    let message = messages.next().await.unwrap().unwrap();
    assert_eq!(message.version.unwrap().index, store.view().index());
    assert_eq!(message.events.len(), 1);
    assert_eq!(message.events[0].action(), WatchActionKind::WatchActionCreate);
    let mut changed = created.clone();
    changed.slot = 3;
    store.update(|tx| tx.update(changed.clone())).await.unwrap();
    let message = messages.next().await.unwrap().unwrap();
    let event = &message.events[0];
    assert_eq!(event.action(), WatchActionKind::WatchActionUpdate);
    assert_eq!(event.old_object, Some(WireObject { object: Some(object::Object::Task(created)) }));
}

#[tokio::test]
async fn secrets_are_shown_without_their_data() {
    let store = Store::local();
    let mut messages = watch(&store, vec![entry("secret", 1, vec![])]).await.unwrap();
    messages.next().await;
    let mut secret = Secret { id: "s".into(), ..Default::default() };
    secret.spec.annotations.name = "password".into();
    secret.spec.data = b"hush".to_vec();
    store.update(|tx| tx.create(secret.clone())).await.unwrap();
    let message = messages.next().await.unwrap().unwrap();
    let Some(object::Object::Secret(shown)) = message.events[0].object.clone().unwrap().object else {
        panic!("a secret")
    };
    assert!(shown.spec.data.is_empty());
    assert_eq!(shown.spec.annotations.name, "password");
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let store = Store::local();
    let check = async |entry: WatchEntry, text: &str| {
        let error = watch(&store, vec![entry]).await.err().expect(text);
        assert_eq!((error.code(), error.message()), (Code::InvalidArgument, text));
    };
    check(entry("", 1, vec![]), "no kind of object specified").await;
    check(entry("task", 0, vec![]), "unrecognized action").await;
    check(entry("task", 8, vec![]), "unrecognized action").await;
    let conflict = "conflicting filters specified";
    check(entry("task", 1, vec![By::Id("a".into()), By::Id("b".into())]), conflict).await;
    check(entry("task", 1, vec![By::Id("a".into()), By::IdPrefix("b".into())]), conflict).await;
    check(entry("task", 1, vec![By::Slot(Default::default()), By::ServiceId("b".into())]), conflict).await;
}

#[tokio::test]
async fn a_watch_resumes_only_where_nothing_is_missing() {
    let store = Store::local();
    create(&store, task("a", "s")).await;
    let resume = async |index| {
        let entries = vec![entry("task", ALL, vec![])];
        let request =
            WatchRequest { entries, resume_from: Some(Version { index }), include_old_object: false };
        Watch::new(store.clone())
            .watch(Request::new(request))
            .await
            .map(drop)
            .map_err(|e| e.message().to_owned())
    };
    assert_eq!(resume(1).await, Ok(()));
    assert_eq!(resume(0).await, Err("requested index is unavailable due to compaction".into()));
    assert_eq!(resume(9).await, Err("last version is out of bounds".into()));
}
