//! Passing one call on, and what becomes of it when the leader goes away.

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, poll_fn};
use http::request::Parts;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use swarm_pki::LocalConnectionInfo;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::{Service, ServiceExt as _};
use tracing::debug;

use super::rules::{self, Rule};
use super::{Door, LeaderChannel, metadata};
use crate::auth::Caller;
use crate::leader_link::Route;

/// Largest request that is held for a repetition: one message, and what gRPC puts before it.
const MAX_REQUEST: usize = swarm_api::defaults::MAX_MESSAGE_BYTES + 5;
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a leader that nobody has replaced yet is tried. Longer than an election takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a call that takes long is looked after.
const LOOK: Duration = Duration::from_secs(1);
/// Time that a leader has to answer what it began before it was replaced.
const GRACE: Duration = Duration::from_secs(5);

/// Whether a request went out. As long as nobody has asked for its content there is no connection, and no call.
#[derive(Default)]
struct Going(AtomicU8);

impl Going {
    const WAITS: u8 = 0;
    const SENT: u8 = 1;
    const WITHDRAWN: u8 = 2;

    fn is_waiting(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::WAITS
    }

    /// It goes out now, unless it was withdrawn.
    fn send(&self) -> bool {
        let was = self.0.compare_exchange(Self::WAITS, Self::SENT, Ordering::AcqRel, Ordering::Acquire);
        was != Err(Self::WITHDRAWN)
    }

    /// It is not to go out any more; true if it has not.
    fn withdraw(&self) -> bool {
        self.0.compare_exchange(Self::WAITS, Self::WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A request on its way.
struct Outgoing {
    body: Body,
    going: Arc<Going>,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.going.send() {
            return Poll::Ready(Some(Err(Status::cancelled("another manager is asked instead"))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    /// Never at once: a call without content would go out unnoticed.
    fn is_end_stream(&self) -> bool {
        !self.going.is_waiting() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What is said of a change of whose outcome nobody knows.
const EITHER: &str = "may or may not have had an effect";

/// What a leader answers whose disk does not.
const STALLED: &str = "this manager leads, but its disk does not answer, so the others elect another leader; the call may \
                       or may not have had an effect: try again with another manager, and look after this one's disk";

/// Answers of a manager that has stopped leading, with their codes.
const LOST: [(Code, &str); 3] = [
    (Code::Unknown, "raft: failed to process the request: node lost leader status"),
    (Code::Aborted, "CA signer is stopped"),
    (Code::Aborted, "CA signer is still starting"),
];

/// See the module's documentation.
pub(super) struct Relay {
    door: Door,
    leader: Arc<dyn LeaderChannel>,
    stop: CancellationToken,
}

/// Why an attempt had no answer that the caller could use.
enum Failure {
    /// The call never began.
    NotBegun(Status),
    /// Nobody knows what became of it.
    Unknown(Status),
}

impl Relay {
    pub(super) fn new(door: Door, leader: Arc<dyn LeaderChannel>, stop: CancellationToken) -> Self {
        Self { door, leader, stop }
    }

    pub(super) fn rule(&self, request: &Request<Body>) -> Option<Rule> {
        rules::rule(request.uri().path(), self.door, self.is_forwarded(request))
    }

    fn is_forwarded(&self, request: &Request<Body>) -> bool {
        let caller = request.extensions().get::<Caller>();
        self.door == Door::Remote
            && caller.is_some_and(|caller| metadata::is_forwarded(request.headers(), caller))
    }

    /// Has the leader answer, which may be this very manager with `inner`.
    pub(super) async fn call<S>(
        &self,
        inner: S,
        request: Request<Body>,
        rule: Rule,
    ) -> Result<Response<Body>, S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>> + Clone,
    {
        if self.is_forwarded(&request) {
            return self.forwarded(inner, request, rule).await;
        }
        if rule.client_stream {
            let (parts, body) = request.into_parts();
            return match self.find(rule).await {
                Err(status) => Ok(status.into_http()),
                Ok(Route::Here { .. }) => self.serve(inner, Request::from_parts(parts, body)).await,
                Ok(Route::There { name, channel, .. }) => match self.outgoing(&parts) {
                    Ok(parts) => {
                        Ok(match self.send(channel, Request::from_parts(parts, body), &name, rule).await {
                            Ok(response) => response,
                            Err(Failure::NotBegun(status) | Failure::Unknown(status)) => status.into_http(),
                        })
                    }
                    Err(status) => Ok(status.into_http()),
                },
            };
        }
        self.repeating(inner, request, rule).await
    }

    /// A call that another manager passed on to this one as the leader.
    async fn forwarded<S>(
        &self,
        inner: S,
        request: Request<Body>,
        rule: Rule,
    ) -> Result<Response<Body>, S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>> + Clone,
    {
        let Some(term) = self.leader.leading() else {
            return Ok(metadata::refused(request.headers()).into_http());
        };
        let headers = rule.read.then(|| request.headers().clone());
        let response = self.serve(inner, request).await?;
        match headers {
            // What was read may be older than a change that the new leader has acknowledged.
            Some(headers) if self.leader.leading() != Some(term) => {
                Ok(metadata::refused(&headers).into_http())
            }
            _ => Ok(response),
        }
    }

    async fn repeating<S>(
        &self,
        inner: S,
        request: Request<Body>,
        rule: Rule,
    ) -> Result<Response<Body>, S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>> + Clone,
    {
        let (parts, body) = request.into_parts();
        let message = match collect(body).await {
            Ok(message) => message,
            Err(status) => return Ok(status.into_http()),
        };
        let rebuild = |parts: Parts| Request::from_parts(parts, Body::new(Full::new(message.clone())));
        let mut first_failure = None;
        loop {
            let failure = match self.find(rule).await {
                Err(status) => return Ok(status.into_http()),
                // The answer to a change is given as it is, so nothing has to be kept for another attempt.
                Ok(Route::Here { .. }) if !rule.read => {
                    let body = Body::new(Full::new(message));
                    return self.serve(inner, Request::from_parts(parts, body)).await;
                }
                Ok(Route::Here { term }) => {
                    let response = self.serve(inner.clone(), rebuild(parts.clone())).await?;
                    if self.leader.leading() == Some(term) {
                        return Ok(response);
                    }
                    Status::unavailable("this manager lost leadership while it read")
                }
                Ok(Route::There { name, channel, .. }) => {
                    let outgoing = match self.outgoing(&parts) {
                        Ok(outgoing) => outgoing,
                        Err(status) => return Ok(status.into_http()),
                    };
                    match self.send(channel, rebuild(outgoing), &name, rule).await {
                        Ok(response) if rule.read && is_lost(response.headers()) => {
                            Status::unavailable(format!("the manager {name} lost leadership while it read"))
                        }
                        Ok(response) => return Ok(response),
                        Err(Failure::NotBegun(status)) => status,
                        Err(Failure::Unknown(status)) if rule.read => status,
                        Err(Failure::Unknown(status)) => return Ok(status.into_http()),
                    }
                }
            };
            debug!(method = parts.uri.path(), reason = failure.message(), "passing a call on failed");
            if first_failure.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                return Ok(failure.into_http());
            }
            sleep(PAUSE).await;
        }
    }

    /// Has this manager answer, as far as its disk lets it.
    async fn serve<S>(&self, mut inner: S, request: Request<Body>) -> Result<Response<Body>, S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
    {
        let answer = async {
            poll_fn(|cx| inner.poll_ready(cx)).await?;
            inner.call(request).await
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            () = self.leader.stalled() => Ok(Status::unavailable(STALLED).into_http()),
        }
    }

    /// Completes when this manager has given up a call because the leader was replaced. One of which nothing has gone out, as
    /// there is no way to the leader, does not go out any more: its host may be gone, and nobody waits for that.
    async fn given_up(&self, name: &str, rule: Rule, going: &Going) -> Failure {
        let pause = || if going.is_waiting() { PAUSE } else { LOOK };
        let reason = another_leads(&*self.leader, name, pause).await;
        if going.withdraw() {
            return Failure::NotBegun(unreachable(name, reason));
        }
        sleep(GRACE).await;
        Failure::Unknown(lost(name, reason, rule))
    }

    async fn find(&self, rule: Rule) -> Result<Route, Status> {
        let find = if rule.apart { self.leader.leader_apart() } else { self.leader.leader() };
        let found = self.stop.run_until_cancelled(find).await;
        found.unwrap_or_else(|| Err(stopping()))
    }

    /// The head of a call as the leader gets it.
    fn outgoing(&self, parts: &Parts) -> Result<Parts, Status> {
        let mut outgoing = parts.clone();
        outgoing.extensions = http::Extensions::default();
        outgoing.version = Version::HTTP_2;
        let caller = parts.extensions.get::<Caller>().cloned().unwrap_or_default();
        let local = parts.extensions.get::<LocalConnectionInfo>();
        metadata::prepare(&mut outgoing.headers, self.door, &caller, local)?;
        Ok(outgoing)
    }

    async fn send(
        &self,
        channel: Channel,
        request: Request<Body>,
        name: &str,
        rule: Rule,
    ) -> Result<Response<Body>, Failure> {
        let going = Arc::<Going>::default();
        let request = request.map(|body| Body::new(Outgoing { body, going: going.clone() }));
        let answer = tokio::select! {
            answer = channel.oneshot(request) => answer,
            failure = self.given_up(name, rule, &going) => return Err(failure),
        };
        match answer {
            Ok(response) if is_refused(response.headers()) => Err(Failure::NotBegun(Status::unavailable(
                format!("the manager {name} does not lead any more"),
            ))),
            Ok(response) => {
                let stop = Box::pin(self.stop.clone().cancelled_owned());
                // Other streams are looked after by those who call.
                let replaced: BoxFuture<'static, &'static str> = match rule.apart {
                    true => Box::pin(replaced(self.leader.clone(), name.to_owned())),
                    false => Box::pin(std::future::pending()),
                };
                let relayed =
                    |body| Relayed { body: Some(body), leader: name.to_owned(), rule, stop, replaced };
                Ok(response.map(|body| Body::new(relayed(body))))
            }
            Err(error) if never_sent(&error) => {
                Err(Failure::NotBegun(unreachable(name, &swarm_pki::innermost(&error))))
            }
            Err(error) => Err(Failure::Unknown(lost(name, &swarm_pki::innermost(&error), rule))),
        }
    }
}

/// Completes some time after this manager knows another leader, or has known none for too long: one that is frozen, or cut
/// off by something that drops packets, would keep its callers for ever. Returns what became of it.
async fn replaced(leader: Arc<dyn LeaderChannel>, name: String) -> &'static str {
    let reason = another_leads(&*leader, &name, || LOOK).await;
    sleep(GRACE).await;
    reason
}

/// Completes when this manager knows another leader, or none, looking so often. Returns which.
async fn another_leads(leader: &dyn LeaderChannel, name: &str, pause: impl Fn() -> Duration) -> &'static str {
    loop {
        sleep(pause()).await;
        match leader.leader().await {
            Ok(Route::There { name: now, .. }) if now == name => {}
            Ok(_) => return "another manager leads now",
            Err(_) => return "this manager hears of no leader any more",
        }
    }
}

fn unreachable(name: &str, reason: &str) -> Status {
    Status::unavailable(format!("the leader {name} can't be reached: {reason}"))
}

fn lost(name: &str, reason: &str, rule: Rule) -> Status {
    let outcome = if rule.changes { format!(", which {EITHER}") } else { String::new() };
    Status::unavailable(format!(
        "the connection to the leader {name} was lost during the call{outcome}: {reason}"
    ))
}

/// The connection was not made, or was gone before the call went out.
fn never_sent(error: &(dyn StdError + 'static)) -> bool {
    swarm_pki::sources(error).any(|error| {
        error.is::<tonic::ConnectError>()
            || error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
    })
}

/// The status of an answer that is nothing but an error.
fn status(headers: &HeaderMap) -> Option<Status> {
    // Not the details: what a peer sends there is not always what it should be.
    let mut plain = HeaderMap::new();
    for name in ["grpc-status", "grpc-message"] {
        if let Some(value) = headers.get(name) {
            plain.insert(name, value.clone());
        }
    }
    Status::from_header_map(&plain).filter(|status| status.code() != Code::Ok)
}

fn is_refused(headers: &HeaderMap) -> bool {
    status(headers)
        .is_some_and(|s| s.code() == Code::ResourceExhausted && s.message().starts_with(metadata::REFUSED))
}

fn is_lost(headers: &HeaderMap) -> bool {
    status(headers).is_some_and(|s| LOST.contains(&(s.code(), s.message())))
}

/// The whole of a request.
async fn collect(body: Body) -> Result<Bytes, Status> {
    match Limited::new(body, MAX_REQUEST).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let limit = swarm_api::defaults::MAX_MESSAGE_BYTES;
            Err(Status::resource_exhausted(format!("the message is larger than the limit of {limit} bytes")))
        }
        Err(error) => Err(Status::cancelled(format!("the request ended early: {error}"))),
    }
}

/// An answer on its way from the leader. If the connection breaks, the caller hears so in gRPC's terms.
struct Relayed {
    body: Option<Body>,
    leader: String,
    rule: Rule,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Completes if the leader that answers is replaced without a word.
    replaced: BoxFuture<'static, &'static str>,
}

fn stopping() -> Status {
    Status::unavailable("this manager is stopping")
}

impl HttpBody for Relayed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let end = match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => lost(&self.leader, error.message(), self.rule),
            // What is there already still goes out.
            Poll::Pending => match self.stop.as_mut().poll(cx) {
                Poll::Ready(()) if !self.rule.changes => stopping(),
                Poll::Ready(()) => {
                    Status::unavailable(format!("{}, and the call {EITHER}", stopping().message()))
                }
                Poll::Pending => {
                    let reason = ready!(self.replaced.as_mut().poll(cx));
                    lost(&self.leader, reason, self.rule)
                }
            },
            frame => return frame,
        };
        self.body = None;
        let mut trailers = HeaderMap::new();
        end.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}
