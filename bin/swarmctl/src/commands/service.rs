//! Services.

use clap::{Args, Subcommand};
use swarm_api::Shared;
use swarm_api::swarmd::dry_run_request::Call;
use swarm_api::swarmd::{DryRunResponse, RebalanceRequest, RebalanceResponse};
use swarm_api::v1::port_config::{Protocol, PublishMode};
use swarm_api::v1::update_service_request::Rollback;
use swarm_api::v1::{
    CreateServiceRequest, EndpointSpec, ListConfigsRequest, ListNodesRequest, ListSecretsRequest,
    ListServicesRequest, ListTasksRequest, PortConfig, RemoveServiceRequest, Service, ServiceSpec,
    UpdateServiceRequest, list_configs_request, list_secrets_request, list_tasks_request,
};

use super::converge::{self, Wait};
use super::{Answer, Context, dry_run, ids, leader, logs, service_view, stats, task_view};
use crate::error::{Error, Result};
use crate::output::Names;
use crate::resolve;
use crate::spec::{
    Changes, CreateFlags, Found, ServiceFlags, UpdateFlags, apply, changed, dependency, lost_credentials,
    new_spec,
};

/// How often an update is tried on a service that somebody else changes at the same time.
const TRIES: usize = 3;

/// Commands on services.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a service
    Create {
        #[command(flatten)]
        create: Box<CreateFlags>,
        #[command(flatten)]
        flags: Box<ServiceFlags>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show a service and its tasks
    Inspect {
        #[command(flatten)]
        service: One,
        /// Also tasks that are meant to have ended
        #[arg(short, long)]
        all: bool,
    },
    /// List services
    Ls {
        /// IDs only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show what the tasks of services wrote
    #[command(visible_alias = "log")]
    Logs {
        /// IDs of services, their names, or how their IDs begin
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
        #[command(flatten)]
        flags: logs::Flags,
    },
    /// Move tasks of a service, as few as make its spread even again, at the pace of its updates
    Rebalance(One),
    /// Remove a service; its tasks are stopped
    #[command(visible_alias = "rm")]
    Remove(One),
    /// Go back to the spec before the last change; doing it twice undoes it
    Rollback {
        #[command(flatten)]
        service: One,
        /// Show what would be placed, replaced and refused, and where and why; write nothing. Exit code 3 if not
        /// everything would find its place
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show what the tasks of services use: processor, memory, network and disks
    Stats {
        /// IDs of services, their names, or how their IDs begin
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
        #[command(flatten)]
        flags: stats::Flags,
    },
    /// Change a service; its tasks are replaced where they change
    // Short flags that add something on create would replace lists here.
    #[command(mut_arg("env", no_short), mut_arg("label", no_short), mut_arg("publish", no_short))]
    Update {
        #[command(flatten)]
        service: One,
        #[command(flatten)]
        update: Box<UpdateFlags>,
        #[command(flatten)]
        flags: Box<ServiceFlags>,
        #[command(flatten)]
        wait: Wait,
    },
}

fn no_short(arg: clap::Arg) -> clap::Arg {
    arg.short(None)
}

/// A service.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// ID of the service, its name, or how its ID begins
    service: String,
}

pub(crate) async fn run(context: &mut Context, command: Command) -> Result<Answer> {
    let text = match command {
        Command::Stats { services, flags } => return stats::run(context, &[], &services, &flags).await,
        Command::Ls { quiet } => {
            let request = ListServicesRequest::default();
            let services = context.control.list_services(request).await?.into_inner().services;
            if quiet {
                return Ok(ids(services.iter().map(|service| service.id.as_str())).into());
            }
            let nodes = context.control.list_nodes(ListNodesRequest::default()).await?.into_inner().nodes;
            let tasks = context.control.list_tasks(ListTasksRequest::default()).await?.into_inner().tasks;
            service_view::list(&services, &nodes, &tasks)
        }
        Command::Inspect { service, all } => inspect(context, &service.service, all).await?,
        Command::Create { create, flags, wait } => {
            let changes = Changes::of_create(&create)?;
            let mut spec = new_spec(&create, &flags)?;
            let found = find(context, &changes, &flags).await?;
            apply(&mut spec, &flags, &changes, &found)?;
            if flags.dry_run {
                let call = Call::Create(CreateServiceRequest { spec: Some(spec.clone()) });
                let answer = dry_run::ask(context, call).await?;
                return dry_run::show(context, &spec, answer).await;
            }
            let warning = mesh_warning(None, spec.endpoint.as_ref());
            let request = CreateServiceRequest { spec: Some(spec) };
            let service = context.control.create_service(request).await?.into_inner().service;
            let service = service.ok_or(Error::Incomplete("service"))?;
            if let Some(warning) = warning {
                eprintln!("{warning}");
            }
            return converge::finish(context, &service, false, &wait).await;
        }
        Command::Update { service, update, flags, wait } => {
            return self::update(context, &service.service, &update, &flags, &wait).await;
        }
        Command::Logs { services, flags } => {
            return logs::run(context, logs::Of::Services(services), &flags).await;
        }
        Command::Rebalance(One { service }) => rebalance(context, &service).await?,
        Command::Rollback { service, dry_run, wait } => {
            return rollback(context, &service.service, dry_run, &wait).await;
        }
        Command::Remove(One { service: given }) => {
            let service = resolve::service(&mut context.control, &given).await?;
            context.control.remove_service(RemoveServiceRequest { service_id: service.id.clone() }).await?;
            format!("{given}\n")
        }
    };
    Ok(text.into())
}

async fn inspect(context: &mut Context, given: &str, all: bool) -> Result<String> {
    let service = resolve::service(&mut context.control, given).await?;
    let filters = list_tasks_request::Filters { service_ids: vec![service.id.clone()], ..Default::default() };
    let request = ListTasksRequest { filters: Some(filters) };
    let tasks = context.control.list_tasks(request).await?.into_inner().tasks;
    let count = service_view::Count::of(&service, &tasks, |_| true);
    let names = if tasks.is_empty() { Names::default() } else { context.names().await? };
    let mut page = service_view::summary(&service, count, &tasks, &names, context.now);
    if !tasks.is_empty() {
        page = format!("{page}\n{}", task_view::table(&tasks, all, &names, context.now));
    }
    Ok(page)
}

/// Changes what the flags say, and nothing else.
async fn update(
    context: &mut Context,
    given: &str,
    update: &UpdateFlags,
    flags: &ServiceFlags,
    wait: &Wait,
) -> Result<Answer> {
    if update.rollback == Some(true) {
        return rollback(context, given, flags.dry_run, wait).await;
    }
    let changes = Changes::of_update(update)?;
    let found = find(context, &changes, flags).await?;
    write(context, given, Rollback::None, flags.dry_run, wait, |service| {
        let mut spec = service.spec.clone();
        if update.force == Some(true) {
            spec.task.force_update += 1;
        }
        apply(&mut spec, flags, &changes, &found)?;
        changed(spec, &service.spec).ok_or_else(|| Error::plain("no changes detected"))
    })
    .await
}

/// Back to the previous spec, which the manager has.
async fn rollback(context: &mut Context, given: &str, dry_run: bool, wait: &Wait) -> Result<Answer> {
    write(context, given, Rollback::Previous, dry_run, wait, |service| Ok(service.spec.clone())).await
}

/// Asks for an even spread, once. Says how many tasks are to move.
async fn rebalance(context: &mut Context, given: &str) -> Result<String> {
    let service = resolve::service(&mut context.control, given).await?;
    let request = RebalanceRequest { service_id: service.id.clone() };
    match context.client.services().rebalance(request).await {
        Ok(answer) => Ok(moves(answer.into_inner())),
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            let leader = leader::named(context).await;
            Err(Error::plain(format!(
                "the manager that leads{leader} can't rebalance services: it is no swarmd, or too old"
            )))
        }
        Err(status) => Err(status.into()),
    }
}

/// It is as even as nodes have room, which may not be even.
fn moves(RebalanceResponse { tasks, waits }: RebalanceResponse) -> String {
    let tasks = match tasks {
        0 if waits => return "no task can move yet: more is done when tasks run that start now\n".to_owned(),
        0 => return "no task has to move: the spread is as even as it can be\n".to_owned(),
        1 => "1 task moves".to_owned(),
        tasks => format!("{tasks} tasks move"),
    };
    let rest = if waits { ", and more may when tasks run that start now" } else { "" };
    format!("{tasks}{rest}\n")
}

/// What became of an update.
enum Done {
    Asked(Box<DryRunResponse>),
    Written(Option<Shared<Service>>),
}

/// Updates a service, or shows what that would come to. When somebody else changed it meanwhile, the change is made to
/// what it is then.
async fn write(
    context: &mut Context,
    given: &str,
    rollback: Rollback,
    dry_run: bool,
    wait: &Wait,
    change: impl Fn(&Service) -> Result<ServiceSpec>,
) -> Result<Answer> {
    let mut tries = TRIES;
    loop {
        let service = resolve::service(&mut context.control, given).await?;
        let spec = change(&service)?;
        let lost = lost_credentials(&service.spec, &spec).map(str::to_owned);
        let warning = mesh_warning(service.spec.endpoint.as_ref(), spec.endpoint.as_ref());
        let request = UpdateServiceRequest {
            service_id: service.id.clone(),
            service_version: Some(service.meta.version),
            spec: Some(spec),
            rollback: rollback as i32,
        };
        tries -= 1;
        let done = match dry_run {
            true => {
                dry_run::ask(context, Call::Update(request)).await.map(|answer| Done::Asked(answer.into()))
            }
            false => {
                let answer = context.control.update_service(request).await;
                answer.map(|answer| Done::Written(answer.into_inner().service))
            }
        };
        match done {
            Ok(Done::Asked(answer)) => return dry_run::show(context, &service.spec, *answer).await,
            Ok(Done::Written(written)) => {
                let written = written.ok_or(Error::Incomplete("service"))?;
                if let Some(registry) = lost {
                    eprintln!(
                        "Note: the service's credentials for {registry} were taken out of it, since its image comes from \
                         another registry now; --with-registry-auth sends those for that one"
                    );
                }
                if let Some(warning) = warning {
                    eprintln!("{warning}");
                }
                return converge::finish(context, &written, rollback == Rollback::Previous, wait).await;
            }
            Err(status) if tries > 0 && status.message().contains("update out of sequence") => {}
            Err(status) => return Err(status.into()),
        }
    }
}

/// What is to be said of ports that come to be published through the routing mesh: nodes of ours do not serve it.
fn mesh_warning(before: Option<&EndpointSpec>, now: Option<&EndpointSpec>) -> Option<String> {
    let there = before.map_or(&[][..], |endpoint| &endpoint.ports);
    let new = now.into_iter().flat_map(|endpoint| &endpoint.ports);
    let new = new.filter(|port| port.publish_mode() == PublishMode::Ingress && !there.contains(port));
    // The manager chooses those that have no number.
    let number = |port: &PortConfig| match port.published_port {
        0 => port.target_port,
        published => published,
    };
    let ports: Vec<String> = new
        .map(|port| match port.protocol() {
            Protocol::Tcp => number(port).to_string(),
            other => format!("{}/{}", number(port), other.as_str_name().to_lowercase()),
        })
        .collect();
    let (what, them) = match ports.len() {
        0 => return None,
        1 => (format!("port {} is", ports[0]), "it"),
        _ => (format!("ports {} are", ports.join(", ")), "them"),
    };
    Some(format!(
        "Warning: {what} published through the routing mesh, which only nodes of Docker Engine serve: publish {them} with \
         mode=host to reach {them} on nodes of swarmd"
    ))
}

/// Looks up what the flags name.
async fn find(context: &mut Context, changes: &Changes, flags: &ServiceFlags) -> Result<Found> {
    let mut found = Found::default();
    let names = |references: &[crate::values::reference::Reference]| -> Vec<String> {
        references.iter().map(|reference| reference.name.clone()).collect()
    };
    if !changes.add_secrets.is_empty() {
        let filters =
            list_secrets_request::Filters { names: names(&changes.add_secrets), ..Default::default() };
        let request = ListSecretsRequest { filters: Some(filters) };
        found.secrets = context.control.list_secrets(request).await?.into_inner().secrets;
    }
    let mut configs = names(&changes.add_configs);
    configs.extend(flags.container.credential_config().map(str::to_owned));
    if !configs.is_empty() {
        let filters = list_configs_request::Filters { names: configs, ..Default::default() };
        let request = ListConfigsRequest { filters: Some(filters) };
        found.configs = context.control.list_configs(request).await?.into_inner().configs;
    }
    for wanted in flags.start.wanted()? {
        let service = resolve::service(&mut context.control, &wanted.service).await?;
        found.dependencies.push(dependency(&service.spec, wanted.condition));
    }
    let networks = flags.networks()?.unwrap_or_default();
    for given in networks.iter().map(|network| &network.network).chain(changes.lists.networks()) {
        let id = resolve::network(&mut context.control, given).await?.id.clone();
        found.networks.push((given.clone(), id));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_come_to_be_published_through_the_mesh_are_warned_of() {
        let port = |published_port, protocol: Protocol, mode: PublishMode| PortConfig {
            target_port: 80,
            published_port,
            protocol: protocol as i32,
            publish_mode: mode as i32,
            ..Default::default()
        };
        let (host, mesh) =
            (port(80, Protocol::Tcp, PublishMode::Host), port(8080, Protocol::Tcp, PublishMode::Ingress));
        let endpoint = |ports: &[PortConfig]| EndpointSpec { ports: ports.to_vec(), ..Default::default() };
        let before = endpoint(&[host.clone(), mesh.clone()]);
        let warning = mesh_warning(None, Some(&before)).unwrap();
        assert_eq!(
            warning,
            "Warning: port 8080 is published through the routing mesh, which only nodes of Docker Engine serve: publish it \
             with mode=host to reach it on nodes of swarmd"
        );
        assert_eq!(mesh_warning(None, None), None);
        assert_eq!(mesh_warning(None, Some(&endpoint(&[host]))), None);
        assert_eq!(mesh_warning(Some(&before), Some(&before)), None, "it was there");
        assert_eq!(mesh_warning(Some(&before), None), None);
        let more = [
            mesh,
            port(53, Protocol::Udp, PublishMode::Ingress),
            port(0, Protocol::Tcp, PublishMode::Ingress),
        ];
        let warning = mesh_warning(Some(&before), Some(&endpoint(&more))).unwrap();
        assert!(warning.starts_with("Warning: ports 53/udp, 80 are published through"), "{warning}");
        assert!(
            warning.ends_with("publish them with mode=host to reach them on nodes of swarmd"),
            "{warning}"
        );
    }

    #[test]
    fn what_can_not_move_yet_is_told_from_what_need_not() {
        let text = |tasks, waits| moves(RebalanceResponse { tasks, waits });
        assert_eq!(text(0, false), "no task has to move: the spread is as even as it can be\n");
        assert_eq!(text(0, true), "no task can move yet: more is done when tasks run that start now\n");
        assert_eq!(text(1, false), "1 task moves\n");
        assert_eq!(text(2_500, false), "2500 tasks move\n");
        assert_eq!(text(2, true), "2 tasks move, and more may when tasks run that start now\n");
    }
}
