//! Managers that are dead: where the cluster wants it, the leader demotes one that it could not reach for long enough,
//! so that the group is not counted with those that never come back. Whatever it takes to remove a member safely is
//! the role manager's, as with any other demotion; if the node comes back, it is a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use swarm_api::extensions::ClusterPolicy;
use swarm_api::v1::{Node, NodeRole};
use swarm_raft::RaftHandle;
use swarm_store::{Error, Store, Tx};
use tokio::time::{Instant, interval};
use tracing::{error, warn};

/// Between two looks at the managers.
const LOOK: Duration = Duration::from_secs(1);

/// A manager as its leader sees it now.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) node_id: String,
    pub(crate) reachable: bool,
    /// It is on its way to being a worker.
    pub(crate) leaving: bool,
    /// The others would keep a quorum of members that can be reached.
    pub(crate) dispensable: bool,
}

/// The rule. It forgets what it saw with its leader: a new one sees for itself for the whole time.
#[derive(Debug, Default)]
pub(crate) struct DeadManagers {
    unreachable: BTreeMap<String, Instant>,
}

impl DeadManagers {
    /// Takes note of how the managers are; who is to be demoted now, and since when it could not be reached. One at a time,
    /// the longest dead first, and nobody without whom there is no quorum.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        managers: &[Seen],
        timeout: Option<Duration>,
    ) -> Option<(String, Duration)> {
        let gone: BTreeSet<&str> =
            managers.iter().filter(|m| !m.reachable).map(|m| m.node_id.as_str()).collect();
        self.unreachable.retain(|id, _| gone.contains(id.as_str()));
        for id in gone {
            self.unreachable.entry(id.to_owned()).or_insert(now);
        }
        let timeout = timeout?;
        if managers.iter().any(|m| m.leaving) {
            return None;
        }
        let dispensable = managers.iter().filter(|m| m.dispensable);
        let dead = dispensable.filter_map(|m| Some((self.unreachable.get(&m.node_id)?, &m.node_id)));
        let (since, id) = dead.min()?;
        let unreachable = now.duration_since(*since);
        (unreachable >= timeout).then(|| (id.clone(), unreachable))
    }
}

/// Demotes dead managers until leadership is lost or the store is closed.
pub(crate) async fn run(store: Arc<Store>, raft: RaftHandle) {
    let mut rule = DeadManagers::default();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let view = store.view();
        // Another leader may have let through what this one does not understand.
        let policy = view.cluster().map(|cluster| ClusterPolicy::read(&cluster.spec.annotations.labels));
        let timeout = policy.and_then(Result::ok).and_then(|policy| policy.dead_manager_timeout);
        let membership = raft.membership();
        let seen: Vec<Seen> = membership
            .members()
            .map(|member| {
                let node = view.nodes().get(&member.node_id);
                Seen {
                    node_id: member.node_id.clone(),
                    reachable: raft.is_reachable(member.raft_id),
                    leaving: node.is_none_or(|node| node.spec.desired_role() != NodeRole::Manager),
                    dispensable: raft.can_remove(member.raft_id),
                }
            })
            .collect();
        let Some((id, unreachable)) = rule.look(Instant::now(), &seen, timeout) else { continue };
        warn!(
            node.id = id,
            "this manager could not be reached for {} s: it is demoted, as the cluster's settings want it",
            unreachable.as_secs()
        );
        match demote(&store, &id).await {
            Ok(()) => {}
            Err(Error::LostLeadership | Error::Stopped) => return,
            Err(error) => error!(node.id = id, %error, "a dead manager could not be demoted"),
        }
    }
}

async fn demote(store: &Store, id: &str) -> Result<(), Error> {
    let write = |tx: &mut Tx| {
        let Some(node) = tx.nodes().get(id) else { return Ok(()) };
        let mut node = Node::clone(node);
        node.spec.desired_role = NodeRole::Worker as i32;
        tx.update::<Node>(node).map(drop)
    };
    store.update(write).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

    fn seen(node_id: &str, reachable: bool) -> Seen {
        Seen { node_id: node_id.into(), reachable, leaving: false, dispensable: true }
    }

    /// Looks at these moments, in seconds; what came of each look.
    fn looks(looks: &[(u64, &[Seen])], timeout: Option<Duration>) -> Vec<Option<(String, u64)>> {
        let (begin, mut rule) = (Instant::now(), DeadManagers::default());
        let look = |(at, managers): &(u64, &[Seen])| {
            let found = rule.look(begin + Duration::from_secs(*at), managers, timeout);
            found.map(|(id, time)| (id, time.as_secs()))
        };
        looks.iter().map(look).collect()
    }

    fn dead(id: &str, seconds: u64) -> Option<(String, u64)> {
        Some((id.to_owned(), seconds))
    }

    #[test]
    fn who_was_unreachable_all_the_time_goes() {
        let (up, down) = ([seen("a", true), seen("b", true)], [seen("a", true), seen("b", false)]);
        assert_eq!(looks(&[(0, &up), (1, &down), (60, &down)], LIMIT), [None, None, None]);
        assert_eq!(looks(&[(0, &down), (59, &down), (60, &down)], LIMIT), [None, None, dead("b", 60)]);
        // Back for a moment, its time begins anew.
        assert_eq!(looks(&[(0, &down), (59, &up), (60, &down), (119, &down)], LIMIT).pop(), Some(None));
        assert_eq!(looks(&[(0, &down), (600, &down)], None), [None, None], "off");
    }

    #[test]
    fn one_goes_at_a_time_and_the_longest_dead_first() {
        let first = [seen("a", true), seen("b", true), seen("c", false)];
        let both = [seen("a", true), seen("b", false), seen("c", false)];
        let mut leaving = both.clone();
        leaving[2].leaving = true;
        let left = [seen("a", true), seen("b", false)];
        let found = looks(&[(0, &first), (5, &both), (70, &both), (71, &leaving), (72, &left)], LIMIT);
        assert_eq!(found, [None, None, dead("c", 70), None, dead("b", 67)]);
    }

    #[test]
    fn whom_the_quorum_needs_stays() {
        let mut managers = [seen("a", true), seen("b", false), seen("c", false)];
        managers[1].dispensable = false;
        assert_eq!(looks(&[(0, &managers), (60, &managers)], LIMIT), [None, dead("c", 60)]);
        managers[2].dispensable = false;
        assert_eq!(looks(&[(0, &managers), (60, &managers)], LIMIT), [None, None]);
    }
}
