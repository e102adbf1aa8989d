//! The command line as a whole.

use clap::{Parser, Subcommand};

use crate::commands::{cluster, config, image, network, node, secret, service, task};
use crate::values::boolean;

/// Control a swarm: its nodes, services and tasks.
#[derive(Debug, Parser)]
#[command(name = "swarmctl", args_override_self = true, disable_version_flag = true, max_term_width = 110)]
pub(crate) struct Cli {
    /// Control socket of a manager
    #[arg(
        short,
        long,
        global = true,
        env = "SWARM_SOCKET",
        default_value = "/var/run/swarmd.sock",
        value_name = "PATH"
    )]
    pub(crate) socket: String,

    /// Show IDs in place of names
    #[arg(short, long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = boolean, value_name = "BOOL", hide_default_value = true)]
    pub(crate) no_resolve: bool,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Groups of commands. A group alone shows its help.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The cluster: settings, join tokens
    Cluster {
        #[command(subcommand)]
        command: Option<cluster::Command>,
    },
    /// Configs: files for tasks
    Config {
        #[command(subcommand)]
        command: Option<config::Command>,
    },
    /// Images: what nodes have before tasks need it
    Image {
        #[command(subcommand)]
        command: Option<image::Command>,
    },
    /// Networks
    Network {
        #[command(subcommand)]
        command: Option<network::Command>,
    },
    /// Nodes: machines of the cluster
    Node {
        #[command(subcommand)]
        command: Option<node::Command>,
    },
    /// Secrets: files for tasks that nobody else sees
    Secret {
        #[command(subcommand)]
        command: Option<secret::Command>,
    },
    /// Services: what is to run
    #[command(visible_alias = "svc")]
    Service {
        #[command(subcommand)]
        command: Option<service::Command>,
    },
    /// Tasks: what runs
    Task {
        #[command(subcommand)]
        command: Option<task::Command>,
    },
    /// Show the version of this program
    Version,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["swarmctl"], words].concat())
    }

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_after_the_commands() {
        for words in [
            &["-s", "/x", "node", "ls"][..],
            &["node", "-s/x", "ls"],
            &["node", "ls", "--socket=/x"],
            &["node", "ls", "-s", "/y", "-s", "/x"],
        ] {
            assert_eq!(parse(words).unwrap().socket, "/x", "{words:?}");
        }
    }

    #[test]
    fn booleans_take_a_value_only_behind_an_equals_sign() {
        assert!(parse(&["task", "ls", "-n"]).unwrap().no_resolve);
        assert!(!parse(&["task", "ls", "--no-resolve=false"]).unwrap().no_resolve);
        assert!(parse(&["task", "ls", "--no-resolve", "false"]).is_err());
        let Some(Command::Task { command: Some(task::Command::Ls { all, quiet }) }) =
            parse(&["task", "ls", "-aq"]).unwrap().command
        else {
            panic!("task ls")
        };
        assert!(all && quiet);
    }

    #[test]
    fn wrong_words_are_refused() {
        for words in [
            &["nodes"][..],
            &["node", "foo"],
            &["node", "ls", "extra"],
            &["node", "inspect"],
            &["node", "inspect", "a", "b"],
            &["secret", "remove", "a", "b"],
            &["service", "create", "--name", "x", "--mode", "both"],
            &["service", "create", "--restart-condition", "onfailure"],
            &["service", "create", "--command", "a", "--entrypoint", "b"],
            // What Docker's update has no short forms of would replace lists.
            &["service", "update", "web", "-e", "A=1"],
            &["service", "update", "web", "-l", "a=1"],
            &["service", "update", "web", "-p", "80"],
            &["service", "create", "--rollback-on-failure", "rollback"],
            &["service", "create", "--update-delay", "5"],
            &["service", "create", "--log-opt", "a=b"],
            &["service", "create", "--nam", "x"],
            &["cluster", "update", "default", "--rotate-join-token", "both"],
        ] {
            let error = parse(words).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words:?}: {error}");
        }
    }
}
