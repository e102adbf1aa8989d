//! What orchestration promises while it is under way, on real daemons: every commit is looked at, so that a promise
//! broken for a moment is seen too.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use bollard::Docker;
use bollard::query_parameters::ListContainersOptionsBuilder;
use swarm_api::Shared;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::update_config::FailureAction;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{
    ReplicatedJob, RestartPolicy, ServiceSpec, Task, TaskState, UpdateConfig, node_spec, restart_policy,
    task_spec,
};
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::registry::Registry;
use swarm_testkit::wait::until;
use swarm_tests::roles::Marked;
use swarm_tests::watch::{Picture, Watcher, has_not_ended};
use swarm_tests::{
    SOON, container_service, create, edit_process, process_service, processes_with, scale, set_availability,
    update, with_logs,
};

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn image(task: &Task) -> &str {
    match &task.spec.runtime {
        Some(task_spec::Runtime::Container(container)) => &container.image,
        _ => "",
    }
}

fn set_image(spec: &mut ServiceSpec, image: &str) {
    if let Some(task_spec::Runtime::Container(container)) = &mut spec.task.runtime {
        container.image = image.to_owned();
    }
}

mod rollback {
    use super::*;

    const REPLICAS: usize = 20;
    const AT_ONCE: usize = 4;

    /// The slots that have no task of this image which runs and is to go on.
    fn down(picture: &Picture, service: &str, good: &str) -> usize {
        let up = picture.up(service).filter(|task| image(task) == good);
        REPLICAS - up.map(|task| task.slot).collect::<BTreeSet<_>>().len()
    }

    /// Updates to an image that can't run, and looks at every state until everything is as it was.
    async fn goes_back(
        cluster: &mut Cluster,
        watcher: &mut Watcher,
        service: &str,
        (good, bad): (&str, &str),
        delay: prost_types::Duration,
    ) -> Result<()> {
        let before: BTreeMap<String, u64> =
            watcher.picture.up(service).map(|task| (task.id.to_string(), task.slot)).collect();
        ensure!(before.len() == REPLICAS, "{before:?}");
        update(cluster, service, |spec| {
            set_image(spec, bad);
            // However late it is seen that a task failed, it is laid to the update's charge.
            let (failure_action, monitor) = (FailureAction::Rollback as i32, Some(seconds(3600)));
            let parallelism = AT_ONCE as u64;
            spec.update =
                Some(UpdateConfig { parallelism, delay, failure_action, monitor, ..Default::default() });
        })
        .await?;
        let mut states = vec![UpdateState::Unknown];
        let mut cause = String::new();
        let mut most = 0;
        watcher
            .until("the rollback to complete", |picture| {
                let (state, message) = picture.update(service);
                // What the update before came to is there until this one is.
                let stale = states.len() == 1 && state == UpdateState::RollbackCompleted;
                if states.last() != Some(&state) && !stale {
                    states.push(state);
                }
                if state == UpdateState::RollbackStarted {
                    cause = message.to_owned();
                }
                let down = down(picture, service, good);
                most = most.max(down);
                ensure!(down <= AT_ONCE, "{down} slots are down");
                Ok(states.contains(&UpdateState::RollbackStarted) && state == UpdateState::RollbackCompleted)
            })
            .await?;
        use UpdateState::{RollbackCompleted, RollbackStarted, Unknown, Updating};
        ensure!(states == [Unknown, Updating, RollbackStarted, RollbackCompleted], "{states:?}");
        let culprit = cause.strip_prefix("update rolled back due to failure or early termination of task ");
        let culprit = watcher.picture.ever(service).find(|task| Some(task.id.as_str()) == culprit);
        let culprit = culprit.with_context(|| format!("whose fault is it? {cause}"))?;
        let failed = [TaskState::Failed, TaskState::Rejected].contains(&culprit.status.state());
        ensure!(image(culprit) == bad && failed && !culprit.status.err.is_empty(), "{culprit:?}");
        ensure!(most == AT_ONCE, "{most} slots were down at the same time");

        // Everything runs as before; only slots of the first step were touched.
        let now: BTreeMap<String, u64> =
            watcher.picture.up(service).map(|task| (task.id.to_string(), task.slot)).collect();
        ensure!(now.len() == REPLICAS && down(&watcher.picture, service, good) == 0, "{now:?}");
        let tried: BTreeSet<u64> =
            watcher.picture.ever(service).filter(|task| image(task) == bad).map(|task| task.slot).collect();
        ensure!(tried.len() == AT_ONCE, "the bad image was tried in the slots {tried:?}");
        for (id, slot) in &before {
            let kept = now.contains_key(id);
            ensure!(kept != tried.contains(slot), "slot {slot}: kept is {kept}, tried in {tried:?}");
        }
        Ok(())
    }

    async fn bad_images_are_rolled_back(cluster: &mut Cluster) -> Result<()> {
        let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
        let good = swarm_testkit::image::busybox(&docker).await?;
        let mut watcher = Watcher::new(cluster).await?;
        let mut spec = container_service("web", &good, REPLICAS as u64);
        if let Some(task_spec::Runtime::Container(container)) = &mut spec.task.runtime {
            // What the image says runs.
            (container.command, container.args) = (Vec::new(), Vec::new());
        }
        // What comes back is good; a moment is enough to see it.
        let monitor = Some(seconds(1));
        spec.rollback = Some(UpdateConfig { parallelism: AT_ONCE as u64, monitor, ..Default::default() });
        let service = create(cluster, spec.clone()).await?;
        watcher.until("all tasks to run", |picture| Ok(picture.slots_up(&service).len() == REPLICAS)).await?;

        // Its command fails at once. But it does begin to run, and then the update may go on with the next slots: the
        // delay, which is cut short by the failure, is what keeps it from that.
        let failing = swarm_testkit::image::failing(&docker).await?;
        goes_back(cluster, &mut watcher, &service, (&good, &failing), seconds(3600)).await?;
        // No registry has it. Such a task never runs, so nothing more is needed.
        let registry = Registry::start(None).await?;
        let missing = format!("{}/missing:1", registry.address());
        goes_back(cluster, &mut watcher, &service, (&good, &missing), seconds(0)).await?;

        // The service is what it was, but for what was said about updates beside the image: that went back too.
        let now = cluster.service(&service).await?;
        ensure!(now.spec == spec, "{:?}", now.spec);
        until("exactly the old image to run", SOON, || async {
            let filters = [("label".to_owned(), vec![format!("com.docker.swarm.service.id={service}")])];
            let options = ListContainersOptionsBuilder::new().filters(&filters.into()).build();
            let images = docker.list_containers(Some(options)).await?.into_iter().map(|c| c.image);
            let images: Vec<String> = images.flatten().collect();
            ensure!(images.len() == REPLICAS && images.iter().all(|image| *image == good), "{images:?}");
            Ok(())
        })
        .await?;
        let page = cluster.ctl_ok(&["service", "inspect", "web"])?;
        ensure!(page.contains("ROLLBACK_COMPLETED") && page.contains("20/20"), "{page}");
        ensure!(page.contains(" Failed Task ") && page.contains(" Error "), "{page}");
        Ok(())
    }

    /// By the flags of the command line, whose page still says what failed when the rollback is done.
    async fn flags_bring_processes_back(cluster: &mut Cluster) -> Result<()> {
        let pace = [
            "--update-parallelism=2",
            // It is cut short by the second failure, so that no third slot is begun.
            "--update-delay=1m",
            "--update-monitor=1m",
            "--update-max-failure-ratio=0.25",
            "--update-failure-action=rollback",
            "--rollback-parallelism=0",
            "--rollback-monitor=1s",
        ];
        let web = ["service", "create", "--name", "web", "--runtime", "process", "--replicas", "4"];
        let sleep = ["--restart-condition", "none", "--", "/bin/sleep", "1000"];
        let service = cluster.ctl_ok(&[&web[..], &pace, &sleep].concat())?.trim().to_owned();
        let mut watcher = Watcher::new(cluster).await?;
        watcher.until("all tasks to run", |picture| Ok(picture.slots_up(&service).len() == 4)).await?;
        let task = watcher.picture.up(&service).next().context("a task")?.id.clone();
        let page = cluster.ctl_ok(&["task", "inspect", &task])?;
        ensure!(page.contains("  PID ") && !page.contains("ContainerID"), "{page}");

        cluster.ctl_ok(&["service", "update", "web", "--", "/bin/sh", "-c", "exit 7"])?;
        watcher
            .until("the rollback to complete", |picture| {
                Ok(picture.update(&service).0 == UpdateState::RollbackCompleted
                    && picture.slots_up(&service).len() == 4)
            })
            .await?;
        let page = cluster.ctl_ok(&["service", "inspect", "web"])?;
        let words = page.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(words.contains("Message : rollback completed Failed Task : "), "{page}");
        ensure!(words.contains(", the first of 2 that failed Error : task: non-zero exit (7)"), "{page}");
        ensure!(words.contains("Completed : ") && words.contains("Command : \"/bin/sleep 1000\""), "{page}");

        // What the rollback would do is shown before it is done; it is another one now.
        let old: BTreeSet<String> = watcher.picture.ever(&service).map(|task| task.id.to_string()).collect();
        cluster.ctl_ok(&["service", "update", "web", "--env", "NEW=1"])?;
        let is_new = |task: &Shared<Task>| !old.contains(task.id.as_str());
        watcher.until("something to replace", |picture| Ok(picture.up(&service).any(is_new))).await?;
        let page = cluster.ctl_ok(&["service", "rollback", "web", "--dry-run"])?;
        ensure!(page.contains("\nenvironment  replaces "), "{page}");
        ensure!(page.contains("All tasks at once, the old one stopped first, paused on failure:"), "{page}");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_rollback_by_flags_says_what_failed() -> Result<()> {
        let mut cluster = Cluster::start(Engine::None, 1).await?;
        let result = flags_bring_processes_back(&mut cluster).await;
        with_logs(&cluster, result)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn bad_images_on_docker_are_rolled_back_with_no_more_down_than_allowed() -> Result<()> {
        let mut cluster = Cluster::start(Engine::Docker, 2).await?;
        let result = bad_images_are_rolled_back(&mut cluster).await;
        with_logs(&cluster, result)
    }
}

mod drain {
    use super::*;

    const REPLICAS: usize = 12;
    const AT_ONCE: usize = 2;

    /// It runs or comes to, and is to go on.
    fn is_wanted(task: &Task) -> bool {
        task.desired_state <= TaskState::Running as i32 && has_not_ended(task)
    }

    /// Begins an update and drains the node when it is under way. False if the update was over before the
    /// node was drained.
    async fn update_and_drain(
        cluster: &mut Cluster,
        watcher: &mut Watcher,
        service: &str,
        (node, name): (&str, &str),
        round: usize,
    ) -> Result<bool> {
        let mark = format!("ROUND={round}");
        let old: BTreeSet<String> = watcher.picture.ever(service).map(|task| task.id.to_string()).collect();
        let is_new = |task: &Shared<Task>| !old.contains(task.id.as_str());
        update(cluster, service, |spec| edit_process(spec, |process| process.env[1] = mark.clone())).await?;
        let least = REPLICAS - AT_ONCE;
        watcher
            .until("some tasks to be new", |picture| {
                let up = picture.slots_up(service).len();
                ensure!(up >= least, "only {up} slots are up");
                Ok(picture.up(service).any(is_new))
            })
            .await?;
        set_availability(cluster, name, node_spec::Availability::Drain).await?;
        // How far the update was when the node was drained, and the tasks that were on the node then.
        let mut drained: Option<(UpdateState, BTreeSet<String>)> = None;
        // Slots that lost their task with the node, and have not had another one that ran since.
        let mut lost = BTreeSet::new();
        watcher
            .until("the update to complete around the drained node", |picture| {
                let (state, _) = picture.update(service);
                let mut is_empty = true;
                if picture.is_drained(node) {
                    let there = || picture.tasks(service).filter(|task| task.node_id == node);
                    let (_, before) = drained.get_or_insert_with(|| {
                        lost.extend(there().filter(|task| is_wanted(task)).map(|task| task.slot));
                        (state, there().map(|task| task.id.to_string()).collect())
                    });
                    for task in there() {
                        ensure!(before.contains(task.id.as_str()), "{task:?} was put on the drained node");
                    }
                    is_empty = !there().any(|task| is_wanted(task));
                }
                let up = picture.slots_up(service);
                lost.retain(|slot| {
                    !picture.up(service).any(|task| task.slot == *slot && task.node_id != node)
                });
                let down = (1..=REPLICAS as u64).filter(|slot| !up.contains(slot) && !lost.contains(slot));
                let down: Vec<u64> = down.collect();
                ensure!(down.len() <= AT_ONCE, "slots {down:?} are down, and {lost:?} for the node's sake");
                let done = state == UpdateState::Completed && up.len() == REPLICAS;
                Ok(drained.is_some() && done && is_empty)
            })
            .await?;

        let picture = &watcher.picture;
        let wanted: Vec<&Shared<Task>> = picture.tasks(service).filter(|task| is_wanted(task)).collect();
        ensure!(wanted.len() == REPLICAS && picture.slots_up(service).len() == REPLICAS, "{wanted:#?}");
        let spec = cluster.service(service).await?.spec.task.clone();
        for task in &wanted {
            ensure!(is_new(task) && task.spec == spec, "{task:?} is not new");
            ensure!(task.node_id != node, "{task:?} is on the drained node");
        }
        // Each slot got one new task, and another one only if the first was on the drained node.
        let new: Vec<&Shared<Task>> = picture.ever(service).filter(|task| is_new(task)).collect();
        let there = new.iter().filter(|task| task.node_id == node).count();
        ensure!(new.len() == REPLICAS + there, "{} new tasks, {there} on the drained node", new.len());
        ensure!(new.iter().all(|task| task.spec == spec), "a new task is of the old spec");
        Ok(drained.is_some_and(|(state, _)| state == UpdateState::Updating))
    }

    async fn a_host_is_drained_during_an_update(cluster: &mut Cluster) -> Result<()> {
        let mut watcher = Watcher::new(cluster).await?;
        set_availability(cluster, "manager", node_spec::Availability::Drain).await?;
        let marked = Marked::new();
        let mut spec = marked.service("web", REPLICAS as u64, None);
        edit_process(&mut spec, |process| process.env.push("ROUND=0".into()));
        let (parallelism, delay) = (AT_ONCE as u64, seconds(2));
        let monitor = Some(seconds(1));
        spec.update = Some(UpdateConfig { parallelism, delay, monitor, ..Default::default() });
        let service = create(cluster, spec).await?;
        watcher.until("all tasks to run", |picture| Ok(picture.slots_up(&service).len() == REPLICAS)).await?;
        let name = "worker-2";
        let node = cluster.node(name).await?.id.clone();
        // A machine that is too slow to drain a node while an update runs gets another one.
        let mut round = 1;
        while !update_and_drain(cluster, &mut watcher, &service, (&node, name), round).await? {
            set_availability(cluster, name, node_spec::Availability::Active).await?;
            round += 1;
        }
        until("only tasks of the new spec to be alive", SOON, || async {
            let (alive, new) = (marked.pids(), processes_with(&format!("ROUND={round}")));
            ensure!(
                alive.len() == REPLICAS && alive.iter().all(|pid| new.contains(pid)),
                "{alive:?} of {new:?}"
            );
            Ok(())
        })
        .await?;

        // The host is back: it gets the next task, and nothing is moved for its sake.
        let before = marked.pids();
        let tasks: BTreeSet<String> = watcher.picture.up(&service).map(|task| task.id.to_string()).collect();
        set_availability(cluster, name, node_spec::Availability::Active).await?;
        scale(cluster, &service, REPLICAS as u64 + 1).await?;
        watcher
            .until("another task to run", |picture| {
                for task in &tasks {
                    ensure!(picture.up(&service).any(|up| up.id == *task), "{task} was touched");
                }
                Ok(picture.slots_up(&service).len() > REPLICAS)
            })
            .await?;
        let new = watcher.picture.up(&service).find(|task| !tasks.contains(task.id.as_str()));
        ensure!(new.is_some_and(|task| task.node_id == node), "{new:?}");
        ensure!(before.is_subset(&marked.pids()), "processes were restarted");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_update_goes_on_around_a_host_that_is_drained() -> Result<()> {
        let mut cluster = Cluster::start(Engine::None, 3).await?;
        let result = a_host_is_drained_during_an_update(&mut cluster).await;
        with_logs(&cluster, result)
    }
}

mod job {
    use super::*;

    const TOTAL: u64 = 100;
    const AT_ONCE: u64 = 10;

    async fn completes(cluster: &mut Cluster, mut spec: ServiceSpec) -> Result<()> {
        spec.mode =
            Some(Mode::ReplicatedJob(ReplicatedJob { max_concurrent: AT_ONCE, total_completions: TOTAL }));
        let condition = restart_policy::RestartCondition::OnFailure as i32;
        spec.task.restart = Some(RestartPolicy { condition, ..Default::default() });
        let mut watcher = Watcher::new(cluster).await?;
        let service = create(cluster, spec).await?;
        let mut most = 0;
        watcher
            .until("everything to be completed", |picture| {
                let open = picture.tasks(&service).filter(|task| has_not_ended(task)).count() as u64;
                most = most.max(open);
                ensure!(open <= AT_ONCE, "{open} tasks at once");
                let done = picture.tasks(&service).filter(|t| t.status.state() == TaskState::Complete);
                Ok(done.count() as u64 == TOTAL)
            })
            .await?;
        ensure!(most == AT_ONCE, "at most {most} tasks at once");
        // Each slot once, and nothing else was ever there.
        let mut slots: Vec<u64> = watcher.picture.ever(&service).map(|task| task.slot).collect();
        slots.sort_unstable();
        ensure!(slots.iter().copied().eq(0..TOTAL), "{slots:?}");

        let page = cluster.ctl_ok(&["service", "ls"])?;
        ensure!(page.contains("0/10 (100/100 completed)"), "{page}");
        let page = cluster.ctl_ok(&["service", "inspect", "job", "--all"])?;
        ensure!(page.matches(" COMPLETE ").count() as u64 >= TOTAL, "{page}");
        let page = cluster.ctl_ok(&["task", "ls", "--all"])?;
        for slot in 0..TOTAL {
            let name = format!(" job.{slot} ");
            ensure!(page.matches(&name).count() == 1, "{name} is not there once:\n{page}");
        }
        let page = cluster.ctl_ok(&["task", "ls", "--quiet"])?;
        ensure!(page.is_empty(), "what has completed is history:\n{page}");
        Ok(())
    }

    /// Each process leaves a line in a file, with its slot.
    async fn of_processes(cluster: &mut Cluster) -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let path = file.path().display().to_string();
        let mut spec = process_service("job", 1);
        edit_process(&mut spec, |process| {
            process.command =
                vec!["/bin/sh".into(), "-c".into(), format!("echo $SWARMD_TASK_SLOT >> {path}")];
            process.args.clear();
        });
        completes(cluster, spec).await?;
        let text = std::fs::read_to_string(file.path())?;
        let done: Result<Vec<u64>, _> = text.lines().map(str::parse).collect();
        let mut done = done.with_context(|| format!("{text:?}"))?;
        done.sort_unstable();
        ensure!(done.iter().copied().eq(0..TOTAL), "{done:?}");
        Ok(())
    }

    async fn of_containers(cluster: &mut Cluster) -> Result<()> {
        let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
        let mut spec = container_service("job", &swarm_testkit::image::busybox(&docker).await?, 1);
        if let Some(task_spec::Runtime::Container(container)) = &mut spec.task.runtime {
            (container.command, container.args) = (vec!["/bin/true".into()], Vec::new());
        }
        completes(cluster, spec).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_hundred_processes_complete_ten_at_a_time() -> Result<()> {
        let mut cluster = Cluster::start(Engine::None, 2).await?;
        let result = of_processes(&mut cluster).await;
        with_logs(&cluster, result)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_hundred_docker_containers_complete_ten_at_a_time() -> Result<()> {
        let mut cluster = Cluster::start(Engine::Docker, 2).await?;
        let result = of_containers(&mut cluster).await;
        with_logs(&cluster, result)
    }
}

/// Commands that wait for their effect.
mod waits {
    use super::*;

    /// Runs the command and gives its code, its answer, and what it said on the way.
    fn ctl(cluster: &Cluster, args: &[&str]) -> Result<(Option<i32>, String, String)> {
        let output = cluster.ctl(args)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
    }

    async fn a_service_comes_up_changes_and_fails(cluster: &mut Cluster) -> Result<()> {
        let web = [
            "service",
            "create",
            "--name",
            "web",
            "--runtime",
            "process",
            "--replicas",
            "3",
            "--detach=false",
        ];
        let sleep = ["--update-monitor", "1s", "--", "/bin/sleep", "1000"];
        let (code, id, said) = ctl(cluster, &[&web[..], &sleep].concat())?;
        ensure!(code == Some(0) && said.ends_with("web: 3/3 running, done\n"), "{code:?} {said}");
        let id = id.trim();
        ensure!(
            cluster.tasks(id).await?.iter().filter(|t| t.status.state() == TaskState::Running).count() == 3
        );

        let update = ["service", "update", "web", "--detach=false"];
        let (code, out, said) = ctl(cluster, &[&update[..], &["--quiet", "--env", "A=1"]].concat())?;
        ensure!((code, out.trim(), said.as_str()) == (Some(0), id, ""), "{code:?} {out} {said}");
        let service = cluster.service(id).await?;
        let state = service.update_status.as_ref().map(|status| status.state());
        ensure!(state == Some(UpdateState::Completed), "{state:?}");

        let (code, out, said) = ctl(cluster, &[&update[..], &["--", "/bin/sh", "-c", "exit 7"]].concat())?;
        ensure!(code == Some(1) && out.trim() == id, "{code:?} {out}");
        ensure!(
            said.contains("Error: the update of web is paused (") && said.contains("non-zero exit (7)"),
            "{said}"
        );
        let (code, _, said) = ctl(cluster, &["service", "rollback", "web", "--detach=false"])?;
        ensure!(code == Some(0) && said.ends_with("web: 3/3 running, done\n"), "{code:?} {said}");

        let bad = ["--name", "bad", "--runtime", "process", "--detach=false", "--", "/nonexistent"];
        let (code, _, said) = ctl(cluster, &[&["service", "create"][..], &bad].concat())?;
        ensure!(code == Some(1) && said.contains("Error: bad: 0/1 running: bad.1 on "), "{code:?} {said}");

        let job = ["--name", "job", "--runtime", "process", "--mode", "replicated-job", "--replicas", "2"];
        let (code, _, said) =
            ctl(cluster, &[&["service", "create", "-d=false"][..], &job, &["--", "/bin/true"]].concat())?;
        ensure!(code == Some(0) && said.ends_with("job: 2/2 completed, done\n"), "{code:?} {said}");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_command_that_does_not_detach_tells_what_became_of_its_service() -> Result<()> {
        let mut cluster = Cluster::start(Engine::None, 0).await?;
        let result = a_service_comes_up_changes_and_fails(&mut cluster).await;
        with_logs(&cluster, result)
    }
}
