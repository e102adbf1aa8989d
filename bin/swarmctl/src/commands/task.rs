//! Tasks: what services come to.

use clap::{Args, Subcommand};
use swarm_api::Shared;
use swarm_api::v1::list_tasks_request::Filters;
use swarm_api::v1::{
    ContainerStatus, ListTasksRequest, RemoveTaskRequest, Task, TaskState, task_spec, task_status,
};

use super::runtime_view::{process_lines, spec_lines};
use super::{Answer, Context, exec, ids, logs, stats, task_view};
use crate::error::Result;
use crate::output::{Names, Table, time};
use crate::resolve;
use crate::spec::decode_process;

/// Commands on tasks.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Join the input and output of a task's own process, from now on. The task goes on when this ends
    Attach {
        /// ID of the task, its full name, or how its ID begins
        task: String,
        #[command(flatten)]
        flags: exec::AttachFlags,
    },
    /// Execute a command in a task that runs, with its user, directory, environment and limits. Its exit code is that of
    /// the command
    #[command(trailing_var_arg = true)]
    Exec {
        #[command(flatten)]
        flags: exec::ExecFlags,
        /// ID of the task, its full name, or how its ID begins
        task: String,
        /// Program and arguments
        #[arg(required = true, allow_hyphen_values = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Show a task, and all tasks that had its slot
    Inspect(One),
    /// List tasks
    Ls {
        /// Also tasks that are meant to have ended
        #[arg(short, long)]
        all: bool,
        /// IDs only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show what tasks wrote
    #[command(visible_alias = "log")]
    Logs {
        /// IDs of tasks, or how they begin
        #[arg(required = true, value_name = "TASK")]
        tasks: Vec<String>,
        #[command(flatten)]
        flags: logs::Flags,
    },
    /// Remove a task from the cluster's records; nothing is stopped first
    #[command(visible_alias = "rm")]
    Remove(One),
    /// Show what tasks use: processor, memory, network and disks
    Stats {
        /// IDs of tasks, their full names, or how their IDs begin
        #[arg(value_name = "TASK", required_unless_present = "services")]
        tasks: Vec<String>,
        /// All tasks of a service: its ID, its name, or how its ID begins
        #[arg(long = "service", value_name = "SERVICE")]
        services: Vec<String>,
        #[command(flatten)]
        flags: stats::Flags,
    },
}

/// A task.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// ID of the task, or how it begins
    task: String,
}

pub(crate) async fn run(context: &mut Context, command: Command) -> Result<Answer> {
    let text = match command {
        Command::Exec { flags, task, command } => {
            return exec::exec(context, &task, command, &flags).await;
        }
        Command::Attach { task, flags } => return exec::attach(context, &task, &flags).await,
        Command::Stats { tasks, services, flags } => {
            return stats::run(context, &tasks, &services, &flags).await;
        }
        Command::Logs { tasks, flags } => return logs::run(context, logs::Of::Tasks(tasks), &flags).await,
        Command::Ls { all, quiet } => {
            let mut tasks = context.control.list_tasks(ListTasksRequest::default()).await?.into_inner().tasks;
            tasks.retain(|task| all || task_view::is_current(task));
            if quiet {
                return Ok(ids(tasks.iter().map(|task| task.id.as_str())).into());
            }
            task_view::list(&tasks, &context.names().await?, context.now)
        }
        Command::Inspect(One { task }) => {
            let task = resolve::task(&mut context.control, &task).await?;
            let filters = Filters { service_ids: vec![task.service_id.to_string()], ..Default::default() };
            let request = ListTasksRequest { filters: Some(filters) };
            let mut parents = context.control.list_tasks(request).await?.into_inner().tasks;
            parents.retain(|other| other.slot == task.slot);
            let names = context.names().await?;
            let table = task_view::table(&parents, true, &names, context.now);
            format!("{}\n===> Task Parents\n{table}", summary(&task, &names))
        }
        Command::Remove(One { task: given }) => {
            let task = resolve::task(&mut context.control, &given).await?;
            context.control.remove_task(RemoveTaskRequest { task_id: task.id.to_string() }).await?;
            format!("{given}\n")
        }
    };
    Ok(text.into())
}

/// The page of `task inspect` above its table.
fn summary(task: &Shared<Task>, names: &Names) -> String {
    let mut page = Table::summary();
    page.pair("ID", &task.id);
    page.pair("Slot", task.slot);
    if !task.service_id.is_empty() {
        page.pair("Service", names.service(&task.service_id));
    }
    status(&mut page, task);
    if !task.node_id.is_empty() {
        page.pair("Node", names.node(&task.node_id));
    }
    page.line("Spec\t");
    match &task.spec.runtime {
        Some(task_spec::Runtime::Container(container)) => spec_lines(&mut page, "  ", container),
        Some(task_spec::Runtime::Generic(generic)) => match decode_process(generic) {
            Some(process) => process_lines(&mut page, "  ", &process),
            None => page.pair("  Runtime", &generic.kind),
        },
        other => page.pair("  Runtime", task_view::runtime(other.as_ref())),
    }
    page.finish()
}

fn status(page: &mut Table, task: &Task) {
    let status = &task.status;
    page.line("Status\t");
    page.pair("  Desired State", task_view::state(task.desired_state));
    page.pair("  Last State", task_view::state(status.state));
    if status.timestamp.is_some() {
        page.pair("  Timestamp", time::absolute(status.timestamp.as_ref()));
    }
    if !status.message.is_empty() {
        page.pair("  Message", &status.message);
    }
    if !status.err.is_empty() {
        page.pair("  Error", &status.err);
    }
    if let Some(task_status::RuntimeStatus::Container(container)) = &status.runtime_status {
        runtime_status(page, task, container);
    }
    let ports = status.port_status.iter().flat_map(|status| &status.ports);
    let ports: Vec<String> = ports
        .map(|port| {
            let protocol = port.protocol().as_str_name().to_lowercase();
            format!("0.0.0.0:{}->{}/{protocol}", port.published_port, port.target_port)
        })
        .collect();
    if !ports.is_empty() {
        page.pair("Ports", ports.join(", "));
    }
}

/// What a runtime says of what it runs. The id that native processes give in place of a container's is the task's.
fn runtime_status(page: &mut Table, task: &Task, container: &ContainerStatus) {
    let ended = task.status.state > TaskState::Running as i32;
    if let Some(task_spec::Runtime::Generic(_)) = &task.spec.runtime {
        if container.pid != 0 && !ended {
            page.pair("  PID", container.pid);
        }
        // What was never started has no id, and no code.
        if ended && !container.container_id.is_empty() {
            page.pair("  ExitCode", container.exit_code);
        }
        return;
    }
    if !container.container_id.is_empty() {
        page.pair("  ContainerID:", &container.container_id);
    }
    if container.pid != 0 {
        page.pair("  Pid", container.pid);
    }
    if ended {
        page.pair("  ExitCode", container.exit_code);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use prost_types::Timestamp;
    use swarm_api::swarmd::ProcessSpec;
    use swarm_api::v1::{
        ContainerSpec, GenericRuntimeSpec, Node, NodeDescription, PortConfig, PortStatus, Service,
    };

    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_714_564_980)
    }

    fn names() -> Names {
        let mut node = Node { id: "n1".into(), ..Default::default() };
        node.description = Some(NodeDescription { hostname: "worker-1".into(), ..Default::default() });
        let mut service = Service { id: "s1".into(), ..Default::default() };
        service.spec.annotations.name = "web".into();
        Names::new(&[node.into()], &[service.into()])
    }

    fn task(id: &str, slot: u64, node: &str, state: TaskState, err: &str) -> Shared<Task> {
        let mut task = Task { id: id.into(), slot, service_id: "s1".into(), ..Default::default() };
        task.node_id = node.into();
        task.service_annotations.name = "web".into();
        task.desired_state = TaskState::Running as i32;
        task.status.state = state as i32;
        task.status.err = err.into();
        task.status.timestamp = Some(Timestamp { seconds: 1_714_564_800, nanos: 0 });
        task.spec.runtime = Some(task_spec::Runtime::Container(ContainerSpec {
            image: "redis:7".into(),
            args: vec!["a".into(), "b".into()],
            env: vec!["A=1".into()],
            ..Default::default()
        }));
        task.into()
    }

    #[test]
    fn lists_have_a_column_for_errors_only_if_there_are_any() {
        let running = task("t1", 1, "n1", TaskState::Running, "");
        assert_eq!(
            task_view::list(std::slice::from_ref(&running), &names(), now()),
            "ID  Service  Desired State  Last State             Node\n\
             --  -------  -------------  ----------             ----\n\
             t1  web.1    RUNNING        RUNNING 3 minutes ago  worker-1\n"
        );
        let waiting = task("t2", 2, "", TaskState::Pending, "no suitable node (1 node not available)");
        assert_eq!(
            task_view::list(&[running, waiting], &names(), now()),
            "ID  Service  Desired State  Last State             Node      Error\n\
             --  -------  -------------  ----------             ----      -----\n\
             t1  web.1    RUNNING        RUNNING 3 minutes ago  worker-1  \n\
             t2  web.2    RUNNING        PENDING 3 minutes ago            no suitable node (1 node not available)\n"
        );
        assert_eq!(
            task_view::list(&[], &Names::default(), now()),
            "ID  Service  Desired State  Last State  Node\n--  -------  -------------  ----------  ----\n"
        );
    }

    #[test]
    fn a_task_is_shown_with_what_became_of_it() {
        let mut task = task("t1", 1, "n1", TaskState::Failed, "task: non-zero exit (3)");
        task.status.message = "started".into();
        let container = ContainerStatus { container_id: "abc".into(), pid: 7, exit_code: 3 };
        task.status.runtime_status = Some(task_status::RuntimeStatus::Container(container.into()));
        let port = PortConfig { published_port: 8080, target_port: 80, ..Default::default() };
        task.status.port_status = Some(PortStatus { ports: vec![port] }.into());
        assert_eq!(
            summary(&task, &names()),
            "ID                     : t1
Slot                   : 1
Service                : web
Status                 
  Desired State        : RUNNING
  Last State           : FAILED
  Timestamp            : 2024-05-01T12:00:00Z
  Message              : started
  Error                : task: non-zero exit (3)
  ContainerID:         : abc
  Pid                  : 7
  ExitCode             : 3
Ports                  : 0.0.0.0:8080->80/tcp
Node                   : worker-1
Spec                   
  Image                : redis:7
  Args                 : [a, b]
  Env                  : [A=1]
"
        );
    }

    /// The task with a native process in place of its container.
    fn native(task: &Shared<Task>, status: ContainerStatus) -> Shared<Task> {
        let mut task = Task::clone(task);
        let process = ProcessSpec { command: vec!["sleep".into(), "9".into()], ..Default::default() };
        let payload = Some(prost_types::Any::from_msg(&process).unwrap());
        let runtime = GenericRuntimeSpec { kind: "process".into(), payload };
        task.spec.runtime = Some(task_spec::Runtime::Generic(runtime));
        task.status.runtime_status = Some(task_status::RuntimeStatus::Container(status.into()));
        task.into()
    }

    #[test]
    fn a_native_process_is_shown_by_its_number_and_has_no_container() {
        let running = task("t1", 1, "n1", TaskState::Running, "");
        let running = native(&running, ContainerStatus { container_id: "t1".into(), pid: 77, exit_code: 0 });
        assert_eq!(
            summary(&running, &names()),
            "ID                     : t1
Slot                   : 1
Service                : web
Status                 
  Desired State        : RUNNING
  Last State           : RUNNING
  Timestamp            : 2024-05-01T12:00:00Z
  PID                  : 77
Node                   : worker-1
Spec                   
  Command              : \"sleep 9\"
"
        );
        let lines = |state, status| -> Vec<String> {
            let page = summary(&native(&task("t1", 1, "n1", state, ""), status), &names());
            let of_runtime = ["  PID", "  Pid", "  Container", "  ExitCode"];
            page.lines()
                .filter(|line| of_runtime.iter().any(|s| line.starts_with(s)))
                .map(Into::into)
                .collect()
        };
        let ended = ContainerStatus { container_id: "t1".into(), pid: 0, exit_code: 3 };
        assert_eq!(lines(TaskState::Failed, ended), ["  ExitCode             : 3"]);
        let none: [&str; 0] = [];
        assert_eq!(lines(TaskState::Rejected, ContainerStatus::default()), none, "it was never started");
        assert_eq!(lines(TaskState::Preparing, ContainerStatus::default()), none);
    }

    #[test]
    fn what_a_task_does_not_have_is_not_shown() {
        let mut alone = Task::clone(&task("t1", 0, "", TaskState::Pending, ""));
        alone.service_id = "".into();
        let page = summary(&alone.into(), &names());
        assert!(!page.contains("Service") && !page.contains("Node"), "{page}");
    }

    #[test]
    fn the_table_is_sorted_by_slot_and_then_newest_first() {
        let created = |mut task: Shared<Task>, seconds| {
            task.meta.created_at = Some(Timestamp { seconds, nanos: 0 });
            task
        };
        let mut ended = created(task("old", 1, "n1", TaskState::Shutdown, ""), 1);
        ended.desired_state = TaskState::Shutdown as i32;
        let tasks = [
            created(task("second", 2, "n1", TaskState::Running, ""), 1),
            ended,
            created(task("new", 1, "n1", TaskState::Running, ""), 2),
        ];
        let order = |all| {
            let text = task_view::table(&tasks, all, &names(), now());
            text.lines().skip(2).map(|l| l.split(' ').next().unwrap_or("").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(order(true), ["new", "old", "second"]);
        assert_eq!(order(false), ["new", "second"]);
    }
}
