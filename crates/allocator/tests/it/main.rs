//! From NEW to PENDING, rule by rule (`network.md` A3, A6, A8).
#![allow(clippy::unwrap_used)]

mod networks;
mod ports;

use std::sync::Arc;

use swarm_allocator::Allocator;
use swarm_api::v1::port_config::PublishMode;
use swarm_api::v1::{
    Driver, EndpointSpec, Network, NetworkAttachmentConfig, PortConfig, Service, Task, TaskState,
};
use swarm_api::{Kind, Object};
use swarm_reconcile::sim::{Sim, service};
use swarm_reconcile::{Ctx, Decision, Group, Patch, Reconciler, Write};
use swarm_store::{Event, Tables};

const HOST: i32 = PublishMode::Host as i32;
const INGRESS: i32 = PublishMode::Ingress as i32;

fn port(publish_mode: i32, target_port: u32, published_port: u32) -> PortConfig {
    PortConfig { publish_mode, target_port, published_port, ..Default::default() }
}

fn publishing(id: &str, ports: &[PortConfig]) -> Service {
    let mut service = service(id, 1);
    service.spec.endpoint = Some(EndpointSpec { ports: ports.to_vec(), ..Default::default() });
    service
}

fn network(id: &str, driver: &str) -> Network {
    let mut network = Network { id: id.into(), ..Default::default() };
    network.spec.annotations.name = format!("{id}-name");
    network.spec.driver_config = Some(Driver { name: driver.into(), ..Default::default() });
    network
}

fn attached(id: &str, network: &str) -> Service {
    let mut service = service(id, 1);
    let config = NetworkAttachmentConfig {
        target: network.into(),
        aliases: vec!["alias".into()],
        ..Default::default()
    };
    service.spec.task.networks = vec![config];
    service
}

fn task(service: &Service, id: &str) -> Task {
    Task {
        id: id.into(),
        service_id: service.id.as_str().into(),
        slot: 1,
        spec: service.spec.task.clone(),
        desired_state: TaskState::Running as i32,
        ..Default::default()
    }
}

/// These services, each with one new task named after it, under a leader that only allocates.
fn cluster(services: &[Service]) -> Sim {
    let mut sim = Sim::new(|tx| {
        for service in services {
            tx.create(service.clone()).unwrap();
            tx.create(task(service, &format!("{}-task", service.id))).unwrap();
        }
    });
    lead(&mut sim);
    sim
}

fn lead(sim: &mut Sim) {
    sim.lead(vec![Box::<Allocator>::default()]);
    sim.think();
}

fn state(sim: &Sim, id: &str) -> TaskState {
    sim.view().tasks().get(id).unwrap().status.state()
}

fn err(sim: &Sim, id: &str) -> String {
    sim.view().tasks().get(id).unwrap().status.err.to_string()
}

fn published(sim: &Sim, id: &str) -> Vec<u32> {
    let view = sim.view();
    let service = view.services().get(id).unwrap();
    service.endpoint.as_ref().map_or(Vec::new(), |e| e.ports.iter().map(|p| p.published_port).collect())
}

#[test]
fn a_task_that_needs_nothing_becomes_pending() {
    let sim = cluster(&[service("web", 1)]);
    let view = sim.view();
    let status = &view.tasks().get("web-task").unwrap().status;
    assert_eq!((status.state(), &status.message[..]), (TaskState::Pending, "pending task scheduling"));
    assert!(view.services().get("web").unwrap().endpoint.is_none(), "nothing to publish, nothing written");
}

#[test]
fn a_task_created_later_becomes_pending() {
    let mut sim = cluster(&[service("web", 1)]);
    sim.write(|tx| drop(tx.create(task(&service("web", 1), "later")).unwrap()));
    sim.think();
    assert_eq!(state(&sim, "later"), TaskState::Pending);
}

/// Makes a task for each service, named after it and the node, whenever a node comes.
#[derive(Default)]
struct Maker(Vec<String>);

impl Reconciler for Maker {
    fn name(&self) -> &'static str {
        "maker"
    }
    fn init(&mut self, _: &mut Ctx<'_>, _: &Tables) {}
    fn observe(&mut self, _: &mut Ctx<'_>, events: &[Event], _: &Tables) {
        self.0.extend(events.iter().filter(|e| e.kind() == Kind::Node).map(|e| e.id().to_owned()));
    }
    fn decide(&mut self, _: &mut Ctx<'_>, tables: &Tables) -> Decision {
        let mut groups = Vec::new();
        for node in self.0.drain(..) {
            for service in tables.services().iter() {
                let new = task(service, &format!("{}-{node}", service.id));
                groups.push(Group { tag: 0, patches: vec![Patch::new(Write::Create(new.into()))] });
            }
        }
        Decision { groups, wake_at: None }
    }
}

#[test]
fn a_task_whose_service_has_all_it_needs_is_pending_from_the_beginning() {
    let mut sim = Sim::new(|tx| {
        tx.create(service("plain", 1)).unwrap();
        tx.create(publishing("web", &[port(INGRESS, 80, 0)])).unwrap();
        tx.create(attached("remote", "overlay")).unwrap();
        tx.create(network("overlay", "overlay")).unwrap();
    });
    sim.lead(vec![Box::<Maker>::default(), Box::<Allocator>::default()]);
    sim.think();
    sim.add_node("n1");
    let batches = sim.decide();
    let writes: Vec<String> = batches
        .iter()
        .flat_map(|batch| &batch.groups)
        .flat_map(|group| &group.patches)
        .map(|patch| match &patch.write {
            Write::Create(Object::Task(task)) => format!("{} {}", task.id, task.status.state().name()),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(writes[..3], ["plain-n1 PENDING", "remote-n1 NEW", "web-n1 PENDING"]);
    assert!(writes[3..].iter().all(|write| write.starts_with("explain task remote-n1")), "{writes:?}");
    batches.into_iter().for_each(|batch| sim.commit(batch));
    sim.think();
    let web = sim.view().tasks().get("web-n1").unwrap().clone();
    assert_eq!(web.endpoint.as_ref().unwrap().ports[0].published_port, 30_000);
    assert_eq!(
        (web.status.state(), &web.status.message[..]),
        (TaskState::Pending, "pending task scheduling")
    );

    // What has changed at the same time is allocated first.
    sim.update_service("web", |spec| {
        spec.endpoint = publishing("", &[port(INGRESS, 80, 8080)]).spec.endpoint;
    });
    sim.add_node("n2");
    sim.think();
    let web = sim.view().tasks().get("web-n2").unwrap().clone();
    assert_eq!(web.endpoint.as_ref().unwrap().ports[0].published_port, 8080);
    assert_eq!((state(&sim, "web-n2"), state(&sim, "remote-n2")), (TaskState::Pending, TaskState::New));
}

#[test]
fn a_task_that_is_not_wanted_any_more_is_left_alone() {
    let mut sim = cluster(&[service("web", 1)]);
    let mut gone = task(&service("web", 1), "gone");
    gone.desired_state = TaskState::Remove as i32;
    sim.write(|tx| drop(tx.create(gone.clone()).unwrap()));
    sim.think();
    assert_eq!(state(&sim, "gone"), TaskState::New);
}

#[test]
fn an_attachment_without_service_becomes_pending() {
    let mut sim = cluster(&[]);
    let attachment = Task { desired_state: TaskState::Running as i32, id: "a".into(), ..Default::default() };
    sim.write(|tx| drop(tx.create(attachment.clone()).unwrap()));
    sim.think();
    assert_eq!(state(&sim, "a"), TaskState::Pending);
}

#[test]
fn host_ports_reach_the_task_as_the_spec_has_them() {
    let ports = [port(HOST, 80, 8080), port(HOST, 81, 0)];
    let sim = cluster(&[publishing("web", &ports)]);
    let view = sim.view();
    let endpoint = view.tasks().get("web-task").unwrap().endpoint.clone().unwrap();
    assert_eq!(endpoint.ports, ports);
    assert_eq!(endpoint.spec, view.services().get("web").unwrap().spec.endpoint);
}

#[test]
fn a_new_leader_copies_the_endpoint_too() {
    let mut sim = cluster(&[publishing("web", &[port(HOST, 80, 8080)])]);
    let web = sim.view().services().get("web").unwrap().clone();
    sim.write(|tx| drop(tx.create(task(&web, "later")).unwrap()));
    lead(&mut sim);
    assert_eq!(sim.view().tasks().get("later").unwrap().endpoint, web.endpoint);
}

#[test]
fn ingress_ports_without_a_number_get_one_and_keep_it() {
    let mut sim = cluster(&[publishing("web", &[port(INGRESS, 80, 0)])]);
    assert_eq!(published(&sim, "web"), [30_000]);
    sim.update_service("web", |spec| {
        spec.endpoint.as_mut().unwrap().ports.push(port(INGRESS, 81, 0));
    });
    sim.think();
    assert_eq!(published(&sim, "web"), [30_000, 30_001]);
    lead(&mut sim);
    assert_eq!(published(&sim, "web"), [30_000, 30_001]);
}

#[test]
fn a_service_whose_port_is_taken_waits_and_says_why_until_it_is_free() {
    let ports = [port(INGRESS, 80, 80), port(HOST, 81, 81)];
    let mut sim = cluster(&[publishing("a", &ports), publishing("b", &ports)]);
    assert_eq!((state(&sim, "a-task"), state(&sim, "b-task")), (TaskState::Pending, TaskState::New));
    assert!(
        err(&sim, "b-task").contains("port 80/tcp is already in use by service a"),
        "{}",
        err(&sim, "b-task")
    );
    assert_eq!(published(&sim, "b"), [0u32; 0]);
    sim.write(|tx| drop(tx.remove::<Service>("a").unwrap()));
    sim.think();
    assert_eq!((state(&sim, "b-task"), err(&sim, "b-task")), (TaskState::Pending, String::new()));
    assert_eq!(published(&sim, "b"), [80, 81]);
}

#[test]
fn a_port_given_up_by_an_update_goes_to_who_waits_for_it() {
    let mut sim =
        cluster(&[publishing("a", &[port(INGRESS, 80, 80)]), publishing("b", &[port(INGRESS, 80, 80)])]);
    sim.update_service("a", |spec| spec.endpoint.as_mut().unwrap().ports.clear());
    sim.think();
    assert_eq!(published(&sim, "b"), [80]);
    assert_eq!(state(&sim, "b-task"), TaskState::Pending);
}

#[test]
fn a_service_deleted_and_another_created_with_its_port_in_one_transaction() {
    let mut sim = cluster(&[publishing("a", &[port(INGRESS, 80, 80)])]);
    sim.write(|tx| {
        tx.remove::<Service>("a").unwrap();
        tx.create(publishing("b", &[port(INGRESS, 80, 80)])).unwrap();
    });
    sim.think();
    assert_eq!(published(&sim, "b"), [80]);
}

#[test]
fn one_number_twice_is_not_allocated_until_it_is_corrected() {
    let mut sim = cluster(&[publishing("web", &[port(INGRESS, 80, 80), port(INGRESS, 81, 80)])]);
    assert_eq!(state(&sim, "web-task"), TaskState::New);
    sim.update_service("web", |spec| spec.endpoint.as_mut().unwrap().ports[1].published_port = 81);
    sim.think();
    assert_eq!((published(&sim, "web"), state(&sim, "web-task")), (vec![80, 81], TaskState::Pending));
}

#[test]
fn a_changed_host_port_is_refreshed() {
    let mut sim = cluster(&[publishing("web", &[port(HOST, 80, 8080), port(INGRESS, 81, 0)])]);
    sim.update_service("web", |spec| spec.endpoint.as_mut().unwrap().ports[0].published_port = 9090);
    sim.think();
    assert_eq!(published(&sim, "web"), [9090, 30_000]);
}

#[test]
fn an_endpoint_spec_that_is_removed_takes_the_endpoint_with_it() {
    let mut sim = cluster(&[publishing("web", &[port(INGRESS, 80, 80)])]);
    sim.update_service("web", |spec| spec.endpoint = None);
    sim.think();
    assert!(sim.view().services().get("web").unwrap().endpoint.is_none());
}

#[test]
fn what_is_allocated_is_not_written_again() {
    let mut sim = cluster(&[publishing("web", &[port(INGRESS, 80, 0)])]);
    let index = sim.view().index();
    lead(&mut sim);
    assert_eq!(sim.view().index(), index);
    sim.update_service("web", |spec| {
        let annotations = &mut spec.annotations;
        annotations.labels.insert("a".into(), "b".into());
    });
    sim.think();
    assert_eq!(sim.view().index(), index + 1, "only the update itself");
}

#[test]
fn a_network_that_nodes_make_themselves_is_attached_without_addresses() {
    let mut sim = cluster(&[attached("web", "net")]);
    assert_eq!(state(&sim, "web-task"), TaskState::New);
    assert_eq!(err(&sim, "web-task"), "network net does not exist");
    sim.write(|tx| drop(tx.create(network("net", "host")).unwrap()));
    sim.think();
    let view = sim.view();
    let task = view.tasks().get("web-task").unwrap();
    assert_eq!((task.status.state(), &task.status.err[..]), (TaskState::Pending, ""));
    let [attachment] = &task.networks[..] else { panic!("one attachment") };
    let net = attachment.network.as_ref().unwrap();
    assert_eq!(net.driver_state.as_ref().unwrap().name, "host");
    assert!(net.ipam.as_ref().unwrap().driver.is_some(), "agents expect it");
    assert!(attachment.addresses.is_empty() && attachment.aliases == ["alias"]);
    let vips = &view.services().get("web").unwrap().endpoint.as_ref().unwrap().virtual_ips;
    assert_eq!((&vips[0].network_id[..], &vips[0].addr[..]), ("net", ""));
}

#[test]
fn addresses_that_a_service_asks_for_reach_its_tasks_on_networks_that_nodes_make() {
    let mut web = attached("web", "net");
    web.spec.task.networks[0].addresses = vec!["192.168.7.9/24".into(), "fd00::9".into()];
    let mut sim = cluster(&[web]);
    sim.write(|tx| drop(tx.create(network("net", "macvlan")).unwrap()));
    sim.think();
    let view = sim.view();
    let task = view.tasks().get("web-task").unwrap();
    assert_eq!((task.status.state(), &task.status.err[..]), (TaskState::Pending, ""));
    let [attachment] = &task.networks[..] else { panic!("one attachment") };
    assert_eq!(attachment.addresses, ["192.168.7.9/24", "fd00::9"]);
    let net = attachment.network.as_ref().unwrap();
    assert!(net.ipam.as_ref().unwrap().configs.is_empty(), "nothing is allocated here");
}

#[test]
fn a_task_on_an_overlay_network_stays_new_and_says_so() {
    let mut sim = Sim::new(|tx| {
        let web = attached("web", "net");
        tx.create(network("net", "overlay")).unwrap();
        tx.create(task(&web, "web-task")).unwrap();
        tx.create(web).unwrap();
    });
    lead(&mut sim);
    assert_eq!(state(&sim, "web-task"), TaskState::New);
    assert!(err(&sim, "web-task").contains("net-name"), "{}", err(&sim, "web-task"));
    let index = sim.view().index();
    sim.write(|tx| {
        let mut task = tx.tasks().get("web-task").unwrap().clone();
        task.service_annotations = Arc::new(swarm_api::v1::Annotations::default()).into();
        task.status.message = "touched".into();
        tx.update(task).unwrap();
    });
    sim.think();
    assert_eq!(sim.view().index(), index + 1, "an explanation that stays the same is not written again");
}
