//! Containers by their labels, whatever they are called.

use std::collections::HashMap;

use bollard::Docker;
use bollard::errors::Error as ApiError;
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum as State};
use bollard::query_parameters::ListContainersOptionsBuilder;

use crate::spec::{INIT_NUMBER_LABEL, NODE_ID_LABEL, TASK_ID_LABEL};

/// A container of one of the node's tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labelled {
    pub(crate) id: String,
    pub(crate) task_id: String,
    /// The number of the init task that it is, if it is none of the tasks' own.
    pub(crate) init: Option<String>,
    /// It has not ended, and has been started.
    pub(crate) runs: bool,
    /// When it was made, in seconds since 1970.
    pub(crate) created: i64,
}

/// Every container of the node's that runs.
pub(crate) async fn of_node(docker: &Docker, node_id: &str) -> Result<Vec<Labelled>, ApiError> {
    let own = format!("{NODE_ID_LABEL}={node_id}");
    let filters = HashMap::from([("label", vec![own.as_str()]), ("status", vec!["running", "paused"])]);
    list(docker, &filters, node_id).await
}

/// Every container of a task, init tasks included.
pub(crate) async fn of_task(
    docker: &Docker,
    (task_id, node_id): (&str, &str),
) -> Result<Vec<Labelled>, ApiError> {
    let labels = [format!("{TASK_ID_LABEL}={task_id}"), format!("{NODE_ID_LABEL}={node_id}")];
    let filters = HashMap::from([("label", labels.iter().map(String::as_str).collect())]);
    let mut all = list(docker, &filters, node_id).await?;
    // The engine's filter is believed, and checked.
    all.retain(|container| container.task_id == task_id);
    Ok(all)
}

async fn list(
    docker: &Docker,
    filters: &HashMap<&str, Vec<&str>>,
    node_id: &str,
) -> Result<Vec<Labelled>, ApiError> {
    let options = ListContainersOptionsBuilder::new().all(true).filters(filters).build();
    let all = docker.list_containers(Some(options)).await?;
    Ok(all.into_iter().filter_map(|summary| labelled(summary, node_id)).collect())
}

fn labelled(summary: ContainerSummary, node_id: &str) -> Option<Labelled> {
    let mut labels = summary.labels?;
    if labels.get(NODE_ID_LABEL).map(String::as_str) != Some(node_id) {
        return None;
    }
    Some(Labelled {
        id: summary.id?,
        task_id: labels.remove(TASK_ID_LABEL)?,
        init: labels.remove(INIT_NUMBER_LABEL),
        runs: matches!(summary.state, Some(State::RUNNING | State::PAUSED | State::RESTARTING)),
        created: summary.created.unwrap_or_default(),
    })
}
