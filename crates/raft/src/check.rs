//! What a message from a peer must satisfy before the raft library sees it. The library panics on input that a
//! sound peer would never send; a manager must not die of another one's defect, or of a lost log of its own.
//!
//! [`admit`] needs only the membership and is asked before a message is queued. [`check`] compares it with the
//! state of the raft node, right before it is stepped.

use std::collections::BTreeSet;

use swarm_api::raftpb::{EntryType, Message, MessageType};
use swarm_store::Tables;

use crate::Membership;
use crate::storage::Position;

/// Terms and indexes beyond this are not reached in the lifetime of a cluster; they would only overflow.
pub(crate) const LARGEST: u64 = 1 << 62;

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may be stepped.
    Take,
    /// It is ignored, which raft can live with; the reason is for the log.
    Ignore(&'static str),
    /// The sender was removed and should be told.
    RemovedSender,
    /// The leader knows that we acknowledged more than we have: our log was lost.
    LogLost,
}

/// The part of the raft node's state that messages are compared with.
pub(crate) struct State<'a> {
    pub(crate) term: u64,
    pub(crate) leader: u64,
    /// What the log begins after; it is committed.
    pub(crate) base: Position,
    pub(crate) last: u64,
    /// This manager must not become leader.
    pub(crate) diverged: bool,
    /// What the given member has acknowledged, on a leader.
    pub(crate) matched: &'a dyn Fn(u64) -> u64,
}

fn kind(message: &Message) -> Option<MessageType> {
    MessageType::try_from(message.r#type).ok()
}

/// A kind of message that only leaders send.
pub(crate) fn is_leaders(message: &Message) -> bool {
    use MessageType as T;
    matches!(kind(message), Some(T::MsgApp | T::MsgSnap | T::MsgHeartbeat | T::MsgTimeoutNow))
}

/// The checks that need no raft state, in the contract's order.
pub(crate) fn admit(message: &Message, own: u64, membership: &Membership) -> Verdict {
    use MessageType as T;
    if membership.is_removed(message.from) {
        return Verdict::RemovedSender;
    }
    let Some(kind) = kind(message) else { return Verdict::Ignore("unknown kind of message") };
    let asks_for_vote = matches!(kind, T::MsgVote | T::MsgPreVote);
    if asks_for_vote && membership.get(message.from).is_none() {
        return Verdict::Ignore("a vote request from a non-member");
    }
    match kind {
        T::MsgProp => return Verdict::Ignore("a forwarded proposal"),
        T::MsgApp | T::MsgAppResp | T::MsgVote | T::MsgVoteResp | T::MsgSnap | T::MsgHeartbeat => {}
        T::MsgHeartbeatResp | T::MsgTimeoutNow | T::MsgPreVote | T::MsgPreVoteResp => {}
        // Read indexes and transfers are asked of a leader by itself only.
        _ => return Verdict::Ignore("a kind of message that peers don't send"),
    }
    if message.to != own {
        return Verdict::Ignore("a message for another member");
    }
    if message.from == own || message.from == 0 {
        return Verdict::Ignore("a message without a proper sender");
    }
    if message.term == 0 {
        return Verdict::Ignore("a message without a term");
    }
    let numbers = [message.term, message.log_term, message.index, message.commit, message.reject_hint];
    if numbers.iter().any(|n| *n > LARGEST) {
        return Verdict::Ignore("a number beyond all bounds");
    }
    match kind {
        T::MsgApp => admit_entries(message),
        T::MsgSnap => admit_snapshot(message),
        _ => Verdict::Take,
    }
}

fn admit_entries(message: &Message) -> Verdict {
    let mut term = message.log_term;
    if term > message.term {
        return Verdict::Ignore("the entry before is of a later term than the message");
    }
    if (term == 0) != (message.index == 0) {
        // The library takes term 0 for that of every entry that it does not have.
        return Verdict::Ignore("the entry before has no term");
    }
    for (index, entry) in (message.index + 1..).zip(&message.entries) {
        if entry.index != index {
            return Verdict::Ignore("the entries have a gap");
        }
        if entry.term < term || entry.term > message.term || entry.term == 0 {
            return Verdict::Ignore("the entries' terms make no sense");
        }
        if EntryType::try_from(entry.r#type).is_err() {
            return Verdict::Ignore("an entry of an unknown type");
        }
        term = entry.term;
    }
    Verdict::Take
}

fn admit_snapshot(message: &Message) -> Verdict {
    let Some(snapshot) = &message.snapshot else { return Verdict::Ignore("a snapshot message without one") };
    let metadata = &snapshot.metadata;
    if metadata.index == 0 || metadata.index > LARGEST || metadata.term == 0 || metadata.term > message.term {
        return Verdict::Ignore("the snapshot's position makes no sense");
    }
    let state = &metadata.conf_state;
    let unique: BTreeSet<u64> = state.voters.iter().copied().collect();
    if unique.is_empty() || unique.len() != state.voters.len() || unique.contains(&0) {
        return Verdict::Ignore("the snapshot's voters make no sense");
    }
    let joint = !state.voters_outgoing.is_empty() || !state.learners_next.is_empty() || state.auto_leave;
    if joint || !state.learners.is_empty() {
        return Verdict::Ignore("the snapshot has learners or a joint configuration");
    }
    let data = snapshot.data.as_deref().unwrap_or_default();
    // Once the library has it there is no way back: the log is dropped for it.
    match crate::snapshot::decode(data).map(|content| Tables::from_snapshot(content.store)) {
        Ok(Ok(_)) => Verdict::Take,
        Ok(Err(_)) => Verdict::Ignore("the snapshot's objects contradict each other"),
        Err(_) => Verdict::Ignore("the snapshot's content can't be read"),
    }
}

/// Compares an admitted message with the state of the raft node.
pub(crate) fn check(message: &Message, state: &State<'_>) -> Verdict {
    use MessageType as T;
    let Some(kind) = kind(message) else { return Verdict::Ignore("unknown kind of message") };
    let current = message.term >= state.term;
    match kind {
        T::MsgApp | T::MsgSnap | T::MsgHeartbeat
            if message.term == state.term && state.leader != 0 && message.from != state.leader =>
        {
            Verdict::Ignore("a second leader in one term")
        }
        T::MsgHeartbeat if current && message.commit > state.last => Verdict::LogLost,
        T::MsgApp if message.index >= state.base.index && message.log_term < state.base.term => {
            // The library would look for the place where the logs part, and there is none.
            Verdict::Ignore("the entry before contradicts what is committed here")
        }
        T::MsgAppResp if message.index > state.last || message.reject_hint > state.last => {
            Verdict::Ignore("an answer about entries that were never sent")
        }
        T::MsgAppResp
            if message.reject
                && message.reject_hint < (state.matched)(message.from)
                && message.index > (state.matched)(message.from) =>
        {
            // The sender lost what it had acknowledged; it must join anew.
            Verdict::Ignore("a member went back behind what it had acknowledged")
        }
        T::MsgTimeoutNow if state.diverged => {
            Verdict::Ignore("a manager that differs from the others can't lead")
        }
        T::MsgTimeoutNow if message.term != state.term || message.from != state.leader => {
            Verdict::Ignore("only the leader may hand over leadership")
        }
        _ => Verdict::Take,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use prost::Message as _;
    use swarm_api::raftpb::{ConfState, Entry, Snapshot, SnapshotMetadata};
    use swarm_api::v1::{ClusterSnapshot, RaftMember};

    const OWN: u64 = 1;

    fn membership() -> Membership {
        let member = |raft_id| RaftMember { raft_id, ..RaftMember::default() };
        Membership::from_snapshot(&ClusterSnapshot { members: vec![member(1), member(2)], removed: vec![66] })
    }

    fn message(kind: MessageType) -> Message {
        Message {
            r#type: kind as i32,
            to: OWN,
            from: 2,
            term: 5,
            log_term: 4,
            index: 10,
            ..Message::default()
        }
    }

    fn snapshot() -> Message {
        let conf_state = ConfState { voters: vec![1, 2], ..ConfState::default() };
        let metadata = SnapshotMetadata { conf_state, index: 10, term: 4 };
        let data = swarm_api::v1::Snapshot::default().encode_to_vec();
        let snapshot = Some(Snapshot { data: Some(Bytes::from(data)), metadata });
        Message { snapshot, ..message(MessageType::MsgSnap) }
    }

    fn with(mut message: Message, change: impl FnOnce(&mut Message)) -> Message {
        change(&mut message);
        message
    }

    fn append(entries: &[(u64, u64, i32)]) -> Message {
        let entry = |&(index, term, r#type): &(u64, u64, i32)| Entry { index, term, r#type, data: None };
        Message { entries: entries.iter().map(entry).collect(), ..message(MessageType::MsgApp) }
    }

    #[test]
    fn sound_messages_are_admitted() {
        use MessageType::*;
        for kind in [MsgApp, MsgAppResp, MsgVote, MsgVoteResp, MsgHeartbeat, MsgHeartbeatResp, MsgTimeoutNow]
        {
            assert_eq!(admit(&message(kind), OWN, &membership()), Verdict::Take, "{kind:?}");
        }
        let entries = append(&[(11, 4, 0), (12, 4, 1), (13, 5, 2)]);
        assert_eq!(admit(&entries, OWN, &membership()), Verdict::Take);
        assert_eq!(admit(&snapshot(), OWN, &membership()), Verdict::Take);
        // A lagging follower may not know its leader yet.
        let stranger = with(message(MsgApp), |m| m.from = 9);
        assert_eq!(admit(&stranger, OWN, &membership()), Verdict::Take);
        let empty = with(message(MsgHeartbeat), |m| m.snapshot = Some(Snapshot::default()));
        assert_eq!(admit(&empty, OWN, &membership()), Verdict::Take);
    }

    #[test]
    fn removed_senders_are_told_whatever_they_send() {
        let removed = with(message(MessageType::MsgProp), |m| m.from = 66);
        assert_eq!(admit(&removed, OWN, &membership()), Verdict::RemovedSender);
    }

    #[test]
    fn unsound_messages_are_ignored() {
        use MessageType::*;
        let voters = |voters: &'static [u64]| {
            with(snapshot(), |m| m.snapshot.as_mut().unwrap().metadata.conf_state.voters = voters.to_vec())
        };
        let metadata = |change: fn(&mut SnapshotMetadata)| {
            with(snapshot(), |m| change(&mut m.snapshot.as_mut().unwrap().metadata))
        };
        let cases = [
            ("unknown kind", with(message(MsgApp), |m| m.r#type = 77)),
            ("negative kind", with(message(MsgApp), |m| m.r#type = -1)),
            ("hup", message(MsgHup)),
            ("beat", message(MsgBeat)),
            ("proposal", message(MsgProp)),
            ("unreachable", message(MsgUnreachable)),
            ("snapshot status", message(MsgSnapStatus)),
            ("check quorum", message(MsgCheckQuorum)),
            ("transfer", message(MsgTransferLeader)),
            ("read index", message(MsgReadIndex)),
            ("read index answer", message(MsgReadIndexResp)),
            ("storage", message(MsgStorageAppend)),
            ("forget", message(MsgForgetLeader)),
            ("vote of a stranger", with(message(MsgVote), |m| m.from = 9)),
            ("pre-vote of a stranger", with(message(MsgPreVote), |m| m.from = 9)),
            ("for another", with(message(MsgApp), |m| m.to = 3)),
            ("from itself", with(message(MsgApp), |m| m.from = OWN)),
            ("from nobody", with(message(MsgApp), |m| m.from = 0)),
            ("no term", with(message(MsgApp), |m| m.term = 0)),
            ("endless term", with(message(MsgHeartbeat), |m| m.term = u64::MAX)),
            ("endless index", with(message(MsgApp), |m| m.index = u64::MAX)),
            ("endless commit", with(message(MsgHeartbeat), |m| m.commit = u64::MAX)),
            ("later entry before", with(message(MsgApp), |m| m.log_term = 6)),
            ("no term before", with(message(MsgApp), |m| m.log_term = 0)),
            ("a term before the first", with(message(MsgApp), |m| m.index = 0)),
            ("gap", append(&[(11, 4, 0), (13, 4, 0)])),
            ("too early", append(&[(10, 4, 0)])),
            ("falling terms", append(&[(11, 5, 0), (12, 4, 0)])),
            ("below the entry before", append(&[(11, 3, 0)])),
            ("above the message", append(&[(11, 6, 0)])),
            ("unknown type of entry", append(&[(11, 4, 3)])),
            ("negative type of entry", append(&[(11, 4, -1)])),
            ("no snapshot", with(snapshot(), |m| m.snapshot = None)),
            ("empty snapshot", with(snapshot(), |m| m.snapshot = Some(Snapshot::default()))),
            ("no voters", voters(&[])),
            ("doubled voters", voters(&[1, 2, 2])),
            ("voter 0", voters(&[0, 1])),
            ("snapshot of the future", metadata(|m| m.term = 6)),
            ("learners", metadata(|m| m.conf_state.learners = vec![3])),
            ("joint", metadata(|m| m.conf_state.voters_outgoing = vec![3])),
            ("next learners", metadata(|m| m.conf_state.learners_next = vec![3])),
            ("auto leave", metadata(|m| m.conf_state.auto_leave = true)),
            (
                "content",
                with(snapshot(), |m| {
                    m.snapshot.as_mut().unwrap().data = Some(Bytes::from_static(&[0xff]));
                }),
            ),
            (
                "an object twice",
                with(snapshot(), |m| {
                    let mut content = swarm_api::v1::Snapshot::default();
                    let node = swarm_api::v1::Node { id: "n".into(), ..Default::default() };
                    content.store.nodes = vec![node.clone().into(), node.into()];
                    m.snapshot.as_mut().unwrap().data = Some(content.encode_to_vec().into());
                }),
            ),
        ];
        for (name, message) in cases {
            let verdict = admit(&message, OWN, &membership());
            assert!(matches!(verdict, Verdict::Ignore(_)), "{name}: {verdict:?}");
        }
    }

    #[test]
    fn admitted_messages_are_compared_with_our_state() {
        use MessageType::*;
        let matched = |id| if id == 2 { 8 } else { 0 };
        let base = Position { index: 7, term: 4 };
        let state = State { term: 5, leader: 2, base, last: 20, diverged: false, matched: &matched };
        let diverged = State { diverged: true, matched: &matched, ..state };
        let cases = [
            ("heartbeat", with(message(MsgHeartbeat), |m| m.commit = 20), Verdict::Take),
            ("lost log", with(message(MsgHeartbeat), |m| m.commit = 21), Verdict::LogLost),
            (
                "second leader",
                with(message(MsgHeartbeat), |m| (m.commit, m.from) = (21, 3)),
                Verdict::Ignore(""),
            ),
            ("new leader", with(message(MsgApp), |m| (m.term, m.from) = (6, 3)), Verdict::Take),
            ("stale leader", with(message(MsgHeartbeat), |m| (m.commit, m.term) = (21, 4)), Verdict::Take),
            ("answer", with(message(MsgAppResp), |m| m.index = 20), Verdict::Take),
            ("never sent", with(message(MsgAppResp), |m| m.index = 21), Verdict::Ignore("")),
            ("hint", with(message(MsgAppResp), |m| (m.reject, m.reject_hint) = (true, 9)), Verdict::Take),
            (
                "far hint",
                with(message(MsgAppResp), |m| (m.reject, m.reject_hint) = (true, 21)),
                Verdict::Ignore(""),
            ),
            (
                "went back",
                with(message(MsgAppResp), |m| (m.reject, m.reject_hint) = (true, 7)),
                Verdict::Ignore(""),
            ),
            ("transfer", message(MsgTimeoutNow), Verdict::Take),
            ("not the leader", with(message(MsgTimeoutNow), |m| m.from = 3), Verdict::Ignore("")),
            ("another term", with(message(MsgTimeoutNow), |m| m.term = 6), Verdict::Ignore("")),
        ];
        let same = |a: &Verdict, b: &Verdict| std::mem::discriminant(a) == std::mem::discriminant(b);
        for (name, message, expected) in cases {
            let verdict = check(&message, &state);
            assert!(same(&verdict, &expected), "{name}: {verdict:?}");
        }
        assert!(same(&check(&message(MsgTimeoutNow), &diverged), &Verdict::Ignore("")));
    }
}
