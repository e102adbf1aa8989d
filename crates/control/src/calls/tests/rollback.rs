//! Rollbacks by hand to what may not be there any more.

use super::*;

async fn back(control: &Control, service: &Service) -> Result<Shared<Service>, Status> {
    update_service(control, service, service.spec.clone(), Rollback::Previous).await
}

fn publishing(name: &str, published_port: u32) -> ServiceSpec {
    let mut spec = service_spec(name, 1);
    let ports = vec![PortConfig { target_port: 80, published_port, ..Default::default() }];
    spec.endpoint = Some(EndpointSpec { ports, ..Default::default() });
    spec
}

async fn network(control: &Control, id: &str) {
    let mut network = Network { id: id.into(), ..Default::default() };
    network.spec.annotations.name = id.into();
    network.spec.ingress = id == "ingress";
    put(control, network).await;
}

#[tokio::test]
async fn a_port_that_somebody_else_has_got_meanwhile_is_refused() {
    let control = control();
    network(&control, "ingress").await;
    let web = create_service(&control, publishing("web", 8080)).await.unwrap();
    let web = update_service(&control, &web, publishing("web", 9090), Rollback::None).await.unwrap();
    let other = create_service(&control, publishing("other", 8080)).await.unwrap();
    let text = format!("port '8080' is already in use by service 'other' ({}) as an ingress port", other.id);
    refused(back(&control, &web).await.map(tonic::Response::new), Code::InvalidArgument, &text);
    let request = RemoveServiceRequest { service_id: other.id.clone() };
    control.rpc().remove_service(Request::new(request)).await.unwrap();
    // What the request says of ports beside that does not matter.
    create_service(&control, publishing("third", 7070)).await.unwrap();
    let returned = update_service(&control, &web, publishing("web", 7070), Rollback::Previous).await.unwrap();
    assert_eq!(returned.spec.endpoint, publishing("web", 8080).endpoint);
}

#[tokio::test]
async fn a_network_that_was_removed_meanwhile_is_named() {
    let control = control();
    network(&control, "lan").await;
    let mut on_lan = service_spec("web", 1);
    on_lan.task.networks = vec![NetworkAttachmentConfig { target: "lan".into(), ..Default::default() }];
    let web = create_service(&control, on_lan.clone()).await.unwrap();
    let web = update_service(&control, &web, service_spec("web", 1), Rollback::None).await.unwrap();
    let request = RemoveNetworkRequest { network_id: "lan".into(), ..Default::default() };
    control.rpc().remove_network(Request::new(request)).await.unwrap();
    let id = &web.id;
    let text =
        format!("service {id} can't be rolled back: network lan, which it was on, does not exist any more");
    refused(back(&control, &web).await.map(tonic::Response::new), Code::FailedPrecondition, &text);
    network(&control, "lan").await;
    assert_eq!(back(&control, &web).await.unwrap().spec, on_lan);
}

#[tokio::test]
async fn a_secret_that_was_removed_meanwhile_is_named() {
    let control = control();
    put(&control, secret("s", "password")).await;
    let mut with_secret = service_spec("web", 1);
    container(&mut with_secret).secrets.push(SecretReference {
        secret_id: "s".into(),
        secret_name: "password".into(),
        target: Some(secret_reference::Target::File(FileTarget { name: "f".into(), ..Default::default() })),
    });
    let web = create_service(&control, with_secret).await.unwrap();
    let web = update_service(&control, &web, service_spec("web", 1), Rollback::None).await.unwrap();
    let request = RemoveSecretRequest { secret_id: "s".into() };
    control.rpc().remove_secret(Request::new(request)).await.unwrap();
    let answer = back(&control, &web).await.map(tonic::Response::new);
    refused(answer, Code::InvalidArgument, "secret not found: password");
}

#[tokio::test]
async fn a_large_spec_for_which_there_is_no_room_any_more_is_refused() {
    let control = control();
    let a = create_service(&control, service_spec("a", 6_000_000)).await.unwrap();
    let a = update_service(&control, &a, service_spec("a", 1), Rollback::None).await.unwrap();
    create_service(&control, service_spec("b", 6_000_000)).await.unwrap();
    let text =
        "the services of this cluster would have 12000000 tasks, more than the 10000000 that it can have";
    error(back(&control, &a).await, Code::InvalidArgument, text);
    assert_eq!(control.store.view().services().get(&a.id), Some(&a));
}

/// What the request says beside that does not matter.
#[tokio::test]
async fn a_large_service_goes_back_to_a_smaller_one_however_full_the_cluster_is() {
    let control = control();
    let a = create_service(&control, service_spec("a", 1)).await.unwrap();
    let a = update_service(&control, &a, service_spec("a", 6_000_000), Rollback::None).await.unwrap();
    let spec = service_spec("b", 6_000_000);
    put(&control, Service { id: "b".into(), spec, ..Default::default() }).await;
    assert_eq!(back(&control, &a).await.unwrap().spec, service_spec("a", 1));
}

/// Nobody would say that it is over: jobs have no updates.
#[tokio::test]
async fn a_job_that_is_rolled_back_begins_anew_and_has_no_update() {
    let control = control();
    let mut spec = service_spec("job", 0);
    spec.mode = Some(Mode::GlobalJob(GlobalJob {}));
    let job = create_service(&control, spec.clone()).await.unwrap();
    spec.task.force_update = 1;
    let job = update_service(&control, &job, spec, Rollback::None).await.unwrap();
    let job = back(&control, &job).await.unwrap();
    assert_eq!((job.update_status.as_ref(), job.spec.task.force_update), (None, 0));
    assert_eq!(job.job_status.as_ref().unwrap().job_iteration.index, 2);
}
