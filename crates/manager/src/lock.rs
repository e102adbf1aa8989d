//! A locked manager: its key file is encrypted, so it has neither a certificate nor a log that it can read. All it does
//! is to say so on its control socket, in plaintext, and to wait for the key.

use std::path::Path;
use std::time::Duration;

use swarm_api::swarmd::lock_server::{Lock, LockServer};
use swarm_api::swarmd::{UnlockRequest, UnlockResponse};
use swarm_api::v1::health_check_response::ServingStatus;
use swarm_api::v1::health_server::HealthServer;
use swarm_control::{CONTROL_API, Health, RAFT};
use swarm_pki::{Kek, LocalIncoming, UnlockKey};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::Error;
use crate::control_socket::ControlSocket;

/// What a locked manager answers to every other call.
const LOCKED: &str = "this manager is locked, and needs the unlock key before it can be used: give it with \
                      `swarmctl cluster unlock`";
/// Time that open calls have to end once the key is there.
const GRACE: Duration = Duration::from_secs(2);

/// The `Lock` service. Without a way to open anything it says that nothing is locked.
#[derive(Debug, Clone, Default)]
pub(crate) struct LockService {
    keys: Option<mpsc::Sender<Attempt>>,
}

/// A key, and where its fate is told.
type Attempt = (Kek, oneshot::Sender<Result<(), Status>>);

impl LockService {
    /// Of a manager that is not locked.
    pub(crate) fn unlocked() -> LockServer<LockService> {
        LockServer::new(LockService::default())
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let Some(keys) = &self.keys else {
            return Err(Status::failed_precondition("this manager is not locked"));
        };
        let key: UnlockKey = request
            .into_inner()
            .unlock_key
            .trim()
            .parse()
            .map_err(|error: swarm_pki::Error| Status::invalid_argument(error.to_string()))?;
        let (reply, answer) = oneshot::channel();
        let stopping = || Status::unavailable("this manager is being unlocked or stopped");
        keys.send((key.kek().clone(), reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())??;
        Ok(Response::new(UnlockResponse {}))
    }
}

/// Serves health and `Unlock` on a control socket until a key opens what is locked, and returns what was opened.
/// `open` gives nothing for a wrong key.
///
/// # Errors
/// A socket that can't be bound or served, and what `open` fails with for another reason than a wrong key.
pub async fn wait_for_key<T, E>(socket: &Path, open: impl Fn(&Kek) -> Result<Option<T>, E>) -> Result<T, E>
where
    E: From<Error> + std::fmt::Display,
{
    let bound = ControlSocket::bind(socket)
        .map_err(|source| Error::ControlSocket { path: socket.to_owned(), source })?;
    let (listener, _file) = bound.into_parts();
    let health = Health::new();
    for service in [CONTROL_API, RAFT] {
        health.set(service, ServingStatus::NotServing);
    }
    let (keys, mut attempts) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let routes = Routes::new(HealthServer::new(health))
        .add_service(LockServer::new(LockService { keys: Some(keys) }))
        .into_axum_router()
        .fallback(|| async { Status::failed_precondition(LOCKED).into_http::<tonic::body::Body>() });
    let server = Server::builder()
        .add_routes(Routes::from(routes))
        .serve_with_incoming_shutdown(LocalIncoming::new(listener, || None), stop.clone().cancelled_owned());
    tokio::pin!(server);
    warn!(
        socket = %socket.display(),
        "this manager is locked: unlock it with `swarmctl cluster unlock`, or start it with --unlock-key-file"
    );
    let opened = loop {
        let attempt = tokio::select! {
            result = &mut server => {
                let source = match result {
                    Err(source) => source,
                    // It ends only when it is told to.
                    Ok(()) => return Err(Error::Panicked("serving the control socket").into()),
                };
                return Err(Error::Serve { what: "the control socket", source }.into());
            }
            attempt = attempts.recv() => attempt,
        };
        let Some((kek, reply)) = attempt else { continue };
        match open(&kek) {
            Ok(Some(opened)) => {
                let _ = reply.send(Ok(()));
                info!("unlocked");
                break Ok(opened);
            }
            Ok(None) => {
                warn!("a wrong unlock key was refused");
                let text = "this manager could not be unlocked: invalid key provided. A manager that was down while \
                            the key was changed needs the key from before";
                let _ = reply.send(Err(Status::invalid_argument(text)));
            }
            Err(error) => {
                let _ = reply.send(Err(Status::internal(error.to_string())));
                break Err(error);
            }
        }
    };
    attempts.close();
    stop.cancel();
    let _ = tokio::time::timeout(GRACE, server).await;
    opened
}
