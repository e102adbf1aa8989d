//! Why a node does not take a task, and how that is said.

use std::fmt::Write as _;

/// What the filters say of a node for a task: the first one that fails, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Verdict {
    /// No filter objects.
    Fits,
    /// Not READY, or not ACTIVE.
    NotReady,
    /// Not enough CPU, memory or generic resources.
    Resources,
    /// A volume, network or log plugin is missing.
    Plugins,
    /// The node does not have the task's runtime.
    Runtime,
    /// A placement constraint does not hold.
    Constraints,
    /// Its engine gives no devices to containers.
    Devices,
    /// Its engine gives no GPUs to containers.
    Gpus,
    /// Its operator does not allow privileged containers.
    Privileged,
    /// The platform is none of those listed.
    Platform,
    /// A port of the node is in use.
    Ports,
    /// As many tasks of the service as may be are there.
    MaxReplicas,
    /// A cluster volume can't be had there.
    Volumes,
    /// There is no such node.
    Absent,
}

const VERDICTS: usize = Verdict::Absent as usize + 1;

/// The verdicts that count in an explanation, in the order of the filters.
const FAILURES: [Verdict; 12] = [
    Verdict::NotReady,
    Verdict::Resources,
    Verdict::Plugins,
    Verdict::Runtime,
    Verdict::Constraints,
    Verdict::Devices,
    Verdict::Gpus,
    Verdict::Privileged,
    Verdict::Platform,
    Verdict::Ports,
    Verdict::MaxReplicas,
    Verdict::Volumes,
];

/// How many nodes there are of each verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally([u32; VERDICTS]);

impl Tally {
    pub(crate) fn add(&mut self, verdict: Verdict) {
        self.0[verdict as usize] += 1;
    }

    pub(crate) fn remove(&mut self, verdict: Verdict) {
        self.0[verdict as usize] -= 1;
    }

    /// What is wrong, most frequent first; empty if there is no node at all.
    pub(crate) fn explanation(&self, runtime: &str) -> String {
        let mut failures: Vec<(Verdict, u32)> =
            FAILURES.iter().map(|v| (*v, self.0[*v as usize])).filter(|(_, n)| *n > 0).collect();
        failures.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let mut text = String::new();
        for (verdict, n) in failures {
            if !text.is_empty() {
                text.push_str("; ");
            }
            let nodes = if n == 1 { "1 node".to_owned() } else { format!("{n} nodes") };
            let _ = match verdict {
                Verdict::NotReady => write!(text, "{nodes} not available for new tasks"),
                Verdict::Resources => write!(text, "insufficient resources on {nodes}"),
                Verdict::Plugins => write!(text, "missing plugin on {nodes}"),
                Verdict::Runtime => write!(text, "runtime {runtime} not available on {nodes}"),
                Verdict::Constraints => write!(text, "scheduling constraints not satisfied on {nodes}"),
                Verdict::Devices => write!(text, "devices can't be given to containers on {nodes}"),
                Verdict::Gpus => write!(text, "GPUs can't be given to containers on {nodes}"),
                Verdict::Privileged => write!(text, "privileged containers not allowed on {nodes}"),
                Verdict::Platform => write!(text, "unsupported platform on {nodes}"),
                Verdict::Ports => write!(text, "host-mode port already in use on {nodes}"),
                Verdict::MaxReplicas => write!(text, "max replicas per node limit exceed"),
                Verdict::Volumes => write!(text, "cannot fulfill requested CSI volume mounts on {nodes}"),
                Verdict::Fits | Verdict::Absent => Ok(()),
            };
        }
        text
    }

    /// What the user is told of a task that finds no node.
    pub(crate) fn no_suitable_node(&self, runtime: &str) -> String {
        match self.explanation(runtime).as_str() {
            "" => "no suitable node".to_owned(),
            explanation => format!("no suitable node ({explanation})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(verdicts: &[(Verdict, u32)], expected: &str) {
        let mut tally = Tally::default();
        for (verdict, n) in verdicts {
            (0..*n).for_each(|_| tally.add(*verdict));
        }
        assert_eq!(tally.no_suitable_node("process"), expected);
    }

    #[test]
    fn explanations_read_as_they_always_did() {
        check(&[], "no suitable node");
        check(&[(Verdict::Absent, 3)], "no suitable node");
        check(&[(Verdict::NotReady, 1)], "no suitable node (1 node not available for new tasks)");
        check(
            &[(Verdict::Resources, 1), (Verdict::NotReady, 2)],
            "no suitable node (2 nodes not available for new tasks; insufficient resources on 1 node)",
        );
        check(
            &[(Verdict::Platform, 3), (Verdict::Plugins, 3), (Verdict::Constraints, 4)],
            "no suitable node (scheduling constraints not satisfied on 4 nodes; missing plugin on 3 nodes; \
             unsupported platform on 3 nodes)",
        );
        check(
            &[(Verdict::MaxReplicas, 2), (Verdict::Ports, 1), (Verdict::Volumes, 1)],
            "no suitable node (max replicas per node limit exceed; host-mode port already in use on 1 node; \
             cannot fulfill requested CSI volume mounts on 1 node)",
        );
        check(
            &[(Verdict::Privileged, 2), (Verdict::Devices, 1), (Verdict::Gpus, 1)],
            "no suitable node (privileged containers not allowed on 2 nodes; devices can't be given to containers on \
             1 node; GPUs can't be given to containers on 1 node)",
        );
        check(&[(Verdict::Runtime, 2)], "no suitable node (runtime process not available on 2 nodes)");
    }
}
