//! Which nodes a task may go to, and what the user is told when there is none.

mod world;

use std::time::Duration;

use swarm_api::v1::{
    Driver, Endpoint, GenericRuntimeSpec, Mount, Network, NetworkAttachment, Node, Platform,
    PluginDescription, PortConfig, Task, mount, port_config::PublishMode, task_spec,
};
use swarm_api::{Shared, extensions};
use swarm_placement::generic::discrete;
use world::*;

#[test]
fn without_nodes_there_is_no_suitable_node() {
    let mut world = World::new();
    world.task("s", "a", |_| {});
    world.waits("a", "no suitable node");
    world.nodes(&["n1"]);
    world.sim.think();
    world.runs_on("a", "n1");
}

#[test]
fn the_most_frequent_reason_comes_first() {
    let mut world = World::new();
    world.nodes(&["n1", "n2", "n3"]);
    world.edit_node("n1", |n| set_state(n, DOWN));
    world.edit_node("n2", |n| set_state(n, DOWN));
    world.edit_node("n3", |n| has(n, 1, 0, vec![]));
    world.task("s", "a", |t| wants(t, 2, 0, vec![]));
    world.waits(
        "a",
        "no suitable node (2 nodes not available for new tasks; insufficient resources on 1 node)",
    );
}

#[test]
fn the_reason_follows_the_nodes() {
    let mut world = World::new();
    world.task("s", "a", |t| constrain(t, "node.labels.zone==b"));
    world.waits("a", "no suitable node");
    world.nodes(&["n1", "n2"]);
    world.sim.think();
    world.waits("a", "no suitable node (scheduling constraints not satisfied on 2 nodes)");
    world.edit_node("n1", |n| set_state(n, DOWN));
    world.waits(
        "a",
        "no suitable node (1 node not available for new tasks; scheduling constraints not satisfied on 1 node)",
    );
    world.remove_node("n1");
    world.waits("a", "no suitable node (scheduling constraints not satisfied on 1 node)");
    world.edit_node("n2", |n| label(n, "zone", "B"));
    world.runs_on("a", "n2");
}

#[test]
fn a_reason_is_written_once() {
    let mut world = World::new();
    world.nodes(&["n1", "n2"]);
    world.task("s", "a", |t| wants(t, 1, 0, vec![]));
    world.waits("a", "no suitable node (insufficient resources on 2 nodes)");
    let version = world.get("a").meta.version;
    world.edit_node("n1", |n| label(n, "x", "y"));
    world.task("s", "b", |t| wants(t, 1, 0, vec![]));
    world.lead();
    assert_eq!(world.get("a").meta.version, version);
    world.edit_node("n1", |n| set_state(n, DOWN));
    assert_ne!(world.get("a").meta.version, version);
}

#[test]
fn where_many_wait_their_reason_follows_the_nodes_little_by_little() {
    const SOME: usize = 1000;
    let mut world = World::new();
    world.nodes(&["n1"]);
    world.replicas("s", 2 * SOME + 500, |t| constrain(t, "node.labels.zone==b"));
    let says = |world: &World, nodes: &str| {
        let text = format!("no suitable node (scheduling constraints not satisfied on {nodes})");
        world.sim.view().tasks().iter().filter(|task| task.status.err == text).count()
    };
    assert_eq!(says(&world, "1 node"), 2 * SOME + 500, "new ones say it at once");
    world.nodes(&["n2"]);
    world.sim.think();
    assert_eq!(says(&world, "2 nodes"), SOME);
    world.pass(Duration::from_millis(600));
    assert_eq!(says(&world, "2 nodes"), 2 * SOME);
    // Another reason meanwhile: what was not told yet is left out.
    world.nodes(&["n3"]);
    world.pass(Duration::from_millis(600));
    assert_eq!((says(&world, "3 nodes"), says(&world, "1 node")), (SOME, 500));
    // One that comes does not wait for its turn.
    world.task("s", "late", |t| constrain(t, "node.labels.zone==b"));
    world.waits("late", "no suitable node (scheduling constraints not satisfied on 3 nodes)");
    // Nor is one forgotten that would have had its turn already, and says what somebody else told it.
    world.task("s", "early", |t| {
        constrain(t, "node.labels.zone==b");
        (t.slot, t.status.err) = (0, "no suitable node".into());
    });
    world.pass(Duration::from_secs(2));
    assert_eq!(says(&world, "3 nodes"), 2 * SOME + 502);
    // And none of it holds up a node that fits.
    world.edit_node("n1", |n| label(n, "zone", "b"));
    assert_eq!(world.spread("s"), [("n1".into(), 2 * SOME + 502)].into());
}

#[test]
fn as_many_as_find_room_are_placed_and_the_rest_say_why_not() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 2, 0, vec![]));
    world.node("n2", |n| has(n, 1, 0, vec![]));
    world.tasks("s", &["a", "b", "c", "d", "e"], |t| wants(t, 1, 0, vec![]));
    assert_eq!(world.spread("s"), [("n1".into(), 2), ("n2".into(), 1)].into());
    for id in ["d", "e"] {
        world.waits(id, "no suitable node (insufficient resources on 2 nodes)");
    }
}

/// A node made by `node`, and a task made by `task`: is it placed, and if not, what is said?
#[track_caller]
fn check(node: impl Fn(&mut Node) + Send + Sync, task: impl Fn(&mut Task) + Send + Sync, reason: &str) {
    let mut world = World::new();
    world.node("n1", node);
    world.task("s", "a", task);
    match reason {
        "" => world.runs_on("a", "n1"),
        reason => world.waits("a", &format!("no suitable node ({reason})")),
    }
}

#[test]
fn reservations_must_fit() {
    let reason = "insufficient resources on 1 node";
    let node = |n: &mut Node| has(n, 10, 100, vec![discrete("fpga", 2)]);
    check(node, |t| wants(t, 10, 100, vec![discrete("fpga", 2)]), "");
    check(node, |t| wants(t, 11, 0, vec![]), reason);
    check(node, |t| wants(t, 0, 101, vec![]), reason);
    check(node, |t| wants(t, 0, 0, vec![discrete("fpga", 3)]), reason);
    check(node, |t| wants(t, 0, 0, vec![discrete("gpu", 1)]), reason);
    check(|_| {}, |t| wants(t, 1, 0, vec![]), reason);
    check(|_| {}, |t| wants(t, 0, 0, vec![]), "");
}

fn plugins(node: &mut Node, plugins: &[(&str, &str)]) {
    let plugins =
        plugins.iter().map(|(kind, name)| PluginDescription { r#type: (*kind).into(), name: (*name).into() });
    description(node).engine.get_or_insert_default().plugins = plugins.collect();
}

fn volume(task: &mut Task, kind: mount::Type, driver: &str) {
    let driver_config = Some(Driver { name: driver.into(), ..Default::default() });
    let volume_options = Some(mount::VolumeOptions { driver_config, ..Default::default() });
    container(task).mounts.push(Mount { r#type: kind as i32, volume_options, ..Default::default() });
}

fn network(task: &mut Task, driver: &str) {
    let driver_state = Some(Driver { name: driver.into(), ..Default::default() });
    let network: Shared<Network> = Network { driver_state, ..Default::default() }.into();
    task.networks.push(NetworkAttachment { network: Some(network), ..Default::default() });
}

fn log(task: &mut Task, driver: &str) {
    task.spec.log_driver = Some(Driver { name: driver.into(), ..Default::default() });
}

#[test]
fn plugins_must_be_there() {
    let reason = "missing plugin on 1 node";
    let volumes = |n: &mut Node| plugins(n, &[("Volume", "v1"), ("Volume", "v2:latest"), ("Network", "v3")]);
    check(volumes, |t| volume(t, mount::Type::Volume, "v1"), "");
    check(volumes, |t| volume(t, mount::Type::Volume, "v2"), "");
    check(volumes, |t| volume(t, mount::Type::Volume, "v2:latest"), "");
    check(volumes, |t| volume(t, mount::Type::Volume, "v3"), reason);
    check(volumes, |t| volume(t, mount::Type::Volume, "v"), reason);
    check(
        volumes,
        |t| {
            volume(t, mount::Type::Volume, "v1");
            volume(t, mount::Type::Volume, "v3");
        },
        reason,
    );
    for driver in ["", "local"] {
        check(volumes, |t| volume(t, mount::Type::Volume, driver), "");
    }
    check(volumes, |t| volume(t, mount::Type::Bind, "v9"), "");
    check(volumes, |t| network(t, "v3"), "");
    check(volumes, |t| network(t, ""), "");
    check(volumes, |t| network(t, "v1"), reason);
    // A node that does not say what its engine has may have anything.
    check(|_| {}, |t| volume(t, mount::Type::Volume, "v9"), "");
}

#[test]
fn log_drivers_must_be_there_where_they_are_told() {
    let logs = |n: &mut Node| plugins(n, &[("Log", "json")]);
    check(logs, |t| log(t, "json"), "");
    check(logs, |t| log(t, "none"), "");
    check(logs, |t| log(t, ""), "");
    check(logs, |t| log(t, "other"), "missing plugin on 1 node");
    check(|n| plugins(n, &[("Volume", "v")]), |t| log(t, "other"), "");
}

#[test]
fn a_plugin_that_comes_lets_the_task_go() {
    let mut world = World::new();
    world.node("n1", |n| plugins(n, &[("Volume", "v1")]));
    world.task("s", "a", |t| volume(t, mount::Type::Volume, "v2"));
    world.waits("a", "no suitable node (missing plugin on 1 node)");
    world.node("n2", |n| plugins(n, &[("Volume", "v2")]));
    world.sim.think();
    world.runs_on("a", "n2");
}

#[test]
fn constraints_must_hold() {
    let reason = "scheduling constraints not satisfied on 1 node";
    let node = |n: &mut Node| label(n, "zone", "a");
    check(node, |t| constrain(t, "node.labels.zone==A"), "");
    check(node, |t| constrain(t, "node.labels.zone==b"), reason);
    check(
        node,
        |t| {
            constrain(t, "node.labels.zone==a");
            constrain(t, "node.role==manager");
        },
        reason,
    );
    check(node, |t| constrain(t, "nonsense==a"), reason);
    check(node, |t| constrain(t, "not a constraint"), "");
}

#[test]
fn platforms_must_match() {
    let reason = "unsupported platform on 1 node";
    let platform = |os: &str, arch: &str| Platform { os: os.into(), architecture: arch.into() };
    let node = |n: &mut Node| description(n).platform = Some(platform("linux", "x86_64"));
    let on = |platforms: &[(&str, &str)]| {
        let platforms: Vec<Platform> = platforms.iter().map(|(os, arch)| platform(os, arch)).collect();
        move |t: &mut Task| placement(&mut t.spec).platforms.clone_from(&platforms)
    };
    check(node, on(&[("linux", "amd64")]), "");
    check(node, on(&[("linux", "x86_64")]), "");
    check(node, on(&[("linux", "")]), "");
    check(node, on(&[("", "amd64")]), "");
    check(node, on(&[("", "")]), "");
    check(node, on(&[("linux", "arm64")]), reason);
    check(node, on(&[("windows", "")]), reason);
    check(node, on(&[("windows", "amd64"), ("linux", "amd64")]), "");
    check(|n| description(n).platform = Some(platform("linux", "aarch64")), on(&[("linux", "arm64")]), "");
    check(|_| {}, on(&[("", "")]), reason);
    check(|_| {}, on(&[]), "");
}

fn host_port(task: &mut Task, protocol: i32, port: u32) {
    let port = PortConfig {
        protocol,
        published_port: port,
        publish_mode: PublishMode::Host as i32,
        ..Default::default()
    };
    let mut endpoint = task.endpoint.take().unwrap_or_default();
    endpoint.ports.push(port);
    task.endpoint = Some(Endpoint::clone(&endpoint).into());
}

#[test]
fn a_port_of_a_node_is_used_once() {
    let mut world = World::new();
    world.nodes(&["n1", "n2"]);
    world.tasks("tcp", &["a", "b", "c"], |t| host_port(t, 0, 58));
    world.waits("c", "no suitable node (host-mode port already in use on 2 nodes)");
    world.tasks("udp", &["d", "e"], |t| host_port(t, 1, 58));
    assert_eq!((world.shares("tcp"), world.shares("udp")), (vec![1, 1], vec![1, 1]));
    world.task("both", "f", |t| {
        host_port(t, 0, 59);
        host_port(t, 1, 58);
    });
    world.waits("f", "no suitable node (host-mode port already in use on 2 nodes)");
    let freed = world.on("a");
    world.remove_task("a");
    world.runs_on("c", &freed);
}

/// Tasks that are allocated while their service goes to another version get its ports, others of theirs have none.
#[test]
fn tasks_of_one_version_may_ask_for_different_ports() {
    for ports_first in [false, true] {
        let mut world = World::new();
        world.nodes(&["n1"]);
        world.task("other", "a", |t| host_port(t, 0, 58));
        assert_eq!(world.on("a"), "n1");
        world.tasks("s", &["b", "c"], |t| {
            if (t.id == "b") == ports_first {
                host_port(t, 0, 58);
            }
        });
        let (with, without) = if ports_first { ("b", "c") } else { ("c", "b") };
        world.runs_on(without, "n1");
        world.waits(with, "no suitable node (host-mode port already in use on 1 node)");
        world.remove_task("a");
        world.runs_on(with, "n1");
    }
}

#[test]
fn no_node_has_more_replicas_than_may_be() {
    let mut world = World::new();
    world.nodes(&["n1", "n2"]);
    world.tasks("s", &["a", "b", "c"], |t| placement(&mut t.spec).max_replicas = 1);
    assert_eq!(world.shares("s"), [1, 1]);
    world.waits("c", "no suitable node (max replicas per node limit exceed)");
    world.nodes(&["n3"]);
    world.sim.think();
    world.runs_on("c", "n3");
    // One that is to shut down does not count.
    world.task("s", "d", |t| placement(&mut t.spec).max_replicas = 1);
    assert_eq!(world.on("d"), "");
    world.edit_task("c", |t| t.desired_state = swarm_api::v1::TaskState::Shutdown as i32);
    world.runs_on("d", "n3");
}

fn generic(task: &mut Task, kind: &str) {
    let runtime = GenericRuntimeSpec { kind: kind.into(), payload: None };
    task.spec.runtime = Some(task_spec::Runtime::Generic(runtime));
}

#[test]
fn processes_go_only_to_nodes_that_say_they_can() {
    let ours = |n: &mut Node| {
        engine_label(n, extensions::PROCESS_ABILITY, "1");
        engine_label(n, extensions::CONTAINER_ABILITY, "0");
    };
    let both = |n: &mut Node| engine_label(n, extensions::PROCESS_ABILITY, "1");
    let container = |t: &mut Task| _ = container(t);
    let process = |t: &mut Task| generic(t, "Process");
    check(ours, process, "");
    check(both, process, "");
    check(|_| {}, process, "runtime process not available on 1 node");
    check(|_| {}, container, "");
    check(both, container, "");
    check(ours, container, "runtime container not available on 1 node");
    check(|_| {}, |t| generic(t, "plugin"), "");
    check(both, |t| generic(t, "plugin"), "runtime plugin not available on 1 node");
}

#[test]
fn what_containers_are_given_beyond_the_contract_is_asked_of_the_node_in_words() {
    use extensions::Feature;
    let wants = |feature: Feature| {
        move |t: &mut Task| placement(&mut t.spec).constraints.push(feature.constraint().into())
    };
    for (feature, text) in [
        (Feature::Devices, "devices can't be given to containers on 1 node"),
        (Feature::Gpus, "GPUs can't be given to containers on 1 node"),
        (Feature::Privileged, "privileged containers not allowed on 1 node"),
    ] {
        check(|_| {}, wants(feature), text);
        check(move |n| engine_label(n, feature.label(), "0"), wants(feature), text);
        check(move |n| engine_label(n, feature.label(), "1"), wants(feature), "");
    }
    let and_more = |t: &mut Task| {
        wants(Feature::Privileged)(t);
        placement(&mut t.spec).constraints.push("node.labels.zone==a".into());
    };
    check(|_| {}, and_more, "scheduling constraints not satisfied on 1 node");
    check(|_| {}, wants(Feature::PreStop), "scheduling constraints not satisfied on 1 node");
    check(
        |n| _ = n.spec.annotations.labels.insert("zone".into(), "a".into()),
        and_more,
        "privileged containers not allowed on 1 node",
    );
}

#[test]
fn a_cluster_volume_that_is_not_there_finds_no_node() {
    let reason = "cannot fulfill requested CSI volume mounts on 1 node";
    check(|_| {}, |t| volume(t, mount::Type::Cluster, ""), reason);
}

#[test]
fn whatever_plugin_is_missing_its_coming_lets_the_task_go() {
    let wants: [fn(&mut Task); 4] = [
        |t| volume(t, mount::Type::Volume, "v1"),
        |t| {
            volume(t, mount::Type::Volume, "v1");
            volume(t, mount::Type::Volume, "v2");
        },
        |t| network(t, "n"),
        |t| log(t, "l"),
    ];
    for wants in wants {
        let mut world = World::new();
        world.node("n1", |n| plugins(n, &[("Volume", "v2"), ("Network", "v1"), ("Log", "v1")]));
        world.node("n2", |n| plugins(n, &[("Volume", "l"), ("Volume", "n"), ("Log", "n"), ("Network", "l")]));
        world.task("s", "a", wants);
        world.waits("a", "no suitable node (missing plugin on 2 nodes)");
        let all = [("Volume", "v1"), ("Volume", "v2"), ("Network", "n"), ("Log", "l")];
        world.node("n3", |n| plugins(n, &all));
        world.sim.think();
        world.runs_on("a", "n3");
    }
}

#[test]
fn a_platform_that_no_node_has_is_told_of_all_of_them() {
    let mut world = World::new();
    for id in ["n1", "n2", "n3"] {
        let platform = Platform { os: "linux".into(), architecture: "x86_64".into() };
        world.node(id, |n| description(n).platform = Some(platform.clone()));
    }
    let arm = Platform { os: "linux".into(), architecture: "arm64".into() };
    world.task("s", "a", |t| placement(&mut t.spec).platforms.push(arm.clone()));
    world.waits("a", "no suitable node (unsupported platform on 3 nodes)");
}
