//! Attachments: a node's container that belongs to no service joins a network of the cluster (`network.md` B2).

use swarm_api::id;
use swarm_api::v1::{
    AttachNetworkRequest, Network, NetworkAttachmentConfig, NetworkAttachmentSpec, Task, TaskSpec, TaskState,
    TaskStatus, task_spec,
};
use swarm_api::{Shared, text};
use swarm_store::Tables;

use super::{Control, Pending};
use crate::error::{Error, Result};
use crate::validate::size;

/// Attachments that a node has at most: a node that lies fills nobody's memory.
const MOST: usize = 4096;

impl Control {
    /// Makes a task on this node that attaches a container there to a network, and returns the task's id. The allocator, the
    /// scheduler and the dispatcher bring it there as any other.
    ///
    /// Asked for twice it makes two, as the original does: nobody but the node knows which of its requests are the same.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without a config or a target, or if they are too large; [`Error::NotFound`] for an unknown
    /// network or node, [`Error::PermissionDenied`] for a network to which nobody may attach by hand, [`Error::Busy`] if
    /// the node has 4096 attachments; those of the store.
    pub async fn attach_network(&self, node_id: &str, request: AttachNetworkRequest) -> Result<String> {
        let AttachNetworkRequest { config, container_id } = request;
        let config = config.ok_or_else(Error::invalid)?;
        if config.target.is_empty() {
            return Err(Error::argument("the id or name of a network must be given"));
        }
        // Whatever else was asked for is of no meaning here: who attaches by hand has no names in a service.
        let NetworkAttachmentConfig { target, addresses, .. } = config;
        let spec = TaskSpec {
            runtime: Some(task_spec::Runtime::Attachment(NetworkAttachmentSpec { container_id })),
            networks: vec![NetworkAttachmentConfig { addresses, ..Default::default() }],
            ..Default::default()
        };
        size("attachment", &spec)?;
        let status =
            TaskStatus { state: TaskState::New as i32, message: text!("created"), ..Default::default() };
        let mut pending = Pending::new(Task {
            id: id::random().into(),
            node_id: node_id.into(),
            spec: spec.into(),
            status,
            desired_state: TaskState::Running as i32,
            ..Default::default()
        });
        let (task, _) = self
            .update(|tx| {
                if tx.nodes().get(node_id).is_none() {
                    return Err(Error::not_found("node", node_id));
                }
                let there = || tx.tasks().by_node(node_id).filter(|task| is_attachment(task));
                if there().count() >= MOST {
                    // One that has ended, and that the node has not detached, makes room.
                    let ended = there().find(|task| task.status.reached(TaskState::Complete));
                    let Some(ended) = ended.map(|task| task.id.clone()) else {
                        return Err(Error::Busy(format!(
                            "node {node_id} has {MOST} attachments, as many as it can have"
                        )));
                    };
                    tx.remove::<Task>(&ended)?;
                }
                let network = find(tx, &target)?.id.clone();
                let task = pending.get();
                task.status.timestamp = Some(tx.now().into());
                task.spec.networks[0].target = network;
                pending.create(tx, |_| swarm_store::Error::Exists.into())
            })
            .await?;
        tracing::info!(task.id = %task.id, node.id = node_id, network = target, "container is to be attached");
        Ok(task.id.to_string())
    }

    /// Ends what [`Control::attach_network`] made for this node.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without an id, [`Error::NotFound`] for what is no attachment, and
    /// [`Error::PermissionDenied`] for another node's; those of the store.
    pub async fn detach_network(&self, node_id: &str, attachment: &str) -> Result<()> {
        if attachment.is_empty() {
            return Err(Error::invalid());
        }
        self.update(|tx| {
            let task = tx.tasks().get(attachment).filter(|task| is_attachment(task));
            let task = task.ok_or_else(|| Error::not_found("attachment", attachment))?;
            if *task.node_id != *node_id {
                return Err(Error::PermissionDenied(format!(
                    "attachment {attachment} doesn't belong to this node"
                )));
            }
            tx.remove::<Task>(attachment)?;
            Ok(())
        })
        .await?;
        tracing::info!(task.id = attachment, node.id = node_id, "container is detached");
        Ok(())
    }
}

fn is_attachment(task: &Task) -> bool {
    matches!(task.spec.runtime, Some(task_spec::Runtime::Attachment(_)))
}

/// The network with this id, or else this name, if containers may be attached to it.
fn find<'t>(tables: &'t Tables, target: &str) -> Result<&'t Shared<Network>> {
    let networks = tables.networks();
    let network = networks.get(target).or_else(|| networks.by_name(target).next());
    let network = network.ok_or_else(|| Error::not_found("network", target))?;
    if !network.spec.attachable {
        return Err(Error::PermissionDenied(format!("network {target} not manually attachable")));
    }
    Ok(network)
}
