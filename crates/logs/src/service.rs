//! The gRPC faces of the broker.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, stream};
use swarm_api::v1::log_broker_server::{LogBroker, LogBrokerServer};
use swarm_api::v1::logs_server::{Logs, LogsServer};
use swarm_api::v1::{
    ListenSubscriptionsRequest, PublishLogsMessage, PublishLogsResponse, SubscribeLogsMessage,
    SubscribeLogsRequest, SubscriptionMessage,
};
use swarm_brokers::Inbox;
use swarm_dispatcher::CallerNode;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::broker::{Broker, Term};
use crate::error::status;
use crate::publication::Publication;
use crate::subscriber::Subscriber;

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// `docker.swarmkit.v1.Logs` on a [`Broker`].
#[derive(Clone, Debug)]
pub struct LogsService {
    broker: Arc<Broker>,
}

impl LogsService {
    pub(crate) fn new(broker: Arc<Broker>) -> LogsService {
        LogsService { broker }
    }

    /// The service for a tonic router.
    pub fn into_server(self) -> LogsServer<Self> {
        LogsServer::new(self)
    }
}

#[tonic::async_trait]
impl Logs for LogsService {
    type SubscribeLogsStream = Streaming<SubscribeLogsMessage>;

    async fn subscribe_logs(
        &self,
        request: Request<SubscribeLogsRequest>,
    ) -> Result<Response<Self::SubscribeLogsStream>, Status> {
        let subscriber = Subscriber::open(self.broker.term()?, request.into_inner())?;
        let messages = stream::unfold(subscriber, |mut subscriber| async move {
            let message = subscriber.next().await?;
            Some((message, subscriber))
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

/// `docker.swarmkit.v1.LogBroker` on a [`Broker`]. Requests must carry a [`CallerNode`].
#[derive(Clone, Debug)]
pub struct LogBrokerService {
    broker: Arc<Broker>,
}

impl LogBrokerService {
    pub(crate) fn new(broker: Arc<Broker>) -> LogBrokerService {
        LogBrokerService { broker }
    }

    /// The service for a tonic router.
    pub fn into_server(self) -> LogBrokerServer<Self> {
        LogBrokerServer::new(self)
    }
}

/// A call in which a node listens.
struct Listening {
    term: Arc<Term>,
    node_id: String,
    number: u64,
    inbox: Arc<Inbox<SubscriptionMessage>>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.term.book().unlisten(&self.node_id, self.number, Instant::now());
    }
}

#[tonic::async_trait]
impl LogBroker for LogBrokerService {
    type ListenSubscriptionsStream = Streaming<SubscriptionMessage>;

    async fn listen_subscriptions(
        &self,
        request: Request<ListenSubscriptionsRequest>,
    ) -> Result<Response<Self::ListenSubscriptionsStream>, Status> {
        let (term, node_id) = (self.broker.term()?, CallerNode::of(&request)?.id);
        let (number, inbox) = term.with(|book| Ok(book.listen(&node_id)))?;
        let listening = Listening { term, node_id, number, inbox };
        let messages = stream::unfold(listening, |listening| async move {
            let message = tokio::select! {
                () = listening.term.closed() => return None,
                message = listening.inbox.next() => message,
            };
            Some((Ok(message), listening))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn publish_logs(
        &self,
        request: Request<tonic::Streaming<PublishLogsMessage>>,
    ) -> Result<Response<PublishLogsResponse>, Status> {
        let (term, node_id) = (self.broker.term()?, CallerNode::of(&request)?.id);
        let mut messages = request.into_inner();
        let done = || Ok(Response::new(PublishLogsResponse {}));
        let Some(mut message) = messages.message().await? else { return done() };
        if message.subscription_id.is_empty() {
            return Err(status::no_subscription_id());
        }
        let id = std::mem::take(&mut message.subscription_id);
        let mut publication = Publication::begin(term, &node_id, id)?;
        loop {
            if message.close {
                publication.complete();
                return done();
            }
            if let Err(error) = publication.publish(message.messages).await {
                return Err(publication.refuse(error));
            }
            message = tokio::select! {
                next = messages.message() => match next {
                    Ok(Some(next)) => next,
                    Ok(None) => {
                        // A call that its caller gave up looks like this too. The connection knows, and drops this future
                        // as soon as it is not ready.
                        tokio::task::yield_now().await;
                        publication.complete();
                        return done();
                    }
                    // What it sent is no message, or its connection is gone: dropping the publication says so.
                    Err(error) => return Err(error),
                },
                over = publication.over() => return Err(over),
            };
            if message.subscription_id != publication.subscription_id() {
                let error = match message.subscription_id.is_empty() {
                    true => status::no_subscription_id(),
                    false => status::other_subscription(),
                };
                return Err(publication.refuse(error));
            }
        }
    }
}
