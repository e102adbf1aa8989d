//! How everything becomes good again: first nodes and agents, and then what was asked for.

use swarm_api::StoreObject;
use swarm_api::extensions::StartOrder;
use swarm_api::v1::{ReplicatedService, TaskSpec, node_spec, node_status, service_spec};

use crate::agents::flawless;
use crate::specs::{container, described};
use crate::world::World;

impl World<'_> {
    /// From now on all nodes answer, and everything that their agents do works. What was asked for stays as it is, and
    /// what there is on the nodes.
    pub(crate) fn mend(&mut self) {
        self.wrote_at = None;
        self.write_all();
        self.cut_off.clear();
        self.liars.clear();
        self.unknown.clear();
        self.sim.behaviour = Box::new(flawless);
        let nodes: Vec<String> = self.sim.view().nodes().iter().map(|n| n.id.clone()).collect();
        for id in nodes {
            self.sim.edit_node(&id, |n| n.status.state = node_status::State::Ready as i32);
        }
    }

    /// There is room for everything, and nobody waits for an operator.
    pub(crate) fn heal(&mut self) {
        let nodes: Vec<String> = self.sim.view().nodes().iter().map(|n| n.id.clone()).collect();
        for id in nodes {
            self.sim.edit_node(&id, |n| {
                n.spec.availability = node_spec::Availability::Active as i32;
                n.spec.annotations.labels.clear();
                n.description = Some(described(1_000));
            });
        }
        let view = self.sim.view();
        let services: Vec<String> = view.services().iter().map(|s| s.annotations().name.clone()).collect();
        for id in services {
            self.sim.update_service(&id, |spec| {
                spec.endpoint = None;
                spec.task = TaskSpec { runtime: container("good"), ..Default::default() }.into();
                if let Some(service_spec::Mode::ReplicatedJob(job)) = &mut spec.mode {
                    job.max_concurrent = job.max_concurrent.max(1);
                }
                // An automatic rollback may come to wait for somebody who is gone, and without tasks nobody is healthy.
                let waits_in_vain = StartOrder::read(&spec.annotations.labels).unwrap().0.iter().any(|d| {
                    let other = view.services().get(&d.service);
                    other.is_none_or(|o| {
                        o.spec.mode == Some(service_spec::Mode::Replicated(ReplicatedService { replicas: 0 }))
                    })
                });
                if waits_in_vain {
                    StartOrder::default().write(&mut spec.annotations.labels);
                }
            });
        }
    }
}
