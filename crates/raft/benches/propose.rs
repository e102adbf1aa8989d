//! Writes through the whole node: store, raft, sled, two syncs per turn. One writer, and 64 of them.
//!
//! `SWARM_BENCH_DIR` says on which disk; the default is the build directory's. Beside criterion's time per write, it says how many writes shared a sync.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use swarm_api::v1::{Annotations, Config as ConfigObject, ConfigSpec};
use swarm_pki::{Dek, Sealer};
use swarm_raft::{Config, RaftHandle, RaftNode, Role};
use swarm_store::{Error, Store};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

static NAMES: AtomicU64 = AtomicU64::new(0);

async fn write(store: &Store) {
    let name = format!("config-{}", NAMES.fetch_add(1, Ordering::Relaxed));
    let spec = ConfigSpec {
        annotations: Annotations { name: name.clone(), ..Annotations::default() }.into(),
        data: vec![b'x'; 400],
        ..ConfigSpec::default()
    };
    let object = ConfigObject { id: name, spec, ..ConfigObject::default() };
    let result = store.update::<_, Error, _>(move |tx| tx.create(object.clone()).map(|_| ())).await;
    result.expect("the store takes writes");
}

/// Time for `writes` writes by so many writers, each waiting for its own before the next.
async fn run(store: &Arc<Store>, writers: u64, writes: u64) -> Duration {
    let mut tasks = JoinSet::new();
    let left = Arc::new(AtomicU64::new(writes));
    let begun = Instant::now();
    for _ in 0..writers.min(writes) {
        let (store, left) = (store.clone(), left.clone());
        tasks.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                write(&store).await;
            }
        });
    }
    tasks.join_all().await;
    begun.elapsed()
}

fn start(runtime: &Runtime, dir: &std::path::Path) -> (Arc<Store>, RaftHandle) {
    let sealer = Arc::new(Sealer::new(&Dek::generate()));
    let config = Config::new("node", "127.0.0.1:4242", dir, sealer);
    let node = RaftNode::open(config).expect("a new log can be opened");
    let store = Store::new();
    store.attach(node.proposer());
    let raft = node.start(store.clone()).expect("a thread can be started");
    runtime.block_on(raft.wait_for(|s| s.role == Role::Leader)).expect("it leads");
    (store, raft)
}

fn propose(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime can be built");
    let mut group = criterion.benchmark_group("propose");
    group.throughput(Throughput::Elements(1)).sample_size(10).measurement_time(Duration::from_secs(5));
    for writers in [1, 8, 64] {
        let dir = tempfile::tempdir_in(
            std::env::var_os("SWARM_BENCH_DIR").unwrap_or(env!("CARGO_TARGET_TMPDIR").into()),
        )
        .expect("a directory can be made");
        let (store, raft) = start(&runtime, dir.path());
        let before = raft.counts();
        group.bench_function(format!("{writers} writers"), |bencher| {
            bencher.iter_custom(|writes| runtime.block_on(run(&store, writers, writes)));
        });
        let after = raft.counts();
        let (writes, syncs) = (after.proposals - before.proposals, after.syncs - before.syncs);
        println!("    {:.1} writes per sync ({writes} in {syncs})", writes as f64 / syncs as f64);
        store.close();
        runtime.block_on(raft.stop());
    }
    group.finish();
}

criterion_group!(benches, propose);
criterion_main!(benches);
