use super::*;

fn named(name: &str) -> Shared<Annotations> {
    Annotations { name: name.into(), ..Default::default() }.into()
}

#[tokio::test]
async fn networks_are_checked() {
    let control = control().with_network_drivers(["overlay".to_owned()]);
    let check = async |change: &dyn Fn(&mut NetworkSpec), code, text: &str| {
        let mut spec = NetworkSpec { annotations: named("net"), ..Default::default() };
        change(&mut spec);
        let request = CreateNetworkRequest { spec: Some(spec) };
        refused(control.rpc().create_network(Request::new(request)).await, code, text);
    };
    let driver = |name: &str| Some(Driver { name: name.into(), ..Default::default() });
    let ipam = |subnet: &str, range: &str, gateway: &str| {
        let config = IpamConfig {
            subnet: subnet.into(),
            range: range.into(),
            gateway: gateway.into(),
            ..Default::default()
        };
        Some(IpamOptions { driver: None, configs: vec![config] })
    };
    use Code::{InvalidArgument, PermissionDenied, Unimplemented};
    refused(
        control.rpc().create_network(Request::new(Default::default())).await,
        InvalidArgument,
        "invalid argument",
    );
    let both = |s: &mut NetworkSpec| (s.attachable, s.ingress) = (true, true);
    check(&both, InvalidArgument, "ingress network cannot be attachable").await;
    check(&|s| s.annotations.name.clear(), InvalidArgument, "meta: name must be provided").await;
    let predefined = "com.docker.swarm.predefined";
    check(
        &|s| _ = s.annotations.labels.insert(predefined.into(), String::new()),
        PermissionDenied,
        "label com.docker.swarm.predefined is for internally created predefined networks and cannot be applied by users",
    )
    .await;
    check(
        &|s| (s.ingress, s.driver_config) = (true, driver("bridge")),
        Unimplemented,
        "only overlay driver is currently supported for ingress network",
    )
    .await;
    let unnamed = "driver name: if driver is specified name is required";
    check(&|s| s.driver_config = driver(""), InvalidArgument, unnamed).await;
    check(&|s| s.driver_config = driver("weave"), InvalidArgument, "plugin weave not supported").await;
    let bad = |text: &str| format!("ipam configuration: {text}");
    check(&|s| s.ipam = ipam("", "", ""), InvalidArgument, &bad("invalid subnet ")).await;
    check(&|s| s.ipam = ipam("10.0.0.0/24", "x", ""), InvalidArgument, &bad("invalid range x")).await;
    let outside = bad("subnet 10.0.0.0/24 does not contain range 10.1.0.0/25");
    check(&|s| s.ipam = ipam("10.0.0.0/24", "10.1.0.0/25", ""), InvalidArgument, &outside).await;
    check(&|s| s.ipam = ipam("10.0.0.0/24", "", "x"), InvalidArgument, &bad("invalid gateway x")).await;
    let outside = bad("subnet 10.0.0.0/24 does not contain gateway 10.1.0.1");
    check(&|s| s.ipam = ipam("10.0.0.0/24", "", "10.1.0.1"), InvalidArgument, &outside).await;
}

#[tokio::test]
async fn networks_in_use_stay() {
    let control = control().with_network_drivers(["overlay".to_owned()]);
    let create = async |name: &str, ingress: bool| {
        let spec = NetworkSpec { annotations: named(name), ingress, ..Default::default() };
        control.rpc().create_network(Request::new(CreateNetworkRequest { spec: Some(spec) })).await
    };
    let remove = async |id: &str| {
        let request = RemoveNetworkRequest { network_id: id.into(), ..Default::default() };
        control.rpc().remove_network(Request::new(request)).await
    };
    let network = create("net", false).await.unwrap().into_inner().network.unwrap();
    refused(create("NET", false).await, Code::Unknown, "name conflicts with an existing object");
    let ingress = create("ingress", true).await.unwrap().into_inner().network.unwrap();
    let present = format!("ingress network ({}) is already present", ingress.id);
    refused(create("second", true).await, Code::AlreadyExists, &present);
    refused(remove("").await, Code::InvalidArgument, "invalid argument");
    refused(remove("x").await, Code::NotFound, "network x not found");
    let mut spec = service_spec("web", 0);
    spec.task.networks = vec![NetworkAttachmentConfig { target: network.id.clone(), ..Default::default() }];
    spec.endpoint = Some(EndpointSpec { ports: vec![PortConfig::default()], ..Default::default() });
    let service = create_service(&control, spec.clone()).await.unwrap();
    let text = format!("network {} is in use by service {}", network.id, service.id);
    refused(remove(&network.id).await, Code::FailedPrecondition, &text);
    let text = format!("ingress network cannot be removed because service {} depends on it", service.id);
    refused(remove(&ingress.id).await, Code::FailedPrecondition, &text);
    let request = RemoveServiceRequest { service_id: service.id.clone() };
    control.rpc().remove_service(Request::new(request)).await.unwrap();
    let mut task = Task { id: "t".into(), desired_state: TaskState::Running as i32, ..Default::default() };
    task.spec = spec.task.clone();
    let mut task = put(&control, task).await;
    let text = format!("network {} is in use by task t", network.id);
    refused(remove(&network.id).await, Code::FailedPrecondition, &text);
    task.desired_state = TaskState::Shutdown as i32;
    control.store.update(|tx| tx.update(task.clone())).await.unwrap();
    remove(&network.id).await.unwrap();
    remove(&ingress.id).await.unwrap();
    let mut predefined = Network { id: "p".into(), ..Default::default() };
    predefined.spec.annotations = named("host");
    predefined.spec.annotations.labels.insert("com.docker.swarm.predefined".into(), "true".into());
    put(&control, predefined).await;
    let text = "network p (host) is a swarm predefined network and cannot be removed";
    refused(remove("p").await, Code::FailedPrecondition, text);
}

#[tokio::test]
async fn resources_belong_to_extensions() {
    let control = control();
    let extension = async |name: &str| {
        let request = CreateExtensionRequest { annotations: Some(named(name)), description: String::new() };
        control.rpc().create_extension(Request::new(request)).await
    };
    let resource = async |name: &str, kind: &str| {
        let request =
            CreateResourceRequest { annotations: Some(named(name)), kind: kind.into(), payload: None };
        control.rpc().create_resource(Request::new(request)).await
    };
    refused(extension("").await, Code::InvalidArgument, "extension name must be provided");
    refused(
        extension("service").await,
        Code::AlreadyExists,
        "name conflicts with an existing object: extension service already exists",
    );
    refused(resource("r", "kind").await, Code::InvalidArgument, "Kind kind is not registered");
    let extension = extension("kind").await.unwrap().into_inner().extension.unwrap();
    let resource = resource("r", "kind").await.unwrap().into_inner().resource.unwrap();
    let remove = async || {
        let request = RemoveExtensionRequest { extension_id: extension.id.clone() };
        control.rpc().remove_extension(Request::new(request)).await
    };
    let used = "cannot delete extension because objects of this type exist in the data store";
    refused(remove().await, Code::Unknown, used);
    let mut request = UpdateResourceRequest {
        resource_id: resource.id.clone(),
        resource_version: Some(resource.meta.version),
        annotations: Some(named("other")),
        payload: None,
    };
    let update = async |request: &UpdateResourceRequest| {
        control.rpc().update_resource(Request::new(request.clone())).await
    };
    refused(update(&request).await, Code::InvalidArgument, "cannot update resource name");
    request.annotations = None;
    request.payload = Some(prost_types::Any { type_url: "t".into(), value: vec![1] });
    assert_eq!(update(&request).await.unwrap().into_inner().resource.unwrap().payload, request.payload);
    refused(update(&request).await, Code::InvalidArgument, "update out of sequence");
    let request = RemoveResourceRequest { resource_id: resource.id.clone() };
    control.rpc().remove_resource(Request::new(request)).await.unwrap();
    remove().await.unwrap();
}

#[tokio::test]
async fn volumes_change_in_labels_and_availability_only() {
    let control = control();
    let mut spec = VolumeSpec::default();
    let check = async |spec: &VolumeSpec, text: &str| {
        let request = CreateVolumeRequest { spec: Some(spec.clone()) };
        refused(control.rpc().create_volume(Request::new(request)).await, Code::InvalidArgument, text);
    };
    check(&spec, "driver must be specified").await;
    spec.driver = Some(Driver { name: "d".into(), ..Default::default() });
    check(&spec, "meta: name must be provided").await;
    spec.annotations = named("v");
    check(&spec, "AccessMode must not be nil").await;
    spec.access_mode = Some(VolumeAccessMode::default());
    check(&spec, "Volume AccessMode must specify either Mount or Block access type").await;
    let block = volume_access_mode::AccessType::Block(volume_access_mode::BlockVolume {});
    spec.access_mode.as_mut().unwrap().access_type = Some(block);
    spec.secrets = vec![VolumeSecret { key: "k".into(), secret: "x".into() }];
    check(&spec, "secret not found: x").await;
    spec.secrets.clear();
    let request = CreateVolumeRequest { spec: Some(spec.clone()) };
    let volume =
        control.rpc().create_volume(Request::new(request)).await.unwrap().into_inner().volume.unwrap();
    let update = async |spec: &VolumeSpec| {
        let request = UpdateVolumeRequest {
            volume_id: volume.id.clone(),
            volume_version: Some(volume.meta.version),
            spec: Some(spec.clone()),
        };
        control.rpc().update_volume(Request::new(request)).await
    };
    spec.group = "g".into();
    refused(update(&spec).await, Code::InvalidArgument, "Group cannot be updated");
    spec.group.clear();
    spec.availability = volume_spec::VolumeAvailability::Drain as i32;
    let updated = update(&spec).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(updated.spec.availability(), volume_spec::VolumeAvailability::Drain);
    let remove = async |force| {
        control
            .rpc()
            .remove_volume(Request::new(RemoveVolumeRequest { volume_id: volume.id.clone(), force }))
            .await
    };
    remove(false).await.unwrap();
    assert!(control.store.view().volumes().get(&volume.id).unwrap().pending_delete);
    remove(true).await.unwrap();
    refused(remove(true).await, Code::NotFound, &format!("volume {} not found", volume.id));
}
