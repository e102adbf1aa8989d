//! Nodes.

use clap::{Args, Subcommand};
use swarm_api::Shared;
use swarm_api::extensions::PREFIX;
use swarm_api::v1::generic_resource::Resource;
use swarm_api::v1::list_tasks_request::Filters;
use swarm_api::v1::node_spec::{Availability, Membership};
use swarm_api::v1::node_status::State;
use swarm_api::v1::raft_member_status::Reachability;
use swarm_api::v1::{
    GenericResource, ListNodesRequest, ListTasksRequest, Node, NodeDescription, NodeRole, NodeSpec,
    RemoveNodeRequest, UpdateNodeRequest,
};

use super::{Context, ids, labels, task_view};
use crate::error::{Error, Result};
use crate::output::Table;
use crate::output::names::node_name;
use crate::resolve;
use crate::values::csv::join;
use crate::values::{List, pair, size};

/// Commands on nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Let a node take tasks again
    Activate(One),
    /// Make a manager a worker
    Demote(One),
    /// Move all tasks away from a node
    Drain(One),
    /// Show a node and its tasks
    Inspect {
        #[command(flatten)]
        node: One,
        /// Also tasks that are meant to have ended
        #[arg(short, long)]
        all: bool,
    },
    /// List nodes
    Ls {
        /// IDs only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Give a node no new tasks
    Pause(One),
    /// Make a worker a manager
    Promote(One),
    /// Remove a node from the cluster
    #[command(visible_alias = "rm")]
    Remove {
        #[command(flatten)]
        node: One,
        /// Even if it is READY
        #[arg(short, long)]
        force: bool,
    },
    /// Change a node's labels
    Update {
        #[command(flatten)]
        node: One,
        /// Labels, key=value; replaces all
        #[arg(long, value_name = "LIST")]
        label: Option<Vec<List>>,
    },
}

/// A node.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// ID of the node, its hostname, or how its ID begins
    node: String,
}

pub(crate) async fn run(context: &mut Context, command: Command) -> Result<String> {
    match command {
        Command::Ls { quiet } => {
            let nodes = context.control.list_nodes(ListNodesRequest::default()).await?.into_inner().nodes;
            if quiet {
                return Ok(ids(nodes.iter().map(|node| node.id.as_str())));
            }
            Ok(list(&nodes))
        }
        Command::Inspect { node, all } => {
            let node = resolve::node(&mut context.control, &node.node).await?;
            let filters = Filters { node_ids: vec![node.id.clone()], ..Default::default() };
            let request = ListTasksRequest { filters: Some(filters) };
            let tasks = context.control.list_tasks(request).await?.into_inner().tasks;
            let mut page = summary(&node);
            if !tasks.is_empty() {
                let names = context.names().await?;
                page = format!("{page}\n{}", task_view::table(&tasks, all, &names, context.now));
            }
            Ok(page)
        }
        Command::Activate(one) => availability(context, one, Availability::Active, "already active").await,
        Command::Pause(one) => availability(context, one, Availability::Pause, "already paused").await,
        Command::Drain(one) => availability(context, one, Availability::Drain, "already drained").await,
        Command::Promote(one) => role(context, one, NodeRole::Manager, "already a manager").await,
        Command::Demote(one) => role(context, one, NodeRole::Worker, "already a worker").await,
        Command::Remove { node, force } => {
            let node = resolve::node(&mut context.control, &node.node).await?;
            context.control.remove_node(RemoveNodeRequest { node_id: node.id.clone(), force }).await?;
            Ok(String::new())
        }
        Command::Update { node, label } => {
            let labels = join(label.as_ref()).map(|terms| pair::labels(&terms)).transpose();
            let labels = labels.map_err(Error::Usage)?;
            update(context, node, "unchanged: --label says what is to change", |spec| {
                let Some(labels) = labels else { return false };
                let changed = spec.annotations.labels != labels;
                spec.annotations.labels = labels;
                changed
            })
            .await
        }
    }
}

async fn availability(
    context: &mut Context,
    one: One,
    wanted: Availability,
    already: &str,
) -> Result<String> {
    let change =
        |spec: &mut NodeSpec| std::mem::replace(&mut spec.availability, wanted as i32) != wanted as i32;
    update(context, one, already, change).await
}

async fn role(context: &mut Context, one: One, wanted: NodeRole, already: &str) -> Result<String> {
    let change =
        |spec: &mut NodeSpec| std::mem::replace(&mut spec.desired_role, wanted as i32) != wanted as i32;
    update(context, one, already, change).await
}

/// Changes a node's spec; `change` says whether it changed anything.
async fn update(
    context: &mut Context,
    one: One,
    unchanged: &str,
    change: impl FnOnce(&mut NodeSpec) -> bool,
) -> Result<String> {
    let node = resolve::node(&mut context.control, &one.node).await?;
    let mut spec = node.spec.clone();
    if !change(&mut spec) {
        return Err(Error::plain(format!("node {} is {unchanged}", one.node)));
    }
    let request = UpdateNodeRequest {
        node_id: node.id.clone(),
        node_version: Some(node.meta.version),
        spec: Some(spec),
    };
    context.control.update_node(request).await?;
    Ok(String::new())
}

/// `node ls`
fn list(nodes: &[Shared<Node>]) -> String {
    let mut table = Table::list();
    table.header(&["ID", "Name", "Membership", "Status", "Availability", "Manager Status"]);
    for node in nodes {
        let cells = [
            node.id.as_str(),
            node_name(node),
            membership(node.spec.membership()),
            state(node),
            availability_name(node.spec.availability()),
            &manager(node),
        ];
        table.line(cells.join("\t"));
    }
    table.finish()
}

fn membership(membership: Membership) -> &'static str {
    match membership {
        Membership::Pending => "PENDING",
        Membership::Accepted => "ACCEPTED",
    }
}

fn state(node: &Node) -> &'static str {
    match node.status.state() {
        State::Unknown => "UNKNOWN",
        State::Down => "DOWN",
        State::Ready => "READY",
        State::Disconnected => "DISCONNECTED",
    }
}

fn availability_name(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "ACTIVE",
        Availability::Pause => "PAUSE",
        Availability::Drain => "DRAIN",
    }
}

fn reachability(reachability: Reachability) -> &'static str {
    match reachability {
        Reachability::Unknown => "UNKNOWN",
        Reachability::Unreachable => "UNREACHABLE",
        Reachability::Reachable => "REACHABLE",
    }
}

/// How a manager is reached, and which one leads. One that is to become a manager and is not yet is unknown.
fn manager(node: &Node) -> String {
    match &node.manager_status {
        Some(status) => {
            format!("{}{}", reachability(status.reachability()), if status.leader { " *" } else { "" })
        }
        None if node.spec.desired_role() == NodeRole::Manager => "UNKNOWN".to_owned(),
        None => String::new(),
    }
}

/// The page of `node inspect` above its table.
fn summary(node: &Node) -> String {
    let mut page = Table::summary();
    page.pair("ID", &node.id);
    if let Some(description) = &node.description {
        page.pair("Hostname", &description.hostname);
    }
    if !node.spec.annotations.labels.is_empty() {
        page.pair("Node Labels", labels(&node.spec.annotations.labels));
    }
    page.line("Status:\t");
    page.pair("  State", state(node));
    if !node.status.message.is_empty() {
        page.pair("  Message", &node.status.message);
    }
    page.pair("  Availability", availability_name(node.spec.availability()));
    if !node.status.addr.is_empty() {
        page.pair("  Address", &node.status.addr);
    }
    if let Some(status) = &node.manager_status {
        page.line("Manager status:\t");
        page.pair("  Address", &status.addr);
        page.pair("  Raft status", reachability(status.reachability()));
        page.pair("  Leader", if status.leader { "yes" } else { "no" });
    }
    if let Some(description) = &node.description {
        describe(&mut page, description);
    }
    page.finish()
}

fn describe(page: &mut Table, description: &NodeDescription) {
    if let Some(platform) = &description.platform {
        page.line("Platform:\t");
        page.pair("  Operating System", &platform.os);
        page.pair("  Architecture", &platform.architecture);
    }
    if let Some(resources) = &description.resources {
        page.line("Resources:\t");
        page.pair("  CPUs", resources.nano_cpus / 1_000_000_000);
        page.pair("  Memory", size::format(resources.memory_bytes));
        page.line("  Generic Resources:\t");
        for resource in &resources.generic {
            generic(page, "    ", resource);
        }
    }
    let Some(engine) = &description.engine else { return };
    page.line("Plugins:\t");
    let mut kinds: Vec<&str> = engine.plugins.iter().map(|plugin| plugin.r#type.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        let of_kind = engine.plugins.iter().filter(|plugin| plugin.r#type == kind);
        let names: Vec<&str> = of_kind.map(|plugin| plugin.name.as_str()).collect();
        page.pair(&format!("  {kind}"), format!("[{}]", names.join(" ")));
    }
    page.pair("Engine Version", &engine.engine_version);
    let (ours, labels_of_engine): (Vec<_>, Vec<_>) =
        engine.labels.iter().partition(|(label, _)| label.starts_with(PREFIX));
    if !labels_of_engine.is_empty() {
        page.pair("Engine Labels", labels(labels_of_engine));
    }
    // What its daemon says that it can, in words.
    let can = |(label, value): &(&String, &String)| {
        (value.as_str() == "1").then(|| label[PREFIX.len()..].to_owned())
    };
    let (runtimes, abilities): (Vec<_>, Vec<_>) =
        ours.iter().filter_map(can).partition(|ability| ability.starts_with("runtime."));
    let runtimes: Vec<&str> =
        runtimes.iter().filter_map(|runtime| runtime.strip_prefix("runtime.")).collect();
    for (name, list) in [("Runtimes", runtimes.join(", ")), ("Abilities", abilities.join(", "))] {
        if !list.is_empty() {
            page.pair(name, list);
        }
    }
}

/// A line for a generic resource.
pub(super) fn generic(page: &mut Table, indent: &str, resource: &GenericResource) {
    match &resource.resource {
        Some(Resource::NamedResourceSpec(named)) => {
            page.pair(&format!("{indent}{}", named.kind), &named.value);
        }
        Some(Resource::DiscreteResourceSpec(discrete)) if discrete.value == swarm_placement::generic::ALL => {
            page.pair(&format!("{indent}{}", discrete.kind), "all");
        }
        Some(Resource::DiscreteResourceSpec(discrete)) => {
            page.pair(&format!("{indent}{}", discrete.kind), discrete.value);
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use swarm_api::v1::{EngineDescription, ManagerStatus, Platform, PluginDescription, Resources};
    use swarm_placement::generic;

    use super::*;

    fn node(id: &str, hostname: &str, role: NodeRole) -> Node {
        let mut node = Node { id: id.into(), ..Default::default() };
        node.spec.desired_role = role as i32;
        node.spec.membership = Membership::Accepted as i32;
        node.status.state = State::Ready as i32;
        node.description = Some(NodeDescription { hostname: hostname.into(), ..Default::default() });
        node
    }

    fn with_status(mut node: Node, leader: bool) -> Node {
        let reachability = Reachability::Reachable as i32;
        let addr = "10.0.0.1:4242".to_owned();
        node.manager_status = Some(ManagerStatus { raft_id: 1, addr, leader, reachability });
        node
    }

    #[test]
    fn managers_are_told_from_workers() {
        let nodes = [
            with_status(node("m1", "one", NodeRole::Manager), true),
            with_status(node("m2", "two", NodeRole::Manager), false),
            node("m3", "three", NodeRole::Manager),
            node("w", "four", NodeRole::Worker),
        ];
        assert_eq!(
            list(&nodes.map(Shared::from)),
            "ID  Name   Membership  Status  Availability  Manager Status
--  ----   ----------  ------  ------------  --------------
m1  one    ACCEPTED    READY   ACTIVE        REACHABLE *
m2  two    ACCEPTED    READY   ACTIVE        REACHABLE
m3  three  ACCEPTED    READY   ACTIVE        UNKNOWN
w   four   ACCEPTED    READY   ACTIVE        
"
        );
    }

    #[test]
    fn a_node_is_shown_with_what_it_has() {
        let mut node = with_status(node("m1", "one", NodeRole::Manager), true);
        node.spec.annotations.labels = [("b".into(), "2".into()), ("a".into(), "1".into())].into();
        node.status.addr = "10.0.0.1".into();
        let description = node.description.as_mut().unwrap();
        description.platform = Some(Platform { architecture: "x86_64".into(), os: "linux".into() });
        description.resources = Some(Resources {
            nano_cpus: 2_000_000_000,
            memory_bytes: 4_080_218_931,
            generic: generic::parse("fpga=2").unwrap(),
        });
        let plugin = |kind: &str, name: &str| PluginDescription { r#type: kind.into(), name: name.into() };
        description.engine = Some(EngineDescription {
            engine_version: "20.10.24".into(),
            labels: [
                ("disk", "ssd"),
                ("swarmd.runtime.container", "1"),
                ("swarmd.runtime.process", "1"),
                ("swarmd.devices", "1"),
                ("swarmd.privileged", "0"),
            ]
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .into(),
            plugins: vec![plugin("Volume", "local"), plugin("Log", "x"), plugin("Log", "a")],
        });
        assert_eq!(
            summary(&node),
            "ID                          : m1
Hostname                    : one
Node Labels                 : a=1 b=2
Status:                     
  State                     : READY
  Availability              : ACTIVE
  Address                   : 10.0.0.1
Manager status:             
  Address                   : 10.0.0.1:4242
  Raft status               : REACHABLE
  Leader                    : yes
Platform:                   
  Operating System          : linux
  Architecture              : x86_64
Resources:                  
  CPUs                      : 2
  Memory                    : 3.8 GiB
  Generic Resources:        
    fpga                    : 2
Plugins:                    
  Log                       : [x a]
  Volume                    : [local]
Engine Version              : 20.10.24
Engine Labels               : disk=ssd
Runtimes                    : container, process
Abilities                   : devices
"
        );
    }
}
