//! Images that managers want this node to have before tasks need them.
//!
//! Orders come on the session's connection, and what becomes of them is told by calls on it. They end with the session: a
//! manager tells the next one again what is still wanted, and the executor goes on with a pull that was begun.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use swarm_api::swarmd::pull_broker_client::PullBrokerClient;
use swarm_api::swarmd::pull_state::Phase;
use swarm_api::swarmd::{PullListenRequest, PullOrder, PullReport, PullState};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::ControllerError;
use crate::executors::Executors;
use crate::logs::Pauses;

/// Shortest time between two words on an order, and the longest: managers give up nodes that say nothing.
const OFTEN: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(10);
/// Longest time for a call.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most orders that are carried out at the same time.
const MOST: usize = 64;
/// Longest text of an error that is told, in bytes.
const MAX_MESSAGE: usize = 4 * 1024;

/// Carries out orders for images. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pulls {
    executors: Executors,
}

impl Pulls {
    pub(crate) fn new(executors: Executors) -> Pulls {
        Pulls { executors }
    }

    /// Listens to a manager for as long as the session with it lasts. Trouble with images never ends a session.
    pub(crate) async fn listen(&self, channel: Channel) -> Infallible {
        let mut client = PullBrokerClient::new(channel);
        let mut pauses = Pauses::default();
        loop {
            let error = self.listen_once(&mut client).await;
            if error.code() == Code::Unimplemented {
                tracing::debug!("the manager that leads has no images pulled: it is of another make");
                std::future::pending::<()>().await;
            }
            tracing::debug!(%error, "orders for images are listened to anew");
            pauses.pause().await;
        }
    }

    async fn listen_once(&self, client: &mut PullBrokerClient<Channel>) -> Status {
        let mut stream = match client.listen(PullListenRequest {}).await {
            Ok(stream) => stream.into_inner(),
            Err(error) => return error,
        };
        // Dropped with this call, which ends them.
        let mut running = JoinSet::new();
        let mut orders: HashMap<String, AbortHandle> = HashMap::new();
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                Some(_) = running.join_next() => {
                    orders.retain(|_, order| !order.is_finished());
                    continue;
                }
            };
            let order = match message {
                Ok(Some(order)) => order,
                Ok(None) => return Status::unavailable("the manager closed the stream"),
                Err(error) => return error,
            };
            if order.close {
                if let Some(order) = orders.remove(&order.id) {
                    order.abort();
                }
            } else if orders.len() < MOST && !orders.contains_key(&order.id) {
                let id = order.id.clone();
                let order = carry_out(self.executors.clone(), client.clone(), order);
                orders.insert(id, running.spawn(order));
            }
        }
    }
}

/// Pulls the image, and tells the manager how far it is and what came of it.
async fn carry_out(executors: Executors, mut client: PullBrokerClient<Channel>, order: PullOrder) {
    let (progress, mut seen) = watch::channel(None);
    let pull = executors.pull_image(&order.image, &order.registry_auth, &progress);
    let result = tokio::select! {
        result = pull => result,
        () = tell_progress(&mut client, &order.id, &mut seen) => return,
    };
    let state = match result {
        Ok(()) => PullState { phase: Phase::Done.into(), percent: Some(100), message: String::new() },
        Err(error) => {
            tracing::warn!(image = order.image, %error, "an image that was ordered could not be had");
            PullState { phase: Phase::Failed.into(), percent: None, message: text(&error) }
        }
    };
    let mut pauses = Pauses::default();
    while tell(&mut client, &order.id, state.clone()).await == Told::No {
        pauses.pause().await;
    }
}

fn text(error: &ControllerError) -> String {
    let mut text = error.to_string();
    text.truncate(text.floor_char_boundary(MAX_MESSAGE));
    text
}

/// Tells how far a pull is, whenever that changes and now and then. Returns when nobody wants to know.
async fn tell_progress(
    client: &mut PullBrokerClient<Channel>,
    id: &str,
    seen: &mut watch::Receiver<Option<u8>>,
) {
    loop {
        let percent = seen.borrow_and_update().map(u32::from);
        let state = PullState { phase: Phase::Pulling.into(), percent, message: String::new() };
        if tell(client, id, state).await == Told::Unwanted {
            return;
        }
        sleep(OFTEN).await;
        // Its sender lives as long as this is asked.
        let _ = timeout(SELDOM - OFTEN, seen.changed()).await;
    }
}

/// What became of a report.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Yes,
    /// It did not arrive, as far as is known.
    No,
    /// Nobody waits for the order any more.
    Unwanted,
}

async fn tell(client: &mut PullBrokerClient<Channel>, id: &str, state: PullState) -> Told {
    let report = PullReport { id: id.to_owned(), state: Some(state) };
    match timeout(PATIENCE, client.report(report)).await {
        Ok(Ok(_)) => Told::Yes,
        Ok(Err(error)) => {
            tracing::debug!(order = id, %error, "a report on an image was not taken");
            match error.code() {
                Code::NotFound | Code::Unimplemented | Code::PermissionDenied | Code::InvalidArgument => {
                    Told::Unwanted
                }
                _ => Told::No,
            }
        }
        Err(_) => Told::No,
    }
}
