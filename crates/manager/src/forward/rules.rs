//! Which calls are passed on to the leader.

use swarm_api::authorization::allowed;

/// The listener that a call came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The TLS port: other nodes. Calls are passed on with the caller's identity.
    Remote,
    /// The control socket: operators, and this node's agent. Calls are passed on as this manager's own.
    Socket,
}

/// What is special about a call that is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    /// It changes nothing: it may be repeated whatever became of the first attempt.
    pub(super) read: bool,
    /// An operator or a node has it change something, and must know whether it did.
    pub(super) changes: bool,
    /// The caller sends many messages, which can't be held back for a repetition.
    pub(super) client_stream: bool,
    /// It carries so much that it gets a connection of its own: others must not wait for whoever does not read it.
    pub(super) apart: bool,
}

/// Passed on from both listeners.
const LEADERS: [&str; 7] =
    ["CA", "NodeCA", "Dispatcher", "LogBroker", "PullBroker", "ResourceAllocator", "TaskSessions"];
/// Passed on from the socket. Here the TLS port is where such calls arrive at the leader: it answers others from what it
/// has itself, but what was passed on to a manager that does not lead any more is none of its business.
const SOCKET: [&str; 5] = ["Control", "Images", "Logs", "Services", "Tasks"];
/// Only there on the TLS port.
const REMOTE: [&str; 1] = ["RaftMembership"];

/// The rule for a method that only the leader can carry out; `None` for one that is served here. `forwarded` says that
/// another manager has passed the call on already.
pub(super) fn rule(path: &str, door: Door, forwarded: bool) -> Option<Rule> {
    allowed(path)?;
    let known = path.strip_prefix("/docker.swarmkit.v1.").or_else(|| path.strip_prefix("/swarmd.v1."))?;
    let (service, method) = known.split_once('/')?;
    let leaders = LEADERS.contains(&service)
        || match door {
            Door::Remote => REMOTE.contains(&service) || (forwarded && SOCKET.contains(&service)),
            Door::Socket => SOCKET.contains(&service),
        };
    let read = match service {
        "Control" | "CA" => method.starts_with("Get") || method.starts_with("List"),
        "NodeCA" => method == "NodeCertificateStatus",
        "Services" => method == "DryRun",
        _ => false,
    };
    let changes =
        !read && ["Control", "NodeCA", "RaftMembership", "ResourceAllocator", "Services"].contains(&service);
    leaders.then(|| Rule {
        read,
        changes,
        client_stream: ["PublishLogs", "Open", "Serve"].contains(&method),
        apart: ["PublishLogs", "SubscribeLogs", "Open", "Serve"].contains(&method),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use swarm_api::authorization::METHODS;

    use super::*;

    /// One line for each member of the contract, as peers see it.
    const CONTRACT: &str = include_str!("../../../codegen/tests/data/wire.tsv");

    fn services(door: Door, forwarded: bool) -> BTreeSet<&'static str> {
        let passed_on = METHODS.iter().filter(|m| rule(m.path, door, forwarded).is_some());
        let service = |path: &'static str| {
            let full = path.trim_start_matches('/').split('/').next().unwrap_or_default();
            full.rsplit('.').next().unwrap_or_default()
        };
        let services: BTreeSet<_> = passed_on.map(|m| service(m.path)).collect();
        let split = METHODS
            .iter()
            .filter(|m| services.contains(service(m.path)) && rule(m.path, door, forwarded).is_none());
        assert_eq!(split.count(), 0, "a service is passed on as a whole");
        services
    }

    #[test]
    fn each_listener_passes_on_what_the_contract_says() {
        let always =
            ["CA", "Dispatcher", "LogBroker", "NodeCA", "PullBroker", "ResourceAllocator", "TaskSessions"];
        let with = |more: &[&'static str]| always.iter().chain(more).copied().collect::<BTreeSet<_>>();
        assert_eq!(services(Door::Remote, false), with(&["RaftMembership"]));
        let operators = ["Control", "Images", "Logs", "Services", "Tasks"];
        assert_eq!(services(Door::Remote, true), with(&[&["RaftMembership"][..], &operators].concat()));
        assert_eq!(services(Door::Socket, false), with(&operators));
        for unknown in ["/docker.swarmkit.v1.Control/Nothing", "/swarmd.v1.Any/Thing", "/"] {
            assert_eq!(rule(unknown, Door::Socket, false), None);
        }
    }

    #[test]
    fn calls_that_change_something_are_no_reads() {
        let reads = METHODS.iter().filter(|m| rule(m.path, Door::Socket, false).is_some_and(|r| r.read));
        let names: Vec<_> = reads.filter_map(|m| m.path.rsplit('/').next()).collect();
        assert_eq!(names.len(), 24, "{names:?}");
        for name in names {
            let other = ["NodeCertificateStatus", "DryRun"].contains(&name);
            assert!(name.starts_with("Get") || name.starts_with("List") || other, "{name}");
        }
        let changes = |path| rule(path, Door::Socket, false).map(|rule| (rule.read, rule.changes));
        assert_eq!(changes("/docker.swarmkit.v1.Control/CreateService"), Some((false, true)));
        assert_eq!(changes("/docker.swarmkit.v1.Control/ListServices"), Some((true, false)));
        assert_eq!(changes("/swarmd.v1.Services/DryRun"), Some((true, false)));
        assert_eq!(changes("/docker.swarmkit.v1.LogBroker/ListenSubscriptions"), Some((false, false)));
    }

    #[test]
    fn streams_of_callers_are_known() {
        let methods = CONTRACT.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        for line in methods.filter(|line| line[0] == "service") {
            let path = format!("/{}/{}", line[1], line[2]);
            for door in [Door::Remote, Door::Socket] {
                if let Some(rule) = rule(&path, door, false) {
                    assert_eq!(rule.client_stream, line[5] == "client_stream", "{path}");
                }
            }
        }
    }
}
