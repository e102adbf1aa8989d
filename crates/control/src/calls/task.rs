//! Tasks.

use swarm_api::v1::list_tasks_request::Filters;
use swarm_api::v1::{Task, TaskState};
use swarm_api::{Shared, naming};
use swarm_store::Tables;

use super::{Control, get};
use crate::error::{Error, Result};
use crate::filter::{Common, Found, any, labels, pick};

impl Control {
    pub(crate) async fn get_task(&self, id: &str) -> Result<Shared<Task>> {
        Ok(get::<Task>(&*self.view().await?, "task", id)?.clone())
    }

    pub(crate) async fn remove_task(&self, id: &str) -> Result<()> {
        self.update(|tx| {
            get::<Task>(tx, "task", id)?;
            tx.remove::<Task>(id)?;
            Ok::<_, Error>(())
        })
        .await?;
        tracing::info!(task.id = id, "task removed by request");
        Ok(())
    }

    pub(crate) async fn list_tasks(&self, filters: Option<Filters>) -> Result<Vec<Shared<Task>>> {
        let view = self.view().await?;
        let tables: &Tables = &view;
        let Some(filters) = filters else { return Ok(tables.tasks().iter().cloned().collect()) };
        let common = Common {
            names: &filters.names,
            name_prefixes: &filters.name_prefixes,
            id_prefixes: &filters.id_prefixes,
        };
        let pass = |task: &Task| {
            common.matches(task)
                && labels(&filters.labels, &task.service_annotations.labels)
                && any(&filters.service_ids, |id| task.service_id == *id)
                && any(&filters.node_ids, |id| task.node_id == *id)
                && any(&filters.desired_states, |state| task.desired_state == *state)
                && any(&filters.runtimes, |wanted| {
                    naming::runtime(task.spec.runtime.as_ref()).unwrap_or_default() == *wanted
                })
                && (!filters.up_to_date || up_to_date(tables, task))
        };
        let mut found = Found::default();
        if let Some(common) = common.candidates(tables.tasks()) {
            found = common;
        } else if !filters.service_ids.is_empty() {
            filters.service_ids.iter().for_each(|id| found.extend(tables.tasks().by_service(id)));
        } else if !filters.node_ids.is_empty() {
            filters.node_ids.iter().for_each(|id| found.extend(tables.tasks().by_node(id)));
        } else if !filters.desired_states.is_empty() && !filters.desired_states.contains(&0) {
            let states = filters.desired_states.iter().filter_map(|state| TaskState::try_from(*state).ok());
            states.for_each(|state| found.extend(tables.tasks().by_desired_state(state)));
        } else {
            return Ok(pick(tables.tasks().iter(), pass));
        }
        Ok(pick(found.into_vec(), pass))
    }
}

/// The task is what its service wants now, and would not be replaced.
fn up_to_date(tables: &Tables, task: &Task) -> bool {
    let service = tables.services().get(&task.service_id);
    service.is_some_and(|service| swarm_orchestrator::is_up_to_date(tables, service, task))
}
