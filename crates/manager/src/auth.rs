//! Who may call what on a manager's TLS port, and who a handler's caller is.
//!
//! [`AuthorizeLayer`] stands before every service of that port: it refuses what the contract's method options do not
//! allow, and puts a [`Caller`] into the extensions of every request it lets through. On the control socket, where file
//! permissions decide, [`LocalCallerLayer`] puts the manager's own identity there.
//!
//! A call that another manager forwarded is judged by the identity it forwards, and so is the forwarder; both are
//! checked against the list of removed nodes. A follower authorizes as the leader does, before it forwards.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use http::{HeaderMap, Request, Response};
use swarm_api::authorization::{Allowed, MANAGER_OU, WORKER_OU, allowed};
use swarm_api::swarmd::tasks_server::SERVICE_NAME;
use swarm_dispatcher::CallerNode;
use swarm_pki::{ConnectionInfo, PeerIdentity, SecurityContext};
use swarm_store::Store;
use tonic::Status;
use tower::{Layer, Service};
use tracing::{debug, warn};

/// Metadata that says "this is another node's call"; counts when it is there once and `true`.
pub const FORWARDED: &str = "forwarded_cert";
/// Metadata with the original caller's node id.
pub const FORWARDED_NODE: &str = "forwarded_cert_cn";
/// Metadata with the original caller's organization.
pub const FORWARDED_ORGANIZATION: &str = "forwarded_cert_org";
/// Metadata with the original caller's organizational units, one value each.
pub const FORWARDED_UNIT: &str = "forwarded_cert_ou";
/// Metadata with the original caller's address, `ip:port`.
pub const REMOTE_ADDR: &str = "remote_addr";

/// Who sent a request. Every request that reaches a handler has one in its extensions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// A node of this cluster that may call the method. `None` where no certificate is needed and none was shown that
    /// counts: of another cluster, or of a node that was removed.
    pub identity: Option<PeerIdentity>,
    /// The manager that passed the call on, if it did not come directly.
    pub forwarded_by: Option<PeerIdentity>,
    /// Where the call comes from; the original caller's address if it was forwarded.
    pub remote_addr: Option<SocketAddr>,
    /// It came over the control socket, as this manager itself.
    pub local: bool,
}

impl Caller {
    /// The caller of a request; nobody, if nothing has identified it.
    pub fn of<T>(request: &tonic::Request<T>) -> Caller {
        request.extensions().get::<Caller>().cloned().unwrap_or_default()
    }

    /// The node's id, if a node is calling.
    pub fn node_id(&self) -> Option<&str> {
        self.identity.as_ref().map(|identity| identity.node_id.as_str())
    }

    /// Whether a manager of this cluster is calling.
    pub fn is_manager(&self) -> bool {
        self.identity.as_ref().is_some_and(PeerIdentity::is_manager)
    }

    fn attach<B>(self, request: &mut Request<B>) {
        if let Some(id) = self.node_id() {
            let node = CallerNode { id: id.to_owned(), addr: self.remote_addr.map(|addr| addr.ip()) };
            request.extensions_mut().insert(node);
        }
        request.extensions_mut().insert(self);
    }
}

/// The identity that a forwarding manager claims for the original caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Forwarded {
    identity: PeerIdentity,
    remote_addr: Option<SocketAddr>,
}

impl Forwarded {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let values = |name: &str| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let mut marks = headers.get_all(FORWARDED).iter();
        if !matches!((marks.next(), marks.next()), (Some(mark), None) if mark.as_bytes() == b"true") {
            return None;
        }
        let first = |name: &str| values(name).next().unwrap_or_default().to_owned();
        Some(Self {
            identity: PeerIdentity {
                node_id: first(FORWARDED_NODE),
                organization: first(FORWARDED_ORGANIZATION),
                units: values(FORWARDED_UNIT).map(str::to_owned).collect(),
            },
            remote_addr: values(REMOTE_ADDR).next().and_then(|addr| addr.parse().ok()),
        })
    }
}

/// Decides. One per manager.
pub struct Authorizer {
    organization: String,
    store: Arc<Store>,
}

impl Authorizer {
    /// Decides for the cluster with this id, with the removed nodes that its cluster object lists.
    pub fn new(organization: impl Into<String>, store: Arc<Store>) -> Arc<Self> {
        Arc::new(Self { organization: organization.into(), store })
    }

    /// Who is calling a method, if they may.
    ///
    /// # Errors
    /// PERMISSION_DENIED with the contract's texts.
    fn authorize(
        &self,
        path: &str,
        peer: Option<&PeerIdentity>,
        addr: Option<SocketAddr>,
        headers: &HeaderMap,
    ) -> Result<Caller, Status> {
        let forwarded = Forwarded::of(headers);
        match allowed(path) {
            Some(Allowed::Roles(units)) => self.check(units, peer, addr, forwarded),
            // Whoever asks learns what anybody may; a certificate that counts is made known to the handler.
            Some(Allowed::Anybody) => Ok(self.recognize(peer, addr, forwarded)),
            // Not of the contract: methods of our own package are for managers, unless they say otherwise there.
            None => self.check(&[MANAGER_OU], peer, addr, forwarded),
        }
    }

    fn recognize(
        &self,
        peer: Option<&PeerIdentity>,
        addr: Option<SocketAddr>,
        forwarded: Option<Forwarded>,
    ) -> Caller {
        if let Ok(caller) = self.check(&[WORKER_OU, MANAGER_OU], peer, addr, forwarded.clone()) {
            return caller;
        }
        let Some(forwarded) = forwarded else { return Caller { remote_addr: addr, ..Caller::default() } };
        // A stranger's call that a manager passed on is not the manager's own.
        let forwarder = peer.filter(|peer| self.check_node(peer, &[MANAGER_OU]).is_ok());
        Caller {
            forwarded_by: forwarder.cloned(),
            remote_addr: forwarder.map_or(addr, |_| forwarded.remote_addr),
            ..Caller::default()
        }
    }

    fn check(
        &self,
        units: &[&str],
        peer: Option<&PeerIdentity>,
        addr: Option<SocketAddr>,
        forwarded: Option<Forwarded>,
    ) -> Result<Caller, Status> {
        let direct = |units: &[&str]| match peer {
            Some(peer) => self.check_node(peer, units).map(|()| peer.clone()),
            None => Err("no client certificates in request".to_owned()),
        };
        let Some(Forwarded { identity, remote_addr }) = forwarded else {
            let identity = direct(units).map_err(|inner| wrapped("unauthorized peer role", &inner))?;
            let identity = Some(identity);
            return Ok(Caller { identity, remote_addr: addr, ..Caller::default() });
        };
        let forwarder =
            direct(&[MANAGER_OU]).map_err(|inner| wrapped("unauthorized forwarder role", &inner))?;
        if identity.node_id.is_empty() || identity.organization.is_empty() || identity.units.is_empty() {
            return Err(denied("missing information in forwarded request".to_owned()));
        }
        if !units.iter().any(|unit| identity.has_unit(unit)) {
            return Err(denied(format!("unauthorized forwarded role, expecting: {}", list(units))));
        }
        if identity.organization != self.organization {
            return Err(denied(format!("organization mismatch, expecting: {}", self.organization)));
        }
        if self.is_removed(&identity.node_id) {
            let inner = removed(&identity.node_id);
            return Err(wrapped("unauthorized peer role", &inner));
        }
        Ok(Caller { identity: Some(identity), forwarded_by: Some(forwarder), remote_addr, local: false })
    }

    fn check_node(&self, node: &PeerIdentity, units: &[&str]) -> Result<(), String> {
        if !units.iter().any(|unit| node.has_unit(unit)) {
            return Err(format!("Permission denied: remote certificate not part of OUs: {}", list(units)));
        }
        if self.is_removed(&node.node_id) {
            return Err(removed(&node.node_id));
        }
        if node.organization != self.organization {
            return Err(format!(
                "Permission denied: remote certificate not part of organization: {}",
                self.organization
            ));
        }
        Ok(())
    }

    fn is_removed(&self, node_id: &str) -> bool {
        self.store.view().cluster().is_some_and(|c| c.blacklisted_certificates.contains_key(node_id))
    }
}

fn removed(node_id: &str) -> String {
    format!("Permission denied: node {node_id} was removed from swarm")
}

fn denied(text: String) -> Status {
    Status::permission_denied(format!("Permission denied: {text}"))
}

/// Clients and operators know the texts with the inner error spelled out like this.
fn wrapped(what: &str, inner: &str) -> Status {
    denied(format!("{what}: rpc error: code = PermissionDenied desc = {inner}"))
}

fn list(units: &[&str]) -> String {
    format!("[{}]", units.join(" "))
}

/// Puts an [`Authorizer`] before the services of the TLS port. Requests must come from connections of
/// [`swarm_pki::TlsIncoming`].
#[derive(Clone)]
pub struct AuthorizeLayer(Arc<Authorizer>);

impl AuthorizeLayer {
    /// Decides with this.
    pub fn new(authorizer: Arc<Authorizer>) -> Self {
        Self(authorizer)
    }
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize { authorizer: self.0.clone(), inner }
    }
}

/// See [`AuthorizeLayer`].
#[derive(Clone)]
pub struct Authorize<S> {
    authorizer: Arc<Authorizer>,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Authorize<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<R>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let connection = request.extensions().get::<ConnectionInfo>();
        let peer = connection.and_then(|connection| connection.identity.as_deref());
        let addr = connection.map(|connection| connection.remote_addr);
        match self.authorizer.authorize(request.uri().path(), peer, addr, request.headers()) {
            Ok(caller) => {
                caller.attach(&mut request);
                Either::Right(self.inner.call(request))
            }
            Err(status) => {
                let (method, reason) = (request.uri().path(), status.message());
                match peer {
                    // Strangers may not fill the log.
                    Some(peer) if is_visit(method) => {
                        warn!(caller = peer.node_id, ?addr, reason, "task session refused");
                    }
                    _ => debug!(method, ?addr, reason, "refused a call"),
                }
                Either::Left(ready(Ok(status.into_http())))
            }
        }
    }
}

/// Somebody wants into a task: whoever does is on record, also if nothing comes of it.
fn is_visit(path: &str) -> bool {
    let service = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    service.is_some_and(|(service, _)| service == SERVICE_NAME)
}

/// Gives requests on the control socket the identity of this manager.
#[derive(Clone)]
pub struct LocalCallerLayer {
    context: Arc<SecurityContext>,
    remote_addr: Option<SocketAddr>,
}

impl LocalCallerLayer {
    /// `remote_addr` is what handlers take for the caller's address: where this manager can be reached.
    pub fn new(context: Arc<SecurityContext>, remote_addr: Option<SocketAddr>) -> Self {
        Self { context, remote_addr }
    }

    fn caller(&self) -> Caller {
        let own = self.context.current().credentials().identity().clone();
        let remote_addr = self.remote_addr.or_else(|| Some(SocketAddr::from(([127, 0, 0, 1], 0))));
        Caller { identity: Some(own), forwarded_by: None, remote_addr, local: true }
    }
}

impl<S> Layer<S> for LocalCallerLayer {
    type Service = LocalCaller<S>;

    fn layer(&self, inner: S) -> LocalCaller<S> {
        LocalCaller { layer: self.clone(), inner }
    }
}

/// See [`LocalCallerLayer`].
#[derive(Clone)]
pub struct LocalCaller<S> {
    layer: LocalCallerLayer,
    inner: S,
}

impl<S, B> Service<Request<B>> for LocalCaller<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        self.layer.caller().attach(&mut request);
        self.inner.call(request)
    }
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
