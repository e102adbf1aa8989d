//! Extensions: kinds of objects that are declared at run time. They can't be changed.

use swarm_api::v1::{CreateExtensionRequest, Extension};
use swarm_api::{Kind, Shared, id};

use super::{Control, Pending, get, name_taken};
use crate::error::{Error, Result};

impl Control {
    pub(crate) async fn create_extension(
        &self,
        request: CreateExtensionRequest,
    ) -> Result<Shared<Extension>> {
        let CreateExtensionRequest { annotations, description } = request;
        let annotations = annotations.ok_or_else(|| Error::argument("extension name must be provided"))?;
        if annotations.name.is_empty() {
            return Err(Error::argument("extension name must be provided"));
        }
        if Kind::ALL.iter().any(|kind| kind.name() == annotations.name) {
            return Err(name_taken("extension", &annotations.name));
        }
        let extension = Extension { id: id::random(), annotations, description, ..Default::default() };
        let mut pending = Pending::new(extension);
        let taken = |extension: &Extension| name_taken("extension", &extension.annotations.name);
        let (extension, _) = self.update(|tx| pending.create(tx, taken)).await?;
        tracing::info!(
            extension.id = extension.id,
            extension.name = extension.annotations.name,
            "extension created"
        );
        Ok(extension)
    }

    pub(crate) async fn get_extension(&self, id: &str) -> Result<Shared<Extension>> {
        Ok(get::<Extension>(&*self.view().await?, "extension", id)?.clone())
    }

    pub(crate) async fn remove_extension(&self, id: &str) -> Result<()> {
        self.update(|tx| {
            let extension = get::<Extension>(tx, "extension", id)?;
            if tx.resources().by_kind(&extension.annotations.name).next().is_some() {
                return Err(swarm_store::Error::ExtensionInUse.into());
            }
            tx.remove::<Extension>(id)?;
            Ok::<_, Error>(())
        })
        .await?;
        tracing::info!(extension.id = id, "extension removed");
        Ok(())
    }
}
