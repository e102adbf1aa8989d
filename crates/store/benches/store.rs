//! Speed of the store without a log, and its memory. `docs/benchmarks.md` has the figures.
//!
//! `cargo bench -p swarm-store --bench store`; with `STORE_TASKS` set to a number for another size of the
//! large table.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, criterion_group};
use futures::executor::block_on;
use swarm_api::v1::{ContainerSpec, Node, NodeRole, Service, Task, TaskSpec, TaskState, task_spec};
use swarm_api::{Shared, id};
use swarm_store::{Error, Store, Tables, Tx, View, diff};

fn update<R: Send>(store: &Store, f: impl FnMut(&mut Tx) -> Result<R, Error> + Send) -> R {
    block_on(store.update(f)).unwrap().0
}

fn nodes(count: usize) -> (Arc<Store>, Vec<String>) {
    let store = Store::local();
    let ids: Vec<String> = (0..count).map(|_| id::random()).collect();
    update(&store, |tx| {
        for (n, id) in ids.iter().enumerate() {
            let mut node = Node { id: id.clone(), ..Default::default() };
            node.spec.annotations.name = format!("node-{n}");
            node.description.get_or_insert_default().hostname = format!("node-{n}");
            tx.create(node)?;
        }
        Ok(())
    });
    (store, ids)
}

fn ten_thousand_nodes(c: &mut Criterion) {
    let (store, ids) = nodes(10_000);
    let mut group = c.benchmark_group("10k nodes");
    let mut at = 0;
    let mut next = move || {
        at = (at + 7919) % 10_000;
        at
    };
    let view = store.view();
    group.bench_function("get by id", |b| b.iter(|| black_box(view.get::<Node>(&ids[next()])).is_some()));
    group.bench_function("view and get by id", |b| {
        b.iter(|| black_box(store.view().get::<Node>(&ids[next()])).is_some());
    });
    group.bench_function("by name", |b| {
        b.iter_batched(
            || format!("node-{}", next()),
            |name| black_box(view.nodes().by_name(&name).count()),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("update in its own transaction", |b| {
        b.iter(|| {
            let id = &ids[next()];
            update(&store, |tx| {
                let mut node = tx.get::<Node>(id).cloned().ok_or(Error::NotExist)?;
                node.spec.annotations.name.push('x');
                node.spec.annotations.name.truncate(20);
                tx.update(node).map(drop)
            });
        });
    });
    group.bench_function("update of an indexed key in its own transaction", |b| {
        b.iter(|| {
            let id = &ids[next()];
            update(&store, |tx| {
                let mut node = tx.get::<Node>(id).cloned().ok_or(Error::NotExist)?;
                let manager = node.role() == NodeRole::Manager;
                node.set_role(if manager { NodeRole::Worker } else { NodeRole::Manager });
                tx.update(node).map(drop)
            });
        });
    });
    group.bench_function("create and remove, each in its own transaction", |b| {
        b.iter_batched(
            id::random,
            |id| {
                let mut node = Node { id: id.clone(), ..Default::default() };
                node.description.get_or_insert_default().hostname = "another".to_owned();
                update(&store, |tx| tx.create(node.clone()).map(drop));
                update(&store, |tx| tx.remove::<Node>(&id).map(drop));
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("update of 1000 nodes in one transaction", |b| {
        b.iter(|| {
            update(&store, |tx| {
                for _ in 0..1000 {
                    let mut node = tx.get::<Node>(&ids[next()]).cloned().ok_or(Error::NotExist)?;
                    node.spec.annotations.name.push('x');
                    node.spec.annotations.name.truncate(20);
                    tx.update(node)?;
                }
                Ok(())
            });
        });
    });
    group.finish();
}

fn service(n: usize) -> Service {
    let mut service = Service { id: id::random(), ..Default::default() };
    service.spec.annotations.name = format!("service-{n}");
    service.spec.task = Shared::new(TaskSpec {
        runtime: Some(task_spec::Runtime::Container(ContainerSpec {
            image: "registry.example.org/team/web:1.2.3".to_owned(),
            env: (0..10).map(|n| format!("SOME_VARIABLE_{n}=some value that is not short")).collect(),
            ..Default::default()
        })),
        ..Default::default()
    });
    service
}

/// Tasks of services with a hundred replicas each, on a thousand nodes.
fn tasks(count: usize) -> Tables {
    let nodes: Vec<String> = (0..1000).map(|_| id::random()).collect();
    let mut snapshot = swarm_api::v1::StoreSnapshot::default();
    for n in 0..count.div_ceil(100) {
        let service = service(n);
        for slot in 1..=100 {
            let mut task = Task {
                id: id::random().into(),
                service_id: service.id.as_str().into(),
                slot,
                node_id: nodes[(n * 100 + slot as usize) % nodes.len()].as_str().into(),
                spec: service.spec.task.clone(),
                service_annotations: service.spec.annotations.clone(),
                ..Default::default()
            };
            task.set_desired_state(TaskState::Running);
            task.status.set_state(TaskState::Running);
            task.status.message = "started".into();
            task.meta.version.index = 5;
            snapshot.tasks.push(task.into());
        }
        snapshot.services.push(service.into());
    }
    Tables::from_snapshot(snapshot).unwrap()
}

fn count() -> usize {
    std::env::var("STORE_TASKS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000)
}

/// Resident memory in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn set_status(tx: &mut Tx, id: &str) -> Result<(), Error> {
    let mut task = tx.get::<Task>(id).cloned().ok_or(Error::NotExist)?;
    let running = task.status.state() == TaskState::Running;
    task.status.set_state(if running { TaskState::Starting } else { TaskState::Running });
    tx.update(task).map(drop)
}

fn million_tasks(c: &mut Criterion) {
    let count = count();
    let before = resident();
    let started = Instant::now();
    let tables = tasks(count);
    println!(
        "{count} tasks: made in {:.1?}, {} bytes of memory each ({} of them Task itself)",
        started.elapsed(),
        (resident() - before) / count as u64,
        size_of::<Task>(),
    );
    let ids: Vec<String> = tables.tasks().iter().map(|t| t.id.to_string()).collect();
    let store = Store::local();
    let started = Instant::now();
    swarm_store::StateMachine::restore(&*store, 10, tables.to_snapshot()).unwrap();
    println!("restore: {:.2?}", started.elapsed());
    drop(tables);

    let mut at = 0;
    let mut next = move || {
        at = (at + 7_919_993) % count;
        at
    };
    let mut group = c.benchmark_group(format!("{count} tasks"));
    group.sample_size(20);
    let view = store.view();
    group.bench_function("get by id", |b| b.iter(|| black_box(view.get::<Task>(&ids[next()])).is_some()));
    group.bench_function("view", |b| b.iter(|| black_box(store.view()).index()));
    group.bench_function("the hundred tasks of a service", |b| {
        let services: Vec<String> = view.services().iter().map(|s| s.id.clone()).collect();
        b.iter(|| black_box(view.tasks().by_service(&services[next() % services.len()]).count()));
    });
    group.bench_function("the tasks of a slot", |b| {
        let services: Vec<String> = view.services().iter().map(|s| s.id.clone()).collect();
        b.iter(|| black_box(view.tasks().by_slot(&services[next() % services.len()], 50).count()));
    });
    group.bench_function("all, in order", |b| {
        b.iter(|| view.tasks().iter().fold(0, |sum, task| sum + task.slot));
    });
    drop(view);
    group.bench_function("status update in its own transaction", |b| {
        b.iter(|| update(&store, |tx| set_status(tx, &ids[next()])));
    });
    group.bench_function("10000 status updates in one transaction", |b| {
        b.iter(|| update(&store, |tx| (0..10_000).try_for_each(|_| set_status(tx, &ids[next()]))));
    });
    let old = store.view();
    for _ in 0..100 {
        update(&store, |tx| set_status(tx, &ids[next()]));
    }
    let new = store.view();
    group.bench_function("difference by 100 updates", |b| b.iter(|| black_box(diff(&old, &new)).len()));
    drop((old, new));
    group.finish();

    for readers in [0, 1] {
        let (per_update, views, scans) = write_beside_readers(&store, &ids, readers);
        println!(
            "{readers} readers: {per_update:.2?} per status update, {:.0} ns per view, {scans} whole scans",
            views
        );
    }
    let started = Instant::now();
    let snapshot = store.view().to_snapshot();
    let bytes = prost::Message::encode_to_vec(&snapshot);
    println!("snapshot: {} bytes, prost encodes it in {:.2?}", bytes.len(), started.elapsed());
}

/// Time per update, nanoseconds per view, and whole scans, in two seconds of writing.
fn write_beside_readers(store: &Store, ids: &[String], readers: usize) -> (Duration, f64, u64) {
    let stop = AtomicBool::new(false);
    let (views, nanoseconds, scans) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let mut updates = 0;
    let mut elapsed = Duration::ZERO;
    std::thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    let view: View = store.view();
                    nanoseconds.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
                    views.fetch_add(1, Ordering::Relaxed);
                    black_box(view.tasks().iter().fold(0, |sum, task| sum + task.slot));
                    scans.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(2) {
            update(store, |tx| set_status(tx, &ids[(updates * 7_919_993) % ids.len()]));
            updates += 1;
        }
        elapsed = started.elapsed();
        stop.store(true, Ordering::Relaxed);
    });
    let views = views.into_inner().max(1);
    (elapsed / updates as u32, nanoseconds.into_inner() as f64 / views as f64, scans.into_inner())
}

criterion_group!(benches, ten_thousand_nodes, million_tasks);

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
}
