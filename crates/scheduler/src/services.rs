//! How many tasks of each service are wanted on each node.

use swarm_api::Text;
use swarm_api::hash::FastMap;

use crate::nodes::Slot;

/// Number of a service. It is given again when nothing refers to the service any more.
pub(crate) type ServiceNo = u32;

#[derive(Debug, Clone, Default)]
struct Service {
    id: Text,
    /// Who refers to the number.
    users: usize,
    on: FastMap<u32, u32>,
}

/// See the module. The empty id has the tasks without a service.
#[derive(Debug, Clone, Default)]
pub(crate) struct Services {
    by_id: FastMap<Text, ServiceNo>,
    all: Vec<Service>,
    unused: Vec<ServiceNo>,
}

impl Services {
    /// The number of a service, for one user more.
    pub(crate) fn enter(&mut self, id: &str) -> ServiceNo {
        let no = match self.by_id.get(id) {
            Some(no) => *no,
            None => {
                let id: Text = id.into();
                let no = self.unused.pop().unwrap_or_else(|| {
                    self.all.push(Service::default());
                    self.all.len() as ServiceNo - 1
                });
                self.all[no as usize] = Service { id: id.clone(), ..Service::default() };
                self.by_id.insert(id, no);
                no
            }
        };
        self.all[no as usize].users += 1;
        no
    }

    /// One user more.
    pub(crate) fn enter_again(&mut self, no: ServiceNo) {
        self.all[no as usize].users += 1;
    }

    /// One user less.
    pub(crate) fn leave(&mut self, no: ServiceNo) {
        let service = &mut self.all[no as usize];
        service.users -= 1;
        if service.users == 0 {
            let service = std::mem::take(service);
            self.by_id.remove(&service.id);
            self.unused.push(no);
        }
    }

    /// Nodes with tasks of the service.
    pub(crate) fn nodes(&self, no: ServiceNo) -> impl Iterator<Item = (Slot, u32)> {
        self.all[no as usize].on.iter().map(|(slot, count)| (*slot as Slot, *count))
    }

    /// Number of nodes with tasks of the service.
    pub(crate) fn node_count(&self, no: ServiceNo) -> usize {
        self.all[no as usize].on.len()
    }

    /// Tasks of the service on a node.
    pub(crate) fn on(&self, no: ServiceNo, slot: Slot) -> u32 {
        self.all[no as usize].on.get(&(slot as u32)).copied().unwrap_or(0)
    }

    /// A node is gone.
    pub(crate) fn remove_node(&mut self, slot: Slot) {
        self.all.iter_mut().for_each(|service| _ = service.on.remove(&(slot as u32)));
    }

    /// One task more, or less.
    pub(crate) fn set_active(&mut self, no: ServiceNo, slot: Slot, active: bool) {
        let on = &mut self.all[no as usize].on;
        if active {
            *on.entry(slot as u32).or_default() += 1;
        } else if let Some(count) = on.get_mut(&(slot as u32)) {
            *count -= 1;
            if *count == 0 {
                on.remove(&(slot as u32));
            }
        }
    }
}
