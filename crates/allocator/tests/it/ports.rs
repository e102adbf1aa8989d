//! Numbers of published ports, from the service's spec to its tasks (`network.md` A8).

use std::time::Duration;

use swarm_api::v1::port_config::Protocol;
use swarm_api::v1::{Endpoint, EndpointSpec, PortConfig, Service, TaskState};
use swarm_reconcile::sim::Sim;

use super::{HOST, INGRESS, cluster, err, lead, port, published, publishing, state, task};

/// A service that a leader before has given these numbers.
fn given(mut service: Service, numbers: &[u32]) -> Service {
    let spec = service.spec.endpoint.clone().unwrap();
    let numbered =
        |(port, number): (&PortConfig, &u32)| PortConfig { published_port: *number, ..port.clone() };
    let ports = spec.ports.iter().zip(numbers).map(numbered).collect();
    service.endpoint = Some(Endpoint { spec: Some(spec), ports, ..Default::default() }.into());
    service
}

fn label(sim: &mut Sim, service: &str) {
    sim.update_service(service, |spec| _ = spec.annotations.labels.insert("a".into(), "b".into()));
}

fn set_ports(sim: &mut Sim, service: &str, ports: &[PortConfig]) {
    sim.update_service(service, |spec| spec.endpoint.as_mut().unwrap().ports = ports.to_vec());
    sim.think();
}

/// The first port's number, as the task was told.
fn told(sim: &Sim, task: &str) -> u32 {
    sim.view().tasks().get(task).unwrap().endpoint.as_ref().unwrap().ports[0].published_port
}

#[test]
fn a_number_that_two_services_were_given_stays_with_one_and_the_other_gets_another() {
    let dynamic = |id: &str| given(publishing(id, &[port(INGRESS, 80, 0)]), &[30_000]);
    let sim = cluster(&[dynamic("a"), dynamic("b")]);
    assert_eq!((published(&sim, "a"), published(&sim, "b")), (vec![30_000], vec![30_001]));
    assert_eq!((state(&sim, "a-task"), state(&sim, "b-task")), (TaskState::Pending, TaskState::Pending));
    assert_eq!(told(&sim, "b-task"), 30_001);
}

#[test]
fn a_dynamic_port_keeps_its_number_when_a_fixed_port_of_its_target_changes() {
    let fixed_and_dynamic = |number| [port(INGRESS, 80, number), port(INGRESS, 80, 0)];
    let mut sim = cluster(&[publishing("web", &fixed_and_dynamic(8080))]);
    assert_eq!(published(&sim, "web"), [8080, 30_000]);
    set_ports(&mut sim, "web", &fixed_and_dynamic(9090));
    assert_eq!(published(&sim, "web"), [9090, 30_000]);
    lead(&mut sim);
    set_ports(&mut sim, "web", &fixed_and_dynamic(9091));
    assert_eq!(published(&sim, "web"), [9091, 30_000]);
}

#[test]
fn a_port_without_a_number_can_be_given_one_later_and_frees_its_old_one() {
    let mut sim = cluster(&[publishing("web", &[port(INGRESS, 80, 0)]), publishing("z", &[])]);
    set_ports(&mut sim, "web", &[port(INGRESS, 80, 8080)]);
    assert_eq!(published(&sim, "web"), [8080]);
    set_ports(&mut sim, "z", &[port(INGRESS, 80, 30_000)]);
    assert_eq!(published(&sim, "z"), [30_000]);
}

#[test]
fn what_is_published_again_gets_its_fixed_number_back() {
    let mut sim = cluster(&[publishing("web", &[port(INGRESS, 80, 8080)])]);
    set_ports(&mut sim, "web", &[]);
    assert_eq!(published(&sim, "web"), [0u32; 0]);
    set_ports(&mut sim, "web", &[port(INGRESS, 80, 8080)]);
    assert_eq!(published(&sim, "web"), [8080]);
}

#[test]
fn a_port_that_loses_its_fixed_number_gets_one_of_the_dynamic_range() {
    let mut sim = cluster(&[publishing("web", &[port(INGRESS, 80, 8080)])]);
    set_ports(&mut sim, "web", &[port(INGRESS, 80, 0)]);
    assert_eq!(published(&sim, "web"), [30_000]);
}

#[test]
fn two_leaders_that_know_nothing_give_a_service_the_same_numbers() {
    let ports = [port(INGRESS, 1, 0), port(INGRESS, 2, 7000), port(INGRESS, 3, 0), port(HOST, 4, 0)];
    let numbers = || published(&cluster(&[publishing("web", &ports)]), "web");
    assert_eq!(numbers(), [7000, 0, 30_000, 30_001]);
    assert_eq!(numbers(), numbers());
}

/// A change of the service slips in between the decision and its write.
fn overtaken(ports: &[PortConfig], mut change: impl FnMut(&mut Sim)) -> Sim {
    let web = publishing("web", ports);
    let mut sim = Sim::new(|tx| {
        tx.create(web.clone()).unwrap();
        tx.create(task(&web, "web-task")).unwrap();
        tx.create(publishing("z", &[port(INGRESS, 80, 80)])).unwrap();
    });
    sim.lead(vec![Box::<swarm_allocator::Allocator>::default()]);
    let batches = sim.decide();
    change(&mut sim);
    batches.into_iter().for_each(|batch| sim.commit(batch));
    sim.think();
    sim
}

#[test]
fn a_task_is_told_the_number_that_its_service_gets_whatever_slips_in_between() {
    let sim = overtaken(&[port(INGRESS, 80, 0)], |sim| label(sim, "web"));
    assert_eq!((published(&sim, "web"), told(&sim, "web-task")), (vec![30_000], 30_000));
}

#[test]
fn a_number_that_was_never_written_goes_to_who_waits_for_it() {
    let sim = overtaken(&[port(INGRESS, 80, 80)], |sim| {
        sim.update_service("web", |spec| spec.endpoint.as_mut().unwrap().ports.clear());
    });
    assert_eq!((published(&sim, "web"), published(&sim, "z")), (vec![], vec![80]));
}

#[test]
fn a_dynamic_number_is_none_that_others_ask_for_on_their_nodes_or_have_still_to_get() {
    let udp = PortConfig { protocol: Protocol::Udp as i32, ..port(HOST, 80, 30_002) };
    let sim = cluster(&[
        publishing(
            "a",
            &[port(INGRESS, 1, 0), port(INGRESS, 2, 0), port(HOST, 3, 30_003), port(INGRESS, 4, 0)],
        ),
        publishing("b", &[port(HOST, 80, 30_000), udp]),
        publishing("z", &[port(INGRESS, 80, 30_001)]),
    ]);
    assert_eq!(published(&sim, "a"), [30_003, 30_002, 30_004, 30_005]);
    assert_eq!((published(&sim, "z"), state(&sim, "z-task")), (vec![30_001], TaskState::Pending));
}

/// Ports without a number that leave none of the dynamic range, but for these many.
fn most(left: u32) -> Vec<PortConfig> {
    (30_000..=32_767 - left).map(|target| port(INGRESS, target, 0)).collect()
}

#[test]
fn a_service_waits_while_the_dynamic_range_is_used_up_and_goes_on_when_one_is_free() {
    let mut sim = cluster(&[publishing("a", &most(0)), publishing("late", &[port(INGRESS, 80, 0)])]);
    assert_eq!(state(&sim, "late-task"), TaskState::New);
    let text = "no free port between 30000 and 32767";
    assert!(err(&sim, "late-task").ends_with(text), "{}", err(&sim, "late-task"));
    sim.update_service("a", |spec| _ = spec.endpoint.as_mut().unwrap().ports.pop());
    sim.think();
    assert_eq!((published(&sim, "late"), state(&sim, "late-task")), (vec![32_767], TaskState::Pending));
}

#[test]
fn what_waits_for_ports_is_tried_again_within_a_minute() {
    let services = [
        publishing("a", &most(1)),
        publishing("host", &[port(HOST, 80, 32_767)]),
        publishing("late", &[port(INGRESS, 80, 0)]),
    ];
    let mut sim = cluster(&services);
    assert_eq!(state(&sim, "late-task"), TaskState::New);
    sim.write(|tx| drop(tx.remove::<Service>("host").unwrap()));
    let decisions = sim.decisions;
    sim.advance(Duration::from_secs(60));
    assert_eq!((published(&sim, "late"), state(&sim, "late-task")), (vec![32_767], TaskState::Pending));
    assert_eq!((sim.decisions, sim.wake_at()), (decisions + 1, None), "nothing is left to wait for");
}

#[test]
fn waiting_in_vain_writes_nothing() {
    let mut sim =
        cluster(&[publishing("a", &[port(INGRESS, 1, 80)]), publishing("b", &[port(INGRESS, 1, 80)])]);
    let (index, begin) = (sim.view().index(), sim.now().mono);
    let wake = sim.wake_at().unwrap() - begin;
    assert!(wake <= Duration::from_secs(60) && !wake.is_zero(), "{wake:?}");
    sim.advance(Duration::from_secs(60));
    assert_eq!((sim.view().index(), sim.wake_at()), (index, None), "nothing has changed");
    sim.write(|tx| drop(tx.create(publishing("c", &[])).unwrap()));
    sim.think();
    assert_eq!(sim.wake_at(), Some(sim.now().mono + Duration::from_secs(60)));
}

#[test]
fn a_new_leader_does_not_reuse_a_number_at_once_either() {
    let mut sim =
        cluster(&[publishing("a", &[port(INGRESS, 1, 0)]), publishing("b", &[port(INGRESS, 1, 0)])]);
    sim.write(|tx| drop(tx.remove::<Service>("a").unwrap()));
    lead(&mut sim);
    sim.write(|tx| drop(tx.create(publishing("c", &[port(INGRESS, 1, 0)])).unwrap()));
    sim.think();
    assert_eq!(published(&sim, "c"), [30_002]);
}

#[test]
fn what_does_not_fit_into_an_entry_is_not_decided() {
    let named = |name: String| PortConfig { name, ..port(HOST, 80, 0) };
    let large = publishing("large", &[named("x".repeat(600 * 1024))]);
    let mut sim = cluster(&[large, publishing("web", &[port(INGRESS, 80, 0)])]);
    assert_eq!((state(&sim, "large-task"), state(&sim, "web-task")), (TaskState::New, TaskState::Pending));
    let text = err(&sim, "large-task");
    assert!(text.contains("the service would have 1843") && text.contains("bytes"), "{text}");
    let decisions = sim.decisions;
    sim.advance(Duration::from_secs(1));
    assert_eq!(sim.decisions, decisions);
}

/// Whether a service that was given these ports for `before` is given others for `after`.
#[track_caller]
fn changes(before: Option<(&[PortConfig], &[PortConfig])>, after: Option<&[PortConfig]>, expected: bool) {
    let mut web = publishing("web", after.unwrap_or_default());
    if after.is_none() {
        web.spec.endpoint = None;
    }
    web.endpoint = before.map(|(asked, ports)| {
        let spec = Some(EndpointSpec { ports: asked.to_vec(), ..Default::default() });
        Endpoint { spec, ports: ports.to_vec(), ..Default::default() }.into()
    });
    let mut sim = Sim::new(|tx| drop(tx.create(web.clone()).unwrap()));
    let index = sim.view().index();
    lead(&mut sim);
    assert_eq!(sim.view().index() > index, expected);
    let view = sim.view();
    let endpoint = view.services().get("web").unwrap().endpoint.clone();
    assert_eq!(endpoint.as_ref().and_then(|e| e.spec.clone()), web.spec.endpoint);
    lead(&mut sim);
    assert_eq!(sim.view().services().get("web").unwrap().endpoint, endpoint, "and then it stays");
}

/// Scenario 37.
#[test]
fn host_ports_are_refreshed_when_they_differ() {
    let fixed = |number| [port(HOST, 80, number)];
    let none: [PortConfig; 0] = [];
    let same = |ports: &[PortConfig], expected| changes(Some((ports, ports)), Some(ports), expected);
    same(&none, false);
    same(&[port(INGRESS, 80, 8080)], false);
    same(&fixed(8080), false);
    same(&fixed(0), false);
    changes(Some((&[port(INGRESS, 80, 8080)], &[port(INGRESS, 80, 8080)])), Some(&fixed(8080)), true);
    changes(Some((&fixed(0), &fixed(0))), Some(&fixed(8080)), true);
    changes(Some((&fixed(8080), &fixed(8080))), Some(&fixed(9090)), true);
}

/// Scenario 38.
#[test]
fn a_service_is_allocated_again_exactly_when_its_ports_are_not_those_of_its_spec() {
    let (fixed, dynamic) = ([port(INGRESS, 80, 8080)], [port(INGRESS, 80, 0)]);
    changes(None, None, false);
    changes(None, Some(&fixed), true);
    changes(Some((&fixed, &fixed)), None, true);
    changes(Some((&fixed, &fixed)), Some(&[fixed[0].clone(), port(INGRESS, 81, 8081)]), true);
    changes(Some((&fixed, &fixed)), Some(&[port(INGRESS, 81, 8080)]), true);
    changes(Some((&fixed, &fixed)), Some(&[port(INGRESS, 80, 8081)]), true);
    changes(Some((&dynamic, &dynamic)), Some(&dynamic), true);
    changes(Some((&dynamic, &[port(INGRESS, 80, 30_007)])), Some(&dynamic), false);
    let asked = [port(INGRESS, 80, 0), port(INGRESS, 81, 8081)];
    let in_order = [port(INGRESS, 80, 30_007), port(INGRESS, 81, 8081)];
    changes(Some((&asked, &in_order)), Some(&asked), false);
    changes(Some((&asked, &[in_order[1].clone(), in_order[0].clone()])), Some(&asked), false);
    changes(Some((&[port(HOST, 80, 0)], &[port(HOST, 80, 0)])), Some(&[port(HOST, 81, 0)]), true);
}
