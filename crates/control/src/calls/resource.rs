//! Resources: objects of kinds that extensions declare.

use swarm_api::v1::list_resources_request::Filters;
use swarm_api::v1::{CreateResourceRequest, Resource, UpdateResourceRequest};
use swarm_api::{Shared, id};

use super::{Control, Pending, get, name_taken, version};
use crate::error::{Error, Result};
use crate::filter::{Common, Found, labels, pick};

impl Control {
    pub(crate) async fn create_resource(&self, request: CreateResourceRequest) -> Result<Shared<Resource>> {
        let CreateResourceRequest { annotations, kind, payload } = request;
        let annotations = annotations.ok_or_else(|| Error::argument("Resource must have a name"))?;
        if annotations.name.is_empty() {
            return Err(Error::argument("Resource must have a name"));
        }
        if kind.is_empty() {
            return Err(Error::argument("Resource must belong to an Extension"));
        }
        let mut pending =
            Pending::new(Resource { id: id::random(), annotations, kind, payload, ..Default::default() });
        let (resource, _) = self
            .update(|tx| {
                let kind = &pending.get().kind;
                if tx.extensions().by_name(kind).next().is_none() {
                    return Err(Error::argument(format!("Kind {kind} is not registered")));
                }
                pending.create(tx, |resource| name_taken("resource", &resource.annotations.name))
            })
            .await?;
        tracing::info!(resource.id = resource.id, resource.kind = resource.kind, "resource created");
        Ok(resource)
    }

    pub(crate) async fn get_resource(&self, id: &str) -> Result<Shared<Resource>> {
        Ok(get::<Resource>(&*self.view().await?, "resource", id)?.clone())
    }

    pub(crate) async fn list_resources(&self, filters: Option<Filters>) -> Result<Vec<Shared<Resource>>> {
        let view = self.view().await?;
        let table = view.resources();
        let filters = filters.unwrap_or_default();
        let common = Common {
            names: &filters.names,
            name_prefixes: &filters.name_prefixes,
            id_prefixes: &filters.id_prefixes,
        };
        let pass = |resource: &Resource| {
            common.matches(resource)
                && labels(&filters.labels, &resource.annotations.labels)
                && (filters.kind.is_empty() || resource.kind == filters.kind)
        };
        let mut found = Found::default();
        if let Some(common) = common.candidates(table) {
            found = common;
        } else if filters.kind.is_empty() {
            found.extend(table.iter());
        } else {
            found.extend(table.by_kind(&filters.kind));
        }
        Ok(pick(found.into_vec(), pass))
    }

    /// Labels and payload can be changed; what the request leaves out stays.
    pub(crate) async fn update_resource(&self, request: UpdateResourceRequest) -> Result<Shared<Resource>> {
        let UpdateResourceRequest { resource_id, resource_version, annotations, payload } = request;
        let base = version(&resource_id, resource_version)?;
        let (resource, _) = self
            .update(|tx| {
                let mut resource = get::<Resource>(tx, "resource", &resource_id)?.clone();
                if let Some(annotations) = &annotations {
                    if annotations.name != resource.annotations.name {
                        return Err(Error::argument("cannot update resource name"));
                    }
                    resource.annotations = annotations.clone();
                }
                if payload.is_some() {
                    resource.payload.clone_from(&payload);
                }
                resource.meta.version = base;
                // The one call that calls a stale version a bad argument.
                tx.update(resource).map_err(|error| match error {
                    swarm_store::Error::Sequence => Error::argument(error.to_string()),
                    other => other.into(),
                })
            })
            .await?;
        Ok(resource)
    }

    pub(crate) async fn remove_resource(&self, id: &str) -> Result<()> {
        self.update(|tx| {
            get::<Resource>(tx, "resource", id)?;
            tx.remove::<Resource>(id)?;
            Ok::<_, Error>(())
        })
        .await?;
        tracing::info!(resource.id = id, "resource removed");
        Ok(())
    }
}
