//! Flags that shape a container.

use swarm_api::v1::ContainerSpec;
use swarm_api::v1::container_spec::Ulimit;

use super::ServiceFlags;
use crate::error::{Error, Result};
use crate::values::csv::join;
use crate::values::{mount, pair, ulimit};

/// Applies what was given.
pub(super) fn apply(container: &mut ContainerSpec, flags: &ServiceFlags) -> Result<()> {
    set(&mut container.image, flags.image.as_ref());
    set(&mut container.hostname, flags.hostname.as_ref());
    set(&mut container.dir, flags.dir.as_ref());
    set(&mut container.user, flags.user.as_ref());
    set(&mut container.stop_signal, flags.stop_signal.as_ref());
    set(&mut container.tty, flags.tty.as_ref());
    set(&mut container.open_stdin, flags.open_stdin.as_ref());
    set(&mut container.read_only, flags.read_only.as_ref());
    set(&mut container.oom_score_adj, flags.oom_score_adj.as_ref());
    set(&mut container.pids_limit, flags.pids_limit.as_ref());
    set(&mut container.command, join(flags.command.as_ref()).as_ref());
    set(&mut container.args, super::process::words(flags).as_ref());
    set(&mut container.env, join(flags.env.as_ref()).as_ref());
    set(&mut container.groups, join(flags.group.as_ref()).as_ref());
    if flags.init.is_some() {
        container.init = flags.init;
    }
    if flags.stop_grace_period.is_some() {
        container.stop_grace_period = flags.stop_grace_period;
    }
    if let Some(terms) = join(flags.container_label.as_ref()) {
        container.labels = pair::labels(&terms).map_err(Error::Usage)?;
    }
    if let Some(terms) = join(flags.ulimit.as_ref()) {
        let limits = terms.iter().map(|term| {
            ulimit::parse(term).map(|limit| Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard })
        });
        container.ulimits = limits.collect::<Result<_, _>>().map_err(Error::Usage)?;
    }
    for (lists, parse) in [
        (&flags.bind, mount::bind as fn(&str) -> _),
        (&flags.volume, mount::volume),
        (&flags.tmpfs, mount::tmpfs),
        (&flags.npipe, mount::npipe),
    ] {
        for text in join(lists.as_ref()).unwrap_or_default() {
            container.mounts.push(parse(&text).map_err(Error::Usage)?);
        }
    }
    Ok(())
}

/// Replaces a field if its flag was given.
pub(super) fn set<T: Clone>(field: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        field.clone_from(value);
    }
}
