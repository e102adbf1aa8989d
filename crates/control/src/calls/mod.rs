//! The calls of the Control service, a file for each kind of object. Every write is one transaction; every
//! read on the leader is linearizable, and so is every refusal of a write.

mod attachment;
mod cluster;
mod config;
mod extension;
mod network;
mod node;
mod resource;
mod secret;
mod service;
mod service_defaults;
mod service_dry_run;
mod service_list;
mod service_order;
mod service_rebalance;
mod service_rules;
mod service_update;
mod task;
mod volume;

pub(crate) use cluster::redacted as redacted_cluster;
pub(crate) use secret::redacted as redacted_secret;

use std::fmt;
use std::sync::Arc;

use swarm_api::Shared;
use swarm_api::v1::{Network, Version};
use swarm_plugins::Plugins;
use swarm_store::{Committed, Error as StoreError, Store, Tables, Tx, View};

use crate::deps::Membership;
use crate::error::{Error, Result};

/// The Control service. Clones share everything.
#[derive(Clone)]
pub struct Control {
    store: Arc<Store>,
    membership: Arc<dyn Membership>,
    plugins: Option<Arc<Plugins>>,
    dry_runs: Arc<service_dry_run::Room>,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Control {
    /// The calls on a store.
    pub fn new(store: Arc<Store>, membership: Arc<dyn Membership>) -> Control {
        Control { store, membership, plugins: None, dry_runs: Arc::default() }
    }

    /// Where the drivers of secrets and networks are looked for; nowhere unless told.
    pub fn with_plugins(mut self, plugins: Arc<Plugins>) -> Control {
        self.plugins = Some(plugins);
        self
    }

    /// A view for a read: on the leader not older than anything acknowledged before the call, on others what
    /// has arrived there.
    async fn view(&self) -> Result<View> {
        if self.membership.is_leader() {
            self.store.read_barrier().await?;
        }
        Ok(self.store.view())
    }

    /// Runs a transaction whose outcome a caller is told, as [`Store::update`] does. If leadership is lost meanwhile,
    /// only what may have been written has an unknown outcome: a refusal was no more than a read.
    async fn update<R: Send>(
        &self,
        mut f: impl FnMut(&mut Tx) -> Result<R> + Send,
    ) -> Result<(R, Committed)> {
        let mut nothing_written = false;
        let done = self.store.update(|tx| {
            let result = f(tx);
            nothing_written = result.is_err() || tx.is_unchanged();
            result
        });
        match done.await {
            Err(Error::Store(StoreError::LostLeadership)) if nothing_written => {
                Err(Error::Store(StoreError::Dropped))
            }
            done => done,
        }
    }
}

/// The version that an update is based on, which every update must give along with an id.
fn version(id: &str, version: Option<Version>) -> Result<Version> {
    match version {
        Some(version) if !id.is_empty() => Ok(version),
        _ => Err(Error::invalid()),
    }
}

/// An object that a transaction creates without copying it: it is handed to the transaction, and kept only by
/// reference for the case that the transaction is run again.
struct Pending<T>(Option<Shared<T>>);

impl<T: swarm_store::Indexed> Pending<T> {
    fn new(object: T) -> Self {
        Pending(Some(object.into()))
    }

    fn get(&mut self) -> &mut Shared<T> {
        self.0.get_or_insert_default()
    }

    /// Creates it; `taken` names the error for a name that is in use.
    fn create(&mut self, tx: &mut Tx, taken: impl FnOnce(&T) -> Error) -> Result<Shared<T>> {
        let pending = self.get();
        if let Some(name) = T::UNIQUE_NAME.then(|| pending.name()).flatten()
            && T::table(tx).by_name(&name).next().is_some()
        {
            return Err(taken(pending));
        }
        let created = tx.create(std::mem::take(pending))?;
        *pending = created.clone();
        Ok(created)
    }
}

/// The text of a name that is in use, as the contract's clients look for it.
fn name_taken(kind: &str, name: &str) -> Error {
    Error::AlreadyExists(format!("name conflicts with an existing object: {kind} {name} already exists"))
}

/// The object with this id, or the error that the contract has for an unknown one.
fn get<'t, T: swarm_store::Indexed>(
    tables: &'t Tables,
    kind: &'static str,
    id: &str,
) -> Result<&'t Shared<T>> {
    if id.is_empty() {
        return Err(Error::invalid());
    }
    tables.get::<T>(id).ok_or_else(|| Error::not_found(kind, id))
}

/// The network that published ports are reached through.
fn ingress(tables: &Tables) -> Option<&Shared<Network>> {
    tables.networks().iter().find(|network| network.spec.is_ingress())
}

#[cfg(test)]
mod tests;
