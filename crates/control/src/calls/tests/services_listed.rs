//! Which services are listed, and what is counted of their tasks.

use std::collections::BTreeMap;

use super::*;

/// Names of the services that a list with these filters has, in order.
async fn listed(control: &Control, filters: list_services_request::Filters) -> Vec<String> {
    let request = ListServicesRequest { filters: Some(filters) };
    let services = control.rpc().list_services(Request::new(request)).await.unwrap().into_inner().services;
    let mut names: Vec<String> = services.iter().map(|s| s.spec.annotations.name.clone()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn services_are_filtered() {
    use list_services_request::Filters;
    let control = control();
    for (name, label) in [("alpha", "a"), ("beta", "b"), ("Alp", "a")] {
        let mut spec = service_spec(name, 0);
        spec.annotations.labels.insert("k".into(), label.into());
        create_service(&control, spec).await.unwrap();
    }
    let list = async |filters: Filters| listed(&control, filters).await;
    let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    assert_eq!(list(Filters::default()).await, ["Alp", "alpha", "beta"]);
    assert_eq!(list(Filters { names: text("alpha"), ..Default::default() }).await, ["alpha"]);
    assert!(list(Filters { names: text("ALPHA"), ..Default::default() }).await.is_empty());
    assert_eq!(list(Filters { name_prefixes: text("alp"), ..Default::default() }).await, ["alpha"]);
    assert_eq!(list(Filters { labels: label("k", "a"), ..Default::default() }).await, ["Alp", "alpha"]);
    assert_eq!(list(Filters { labels: label("k", ""), ..Default::default() }).await.len(), 3);
    assert!(list(Filters { labels: label("x", ""), ..Default::default() }).await.is_empty());
    assert_eq!(list(Filters { runtimes: text("container"), ..Default::default() }).await.len(), 3);
    assert!(list(Filters { runtimes: text("plugin"), ..Default::default() }).await.is_empty());
    let both = Filters { names: text("alpha"), labels: label("k", "b"), ..Default::default() };
    assert!(list(both).await.is_empty());
    let id = control.store.view().services().by_name("beta").next().unwrap().id.clone();
    let prefixes = Filters { id_prefixes: vec![id[..20].into(), id.clone()], ..Default::default() };
    assert_eq!(list(prefixes).await, ["beta"]);
}

#[tokio::test]
async fn statuses_are_counted_in_the_order_asked_for() {
    let control = control();
    let web = create_service(&control, service_spec("web", 3)).await.unwrap();
    let mut spec = service_spec("all", 0);
    spec.mode = Some(Mode::Global(GlobalService {}));
    let all = create_service(&control, spec.clone()).await.unwrap();
    spec.annotations.name = "job".into();
    spec.mode = Some(Mode::ReplicatedJob(ReplicatedJob { max_concurrent: 2, total_completions: 5 }));
    let job = create_service(&control, spec).await.unwrap();
    let mut spec = service_spec("everywhere", 0);
    spec.mode = Some(Mode::GlobalJob(GlobalJob {}));
    let once = create_service(&control, spec.clone()).await.unwrap();
    let everywhere = update_service(&control, &once, spec, Rollback::None).await.unwrap();
    let task = |id: &str, service: &str, state: TaskState, desired: TaskState, iteration: u64| Task {
        id: id.into(),
        service_id: service.into(),
        status: TaskStatus { state: state as i32, ..Default::default() },
        desired_state: desired as i32,
        job_iteration: Some(Version { index: iteration }),
        ..Default::default()
    };
    use TaskState::{Complete, Failed, Running, Shutdown};
    for task in [
        task("1", &web.id, Running, Running, 0),
        task("2", &web.id, Running, Shutdown, 0),
        task("3", &web.id, Failed, Running, 0),
        task("4", &all.id, Running, Running, 0),
        task("5", &all.id, Failed, Running, 0),
        task("6", &job.id, Running, Complete, 0),
        task("7", &job.id, Complete, Complete, 0),
        task("8", &job.id, Complete, Complete, 9),
        task("9", "gone", Running, Running, 0),
        task("a", &everywhere.id, Complete, Complete, 0),
        task("b", &everywhere.id, Complete, Complete, 1),
        task("c", &everywhere.id, Running, Complete, 1),
        task("d", &everywhere.id, Failed, Complete, 1),
    ] {
        put(&control, task).await;
    }
    let services = vec![
        "gone".into(),
        job.id.clone(),
        web.id.clone(),
        all.id.clone(),
        "unknown".into(),
        everywhere.id.clone(),
    ];
    let request = ListServiceStatusesRequest { services };
    let statuses =
        control.rpc().list_service_statuses(Request::new(request)).await.unwrap().into_inner().statuses;
    let counts: Vec<_> =
        statuses.iter().map(|s| (s.desired_tasks, s.running_tasks, s.completed_tasks)).collect();
    assert_eq!(counts, [(0, 1, 0), (2, 1, 1), (3, 2, 0), (2, 1, 0), (0, 0, 0), (2, 1, 1)]);
    assert_eq!(statuses[4].service_id, "unknown");
}

#[tokio::test]
async fn prefixes_of_one_list_are_alternatives() {
    use list_services_request::Filters;
    let control = control();
    for name in ["alpha", "beta", "gamma"] {
        create_service(&control, service_spec(name, 0)).await.unwrap();
    }
    let list = async |filters: Filters| listed(&control, filters).await;
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let prefixes = Filters { name_prefixes: words(&["al", "ga", "x", "alp"]), ..Default::default() };
    assert_eq!(list(prefixes.clone()).await, ["alpha", "gamma"]);
    assert_eq!(list(Filters { names: words(&["gamma", "beta"]), ..prefixes }).await, ["gamma"]);
    let ids: Vec<String> = control.store.view().services().iter().map(|s| s.id.clone()).collect();
    assert_eq!(list(Filters { id_prefixes: ids[..2].to_vec(), ..Default::default() }).await.len(), 2);
}

#[tokio::test]
async fn a_status_counts_what_runs_and_not_what_should() {
    let control = control();
    let mut number = 0;
    let mut task = |service: &str, state: TaskState, desired: TaskState| {
        number += 1;
        Task {
            id: format!("t{number}").into(),
            service_id: service.into(),
            status: TaskStatus { state: state as i32, ..Default::default() },
            desired_state: desired as i32,
            ..Default::default()
        }
    };
    use TaskState::{New, Remove, Running};
    let mut services = Vec::new();
    // As many as asked for, too few, too many.
    for (name, running) in [("even", 2), ("short", 1), ("over", 3)] {
        let service = create_service(&control, service_spec(name, 2)).await.unwrap();
        for _ in 0..running {
            put(&control, task(&service.id, Running, Running)).await;
        }
        services.push(service.id.clone());
    }
    // Of a global service what does not run yet is asked for, and what is to go is not.
    let mut spec = service_spec("global", 0);
    spec.mode = Some(Mode::Global(GlobalService {}));
    let global = create_service(&control, spec).await.unwrap();
    for (state, desired) in [(Running, Running), (New, Running), (Running, Remove)] {
        put(&control, task(&global.id, state, desired)).await;
    }
    services.push(global.id.clone());
    let request = Request::new(ListServiceStatusesRequest { services });
    let statuses = control.rpc().list_service_statuses(request).await.unwrap().into_inner().statuses;
    let counts: Vec<_> = statuses.iter().map(|s| (s.desired_tasks, s.running_tasks)).collect();
    assert_eq!(counts, [(2, 2), (2, 1), (2, 3), (2, 2)]);
}
