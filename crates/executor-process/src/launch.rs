//! A task as instructions for its shim.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use nix::sys::resource::Resource;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use prost::{Message, Name};
use serde::{Deserialize, Serialize};
use swarm_agent::ControllerError;
use swarm_agent::template::{Context, resource_env};
use swarm_api::swarmd::ProcessSpec;
use swarm_api::v1::{NodeDescription, Task, task_spec};
use swarm_api::{defaults, duration, extensions, naming};

use crate::cgroup::{Cgroups, TaskGroup};
use crate::files::{CONFIGS, SECRETS};

/// The kind of generic runtime whose tasks are processes.
pub const RUNTIME: &str = swarm_api::extensions::PROCESS_RUNTIME;
/// Environment variable that every process of a task inherits, so that it can be found.
pub(crate) const MARKER: &str = "SWARMD_TASK_ID";

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_LOG_SIZE: u64 = 10 * 1024 * 1024;
const MIN_LOG_SIZE: u64 = 64 * 1024;
const DEFAULT_LOG_FILES: u32 = 3;
const MAX_LOG_FILES: u32 = 100;

/// What a shim is to do; the file `launch.json` in a task's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) task_id: String,
    pub(crate) node_id: String,
    /// Program and arguments; never empty.
    pub(crate) argv: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Working directory; the task's own if absent.
    pub(crate) dir: Option<String>,
    /// Whom to become; nobody else if absent.
    pub(crate) identity: Option<Identity>,
    pub(crate) rlimits: Vec<Rlimit>,
    /// Number of the signal that asks the process to end.
    pub(crate) stop_signal: i32,
    pub(crate) stop_grace_ms: u64,
    pub(crate) log_max_size: u64,
    pub(crate) log_max_files: u32,
    /// Control groups, where the host has them.
    pub(crate) group: Option<TaskGroup>,
    /// Directory in memory with its secrets and configs, if it has any.
    #[serde(default)]
    pub(crate) files: Option<PathBuf>,
    /// Commands that must succeed before it starts.
    #[serde(default)]
    pub(crate) init: Vec<Vec<String>>,
    /// Command that runs before the stop signal; none if empty.
    #[serde(default)]
    pub(crate) pre_stop: Vec<String>,
    #[serde(default)]
    pub(crate) health: Option<Health>,
    #[serde(default)]
    pub(crate) isolation: Option<Isolation>,
    /// The task's own directory, if that is another one than the shim's.
    #[serde(default)]
    pub(crate) work: Option<PathBuf>,
}

/// How a process's health is checked; times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Health {
    pub(crate) command: Vec<String>,
    pub(crate) interval: u64,
    pub(crate) timeout: u64,
    /// Failures in a row that make it unhealthy.
    pub(crate) retries: u32,
    /// Time after the start in which failures do not count, and the interval within it.
    pub(crate) start_period: u64,
    pub(crate) start_interval: u64,
}

/// A process with mounts of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Isolation {
    /// It sees no processes but its own.
    pub(crate) pid: bool,
    /// Its root; the host's if absent.
    pub(crate) root: Option<PathBuf>,
    /// Directory of the host that it is to find there too.
    pub(crate) files: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rlimit {
    /// As in the spec: `nofile`, `core`, …
    pub(crate) name: String,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

fn fatal(text: impl Into<String>) -> ControllerError {
    ControllerError::Fatal(text.into())
}

/// The spec inside a task's generic runtime.
pub(crate) fn process_spec(task: &Task) -> Result<ProcessSpec, ControllerError> {
    let Some(task_spec::Runtime::Generic(generic)) = &task.spec.runtime else {
        return Err(ControllerError::UnsupportedRuntime);
    };
    if !generic.kind.eq_ignore_ascii_case(RUNTIME) {
        return Err(ControllerError::UnsupportedRuntime);
    }
    let payload = generic.payload.as_ref().ok_or_else(|| fatal("process: the runtime has no payload"))?;
    let expected = ProcessSpec::full_name();
    if payload.type_url.rsplit('/').next() != Some(expected.as_str()) {
        return Err(fatal(format!("process: the payload is a {:?}, expected {expected}", payload.type_url)));
    }
    let spec = ProcessSpec::decode(payload.value.as_slice())
        .map_err(|error| fatal(format!("process: malformed payload: {error}")))?;
    if spec.encode_to_vec() != payload.value {
        // What is not understood is not left out: it may be what keeps the process in.
        return Err(fatal("process: the payload asks for something that this node does not know"));
    }
    Ok(spec)
}

/// Works out the instructions. Users and groups are looked up here, so that mistakes show early. `files` is where the
/// task's secrets and configs are to be, or why there can't be any.
pub(crate) fn launch(
    task: &Task,
    node: Option<&NodeDescription>,
    cgroups: Option<&Cgroups>,
    files: Result<&Path, &str>,
) -> Result<Launch, ControllerError> {
    let spec = process_spec(task)?;
    let files = match (spec.secrets.is_empty() && spec.configs.is_empty(), files) {
        (true, _) => None,
        (false, Ok(directory)) => Some(directory.to_owned()),
        (false, Err(reason)) => {
            return Err(fatal(format!("this node can't give secrets and configs to processes: {reason}")));
        }
    };
    check_id(&task.id)?;
    let argv: Vec<String> = spec.command.iter().chain(&spec.args).cloned().collect();
    if argv.first().is_none_or(String::is_empty) {
        return Err(fatal("process: command required"));
    }
    let init: Vec<Vec<String>> = spec.init_tasks.iter().map(|task| task.words.clone()).collect();
    extensions::check_count(init.len()).map_err(fatal)?;
    init.iter().try_for_each(|words| extensions::check_words("init task", words)).map_err(fatal)?;
    if !spec.pre_stop.is_empty() {
        extensions::check_words("pre-stop command", &spec.pre_stop).map_err(fatal)?;
    }
    let health = health(&spec)?;
    let isolation = isolation(&spec, files.as_deref(), Uid::effective().is_root())?;
    let texts = argv.iter().chain(&spec.env).chain([&spec.dir, &spec.user]);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(fatal("process: a NUL byte in command, environment, directory or user"));
    }
    if !spec.dir.is_empty() && !spec.dir.starts_with('/') {
        return Err(fatal(format!("process: the working directory must be an absolute path: {}", spec.dir)));
    }
    let (identity, home) = identity(&spec.user, &spec.groups)?;
    let stop_signal = parse_signal(&spec.stop_signal)?;
    let rlimits = rlimits(&spec)?;
    let context = Context::new(task, node);
    let env = context.expand_env(&spec.env).map_err(|error| fatal(error.to_string()))?;
    let limits =
        task.spec.resources.as_ref().and_then(|resources| resources.limits.clone()).unwrap_or_default();
    let grace = spec.stop_grace_period.as_ref().map_or(defaults::STOP_GRACE_PERIOD, duration::to_std);
    let mut launch = Launch {
        task_id: task.id.to_string(),
        node_id: task.node_id.to_string(),
        argv,
        env: environment(task, &env, home, files.as_deref()),
        dir: (!spec.dir.is_empty()).then_some(spec.dir),
        identity,
        rlimits,
        stop_signal: stop_signal as i32,
        stop_grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        log_max_size: if spec.log_max_size == 0 {
            DEFAULT_LOG_SIZE
        } else {
            spec.log_max_size.max(MIN_LOG_SIZE)
        },
        log_max_files: match spec.log_max_files {
            0 => DEFAULT_LOG_FILES,
            files => files.min(MAX_LOG_FILES),
        },
        group: cgroups.map(|cgroups| {
            cgroups.for_task(&task.id, limits.nano_cpus, limits.memory_bytes, spec.pids_limit)
        }),
        files,
        init,
        pre_stop: spec.pre_stop,
        health,
        isolation,
        work: None,
    };
    let by_group = launch.group.as_ref().is_some_and(TaskGroup::limits_memory);
    if limits.memory_bytes > 0 && !by_group && !launch.rlimits.iter().any(|limit| limit.name == "as") {
        // No control group: the size of the address space is the next best bound.
        let bytes = limits.memory_bytes.unsigned_abs();
        launch.rlimits.push(Rlimit { name: "as".to_owned(), soft: bytes, hard: bytes });
    }
    Ok(launch)
}

/// Times and numbers that the spec leaves open are those of container engines.
fn health(spec: &ProcessSpec) -> Result<Option<Health>, ControllerError> {
    let Some(check) = &spec.healthcheck else { return Ok(None) };
    let command = match check.test.split_first() {
        Some((kind, [])) if kind == "NONE" => return Ok(None),
        Some((kind, words)) if kind == "CMD" => words.to_vec(),
        Some((kind, [script])) if kind == "CMD-SHELL" => {
            vec!["/bin/sh".to_owned(), "-c".to_owned(), script.clone()]
        }
        _ => return Err(fatal("process: a health check is CMD and words, or CMD-SHELL and a text")),
    };
    extensions::check_words("health check", &command).map_err(fatal)?;
    let millis = |time: &Option<prost_types::Duration>, usual: u64| {
        let given = time.as_ref().map(|time| duration::to_std(time).as_millis()).filter(|time| *time > 0);
        given.map_or(usual, |time| u64::try_from(time).unwrap_or(u64::MAX))
    };
    Ok(Some(Health {
        command,
        interval: millis(&check.interval, 30_000),
        timeout: millis(&check.timeout, 30_000),
        retries: u32::try_from(check.retries).ok().filter(|retries| *retries > 0).unwrap_or(3),
        start_period: millis(&check.start_period, 0),
        start_interval: millis(&check.start_interval, 5_000),
    }))
}

fn isolation(
    spec: &ProcessSpec,
    files: Option<&Path>,
    is_root: bool,
) -> Result<Option<Isolation>, ControllerError> {
    if !spec.mount_namespace && !spec.pid_namespace && spec.root.is_empty() {
        return Ok(None);
    }
    if !is_root {
        return Err(fatal(
            "process: namespaces and a root of its own need a daemon that runs as root, which this node's does not",
        ));
    }
    let root = match spec.root.as_str() {
        "" => None,
        path if !path.starts_with('/') => {
            return Err(fatal(format!("process: the root must be an absolute path: {path}")));
        }
        path if !Path::new(path).is_dir() => {
            return Err(fatal(format!("process: the root {path} is no directory on this node")));
        }
        path => Some(PathBuf::from(path)),
    };
    Ok(Some(Isolation { pid: spec.pid_namespace, root, files: files.map(Path::to_owned) }))
}

impl Launch {
    /// What the shim of an init task is to do, in the directory of the task that it is of.
    pub(crate) fn of_init(&self, words: &[String], work: &Path) -> Launch {
        Launch {
            argv: words.to_vec(),
            work: Some(work.to_owned()),
            files: None,
            init: Vec::new(),
            pre_stop: Vec::new(),
            health: None,
            ..self.clone()
        }
    }
}

/// A task id is the name of its directory.
pub(crate) fn check_id(id: &str) -> Result<(), ControllerError> {
    if !id.is_empty() && id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Ok(());
    }
    Err(fatal(format!("process: unusable task id {id:?}")))
}

/// Defaults, then the spec's, then what nobody may change.
fn environment(
    task: &Task,
    env: &[String],
    home: Option<User>,
    files: Option<&Path>,
) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())];
    if let Some(user) = home {
        all.extend(home_env(user));
    }
    let resources = resource_env(&task.assigned_generic_resources);
    // An entry without a value is the name of one that is to be absent.
    for entry in env.iter().chain(&resources) {
        let (name, value) = match entry.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (entry.as_str(), None),
        };
        all.retain(|(known, _)| known != name);
        if let (Some(value), false) = (value, name.is_empty()) {
            all.push((name.to_owned(), value.to_owned()));
        }
    }
    let directories = files.into_iter().flat_map(|directory| {
        [("SWARMD_SECRETS_DIR", SECRETS), ("SWARMD_CONFIGS_DIR", CONFIGS)]
            .map(|(variable, name)| (variable, directory.join(name).to_string_lossy().into_owned()))
    });
    let fixed = [
        (MARKER, task.id.to_string()),
        ("SWARMD_TASK_NAME", naming::task_name(task)),
        ("SWARMD_TASK_SLOT", task.slot.to_string()),
        ("SWARMD_SERVICE_ID", task.service_id.to_string()),
        ("SWARMD_SERVICE_NAME", task.service_annotations.name.clone()),
        ("SWARMD_NODE_ID", task.node_id.to_string()),
    ];
    for (name, value) in fixed.into_iter().chain(directories) {
        all.retain(|(known, _)| known != name);
        all.push((name.to_owned(), value));
    }
    all
}

/// What an account's processes find in their environment.
pub(crate) fn home_env(user: User) -> [(String, String); 3] {
    [
        ("HOME".to_owned(), user.dir.to_string_lossy().into_owned()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name),
    ]
}

/// Whom the process is to run as, and the account it came from.
pub(crate) fn identity(
    user: &str,
    further: &[String],
) -> Result<(Option<Identity>, Option<User>), ControllerError> {
    if user.is_empty() && further.is_empty() {
        return Ok((None, None));
    }
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let looked_up = |error: nix::Error| fatal(format!("process: looking up user {name:?}: {error}"));
    let account = match name.parse::<u32>() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)).map_err(looked_up)?,
        Err(_) if name.is_empty() => None,
        Err(_) => match User::from_name(name).map_err(looked_up)? {
            Some(account) => Some(account),
            None => return Err(fatal(format!("process: no user {name:?} on this node"))),
        },
    };
    let uid = match (&account, name.parse::<u32>()) {
        (Some(account), _) => account.uid,
        (None, Ok(uid)) => Uid::from_raw(uid),
        (None, Err(_)) => Uid::effective(),
    };
    let gid = match (group.filter(|group| !group.is_empty()), &account) {
        (Some(group), _) => lookup_group(group)?,
        (None, Some(account)) => account.gid,
        (None, None) => Gid::effective(),
    };
    let mut groups = Vec::new();
    // A user given by name brings its groups along, unless a group was named.
    if let (Some(account), None, Err(_)) = (&account, group, name.parse::<u32>())
        && let Ok(name) = CString::new(account.name.as_str())
    {
        groups.extend(getgrouplist(&name, gid).unwrap_or_default());
    }
    for group in further {
        groups.push(lookup_group(group)?);
    }
    let mut groups: Vec<u32> = groups.into_iter().map(Gid::as_raw).collect();
    groups.sort_unstable();
    groups.dedup();
    if !Uid::effective().is_root()
        && (uid != Uid::effective() || gid != Gid::effective() || !further.is_empty())
    {
        return Err(fatal(format!(
            "process: this node's daemon is not root and can't run a task as {user:?}"
        )));
    }
    Ok((Some(Identity { uid: uid.as_raw(), gid: gid.as_raw(), groups }), account))
}

fn lookup_group(group: &str) -> Result<Gid, ControllerError> {
    if let Ok(gid) = group.parse::<u32>() {
        return Ok(Gid::from_raw(gid));
    }
    match Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid),
        Ok(None) => Err(fatal(format!("process: no group {group:?} on this node"))),
        Err(error) => Err(fatal(format!("process: looking up group {group:?}: {error}"))),
    }
}

/// `SIGTERM`, `TERM`, `15`; nothing is SIGTERM.
fn parse_signal(text: &str) -> Result<Signal, ControllerError> {
    if text.is_empty() {
        return Ok(Signal::SIGTERM);
    }
    let upper = text.to_uppercase();
    let parsed = match upper.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) if upper.starts_with("SIG") => upper.parse().ok(),
        Err(_) => format!("SIG{upper}").parse().ok(),
    };
    parsed.ok_or_else(|| fatal(format!("process: unknown stop signal {text:?}")))
}

fn rlimits(spec: &ProcessSpec) -> Result<Vec<Rlimit>, ControllerError> {
    let one = |limit: &swarm_api::swarmd::process_spec::Rlimit| {
        if resource(&limit.name).is_none() {
            return Err(fatal(format!("process: unknown resource limit {:?}", limit.name)));
        }
        if limit.soft > limit.hard {
            return Err(fatal(format!(
                "process: limit {}: soft {} above hard {}",
                limit.name, limit.soft, limit.hard
            )));
        }
        Ok(Rlimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard })
    };
    spec.rlimits.iter().map(one).collect()
}

/// A resource by its name in setrlimit(2), in lower case and without its prefix.
pub(crate) fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::RLIMIT_AS,
        "core" => Resource::RLIMIT_CORE,
        "cpu" => Resource::RLIMIT_CPU,
        "data" => Resource::RLIMIT_DATA,
        "fsize" => Resource::RLIMIT_FSIZE,
        "locks" => Resource::RLIMIT_LOCKS,
        "memlock" => Resource::RLIMIT_MEMLOCK,
        "msgqueue" => Resource::RLIMIT_MSGQUEUE,
        "nice" => Resource::RLIMIT_NICE,
        "nofile" => Resource::RLIMIT_NOFILE,
        "nproc" => Resource::RLIMIT_NPROC,
        "rss" => Resource::RLIMIT_RSS,
        "rtprio" => Resource::RLIMIT_RTPRIO,
        "rttime" => Resource::RLIMIT_RTTIME,
        "sigpending" => Resource::RLIMIT_SIGPENDING,
        "stack" => Resource::RLIMIT_STACK,
        _ => return None,
    })
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
