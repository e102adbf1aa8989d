//! The flags of `service create` and `service update`. Only flags that were given are applied.

// The comments on fields are the help texts: brackets mark what may be left out.
#![allow(rustdoc::broken_intra_doc_links)]

use clap::{Args, ValueEnum};
use swarm_api::extensions::Strategy;

use super::container_flags::ContainerFlags;
use super::lists::{ListFlags, attachments};
use super::start::{StartFlags, words};
use crate::error::Result;
use crate::values::csv::join;
use crate::values::network::Attachment;
use crate::values::{List, boolean, integer, share, unsigned};

fn strategy(name: &str) -> Result<Strategy, String> {
    Strategy::parse(name).ok_or_else(|| "expected spread or binpack".to_owned())
}

fn namespace(name: &str) -> Result<String, String> {
    match name {
        "mount" | "pid" | "" => Ok(name.to_owned()),
        _ => Err("expected mount or pid".to_owned()),
    }
}

/// What a service's tasks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Runtime {
    /// Containers, run by a container engine
    Container,
    /// Native processes, run by swarmd itself
    Process,
}

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// As many as --replicas says
    Replicated,
    /// One on every node that may run it
    Global,
    /// As many as --total-completions says, each until it has completed
    ReplicatedJob,
    /// One on every node that may run it, until it has completed
    GlobalJob,
}

/// What happens when an update fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnFailure {
    Pause,
    Continue,
    Rollback,
}

/// What happens when a rollback fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnRollbackFailure {
    Pause,
    Continue,
}

/// Which of two tasks comes first when one replaces the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Order {
    StopFirst,
    StartFirst,
}

/// What a service's name stands for on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EndpointMode {
    /// An address of its own, behind which its tasks are
    Vip,
    /// The addresses of its tasks
    Dnsrr,
}

/// Whether tasks move to nodes that come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rebalance {
    /// When nodes come or return
    Auto,
    /// Only when `service rebalance` asks for it
    Off,
}

/// After which ends a task is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Restart {
    Any,
    #[value(alias = "on-failure")]
    Failure,
    None,
}

/// Flags that create and update have in common.
#[derive(Debug, Default, Args)]
pub(crate) struct ServiceFlags {
    /// Show what would be placed, replaced and refused, and where and why; write nothing. Exit code 3 if not everything
    /// would find its place
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Name of the service
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Labels of the service, key=value; replaces all
    #[arg(short, long, value_name = "LIST", allow_hyphen_values = true)]
    pub(crate) label: Option<Vec<List>>,
    /// Number of tasks; of jobs, the same as --total-completions [default: 1]
    #[arg(long, value_name = "N", value_parser = unsigned, allow_negative_numbers = true)]
    pub(crate) replicas: Option<u64>,
    /// How many tasks of a replicated job are to complete [default: 1]
    #[arg(long, value_name = "N", value_parser = unsigned, allow_negative_numbers = true, conflicts_with = "replicas")]
    pub(crate) total_completions: Option<u64>,
    /// How many tasks of a replicated job there are at the same time [default: all]
    #[arg(long, value_name = "N", value_parser = unsigned, allow_negative_numbers = true)]
    pub(crate) max_concurrent: Option<u64>,
    /// Most tasks on one node, 0 for any number
    #[arg(long, visible_alias = "max-replicas-per-node", value_name = "N", value_parser = unsigned, allow_negative_numbers = true)]
    pub(crate) replicas_max_per_node: Option<u64>,

    /// Image of the containers
    #[arg(long, value_name = "IMAGE", help_heading = "What runs")]
    pub(crate) image: Option<String>,
    /// Means nothing, and is there for scripts written for Docker: images are never resolved to digests here, each node
    /// pulls what their tag stands for
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, help_heading = "What runs")]
    #[allow(dead_code)] // nobody asks for it
    pub(crate) no_resolve_image: Option<bool>,
    /// Program and its first arguments: the entry point of containers, the command of processes
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, help_heading = "What runs")]
    pub(crate) command: Option<Vec<List>>,
    /// The same as one text, with quotes as in a shell; an empty one is the image's own
    #[arg(
        long,
        value_name = "COMMAND",
        allow_hyphen_values = true,
        conflicts_with = "command",
        help_heading = "What runs"
    )]
    pub(crate) entrypoint: Option<String>,
    /// Arguments behind the command; words after -- are arguments too
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, help_heading = "What runs")]
    pub(crate) args: Option<Vec<List>>,
    /// Environment, NAME=value; values may hold templates such as {{.Task.Slot}}; with --env-file, replaces all
    #[arg(short, long, value_name = "LIST", allow_hyphen_values = true, help_heading = "What runs")]
    pub(crate) env: Option<Vec<List>>,
    /// File with variables of the environment, NAME=value a line, or NAME alone for one of this environment; # begins a
    /// comment; --env overrules it
    #[arg(long, value_name = "FILE", help_heading = "What runs")]
    pub(crate) env_file: Option<Vec<std::path::PathBuf>>,
    /// Working directory
    #[arg(short = 'w', long, visible_alias = "workdir", value_name = "DIR", help_heading = "What runs")]
    pub(crate) dir: Option<String>,
    /// User, by name or number, and group behind a colon
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = "What runs")]
    pub(crate) user: Option<String>,
    /// Supplementary groups; replaces all
    #[arg(long, value_name = "LIST", help_heading = "What runs")]
    pub(crate) group: Option<Vec<List>>,
    /// Signal that asks a task to stop [default: the image's, or SIGTERM]
    #[arg(long, value_name = "SIGNAL", help_heading = "What runs")]
    pub(crate) stop_signal: Option<String>,
    /// Time between that signal and the kill [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration::not_negative, allow_hyphen_values = true, help_heading = "What runs")]
    pub(crate) stop_grace_period: Option<prost_types::Duration>,
    /// Limits of processes, name=soft or name=soft:hard, -1 for none; replaces all
    #[arg(long, value_name = "LIST", help_heading = "What runs")]
    pub(crate) ulimit: Option<Vec<List>>,
    /// Hostname of the containers; may hold templates
    #[arg(long, value_name = "NAME", help_heading = "Containers only")]
    pub(crate) hostname: Option<String>,
    /// Labels of the containers, key=value; replaces all
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    pub(crate) container_label: Option<Vec<List>>,
    /// Allocate a terminal
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, help_heading = "Containers only")]
    pub(crate) tty: Option<bool>,
    /// Keep the standard input open
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, help_heading = "Containers only")]
    pub(crate) open_stdin: Option<bool>,
    /// Run an init process that reaps orphans
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, help_heading = "Containers only")]
    pub(crate) init: Option<bool>,
    /// Mount the root file system read-only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, help_heading = "Containers only")]
    pub(crate) read_only: Option<bool>,
    /// Preference of the kernel when memory runs out, -1000 to 1000
    #[arg(long, value_name = "N", value_parser = integer::<i64>, allow_hyphen_values = true, help_heading = "Containers only")]
    pub(crate) oom_score_adj: Option<i64>,
    /// Most processes and threads of a task, 0 for any number
    #[arg(long, visible_alias = "limit-pids", value_name = "N", value_parser = integer::<i64>, allow_negative_numbers = true, help_heading = "Resources and placement")]
    pub(crate) pids_limit: Option<i64>,
    /// Mount host directories, source:target; adds to those there
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    pub(crate) bind: Option<Vec<List>>,
    /// Mount anonymous volumes at targets; adds to those there
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    pub(crate) volume: Option<Vec<List>>,
    /// Mount memory, target[:size=…,mode=…,ro,noexec]; adds to those there (quote what holds commas)
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    pub(crate) tmpfs: Option<Vec<List>>,
    /// Mount named pipes, source:target; adds to those there
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    pub(crate) npipe: Option<Vec<List>>,

    #[command(flatten)]
    pub(crate) container: ContainerFlags,

    /// Namespaces of its own, mount or pid: mounts that nobody else sees, processes that see no others; replaces all
    #[arg(long, value_name = "LIST", value_parser = namespace, value_delimiter = ',', num_args = 0..=1, help_heading = "Processes only")]
    pub(crate) isolate: Option<Vec<String>>,
    /// Directory of the node that is the root of the file system for the process; whom --user names is looked up on the
    /// node
    #[arg(long, value_name = "DIR", help_heading = "Processes only")]
    pub(crate) root: Option<String>,

    #[command(flatten)]
    pub(crate) start: StartFlags,

    /// Ports published on the nodes that run a task, [name]:target[/protocol][:published[/protocol]]; with --publish,
    /// replaces all
    #[arg(long, value_name = "LIST", help_heading = "Network")]
    pub(crate) ports: Option<Vec<List>>,
    /// The same as Docker's command line writes it: target or published:target, with /protocol if it is
    /// not tcp, with ranges such as 8000-8010:80-90, or one as published=…,target=…,protocol=…,mode=host|ingress,name=…; without a mode it is host
    #[arg(short, long, value_name = "PORTS", help_heading = "Network")]
    pub(crate) publish: Option<Vec<List>>,
    /// Networks to attach to, by name or ID, or one as name=…,alias=…,driver-opt=key=value; replaces all
    #[arg(long, value_name = "NETWORKS", help_heading = "Network")]
    pub(crate) network: Option<Vec<List>>,
    /// How the service's name is resolved on networks of the cluster: to an address of its own (vip), or to those of its
    /// tasks (dnsrr) [default: vip]
    #[arg(long, value_name = "MODE", help_heading = "Network")]
    pub(crate) endpoint_mode: Option<EndpointMode>,

    /// Memory that a task may use at most, such as 512m
    #[arg(long, visible_alias = "limit-memory", value_name = "SIZE", value_parser = crate::values::size::parse, allow_hyphen_values = true, help_heading = "Resources and placement")]
    pub(crate) memory_limit: Option<i64>,
    /// Memory that is reserved for a task
    #[arg(long, visible_alias = "reserve-memory", value_name = "SIZE", value_parser = crate::values::size::parse, allow_hyphen_values = true, help_heading = "Resources and placement")]
    pub(crate) memory_reservation: Option<i64>,
    /// CPUs that a task may use at most, such as 0.5
    #[arg(long, visible_alias = "limit-cpu", value_name = "CPUS", value_parser = crate::values::cpu::parse, allow_hyphen_values = true, help_heading = "Resources and placement")]
    pub(crate) cpu_limit: Option<i64>,
    /// CPUs that are reserved for a task
    #[arg(long, visible_alias = "reserve-cpu", value_name = "CPUS", value_parser = crate::values::cpu::parse, allow_hyphen_values = true, help_heading = "Resources and placement")]
    pub(crate) cpu_reservation: Option<i64>,
    /// Generic resources that are reserved for a task, kind=number; replaces all
    #[arg(
        long,
        visible_alias = "generic-resource",
        value_name = "LIST",
        help_heading = "Resources and placement"
    )]
    pub(crate) generic_resources: Option<Vec<String>>,
    /// Which nodes may run tasks, such as node.labels.zone==a; replaces all
    #[arg(long, value_name = "LIST", help_heading = "Resources and placement")]
    pub(crate) constraint: Option<Vec<List>>,
    /// Spread tasks evenly over the values of a label, such as spread=node.labels.zone; of several the first is the
    /// outermost; replaces all
    #[arg(long, value_name = "LIST", help_heading = "Resources and placement")]
    pub(crate) placement_pref: Option<Vec<List>>,
    /// Which of the nodes that fit get tasks: spread (equal shares) or binpack (the fullest first) [default: spread]
    #[arg(long, value_name = "NAME", value_parser = strategy, help_heading = "Resources and placement")]
    pub(crate) placement_strategy: Option<Strategy>,
    /// Where the cluster allows it, tasks that find no node take the place of others with a lower priority [default: 0]
    #[arg(long, value_name = "N", value_parser = integer::<i32>, allow_hyphen_values = true, help_heading = "Resources and placement")]
    pub(crate) priority: Option<i32>,

    /// Whether tasks move when nodes come, so that they stay evenly spread [default: off]
    #[arg(long, value_name = "WHEN", help_heading = "Resources and placement")]
    pub(crate) rebalance: Option<Rebalance>,

    /// After which ends a task is started again [default: any]
    #[arg(long, value_name = "WHEN", hide_possible_values = false, help_heading = "Restarts")]
    pub(crate) restart_condition: Option<Restart>,
    /// Time before a task is started again [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration::not_negative, allow_hyphen_values = true, help_heading = "Restarts")]
    pub(crate) restart_delay: Option<prost_types::Duration>,
    /// How often at most, 0 for any number
    #[arg(long, value_name = "N", value_parser = unsigned, allow_negative_numbers = true, help_heading = "Restarts")]
    pub(crate) restart_max_attempts: Option<u64>,
    /// Time in which attempts are counted, 0 for all time
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration::not_negative, allow_hyphen_values = true, help_heading = "Restarts")]
    pub(crate) restart_window: Option<prost_types::Duration>,

    /// Tasks updated at the same time, 0 for all [default: 1]
    #[arg(long, value_name = "N", value_parser = unsigned, allow_negative_numbers = true, help_heading = "Updates")]
    pub(crate) update_parallelism: Option<u64>,
    /// Time between them [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration::not_negative, allow_hyphen_values = true, help_heading = "Updates")]
    pub(crate) update_delay: Option<prost_types::Duration>,
    /// How long a new task is watched: one that ends within that time has failed [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration::not_negative, allow_hyphen_values = true, help_heading = "Updates")]
    pub(crate) update_monitor: Option<prost_types::Duration>,
    /// Which share of the tasks may fail before the update has failed, 0 to 1 [default: 0]
    #[arg(long, value_name = "SHARE", value_parser = share, allow_hyphen_values = true, help_heading = "Updates")]
    pub(crate) update_max_failure_ratio: Option<f32>,
    /// What to do when an update fails [default: pause]
    #[arg(long, visible_alias = "update-failure-action", value_name = "WHAT", help_heading = "Updates")]
    pub(crate) update_on_failure: Option<OnFailure>,
    /// Whether the old task stops before the new one starts [default: stop-first]
    #[arg(long, value_name = "ORDER", help_heading = "Updates")]
    pub(crate) update_order: Option<Order>,
    /// As --update-parallelism, for rollbacks
    #[arg(long, value_name = "N", value_parser = unsigned, allow_negative_numbers = true, help_heading = "Updates")]
    pub(crate) rollback_parallelism: Option<u64>,
    /// As --update-delay, for rollbacks
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration::not_negative, allow_hyphen_values = true, help_heading = "Updates")]
    pub(crate) rollback_delay: Option<prost_types::Duration>,
    /// As --update-monitor, for rollbacks
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration::not_negative, allow_hyphen_values = true, help_heading = "Updates")]
    pub(crate) rollback_monitor: Option<prost_types::Duration>,
    /// As --update-max-failure-ratio, for rollbacks
    #[arg(long, value_name = "SHARE", value_parser = share, allow_hyphen_values = true, help_heading = "Updates")]
    pub(crate) rollback_max_failure_ratio: Option<f32>,
    /// What to do when a rollback fails [default: pause]
    #[arg(long, visible_alias = "rollback-failure-action", value_name = "WHAT", help_heading = "Updates")]
    pub(crate) rollback_on_failure: Option<OnRollbackFailure>,
    /// As --update-order, for rollbacks
    #[arg(long, value_name = "ORDER", help_heading = "Updates")]
    pub(crate) rollback_order: Option<Order>,

    /// Log driver of the containers; empty for none, so that the cluster's applies
    #[arg(long, value_name = "DRIVER", help_heading = "Logs")]
    pub(crate) log_driver: Option<String>,
    /// Options of the log driver, key=value; with --log-driver
    #[arg(long, value_name = "LIST", requires = "log_driver", help_heading = "Logs")]
    pub(crate) log_opt: Option<Vec<List>>,

    /// Arguments; for native processes without --command, the command
    #[arg(last = true, value_name = "WORDS")]
    pub(crate) words: Vec<String>,
}

impl ServiceFlags {
    /// The program and its first arguments, if they were given.
    pub(super) fn command(&self) -> Result<Option<Vec<String>>> {
        match &self.entrypoint {
            Some(text) => words("--entrypoint", text).map(Some),
            None => Ok(join(self.command.as_ref())),
        }
    }

    /// The networks that tasks are to be attached to, if they were given.
    pub(crate) fn networks(&self) -> Result<Option<Vec<Attachment>>> {
        attachments(self.network.as_ref())
    }
}

/// Flags of create.
#[derive(Debug, Default, Args)]
pub(crate) struct CreateFlags {
    /// Whether tasks are containers or native processes [default: container]
    #[arg(long, value_name = "RUNTIME", help_heading = "What runs")]
    pub(crate) runtime: Option<Runtime>,
    /// How many tasks there are [default: replicated]
    #[arg(long, value_name = "MODE")]
    pub(crate) mode: Option<Mode>,
    /// Secrets to give to the tasks, name[:file], or one as source=…,target=…,uid=…,gid=…,mode=…
    #[arg(long, value_name = "LIST", help_heading = "What runs")]
    pub(crate) secret: Option<Vec<List>>,
    /// Configs to give to the tasks, as secrets
    #[arg(long, value_name = "LIST", help_heading = "What runs")]
    pub(crate) config: Option<Vec<List>>,
}

/// Flags of update.
#[derive(Debug, Default, Args)]
pub(crate) struct UpdateFlags {
    /// Replace all tasks although nothing of them changes
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(crate) force: Option<bool>,
    /// Go back to the spec before the last change, whatever the other flags say
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(crate) rollback: Option<bool>,
    /// Give more secrets to the tasks, name[:file], or one as source=…,target=…,uid=…,gid=…,mode=…
    #[arg(long, visible_alias = "secret-add", value_name = "LIST", help_heading = "What runs")]
    pub(crate) add_secret: Option<Vec<List>>,
    /// Take secrets from the tasks, by name
    #[arg(long, visible_alias = "secret-rm", value_name = "LIST", help_heading = "What runs")]
    pub(crate) rm_secret: Option<Vec<List>>,
    /// Give more configs to the tasks, as secrets
    #[arg(long, visible_alias = "config-add", value_name = "LIST", help_heading = "What runs")]
    pub(crate) add_config: Option<Vec<List>>,
    /// Take configs from the tasks, by name
    #[arg(long, visible_alias = "config-rm", value_name = "LIST", help_heading = "What runs")]
    pub(crate) rm_config: Option<Vec<List>>,
    /// Give more devices of the node to the containers, HOST, HOST:CONTAINER or HOST:CONTAINER:rwm
    #[arg(long, visible_alias = "device-add", value_name = "LIST", help_heading = "Containers only")]
    pub(crate) add_device: Option<Vec<List>>,
    /// Take devices from the containers, by their paths on the node or in the container
    #[arg(long, visible_alias = "device-rm", value_name = "LIST", help_heading = "Containers only")]
    pub(crate) rm_device: Option<Vec<List>>,
    /// Capabilities that containers have beyond the usual ones
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    pub(crate) add_capability: Option<Vec<List>>,
    /// Capabilities that containers do not have
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    pub(crate) rm_capability: Option<Vec<List>>,
    /// Take mounts from the containers, by their targets
    #[arg(long, visible_alias = "mount-rm", value_name = "LIST", help_heading = "Containers only")]
    pub(crate) rm_mount: Option<Vec<List>>,

    #[command(flatten)]
    pub(crate) lists: ListFlags,
}
