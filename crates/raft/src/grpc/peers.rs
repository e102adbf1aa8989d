//! What members of ours are asked beside raft's messages.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _, stream};
use swarm_api::raftpb::Message;
use swarm_api::swarmd::peers_server::{Peers, PeersServer};
use swarm_api::swarmd::{
    AttendRequest, AttendResponse, DoubtRequest, DoubtResponse, FetchRequest, RelayResponse,
};
use swarm_pki::Dialer;
use tokio::sync::{Semaphore, SetOnce};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::service::{MAX_MESSAGE, RaftService, sender};
use super::{doubt, offer};
use crate::{Error, RaftHandle};

/// The `Peers` service of our own package. Callers must have been found to be managers of this cluster.
#[derive(Clone)]
pub struct PeersService {
    raft: Arc<SetOnce<RaftHandle>>,
    dialer: Dialer,
    stop: CancellationToken,
    messages: RaftService,
    /// The state is given to one manager at a time.
    offering: Arc<Semaphore>,
}

impl std::fmt::Debug for PeersService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeersService").field("raft", &self.raft).finish_non_exhaustive()
    }
}

impl PeersService {
    /// Answers once the raft node is there. Calls that stay open end with `stop`.
    pub fn new(raft: Arc<SetOnce<RaftHandle>>, dialer: Dialer, stop: CancellationToken) -> PeersService {
        let messages = RaftService::new(raft.clone(), dialer.clone());
        PeersService { raft, dialer, stop, messages, offering: Arc::new(Semaphore::new(1)) }
    }

    /// As a server.
    pub fn into_server(self) -> PeersServer<PeersService> {
        PeersServer::new(self).max_decoding_message_size(MAX_MESSAGE)
    }

    fn raft(&self) -> Result<&RaftHandle, Status> {
        self.raft.get().ok_or_else(|| Status::unavailable("there is no raft node yet"))
    }
}

/// This manager does not lead; the text says who does, as far as it is known here.
fn not_leading(raft: &RaftHandle) -> Status {
    let membership = raft.membership();
    let leader = membership
        .get(raft.status().leader)
        .map_or(String::new(), |leader| format!("; manager {} at {} leads", leader.node_id, leader.addr));
    Status::failed_precondition(format!("{}{leader}", Error::LostLeadership))
}

fn stopped(error: Error) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl Peers for PeersService {
    type AttendStream = Pin<Box<dyn Stream<Item = Result<AttendResponse, Status>> + Send>>;

    async fn attend(&self, _: Request<AttendRequest>) -> Result<Response<Self::AttendStream>, Status> {
        let raft = self.raft()?;
        // A member that was just added has no term until its leader writes to it.
        raft.wait_for(|status| status.term != 0).await.map_err(stopped)?;
        let standing = raft.shared().standing().await.map_err(stopped)?;
        let first = AttendResponse { raft_id: standing.raft_id, term: standing.term, leads: standing.leads };
        let open = stream::once(std::future::ready(Ok(first))).chain(stream::pending());
        Ok(Response::new(Box::pin(open.take_until(self.stop.clone().cancelled_owned()))))
    }

    type FetchStream = offer::Answers;

    async fn fetch(&self, _: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let raft = self.raft()?;
        let turn = self.stop.run_until_cancelled(self.offering.clone().acquire_owned()).await;
        let Some(Ok(turn)) = turn else { return Err(Status::unavailable("this manager stops")) };
        let offer = raft.shared().offer().await.map_err(|error| match error {
            Error::LostLeadership => not_leading(raft),
            error => stopped(error),
        })?;
        let answers = offer::give(offer, self.stop.clone(), turn);
        answers.map(Response::new).map_err(|error| Status::resource_exhausted(error.to_string()))
    }

    async fn doubt(&self, request: Request<DoubtRequest>) -> Result<Response<DoubtResponse>, Status> {
        let answer = doubt::answer(&self.dialer, self.raft()?.shared(), request.into_inner()).await;
        answer.map(Response::new).map_err(stopped)
    }

    async fn relay(&self, request: Request<Streaming<Message>>) -> Result<Response<RelayResponse>, Status> {
        let sender = sender(&request);
        let mut messages = request.into_inner();
        let relayed = async {
            while let Some(message) = messages.message().await? {
                self.messages.take(message, sender.as_deref()).await?;
            }
            Ok(Response::new(RelayResponse {}))
        };
        let stopped = self.stop.run_until_cancelled(relayed).await;
        stopped.unwrap_or_else(|| Err(Status::unavailable("this manager stops")))
    }
}
