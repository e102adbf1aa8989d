//! Cluster volumes: which exist, who uses them where, and which a task gets on a node (`orchestration.md` §14.11,
//! `network.md` D6).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use swarm_api::v1::volume_access_mode::{Scope, Sharing};
use swarm_api::v1::{
    ContainerSpec, Mount, Node, TaskSpec, Volume, VolumeAccessMode, VolumeAttachment, VolumePublishStatus,
    mount, task_spec, volume_publish_status, volume_spec,
};
use swarm_api::{Kind, Object, Shared, StoreObject as _, Text};
use swarm_reconcile::Write;

/// Prefix of the source of a mount that any volume of a group will do for.
const GROUP: &str = "group:";

/// A mount of a cluster volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VolumeMount {
    source: String,
    target: String,
    read_only: bool,
}

impl VolumeMount {
    fn of(mount: &Mount) -> VolumeMount {
        VolumeMount { source: mount.source.clone(), target: mount.target.clone(), read_only: mount.readonly }
    }
}

/// The cluster volumes that a spec mounts.
pub(crate) fn mounts(spec: &TaskSpec) -> impl Iterator<Item = VolumeMount> + '_ {
    let mounts = match &spec.runtime {
        Some(task_spec::Runtime::Container(ContainerSpec { mounts, .. })) => &mounts[..],
        _ => &[],
    };
    mounts.iter().filter(|mount| mount.r#type() == mount::Type::Cluster).map(VolumeMount::of)
}

/// A task that has a volume.
#[derive(Debug, Clone, PartialEq)]
struct User {
    node: Text,
    read_only: bool,
}

#[derive(Debug, Clone, Default)]
struct Known {
    /// None if only its users are known.
    volume: Option<Shared<Volume>>,
    users: BTreeMap<Text, User>,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Volumes {
    all: BTreeMap<String, Known>,
    /// What tasks have.
    attached: BTreeMap<Text, Vec<VolumeAttachment>>,
    /// Something may be possible now that was not before.
    pub(crate) changed: bool,
    /// Volumes that may have to leave a node.
    look: BTreeSet<String>,
}

impl Volumes {
    /// Takes note of a volume as it is, or that it is gone. Before its plug-in has made it, it is of no use.
    pub(crate) fn put(&mut self, id: &str, volume: Option<&Shared<Volume>>) {
        let made =
            |volume: &&Shared<Volume>| volume.volume_info.as_ref().is_some_and(|i| !i.volume_id.is_empty());
        let known = self.all.entry(id.to_owned()).or_default();
        known.volume = volume.filter(made).cloned();
        if known.volume.is_none() && known.users.is_empty() {
            self.all.remove(id);
        }
        self.look.insert(id.to_owned());
        self.changed = true;
    }

    /// A task has these volumes on a node.
    pub(crate) fn enter(&mut self, task: &Text, node: &Text, spec: &TaskSpec, volumes: &[VolumeAttachment]) {
        if volumes.is_empty() {
            return;
        }
        for attachment in volumes {
            let read_only = mounts(spec).any(|m| m.target == attachment.target && m.read_only);
            let known = self.all.entry(attachment.id.clone()).or_default();
            match known.users.get_mut(task) {
                // Mounted twice: it writes if one of the mounts does.
                Some(user) => user.read_only &= read_only,
                None => drop(known.users.insert(task.clone(), User { node: node.clone(), read_only })),
            }
        }
        self.attached.insert(task.clone(), volumes.to_vec());
    }

    /// A task does not have its volumes any more.
    pub(crate) fn leave(&mut self, task: &str) {
        let Some(volumes) = self.attached.remove(task) else { return };
        for attachment in volumes {
            if let Some(known) = self.all.get_mut(&attachment.id)
                && known.users.remove(task).is_some()
            {
                if known.volume.is_none() && known.users.is_empty() {
                    self.all.remove(&attachment.id);
                }
                self.look.insert(attachment.id);
                self.changed = true;
            }
        }
    }

    /// The volumes of a task.
    pub(crate) fn of(&self, task: &str) -> &[VolumeAttachment] {
        self.attached.get(task).map_or(&[], Vec::as_slice)
    }

    /// A volume for each mount of a task on a node; none if one can't be had.
    pub(crate) fn choose(&self, wanted: &[VolumeMount], node: &Node) -> Option<Vec<VolumeAttachment>> {
        let mut chosen: Vec<(&str, bool)> = Vec::new();
        let mut attachments = Vec::with_capacity(wanted.len());
        for mount in wanted {
            let (id, _) = self.named(&mount.source).find(|(id, known)| {
                known.volume.as_ref().is_some_and(|volume| {
                    let own = chosen.iter().filter(|(other, _)| other == id).map(|(_, read_only)| *read_only);
                    is_usable(volume, known, node, mount.read_only, own)
                        && self.has_room(volume, node, &chosen)
                })
            })?;
            chosen.push((id, mount.read_only));
            let (source, target) = (mount.source.clone(), mount.target.clone());
            attachments.push(VolumeAttachment { id: id.to_owned(), source, target });
        }
        Some(attachments)
    }

    /// The volumes that a source names, in the order of their ids.
    fn named<'a>(&'a self, source: &'a str) -> impl Iterator<Item = (&'a str, &'a Known)> {
        self.all.iter().map(|(id, known)| (id.as_str(), known)).filter(move |(_, known)| {
            known.volume.as_ref().is_some_and(|volume| match source.strip_prefix(GROUP) {
                Some(group) => volume.spec.group == group,
                None => volume.annotations().name == source,
            })
        })
    }

    /// The plug-in on the node can publish one volume more, if it is one more.
    fn has_room(&self, volume: &Volume, node: &Node, chosen: &[(&str, bool)]) -> bool {
        let Some(most) =
            plugin(volume, node).map(|plugin| plugin.max_volumes_per_node).filter(|most| *most > 0)
        else {
            return true;
        };
        let there = self.all.iter().filter(|(id, known)| {
            **id != volume.id
                && known.volume.as_ref().is_some_and(|other| driver(other) == driver(volume))
                && (known.users.values().any(|user| *user.node == *node.id)
                    || chosen.iter().any(|(other, _)| other == id))
        });
        (there.count() as i64) < most
    }

    /// Volumes that are published on nodes where nobody uses them any more, with those nodes.
    pub(crate) fn take_idle(&mut self) -> Vec<(String, Vec<String>)> {
        let mut idle = Vec::new();
        for id in std::mem::take(&mut self.look) {
            let Some(Known { volume: Some(volume), users }) = self.all.get(&id) else { continue };
            let nodes: Vec<String> = volume
                .publish_status
                .iter()
                .filter(|status| status.state() == volume_publish_status::State::Published)
                .filter(|status| !users.values().any(|user| *user.node == *status.node_id))
                .map(|status| status.node_id.clone())
                .collect();
            if !nodes.is_empty() {
                idle.push((id, nodes));
            }
        }
        idle
    }
}

fn driver(volume: &Volume) -> &str {
    volume.spec.driver.as_ref().map_or("", |driver| &driver.name)
}

fn plugin<'a>(volume: &Volume, node: &'a Node) -> Option<&'a swarm_api::v1::NodeCsiInfo> {
    let description = node.description.as_ref()?;
    description.csi_info.iter().find(|info| info.plugin_name == driver(volume))
}

/// A task on this node may have the volume beside those who have it, among them other mounts of its own.
fn is_usable(
    volume: &Volume,
    known: &Known,
    node: &Node,
    read_only: bool,
    own: impl Iterator<Item = bool>,
) -> bool {
    if volume.spec.availability() != volume_spec::VolumeAvailability::Active || volume.pending_delete {
        return false;
    }
    let mode = volume.spec.access_mode.clone().unwrap_or_default();
    let elsewhere = known.users.values().any(|user| *user.node != *node.id);
    if mode.scope() == Scope::SingleNode && elsewhere {
        return false;
    }
    let others = known.users.values().map(|user| user.read_only).chain(own);
    shares(&mode, read_only, others) && reaches(volume, node)
}

fn shares(mode: &VolumeAccessMode, read_only: bool, mut others: impl Iterator<Item = bool>) -> bool {
    match mode.sharing() {
        Sharing::None => others.next().is_none(),
        Sharing::ReadOnly => read_only,
        Sharing::OneWriter => read_only || others.all(|read_only| read_only),
        Sharing::All => true,
    }
}

/// The volume can be had on the node as far as topology goes.
fn reaches(volume: &Volume, node: &Node) -> bool {
    let Some(place) = plugin(volume, node).and_then(|plugin| plugin.accessible_topology.as_ref()) else {
        return true;
    };
    let places = volume.volume_info.as_ref().map_or(&[][..], |info| &info.accessible_topology);
    places.is_empty()
        || places.iter().any(|from| {
            from.segments.iter().all(|(segment, value)| place.segments.get(segment) == Some(value))
        })
}

/// A volume is to be published on a node, unless it is or was.
pub(crate) fn publish(volume: &str, node: &str) -> Write {
    let on = node.to_owned();
    edit(volume, "publish", move |volume| {
        let there = volume.publish_status.iter().any(|status| status.node_id == on);
        if !there {
            let state = volume_publish_status::State::PendingPublish as i32;
            volume.publish_status.push(VolumePublishStatus {
                node_id: on.clone(),
                state,
                ..Default::default()
            });
        }
        !there
    })
}

/// A volume is to leave these nodes.
pub(crate) fn unpublish(volume: &str, nodes: Vec<String>) -> Write {
    edit(volume, "unpublish", move |volume| {
        let published = volume.publish_status.iter_mut().filter(|status| {
            status.state() == volume_publish_status::State::Published && nodes.contains(&status.node_id)
        });
        let state = volume_publish_status::State::PendingNodeUnpublish as i32;
        published.map(|status| status.state = state).count() > 0
    })
}

/// A change of a volume that says whether there was any.
fn edit(id: &str, what: &'static str, change: impl Fn(&mut Volume) -> bool + Send + Sync + 'static) -> Write {
    let edit = move |object: &Object| {
        let Object::Volume(volume) = object else { return None };
        let mut volume = Volume::clone(volume);
        change(&mut volume).then(|| volume.into())
    };
    Write::Edit { kind: Kind::Volume, id: id.to_owned(), what, edit: Arc::new(edit) }
}
