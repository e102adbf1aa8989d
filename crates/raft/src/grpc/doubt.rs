//! Looking into whether the leader is gone, and having a member take over if a quorum says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use swarm_api::swarmd::peers_client::PeersClient;
use swarm_api::swarmd::{DoubtRequest, DoubtResponse};
use swarm_api::v1::RaftMember;
use swarm_pki::Dialer;
use tokio::time::{sleep, timeout};

use super::Inner;
use super::attend::{Absent, greet};
use crate::counters::add;
use crate::failover::{Doubt, LOOK_AGAIN, Refusals, Standing, delay};
use crate::handle::Shared;
use crate::storage::Position;

/// Time for one look at a leader.
const LOOK: Duration = Duration::from_millis(500);
/// Looks until a port has refused often enough.
const LOOKS: usize = 10;
/// Time for the answers of all others, who may wait for what their own calls to the leader show them.
const ANSWERS: Duration = Duration::from_millis(1500);

/// Why this member takes the leader for gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// Its port is closed, or its host is gone with it.
    Closed,
    /// It says itself that it does not lead.
    Resigned,
}

/// Asks the others what they make of a leader. If a quorum takes it for gone, this member asks for votes in its turn,
/// unless the leader is heard until then or another one has taken over. `heard` is the number of leaders' messages as of
/// when the doubt arose.
pub(super) async fn look_into(inner: &Arc<Inner>, leader: u64, heard: u64, evidence: Evidence) {
    let Some(node) = inner.node.get() else { return };
    let status = *node.status.borrow();
    if status.leader != leader || node.heard.count() != heard {
        return;
    }
    let doubt = Doubt { leader, term: status.term, heard };
    add(&node.counters.doubts, 1);
    let (members, others) = {
        let peers = inner.peers.read();
        let others = peers.membership.members().filter(|m| m.raft_id != leader && m.raft_id != node.raft_id);
        (peers.membership.len(), others.cloned().collect::<Vec<_>>())
    };
    let questions = others
        .iter()
        .map(|member| async { timeout(ANSWERS, ask(&inner.dialer, member, doubt)).await.ok().flatten() });
    let agreeing: Vec<Standing> = join_all(questions).await.into_iter().flatten().collect();
    // What the leader says of itself counts as well.
    let agree = 1 + agreeing.len() + usize::from(evidence == Evidence::Resigned);
    let leader = format!("{leader:x}");
    if agree <= members / 2 {
        tracing::info!(
            leader,
            ?evidence,
            agree,
            members,
            "this manager has lost the leader, but no quorum has"
        );
        return;
    }
    let Ok(own) = node.standing().await else { return };
    let Some(delay) = delay(&own, &agreeing) else { return };
    tracing::info!(leader, ?evidence, agree, members, ?delay, "a quorum takes the leader for gone");
    if evidence == Evidence::Closed {
        wait_for_silence(inner, node).await;
    }
    sleep(delay).await;
    node.take_over(doubt);
}

/// A leader that still sends is not gone, whatever its port does: it has until its next heartbeat to say so.
async fn wait_for_silence(inner: &Inner, node: &Shared) {
    let silence = inner.heartbeat() * 5 / 4;
    let missing = (node.heard.last() + silence).saturating_duration_since(Instant::now());
    sleep(missing).await;
}

/// Where another member stands, if it takes the leader for gone as well.
async fn ask(dialer: &Dialer, member: &RaftMember, doubt: Doubt) -> Option<Standing> {
    let channel = dialer.channel(&member.addr).ok()?;
    let request = DoubtRequest { leader: doubt.leader, term: doubt.term };
    match PeersClient::new(channel).doubt(request).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            let counts = answer.gone && answer.raft_id == member.raft_id;
            counts.then_some(Standing {
                raft_id: answer.raft_id,
                term: doubt.term,
                leader: doubt.leader,
                leads: false,
                last: Position { index: answer.last_index, term: answer.last_term },
                electable: answer.electable,
            })
        }
        // One of another make has no opinion, which counts as hearing the leader.
        Err(status) => {
            let member = format!("{:x}", member.raft_id);
            tracing::debug!(member, %status, "a manager does not say whether it has lost the leader");
            None
        }
    }
}

/// Answers another member's doubt: looks at the leader's port from here.
pub(super) async fn answer(
    dialer: &Dialer,
    node: &Shared,
    request: DoubtRequest,
) -> crate::Result<DoubtResponse> {
    let doubted =
        |s: &Standing| (s.leader, s.term) == (request.leader, request.term) && s.raft_id != request.leader;
    let heard = node.heard.count();
    let before = node.standing().await?;
    let addr = node.membership.borrow().get(request.leader).map(|member| member.addr.clone());
    let gone = match addr {
        Some(addr) if doubted(&before) => is_gone(dialer, &addr, node, &request).await,
        _ => false,
    };
    let after = node.standing().await?;
    Ok(DoubtResponse {
        raft_id: after.raft_id,
        gone: gone && doubted(&after) && node.heard.count() == heard,
        last_term: after.last.term,
        last_index: after.last.index,
        electable: after.electable,
    })
}

async fn is_gone(dialer: &Dialer, addr: &str, node: &Shared, request: &DoubtRequest) -> bool {
    // Who attends the leader here may know it already, or be about to.
    let known = async {
        while !node.closed.is(request.leader, node.heard.count(), Instant::now()) {
            sleep(LOOK_AGAIN / 4).await;
        }
    };
    tokio::pin!(known);
    let there = tokio::select! {
        biased;
        () = &mut known => return true,
        there = look_at(dialer, addr, node, request) => there,
    };
    match there {
        Some(there) => !there,
        None => timeout(LOOK * 4 / 5, known).await.is_ok(),
    }
}

/// Whether the leader is there. None if nobody answers at its address: that alone says nothing.
async fn look_at(dialer: &Dialer, addr: &str, node: &Shared, request: &DoubtRequest) -> Option<bool> {
    let mut refusals = Refusals::default();
    for _ in 0..LOOKS {
        match timeout(LOOK, greet(dialer, addr)).await {
            Ok(Err(Absent::Refused)) => refusals.refused(Instant::now(), node.heard.count()),
            Ok(Ok((first, _))) => {
                let itself = (first.raft_id, first.term) == (request.leader, request.term);
                return Some(!itself || first.leads);
            }
            Ok(Err(Absent::Silent | Absent::Unclear)) | Err(_) => return None,
            Ok(Err(Absent::Foreign | Absent::Failed(_))) => return Some(true),
        }
        if refusals.closed(Instant::now()).is_some() {
            return Some(false);
        }
        sleep(LOOK_AGAIN).await;
    }
    Some(true)
}
