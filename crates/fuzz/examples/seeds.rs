//! Writes the seeds: `cargo run -p swarm-fuzz --example seeds`. Keys and certificates are new each time, so do it only
//! when an encoding has changed, and check in what it wrote.

#![allow(clippy::unwrap_used, reason = "whoever runs it sees what is wrong")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::Message as _;
use swarm_api::raftpb::{
    ConfChange, ConfState, Entry, Message, MessageType, Snapshot as RaftSnapshot, SnapshotMetadata,
};
use swarm_api::swarmd::{BackupInfo, FetchResponse, FetchedState, ProcessSpec};
use swarm_api::v1::store_action::Target;
use swarm_api::v1::{
    Cluster, ClusterSnapshot, Config, ContainerSpec, InternalRaftRequest, LogAttr, LogContext, LogMessage,
    Network, Node, NodeRole, PublishLogsMessage, RaftMember, Secret, Service, Snapshot, StoreAction,
    StoreActionKind, StoreSnapshot, Task, task_spec,
};
use swarm_fuzz::{corpus_dir, kek, root};
use swarm_pki::{
    Dek, JoinToken, Kek, KekChange, KeyStore, NodeSubject, PrivateKey, RootCa, Sealer, UnlockKey, create_csr,
    passphrase,
};
use swarm_raft::PlainSealer;
use swarm_raft::snapshot::{FrameWriter, Meta, Snapshots};
use swarm_raft::storage::{LogStorage as _, Position, SledLog, Write};
use swarm_store::{Tables, View};

fn write(target: &str, seeds: &[Vec<u8>]) {
    let dir = corpus_dir(target);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    for (i, seed) in seeds.iter().enumerate() {
        std::fs::write(dir.join(format!("{i:02}")), seed).unwrap();
    }
    println!("{target}: {} seeds, {} bytes", seeds.len(), seeds.iter().map(Vec::len).sum::<usize>());
}

fn texts(seeds: &[&str]) -> Vec<Vec<u8>> {
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}

fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// The root has to be there when this program is compiled, so it is made by its first run and used by the second.
fn fixed() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixed");
    if std::fs::metadata(dir.join("root.pem")).is_ok_and(|file| file.len() > 0) {
        return;
    }
    let root = RootCa::create(now()).unwrap();
    std::fs::write(dir.join("root.pem"), root.pem()).unwrap();
    std::fs::write(dir.join("root.key"), root.signer().unwrap().key_pem().expose()).unwrap();
    let seconds = now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    std::fs::write(dir.join("now"), format!("{}\n", seconds + 3600)).unwrap();
    println!("the root is new: run this once more");
    std::process::exit(0);
}

fn main() {
    fixed();
    messages();
    lines();
    store();
    keys();
    disk();
    words();
}

fn member(raft_id: u64) -> RaftMember {
    RaftMember { raft_id, node_id: format!("m{raft_id}"), addr: "a:1".into(), ..RaftMember::default() }
}

fn change(kind: i32, raft_id: u64) -> ConfChange {
    let context = (kind != 1).then(|| Bytes::from(member(raft_id).encode_to_vec()));
    ConfChange { id: raft_id, r#type: kind, node_id: raft_id, context }
}

fn messages() {
    let base = |kind: MessageType, term: u64| Message {
        r#type: kind as i32,
        from: 1,
        to: 3,
        term,
        ..Message::default()
    };
    let entry =
        |index: u64, term: u64, data: Vec<u8>| Entry { r#type: 0, term, index, data: Some(data.into()) };
    let first = (1..=3).map(|i| Entry {
        r#type: 1,
        term: 1,
        index: i,
        data: Some(change(0, i).encode_to_vec().into()),
    });
    let begin = Message { entries: first.collect(), commit: 3, ..base(MessageType::MsgApp, 1) };
    let append = |index: u64, term: u64, log_term: u64| Message {
        index,
        log_term,
        commit: index,
        entries: (1..=2).map(|i| entry(index + i, term, request(index).encode_to_vec())).collect(),
        ..base(MessageType::MsgApp, term)
    };
    let vote = Message {
        index: 9,
        log_term: 2,
        context: Some(Bytes::from_static(b"CampaignTransfer")),
        ..base(MessageType::MsgVote, 3)
    };
    let granted = Message { from: 2, ..base(MessageType::MsgVoteResp, 2) };
    let answer = Message { from: 2, index: 4, ..base(MessageType::MsgAppResp, 2) };
    let refused =
        Message { from: 1, index: 4, reject: true, reject_hint: 1, ..base(MessageType::MsgAppResp, 2) };
    let snapshot = Message {
        snapshot: Some(RaftSnapshot {
            data: Some(snapshot_bytes().into()),
            metadata: SnapshotMetadata {
                conf_state: ConfState { voters: vec![1, 2, 3], ..ConfState::default() },
                index: 20,
                term: 2,
            },
        }),
        ..base(MessageType::MsgSnap, 2)
    };
    let heartbeat = Message { commit: 3, ..base(MessageType::MsgHeartbeat, 1) };
    let hand_over = base(MessageType::MsgTimeoutNow, 1);
    let remove = Message {
        index: 3,
        log_term: 1,
        commit: 4,
        entries: vec![Entry {
            r#type: 1,
            term: 1,
            index: 4,
            data: Some(change(1, 3).encode_to_vec().into()),
        }],
        ..base(MessageType::MsgApp, 1)
    };
    let script = |steps: &[Step<'_>]| {
        let mut script = Vec::new();
        for step in steps {
            match step {
                Step::Ticks => script.push(0),
                Step::Campaign => script.push(1),
                Step::Message(message) => {
                    let bytes = message.encode_to_vec();
                    script.push(3);
                    script.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
                    script.extend(bytes);
                }
            }
        }
        script
    };
    use Step::{Campaign, Message as M, Ticks};
    write(
        "raft-messages",
        &[
            script(&[
                M(&begin),
                M(&heartbeat),
                M(&append(3, 1, 1)),
                M(&append(5, 2, 1)),
                M(&append(4, 3, 1)),
            ]),
            script(&[M(&begin), M(&snapshot), M(&append(20, 2, 2)), M(&vote), Ticks]),
            script(&[M(&begin), Campaign, M(&granted), M(&answer), M(&refused), Ticks, Ticks]),
            script(&[M(&begin), M(&hand_over), M(&granted), M(&answer), Ticks, Campaign]),
            script(&[M(&begin), M(&remove), M(&heartbeat)]),
            script(&[M(&snapshot), M(&vote), Campaign, M(&granted)]),
        ],
    );
    let changes = [change(0, 4), change(1, 4), change(2, 4)];
    let seeds: Vec<Vec<u8>> = [0, 2].iter().map(|i| changes[*i].encode_to_vec()).collect();
    write("membership-change", &seeds);
}

fn lines() {
    let context = LogContext { service_id: "s".into(), node_id: "n".into(), task_id: "t".into() };
    let line = |seconds, stream: i32, attrs: &[(&str, &str)]| LogMessage {
        context: context.clone(),
        timestamp: Some(prost_types::Timestamp { seconds, nanos: 5 }),
        stream,
        data: b"text\n".to_vec(),
        attrs: attrs.iter().map(|(k, v)| LogAttr { key: (*k).into(), value: (*v).into() }).collect(),
    };
    let message = |lines: &[LogMessage], close| {
        let messages = lines.iter().map(Into::into).collect();
        PublishLogsMessage { subscription_id: "sub".into(), messages, close }.encode_to_vec()
    };
    let two = [line(1_700_000_000, 1, &[]), line(1_700_000_001, 2, &[("a", "1"), ("b", "")])];
    write("log-lines", &[message(&two, false), message(&two[..1], true)]);
    engine_log();
}

/// Behind the byte that says whether there is a terminal (the lowest bit), and how large chunks are (the others).
fn engine_log() {
    let framed = |messages: &[(u8, &str)]| {
        let mut out = vec![6 << 1];
        for (number, message) in messages {
            out.extend([*number, 0, 0, 0]);
            out.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            out.extend(message.as_bytes());
        }
        out
    };
    let plain = framed(&[
        (1, "2024-05-01T10:00:00.123456789Z  hello\n"),
        (2, "2024-05-01T10:00:00.2Z  to standard error\n"),
        (1, "2024-05-01T10:00:01Z  cut "),
        (1, "2024-05-01T10:00:02Z  in two\r\n"),
    ]);
    let attributes = framed(&[
        (1, "2024-05-01T10:00:00Z a=1,b%2C=x+y%3D a=b c\n"),
        (1, "2024-05-01T10:00:01Z LANG=C \n"),
        (3, "Error grabbing logs: unexpected EOF\n"),
    ]);
    let terminal = b"\x1f2024-05-01T10:00:00Z  $ ls\r\n2024-05-01T10:00:01Z a=1 bin etc\r\n".to_vec();
    write("engine-log", &[plain, attributes, terminal]);
}

enum Step<'a> {
    Ticks,
    Campaign,
    Message(&'a Message),
}

fn action(kind: StoreActionKind, target: Target) -> StoreAction {
    StoreAction { action: kind as i32, target: Some(target) }
}

fn config(id: &str, name: &str) -> Config {
    let mut config = Config { id: id.into(), ..Config::default() };
    config.spec.annotations.name = name.into();
    config.spec.data = b"some data".to_vec();
    config
}

fn request(number: u64) -> InternalRaftRequest {
    let create = action(
        StoreActionKind::StoreActionCreate,
        Target::Config(config(&format!("n{number}"), "new").into()),
    );
    InternalRaftRequest { id: number, action: vec![create] }
}

fn task() -> Task {
    let container = ContainerSpec {
        image: "busybox:latest".into(),
        command: vec!["sleep".into(), "10".into()],
        env: vec!["A={{.Task.ID}}".into()],
        labels: BTreeMap::from([("a".into(), "b".into())]),
        ..ContainerSpec::default()
    };
    let mut task =
        Task { id: "t".into(), service_id: "s".into(), node_id: "node1".into(), slot: 2, ..Task::default() };
    task.spec.runtime = Some(task_spec::Runtime::Container(container));
    task.desired_state = 512;
    task
}

fn content() -> StoreSnapshot {
    let mut service = Service { id: "s".into(), ..Service::default() };
    service.spec.annotations.name = "web".into();
    let mut network = Network { id: "net".into(), ..Network::default() };
    network.spec.annotations.name = "front".into();
    let mut secret = Secret { id: "sec".into(), ..Secret::default() };
    secret.spec.annotations.name = "password".into();
    let mut cluster = Cluster { id: "c".into(), ..Cluster::default() };
    cluster.spec.annotations.name = "default".into();
    StoreSnapshot {
        nodes: vec![Node { id: "node1".into(), role: NodeRole::Manager as i32, ..Node::default() }.into()],
        services: vec![service.into()],
        networks: vec![network.into()],
        tasks: vec![task().into(), Task { id: "u".into(), slot: 3, ..task() }.into()],
        clusters: vec![cluster.into()],
        secrets: vec![secret.into()],
        configs: vec![config("config1", "one").into(), config("config2", "two").into()],
        ..StoreSnapshot::default()
    }
}

fn membership() -> ClusterSnapshot {
    ClusterSnapshot { members: (1..=3).map(member).collect(), removed: vec![9, 1 << 62] }
}

fn snapshot_bytes() -> Vec<u8> {
    Snapshot { membership: membership(), store: content(), ..Snapshot::default() }.encode_to_vec()
}

/// The answers to a manager that is about to join, in pieces of this size.
fn fetched(content: &[u8], piece: usize) -> Vec<u8> {
    let state = FetchedState { raft_id: 1, term: 2, index: 20, entry_term: 2, voters: vec![1, 2, 3] };
    let first = FetchResponse { state: Some(state), ..FetchResponse::default() };
    let pieces = content.chunks(piece);
    let pieces = pieces.map(|data| FetchResponse { data: data.to_vec(), ..FetchResponse::default() });
    let end = Some(swarm_raft::fuzz::fetch_end(content));
    let last = FetchResponse { end, ..FetchResponse::default() };
    let answers = std::iter::once(first).chain(pieces).chain([last]);
    answers.flat_map(|answer| answer.encode_length_delimited_to_vec()).collect()
}

fn view() -> View {
    View::new(Tables::from_snapshot(content()).unwrap(), 20)
}

fn store() {
    use StoreActionKind::{
        StoreActionCreate as Create, StoreActionRemove as Remove, StoreActionUpdate as Update,
    };
    let mut node = Node { id: "node1".into(), ..Node::default() };
    node.spec.annotations.name = "renamed".into();
    let requests = [
        request(1),
        InternalRaftRequest {
            id: 2,
            action: vec![
                action(Update, Target::Config(config("config1", "another").into())),
                action(Remove, Target::Task(Task { id: "task2".into(), ..Task::default() }.into())),
                action(Create, Target::Task(task().into())),
            ],
        },
        InternalRaftRequest { id: 3, action: vec![action(Update, Target::Node(node.into()))] },
    ];
    write("store-entry", &requests.map(|request| request.encode_to_vec()));
    let mut streamed = Vec::new();
    swarm_store::snapshot::encode_to(&view(), &membership(), &mut streamed).unwrap();
    write("snapshot-content", &[snapshot_bytes(), streamed]);
    write("fetched-state", &[fetched(&snapshot_bytes(), usize::MAX), fetched(&snapshot_bytes(), 100)]);
    write(
        "task-record",
        &[task().encode_to_vec(), Task { id: "t".into(), ..Task::default() }.encode_to_vec()],
    );
}

fn keys() {
    let tokens =
        [false, true].map(|fips| JoinToken::generate(root().digest(), fips).expose().as_bytes().to_vec());
    write("join-token", &tokens);
    let unlock = [0, 1].map(|_| UnlockKey::from(Kek::generate()).expose().as_bytes().to_vec());
    write("unlock-key", &unlock);
    let key = PrivateKey::generate().unwrap();
    let csr = create_csr(&key).unwrap();
    write("csr", &[csr.clone(), create_csr(&PrivateKey::generate().unwrap()).unwrap()]);
    let issue = |role: NodeRole| {
        let subject = NodeSubject { node_id: "node".into(), role, organization: "cluster".into() };
        root().sign_csr(&csr, &subject, Duration::from_secs(90 * 86400), now()).unwrap()
    };
    let (manager, worker) = (issue(NodeRole::Manager), issue(NodeRole::Worker));
    write("certificate", &[[manager.as_slice(), root().pem()].concat(), worker]);
    let sec1 = root().signer().unwrap().key_pem().expose().to_vec();
    write("private-key", &[sec1, key.to_pkcs8_pem().expose().to_vec()]);
    let seeds = [None, Some(kek())].map(|kek| {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::open(dir.path()).unwrap();
        store.save(&manager, &key, KekChange::Set(kek, 7)).unwrap();
        store.ensure_dek().unwrap();
        std::fs::read(dir.path().join("swarm-node.key")).unwrap()
    });
    write("key-file", &seeds);
    let dek = Dek::from_bytes(&[7; 32]);
    let sealed = [Sealer::new(&dek), Sealer::fips(&dek)].map(|sealer| sealer.seal(b"something").to_vec());
    write("sealed-record", &sealed);
}

/// A record of the log as `storage/record.rs` describes it.
fn record(first: u64, entries: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![2];
    for number in [7u64, 2, 3, first, first] {
        out.extend(number.to_be_bytes());
    }
    out.extend(99u32.to_be_bytes());
    out.extend(u32::try_from(entries.len()).unwrap().to_be_bytes());
    for data in entries {
        out.extend(2u64.to_be_bytes());
        out.push(0);
        out.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        out.extend(*data);
    }
    out
}

fn disk() {
    let data = request(1).encode_to_vec();
    write("log-record", &[record(5, &[&data, b"", b"x"]), record(1, &[b"abc"])]);
    let marks = [1, 4].map(|last| {
        let dir = tempfile::tempdir().unwrap();
        let mut log = SledLog::open(&dir.path().join("log"), std::sync::Arc::new(PlainSealer)).unwrap();
        log.recover(&mut |_| {}).unwrap();
        let entry = |index| raft_entry(index, &data);
        for index in 1..=last {
            log.write(&Write { entries: &[entry(index)], ..Write::default() }).unwrap();
            log.sync().unwrap();
        }
        drop(log);
        std::fs::read(dir.path().join("watermark")).unwrap()
    });
    write("watermark", &marks);

    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path(), std::sync::Arc::new(PlainSealer)).unwrap();
    let at = |index| Meta { at: Position { index, term: 2 }, ..Meta::default() };
    snapshots.save(&at(20), &membership(), &view()).unwrap();
    snapshots.save(&at(30), &ClusterSnapshot::default(), &View::default()).unwrap();
    let mut files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let files: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
    write("snapshot-file", &files);

    let backups = [content(), StoreSnapshot::default()].map(|content| {
        let tables = Tables::from_snapshot(content).unwrap();
        let info = BackupInfo { cluster_id: "c".into(), index: 20, term: 2, ..BackupInfo::default() };
        let mut sealed = Vec::new();
        let secret = swarm_pki::SecretBytes::new(b"a passphrase".to_vec());
        let with = swarm_manager::backup::format::With::Passphrase;
        swarm_manager::backup::format::write(&mut sealed, &secret, with, &info, &membership(), &tables)
            .unwrap();
        // The same frames in the clear, behind its header.
        sealed.truncate(8 + 1 + 1 + 4 + passphrase::SALT_LENGTH + 8);
        let mut frames = FrameWriter::new(sealed, &PlainSealer, info.index);
        frames.write_all(&info.encode_length_delimited_to_vec()).unwrap();
        swarm_store::snapshot::encode_to(&tables, &membership(), &mut frames).unwrap();
        frames.finish().unwrap()
    });
    write("backup", &backups);
    write(
        "state-json",
        &texts(&[
            r#"[{"addr":"h:1"},{"node_id":"b","addr":"h:2"}]"#,
            "[]",
            r#"[{"node_id":"\u00e9","addr":""}]"#,
        ]),
    );
}

fn raft_entry(index: u64, data: &[u8]) -> raft_proto::eraftpb::Entry {
    raft_proto::eraftpb::Entry { index, term: 1, data: data.to_vec().into(), ..Default::default() }
}

fn words() {
    write(
        "template",
        &texts(&[
            "{{.Service.Name}}.{{.Task.Slot}}-{{.Node.Hostname}}",
            "{{index .Service.Labels \"a.b\"}}",
            "{{ printf \"%s %q\" .Task.ID `raw` }} {{- if eq .Task.Slot \"3\" }}x{{ else }}y{{ end -}}",
            "{{with .Node.Platform}}{{.OS}}/{{.Architecture}}{{end}}",
            "{{/* nothing */}}{{join \"-\" .Task.Name .Task.ID | len}}",
        ]),
    );
    write(
        "constraint",
        &texts(&[
            "node.role==manager\nnode.labels.zone != east",
            "node.ip==10.0.0.0/8\nnode.ip!=fe80::1",
            "engine.labels.swarmd.runtime.process==1",
            "node.platform.os==linux\nnode.hostname==host-1\nnode.id==x",
        ]),
    );
    write(
        "labels",
        &texts(&[
            "db:healthy,migrate:completed,cache:running",
            r#"[{"command":["./migrate","--all"]},{"image":"busybox","command":["true"]}]"#,
            r#"["nginx","-s","quit"]"#,
        ]),
    );
    write(
        "container-labels",
        &texts(&[
            "swarmd.devices=/dev/fuse:/dev/fuse:rwm,/dev/null:/dev/nothing:r\nmine=x",
            "swarmd.privileged=1",
            "swarmd.gpus=gpu\nswarmd.devices=/dev/sda:rw",
        ]),
    );
    write("generic-resources", &texts(&["gpu=3", "gpu=uuid1,gpu=uuid2,disk=5", "a=1,b=x"]));
    let spec = ProcessSpec {
        command: vec!["/bin/sh".into(), "-c".into()],
        args: vec!["date".into()],
        env: vec!["A={{.Task.ID}}".into()],
        dir: "/tmp".into(),
        stop_signal: "SIGINT".into(),
        log_max_size: 1 << 20,
        ..ProcessSpec::default()
    };
    let brief = ProcessSpec { command: vec!["true".into()], ..ProcessSpec::default() };
    write("process-spec", &[spec.encode_to_vec(), brief.encode_to_vec()]);
    write(
        "process-files",
        &texts(&[
            r#"{"task_id":"t","node_id":"n","argv":["sh"],"env":[["A","b"]],"dir":"/","identity":{"uid":1,"gid":1,"groups":[2]},"rlimits":[{"name":"nofile","soft":1,"hard":2}],"stop_signal":15,"stop_grace_ms":10000,"log_max_size":65536,"log_max_files":3,"group":null}"#,
            r#"{"task_id":"t","node_id":"n","argv":["a"],"env":[],"dir":null,"identity":null,"rlimits":[],"stop_signal":15,"stop_grace_ms":1,"log_max_size":65536,"log_max_files":3,"group":null,"init":[["b"]],"pre_stop":["c"],"health":{"command":["d"],"interval":1,"timeout":2,"retries":3,"start_period":4,"start_interval":5},"isolation":{"pid":true,"root":"/r","files":null}}"#,
            r#"{"process":{"pid":42,"began":77,"boot":"b"},"started_at":1764186000000000000}"#,
            r#"{"code":137,"signal":9,"out_of_memory":false,"error":null,"never_started":false,"ended_at":1764186000000000000}"#,
        ]),
    );
    write(
        "process-words",
        &texts(&[
            "started\n",
            "stop 15 10000\n",
            "kill\n",
            "4242 (a (b) c) S 1 4242 4242 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 987654 1000 200 18446744073709551615",
        ]),
    );
    write(
        "process-log",
        &texts(&[
            "1764186000.000000001 o. hello\n1764186001.500000000 e+ wor\n1764186002.0 e. ld\n",
            "0.0 o. \n",
        ]),
    );
    write(
        "resource-file",
        &texts(&[
            "# two of them\ngpu=a, gpu=b\n\nfpga=2 # and these\n",
            "ssd=1",
            "tty=/dev/ttyUSB0\r\ntty=/dev/ttyUSB1",
        ]),
    );
    write(
        "gpu-information",
        &texts(&[
            "Model: \t\t Tesla T4\nIRQ:   \t\t 35\nGPU UUID: \t GPU-5a3c1b2d-0000\nDevice Minor: \t 1\n",
            "Model: T4\nGPU UUID: GPU-????????-????\nDevice Minor: 0\n",
        ]),
    );
}
