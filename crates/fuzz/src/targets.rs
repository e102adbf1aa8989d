//! What is fuzzed.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::Message as _;
use swarm_api::extensions::{ContainerExtensions, DEPENDS_ON, INIT_TASKS, PRE_STOP, StartOrder, Steps};
use swarm_api::v1::{
    Config, ConfigSpec, LogMessage, Node, NodeDescription, PublishLogsMessage, Snapshot, StoreSnapshot, Task,
};
use swarm_pki::{Certificate, Dek, JoinToken, Kek, PrivateKey, RootCa, Sealer, UnlockKey};
use swarm_placement::{Constraint, Ledger, Request, all_hold, generic};
use swarm_store::{StateMachine as _, Store};
use swarm_template::Context;

/// A function of bytes that must not panic, hang or allocate without bounds.
pub struct Target {
    /// Its name, which is also that of its directory of seeds.
    pub name: &'static str,
    /// Runs it; true if the bytes made sense.
    pub run: fn(&[u8]) -> bool,
    /// How much an execution costs beside the others, as a power of ten: those that cost more are executed less often.
    pub cost: u32,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("name", &self.name).finish_non_exhaustive()
    }
}

const fn target(name: &'static str, run: fn(&[u8]) -> bool) -> Target {
    Target { name, run, cost: 0 }
}

const fn dear(name: &'static str, run: fn(&[u8]) -> bool) -> Target {
    Target { name, run, cost: 1 }
}

/// Every target.
pub const TARGETS: &[Target] = &[
    // From peers.
    Target { name: "raft-messages", run: raft_messages, cost: 2 },
    target("membership-change", swarm_raft::fuzz::change),
    Target { name: "fetched-state", run: fetched_state, cost: 2 },
    dear("store-entry", store_entry),
    dear("snapshot-content", snapshot_content),
    target("log-lines", log_lines),
    target("engine-log", swarm_executor_docker::fuzz::log_stream),
    target("join-token", join_token),
    dear("certificate", certificate),
    target("csr", swarm_pki::fuzz::csr),
    target("template", template),
    target("constraint", constraint_expression),
    target("generic-resources", generic_resources),
    target("labels", labels),
    target("container-labels", container_labels),
    target("process-spec", swarm_executor_process::fuzz::process_spec),
    // From the disk.
    target("log-record", swarm_raft::fuzz::record),
    target("watermark", swarm_raft::fuzz::watermark),
    target("snapshot-file", swarm_raft::fuzz::snapshot_file),
    target("sealed-record", sealed_record),
    dear("key-file", key_file),
    dear("private-key", private_key),
    target("unlock-key", unlock_key),
    target("backup", swarm_manager::fuzz::backup),
    target("state-json", swarm_node::fuzz::managers),
    target("task-record", swarm_agent::fuzz::task_record),
    target("process-files", swarm_executor_process::fuzz::records),
    target("process-words", process_words),
    target("process-log", process_log),
    target("resource-file", resource_file),
    target("gpu-information", gpu_information),
];

/// The root that seeds are signed by.
pub fn root() -> &'static RootCa {
    static ROOT: LazyLock<RootCa> = LazyLock::new(|| {
        let (certificate, key) = (include_bytes!("../fixed/root.pem"), include_bytes!("../fixed/root.key"));
        RootCa::load(certificate, Some((certificate, key)), &[], now())
            .expect("it was made by examples/seeds.rs")
    });
    &ROOT
}

/// The time at which seeds are valid.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(include!("../fixed/now"))
}

/// The key that seeds are encrypted with.
pub fn kek() -> Kek {
    Kek::from_bytes(&[7; 32]).expect("it has the right length")
}

thread_local! {
    /// A directory that members of this thread use, one after the other.
    static SCRATCH: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

fn in_scratch<T>(run: impl FnOnce(&Path) -> T) -> T {
    SCRATCH.with(|scratch| {
        let dir =
            scratch.get_or_init(|| tempfile::tempdir().expect("there is a directory for temporary files"));
        run(dir.path())
    })
}

fn raft_messages(script: &[u8]) -> bool {
    in_scratch(|dir| swarm_raft::fuzz::messages(script, dir));
    true
}

fn fetched_state(answers: &[u8]) -> bool {
    in_scratch(|dir| swarm_raft::fuzz::fetch(answers, dir))
}

/// A store with a little in it.
fn some_store() -> StoreSnapshot {
    let config = |i: u32| {
        let mut spec = ConfigSpec::default();
        spec.annotations.name = format!("name{i}");
        Config { id: format!("config{i}"), spec, ..Config::default() }.into()
    };
    let task = |i: u32| {
        Task { id: format!("task{i}").into(), service_id: "service".into(), ..Task::default() }.into()
    };
    let node = |i: u32| Node { id: format!("node{i}"), ..Node::default() }.into();
    StoreSnapshot {
        configs: (0..3).map(config).collect(),
        tasks: (0..3).map(task).collect(),
        nodes: (0..3).map(node).collect(),
        ..StoreSnapshot::default()
    }
}

fn store_entry(entry: &[u8]) -> bool {
    static BASE: LazyLock<StoreSnapshot> = LazyLock::new(some_store);
    let store = Store::new();
    store.restore(1, BASE.clone()).expect("it is in order");
    let before = store.view().to_snapshot();
    let applied = store.apply(2, Bytes::copy_from_slice(entry), None);
    let after = store.view().to_snapshot();
    // All of it or nothing, and what is there can be read again.
    assert!(applied.is_ok() || before == after, "an entry was applied in part");
    store.restore(3, after).expect("a store can be restored from its own snapshot");
    store.close();
    applied.is_ok()
}

fn snapshot_content(bytes: &[u8]) -> bool {
    let read = swarm_store::snapshot::decode(bytes);
    let whole = Snapshot::decode(bytes);
    let Ok((membership, snapshot)) = read else { return false };
    // What is read object by object is what the contract's message says.
    let whole = whole.expect("it could be read otherwise");
    assert_eq!((&membership, &snapshot), (&whole.membership, &whole.store));
    let store = Store::new();
    let restored = store.restore(1, snapshot).is_ok();
    if restored {
        let view = store.view();
        let mut out = Vec::new();
        swarm_store::snapshot::encode_to(&view, &membership, &mut out).expect("a vector has room");
        let (_, again) = swarm_store::snapshot::decode(&out).expect("it was written just now");
        assert_eq!(again, view.to_snapshot());
    }
    store.close();
    restored
}

/// A message with lines, as it is passed on and looked into without being decoded: it means what the contract's message
/// means, and comes out as it went in.
fn log_lines(bytes: &[u8]) -> bool {
    let Ok(published) = PublishLogsMessage::decode(bytes) else { return false };
    let again = PublishLogsMessage::decode(published.encode_to_vec().as_slice());
    assert_eq!(again.as_ref(), Ok(&published));
    let mut all = !published.messages.is_empty();
    for raw in &published.messages {
        let (line, message) = (raw.read(), LogMessage::decode(raw.as_bytes().clone()));
        // They differ in how deep what they don't know may be nested, and in nothing else.
        let (Ok(line), Ok(message)) = (line, message) else {
            all = false;
            continue;
        };
        let context = &message.context;
        assert_eq!((line.service_id, line.node_id), (context.service_id.as_str(), context.node_id.as_str()));
        assert_eq!((line.task_id, line.stream), (context.task_id.as_str(), message.stream));
        assert_eq!((line.timestamp, line.data), (message.timestamp, message.data.as_slice()));
        let attributes = message.attrs.iter().map(|attr| (attr.key.as_str(), attr.value.as_str()));
        assert!(line.attributes().eq(attributes));
    }
    all
}

fn join_token(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    text.parse::<JoinToken>().is_ok_and(|token| token.matches(text))
}

fn unlock_key(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.parse::<UnlockKey>().is_ok())
}

fn certificate(pem: &[u8]) -> bool {
    let _ = Certificate::from_der(pem);
    for certificate in Certificate::from_pem_bundle(pem).unwrap_or_default() {
        let _ = (certificate.common_name(), certificate.organization(), certificate.units().len());
        let _ = (certificate.is_valid_at(now()), certificate.is_ca(), certificate.issuer_info());
        let _ = (
            certificate.to_pem(),
            certificate.is_signed_by(root().certificates().first().unwrap_or(&certificate)),
        );
    }
    let _ = swarm_pki::normalize_pem(pem);
    let _ = RootCa::trust_only(pem, now());
    root().verify(pem, now(), false).is_ok()
}

fn key_file(text: &[u8]) -> bool {
    swarm_pki::fuzz::key_file(text, &kek())
}

fn private_key(text: &[u8]) -> bool {
    let Ok(key) = PrivateKey::from_pem(text) else { return false };
    let _ = key.to_root_pem();
    true
}

fn sealed_record(bytes: &[u8]) -> bool {
    static SEALERS: LazyLock<[Sealer; 2]> = LazyLock::new(|| {
        let dek = Dek::from_bytes(&[7; 32]);
        [Sealer::new(&dek), Sealer::fips(&dek)]
    });
    SEALERS.iter().any(|sealer| sealer.open(bytes).is_ok())
}

fn template(text: &[u8]) -> bool {
    static CONTEXT: LazyLock<Context> = LazyLock::new(|| {
        let mut task = Task { id: "task".into(), slot: 3, node_id: "node".into(), ..Task::default() };
        task.service_annotations.labels = BTreeMap::from([("a.b".into(), "{{.Task.ID}}".into())]);
        Context::new(&task, Some(&NodeDescription::default()))
    });
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let expanded = CONTEXT.expand(text);
    let _ = CONTEXT.expand_env(&[format!("A={text}")]);
    expanded.is_ok()
}

fn constraint_expression(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let lines: Vec<&str> = text.lines().collect();
    let node = Node { id: "node".into(), ..Node::default() };
    let constraints: Vec<Constraint> = lines.iter().filter_map(|line| Constraint::parse(line).ok()).collect();
    let _ = all_hold(&constraints, &node);
    Constraint::parse_all(&lines).is_ok_and(|all| !all.is_empty())
}

/// A value of each label of ours that is more than a word.
fn labels(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let with = |label: &str| BTreeMap::from([(label.to_owned(), text.to_owned())]);
    let steps = [INIT_TASKS, PRE_STOP].map(|label| Steps::read(&with(label)).is_ok());
    StartOrder::read(&with(DEPENDS_ON)).is_ok() | steps[0] | steps[1]
}

fn generic_resources(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let (described, asked) = (generic::parse(text), generic::parse_request(text));
    if let (Ok(described), Ok(asked)) = (&described, &asked) {
        let mut ledger = Ledger::default();
        ledger.describe(described);
        // By number, and by name what is there.
        for request in [asked, described] {
            let claimed = ledger.claim(&Request::new(request));
            ledger.release(&claimed.unwrap_or_default());
        }
    }
    described.is_ok()
}

/// What containers are given: a label a line. What is understood is written as it is read.
fn container_labels(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let labels: BTreeMap<String, String> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let Ok(given) = ContainerExtensions::read(&labels) else { return false };
    let mut written = BTreeMap::new();
    given.write(&mut written);
    assert_eq!(ContainerExtensions::read(&written).as_ref(), Ok(&given));
    given != ContainerExtensions::default()
}

fn process_words(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(swarm_executor_process::fuzz::words)
}

fn process_log(lines: &[u8]) -> bool {
    lines
        .split(|byte| *byte == b'\n')
        .map(swarm_executor_process::fuzz::log_line)
        .fold(false, |any, line| any | line)
}

fn resource_file(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(swarm_agent::fuzz::resource_file)
}

fn gpu_information(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(swarm_agent::fuzz::gpu_information)
}
