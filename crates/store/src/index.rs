//! Index keys of each kind of object. A key is reduced to a hash of 64 bits; what a query finds by it is
//! compared with the object itself, so a collision costs time and nothing else. Keys that are also searched by
//! prefix are kept as text beside, once for all objects that have them.

use std::borrow::Cow;

use swarm_api::extensions::StartOrder;
use swarm_api::v1::{
    Cluster, Config, Extension, Network, Node, Resource, Secret, Service, Task, TaskSpec, Volume, task_spec,
};
use swarm_api::{Shared, naming};

use crate::tables::Indexed;

/// Numbers of the indexes. `NAME` and `CUSTOM` exist for every kind.
pub(crate) mod ix {
    pub(crate) const NAME: u8 = 0;
    pub(crate) const CUSTOM: u8 = 1;
    pub(crate) const RUNTIME: u8 = 2;
    pub(crate) const SERVICE: u8 = 3;
    pub(crate) const NODE: u8 = 4;
    pub(crate) const SLOT: u8 = 5;
    pub(crate) const DESIRED: u8 = 6;
    pub(crate) const OBSERVED: u8 = 7;
    pub(crate) const NETWORK: u8 = 8;
    pub(crate) const SECRET: u8 = 9;
    pub(crate) const CONFIG: u8 = 10;
    pub(crate) const VOLUME: u8 = 11;
    pub(crate) const ROLE: u8 = 12;
    pub(crate) const MEMBERSHIP: u8 = 13;
    pub(crate) const KIND: u8 = 14;
    pub(crate) const GROUP: u8 = 15;
    pub(crate) const DRIVER: u8 = 16;
    /// Objects whose names begin alike; see [`Indexed::stem`](crate::Indexed::stem).
    pub(crate) const STEM: u8 = 17;
    pub(crate) const WAITS_FOR: u8 = 18;
    pub(crate) const PORT: u8 = 19;
}

/// A key of an object.
#[derive(Debug, Clone, Copy)]
pub struct Key<'a> {
    pub(crate) hash: u64,
    /// The text itself with its index, where prefixes are searched.
    pub(crate) text: Option<(u8, &'a str)>,
}

impl Key<'_> {
    fn of(hash: u64) -> Self {
        Key { hash, text: None }
    }
}

/// What became of a key, told by its hash.
#[derive(Debug, Clone, Copy)]
pub enum Moved {
    /// The object has it no more.
    Away(u64),
    /// The object has it now.
    Here(u64),
}

/// Takes the keys of an object.
pub type Emit<'e> = dyn FnMut(Key<'_>) + 'e;

fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xd6e8_feb8_6659_fd93);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Entries of an index are together: changes of one touch fewer places so.
fn within(index: u8, hash: u64) -> u64 {
    const BITS: u32 = 5;
    u64::from(index) << (64 - BITS) | hash >> BITS
}

/// The hash of a numeric key.
pub(crate) fn number(index: u8, key: u64) -> u64 {
    within(index, mix(mix(u64::from(index), key), 8))
}

/// Where the store keeps an object with this id: those whose numbers are close to each other are neighbours. Changes that
/// are made together in this order cost less.
pub fn place_of(id: &str) -> u32 {
    home(id)
}

/// The slot that an id asks for. Random ids, as managers make them, ask for slots in their own order: so neighbours in the
/// rows are neighbours in the order of ids and under every key that they share. Others are scattered.
pub(crate) fn home(id: &str) -> u32 {
    in_order(id.as_bytes()).unwrap_or_else(|| scattered(id))
}

/// A slot that has nothing to do with the order of ids.
pub(crate) fn scattered(id: &str) -> u32 {
    (hash(0, id, 0) >> 32) as u32
}

/// What the first digits of a random id are as a share of all that they can be.
fn in_order(id: &[u8]) -> Option<u32> {
    let digits = id.first_chunk::<7>().filter(|_| id.len() == swarm_api::id::LEN)?;
    // Ids that count up begin with zeros: they would crowd in a few slots.
    if digits[..4].iter().all(|digit| *digit == digits[0]) {
        return None;
    }
    let mut number = 0;
    for digit in digits {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'z' => digit - b'a' + 10,
            _ => return None,
        };
        number = number * 36 + u64::from(value);
    }
    // Below 36^7, which is 2^14 times this.
    const ODD: u64 = 3u64.pow(14);
    Some(((number << 18) / ODD) as u32)
}

/// The hash of a textual key.
pub(crate) fn text(index: u8, key: &str) -> u64 {
    pair(index, key, 0)
}

/// The hash of a text and a number.
pub(crate) fn pair(index: u8, key: &str, beside: u64) -> u64 {
    within(index, hash(index, key, beside))
}

fn hash(index: u8, key: &str, beside: u64) -> u64 {
    let mut hash = mix(u64::from(index), beside);
    let mut chunks = key.as_bytes().chunks_exact(8);
    for chunk in &mut chunks {
        hash = mix(hash, chunk.try_into().map_or(0, u64::from_le_bytes)).rotate_left(17);
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    mix(mix(hash, u64::from_le_bytes(last)), key.len() as u64)
}

/// A text of an ordered index.
fn ordered(index: u8, key: &str) -> Key<'_> {
    Key { hash: text(index, key), text: Some((index, key)) }
}

/// Names are compared in lower case.
pub(crate) fn lower(name: &str) -> Cow<'_, str> {
    if name.bytes().all(|b| b.is_ascii() && !b.is_ascii_uppercase()) {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(name.to_lowercase())
    }
}

/// The text of an entry in `annotations.indices`.
pub(crate) fn custom(key: &str, value: &str) -> String {
    format!("{key}|{value}")
}

/// Emits every key of an object.
pub(crate) fn keys<T: Indexed>(object: &T, emit: &mut Emit<'_>) {
    let stem = object.stem();
    if !object.is_named_by_id()
        && let Some(name) = object.name_text()
    {
        let name = lower(&name);
        emit(if stem.is_some() { Key::of(text(ix::NAME, &name)) } else { ordered(ix::NAME, &name) });
    }
    if let Some(stem) = stem {
        let stem = lower(stem);
        emit(Key { hash: text(ix::STEM, &stem), text: Some((ix::NAME, &stem)) });
    }
    for entry in &object.annotations().indices {
        emit(ordered(ix::CUSTOM, &custom(&entry.key, &entry.val)));
    }
    object.own_keys(emit);
}

fn references(spec: &TaskSpec, emit: &mut Emit<'_>) {
    match &spec.runtime {
        Some(task_spec::Runtime::Container(container)) => {
            emit(Key::of(text(ix::RUNTIME, "container")));
            for secret in &container.secrets {
                emit(Key::of(text(ix::SECRET, &secret.secret_id)));
            }
            for config in &container.configs {
                emit(Key::of(text(ix::CONFIG, &config.config_id)));
            }
        }
        runtime => {
            if let Some(runtime) = naming::runtime(runtime.as_ref()) {
                emit(Key::of(text(ix::RUNTIME, &runtime)));
            }
        }
    }
}

/// The networks that a service names.
pub(crate) fn service_networks(service: &Service) -> &[swarm_api::v1::NetworkAttachmentConfig] {
    let task = &service.spec.task.networks;
    #[allow(deprecated)] // still honoured when the task template names none
    if task.is_empty() { &service.spec.networks } else { task }
}

macro_rules! named {
    ($($type:ident $table:ident),*) => {$(
        impl Indexed for $type {
            const UNIQUE_NAME: bool = true;
            crate::tables::in_table!($table);
            fn own_keys(&self, _emit: &mut Emit<'_>) {}
        }
    )*};
}

named!(Cluster clusters, Config configs, Extension extensions, Network networks, Secret secrets);

impl Indexed for Node {
    const UNIQUE_NAME: bool = false;
    crate::tables::in_table!(nodes);
    fn name_text(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.description.as_ref()?.hostname))
    }
    fn own_keys(&self, emit: &mut Emit<'_>) {
        emit(Key::of(number(ix::ROLE, self.role as u64)));
        emit(Key::of(number(ix::MEMBERSHIP, self.spec.membership as u64)));
    }
}

impl Indexed for Service {
    const UNIQUE_NAME: bool = true;
    crate::tables::in_table!(services);
    fn own_keys(&self, emit: &mut Emit<'_>) {
        references(&self.spec.task, emit);
        for network in service_networks(self) {
            emit(Key::of(text(ix::NETWORK, &network.target)));
        }
        for dependency in StartOrder::of(self).0 {
            emit(Key::of(text(ix::WAITS_FOR, &lower(&dependency.service))));
        }
        for port in self.published_ports() {
            emit(Key::of(number(ix::PORT, port.published_port.into())));
        }
    }
}

impl Indexed for Task {
    const UNIQUE_NAME: bool = false;
    crate::tables::in_table!(tasks);
    fn name_text(&self) -> Option<Cow<'_, str>> {
        Some(match &*self.annotations.name {
            "" => Cow::Owned(naming::task_name(self)),
            name => Cow::Borrowed(name),
        })
    }
    /// A key less for nearly every task.
    fn is_named_by_id(&self) -> bool {
        let is_plain = |b: u8| b.is_ascii() && !b.is_ascii_uppercase() && b != b'.';
        self.annotations.name.is_empty() && self.id.bytes().all(is_plain)
    }
    fn id_in_name(name: &str) -> Option<&str> {
        name.rsplit_once('.').map(|(_, id)| id)
    }
    /// A million texts less: names of tasks begin with the service's.
    fn stem(&self) -> Option<&str> {
        Some(match &*self.annotations.name {
            "" => &self.service_annotations.name,
            name => name,
        })
    }
    fn own_keys(&self, emit: &mut Emit<'_>) {
        references(&self.spec, emit);
        for network in &self.spec.networks {
            emit(Key::of(text(ix::NETWORK, &network.target)));
        }
        emit(Key::of(text(ix::SERVICE, &self.service_id)));
        if !self.node_id.is_empty() {
            emit(Key::of(text(ix::NODE, &self.node_id)));
        }
        emit(Key::of(pair(ix::SLOT, &self.service_id, self.slot)));
        emit(Key::of(number(ix::DESIRED, self.desired_state as u64)));
        emit(Key::of(number(ix::OBSERVED, self.status.state as u64)));
        for volume in &self.volumes {
            emit(Key::of(text(ix::VOLUME, &volume.id)));
        }
    }
    /// A task takes several cache lines.
    fn look(&self) -> u64 {
        let numbers =
            [self.meta.version.index, self.slot, self.desired_state as u64, self.status.state as u64];
        let places = [self.networks.len(), self.volumes.len(), self.node_id.len(), self.service_id.len()];
        numbers.into_iter().chain(places.map(|n| n as u64)).fold(0, |all, n| all ^ n)
    }
    /// What happens to tasks all the time touches two or three keys.
    fn moved_keys(&self, old: &Task, tell: &mut dyn FnMut(Moved)) -> bool {
        let same = Shared::ptr_eq(&self.spec, &old.spec)
            && Shared::ptr_eq(&self.service_annotations, &old.service_annotations)
            && Shared::ptr_eq(&self.annotations, &old.annotations)
            && self.slot == old.slot
            && self.service_id == old.service_id
            && self.volumes == old.volumes;
        if !same {
            return false;
        }
        if self.node_id != old.node_id {
            // Where there is no slot, the node is a part of the name.
            if self.slot == 0 && self.annotations.name.is_empty() && !self.is_named_by_id() {
                let key = |task: &Task| text(ix::NAME, &lower(&naming::task_name(task)));
                tell(Moved::Away(key(old)));
                tell(Moved::Here(key(self)));
            }
            if !old.node_id.is_empty() {
                tell(Moved::Away(text(ix::NODE, &old.node_id)));
            }
            if !self.node_id.is_empty() {
                tell(Moved::Here(text(ix::NODE, &self.node_id)));
            }
        }
        for (index, before, after) in [
            (ix::DESIRED, old.desired_state, self.desired_state),
            (ix::OBSERVED, old.status.state, self.status.state),
        ] {
            if before != after {
                tell(Moved::Away(number(index, before as u64)));
                tell(Moved::Here(number(index, after as u64)));
            }
        }
        true
    }
}

impl Indexed for Resource {
    const UNIQUE_NAME: bool = true;
    crate::tables::in_table!(resources);
    fn own_keys(&self, emit: &mut Emit<'_>) {
        emit(Key::of(text(ix::KIND, &self.kind)));
    }
}

impl Indexed for Volume {
    const UNIQUE_NAME: bool = true;
    crate::tables::in_table!(volumes);
    fn own_keys(&self, emit: &mut Emit<'_>) {
        emit(Key::of(text(ix::GROUP, &self.spec.group)));
        if let Some(driver) = &self.spec.driver {
            emit(Key::of(text(ix::DRIVER, &driver.name)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn random_ids_ask_for_slots_in_their_order_and_share_few() {
        let id = |n: u64| {
            let mut bytes = [0; 17];
            bytes[..8].copy_from_slice(&mix(n, 1).to_be_bytes());
            swarm_api::id::from_bytes(bytes)
        };
        let mut ids: Vec<String> = (0..20_000).map(id).collect();
        ids.sort();
        let homes: Vec<u32> = ids.iter().filter_map(|id| in_order(id.as_bytes())).collect();
        assert!(homes.len() > 19_980 && homes.is_sorted());
        assert!(homes.iter().collect::<BTreeSet<_>>().len() > 19_900);
        // Half of all there are lies beneath the middle.
        let low = homes.partition_point(|home| *home < 1 << 31);
        assert!((5_000..10_000).contains(&low), "{low}");
        assert_eq!(in_order(b"zzzyzzzzzzzzzzzzzzzzzzzzz").map(|home| home >> 16), Some(0xffff));
    }

    #[test]
    fn other_ids_are_scattered() {
        for id in [
            "",
            "node-1",
            "0000000000000000000000001",
            "0123456789abcdefghijklmnop",
            "A123456789abcdefghijklmno",
        ] {
            assert_eq!((home(id), in_order(id.as_bytes())), (scattered(id), None), "{id}");
        }
        let homes: BTreeSet<u32> = (0..10_000).map(|n| home(&format!("{n:025}"))).collect();
        assert!(homes.len() > 9_950);
    }
}
