//! Any manager answers any call: what only the leader can do is passed on to it.
//!
//! [`ForwardLayer`] stands between authorization and the services, once on each listener. It knows methods by their
//! paths only and passes messages on as they are, so streams and unary calls are the same to it.
//!
//! - `rules`: which calls are passed on, and which of them may be repeated.
//! - `metadata`: what the leader is told of the original caller.
//! - `relay`: sending, repeating, and what the caller hears when the leader is lost.
//!
//! A caller whose call went to the leader gets the leader's answer, or an error that says whether the call may have had
//! an effect. Only reads, and calls that provably never began, are repeated.

mod metadata;
mod relay;
mod rules;

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, Either};
use http::{Request, Response};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use relay::Relay;

use crate::leader_link::{LeaderLink, Route};

pub use rules::Door;

/// Finds the leader.
#[tonic::async_trait]
pub trait LeaderChannel: Send + Sync + 'static {
    /// The leader as of now; waits for one while an election may still be under way.
    ///
    /// # Errors
    /// UNKNOWN with the contract's text about a swarm without a leader, once there has been none for too long.
    async fn leader(&self) -> Result<Route, Status>;

    /// As [`LeaderChannel::leader`], with a connection for one call alone.
    ///
    /// # Errors
    /// The same.
    async fn leader_apart(&self) -> Result<Route, Status> {
        self.leader().await
    }

    /// Whether this manager leads, and if so in which term. A leader that is replaced never leads in that term again.
    fn leading(&self) -> Option<u64>;

    /// Completes if this manager can't carry anything out, although it takes itself for the leader: its disk has not
    /// answered for so long that the others elect another one.
    async fn stalled(&self);
}

#[tonic::async_trait]
impl LeaderChannel for LeaderLink {
    async fn leader(&self) -> Result<Route, Status> {
        Ok(self.find().await?)
    }

    async fn leader_apart(&self) -> Result<Route, Status> {
        Ok(self.find_apart().await?)
    }

    fn leading(&self) -> Option<u64> {
        match self.route() {
            Ok(Route::Here { term }) => Some(term),
            _ => None,
        }
    }

    async fn stalled(&self) {
        LeaderLink::stalled(self).await;
    }
}

/// Passes calls on to the leader. Requests must carry a [`crate::auth::Caller`].
#[derive(Clone)]
pub struct ForwardLayer(Arc<Relay>);

impl ForwardLayer {
    /// For the services of one listener. When it stops, so do the streams that are passed on: their callers find
    /// another manager.
    pub fn new(door: Door, leader: Arc<dyn LeaderChannel>, stop: CancellationToken) -> Self {
        Self(Arc::new(Relay::new(door, leader, stop)))
    }
}

impl<S> Layer<S> for ForwardLayer {
    type Service = Forward<S>;

    fn layer(&self, inner: S) -> Forward<S> {
        Forward { relay: self.0.clone(), inner }
    }
}

/// See [`ForwardLayer`].
#[derive(Clone)]
pub struct Forward<S> {
    relay: Arc<Relay>,
    inner: S,
}

impl<S> Service<Request<Body>> for Forward<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(rule) = self.relay.rule(&request) else {
            return Either::Left(self.inner.call(request));
        };
        let relay = self.relay.clone();
        // The one that is ready goes into the future; its clone need not be.
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        Either::Right(Box::pin(async move { relay.call(inner, request, rule).await }))
    }
}

#[cfg(test)]
mod tests;
