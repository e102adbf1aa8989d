//! The calls through the service's own door, on a store of its own.

mod attachment;
mod cluster;
mod dry_run;
mod network;
mod node;
mod order;
mod other;
mod rebalance;
mod refusals;
mod rollback;
mod secret;
mod service;
mod services_listed;
mod task;

use swarm_api::id;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::update_service_request::Rollback;
use swarm_api::v1::*;
use tonic::{Code, Request, Status};

use super::*;
use crate::deps::Alone;

fn control() -> Control {
    Control::new(Store::local(), Arc::new(Alone))
}

impl Control {
    /// The generated service, whose methods the calls' own would hide.
    fn rpc(&self) -> &dyn control_server::Control {
        self
    }
}

/// Puts an object into the store past the API.
async fn put<T: swarm_store::Indexed>(control: &Control, object: T) -> Shared<T> {
    let object = Shared::new(object);
    control.store.update(|tx| tx.create(object.clone())).await.unwrap().0
}

#[track_caller]
fn refused<T: fmt::Debug>(answer: Result<tonic::Response<T>, Status>, code: Code, text: &str) {
    let status = answer.expect_err(text);
    assert_eq!((status.code(), status.message()), (code, text));
}

fn service_spec(name: &str, replicas: u64) -> ServiceSpec {
    let mut spec = ServiceSpec::default();
    spec.annotations.name = name.into();
    spec.task.runtime =
        Some(task_spec::Runtime::Container(ContainerSpec { image: "redis".into(), ..Default::default() }));
    spec.mode = Some(Mode::Replicated(ReplicatedService { replicas }));
    spec
}

async fn create_service(control: &Control, spec: ServiceSpec) -> Result<Shared<Service>, Status> {
    let request = CreateServiceRequest { spec: Some(spec) };
    Ok(control.rpc().create_service(Request::new(request)).await?.into_inner().service.unwrap())
}

async fn update_service(
    control: &Control,
    service: &Service,
    spec: ServiceSpec,
    rollback: Rollback,
) -> Result<Shared<Service>, Status> {
    let request = UpdateServiceRequest {
        service_id: service.id.clone(),
        service_version: Some(service.meta.version),
        spec: Some(spec),
        rollback: rollback as i32,
    };
    Ok(control.rpc().update_service(Request::new(request)).await?.into_inner().service.unwrap())
}

#[track_caller]
fn error<T: fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.expect_err(text);
    assert_eq!((status.code(), status.message()), (code, text));
}

fn container(spec: &mut ServiceSpec) -> &mut ContainerSpec {
    match &mut spec.task.runtime {
        Some(task_spec::Runtime::Container(container)) => container,
        _ => panic!("a container"),
    }
}

fn secret(id: &str, name: &str) -> Secret {
    let mut secret = Secret { id: id.into(), ..Default::default() };
    secret.spec.annotations.name = name.into();
    secret.spec.data = b"hush".to_vec();
    secret
}

fn text(value: &str) -> Vec<String> {
    vec![value.to_owned()]
}
