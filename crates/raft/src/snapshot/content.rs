//! The contract's `Snapshot` message: the store writes and reads it, object by object.

use std::io::{self, BufRead, Write};

use swarm_api::v1::{ClusterSnapshot, Snapshot};
use swarm_store::{View, snapshot};

/// Writes the snapshot of a view.
pub(crate) fn encode(out: &mut impl Write, membership: &ClusterSnapshot, view: &View) -> io::Result<()> {
    snapshot::encode_to(view, membership, out)
}

/// Reads a snapshot.
///
/// # Errors
/// If it is cut short, makes no sense, or has a version that is not known here.
pub fn decode(mut from: impl BufRead) -> Result<Snapshot, swarm_store::Error> {
    let (membership, store) = snapshot::read_from(&mut from)?;
    Ok(Snapshot { membership, store, ..Snapshot::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use swarm_api::v1::{Cluster, Node, RaftMember, Task};
    use swarm_api::{Object, Shared};
    use swarm_store::Tables;

    fn view() -> View {
        let mut tables = Tables::default();
        for i in 0..300 {
            let task = Task { id: format!("t{i:03}").into(), slot: i, ..Task::default() };
            tables.insert(Object::Task(task.into())).unwrap();
        }
        let mut cluster = Cluster { id: "c".into(), ..Cluster::default() };
        cluster.spec.annotations.name = "default".into();
        tables.insert(Object::Cluster(Shared::new(cluster))).unwrap();
        tables.insert(Object::Node(Node { id: "n".into(), ..Node::default() }.into())).unwrap();
        View::new(tables, 7)
    }

    fn membership() -> ClusterSnapshot {
        let member =
            RaftMember { raft_id: 1, node_id: "n".into(), addr: "a:1".into(), ..RaftMember::default() };
        ClusterSnapshot { members: vec![member], removed: vec![3, 1 << 62] }
    }

    #[test]
    fn the_stream_is_the_message_of_the_contract() {
        let mut bytes = Vec::new();
        encode(&mut bytes, &membership(), &view()).unwrap();
        let whole = Snapshot::decode(bytes.as_slice()).unwrap();
        assert_eq!(whole.membership, membership());
        assert_eq!(whole.store, view().to_snapshot());
        assert_eq!(decode(bytes.as_slice()).unwrap(), whole);
        assert_eq!(decode(whole.encode_to_vec().as_slice()).unwrap(), whole);
    }

    #[test]
    fn an_empty_store_is_written_too() {
        let mut bytes = Vec::new();
        encode(&mut bytes, &ClusterSnapshot::default(), &View::default()).unwrap();
        assert_eq!(decode(bytes.as_slice()).unwrap(), Snapshot::default());
    }

    #[test]
    fn unknown_fields_are_skipped_and_unknown_versions_refused() {
        let mut bytes = Vec::new();
        encode(&mut bytes, &membership(), &view()).unwrap();
        let known = decode(bytes.as_slice()).unwrap();
        bytes.extend([0x78, 1, 0x7a, 2, 0, 0]); // field 15: a number, then two bytes
        assert_eq!(decode(bytes.as_slice()).unwrap(), known);
        // A negative number is ten bytes long, and there is no longer one.
        bytes.push(0x78);
        bytes.extend([0xff; 9]);
        assert_eq!(decode([bytes.as_slice(), &[1]].concat().as_slice()).unwrap(), known);
        for end in [&[2u8][..], &[0x81, 0]] {
            let error = decode([bytes.as_slice(), end].concat().as_slice()).unwrap_err().to_string();
            assert!(error.contains("too many bytes"), "{error}");
        }
        for (cut, what) in [([0x0a, 0], "another kind"), ([0x02, 0], "no number")] {
            let error = decode(cut.as_slice()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let error = decode([0x08, 1].as_slice()).unwrap_err().to_string();
        assert!(error.contains("version 1 is unknown"), "{error}");
    }

    #[test]
    fn a_snapshot_cut_anywhere_but_between_fields_is_refused() {
        let mut bytes = Vec::new();
        encode(&mut bytes, &membership(), &view()).unwrap();
        let first_field = 2 + membership().encoded_len();
        for cut in (1..bytes.len()).filter(|cut| cut % 29 == 0 || *cut < 100) {
            assert!(cut == first_field || decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
