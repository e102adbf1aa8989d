//! Placement constraints: `key == value` and `key != value` on what is known of a node.
//!
//! The grammar is older than this implementation and clients rely on it: there are no wildcards, comparison is
//! by whole text and blind to case, and a key that nobody knows is accepted but never holds.

use std::net::{IpAddr, Ipv6Addr};

use swarm_api::v1::{Node, NodeRole, Placement};

/// Why a text is no constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// Neither operator is in it.
    #[error("constraint {0:?} is invalid: expected one of the operators ==, !=")]
    NoOperator(String),
    /// The left side is no key.
    #[error("constraint {text:?} is invalid: {key:?} is no valid key")]
    Key {
        /// The whole constraint.
        text: String,
        /// Its left side.
        key: String,
    },
    /// The right side is no value.
    #[error("constraint {text:?} is invalid: {value:?} is no valid value")]
    Value {
        /// The whole constraint.
        text: String,
        /// Its right side.
        value: String,
    },
}

/// What a constraint is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The node's id.
    Id,
    /// Its host's name.
    Hostname,
    /// Its address.
    Ip,
    /// Manager or worker.
    Role,
    /// Its operating system.
    Os,
    /// Its architecture.
    Arch,
    /// A label that operators put on it.
    NodeLabel(String),
    /// A label of its engine.
    EngineLabel(String),
    /// Accepted, and false with either operator.
    Unknown,
}

/// One constraint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Constraint {
    key: Key,
    equal: bool,
    value: String,
}

const NODE_LABELS: &str = "node.labels.";
const ENGINE_LABELS: &str = "engine.labels.";

impl Constraint {
    /// Reads a constraint.
    pub fn parse(text: &str) -> Result<Constraint, ConstraintError> {
        let (left, equal, right) = match (text.split_once("=="), text.split_once("!=")) {
            (Some((left, right)), _) => (left, true, right),
            (None, Some((left, right))) => (left, false, right),
            (None, None) => return Err(ConstraintError::NoOperator(text.to_owned())),
        };
        let (left, right) = (left.trim(), right.trim());
        if !is_key(left) {
            return Err(ConstraintError::Key { text: text.to_owned(), key: left.to_owned() });
        }
        if !is_value(right) {
            return Err(ConstraintError::Value { text: text.to_owned(), value: right.to_owned() });
        }
        Ok(Constraint { key: Key::parse(left), equal, value: right.to_owned() })
    }

    /// Reads a list of constraints, all of which must hold.
    pub fn parse_all<S: AsRef<str>>(texts: &[S]) -> Result<Vec<Constraint>, ConstraintError> {
        texts.iter().map(|text| Constraint::parse(text.as_ref())).collect()
    }

    /// What it is about.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Whether it holds on a node.
    pub fn holds(&self, node: &Node) -> bool {
        self.holds_for(self.key.text(node))
    }

    /// Whether it holds on nodes of which its key says this.
    pub fn holds_for(&self, actual: &str) -> bool {
        match self.key {
            Key::Ip => self.address_holds(actual),
            Key::Unknown => false,
            _ => same_text(actual, &self.value) == self.equal,
        }
    }

    fn address_holds(&self, actual: &str) -> bool {
        let Some(network) = Network::parse(&self.value) else { return false };
        // A node whose address is not known is not at this one.
        let contained = actual.parse().is_ok_and(|address: IpAddr| network.contains(address));
        contained == self.equal
    }
}

/// The constraints of a placement. A list that can't be read counts as none: the API lets none of those in, and
/// a task must not wait for ever because of one that a peer wrote.
pub fn constraints_of(placement: Option<&Placement>) -> Vec<Constraint> {
    placement.and_then(|p| Constraint::parse_all(&p.constraints).ok()).unwrap_or_default()
}

/// Whether all of the constraints hold on a node.
pub fn all_hold(constraints: &[Constraint], node: &Node) -> bool {
    constraints.iter().all(|c| c.holds(node))
}

impl Key {
    /// What it says of a node; empty if nothing is known.
    pub fn text<'a>(&self, node: &'a Node) -> &'a str {
        let description = node.description.as_ref();
        let platform = description.and_then(|d| d.platform.as_ref());
        match self {
            Key::Id => node.id.as_str(),
            Key::Hostname => description.map_or("", |d| &d.hostname),
            Key::Ip => &node.status.addr,
            Key::Role => match node.role() {
                NodeRole::Worker => "worker",
                NodeRole::Manager => "manager",
            },
            Key::Os => platform.map_or("", |p| &p.os),
            Key::Arch => platform.map_or("", |p| &p.architecture),
            Key::NodeLabel(name) => node.spec.annotations.labels.get(name).map_or("", String::as_str),
            Key::EngineLabel(name) => description
                .and_then(|d| d.engine.as_ref())
                .and_then(|e| e.labels.get(name))
                .map_or("", String::as_str),
            Key::Unknown => "",
        }
    }

    fn parse(key: &str) -> Key {
        // Names of labels keep their case; everything before them does not matter.
        let after = |prefix: &str| {
            let head = key.get(..prefix.len())?;
            (head.eq_ignore_ascii_case(prefix) && key.len() > prefix.len())
                .then(|| key[prefix.len()..].to_owned())
        };
        if let Some(name) = after(NODE_LABELS) {
            return Key::NodeLabel(name);
        }
        if let Some(name) = after(ENGINE_LABELS) {
            return Key::EngineLabel(name);
        }
        match key.to_ascii_lowercase().as_str() {
            "node.id" => Key::Id,
            "node.hostname" => Key::Hostname,
            "node.ip" => Key::Ip,
            "node.role" => Key::Role,
            "node.platform.os" => Key::Os,
            "node.platform.arch" => Key::Arch,
            _ => Key::Unknown,
        }
    }
}

/// A letter or underscore, then at least one of letters, digits, `-`, `_`, `.`; ASCII only.
fn is_key(key: &str) -> bool {
    let mut bytes = key.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first && key.len() > 1 && bytes.all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Letters, digits, whitespace and the punctuation that regular expressions and addresses are made of.
fn is_value(value: &str) -> bool {
    !value.is_empty()
        && value.bytes().all(|b| {
            b.is_ascii_alphanumeric() || b.is_ascii_whitespace() || br":-_.*()?+[]\^$|/".contains(&b)
        })
}

/// Equality under Unicode's simple case folding. `expected` is ASCII, so only the two characters outside of
/// ASCII that fold into it matter beside the letters.
fn same_text(actual: &str, expected: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    actual.chars().map(fold).eq(expected.chars().map(fold))
}

/// An address with a prefix length, in one family: IPv4 mapped into IPv6 counts as IPv4.
struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Network> {
        let Some((address, prefix)) = text.split_once('/') else {
            let address = text.parse::<IpAddr>().ok()?.to_canonical();
            return Some(Network { address, prefix: if address.is_ipv4() { 32 } else { 128 } });
        };
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let (address, prefix): (IpAddr, u32) = (address.parse().ok()?, prefix.parse().ok()?);
        if prefix > if address.is_ipv4() { 32 } else { 128 } {
            return None;
        }
        match (address, address.to_canonical()) {
            (IpAddr::V6(_), mapped @ IpAddr::V4(_)) if prefix >= 96 => {
                Some(Network { address: mapped, prefix: prefix - 96 })
            }
            _ => Some(Network { address, prefix }),
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        let differ = match (self.address, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits() ^ b.to_bits())) << 96,
            (IpAddr::V6(a), IpAddr::V6(b)) => Ipv6Addr::to_bits(a) ^ b.to_bits(),
            _ => return false,
        };
        differ.leading_zeros() >= self.prefix
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_api::v1::{EngineDescription, NodeDescription, Platform};

    #[test]
    fn texts_that_are_no_constraints_are_refused() {
        for text in [
            "",
            " ",
            "~",
            "node.id",
            "node.id=1",
            "node.id~1",
            "1node==a",
            "no de==a",
            "n*==a",
            "n$==a",
            "==a",
            "node==",
            "node!=",
            "n==a",
            "node==a~b",
            "node==ä",
            "nöde==a",
            "a!=b==c",
            "node == ",
            "node===a",
            "node==a!=b",
        ] {
            assert!(Constraint::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn texts_that_are_constraints_are_accepted() {
        for text in [
            " node.name == a ",
            "Node.Name==A",
            "_x==a",
            "a.b-c_d==1",
            "node==[a-b]+c*(n|b)/",
            "node==a b",
            "node!=^a$",
            "no==:-_.*()?+[]\\^$|/",
        ] {
            assert!(Constraint::parse(text).is_ok(), "{text:?} was refused");
        }
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let error = |text| Constraint::parse(text).unwrap_err().to_string();
        assert_eq!(
            error("node.id"),
            "constraint \"node.id\" is invalid: expected one of the operators ==, !="
        );
        assert_eq!(error("a!=b==c"), "constraint \"a!=b==c\" is invalid: \"a!=b\" is no valid key");
        assert_eq!(error("node.id=="), "constraint \"node.id==\" is invalid: \"\" is no valid value");
    }

    fn node() -> Node {
        let mut node = Node { id: "Node1".to_owned(), role: NodeRole::Worker as i32, ..Default::default() };
        node.spec.annotations.labels.insert("Zone".to_owned(), "East-1".to_owned());
        node.status.addr = "10.1.2.3".to_owned();
        node.description = Some(NodeDescription {
            hostname: "Host".to_owned(),
            platform: Some(Platform { os: "linux".to_owned(), architecture: "x86_64".to_owned() }),
            engine: Some(EngineDescription {
                labels: [("disk".to_owned(), "ssd".to_owned())].into(),
                ..Default::default()
            }),
            ..Default::default()
        });
        node
    }

    #[track_caller]
    fn check(node: &Node, text: &str, expected: bool) {
        assert_eq!(Constraint::parse(text).unwrap().holds(node), expected, "{text}");
    }

    #[test]
    fn values_are_compared_whole_and_blind_to_case() {
        let node = node();
        for (key, value) in [
            ("node.id", "node1"),
            ("NODE.ID", "NODE1"),
            ("node.hostname", "host"),
            ("node.role", "Worker"),
            ("node.platform.os", "Linux"),
            ("node.platform.arch", "X86_64"),
            ("node.labels.Zone", "east-1"),
            ("Node.Labels.Zone", "EAST-1"),
            ("engine.labels.disk", "SSD"),
        ] {
            check(&node, &format!("{key} == {value}"), true);
            check(&node, &format!("{key} != {value}"), false);
            check(&node, &format!("{key} == {value}x"), false);
            check(&node, &format!("{key} != {value}x"), true);
            check(&node, &format!("{key} == {}", &value[..value.len() - 1]), false);
        }
        check(&node, "node.role==worker-manager", false);
        check(&node, "node.platform.arch==amd64", false);
    }

    #[test]
    fn names_of_labels_keep_their_case() {
        check(&node(), "node.labels.zone==east-1", false);
        check(&node(), "node.labels.zone!=east-1", true);
        check(&node(), "engine.labels.Disk==ssd", false);
    }

    #[test]
    fn node_labels_are_not_engine_labels() {
        check(&node(), "engine.labels.Zone==east-1", false);
        check(&node(), "node.labels.disk==ssd", false);
    }

    #[test]
    fn there_are_no_wildcards() {
        let mut node = node();
        node.spec.annotations.labels.insert("w".to_owned(), "f*o".to_owned());
        check(&node, "node.labels.w==F*O", true);
        check(&node, "node.labels.w==foo", false);
        node.spec.annotations.labels.insert("w".to_owned(), "foo".to_owned());
        check(&node, "node.labels.w==f*o", false);
        check(&node, "node.labels.w!=f*o", true);
    }

    #[test]
    fn letters_that_fold_into_ascii_are_equal_to_it() {
        let mut node = node();
        node.spec.annotations.labels.insert("w".to_owned(), "\u{212a}i\u{17f}s".to_owned());
        check(&node, "node.labels.w==kiss", true);
    }

    #[test]
    fn what_is_not_known_of_a_node_is_empty() {
        let node = Node::default();
        for key in
            ["node.hostname", "node.platform.os", "node.platform.arch", "node.labels.a", "engine.labels.a"]
        {
            check(&node, &format!("{key}==a"), false);
            check(&node, &format!("{key}!=a"), true);
        }
    }

    #[test]
    fn unknown_keys_never_hold() {
        for key in ["node.nothing", "node.labels.", "engine.labels.", "node.labels", "whatever"] {
            check(&node(), &format!("{key}==a"), false);
            check(&node(), &format!("{key}!=a"), false);
        }
    }

    #[test]
    fn addresses_are_compared_as_addresses() {
        let at = |addr: &str| {
            let mut node = node();
            node.status.addr = addr.to_owned();
            node
        };
        for (addr, value, same) in [
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.30", false),
            ("10.1.2.3", "::ffff:10.1.2.3", true),
            ("::ffff:10.1.2.3", "10.1.2.3", true),
            ("2001:db8::2", "2001:db8::2", true),
            ("2001:db8::2", "2001:DB8:0::0:2", true),
            ("10.1.2.3", "10.1.0.0/16", true),
            ("10.1.2.3", "10.1.99.99/16", true),
            ("10.2.2.3", "10.1.0.0/16", false),
            ("10.1.2.3", "0.0.0.0/0", true),
            ("10.1.2.3", "::ffff:10.1.0.0/112", true),
            ("10.1.2.3", "10.1.2.3/32", true),
            ("10.1.2.3", "::/0", false),
            ("2001:db8::2", "2001:db8::/64", true),
            ("2001:db8::2", "2001:db8::2/128", true),
            ("2001:db8::3", "2001:db8::2/128", false),
            ("2001:db8::2", "0.0.0.0/0", false),
            ("", "10.1.2.3", false),
            ("nonsense", "10.1.2.3", false),
        ] {
            check(&at(addr), &format!("node.ip=={value}"), same);
            check(&at(addr), &format!("node.ip!={value}"), !same);
        }
        for malformed in
            ["10.1.2", "10.1.2.3/33", "10.1.2.3/", "10.1.2.3/+8", "2001:db8::2/129", "host", "10.1.2.*"]
        {
            for addr in ["10.1.2.3", "2001:db8::2", ""] {
                check(&at(addr), &format!("node.ip=={malformed}"), false);
                check(&at(addr), &format!("node.ip!={malformed}"), false);
            }
        }
    }

    #[test]
    fn every_constraint_of_a_list_must_hold() {
        let list = |texts: &[&str]| all_hold(&Constraint::parse_all(texts).unwrap(), &node());
        assert!(list(&[]));
        assert!(list(&["node.role==worker", "engine.labels.disk==ssd"]));
        assert!(!list(&["node.role==worker", "engine.labels.disk==hdd"]));
    }

    #[test]
    fn a_list_that_can_not_be_read_counts_as_none() {
        let placement = Placement {
            constraints: vec!["node.role==manager".to_owned(), "~".to_owned()],
            ..Default::default()
        };
        assert_eq!(constraints_of(Some(&placement)), []);
        assert_eq!(constraints_of(None), []);
    }
}
