//! Flags that shape a container.

use swarm_api::extensions::PREFIX;
use swarm_api::v1::container_spec::{self, DnsConfig, PullOptions, Ulimit};
use swarm_api::v1::{ContainerSpec, HealthConfig, Mount};

use super::container_flags::{ContainerFlags, Isolation};
use super::process::for_processes;
use super::{Found, ServiceFlags, env, privileges, registry, start};
use crate::error::{Error, Result};
use crate::values::csv::join;
use crate::values::{mount, mount_fields, pair, ulimit};

/// Applies what was given.
pub(super) fn apply(container: &mut ContainerSpec, flags: &ServiceFlags, found: &Found) -> Result<()> {
    if let Some(flag) = for_processes(flags) {
        return Err(Error::usage(format!(
            "{flag} is for native processes, and this service runs containers"
        )));
    }
    if let Some(image) = &flags.image
        && registry::registry(image) != registry::registry(&container.image)
    {
        // They are those of another registry; this one is not to see them.
        container.pull_options = None;
    }
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
    set(&mut container.command, flags.command()?.as_ref());
    set(&mut container.args, super::process::words(flags).as_ref());
    set(&mut container.env, env::given(flags)?.as_ref());
    set(&mut container.groups, join(flags.group.as_ref()).as_ref());
    if flags.init.is_some() {
        container.init = flags.init;
    }
    if flags.stop_grace_period.is_some() {
        container.stop_grace_period = flags.stop_grace_period;
    }
    if let Some(terms) = join(flags.container_label.as_ref()) {
        // Ours are set by flags of their own.
        container.labels.retain(|label, _| label.starts_with(PREFIX));
        container.labels.extend(pair::labels(&terms).map_err(Error::Usage)?);
    }
    if let Some(terms) = join(flags.ulimit.as_ref()) {
        let limits = terms.iter().map(|term| {
            ulimit::parse(term).map(|limit| Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard })
        });
        container.ulimits = limits.collect::<Result<_, _>>().map_err(Error::Usage)?;
    }
    let present = container.mounts.len();
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
    start::apply_to_container(container, &flags.start)?;
    let flags = &flags.container;
    // Each occurrence is one mount; an empty one adds none.
    let fields = flags.mount.iter().flatten().filter(|fields| !fields.0.is_empty());
    let mounts = fields.map(|fields| mount_fields::parse(&fields.0)).collect::<Result<Vec<_>, _>>();
    mount_over(&mut container.mounts, present, mounts.map_err(Error::Usage)?);
    let (add, drop) = (&mut container.capability_add, &mut container.capability_drop);
    privileges::capabilities(flags.cap_drop.as_ref(), add, drop);
    privileges::capabilities(flags.cap_add.as_ref(), drop, add);
    if let Some(terms) = join(flags.host.as_ref()) {
        container.hosts = terms.iter().map(|term| host(term)).collect::<Result<_>>()?;
    }
    if let Some(terms) = join(flags.sysctl.as_ref()) {
        container.sysctls = pair::labels(&terms).map_err(Error::Usage)?;
    }
    if let Some(isolation) = flags.isolation {
        container.isolation = match isolation {
            Isolation::Default => container_spec::Isolation::Default,
            Isolation::Process => container_spec::Isolation::Process,
            Isolation::Hyperv => container_spec::Isolation::Hyperv,
        } as i32;
    }
    dns(container, flags);
    health(&mut container.healthcheck, flags)?;
    privileges::apply(container, flags, found)?;
    match flags.with_registry_auth {
        Some(true) => {
            let registry_auth = registry::credentials(&container.image)?;
            container.pull_options = Some(PullOptions { registry_auth });
        }
        Some(false) => container.pull_options = None,
        None => {}
    }
    Ok(())
}

/// Adds mounts. Each takes the place of that one of the first `present` which has its target; where two of those that are new
/// have one, the manager refuses them.
fn mount_over(mounts: &mut Vec<Mount>, present: usize, new: Vec<Mount>) {
    let mut replaced = vec![false; present];
    for mount in new {
        let place = mounts[..present].iter().position(|old| old.target == mount.target);
        match place.filter(|place| !std::mem::replace(&mut replaced[*place], true)) {
            Some(place) => mounts[place] = mount,
            None => mounts.push(mount),
        }
    }
}

/// `name:address` as the spec has it: the address first.
pub(super) fn host(term: &str) -> Result<String> {
    let pair = term.split_once(':').filter(|(name, address)| {
        !name.is_empty() && !name.contains(char::is_whitespace) && address.parse::<std::net::IpAddr>().is_ok()
    });
    // The name of the address of the engine's host is the engine's.
    let gateway =
        || term.split_once(':').filter(|(name, address)| !name.is_empty() && *address == "host-gateway");
    let (name, address) =
        pair.or_else(gateway).ok_or_else(|| Error::usage(format!("host {term:?} is no name:address")))?;
    Ok(format!("{address} {name}"))
}

fn dns(container: &mut ContainerSpec, flags: &ContainerFlags) {
    let lists = [&flags.dns, &flags.dns_search, &flags.dns_option].map(|lists| join(lists.as_ref()));
    if lists.iter().all(Option::is_none) {
        return;
    }
    let config = container.dns_config.get_or_insert_default();
    let [servers, search, options] = lists;
    set(&mut config.nameservers, servers.as_ref());
    set(&mut config.search, search.as_ref());
    set(&mut config.options, options.as_ref());
    without_empty_dns(container);
}

/// Nothing in it is nothing: an empty one would replace all tasks.
pub(super) fn without_empty_dns(container: &mut ContainerSpec) {
    container.dns_config.take_if(|config| *config == DnsConfig::default());
}

/// How the health of a task is checked.
pub(super) fn health(healthcheck: &mut Option<HealthConfig>, flags: &ContainerFlags) -> Result<()> {
    let none = || HealthConfig { test: vec!["NONE".to_owned()], ..Default::default() };
    match flags.no_healthcheck {
        Some(true) => *healthcheck = Some(none()),
        Some(false) if *healthcheck == Some(none()) => *healthcheck = None,
        _ => {}
    }
    let times =
        [flags.health_interval, flags.health_timeout, flags.health_start_period, flags.health_start_interval];
    if flags.health_cmd.is_none() && flags.health_retries.is_none() && times.iter().all(Option::is_none) {
        return Ok(());
    }
    let check = healthcheck.get_or_insert_default();
    if check.test.first().is_some_and(|word| word == "NONE") {
        if flags.health_cmd.is_none() {
            return Err(Error::usage("the service has no health check: --health-cmd gives it one"));
        }
        *check = HealthConfig::default();
    }
    match flags.health_cmd.as_deref() {
        Some("") => check.test.clear(),
        Some(command) => check.test = vec!["CMD-SHELL".to_owned(), command.to_owned()],
        None => {}
    }
    if let Some(retries) = flags.health_retries {
        check.retries =
            i32::try_from(retries).map_err(|_| Error::usage("--health-retries: the number is too large"))?;
    }
    let fields =
        [&mut check.interval, &mut check.timeout, &mut check.start_period, &mut check.start_interval];
    for (field, time) in fields.into_iter().zip(times) {
        *field = time.or(*field);
    }
    if *check == HealthConfig::default() {
        *healthcheck = None;
    }
    Ok(())
}

/// Replaces a field if its flag was given.
pub(super) fn set<T: Clone>(field: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        field.clone_from(value);
    }
}
