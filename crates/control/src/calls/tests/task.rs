use list_tasks_request::Filters;

use super::*;

fn task(id: &str, service: &str, slot: u64, node: &str, desired: TaskState) -> Task {
    let mut task = Task {
        id: id.into(),
        service_id: service.into(),
        slot,
        node_id: node.into(),
        desired_state: desired as i32,
        ..Default::default()
    };
    task.service_annotations.name = format!("name-{service}");
    task.service_annotations.labels.insert("k".into(), service.into());
    task.spec.runtime =
        Some(task_spec::Runtime::Container(ContainerSpec { image: "redis".into(), ..Default::default() }));
    task
}

async fn list(control: &Control, filters: Filters) -> Vec<String> {
    let request = ListTasksRequest { filters: Some(filters) };
    let tasks = control.rpc().list_tasks(Request::new(request)).await.unwrap().into_inner().tasks;
    tasks.iter().map(|task| task.id.to_string()).collect()
}

#[tokio::test]
async fn tasks_are_read_and_removed_by_id() {
    let control = control();
    put(&control, task("t", "s", 1, "", TaskState::Running)).await;
    let get =
        async |id: &str| control.rpc().get_task(Request::new(GetTaskRequest { task_id: id.into() })).await;
    let remove = async |id: &str| {
        control.rpc().remove_task(Request::new(RemoveTaskRequest { task_id: id.into() })).await
    };
    refused(get("").await, Code::InvalidArgument, "invalid argument");
    refused(get("x").await, Code::NotFound, "task x not found");
    refused(remove("").await, Code::InvalidArgument, "invalid argument");
    refused(remove("x").await, Code::NotFound, "task x not found");
    assert_eq!(get("t").await.unwrap().into_inner().task.unwrap().id, "t");
    remove("t").await.unwrap();
    assert!(control.store.view().tasks().is_empty());
}

#[tokio::test]
async fn tasks_are_filtered() {
    let control = control();
    put(&control, task("a1", "s1", 1, "n1", TaskState::Running)).await;
    put(&control, task("a2", "s1", 0, "n2", TaskState::Shutdown)).await;
    put(&control, task("b1", "s2", 1, "n1", TaskState::Running)).await;
    let check = async |filters: Filters, expected: &[&str]| {
        assert_eq!(list(&control, filters.clone()).await, expected, "{filters:?}");
    };
    check(Filters::default(), &["a1", "a2", "b1"]).await;
    check(Filters { names: text("name-s1.1.a1"), ..Default::default() }, &["a1"]).await;
    check(Filters { names: text("name-s1.n2.a2"), ..Default::default() }, &["a2"]).await;
    check(Filters { name_prefixes: text("name-s1"), ..Default::default() }, &["a1", "a2"]).await;
    check(Filters { id_prefixes: text("a"), ..Default::default() }, &["a1", "a2"]).await;
    check(Filters { service_ids: text("s2"), ..Default::default() }, &["b1"]).await;
    check(Filters { node_ids: text("n1"), ..Default::default() }, &["a1", "b1"]).await;
    let running = vec![TaskState::Running as i32];
    check(Filters { desired_states: running.clone(), ..Default::default() }, &["a1", "b1"]).await;
    let both = Filters { desired_states: running.clone(), service_ids: text("s1"), ..Default::default() };
    check(both, &["a1"]).await;
    let either = [running, vec![TaskState::Shutdown as i32]].concat();
    check(Filters { desired_states: either, ..Default::default() }, &["a1", "b1", "a2"]).await;
    let removed = vec![TaskState::Remove as i32];
    check(Filters { desired_states: removed, ..Default::default() }, &[]).await;
    check(Filters { labels: [("k".into(), "s2".into())].into(), ..Default::default() }, &["b1"]).await;
    check(Filters { runtimes: text("container"), ..Default::default() }, &["a1", "a2", "b1"]).await;
    check(Filters { runtimes: text(""), ..Default::default() }, &[]).await;
}

#[tokio::test]
async fn up_to_date_tasks_are_those_that_need_no_replacement() {
    let control = control();
    let service = create_service(&control, service_spec("web", 1)).await.unwrap();
    let base = |id: &str| {
        let mut task = task(id, &service.id, 1, "", TaskState::Running);
        task.spec = service.spec.task.clone();
        task.status.state = TaskState::Running as i32;
        task
    };
    put(&control, base("equal-spec")).await;
    let mut same_version = base("same-version");
    same_version.spec.force_update = 7;
    same_version.spec_version = service.spec_version;
    put(&control, same_version).await;
    let mut dirty = base("dirty");
    dirty.spec.force_update = 7;
    put(&control, dirty).await;
    let mut pulled = base("other-credentials");
    if let Some(task_spec::Runtime::Container(container)) = &mut pulled.spec.runtime {
        container.pull_options = Some(container_spec::PullOptions { registry_auth: "x".into() });
    }
    put(&control, pulled).await;
    put(&control, task("orphan", "gone", 1, "", TaskState::Running)).await;
    let clean = list(&control, Filters { up_to_date: true, ..Default::default() }).await;
    assert_eq!(clean, ["equal-spec", "other-credentials", "same-version"]);
}
