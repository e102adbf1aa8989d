use swarm_api::v1::port_config::{Protocol, PublishMode};
use swarm_api::v1::update_status::UpdateState;

use super::*;

fn ports(ports: &[(u32, Protocol, PublishMode)]) -> Option<EndpointSpec> {
    let port = |(number, protocol, mode): &(u32, Protocol, PublishMode)| PortConfig {
        published_port: *number,
        target_port: 80,
        protocol: *protocol as i32,
        publish_mode: *mode as i32,
        ..Default::default()
    };
    Some(EndpointSpec { ports: ports.iter().map(port).collect(), ..Default::default() })
}

async fn ingress_network(control: &Control) -> Shared<Network> {
    let mut network = Network { id: "net".into(), ..Default::default() };
    network.spec.annotations.name = "ingress".into();
    network.spec.ingress = true;
    put(control, network).await
}

#[tokio::test]
async fn a_created_service_is_as_asked_for() {
    let control = control();
    let service = create_service(&control, service_spec("web", 2)).await.unwrap();
    assert!(id::is_valid(&service.id));
    assert_eq!(service.spec, service_spec("web", 2));
    assert_eq!(service.spec_version, Some(Version { index: 0 }));
    assert_eq!(service.job_status, None);
    assert!(service.meta.version.index > 0 && service.meta.created_at.is_some());
    assert_eq!(control.store.view().services().get(&service.id), Some(&service));
}

#[tokio::test]
async fn a_created_job_has_a_status() {
    let control = control();
    let mut spec = service_spec("job", 0);
    spec.mode = Some(Mode::GlobalJob(GlobalJob {}));
    let job = create_service(&control, spec.clone()).await.unwrap();
    let status = job.job_status.as_ref().unwrap();
    assert_eq!(status.job_iteration.index, 0);
    assert!(status.last_execution.is_some());
    let job = update_service(&control, &job, spec, Rollback::None).await.unwrap();
    assert_eq!(job.job_status.as_ref().unwrap().job_iteration.index, 1);
}

#[tokio::test]
async fn creation_is_refused_with_the_contracts_code_and_text() {
    let control = control();
    refused(
        control.rpc().create_service(Request::new(CreateServiceRequest::default())).await,
        Code::InvalidArgument,
        "invalid argument",
    );
    create_service(&control, service_spec("web", 1)).await.unwrap();
    error(
        create_service(&control, service_spec("WEB", 1)).await,
        Code::AlreadyExists,
        "name conflicts with an existing object: service WEB already exists",
    );
    let mut spec = service_spec("a", 1);
    spec.endpoint = ports(&[(80, Protocol::Tcp, PublishMode::Ingress)]);
    let missing = "service needs ingress network, but no ingress network is present";
    error(create_service(&control, spec).await, Code::FailedPrecondition, missing);
    let network = ingress_network(&control).await;
    let mut spec = service_spec("a", 1);
    spec.task.networks = vec![NetworkAttachmentConfig { target: network.id.clone(), ..Default::default() }];
    error(
        create_service(&control, spec.clone()).await,
        Code::InvalidArgument,
        "Service cannot be explicitly attached to the ingress network \"ingress\"",
    );
    spec.task.networks[0].target = "unknown".into();
    create_service(&control, spec).await.unwrap();
}

#[tokio::test]
async fn ports_in_use_are_refused_by_mode() {
    use PublishMode::{Host, Ingress};
    let control = control();
    ingress_network(&control).await;
    let mut spec = service_spec("taken", 1);
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    spec.endpoint = ports(&[(80, tcp, Ingress), (90, tcp, Host)]);
    let taken = create_service(&control, spec).await.unwrap();
    let check = async |port, protocol, mode, how: Option<&str>| {
        let mut spec = service_spec("new", 1);
        spec.endpoint = ports(&[(port, protocol, mode)]);
        let answer = create_service(&control, spec).await;
        match how {
            None => {
                let service_id = answer.unwrap().id.clone();
                let request = RemoveServiceRequest { service_id };
                control.rpc().remove_service(Request::new(request)).await.unwrap();
            }
            Some(how) => error(
                answer,
                Code::InvalidArgument,
                &format!("port '{port}' is already in use by service 'taken' ({}) as {how}", taken.id),
            ),
        }
    };
    check(80, tcp, Ingress, Some("an ingress port")).await;
    check(80, tcp, Host, Some("an ingress port")).await;
    check(90, tcp, Ingress, Some("a host-published port")).await;
    check(90, tcp, Host, None).await;
    check(80, udp, Ingress, None).await;
    check(0, tcp, Ingress, None).await;
}

#[tokio::test]
async fn allocated_ports_count_and_ones_own_do_not() {
    let control = control();
    ingress_network(&control).await;
    let mut other = Service { id: "other".into(), spec: service_spec("other", 1), ..Default::default() };
    let given = ports(&[(30000, Protocol::Tcp, PublishMode::Ingress)]).unwrap().ports;
    other.endpoint = Some(Endpoint { ports: given, ..Default::default() }.into());
    put(&control, other).await;
    let mut spec = service_spec("new", 1);
    spec.endpoint = ports(&[(30000, Protocol::Tcp, PublishMode::Ingress)]);
    let text = "port '30000' is already in use by service 'other' (other) as an ingress port";
    error(create_service(&control, spec.clone()).await, Code::InvalidArgument, text);
    let plain = create_service(&control, service_spec("new", 1)).await.unwrap();
    error(update_service(&control, &plain, spec.clone(), Rollback::None).await, Code::InvalidArgument, text);
    spec.endpoint = ports(&[(81, Protocol::Tcp, PublishMode::Ingress)]);
    let updated = update_service(&control, &plain, spec.clone(), Rollback::None).await.unwrap();
    spec.endpoint = ports(&[(81, Protocol::Tcp, PublishMode::Host)]);
    update_service(&control, &updated, spec, Rollback::None).await.unwrap();
}

#[tokio::test]
async fn references_must_exist_under_their_names() {
    let control = control();
    put(&control, secret("s1", "one")).await;
    let reference = |id: &str, name: &str| SecretReference {
        secret_id: id.into(),
        secret_name: name.into(),
        target: Some(secret_reference::Target::File(FileTarget { name: name.into(), ..Default::default() })),
    };
    let mut spec = service_spec("web", 1);
    container(&mut spec).secrets =
        vec![reference("s1", "one"), reference("s1", "other"), reference("x", "y")];
    error(create_service(&control, spec.clone()).await, Code::InvalidArgument, "secrets not found: other, y");
    container(&mut spec).secrets.truncate(2);
    error(create_service(&control, spec.clone()).await, Code::InvalidArgument, "secret not found: other");
    container(&mut spec).secrets.truncate(1);
    container(&mut spec).configs = vec![ConfigReference {
        config_id: "c".into(),
        config_name: "conf".into(),
        target: Some(config_reference::Target::Runtime(RuntimeTarget {})),
    }];
    error(create_service(&control, spec.clone()).await, Code::InvalidArgument, "config not found: conf");
    container(&mut spec).configs.clear();
    create_service(&control, spec).await.unwrap();
}

#[tokio::test]
async fn a_cluster_has_a_limit_of_tasks() {
    let control = control();
    error(
        create_service(&control, service_spec("a", 1 << 40)).await,
        Code::InvalidArgument,
        "number of replicas is 1099511627776, more than the 10000000 tasks that a cluster can have",
    );
    let first = create_service(&control, service_spec("a", 6_000_000)).await.unwrap();
    error(
        create_service(&control, service_spec("b", 5_000_000)).await,
        Code::InvalidArgument,
        "the services of this cluster would have 11000000 tasks, more than the 10000000 that it can have",
    );
    update_service(&control, &first, service_spec("a", 7_000_000), Rollback::None).await.unwrap();
}

/// It came about past this manager, or under another limit.
#[tokio::test]
async fn a_cluster_over_its_limit_of_tasks_lets_pass_what_asks_for_no_more() {
    let control = control();
    let full = |id: &str| Service { id: id.into(), spec: service_spec(id, 9_000_000), ..Default::default() };
    let a = put(&control, full("a")).await;
    put(&control, full("b")).await;
    let mut spec = service_spec("a", 9_000_000);
    spec.annotations.labels.insert("team".into(), "blue".into());
    let a = update_service(&control, &a, spec, Rollback::None).await.unwrap();
    let a = update_service(&control, &a, service_spec("a", 8_000_000), Rollback::None).await.unwrap();
    assert_eq!(a.spec, service_spec("a", 8_000_000));
    let text = |total: u64| {
        format!(
            "the services of this cluster would have {total} tasks, more than the 10000000 that it can have"
        )
    };
    let more = update_service(&control, &a, service_spec("a", 8_000_001), Rollback::None).await;
    error(more, Code::InvalidArgument, &text(17_000_001));
    let new = create_service(&control, service_spec("c", 2_000)).await;
    error(new, Code::InvalidArgument, &text(17_002_000));
}

#[tokio::test]
async fn processes_get_their_constraint_on_every_write() {
    use prost::{Message as _, Name as _};
    let control = control();
    let process = swarm_api::swarmd::ProcessSpec { command: text("sleep"), ..Default::default() };
    let mut spec = service_spec("native", 1);
    spec.task.runtime = Some(task_spec::Runtime::Generic(GenericRuntimeSpec {
        kind: "process".into(),
        payload: Some(prost_types::Any {
            type_url: swarm_api::swarmd::ProcessSpec::type_url(),
            value: process.encode_to_vec(),
        }),
    }));
    let guard = vec!["engine.labels.swarmd.runtime.process==1".to_owned()];
    let service = create_service(&control, spec.clone()).await.unwrap();
    assert_eq!(service.spec.task.placement.as_ref().unwrap().constraints, guard);
    let mine = Placement { constraints: text("node.role==worker"), ..Default::default() };
    spec.task.placement = Some(mine);
    let service = update_service(&control, &service, spec.clone(), Rollback::None).await.unwrap();
    assert_eq!(service.spec.task.placement.as_ref().unwrap().constraints[1..], guard);
    let missing = ResourceReference { resource_id: "s".into(), resource_type: ResourceType::Secret as i32 };
    spec.task.resource_references = vec![missing];
    let answer = update_service(&control, &service, spec, Rollback::None).await;
    error(answer, Code::InvalidArgument, "secret not found: s");
}

#[tokio::test]
async fn an_update_keeps_what_was_before_it() {
    let control = control();
    let first = create_service(&control, service_spec("web", 1)).await.unwrap();
    let second = update_service(&control, &first, service_spec("web", 3), Rollback::None).await.unwrap();
    assert_eq!(second.spec, service_spec("web", 3));
    assert_eq!(second.spec_version, Some(first.meta.version));
    assert_eq!(second.previous_spec, Some(service_spec("web", 1)));
    assert_eq!(second.previous_spec_version, Some(Version { index: 0 }));
    let back = update_service(&control, &second, service_spec("web", 9), Rollback::Previous).await.unwrap();
    assert_eq!(back.spec, service_spec("web", 1));
    assert_eq!(back.spec_version, Some(Version { index: 0 }));
    assert_eq!(back.previous_spec, Some(service_spec("web", 3)));
    assert_eq!(back.previous_spec_version, Some(first.meta.version));
    let status = back.update_status.as_ref().unwrap();
    assert_eq!(status.state(), UpdateState::RollbackStarted);
    assert_eq!(status.message, "manually requested rollback");
    assert!(status.started_at.is_some());
    let again = update_service(&control, &back, service_spec("web", 4), Rollback::None).await.unwrap();
    assert_eq!(again.update_status, None);
}

#[tokio::test]
async fn updates_are_refused_in_order() {
    let control = control();
    let service = create_service(&control, service_spec("web", 1)).await.unwrap();
    let bare = UpdateServiceRequest { service_id: service.id.clone(), ..Default::default() };
    refused(
        control.rpc().update_service(Request::new(bare)).await,
        Code::InvalidArgument,
        "invalid argument",
    );
    let unknown = Service { id: "nope".into(), ..Default::default() };
    let same = || service_spec("web", 1);
    error(
        update_service(&control, &unknown, same(), Rollback::None).await,
        Code::NotFound,
        "service nope not found",
    );
    let mut spec = same();
    spec.mode = Some(Mode::Global(GlobalService {}));
    spec.annotations.name = "other".into();
    error(
        update_service(&control, &service, spec.clone(), Rollback::None).await,
        Code::Unimplemented,
        "service mode change is not allowed",
    );
    spec.mode = same().mode;
    error(
        update_service(&control, &service, spec, Rollback::None).await,
        Code::Unimplemented,
        "renaming services is not supported",
    );
    error(
        update_service(&control, &service, same(), Rollback::Previous).await,
        Code::FailedPrecondition,
        &format!("service {} does not have a previous spec", service.id),
    );
    #[allow(deprecated)]
    let moved = ServiceSpec { networks: vec![NetworkAttachmentConfig::default()], ..same() };
    error(
        update_service(&control, &service, moved, Rollback::None).await,
        Code::Unimplemented,
        "changing network in service is not supported",
    );
    update_service(&control, &service, service_spec("web", 2), Rollback::None).await.unwrap();
    error(
        update_service(&control, &service, service_spec("web", 3), Rollback::None).await,
        Code::Unknown,
        "update out of sequence",
    );
}

#[tokio::test]
async fn services_are_read_and_removed_by_id() {
    let control = control();
    let get = async |id: &str, insert_defaults| {
        let request = GetServiceRequest { service_id: id.into(), insert_defaults };
        control.rpc().get_service(Request::new(request)).await
    };
    let remove = async |id: &str| {
        control.rpc().remove_service(Request::new(RemoveServiceRequest { service_id: id.into() })).await
    };
    refused(get("", false).await, Code::InvalidArgument, "invalid argument");
    refused(get("x", false).await, Code::NotFound, "service x not found");
    refused(remove("").await, Code::InvalidArgument, "invalid argument");
    refused(remove("x").await, Code::NotFound, "service x not found");
    let service = create_service(&control, service_spec("web", 1)).await.unwrap();
    assert_eq!(get(&service.id, false).await.unwrap().into_inner().service, Some(service.clone()));
    remove(&service.id).await.unwrap();
    assert!(control.store.view().services().is_empty());
}

#[tokio::test]
async fn defaults_are_inserted_into_the_answer_only() {
    let control = control();
    let service = create_service(&control, service_spec("web", 1)).await.unwrap();
    let request = GetServiceRequest { service_id: service.id.clone(), insert_defaults: true };
    let mut spec = control
        .rpc()
        .get_service(Request::new(request))
        .await
        .unwrap()
        .into_inner()
        .service
        .unwrap()
        .spec
        .clone();
    let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
    assert_eq!(container(&mut spec).stop_grace_period, Some(seconds(10)));
    assert_eq!(container(&mut spec).pull_options, Some(Default::default()));
    assert_eq!(container(&mut spec).dns_config, Some(Default::default()));
    let restart = spec.task.restart.unwrap();
    assert_eq!(
        (restart.condition(), restart.delay),
        (restart_policy::RestartCondition::Any, Some(seconds(5)))
    );
    assert_eq!(spec.task.resources, Some(Default::default()));
    assert_eq!(spec.task.placement, Some(Default::default()));
    for config in [spec.update.unwrap(), spec.rollback.unwrap()] {
        assert_eq!((config.parallelism, config.monitor), (1, Some(seconds(5))));
    }
    assert_eq!(control.store.view().services().get(&service.id), Some(&service));
}

#[tokio::test]
async fn a_zero_restart_condition_stays_none() {
    let mut spec = service_spec("web", 1);
    spec.task.restart = Some(RestartPolicy::default());
    spec.update = Some(UpdateConfig::default());
    service_defaults::insert(&mut spec);
    let restart = spec.task.restart.unwrap();
    assert_eq!(restart.condition(), restart_policy::RestartCondition::None);
    assert_eq!(restart.delay.unwrap().seconds, 5);
    let update = spec.update.unwrap();
    assert_eq!((update.parallelism, update.monitor.unwrap().seconds), (0, 5));
}

#[tokio::test]
async fn a_name_is_taken_whatever_its_case() {
    let control = control();
    create_service(&control, service_spec("web", 1)).await.unwrap();
    for name in ["web", "Web"] {
        let text = format!("name conflicts with an existing object: service {name} already exists");
        error(create_service(&control, service_spec(name, 1)).await, Code::AlreadyExists, &text);
    }
    let long = "a".repeat(64);
    let text = "name must be 63 characters or fewer";
    error(create_service(&control, service_spec(&long, 1)).await, Code::InvalidArgument, text);
}

#[tokio::test]
async fn what_is_refused_of_a_new_service_is_refused_of_a_changed_one() {
    let control = control();
    let service = create_service(&control, service_spec("web", 1)).await.unwrap();
    let mut request = UpdateServiceRequest {
        service_version: Some(service.meta.version),
        spec: Some(service_spec("web", 2)),
        ..Default::default()
    };
    let answer = control.rpc().update_service(Request::new(request.clone())).await;
    refused(answer, Code::InvalidArgument, "invalid argument");
    request.service_id = service.id.clone();
    request.service_version = None;
    let answer = control.rpc().update_service(Request::new(request)).await;
    refused(answer, Code::InvalidArgument, "invalid argument");
    let check = async |spec: ServiceSpec, code, text: &str| {
        error(update_service(&control, &service, spec, Rollback::None).await, code, text);
    };
    let network = ingress_network(&control).await;
    let mut spec = service_spec("web", 1);
    spec.task.networks = vec![NetworkAttachmentConfig { target: network.id.clone(), ..Default::default() }];
    let ingress = "Service cannot be explicitly attached to the ingress network \"ingress\"";
    check(spec, Code::InvalidArgument, ingress).await;
    put(&control, secret("s1", "one")).await;
    let reference = |name: &str| SecretReference {
        secret_id: "s1".into(),
        secret_name: name.into(),
        target: Some(secret_reference::Target::File(FileTarget { name: "x".into(), ..Default::default() })),
    };
    let mut spec = service_spec("web", 1);
    container(&mut spec).secrets = vec![reference("one"); 2];
    let twice = "secret references 'one' have a conflicting target: 'x'";
    check(spec.clone(), Code::InvalidArgument, twice).await;
    container(&mut spec).secrets = vec![reference("other")];
    check(spec, Code::InvalidArgument, "secret not found: other").await;
    let mut taken = service_spec("taken", 1);
    taken.endpoint = ports(&[(80, Protocol::Tcp, PublishMode::Host)]);
    let taken = create_service(&control, taken).await.unwrap();
    let mut spec = service_spec("web", 1);
    spec.endpoint = ports(&[(80, Protocol::Tcp, PublishMode::Ingress)]);
    let text =
        format!("port '80' is already in use by service 'taken' ({}) as a host-published port", taken.id);
    check(spec, Code::InvalidArgument, &text).await;
    assert_eq!(control.store.view().services().get(&service.id), Some(&service));
}

#[tokio::test]
async fn networks_move_from_the_service_to_its_tasks() {
    let control = control();
    let network = |target: &str| NetworkAttachmentConfig { target: target.into(), ..Default::default() };
    #[allow(deprecated)]
    let old = ServiceSpec { networks: vec![network("net")], ..service_spec("web", 1) };
    let first = create_service(&control, old.clone()).await.unwrap();
    #[allow(deprecated)]
    let changed = ServiceSpec { networks: vec![network("other")], ..old };
    let text = "changing network in service is not supported";
    error(update_service(&control, &first, changed, Rollback::None).await, Code::Unimplemented, text);
    let mut moved = service_spec("web", 1);
    moved.task.networks = vec![network("net")];
    let second = update_service(&control, &first, moved.clone(), Rollback::None).await.unwrap();
    assert_eq!(second.spec, moved);
}

#[tokio::test]
async fn a_second_rollback_returns_to_where_the_first_began() {
    let control = control();
    let first = create_service(&control, service_spec("web", 1)).await.unwrap();
    let second = update_service(&control, &first, service_spec("web", 3), Rollback::None).await.unwrap();
    let back = update_service(&control, &second, service_spec("web", 9), Rollback::Previous).await.unwrap();
    assert_eq!(back.spec, service_spec("web", 1));
    let again = update_service(&control, &back, service_spec("web", 9), Rollback::Previous).await.unwrap();
    assert_eq!((&again.spec, again.spec_version), (&second.spec, second.spec_version));
    assert_eq!(
        (&again.previous_spec, again.previous_spec_version),
        (&Some(first.spec.clone()), first.spec_version)
    );
    assert_eq!(again.update_status.as_ref().unwrap().state(), UpdateState::RollbackStarted);
}

/// Who wrote it did not know our rules; who changes something else is not held to them.
#[tokio::test]
async fn what_was_let_through_before_is_in_nobodys_way() {
    let control = control();
    let label = |spec: &mut ServiceSpec| {
        drop(spec.annotations.labels.insert("swarmd.rebalance".to_owned(), "auto".to_owned()));
    };
    let mut spec = service_spec("job", 0);
    spec.mode = Some(Mode::GlobalJob(GlobalJob {}));
    let job = create_service(&control, spec.clone()).await.unwrap();
    label(&mut spec);
    let refused = update_service(&control, &job, spec.clone(), Rollback::None).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let mut old = job.clone();
    label(&mut old.spec);
    let store = &control.store;
    store.update(|tx| tx.update(old.clone()).map(drop)).await.unwrap();
    let job = store.view().services().get(&job.id).unwrap().clone();
    spec.task.force_update = 1;
    let job = update_service(&control, &job, spec, Rollback::None).await.unwrap();
    assert_eq!(job.spec.task.force_update, 1);
}
