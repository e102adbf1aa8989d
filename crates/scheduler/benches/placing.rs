//! How long it takes from the commit of nodes and tasks to the moment at which a watcher has seen every task assigned:
//! `cargo bench -p swarm-scheduler --bench placing -- [ROW]... [--runs N] [--shuffled]`. Without rows all are run; `list` names them.
//!
//! A brain with a scheduler runs on a thread of its own, on a store without a log; transactions are included. A row
//! that is to tell memory should run alone.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures::executor::block_on;
use swarm_api::v1::{
    Driver, Endpoint, EngineDescription, Network, NetworkAttachment, Node, NodeDescription, Placement,
    PlacementPreference, PluginDescription, PortConfig, ResourceRequirements, Resources, Service, SpreadOver,
    Task, TaskSpec, TaskState, Version, node_spec, node_status, placement_preference,
    port_config::PublishMode,
};
use swarm_api::{Shared, Text, text};
use swarm_reconcile::{Brain, Ctx, Discard, Fate, Now, SequentialIds};
use swarm_scheduler::Scheduler;
use swarm_store::{Error, Event, Received, Store, Subscription, Tx};

/// The daemon's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Ids as they are: random, of 25 characters, and the same in every run.
fn id(kind: u64, n: u64) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut text = String::with_capacity(25);
    let mut state = (kind << 56 | n).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..25 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push(char::from(DIGITS[(state >> 32) as usize % 36]));
    }
    text
}

const NODE: u64 = 1;
const SERVICE: u64 = 2;
const TASK: u64 = 3;

fn node(n: u64) -> Node {
    let mut node = Node { id: id(NODE, n), ..Default::default() };
    node.status.state = node_status::State::Ready as i32;
    node.spec.availability = node_spec::Availability::Active as i32;
    let resources = Resources { nano_cpus: 64_000_000_000, memory_bytes: 256 << 30, generic: vec![] };
    let mut engine = EngineDescription::default();
    if n.is_multiple_of(3) {
        engine.plugins.push(PluginDescription { r#type: "Network".to_owned(), name: "special".to_owned() });
    }
    node.description = Some(NodeDescription {
        hostname: format!("host-{n}"),
        resources: Some(resources),
        engine: Some(engine),
        ..Default::default()
    });
    let labels = &mut node.spec.annotations.labels;
    labels.insert("zone".to_owned(), (n % 5).to_string());
    labels.insert("rack".to_owned(), (n / 5 % 8).to_string());
    labels.insert("without".to_owned(), (n % 1009).to_string());
    node
}

fn service(n: u64, spec: &Shared<TaskSpec>) -> Service {
    let mut service =
        Service { id: id(SERVICE, n), spec_version: Some(Version { index: 1 }), ..Default::default() };
    service.spec.annotations.name = format!("service-{n}");
    service.spec.task = spec.clone();
    service
}

fn task(n: u64) -> Task {
    let mut task =
        Task { id: id(TASK, n).into(), desired_state: TaskState::Running as i32, ..Default::default() };
    task.status.state = TaskState::Pending as i32;
    task.status.message = text!("pending task scheduling");
    task
}

fn of_service(mut task: Task, service: &Service, id: &Text, slot: u64) -> Task {
    task.service_id = id.clone();
    task.service_annotations = service.spec.annotations.clone();
    task.spec = service.spec.task.clone();
    task.spec_version = service.spec_version;
    task.slot = slot;
    task
}

fn plain_services(tx: &mut Tx, count: u64) -> Vec<Shared<Service>> {
    (0..count).map(|n| tx.create(service(n, &TaskSpec::default().into())).unwrap()).collect()
}

/// Ids of a service's tasks, by slot: as the orchestrator gives them, in ascending order, unless they are to be `--shuffled`.
fn ids_of_service(service: u64, tasks: u64) -> Vec<String> {
    let mut ids: Vec<String> = (1..=tasks).map(|slot| id(TASK, service << 32 | slot)).collect();
    if !SHUFFLED.load(Ordering::Relaxed) {
        ids.sort_unstable();
    }
    ids
}

/// Ids of a service's tasks are in no order.
static SHUFFLED: AtomicBool = AtomicBool::new(false);

/// Tasks of services with a spec version.
fn grouped(tx: &mut Tx, tasks: u64, services: u64) {
    for (service, n) in plain_services(tx, services).iter().zip(0..) {
        let service_id = Text::from(&service.id);
        for (id, slot) in ids_of_service(n, tasks / services).into_iter().zip(1..) {
            tx.create(of_service(Task { id: id.into(), ..task(0) }, service, &service_id, slot)).unwrap();
        }
    }
}

/// Tasks each by itself, with its own copy of a spec.
fn one_off(tx: &mut Tx, tasks: u64, network: Option<&Shared<Network>>) {
    for n in 0..tasks {
        let mut task = task(n);
        task.spec = TaskSpec { force_update: 1, ..Default::default() }.into();
        task.networks.extend(
            network.map(|network| NetworkAttachment { network: Some(network.clone()), ..Default::default() }),
        );
        tx.create(task).unwrap();
    }
}

fn special_network() -> Shared<Network> {
    let driver = Driver { name: "special".to_owned(), ..Default::default() };
    Network { id: "network".to_owned(), driver_state: Some(driver), ..Default::default() }.into()
}

/// Services with everything: spread over zones and racks, a constraint, reservations, a port of the node.
fn everything(tx: &mut Tx, tasks: u64, services: u64, signatures: u64) {
    for n in 0..services {
        let over = |label: &str| {
            let over = SpreadOver { spread_descriptor: format!("node.labels.{label}") };
            PlacementPreference { preference: Some(placement_preference::Preference::Spread(over)) }
        };
        let placement = Placement {
            constraints: vec![format!("node.labels.without != {}", n % signatures)],
            preferences: vec![over("zone"), over("rack")],
            ..Default::default()
        };
        let reservations =
            Some(Resources { nano_cpus: 100_000_000, memory_bytes: 64 << 20, ..Default::default() });
        let spec = TaskSpec {
            placement: Some(placement),
            resources: Some(ResourceRequirements { reservations, ..Default::default() }),
            ..Default::default()
        };
        let port = PortConfig {
            target_port: 80,
            published_port: 10_000 + n as u32,
            publish_mode: PublishMode::Host as i32,
            ..Default::default()
        };
        let endpoint: Shared<Endpoint> = Endpoint { ports: vec![port], ..Default::default() }.into();
        let service = tx.create(service(n, &spec.into())).unwrap();
        let service_id = Text::from(&service.id);
        for (id, slot) in ids_of_service(n, tasks / services).into_iter().zip(1..) {
            let mut task = of_service(Task { id: id.into(), ..task(0) }, &service, &service_id, slot);
            task.endpoint = Some(endpoint.clone());
            tx.create(task).unwrap();
        }
    }
}

/// CPU time that leaders took, in microseconds.
static CPU: AtomicU64 = AtomicU64::new(0);

/// CPU time of this thread (Linux).
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// A leader's mind on a thread of its own.
struct Leader {
    store: Arc<Store>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Leader {
    fn new(store: Arc<Store>) -> Leader {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("leader".to_owned()).spawn({
            let (store, stop) = (store.clone(), stop.clone());
            move || {
                lead(&store, &stop, &ready);
                CPU.fetch_add(cpu().as_micros() as u64, Ordering::Relaxed);
            }
        });
        let thread = thread.unwrap();
        started.recv().unwrap();
        Leader { store, stop, thread: Some(thread) }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.store.close();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn lead(store: &Store, stop: &AtomicBool, ready: &std::sync::mpsc::Sender<()>) {
    let begin = Instant::now();
    let mut ids = SequentialIds::default();
    let (view, mut commits) = store.view_and_subscribe();
    let mut brain = Brain::new(vec![Box::new(Scheduler::new())]);
    let now = || Now { mono: begin.elapsed(), wall: SystemTime::now() };
    brain.start(&mut Ctx { now: now(), ids: &mut ids }, view);
    let (mut discard, mut wait) = (Discard::new(), false);
    ready.send(()).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let mut received = if wait { Some(block_on(commits.next())) } else { commits.try_next() };
        while let Some(event) = received {
            match event {
                Received::Commit(commit) => {
                    brain.committed(&commit.events, &commit.view);
                    discard.seen(commit);
                }
                Received::Lagged(view) => brain.lagged(&view),
                Received::Closed => return,
            }
            received = commits.try_next();
        }
        let batches = brain.turn(&mut Ctx { now: now(), ids: &mut ids });
        wait = batches.is_empty();
        for batch in batches {
            let written = block_on(store.update::<_, Error, _>(|tx| batch.apply(tx)));
            let fate = match written {
                Ok((results, committed)) => Fate::Written(committed.index, results),
                Err(error) => Fate::Failed(error),
            };
            brain.settle(batch.id, fate);
        }
    }
}

/// Waits until so many tasks were seen assigned.
fn watch(commits: &mut Subscription, tasks: u64) {
    let mut seen = 0;
    while seen < tasks {
        let Received::Commit(commit) = block_on(commits.next()) else { panic!("the watcher lagged") };
        seen += commit.events.iter().filter(|event| is_assignment(event)).count() as u64;
    }
}

fn is_assignment(event: &Event) -> bool {
    match event {
        Event::Updated { new: swarm_api::Object::Task(task), .. } => {
            task.status.state == TaskState::Assigned as i32
        }
        _ => false,
    }
}

/// From the commit of a transaction to the last assignment.
fn at_once(nodes: u64, tasks: u64, fill: &(dyn Fn(&mut Tx) + Sync)) -> Duration {
    let store = Store::local();
    let (_, mut commits) = store.view_and_subscribe();
    let leader = Leader::new(store.clone());
    let committed = block_on(store.update::<_, Error, _>(|tx| {
        for n in 0..nodes {
            tx.create(node(n))?;
        }
        fill(tx);
        Ok(Instant::now())
    }));
    let (begin, _) = committed.unwrap();
    watch(&mut commits, tasks);
    let took = begin.elapsed();
    assert_eq!(store.view().tasks().by_observed_state(TaskState::Assigned).count() as u64, tasks);
    drop(leader);
    took
}

/// One task after the other, each when the one before is assigned.
fn one_at_a_time(nodes: u64, tasks: u64, services: u64, singles: u64) -> Duration {
    let store = Store::local();
    block_on(store.update::<_, Error, _>(|tx| {
        let ids: Vec<Text> = (0..nodes).map(|n| id(NODE, n).into()).collect();
        for n in 0..nodes {
            tx.create(node(n))?;
        }
        let all = plain_services(tx, services);
        let texts: Vec<Text> = all.iter().map(|service| Text::from(&service.id)).collect();
        for n in 0..tasks {
            let of = (n % services) as usize;
            let mut task = of_service(task(n), &all[of], &texts[of], n / services + 1);
            task.node_id = ids[(n % nodes) as usize].clone();
            task.status.state = TaskState::Running as i32;
            tx.create(task)?;
        }
        Ok(())
    }))
    .unwrap();
    let leader = Leader::new(store.clone());
    let (_, mut commits) = store.view_and_subscribe();
    let mut took = Vec::new();
    for n in 0..singles {
        let service = store.view().services().get(&id(SERVICE, n % services)).unwrap().clone();
        let task = of_service(task(tasks + n), &service, &Text::from(&service.id), tasks + n);
        let committed = block_on(store.update::<_, Error, _>(|tx| {
            tx.create(task.clone())?;
            Ok(Instant::now())
        }));
        let (begin, _) = committed.unwrap();
        watch(&mut commits, 1);
        took.push(begin.elapsed());
    }
    took.sort_unstable();
    println!(
        "    each: least {:?}, median {:?}, 99 of 100 within {:?}, most {:?}",
        took[0],
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        took[took.len() - 1]
    );
    drop(leader);
    took[took.len() / 2]
}

/// What does not fit anywhere costs little, and does not hold up what does.
fn beside_the_impossible(tx: &mut Tx, tasks: u64) {
    let placement =
        Placement { constraints: vec!["node.labels.zone==nowhere".to_owned()], ..Default::default() };
    for n in 0..1_000 {
        let spec = TaskSpec { placement: Some(placement.clone()), ..Default::default() };
        let service = tx.create(service(1 << 20 | n, &spec.into())).unwrap();
        tx.create(of_service(task(1 << 40 | n), &service, &Text::from(&service.id), 1)).unwrap();
    }
    grouped(tx, tasks, 1);
}

type Run = Box<dyn Fn() -> Duration>;

fn row(nodes: u64, tasks: u64, fill: impl Fn(&mut Tx) + Sync + 'static) -> Run {
    Box::new(move || at_once(nodes, tasks, &fill))
}

fn rows() -> Vec<(&'static str, &'static str, Run)> {
    let constrained = |nodes, tasks| {
        let network = special_network();
        row(nodes, tasks, move |tx| one_off(tx, tasks, Some(&network)))
    };
    let grouped = |nodes, tasks, services| row(nodes, tasks, move |tx| grouped(tx, tasks, services));
    let one_off = |nodes, tasks| row(nodes, tasks, move |tx| one_off(tx, tasks, None));
    let everything = |signatures| row(10_000, 100_000, move |tx| everything(tx, 100_000, 1_000, signatures));
    vec![
        ("small", "1,000 x 10,000, 1 service", grouped(1_000, 10_000, 1)),
        ("services", "1,000 x 100,000, 100 services", grouped(1_000, 100_000, 100)),
        ("wide", "100,000 x 100,000, 1 service", grouped(100_000, 100_000, 1)),
        ("million", "100,000 x 1,000,000, 100 services", grouped(100_000, 1_000_000, 100)),
        ("one-off", "1,000 x 10,000, one-off", one_off(1_000, 10_000)),
        ("constrained", "1,000 x 10,000, one-off, constrained", constrained(1_000, 10_000)),
        ("constrained-large", "5,000 x 100,000, one-off, constrained", constrained(5_000, 100_000)),
        ("one-off-wide", "100,000 x 1,000, one-off", one_off(100_000, 1_000)),
        ("everything-10", "10,000 x 100,000, 1,000 services, 10 signatures", everything(10)),
        ("everything-1000", "10,000 x 100,000, 1,000 services, 1,000 signatures", everything(1_000)),
        (
            "singles",
            "one at a time, 100,000 nodes, 1,000,000 tasks",
            Box::new(|| one_at_a_time(100_000, 1_000_000, 100, 1_000)),
        ),
        (
            "impossible",
            "1,000 x 10,000, beside 1,000 services that fit nowhere",
            row(1_000, 10_000, |tx| beside_the_impossible(tx, 10_000)),
        ),
    ]
}

/// Resident memory now and at most, in MiB.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    (of("VmRSS:"), of("VmHWM:"))
}

fn main() {
    let mut runs = None;
    let mut wanted = Vec::new();
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--shuffled" => SHUFFLED.store(true, Ordering::Relaxed),
            "--runs" => runs = Some(args.next().unwrap().parse::<usize>().unwrap()),
            _ => wanted.push(arg),
        }
    }
    for (name, what, run) in rows() {
        if wanted.iter().any(|w| w == "list") {
            println!("{name:<18} {what}");
            continue;
        }
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        let runs = runs.unwrap_or(if matches!(name, "million" | "singles") { 1 } else { 7 });
        let mut took: Vec<Duration> = (0..runs).map(|_| run()).collect();
        took.sort_unstable();
        let (now, most) = memory();
        let cpu = Duration::from_micros(CPU.swap(0, Ordering::Relaxed) / runs as u64);
        println!(
            "{what:<52} median {:>9.2?} ({:.2?} to {:.2?}); leader's CPU {cpu:.2?}; memory {now}, at most {most} MiB",
            took[runs / 2],
            took[0],
            took[runs - 1]
        );
    }
}
