use swarm_plugins::testing::TestPlugin;
use swarm_plugins::{Plugins, SECRET_PROVIDER};

use super::*;

fn spec(name: &str, data: usize) -> SecretSpec {
    let mut spec = SecretSpec { data: vec![b'x'; data], ..Default::default() };
    spec.annotations.name = name.into();
    spec
}

async fn create(control: &Control, spec: SecretSpec) -> Result<Shared<Secret>, Status> {
    let request = CreateSecretRequest { spec: Some(spec) };
    Ok(control.rpc().create_secret(Request::new(request)).await?.into_inner().secret.unwrap())
}

#[track_caller]
fn error<T: fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.expect_err(text);
    assert_eq!((status.code(), status.message()), (code, text));
}

#[tokio::test]
async fn secrets_are_kept_and_never_shown() {
    let control = control();
    let created = create(&control, spec("password", 511_999)).await.unwrap();
    assert!(created.spec.data.is_empty());
    assert_eq!(control.store.view().secrets().get(&created.id).unwrap().spec.data.len(), 511_999);
    let request = GetSecretRequest { secret_id: created.id.clone() };
    let got = control.rpc().get_secret(Request::new(request)).await.unwrap().into_inner().secret.unwrap();
    assert_eq!(got, created);
    let listed =
        control.rpc().list_secrets(Request::new(Default::default())).await.unwrap().into_inner().secrets;
    assert_eq!(listed, [created]);
}

#[tokio::test]
async fn bad_secrets_are_refused() {
    let control = control();
    let size = "secret data must be larger than 0 and less than 512000 bytes";
    refused(
        control.rpc().create_secret(Request::new(Default::default())).await,
        Code::InvalidArgument,
        "invalid argument",
    );
    error(create(&control, spec("", 1)).await, Code::InvalidArgument, "name must be provided");
    error(create(&control, spec("a", 0)).await, Code::InvalidArgument, size);
    error(create(&control, spec("a", 512_000)).await, Code::InvalidArgument, size);
    let driver = |name: &str| SecretSpec {
        driver: Some(Driver { name: name.into(), ..Default::default() }),
        ..spec("a", 0)
    };
    error(create(&control, driver("")).await, Code::InvalidArgument, "secret driver must have a name");
    let text = "secret driver plugin p not found: this manager looks for no plug-ins";
    error(create(&control, driver("p")).await, Code::InvalidArgument, text);
    create(&control, spec("a", 1)).await.unwrap();
    error(create(&control, spec("A", 1)).await, Code::AlreadyExists, "secret A already exists");
    let get = async |id: &str| {
        control.rpc().get_secret(Request::new(GetSecretRequest { secret_id: id.into() })).await
    };
    refused(get("").await, Code::InvalidArgument, "secret ID must be provided");
    refused(get("x").await, Code::NotFound, "secret x not found");
}

#[tokio::test]
async fn only_labels_of_a_secret_change() {
    let control = control();
    let secret = create(&control, spec("a", 3)).await.unwrap();
    let update = async |secret: &Secret, spec: SecretSpec| {
        let request = UpdateSecretRequest {
            secret_id: secret.id.clone(),
            secret_version: Some(secret.meta.version),
            spec: Some(spec),
        };
        Ok::<_, Status>(
            control.rpc().update_secret(Request::new(request)).await?.into_inner().secret.unwrap(),
        )
    };
    let only = "only updates to Labels are allowed";
    error(update(&secret, spec("b", 3)).await, Code::InvalidArgument, only);
    error(update(&secret, spec("a", 4)).await, Code::InvalidArgument, only);
    for data in [0, 3] {
        let now = control.store.view().secrets().get(&secret.id).unwrap().clone();
        let mut labelled = spec("a", data);
        labelled.annotations.labels.insert("k".into(), data.to_string());
        let updated = update(&now, labelled).await.unwrap();
        assert_eq!(updated.spec.annotations.labels["k"], data.to_string());
        assert!(updated.spec.data.is_empty());
    }
    assert_eq!(control.store.view().secrets().get(&secret.id).unwrap().spec.data, b"xxx");
    error(update(&secret, spec("a", 3)).await, Code::Unknown, "update out of sequence");
    let unknown = Secret { id: "x".into(), ..Default::default() };
    error(update(&unknown, spec("a", 3)).await, Code::NotFound, "secret x not found");
}

#[tokio::test]
async fn names_and_prefixes_of_secrets_are_one_union() {
    use list_secrets_request::Filters;
    let control = control();
    for (id, name) in [("aa1", "one"), ("ab2", "two"), ("b3", "three")] {
        put(&control, secret(id, name)).await;
    }
    put(&control, Secret { internal: true, ..secret("i", "internal") }).await;
    let list = async |filters: Filters| {
        let request = ListSecretsRequest { filters: Some(filters) };
        let secrets = control.rpc().list_secrets(Request::new(request)).await.unwrap().into_inner().secrets;
        secrets.iter().map(|s| s.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(list(Filters::default()).await, ["aa1", "ab2", "b3"]);
    assert_eq!(list(Filters { names: text("ONE"), ..Default::default() }).await, ["aa1"]);
    let union = Filters { names: text("three"), id_prefixes: text("a"), ..Default::default() };
    assert_eq!(list(union).await, ["b3", "aa1", "ab2"]);
}

#[tokio::test]
async fn secrets_in_use_stay() {
    use prost::{Message as _, Name as _};
    let control = control();
    put(&control, secret("s", "password")).await;
    let remove = async |id: &str| {
        control.rpc().remove_secret(Request::new(RemoveSecretRequest { secret_id: id.into() })).await
    };
    refused(remove("").await, Code::InvalidArgument, "secret ID must be provided");
    refused(remove("x").await, Code::NotFound, "could not find secret x");
    let mut spec = service_spec("web", 0);
    container(&mut spec).secrets = vec![SecretReference {
        secret_id: "s".into(),
        secret_name: "password".into(),
        target: Some(secret_reference::Target::File(FileTarget { name: "f".into(), ..Default::default() })),
    }];
    let web = create_service(&control, spec).await.unwrap();
    refused(
        remove("s").await,
        Code::InvalidArgument,
        "secret 'password' is in use by the following service: web",
    );
    let process = swarm_api::swarmd::ProcessSpec { command: text("sleep"), ..Default::default() };
    let mut spec = service_spec("native", 1);
    let type_url = swarm_api::swarmd::ProcessSpec::type_url();
    spec.task.runtime = Some(task_spec::Runtime::Generic(GenericRuntimeSpec {
        kind: "process".into(),
        payload: Some(prost_types::Any { type_url, value: process.encode_to_vec() }),
    }));
    spec.task.resource_references =
        vec![ResourceReference { resource_id: "s".into(), resource_type: ResourceType::Secret as i32 }];
    let native = create_service(&control, spec).await.unwrap();
    refused(
        remove("s").await,
        Code::InvalidArgument,
        "secret 'password' is in use by the following services: native, web",
    );
    for service in [web, native] {
        let request = RemoveServiceRequest { service_id: service.id.clone() };
        control.rpc().remove_service(Request::new(request)).await.unwrap();
    }
    remove("s").await.unwrap();
}

#[tokio::test]
async fn configs_are_shown_with_their_data() {
    let control = control();
    let spec = |name: &str, data: usize| {
        let mut spec = ConfigSpec { data: vec![b'x'; data], ..Default::default() };
        spec.annotations.name = name.into();
        CreateConfigRequest { spec: Some(spec) }
    };
    let size = "config data must be larger than 0 and less than 1024000 bytes";
    refused(
        control.rpc().create_config(Request::new(spec("a", 1_024_000))).await,
        Code::InvalidArgument,
        size,
    );
    refused(control.rpc().create_config(Request::new(spec("a", 0))).await, Code::InvalidArgument, size);
    let created = control.rpc().create_config(Request::new(spec("a", 1_023_999))).await.unwrap().into_inner();
    assert_eq!(created.config.unwrap().spec.data.len(), 1_023_999);
    refused(
        control.rpc().create_config(Request::new(spec("a", 1))).await,
        Code::AlreadyExists,
        "config a already exists",
    );
}

#[tokio::test]
async fn a_driver_must_be_there_and_then_gives_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let place = [dir.path().to_owned()];
    let plugins = Plugins::in_directories(place, [], std::time::Duration::from_secs(60));
    let control = control().with_plugins(plugins.into());
    let driven =
        || SecretSpec { driver: Some(Driver { name: "p".into(), ..Default::default() }), ..spec("a", 0) };
    let text = format!(
        "secret driver plugin p not found: no plug-in \"p\" in {}; plug-ins that an engine manages itself can't be \
         used here",
        dir.path().display()
    );
    error(create(&control, driven()).await, Code::InvalidArgument, &text);
    let none = |_, _| std::future::ready(None);
    let _plugin = TestPlugin::start(&dir.path().join("p.sock"), SECRET_PROVIDER, none).unwrap();
    let secret = create(&control, driven()).await.unwrap();
    assert_eq!(secret.spec.driver.as_ref().map(|driver| &*driver.name), Some("p"));
    assert!(secret.spec.data.is_empty());
}
