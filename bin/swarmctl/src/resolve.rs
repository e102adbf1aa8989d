//! Which object an argument means: the one with this id, else the one with this name, else the one whose id
//! begins so.

use swarm_api::Shared;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::*;
use tonic::Code;
use tonic::transport::Channel;

use crate::error::{Error, Result};

/// Ids that are named when an argument is ambiguous.
const SHOWN: usize = 3;

/// Picks the one object out of those that have what was given.
fn single<T>(
    kind: &'static str,
    given: &str,
    what: &'static str,
    found: Vec<T>,
    id: impl Fn(&T) -> &str,
) -> Result<Option<T>> {
    if found.len() > 1 {
        let mut ids: Vec<&str> = found.iter().take(SHOWN).map(id).collect();
        if found.len() > SHOWN {
            ids.push("…");
        }
        return Err(Error::Ambiguous {
            kind,
            given: given.to_owned(),
            what,
            count: found.len(),
            ids: ids.join(", "),
        });
    }
    Ok(found.into_iter().next())
}

macro_rules! resolver {
    ($(#[$doc:meta])* $name:ident: $type:ident, $kind:literal, $get:ident $get_request:expr, $list:ident $list_request:ident $filters:ident, $one:ident, $many:ident) => {
        $(#[$doc])*
        #[allow(clippy::needless_update)] // some of the requests have more fields
        pub(crate) async fn $name(control: &mut ControlClient<Channel>, given: &str) -> Result<Shared<$type>> {
            let not_found = || Error::NotFound { kind: $kind, given: given.to_owned() };
            if given.is_empty() {
                return Err(not_found());
            }
            let request = $get_request(given.to_owned());
            match control.$get(request).await {
                Ok(answer) => return answer.into_inner().$one.ok_or(Error::Incomplete($kind)),
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(status.into()),
            }
            let given_list = || vec![given.to_owned()];
            for (what, filters) in [
                ("name", $filters::Filters { names: given_list(), ..Default::default() }),
                ("ID prefix", $filters::Filters { id_prefixes: given_list(), ..Default::default() }),
            ] {
                let request = $list_request { filters: Some(filters), ..Default::default() };
                let found = control.$list(request).await?.into_inner().$many;
                if let Some(found) = single($kind, given, what, found, |o| &o.id)? {
                    return Ok(found);
                }
            }
            Err(not_found())
        }
    };
}

resolver!(
    /// A node by id, hostname or the beginning of its id.
    node: Node, "node", get_node |node_id| GetNodeRequest { node_id },
    list_nodes ListNodesRequest list_nodes_request, node, nodes
);
resolver!(
    /// A service by id, name or the beginning of its id.
    service: Service, "service", get_service |service_id| GetServiceRequest { service_id, insert_defaults: false },
    list_services ListServicesRequest list_services_request, service, services
);
resolver!(
    /// A task by id, full name or the beginning of its id.
    task_itself: Task, "task", get_task |task_id| GetTaskRequest { task_id },
    list_tasks ListTasksRequest list_tasks_request, task, tasks
);
/// A task by id, full name or the beginning of its id, else the one in a slot that is to run: `web.1`, as lists have it.
/// Only jobs have a slot 0, and every task of a global service is listed there.
pub(crate) async fn task(control: &mut ControlClient<Channel>, given: &str) -> Result<Shared<Task>> {
    let not_found = match task_itself(control, given).await {
        Err(error @ Error::NotFound { .. }) => error,
        result => return result,
    };
    let place = given.rsplit_once('.').and_then(|(service, slot)| Some((service, slot.parse::<u64>().ok()?)));
    let Some((service, slot)) = place else { return Err(not_found) };
    let filters =
        list_tasks_request::Filters { name_prefixes: vec![format!("{given}.")], ..Default::default() };
    let mut tasks = in_slot(control, filters, slot).await?;
    if tasks.is_empty() && slot == 0 {
        // Full names have the node's ID in its place.
        let filters =
            list_services_request::Filters { names: vec![service.to_owned()], ..Default::default() };
        let request = ListServicesRequest { filters: Some(filters) };
        let services = control.list_services(request).await?.into_inner().services;
        if let Some(service) = single("service", service, "name", services, |service| &service.id)? {
            let service_ids = vec![service.id.clone()];
            let filters = list_tasks_request::Filters { service_ids, ..Default::default() };
            tasks = in_slot(control, filters, slot).await?;
        }
    }
    single("task", given, "slot", tasks, |task| &task.id)?.ok_or(not_found)
}

/// Those of the tasks that are to run in a slot.
async fn in_slot(
    control: &mut ControlClient<Channel>,
    filters: list_tasks_request::Filters,
    slot: u64,
) -> Result<Vec<Shared<Task>>> {
    let request = ListTasksRequest { filters: Some(filters) };
    let mut tasks = control.list_tasks(request).await?.into_inner().tasks;
    tasks.retain(|task| task.slot == slot && task.desired_state <= TaskState::Complete as i32);
    Ok(tasks)
}

resolver!(
    /// A cluster by id, name or the beginning of its id.
    cluster: Cluster, "cluster", get_cluster |cluster_id| GetClusterRequest { cluster_id },
    list_clusters ListClustersRequest list_clusters_request, cluster, clusters
);
resolver!(
    /// A network by id, name or the beginning of its id.
    network: Network, "network", get_network |network_id| GetNetworkRequest { network_id, ..Default::default() },
    list_networks ListNetworksRequest list_networks_request, network, networks
);

macro_rules! union_resolver {
    ($(#[$doc:meta])* $name:ident: $type:ident, $kind:literal, $list:ident $list_request:ident $filters:ident $many:ident) => {
        $(#[$doc])*
        pub(crate) async fn $name(control: &mut ControlClient<Channel>, given: &str) -> Result<Shared<$type>> {
            if given.is_empty() {
                return Err(Error::NotFound { kind: $kind, given: given.to_owned() });
            }
            let given_list = vec![given.to_owned()];
            let filters =
                $filters::Filters { names: given_list.clone(), id_prefixes: given_list, ..Default::default() };
            let request = $list_request { filters: Some(filters) };
            let found = control.$list(request).await?.into_inner().$many;
            let exact = |pick: &dyn Fn(&$type) -> &str| found.iter().find(|o| pick(o) == given).cloned();
            if let Some(exact) = exact(&|o| &o.id).or_else(|| exact(&|o| &o.spec.annotations.name)) {
                return Ok(exact);
            }
            single($kind, given, "name or ID prefix", found, |o| &o.id)?
                .ok_or_else(|| Error::NotFound { kind: $kind, given: given.to_owned() })
        }
    };
}

union_resolver!(
    /// A secret by id, name (in which case does not matter) or the beginning of its id.
    secret: Secret, "secret", list_secrets ListSecretsRequest list_secrets_request secrets
);
union_resolver!(
    /// A config by id, name (in which case does not matter) or the beginning of its id.
    config: Config, "config", list_configs ListConfigsRequest list_configs_request configs
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_candidates_are_ambiguous_and_named() {
        fn id<'a>(id: &'a &str) -> &'a str {
            id
        }
        assert!(single("node", "x", "name", vec![], id).unwrap().is_none());
        assert_eq!(single("node", "x", "name", vec!["a"], id).unwrap(), Some("a"));
        let error = single("node", "x", "name", vec!["a", "b"], id).unwrap_err();
        assert_eq!(error.to_string(), "node \"x\" is ambiguous: 2 of them have this name (a, b)");
        let error = single("node", "x", "ID prefix", vec!["a", "b", "c", "d"], id).unwrap_err();
        assert_eq!(error.to_string(), "node \"x\" is ambiguous: 4 of them have this ID prefix (a, b, c, …)");
    }
}
