use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use swarm_api::swarmd::dry_run_request::Call;
use swarm_api::swarmd::dry_run_response::Ending;
use swarm_api::swarmd::services_server::Services;
use swarm_api::swarmd::{DryRunRequest, DryRunResponse};

use super::*;

async fn ask(control: &Control, call: Call) -> Result<tonic::Response<DryRunResponse>, Status> {
    Services::dry_run(control, Request::new(DryRunRequest { call: Some(call) })).await
}

async fn node(control: &Control, id: &str) {
    let mut node = Node { id: id.into(), ..Default::default() };
    node.status.state = node_status::State::Ready as i32;
    put(control, node).await;
}

fn create(spec: ServiceSpec) -> Call {
    Call::Create(CreateServiceRequest { spec: Some(spec) })
}

fn update(service: &Service, spec: ServiceSpec) -> UpdateServiceRequest {
    UpdateServiceRequest {
        service_id: service.id.clone(),
        service_version: Some(service.meta.version),
        spec: Some(spec),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_dry_run_writes_nothing() {
    let control = control();
    let web = create_service(&control, service_spec("web", 2)).await.unwrap();
    node(&control, "n1").await;
    node(&control, "n2").await;
    let (before, mut commits) = control.store.view_and_subscribe();
    let new = ask(&control, create(service_spec("db", 4))).await.unwrap().into_inner();
    assert_eq!((new.placed, new.index, new.ending()), (4, before.index(), Ending::Settled));
    let more = ask(&control, Call::Update(update(&web, service_spec("web", 6)))).await.unwrap().into_inner();
    assert_eq!((more.placed, more.nodes.len()), (6, 2));
    let after = control.store.view();
    assert_eq!(after.index(), before.index());
    assert_eq!(after.to_snapshot(), before.to_snapshot());
    assert!(commits.try_next().is_none(), "nobody is told of anything");
    // What was rehearsed can be done.
    assert!(create_service(&control, service_spec("db", 4)).await.is_ok());
}

#[tokio::test]
async fn a_dry_run_is_refused_as_the_call_would_be() {
    let control = control();
    let web = create_service(&control, service_spec("web", 1)).await.unwrap();
    put(&control, secret("s", "there")).await;
    let mut unknown = service_spec("b", 1);
    let reference = SecretReference { secret_id: "x".into(), secret_name: "x".into(), ..Default::default() };
    container(&mut unknown).secrets.push(reference);
    let specs = [
        service_spec("web", 1),
        service_spec("", 1),
        service_spec("big", 1 << 40),
        unknown,
        service_spec("-", 1),
    ];
    for spec in specs {
        let real =
            control.rpc().create_service(Request::new(CreateServiceRequest { spec: Some(spec.clone()) }));
        let (real, dry) = (real.await.unwrap_err(), ask(&control, create(spec)).await.unwrap_err());
        assert_eq!((dry.code(), dry.message()), (real.code(), real.message()));
    }
    let stale = |service: &Service| {
        let mut request = update(service, service_spec("web", 2));
        request.service_version = Some(Version { index: 999 });
        request
    };
    let mut nobody = update(&web, service_spec("web", 2));
    nobody.service_id = "nobody".into();
    let mut back = update(&web, service_spec("web", 2));
    back.set_rollback(update_service_request::Rollback::Previous);
    for request in
        [stale(&web), nobody, back, update(&web, service_spec("other", 1)), UpdateServiceRequest::default()]
    {
        let dry = ask(&control, Call::Update(request.clone())).await.unwrap_err();
        let real = control.rpc().update_service(Request::new(request)).await.unwrap_err();
        assert_eq!((dry.code(), dry.message()), (real.code(), real.message()));
    }
    let empty = Services::dry_run(&control, Request::new(DryRunRequest::default())).await;
    refused(empty, Code::InvalidArgument, "invalid argument");
}

#[tokio::test]
async fn a_rollback_is_rehearsed_too() {
    let control = control();
    node(&control, "n1").await;
    let web = create_service(&control, service_spec("web", 1)).await.unwrap();
    let request = Request::new(update(&web, service_spec("web", 3)));
    let web = control.rpc().update_service(request).await.unwrap().into_inner().service.unwrap();
    let mut back = update(&web, web.spec.clone());
    back.set_rollback(update_service_request::Rollback::Previous);
    let answer = ask(&control, Call::Update(back)).await.unwrap().into_inner();
    assert_eq!(answer.differences[0].what, "number of tasks: 3 → 1");
    assert_eq!(answer.placed, 1, "the service had no tasks yet");
}

/// Leads for so many more questions.
struct Leaving(AtomicUsize);

impl Membership for Leaving {
    fn is_leader(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }
    fn members(&self) -> BTreeMap<String, ManagerStatus> {
        BTreeMap::new()
    }
    fn can_remove(&self, _node_id: &str) -> bool {
        false
    }
}

#[tokio::test]
async fn a_manager_that_does_not_lead_any_more_says_so() {
    for questions in 0..5 {
        let control = Control::new(Store::local(), Arc::new(Leaving(AtomicUsize::new(questions))));
        let answer = ask(&control, create(service_spec("web", 100))).await;
        refused(answer, Code::Unavailable, "raft proposal dropped");
    }
}

#[tokio::test]
async fn dry_runs_take_turns_and_do_not_pile_up() {
    let control = control();
    node(&control, "n1").await;
    let all = (0..40).map(|_| ask(&control, create(service_spec("web", 10))));
    let answers = futures::future::join_all(all).await;
    let done = answers.iter().filter(|a| a.is_ok()).count();
    let busy = answers.iter().filter_map(|a| a.as_ref().err());
    assert!(busy.clone().all(|status| status.code() == Code::ResourceExhausted));
    assert_eq!(done + busy.count(), 40);
    assert!((16..40).contains(&done), "{done}");
    assert!(ask(&control, create(service_spec("web", 1))).await.is_ok(), "there is room again");
}
