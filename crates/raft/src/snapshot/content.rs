//! The contract's `Snapshot` message, `{version 1, membership 2, store 3}`, as a stream: the lengths of the parts
//! are computed first, then object after object is written.

use std::io::{self, Read, Write};

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use swarm_api::v1::{ClusterSnapshot, Snapshot, StoreSnapshot};
use swarm_store::View;

const VERSION: u32 = 1;
const MEMBERSHIP: u32 = 2;
const STORE: u32 = 3;

/// No field is longer; a length above it is damage, not a reason to allocate.
const LONGEST: u64 = 64 * 1024 * 1024;

/// Calls a generic function for each table with its field number in `StoreSnapshot`.
macro_rules! each_table {
    ($view:expr, $objects:ident => $body:expr) => {{
        each_table!(@ $view, $objects, $body,
            nodes 1, services 2, networks 3, tasks 4, clusters 5, secrets 6, resources 7, extensions 8, configs 9,
            volumes 10);
    }};
    (@ $view:expr, $objects:ident, $body:expr, $($table:ident $tag:literal),*) => {$(
        let $objects = ($tag as u32, $view.$table().iter());
        $body;
    )*};
}

fn field_len(tag: u32, length: usize) -> u64 {
    (key_len(tag) + encoded_len_varint(length as u64) + length) as u64
}

fn header(tag: u32, length: u64, buffer: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(length, buffer);
}

fn encode_field<M: Message>(
    tag: u32,
    message: &M,
    buffer: &mut Vec<u8>,
    out: &mut impl Write,
) -> io::Result<()> {
    buffer.clear();
    header(tag, message.encoded_len() as u64, buffer);
    message.encode(buffer).map_err(io::Error::other)?;
    out.write_all(buffer)
}

/// Writes the snapshot of a view.
pub(super) fn encode(out: &mut impl Write, membership: &ClusterSnapshot, view: &View) -> io::Result<()> {
    let mut buffer = Vec::new();
    encode_field(MEMBERSHIP, membership, &mut buffer, out)?;

    let mut length = 0;
    each_table!(view, table => for object in table.1 { length += field_len(table.0, object.encoded_len()) });
    buffer.clear();
    header(STORE, length, &mut buffer);
    out.write_all(&buffer)?;
    each_table!(view, table => for object in table.1 { encode_field(table.0, &**object, &mut buffer, out)? });
    Ok(())
}

/// Reads a snapshot.
///
/// # Errors
/// If it makes no sense, or has a version that is not known here.
pub fn decode(mut from: impl Read) -> io::Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    let mut buffer = Vec::new();
    while let Some((tag, wire)) = read_key(&mut from)? {
        match (tag, wire) {
            (VERSION, 0) => {
                let version = read_varint(&mut from)?;
                if version != 0 {
                    return Err(invalid(format!("unrecognized snapshot version {version}")));
                }
            }
            (MEMBERSHIP, 2) => {
                let length = read_length(&mut from)?;
                read_exact(&mut from, length, &mut buffer)?;
                snapshot.membership.merge(buffer.as_slice())?;
            }
            (STORE, 2) => {
                let length = read_varint(&mut from)?;
                decode_store(&mut (&mut from).take(length), length, &mut snapshot.store)?;
            }
            _ => skip(&mut from, wire, &mut buffer)?,
        }
    }
    Ok(snapshot)
}

/// Merges object after object into the store's snapshot.
fn decode_store(from: &mut io::Take<impl Read>, length: u64, store: &mut StoreSnapshot) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut payload = Vec::new();
    while let Some((tag, wire)) = read_key(from)? {
        if wire != 2 {
            skip(from, wire, &mut payload)?;
            continue;
        }
        let size = read_length(from)?;
        read_exact(from, size, &mut payload)?;
        buffer.clear();
        header(tag, size, &mut buffer);
        buffer.extend_from_slice(&payload);
        store.merge(buffer.as_slice())?;
    }
    match from.limit() {
        0 => Ok(()),
        missing => Err(invalid(format!("{missing} of {length} bytes of the store are missing"))),
    }
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

fn read_byte(from: &mut impl Read) -> io::Result<Option<u8>> {
    let mut byte = [0];
    loop {
        match from.read(&mut byte) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(byte[0])),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn read_varint(from: &mut impl Read) -> io::Result<u64> {
    match read_optional_varint(from)? {
        Some(value) => Ok(value),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn read_optional_varint(from: &mut impl Read) -> io::Result<Option<u64>> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        match read_byte(from)? {
            None if shift == 0 => return Ok(None),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(byte) => {
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    return Ok(Some(value));
                }
            }
        }
    }
    Err(invalid("a number is too long"))
}

fn read_key(from: &mut impl Read) -> io::Result<Option<(u32, u8)>> {
    let Some(key) = read_optional_varint(from)? else { return Ok(None) };
    let tag = u32::try_from(key >> 3).map_err(|_| invalid("a field number is too large"))?;
    Ok(Some((tag, (key & 7) as u8)))
}

fn read_length(from: &mut impl Read) -> io::Result<u64> {
    match read_varint(from)? {
        length if length <= LONGEST => Ok(length),
        length => Err(invalid(format!("a field of {length} bytes"))),
    }
}

fn read_exact(from: &mut impl Read, length: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    if from.take(length).read_to_end(buffer)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn skip(from: &mut impl Read, wire: u8, buffer: &mut Vec<u8>) -> io::Result<()> {
    match wire {
        0 => read_varint(from).map(|_| ()),
        1 => read_exact(from, 8, buffer),
        2 => {
            let length = read_length(from)?;
            read_exact(from, length, buffer)
        }
        5 => read_exact(from, 4, buffer),
        _ => Err(invalid(format!("wire type {wire}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_api::v1::{Cluster, Node, RaftMember, Task};
    use swarm_api::{Object, Shared};
    use swarm_store::Tables;

    fn view() -> View {
        let mut tables = Tables::default();
        for i in 0..300 {
            let task = Task { id: format!("t{i:03}"), slot: i, ..Task::default() };
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
        let error = decode([0x08, 1].as_slice()).unwrap_err().to_string();
        assert_eq!(error, "unrecognized snapshot version 1");
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
