//! A call to each other member that stays open for as long as both run. It shows who is ours, and its end shows at once
//! that a member's process has ended: the leader's is then looked into.

use std::error::Error as StdError;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use swarm_api::swarmd::peers_client::PeersClient;
use swarm_api::swarmd::{AttendRequest, AttendResponse};
use swarm_pki::{DialError, Dialer};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::doubt::{self, Evidence};
use super::{CALL_TIMEOUT, Inner, peer};
use crate::failover::{LOOK_AGAIN, Refusals};

/// Looks at a leader that follow each other quickly; after that, and at others always, they become rarer.
const QUICK: u32 = 8;
/// Longest pause between two attempts to reach a member.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Pause between two questions to a member of another make, which can only refuse them.
const FOREIGN_PAUSE: Duration = Duration::from_secs(1);

/// Why a member does not attend.
pub(super) enum Absent {
    /// Nobody listens at its port.
    Refused,
    /// It answers, but does not know the call.
    Foreign,
    /// Anything else: silence, another one at its address, a manager that is just starting.
    Failed(String),
}

/// What became of a connection that is waited on.
enum End {
    /// It was there.
    Lost,
    Absent(Absent),
}

/// Opens the call on a new connection.
pub(super) async fn greet(
    dialer: &Dialer,
    addr: &str,
) -> Result<(AttendResponse, Streaming<AttendResponse>), Absent> {
    let endpoint = swarm_pki::endpoint(addr).map_err(|e| Absent::Failed(e.to_string()))?;
    let channel = endpoint.connect_with_connector(dialer.clone()).await.map_err(|e| absent(&e))?;
    attend(&channel).await
}

async fn attend(channel: &Channel) -> Result<(AttendResponse, Streaming<AttendResponse>), Absent> {
    let opened = async {
        let mut stream = PeersClient::new(channel.clone()).attend(AttendRequest {}).await?.into_inner();
        let first = stream.message().await?;
        Ok::<_, Status>((first.ok_or_else(|| Status::unavailable("no answer"))?, stream))
    };
    match timeout(CALL_TIMEOUT, opened).await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(status)) if status.code() == Code::Unimplemented => Err(Absent::Foreign),
        Ok(Err(status)) => Err(absent(&status)),
        Err(_) => Err(Absent::Failed(format!("no answer within {CALL_TIMEOUT:?}"))),
    }
}

/// Only what the other host's kernel says of its port counts as a refusal. A time limit, an unreachable host or a
/// failure of TLS says nothing about whether a process runs there.
fn absent<'e>(error: &'e (dyn StdError + 'static)) -> Absent {
    let next = |error: &&'e (dyn StdError + 'static)| (*error).source();
    let mut sources = std::iter::successors(Some(error), next);
    let refused = sources.any(|error| {
        matches!(error.downcast_ref(), Some(DialError::Connect { source, .. })
            if source.kind() == ErrorKind::ConnectionRefused)
    });
    if refused { Absent::Refused } else { Absent::Failed(swarm_pki::innermost(error)) }
}

/// Attends one member.
pub(super) struct Attendant {
    inner: Arc<Inner>,
    raft_id: u64,
    ours: Arc<AtomicBool>,
    addr: watch::Receiver<String>,
}

impl Attendant {
    pub(super) fn new(
        inner: &Arc<Inner>,
        raft_id: u64,
        ours: Arc<AtomicBool>,
        addr: watch::Receiver<String>,
    ) -> Attendant {
        Attendant { inner: inner.clone(), raft_id, ours, addr }
    }

    /// Until the member is gone.
    pub(super) async fn run(mut self) {
        let gone = self.addr.clone();
        tokio::select! {
            () = self.attend_for_ever() => {}
            () = peer::closed(gone) => {}
        }
    }

    async fn attend_for_ever(&mut self) {
        let mut refusals = Refusals::default();
        let mut failures = 0;
        loop {
            let end = self.attend().await;
            let now = Instant::now();
            match &end {
                End::Lost => failures = 0,
                End::Absent(_) => failures += 1,
            }
            match (&end, self.inner.node.get()) {
                (End::Absent(Absent::Refused), Some(node)) => refusals.refused(now, node.heard.count()),
                _ => refusals.answered(),
            }
            if let End::Absent(Absent::Failed(reason)) = &end {
                tracing::debug!(member = format!("{:x}", self.raft_id), reason, "a manager does not attend");
            }
            if let Some(heard) = refusals.closed(now) {
                doubt::look_into(&self.inner, self.raft_id, heard, Evidence::Closed).await;
            }
            self.pause(failures).await;
        }
    }

    /// Opens the call and waits for its end.
    async fn attend(&mut self) -> End {
        let addr = self.addr.borrow_and_update().clone();
        let endpoint = match swarm_pki::endpoint(&addr) {
            Ok(endpoint) => endpoint,
            Err(error) => return End::Absent(Absent::Failed(error.to_string())),
        };
        let channel = match endpoint.connect_with_connector(self.inner.dialer.clone()).await {
            Ok(channel) => channel,
            Err(error) => return End::Absent(absent(&error)),
        };
        loop {
            match attend(&channel).await {
                Ok((first, stream)) if first.raft_id == self.raft_id => {
                    self.ours.store(true, Ordering::Release);
                    self.attended(&first, stream).await;
                    return End::Lost;
                }
                Ok((first, _)) => {
                    let reason = format!("the member {:x} answers at {addr}", first.raft_id);
                    return End::Absent(Absent::Failed(reason));
                }
                Err(Absent::Foreign) => {
                    self.ours.store(false, Ordering::Release);
                    tokio::select! {
                        () = sleep(FOREIGN_PAUSE) => {}
                        _ = self.addr.changed() => return End::Lost,
                    }
                }
                Err(absent) => return End::Absent(absent),
            }
        }
    }

    async fn attended(&mut self, first: &AttendResponse, mut stream: Streaming<AttendResponse>) {
        if let Some(node) = self.inner.node.get() {
            let status = *node.status.borrow();
            // It was restarted faster than anybody could see its port closed.
            if !first.leads && (status.leader, status.term) == (self.raft_id, first.term) {
                let heard = node.heard.count();
                doubt::look_into(&self.inner, self.raft_id, heard, Evidence::Resigned).await;
            }
        }
        tokio::select! {
            _ = stream.message() => {}
            _ = self.addr.changed() => {}
        }
    }

    /// Until the next attempt: soon if the member leads or has come to lead, and at once if it has moved.
    async fn pause(&mut self, failures: u32) {
        let Some(node) = self.inner.node.get() else { return sleep(LOOK_AGAIN).await };
        let mut status = node.status.subscribe();
        let led = status.borrow_and_update().leader == self.raft_id;
        let quick = if led { QUICK } else { 0 };
        let pause = LOOK_AGAIN * 2u32.saturating_pow(failures.saturating_sub(quick).min(16));
        let raft_id = self.raft_id;
        let comes_to_lead = async move {
            let _ = status.wait_for(|status| !led && status.leader == raft_id).await;
        };
        tokio::select! {
            () = sleep(pause.min(LONGEST_PAUSE)) => {}
            () = comes_to_lead => {}
            changed = self.addr.changed() => if changed.is_err() { std::future::pending().await },
        }
    }
}
