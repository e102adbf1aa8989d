//! What a change of a service would come to.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use swarm_api::swarmd::dry_run_request::Call;
use swarm_api::swarmd::{DryRunRequest, DryRunResponse};
use swarm_dry_run::{Change, Limits, dry_run};
use swarm_reconcile::RandomIds;
use swarm_store::{Error as StoreError, Store, View};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Control;
use crate::deps::Alone;
use crate::error::{Error, Result};

/// Dry runs that may wait for their turn; more are refused.
const MOST_WAITING: usize = 16;
/// New tasks after which a dry run is cut off: some hundred megabytes.
const MOST_TASKS: usize = 250_000;
/// Time after which it is.
const LONGEST: Duration = Duration::from_secs(60);

/// There is one dry run at a time, which takes one thread and the memory of its new tasks.
#[derive(Debug)]
pub(super) struct Room {
    waiting: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Room {
        Room { waiting: Arc::new(Semaphore::new(MOST_WAITING)), running: Arc::new(Semaphore::new(1)) }
    }
}

impl Room {
    async fn enter(&self) -> Result<OwnedSemaphorePermit> {
        let closed = |_| Error::Internal("dry runs have ended".into());
        let busy = |_| Error::Busy("too many dry runs are waiting: try again later".into());
        let _place = self.waiting.clone().try_acquire_owned().map_err(busy)?;
        self.running.clone().acquire_owned().await.map_err(closed)
    }
}

impl Control {
    /// Does what the call would do on a copy of the state, by the call's own code; then lets everything that decides act
    /// on that copy.
    pub(crate) async fn dry_run(&self, request: DryRunRequest) -> Result<DryRunResponse> {
        let call = request.call.ok_or_else(Error::invalid)?;
        let permit = self.dry_runs.enter().await?;
        self.leads()?;
        let change = self.change(self.view().await?, call).await?;
        // Whoever asked may go away.
        let asked = Arc::new(());
        let (waits, began) = (Arc::downgrade(&asked), Instant::now());
        let membership = self.membership.clone();
        let run = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let wanted = move || waits.strong_count() > 0 && membership.is_leader();
            let go_on = move || wanted() && began.elapsed() < LONGEST;
            let limits = Limits { tasks: MOST_TASKS, go_on: &go_on };
            // The log is of what happens, and none of this does.
            tracing::dispatcher::with_default(&tracing::Dispatch::none(), || {
                dry_run(&change, SystemTime::now(), Box::new(RandomIds), &limits)
            })
        });
        let answer = run.await.map_err(|_| Error::Internal("the dry run panicked".into()));
        drop(asked);
        self.leads()?;
        answer
    }

    /// Where another manager leads, its state is what counts; and nothing was changed.
    fn leads(&self) -> Result<()> {
        if self.membership.is_leader() { Ok(()) } else { Err(Error::Store(StoreError::Dropped)) }
    }

    async fn change(&self, view: View, call: Call) -> Result<Change> {
        let fork = Store::fork(view.clone());
        let copy = Control { store: fork.clone(), membership: Arc::new(Alone), ..self.clone() };
        let service = match call {
            Call::Create(create) => copy.write_new_service(create.spec).await?,
            Call::Update(update) => copy.write_service(update).await?,
        };
        Ok(Change { view, fork, service })
    }
}
