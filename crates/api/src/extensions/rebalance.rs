//! Moving tasks to nodes that came: what a service's labels ask for, and what an operator asked for once.

use std::collections::BTreeMap;

use super::{PlacementPolicy, Strategy};
use crate::v1::ServiceSpec;
use crate::v1::service_spec::Mode;

/// Service label: tasks of a replicated service are moved when nodes come or return, so that they are evenly spread; its
/// value is `auto`.
pub const REBALANCE: &str = "swarmd.rebalance";

/// Service label: an operator has asked for it once. Managers write it and take it off when it is done, whoever leads; what
/// clients say of it does not count. Its value is `1`.
pub const REBALANCE_NOW: &str = "swarmd.rebalance-now";

/// Whether tasks of the service are placed so that moving them makes anything more even.
pub fn can_rebalance(spec: &ServiceSpec) -> bool {
    matches!(spec.mode, Some(Mode::Replicated(_))) && spreads(&spec.annotations.labels)
}

fn spreads(labels: &BTreeMap<String, String>) -> bool {
    PlacementPolicy::read(labels).unwrap_or_default().strategy == Strategy::Spread
}

/// Takes an operator's request out of a spec. Returns whether there was one.
pub fn take_request(spec: &mut ServiceSpec) -> bool {
    let there = spec.annotations.labels.contains_key(REBALANCE_NOW);
    if there {
        spec.annotations.labels.remove(REBALANCE_NOW);
    }
    there
}

/// Puts an operator's request into a spec, if it can be rebalanced.
pub fn put_request(spec: &mut ServiceSpec) {
    if can_rebalance(spec) {
        spec.annotations.labels.insert(REBALANCE_NOW.to_owned(), "1".to_owned());
    }
}

/// What of these labels does not go with the rest of the spec.
pub(super) fn check(spec: &ServiceSpec) -> Result<(), String> {
    let labels = &spec.annotations.labels;
    let asked = [REBALANCE, REBALANCE_NOW].into_iter().find(|label| labels.contains_key(*label));
    if let Some(label) = asked
        && matches!(spec.mode, Some(Mode::Global(_) | Mode::ReplicatedJob(_) | Mode::GlobalJob(_)))
    {
        return Err(format!("label {label:?} is only for replicated services"));
    }
    if labels.contains_key(REBALANCE) && !spreads(labels) {
        return Err(format!(
            "label {REBALANCE:?} is only for services that are spread: with the placement strategy {:?} what is moved \
             would go back to the fullest node",
            Strategy::Binpack.name()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{PLACEMENT_STRATEGY, check_service_spec};
    use super::*;
    use crate::v1::{GlobalJob, GlobalService, ReplicatedJob, ReplicatedService};

    fn spec(mode: Mode, labels: &[(&str, &str)]) -> ServiceSpec {
        let mut spec = ServiceSpec { mode: Some(mode), ..Default::default() };
        spec.annotations.labels.extend(labels.iter().map(|(k, v)| (k.to_string(), v.to_string())));
        spec
    }

    fn replicated() -> Mode {
        Mode::Replicated(ReplicatedService::default())
    }

    #[test]
    fn only_services_whose_tasks_can_move_are_rebalanced() {
        let others = [
            Mode::Global(GlobalService {}),
            Mode::GlobalJob(GlobalJob {}),
            Mode::ReplicatedJob(ReplicatedJob::default()),
        ];
        for label in [(REBALANCE, "auto"), (REBALANCE_NOW, "1")] {
            assert_eq!(check_service_spec(&spec(replicated(), &[label])), Ok(()));
            for mode in &others {
                let error = check_service_spec(&spec(*mode, &[label])).unwrap_err();
                assert_eq!(error, format!("label {:?} is only for replicated services", label.0));
                assert_eq!(check_service_spec(&spec(*mode, &[])), Ok(()));
            }
        }
    }

    #[test]
    fn what_goes_to_the_fullest_node_is_not_rebalanced() {
        let binpack = (PLACEMENT_STRATEGY, "binpack");
        let error = check_service_spec(&spec(replicated(), &[binpack, (REBALANCE, "auto")])).unwrap_err();
        assert!(error.contains(REBALANCE) && error.contains("\"binpack\""), "{error}");
        assert_eq!(check_service_spec(&spec(replicated(), &[binpack])), Ok(()));
        let spread = [(PLACEMENT_STRATEGY, "spread"), (REBALANCE, "auto")];
        assert_eq!(check_service_spec(&spec(replicated(), &spread)), Ok(()));
        // Managers write it, and a service may become one of these meanwhile.
        assert_eq!(check_service_spec(&spec(replicated(), &[binpack, (REBALANCE_NOW, "1")])), Ok(()));
    }

    #[test]
    fn a_request_is_put_where_it_can_be_done_and_taken_out_whole() {
        let mut web = spec(replicated(), &[("a", "b")]);
        let before = web.clone();
        assert!(!take_request(&mut web));
        put_request(&mut web);
        assert_eq!(web.annotations.labels[REBALANCE_NOW], "1");
        assert!(take_request(&mut web));
        assert_eq!(web, before);
        let mut packed = spec(replicated(), &[(PLACEMENT_STRATEGY, "binpack")]);
        put_request(&mut packed);
        assert!(!take_request(&mut packed));
    }
}
