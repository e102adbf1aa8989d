use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use swarm_api::v1::ca_client::CaClient;
use swarm_api::v1::ca_server::{Ca, CaServer};
use swarm_api::v1::{
    GetRootCaCertificateRequest, GetRootCaCertificateResponse, GetUnlockKeyRequest, GetUnlockKeyResponse,
    NodeRole,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

use super::*;
use crate::{Clock, Credentials, DEFAULT_NODE_EXPIRY, Error, NodeSubject, PrivateKey, RootCa, create_csr};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A clock that tests move.
#[derive(Clone, Default)]
struct Later(Arc<AtomicU64>);

impl Later {
    fn clock(&self) -> Clock {
        let seconds = self.0.clone();
        Clock::new(move || SystemTime::now() + Duration::from_secs(seconds.load(Ordering::SeqCst)))
    }

    fn pass(&self, time: Duration) {
        self.0.fetch_add(time.as_secs(), Ordering::SeqCst);
    }
}

fn root() -> RootCa {
    RootCa::create(SystemTime::now()).unwrap()
}

fn credentials(root: &RootCa, id: &str, role: NodeRole) -> Credentials {
    let subject = NodeSubject { node_id: id.into(), role, organization: "cluster".into() };
    Credentials::issue(root, &subject, DEFAULT_NODE_EXPIRY, SystemTime::now()).unwrap()
}

fn context(root: &RootCa, id: &str, role: NodeRole) -> Arc<SecurityContext> {
    context_at(root, id, role, Clock::system())
}

fn context_at(root: &RootCa, id: &str, role: NodeRole, clock: Clock) -> Arc<SecurityContext> {
    SecurityContext::new(root.without_signer(), credentials(root, id, role), clock).unwrap()
}

fn dialer(context: &Arc<SecurityContext>) -> Dialer {
    Dialer::new(context.clone(), ServerRole::Manager)
}

async fn listen(context: &Arc<SecurityContext>) -> (TlsIncoming, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (TlsIncoming::new(listener, context.clone()), address)
}

/// Both ends of one connection.
async fn connect(
    incoming: &mut TlsIncoming,
    address: &str,
    dialer: &Dialer,
) -> (ServerStream, Result<ClientStream, DialError>) {
    let (server, client) = tokio::join!(incoming.next(), dialer.dial(address));
    (server.unwrap().unwrap(), client)
}

/// What a client learns that the server refuses: with TLS 1.3 only after its own handshake has ended.
async fn refusal(incoming: &mut TlsIncoming, address: &str, dialer: &Dialer) -> TlsFailure {
    let attempt = async {
        let mut stream = match dialer.dial(address).await {
            Err(error) => return TlsFailure::find(&error).unwrap(),
            Ok(stream) => stream,
        };
        TlsFailure::find(&stream.read_u8().await.unwrap_err()).unwrap()
    };
    tokio::select! {
        failure = attempt => failure,
        _ = incoming.next() => panic!("the connection was accepted"),
    }
}

#[tokio::test]
async fn a_server_knows_its_client_by_the_verified_certificate() {
    let root = root();
    let manager = context(&root, "manager", NodeRole::Manager);
    let (mut incoming, address) = listen(&manager).await;
    for (role, unit) in [(NodeRole::Worker, "swarm-worker"), (NodeRole::Manager, "swarm-manager")] {
        let node = context(&root, "node", role);
        let (server, client) = connect(&mut incoming, &address, &dialer(&node)).await;
        let identity = server.info().identity.clone().unwrap();
        assert_eq!((identity.node_id.as_str(), identity.organization.as_str()), ("node", "cluster"));
        assert_eq!((&identity.units[..], identity.role()), (&[unit.to_owned()][..], Some(role)));
        assert_eq!(server.info().remote_addr.ip(), SocketAddr::from(([127, 0, 0, 1], 0)).ip());
        let client = client.unwrap();
        assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    }
}

#[tokio::test]
async fn a_joining_node_needs_no_certificate_but_checks_the_server() {
    let (ours, theirs) = (root(), root());
    let clock = Clock::system();
    let manager = context(&ours, "manager", NodeRole::Manager);
    let (mut incoming, address) = listen(&manager).await;
    for dialer in [Dialer::joining(&ours, &clock).unwrap(), Dialer::unverified(&clock).unwrap()] {
        let (server, client) = connect(&mut incoming, &address, &dialer).await;
        assert!(server.info().identity.is_none() && client.is_ok());
    }
    let dialer = Dialer::joining(&theirs, &clock).unwrap();
    assert_eq!(refusal(&mut incoming, &address, &dialer).await, TlsFailure::UnknownAuthority);
}

#[tokio::test]
async fn a_certificate_of_another_root_is_refused_on_both_sides() {
    let (ours, theirs) = (root(), root());
    let manager = context(&ours, "manager", NodeRole::Manager);
    let (mut incoming, address) = listen(&manager).await;
    let stranger = context(&theirs, "stranger", NodeRole::Manager);
    assert_eq!(refusal(&mut incoming, &address, &dialer(&stranger)).await, TlsFailure::UnknownAuthority);

    // One that trusts our root but shows a foreign certificate: the server must find out.
    let spy = Dialer::with_credentials(
        &ours,
        &credentials(&theirs, "spy", NodeRole::Manager),
        ServerRole::Manager,
        &Clock::system(),
    )
    .unwrap();
    assert!(matches!(refusal(&mut incoming, &address, &spy).await, TlsFailure::Refused(_)));
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_both_sides() {
    let root = root();
    let (servers_time, clients_time) = (Later::default(), Later::default());
    let manager = context_at(&root, "manager", NodeRole::Manager, servers_time.clock());
    let worker = context_at(&root, "worker", NodeRole::Worker, clients_time.clock());
    let (mut incoming, address) = listen(&manager).await;
    assert!(connect(&mut incoming, &address, &dialer(&worker)).await.1.is_ok());

    clients_time.pass(91 * DAY);
    assert_eq!(refusal(&mut incoming, &address, &dialer(&worker)).await, TlsFailure::Expired);
    let honest = context(&root, "worker", NodeRole::Worker);
    servers_time.pass(91 * DAY);
    let failure = refusal(&mut incoming, &address, &dialer(&honest)).await;
    assert_eq!(failure, TlsFailure::Refused("it has expired"));
}

#[tokio::test]
async fn a_worker_is_no_manager_and_no_ca() {
    let root = root();
    let impostor = context(&root, "worker", NodeRole::Worker);
    let (mut incoming, address) = listen(&impostor).await;
    let node = context(&root, "node", NodeRole::Worker);
    for role in [ServerRole::Manager, ServerRole::Ca] {
        let dialer = Dialer::new(node.clone(), role);
        assert_eq!(refusal(&mut incoming, &address, &dialer).await, TlsFailure::WrongRole);
    }
    let manager = context(&root, "manager", NodeRole::Manager);
    let (mut incoming, address) = listen(&manager).await;
    for role in [ServerRole::Manager, ServerRole::Ca] {
        assert!(connect(&mut incoming, &address, &Dialer::new(node.clone(), role)).await.1.is_ok());
    }
}

#[tokio::test]
async fn a_swapped_certificate_serves_the_next_connection_and_spares_open_ones() {
    let root = root();
    let manager = context(&root, "manager", NodeRole::Manager);
    let node = context(&root, "node", NodeRole::Worker);
    let mut changes = node.subscribe();
    let (mut incoming, address) = listen(&manager).await;
    let dialer = dialer(&node);
    let (mut server, client) = connect(&mut incoming, &address, &dialer).await;
    let mut client = client.unwrap();

    let promoted = credentials(&root, "node", NodeRole::Manager);
    node.update_certificate(promoted.certificate_pem(), promoted.key().clone()).unwrap();
    assert!(changes.has_changed().unwrap());
    assert_eq!(changes.borrow_and_update().credentials().role(), NodeRole::Manager);
    let (promoted, _) = connect(&mut incoming, &address, &dialer).await;
    assert!(promoted.info().identity.as_ref().unwrap().is_manager());

    client.write_all(b"still here").await.unwrap();
    client.flush().await.unwrap();
    let mut text = [0; 10];
    server.read_exact(&mut text).await.unwrap();
    assert_eq!((&text, server.info().identity.as_ref().unwrap().is_manager()), (b"still here", false));
}

#[tokio::test]
async fn nothing_is_resumed_past_a_swap() {
    let root = root();
    let manager = context(&root, "manager", NodeRole::Manager);
    let node = context(&root, "node", NodeRole::Worker);
    let (mut incoming, address) = listen(&manager).await;
    for _ in 0..3 {
        let client = connect(&mut incoming, &address, &dialer(&node)).await.1.unwrap();
        assert_eq!(client.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn a_root_is_rotated_under_a_running_server() {
    let (old, new) = (root(), root());
    let cross = old.cross_sign(new.pem()).unwrap();
    let signer = new.signer().unwrap();
    let rotating =
        RootCa::load(old.pem(), Some((&cross, signer.key_pem().expose())), &cross, SystemTime::now())
            .unwrap();
    let manager = context(&old, "manager", NodeRole::Manager);
    let node = context(&old, "node", NodeRole::Worker);
    let (mut incoming, address) = listen(&manager).await;

    let error = node.update_root(new.without_signer()).unwrap_err();
    assert!(matches!(error, Error::RootMismatch(_)), "{error}: a root that our certificate does not lead to");
    for context in [&manager, &node] {
        let renewed = credentials(&rotating, context.current().credentials().node_id(), NodeRole::Manager);
        context.update_certificate(renewed.certificate_pem(), renewed.key().clone()).unwrap();
        assert!(connect(&mut incoming, &address, &dialer(&node)).await.1.is_ok(), "half way");
        let info = context.current().tls_info();
        assert_eq!(info.cert_issuer_public_key, new.certificates()[0].public_key());
        assert_eq!(info.trust_root, old.pem());
    }
    for context in [&node, &manager] {
        context.update_root(new.without_signer()).unwrap();
        assert!(
            connect(&mut incoming, &address, &dialer(&node)).await.1.is_ok(),
            "one trusts the new root only"
        );
    }
    assert_eq!(node.current().tls_info().trust_root, new.pem());
    let changes = node.subscribe();
    node.update_root(new.without_signer()).unwrap();
    assert!(!changes.has_changed().unwrap(), "the same root is no news");
}

#[tokio::test]
async fn a_certificate_that_does_not_fit_is_not_put_into_use() {
    let (ours, theirs) = (root(), root());
    let node = context(&ours, "node", NodeRole::Worker);
    let before = node.current();
    let foreign = credentials(&theirs, "node", NodeRole::Worker);
    let error = node.update_certificate(foreign.certificate_pem(), foreign.key().clone()).unwrap_err();
    assert!(matches!(error, Error::UnknownAuthority(_)), "{error}");
    let own = credentials(&ours, "node", NodeRole::Worker);
    let error = node.update_certificate(own.certificate_pem(), PrivateKey::generate().unwrap()).unwrap_err();
    assert!(matches!(error, Error::KeyMismatch), "{error}");
    assert!(Arc::ptr_eq(&before, &node.current()));
}

#[test]
fn a_certificate_without_a_name_is_no_credential() {
    let root = root();
    let key = PrivateKey::generate().unwrap();
    for (subject, expected) in
        [(("", "cluster"), "no valid subject names"), (("node", ""), "no organization found")]
    {
        let subject =
            NodeSubject { node_id: subject.0.into(), role: NodeRole::Worker, organization: subject.1.into() };
        let csr = create_csr(&key).unwrap();
        let result = root.sign_csr(&csr, &subject, DEFAULT_NODE_EXPIRY, SystemTime::now());
        let error = result
            .and_then(|pem| Credentials::new(&pem, key.clone(), &root, SystemTime::now(), false))
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn silent_and_garbling_clients_hold_up_nobody() {
    let root = root();
    let manager = context(&root, "manager", NodeRole::Manager);
    let node = context(&root, "node", NodeRole::Worker);
    let (mut incoming, address) = listen(&manager).await;
    let _silent = TcpStream::connect(&address).await.unwrap();
    let mut garbling = TcpStream::connect(&address).await.unwrap();
    garbling.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(connect(&mut incoming, &address, &dialer(&node)).await.1.is_ok());
}

#[tokio::test]
async fn what_answers_without_tls_is_said_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    };
    let dialer = Dialer::unverified(&Clock::system()).unwrap();
    let (result, _stream) = tokio::join!(dialer.dial(&address), answer);
    assert!(result.unwrap_err().to_string().contains("does not speak TLS"));

    // Bound, so that nobody else takes it, but nobody listens.
    let reserved = tokio::net::TcpSocket::new_v4().unwrap();
    reserved.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = reserved.local_addr().unwrap().to_string();
    let error = dialer.dial(&address).await.unwrap_err();
    assert!(matches!(&error, DialError::Connect { address: a, .. } if *a == address), "{error}");
}

#[test]
fn addresses_are_host_and_port() {
    for good in ["127.0.0.1:4242", "[::1]:4242", "manager-1.example:1"] {
        assert!(endpoint(good).is_ok(), "{good}");
    }
    for bad in ["", "127.0.0.1", "host:port", "http://host:1", "host:1/path", "host:1?q"] {
        assert!(matches!(endpoint(bad), Err(Error::Address(_))), "{bad}");
    }
}

/// Answers with who asked.
struct WhoAmI;

#[tonic::async_trait]
impl Ca for WhoAmI {
    async fn get_root_ca_certificate(
        &self,
        request: Request<GetRootCaCertificateRequest>,
    ) -> Result<Response<GetRootCaCertificateResponse>, Status> {
        let node = request.extensions().get::<ConnectionInfo>();
        let local = request.extensions().get::<LocalConnectionInfo>();
        let name = match (node, local) {
            (Some(node), None) => node.identity.as_ref().map_or("nobody".to_owned(), |i| i.node_id.clone()),
            (None, Some(local)) => format!("pid {}", local.credentials.unwrap().pid().unwrap()),
            _ => "neither".to_owned(),
        };
        Ok(Response::new(GetRootCaCertificateResponse { certificate: name.into_bytes() }))
    }

    async fn get_unlock_key(
        &self,
        _request: Request<GetUnlockKeyRequest>,
    ) -> Result<Response<GetUnlockKeyResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

async fn ask(channel: tonic::transport::Channel) -> Result<String, Status> {
    let reply = CaClient::new(channel).get_root_ca_certificate(GetRootCaCertificateRequest {}).await?;
    Ok(String::from_utf8(reply.into_inner().certificate).unwrap())
}

#[tokio::test]
async fn grpc_runs_over_it_and_sees_the_peer_in_every_request() {
    let root = root();
    let manager = context(&root, "manager", NodeRole::Manager);
    let node = context(&root, "node", NodeRole::Worker);
    let (incoming, address) = listen(&manager).await;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let server = Server::builder().add_service(CaServer::new(WhoAmI));
    tasks.spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));

    let channel = dialer(&node).channel(&address).unwrap();
    assert_eq!(ask(channel.clone()).await.unwrap(), "node");
    assert_eq!(ask(channel).await.unwrap(), "node");
    let joining = Dialer::joining(&root, &Clock::system()).unwrap();
    assert_eq!(ask(joining.channel(&address).unwrap()).await.unwrap(), "nobody");

    let spy = credentials(&self::root(), "spy", NodeRole::Manager);
    let spy = Dialer::with_credentials(&root, &spy, ServerRole::Manager, &Clock::system()).unwrap();
    let status = ask(spy.channel(&address).unwrap()).await.unwrap_err();
    assert!(matches!(TlsFailure::find(&status), Some(TlsFailure::Refused(_))), "{status:?}");
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn the_control_socket_takes_plaintext_and_tls() {
    let root = root();
    let manager = context(&root, "manager", NodeRole::Manager);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("swarmd.sock");
    let incoming = {
        let manager = manager.clone();
        LocalIncoming::new(UnixListener::bind(&path).unwrap(), move || {
            Some(manager.current().server_config())
        })
    };
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let server = Server::builder().add_service(CaServer::new(WhoAmI));
    tasks.spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));

    let me = format!("pid {}", std::process::id());
    let plain = {
        let path = path.clone();
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        }))
    };
    assert_eq!(ask(plain).await.unwrap(), me);
    let tls =
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
            let path = path.clone();
            async move {
                let stream = UnixStream::connect(path).await?;
                let connector = tokio_rustls::TlsConnector::from(
                    super::config::unverified_client(&Clock::system()).unwrap(),
                );
                let stream = connector.connect(ServerRole::Manager.server_name(), stream).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }));
    assert_eq!(ask(tls).await.unwrap(), me);
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn nothing_secret_is_printed() {
    let root = root();
    let node = context(&root, "node", NodeRole::Worker);
    let printed = format!("{node:?} {:?} {:?}", dialer(&node), node.current().credentials());
    assert!(printed.contains("node") && !printed.contains("PRIVATE KEY"), "{printed}");
    let key = node.current().credentials().key().to_pkcs8_pem();
    let body = std::str::from_utf8(key.expose()).unwrap().lines().nth(1).unwrap();
    assert!(!printed.contains(body));
}
