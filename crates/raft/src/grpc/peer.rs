//! One member's queue, and the connection that empties it, in order: by one call that stays open to a member that is ours
//! (decision 0082), else by one call for each message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::stream;
use rand::RngExt as _;
use swarm_api::raftpb::Message;
use swarm_api::swarmd::peers_client::PeersClient;
use swarm_api::v1::raft_client::RaftClient;
use swarm_api::v1::{ProcessRaftMessageRequest, StreamRaftMessageRequest};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::queue::Queue;
use super::{CALL_TIMEOUT, Inner, LAST_WORDS, Reach, check_health, is_removal};
use crate::inbox::Request;

/// A member that nothing was sent to for so long is asked for its health, so that everybody knows who can be reached
/// before an election depends on it.
const IDLE: Duration = Duration::from_secs(5);
/// Time between two questions for the health of a member that answers no single message.
const CHECK: Duration = Duration::from_secs(2);
/// Pauses after failures: each twice the one before, up to a limit that is short beside an election.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How a call that stays open came to its end without a failure.
enum Relayed {
    /// There will be no more messages.
    All,
    /// The member has moved.
    Moved,
}

/// Sends a member what is queued for it.
pub(super) struct Sender {
    inner: Arc<Inner>,
    reach: Arc<Reach>,
    ours: Arc<AtomicBool>,
    addr: watch::Receiver<String>,
    queue: Arc<Mutex<Queue>>,
    channel: Option<Channel>,
    /// The member turned out not to know the call that stays open.
    plain: bool,
    failures: u32,
}

impl Sender {
    /// `ours` says whether the member is of this make.
    pub(super) fn new(
        inner: &Arc<Inner>,
        reach: Arc<Reach>,
        ours: Arc<AtomicBool>,
        addr: watch::Receiver<String>,
        waiting: mpsc::Receiver<Message>,
    ) -> Sender {
        let queue = Arc::new(Mutex::new(Queue::new(waiting)));
        Sender { inner: inner.clone(), reach, ours, addr, queue, channel: None, plain: false, failures: 0 }
    }

    /// Until the member is gone and its queue is empty, or it has taken too long to empty it.
    pub(super) async fn run(mut self) {
        let gone = self.addr.clone();
        tokio::select! {
            () = self.send_all() => {}
            () = async { closed(gone).await; sleep(LAST_WORDS).await } => {}
        }
    }

    async fn send_all(&mut self) {
        let result = self.check().await;
        self.learn(result).await;
        loop {
            let result = if self.ours.load(Ordering::Acquire) && !self.plain {
                match self.relay().await {
                    Ok(Relayed::All) => return,
                    Ok(Relayed::Moved) => Ok(()),
                    Err(status) if status.code() == Code::Unimplemented => {
                        self.plain = true;
                        Ok(())
                    }
                    Err(status) => Err(status),
                }
            } else {
                let next = timeout(IDLE, async { self.queue.lock().await.next().await }).await;
                match next {
                    Ok(Some(message)) => self.send(message).await,
                    Ok(None) => return,
                    Err(_) => self.check().await,
                }
            };
            self.learn(result).await;
        }
    }

    /// Sends by the call that stays open, and asks for the member's health beside it.
    async fn relay(&mut self) -> Result<Relayed, Status> {
        let channel = self.connect().await?;
        in_time(check_health(channel.clone())).await?;
        self.reached();
        let queue = self.queue.clone().lock_owned().await;
        let messages = stream::unfold(queue, async |mut queue| Some((queue.next().await?, queue)));
        let mut client = PeersClient::new(channel.clone());
        let checks = async {
            loop {
                sleep(CHECK).await;
                if let Err(status) = in_time(check_health(channel.clone())).await {
                    return status;
                }
            }
        };
        let mut addr = self.addr.clone();
        tokio::select! {
            ended = client.relay(messages) => ended.map(|_| Relayed::All),
            status = checks => Err(status),
            Ok(()) = addr.changed() => Ok(Relayed::Moved),
        }
    }

    fn reached(&mut self) {
        self.failures = 0;
        self.reach.set(true);
    }

    /// Takes the outcome of a call into account. After a failure nothing is sent for a while, and what was queued
    /// before is dropped: raft sends it again when it knows that the member is back.
    async fn learn(&mut self, result: Result<(), Status>) {
        let Err(status) = result else { return self.reached() };
        if is_removal(&status) {
            self.inner.tell(Request::Removed);
        }
        let raft_id = self.reach.raft_id;
        tracing::debug!(member = format!("{raft_id:x}"), %status, "a raft message was not delivered");
        self.channel = None;
        self.plain = false;
        self.reach.set(false);
        self.queue.lock().await.clear();
        self.inner.tell(Request::Unreachable(raft_id));
        let pause = LONGEST_PAUSE.min(FIRST_PAUSE * 2u32.saturating_pow(self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        let until = Instant::now() + pause.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            // Somewhere else it may be back already.
            changed = self.addr.changed() => if changed.is_err() { sleep(Duration::ZERO).await },
        }
    }

    async fn check(&mut self) -> Result<(), Status> {
        let channel = self.connect().await?;
        in_time(check_health(channel)).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Status> {
        let channel = self.connect().await?;
        in_time(deliver(&channel, message)).await
    }

    /// The connection, made anew if it was lost or the member has moved.
    async fn connect(&mut self) -> Result<Channel, Status> {
        let moved = self.addr.has_changed().unwrap_or(false);
        if let Some(channel) = self.channel.clone().filter(|_| !moved) {
            return Ok(channel);
        }
        let addr = self.addr.borrow_and_update().clone();
        let endpoint = swarm_pki::endpoint(&addr).map_err(super::address)?;
        let connected = endpoint.connect_with_connector(self.inner.dialer.clone()).await;
        let channel = connected.map_err(|error| Status::unavailable(swarm_pki::innermost(&error)))?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }
}

/// Completes when nobody can announce another address any more.
pub(super) async fn closed(mut addr: watch::Receiver<String>) {
    while addr.changed().await.is_ok() {}
}

async fn in_time(call: impl Future<Output = Result<(), Status>>) -> Result<(), Status> {
    let late = || Status::deadline_exceeded(format!("no answer within {CALL_TIMEOUT:?}"));
    timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| Err(late()))
}

/// One message by the streamed call; by the plain one to a member that does not know that.
pub(super) async fn deliver(channel: &Channel, message: Message) -> Result<(), Status> {
    let mut client = RaftClient::new(channel.clone());
    let request = StreamRaftMessageRequest { message: Some(message.clone()) };
    match client.stream_raft_message(tokio_stream::once(request)).await {
        Err(status) if status.code() == Code::Unimplemented => {
            let request = ProcessRaftMessageRequest { message: Some(message) };
            client.process_raft_message(request).await.map(|_| ())
        }
        result => result.map(|_| ()),
    }
}
