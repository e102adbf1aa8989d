//! `image pull`: nodes get an image before tasks need it.

use std::collections::BTreeMap;
use std::io::Write as _;

use clap::Subcommand;
use swarm_api::swarmd::pull_state::Phase;
use swarm_api::swarmd::{PullRequest, PullState, PullUpdate};
use swarm_api::v1::ListNodesRequest;
use tonic::{Code, Status};

use super::{Answer, Context, leader, task_view};
use crate::error::{Error, Result};
use crate::output::{Names, Table};
use crate::spec::credentials;
use crate::values::csv::join;
use crate::values::{List, boolean};

/// Percent between two words on a node.
const STEP: u32 = 10;

/// Commands on images.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Have nodes pull an image before tasks need it. Exit code 1 if one of them does not have it in the end
    Pull {
        /// The image, as a service names it
        image: String,
        /// Which nodes, as constraints of services: node.labels.zone==a; all must hold [default: every node]
        #[arg(long, value_name = "CONSTRAINT")]
        on: Option<Vec<List>>,
        /// Send the credentials that `docker login` stored for the image's registry
        #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = boolean)]
        with_registry_auth: bool,
        /// Show only what came of it
        #[arg(short, long)]
        quiet: bool,
    },
}

pub(crate) async fn run(context: &mut Context, command: Command) -> Result<Answer> {
    let Command::Pull { image, on, with_registry_auth, quiet } = command;
    let registry_auth = if with_registry_auth { credentials(&image)? } else { String::new() };
    let constraints = join(on.as_ref()).unwrap_or_default();
    let request = PullRequest { image, registry_auth, constraints };
    let mut updates = match context.client.images().pull(request).await {
        Ok(updates) => updates.into_inner(),
        Err(status) => return Err(explain(context, status).await),
    };
    let nodes = match context.resolve {
        true => context.control.list_nodes(ListNodesRequest::default()).await?.into_inner().nodes,
        false => Vec::new(),
    };
    let names = Names::new(&nodes, &[]);
    let mut pulls = Pulls::default();
    let end = loop {
        match updates.message().await {
            Ok(Some(update)) => {
                if let Some(line) = pulls.take(update, &names).filter(|_| !quiet) {
                    // Whoever closed it wants to see nothing.
                    let _ = writeln!(std::io::stderr(), "{line}");
                }
            }
            Ok(None) => break Ok(()),
            Err(status) => break Err(explain(context, status).await),
        }
    };
    match end {
        Ok(()) => Ok(Answer { text: pulls.summary(&names).into_bytes(), code: u8::from(!pulls.all_done()) }),
        Err(error) => {
            let _ = write!(std::io::stderr(), "{}", pulls.summary(&names));
            Err(error)
        }
    }
}

async fn explain(context: &mut Context, status: Status) -> Error {
    match status.code() {
        Code::Unimplemented => {
            let leader = leader::named(context).await;
            Error::plain(format!(
                "the manager that leads{leader} can't have images pulled: it is no swarmd, or an older one"
            ))
        }
        _ => status.into(),
    }
}

/// How far each node is.
#[derive(Debug, Default)]
struct Pulls {
    nodes: BTreeMap<String, PullState>,
    /// What was last shown of those that pull, in percent.
    shown: BTreeMap<String, u32>,
}

impl Pulls {
    /// Takes note of an update, and gives a line if it is worth one.
    fn take(&mut self, update: PullUpdate, names: &Names) -> Option<String> {
        let PullUpdate { node_id, state } = update;
        let state = state.unwrap_or_default();
        let name = names.node(&node_id);
        let line = match state.phase() {
            Phase::Waiting => None,
            Phase::Pulling => {
                let percent = state.percent.unwrap_or(0);
                let before = self.shown.get(&node_id);
                let worth = before.is_none_or(|before| percent >= before.saturating_add(STEP));
                worth.then(|| {
                    self.shown.insert(node_id.clone(), percent);
                    match state.percent {
                        Some(percent) => format!("{name}: pulling {percent} %"),
                        None => format!("{name}: looking for the image"),
                    }
                })
            }
            Phase::Done => Some(format!("{name}: done")),
            Phase::Failed | Phase::Unavailable => {
                Some(format!("{name}: {}", task_view::one_line(&state.message)))
            }
        };
        self.nodes.insert(node_id, state);
        line
    }

    fn all_done(&self) -> bool {
        self.nodes.values().all(|state| state.phase() == Phase::Done)
    }

    /// A table of those that don't have it, and how many there are of each sort.
    fn summary(&self, names: &Names) -> String {
        let mut text = String::new();
        if !self.all_done() {
            let mut table = Table::list();
            table.header(&["Node", "State", "Message"]);
            for (id, state) in self.nodes.iter().filter(|(_, state)| state.phase() != Phase::Done) {
                let cells =
                    [names.node(id), state.phase().as_str_name(), &task_view::one_line(&state.message)];
                table.line(cells.join("\t"));
            }
            text = table.finish();
        }
        let count = |phases: &[Phase]| self.nodes.values().filter(|s| phases.contains(&s.phase())).count();
        let all = self.nodes.len();
        let mut parts = vec![format!(
            "{} of {all} {} the image",
            count(&[Phase::Done]),
            if all == 1 { "node has" } else { "nodes have" }
        )];
        for (phases, what) in [
            (&[Phase::Failed][..], "failed"),
            (&[Phase::Unavailable], "could not be asked"),
            (&[Phase::Waiting, Phase::Pulling], "not known"),
        ] {
            match count(phases) {
                0 => {}
                number => parts.push(format!("{number} {what}")),
            }
        }
        format!("{text}{}\n", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use swarm_api::v1::{Node, NodeDescription};

    use super::*;

    fn update(node: &str, phase: Phase, percent: Option<u32>, message: &str) -> PullUpdate {
        let state = PullState { phase: phase.into(), percent, message: message.into() };
        PullUpdate { node_id: node.into(), state: Some(state) }
    }

    #[test]
    fn progress_is_shown_in_steps_and_ends_with_a_summary() {
        let mut node = Node { id: "n1".into(), ..Default::default() };
        node.description = Some(NodeDescription { hostname: "worker-1".into(), ..Default::default() });
        let names = Names::new(&[node.into()], &[]);
        let mut pulls = Pulls::default();
        for (node, phase, percent, message, expected) in [
            ("n1", Phase::Waiting, None, "", None),
            ("n1", Phase::Pulling, None, "", Some("worker-1: looking for the image")),
            ("n1", Phase::Pulling, Some(9), "", None),
            ("n1", Phase::Pulling, Some(12), "", Some("worker-1: pulling 12 %")),
            ("n1", Phase::Pulling, Some(21), "", None),
            ("n1", Phase::Done, Some(100), "", Some("worker-1: done")),
            ("n2", Phase::Failed, None, "no\nsuch image", Some("n2: no such image")),
            ("n3", Phase::Unavailable, None, "the node is down", Some("n3: the node is down")),
        ] {
            let line = pulls.take(update(node, phase, percent, message), &names);
            assert_eq!(line.as_deref(), expected, "{node} {phase:?} {percent:?}");
        }
        assert_eq!(
            pulls.summary(&names),
            "Node  State        Message
----  -----        -------
n2    FAILED       no such image
n3    UNAVAILABLE  the node is down
1 of 3 nodes have the image, 1 failed, 1 could not be asked
"
        );
        assert!(!pulls.all_done());
        let mut one = Pulls::default();
        one.take(update("n1", Phase::Done, None, ""), &names);
        assert!(one.all_done());
        assert_eq!(one.summary(&names), "1 of 1 node has the image\n");
    }
}
