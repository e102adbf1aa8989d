//! rust-protobuf's `Message` for our messages. `raft` calls only sizes, bytes and merging of them.

use std::any::Any;
use std::io::Read as _;
use std::sync::LazyLock;

use prost::Message as _;
use protobuf::reflect::MessageDescriptor;
use protobuf::{Clear, CodedInputStream, CodedOutputStream, ProtobufError, ProtobufResult, UnknownFields};

use crate::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeV2, ConfState, Entry, HardState, Message, Snapshot,
    SnapshotMetadata,
};

static NO_UNKNOWN_FIELDS: LazyLock<UnknownFields> = LazyLock::new(UnknownFields::new);

fn invalid(error: prost::DecodeError) -> ProtobufError {
    ProtobufError::IoError(std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}

macro_rules! message {
    ($($type:ident),*) => {$(
        impl Clear for $type {
            fn clear(&mut self) {
                prost::Message::clear(self);
            }
        }

        impl protobuf::Message for $type {
            fn descriptor(&self) -> &'static MessageDescriptor {
                panic!("messages of raft have no descriptor")
            }
            fn is_initialized(&self) -> bool {
                true
            }
            fn merge_from(&mut self, is: &mut CodedInputStream<'_>) -> ProtobufResult<()> {
                let mut bytes = Vec::new();
                is.read_to_end(&mut bytes)?;
                self.merge(bytes.as_slice()).map_err(invalid)
            }
            fn merge_from_bytes(&mut self, bytes: &[u8]) -> ProtobufResult<()> {
                self.merge(bytes).map_err(invalid)
            }
            fn write_to_with_cached_sizes(&self, os: &mut CodedOutputStream<'_>) -> ProtobufResult<()> {
                os.write_raw_bytes(&self.encode_to_vec())
            }
            fn write_to_bytes(&self) -> ProtobufResult<Vec<u8>> {
                Ok(self.encode_to_vec())
            }
            fn compute_size(&self) -> u32 {
                u32::try_from(self.encoded_len()).unwrap_or(u32::MAX)
            }
            fn get_cached_size(&self) -> u32 {
                self.compute_size()
            }
            fn get_unknown_fields(&self) -> &UnknownFields {
                &NO_UNKNOWN_FIELDS
            }
            fn mut_unknown_fields(&mut self) -> &mut UnknownFields {
                panic!("messages of raft keep no unknown fields")
            }
            fn as_any(&self) -> &dyn Any {
                self
            }
            fn new() -> Self {
                Self::default()
            }
            fn default_instance() -> &'static Self {
                static INSTANCE: LazyLock<$type> = LazyLock::new($type::default);
                &INSTANCE
            }
        }
    )*};
}

message!(
    ConfChange,
    ConfChangeSingle,
    ConfChangeV2,
    ConfState,
    Entry,
    HardState,
    Message,
    Snapshot,
    SnapshotMetadata
);

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::Message as _;

    #[test]
    fn both_codecs_agree() {
        let mut entry = Entry { term: 3, index: 7, data: vec![1u8, 2, 3].into(), ..Entry::default() };
        entry.set_entry_type(crate::eraftpb::EntryType::EntryConfChange);
        let bytes = entry.write_to_bytes().unwrap();
        assert_eq!(bytes, entry.encode_to_vec());
        assert_eq!(bytes.len() as u32, entry.compute_size());
        assert_eq!(Entry::parse_from_bytes(&bytes).unwrap(), entry);
        let mut merged = Entry::default();
        merged.merge_from_bytes(&bytes).unwrap();
        assert_eq!(merged, entry);
        assert!(Entry::default().merge_from_bytes(&[0xff]).is_err());
    }
}
