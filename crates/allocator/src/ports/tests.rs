//! Numbers, without a cluster around them.

use swarm_api::v1::EndpointSpec;

use super::*;

fn port(target: u32, published: u32) -> PortConfig {
    PortConfig { target_port: target, published_port: published, ..Default::default() }
}

fn service(id: &str, ports: &[PortConfig]) -> Service {
    let mut service = Service { id: id.into(), ..Default::default() };
    service.spec.endpoint = Some(EndpointSpec { ports: ports.to_vec(), ..Default::default() });
    service
}

/// What a service gets that asks for these ports and has those.
fn allocate(
    ports: &mut Ports,
    id: &str,
    asked: &[PortConfig],
    present: &[PortConfig],
) -> Result<Vec<PortConfig>, PortError> {
    let mut service = service(id, asked);
    service.endpoint = Some(Endpoint { ports: present.to_vec(), ..Default::default() }.into());
    ports.allocate(&service, &|_, _| false)
}

fn numbers(ports: &[PortConfig]) -> Vec<u32> {
    ports.iter().map(|p| p.published_port).collect()
}

#[test]
fn ports_without_a_number_get_one_from_the_dynamic_range() {
    let mut ports = Ports::default();
    let udp = PortConfig { protocol: Protocol::Udp as i32, ..port(8001, 8001) };
    let asked = [port(1, 0), port(8001, 8001), udp, port(2, 0)];
    assert_eq!(numbers(&allocate(&mut ports, "s", &asked, &[]).unwrap()), [8001, 8001, 30_000, 30_001]);
}

#[test]
fn a_number_given_once_stays_through_updates() {
    let mut ports = Ports::default();
    let first = allocate(&mut ports, "s", &[port(1, 0), port(2, 0)], &[]).unwrap();
    let swapped = allocate(&mut ports, "s", &[port(2, 0), port(1, 0)], &first).unwrap();
    assert_eq!(numbers(&swapped), [30_001, 30_000]);
    let more = allocate(&mut ports, "s", &[port(3, 0), port(2, 0)], &swapped).unwrap();
    assert_eq!(numbers(&more), [30_002, 30_001]);
}

#[test]
fn a_fixed_and_a_dynamic_port_of_one_target_keep_theirs() {
    let mut ports = Ports::default();
    let asked = [port(1, 0), port(1, 80)];
    let first = allocate(&mut ports, "s", &asked, &[]).unwrap();
    assert_eq!(numbers(&first), [80, 30_000]);
    assert_eq!(allocate(&mut ports, "s", &asked, &first).unwrap(), first);
}

#[test]
fn a_taken_number_is_refused_until_it_is_given_back() {
    let mut ports = Ports::default();
    let asked = [port(1, 80)];
    allocate(&mut ports, "a", &asked, &[]).unwrap();
    let refused = allocate(&mut ports, "b", &asked, &[]).unwrap_err();
    assert_eq!(refused.to_string(), "port 80/tcp is already in use by service a");
    ports.release("a");
    assert!(ports.take_freed() && !ports.take_freed());
    assert_eq!(numbers(&allocate(&mut ports, "b", &asked, &[]).unwrap()), [80]);
}

#[test]
fn a_refusal_leaves_the_numbers_as_they_were() {
    let mut ports = Ports::default();
    allocate(&mut ports, "a", &[port(1, 80)], &[]).unwrap();
    allocate(&mut ports, "b", &[port(1, 81)], &[]).unwrap();
    allocate(&mut ports, "b", &[port(1, 82), port(2, 80)], &[]).unwrap_err();
    allocate(&mut ports, "c", &[port(1, 81)], &[]).unwrap_err();
    allocate(&mut ports, "c", &[port(1, 82)], &[]).unwrap();
}

#[test]
fn one_number_twice_in_a_service_is_refused() {
    let refused = allocate(&mut Ports::default(), "a", &[port(1, 80), port(2, 80)], &[]).unwrap_err();
    assert_eq!(refused, PortError::Twice { port: 80, protocol: "tcp" });
}

#[test]
fn a_chosen_number_of_the_dynamic_range_is_not_given_to_others() {
    let mut ports = Ports::default();
    allocate(&mut ports, "a", &[port(1, 30_000)], &[]).unwrap();
    assert_eq!(numbers(&allocate(&mut ports, "b", &[port(1, 0)], &[]).unwrap()), [30_001]);
}

#[test]
fn a_number_given_back_is_not_reused_at_once() {
    let mut ports = Ports::default();
    allocate(&mut ports, "a", &[port(1, 0)], &[]).unwrap();
    ports.release("a");
    assert_eq!(numbers(&allocate(&mut ports, "b", &[port(1, 0)], &[]).unwrap()), [30_001]);
}

#[test]
fn the_dynamic_range_has_an_end() {
    let mut ports = Ports::default();
    let many: Vec<PortConfig> = DYNAMIC.map(|n| port(n, 0)).collect();
    allocate(&mut ports, "a", &many, &[]).unwrap();
    assert_eq!(allocate(&mut ports, "b", &[port(1, 0)], &[]), Err(PortError::Exhausted));
    ports.release("a");
    allocate(&mut ports, "b", &[port(1, 0)], &[]).unwrap();
}

#[test]
fn host_ports_are_left_as_they_are() {
    let mut ports = Ports::default();
    let host = PortConfig { publish_mode: PublishMode::Host as i32, ..port(1, 80) };
    allocate(&mut ports, "a", &[port(1, 80)], &[]).unwrap();
    assert_eq!(allocate(&mut ports, "b", std::slice::from_ref(&host), &[]).unwrap(), [host]);
}

#[test]
fn what_is_the_same_in_another_order_frees_nothing() {
    let mut ports = Ports::default();
    let first = allocate(&mut ports, "a", &[port(1, 80), port(2, 0)], &[]).unwrap();
    allocate(&mut ports, "a", &[port(2, 0), port(1, 80)], &first).unwrap();
    assert!(!ports.take_freed());
    allocate(&mut ports, "a", &[port(2, 0)], &first).unwrap();
    assert!(ports.take_freed());
}

#[test]
fn the_search_begins_behind_the_highest_number_that_an_earlier_leader_gave() {
    let restored = |number| {
        let mut ports = Ports::default();
        ports.restore("a", &Endpoint { ports: vec![port(1, number)], ..Default::default() });
        numbers(&allocate(&mut ports, "b", &[port(1, 0)], &[]).unwrap())
    };
    assert_eq!(restored(30_017), [30_018]);
    assert_eq!(restored(32_767), [30_000]);
    assert_eq!(restored(8080), [30_000]);
}

#[test]
fn a_service_that_has_the_last_number_may_use_it_for_another_port() {
    let mut ports = Ports::default();
    let mut many: Vec<PortConfig> = DYNAMIC.map(|n| port(n, 0)).collect();
    let given = allocate(&mut ports, "a", &many, &[]).unwrap();
    many.push(port(1, 0));
    many.remove(17);
    let changed = allocate(&mut ports, "a", &many, &given).unwrap();
    assert_eq!(changed.last().map(|port| port.published_port), Some(30_017));
}

/// Of each protocol there are so many; who asks for more is told so, and keeps nobody waiting meanwhile.
#[test]
fn more_ports_without_a_number_than_there_are_numbers_are_refused_as_a_whole() {
    let mut ports = Ports::default();
    let asked: Vec<PortConfig> = (1..=2_769).map(|target| port(target, 0)).collect();
    assert_eq!(allocate(&mut ports, "s", &asked, &[]).unwrap_err(), PortError::Exhausted);
    // None of them was kept.
    assert_eq!(allocate(&mut ports, "s", &asked[..2_768], &[]).unwrap().len(), 2_768);
}
