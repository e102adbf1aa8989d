//! Mounts.

use bollard::models::{
    MountBindOptions, MountBindOptionsPropagationEnum, MountTmpfsOptions, MountType, MountVolumeOptions,
    MountVolumeOptionsDriverConfig, VolumeCreateRequest,
};
use swarm_agent::ControllerError;
use swarm_api::v1::Mount;
use swarm_api::v1::mount::{TmpfsOptions, Type, bind_options::Propagation};

use super::{fatal, text, unix_mode};
use crate::facts::{Api, EngineFacts};

/// Which engine first had what, by the version notes of its interface.
const NON_RECURSIVE: (Api, &str) = ((1, 40), "19.03");
const CREATE_MOUNTPOINT: (Api, &str) = ((1, 42), "23.0");
const RECURSIVE_READ_ONLY: (Api, &str) = ((1, 44), "25.0");
const SUBPATH: (Api, &str) = ((1, 45), "26.0");

/// Refuses what can't be mounted, by the contract's texts, and what the engine is too old for.
pub(super) fn check_mount(mount: &Mount, facts: &EngineFacts) -> Result<(), ControllerError> {
    let absolute = |path: &str| path.starts_with('/');
    let kind =
        Type::try_from(mount.r#type).map_err(|_| fatal(format!("invalid mount type: {}", mount.r#type)))?;
    if kind != Type::Npipe && !absolute(&mount.target) {
        return Err(fatal(format!("invalid mount target, must be an absolute path: {}", mount.target)));
    }
    match kind {
        Type::Bind if !absolute(&mount.source) => {
            Err(fatal(format!("invalid bind mount source, must be an absolute path: {}", mount.source)))
        }
        Type::Volume if absolute(&mount.source) => {
            Err(fatal(format!("invalid volume mount source, must not be an absolute path: {}", mount.source)))
        }
        Type::Tmpfs if !mount.source.is_empty() => Err(fatal("invalid tmpfs source, source must be empty")),
        Type::Npipe if mount.source.is_empty() => {
            Err(fatal("invalid npipe source, source must not be empty"))
        }
        Type::Cluster => {
            Err(fatal(format!("cluster volume {:?}: this node has no CSI plug-ins", mount.source)))
        }
        _ => too_new(mount, facts),
    }
}

fn too_new(mount: &Mount, facts: &EngineFacts) -> Result<(), ControllerError> {
    let needs = |option: &str, wanted: bool, since| match wanted {
        true => facts.needs(&format!("mount {}: {option}", mount.target), since),
        false => Ok(()),
    };
    if let Some(options) = mount.bind_options.as_ref().filter(|_| mount.r#type() == Type::Bind) {
        needs("a bind that is not recursive", options.nonrecursive, NON_RECURSIVE)?;
        needs("making a missing source", options.createmountpoint, CREATE_MOUNTPOINT)?;
        needs("recursive read-only", options.readonlyforcerecursive, RECURSIVE_READ_ONLY)?;
    }
    if let Some(options) = mount.volume_options.as_ref().filter(|_| mount.r#type() == Type::Volume) {
        needs("a path within a volume", !options.subpath.is_empty(), SUBPATH)?;
    }
    Ok(())
}

pub(super) fn engine_mount(mount: &Mount, facts: &EngineFacts) -> bollard::models::Mount {
    let mut out = bollard::models::Mount {
        target: Some(mount.target.clone()),
        source: text(&mount.source),
        read_only: Some(mount.readonly),
        ..Default::default()
    };
    match mount.r#type() {
        Type::Bind => {
            out.typ = Some(MountType::BIND);
            out.bind_options = mount.bind_options.as_ref().map(|options| MountBindOptions {
                propagation: Some(match options.propagation() {
                    Propagation::Rprivate => MountBindOptionsPropagationEnum::RPRIVATE,
                    Propagation::Private => MountBindOptionsPropagationEnum::PRIVATE,
                    Propagation::Rshared => MountBindOptionsPropagationEnum::RSHARED,
                    Propagation::Shared => MountBindOptionsPropagationEnum::SHARED,
                    Propagation::Rslave => MountBindOptionsPropagationEnum::RSLAVE,
                    Propagation::Slave => MountBindOptionsPropagationEnum::SLAVE,
                }),
                non_recursive: options.nonrecursive.then_some(true),
                create_mountpoint: options.createmountpoint.then_some(true),
                // Older engines can't do otherwise.
                read_only_non_recursive: (options.readonlynonrecursive && facts.api >= RECURSIVE_READ_ONLY.0)
                    .then_some(true),
                read_only_force_recursive: options.readonlyforcerecursive.then_some(true),
            });
        }
        Type::Volume => {
            out.typ = Some(MountType::VOLUME);
            out.volume_options = mount.volume_options.as_ref().map(|options| MountVolumeOptions {
                no_copy: Some(options.nocopy),
                labels: (!options.labels.is_empty()).then(|| options.labels.clone().into_iter().collect()),
                driver_config: options.driver_config.as_ref().map(|driver| MountVolumeOptionsDriverConfig {
                    name: text(&driver.name),
                    options: (!driver.options.is_empty())
                        .then(|| driver.options.clone().into_iter().collect()),
                }),
                subpath: text(&options.subpath),
            });
        }
        Type::Tmpfs => {
            out.typ = Some(MountType::TMPFS);
            out.tmpfs_options = mount.tmpfs_options.as_ref().map(|options| MountTmpfsOptions {
                size_bytes: (options.size_bytes > 0).then_some(options.size_bytes),
                mode: (options.mode > 0).then_some(i64::from(options.mode)),
                options: None,
            });
        }
        Type::Npipe => out.typ = Some(MountType::NPIPE),
        Type::Cluster => out.typ = Some(MountType::CLUSTER),
    }
    out
}

/// The mount is memory with free options.
pub(super) fn as_tmpfs_option(mount: &Mount) -> bool {
    mount.r#type() == Type::Tmpfs
        && mount.tmpfs_options.as_ref().is_some_and(|options| !options.options.is_empty())
}

/// The options of a tmpfs as mount(8) writes them.
pub(super) fn tmpfs_options(mount: &Mount) -> String {
    let mut words = Vec::new();
    if mount.readonly {
        words.push("ro".to_owned());
    }
    if let Some(options) = &mount.tmpfs_options {
        if options.mode != 0 {
            words.push(format!("mode={:o}", unix_mode(options.mode)));
        }
        if options.size_bytes > 0 {
            words.push(format!("size={}", options.size_bytes));
        }
        words.extend(free_tmpfs_options(options));
    }
    words.join(",")
}

/// Clients write a JSON array of arrays (`[["exec"],["uid","1000"]]`) or a comma-separated list.
fn free_tmpfs_options(options: &TmpfsOptions) -> Vec<String> {
    if let Ok(pairs) = serde_json::from_str::<Vec<Vec<String>>>(&options.options) {
        return pairs.into_iter().map(|pair| pair.join("=")).collect();
    }
    options.options.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// A volume with a driver of its own exists before its container.
pub(super) fn volume_request(mount: &Mount) -> Option<VolumeCreateRequest> {
    let options = mount.volume_options.as_ref().filter(|_| mount.r#type() == Type::Volume)?;
    let driver = options.driver_config.as_ref().filter(|_| !mount.source.is_empty())?;
    Some(VolumeCreateRequest {
        name: Some(mount.source.clone()),
        driver: text(&driver.name),
        driver_opts: Some(driver.options.clone().into_iter().collect()),
        labels: Some(options.labels.clone().into_iter().collect()),
        cluster_volume_spec: None,
    })
}
