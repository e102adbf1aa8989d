//! Snapshots in the contract's format.

use bytes::Bytes;
use prost::Message as _;
use swarm_api::Shared;
use swarm_api::v1::*;
use swarm_store::{StateMachine as _, Store, Tables, snapshot};

use crate::support::{node, service, task};

fn membership() -> ClusterSnapshot {
    ClusterSnapshot {
        members: vec![RaftMember { raft_id: 7, node_id: "n1".to_owned(), ..Default::default() }],
        removed: vec![3, u64::MAX],
    }
}

/// Separate copies of everything, as a peer's encoding would bring.
fn unshared() -> StoreSnapshot {
    let mut web = service("s1", "web");
    web.spec.task = TaskSpec { force_update: 3, ..Default::default() }.into();
    web.endpoint = Some(Endpoint { spec: Some(EndpointSpec::default()), ..Default::default() }.into());
    let network = Network { id: "net".to_owned(), ..Default::default() };
    let tasks = (0..10).map(|n| {
        let mut task = task(&format!("t{n}"), &web, n);
        task.spec = Shared::new((*web.spec.task).clone());
        task.service_annotations = Shared::new((*web.spec.annotations).clone());
        task.endpoint = web.endpoint.clone().map(|e| Shared::new(e.into_inner()));
        task.networks
            .push(NetworkAttachment { network: Some(Shared::new(network.clone())), ..Default::default() });
        if n == 9 {
            task.spec.force_update = 2; // of an older version of the service
        }
        task.into()
    });
    StoreSnapshot {
        tasks: tasks.collect(),
        nodes: (0..1500).map(|n| node(&format!("n{n:05}")).into()).collect(),
        networks: vec![network.clone().into()],
        services: vec![web.into()],
        clusters: vec![Cluster { id: "c".to_owned(), ..Default::default() }.into()],
        secrets: vec![Secret { id: "s".to_owned(), ..Default::default() }.into()],
        configs: vec![Config { id: "c".to_owned(), ..Default::default() }.into()],
        volumes: vec![Volume { id: "v".to_owned(), ..Default::default() }.into()],
        extensions: vec![Extension { id: "e".to_owned(), ..Default::default() }.into()],
        resources: vec![Resource { id: "r".to_owned(), ..Default::default() }.into()],
    }
}

fn encoded() -> (Tables, Vec<u8>) {
    let tables = Tables::from_snapshot(unshared()).unwrap();
    let mut bytes = Vec::new();
    snapshot::encode_to(&tables, &membership(), &mut bytes).unwrap();
    (tables, bytes)
}

#[test]
fn it_is_what_prost_writes_and_reads() {
    let (tables, bytes) = encoded();
    let whole = Snapshot { version: 0, membership: membership(), store: tables.to_snapshot() };
    assert_eq!(bytes, whole.encode_to_vec());
    assert_eq!(Snapshot::decode(&*bytes).unwrap(), whole);
    assert_eq!(snapshot::Plan::new(&tables, &whole.membership).len(), bytes.len() as u64);
    assert_eq!(snapshot::decode(&bytes).unwrap(), (whole.membership, whole.store));
}

#[test]
fn an_empty_store_is_a_snapshot_too() {
    let mut bytes = Vec::new();
    snapshot::encode_to(&Tables::default(), &Default::default(), &mut bytes).unwrap();
    assert_eq!(bytes, Snapshot::default().encode_to_vec());
    assert_eq!(snapshot::decode(&bytes).unwrap(), Default::default());
    assert_eq!(snapshot::decode(&[]).unwrap(), Default::default(), "every field may be missing");
}

#[test]
fn tasks_of_a_service_share_after_a_snapshot_is_read() {
    let (_, bytes) = encoded();
    let (_, read) = snapshot::decode(&bytes).unwrap();
    let restored = Store::new();
    restored.restore(5, unshared()).unwrap();
    for store in [Tables::from_snapshot(read).unwrap(), restored.view().to_tables()] {
        let web = store.services().get("s1").unwrap();
        for task in store.tasks().iter() {
            assert_eq!(Shared::ptr_eq(&task.spec, &web.spec.task), task.id != "t9");
            assert!(Shared::ptr_eq(&task.service_annotations, &web.spec.annotations));
            assert!(Shared::ptr_eq(task.endpoint.as_ref().unwrap(), web.endpoint.as_ref().unwrap()));
            let network = store.networks().get("net").unwrap();
            assert!(Shared::ptr_eq(task.networks[0].network.as_ref().unwrap(), network));
        }
    }
}

#[test]
fn tasks_of_a_service_share_after_an_entry_is_applied() {
    let store = Store::new();
    let snapshot = unshared();
    let create =
        |target| StoreAction { action: StoreActionKind::StoreActionCreate as i32, target: Some(target) };
    let mut action = vec![create(store_action::Target::Service(snapshot.services[0].clone()))];
    action.push(create(store_action::Target::Network(snapshot.networks[0].clone())));
    action.extend(snapshot.tasks.iter().map(|t| create(store_action::Target::Task(t.clone()))));
    let entry: Bytes = InternalRaftRequest { id: 1, action }.encode_to_vec().into();
    store.apply(1, entry, None).unwrap();
    let old = store.view().tasks().get("t9").cloned().unwrap();
    let mut changed = (*old).clone();
    changed.status.message = "running".into();
    let update = StoreAction {
        action: StoreActionKind::StoreActionUpdate as i32,
        target: Some(store_action::Target::Task(changed.into())),
    };
    store.apply(2, InternalRaftRequest { id: 1, action: vec![update] }.encode_to_vec().into(), None).unwrap();

    let view = store.view();
    let web = view.services().get("s1").unwrap();
    assert!(Shared::ptr_eq(&view.tasks().get("t1").unwrap().spec, &web.spec.task));
    let t9 = view.tasks().get("t9").unwrap();
    assert_eq!(t9.status.message, "running");
    assert!(Shared::ptr_eq(&t9.spec, &old.spec), "with its own former version");
    assert!(Shared::ptr_eq(t9.networks[0].network.as_ref().unwrap(), view.networks().get("net").unwrap()));
}

#[test]
fn a_snapshot_cut_short_or_garbled_is_an_error() {
    let (_, bytes) = encoded();
    for len in (1..bytes.len()).step_by(389).chain([bytes.len() - 1]) {
        let prost = Snapshot::decode(&bytes[..len]).is_ok();
        assert_eq!(snapshot::decode(&bytes[..len]).is_ok(), prost, "cut at {len}");
    }
    for (garbled, reason) in [
        (&b"\x08\x01"[..], "version 1 is unknown"),
        (&b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"[..], "too many bytes"),
        (&b"\x1a\x05\x0a\x7f\x00\x00\x00"[..], "longer than what it is in"),
        (&b"\x23"[..], "group"),
        (&b"\x1b"[..], "of another kind"),
        (&b"\x02\x00"[..], "no number"),
        (&b"\x80\x80\x80\x80\x10\x00"[..], "too large"),
    ] {
        let error = snapshot::decode(garbled).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn unknown_fields_are_skipped() {
    let (tables, mut bytes) = encoded();
    bytes.extend_from_slice(b"\x20\x05\x2a\x03abc\x31\0\0\0\0\0\0\0\0\x3d\0\0\0\0");
    assert_eq!(snapshot::decode(&bytes).unwrap().1, tables.to_snapshot());
}

/// With its reference count it fits into the allocator's class of 384 bytes (decision 0103).
#[test]
fn a_task_takes_no_more_than_384_bytes() {
    let count = 2 * size_of::<usize>();
    assert!(size_of::<Task>() + count <= 384, "{}", size_of::<Task>());
}
