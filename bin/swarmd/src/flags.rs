//! The daemon's flags. Names and defaults are those of the original.

use std::path::PathBuf;

use clap::Parser;
use swarm_agent::DevicePattern;
use swarm_api::v1::GenericResource;
use swarm_placement::generic;
use tracing::level_filters::LevelFilter;

/// Runs a node of a swarm: an agent that runs tasks and, where its certificate says so, a manager.
///
/// Without --join-addr a new cluster is made, with this node as its first manager. A node that was started
/// before goes on as what it was.
#[derive(Debug, Parser)]
#[command(name = "swarmd", disable_version_flag = true)]
pub(crate) struct Flags {
    /// Print the version and exit.
    #[arg(short = 'v', long)]
    pub(crate) version: bool,

    /// Least level that is logged: panic, fatal, error, warn, info, debug or trace.
    #[arg(short = 'l', long, default_value = "info", value_parser = parse_level)]
    pub(crate) log_level: LevelFilter,

    /// Directory of everything the node must remember.
    #[arg(short = 'd', long, default_value = "/var/lib/swarmd", value_name = "DIR")]
    pub(crate) state_dir: PathBuf,

    /// Join the cluster through the manager at this address (host:port).
    #[arg(long, value_name = "HOST:PORT", requires = "join_token")]
    pub(crate) join_addr: Option<String>,

    /// The cluster's join token; it decides whether this node becomes a worker or a manager. Print it with
    /// `swarmctl cluster inspect default`.
    #[arg(long, value_name = "TOKEN", requires = "join_addr", hide_env_values = true)]
    pub(crate) join_token: Option<String>,

    /// Address of the container engine, which need not be there yet; "none" runs native processes only.
    #[arg(long, default_value = "unix:///var/run/docker.sock", value_name = "URL")]
    pub(crate) engine_addr: String,

    /// Let containers on this node have all privileges, where a service asks for it: whoever may create services is root
    /// here then.
    #[arg(long)]
    pub(crate) allow_privileged: bool,

    /// What this node offers to tasks beside CPUs and memory: kind=number, or kind=name for each one that has a name.
    #[arg(long, value_name = "LIST", value_parser = parse_generic)]
    pub(crate) generic_node_resources: Option<GenericList>,

    /// File with more of them, in lines; it is read again while the daemon runs. May be given several times.
    #[arg(long, value_name = "FILE")]
    pub(crate) generic_node_resources_file: Vec<PathBuf>,

    /// Device files that are offered as generic resources, kind=/dev/NAME, where the name may hold *; looked for again while
    /// the daemon runs. May be given several times.
    #[arg(long, value_name = "KIND=PATH", value_parser = DevicePattern::parse)]
    pub(crate) discover_devices: Vec<DevicePattern>,

    /// Where NVIDIA's GPUs are looked for, to be offered as generic resources of kind gpu: on this host ("auto"), nowhere
    /// ("none"), or below a directory in which the host's /proc and /dev are.
    #[arg(long, value_name = "WHERE", default_value = "auto", value_parser = parse_gpus)]
    pub(crate) discover_gpus: Gpus,

    /// Name of this node; that of the engine or the host if not given.
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,

    /// Where other nodes reach this one while it is a manager.
    #[arg(long, default_value = "0.0.0.0:4242", value_name = "HOST:PORT")]
    pub(crate) listen_remote_api: String,

    /// Address that other nodes are told; needed when the listen address is not one they can use.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise_remote_api: Option<String>,

    /// Socket that swarmctl talks to while this node is a manager.
    #[arg(long, default_value = "/var/run/swarmd.sock", value_name = "PATH")]
    pub(crate) listen_control_api: PathBuf,

    /// Seconds between raft heartbeats.
    #[arg(long, default_value_t = 1, value_name = "TICKS")]
    pub(crate) heartbeat_tick: u32,

    /// Seconds without a leader before an election; more than the heartbeat tick.
    #[arg(long, default_value_t = 10, value_name = "TICKS")]
    pub(crate) election_tick: u32,

    /// Make a new cluster whose managers lock themselves: a restart of one needs the key that
    /// `swarmctl cluster unlock-key` prints. Without effect on a node that was started before.
    #[arg(long)]
    pub(crate) autolock: bool,

    /// Key of a locked manager, as `swarmctl cluster unlock-key` prints it. Other users of this host may see it here:
    /// better use --unlock-key-file or the environment.
    #[arg(long, value_name = "KEY", env = "SWARM_UNLOCK_KEY", hide_env_values = true)]
    pub(crate) unlock_key: Option<String>,

    /// File with the key of a locked manager.
    #[arg(long, value_name = "FILE", conflicts_with = "unlock_key")]
    pub(crate) unlock_key_file: Option<PathBuf>,

    /// All other managers are lost for ever: go on with this one's state, as the only manager.
    #[arg(long, conflicts_with = "join_addr")]
    pub(crate) force_new_cluster: bool,

    /// Begin from a backup that `swarmctl cluster backup` wrote; the state directory must be a new one.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["join_addr", "force_new_cluster", "autolock"])]
    pub(crate) restore: Option<PathBuf>,

    /// File with the passphrase, or the unlock key, that the backup is encrypted with; else it is taken from the
    /// environment variable SWARM_BACKUP_PASSPHRASE.
    #[arg(long, value_name = "FILE", requires = "restore")]
    pub(crate) passphrase_file: Option<PathBuf>,

    /// Let nobody into this node's tasks: `swarmctl task exec` and `task attach` are refused.
    #[arg(long)]
    pub(crate) no_exec: bool,

    /// Run tasks in a simulation instead of an engine: for tests and benchmarks.
    #[arg(long, hide = true)]
    pub(crate) simulate: bool,
}

/// A list of generic resources.
#[derive(Debug, Clone)]
pub(crate) struct GenericList(pub(crate) Vec<GenericResource>);

fn parse_generic(text: &str) -> Result<GenericList, String> {
    generic::parse(text).map(GenericList).map_err(|error| error.to_string())
}

/// Where GPUs are looked for: the root of a file system, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gpus(pub(crate) Option<PathBuf>);

fn parse_gpus(text: &str) -> Result<Gpus, String> {
    match text {
        "auto" => Ok(Gpus(Some(PathBuf::from("/")))),
        "none" => Ok(Gpus(None)),
        path if path.starts_with('/') => Ok(Gpus(Some(PathBuf::from(path)))),
        _ => Err("expected auto, none, or the absolute path of a directory".to_owned()),
    }
}

fn parse_level(text: &str) -> Result<LevelFilter, String> {
    match text.to_lowercase().as_str() {
        "panic" | "fatal" | "error" => Ok(LevelFilter::ERROR),
        "warn" | "warning" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err("not a level: use one of panic, fatal, error, warn, info, debug, trace".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_those_of_the_original_in_any_case() {
        for (text, level) in
            [("INFO", LevelFilter::INFO), ("warning", LevelFilter::WARN), ("panic", LevelFilter::ERROR)]
        {
            assert_eq!(parse_level(text), Ok(level));
        }
        assert!(parse_level("loud").is_err());
    }

    // Scenarios 32 and 33 of the reference sheet `cli`.
    #[test]
    fn generic_resources_are_checked_where_they_are_given() {
        let parse = |text: &str| Flags::try_parse_from(["swarmd", "--generic-node-resources", text]);
        let given = parse("gpu=a,gpu=b,fpga=2").unwrap().generic_node_resources.unwrap();
        assert_eq!(given.0.len(), 3);
        for bad in ["gpu=1,gpu=2", "gpu=a,gpu=1", "gpu=-1", "gpu", "gpu=1=2", "", "gpu=1\n"] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad:?}");
            assert!(error.to_string().contains("--generic-node-resources"), "{error}");
        }
    }

    #[test]
    fn devices_and_gpus_are_looked_for_where_one_says() {
        let parse = |flag: &str, value: &str| Flags::try_parse_from(["swarmd", flag, value]);
        assert_eq!(Flags::try_parse_from(["swarmd"]).unwrap().discover_gpus, Gpus(Some("/".into())));
        for (value, expected) in [("none", None), ("/host", Some("/host")), ("auto", Some("/"))] {
            assert_eq!(
                parse("--discover-gpus", value).unwrap().discover_gpus,
                Gpus(expected.map(Into::into))
            );
        }
        assert!(parse("--discover-gpus", "host").is_err());
        assert_eq!(parse("--discover-devices", "tty=/dev/tty*").unwrap().discover_devices.len(), 1);
        assert!(parse("--discover-devices", "/dev/tty*").is_err());
    }

    #[test]
    fn a_token_without_an_address_is_refused() {
        let error = Flags::try_parse_from(["swarmd", "--join-token", "x"]).unwrap_err();
        assert!(error.to_string().contains("--join-addr"), "{error}");
    }

    #[test]
    fn ways_to_begin_that_exclude_each_other_are_refused() {
        for words in [
            &["--force-new-cluster", "--join-addr", "h:1", "--join-token", "x"][..],
            &["--restore", "f", "--force-new-cluster"],
            &["--restore", "f", "--join-addr", "h:1", "--join-token", "x"],
            &["--passphrase-file", "f"],
            &["--unlock-key", "k", "--unlock-key-file", "f"],
        ] {
            assert!(Flags::try_parse_from([&["swarmd"], words].concat()).is_err(), "{words:?}");
        }
    }

    #[test]
    fn an_address_without_a_token_is_refused() {
        let error = Flags::try_parse_from(["swarmd", "--join-addr", "127.0.0.1:4242"]).unwrap_err();
        assert!(error.to_string().contains("--join-token"), "{error}");
    }
}
