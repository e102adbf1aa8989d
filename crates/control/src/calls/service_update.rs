//! Updating a service, and rolling it back by hand.

use swarm_api::extensions::{put_request, take_request};
use swarm_api::v1::update_service_request::Rollback;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{Service, ServiceSpec, UpdateServiceRequest, UpdateStatus, Version};
use swarm_api::{Shared, StoreObject as _};
use swarm_store::Tx;

use super::service::is_job;
use super::{Control, get, service_order, service_rules, version};
use crate::error::{Error, Result};
use crate::validate;

impl Control {
    pub(crate) async fn update_service(&self, request: UpdateServiceRequest) -> Result<Shared<Service>> {
        let rollback = request.rollback() == Rollback::Previous;
        let service = self.write_service(request).await?;
        tracing::info!(
            service.id = service.id,
            service.name = service.spec.annotations.name,
            rollback,
            "service updated"
        );
        Ok(service)
    }

    pub(super) async fn write_service(&self, request: UpdateServiceRequest) -> Result<Shared<Service>> {
        let rollback = request.rollback() == Rollback::Previous;
        let UpdateServiceRequest { service_id, service_version, spec, .. } = request;
        let base = version(&service_id, service_version)?;
        let mut spec = spec.ok_or_else(Error::invalid)?;
        validate::contract(&spec)?;
        validate::complete(&mut spec);
        let (service, _) = self.update(|tx| write(tx, &service_id, base, &spec, rollback)).await?;
        Ok(service)
    }
}

/// The checks in the contract's order, then the change.
fn write(
    tx: &mut Tx,
    id: &str,
    base: Version,
    spec: &ServiceSpec,
    rollback: bool,
) -> Result<Shared<Service>> {
    service_rules::networks(tx, &spec.task)?;
    let mut service = get::<Service>(tx, "service", id)?.clone();
    if !rollback {
        validate::extended(spec, Some(&service.spec))?;
    }
    if !rollback && spec.endpoint.is_some() && spec.endpoint != service.spec.endpoint {
        service_rules::ports(tx, spec.endpoint.as_ref(), id)?;
    }
    #[allow(deprecated)] // compared only
    let moved = spec.networks != service.spec.networks && spec.task.networks == service.spec.task.networks;
    if moved {
        return Err(Error::unimplemented("changing network in service is not supported"));
    }
    service_rules::references(tx, &spec.task)?;
    let kind = |spec: &ServiceSpec| spec.mode.as_ref().map(std::mem::discriminant);
    if kind(spec) != kind(&service.spec) {
        return Err(Error::unimplemented("service mode change is not allowed"));
    }
    if spec.annotations.name != service.annotations().name {
        return Err(Error::unimplemented("renaming services is not supported"));
    }
    service.meta.version = base;
    // An operator's request stands until it is done, whatever becomes of the spec meanwhile, and no spec takes it along.
    let requested = take_request(&mut service.spec);
    let current_version = service.spec_version;
    let before = service.spec.clone();
    if rollback {
        let mut previous = service
            .previous_spec
            .take()
            .ok_or_else(|| Error::precondition(format!("service {id} does not have a previous spec")))?;
        // A leader of another make does not know it.
        take_request(&mut previous);
        let current = std::mem::replace(&mut service.spec, previous);
        service.previous_spec = Some(current);
        service.spec_version = service.previous_spec_version;
        service.previous_spec_version = current_version;
        // Jobs have no updates: nobody would say that it is over.
        service.update_status = (!is_job(&service.spec)).then(|| UpdateStatus {
            state: UpdateState::RollbackStarted as i32,
            message: "manually requested rollback".into(),
            started_at: Some(tx.now().into()),
            completed_at: None,
        });
    } else {
        let current = std::mem::replace(&mut service.spec, spec.clone());
        service.previous_spec = Some(current);
        service.previous_spec_version = current_version;
        service.spec_version = Some(base);
        service.update_status = None;
    }
    if rollback {
        service_rules::way_back(tx, &before, &service.spec, id)?;
    }
    service_rules::room(tx, Some(&before), &service.spec, id)?;
    if requested {
        put_request(&mut service.spec);
    }
    service_order::check_change(tx, &before, &service.spec)?;
    service_rules::needs_ingress(tx, &service.spec)?;
    if is_job(&service.spec) {
        let now = tx.now().into();
        let status = service.job_status.get_or_insert_default();
        status.job_iteration.index += 1;
        status.last_execution = Some(now);
    }
    Ok(tx.update(service)?)
}
