//! Attachments of containers that belong to no service.

use super::*;

async fn network(control: &Control, name: &str, attachable: bool) -> Shared<Network> {
    let annotations = Annotations { name: name.into(), ..Default::default() };
    let spec = NetworkSpec { annotations: annotations.into(), attachable, ..Default::default() };
    put(control, Network { id: id::random(), spec, ..Default::default() }).await
}

async fn node(control: &Control, id: &str) {
    put(control, Node { id: id.into(), ..Default::default() }).await;
}

fn asks(target: &str) -> AttachNetworkRequest {
    let config = NetworkAttachmentConfig {
        target: target.into(),
        aliases: vec!["db".into()],
        addresses: vec!["10.0.0.7".into()],
        driver_attachment_opts: [("a".to_owned(), "b".to_owned())].into(),
    };
    AttachNetworkRequest { config: Some(config), container_id: "c1".into() }
}

#[track_caller]
fn fails<T: fmt::Debug>(answer: Result<T>, code: Code, text: &str) {
    let error = answer.expect_err(text);
    assert_eq!((error.code(), error.to_string().as_str()), (code, text));
}

/// Scenario 149, and network scenario 50.
#[tokio::test]
async fn a_container_is_attached_by_id_and_by_name_and_detached_by_its_own_node() {
    let control = control();
    let lan = network(&control, "Lan", true).await;
    for id in ["n1", "n2"] {
        node(&control, id).await;
    }
    for target in [lan.id.as_str(), "lan"] {
        let attachment = control.attach_network("n1", asks(target)).await.unwrap();
        let task = control.store.view().tasks().get(&attachment).unwrap().clone();
        assert_eq!((&*task.node_id, &*task.service_id, task.slot), ("n1", "", 0));
        assert_eq!((task.status.state(), &*task.status.message), (TaskState::New, "created"));
        assert_eq!(task.desired_state(), TaskState::Running);
        let spec = NetworkAttachmentSpec { container_id: "c1".into() };
        assert_eq!(task.spec.runtime, Some(task_spec::Runtime::Attachment(spec)));
        // Names and options of a service's task mean nothing here.
        let config = NetworkAttachmentConfig {
            target: lan.id.clone(),
            addresses: vec!["10.0.0.7".into()],
            ..Default::default()
        };
        assert_eq!(task.spec.networks, [config]);

        let foreign = control.detach_network("n2", &attachment).await;
        let text = format!("attachment {attachment} doesn't belong to this node");
        fails(foreign, Code::PermissionDenied, &text);
        assert!(control.store.view().tasks().get(&attachment).is_some());
        control.detach_network("n1", &attachment).await.unwrap();
        assert!(control.store.view().tasks().get(&attachment).is_none());
        let gone = control.detach_network("n1", &attachment).await;
        fails(gone, Code::NotFound, &format!("attachment {attachment} not found"));
    }
}

/// Scenario 149; `orchestration.md` §20.49: without a config the original ends.
#[tokio::test]
async fn attachments_that_cannot_be_are_refused() {
    let control = control();
    network(&control, "closed", false).await;
    network(&control, "open", true).await;
    node(&control, "n1").await;
    let attach = |request| control.attach_network("n1", request);
    fails(attach(Default::default()).await, Code::InvalidArgument, "invalid argument");
    let nothing = "the id or name of a network must be given";
    fails(attach(asks("")).await, Code::InvalidArgument, nothing);
    fails(attach(asks("unknown")).await, Code::NotFound, "network unknown not found");
    let closed = "network closed not manually attachable";
    fails(attach(asks("closed")).await, Code::PermissionDenied, closed);
    fails(control.attach_network("gone", asks("open")).await, Code::NotFound, "node gone not found");
    let long = AttachNetworkRequest { container_id: "c".repeat(1 << 20), ..asks("open") };
    assert_eq!(attach(long).await.unwrap_err().code(), Code::InvalidArgument);
    fails(control.detach_network("n1", "").await, Code::InvalidArgument, "invalid argument");
    assert!(control.store.view().tasks().is_empty());
}

#[tokio::test]
async fn a_task_of_a_service_is_no_attachment() {
    let control = control();
    node(&control, "n1").await;
    let task = Task { id: "t".into(), node_id: "n1".into(), ..Default::default() };
    put(&control, task).await;
    fails(control.detach_network("n1", "t").await, Code::NotFound, "attachment t not found");
    assert!(control.store.view().tasks().get("t").is_some());
}

/// Somebody uses the network as long as a container is attached.
#[tokio::test]
async fn a_network_with_an_attached_container_stays() {
    let control = control();
    let lan = network(&control, "lan", true).await;
    node(&control, "n1").await;
    let attachment = control.attach_network("n1", asks("lan")).await.unwrap();
    let remove = || async {
        let request = RemoveNetworkRequest { network_id: lan.id.clone(), ..Default::default() };
        control.rpc().remove_network(Request::new(request)).await
    };
    let text = format!("network {} is in use by task {attachment}", lan.id);
    refused(remove().await, Code::FailedPrecondition, &text);
    control.detach_network("n1", &attachment).await.unwrap();
    remove().await.unwrap();
}

#[tokio::test]
async fn a_node_has_so_many_attachments_at_most() {
    let control = control();
    let lan = network(&control, "lan", true).await;
    for id in ["n1", "n2"] {
        node(&control, id).await;
    }
    let first = control.attach_network("n1", asks("lan")).await.unwrap();
    let like = control.store.view().tasks().get(&first).unwrap().clone();
    let filled = control.store.update::<_, swarm_store::Error, _>(|tx| {
        (1..4096)
            .try_for_each(|n| tx.create(Task { id: format!("t{n}").into(), ..(*like).clone() }).map(drop))
    });
    filled.await.unwrap();
    let text = "node n1 has 4096 attachments, as many as it can have";
    fails(control.attach_network("n1", asks("lan")).await, Code::ResourceExhausted, text);
    control.attach_network("n2", asks(&lan.id)).await.unwrap();
    control.detach_network("n1", &first).await.unwrap();
    let last = control.attach_network("n1", asks("lan")).await.unwrap();
    // One that has ended takes nobody's room.
    let ended = control.store.update::<_, swarm_store::Error, _>(|tx| {
        let mut task = tx.tasks().get("t7").unwrap().clone();
        task.status.state = TaskState::Failed as i32;
        tx.update(task).map(drop)
    });
    ended.await.unwrap();
    control.attach_network("n1", asks("lan")).await.unwrap();
    let view = control.store.view();
    assert!(view.tasks().get("t7").is_none() && view.tasks().get(&last).is_some());
}
