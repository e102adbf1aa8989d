//! The Watch service: changes of objects as they are committed here, with what is secret left out.

mod select;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use swarm_api::v1::watch_message::Event as WireEvent;
use swarm_api::v1::{Object as WireObject, Version, WatchMessage, WatchRequest, object, watch_server};
use swarm_api::{Object, Shared};
use swarm_store::{Commit, Received, Store, Subscription};
use tonic::{Request, Response, Status};

use crate::calls::{redacted_cluster, redacted_secret};
use select::Selection;

/// The Watch service on a store.
#[derive(Debug, Clone)]
pub struct Watch {
    store: Arc<Store>,
}

impl Watch {
    /// Watches this store, which on a follower is what has arrived there.
    pub fn new(store: Arc<Store>) -> Watch {
        Watch { store }
    }
}

/// A stream of messages: an empty one when the watch stands, then one for each commit with something in it.
type Messages = Pin<Box<dyn Stream<Item = Result<WatchMessage, Status>> + Send>>;

#[tonic::async_trait]
impl watch_server::Watch for Watch {
    type WatchStream = Messages;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Messages>, Status> {
        let request = request.into_inner();
        let selection = Selection::new(request.entries)?;
        let (view, subscription) = self.store.view_and_subscribe();
        match request.resume_from.map(|version| version.index) {
            None => {}
            Some(from) if from == view.index() => {}
            Some(from) if from > view.index() => {
                return Err(Status::unknown("last version is out of bounds"));
            }
            Some(_) => {
                return Err(Status::unknown("requested index is unavailable due to compaction"));
            }
        }
        let state = State { subscription, selection, old: request.include_old_object, ended: false };
        let first = futures::stream::once(async { Ok(WatchMessage::default()) });
        let rest =
            futures::stream::unfold(state, |mut state| async move { Some((state.next().await?, state)) });
        Ok(Response::new(Box::pin(futures::StreamExt::chain(first, rest))))
    }
}

struct State {
    subscription: Subscription,
    selection: Selection,
    old: bool,
    ended: bool,
}

impl State {
    async fn next(&mut self) -> Option<Result<WatchMessage, Status>> {
        if self.ended {
            return None;
        }
        loop {
            match self.subscription.next().await {
                Received::Commit(commit) => {
                    let message = self.message(&commit);
                    if !message.events.is_empty() {
                        return Some(Ok(message));
                    }
                }
                Received::Lagged(_) => {
                    self.ended = true;
                    let text =
                        "the watcher is too slow and missed changes: list the objects, then watch again";
                    return Some(Err(Status::data_loss(text)));
                }
                Received::Closed => {
                    self.ended = true;
                    return Some(Err(Status::cancelled("the manager is stopping")));
                }
            }
        }
    }

    fn message(&self, commit: &Commit) -> WatchMessage {
        let selected = commit.events.iter().filter_map(|event| {
            let action = self.selection.action(event)?;
            Some(WireEvent {
                action: action as i32,
                object: Some(wire(event.object())),
                old_object: event.new().and(event.old()).filter(|_| self.old).map(wire),
            })
        });
        WatchMessage { events: selected.collect(), version: Some(Version { index: commit.index }) }
    }
}

/// The object as it may be shown.
fn wire(object: &Object) -> WireObject {
    let object = match object {
        Object::Node(o) => object::Object::Node(o.clone()),
        Object::Service(o) => object::Object::Service(o.clone()),
        Object::Network(o) => object::Object::Network(o.clone()),
        Object::Task(o) => object::Object::Task(o.clone()),
        Object::Cluster(o) => object::Object::Cluster(Shared::new(redacted_cluster(o))),
        Object::Secret(o) => object::Object::Secret(redacted_secret(o.clone())),
        Object::Resource(o) => object::Object::Resource(o.clone()),
        Object::Extension(o) => object::Object::Extension(o.clone()),
        Object::Config(o) => object::Object::Config(o.clone()),
        Object::Volume(o) => object::Object::Volume(o.clone()),
    };
    WireObject { object: Some(object) }
}

#[cfg(test)]
mod tests;
