//! Services that wait for others before they start.

use super::*;
use swarm_api::extensions::DEPENDS_ON;

fn waiting(name: &str, order: &str) -> ServiceSpec {
    let mut spec = service_spec(name, 1);
    if !order.is_empty() {
        spec.annotations.labels.insert(DEPENDS_ON.into(), order.into());
    }
    spec
}

async fn update(
    control: &Control,
    name: &str,
    spec: ServiceSpec,
    rollback: Rollback,
) -> Result<Shared<Service>, Status> {
    let service = control.store.view().services().by_name(name).next().unwrap().clone();
    update_service(control, &service, spec, rollback).await
}

async fn remove(control: &Control, name: &str) -> Result<(), Status> {
    let service_id = control.store.view().services().by_name(name).next().unwrap().id.clone();
    control.rpc().remove_service(Request::new(RemoveServiceRequest { service_id })).await.map(drop)
}

#[track_caller]
fn error<T: fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.expect_err(text);
    assert_eq!((status.code(), status.message()), (code, text));
}

#[tokio::test]
async fn whom_a_service_waits_for_must_be_there_and_of_the_right_kind() {
    let control = control();
    let mut job = service_spec("migrate", 0);
    job.mode = Some(Mode::GlobalJob(GlobalJob {}));
    create_service(&control, job).await.unwrap();
    create_service(&control, service_spec("db", 1)).await.unwrap();
    create_service(&control, waiting("web", "db:healthy,migrate:completed")).await.unwrap();
    for (order, text) in [
        ("api:healthy", "service api can't wait for itself"),
        (
            "nobody:running",
            "service api is to wait for service nobody, which is not there: create that first",
        ),
        ("DB:healthy", "service api is to wait for service DB, whose name is written db"),
        ("db:completed", "service db is no job, and never completes: wait for db:healthy or db:running"),
        (
            "migrate:healthy",
            "service migrate is a job, which others wait for until it has completed: migrate:completed",
        ),
        ("db:healthy,db:running", "label \"swarmd.depends-on\" names the service \"db\" twice"),
    ] {
        error(create_service(&control, waiting("api", order)).await, Code::InvalidArgument, text);
        create_service(&control, service_spec("api", 1)).await.unwrap();
        let answer = update(&control, "api", waiting("api", order), Rollback::None).await;
        error(answer, Code::InvalidArgument, text);
        remove(&control, "api").await.unwrap();
    }
}

#[tokio::test]
async fn services_that_would_wait_for_each_other_are_refused_with_the_way_around() {
    let control = control();
    create_service(&control, service_spec("a", 1)).await.unwrap();
    create_service(&control, waiting("b", "a:healthy")).await.unwrap();
    create_service(&control, waiting("c", "b:running")).await.unwrap();
    let around = "service a would wait for itself: a waits for c, which waits for b, which waits for a";
    error(
        update(&control, "a", waiting("a", "c:healthy"), Rollback::None).await,
        Code::InvalidArgument,
        around,
    );
    // Past that, by a rollback.
    update(&control, "b", waiting("b", ""), Rollback::None).await.unwrap();
    update(&control, "a", waiting("a", "c:healthy"), Rollback::None).await.unwrap();
    error(
        update(&control, "b", waiting("b", ""), Rollback::Previous).await,
        Code::InvalidArgument,
        "service b would wait for itself: b waits for a, which waits for c, which waits for b",
    );
}

#[tokio::test]
async fn a_service_that_others_wait_for_is_not_removed() {
    let control = control();
    create_service(&control, service_spec("db", 1)).await.unwrap();
    create_service(&control, waiting("web", "db:healthy")).await.unwrap();
    let hint = "Remove what waits first, or let it wait for nothing (service update --depends-on \"\")";
    error(
        remove(&control, "db").await,
        Code::FailedPrecondition,
        &format!("service db can't be removed: service web waits for it before starting. {hint}"),
    );
    create_service(&control, waiting("api", "db:running")).await.unwrap();
    let refused = remove(&control, "db").await.unwrap_err();
    assert!(refused.message().contains("wait for it before starting"), "{}", refused.message());
    update(&control, "api", waiting("api", ""), Rollback::None).await.unwrap();
    remove(&control, "web").await.unwrap();
    remove(&control, "db").await.unwrap();
}

#[tokio::test]
async fn other_changes_are_made_whatever_became_of_whom_a_service_waits_for() {
    let control = control();
    let mut service = Service { id: "w".into(), spec: waiting("web", "gone:healthy"), ..Default::default() };
    service.spec_version = Some(Version::default());
    put(&control, service).await;
    let mut spec = waiting("web", "gone:healthy");
    container(&mut spec).image = "nginx".into();
    update(&control, "web", spec.clone(), Rollback::None).await.unwrap();
    spec.annotations.labels.insert(DEPENDS_ON.into(), "gone:running".into());
    assert!(update(&control, "web", spec, Rollback::None).await.is_err());
}
