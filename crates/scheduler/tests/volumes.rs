//! Cluster volumes: who gets which, and what becomes of them.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use swarm_api::extensions::{PLACEMENT_STRATEGY, PRIORITY};
use swarm_api::v1::volume_access_mode::{Scope, Sharing};
use swarm_api::v1::volume_publish_status::State as Published;
use swarm_api::v1::volume_spec::VolumeAvailability;
use swarm_api::v1::{
    Driver, Mount, Node, NodeCsiInfo, Task, TaskState, Topology, Volume, VolumeAccessMode, VolumeInfo, mount,
};
use world::{World, container, description, has, wants};

const WHY: &str = "no suitable node (cannot fulfill requested CSI volume mounts on 1 node)";

fn volume(world: &mut World, id: &str, change: impl Fn(&mut Volume) + Send + Sync) {
    world.sim.write(|tx| {
        let mut volume = Volume { id: id.into(), ..Default::default() };
        volume.spec.annotations.name = format!("name-of-{id}");
        volume.spec.driver = Some(Driver { name: "plugin".into(), ..Default::default() });
        let mode = VolumeAccessMode {
            scope: Scope::MultiNode as i32,
            sharing: Sharing::All as i32,
            access_type: None,
        };
        volume.spec.access_mode = Some(mode);
        volume.volume_info = Some(VolumeInfo { volume_id: format!("csi-{id}"), ..Default::default() });
        change(&mut volume);
        drop(tx.create(volume).unwrap());
    });
    world.sim.think();
}

fn edit(world: &mut World, id: &str, change: impl Fn(&mut Volume) + Send + Sync) {
    world.sim.write(|tx| {
        let mut volume = tx.volumes().get(id).unwrap().clone();
        change(&mut volume);
        drop(tx.update(volume).unwrap());
    });
    world.sim.think();
}

fn mounts(task: &mut Task, source: &str, target: &str, read_only: bool) {
    container(task).mounts.push(Mount {
        r#type: mount::Type::Cluster as i32,
        source: source.into(),
        target: target.into(),
        readonly: read_only,
        ..Default::default()
    });
}

fn writes(task: &mut Task, source: &str) {
    mounts(task, source, "/data", false);
}

fn reads(task: &mut Task, source: &str) {
    mounts(task, source, "/data", true);
}

/// Nodes on which a volume is or is to be, with the state.
fn published(world: &World, id: &str) -> Vec<(String, Published)> {
    let volume = world.sim.view().volumes().get(id).unwrap().clone();
    volume.publish_status.iter().map(|s| (s.node_id.clone(), s.state())).collect()
}

fn sharing(scope: Scope, sharing: Sharing) -> impl Fn(&mut Volume) + Send + Sync {
    move |v| {
        v.spec.access_mode =
            Some(VolumeAccessMode { scope: scope as i32, sharing: sharing as i32, access_type: None });
    }
}

#[test]
fn an_assignment_takes_its_volume_along() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    volume(&mut world, "v1", |_| {});
    world.task("s", "t1", |t| writes(t, "name-of-v1"));
    world.runs_on("t1", "n1");
    let task = world.get("t1");
    let [attachment] = &task.volumes[..] else { panic!("one volume") };
    assert_eq!((&*attachment.id, &*attachment.source, &*attachment.target), ("v1", "name-of-v1", "/data"));
    assert_eq!(published(&world, "v1"), [("n1".to_owned(), Published::PendingPublish)]);
    // A second user changes nothing of that.
    world.task("s", "t2", |t| writes(t, "name-of-v1"));
    world.runs_on("t2", "n1");
    assert_eq!(published(&world, "v1").len(), 1);
}

#[test]
fn a_task_waits_until_its_volume_can_be_had() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    world.task("s", "t1", |t| writes(t, "name-of-v1"));
    world.waits("t1", WHY);
    // Not made by its plug-in yet, then paused.
    volume(&mut world, "v1", |v| {
        v.volume_info = None;
        v.spec.availability = VolumeAvailability::Pause as i32;
    });
    world.waits("t1", WHY);
    edit(&mut world, "v1", |v| {
        v.volume_info = Some(VolumeInfo { volume_id: "csi".into(), ..Default::default() });
    });
    world.waits("t1", WHY);
    edit(&mut world, "v1", |v| v.spec.availability = VolumeAvailability::Active as i32);
    world.runs_on("t1", "n1");
}

#[test]
fn every_mount_must_be_fulfilled() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    volume(&mut world, "v1", |_| {});
    world.task("s", "t1", |t| {
        writes(t, "name-of-v1");
        mounts(t, "name-of-v2", "/more", false);
    });
    world.waits("t1", WHY);
    volume(&mut world, "v2", |_| {});
    world.runs_on("t1", "n1");
    assert_eq!(world.get("t1").volumes.len(), 2);
}

#[test]
fn global_tasks_get_volumes_too() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    world.task("s", "t1", |t| {
        t.node_id = "n1".into();
        writes(t, "name-of-v1");
    });
    world.waits("t1", "cannot fulfill requested CSI volume mounts on 1 node");
    volume(&mut world, "v1", |_| {});
    world.runs_on("t1", "n1");
    assert_eq!(world.get("t1").volumes.len(), 1);
}

/// Whether a second task finds a place beside a first one, which is on one of two nodes.
#[track_caller]
fn check(mode: impl Fn(&mut Volume) + Send + Sync, first_reads: bool, second_reads: bool, expected: &[&str]) {
    let mut world = World::new();
    world.nodes(&["n1", "n2"]);
    volume(&mut world, "v1", mode);
    world.task("a", "t1", |t| mounts(t, "name-of-v1", "/data", first_reads));
    let on = world.on("t1");
    world.task("b", "t2", |t| mounts(t, "name-of-v1", "/data", second_reads));
    let got: &[&str] = match world.on("t2") {
        node if node.is_empty() => &[],
        node if node == on => &["same"],
        _ => &["other"],
    };
    assert_eq!(got, expected);
}

#[test]
fn volumes_are_shared_as_their_mode_says() {
    use Scope::{MultiNode, SingleNode};
    // The emptier node is preferred, where the volume may be on both.
    check(sharing(MultiNode, Sharing::All), false, false, &["other"]);
    check(sharing(SingleNode, Sharing::All), false, false, &["same"]);
    check(sharing(MultiNode, Sharing::None), false, false, &[]);
    check(sharing(MultiNode, Sharing::None), true, true, &[]);
    check(sharing(MultiNode, Sharing::OneWriter), false, false, &[]);
    check(sharing(MultiNode, Sharing::OneWriter), false, true, &["other"]);
    check(sharing(MultiNode, Sharing::OneWriter), true, false, &["other"]);
    check(sharing(SingleNode, Sharing::OneWriter), true, false, &["same"]);
    check(sharing(MultiNode, Sharing::ReadOnly), true, true, &["other"]);
    check(sharing(MultiNode, Sharing::ReadOnly), true, false, &[]);
}

fn plugin(node: &mut Node, zone: Option<&str>, most: i64) {
    let place = zone.map(|zone| Topology { segments: [("zone".to_owned(), zone.to_owned())].into() });
    description(node).csi_info.push(NodeCsiInfo {
        plugin_name: "plugin".into(),
        node_id: "as the plug-in calls it".into(),
        max_volumes_per_node: most,
        accessible_topology: place,
    });
}

#[test]
fn a_volume_is_had_only_where_it_reaches() {
    let mut world = World::new();
    world.node("n1", |n| plugin(n, Some("a"), 0));
    world.node("n2", |n| plugin(n, Some("b"), 0));
    let in_zone = |zone: &str| Topology { segments: [("zone".to_owned(), zone.to_owned())].into() };
    volume(&mut world, "v1", |v| v.volume_info.as_mut().unwrap().accessible_topology = vec![in_zone("b")]);
    world.replicas("s", 3, |t| writes(t, "name-of-v1"));
    assert_eq!(world.spread("s"), [("n2".to_owned(), 3)].into());
    // One that reaches nowhere in particular is had anywhere, and so is any on a node that says nothing.
    volume(&mut world, "v2", |_| {});
    world.replicas("t", 2, |t| writes(t, "name-of-v2"));
    assert_eq!(world.shares("t"), [1, 1]);
    world.nodes(&["n3"]);
    world.replicas("u", 1, |t| writes(t, "name-of-v1"));
    assert_eq!(world.spread("u"), [("n3".to_owned(), 1)].into());
}

#[test]
fn a_plug_in_publishes_no_more_volumes_on_a_node_than_it_can() {
    let mut world = World::new();
    world.node("n1", |n| plugin(n, None, 1));
    volume(&mut world, "v1", |_| {});
    volume(&mut world, "v2", |_| {});
    world.task("s", "t1", |t| writes(t, "name-of-v1"));
    world.task("s", "t2", |t| writes(t, "name-of-v1"));
    world.runs_on("t2", "n1");
    world.task("u", "t3", |t| writes(t, "name-of-v2"));
    world.waits("t3", WHY);
}

#[test]
fn a_group_gives_one_of_its_volumes() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    for id in ["v1", "v2", "v3"] {
        volume(&mut world, id, |v| {
            sharing(Scope::MultiNode, Sharing::None)(v);
            v.spec.group = if id == "v3" { "others" } else { "ours" }.into();
        });
    }
    for id in ["t1", "t2", "t3"] {
        world.task("s", id, |t| writes(t, "group:ours"));
    }
    let got: Vec<String> = ["t1", "t2"].iter().map(|id| world.get(id).volumes[0].id.clone()).collect();
    assert_eq!(got, ["v1", "v2"]);
    assert_eq!(world.get("t1").volumes[0].source, "group:ours");
    world.waits("t3", WHY);
    // When one is free again, who waits gets it.
    world.report("t1", TaskState::Running);
    world.report("t1", TaskState::Complete);
    assert_eq!(world.get("t3").volumes[0].id, "v1");
}

#[test]
fn a_volume_leaves_a_node_with_its_last_user_there() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    volume(&mut world, "v1", |_| {});
    for id in ["t1", "t2"] {
        world.task("s", id, |t| reads(t, "name-of-v1"));
        world.report(id, TaskState::Running);
    }
    edit(&mut world, "v1", |v| v.publish_status[0].state = Published::Published as i32);
    world.report("t1", TaskState::Failed);
    assert_eq!(published(&world, "v1")[0].1, Published::Published);
    world.remove_task("t2");
    assert_eq!(published(&world, "v1")[0].1, Published::PendingNodeUnpublish);
}

#[test]
fn a_new_leader_knows_who_has_which_volume() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    volume(&mut world, "v1", sharing(Scope::MultiNode, Sharing::None));
    world.task("s", "t1", |t| writes(t, "name-of-v1"));
    world.report("t1", TaskState::Running);
    edit(&mut world, "v1", |v| v.publish_status[0].state = Published::Published as i32);
    world.task("s", "t2", |t| writes(t, "name-of-v1"));
    world.lead();
    world.waits("t2", WHY);
    assert_eq!(published(&world, "v1")[0].1, Published::Published);
    // One whose user is gone is known to be free.
    world.report("t1", TaskState::Complete);
    world.lead();
    world.runs_on("t2", "n1");
}

#[test]
fn a_volume_that_is_drained_meanwhile_is_not_taken() {
    let mut world = World::new();
    world.node("n1", |n| world::has(n, 1, 0, vec![]));
    volume(&mut world, "v1", |_| {});
    world.service("s", &Default::default());
    let mut task = world::task("s", "t1", 1);
    world::wants(&mut task, 1, 0, vec![]);
    writes(&mut task, "name-of-v1");
    world.sim.write(|tx| drop(tx.create(task.clone()).unwrap()));
    let batches = world.sim.decide();
    // Between the decision and its transaction.
    world.sim.write(|tx| {
        let mut volume = tx.volumes().get("v1").unwrap().clone();
        volume.spec.availability = VolumeAvailability::Drain as i32;
        drop(tx.update(volume).unwrap());
    });
    batches.into_iter().for_each(|batch| world.sim.commit(batch));
    world.sim.think();
    world.waits("t1", WHY);
    assert_eq!(published(&world, "v1"), []);
    // What the decision had taken is free for others.
    world.task("u", "t2", |t| world::wants(t, 1, 0, vec![]));
    world.runs_on("t2", "n1");
}

#[test]
fn tasks_lose_a_volume_that_is_drained_and_not_one_that_is_paused() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    volume(&mut world, "v1", |_| {});
    for id in ["t1", "t2"] {
        world.task("s", id, |t| writes(t, "name-of-v1"));
        world.report(id, TaskState::Running);
    }
    world.report("t2", TaskState::Complete);
    edit(&mut world, "v1", |v| v.spec.availability = VolumeAvailability::Pause as i32);
    assert_eq!(world.state("t1"), TaskState::Running);
    edit(&mut world, "v1", |v| v.spec.availability = VolumeAvailability::Drain as i32);
    let task = world.get("t1");
    assert_eq!(task.status.state(), TaskState::Rejected);
    assert_eq!(task.status.message, "task rejected by volume enforcer");
    assert_eq!(task.status.err, "attached to volume which is being drained");
    assert_eq!(task.desired_state(), TaskState::Running);
    assert_eq!(world.state("t2"), TaskState::Complete);
}

/// A second rejection would be impossible, and for such a mistake the leader decides nothing for a while.
#[test]
fn a_task_that_loses_two_volumes_at_once_is_rejected_once() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    volume(&mut world, "v1", |_| {});
    volume(&mut world, "v2", |_| {});
    world.task("s", "t1", |t| {
        writes(t, "name-of-v1");
        mounts(t, "name-of-v2", "/more", false);
    });
    world.report("t1", TaskState::Running);
    assert_eq!(world.get("t1").volumes.len(), 2);
    world.sim.write(|tx| {
        for id in ["v1", "v2"] {
            let mut volume = tx.volumes().get(id).unwrap().clone();
            volume.spec.availability = VolumeAvailability::Drain as i32;
            drop(tx.update(volume).unwrap());
        }
    });
    world.sim.think();
    let task = world.get("t1");
    assert_eq!(task.status.state(), TaskState::Rejected);
    assert_eq!(task.status.message, "task rejected by volume enforcer");
    world.task("u", "t2", |_| {});
    world.runs_on("t2", "n1");
    assert_eq!(world.sim.refused, 0);
}

/// While its end was decided nobody minded.
#[test]
fn a_task_that_is_wanted_after_all_loses_a_volume_that_was_drained_meanwhile() {
    let mut world = World::new();
    world.nodes(&["n1"]);
    volume(&mut world, "v1", |_| {});
    world.task("s", "t1", |t| writes(t, "name-of-v1"));
    world.report("t1", TaskState::Running);
    world.edit_task("t1", |t| t.desired_state = TaskState::Shutdown as i32);
    edit(&mut world, "v1", |v| v.spec.availability = VolumeAvailability::Drain as i32);
    assert_eq!(world.state("t1"), TaskState::Running);
    world.edit_task("t1", |t| t.desired_state = TaskState::Running as i32);
    assert_eq!(world.state("t1"), TaskState::Rejected);
}

/// How many tasks of three nodes get a volume that was not there when they came, on how many nodes. Each that is assigned has one.
#[track_caller]
fn check_late(
    strategy: &str,
    source: &str,
    volumes: &[&str],
    mode: (Scope, Sharing),
    expected: (usize, usize),
) {
    for first in [false, true] {
        let mut world = World::new();
        world.nodes(&["n1", "n2", "n3"]);
        world.labelled_service("s", PLACEMENT_STRATEGY, strategy);
        let make = |world: &mut World| {
            for id in volumes {
                volume(world, id, |v| {
                    sharing(mode.0, mode.1)(v);
                    v.spec.group = "ours".into();
                });
            }
        };
        if first {
            make(&mut world);
        }
        world.replicas("s", 4, |t| writes(t, source));
        if !first {
            make(&mut world);
        }
        let tasks = world.sim.tasks("s");
        let assigned = tasks.iter().filter(|t| t.status.reached(TaskState::Assigned));
        let without: Vec<&str> = assigned.filter(|t| t.volumes.is_empty()).map(|t| t.id.as_str()).collect();
        assert!(without.is_empty(), "{strategy} {mode:?}: without a volume: {without:?}");
        let spread = world.spread("s");
        assert_eq!((spread.values().sum(), spread.len()), expected, "{strategy} {mode:?} {first}");
    }
}

#[test]
fn what_one_task_took_of_a_volume_no_other_gets_wherever_nodes_are_chosen_from() {
    for strategy in ["spread", "binpack"] {
        check_late(strategy, "name-of-v1", &["v1"], (Scope::MultiNode, Sharing::None), (1, 1));
        check_late(strategy, "name-of-v1", &["v1"], (Scope::MultiNode, Sharing::OneWriter), (1, 1));
        check_late(strategy, "name-of-v1", &["v1"], (Scope::SingleNode, Sharing::All), (4, 1));
    }
    let none = (Scope::SingleNode, Sharing::None);
    check_late("spread", "group:ours", &["v1", "v2"], none, (2, 2));
    check_late("binpack", "group:ours", &["v1", "v2"], none, (2, 1));
}

#[test]
fn no_volume_is_given_twice_on_nodes_where_a_service_keeps_failing() {
    let mut world = World::new();
    world.nodes(&["n1", "n2"]);
    for i in 0..10 {
        let id = format!("f{i}");
        world.task("s", &id, |_| {});
        world.report(&id, TaskState::Failed);
    }
    volume(&mut world, "v1", sharing(Scope::MultiNode, Sharing::None));
    world.tasks("s", &["t1", "t2"], |t| writes(t, "name-of-v1"));
    let given = ["t1", "t2"].map(|id| (world.state(id), world.get(id).volumes.len()));
    assert_eq!(given, [(TaskState::Assigned, 1), (TaskState::Pending, 0)]);
}

#[test]
fn a_volume_that_is_claimed_displaces_nobody_a_second_time() {
    let mut world = World::new();
    world.node("n1", |n| has(n, 10, 0, vec![]));
    volume(&mut world, "v1", sharing(Scope::MultiNode, Sharing::None));
    for id in ["a", "b"] {
        world.task("low", id, |t| wants(t, 5, 0, vec![]));
        world.report(id, TaskState::Running);
    }
    world.allow_preemption();
    world.labelled_service("high", PRIORITY, "5");
    world.tasks("high", &["t", "u"], |t| {
        wants(t, 5, 0, vec![]);
        writes(t, "name-of-v1");
    });
    world.pass(Duration::from_secs(200));
    world.runs_on("t", "n1");
    assert_eq!(world.get("t").volumes.len(), 1);
    assert_eq!(world.state("u"), TaskState::Pending);
    let running = ["a", "b"].iter().filter(|id| world.state(id) == TaskState::Running).count();
    assert_eq!(running, 1);
}
