//! What other members call.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::BytesMut;
use parking_lot::Mutex;
use swarm_api::raftpb::{Message, MessageType};
use swarm_api::v1::raft_server::{Raft, RaftServer};
use swarm_api::v1::{
    ProcessRaftMessageRequest, ProcessRaftMessageResponse, ResolveAddressRequest, ResolveAddressResponse,
    StreamRaftMessageRequest, StreamRaftMessageResponse,
};
use swarm_pki::{ConnectionInfo, Dialer, PeerIdentity};
use tokio::sync::SetOnce;
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{CALL_TIMEOUT, check_health};
use crate::snapshot::MAX_SNAPSHOT;
use crate::{Error, RaftHandle};

/// Largest message on the wire; a larger snapshot comes in chunks.
pub(super) const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// The contract's `Raft` service. It answers from the moment at which the listener is up: until there is a raft node,
/// messages are dropped, as the contract wants it.
///
/// Callers must have been found to be managers of this cluster.
#[derive(Clone)]
pub struct RaftService {
    raft: Arc<SetOnce<RaftHandle>>,
    dialer: Dialer,
    /// Members that asked for a vote and are being called back, with what they asked last.
    candidates: Arc<Mutex<BTreeMap<u64, Message>>>,
}

impl std::fmt::Debug for RaftService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftService").field("raft", &self.raft).finish_non_exhaustive()
    }
}

impl RaftService {
    /// Passes messages on to the raft node once it is there. The dialer calls candidates back.
    pub fn new(raft: Arc<SetOnce<RaftHandle>>, dialer: Dialer) -> RaftService {
        RaftService { raft, dialer, candidates: Arc::default() }
    }

    /// As a server with the contract's limits.
    pub fn into_server(self) -> RaftServer<RaftService> {
        RaftServer::new(self).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) async fn take(&self, message: Message, sender: Option<&PeerIdentity>) -> Result<(), Status> {
        let Some(raft) = self.raft.get() else { return Ok(()) };
        let membership = raft.membership();
        let member = membership.get(message.from);
        if let (Some(member), Some(sender)) = (member, sender)
            && member.node_id != sender.node_id
        {
            return Err(Status::permission_denied(format!(
                "raft member {:x} is node {}, not node {}",
                message.from, member.node_id, sender.node_id
            )));
        }
        match MessageType::try_from(message.r#type) {
            Ok(MessageType::MsgVote | MessageType::MsgPreVote) => match member {
                Some(member) => {
                    self.call_back(raft, message, member.addr.clone());
                    Ok(())
                }
                None => step(raft, message),
            },
            // All of it is looked at.
            Ok(MessageType::MsgSnap) => {
                let raft = raft.clone();
                let stepped = tokio::task::spawn_blocking(move || step(&raft, message)).await;
                stepped.unwrap_or_else(|error| Err(Status::internal(error.to_string())))
            }
            _ => step(raft, message),
        }
    }

    /// Who can send, but not be reached, must not disturb the group: a candidate is believed only after a call back.
    /// Its own call is answered before that; what it waits for is a raft message.
    fn call_back(&self, raft: &RaftHandle, message: Message, addr: String) {
        let from = message.from;
        // One that asked first whether it would be elected may ask for the vote before it was called back.
        if self.candidates.lock().insert(from, message).is_some() {
            return;
        }
        let (this, raft) = (self.clone(), raft.clone());
        tokio::spawn(async move {
            let healthy = match this.dialer.channel(&addr) {
                Ok(channel) => timeout(CALL_TIMEOUT, check_health(channel)).await.is_ok_and(|r| r.is_ok()),
                Err(_) => false,
            };
            let message = this.candidates.lock().remove(&from);
            if healthy {
                let _ = message.map(|message| raft.step(message));
            } else {
                tracing::warn!(
                    member = format!("{from:x}"),
                    addr,
                    "ignored a vote request: its sender can't be reached"
                );
            }
        });
    }
}

/// Whatever becomes of a message in the end, its sender hears only what it can do something about.
fn step(raft: &RaftHandle, message: Message) -> Result<(), Status> {
    match raft.step(message) {
        Err(error @ Error::MemberRemoved) => Err(Status::not_found(error.to_string())),
        Err(error @ (Error::Overloaded | Error::Stopped)) => Err(Status::unavailable(error.to_string())),
        _ => Ok(()),
    }
}

/// Who has called.
pub(super) fn sender<T>(request: &Request<T>) -> Option<Arc<PeerIdentity>> {
    request.extensions().get::<ConnectionInfo>()?.identity.clone()
}

/// Puts the chunks of a stream together.
async fn gather(mut stream: Streaming<StreamRaftMessageRequest>) -> Result<Option<Message>, Status> {
    let mut whole: Option<Message> = None;
    let mut data = BytesMut::new();
    while let Some(request) = stream.message().await.map_err(too_large)? {
        let Some(mut message) = request.message else { continue };
        let more = message.snapshot.as_mut().and_then(|snapshot| snapshot.data.take()).unwrap_or_default();
        match &whole {
            None => whole = Some(message),
            Some(first) => check_chunk(first, &message)?,
        }
        if data.len() + more.len() > MAX_SNAPSHOT {
            return Err(Status::resource_exhausted(format!("a snapshot of more than {MAX_SNAPSHOT} bytes")));
        }
        data.extend_from_slice(&more);
    }
    if let Some(snapshot) = whole.as_mut().and_then(|message| message.snapshot.as_mut())
        && !data.is_empty()
    {
        snapshot.data = Some(data.freeze());
    }
    Ok(whole)
}

/// The texts are the contract's.
fn check_chunk(first: &Message, next: &Message) -> Result<(), Status> {
    if next.index != first.index {
        return Err(Status::invalid_argument(format!(
            "Raft message chunk with index {} is different from the previously received raft message index {}",
            next.index, first.index
        )));
    }
    let snapshot = MessageType::MsgSnap as i32;
    if next.r#type != snapshot || first.r#type != snapshot {
        return Err(Status::invalid_argument(format!("Raft message chunk is not of type {snapshot}")));
    }
    Ok(())
}

/// The code that the contract has for what the library calls out of range.
fn too_large(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(status.message()),
        _ => status,
    }
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn process_raft_message(
        &self,
        request: Request<ProcessRaftMessageRequest>,
    ) -> Result<Response<ProcessRaftMessageResponse>, Status> {
        let sender = sender(&request);
        if let Some(message) = request.into_inner().message {
            self.take(message, sender.as_deref()).await?;
        }
        Ok(Response::new(ProcessRaftMessageResponse {}))
    }

    async fn stream_raft_message(
        &self,
        request: Request<Streaming<StreamRaftMessageRequest>>,
    ) -> Result<Response<StreamRaftMessageResponse>, Status> {
        let sender = sender(&request);
        if let Some(message) = gather(request.into_inner()).await? {
            self.take(message, sender.as_deref()).await?;
        }
        Ok(Response::new(StreamRaftMessageResponse {}))
    }

    async fn resolve_address(
        &self,
        request: Request<ResolveAddressRequest>,
    ) -> Result<Response<ResolveAddressResponse>, Status> {
        let Some(raft) = self.raft.get() else { return Err(not_member()) };
        let raft_id = request.into_inner().raft_id;
        match raft.membership().get(raft_id) {
            Some(member) => Ok(Response::new(ResolveAddressResponse { addr: member.addr.clone() })),
            None => Err(Status::not_found(format!("member {raft_id:x} not found"))),
        }
    }
}

/// There is no raft node yet. The text is the contract's, and so is the code.
fn not_member() -> Status {
    Status::unknown("raft: node is not yet part of a raft cluster")
}
