//! Between the contract's messages and those of the raft library. Payloads are moved, not copied.
//!
//! Fields that the two define differently are dropped both ways, so is everything that a kind of message does not
//! use: what was not checked does not reach the library.

use raft_proto::eraftpb::{self, MessageType};
use swarm_api::raftpb;

fn entry_to_wire(entry: eraftpb::Entry) -> raftpb::Entry {
    let data = (!entry.data.is_empty()).then_some(entry.data);
    raftpb::Entry { r#type: entry.entry_type, term: entry.term, index: entry.index, data }
}

fn entry_from_wire(entry: raftpb::Entry) -> eraftpb::Entry {
    eraftpb::Entry {
        entry_type: entry.r#type,
        term: entry.term,
        index: entry.index,
        data: entry.data.unwrap_or_default(),
        ..eraftpb::Entry::default()
    }
}

fn conf_state_to_wire(state: eraftpb::ConfState) -> raftpb::ConfState {
    raftpb::ConfState { voters: state.voters, ..raftpb::ConfState::default() }
}

/// Converts a message that is to be sent.
pub(crate) fn to_wire(message: eraftpb::Message) -> raftpb::Message {
    let snapshot = message.snapshot.filter(|s| !s.is_empty()).map(|snapshot| {
        let metadata = snapshot.metadata.unwrap_or_default();
        raftpb::Snapshot {
            data: (!snapshot.data.is_empty()).then_some(snapshot.data),
            metadata: raftpb::SnapshotMetadata {
                conf_state: conf_state_to_wire(metadata.conf_state.unwrap_or_default()),
                index: metadata.index,
                term: metadata.term,
            },
        }
    });
    raftpb::Message {
        r#type: message.msg_type,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.into_iter().map(entry_to_wire).collect(),
        commit: message.commit,
        snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: (!message.context.is_empty()).then_some(message.context),
        vote: 0,
        responses: Vec::new(),
    }
}

/// Converts a received message that was checked.
pub(crate) fn from_wire(message: raftpb::Message) -> eraftpb::Message {
    let kind = MessageType::try_from(message.r#type).unwrap_or(MessageType::MsgHup);
    let mut converted = eraftpb::Message {
        msg_type: kind as i32,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        commit: message.commit,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context.unwrap_or_default(),
        ..eraftpb::Message::default()
    };
    match kind {
        MessageType::MsgAppend => {
            converted.entries = message.entries.into_iter().map(entry_from_wire).collect();
        }
        MessageType::MsgSnapshot => {
            converted.snapshot = message.snapshot.map(|snapshot| eraftpb::Snapshot {
                data: snapshot.data.unwrap_or_default(),
                metadata: Some(eraftpb::SnapshotMetadata {
                    conf_state: Some(eraftpb::ConfState {
                        voters: snapshot.metadata.conf_state.voters,
                        ..eraftpb::ConfState::default()
                    }),
                    index: snapshot.metadata.index,
                    term: snapshot.metadata.term,
                }),
            });
        }
        _ => {}
    }
    converted
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn an_append_survives_the_way_there_and_back() {
        let entry =
            eraftpb::Entry { index: 8, term: 3, data: Bytes::from_static(b"x"), ..Default::default() };
        let message = eraftpb::Message {
            msg_type: MessageType::MsgAppend as i32,
            to: 1,
            from: 2,
            term: 3,
            log_term: 3,
            index: 7,
            commit: 6,
            entries: vec![entry],
            ..Default::default()
        };
        let wire = to_wire(message.clone());
        assert_eq!(wire.r#type, raftpb::MessageType::MsgApp as i32);
        assert_eq!(from_wire(wire), message);
    }

    #[test]
    fn what_only_one_side_knows_is_dropped() {
        let message = eraftpb::Message {
            msg_type: MessageType::MsgRequestVote as i32,
            request_snapshot: 1,
            deprecated_priority: 2,
            commit_term: 3,
            priority: 4,
            ..Default::default()
        };
        let wire = to_wire(message);
        assert_eq!((wire.vote, wire.responses.len()), (0, 0));
        let back = from_wire(raftpb::Message { vote: 9, responses: vec![wire.clone()], ..wire });
        let ours = eraftpb::Message { msg_type: MessageType::MsgRequestVote as i32, ..Default::default() };
        assert_eq!(back, ours);
    }

    #[test]
    fn the_empty_snapshot_of_older_peers_is_none() {
        let message = raftpb::Message {
            r#type: raftpb::MessageType::MsgHeartbeat as i32,
            snapshot: Some(raftpb::Snapshot::default()),
            entries: vec![raftpb::Entry::default()],
            ..Default::default()
        };
        let converted = from_wire(message);
        assert!(converted.snapshot.is_none() && converted.entries.is_empty());
    }
}
