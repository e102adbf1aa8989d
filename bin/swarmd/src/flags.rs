//! The daemon's flags. Names and defaults are those of the original.

use std::path::PathBuf;

use clap::Parser;
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

    /// Address of the container engine; "none" runs native processes only.
    #[arg(long, default_value = "unix:///var/run/docker.sock", value_name = "URL")]
    pub(crate) engine_addr: String,

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
