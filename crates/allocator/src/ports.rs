//! Numbers of ports published through the ingress network (`network.md` A8).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use swarm_api::v1::port_config::{Protocol, PublishMode};
use swarm_api::v1::{Endpoint, PortConfig, Service};

/// Numbers given to ports that ask for none.
pub(crate) const DYNAMIC: RangeInclusive<u32> = 30_000..=32_767;

/// Why a service's ports can't be allocated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PortError {
    #[error("port {port}/{protocol} is already in use by service {service}")]
    Taken { port: u32, protocol: &'static str, service: String },
    #[error("port {port}/{protocol} is published twice")]
    Twice { port: u32, protocol: &'static str },
    #[error("port {0} is not between 1 and 65535")]
    OutOfRange(u32),
    #[error("no free port between {first} and {last}", first = DYNAMIC.start(), last = DYNAMIC.end())]
    Exhausted,
}

/// Protocol and number.
type Key = (i32, u32);

/// Whether another service has to do with a number, in whatever way.
pub(crate) type Elsewhere<'a> = &'a dyn Fn(i32, u32) -> bool;

/// A number that a service has.
#[derive(Debug, Clone, PartialEq)]
struct Given {
    name: String,
    target: u32,
    key: Key,
    /// The port asks for none, so that it may get another one.
    dynamic: bool,
}

impl Given {
    fn new(port: &PortConfig, dynamic: bool) -> Given {
        let key = (port.protocol, port.published_port);
        Given { name: port.name.clone(), target: port.target_port, key, dynamic }
    }

    /// It was given to what is the same port after an update.
    fn is_of(&self, port: &PortConfig) -> bool {
        self.name == port.name && self.key.0 == port.protocol && self.target == port.target_port
    }
}

/// One number space per protocol.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    owners: BTreeMap<Key, String>,
    by_service: BTreeMap<String, Vec<Given>>,
    /// The dynamic number that was given last: the search goes on behind it, so that a number is not reused at once.
    last: BTreeMap<i32, u32>,
    freed: bool,
}

fn is_ingress(port: &PortConfig) -> bool {
    port.publish_mode() == PublishMode::Ingress
}

fn is_dynamic(port: &PortConfig) -> bool {
    is_ingress(port) && port.published_port == 0
}

/// The numbers that an endpoint has, and which of them were not asked for.
fn numbers(endpoint: &Endpoint) -> impl Iterator<Item = Given> {
    let asked: Vec<&PortConfig> = endpoint.spec.iter().flat_map(|spec| &spec.ports).collect();
    let numbered = endpoint.ports.iter().filter(|p| is_ingress(p) && p.published_port != 0);
    numbered.map(move |port| {
        let given = Given::new(port, true);
        let fixed =
            asked.iter().any(|p| is_ingress(p) && p.published_port == port.published_port && given.is_of(p));
        Given { dynamic: !fixed, ..given }
    })
}

fn protocol(number: i32) -> &'static str {
    match Protocol::try_from(number) {
        Ok(Protocol::Udp) => "udp",
        Ok(Protocol::Sctp) => "sctp",
        _ => "tcp",
    }
}

impl Ports {
    /// Takes note of numbers that a service was given by an earlier leader. One that another service has as well
    /// stays with that.
    pub(crate) fn restore(&mut self, service: &str, endpoint: &Endpoint) {
        for given in numbers(endpoint) {
            let (protocol, number) = given.key;
            if given.dynamic && DYNAMIC.contains(&number) {
                let last = self.last.entry(protocol).or_default();
                *last = number.max(*last);
            }
            if !self.owners.contains_key(&given.key) {
                self.take(service, given);
            }
        }
    }

    fn take(&mut self, service: &str, given: Given) {
        self.owners.insert(given.key, service.to_owned());
        self.by_service.entry(service.to_owned()).or_default().push(given);
    }

    fn drop_all(&mut self, service: &str) -> Vec<Given> {
        let all = self.by_service.remove(service).unwrap_or_default();
        for given in &all {
            self.owners.remove(&given.key);
        }
        all
    }

    /// Gives back all numbers of a service.
    pub(crate) fn release(&mut self, service: &str) {
        self.freed |= !self.drop_all(service).is_empty();
    }

    /// Numbers were given back since this was asked last.
    pub(crate) fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// The ports of an endpoint with all numbers filled in. The service's numbers are exactly those afterwards;
    /// on error they are what they were before.
    pub(crate) fn allocate(
        &mut self,
        service: &Service,
        elsewhere: Elsewhere<'_>,
    ) -> Result<Vec<PortConfig>, PortError> {
        let before = self.drop_all(&service.id);
        let filled = self.fill(service, &before, elsewhere);
        if filled.is_err() {
            self.drop_all(&service.id);
            before.into_iter().for_each(|given| self.take(&service.id, given));
        } else {
            self.freed |= before.iter().any(|given| !self.owners.contains_key(&given.key));
        }
        filled
    }

    /// Ports without a number come last, so that they can't take what another port of the service asks for, and
    /// of those the ones that have none to keep.
    fn fill(
        &mut self,
        service: &Service,
        before: &[Given],
        elsewhere: Elsewhere<'_>,
    ) -> Result<Vec<PortConfig>, PortError> {
        let asked = service.spec.endpoint.iter().flat_map(|spec| &spec.ports);
        let (dynamic, mut ports): (Vec<_>, Vec<_>) = asked.cloned().partition(is_dynamic);
        for port in ports.iter().filter(|port| is_ingress(port)) {
            self.take_fixed(&service.id, port)?;
        }
        let fixed = ports.len();
        let asked: BTreeSet<Key> = ports.iter().map(|port| (port.protocol, port.published_port)).collect();
        let mut wanted = BTreeMap::<i32, usize>::new();
        for port in &dynamic {
            let count = wanted.entry(port.protocol).or_default();
            *count += 1;
            if *count > DYNAMIC.clone().count() {
                return Err(PortError::Exhausted);
            }
        }
        let mut former = self.former(service, before, &asked, elsewhere);
        for mut port in dynamic {
            if let Some(at) = former.iter().position(|given| given.is_of(&port)) {
                port.published_port = former.remove(at).key.1;
                self.take(&service.id, Given::new(&port, true));
            }
            ports.push(port);
        }
        for port in ports.iter_mut().skip(fixed).filter(|port| is_dynamic(port)) {
            let number = self.free(&asked, port.protocol, elsewhere);
            port.published_port = number.ok_or(PortError::Exhausted)?;
            self.take(&service.id, Given::new(port, true));
        }
        Ok(ports)
    }

    fn take_fixed(&mut self, service: &str, port: &PortConfig) -> Result<(), PortError> {
        let (number, protocol) = (port.published_port, protocol(port.protocol));
        if number > 65_535 {
            return Err(PortError::OutOfRange(number));
        }
        match self.owners.get(&(port.protocol, number)) {
            Some(owner) if owner == service => Err(PortError::Twice { port: number, protocol }),
            Some(owner) => Err(PortError::Taken { port: number, protocol, service: owner.clone() }),
            None => {
                self.take(service, Given::new(port, false));
                Ok(())
            }
        }
    }

    /// Numbers that ports of the service may keep: those that they were given, whether that was written or not, as far as
    /// nobody else has them. One that was not written yet gives way to who asks for it by now.
    fn former(
        &self,
        service: &Service,
        before: &[Given],
        asked: &BTreeSet<Key>,
        elsewhere: Elsewhere<'_>,
    ) -> Vec<Given> {
        let written: Vec<Given> = service.endpoint.iter().flat_map(|endpoint| numbers(endpoint)).collect();
        let mut former: Vec<Given> = Vec::new();
        for given in before.iter().chain(&written).filter(|given| given.dynamic) {
            let (protocol, number) = given.key;
            if !former.iter().any(|other| other.key == given.key)
                && !self.owners.contains_key(&given.key)
                && !asked.contains(&given.key)
                && (written.iter().any(|other| other.key == given.key) || !elsewhere(protocol, number))
            {
                former.push(given.clone());
            }
        }
        former
    }

    /// The next number that nobody has or asks for, not even on their nodes.
    fn free(&mut self, asked: &BTreeSet<Key>, protocol: i32, elsewhere: Elsewhere<'_>) -> Option<u32> {
        let last = self.last.get(&protocol).copied().unwrap_or(*DYNAMIC.end());
        let mut around = (last + 1..=*DYNAMIC.end()).chain(*DYNAMIC.start()..=last);
        let number = around.find(|number| {
            let key = (protocol, *number);
            !self.owners.contains_key(&key) && !asked.contains(&key) && !elsewhere(protocol, *number)
        })?;
        self.last.insert(protocol, number);
        Some(number)
    }
}

#[cfg(test)]
mod tests;
