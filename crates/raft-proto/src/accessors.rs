//! Accessors under the names that `raft` calls. A message field that is absent reads as its default.
//!
//! The published crate panics on an unknown enum number. Here it reads as the first value, which for messages is
//! a local kind that `raft` refuses to take from outside.

use std::fmt;
use std::sync::LazyLock;

use bytes::Bytes;

use crate::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry,
    EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
};

static NO_SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(Snapshot::default);
static NO_METADATA: LazyLock<SnapshotMetadata> = LazyLock::new(SnapshotMetadata::default);
static NO_CONF_STATE: LazyLock<ConfState> = LazyLock::new(ConfState::default);

/// Getter, setter and `mut_` for plain fields.
macro_rules! plain {
    ($message:ident { $($get:ident $set:ident $field:ident: $type:ty),* $(,)? }) => {
        impl $message {
            $(
                #[doc = concat!("Reads `", stringify!($field), "`.")]
                pub fn $get(&self) -> $type { self.$field }
                #[doc = concat!("Sets `", stringify!($field), "`.")]
                pub fn $set(&mut self, value: $type) { self.$field = value; }
            )*
        }
    };
}

/// The same for lists and bytes, with a `take_`.
macro_rules! owned {
    ($message:ident { $($get:ident $set:ident $mutable:ident $take:ident $field:ident: $type:ty as $slice:ty),* $(,)? }) => {
        impl $message {
            $(
                #[doc = concat!("Reads `", stringify!($field), "`.")]
                pub fn $get(&self) -> &$slice { &self.$field }
                #[doc = concat!("Sets `", stringify!($field), "`.")]
                pub fn $set(&mut self, value: $type) { self.$field = value; }
                #[doc = concat!("`", stringify!($field), "`, to be changed.")]
                pub fn $mutable(&mut self) -> &mut $type { &mut self.$field }
                #[doc = concat!("Takes `", stringify!($field), "` out.")]
                pub fn $take(&mut self) -> $type { std::mem::take(&mut self.$field) }
            )*
        }
    };
}

/// The same for embedded messages.
macro_rules! embedded {
    ($message:ident { $($has:ident $get:ident $set:ident $mutable:ident $take:ident $field:ident: $type:ty = $default:ident),* $(,)? }) => {
        impl $message {
            $(
                #[doc = concat!("`", stringify!($field), "` is there.")]
                pub fn $has(&self) -> bool { self.$field.is_some() }
                #[doc = concat!("Reads `", stringify!($field), "`.")]
                pub fn $get(&self) -> &$type { self.$field.as_ref().unwrap_or(&$default) }
                #[doc = concat!("Sets `", stringify!($field), "`.")]
                pub fn $set(&mut self, value: $type) { self.$field = Some(value); }
                #[doc = concat!("`", stringify!($field), "`, to be changed.")]
                pub fn $mutable(&mut self) -> &mut $type { self.$field.get_or_insert_default() }
                #[doc = concat!("Takes `", stringify!($field), "` out.")]
                pub fn $take(&mut self) -> $type { self.$field.take().unwrap_or_default() }
            )*
        }
    };
}

plain!(Entry { get_term set_term term: u64, get_index set_index index: u64 });
owned!(Entry {
    get_data set_data mut_data take_data data: Bytes as [u8],
    get_context set_context mut_context take_context context: Bytes as [u8],
});

plain!(SnapshotMetadata { get_term set_term term: u64, get_index set_index index: u64 });
embedded!(SnapshotMetadata {
    has_conf_state get_conf_state set_conf_state mut_conf_state take_conf_state conf_state: ConfState = NO_CONF_STATE,
});

owned!(Snapshot { get_data set_data mut_data take_data data: Bytes as [u8] });
embedded!(Snapshot {
    has_metadata get_metadata set_metadata mut_metadata take_metadata metadata: SnapshotMetadata = NO_METADATA,
});

plain!(Message {
    get_to set_to to: u64,
    get_from set_from from: u64,
    get_term set_term term: u64,
    get_log_term set_log_term log_term: u64,
    get_index set_index index: u64,
    get_commit set_commit commit: u64,
    get_commit_term set_commit_term commit_term: u64,
    get_reject set_reject reject: bool,
    get_reject_hint set_reject_hint reject_hint: u64,
    get_request_snapshot set_request_snapshot request_snapshot: u64,
    get_priority set_priority priority: i64,
});
owned!(Message {
    get_entries set_entries mut_entries take_entries entries: Vec<Entry> as [Entry],
    get_context set_context mut_context take_context context: Bytes as [u8],
});
embedded!(Message {
    has_snapshot get_snapshot set_snapshot mut_snapshot take_snapshot snapshot: Snapshot = NO_SNAPSHOT,
});

plain!(HardState {
    get_term set_term term: u64,
    get_vote set_vote vote: u64,
    get_commit set_commit commit: u64,
});

plain!(ConfState { get_auto_leave set_auto_leave auto_leave: bool });
owned!(ConfState {
    get_voters set_voters mut_voters take_voters voters: Vec<u64> as [u64],
    get_learners set_learners mut_learners take_learners learners: Vec<u64> as [u64],
    get_voters_outgoing set_voters_outgoing mut_voters_outgoing take_voters_outgoing voters_outgoing: Vec<u64> as [u64],
    get_learners_next set_learners_next mut_learners_next take_learners_next learners_next: Vec<u64> as [u64],
});

plain!(ConfChange { get_id set_id id: u64, get_node_id set_node_id node_id: u64 });
owned!(ConfChange { get_context set_context mut_context take_context context: Bytes as [u8] });

plain!(ConfChangeSingle { get_node_id set_node_id node_id: u64 });

owned!(ConfChangeV2 {
    get_changes set_changes mut_changes take_changes changes: Vec<ConfChangeSingle> as [ConfChangeSingle],
    get_context set_context mut_context take_context context: Bytes as [u8],
});

impl Entry {
    /// Reads `entry_type`.
    pub fn get_entry_type(&self) -> EntryType {
        self.entry_type()
    }
}

impl Message {
    /// Reads `msg_type`.
    pub fn get_msg_type(&self) -> MessageType {
        self.msg_type()
    }
}

impl ConfChange {
    /// Reads `change_type`.
    pub fn get_change_type(&self) -> ConfChangeType {
        self.change_type()
    }
}

impl ConfChangeSingle {
    /// Reads `change_type`.
    pub fn get_change_type(&self) -> ConfChangeType {
        self.change_type()
    }
}

impl ConfChangeV2 {
    /// Reads `transition`.
    pub fn get_transition(&self) -> ConfChangeTransition {
        self.transition()
    }
}

impl Snapshot {
    /// There is no snapshot with index 0: older peers send such an empty one with every message.
    pub fn is_empty(&self) -> bool {
        self.get_metadata().index == 0
    }
}

/// Without the payload, which may hold secrets: `raft` writes entries into its log messages.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("entry_type", &self.entry_type())
            .field("term", &self.term)
            .field("index", &self.index)
            .field("bytes", &self.data.len())
            .finish()
    }
}

/// Without the payload, which holds the cluster's keys.
impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("metadata", &self.metadata).field("bytes", &self.data.len()).finish()
    }
}
