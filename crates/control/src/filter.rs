//! Filters of the list calls.
//!
//! Values inside one list are alternatives, different lists must all match. The first list given finds the
//! candidates by the store's index, in which case does not matter; then every list is applied as it is.

use std::collections::{BTreeMap, BTreeSet};

use swarm_api::{Shared, StoreObject};
use swarm_store::{Indexed, Table};

/// What every kind can be filtered by.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Common<'a> {
    pub(crate) names: &'a [String],
    pub(crate) name_prefixes: &'a [String],
    pub(crate) id_prefixes: &'a [String],
}

impl<'a> Common<'a> {
    /// Candidates by the first list given, `None` if none of the lists is.
    pub(crate) fn candidates<'t, T: Indexed>(&self, table: &'t Table<T>) -> Option<Found<'t, T>>
    where
        'a: 't,
    {
        let mut found = Found::default();
        if !self.names.is_empty() {
            self.names.iter().for_each(|name| found.extend(table.by_name(name)));
        } else if !self.name_prefixes.is_empty() {
            self.name_prefixes.iter().for_each(|prefix| found.extend(table.by_name_prefix(prefix)));
        } else if !self.id_prefixes.is_empty() {
            self.id_prefixes.iter().for_each(|prefix| found.extend(table.by_id_prefix(prefix)));
        } else {
            return None;
        }
        Some(found)
    }

    /// The object passes every list.
    pub(crate) fn matches<T: Indexed>(&self, object: &T) -> bool {
        let no_names = self.names.is_empty() && self.name_prefixes.is_empty();
        any(self.id_prefixes, |prefix| object.id().starts_with(prefix))
            && (no_names || {
                let name = object.name().unwrap_or_default();
                any(self.names, |wanted| *wanted == name)
                    && any(self.name_prefixes, |prefix| name.starts_with(prefix))
            })
    }
}

/// Objects without repetition, in the order in which they were found.
pub(crate) struct Found<'t, T: Indexed> {
    objects: Vec<&'t Shared<T>>,
    seen: BTreeSet<&'t str>,
}

impl<T: Indexed> Default for Found<'_, T> {
    fn default() -> Self {
        Found { objects: Vec::new(), seen: BTreeSet::new() }
    }
}

impl<'t, T: Indexed> Found<'t, T> {
    pub(crate) fn extend(&mut self, objects: impl Iterator<Item = &'t Shared<T>>) {
        for object in objects {
            if self.seen.insert(id_of(object)) {
                self.objects.push(object);
            }
        }
    }

    pub(crate) fn into_vec(self) -> Vec<&'t Shared<T>> {
        self.objects
    }
}

fn id_of<T: StoreObject>(object: &Shared<T>) -> &str {
    StoreObject::id(&**object)
}

/// No list, or one of its values passes.
pub(crate) fn any<V>(list: &[V], pass: impl FnMut(&V) -> bool) -> bool {
    list.is_empty() || list.iter().any(pass)
}

/// Every wanted key is there; a wanted value that is empty matches any value.
pub(crate) fn labels(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key).is_some_and(|has| value.is_empty() || value == has))
}

/// Clones the candidates that pass: a pointer each.
pub(crate) fn pick<'t, T: Indexed + 't>(
    candidates: impl IntoIterator<Item = &'t Shared<T>>,
    mut pass: impl FnMut(&T) -> bool,
) -> Vec<Shared<T>> {
    candidates.into_iter().filter(|o| pass(o)).cloned().collect()
}

/// Objects that match any of the lists, in which names know no case; all objects if no list is given. The rule
/// for secrets and configs.
pub(crate) fn union<'t, T: Indexed>(
    table: &'t Table<T>,
    names: &[String],
    name_prefixes: &[String],
    id_prefixes: &'t [String],
) -> Vec<&'t Shared<T>> {
    let mut found = Found::default();
    if names.is_empty() && name_prefixes.is_empty() && id_prefixes.is_empty() {
        found.extend(table.iter());
    }
    names.iter().for_each(|name| found.extend(table.by_name(name)));
    name_prefixes.iter().for_each(|prefix| found.extend(table.by_name_prefix(prefix)));
    id_prefixes.iter().for_each(|prefix| found.extend(table.by_id_prefix(prefix)));
    found.into_vec()
}
