//! Networks, as a manager offers them.

use std::collections::BTreeMap;

use swarm_api::network::{NODE_LOCAL, OVERLAY, PREDEFINED};
use swarm_plugins::testing::TestPlugin;

use super::*;

/// Label by which old clusters tell the ingress network.
const INTERNAL: &str = "com.docker.swarm.internal";

fn spec(name: &str, labels: &[&str]) -> NetworkSpec {
    let labels = labels.iter().map(|label| ((*label).to_owned(), String::new())).collect();
    let annotations = Annotations { name: name.into(), labels, ..Default::default() };
    NetworkSpec { annotations: annotations.into(), ..Default::default() }
}

fn driver(name: &str) -> Option<Driver> {
    Some(Driver { name: name.into(), ..Default::default() })
}

fn ipam(subnet: &str, range: &str, gateway: &str) -> Option<IpamOptions> {
    let config = IpamConfig {
        subnet: subnet.into(),
        range: range.into(),
        gateway: gateway.into(),
        ..Default::default()
    };
    Some(IpamOptions { driver: None, configs: vec![config] })
}

async fn create(control: &Control, spec: NetworkSpec) -> Result<Shared<Network>, Status> {
    let request = CreateNetworkRequest { spec: Some(spec) };
    Ok(control.rpc().create_network(Request::new(request)).await?.into_inner().network.unwrap())
}

async fn get(control: &Control, id: &str) -> Result<Shared<Network>, Status> {
    let request = GetNetworkRequest { network_id: id.into(), ..Default::default() };
    Ok(control.rpc().get_network(Request::new(request)).await?.into_inner().network.unwrap())
}

async fn remove(control: &Control, id: &str) -> Result<tonic::Response<RemoveNetworkResponse>, Status> {
    let request = RemoveNetworkRequest { network_id: id.into(), ..Default::default() };
    control.rpc().remove_network(Request::new(request)).await
}

/// A network of this spec, but for this change, is refused.
async fn check(control: &Control, change: impl Fn(&mut NetworkSpec), code: Code, text: &str) {
    let mut spec = spec("net", &[]);
    change(&mut spec);
    refused(create(control, spec).await.map(tonic::Response::new), code, text);
}

/// Scenario 12: the table of the contract, line by line.
#[tokio::test]
async fn networks_are_checked() {
    use Code::{InvalidArgument, PermissionDenied, Unimplemented};
    let control = control();
    refused(
        control.rpc().create_network(Request::new(Default::default())).await,
        InvalidArgument,
        "invalid argument",
    );
    let attachable = "ingress network cannot be attachable";
    check(&control, |s| (s.attachable, s.ingress) = (true, true), InvalidArgument, attachable).await;
    for (name, text) in [
        ("", "meta: name must be provided"),
        ("-a", "name must be valid as a DNS name component"),
        (&"a".repeat(64), "name must be 63 characters or fewer"),
    ] {
        check(&control, |s| s.annotations.name = name.to_owned(), InvalidArgument, text).await;
    }
    let label = |name: &'static str| {
        move |s: &mut NetworkSpec| {
            s.annotations.labels.insert(name.to_owned(), String::new());
        }
    };
    let predefined = "label com.docker.swarm.predefined is for internally created predefined networks and cannot be \
                      applied by users";
    check(&control, label(PREDEFINED), PermissionDenied, predefined).await;
    let reserved = "label \"swarmd.mtu\" is not known; labels that begin with \"swarmd.\" are reserved";
    check(&control, label("swarmd.mtu"), InvalidArgument, reserved).await;
    let only = "only overlay driver is currently supported for ingress network";
    check(&control, |s| (s.ingress, s.driver_config) = (true, driver("bridge")), Unimplemented, only).await;
    let unnamed = "driver name: if driver is specified name is required";
    check(&control, |s| s.driver_config = driver(""), InvalidArgument, unnamed).await;
    let no_ipam = |s: &mut NetworkSpec| {
        s.ipam = Some(IpamOptions { driver: driver(""), configs: Vec::new() });
    };
    check(&control, no_ipam, InvalidArgument, unnamed).await;
    check(&control, |s| s.driver_config = driver("weave"), InvalidArgument, "plugin weave not supported")
        .await;
    let infoblox = |s: &mut NetworkSpec| {
        s.ipam = Some(IpamOptions { driver: driver("infoblox"), configs: Vec::new() });
    };
    check(&control, infoblox, InvalidArgument, "plugin infoblox not supported").await;
    for (subnet, range, gateway, text) in [
        ("", "", "", "invalid subnet "),
        ("10.0.0.0", "", "", "invalid subnet 10.0.0.0"),
        ("10.0.0.0/24", "x", "", "invalid range x"),
        ("10.0.0.0/24", "10.1.0.0/25", "", "subnet 10.0.0.0/24 does not contain range 10.1.0.0/25"),
        ("10.0.0.0/24", "", "x", "invalid gateway x"),
        ("10.0.0.0/24", "", "10.1.0.1", "subnet 10.0.0.0/24 does not contain gateway 10.1.0.1"),
    ] {
        let text = format!("ipam configuration: {text}");
        check(&control, |s| s.ipam = ipam(subnet, range, gateway), InvalidArgument, &text).await;
    }
    let unspecified = NetworkSpec { ipam: ipam("0.0.0.0/26", "", ""), ..spec("net", &[]) };
    create(&control, unspecified).await.unwrap();
    let taken = create(&control, spec("NET", &[])).await.map(tonic::Response::new);
    refused(taken, Code::Unknown, "name conflicts with an existing object");
}

#[tokio::test]
async fn the_drivers_of_nodes_and_of_the_cluster_are_there_named_or_not() {
    let control = control();
    for name in NODE_LOCAL.into_iter().chain([OVERLAY]) {
        let ipam = Some(IpamOptions { driver: driver("default"), configs: Vec::new() });
        create(&control, NetworkSpec { driver_config: driver(name), ipam, ..spec(name, &[]) }).await.unwrap();
    }
    create(&control, spec("net", &[])).await.unwrap();
    let ingress = NetworkSpec { ingress: true, driver_config: driver(OVERLAY), ..spec("mesh", &[]) };
    let ingress = create(&control, ingress).await.unwrap();
    remove(&control, &ingress.id).await.unwrap();
    create(&control, NetworkSpec { ingress: true, ..spec("mesh", &[]) }).await.unwrap();
}

#[tokio::test]
async fn plug_ins_are_looked_for_and_those_of_the_old_kind_refused() {
    let dir = tempfile::tempdir().unwrap();
    let plugins = Plugins::in_directories([dir.path().to_owned()], [], std::time::Duration::from_secs(60));
    let control = control().with_plugins(plugins.into());
    let weave = NetworkSpec { driver_config: driver("weave"), ..spec("net", &[]) };
    let absent = create(&control, weave.clone()).await.unwrap_err();
    let begin = "error during lookup of plugin weave: no plug-in \"weave\" in ";
    assert_eq!(absent.code(), Code::InvalidArgument);
    assert!(absent.message().starts_with(begin), "{}", absent.message());
    let none = |_, _| std::future::ready(None);
    let path = dir.path().join("weave.sock");
    let _plugin = TestPlugin::start(&path, "NetworkDriver", none).unwrap();
    let legacy = |kind: &str| format!("legacy plugin weave of type {kind} is not supported in swarm mode");
    let answer = create(&control, weave).await.map(tonic::Response::new);
    refused(answer, Code::InvalidArgument, &legacy("NetworkDriver"));
    let path = dir.path().join("infoblox.sock");
    let _plugin = TestPlugin::start(&path, "IpamDriver", none).unwrap();
    let addresses = Some(IpamOptions { driver: driver("infoblox"), configs: Vec::new() });
    let answer = create(&control, NetworkSpec { ipam: addresses, ..spec("net", &[]) }).await;
    let text = "legacy plugin infoblox of type IpamDriver is not supported in swarm mode";
    refused(answer.map(tonic::Response::new), Code::InvalidArgument, text);
}

#[tokio::test]
async fn a_network_that_is_too_large_for_its_tasks_is_refused() {
    let control = control();
    let mut large = spec("net", &[]);
    large.annotations.labels.insert("a".into(), "x".repeat(512 * 1024));
    let size = prost::Message::encoded_len(&large);
    let text = format!("the network spec has {size} bytes, more than the 524288 that are allowed");
    let answer = create(&control, large.clone()).await;
    refused(answer.map(tonic::Response::new), Code::InvalidArgument, &text);
    let value = large.annotations.labels.get_mut("a").unwrap();
    value.truncate(value.len() - (size - 512 * 1024));
    create(&control, large).await.unwrap();
}

#[tokio::test]
async fn there_is_one_ingress_network_however_it_says_so() {
    let old = || spec("ingress", &[INTERNAL]);
    let new = |name: &str| NetworkSpec { ingress: true, ..spec(name, &[]) };
    for (first, second) in [(old(), new("second")), (new("first"), old()), (new("first"), new("second"))] {
        let control = control();
        let ingress = create(&control, first).await.unwrap();
        let present = format!("ingress network ({}) is already present", ingress.id);
        let answer = create(&control, second).await;
        refused(answer.map(tonic::Response::new), Code::AlreadyExists, &present);
    }
    let control = control();
    let attachable = NetworkSpec { attachable: true, ..old() };
    let answer = create(&control, attachable).await.map(tonic::Response::new);
    refused(answer, Code::InvalidArgument, "ingress network cannot be attachable");
    let bridge = NetworkSpec { driver_config: driver("bridge"), ..old() };
    let answer = create(&control, bridge).await.map(tonic::Response::new);
    let only = "only overlay driver is currently supported for ingress network";
    refused(answer, Code::Unimplemented, only);
    create(&control, spec("ingress", &[])).await.unwrap();
}

#[tokio::test]
async fn networks_in_use_stay() {
    let control = control();
    let remove = async |id: &str| remove(&control, id).await;
    let network = create(&control, self::spec("net", &[])).await.unwrap();
    let ingress = NetworkSpec { ingress: true, ..self::spec("ingress", &[]) };
    let ingress = create(&control, ingress).await.unwrap();
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
    predefined.spec.annotations.name = "host".into();
    predefined.spec.annotations.labels.insert(PREDEFINED.into(), "true".into());
    put(&control, predefined).await;
    let text = "network p (host) is a swarm predefined network and cannot be removed";
    refused(remove("p").await, Code::FailedPrecondition, text);
}

#[tokio::test]
async fn networks_are_read_by_id_alone() {
    let control = control();
    let network = create(&control, spec("net", &[])).await.unwrap();
    create(&control, spec("other", &[])).await.unwrap();
    assert_eq!(get(&control, &network.id).await.unwrap(), network);
    error(get(&control, "").await, Code::InvalidArgument, "invalid argument");
    error(get(&control, "x").await, Code::NotFound, "network x not found");
    error(get(&control, "net").await, Code::NotFound, "network net not found");
    let named = GetNetworkRequest { name: "net".into(), ..Default::default() };
    let answer = control.rpc().get_network(Request::new(named)).await;
    refused(answer, Code::InvalidArgument, "invalid argument");
    remove(&control, &network.id).await.unwrap();
    let text = format!("network {} not found", network.id);
    error(get(&control, &network.id).await, Code::NotFound, &text);
}

#[tokio::test]
async fn networks_are_filtered() {
    use list_networks_request::Filters;
    let control = control();
    for (id, name, label) in [("aa1", "alpha", "a"), ("ab2", "beta", "b"), ("b3", "Alp", "a")] {
        let mut network = Network { id: id.into(), spec: spec(name, &[]), ..Default::default() };
        network.spec.annotations.labels.insert("k".into(), label.into());
        put(&control, network).await;
    }
    let check = async |filters: Option<Filters>, expected: &[&str]| {
        let request = ListNetworksRequest { filters: filters.clone(), ..Default::default() };
        let answer = control.rpc().list_networks(Request::new(request)).await.unwrap().into_inner();
        let mut ids: Vec<&str> = answer.networks.iter().map(|n| n.id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, expected, "{filters:?}");
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let named = |names: &[&str]| Filters { names: words(names), ..Default::default() };
    let called = |prefixes: &[&str]| Filters { name_prefixes: words(prefixes), ..Default::default() };
    let known = |prefixes: &[&str]| Filters { id_prefixes: words(prefixes), ..Default::default() };
    let labelled = |labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Filters { labels: BTreeMap::from_iter(labels), ..Default::default() }
    };
    check(None, &["aa1", "ab2", "b3"]).await;
    check(Some(Filters::default()), &["aa1", "ab2", "b3"]).await;
    check(Some(named(&["alpha"])), &["aa1"]).await;
    check(Some(named(&["ALPHA"])), &[]).await;
    check(Some(named(&["beta", "alpha", "x"])), &["aa1", "ab2"]).await;
    check(Some(called(&["alp"])), &["aa1"]).await;
    check(Some(called(&["alp", "Al", "alpha"])), &["aa1", "b3"]).await;
    check(Some(known(&["a"])), &["aa1", "ab2"]).await;
    check(Some(known(&["a", "aa", "b3"])), &["aa1", "ab2", "b3"]).await;
    check(Some(known(&["a1"])), &[]).await;
    check(Some(labelled(&[("k", "a")])), &["aa1", "b3"]).await;
    check(Some(labelled(&[("k", "")])), &["aa1", "ab2", "b3"]).await;
    check(Some(labelled(&[("k", "a"), ("x", "")])), &[]).await;
    // Every list must match.
    let names = || named(&["alpha", "beta"]);
    check(Some(Filters { id_prefixes: words(&["ab", "b"]), ..names() }), &["ab2"]).await;
    check(Some(Filters { name_prefixes: words(&["be"]), ..names() }), &["ab2"]).await;
    check(Some(Filters { labels: labelled(&[("k", "b")]).labels, ..names() }), &["ab2"]).await;
    check(Some(Filters { labels: labelled(&[("k", "b")]).labels, ..named(&["alpha"]) }), &[]).await;
}
