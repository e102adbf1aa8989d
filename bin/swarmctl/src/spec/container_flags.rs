//! The flags of `service create` and `service update` that only containers have: how they are set up, what they may do, and
//! when they are healthy.

use clap::{Args, ValueEnum};

use crate::values::{List, boolean, integer, unsigned};

/// How a container of Windows is kept apart from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Isolation {
    Default,
    Process,
    Hyperv,
}

/// Whether AppArmor confines a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AppArmor {
    /// By the engine's profile
    Default,
    /// Not at all
    Disabled,
}

/// Flags of containers.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Containers only")]
pub(crate) struct ContainerFlags {
    /// Mount something, such as type=bind,source=/srv,target=/data,readonly; type is bind, volume, tmpfs, npipe or cluster;
    /// adds to those there, or takes the place of the one with its target
    #[arg(long, visible_alias = "mount-add", value_name = "FIELDS")]
    pub(crate) mount: Option<Vec<List>>,
    /// Name servers; replaces all
    #[arg(long, value_name = "LIST")]
    pub(crate) dns: Option<Vec<List>>,
    /// Domains in which names are looked up; replaces all
    #[arg(long, value_name = "LIST")]
    pub(crate) dns_search: Option<Vec<List>>,
    /// Options of the resolver, such as ndots:2; replaces all
    #[arg(long, value_name = "LIST")]
    pub(crate) dns_option: Option<Vec<List>>,
    /// More names of hosts, name:address; replaces all
    #[arg(long, value_name = "LIST")]
    pub(crate) host: Option<Vec<List>>,
    /// Kernel parameters of the container, name=value; replaces all
    #[arg(long, value_name = "LIST")]
    pub(crate) sysctl: Option<Vec<List>>,
    /// Devices of the node, HOST, HOST:CONTAINER or HOST:CONTAINER:rwm; replaces all
    #[arg(long, value_name = "LIST")]
    pub(crate) device: Option<Vec<List>>,
    /// Give containers all privileges, on nodes whose daemon allows it (--allow-privileged)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(crate) privileged: Option<bool>,
    /// GPUs, reserved among the generic resources of kind gpu: a number, all of a node, device=NAME for those with these
    /// names, kind=KIND for another kind, or none
    #[arg(long, value_name = "GPUS")]
    pub(crate) gpus: Option<List>,
    /// Capabilities that containers have beyond the usual ones; adds to those there, and they are dropped no more; an empty
    /// list takes them all away
    #[arg(long, value_name = "LIST")]
    pub(crate) cap_add: Option<Vec<List>>,
    /// Capabilities that containers do not have; adds to those there, and they are had no more; an empty list takes none away
    #[arg(long, value_name = "LIST")]
    pub(crate) cap_drop: Option<Vec<List>>,
    /// How containers of Windows are kept apart
    #[arg(long, value_name = "HOW")]
    pub(crate) isolation: Option<Isolation>,
    /// Account of containers of Windows: file://NAME, registry://NAME or config://NAME; nothing takes it away
    #[arg(long, value_name = "SPEC")]
    pub(crate) credential_spec: Option<String>,
    /// SELinux labels: disable, or user=…, role=…, type=…, level=…; replaces all
    #[arg(long, value_name = "LIST")]
    pub(crate) selinux: Option<Vec<List>>,
    /// System calls: default, unconfined, or a file with a profile
    #[arg(long, value_name = "PROFILE")]
    pub(crate) seccomp: Option<String>,
    /// Whether AppArmor confines containers
    #[arg(long, value_name = "HOW")]
    pub(crate) apparmor: Option<AppArmor>,
    /// Let no process gain privileges, by setuid for instance
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(crate) no_new_privileges: Option<bool>,
    /// Send the credentials that `docker login` stored for the image's registry
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(crate) with_registry_auth: Option<bool>,
    /// Swap that a task may use beside its memory limit, such as 64m, or -1 for any amount; without a limit there is none
    #[arg(long, value_name = "SIZE", value_parser = swap, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<i64>,
    /// How readily the kernel swaps, 0 to 100, or -1 for the host's setting
    #[arg(long, value_name = "N", value_parser = swappiness, allow_hyphen_values = true)]
    pub(crate) memory_swappiness: Option<i64>,

    /// Command, for a shell, that succeeds in, or beside, a task that is healthy; a task runs once it did
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true, help_heading = "Health")]
    pub(crate) health_cmd: Option<String>,
    /// Time between two checks [default: the image's, or 30s]
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration::not_negative, allow_hyphen_values = true, help_heading = "Health")]
    pub(crate) health_interval: Option<prost_types::Duration>,
    /// Longest time of a check [default: the image's, or 30s]
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration::not_negative, allow_hyphen_values = true, help_heading = "Health")]
    pub(crate) health_timeout: Option<prost_types::Duration>,
    /// Failures in a row that make a task unhealthy: it is stopped then [default: the image's, or 3]
    #[arg(long, value_name = "N", value_parser = unsigned, allow_negative_numbers = true, help_heading = "Health")]
    pub(crate) health_retries: Option<u64>,
    /// Time after the start in which failures do not count [default: the image's, or 0s]
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration::not_negative, allow_hyphen_values = true, help_heading = "Health")]
    pub(crate) health_start_period: Option<prost_types::Duration>,
    /// Time between two checks within that time; containers need Docker Engine 25 [default: the image's, or 5s]
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration::not_negative, allow_hyphen_values = true, help_heading = "Health")]
    pub(crate) health_start_interval: Option<prost_types::Duration>,
    /// Check nothing, whatever the image says
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, help_heading = "Health",
        conflicts_with_all = ["health_cmd", "health_interval", "health_timeout", "health_retries", "health_start_period", "health_start_interval"])]
    pub(crate) no_healthcheck: Option<bool>,
}

fn swap(text: &str) -> Result<i64, String> {
    match text {
        "-1" => Ok(-1),
        _ => crate::values::size::parse(text),
    }
}

fn swappiness(text: &str) -> Result<i64, String> {
    match integer::<i64>(text) {
        Ok(number @ -1..=100) => Ok(number),
        _ => Err("expected a number from 0 to 100, or -1".to_owned()),
    }
}

impl ContainerFlags {
    /// The first flag that was given and that processes don't have.
    pub(super) fn first(&self) -> Option<&'static str> {
        let given = [
            ("--mount", self.mount.is_some()),
            ("--dns", self.dns.is_some()),
            ("--dns-search", self.dns_search.is_some()),
            ("--dns-option", self.dns_option.is_some()),
            ("--host", self.host.is_some()),
            ("--sysctl", self.sysctl.is_some()),
            ("--device", self.device.is_some()),
            ("--privileged", self.privileged.is_some()),
            ("--gpus", self.gpus.is_some()),
            ("--cap-add", self.cap_add.is_some()),
            ("--cap-drop", self.cap_drop.is_some()),
            ("--isolation", self.isolation.is_some()),
            ("--credential-spec", self.credential_spec.is_some()),
            ("--selinux", self.selinux.is_some()),
            ("--seccomp", self.seccomp.is_some()),
            ("--apparmor", self.apparmor.is_some()),
            ("--no-new-privileges", self.no_new_privileges.is_some()),
            ("--with-registry-auth", self.with_registry_auth.is_some()),
            ("--memory-swap", self.memory_swap.is_some()),
            ("--memory-swappiness", self.memory_swappiness.is_some()),
        ];
        given.iter().find(|(_, given)| *given).map(|(flag, _)| *flag)
    }

    /// Name of the config that holds the credential spec.
    pub(crate) fn credential_config(&self) -> Option<&str> {
        self.credential_spec.as_deref()?.strip_prefix("config://")
    }
}
