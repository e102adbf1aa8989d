//! What a service says of placement, restarts and updates, on its page. A section that is there is shown with what
//! applies, also where it leaves something to the default.

use std::collections::BTreeMap;

use swarm_api::extensions::{self, PlacementPolicy, StartOrder};
use swarm_api::v1::restart_policy::RestartCondition;
use swarm_api::v1::update_config::{FailureAction, UpdateOrder};
use swarm_api::v1::{Placement, RestartPolicy, UpdateConfig};

use crate::output::Table;
use crate::values::{duration, preference};

/// How long tasks are watched, and how long a restart waits, where nothing is said.
const FIVE_SECONDS: prost_types::Duration = prost_types::Duration { seconds: 5, nanos: 0 };

/// Labels that the page shows in other words.
const IN_WORDS: &[&str] = &[
    extensions::DEPENDS_ON,
    extensions::PLACEMENT_STRATEGY,
    extensions::PRIORITY,
    extensions::REBALANCE,
    extensions::REBALANCE_NOW,
];

/// Labels of a service as they are, without those that [`placement`] shows.
pub(super) fn plain_labels(labels: &BTreeMap<String, String>) -> impl Iterator<Item = (&String, &String)> {
    let understood = extensions::check_service(labels).is_ok();
    labels.iter().filter(move |(key, _)| !understood || !IN_WORDS.contains(&key.as_str()))
}

/// Which nodes get tasks, and when tasks move: what placement and labels say.
pub(super) fn placement(page: &mut Table, placement: Option<&Placement>, labels: &BTreeMap<String, String>) {
    let placement = placement.cloned().unwrap_or_default();
    if !placement.constraints.is_empty() {
        page.pair("  Constraints", placement.constraints.join(", "));
    }
    let over: Vec<&str> = placement.preferences.iter().map(preference::format).collect();
    if !over.is_empty() {
        page.pair("  Spread Over", over.join(", "));
    }
    if placement.max_replicas != 0 {
        page.pair("  Max Per Node", placement.max_replicas);
    }
    if extensions::check_service(labels).is_err() {
        return;
    }
    let order = StartOrder::read(labels).unwrap_or_default();
    if !order.0.is_empty() {
        let names: Vec<String> =
            order.0.iter().map(|d| format!("{} ({})", d.service, d.condition.name())).collect();
        page.pair("  Depends On", names.join(", "));
    }
    let PlacementPolicy { strategy, priority } = PlacementPolicy::read(labels).unwrap_or_default();
    if labels.contains_key(extensions::PLACEMENT_STRATEGY) {
        page.pair("  Strategy", strategy.name());
    }
    if labels.contains_key(extensions::PRIORITY) {
        page.pair("  Priority", priority);
    }
    let rebalance = [(extensions::REBALANCE, "auto"), (extensions::REBALANCE_NOW, "asked for")];
    let rebalance: Vec<&str> = rebalance
        .into_iter()
        .filter(|(label, _)| labels.contains_key(*label))
        .map(|(_, word)| word)
        .collect();
    if !rebalance.is_empty() {
        page.pair("  Rebalance", rebalance.join(", "));
    }
}

/// When tasks that end are started again.
pub(super) fn restart(page: &mut Table, policy: Option<&RestartPolicy>) {
    let Some(policy) = policy else { return };
    page.line("  Restart\t");
    let condition = match policy.condition() {
        RestartCondition::Any => "any",
        RestartCondition::OnFailure => "failure",
        RestartCondition::None => "none",
    };
    page.pair("    Condition", condition);
    if policy.condition() == RestartCondition::None {
        return;
    }
    page.pair("    Delay", duration::format(&policy.delay.unwrap_or(FIVE_SECONDS)));
    if policy.max_attempts != 0 {
        page.pair("    Max Attempts", policy.max_attempts);
    }
    if let Some(window) = policy.window.filter(|window| *window != prost_types::Duration::default()) {
        page.pair("    Window", duration::format(&window));
    }
}

/// The pace of updates, or of rollbacks.
pub(super) fn pace(page: &mut Table, name: &str, config: Option<&UpdateConfig>) {
    let Some(config) = config else { return };
    page.line(format!("{name}\t"));
    match config.parallelism {
        0 => page.pair(" Parallelism", "all at once"),
        n => page.pair(" Parallelism", n),
    }
    page.pair(" Delay", duration::format(&config.delay));
    page.pair(" Monitor", duration::format(&config.monitor.unwrap_or(FIVE_SECONDS)));
    page.pair(" Max Failure Ratio", config.max_failure_ratio);
    let action = match config.failure_action() {
        FailureAction::Pause => "pause",
        FailureAction::Continue => "continue",
        FailureAction::Rollback => "rollback",
    };
    page.pair(" On Failure", action);
    let order = match config.order() {
        UpdateOrder::StopFirst => "stop-first",
        UpdateOrder::StartFirst => "start-first",
    };
    page.pair(" Order", order);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fill: impl Fn(&mut Table)) -> String {
        let mut page = Table::summary();
        fill(&mut page);
        let lines = page.finish();
        lines.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn a_pace_is_shown_with_what_applies() {
        let config = UpdateConfig { parallelism: 1, ..Default::default() };
        assert_eq!(
            page(|page| pace(page, "Update Config", Some(&config))),
            "Update Config\nParallelism : 1\nDelay : 0s\nMonitor : 5s\nMax Failure Ratio : 0\nOn Failure : pause\n\
             Order : stop-first\n"
        );
        let config = UpdateConfig {
            parallelism: 0,
            delay: prost_types::Duration { seconds: 90, nanos: 0 },
            monitor: Some(prost_types::Duration::default()),
            max_failure_ratio: 0.1,
            failure_action: FailureAction::Rollback as i32,
            order: UpdateOrder::StartFirst as i32,
        };
        assert_eq!(
            page(|page| pace(page, "Rollback Config", Some(&config))),
            "Rollback Config\nParallelism : all at once\nDelay : 1m30s\nMonitor : 0s\nMax Failure Ratio : 0.1\n\
             On Failure : rollback\nOrder : start-first\n"
        );
        assert_eq!(page(|page| pace(page, "Update Config", None)), "");
    }

    #[test]
    fn a_restart_policy_is_shown_as_far_as_it_matters() {
        let shown = |policy: RestartPolicy| page(|page| restart(page, Some(&policy)));
        let any = RestartPolicy { condition: RestartCondition::Any as i32, ..Default::default() };
        assert_eq!(shown(any), "Restart\nCondition : any\nDelay : 5s\n");
        assert_eq!(shown(RestartPolicy::default()), "Restart\nCondition : none\n");
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let condition = RestartCondition::OnFailure as i32;
        let some = RestartPolicy { condition, delay: seconds(0), max_attempts: 3, window: seconds(60) };
        assert_eq!(
            shown(some),
            "Restart\nCondition : failure\nDelay : 0s\nMax Attempts : 3\nWindow : 1m0s\n"
        );
        assert_eq!(page(|page| restart(page, None)), "");
    }

    #[test]
    fn labels_of_ours_are_put_into_words_if_they_are_understood() {
        let ours = labels(&[
            ("a", "1"),
            (extensions::PLACEMENT_STRATEGY, "binpack"),
            (extensions::PRIORITY, "-7"),
            (extensions::REBALANCE, "auto"),
            (extensions::REBALANCE_NOW, "1"),
            (extensions::DEPENDS_ON, "db:healthy,migrate:completed"),
        ]);
        assert_eq!(plain_labels(&ours).map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["a"]);
        assert_eq!(
            page(|page| placement(page, None, &ours)),
            "Depends On : db (healthy), migrate (completed)\nStrategy : binpack\nPriority : -7\nRebalance : auto, asked for\n"
        );
        let strange = labels(&[("a", "1"), (extensions::PRIORITY, "much")]);
        assert_eq!(plain_labels(&strange).count(), 2);
        assert_eq!(page(|page| placement(page, None, &strange)), "");
    }

    #[test]
    fn placement_is_shown_in_the_order_in_which_it_decides() {
        let preferences = ["spread=node.labels.zone", "spread=node.labels.rack"];
        let asked = Placement {
            constraints: vec!["node.role==worker".into()],
            preferences: preferences.map(|text| preference::parse(text).unwrap()).into(),
            max_replicas: 2,
            ..Default::default()
        };
        assert_eq!(
            page(|page| placement(page, Some(&asked), &labels(&[]))),
            "Constraints : node.role==worker\nSpread Over : node.labels.zone, node.labels.rack\nMax Per Node : 2\n"
        );
    }
}
