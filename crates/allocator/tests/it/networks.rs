//! Networks of services and tasks (`network.md` A3, A8).

use std::time::Duration;

use swarm_api::v1::endpoint::VirtualIp;
use swarm_api::v1::endpoint_spec::ResolutionMode;
use swarm_api::v1::{Endpoint, EndpointSpec, Network, NetworkAttachmentConfig, PortConfig, TaskState};
use swarm_reconcile::sim::{Sim, service};

use super::{HOST, INGRESS, attached, err, lead, network, port, publishing, state, task};

fn config(target: &str, alias: &str) -> NetworkAttachmentConfig {
    NetworkAttachmentConfig { target: target.into(), aliases: vec![alias.into()], ..Default::default() }
}

fn vip(network: &str, addr: &str) -> VirtualIp {
    VirtualIp { network_id: network.into(), addr: addr.into() }
}

fn vips(sim: &Sim, service: &str) -> Vec<(String, String)> {
    let view = sim.view();
    let endpoint = view.services().get(service).unwrap().endpoint.as_ref();
    endpoint.map_or(Vec::new(), |e| {
        e.virtual_ips.iter().map(|v| (v.network_id.clone(), v.addr.clone())).collect()
    })
}

/// Networks that a task was attached to, each with its names there.
fn attachments(sim: &Sim, task: &str) -> Vec<(String, Vec<String>)> {
    let view = sim.view();
    let task = view.tasks().get(task).unwrap();
    let of =
        |a: &swarm_api::v1::NetworkAttachment| (a.network.as_ref().unwrap().id.clone(), a.aliases.clone());
    task.networks.iter().map(of).collect()
}

#[test]
fn virtual_addresses_that_another_manager_gave_are_kept_as_long_as_they_are_needed() {
    let mut ingress = network("ingress", "overlay");
    ingress.spec.ingress = true;
    let mut web = publishing("web", &[port(INGRESS, 80, 8080)]);
    web.spec.task.networks = vec![config("lan", "a"), config("far", "a")];
    let addresses = [vip("ingress", "10.0.0.7/24"), vip("far", "10.0.1.5/24"), vip("gone", "10.0.2.5/24")];
    web.endpoint = Some(
        Endpoint {
            spec: web.spec.endpoint.clone(),
            ports: vec![port(INGRESS, 80, 8080)],
            virtual_ips: addresses.to_vec(),
        }
        .into(),
    );
    let mut sim = Sim::new(|tx| {
        tx.create(ingress.clone()).unwrap();
        tx.create(network("far", "overlay")).unwrap();
        tx.create(network("lan", "bridge")).unwrap();
        tx.create(web.clone()).unwrap();
    });
    let entry = |network: &str, addr: &str| (network.to_owned(), addr.to_owned());
    lead(&mut sim);
    let (mesh, far, lan) = (entry("ingress", "10.0.0.7/24"), entry("far", "10.0.1.5/24"), entry("lan", ""));
    assert_eq!(vips(&sim, "web"), [mesh, far.clone(), lan.clone()]);
    let index = sim.view().index();
    lead(&mut sim);
    assert_eq!(sim.view().index(), index, "nothing is written again");
    // Nothing is published any more, then one network is left, then there are no virtual addresses.
    sim.update_service("web", |spec| spec.endpoint.as_mut().unwrap().ports.clear());
    sim.think();
    assert_eq!(vips(&sim, "web"), [far, lan.clone()]);
    sim.update_service("web", |spec| _ = spec.task.networks.pop());
    sim.think();
    assert_eq!(vips(&sim, "web"), [lan]);
    sim.update_service("web", |spec| {
        spec.endpoint = Some(EndpointSpec { mode: ResolutionMode::Dnsrr as i32, ..Default::default() });
    });
    sim.think();
    assert_eq!(vips(&sim, "web"), []);
}

#[test]
fn a_task_of_an_old_version_gets_no_networks_of_a_new_one() {
    let mut sim = Sim::new(|tx| {
        tx.create(task(&service("web", 1), "old")).unwrap();
        tx.create(attached("web", "lan")).unwrap();
        tx.create(network("lan", "bridge")).unwrap();
    });
    lead(&mut sim);
    assert_eq!((state(&sim, "old"), attachments(&sim, "old")), (TaskState::Pending, vec![]));
}

#[test]
fn a_task_without_networks_gets_those_of_the_deprecated_list() {
    let mut web = service("web", 1);
    #[allow(deprecated)]
    web.spec.networks.push(config("lan", "a"));
    let mut sim = Sim::new(|tx| {
        tx.create(task(&web, "t")).unwrap();
        tx.create(web.clone()).unwrap();
        tx.create(network("lan", "bridge")).unwrap();
    });
    lead(&mut sim);
    assert_eq!(attachments(&sim, "t"), [("lan".to_owned(), vec!["a".to_owned()])]);
    assert_eq!(vips(&sim, "web"), [("lan".to_owned(), String::new())]);
}

#[test]
fn a_network_that_is_listed_twice_is_attached_once_with_the_names_of_both() {
    let mut web = service("web", 1);
    web.spec.task.networks = vec![config("lan", "a"), config("lan", "b"), config("lan", "a")];
    let mut sim = Sim::new(|tx| {
        tx.create(task(&web, "t")).unwrap();
        tx.create(web.clone()).unwrap();
        tx.create(network("lan", "bridge")).unwrap();
    });
    lead(&mut sim);
    assert_eq!(attachments(&sim, "t"), [("lan".to_owned(), vec!["a".to_owned(), "b".to_owned()])]);
    assert_eq!(vips(&sim, "web"), [("lan".to_owned(), String::new())]);
}

/// With a label of so many KiB.
fn large(id: &str, size: usize) -> Network {
    let mut network: Network = network(id, "bridge");
    network.spec.annotations.labels.insert("a".into(), "x".repeat(size * 1024));
    network
}

/// It has its service's ports as well, which it does not have yet when it is measured.
#[test]
fn the_ports_of_a_service_count_for_what_fits_into_an_entry() {
    let named = PortConfig { name: "x".repeat(300 * 1024), ..port(HOST, 80, 80) };
    let mut web = publishing("web", &[named]);
    web.spec.task.networks = vec![config("one", "a"), config("two", "a")];
    let mut sim = Sim::new(|tx| drop(tx.create(web.clone()).unwrap()));
    for id in ["one", "two"] {
        sim.write(|tx| drop(tx.create(large(id, 450)).unwrap()));
    }
    sim.write(|tx| drop(tx.create(task(&web, "t")).unwrap()));
    lead(&mut sim);
    assert_eq!(state(&sim, "t"), TaskState::New);
    assert!(err(&sim, "t").contains("networks and ports the task would have 15"), "{}", err(&sim, "t"));
}

#[test]
fn a_task_that_would_not_fit_into_an_entry_says_so_and_holds_up_nobody() {
    let huge = |id: &str| large(id, 800);
    let mut web = service("web", 1);
    web.spec.task.networks = vec![config("one", "a"), config("two", "a")];
    let mut sim = Sim::new(|tx| {
        tx.create(task(&web, "t")).unwrap();
        tx.create(web.clone()).unwrap();
    });
    // Each is an entry of its own.
    sim.write(|tx| drop(tx.create(huge("one")).unwrap()));
    sim.write(|tx| drop(tx.create(huge("two")).unwrap()));
    lead(&mut sim);
    assert_eq!(state(&sim, "t"), TaskState::New);
    assert!(err(&sim, "t").contains("the task would have 16"), "{}", err(&sim, "t"));
    let decisions = sim.decisions;
    sim.write(|tx| drop(tx.create(task(&service("web", 1), "other")).unwrap()));
    sim.advance(Duration::from_secs(1));
    assert_eq!((state(&sim, "other"), sim.decisions), (TaskState::Pending, decisions + 1));
}

#[test]
fn networks_of_drivers_that_we_do_not_know_are_left_to_who_does() {
    let mut far = network("far", "overlay");
    far.spec.driver_config = None;
    let mut sim = Sim::new(|tx| {
        tx.create(far.clone()).unwrap();
        tx.create(network("odd", "weave")).unwrap();
    });
    let index = sim.view().index();
    lead(&mut sim);
    assert_eq!(sim.view().index(), index);
}

#[test]
fn the_entries_of_a_service_follow_its_networks() {
    let mut web = service("web", 1);
    // Without a spec of its endpoint, and with an address that another manager gave.
    web.spec.task.networks = vec![config("far", "a")];
    let virtual_ips = vec![vip("far", "10.0.1.5/24")];
    web.endpoint = Some(Endpoint { virtual_ips, ..Default::default() }.into());
    let mut sim = Sim::new(|tx| {
        for (id, driver) in [("far", "overlay"), ("one", "bridge"), ("two", "macvlan")] {
            tx.create(network(id, driver)).unwrap();
        }
        tx.create(web.clone()).unwrap();
    });
    lead(&mut sim);
    let entry = |network: &str, addr: &str| (network.to_owned(), addr.to_owned());
    assert_eq!(vips(&sim, "web"), [entry("far", "10.0.1.5/24")], "a change of leaders takes nothing");
    let mut on = |networks: &[&str]| {
        sim.update_service("web", |spec| {
            spec.task.networks = networks.iter().map(|network| config(network, "a")).collect();
        });
        sim.think();
        vips(&sim, "web")
    };
    assert_eq!(on(&["one"]), [entry("one", "")]);
    assert_eq!(on(&["two", "one"]), [entry("one", ""), entry("two", "")]);
    assert_eq!(on(&[]), []);
    assert_eq!(on(&["two"]), [entry("two", "")]);
}

#[test]
fn networks_services_and_tasks_may_come_in_any_order() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for (order, late) in orders.into_iter().flat_map(|order| [(order, false), (order, true)]) {
        let mut sim = Sim::new(|_| {});
        if late {
            lead(&mut sim);
        }
        for object in order {
            sim.write(|tx| match object {
                0 => drop(tx.create(network("lan", "bridge")).unwrap()),
                1 => drop(tx.create(attached("web", "lan")).unwrap()),
                _ => drop(tx.create(task(&attached("web", "lan"), "t")).unwrap()),
            });
            sim.think();
        }
        if !late {
            lead(&mut sim);
        }
        assert_eq!(state(&sim, "t"), TaskState::Pending, "{order:?}, {late}");
        assert_eq!(vips(&sim, "web"), [("lan".to_owned(), String::new())], "{order:?}, {late}");
    }
}
