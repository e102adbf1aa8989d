//! What happens in the cluster.

use proptest::prelude::*;

/// Something that happens in a cluster. Numbers choose among what there is.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    AddNode {
        size: u8,
        zone: u8,
    },
    RemoveNode(u8),
    NodeState(u8, bool),
    Availability(u8, u8),
    Resize(u8, u8),
    Label(u8, u8),
    AddTasks {
        service: u8,
        version: u8,
        count: u8,
    },
    AddBound {
        service: u8,
        node: u8,
    },
    Report(u8, u8),
    Reject(u8),
    Desire(u8, u8),
    RemoveTask(u8),
    NewVersion(u8),
    RemoveService(u8),
    Pass(u8),
    /// A service gets another priority.
    Priority(u8, u8),
    /// A service is packed, or spread.
    Pack(u8, bool),
    /// Tasks may take the place of others, or not.
    Preemption(bool),
    AddVolume(u8),
    /// A volume is to be had, or not.
    VolumeState(u8, bool),
    /// The scheduler decides; of its first decisions every so manieth comes to nothing.
    Turn {
        lose: u8,
    },
    /// A new leader.
    Lead,
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    use Op::*;
    prop_oneof![
        3 => (any::<u8>(), any::<u8>()).prop_map(|(size, zone)| AddNode { size, zone }),
        1 => any::<u8>().prop_map(RemoveNode),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(n, up)| NodeState(n, up)),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(n, a)| Availability(n, a)),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(n, size)| Resize(n, size)),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(n, zone)| Label(n, zone)),
        10 => (any::<u8>(), any::<u8>(), 1..6u8)
            .prop_map(|(service, version, count)| AddTasks { service, version, count }),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(service, node)| AddBound { service, node }),
        8 => (any::<u8>(), any::<u8>()).prop_map(|(t, state)| Report(t, state)),
        2 => any::<u8>().prop_map(Reject),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(t, state)| Desire(t, state)),
        3 => any::<u8>().prop_map(RemoveTask),
        1 => any::<u8>().prop_map(NewVersion),
        1 => any::<u8>().prop_map(RemoveService),
        3 => any::<u8>().prop_map(Pass),
        2 => (any::<u8>(), 0..3u8).prop_map(|(service, priority)| Priority(service, priority)),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(service, packed)| Pack(service, packed)),
        1 => prop_oneof![4 => Just(true), 1 => Just(false)].prop_map(Preemption),
        4 => any::<u8>().prop_map(AddVolume),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(v, active)| VolumeState(v, active)),
        12 => prop_oneof![3 => Just(0), 1 => 1..4u8].prop_map(|lose| Turn { lose }),
        1 => Just(Lead),
    ]
}
