//! Hosts' disks.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail, ensure};
use bollard::models::{ContainerCreateBody, HostConfig, VolumeCreateRequest};
use bollard::query_parameters::{CreateContainerOptionsBuilder, StartContainerOptions};

use super::Lab;

/// What a full disk is full of.
const FILLER: &str = "/state/filler";

/// What a host has its state on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Disk {
    /// A volume of the engine, as large as the engine's own disk.
    #[default]
    Volume,
    /// In memory, of so many MiB: a disk that can be filled.
    Small(u32),
}

impl Lab {
    /// Makes the disk of a host and returns the volume's name.
    pub(super) async fn create_disk(&self, host: &str, disk: Disk) -> Result<String> {
        let volume = format!("{}-{host}", self.name);
        let driver_opts = match disk {
            Disk::Volume => HashMap::new(),
            Disk::Small(mebibytes) => HashMap::from([
                ("type".to_owned(), "tmpfs".to_owned()),
                ("device".to_owned(), "tmpfs".to_owned()),
                ("o".to_owned(), format!("size={mebibytes}m")),
            ]),
        };
        let request = VolumeCreateRequest {
            name: Some(volume.clone()),
            driver_opts: Some(driver_opts),
            labels: Some(self.labels()),
            ..VolumeCreateRequest::default()
        };
        self.docker.create_volume(request).await.context("making a volume")?;
        if matches!(disk, Disk::Small(_)) {
            self.hold(host, &volume).await?;
        }
        Ok(volume)
    }

    /// Memory is mounted as long as a container uses it, so one more does while the host itself is down.
    async fn hold(&self, host: &str, volume: &str) -> Result<()> {
        let holder = self.holder(host);
        let body = ContainerCreateBody {
            image: Some(self.image.clone()),
            cmd: Some(vec!["/bin/sleep".into(), "1000000".into()]),
            labels: Some(self.labels()),
            host_config: Some(HostConfig {
                network_mode: Some("none".into()),
                binds: Some(vec![format!("{volume}:/state")]),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::new().name(&holder).build();
        self.docker.create_container(Some(options), body).await.context("making the holder of a disk")?;
        Ok(self.docker.start_container(&holder, None::<StartContainerOptions>).await?)
    }

    fn holder(&self, host: &str) -> String {
        format!("{}-{host}-disk", self.name)
    }

    /// Fills the disk of a host to the last byte, whether the host runs or not.
    ///
    /// # Errors
    /// If it is not a small one.
    pub async fn fill_disk(&mut self, host: &str) -> Result<()> {
        ensure!(
            matches!(self.host(host)?.options().disk, Disk::Small(_)),
            "the disk of {host} is not to be filled"
        );
        self.note(format!("the disk of {host} is filled"));
        // Again and again: what is freed meanwhile is taken too.
        let script = format!("cat /dev/zero >>{FILLER} 2>/dev/null; df -P /state | tail -n 1");
        let mut line = String::new();
        for _ in 0..10 {
            line = self.exec_in(&self.holder(host), &["/bin/sh", "-c", &script]).await?;
            if line.split_whitespace().nth(3) == Some("0") {
                return Ok(());
            }
        }
        bail!("the disk of {host} is not full: {line}")
    }

    /// Takes the filling away.
    ///
    /// # Errors
    /// If there is none.
    pub async fn free_disk(&mut self, host: &str) -> Result<()> {
        self.note(format!("the disk of {host} is freed"));
        self.exec_in(&self.holder(host), &["/bin/rm", FILLER]).await.map(drop)
    }
}
