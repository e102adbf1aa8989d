//! Creating, reading and removing services.

use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::{JobStatus, Service, ServiceSpec, Version};
use swarm_api::{Shared, id};

use super::{Control, Pending, get, name_taken, service_defaults, service_order, service_rules};
use crate::error::{Error, Result};
use crate::validate;

impl Control {
    pub(crate) async fn create_service(&self, spec: Option<ServiceSpec>) -> Result<Shared<Service>> {
        let service = self.write_new_service(spec).await?;
        tracing::info!(
            service.id = service.id,
            service.name = service.spec.annotations.name,
            "service created"
        );
        Ok(service)
    }

    pub(super) async fn write_new_service(&self, spec: Option<ServiceSpec>) -> Result<Shared<Service>> {
        let mut spec = spec.ok_or_else(Error::invalid)?;
        validate::service(&spec)?;
        validate::complete(&mut spec);
        let job = is_job(&spec);
        let mut pending = Pending::new(Service {
            id: id::random(),
            spec,
            spec_version: Some(Version::default()),
            job_status: job.then(JobStatus::default),
            ..Default::default()
        });
        let (service, _) = self
            .update(|tx| {
                let spec = &pending.get().spec;
                service_rules::networks(tx, &spec.task)?;
                service_rules::ports(tx, spec.endpoint.as_ref(), "")?;
                service_rules::needs_ingress(tx, spec)?;
                service_rules::references(tx, &spec.task)?;
                service_rules::room(tx, None, spec, "")?;
                service_order::check(tx, spec)?;
                if job {
                    let status = pending.get().job_status.get_or_insert_default();
                    status.last_execution = Some(tx.now().into());
                }
                pending.create(tx, |service| name_taken("service", &service.spec.annotations.name))
            })
            .await?;
        Ok(service)
    }

    pub(crate) async fn get_service(&self, id: &str, insert_defaults: bool) -> Result<Shared<Service>> {
        let mut service = get::<Service>(&*self.view().await?, "service", id)?.clone();
        if insert_defaults {
            service_defaults::insert(&mut service.spec);
        }
        Ok(service)
    }

    pub(crate) async fn remove_service(&self, id: &str) -> Result<()> {
        let (service, _) = self
            .update(|tx| {
                service_order::unwaited(tx, get::<Service>(tx, "service", id)?)?;
                Ok::<_, Error>(tx.remove::<Service>(id)?)
            })
            .await?;
        tracing::info!(
            service.id = service.id,
            service.name = service.spec.annotations.name,
            "service removed"
        );
        Ok(())
    }
}

/// The service's tasks are meant to end.
pub(super) fn is_job(spec: &ServiceSpec) -> bool {
    matches!(spec.mode, Some(Mode::ReplicatedJob(_) | Mode::GlobalJob(_)))
}
