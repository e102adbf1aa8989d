//! New tasks (`orchestration.md` §2.7).

use swarm_api::v1::{Driver, Endpoint, Service, Task, TaskState, Version};
use swarm_api::{Shared, Text, text};
use swarm_reconcile::{Ctx, Guard, IdSource, Patch, Write};
use swarm_store::Tables;

use crate::place::Place;
use crate::spec::iteration;

/// New ids in their order. Tasks that are made with them one after the other are neighbours in the store: whoever walks
/// through a service's slots walks straight through memory.
pub(crate) struct Ordered<'a> {
    ids: std::vec::IntoIter<String>,
    source: &'a mut dyn IdSource,
}

impl<'a> Ordered<'a> {
    /// So many ids; further ones come as they are.
    pub(crate) fn new(source: &'a mut dyn IdSource, count: usize) -> Ordered<'a> {
        let mut ids: Vec<String> = (0..count).map(|_| source.next()).collect();
        ids.sort_unstable();
        Ordered { ids: ids.into_iter(), source }
    }
}

impl IdSource for Ordered<'_> {
    fn next(&mut self) -> String {
        self.ids.next().unwrap_or_else(|| self.source.next())
    }
}

/// Makes tasks of one service; what all of them share is made once.
pub(crate) struct Recipe<'a> {
    service: &'a Service,
    service_id: Text,
    endpoint: Shared<Endpoint>,
    log_driver: Option<Driver>,
}

impl<'a> Recipe<'a> {
    pub(crate) fn new(tables: &Tables, service: &'a Service) -> Recipe<'a> {
        let of_cluster = || tables.cluster()?.spec.task_defaults.log_driver.clone();
        Recipe {
            service,
            service_id: service.id.as_str().into(),
            endpoint: Endpoint { spec: service.spec.endpoint.clone(), ..Default::default() }.into(),
            log_driver: service.spec.task.log_driver.clone().or_else(of_cluster),
        }
    }

    /// A task for a place, to be written as long as the service has this spec.
    pub(crate) fn create(&self, ctx: &mut Ctx<'_>, place: &Place, desired: TaskState) -> (String, Patch) {
        let service = self.service;
        let id = ctx.ids.next();
        let mut task = Task {
            id: id.as_str().into(),
            spec: service.spec.task.clone(),
            spec_version: service.spec_version,
            service_id: self.service_id.clone(),
            service_annotations: service.spec.annotations.clone(),
            slot: place.slot(),
            node_id: place.node().into(),
            endpoint: Some(self.endpoint.clone()),
            log_driver: self.log_driver.clone().map(Box::new),
            desired_state: desired as i32,
            job_iteration: iteration(service).map(|index| Version { index }),
            ..Default::default()
        };
        task.meta.created_at = Some(ctx.now.wall.into());
        task.status.state = TaskState::New as i32;
        task.status.message = text!("created");
        task.status.timestamp = Some(ctx.now.wall.into());
        (id, Patch::new(Write::Create(task.into())).guard(Guard::spec_of(service)))
    }
}
