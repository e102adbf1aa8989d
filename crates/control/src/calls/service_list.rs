//! Listing services and how far they are.

use swarm_api::v1::list_service_statuses_response::ServiceStatus;
use swarm_api::v1::list_services_request::Filters;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::{Service, Task, TaskState};
use swarm_api::{Shared, StoreObject as _, naming};
use swarm_store::Tables;

use super::Control;
use crate::error::Result;
use crate::filter::{Common, Found, any, labels, pick};

impl Control {
    pub(crate) async fn list_services(&self, filters: Option<Filters>) -> Result<Vec<Shared<Service>>> {
        let view = self.view().await?;
        let Some(filters) = filters else { return Ok(view.services().iter().cloned().collect()) };
        let common = Common {
            names: &filters.names,
            name_prefixes: &filters.name_prefixes,
            id_prefixes: &filters.id_prefixes,
        };
        let pass = |service: &Service| {
            common.matches(service)
                && labels(&filters.labels, &service.annotations().labels)
                && any(&filters.runtimes, |wanted| {
                    naming::runtime(service.spec.task.runtime.as_ref()).as_ref() == Some(wanted)
                })
        };
        if let Some(found) = common.candidates(view.services()) {
            return Ok(pick(found.into_vec(), pass));
        }
        if filters.runtimes.is_empty() {
            return Ok(pick(view.services().iter(), pass));
        }
        let mut found = Found::default();
        filters.runtimes.iter().for_each(|runtime| found.extend(view.services().by_runtime(runtime)));
        Ok(pick(found.into_vec(), pass))
    }

    pub(crate) async fn list_service_statuses(&self, ids: Vec<String>) -> Result<Vec<ServiceStatus>> {
        let view = self.view().await?;
        Ok(ids.into_iter().map(|id| status(&view, id)).collect())
    }
}

/// Counts of a service's tasks; zeros for an unknown one, except for tasks of it that still run.
fn status(tables: &Tables, id: String) -> ServiceStatus {
    let mut status = ServiceStatus { service_id: id, ..Default::default() };
    let service = tables.services().get(&status.service_id);
    let mode = service.and_then(|service| service.spec.mode.as_ref());
    let iteration =
        service.and_then(|service| service.job_status.as_ref()).map(|job| job.job_iteration.index);
    match mode {
        Some(Mode::Replicated(mode)) => status.desired_tasks = mode.replicas,
        Some(Mode::ReplicatedJob(mode)) => status.desired_tasks = mode.max_concurrent,
        _ => {}
    }
    let job = matches!(mode, Some(Mode::ReplicatedJob(_) | Mode::GlobalJob(_)));
    let current = |task: &Task| !job || task.job_iteration.map(|v| v.index) == iteration.or(Some(0));
    for task in tables.tasks().by_service(&status.service_id).filter(|task| current(task)) {
        let (observed, desired) = (task.status.state(), task.desired_state());
        status.running_tasks += u64::from(observed == TaskState::Running);
        status.completed_tasks += u64::from(job && observed == TaskState::Complete);
        status.desired_tasks += u64::from(match mode {
            Some(Mode::Global(_)) => desired == TaskState::Running,
            Some(Mode::GlobalJob(_)) => desired == TaskState::Complete && observed != TaskState::Complete,
            _ => false,
        });
    }
    status
}
