//! How messages stand on the wire: what is always written, what reads as its default, and what must survive.

#![allow(clippy::unwrap_used)] // helpers of tests

mod messages;

use std::collections::BTreeSet;

use messages::{CHOICES, descriptor, field_numbers, full, pool};
use prost::Message;
use prost_reflect::{Cardinality, DynamicMessage, Kind};
use swarm_api::v1::{
    Annotations, Endpoint, EndpointSpec, LogSubscriptionOptions, Node, Task, TaskSpec, TaskState, TaskStatus,
    list_nodes_request, list_tasks_request, task_status,
};
use swarm_api::{Shared, raftpb, v1};

/// Calls `$check::<Type>(name)` for each type.
macro_rules! each_type {
    ($check:expr; $($package:literal { $($name:literal = $type:ty),* $(,)? })*) => {
        $($( ($check)(concat!($package, ".", $name), &Codec::of::<$type>()); )*)*
    };
}

/// What is asked of a type whose name is known only as text.
struct Codec {
    /// The default value, encoded.
    default: Vec<u8>,
    /// Decodes and encodes.
    again: fn(&[u8]) -> Vec<u8>,
    /// Two encodings mean the same.
    same: fn(&[u8], &[u8]) -> bool,
}

impl Codec {
    fn of<T: Message + Default + PartialEq>() -> Codec {
        Codec {
            default: T::default().encode_to_vec(),
            again: |bytes| T::decode(bytes).unwrap().encode_to_vec(),
            same: |a, b| T::decode(a).unwrap() == T::decode(b).unwrap(),
        }
    }
}

/// Every message that has a field which is always written.
fn with_nonnull(mut check: impl FnMut(&str, &Codec)) {
    each_type! { check;
        "docker.swarmkit.v1" {
            "Certificate" = v1::Certificate, "Cluster" = v1::Cluster, "ClusterSpec" = v1::ClusterSpec,
            "Config" = v1::Config, "ConfigSpec" = v1::ConfigSpec, "Extension" = v1::Extension,
            "GetUnlockKeyResponse" = v1::GetUnlockKeyResponse, "HeartbeatResponse" = v1::HeartbeatResponse,
            "InternalRaftRequest" = v1::InternalRaftRequest, "JobStatus" = v1::JobStatus,
            "LogMessage" = v1::LogMessage, "Meta" = v1::Meta, "Network" = v1::Network,
            "NetworkSpec" = v1::NetworkSpec, "Node" = v1::Node, "NodeSpec" = v1::NodeSpec,
            "RaftMember" = v1::RaftMember, "Resource" = v1::Resource, "RootCA" = v1::RootCa,
            "Secret" = v1::Secret, "SecretSpec" = v1::SecretSpec, "Service" = v1::Service,
            "ServiceSpec" = v1::ServiceSpec, "Snapshot" = v1::Snapshot, "Task" = v1::Task,
            "UpdateClusterRequest" = v1::UpdateClusterRequest, "UpdateConfig" = v1::UpdateConfig,
            "Volume" = v1::Volume, "VolumeSpec" = v1::VolumeSpec,
        }
        "raftpb" {
            "Entry" = raftpb::Entry, "SnapshotMetadata" = raftpb::SnapshotMetadata,
            "Snapshot" = raftpb::Snapshot, "Message" = raftpb::Message, "HardState" = raftpb::HardState,
            "ConfState" = raftpb::ConfState, "ConfChange" = raftpb::ConfChange,
            "ConfChangeSingle" = raftpb::ConfChangeSingle, "ConfChangeV2" = raftpb::ConfChangeV2,
        }
    }
}

/// Numbers of the fields of a message that are always written.
fn nonnull(pool: &prost_reflect::DescriptorPool, name: &str) -> BTreeSet<u32> {
    let option = pool.get_extension_by_name("swarmd.options.nonnull").unwrap();
    descriptor(pool, name)
        .fields()
        .filter(|f| f.options().get_extension(&option).as_bool() == Some(true))
        .filter(|f| f.cardinality() != Cardinality::Repeated)
        // Proto3 has no way to write a number that is zero; the option tells how the Go code represents it.
        .filter(|f| matches!(f.kind(), Kind::Message(_)) || name.starts_with("raftpb."))
        .map(|f| f.number())
        .collect()
}

#[test]
fn what_is_always_written_is_written_even_when_empty() {
    let pool = pool();
    with_nonnull(|name, codec| {
        let written: BTreeSet<u32> = field_numbers(&codec.default).into_iter().collect();
        assert_eq!(written, nonnull(&pool, name), "{name}");
    });
}

#[test]
fn no_message_with_such_a_field_is_forgotten_here() {
    let (pool, mut checked) = (pool(), BTreeSet::new());
    with_nonnull(|name, _| _ = checked.insert(name.to_owned()));
    for message in pool.all_messages().filter(|m| !nonnull(&pool, m.full_name()).is_empty()) {
        assert!(checked.contains(message.full_name()), "{} is not checked", message.full_name());
    }
}

#[test]
fn absent_and_empty_are_the_same_where_it_is_always_written() {
    with_nonnull(|name, codec| {
        assert!((codec.same)(&[], &codec.default), "{name}: absent fields differ from empty ones");
        assert_eq!((codec.again)(&[]), codec.default, "{name}");
    });
    // Deep inside as well: a peer's snapshot with a task of which only the id is written, twice.
    let task = b"\x0a\x01t";
    let snapshot = [&[0x22, 3][..], task, &[0x22, 3], task].concat();
    let read = v1::StoreSnapshot::decode(snapshot.as_slice()).unwrap();
    let sparse = Task { id: "t".into(), ..Default::default() };
    assert_eq!(
        read.tasks,
        [sparse.clone().into(), Task::decode(sparse.encode_to_vec().as_slice()).unwrap().into()]
    );
}

/// Everything that a peer may send comes back whole: no field is lost, and no number is taken for another.
#[test]
fn full_messages_survive() {
    let pool = pool();
    let mut check = |name: &str, codec: &Codec| {
        for choice in 0..CHOICES {
            let encoded = full(&pool, name, choice).encode_to_vec();
            let read = |bytes: &[u8]| DynamicMessage::decode(descriptor(&pool, name), bytes).unwrap();
            let (sent, returned) = (read(&encoded), read(&(codec.again)(&encoded)));
            assert!(sent == returned, "{name} changed:\n{sent}\n{returned}");
        }
    };
    with_nonnull(&mut check);
    each_type! { check;
        "docker.swarmkit.v1" {
            "StoreSnapshot" = v1::StoreSnapshot, "StoreAction" = v1::StoreAction,
            "AssignmentsMessage" = v1::AssignmentsMessage, "SessionMessage" = v1::SessionMessage,
            "SessionRequest" = v1::SessionRequest, "UpdateTaskStatusRequest" = v1::UpdateTaskStatusRequest,
            "CreateServiceRequest" = v1::CreateServiceRequest, "ListServicesRequest" = v1::ListServicesRequest,
            "IssueNodeCertificateRequest" = v1::IssueNodeCertificateRequest,
            "ProcessRaftMessageRequest" = v1::ProcessRaftMessageRequest, "JoinResponse" = v1::JoinResponse,
            "WatchRequest" = v1::WatchRequest, "WatchMessage" = v1::WatchMessage,
            "SubscriptionMessage" = v1::SubscriptionMessage, "ClusterSnapshot" = v1::ClusterSnapshot,
        }
    }
}

#[test]
fn shared_messages_stand_on_the_wire_like_plain_ones() {
    let pool = pool();
    for choice in 0..CHOICES {
        let encoded = full(&pool, "docker.swarmkit.v1.Task", choice).encode_to_vec();
        let plain = Task::decode(encoded.as_slice()).unwrap();
        let shared = Shared::<Task>::decode(encoded.as_slice()).unwrap();
        assert_eq!(*shared, plain);
        assert_eq!(shared.encode_to_vec(), plain.encode_to_vec());
        assert_eq!(shared.encoded_len(), plain.encoded_len());
        assert_eq!(shared, Shared::new(plain));
    }
    let empty = Shared::<Task>::default();
    assert_eq!(empty.encode_to_vec(), Task::default().encode_to_vec());
    assert_eq!(empty, Shared::new(Task::default()));
}

#[test]
fn a_shared_field_that_comes_in_parts_is_merged_and_shares_nothing_by_accident() {
    let part = |task: Task| task.encode_to_vec();
    let first = Task {
        spec: TaskSpec { force_update: 3, ..Default::default() }.into(),
        endpoint: Some(Endpoint { spec: Some(EndpointSpec::default()), ..Default::default() }.into()),
        ..Default::default()
    };
    let mut second = Task::default();
    second.spec.log_driver = Some(Default::default());
    second.annotations = Annotations { name: "n".to_owned(), ..Default::default() }.into();
    let merged = Task::decode([part(first.clone()), part(second)].concat().as_slice()).unwrap();
    assert_eq!((merged.spec.force_update, merged.spec.log_driver.is_some()), (3, true));
    assert!(merged.endpoint.is_some());
    let before = first.spec.clone();
    let mut copy = first.clone();
    copy.spec.force_update = 4;
    assert_eq!(first.spec, before);
}

/// The field as a peer writes it: one value after the other, or packed.
fn both_ways(number: u8, values: &[u8]) -> [Vec<u8>; 2] {
    let tag = number << 3;
    let unpacked = values.iter().flat_map(|v| [tag, *v]).collect();
    let packed = [vec![tag | 2, values.len() as u8], values.to_vec()].concat();
    [unpacked, packed]
}

/// Reads both ways, and writes one value after the other, as peers do.
#[track_caller]
fn check_unpacked<T: Message + Default>(number: u8, values: fn(&T) -> Vec<u64>) {
    for encoded in both_ways(number, &[1, 2, 3]) {
        let message = T::decode(encoded.as_slice()).unwrap();
        assert_eq!(values(&message), [1, 2, 3]);
        assert_eq!(message.encode_to_vec()[..6], both_ways(number, &[1, 2, 3])[0]);
    }
}

fn numbers(values: &[i32]) -> Vec<u64> {
    values.iter().map(|v| *v as u64).collect()
}

#[test]
fn numbers_in_lists_are_read_packed_and_unpacked() {
    check_unpacked::<list_nodes_request::Filters>(4, |m| numbers(&m.memberships));
    check_unpacked::<list_nodes_request::Filters>(5, |m| numbers(&m.roles));
    check_unpacked::<list_tasks_request::Filters>(6, |m| numbers(&m.desired_states));
    check_unpacked::<LogSubscriptionOptions>(1, |m| numbers(&m.streams));
    check_unpacked::<v1::JoinResponse>(3, |m| m.removed_members.clone());
    check_unpacked::<v1::ClusterSnapshot>(2, |m| m.removed.clone());
    for (number, values) in [
        (1, (|m| m.voters.clone()) as fn(&raftpb::ConfState) -> Vec<u64>),
        (2, |m| m.learners.clone()),
        (3, |m| m.voters_outgoing.clone()),
        (4, |m| m.learners_next.clone()),
    ] {
        check_unpacked(number, values);
    }
}

#[test]
fn numbers_that_no_name_stands_for_survive() {
    let status = TaskStatus { state: 900, ..Default::default() };
    let read = TaskStatus::decode(status.encode_to_vec().as_slice()).unwrap();
    assert_eq!(read.state, 900);
    assert!(read.reached(TaskState::Orphaned), "a state that is not known keeps its place in the order");
    let mut node = Node { role: 7, ..Default::default() };
    node.spec.availability = 9;
    let read = Node::decode(node.encode_to_vec().as_slice()).unwrap();
    assert_eq!((read.role, read.spec.availability), (7, 9));
}

#[test]
fn fields_that_are_not_known_are_skipped() {
    let mut encoded = TaskStatus { message: "m".into(), ..Default::default() }.encode_to_vec();
    // Field 2000, a text.
    prost::encoding::string::encode(2000, &"new".to_owned(), &mut encoded);
    assert_eq!(TaskStatus::decode(encoded.as_slice()).unwrap().message, "m");
}

#[test]
fn a_member_of_a_oneof_is_written_even_when_empty() {
    let status = TaskStatus {
        runtime_status: Some(task_status::RuntimeStatus::Container(Default::default())),
        ..Default::default()
    };
    let read = TaskStatus::decode(status.encode_to_vec().as_slice()).unwrap();
    assert_eq!(read, status);
    assert_ne!(read, TaskStatus::default());
}
