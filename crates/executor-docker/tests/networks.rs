//! Networks that a node makes for the cluster, on the real engine.

#![allow(clippy::unwrap_used)]

mod common;

use bollard::query_parameters::InspectNetworkOptions;
use common::{Lab, controller, inspect, output, within, words};
use swarm_agent::ControllerError;
use swarm_api::v1::network_spec::ConfigFrom;
use swarm_api::v1::{
    ContainerSpec, Driver, IpamConfig, IpamOptions, Network, NetworkAttachment, NetworkSpec,
};

fn network(lab: &Lab, name: &str, change: impl FnOnce(&mut NetworkSpec)) -> NetworkAttachment {
    let mut network = Network { id: format!("id-{name}-{}", lab.node_id), ..Default::default() };
    network.spec.annotations.name = format!("{name}-{}", lab.node_id);
    change(&mut network.spec);
    network.driver_state = Some(Driver { name: "bridge".into(), ..Default::default() });
    NetworkAttachment { network: Some(network.into()), ..Default::default() }
}

fn name(attachment: &NetworkAttachment) -> String {
    attachment.network.as_ref().unwrap().spec.annotations.name.clone()
}

async fn exists(lab: &Lab, name: &str) -> bool {
    lab.docker.inspect_network(name, None::<InspectNetworkOptions>).await.is_ok()
}

#[tokio::test]
async fn networks_are_made_for_the_first_task_and_removed_after_the_last() {
    let lab = Lab::new().await;
    let mut lan = network(&lab, "lan", |spec| spec.internal = true);
    lan.aliases = words(&["server"]);
    let other = network(&lab, "other", |_| {});
    let of = |networks: Vec<NetworkAttachment>, script: &str| {
        let stop_grace_period = Some(Default::default());
        let mut record = lab.task(ContainerSpec { stop_grace_period, ..lab.spec(script) });
        record.networks = networks;
        record
    };
    let server = lab.controller(&of(vec![lan.clone(), other.clone()], "sleep 1000"));
    within(server.prepare()).await.unwrap();
    within(server.start()).await.unwrap();
    let seen = inspect(&lab, server.as_ref()).await.network_settings.unwrap().networks.unwrap();
    let mut attached: Vec<_> = seen.keys().cloned().collect();
    attached.sort_unstable();
    assert_eq!(attached, [name(&lan), name(&other)]);
    let made = lab.docker.inspect_network(&name(&lan), None::<InspectNetworkOptions>).await.unwrap();
    assert_eq!((made.internal, made.driver.as_deref()), (Some(true), Some("bridge")));

    // The other one finds it by its alias, and by the name of its service. Its network went away since it was made: it comes back.
    let client = lab.controller(&of(
        vec![NetworkAttachment { aliases: Vec::new(), ..lan.clone() }],
        "for name in server exectest; do ping -c 1 -w 20 $name >/dev/null && echo $name; done",
    ));
    assert_eq!(output(client.as_ref()).await, ["server", "exectest"]);
    within(client.remove()).await.unwrap();
    assert!(exists(&lab, &name(&lan)).await, "one that is in use stays");

    // A daemon that remembers nothing removes it with the last task, and none that something is attached to.
    let restarted = lab.restarted().await;
    let late = controller(&restarted, &of(vec![other.clone()], "sleep 1000"));
    within(late.prepare()).await.unwrap();
    within(server.remove()).await.unwrap();
    assert!(!exists(&lab, &name(&lan)).await);
    // Nobody was attached to the other one: it went with the task that ran, and comes back with the one that starts.
    assert!(!exists(&lab, &name(&other)).await);
    within(late.start()).await.unwrap();
    within(late.remove()).await.unwrap();
    assert!(!exists(&lab, &name(&other)).await);
    restarted.close().await;
    lab.done().await;
}

#[tokio::test]
async fn a_networks_set_up_may_be_the_engines_and_a_foreign_network_is_not_used() {
    use bollard::models::{Ipam, IpamConfig as EngineIpam, NetworkCreateRequest};
    let lab = Lab::new().await;
    let setup = format!("setup-{}", lab.node_id);
    let third = std::process::id() % 250;
    let subnet = format!("10.213.{third}.0/24");
    let addresses = EngineIpam { subnet: Some(subnet.clone()), ..Default::default() };
    let request = NetworkCreateRequest {
        name: setup.clone(),
        config_only: Some(true),
        ipam: Some(Ipam { config: Some(vec![addresses]), ..Default::default() }),
        ..Default::default()
    };
    lab.docker.create_network(request).await.unwrap();
    let lan = network(&lab, "from", |spec| spec.config_from = Some(ConfigFrom::Network(setup.clone())));
    let mut record = lab.task(lab.spec("ip -4 addr show eth0 | grep -o 'inet [0-9.]*'"));
    record.networks = vec![lan.clone()];
    let task = lab.controller(&record);
    let lines = output(task.as_ref()).await;
    assert!(lines[0].starts_with(&format!("inet 10.213.{third}.")), "{lines:?}");
    within(task.remove()).await.unwrap();
    assert!(!exists(&lab, &name(&lan)).await);

    let foreign =
        NetworkCreateRequest { name: name(&lan), driver: Some("bridge".into()), ..Default::default() };
    lab.docker.create_network(foreign).await.unwrap();
    let Err(ControllerError::Fatal(text)) = within(lab.controller(&record).prepare()).await else {
        panic!("a foreign network was used")
    };
    assert!(text.starts_with(&format!("the engine has a network {} already, ", name(&lan))), "{text}");
    lab.docker.remove_network(&name(&lan)).await.unwrap();
    lab.docker.remove_network(&setup).await.unwrap();

    // A network that is none of the cluster's own is the engine's.
    let mut record = lab.task(lab.spec("sleep 1000"));
    let mut host = network(&lab, "host", |spec| {
        spec.annotations.labels.insert("com.docker.swarm.predefined".into(), "true".into());
    });
    let mut predefined = Network::clone(host.network.as_ref().unwrap());
    predefined.spec.annotations.name = "host".into();
    host.network = Some(predefined.into());
    record.networks = vec![host];
    let task = lab.controller(&record);
    within(task.prepare()).await.unwrap();
    let mode = inspect(&lab, task.as_ref()).await.host_config.unwrap().network_mode;
    assert_eq!(mode.as_deref(), Some("host"));
    lab.done().await;
}

#[tokio::test]
async fn a_network_and_an_endpoint_are_set_up_as_the_cluster_says() {
    let lab = Lab::new().await;
    let third = std::process::id() % 250;
    let (v4, v6) = (format!("10.214.{third}"), format!("fd3b:8e1f:{third:x}:"));
    let config = |subnet: String, range: &str, gateway: String| IpamConfig {
        subnet,
        range: range.to_owned(),
        gateway,
        ..Default::default()
    };
    let mut lan = network(&lab, "lan", |spec| {
        spec.attachable = true;
        spec.ipv6_enabled = true;
        let v4 = IpamConfig {
            reserved: [("router".to_owned(), format!("{v4}.130"))].into(),
            ..config(format!("{v4}.0/24"), &format!("{v4}.128/25"), format!("{v4}.9"))
        };
        let configs = vec![v4, config(format!("{v6}:/64"), "", format!("{v6}:9"))];
        spec.ipam = Some(IpamOptions { configs, ..Default::default() });
    });
    lan.addresses = vec![format!("{v4}.77/24"), format!("{v6}:77/64")];
    lan.driver_attachment_opts = [("com.example.speed".to_owned(), "slow".to_owned())].into();
    let script = "ip addr show eth0 | awk '/scope global/ {print $2}'; ip route | awk '/default/ {print $3}'";
    let mut record = lab.task(lab.spec(script));
    record.networks = vec![lan.clone()];
    let task = lab.controller(&record);
    let expected = [format!("{v4}.77/24"), format!("{v6}:77/64"), format!("{v4}.9")];
    assert_eq!(output(task.as_ref()).await, expected);

    let seen = inspect(&lab, task.as_ref()).await.network_settings.unwrap().networks.unwrap();
    assert_eq!(seen[&name(&lan)].driver_opts.as_ref().unwrap()["com.example.speed"], "slow");
    let made = lab.docker.inspect_network(&name(&lan), None::<InspectNetworkOptions>).await.unwrap();
    assert_eq!((made.attachable, made.enable_ipv6), (Some(true), Some(true)));
    let configs = made.ipam.unwrap().config.unwrap();
    let (range, reserved) = (configs[0].ip_range.clone(), configs[0].auxiliary_addresses.clone().unwrap());
    assert_eq!((range, reserved["router"].as_str()), (Some(format!("{v4}.128/25")), &*format!("{v4}.130")));
    assert_eq!(configs[1].subnet, Some(format!("{v6}:/64")));

    // Whoever has no address of the cluster's gets one out of the range; the engine refuses one that is taken.
    within(task.remove()).await.unwrap();
    lan.addresses.clear();
    record.id = swarm_api::id::random().into();
    record.networks = vec![lan.clone()];
    let free = lab.controller(&record);
    let lines = output(free.as_ref()).await;
    let last = lines[0].strip_prefix(&format!("{v4}.")).and_then(|rest| rest.strip_suffix("/24"));
    let last: u8 = last.unwrap_or_else(|| panic!("{lines:?}")).parse().unwrap();
    assert!(last >= 128 && last != 130, "{lines:?}");
    within(free.remove()).await.unwrap();
    lab.done().await;
}

#[tokio::test]
async fn an_address_that_is_taken_fails_the_task_with_the_engines_words() {
    let lab = Lab::new().await;
    let third = std::process::id() % 250;
    let mut lan = network(&lab, "lan", |spec| {
        let config = IpamConfig { subnet: format!("10.215.{third}.0/24"), ..Default::default() };
        spec.ipam = Some(IpamOptions { configs: vec![config], ..Default::default() });
    });
    lan.addresses = vec![format!("10.215.{third}.77/24")];
    let of = || {
        let mut record = lab.task(lab.spec("sleep 1000"));
        record.networks = vec![lan.clone()];
        lab.controller(&record)
    };
    let (first, second) = (of(), of());
    for task in [&first, &second] {
        within(task.prepare()).await.unwrap();
    }
    within(first.start()).await.unwrap();
    let Err(ControllerError::Fatal(text)) = within(second.start()).await else {
        panic!("it has the address")
    };
    assert!(
        text.starts_with("starting container failed: ") && text.contains("Address already in use"),
        "{text}"
    );
    for task in [first, second] {
        within(task.remove()).await.unwrap();
    }
    lab.done().await;
}
