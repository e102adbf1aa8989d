//! What a dry run foresees, case by case, and that it is what then happens.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use swarm_api::extensions::{DEPENDS_ON, PREEMPTION, PRIORITY, REBALANCE};
use swarm_api::swarmd::dry_run_response::{Ending, OnNode};
use swarm_api::swarmd::{DryRunResponse, ProcessSpec};
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::update_config::{FailureAction, UpdateOrder};
use swarm_api::v1::*;
use swarm_api::{Shared, duration};
use swarm_dry_run::{Change, Limits, dry_run, reconcilers};
use swarm_reconcile::sim::{Sim, node, service};
use swarm_reconcile::{SequentialIds, Stage};
use swarm_store::Store;

/// Identifiers that no task of the simulation has.
#[derive(Default)]
struct Ids(SequentialIds);

impl swarm_reconcile::IdSource for Ids {
    fn next(&mut self) -> String {
        format!("new{}", self.0.next())
    }
}

/// So many nodes with 4 CPUs, and a leader.
fn cluster(nodes: usize) -> Sim {
    let mut sim = Sim::new(|tx| {
        for n in 1..=nodes {
            drop(tx.create(big_node(&format!("n{n}"))).unwrap());
        }
    });
    sim.lead(reconcilers());
    sim.settle();
    sim
}

fn big_node(id: &str) -> Node {
    let resources = Resources { nano_cpus: 4_000_000_000, memory_bytes: 1 << 30, ..Default::default() };
    let mut node = node(id);
    node.description = Some(NodeDescription { resources: Some(resources), ..Default::default() });
    node
}

fn web(replicas: u64) -> Service {
    let mut web = service("web", replicas);
    web.spec.task.runtime = container("old");
    web
}

fn container(image: &str) -> Option<task_spec::Runtime> {
    Some(task_spec::Runtime::Container(ContainerSpec { image: image.into(), ..Default::default() }))
}

fn reserve(spec: &mut ServiceSpec, cpus: i64) {
    let reservations = Some(Resources { nano_cpus: cpus * 1_000_000_000, ..Default::default() });
    spec.task.resources = Some(ResourceRequirements { reservations, ..Default::default() });
}

fn constrain(spec: &mut ServiceSpec, constraint: &str) {
    spec.task.placement = Some(Placement { constraints: vec![constraint.into()], ..Default::default() });
}

/// What `UpdateService` makes of a service.
fn updated(old: &Service, change: impl Fn(&mut ServiceSpec)) -> Service {
    let mut new = old.clone();
    new.previous_spec = Some(new.spec.clone());
    new.previous_spec_version = new.spec_version;
    new.spec_version = Some(new.meta.version);
    new.update_status = None;
    if let Some(job) = &mut new.job_status {
        job.job_iteration.index += 1;
    }
    change(&mut new.spec);
    new
}

fn change(sim: &Sim, service: &Service) -> Change {
    let (view, fork) = (sim.view(), Store::fork(sim.view()));
    let stage = Stage::new(fork.clone(), sim.now().wall, Box::<SequentialIds>::default());
    let exists = view.services().get(&service.id).is_some();
    let write = |tx: &mut swarm_store::Tx| match exists {
        true => tx.update(service.clone()),
        false => tx.create(service.clone()),
    };
    let service = stage.write(write).unwrap();
    Change { view, fork, service }
}

fn run(sim: &Sim, service: &Service) -> DryRunResponse {
    let limits = Limits { tasks: usize::MAX, go_on: &|| true };
    dry_run(&change(sim, service), sim.now().wall, Box::<Ids>::default(), &limits)
}

fn run_update(sim: &Sim, id: &str, change: impl Fn(&mut ServiceSpec)) -> DryRunResponse {
    let old: Shared<Service> = sim.view().services().get(id).unwrap().clone();
    run(sim, &updated(&old, change))
}

fn create(sim: &mut Sim, service: Service) {
    sim.write(|tx| drop(tx.create(service.clone()).unwrap()));
    sim.settle();
}

/// Node, placed, replacing, kept, stopped, slots.
type Line<'a> = (&'a str, u64, u64, u64, u64, &'a str);

#[track_caller]
fn check_nodes(answer: &DryRunResponse, expected: &[Line<'_>]) {
    let slots = |node: &OnNode| {
        let ranges = node.slots.iter().map(|r| match r.first == r.last {
            true => r.first.to_string(),
            false => format!("{}-{}", r.first, r.last),
        });
        ranges.collect::<Vec<_>>().join(",")
    };
    let slots: Vec<String> = answer.nodes.iter().map(slots).collect();
    let found: Vec<Line<'_>> = answer
        .nodes
        .iter()
        .zip(&slots)
        .map(|(n, slots)| (n.node_id.as_str(), n.placed, n.replacing, n.kept, n.stopped, slots.as_str()))
        .collect();
    assert_eq!(found, expected, "{answer:#?}");
}

/// Placed, replaced, kept, stopped, refused, preempted.
#[track_caller]
fn check_totals(answer: &DryRunResponse, expected: [u64; 6]) {
    let a = answer;
    assert_eq!([a.placed, a.replaced, a.kept, a.stopped, a.refused, a.preempted], expected, "{a:#?}");
}

fn differences(answer: &DryRunResponse) -> Vec<(&str, u64)> {
    answer.differences.iter().map(|d| (d.what.as_str(), d.replaces)).collect()
}

fn seconds(answer: &DryRunResponse) -> Duration {
    duration::to_std(&answer.takes.unwrap())
}

#[test]
fn a_new_service_is_spread_evenly() {
    let sim = cluster(3);
    let answer = run(&sim, &web(6));
    check_totals(&answer, [6, 0, 0, 0, 0, 0]);
    let counts: Vec<u64> = answer.nodes.iter().map(|n| n.placed).collect();
    assert_eq!(counts, [2, 2, 2]);
    assert_eq!((answer.ending(), answer.index), (Ending::Settled, sim.view().index()));
    assert!(answer.differences.is_empty() && answer.pace.is_none() && answer.replacements.is_empty());
    assert_eq!(sim.view().services().len() + sim.view().tasks().len(), 0, "nothing is written");
}

#[test]
fn a_new_service_comes_to_what_was_foreseen() {
    let mut sim = cluster(3);
    create(&mut sim, service("other", 2));
    let mut web = web(8);
    reserve(&mut web.spec, 1);
    constrain(&mut web.spec, "node.id!=n2");
    let answer = run(&sim, &web);
    create(&mut sim, web);
    let foreseen: BTreeMap<String, usize> =
        answer.nodes.iter().map(|n| (n.node_id.clone(), n.placed as usize)).collect();
    assert_eq!(sim.running("web"), foreseen);
}

#[test]
fn tasks_without_room_say_why() {
    let sim = cluster(2);
    let mut web = web(11);
    reserve(&mut web.spec, 1);
    let answer = run(&sim, &web);
    check_totals(&answer, [8, 0, 0, 0, 3, 0]);
    let [refusal] = &answer.refusals[..] else { panic!("{answer:#?}") };
    assert_eq!(refusal.reason, "no suitable node (insufficient resources on 2 nodes)");
    assert_eq!((refusal.tasks, refusal.slots.iter().map(|r| r.last - r.first + 1).sum::<u64>()), (3, 3));
    assert_eq!(answer.ending(), Ending::Settled);
}

#[test]
fn a_constraint_that_no_node_fulfils_refuses_all() {
    let sim = cluster(2);
    let mut web = web(2);
    constrain(&mut web.spec, "node.labels.zone==moon");
    let answer = run(&sim, &web);
    check_totals(&answer, [0, 0, 0, 0, 2, 0]);
    assert_eq!(
        answer.refusals[0].reason,
        "no suitable node (scheduling constraints not satisfied on 2 nodes)"
    );
}

#[test]
fn another_image_replaces_every_task_one_after_the_other() {
    let mut sim = cluster(2);
    create(&mut sim, web(4));
    let delay = duration::from_std(Duration::from_secs(10));
    let update = UpdateConfig { parallelism: 2, delay, ..Default::default() };
    let answer = run_update(&sim, "web", |spec| {
        spec.task.runtime = container("new");
        spec.update = Some(update);
    });
    check_totals(&answer, [0, 4, 0, 0, 0, 0]);
    assert_eq!(differences(&answer), [("image: old → new", 4), ("pace of updates", 0)]);
    assert_eq!(answer.pace, Some(update));
    let at: Vec<u64> =
        answer.replacements.iter().map(|r| duration::to_std(&r.at.unwrap()).as_secs()).collect();
    assert_eq!(at, [0, 0, 10, 10]);
    assert_eq!(seconds(&answer), Duration::from_secs(10));
    for replacement in &answer.replacements {
        let old = sim.view().tasks().get(&replacement.task_id).cloned().unwrap();
        assert_eq!((old.slot, old.node_id.as_str()), (replacement.slot, replacement.node_id.as_str()));
        assert!(!replacement.new_node_id.is_empty());
    }
    assert_eq!(answer.ending(), Ending::Settled);
}

#[test]
fn what_changes_of_a_process_is_named() {
    let mut sim = cluster(2);
    for node in ["n1", "n2"] {
        sim.edit_node(node, |n| {
            let engine = n.description.get_or_insert_default().engine.get_or_insert_default();
            engine.labels.insert("swarmd.runtime.process".into(), "1".into());
        });
    }
    let process = ProcessSpec {
        command: vec!["serve".into()],
        args: vec!["old".into()],
        env: vec!["A=1".into()],
        ..Default::default()
    };
    let runtime = |process: &ProcessSpec| {
        let payload = Some(prost_types::Any::from_msg(process).unwrap());
        Some(task_spec::Runtime::Generic(GenericRuntimeSpec { kind: "process".into(), payload }))
    };
    let mut web = web(3);
    web.spec.task.runtime = runtime(&process);
    create(&mut sim, web);
    let check = |change: &dyn Fn(&mut ProcessSpec), expected: &[(&str, u64)]| {
        let mut new = process.clone();
        change(&mut new);
        let answer = run_update(&sim, "web", |spec| spec.task.runtime = runtime(&new));
        assert_eq!(differences(&answer), expected);
        check_totals(&answer, [0, 3, 0, 0, 0, 0]);
    };
    check(&|p| p.args = vec!["new".into()], &[("arguments", 3)]);
    check(&|p| p.env.clear(), &[("environment", 3)]);
    check(&|p| p.dir = "/srv".into(), &[("other settings of the process", 3)]);
    let several: &[_] = &[("command", 3), ("arguments", 3), ("other settings of the process", 3)];
    check(
        &|p| {
            p.command = vec!["serve-2".into()];
            p.args.clear();
            p.user = "www".into();
        },
        several,
    );
    let answer = run_update(&sim, "web", |spec| spec.task.runtime = container("web"));
    assert_eq!(differences(&answer), [("runtime", 3)]);
}

#[test]
fn more_and_fewer_replicas_are_changes_in_place() {
    let mut sim = cluster(2);
    create(&mut sim, web(4));
    let scale = |to| {
        move |spec: &mut ServiceSpec| spec.mode = Some(Mode::Replicated(ReplicatedService { replicas: to }))
    };
    let more = run_update(&sim, "web", scale(6));
    check_totals(&more, [2, 0, 4, 0, 0, 0]);
    assert_eq!(differences(&more), [("number of tasks: 4 → 6", 0)]);
    let slots: Vec<u64> = more.nodes.iter().flat_map(|n| &n.slots).map(|r| r.first).collect();
    assert_eq!(more.nodes.iter().map(|n| (n.placed, n.kept)).collect::<Vec<_>>(), [(1, 2), (1, 2)]);
    assert!(slots.contains(&5) && slots.contains(&6), "{slots:?}");
    let fewer = run_update(&sim, "web", scale(1));
    check_totals(&fewer, [0, 0, 1, 3, 0, 0]);
    let labels = run_update(&sim, "web", |spec| drop(spec.annotations.labels.insert("a".into(), "b".into())));
    check_totals(&labels, [0, 0, 4, 0, 0, 0]);
    assert_eq!(differences(&labels), [("labels", 0)]);
}

#[test]
fn another_constraint_replaces_only_those_that_stand_wrong() {
    let mut sim = cluster(2);
    create(&mut sim, web(4));
    let answer = run_update(&sim, "web", |spec| constrain(spec, "node.id==n1"));
    check_totals(&answer, [0, 2, 2, 0, 0, 0]);
    check_nodes(&answer, &[("n1", 0, 2, 2, 0, &slots_on(&sim, "n2")), ("n2", 0, 0, 0, 2, "")]);
    assert_eq!(differences(&answer), [("placement", 2)]);
}

#[test]
fn tasks_that_stand_wrong_are_replaced_at_the_pace_of_the_update() {
    let mut sim = cluster(2);
    create(&mut sim, web(6));
    let delay = duration::from_std(Duration::from_secs(10));
    let answer = run_update(&sim, "web", |spec| {
        constrain(spec, "node.id==n1");
        spec.update = Some(UpdateConfig { parallelism: 1, delay, ..Default::default() });
    });
    check_totals(&answer, [0, 3, 3, 0, 0, 0]);
    let at: Vec<u64> =
        answer.replacements.iter().map(|r| duration::to_std(&r.at.unwrap()).as_secs()).collect();
    assert_eq!(at, [0, 10, 20]);
}

#[test]
fn what_stands_wrong_already_gives_up_no_room() {
    let mut sim = cluster(2);
    let mut other = service("other", 1);
    reserve(&mut other.spec, 3);
    constrain(&mut other.spec, "node.id==n1");
    create(&mut sim, other);
    // Its update is halted, so its task stays where it is.
    sim.write(|tx| {
        let mut other = updated(tx.services().get("other").unwrap(), |spec| constrain(spec, "node.id==n2"));
        other.update_status =
            Some(UpdateStatus { state: update_status::UpdateState::Paused as i32, ..Default::default() });
        tx.update(other).unwrap();
    });
    sim.advance(Duration::from_secs(60));
    assert_eq!(sim.running("other"), BTreeMap::from([("n1".to_owned(), 1)]));
    let mut web = web(1);
    reserve(&mut web.spec, 3);
    constrain(&mut web.spec, "node.id==n1");
    check_totals(&run(&sim, &web), [0, 0, 0, 0, 1, 0]);
    create(&mut sim, web);
    sim.advance(Duration::from_secs(60));
    assert_eq!(sim.running("web").len(), 0);
}

fn spread_again(spec: &mut ServiceSpec) {
    spec.annotations.labels.insert(REBALANCE.into(), "auto".into());
}

#[test]
fn a_service_that_is_to_be_rebalanced_is_followed_until_it_is() {
    for delay in [0, 60] {
        let mut sim = cluster(2);
        let delay = duration::from_std(Duration::from_secs(delay));
        let pace = UpdateConfig { parallelism: 1, delay, ..Default::default() };
        let mut web = web(9);
        web.spec.update = Some(pace);
        create(&mut sim, web);
        sim.write(|tx| drop(tx.create(big_node("n3")).unwrap()));
        sim.advance(Duration::from_secs(60));
        let answer = run_update(&sim, "web", spread_again);
        check_totals(&answer, [0, 3, 6, 0, 0, 0]);
        assert_eq!((answer.pace, answer.ending()), (Some(pace), Ending::Settled));
        assert_eq!(differences(&answer), [("labels", 0)]);
        let at = answer.replacements.iter().map(|r| duration::to_std(&r.at.unwrap()).as_secs());
        let step = delay.seconds as u64;
        assert_eq!(at.collect::<Vec<_>>(), [10, 10 + step, 10 + 2 * step]);
        sim.update_service("web", spread_again);
        sim.advance(Duration::from_secs(600));
        let foreseen = answer.nodes.iter().map(|n| (n.node_id.clone(), (n.kept + n.replacing) as usize));
        assert_eq!(sim.running("web"), foreseen.collect::<BTreeMap<_, _>>());
    }
}

#[test]
fn after_an_update_a_service_is_rebalanced_too() {
    let mut sim = cluster(1);
    create(&mut sim, web(4));
    sim.write(|tx| drop(tx.create(big_node("n2")).unwrap()));
    sim.advance(Duration::from_secs(60));
    // One more goes to the new node, and that is not enough.
    let answer = run_update(&sim, "web", |spec| {
        spec.mode = Some(Mode::Replicated(ReplicatedService { replicas: 5 }));
        spread_again(spec);
    });
    check_totals(&answer, [1, 1, 3, 0, 0, 0]);
}

#[test]
fn an_even_service_that_is_to_be_rebalanced_is_at_rest_at_once() {
    let mut sim = cluster(2);
    create(&mut sim, web(4));
    let answer = run_update(&sim, "web", spread_again);
    check_totals(&answer, [0, 0, 4, 0, 0, 0]);
    assert_eq!(seconds(&answer), Duration::ZERO);
}

fn slots_on(sim: &Sim, node: &str) -> String {
    let slots: Vec<u64> = sim.tasks("web").iter().filter(|t| t.node_id == node).map(|t| t.slot).collect();
    match slots[..] {
        [a, b] if b == a + 1 => format!("{a}-{b}"),
        _ => slots.iter().map(u64::to_string).collect::<Vec<_>>().join(","),
    }
}

#[test]
fn an_update_that_finds_no_room_is_paused_or_rolled_back() {
    let mut sim = cluster(1);
    create(&mut sim, web(3));
    let too_big = |action: FailureAction, order: UpdateOrder| {
        run_update(&sim, "web", |spec| {
            reserve(spec, 5);
            let (failure_action, order) = (action as i32, order as i32);
            spec.update = Some(UpdateConfig { parallelism: 1, failure_action, order, ..Default::default() });
        })
    };
    let paused = too_big(FailureAction::Pause, UpdateOrder::StopFirst);
    assert_eq!(paused.ending(), Ending::Paused);
    check_totals(&paused, [0, 0, 2, 1, 1, 0]);
    assert_eq!(paused.refusals[0].reason, "no suitable node (insufficient resources on 1 node)");
    assert_eq!((paused.replacements.len(), paused.replacements[0].new_node_id.as_str()), (1, ""));
    let careful = too_big(FailureAction::Pause, UpdateOrder::StartFirst);
    check_totals(&careful, [0, 0, 3, 0, 1, 0]);
    let back = too_big(FailureAction::Rollback, UpdateOrder::StopFirst);
    assert_eq!(back.ending(), Ending::RolledBack, "{back:#?}");
    assert_eq!((back.kept, back.refused), (2, 1));
}

#[test]
fn start_first_needs_room_for_both() {
    let mut sim = cluster(1);
    let mut web = web(4);
    reserve(&mut web.spec, 1);
    create(&mut sim, web);
    let order = |order: UpdateOrder| {
        run_update(&sim, "web", move |spec| {
            spec.task.runtime = container("new");
            spec.update = Some(UpdateConfig { parallelism: 1, order: order as i32, ..Default::default() });
        })
    };
    check_totals(&order(UpdateOrder::StopFirst), [0, 4, 0, 0, 0, 0]);
    let both = order(UpdateOrder::StartFirst);
    assert_eq!((both.kept, both.refused, both.ending()), (4, 1, Ending::Paused));
}

#[test]
fn a_global_service_has_a_task_on_every_node_that_suits() {
    let mut sim = cluster(3);
    let mut all = service("all", 0);
    all.spec.mode = Some(Mode::Global(GlobalService {}));
    constrain(&mut all.spec, "node.id!=n3");
    check_nodes(&run(&sim, &all), &[("n1", 1, 0, 0, 0, ""), ("n2", 1, 0, 0, 0, "")]);
    create(&mut sim, all.clone());
    let answer = run_update(&sim, "all", |spec| spec.task.placement = None);
    check_nodes(&answer, &[("n1", 0, 0, 1, 0, ""), ("n2", 0, 0, 1, 0, ""), ("n3", 1, 0, 0, 0, "")]);
    let answer = run_update(&sim, "all", |spec| reserve(spec, 9));
    let nodes: Vec<&String> = answer.refusals.iter().flat_map(|r| &r.node_ids).collect();
    assert_eq!((answer.refused, nodes.len(), answer.ending()), (1, 1, Ending::Paused), "{answer:#?}");
}

#[test]
fn jobs_are_followed_until_they_have_completed() {
    let mut sim = cluster(2);
    let mut job = service("job", 0);
    job.job_status = Some(JobStatus::default());
    let mode = ReplicatedJob { max_concurrent: 2, total_completions: 5 };
    job.spec.mode = Some(Mode::ReplicatedJob(mode));
    let answer = run(&sim, &job);
    check_totals(&answer, [5, 0, 0, 0, 0, 0]);
    assert_eq!(answer.nodes.iter().map(|n| n.slots.len() as u64).max(), Some(3), "{answer:#?}");
    // Another run replaces what the present one has under way.
    sim.behaviour =
        Box::new(|task| (!task.status.reached(TaskState::Running)).then_some((TaskState::Running, "")));
    create(&mut sim, job);
    let again = run_update(&sim, "job", |spec| spec.task.force_update += 1);
    check_totals(&again, [3, 2, 0, 0, 0, 0]);
    assert_eq!(differences(&again), [("forced update", 2)]);
    let mut everywhere = service("everywhere", 0);
    everywhere.job_status = Some(JobStatus::default());
    everywhere.spec.mode = Some(Mode::GlobalJob(GlobalJob {}));
    check_nodes(&run(&sim, &everywhere), &[("n1", 1, 0, 0, 0, ""), ("n2", 1, 0, 0, 0, "")]);
}

#[test]
fn a_higher_priority_displaces_and_says_whom() {
    let mut sim = cluster(2);
    sim.write(|tx| {
        let mut cluster = tx.cluster().unwrap().clone();
        cluster.spec.annotations.labels.insert(PREEMPTION.into(), "on".into());
        tx.update(cluster).unwrap();
    });
    let mut low = service("low", 3);
    reserve(&mut low.spec, 2);
    create(&mut sim, low);
    let mut high = web(2);
    reserve(&mut high.spec, 3);
    check_totals(&run(&sim, &high), [0, 0, 0, 0, 2, 0]);
    high.spec.annotations.labels.insert(PRIORITY.into(), "5".into());
    let answer = run(&sim, &high);
    assert_eq!((answer.placed, answer.refused, answer.preempted), (2, 0, 3), "{answer:#?}");
    assert!(answer.preemptions.iter().all(|p| p.service_id == "low" && p.new_node_id.is_empty()));
    sim.write(|tx| drop(tx.create(big_node("n3")).unwrap()));
    sim.settle();
    let mut one = web(1);
    reserve(&mut one.spec, 3);
    one.spec.annotations.labels.insert(PRIORITY.into(), "5".into());
    assert_eq!(run(&sim, &one).preempted, 0, "where there is room nobody has to go");
}

#[test]
fn what_is_displaced_may_find_another_node() {
    let mut sim = cluster(2);
    sim.write(|tx| {
        let mut cluster = tx.cluster().unwrap().clone();
        cluster.spec.annotations.labels.insert(PREEMPTION.into(), "on".into());
        tx.update(cluster).unwrap();
    });
    let mut low = service("low", 1);
    reserve(&mut low.spec, 3);
    constrain(&mut low.spec, "node.id!=n2");
    create(&mut sim, low);
    sim.update_service("low", |spec| spec.task.placement = None);
    sim.settle();
    let mut high = web(1);
    reserve(&mut high.spec, 2);
    constrain(&mut high.spec, "node.id==n1");
    high.spec.annotations.labels.insert(PRIORITY.into(), "5".into());
    let answer = run(&sim, &high);
    let moves: Vec<_> =
        answer.preemptions.iter().map(|p| (p.node_id.as_str(), p.new_node_id.as_str())).collect();
    assert_eq!((answer.placed, moves), (1, vec![("n1", "n2")]), "{answer:#?}");
}

#[test]
fn a_node_that_does_not_answer_holds_an_update_up() {
    let mut sim = cluster(2);
    create(&mut sim, web(2));
    sim.edit_node("n2", |n| n.status.state = node_status::State::Disconnected as i32);
    sim.settle();
    let answer = run_update(&sim, "web", |spec| spec.task.runtime = container("new"));
    check_totals(&answer, [0, 2, 0, 0, 0, 0]);
    assert_eq!(seconds(&answer), Duration::from_secs(60), "nobody waits longer for the end of a task");
}

#[test]
fn many_tasks_are_replaced_one_by_one() {
    let mut sim = cluster(10);
    create(&mut sim, web(500));
    let answer = run_update(&sim, "web", |spec| spec.task.runtime = container("new"));
    check_totals(&answer, [0, 500, 0, 0, 0, 0]);
    let slots: Vec<u64> = answer.replacements.iter().map(|r| r.slot).collect();
    assert_eq!(slots, (1..=500).collect::<Vec<_>>());
}

#[test]
fn it_is_cut_off_when_it_takes_too_much() {
    let sim = cluster(2);
    let cut = |tasks, go_on: &dyn Fn() -> bool| {
        let limits = Limits { tasks, go_on };
        dry_run(&change(&sim, &web(30_000)), sim.now().wall, Box::<Ids>::default(), &limits)
    };
    let many = cut(15_000, &|| true);
    assert_eq!(many.ending(), Ending::CutOff);
    assert!(many.message.contains("too many new tasks"), "{}", many.message);
    assert!(many.placed + many.refused < 30_000, "{}", many.placed);
    let slow = cut(usize::MAX, &|| false);
    assert_eq!((slow.ending(), slow.placed), (Ending::CutOff, 0));
}

#[test]
fn many_replicas_are_foreseen() {
    let sim = cluster(50);
    let answer = run(&sim, &web(20_000));
    check_totals(&answer, [20_000, 0, 0, 0, 0, 0]);
    assert!(answer.nodes.iter().all(|n| n.placed == 400));
}

#[test]
fn other_services_stand_still() {
    let mut sim = cluster(2);
    sim.silent = vec!["n1".into(), "n2".into()];
    create(&mut sim, service("other", 4));
    let before = sim.view().index();
    let answer = run(&sim, &web(2));
    check_totals(&answer, [2, 0, 0, 0, 0, 0]);
    assert_eq!(sim.view().index(), before);
}

#[test]
fn a_service_that_waits_for_another_is_shown_as_waiting_and_where_it_goes_then() {
    let mut sim = cluster(2);
    create(&mut sim, service("db", 0));
    let mut new = web(3);
    new.spec.annotations.labels.insert(DEPENDS_ON.into(), "db:healthy".into());
    let answer = run(&sim, &new);
    assert_eq!(answer.ending(), Ending::Settled);
    check_totals(&answer, [3, 0, 0, 0, 0, 0]);
    assert_eq!((answer.waiting, answer.waits.len()), (3, 1), "{answer:#?}");
    let waits = &answer.waits[0];
    assert_eq!((waits.reason.as_str(), waits.tasks), ("waiting for service db (it has no tasks)", 3));
    assert_eq!(waits.slots.iter().map(|r| (r.first, r.last)).collect::<Vec<_>>(), [(1, 3)]);

    // An update waits with its first task; what was there goes on until then.
    sim.update_service("db", |spec| spec.mode = Some(Mode::Replicated(ReplicatedService { replicas: 1 })));
    sim.settle();
    create(&mut sim, web(2));
    sim.update_service("db", |spec| spec.mode = Some(Mode::Replicated(ReplicatedService { replicas: 2 })));
    let answer = run_update(&sim, "web", |spec| {
        spec.task.runtime = container("new");
        spec.annotations.labels.insert(DEPENDS_ON.into(), "db:healthy".into());
    });
    check_totals(&answer, [0, 2, 0, 0, 0, 0]);
    assert_eq!(answer.waits[0].reason, "waiting for service db (1 of 2 tasks healthy)");
    assert_eq!(answer.ending(), Ending::Settled);
}
