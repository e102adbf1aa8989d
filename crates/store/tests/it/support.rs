//! Small objects, and things that every test needs.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use swarm_api::Shared;
use swarm_api::v1::{Node, Service, Task, TaskSpec};
use swarm_store::{Committed, Error, Store, Tx};

pub(crate) fn named<T: Default>(f: impl FnOnce(&mut T)) -> T {
    let mut object = T::default();
    f(&mut object);
    object
}

pub(crate) fn service(id: &str, name: &str) -> Service {
    named(|s: &mut Service| {
        s.id = id.to_owned();
        s.spec.annotations.name = name.to_owned();
    })
}

pub(crate) fn node(id: &str) -> Node {
    named(|n: &mut Node| n.id = id.to_owned())
}

pub(crate) fn task(id: &str, service: &Service, slot: u64) -> Task {
    Task {
        id: id.into(),
        service_id: service.id.as_str().into(),
        slot,
        spec: Shared::<TaskSpec>::clone(&service.spec.task),
        service_annotations: service.spec.annotations.clone(),
        ..Default::default()
    }
}

pub(crate) fn create_service(tx: &mut Tx, id: &str, name: &str) -> Result<(), Error> {
    tx.create(service(id, name)).map(drop)
}

/// Adds one to a counter in a service: lost updates show.
pub(crate) fn count(tx: &mut Tx, id: &str) -> Result<u64, Error> {
    let mut counter = tx.get::<Service>(id).cloned().unwrap_or_else(|| service(id, id).into());
    counter.spec.task.force_update += 1;
    let count = counter.spec.task.force_update;
    if count == 1 { tx.create(counter) } else { tx.update(counter) }.map(|_| count)
}

pub(crate) fn counter(store: &Store, id: &str) -> u64 {
    store.view().get::<Service>(id).map_or(0, |s| s.spec.task.force_update)
}

/// A future that has been started, to be looked at between steps of a test.
pub(crate) struct Started<'a, T>(Pin<Box<dyn Future<Output = T> + Send + 'a>>);

impl<'a, T> Started<'a, T> {
    pub(crate) fn new(future: impl Future<Output = T> + Send + 'a) -> Self {
        let mut started = Started(Box::pin(future));
        assert!(started.poll().is_none(), "it was to wait");
        started
    }

    pub(crate) fn poll(&mut self) -> Option<T> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    pub(crate) async fn done(self) -> T {
        self.0.await
    }
}

pub(crate) type Updated<R> = Result<(R, Committed), Error>;
