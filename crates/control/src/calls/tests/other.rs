use super::*;

fn named(name: &str) -> Shared<Annotations> {
    Annotations { name: name.into(), ..Default::default() }.into()
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
