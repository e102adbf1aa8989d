//! The gRPC faces of the broker.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, stream};
use swarm_api::id;
use swarm_api::swarmd::images_server::{Images, ImagesServer};
use swarm_api::swarmd::pull_broker_server::{PullBroker, PullBrokerServer};
use swarm_api::swarmd::{
    PullListenRequest, PullOrder, PullReport, PullReportResponse, PullRequest, PullUpdate,
};
use swarm_brokers::Inbox;
use swarm_dispatcher::CallerNode;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status};

use crate::broker::{Broker, Term};
use crate::error::status;
use crate::selection::select;

/// Longest name of an image, and longest credentials, in bytes.
const MAX_IMAGE: usize = 1024;
const MAX_AUTH: usize = 64 * 1024;

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// `swarmd.v1.Images` on a [`Broker`].
#[derive(Clone, Debug)]
pub struct ImagesService {
    broker: Arc<Broker>,
}

impl ImagesService {
    pub(crate) fn new(broker: Arc<Broker>) -> ImagesService {
        ImagesService { broker }
    }

    /// The service for a tonic router.
    pub fn into_server(self) -> ImagesServer<Self> {
        ImagesServer::new(self)
    }
}

/// Somebody who waits for an order.
struct Waiting {
    term: Arc<Term>,
    id: String,
    changed: Arc<Notify>,
    updates: VecDeque<PullUpdate>,
    over: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.term.book().close(&self.id);
    }
}

impl Waiting {
    async fn next(&mut self) -> Option<Result<PullUpdate, Status>> {
        loop {
            if let Some(update) = self.updates.pop_front() {
                return Some(Ok(update));
            }
            if self.over {
                return None;
            }
            if self.term.is_closed() {
                self.over = true;
                return Some(Err(status::leader_lost()));
            }
            let news = self.term.book().news(&self.id, Instant::now());
            self.over = news.over;
            self.updates = news.updates.into();
            if self.updates.is_empty() && !self.over {
                let later = async {
                    match news.next {
                        Some(next) => sleep_until(next).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = self.term.closed() => {}
                    () = later => {}
                }
            }
        }
    }
}

#[tonic::async_trait]
impl Images for ImagesService {
    type PullStream = Streaming<PullUpdate>;

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let term = self.broker.term()?;
        let PullRequest { image, registry_auth, constraints } = request.into_inner();
        if image.is_empty() {
            return Err(status::no_image());
        }
        for (what, text, limit) in
            [("the image's name", &image, MAX_IMAGE), ("registry_auth", &registry_auth, MAX_AUTH)]
        {
            if text.len() > limit {
                return Err(status::too_long(what, text.len(), limit));
            }
        }
        if !swarm_control::is_image_reference(&image) {
            return Err(status::bad_image(&image));
        }
        let nodes = select(&term.store().view(), &constraints)?;
        let id = id::random();
        tracing::info!(image, nodes = nodes.len(), "image is to be pulled ahead of tasks");
        let order = PullOrder { id: id.clone(), image, registry_auth, close: false };
        let changed = term.with(|book| book.open(order, nodes, Instant::now()))?;
        let waiting = Waiting { term, id, changed, updates: VecDeque::new(), over: false };
        let messages = stream::unfold(waiting, |mut waiting| async move {
            let message = waiting.next().await?;
            Some((message, waiting))
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

/// `swarmd.v1.PullBroker` on a [`Broker`]. Requests must carry a [`CallerNode`].
#[derive(Clone, Debug)]
pub struct PullBrokerService {
    broker: Arc<Broker>,
}

impl PullBrokerService {
    pub(crate) fn new(broker: Arc<Broker>) -> PullBrokerService {
        PullBrokerService { broker }
    }

    /// The service for a tonic router.
    pub fn into_server(self) -> PullBrokerServer<Self> {
        PullBrokerServer::new(self)
    }
}

/// A call in which a node listens.
struct Listening {
    term: Arc<Term>,
    node_id: String,
    number: u64,
    inbox: Arc<Inbox<PullOrder>>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.term.book().unlisten(&self.node_id, self.number, Instant::now());
    }
}

#[tonic::async_trait]
impl PullBroker for PullBrokerService {
    type ListenStream = Streaming<PullOrder>;

    async fn listen(
        &self,
        request: Request<PullListenRequest>,
    ) -> Result<Response<Self::ListenStream>, Status> {
        let (term, node_id) = (self.broker.term()?, CallerNode::of(&request)?.id);
        let (number, inbox) = term.with(|book| Ok(book.listen(&node_id, Instant::now())))?;
        let listening = Listening { term, node_id, number, inbox };
        let orders = stream::unfold(listening, |listening| async move {
            let order = tokio::select! {
                biased;
                () = listening.term.closed() => return None,
                order = listening.inbox.next() => order,
            };
            Some((Ok(order), listening))
        });
        Ok(Response::new(Box::pin(orders)))
    }

    async fn report(&self, request: Request<PullReport>) -> Result<Response<PullReportResponse>, Status> {
        let (term, node_id) = (self.broker.term()?, CallerNode::of(&request)?.id);
        let PullReport { id, state } = request.into_inner();
        term.book().report(&node_id, &id, state.unwrap_or_default(), Instant::now())?;
        Ok(Response::new(PullReportResponse {}))
    }
}
