//! Rebalancing a service once.

use std::time::{Duration, SystemTime};

use swarm_api::Shared;
use swarm_api::extensions::{REBALANCE_NOW, can_rebalance, put_request};
use swarm_api::v1::Service;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::update_status::UpdateState;
use swarm_orchestrator::{Unevenness, unevenness};
use swarm_reconcile::Now;
use swarm_store::Tables;

use super::{Control, get};
use crate::error::{Error, Result};

impl Control {
    /// Puts the request on record, in the service itself: nothing else of it changes, so that neither the spec before
    /// the last change nor the state of an update is lost. It is taken off again when it is done.
    pub(crate) async fn rebalance(&self, id: &str) -> Result<Unevenness> {
        let view = self.view().await?;
        let service = checked(&view, id)?.clone();
        // It looks at the whole cluster: no other call, and no transaction, is to wait for that.
        let look = move || {
            let now = Now { mono: Duration::ZERO, wall: SystemTime::now() };
            unevenness(&now, &view, &service)
        };
        let found = tokio::task::spawn_blocking(look).await;
        let found = found.map_err(|_| Error::Internal("the look at the spread panicked".into()))?;
        if found != Unevenness::default() {
            self.update(|tx| {
                let mut service = checked(tx, id)?.clone();
                if !service.spec.annotations.labels.contains_key(REBALANCE_NOW) {
                    put_request(&mut service.spec);
                    tx.update(service)?;
                }
                Ok::<_, Error>(())
            })
            .await?;
        }
        let Unevenness { tasks, waits } = found;
        tracing::info!(service.id = id, tasks, waits, "service is to be rebalanced");
        Ok(found)
    }
}

/// The service, if it can be rebalanced as it is now.
fn checked<'t>(tables: &'t Tables, id: &str) -> Result<&'t Shared<Service>> {
    let service = get::<Service>(tables, "service", id)?;
    if !matches!(service.spec.mode, Some(Mode::Replicated(_))) {
        return Err(Error::precondition("only replicated services can be rebalanced"));
    }
    if !can_rebalance(&service.spec) {
        return Err(Error::precondition(
            "the service's placement strategy is binpack: its tasks go to the fullest nodes, and are not spread",
        ));
    }
    let state = service.update_status.as_ref().map(|s| s.state());
    if !matches!(state, None | Some(UpdateState::Completed | UpdateState::RollbackCompleted)) {
        return Err(Error::precondition(
            "the service is being updated, or its update is paused: rebalance it when that is over",
        ));
    }
    Ok(service)
}
