//! Containers that somebody else starts again.
//!
//! **Invariant.** What a task has started runs once. A container whose task has ended is kept to be looked at, and is stopped if it
//! runs: its task may have been replaced, and the replacement would not be alone. A container that was restarted is not what its
//! task started any more: the task fails, and its container is stopped.

use std::collections::HashSet;
use std::convert::Infallible;
use std::time::Duration;

use bollard::query_parameters::StopContainerOptionsBuilder;
use tokio::time::sleep;

use crate::controller::DockerController;
use crate::error;
use crate::events::Awaited;
use crate::labelled;
use crate::steps::whole_seconds;

/// First and longest pause before a stop is tried again.
const RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

impl DockerController {
    /// Stops whatever runs of a task that has ended, whenever it does.
    pub(crate) async fn end_whatever_starts(&self) -> Infallible {
        let mut news = self.since_last_look();
        loop {
            news.wait(Awaited::Start).await;
            let mut after = news.clone();
            after.mark_seen();
            self.end_again().await;
            // Only now: a call that is given up is to begin with the same news.
            news = after;
        }
    }

    async fn end_again(&self) {
        let (mut told, mut pause) = (HashSet::new(), RETRY);
        while let Err(error) = self.try_end_again(&mut told).await {
            tracing::warn!(
                task.id = self.task_id,
                node.id = self.node_id,
                reason = error::chain(&error),
                "a container that was started again could not be stopped"
            );
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_RETRY);
        }
    }

    async fn try_end_again(&self, told: &mut HashSet<String>) -> Result<(), bollard::errors::Error> {
        let engine = &self.parts.engine;
        let grace = self.plan.stop_grace;
        let found = labelled::of_task(&engine.docker, (&self.task_id, &self.node_id)).await?;
        for container in found.into_iter().filter(|container| container.runs) {
            if told.insert(container.id.clone()) {
                tracing::warn!(
                    task.id = self.task_id,
                    node.id = self.node_id,
                    container = container.id,
                    "container was started by somebody else although its task has ended: stopping it"
                );
            }
            let options = StopContainerOptionsBuilder::new().t(whole_seconds(grace)).build();
            match engine.patient(grace).stop_container(&container.id, Some(options)).await {
                Err(error) if !matches!(error::status(&error), Some(304 | 404)) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}
