//! A member without a thread, for the fuzz target of raft messages.

use std::path::Path;
use std::sync::Arc;

use bytes::Buf as _;
use prost::Message as _;
use swarm_api::raftpb;
use swarm_api::v1::RaftMember;
use swarm_store::Store;

use super::RaftNode;
use super::turn::Turns;
use crate::check::{self, Verdict};
use crate::inbox::Request;
use crate::storage::MemoryDisk;
use crate::{Config, Error, Origin, PlainSealer, Ticks};

/// No script has more steps; what takes longer is not found here.
const MOST_STEPS: usize = 100;

/// Feeds member 3 of a group of three with what a script says, step by step: a byte that tells what happens, and for a
/// message its length (2 bytes, big-endian) and its encoding.
pub(crate) fn messages(mut script: &[u8], dir: &Path) {
    let member = |raft_id: u64| RaftMember {
        raft_id,
        node_id: format!("m{raft_id}"),
        addr: "a:1".to_owned(),
        ..RaftMember::default()
    };
    let config = Config {
        origin: Origin::Joined { raft_id: 3, members: (1..=3).map(member).collect() },
        ticks: Ticks { interval: None, ..Ticks::default() },
        seed: Some(7),
        ..Config::new("m3", "a:1", dir, Arc::new(PlainSealer))
    };
    let disk = MemoryDisk::new();
    let node = RaftNode::open_with(config, Box::new(disk.open())).expect("an empty disk is in order");
    let store = Store::new();
    store.attach(node.proposer());
    let mut turns = Turns::new(node, store.clone()).expect("nothing is there that could be wrong");
    let mut run = || -> Result<(), Error> {
        turns.settle()?;
        let mut steps = 0..MOST_STEPS;
        while script.has_remaining() && !turns.removed && steps.next().is_some() {
            match script.get_u8() {
                0 => (0..12).try_for_each(|_| turns.tick())?,
                1 => turns.request(Request::Campaign)?,
                2 if script.has_remaining() => {
                    let (member, kind) = (u64::from(script.get_u8()), script.remaining() % 3);
                    turns.request(match kind {
                        0 => Request::Unreachable(member),
                        kind => Request::SnapshotSent(member, kind == 1),
                    })?;
                }
                _ if script.remaining() < 2 => break,
                _ => {
                    let length = usize::from(script.get_u16()).min(script.remaining());
                    let Ok(message) = raftpb::Message::decode(script.copy_to_bytes(length)) else { continue };
                    match check::admit(&message, turns.shared.raft_id, &turns.membership) {
                        Verdict::Take => turns.step(message)?,
                        _ => continue,
                    }
                }
            }
            turns.settle()?;
        }
        Ok(())
    };
    let ended = run();
    turns.compaction.wait();
    turns.compaction.wait_for_collected();
    store.close();
    match ended {
        // The leader is believed that this member has lost its log.
        Ok(()) | Err(Error::LogLost { .. }) => {}
        Err(error) => panic!("a peer ended the member: {error}"),
    }
}
