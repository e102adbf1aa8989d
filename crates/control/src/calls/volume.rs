//! Cluster volumes.

use swarm_api::v1::list_volumes_request::Filters;
use swarm_api::v1::{UpdateVolumeRequest, Volume, VolumeSpec};
use swarm_api::{Shared, StoreObject as _, id};

use super::{Control, Pending, get};
use crate::error::{Error, Result};
use crate::filter::{Common, Found, any, labels, pick};

impl Control {
    pub(crate) async fn create_volume(&self, spec: Option<VolumeSpec>) -> Result<Shared<Volume>> {
        let spec = spec.ok_or_else(|| Error::argument("spec must not be nil"))?;
        if spec.driver.is_none() {
            return Err(Error::argument("driver must be specified"));
        }
        if spec.annotations.name.is_empty() {
            return Err(Error::argument("meta: name must be provided"));
        }
        let mode = spec.access_mode.as_ref().ok_or_else(|| Error::argument("AccessMode must not be nil"))?;
        if mode.access_type.is_none() {
            return Err(Error::argument("Volume AccessMode must specify either Mount or Block access type"));
        }
        let mut pending = Pending::new(Volume { id: id::random(), spec, ..Default::default() });
        let (volume, _) = self
            .update(|tx| {
                let secrets = pending.get().spec.secrets.iter().map(|s| s.secret.as_str());
                let missing: Vec<&str> = secrets.filter(|id| tx.secrets().get(id).is_none()).collect();
                match missing[..] {
                    [] => {}
                    [id] => return Err(Error::argument(format!("secret not found: {id}"))),
                    _ => return Err(Error::argument(format!("secrets not found: {}", missing.join(", ")))),
                }
                pending.create(tx, |_| swarm_store::Error::NameConflict.into())
            })
            .await?;
        tracing::info!(volume.id = volume.id, volume.name = volume.annotations().name, "volume created");
        Ok(volume)
    }

    pub(crate) async fn get_volume(&self, id: &str) -> Result<Shared<Volume>> {
        Ok(get::<Volume>(&*self.view().await?, "volume", id)?.clone())
    }

    pub(crate) async fn list_volumes(&self, filters: Option<Filters>) -> Result<Vec<Shared<Volume>>> {
        let view = self.view().await?;
        let table = view.volumes();
        let filters = filters.unwrap_or_default();
        let common = Common {
            names: &filters.names,
            name_prefixes: &filters.name_prefixes,
            id_prefixes: &filters.id_prefixes,
        };
        let driver =
            |volume: &Volume| volume.spec.driver.as_ref().map(|d| d.name.clone()).unwrap_or_default();
        let pass = |volume: &Volume| {
            common.matches(volume)
                && labels(&filters.labels, &volume.annotations().labels)
                && any(&filters.groups, |group| volume.spec.group == *group)
                && any(&filters.drivers, |wanted| driver(volume) == *wanted)
        };
        let mut found = Found::default();
        if let Some(common) = common.candidates(table) {
            found = common;
        } else if !filters.groups.is_empty() {
            filters.groups.iter().for_each(|group| found.extend(table.by_group(group)));
        } else if !filters.drivers.is_empty() {
            filters.drivers.iter().for_each(|driver| found.extend(table.by_driver(driver)));
        } else {
            found.extend(table.iter());
        }
        Ok(pick(found.into_vec(), pass))
    }

    pub(crate) async fn update_volume(&self, request: UpdateVolumeRequest) -> Result<Shared<Volume>> {
        let UpdateVolumeRequest { volume_id, volume_version, spec } = request;
        if volume_id.is_empty() {
            return Err(Error::argument("VolumeID must not be empty"));
        }
        let spec = spec.ok_or_else(|| Error::argument("Spec must not be empty"))?;
        let base = volume_version.ok_or_else(|| Error::argument("VolumeVersion must not be empty"))?;
        let (volume, _) = self
            .update(|tx| {
                let mut volume = get::<Volume>(tx, "volume", &volume_id)?.clone();
                fixed(&volume.spec, &spec)?;
                volume.meta.version = base;
                volume.spec.annotations.labels.clone_from(&spec.annotations.labels);
                volume.spec.availability = spec.availability;
                Ok::<_, Error>(tx.update(volume)?)
            })
            .await?;
        Ok(volume)
    }

    pub(crate) async fn remove_volume(&self, id: &str, force: bool) -> Result<()> {
        self.update(|tx| {
            let mut volume = get::<Volume>(tx, "volume", id)?.clone();
            if force {
                tx.remove::<Volume>(id)?;
                return Ok(());
            }
            if !volume.publish_status.is_empty() {
                return Err(Error::precondition("volume is still in use"));
            }
            volume.pending_delete = true;
            tx.update(volume)?;
            Ok(())
        })
        .await?;
        tracing::info!(volume.id = id, force, "volume removed");
        Ok(())
    }
}

/// What an update may not touch, in the order in which it is reported.
fn fixed(old: &VolumeSpec, new: &VolumeSpec) -> Result<()> {
    let fields = [
        ("Name", old.annotations.name == new.annotations.name),
        ("Group", old.group == new.group),
        ("AccessibilityRequirements", old.accessibility_requirements == new.accessibility_requirements),
        ("Driver", old.driver == new.driver),
        ("AccessMode", old.access_mode == new.access_mode),
        ("Secrets", old.secrets == new.secrets),
        ("CapacityRange", old.capacity_range == new.capacity_range),
    ];
    match fields.iter().find(|(_, same)| !same) {
        Some((field, _)) => Err(Error::argument(format!("{field} cannot be updated"))),
        None => Ok(()),
    }
}
