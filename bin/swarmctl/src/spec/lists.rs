//! Flags of `service update` that add to lists and take from them, where others replace them.
//!
//! What is taken goes before what is added comes, so one command may exchange something.

use clap::Args;
use swarm_api::extensions::PREFIX;
use swarm_api::swarmd::ProcessSpec;
use swarm_api::v1::container_spec::Ulimit;
use swarm_api::v1::port_config::Protocol;
use swarm_api::v1::{
    ContainerSpec, GenericResource, NetworkAttachmentConfig, PlacementPreference, PortConfig, ServiceSpec,
};
use swarm_placement::{Constraint, generic};

use super::apply::placement;
use super::extensions::kind_of;
use super::references::Found;
use super::{container, process};
use crate::error::{Error, Result};
use crate::values::csv::join;
use crate::values::network::{self, Attachment};
use crate::values::{List, pair, preference, publish, ulimit};

/// Flags of update.
#[derive(Debug, Default, Args)]
pub(crate) struct ListFlags {
    /// Set labels of the service, key=value
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    label_add: Option<Vec<List>>,
    /// Take labels from the service, by key
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    label_rm: Option<Vec<List>>,
    /// Set variables of the environment, NAME=value
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, help_heading = "What runs")]
    env_add: Option<Vec<List>>,
    /// Take variables from the environment, by name
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, help_heading = "What runs")]
    env_rm: Option<Vec<List>>,
    /// Add supplementary groups
    #[arg(long, value_name = "LIST", help_heading = "What runs")]
    group_add: Option<Vec<List>>,
    /// Take supplementary groups away
    #[arg(long, value_name = "LIST", help_heading = "What runs")]
    group_rm: Option<Vec<List>>,
    /// Set limits of processes, name=soft or name=soft:hard
    #[arg(long, value_name = "LIST", help_heading = "What runs")]
    ulimit_add: Option<Vec<List>>,
    /// Take limits of processes away, by name
    #[arg(long, value_name = "LIST", help_heading = "What runs")]
    ulimit_rm: Option<Vec<List>>,
    /// Set labels of the containers, key=value
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    container_label_add: Option<Vec<List>>,
    /// Take labels from the containers, by key
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    container_label_rm: Option<Vec<List>>,
    /// Add name servers
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    dns_add: Option<Vec<List>>,
    /// Take name servers away
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    dns_rm: Option<Vec<List>>,
    /// Add domains in which names are looked up
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    dns_search_add: Option<Vec<List>>,
    /// Take such domains away
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    dns_search_rm: Option<Vec<List>>,
    /// Add options of the resolver
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    dns_option_add: Option<Vec<List>>,
    /// Take options of the resolver away
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    dns_option_rm: Option<Vec<List>>,
    /// Add names of hosts, name:address
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    host_add: Option<Vec<List>>,
    /// Take names of hosts away, name or name:address
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    host_rm: Option<Vec<List>>,
    /// Set kernel parameters of the container, name=value
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    sysctl_add: Option<Vec<List>>,
    /// Take kernel parameters away, by name
    #[arg(long, value_name = "LIST", help_heading = "Containers only")]
    sysctl_rm: Option<Vec<List>>,
    /// Attach to more networks, by name or ID, or to one as name=…,alias=…,driver-opt=key=value
    #[arg(long, value_name = "NETWORKS", help_heading = "Network")]
    network_add: Option<Vec<List>>,
    /// Take networks away, by name or ID
    #[arg(long, value_name = "LIST", help_heading = "Network")]
    network_rm: Option<Vec<List>>,
    /// Publish more ports, target or published:target, with /protocol if it is not tcp, or one as
    /// published=…,target=…,protocol=…,mode=host|ingress
    #[arg(long, value_name = "PORTS", help_heading = "Network")]
    publish_add: Option<Vec<List>>,
    /// Publish ports no more, target[/protocol]
    #[arg(long, value_name = "LIST", help_heading = "Network")]
    publish_rm: Option<Vec<List>>,
    /// Reserve generic resources, kind=number
    #[arg(long, value_name = "LIST", help_heading = "Resources and placement")]
    generic_resource_add: Option<Vec<List>>,
    /// Reserve generic resources no more, by kind
    #[arg(long, value_name = "LIST", help_heading = "Resources and placement")]
    generic_resource_rm: Option<Vec<List>>,
    /// Add constraints
    #[arg(long, value_name = "LIST", help_heading = "Resources and placement")]
    constraint_add: Option<Vec<List>>,
    /// Take constraints away
    #[arg(long, value_name = "LIST", help_heading = "Resources and placement")]
    constraint_rm: Option<Vec<List>>,
    /// Add placement preferences, spread=node.labels.NAME
    #[arg(long, value_name = "LIST", help_heading = "Resources and placement")]
    placement_pref_add: Option<Vec<List>>,
    /// Take placement preferences away
    #[arg(long, value_name = "LIST", help_heading = "Resources and placement")]
    placement_pref_rm: Option<Vec<List>>,
}

/// What comes, and what goes.
#[derive(Debug)]
struct Edit<A, R = String> {
    add: Vec<A>,
    rm: Vec<R>,
}

impl<A, R> Default for Edit<A, R> {
    fn default() -> Self {
        Edit { add: Vec::new(), rm: Vec::new() }
    }
}

impl<A, R> Edit<A, R> {
    fn is_empty(&self) -> bool {
        self.add.is_empty() && self.rm.is_empty()
    }
}

impl Edit<String> {
    fn of(add: Option<&Vec<List>>, rm: Option<&Vec<List>>) -> Self {
        Edit { add: join(add).unwrap_or_default(), rm: join(rm).unwrap_or_default() }
    }

    /// Changes a list of texts: none twice.
    fn texts(&self, list: &mut Vec<String>) {
        list.retain(|text| !self.rm.contains(text));
        for text in &self.add {
            if !list.contains(text) {
                list.push(text.clone());
            }
        }
    }

    /// Changes pairs; those of ours have flags of their own.
    fn pairs(&self, pairs: &mut std::collections::BTreeMap<String, String>) -> Result<()> {
        pairs.retain(|key, _| key.starts_with(PREFIX) || !self.rm.contains(key));
        pairs.extend(pair::labels(&self.add).map_err(Error::Usage)?);
        Ok(())
    }

    /// Changes `NAME=value`: a name that is there keeps its place.
    fn variables(&self, list: &mut Vec<String>) {
        fn name(entry: &str) -> &str {
            entry.split_once('=').map_or(entry, |(name, _)| name)
        }
        list.retain(|entry| !self.rm.iter().any(|rm| rm == name(entry)));
        for added in &self.add {
            match list.iter_mut().find(|entry| name(entry) == name(added)) {
                Some(entry) => entry.clone_from(added),
                None => list.push(added.clone()),
            }
        }
    }
}

/// What the flags say.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    labels: Edit<String>,
    env: Edit<String>,
    groups: Edit<String>,
    ulimits: Edit<ulimit::Ulimit>,
    container_labels: Edit<String>,
    dns: [Edit<String>; 3],
    hosts: Edit<String>,
    sysctls: Edit<String>,
    networks: Edit<Attachment>,
    ports: Edit<PortConfig, (u32, Protocol)>,
    generic: Edit<GenericResource>,
    constraints: Edit<String>,
    preferences: Edit<PlacementPreference, PlacementPreference>,
}

impl Lists {
    pub(super) fn of(flags: &ListFlags) -> Result<Lists> {
        fn read<T>(texts: &[String], parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>> {
            texts.iter().map(|text| parse(text)).collect::<Result<_, _>>().map_err(Error::Usage)
        }
        let ulimits = Edit::of(flags.ulimit_add.as_ref(), flags.ulimit_rm.as_ref());
        let reservations = Edit::of(flags.generic_resource_add.as_ref(), flags.generic_resource_rm.as_ref());
        let constraints = Edit::of(flags.constraint_add.as_ref(), flags.constraint_rm.as_ref());
        let preferences = Edit::of(flags.placement_pref_add.as_ref(), flags.placement_pref_rm.as_ref());
        let ports = join(flags.publish_rm.as_ref()).unwrap_or_default();
        Constraint::parse_all(&constraints.add).map_err(|error| Error::usage(error.to_string()))?;
        let reserved = match reservations.add.join(",") {
            text if text.is_empty() => Vec::new(),
            text => generic::parse_request(&text).map_err(|error| Error::usage(error.to_string()))?,
        };
        Ok(Lists {
            labels: Edit::of(flags.label_add.as_ref(), flags.label_rm.as_ref()),
            env: Edit::of(flags.env_add.as_ref(), flags.env_rm.as_ref()),
            groups: Edit::of(flags.group_add.as_ref(), flags.group_rm.as_ref()),
            ulimits: Edit { add: read(&ulimits.add, ulimit::parse)?, rm: ulimits.rm },
            container_labels: Edit::of(flags.container_label_add.as_ref(), flags.container_label_rm.as_ref()),
            dns: [
                Edit::of(flags.dns_add.as_ref(), flags.dns_rm.as_ref()),
                Edit::of(flags.dns_search_add.as_ref(), flags.dns_search_rm.as_ref()),
                Edit::of(flags.dns_option_add.as_ref(), flags.dns_option_rm.as_ref()),
            ],
            hosts: Edit::of(flags.host_add.as_ref(), flags.host_rm.as_ref()),
            sysctls: Edit::of(flags.sysctl_add.as_ref(), flags.sysctl_rm.as_ref()),
            networks: Edit {
                add: attachments(flags.network_add.as_ref())?.unwrap_or_default(),
                rm: join(flags.network_rm.as_ref()).unwrap_or_default(),
            },
            ports: Edit {
                add: published(flags.publish_add.as_ref())?.unwrap_or_default(),
                rm: read(&ports, publish::target)?,
            },
            generic: Edit { add: reserved, rm: reservations.rm },
            constraints,
            preferences: Edit {
                add: read(&preferences.add, preference::parse)?,
                rm: read(&preferences.rm, preference::parse)?,
            },
        })
    }

    /// Names and ids of networks that have to be looked up.
    pub(crate) fn networks(&self) -> impl Iterator<Item = &String> {
        self.networks.add.iter().map(|attachment| &attachment.network).chain(&self.networks.rm)
    }

    /// The first that processes don't have.
    pub(super) fn for_containers(&self) -> Option<&'static str> {
        let given = [
            ("--container-label-add and --container-label-rm", !self.container_labels.is_empty()),
            ("--dns-add, --dns-rm and the like", self.dns.iter().any(|edit| !edit.is_empty())),
            ("--host-add and --host-rm", !self.hosts.is_empty()),
            ("--sysctl-add and --sysctl-rm", !self.sysctls.is_empty()),
            ("--network-add and --network-rm", !self.networks.is_empty()),
        ];
        given.iter().find(|(_, given)| *given).map(|(flags, _)| *flags)
    }

    /// Changes what services have whatever they run.
    pub(super) fn apply(&self, spec: &mut ServiceSpec, found: &Found) -> Result<()> {
        if !self.labels.is_empty() {
            self.labels.pairs(&mut spec.annotations.labels)?;
        }
        self.reservations(spec);
        if !self.networks.is_empty() {
            let gone = self.networks.rm.iter().map(|name| found.network(name));
            let gone = gone.collect::<Result<Vec<_>>>()?;
            let networks = &mut spec.task.networks;
            networks.retain(|network| !gone.contains(&network.target.as_str()));
            for attachment in &self.networks.add {
                let network = attached(attachment, found)?;
                match networks.iter_mut().find(|present| present.target == network.target) {
                    Some(present) => *present = network,
                    None => networks.push(network),
                }
            }
        }
        if !self.ports.add.is_empty() {
            spec.endpoint.get_or_insert_default();
        }
        if let Some(endpoint) = &mut spec.endpoint {
            let same = |port: &PortConfig, (target, protocol): (u32, Protocol)| {
                port.target_port == target && port.protocol() == protocol
            };
            endpoint.ports.retain(|port| !self.ports.rm.iter().any(|gone| same(port, *gone)));
            let new = self.ports.add.iter().filter(|port| !endpoint.ports.contains(port));
            endpoint.ports.extend(new.cloned().collect::<Vec<_>>());
        }
        if !self.constraints.is_empty()
            && let Some(placement) = placement(spec, self.constraints.add.is_empty())
        {
            self.constraints.texts(&mut placement.constraints);
        }
        if !self.preferences.is_empty()
            && let Some(placement) = placement(spec, self.preferences.add.is_empty())
        {
            let preferences = &mut placement.preferences;
            preferences.retain(|preference| !self.preferences.rm.contains(preference));
            for preference in &self.preferences.add {
                if !preferences.contains(preference) {
                    preferences.push(preference.clone());
                }
            }
        }
        Ok(())
    }

    fn reservations(&self, spec: &mut ServiceSpec) {
        let Edit { add, rm } = &self.generic;
        if !add.is_empty() {
            spec.task.resources.get_or_insert_default().reservations.get_or_insert_default();
        } else if rm.is_empty() || spec.task.resources.is_none() {
            return;
        }
        let reservations = spec.task.resources.as_mut().and_then(|resources| resources.reservations.as_mut());
        let Some(reservations) = reservations else { return };
        let replaced = |resource: &GenericResource| {
            let kind = kind_of(resource);
            rm.iter().any(|rm| kind == Some(rm)) || add.iter().any(|added| kind == kind_of(added))
        };
        reservations.generic.retain(|resource| !replaced(resource));
        reservations.generic.extend(add.iter().cloned());
    }

    /// Changes a container.
    pub(super) fn apply_to_container(&self, container: &mut ContainerSpec) -> Result<()> {
        self.env.variables(&mut container.env);
        self.groups.texts(&mut container.groups);
        if !self.ulimits.is_empty() {
            container.ulimits.retain(|limit| !self.ulimits.replaces(&limit.name));
            let new = self.ulimits.add.iter();
            container.ulimits.extend(new.map(|limit| Ulimit {
                name: limit.name.clone(),
                soft: limit.soft,
                hard: limit.hard,
            }));
        }
        self.container_labels.pairs(&mut container.labels)?;
        self.sysctls.pairs(&mut container.sysctls)?;
        self.hosts(&mut container.hosts)?;
        if self.dns.iter().any(|edit| !edit.is_empty()) {
            let config = container.dns_config.get_or_insert_default();
            let lists = [&mut config.nameservers, &mut config.search, &mut config.options];
            lists.into_iter().zip(&self.dns).for_each(|(list, edit)| edit.texts(list));
            container::without_empty_dns(container);
        }
        Ok(())
    }

    /// Entries are `address name…`.
    fn hosts(&self, hosts: &mut Vec<String>) -> Result<()> {
        for term in &self.hosts.rm {
            let entry = term.contains(':').then(|| container::host(term)).transpose()?;
            hosts.retain(|present| match &entry {
                Some(entry) => present != entry,
                None => !present.split_whitespace().skip(1).any(|name| name == term),
            });
        }
        for term in &self.hosts.add {
            let entry = container::host(term)?;
            if !hosts.contains(&entry) {
                hosts.push(entry);
            }
        }
        Ok(())
    }

    /// Changes a native process.
    pub(super) fn apply_to_process(&self, process: &mut ProcessSpec) -> Result<()> {
        if let Some(flags) = self.for_containers() {
            return Err(Error::usage(format!(
                "{flags} are for containers, and this service runs native processes"
            )));
        }
        self.env.variables(&mut process.env);
        self.groups.texts(&mut process.groups);
        process.rlimits.retain(|limit| !self.ulimits.replaces(&limit.name));
        process.rlimits.extend(self.ulimits.add.iter().map(process::rlimit));
        Ok(())
    }
}

impl Edit<ulimit::Ulimit> {
    fn replaces(&self, name: &str) -> bool {
        self.rm.iter().any(|rm| rm == name) || self.add.iter().any(|limit| limit.name == name)
    }
}

/// The networks of a flag; `None` if it was not given.
pub(super) fn attachments(lists: Option<&Vec<List>>) -> Result<Option<Vec<Attachment>>> {
    let Some(lists) = lists else { return Ok(None) };
    let found = lists.iter().map(|list| network::parse_all(&list.0));
    Ok(Some(found.collect::<Result<Vec<_>, _>>().map_err(Error::Usage)?.concat()))
}

/// The ports of a flag; `None` if it was not given.
pub(super) fn published(lists: Option<&Vec<List>>) -> Result<Option<Vec<PortConfig>>> {
    let Some(lists) = lists else { return Ok(None) };
    let found = lists.iter().map(|list| publish::parse_all(&list.0));
    Ok(Some(found.collect::<Result<Vec<_>, _>>().map_err(Error::Usage)?.concat()))
}

/// As the spec has it.
pub(super) fn attached(attachment: &Attachment, found: &Found) -> Result<NetworkAttachmentConfig> {
    Ok(NetworkAttachmentConfig {
        target: found.network(&attachment.network)?.to_owned(),
        aliases: attachment.aliases.clone(),
        driver_attachment_opts: attachment.options.clone(),
        ..Default::default()
    })
}
