//! Rebalancing a service once.

use swarm_api::extensions::REBALANCE_NOW;
use swarm_api::v1::Service;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::update_status::UpdateState;

use super::{Control, get};
use crate::error::{Error, Result};

impl Control {
    /// Puts the request on record, in the service itself: nothing else of it changes, so that neither the spec before
    /// the last change nor the state of an update is lost. It is taken off again when it is done.
    pub(crate) async fn rebalance(&self, id: &str) -> Result<u64> {
        let (tasks, _) = self
            .update(|tx| {
                let mut service = get::<Service>(tx, "service", id)?.clone();
                if !matches!(service.spec.mode, Some(Mode::Replicated(_))) {
                    return Err(Error::precondition("only replicated services can be rebalanced"));
                }
                let state = service.update_status.as_ref().map(|s| s.state());
                let done =
                    matches!(state, None | Some(UpdateState::Completed | UpdateState::RollbackCompleted));
                if !done {
                    return Err(Error::precondition(
                        "the service is being updated, or its update is paused: rebalance it when that is over",
                    ));
                }
                let tasks = swarm_orchestrator::tasks_to_move(tx, &service) as u64;
                if tasks > 0 && !service.spec.annotations.labels.contains_key(REBALANCE_NOW) {
                    service.spec.annotations.labels.insert(REBALANCE_NOW.to_owned(), "1".to_owned());
                    tx.update(service)?;
                }
                Ok(tasks)
            })
            .await?;
        tracing::info!(service.id = id, tasks, "service is to be rebalanced");
        Ok(tasks)
    }
}
