//! `--detach=false`: waits until a service is what its spec says, and shows how far it is.

use std::io::Write as _;
use std::time::Duration;

use clap::Args;
use prost_types::Timestamp;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::update_config::FailureAction;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{
    GetServiceRequest, ListTasksRequest, Service, Task, TaskState, UpdateConfig, list_tasks_request,
};
use swarm_api::{Shared, duration};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use super::logs::is_change_of_leaders;
use super::service_view::Count;
use super::{Answer, Context, task_view};
use crate::error::{Error, Result};
use crate::output::{Names, is_global};
use crate::values::boolean;

/// Pauses between two looks.
const PAUSE: Duration = Duration::from_millis(250);
/// How long all tasks must have run, where the service's spec says nothing, and at least: what an update replaces is known
/// by then.
const MONITOR: Duration = Duration::from_secs(5);
const LEAST: Duration = Duration::from_secs(1);
/// How long it is tried to reach a leader again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether a command waits for its effect.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Return at once; with --detach=false, wait until all tasks have run for the time of --update-monitor (those of jobs:
    /// until they have completed), and end with 1 if that fails as an update fails
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", value_parser = boolean)]
    pub(crate) detach: bool,
    /// With --detach=false, show nothing on the way
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// The end of a command that changed a service to what it is given as: prints its id, and waits if that is wanted. Whoever
/// interrupts the wait leaves the service alone.
pub(super) async fn finish(
    context: &mut Context,
    service: &Service,
    rollback: bool,
    wait: &Wait,
) -> Result<Answer> {
    let id = format!("{}\n", service.id);
    if wait.detach {
        return Ok(id.into());
    }
    // Scripts have it however the wait ends.
    let mut out = std::io::stdout().lock();
    out.write_all(id.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::plain(format!("can't write the answer: {error}")))?;
    drop(out);
    let names = context.names().await?;
    let mut progress = Progress::new(service, rollback);
    let mut lost: Option<Instant> = None;
    loop {
        match look(context, &service.id).await {
            Ok((service, tasks)) => {
                lost = None;
                let (line, end) = match progress.step(&service, &tasks, &names, Instant::now()) {
                    Step::Going(line) => (line, None),
                    Step::Done(line) => (line, Some(Ok(Vec::new().into()))),
                    Step::Failed(text) => return Err(Error::plain(text)),
                };
                if let Some(line) = progress.news(line).filter(|_| !wait.quiet) {
                    // Nobody can be told that this does not work.
                    let _ = writeln!(std::io::stderr(), "{line}");
                }
                if let Some(end) = end {
                    return end;
                }
            }
            Err(status) if status.code() == Code::NotFound => {
                return Err(Error::plain(format!("service {} was removed meanwhile", progress.name)));
            }
            Err(status) => {
                let since = *lost.get_or_insert_with(Instant::now);
                if !is_change_of_leaders(&status) || since.elapsed() > PATIENCE {
                    return Err(status.into());
                }
            }
        }
        sleep(PAUSE).await;
    }
}

async fn look(context: &mut Context, id: &str) -> Result<(Shared<Service>, Vec<Shared<Task>>), Status> {
    let request = GetServiceRequest { service_id: id.to_owned(), insert_defaults: false };
    let service = context.control.get_service(request).await?.into_inner().service;
    let service = service.ok_or_else(|| Status::internal("the manager's answer has no service"))?;
    let filters = list_tasks_request::Filters { service_ids: vec![id.to_owned()], ..Default::default() };
    let request = ListTasksRequest { filters: Some(filters) };
    let tasks = context.control.list_tasks(request).await?.into_inner().tasks;
    Ok((service, tasks))
}

/// What a look at a service says.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Going(String),
    Done(String),
    Failed(String),
}

/// What is known from one look to the next.
struct Progress {
    name: String,
    /// When the service was changed, by the manager's clock.
    began: Option<Timestamp>,
    /// What it was changed to is what it was before.
    rollback: bool,
    /// Since when nothing is missing, or nothing more happens.
    still: Option<Instant>,
    shown: String,
}

impl Progress {
    fn new(service: &Service, rollback: bool) -> Progress {
        Progress {
            name: service.spec.annotations.name.clone(),
            began: service.meta.updated_at.or(service.meta.created_at),
            rollback,
            still: None,
            shown: String::new(),
        }
    }

    /// The line, unless it is the last one again.
    fn news(&mut self, line: String) -> Option<String> {
        (line != self.shown).then(|| {
            self.shown.clone_from(&line);
            line
        })
    }

    fn step(&mut self, service: &Service, tasks: &[Shared<Task>], names: &Names, now: Instant) -> Step {
        let name = &self.name;
        let config = service.spec.update.unwrap_or_default();
        let monitor = config.monitor.as_ref().map_or(MONITOR, duration::to_std).max(LEAST);
        let count = Count::of(service, tasks, |_| true);
        let (done, wanted, what) = count.progress(service, tasks);
        let failed = self.failed(service, tasks);
        let culprit = failed.last().map(|task| format!(": {}", told(service, task, names)));
        let culprit = culprit.unwrap_or_default();
        let state = service.update_status.as_ref().map(|status| status.state());
        let message = service.update_status.as_ref().map_or("", |status| status.message.as_str());
        let doing = match state {
            Some(UpdateState::Paused) => {
                return Step::Failed(format!("the update of {name} is paused ({message}){culprit}"));
            }
            Some(UpdateState::RollbackPaused) => {
                return Step::Failed(format!("the rollback of {name} is paused ({message}){culprit}"));
            }
            Some(UpdateState::RollbackCompleted) if !self.rollback => {
                return Step::Failed(format!("the update of {name} failed, and was rolled back{culprit}"));
            }
            Some(UpdateState::Updating) => "updating, ",
            Some(UpdateState::RollbackStarted) => "rolling back, ",
            _ => "",
        };
        let mut line = format!("{name}: {doing}{done}/{wanted} {what}");
        if done == wanted && doing.is_empty() {
            // Updates have watched their tasks that long already, and completed is completed.
            let certain = (is_job(service) && wanted > 0)
                || matches!(state, Some(UpdateState::Completed | UpdateState::RollbackCompleted));
            let still = *self.still.get_or_insert(now);
            return match certain || now.saturating_duration_since(still) >= monitor {
                true => Step::Done(format!("{line}, done")),
                false => Step::Going(line),
            };
        }
        if is_job(service) && !tasks.iter().any(|task| goes_on(task)) {
            // Nobody starts them again.
            let still = *self.still.get_or_insert(now);
            if now.saturating_duration_since(still) >= monitor {
                return Step::Failed(format!("{line}, and no more tasks are started{culprit}"));
            }
            return Step::Going(line);
        }
        self.still = None;
        if doing.is_empty() && !is_job(service) && too_many(failed.len(), wanted, &config) {
            return Step::Failed(format!("{line}{culprit}"));
        }
        let waiting = tasks.iter().filter(|task| task_view::is_current(task));
        let mut waiting = waiting.filter(|task| task.status.state() != TaskState::Running);
        if let Some(task) = waiting.clone().find(|t| !t.status.err.is_empty()).or_else(|| waiting.next()) {
            line = format!("{line}; {}", told(service, task, names));
        }
        Step::Going(line)
    }

    /// Tasks that were made since the change and ended by themselves, the last one last.
    fn failed<'a>(&self, service: &Service, tasks: &'a [Shared<Task>]) -> Vec<&'a Task> {
        let nanos = |time: Option<Timestamp>| time.map(|time| (time.seconds, time.nanos));
        let ended = |task: &Task| match task.status.state() {
            TaskState::Failed | TaskState::Rejected => true,
            TaskState::Complete => !is_job(service),
            _ => false,
        };
        let began = nanos(self.began);
        let mut failed: Vec<&Task> = tasks
            .iter()
            .map(|task| &**task)
            .filter(|task| ended(task) && nanos(task.meta.created_at) >= began)
            .collect();
        failed.sort_by_key(|task| nanos(task.status.timestamp));
        failed
    }
}

fn goes_on(task: &Task) -> bool {
    task.status.state < TaskState::Complete as i32 && task.desired_state <= TaskState::Complete as i32
}

fn is_job(service: &Service) -> bool {
    matches!(service.spec.mode, Some(Mode::ReplicatedJob(_) | Mode::GlobalJob(_)))
}

/// More have failed than an update of the service may bear.
fn too_many(failed: usize, wanted: u64, config: &UpdateConfig) -> bool {
    config.failure_action() != FailureAction::Continue
        && failed > 0
        && failed as f64 > f64::from(config.max_failure_ratio) * wanted as f64
}

/// A task of the service, its state, and what it has to say.
fn told(service: &Service, task: &Task, names: &Names) -> String {
    let mut text = match is_global(&service.spec) {
        true => names.service(&task.service_id).to_owned(),
        false => names.task(task),
    };
    if !task.node_id.is_empty() {
        text = format!("{text} on {}", names.node(&task.node_id));
    }
    text = format!("{text} {}", task_view::state(task.status.state));
    let said = match task.status.err.as_str() {
        "" => task_view::doing(task).unwrap_or_default(),
        error => error,
    };
    if said.is_empty() { text } else { format!("{text} ({})", task_view::one_line(said)) }
}

#[cfg(test)]
mod tests {
    use swarm_api::v1::{GlobalService, ReplicatedJob, ReplicatedService, UpdateStatus, Version};

    use super::*;

    fn service(mode: Mode) -> Service {
        let mut service = Service { id: "s".into(), ..Default::default() };
        service.spec.annotations.name = "web".into();
        service.spec.mode = Some(mode);
        service.meta.updated_at = Some(Timestamp { seconds: 100, nanos: 0 });
        service
    }

    fn replicated(replicas: u64) -> Service {
        service(Mode::Replicated(ReplicatedService { replicas }))
    }

    fn task(slot: u64, state: TaskState, created: i64, err: &str) -> Shared<Task> {
        let mut task =
            Task { id: format!("t{slot}").into(), service_id: "s".into(), slot, ..Default::default() };
        task.meta.created_at = Some(Timestamp { seconds: created, nanos: 0 });
        task.status.state = state as i32;
        task.status.err = err.into();
        task.desired_state = TaskState::Running as i32;
        task.job_iteration = Some(Version { index: 0 });
        task.into()
    }

    struct Looks {
        progress: Progress,
        names: Names,
        now: Instant,
    }

    impl Looks {
        fn at(service: &Service, rollback: bool) -> Looks {
            let names = Names::new(&[], &[service.clone().into()]);
            Looks { progress: Progress::new(service, rollback), names, now: Instant::now() }
        }

        fn after(&mut self, millis: u64, service: &Service, tasks: &[Shared<Task>]) -> Step {
            self.now += Duration::from_millis(millis);
            self.progress.step(service, tasks, &self.names, self.now)
        }
    }

    fn going(line: &str) -> Step {
        Step::Going(line.into())
    }

    #[test]
    fn all_tasks_must_have_run_for_a_while() {
        let service = replicated(2);
        let mut looks = Looks::at(&service, false);
        assert_eq!(looks.after(0, &service, &[]), going("web: 0/2 running"));
        let waiting = task(2, TaskState::Pending, 100, "no suitable node");
        let one = [task(1, TaskState::Running, 100, ""), waiting];
        assert_eq!(
            looks.after(9000, &service, &one),
            going("web: 1/2 running; web.2 PENDING (no suitable node)")
        );
        let both = [1, 2].map(|slot| task(slot, TaskState::Running, 100, ""));
        assert_eq!(looks.after(9000, &service, &both), going("web: 2/2 running"));
        assert_eq!(looks.after(4999, &service, &both), going("web: 2/2 running"));
        assert!(matches!(looks.after(0, &service, &one), Step::Going(_)), "that begins anew");
        assert_eq!(looks.after(1, &service, &both), going("web: 2/2 running"));
        assert_eq!(looks.after(5000, &service, &both), Step::Done("web: 2/2 running, done".into()));
    }

    #[test]
    fn failures_count_as_those_of_updates_do() {
        let mut service = replicated(4);
        let old = task(1, TaskState::Failed, 99, "of before");
        let new = |slot| task(slot, TaskState::Rejected, 100, "no such image");
        let mut looks = Looks::at(&service, false);
        assert!(matches!(looks.after(0, &service, std::slice::from_ref(&old)), Step::Going(_)));
        let failed = Step::Failed("web: 0/4 running: web.2 REJECTED (no such image)".into());
        assert_eq!(looks.after(0, &service, &[old, new(2)]), failed);
        service.spec.update =
            Some(UpdateConfig { max_failure_ratio: 0.25, parallelism: 1, ..Default::default() });
        assert!(matches!(looks.after(0, &service, &[new(2)]), Step::Going(_)), "a quarter may");
        assert!(matches!(looks.after(0, &service, &[new(2), new(3)]), Step::Failed(_)));
        service.spec.update.as_mut().unwrap().failure_action = FailureAction::Continue as i32;
        assert!(matches!(looks.after(0, &service, &[new(2), new(3)]), Step::Going(_)));
    }

    #[test]
    fn updates_say_themselves_how_they_end() {
        let mut service = replicated(1);
        let running = [task(1, TaskState::Running, 100, "")];
        for (state, rollback, expected) in [
            (UpdateState::Updating, false, going("web: updating, 1/1 running")),
            (UpdateState::RollbackStarted, false, going("web: rolling back, 1/1 running")),
            (UpdateState::Completed, false, Step::Done("web: 1/1 running, done".into())),
            (UpdateState::Paused, false, Step::Failed("the update of web is paused (why)".into())),
            (
                UpdateState::RollbackCompleted,
                false,
                Step::Failed("the update of web failed, and was rolled back".into()),
            ),
            (UpdateState::RollbackCompleted, true, Step::Done("web: 1/1 running, done".into())),
            (UpdateState::RollbackPaused, true, Step::Failed("the rollback of web is paused (why)".into())),
        ] {
            let message = "why".into();
            service.update_status = Some(UpdateStatus { state: state as i32, message, ..Default::default() });
            assert_eq!(Looks::at(&service, rollback).after(0, &service, &running), expected, "{state:?}");
        }
    }

    #[test]
    fn a_global_service_has_as_many_tasks_as_it_has() {
        let service = service(Mode::Global(GlobalService {}));
        let mut looks = Looks::at(&service, false);
        assert_eq!(looks.after(0, &service, &[]), going("web: 0/0 running"));
        let tasks = [task(0, TaskState::Running, 100, ""), task(0, TaskState::Preparing, 100, "")];
        assert_eq!(looks.after(9000, &service, &tasks), going("web: 1/2 running; web PREPARING"));
        assert_eq!(looks.after(0, &service, &tasks[..1]), going("web: 1/1 running"));
        assert!(matches!(looks.after(5000, &service, &tasks[..1]), Step::Done(_)));
    }

    #[test]
    fn a_job_is_done_when_it_has_completed_and_fails_when_nobody_goes_on() {
        let service = service(Mode::ReplicatedJob(ReplicatedJob { max_concurrent: 1, total_completions: 2 }));
        let of_job = |slot, state| {
            let mut task = task(slot, state, 100, if state == TaskState::Failed { "exit (1)" } else { "" });
            task.desired_state = TaskState::Complete as i32;
            task
        };
        let mut looks = Looks::at(&service, false);
        let first = of_job(1, TaskState::Complete);
        let tasks = [first.clone(), of_job(2, TaskState::Running)];
        assert_eq!(looks.after(0, &service, &tasks), going("web: 1/2 completed"));
        let tasks = [first.clone(), of_job(2, TaskState::Failed)];
        assert_eq!(looks.after(9000, &service, &tasks), going("web: 1/2 completed"));
        let text = "web: 1/2 completed, and no more tasks are started: web.2 FAILED (exit (1))";
        assert_eq!(looks.after(5000, &service, &tasks), Step::Failed(text.into()));
        let tasks = [first, of_job(2, TaskState::Complete)];
        assert_eq!(looks.after(0, &service, &tasks), Step::Done("web: 2/2 completed, done".into()));
    }

    #[test]
    fn the_first_slot_of_a_job_is_named() {
        let service = service(Mode::ReplicatedJob(ReplicatedJob { max_concurrent: 1, total_completions: 1 }));
        let preparing = task(0, TaskState::Preparing, 100, "");
        let line = Looks::at(&service, false).after(0, &service, &[preparing]);
        assert_eq!(line, going("web: 0/1 completed; web.0 PREPARING"));
    }
}
