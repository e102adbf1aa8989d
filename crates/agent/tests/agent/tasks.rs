use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use swarm_api::v1::{
    GenericRuntimeSpec, Secret, SecretReference, Task, TaskState, node_status, task_spec, task_status,
};
use swarm_executor_sim::{Behaviour, Delay, Run, SimExecutor};
use tokio::time::Instant;

use crate::cluster::*;

/// The raw database. sled lets go of its lock some time after it was closed.
fn raw(path: &Path) -> sled::Db {
    let begin = std::time::Instant::now();
    loop {
        match sled::open(path) {
            Err(sled::Error::Io(_)) if begin.elapsed() < Duration::from_secs(60) => std::thread::yield_now(),
            result => return result.unwrap(),
        }
    }
}

fn exit_code(status: &swarm_api::v1::TaskStatus) -> i32 {
    match &status.runtime_status {
        Some(task_status::RuntimeStatus::Container(container)) => container.exit_code,
        None => panic!("no container status"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_assigned_task_runs_and_is_reported() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    cluster.create(task("t", "n1")).await;
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.until_state("t", TaskState::Running).await;
    let status = cluster.status("t");
    assert_eq!((status.message.as_str(), status.err.as_str()), ("started", ""));
    assert!(status.timestamp.is_some());
    assert_eq!(cluster.world.running("t"), 1);
    let view = cluster.store.view();
    let node = view.nodes().get("n1").unwrap();
    assert_eq!(node.status.state(), node_status::State::Ready);
    let description = node.description.as_ref().unwrap();
    assert_eq!(description.hostname, "host-n1");
    let engine = description.engine.as_ref().unwrap();
    assert_eq!(engine.labels["swarmd.runtime.container"], "1");
    assert_eq!(engine.labels["swarmd.exec"], "1");
    assert_eq!(description.resources.as_ref().unwrap().nano_cpus, 8_000_000_000);
    agent.stop().await;
    cluster.world.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ends_reports_its_exit_code() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.create(with_env(task("good", "n1"), &["SIM_RUN=3000"])).await;
    cluster.create(with_env(task("bad", "n1"), &["SIM_RUN=3000", "SIM_EXIT=3"])).await;
    cluster.until_state("good", TaskState::Complete).await;
    assert_eq!(cluster.status("good").message, "finished");
    cluster.until_state("bad", TaskState::Failed).await;
    let status = cluster.status("bad");
    assert_eq!((status.message.as_str(), status.err.as_str()), ("started", "task: non-zero exit (3)"));
    assert_eq!(exit_code(&status), 3);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_has_ended_is_kept_from_running_again() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.create(task("lives", "n1")).await;
    cluster.create(with_env(task("t", "n1"), &["SIM_RUN=3000", "SIM_EXIT=3"])).await;
    cluster.until_state("t", TaskState::Failed).await;
    cluster.until_state("lives", TaskState::Running).await;
    let ends_again = async || {
        cluster.world.start_again("t");
        assert_eq!(cluster.world.running("t"), 1);
        let ended = async {
            while cluster.world.running("t") > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it goes on");
    };
    ends_again().await;
    ends_again().await;
    // Also when it is wanted otherwise.
    cluster.want("t", TaskState::Shutdown).await;
    cluster
        .until("it to be seen", |view| {
            view.tasks().get("t").is_some_and(|task| task.desired_state() == TaskState::Shutdown)
        })
        .await;
    ends_again().await;
    agent.stop().await;
    // And by an agent that finds it so.
    let agent = cluster.agent("n1", dir.path()).await;
    ends_again().await;
    assert_eq!(cluster.status("t").state(), TaskState::Failed);
    assert_eq!(cluster.world.running("lives"), 1, "what lives is left alone");
    agent.stop().await;
    cluster.world.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_not_wanted_is_shut_down_at_once() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.create(task("t", "n1")).await;
    cluster.until_state("t", TaskState::Running).await;
    let begin = Instant::now();
    cluster.want("t", TaskState::Shutdown).await;
    cluster.until_state("t", TaskState::Shutdown).await;
    assert!(begin.elapsed() < Duration::from_millis(300), "{:?}", begin.elapsed());
    assert_eq!(exit_code(&cluster.status("t")), 143);
    assert_eq!(cluster.world.running("t"), 0);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_grace_period_is_not_begun_anew() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let stop = Delay::fixed(Duration::from_secs(10));
    cluster.world.set_behaviour(Behaviour { stop, ..Default::default() });
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.create(task("t", "n1")).await;
    cluster.until_state("t", TaskState::Running).await;
    let begin = Instant::now();
    cluster.want("t", TaskState::Shutdown).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.want("t", TaskState::Remove).await;
    cluster.until_state("t", TaskState::Shutdown).await;
    assert!(begin.elapsed() < Duration::from_millis(10_500), "{:?}", begin.elapsed());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_preparation_is_cancelled_when_the_task_is_not_wanted_any_more() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let prepare = Delay::fixed(Duration::from_secs(3600));
    cluster.world.set_behaviour(Behaviour { prepare, ..Default::default() });
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.create(task("t", "n1")).await;
    cluster.until_state("t", TaskState::Preparing).await;
    cluster.want("t", TaskState::Shutdown).await;
    cluster.until_state("t", TaskState::Shutdown).await;
    assert!(cluster.world.containers_on("n1").is_empty());
    agent.stop().await;
}

// 124
#[tokio::test(start_paused = true)]
async fn a_lower_desired_state_is_ignored() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let long = Delay::fixed(Duration::from_secs(10));
    cluster.world.set_behaviour(Behaviour { prepare: long, stop: long, ..Default::default() });
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.create(task("t", "n1")).await;
    cluster.until_state("t", TaskState::Preparing).await;
    cluster.want("t", TaskState::Ready).await;
    cluster.until_state("t", TaskState::Running).await;
    cluster.want("t", TaskState::Shutdown).await;
    // It is being asked to stop.
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.want("t", TaskState::Running).await;
    cluster.until_state("t", TaskState::Shutdown).await;
    assert_eq!((cluster.world.starts("t"), cluster.world.running("t")), (1, 0));
    agent.stop().await;
    cluster.world.assert_sound();
}

// 117
#[tokio::test(start_paused = true)]
async fn a_preparation_that_fails_rejects_the_task_and_says_what_it_was_at() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    cluster.world.set_behaviour(Behaviour { prepare_fails: 1.0, ..Default::default() });
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.create(task("t", "n1")).await;
    cluster.until_state("t", TaskState::Rejected).await;
    let status = cluster.status("t");
    assert_eq!((status.message.as_str(), status.err.as_str()), ("preparing", "simulated failure"));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_task_leaves_nothing() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.create(task("t", "n1")).await;
    cluster.until_state("t", TaskState::Running).await;
    cluster.world.set_behaviour(Behaviour { away: true, ..Default::default() });
    cluster.remove::<Task>("t").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(cluster.world.containers_on("n1"), ["t"], "the engine is away");
    cluster.world.set_behaviour(Behaviour::default());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(cluster.world.containers_on("n1").is_empty(), "the removal is tried again");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_away_is_waited_for() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let agent = cluster.agent("n1", dir.path()).await;
    agent.handle.ready().await;
    cluster.world.set_behaviour(Behaviour { away: true, ..Default::default() });
    cluster.create(task("t", "n1")).await;
    let shown = |view: &swarm_store::View| {
        view.tasks().get("t").is_some_and(|t| t.status.err == "the simulated engine is away")
    };
    cluster.until("the error is shown", shown).await;
    assert_eq!(cluster.status("t").state(), TaskState::Preparing);
    tokio::time::sleep(Duration::from_secs(120)).await;
    cluster.world.set_behaviour(Behaviour::default());
    let begin = Instant::now();
    cluster.until_state("t", TaskState::Running).await;
    assert!(begin.elapsed() < Duration::from_secs(9));
    assert_eq!(cluster.status("t").err, "");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_running_task_survives_an_engine_that_goes_away() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.create(task("t", "n1")).await;
    cluster.until_state("t", TaskState::Running).await;
    cluster.world.set_behaviour(Behaviour { away: true, ..Default::default() });
    let err = |view: &swarm_store::View| view.tasks().get("t").unwrap().status.err.clone();
    cluster.until("the error is shown", |v| err(v) == "the simulated engine is away").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    cluster.world.set_behaviour(Behaviour::default());
    cluster.until("the error is gone", |v| err(v).is_empty()).await;
    assert_eq!(cluster.status("t").state(), TaskState::Running);
    agent.stop().await;
    cluster.world.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn what_this_node_can_not_run_is_rejected() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let agent = cluster.agent("n1", dir.path()).await;
    let mut other = task("other", "n1");
    other.spec.runtime = Some(task_spec::Runtime::Generic(GenericRuntimeSpec {
        kind: "process".into(),
        ..Default::default()
    }));
    cluster.create(other).await;
    let mut label = task("label", "n1");
    if let Some(task_spec::Runtime::Container(container)) = &mut label.spec.runtime {
        container.labels.insert("swarmd.of-tomorrow".into(), "1".into());
    }
    cluster.create(label).await;
    for (id, err) in [
        ("other", "exec: unsupported runtime"),
        ("label", "this node does not know the extension swarmd.of-tomorrow"),
    ] {
        cluster.until_state(id, TaskState::Rejected).await;
        let status = cluster.status(id);
        assert_eq!((status.message.as_str(), status.err.as_str()), ("resolving controller failed", err));
    }
    // Once they are deleted, nothing of them stays.
    cluster.remove::<Task>("other").await;
    cluster.remove::<Task>("label").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    agent.stop().await;
    let db = raw(&dir.path().join("worker/tasks.sled"));
    assert!(db.is_empty());
}

#[tokio::test(start_paused = true)]
async fn tasks_outlive_their_agent_and_are_taken_up_again() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let agent = cluster.agent("n1", dir.path()).await;
    for id in ["stays", "ends", "vanishes"] {
        cluster.create(task(id, "n1")).await;
        cluster.until_state(id, TaskState::Running).await;
    }
    agent.stop().await;
    assert_eq!(cluster.world.running_on("n1"), 3, "a stop leaves them running");
    cluster.world.kill("ends", 7);
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.until_state("ends", TaskState::Failed).await;
    assert_eq!(exit_code(&cluster.status("ends")), 7);
    assert_eq!(cluster.world.running("stays"), 1);
    assert_eq!(cluster.world.starts("stays"), 1);
    cluster.world.wipe("n1");
    cluster.until_state("vanishes", TaskState::Failed).await;
    cluster.want("stays", TaskState::Shutdown).await;
    cluster
        .until("the end is noticed", |v| v.tasks().get("stays").unwrap().status.state().is_terminal())
        .await;
    agent.stop().await;
    cluster.world.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn tasks_go_on_while_no_manager_can_be_reached() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.create(with_env(task("t", "n1"), &["SIM_RUN=60000", "SIM_EXIT=9"])).await;
    cluster.until_state("t", TaskState::Running).await;
    agent.stop().await;

    let wires = cluster.connector("n1");
    wires.plug(false);
    let agent = cluster.agent_on("n1", dir.path(), wires.clone()).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(cluster.status("t").state(), TaskState::Running);
    wires.plug(true);
    cluster.until_state("t", TaskState::Failed).await;
    assert_eq!(exit_code(&cluster.status("t")), 9);
    agent.stop().await;
    cluster.world.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn leftovers_are_swept_and_known_tasks_are_not() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let agent = cluster.agent("n1", dir.path()).await;
    for id in ["kept", "left"] {
        cluster.create(task(id, "n1")).await;
        cluster.until_state(id, TaskState::Running).await;
    }
    cluster.create(task("other", "n2")).await;
    let second = tempfile::tempdir().unwrap();
    let neighbour = cluster.agent("n2", second.path()).await;
    cluster.until_state("other", TaskState::Running).await;
    agent.stop().await;
    // The database is lost, and meanwhile one task was deleted.
    cluster.remove::<Task>("left").await;
    let fresh = tempfile::tempdir().unwrap();
    let agent = cluster.agent("n1", fresh.path()).await;
    tokio::time::timeout(Duration::from_secs(5), async {
        while cluster.world.containers_on("n1") != ["kept"] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(cluster.world.running("kept"), 1, "the managers know it, so it goes on");
    assert_eq!(cluster.world.running("other"), 1, "another node's");
    cluster.want("kept", TaskState::Shutdown).await;
    cluster.until_state("kept", TaskState::Shutdown).await;
    agent.stop().await;
    neighbour.stop().await;
    cluster.world.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn leaving_removes_everything() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let remove = Delay::fixed(Duration::from_secs(3));
    cluster.world.set_behaviour(Behaviour { remove, ..Default::default() });
    let agent = cluster.agent("n1", dir.path()).await;
    for id in ["a", "b"] {
        cluster.create(task(id, "n1")).await;
        cluster.until_state(id, TaskState::Running).await;
    }
    agent.handle.leave().await;
    assert!(cluster.world.containers_on("n1").is_empty());
    cluster.create(task("late", "n1")).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(cluster.status("late").state(), TaskState::Assigned, "assignments are ignored now");
    agent.stop().await;
    let db = raw(&dir.path().join("worker/tasks.sled"));
    assert!(db.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_task_from_the_database_waits_for_its_secrets() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut secret = Secret { id: "s".into(), ..Default::default() };
    secret.spec.annotations.name = "s".into();
    cluster.create(secret).await;
    let prepare = Delay::fixed(Duration::from_secs(3600));
    cluster.world.set_behaviour(Behaviour { prepare, ..Default::default() });
    let mut secretive = task("t", "n1");
    if let Some(task_spec::Runtime::Container(container)) = &mut secretive.spec.runtime {
        container.secrets = vec![SecretReference { secret_id: "s".into(), ..Default::default() }];
    }
    let agent = cluster.agent("n1", dir.path()).await;
    cluster.create(secretive).await;
    cluster.create(task("plain", "n1")).await;
    cluster.until_state("t", TaskState::Preparing).await;
    cluster.until_state("plain", TaskState::Preparing).await;
    agent.stop().await;

    cluster.world.set_behaviour(Behaviour::default());
    let wires = cluster.connector("n1");
    wires.plug(false);
    let agent = cluster.agent_on("n1", dir.path(), wires.clone()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(cluster.world.containers_on("n1"), ["plain"]);
    wires.plug(true);
    cluster.until_state("t", TaskState::Running).await;
    agent.stop().await;
    cluster.world.assert_sound();
}

// Many tasks, failures and delays of all kinds, a link that breaks all the time, agents and leaders that are
// restarted: what the store says in the end is what is.
#[tokio::test(start_paused = true)]
async fn nothing_is_lost_or_doubled_in_a_storm() {
    let mut cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let up_to = |millis| Delay { from: Duration::ZERO, to: Duration::from_millis(millis) };
    cluster.world.set_behaviour(Behaviour {
        prepare: up_to(3000),
        start: up_to(500),
        stop: up_to(2000),
        remove: up_to(500),
        run: Run::For { time: up_to(60_000), code: 5, failing: 0.5 },
        prepare_fails: 0.05,
        start_fails: 0.05,
        hiccups: 0.1,
        away: false,
    });
    let wires = cluster.connector("n1");
    let mut agent = cluster.agent_on("n1", dir.path(), wires.clone()).await;
    for round in 0..20 {
        for i in 0..10 {
            cluster.create(task(&format!("t{round}-{i}"), "n1")).await;
        }
        if round > 2 {
            cluster.want(&format!("t{}-0", round - 2), TaskState::Shutdown).await;
            cluster.remove::<Task>(&format!("t{}-1", round - 2)).await;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        wires.cut();
        if round % 5 == 4 {
            agent.stop().await;
            agent = cluster.agent_on("n1", dir.path(), wires.clone()).await;
        }
        if round % 7 == 6 {
            cluster.lose_leadership().await;
            cluster.lead();
        }
    }
    let all_ended = |view: &swarm_store::View| view.tasks().iter().all(|t| t.status.state().is_terminal());
    cluster.until("all tasks have ended", all_ended).await;
    for task in cluster.store.view().tasks().iter() {
        let started = cluster.world.starts(&task.id);
        match task.status.state() {
            TaskState::Complete => assert_eq!((started, exit_code(&task.status)), (1, 0)),
            TaskState::Failed if task.status.err.contains("(5)") => assert_eq!(started, 1),
            TaskState::Failed | TaskState::Rejected | TaskState::Shutdown => {}
            other => panic!("{} ended in {other:?}", task.id),
        }
        assert_eq!(cluster.world.running(&task.id), 0);
    }
    assert_eq!(cluster.world.running_at_all(), 0);
    agent.stop().await;
    cluster.world.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn two_executors_share_a_node() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let containers = Arc::new(SimExecutor::new(&cluster.world, "n1"));
    containers.set_description(swarm_agent::ExecutorDescription {
        engine_labels: [
            ("swarmd.runtime.process".to_owned(), "no".to_owned()),
            ("rack".to_owned(), "7".to_owned()),
        ]
        .into(),
        ..Default::default()
    });
    let processes = Arc::new(SimExecutor::new(&cluster.world, "n1").with_runtimes(&["process"]));
    let executors: Vec<Arc<dyn swarm_agent::Executor>> = vec![processes, containers.clone()];
    let agent = start_agent("n1", dir.path(), cluster.connector("n1"), executors).await;
    let mut process = task("p", "n1");
    process.spec.runtime = Some(task_spec::Runtime::Generic(GenericRuntimeSpec {
        kind: "process".into(),
        ..Default::default()
    }));
    cluster.create(process).await;
    cluster.create(task("c", "n1")).await;
    cluster.until_state("p", TaskState::Running).await;
    cluster.until_state("c", TaskState::Running).await;
    let view = cluster.store.view();
    let description = view.nodes().get("n1").unwrap().description.clone().unwrap();
    let labels = description.engine.unwrap().labels;
    assert_eq!(labels["swarmd.runtime.process"], "1", "abilities are ours to say, not the engine's");
    assert_eq!(labels["swarmd.runtime.container"], "1");
    assert_eq!(labels["rack"], "7");
    assert!(containers.node().is_some_and(|node| node.id == "n1"));
    agent.stop().await;
}
