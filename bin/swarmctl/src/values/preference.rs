//! Placement preferences: `spread=node.labels.zone`.

use swarm_api::v1::placement_preference::Preference;
use swarm_api::v1::{PlacementPreference, SpreadOver};

/// Labels that tasks can be spread over.
const LABELS: [&str; 2] = ["node.labels.", "engine.labels."];

/// Reads a preference. What schedulers would pass over without a word is an error.
pub(crate) fn parse(text: &str) -> Result<PlacementPreference, String> {
    let over = text.split_once('=').filter(|(kind, _)| kind.trim() == "spread").map(|(_, over)| over.trim());
    let is_label = |over: &&str| {
        LABELS.iter().any(|prefix| {
            over.len() > prefix.len()
                && over.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
        })
    };
    match over.filter(is_label) {
        Some(over) => Ok(PlacementPreference {
            preference: Some(Preference::Spread(SpreadOver { spread_descriptor: over.to_owned() })),
        }),
        None => Err(format!(
            "placement preference {text:?}: expected spread=node.labels.NAME or spread=engine.labels.NAME"
        )),
    }
}

/// What the preference spreads over.
pub(crate) fn format(preference: &PlacementPreference) -> &str {
    match &preference.preference {
        Some(Preference::Spread(over)) => &over.spread_descriptor,
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_spread_over_labels_of_nodes_and_engines() {
        for (text, over) in [
            ("spread=node.labels.zone", "node.labels.zone"),
            (" spread = engine.labels.rack ", "engine.labels.rack"),
            ("spread=Node.Labels.a=b", "Node.Labels.a=b"),
        ] {
            assert_eq!(format(&parse(text).unwrap()), over, "{text}");
        }
        for bad in ["", "zone", "node.labels.zone", "pack=node.labels.zone", "spread=", "spread=node.labels."]
        {
            assert!(parse(bad).unwrap_err().contains("expected spread=node.labels.NAME"), "{bad}");
        }
        assert!(parse("spread=node.hostname").is_err(), "it would have no effect");
    }
}
