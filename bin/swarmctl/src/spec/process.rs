//! Flags that shape a native process.

use prost::{Message as _, Name as _};
use swarm_api::extensions;
use swarm_api::swarmd::ProcessSpec;
use swarm_api::swarmd::process_spec::Rlimit;
use swarm_api::v1::GenericRuntimeSpec;

use super::container::{health, set};
use super::{ServiceFlags, env, start};
use crate::error::{Error, Result};
use crate::values::csv::join;
use crate::values::ulimit;

/// The process that a generic runtime carries, if it does.
pub(crate) fn decode(generic: &GenericRuntimeSpec) -> Option<ProcessSpec> {
    if !generic.kind.eq_ignore_ascii_case(extensions::PROCESS_RUNTIME) {
        return None;
    }
    ProcessSpec::decode(generic.payload.as_ref()?.value.as_slice()).ok()
}

/// The generic runtime that carries a process.
pub(super) fn encode(process: &ProcessSpec) -> GenericRuntimeSpec {
    GenericRuntimeSpec {
        kind: extensions::PROCESS_RUNTIME.to_owned(),
        payload: Some(prost_types::Any { type_url: ProcessSpec::type_url(), value: process.encode_to_vec() }),
    }
}

/// Arguments: those of `--args`, then the words after `--`.
pub(super) fn words(flags: &ServiceFlags) -> Option<Vec<String>> {
    let given = join(flags.args.as_ref());
    if given.is_none() && flags.words.is_empty() {
        return None;
    }
    Some(given.unwrap_or_default().into_iter().chain(flags.words.iter().cloned()).collect())
}

/// Applies what was given.
pub(super) fn apply(process: &mut ProcessSpec, flags: &ServiceFlags) -> Result<()> {
    if let Some(flag) = for_containers(flags) {
        if flag == "--gpus" {
            return Err(Error::usage(
                "--gpus asks a container engine for GPUs, and this service runs native processes, which see those of their \
                 node: --generic-resources gpu=N reserves some for them, and DOCKER_RESOURCE_GPU in their environment says \
                 which",
            ));
        }
        return Err(Error::usage(format!(
            "{flag} is for containers, and this service runs native processes"
        )));
    }
    match (flags.command()?, words(flags)) {
        // Without --command and --args, the words are the whole command line.
        (None, Some(words)) if flags.args.is_none() => {
            process.command = words;
            process.args.clear();
        }
        (command, args) => {
            set(&mut process.command, command.as_ref());
            set(&mut process.args, args.as_ref());
        }
    }
    set(&mut process.env, env::given(flags)?.as_ref());
    set(&mut process.dir, flags.dir.as_ref());
    set(&mut process.user, flags.user.as_ref());
    set(&mut process.groups, join(flags.group.as_ref()).as_ref());
    set(&mut process.stop_signal, flags.stop_signal.as_ref());
    if flags.stop_grace_period.is_some() {
        process.stop_grace_period = flags.stop_grace_period;
    }
    if let Some(terms) = join(flags.ulimit.as_ref()) {
        let limits = terms.iter().map(|term| ulimit::parse(term));
        let limits: Vec<_> = limits.collect::<Result<_, _>>().map_err(Error::Usage)?;
        process.rlimits = limits.iter().map(rlimit).collect();
    }
    set(&mut process.pids_limit, flags.pids_limit.as_ref());
    set(&mut process.root, flags.root.as_ref());
    if let Some(names) = &flags.isolate {
        let has = |wanted: &str| names.iter().any(|name| name == wanted);
        (process.mount_namespace, process.pid_namespace) = (has("mount"), has("pid"));
    }
    if flags.container.no_healthcheck == Some(true) {
        // No image says anything else.
        process.healthcheck = None;
    } else {
        health(&mut process.healthcheck, &flags.container)?;
    }
    if process.healthcheck.as_ref().is_some_and(|check| check.test.is_empty()) {
        return Err(Error::usage("a process has no health check without --health-cmd"));
    }
    start::apply_to_process(process, &flags.start)
}

/// The first flag that was given and that only processes have.
pub(super) fn for_processes(flags: &ServiceFlags) -> Option<&'static str> {
    let given = [("--isolate", flags.isolate.is_some()), ("--root", flags.root.is_some())];
    given.iter().find(|(_, given)| *given).map(|(flag, _)| *flag)
}

pub(super) fn rlimit(limit: &ulimit::Ulimit) -> Rlimit {
    // No limit is the largest number there.
    let number = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
    Rlimit { soft: number(limit.soft), hard: number(limit.hard), name: limit.name.clone() }
}

/// The first flag that was given and that only containers have.
fn for_containers(flags: &ServiceFlags) -> Option<&'static str> {
    let given = [
        ("--image", flags.image.is_some()),
        ("--hostname", flags.hostname.is_some()),
        ("--container-label", flags.container_label.is_some()),
        ("--tty", flags.tty.is_some()),
        ("--open-stdin", flags.open_stdin.is_some()),
        ("--init", flags.init.is_some()),
        ("--read-only", flags.read_only.is_some()),
        ("--oom-score-adj", flags.oom_score_adj.is_some()),
        ("--bind", flags.bind.is_some()),
        ("--volume", flags.volume.is_some()),
        ("--tmpfs", flags.tmpfs.is_some()),
        ("--npipe", flags.npipe.is_some()),
        ("--log-driver", flags.log_driver.is_some()),
        ("--network", flags.network.is_some()),
        ("--endpoint-mode", flags.endpoint_mode.is_some()),
    ];
    given.iter().find(|(_, given)| *given).map(|(flag, _)| *flag).or_else(|| flags.container.first())
}
