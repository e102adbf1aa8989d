//! Generic resources: things a node has that tasks can reserve, counted (`fpga=2`) or by name (`gpu=UUID1`).
//!
//! What is free is never stored: it is what the node describes, less what its tasks hold. So a description that
//! changes, or a leader that starts anew, comes to the same answer without any repair.

use std::collections::BTreeMap;

use swarm_api::v1::{
    DiscreteGenericResource, GenericResource, NamedGenericResource, generic_resource::Resource,
};

use crate::csv;

/// Why a text is no list of generic resources.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenericError {
    /// Nothing there, or more than one line.
    #[error("generic resources {0:?} are invalid: expected one line of kind=value, separated by commas")]
    NotOneLine(String),
    /// Not exactly one `=`.
    #[error("generic resource {0:?} is invalid: expected kind=value")]
    Term(String),
    /// A quoted field is not closed, or has something behind it.
    #[error("generic resources {0:?} are invalid: misplaced quotation mark")]
    Quote(String),
    /// A count below zero.
    #[error("generic resource {kind:?} is invalid: {value} is negative")]
    Negative {
        /// The kind.
        kind: String,
        /// The count.
        value: i64,
    },
    /// A kind is both counted and named, or counted twice.
    #[error("generic resource {0:?} is invalid: give it either one number or a set of names")]
    Mixed(String),
    /// A named resource where only a count can be asked for.
    #[error("generic resource {0:?} is invalid: only a number of them can be reserved")]
    NamedRequest(String),
}

/// A counted resource.
pub fn discrete(kind: impl Into<String>, value: i64) -> GenericResource {
    let resource = DiscreteGenericResource { kind: kind.into(), value };
    GenericResource { resource: Some(Resource::DiscreteResourceSpec(resource)) }
}

/// A named resource.
pub fn named(kind: impl Into<String>, value: impl Into<String>) -> GenericResource {
    let resource = NamedGenericResource { kind: kind.into(), value: value.into() };
    GenericResource { resource: Some(Resource::NamedResourceSpec(resource)) }
}

/// Reads what a node offers: one line of `kind=value`, separated by commas. A kind with one integer is counted, one
/// with other values is a set of names. Kinds keep the order in which they first appear.
pub fn parse(text: &str) -> Result<Vec<GenericResource>, GenericError> {
    if text.trim().is_empty() || text.contains(['\n', '\r']) {
        return Err(GenericError::NotOneLine(text.to_owned()));
    }
    let mut kinds: Vec<(String, Vec<String>)> = Vec::new();
    for term in csv::fields(text).ok_or_else(|| GenericError::Quote(text.to_owned()))? {
        let (kind, value) = term.split_once('=').ok_or_else(|| GenericError::Term(term.clone()))?;
        let (kind, value) = (kind.trim(), value.trim());
        if value.contains('=') || kind.is_empty() || value.is_empty() {
            return Err(GenericError::Term(term));
        }
        match kinds.iter_mut().find(|(known, _)| known == kind) {
            Some((_, values)) => values.push(value.to_owned()),
            None => kinds.push((kind.to_owned(), vec![value.to_owned()])),
        }
    }
    let mut all = Vec::new();
    for (kind, values) in kinds {
        if let [value] = &values[..]
            && let Ok(value) = value.parse::<i64>()
        {
            if value < 0 {
                return Err(GenericError::Negative { kind, value });
            }
            all.push(discrete(kind, value));
            continue;
        }
        if values.iter().any(|v| v.parse::<i64>().is_ok()) {
            return Err(GenericError::Mixed(kind));
        }
        all.extend(values.into_iter().map(|value| named(kind.clone(), value)));
    }
    Ok(all)
}

/// Reads what a service asks for: as [`parse`], but counts only.
pub fn parse_request(text: &str) -> Result<Vec<GenericResource>, GenericError> {
    let all = parse(text)?;
    match all.iter().find_map(|r| match &r.resource {
        Some(Resource::NamedResourceSpec(named)) => Some(named.kind.clone()),
        _ => None,
    }) {
        Some(kind) => Err(GenericError::NamedRequest(kind)),
        None => Ok(all),
    }
}

/// The number of a kind that stands for "all that the node has of it, and at least one". No node has so many, so a leader that
/// does not know what it stands for places nothing.
pub const ALL: i64 = i64::MAX;

/// How much of each kind a task asks for, and which ones by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    counts: Vec<(String, i64)>,
    /// Kinds and names; others of the kind come on top of the count.
    names: Vec<(String, String)>,
    /// One thing twice, or all of a kind and more: nothing ever satisfies it.
    impossible: bool,
}

impl Request {
    /// What a task's reservations ask for. Several counts of one kind add up; those of zero and less ask for
    /// nothing. (Leaders of another make place no task that asks for something by its name.)
    pub fn new(reserved: &[GenericResource]) -> Request {
        let mut request = Request::default();
        for resource in reserved.iter().filter_map(|r| r.resource.as_ref()) {
            match resource {
                Resource::NamedResourceSpec(n) => {
                    let named = (n.kind.clone(), n.value.clone());
                    request.impossible |= request.names.contains(&named);
                    request.names.push(named);
                }
                Resource::DiscreteResourceSpec(d) if d.value <= 0 => {}
                Resource::DiscreteResourceSpec(d) => {
                    match request.counts.iter_mut().find(|(kind, _)| *kind == d.kind) {
                        Some((_, count)) => {
                            request.impossible |= ALL == (*count).max(d.value);
                            *count = count.saturating_add(d.value);
                        }
                        None => request.counts.push((d.kind.clone(), d.value)),
                    }
                }
            }
        }
        let mixed = request.names.iter().any(|(kind, _)| request.counts.contains(&(kind.clone(), ALL)));
        request.impossible |= mixed;
        request
    }

    /// Asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.names.is_empty() && !self.impossible
    }

    /// How many of a kind it asks for by name.
    fn named(&self, kind: &str) -> i128 {
        self.names.iter().filter(|(named, _)| named == kind).count() as i128
    }

    fn names(&self, kind: &str, name: &str) -> bool {
        self.names.iter().any(|(k, n)| k == kind && n == name)
    }
}

/// What a node says it has of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Described {
    Count(i64),
    Names(Vec<String>),
}

/// What tasks hold of a kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Held {
    count: i128,
    /// With how many tasks hold each name: never more than one, unless somebody else placed them.
    names: BTreeMap<String, u32>,
}

/// The generic resources of one node: described, and held by tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    described: BTreeMap<String, Described>,
    held: BTreeMap<String, Held>,
}

impl Ledger {
    /// Replaces what the node describes; what tasks hold stays. The first item of a kind says whether the kind is
    /// counted or named.
    pub fn describe(&mut self, resources: &[GenericResource]) {
        self.described.clear();
        for resource in resources.iter().filter_map(|r| r.resource.as_ref()) {
            match resource {
                Resource::DiscreteResourceSpec(d) => {
                    self.described.entry(d.kind.clone()).or_insert(Described::Count(d.value));
                }
                Resource::NamedResourceSpec(n) => {
                    let kind =
                        self.described.entry(n.kind.clone()).or_insert_with(|| Described::Names(Vec::new()));
                    if let Described::Names(names) = kind
                        && !names.contains(&n.value)
                    {
                        names.push(n.value.clone());
                    }
                }
            }
        }
    }

    /// Whether what is free satisfies the request.
    pub fn satisfies(&self, request: &Request) -> bool {
        !request.impossible
            && request.names.iter().all(|(kind, name)| self.free_names(kind).any(|free| free == name))
            && request.counts.iter().all(|(kind, count)| {
                let free = self.free(kind);
                match *count {
                    ALL => free > 0 && free == self.total(kind),
                    count => free >= request.named(kind) + i128::from(count),
                }
            })
    }

    /// How much of a kind is described.
    fn total(&self, kind: &str) -> i128 {
        match self.described.get(kind) {
            None => 0,
            Some(Described::Count(count)) => i128::from(*count),
            Some(Described::Names(names)) => names.len() as i128,
        }
    }

    /// How much of a kind is free; below zero if tasks hold more than is described.
    pub fn free(&self, kind: &str) -> i128 {
        match self.described.get(kind) {
            None => 0,
            Some(Described::Count(count)) => {
                i128::from(*count) - self.held.get(kind).map_or(0, |held| held.count)
            }
            Some(Described::Names(_)) => self.free_names(kind).count() as i128,
        }
    }

    fn free_names<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a String> {
        let names = match self.described.get(kind) {
            Some(Described::Names(names)) => &names[..],
            _ => &[],
        };
        let held = self.held.get(kind);
        names.iter().filter(move |name| held.is_none_or(|held| !held.names.contains_key(*name)))
    }

    /// Chooses what a request gets, and holds it: a count for a counted kind, for a named one the names that were asked for,
    /// and the first free ones in the order of the description. `None`, and nothing is held, where there is not enough.
    pub fn claim(&mut self, request: &Request) -> Option<Vec<GenericResource>> {
        self.satisfies(request).then(|| self.set_aside(request))
    }

    /// Holds what a request is to get once it is free: all of its counts, even where that leaves less than nothing, and of
    /// its names as many as are free now. Returns what is held.
    pub fn set_aside(&mut self, request: &Request) -> Vec<GenericResource> {
        let mut aside: Vec<GenericResource> = Vec::new();
        for (kind, name) in &request.names {
            if self.free_names(kind).any(|free| free == name) {
                aside.push(named(kind.clone(), name.clone()));
            }
        }
        for (kind, count) in &request.counts {
            match self.described.get(kind) {
                None => {}
                Some(Described::Count(all)) => {
                    let count = if *count == ALL { *all } else { *count };
                    aside.push(discrete(kind.clone(), count));
                }
                Some(Described::Names(_)) => {
                    let names = self.free_names(kind).filter(|name| !request.names(kind, name));
                    let names = names.take(usize::try_from(*count).unwrap_or(usize::MAX));
                    aside.extend(names.map(|name| named(kind.clone(), name.clone())));
                }
            }
        }
        self.hold(&aside);
        aside
    }

    /// Holds what a task was given.
    pub fn hold(&mut self, assigned: &[GenericResource]) {
        for resource in assigned.iter().filter_map(|r| r.resource.as_ref()) {
            match resource {
                Resource::DiscreteResourceSpec(d) => {
                    self.held.entry(d.kind.clone()).or_default().count += i128::from(d.value.max(0));
                }
                Resource::NamedResourceSpec(n) => {
                    let held = self.held.entry(n.kind.clone()).or_default();
                    *held.names.entry(n.value.clone()).or_default() += 1;
                }
            }
        }
    }

    /// Takes back what a task was given; it must have been held before.
    pub fn release(&mut self, assigned: &[GenericResource]) {
        for resource in assigned.iter().filter_map(|r| r.resource.as_ref()) {
            let kind = match resource {
                Resource::DiscreteResourceSpec(d) => &d.kind,
                Resource::NamedResourceSpec(n) => &n.kind,
            };
            let Some(held) = self.held.get_mut(kind) else { continue };
            match resource {
                Resource::DiscreteResourceSpec(d) => held.count -= i128::from(d.value.max(0)),
                Resource::NamedResourceSpec(n) => {
                    if let Some(users) = held.names.get_mut(&n.value) {
                        *users -= 1;
                        if *users == 0 {
                            held.names.remove(&n.value);
                        }
                    }
                }
            }
            if *held == Held::default() {
                self.held.remove(kind);
            }
        }
    }

    /// Whether a task may keep what it was given: it is described, in the same form, and free. What is not held
    /// yet is asked, so the task's own share must not be in.
    pub fn covers(&self, assigned: &[GenericResource]) -> bool {
        let mut wanted: BTreeMap<&str, i128> = BTreeMap::new();
        assigned.iter().filter_map(|r| r.resource.as_ref()).all(|resource| match resource {
            Resource::DiscreteResourceSpec(d) => {
                let wanted = wanted.entry(&d.kind).or_default();
                *wanted += i128::from(d.value.max(0));
                let counted = matches!(self.described.get(&d.kind), Some(Described::Count(_)));
                *wanted == 0 || counted && self.free(&d.kind) >= *wanted
            }
            Resource::NamedResourceSpec(n) => self.free_names(&n.kind).any(|name| *name == n.value),
        })
    }

    /// Tasks hold more of some kind than is described, or one thing twice.
    pub fn is_overdrawn(&self) -> bool {
        self.held.iter().any(|(kind, held)| match self.described.get(kind) {
            Some(Described::Count(count)) => held.count > i128::from(*count),
            Some(Described::Names(names)) => {
                held.names.iter().any(|(name, users)| *users > 1 || !names.contains(name))
            }
            None => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_pairs_is_read() {
        assert_eq!(parse("apple=3").unwrap(), [discrete("apple", 3)]);
        assert_eq!(
            parse("apple=red, apple = green ,apple=blue").unwrap(),
            [named("apple", "red"), named("apple", "green"), named("apple", "blue")]
        );
        assert_eq!(
            parse("gpu=a,fpga=2,gpu=b").unwrap(),
            [named("gpu", "a"), named("gpu", "b"), discrete("fpga", 2)]
        );
        assert_eq!(parse("\"gpu=a,b\",fpga=0").unwrap(), [named("gpu", "a,b"), discrete("fpga", 0)]);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            " ",
            "apple",
            "apple=3\n",
            "apple=1\npear=2",
            "apple=3,apple=4",
            "apple=3,apple=red",
            "apple=-1",
            "=3",
            "apple=",
            "apple=a=b",
            "apple==3",
            "apple=1,",
            "\"apple=1",
            "a\"b=1",
            "\"a=1\"x",
        ] {
            assert!(parse(text).is_err(), "{text:?} was accepted");
        }
        assert_eq!(parse_request("gpu=2").unwrap(), [discrete("gpu", 2)]);
        assert_eq!(parse_request("gpu=uuid"), Err(GenericError::NamedRequest("gpu".to_owned())));
    }

    fn ledger(text: &str) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.describe(&parse(text).unwrap());
        ledger
    }

    fn request(text: &str) -> Request {
        Request::new(&parse(text).unwrap())
    }

    #[test]
    fn enough_exactly_enough_and_not_enough() {
        for (has, wants, enough) in [
            ("apple=3", "apple=2", true),
            ("apple=3", "apple=3", true),
            ("apple=3", "apple=4", false),
            ("apple=a,apple=b", "apple=2", true),
            ("apple=a,apple=b", "apple=3", false),
            ("apple=3", "pear=1", false),
            ("apple=3", "apple=1,pear=1", false),
            ("apple=3", "pear=0", true),
            ("apple=a", "apple=a", true),
            ("apple=a", "apple=b", false),
            ("apple=1", "apple=a", false),
            ("apple=a,apple=b", "apple=a,apple=b", true),
        ] {
            assert_eq!(ledger(has).satisfies(&request(wants)), enough, "{wants} of {has}");
        }
    }

    #[test]
    fn counts_of_one_kind_add_up() {
        let twice = Request::new(&[discrete("apple", 2), discrete("apple", 2)]);
        assert!(!ledger("apple=3").satisfies(&twice));
        assert_eq!(ledger("apple=4").claim(&twice).unwrap(), [discrete("apple", 4)]);
    }

    #[test]
    fn what_is_asked_for_by_name_is_given_and_nothing_else() {
        let all = ledger("gpu=a,gpu=b,gpu=c");
        let mut ledger = all.clone();
        let both = Request::new(&[named("gpu", "c"), discrete("gpu", 1)]);
        assert_eq!(ledger.claim(&both).unwrap(), [named("gpu", "c"), named("gpu", "a")]);
        assert_eq!(ledger.claim(&request("gpu=c")), None, "somebody has it");
        assert_eq!(ledger.claim(&request("gpu=b")).unwrap(), [named("gpu", "b")]);
        let twice = Request::new(&[named("gpu", "a"), named("gpu", "a")]);
        let too_many = Request::new(&[named("gpu", "a"), discrete("gpu", 3)]);
        assert!(!all.satisfies(&twice) && !all.satisfies(&too_many));
    }

    #[test]
    fn all_is_everything_that_the_node_has_and_nobody_else_holds() {
        let everything = Request::new(&[discrete("gpu", ALL)]);
        let mut named_ones = ledger("gpu=a,gpu=b");
        assert_eq!(named_ones.claim(&everything).unwrap(), [named("gpu", "a"), named("gpu", "b")]);
        assert_eq!(named_ones.claim(&everything), None);
        assert_eq!(ledger("gpu=4").claim(&everything).unwrap(), [discrete("gpu", 4)]);
        let mut in_use = ledger("gpu=4");
        in_use.hold(&[discrete("gpu", 1)]);
        assert!(!in_use.satisfies(&everything));
        assert!(!ledger("gpu=0").satisfies(&everything) && !ledger("fpga=1").satisfies(&everything));
        let more = Request::new(&[discrete("gpu", ALL), discrete("gpu", 1)]);
        let and_one = Request::new(&[discrete("gpu", ALL), named("gpu", "a")]);
        assert!(!ledger("gpu=4").satisfies(&more) && !ledger("gpu=a,gpu=b").satisfies(&and_one));
    }

    #[test]
    fn less_than_nothing_gives_nothing_away() {
        let mut ledger = ledger("apple=1,gpu=a,gpu=b");
        let request = Request::new(&[discrete("apple", -5), discrete("gpu", 0)]);
        assert!(request.is_empty());
        assert_eq!(ledger.claim(&request).unwrap(), []);
        ledger.hold(&[discrete("apple", -5)]);
        assert_eq!(ledger.free("apple"), 1);
    }

    #[test]
    fn claims_take_and_releases_give_back() {
        let mut ledger = ledger("apple=3,gpu=a,gpu=b,gpu=c");
        let first = ledger.claim(&request("apple=1,gpu=2")).unwrap();
        assert_eq!(first, [discrete("apple", 1), named("gpu", "a"), named("gpu", "b")]);
        assert_eq!((ledger.free("apple"), ledger.free("gpu")), (2, 1));
        assert_eq!(ledger.claim(&request("gpu=2")), None);
        let second = ledger.claim(&request("apple=2,gpu=1")).unwrap();
        assert_eq!(second, [discrete("apple", 2), named("gpu", "c")]);
        assert_eq!((ledger.free("apple"), ledger.free("gpu")), (0, 0));
        ledger.release(&first);
        assert_eq!(ledger.claim(&request("gpu=2")).unwrap(), [named("gpu", "a"), named("gpu", "b")]);
        ledger.release(&[named("gpu", "a"), named("gpu", "b")]);
        ledger.release(&second);
        assert_eq!(ledger, super::tests::ledger("apple=3,gpu=a,gpu=b,gpu=c"));
    }

    #[test]
    fn descriptions_that_change_count_at_once() {
        let mut ledger = ledger("apple=3,gpu=a,gpu=b");
        ledger.claim(&request("apple=2,gpu=1")).unwrap();
        for (now, apples, gpus) in [
            ("apple=1,gpu=b", -1, 1),
            ("gpu=a,gpu=b,gpu=c", 0, 2),
            ("apple=red,apple=green,gpu=4", 2, 4),
            ("apple=3,gpu=a,gpu=b", 1, 1),
        ] {
            ledger.describe(&parse(now).unwrap());
            assert_eq!((ledger.free("apple"), ledger.free("gpu")), (apples, gpus), "{now}");
        }
    }

    #[test]
    fn a_task_keeps_what_is_still_described() {
        for (now, assigned, keeps) in [
            ("apple=2", discrete("apple", 2), true),
            ("apple=1", discrete("apple", 2), false),
            ("apple=a", discrete("apple", 1), false),
            ("gpu=a,gpu=b", named("gpu", "b"), true),
            ("gpu=a,gpu=c", named("gpu", "b"), false),
            ("gpu=2", named("gpu", "b"), false),
            ("pear=1", named("gpu", "b"), false),
        ] {
            assert_eq!(ledger(now).covers(std::slice::from_ref(&assigned)), keeps, "{assigned:?} of {now}");
        }
        let mut shared = ledger("gpu=a");
        shared.hold(&[named("gpu", "a")]);
        assert!(!shared.covers(&[named("gpu", "a")]), "somebody else has it");
    }

    #[test]
    fn holding_too_much_is_seen() {
        let mut ledger = ledger("apple=1,gpu=a");
        ledger.hold(&[discrete("apple", 1), named("gpu", "a")]);
        assert!(!ledger.is_overdrawn());
        ledger.hold(&[named("gpu", "a")]);
        assert!(ledger.is_overdrawn());
        ledger.release(&[named("gpu", "a"), discrete("apple", 1)]);
        assert!(!ledger.is_overdrawn());
        ledger.hold(&[named("gpu", "b")]);
        assert!(ledger.is_overdrawn());
    }
}
