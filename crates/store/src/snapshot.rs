//! Snapshots in the contract's encoding (message `Snapshot`), written and read object by object: neither the
//! whole encoding nor a second copy of the state is ever in memory.

use std::io::{self, BufRead, Read as _, Write};

use bytes::BufMut;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use swarm_api::v1::{ClusterSnapshot, StoreSnapshot, snapshot};

use crate::intern::Interner;
use crate::{Error, Tables};

/// Bytes that are gathered before they are written.
const CHUNK: usize = 64 * 1024;

/// Fields of `Snapshot`.
const VERSION: u32 = 1;
const MEMBERSHIP: u32 = 2;
const STORE: u32 = 3;

/// Calls `$each!(tag, objects)` for each table in the order of the contract's fields.
macro_rules! tables {
    ($tables:expr, $each:ident) => {
        $each!(1, $tables.nodes());
        $each!(2, $tables.services());
        $each!(3, $tables.networks());
        $each!(4, $tables.tasks());
        $each!(5, $tables.clusters());
        $each!(6, $tables.secrets());
        $each!(7, $tables.resources());
        $each!(8, $tables.extensions());
        $each!(9, $tables.configs());
        $each!(10, $tables.volumes());
    };
}

/// What is to be written, with every length known.
///
/// ```
/// # use swarm_store::{Store, snapshot};
/// let view = Store::local().view();
/// let membership = Default::default();
/// let plan = snapshot::Plan::new(&view, &membership);
/// let mut bytes = Vec::new();
/// plan.write_to(&mut bytes).unwrap();
/// assert_eq!(bytes.len() as u64, plan.len());
/// assert_eq!(snapshot::read_from(&mut &bytes[..]).unwrap().0, membership);
/// ```
pub struct Plan<'a> {
    tables: &'a Tables,
    membership: &'a ClusterSnapshot,
    /// Encoded length of each object, in the order in which they are written.
    lengths: Vec<u32>,
    store: usize,
}

impl std::fmt::Debug for Plan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").field("len", &self.len()).finish_non_exhaustive()
    }
}

fn field_len(tag: u32, len: usize) -> usize {
    prost::encoding::key_len(tag) + encoded_len_varint(len as u64) + len
}

impl<'a> Plan<'a> {
    /// Measures every object.
    pub fn new(tables: &'a Tables, membership: &'a ClusterSnapshot) -> Plan<'a> {
        let (mut lengths, mut store) = (Vec::new(), 0);
        macro_rules! measure {
            ($tag:literal, $table:expr) => {
                lengths.reserve($table.len());
                for object in $table.iter() {
                    let len = object.encoded_len();
                    // An object came through a log entry, which is far smaller.
                    lengths.push(u32::try_from(len).unwrap_or(u32::MAX));
                    store += field_len($tag, len);
                }
            };
        }
        tables!(tables, measure);
        Plan { tables, membership, lengths, store }
    }

    /// Bytes that [`Plan::write_to`] writes.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> u64 {
        (field_len(MEMBERSHIP, self.membership.encoded_len()) + field_len(STORE, self.store)) as u64
    }

    /// Writes the snapshot, in pieces of about 64 KiB.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(CHUNK * 2);
        // The version is V0, which is not encoded.
        prost::encoding::message::encode(MEMBERSHIP, self.membership, &mut buffer);
        head(STORE, self.store, &mut buffer);
        let mut lengths = self.lengths.iter();
        macro_rules! write {
            ($tag:literal, $table:expr) => {
                for (object, len) in $table.iter().zip(lengths.by_ref()) {
                    head($tag, *len as usize, &mut buffer);
                    object.encode_raw(&mut buffer);
                    if buffer.len() >= CHUNK {
                        out.write_all(&buffer)?;
                        buffer.clear();
                    }
                }
            };
        }
        tables!(self.tables, write);
        out.write_all(&buffer)
    }
}

fn head(tag: u32, len: usize, buffer: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(len as u64, buffer);
}

/// Writes a snapshot of the tables and of the raft group; see [`Plan`].
///
/// # Errors
/// Those of `out`.
pub fn encode_to(tables: &Tables, membership: &ClusterSnapshot, out: &mut impl Write) -> io::Result<()> {
    Plan::new(tables, membership).write_to(out)
}

/// Reads a snapshot from memory; see [`read_from`].
///
/// # Errors
/// [`Error::Decode`]
pub fn decode(bytes: &[u8]) -> Result<(ClusterSnapshot, StoreSnapshot), Error> {
    read_from(&mut &*bytes)
}

/// Reads a snapshot object by object, to the end of `from`. Tasks share what they have in common.
///
/// # Errors
/// [`Error::Decode`] if it is cut short, not a snapshot, or of another version than V0.
pub fn read_from(from: &mut impl BufRead) -> Result<(ClusterSnapshot, StoreSnapshot), Error> {
    let mut reader = Reader { from, left: u64::MAX, scratch: Vec::new() };
    let (mut membership, mut store) = (ClusterSnapshot::default(), StoreSnapshot::default());
    let mut interner = Interner::default();
    while let Some((tag, wire_type)) = reader.key()? {
        match (tag, wire_type) {
            (VERSION, WireType::Varint) => {
                let version = reader.varint()?;
                if version != snapshot::Version::V0 as u64 {
                    return Err(broken(format!("its version {version} is unknown")));
                }
            }
            (MEMBERSHIP, WireType::LengthDelimited) => {
                let bytes = reader.bytes()?;
                membership.merge(bytes).map_err(broken)?;
            }
            (STORE, WireType::LengthDelimited) => {
                let end = reader.left;
                let len = reader.varint()?;
                reader.left = len;
                reader.store(&mut store, &mut interner)?;
                if reader.left > 0 {
                    return Err(broken("it is cut short"));
                }
                reader.left = end;
            }
            (VERSION | MEMBERSHIP | STORE, _) => return Err(broken("a field is of another kind")),
            _ => reader.skip(wire_type)?,
        }
    }
    Ok((membership, store))
}

fn broken(reason: impl ToString) -> Error {
    Error::Decode { what: "snapshot", reason: reason.to_string() }
}

struct Reader<'a, R> {
    from: &'a mut R,
    /// Bytes to the end of the message.
    left: u64,
    /// The object that is being read.
    scratch: Vec<u8>,
}

impl<R: BufRead> Reader<'_, R> {
    fn byte(&mut self) -> Result<Option<u8>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        let byte = self.from.fill_buf().map_err(broken)?.first().copied();
        if byte.is_some() {
            self.from.consume(1);
            self.left -= 1;
        }
        Ok(byte)
    }

    /// The rest of a varint whose first byte was read.
    fn varint_after(&mut self, first: u8) -> Result<u64, Error> {
        let (mut value, mut byte, mut shift) = (u64::from(first & 0x7f), first, 0);
        while byte >= 0x80 {
            byte = self.byte()?.ok_or_else(|| broken("it is cut short"))?;
            shift += 7;
            // Of the tenth byte one bit is left.
            if shift > 63 || (shift == 63 && byte > 1) {
                return Err(broken("a number has too many bytes"));
            }
            value |= u64::from(byte & 0x7f) << shift;
        }
        Ok(value)
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let first = self.byte()?.ok_or_else(|| broken("it is cut short"))?;
        self.varint_after(first)
    }

    /// The next field; `None` at the end of the message.
    fn key(&mut self) -> Result<Option<(u32, WireType)>, Error> {
        let Some(first) = self.byte()? else { return Ok(None) };
        let key = self.varint_after(first)?;
        // The encoding has 29 bits for a field's number, beside three for its kind.
        let key = u32::try_from(key).map_err(|_| broken("a field's number is too large"))?;
        let wire_type = WireType::try_from(u64::from(key & 7)).map_err(broken)?;
        match key >> 3 {
            0 => Err(broken("a field has no number")),
            tag => Ok(Some((tag, wire_type))),
        }
    }

    /// A length and as many bytes.
    fn bytes(&mut self) -> Result<&[u8], Error> {
        let len = self.varint()?;
        self.take(len)
    }

    fn take(&mut self, len: u64) -> Result<&[u8], Error> {
        if len > self.left {
            return Err(broken("a field is longer than what it is in"));
        }
        self.scratch.clear();
        let read = self.from.take(len).read_to_end(&mut self.scratch).map_err(broken)?;
        if read as u64 != len {
            return Err(broken("it is cut short"));
        }
        self.left -= len;
        Ok(&self.scratch)
    }

    fn skip(&mut self, wire_type: WireType) -> Result<(), Error> {
        match wire_type {
            WireType::Varint => self.varint().map(drop),
            WireType::SixtyFourBit => self.take(8).map(drop),
            WireType::ThirtyTwoBit => self.take(4).map(drop),
            WireType::LengthDelimited => self.bytes().map(drop),
            WireType::StartGroup | WireType::EndGroup => Err(broken("it has a group")),
        }
    }

    fn object<T: Message + Default>(&mut self) -> Result<T, Error> {
        T::decode(self.bytes()?).map_err(broken)
    }

    fn store(&mut self, store: &mut StoreSnapshot, interner: &mut Interner) -> Result<(), Error> {
        while let Some((tag, wire_type)) = self.key()? {
            match (tag, wire_type) {
                (1, WireType::LengthDelimited) => store.nodes.push(self.object()?),
                (2, WireType::LengthDelimited) => {
                    let service = self.object()?;
                    interner.service(&service);
                    store.services.push(service);
                }
                (3, WireType::LengthDelimited) => {
                    let network = self.object()?;
                    interner.network(&network);
                    store.networks.push(network);
                }
                (4, WireType::LengthDelimited) => {
                    let mut task = self.object()?;
                    interner.task(&mut task);
                    store.tasks.push(task);
                }
                (5, WireType::LengthDelimited) => store.clusters.push(self.object()?),
                (6, WireType::LengthDelimited) => store.secrets.push(self.object()?),
                (7, WireType::LengthDelimited) => store.resources.push(self.object()?),
                (8, WireType::LengthDelimited) => store.extensions.push(self.object()?),
                (9, WireType::LengthDelimited) => store.configs.push(self.object()?),
                (10, WireType::LengthDelimited) => store.volumes.push(self.object()?),
                (1..=10, _) => return Err(broken("a field is of another kind")),
                _ => self.skip(wire_type)?,
            }
        }
        Ok(())
    }
}
