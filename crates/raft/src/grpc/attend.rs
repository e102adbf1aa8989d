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
use crate::failover::{Calls, LOOK_AGAIN, Seen};
use crate::handle::Shared;

/// Looks at a leader that follow each other quickly; after that, and at others always, they become rarer.
const QUICK: u32 = 8;
/// Longest pause between two attempts to reach a member.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Pause between two questions to a member of another make, which can only refuse them.
const FOREIGN_PAUSE: Duration = Duration::from_secs(1);

/// Time for one look at a leader whose connection ended as that of a process that ended.
const GLANCE: Duration = Duration::from_millis(300);

/// Why a member does not attend.
pub(super) enum Absent {
    /// Nobody listens at its port.
    Refused,
    /// Nobody answers at its address, or there is no way there.
    Silent,
    /// The connection was cut short while it was made.
    Unclear,
    /// It answers, but does not know the call.
    Foreign,
    /// Anything else: another one at its address, a manager that is just starting.
    Failed(String),
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
        Err(_) => Err(Absent::Silent),
    }
}

/// Only what the other host's kernel says of its port counts as a refusal. A time limit or an unreachable host says nothing
/// by itself about whether a process runs there, and a failure of TLS that one does.
fn absent<'e>(error: &'e (dyn StdError + 'static)) -> Absent {
    let dial = swarm_pki::sources(error).find_map(|error| error.downcast_ref::<DialError>());
    match dial {
        Some(DialError::Connect { source, .. }) => match source.kind() {
            ErrorKind::ConnectionRefused => Absent::Refused,
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => Absent::Unclear,
            // Its name, if it has one, is unknown, or the network is.
            _ => Absent::Silent,
        },
        Some(DialError::Timeout { .. }) => Absent::Silent,
        _ => Absent::Failed(swarm_pki::innermost(error)),
    }
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
        let mut calls = Calls::default();
        loop {
            let addr = self.addr.borrow_and_update().clone();
            let seen = self.attend(&addr, calls.is_urgent()).await;
            if let Some(node) = self.inner.node.get() {
                let now = Instant::now();
                let term = node.status.borrow().term;
                match calls.saw(seen, now, node.heard.count(), term, &addr) {
                    Some(heard) => {
                        node.closed.note(self.raft_id, heard, now);
                        doubt::look_into(&self.inner, self.raft_id, heard, Evidence::Closed).await;
                    }
                    None => node.closed.forget(self.raft_id),
                }
            }
            self.pause(calls.failures()).await;
        }
    }

    /// Opens the call and waits for its end. If it is urgent to know whether a leader answers, it has little time to do so.
    async fn attend(&mut self, addr: &str, urgent: bool) -> Seen {
        let began = Instant::now();
        let endpoint = match swarm_pki::endpoint(addr) {
            Ok(endpoint) => endpoint,
            Err(error) => return self.missed(Absent::Failed(error.to_string())),
        };
        let dialer = self.inner.dialer.clone();
        let opened = async {
            let channel = endpoint.connect_with_connector(dialer).await.map_err(|error| absent(&error))?;
            let opened = attend(&channel).await;
            Ok((channel, opened))
        };
        let leads = |node: &Arc<Shared>| node.status.borrow().leader == self.raft_id;
        let urgent = urgent && self.inner.node.get().is_some_and(leads);
        let opened = match urgent {
            true => timeout(GLANCE, opened).await.unwrap_or(Err(Absent::Silent)),
            false => opened.await,
        };
        let (channel, mut opened) = match opened {
            Ok(opened) => opened,
            Err(absent) => {
                // Members are to come to the same at about the same time, however each learns that there is no way.
                if urgent && matches!(absent, Absent::Silent) {
                    sleep(GLANCE.saturating_sub(began.elapsed())).await;
                }
                return self.missed(absent);
            }
        };
        loop {
            match opened {
                Ok((first, stream)) if first.raft_id == self.raft_id => {
                    self.ours.store(true, Ordering::Release);
                    return Seen::Ended { cut_short: self.attended(&first, stream).await };
                }
                Ok((first, _)) => {
                    let reason = format!("the member {:x} answers at {addr}", first.raft_id);
                    return self.missed(Absent::Failed(reason));
                }
                Err(Absent::Foreign) => {
                    self.ours.store(false, Ordering::Release);
                    tokio::select! {
                        () = sleep(FOREIGN_PAUSE) => {}
                        _ = self.addr.changed() => return Seen::Ended { cut_short: false },
                    }
                    opened = attend(&channel).await;
                }
                Err(absent) => return self.missed(absent),
            }
        }
    }

    fn missed(&self, absent: Absent) -> Seen {
        match absent {
            Absent::Refused => Seen::Refused,
            Absent::Silent => Seen::Silent,
            Absent::Unclear => Seen::Unclear,
            Absent::Foreign => Seen::Answered,
            Absent::Failed(reason) => {
                tracing::debug!(member = format!("{:x}", self.raft_id), reason, "a manager does not attend");
                Seen::Answered
            }
        }
    }

    /// Waits for the end of the call; whether it was cut short.
    async fn attended(&mut self, first: &AttendResponse, mut stream: Streaming<AttendResponse>) -> bool {
        if let Some(node) = self.inner.node.get() {
            node.closed.forget(self.raft_id);
            let status = *node.status.borrow();
            // It was restarted faster than anybody could see its port closed.
            if !first.leads && (status.leader, status.term) == (self.raft_id, first.term) {
                let heard = node.heard.count();
                doubt::look_into(&self.inner, self.raft_id, heard, Evidence::Resigned).await;
            }
        }
        tokio::select! {
            end = stream.message() => end.is_err_and(|status| swarm_pki::was_cut_short(&status)),
            _ = self.addr.changed() => false,
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
