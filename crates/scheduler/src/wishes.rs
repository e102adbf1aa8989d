//! What a task asks of nodes, for those who want to know before they move it.

use swarm_api::v1::{Node, Task};
use swarm_placement::{FAILURE_WINDOW, NodeInfo};
use swarm_reconcile::Now;

use crate::ended::failed_ago;
use crate::filter::Requirements;
use crate::verdict::Verdict;

/// What a task asks of nodes: what the scheduler would go by.
#[derive(Debug, Clone)]
pub struct Wishes(Requirements);

impl Wishes {
    /// What this task asks for. Tasks of one version of a service ask the same.
    pub fn of(task: &Task) -> Wishes {
        Wishes(Requirements::of(task))
    }

    /// Whether the scheduler would put such a task on the node, which has this account and so many tasks of the service.
    /// One that needs cluster volumes had better stay where they are.
    pub fn fit(&self, info: &NodeInfo, of_service: u32) -> bool {
        let fixed = self.0.fixed.verdict(info.node());
        self.0.volumes.is_empty()
            && self.0.verdict_without_volumes(fixed, info, || of_service) == Verdict::Fits
    }

    /// Whether the task is one of these that failed where it was, so lately that it counts: where too many did, the scheduler
    /// puts none as long as others fit.
    pub fn is_failure(&self, now: &Now, task: &Task) -> bool {
        task.service_id == self.0.service
            && task.spec_version.map_or(0, |v| v.index) == self.0.version
            && failed_ago(task, now).is_some_and(|ago| ago < FAILURE_WINDOW)
    }

    /// The branches on which the node stands, outermost first: one for each placement preference.
    pub fn branches<'a>(&self, node: &'a Node) -> Vec<&'a str> {
        self.0.spread.iter().map(|label| label.branch(node)).collect()
    }
}
