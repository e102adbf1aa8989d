//! The cluster.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use swarm_api::Shared;
use swarm_api::extensions::{self, ClusterPolicy};
use swarm_api::swarmd::UnlockRequest;
use swarm_api::v1::{
    Cluster, ClusterSpec, Driver, GetUnlockKeyRequest, KeyRotation, ListClustersRequest, UpdateClusterRequest,
};

use super::{Context, backup, ids, secret_line};
use crate::error::{Error, Result};
use crate::output::Table;
use crate::resolve;
use crate::values::csv::join;
use crate::values::{List, boolean, duration, pair};

/// Commands on the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write the whole state of the cluster into an encrypted file, for swarmd --restore
    Backup(backup::Flags),
    /// Show the cluster, join tokens included
    Inspect(One),
    /// List clusters; there is one, named default
    Ls {
        /// IDs only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Give a locked manager its key
    Unlock {
        /// File with the key, - for the standard input; else SWARM_UNLOCK_KEY, else the standard input
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
    /// Show the key that unlocks managers
    UnlockKey {
        #[command(flatten)]
        cluster: One,
        /// Replace it first
        #[arg(long)]
        rotate: bool,
        /// The key only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Change the cluster's settings
    Update {
        #[command(flatten)]
        cluster: One,
        #[command(flatten)]
        flags: Flags,
    },
}

/// The cluster.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// ID of the cluster, its name, or how its ID begins
    #[arg(default_value = "default")]
    cluster: String,
}

/// A kind of join tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Token {
    Worker,
    Manager,
}

/// Flags of update. Only those that are given change anything.
#[derive(Debug, Default, Args)]
pub(crate) struct Flags {
    /// Finished tasks that are kept for each slot
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    taskhistory: Option<i64>,
    /// Validity of node certificates, at least 1h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    certexpiry: Option<prost_types::Duration>,
    /// Time between the heartbeats of nodes
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, allow_hyphen_values = true)]
    heartbeatperiod: Option<prost_types::Duration>,
    /// Log driver of tasks whose service names none; empty for none
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Options of the log driver, key=value; with --log-driver
    #[arg(long, value_name = "LIST", requires = "log_driver")]
    log_opt: Option<Vec<List>>,
    /// Log entries between two snapshots of the managers; 0 for none before the log has 256 MiB
    #[arg(long, value_name = "N")]
    snapshot_interval: Option<u64>,
    /// Older snapshots that managers keep beside the newest
    #[arg(long, value_name = "N")]
    max_snapshots: Option<u64>,
    /// Log entries that managers keep behind a snapshot, for members that lag
    #[arg(long, value_name = "N")]
    slow_follower_entries: Option<u64>,
    /// Demote managers that could not be reached for so long, at least 10s; 0 for never
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    dead_manager_timeout: Option<prost_types::Duration>,
    /// Whether tasks of services with a priority may take the place of others
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    preemption: Option<bool>,
    /// Replace a join token
    #[arg(long, value_name = "KIND", ignore_case = true)]
    rotate_join_token: Option<Token>,
    /// Replace the unlock key, and show the new one
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    rotate_unlock_key: Option<bool>,
    /// Whether managers lock their keys when they stop
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    autolock: Option<bool>,
}

pub(crate) async fn run(context: &mut Context, command: Command) -> Result<String> {
    match command {
        Command::Ls { quiet } => {
            let request = ListClustersRequest::default();
            let clusters = context.control.list_clusters(request).await?.into_inner().clusters;
            if quiet {
                return Ok(ids(clusters.iter().map(|cluster| cluster.id.as_str())));
            }
            Ok(list(&clusters))
        }
        Command::Inspect(One { cluster }) => {
            Ok(summary(&*resolve::cluster(&mut context.control, &cluster).await?))
        }
        Command::Backup(flags) => backup::run(context, flags).await,
        Command::Unlock { key_file } => {
            let unlock_key = match (&key_file, std::env::var("SWARM_UNLOCK_KEY")) {
                (Some(file), _) => secret_line(file)?,
                (None, Ok(key)) => key,
                (None, Err(_)) => secret_line(Path::new("-"))?,
            };
            context.client.lock().unlock(UnlockRequest { unlock_key }).await?;
            Ok("Unlocked; the manager starts now\n".to_owned())
        }
        Command::UnlockKey { cluster, rotate, quiet } => {
            if rotate {
                let cluster = resolve::cluster(&mut context.control, &cluster.cluster).await?;
                let rotation = KeyRotation { manager_unlock_key: true, ..KeyRotation::default() };
                update(context, &cluster, cluster.spec.clone(), rotation).await?;
            }
            match unlock_key(context).await? {
                Some(key) if quiet => Ok(format!("{key}\n")),
                key => Ok(unlock_key_line(key)),
            }
        }
        Command::Update { cluster, flags } => {
            let cluster = resolve::cluster(&mut context.control, &cluster.cluster).await?;
            let mut spec = cluster.spec.clone();
            apply(&mut spec, &flags)?;
            let rotation = KeyRotation {
                worker_join_token: flags.rotate_join_token == Some(Token::Worker),
                manager_join_token: flags.rotate_join_token == Some(Token::Manager),
                manager_unlock_key: flags.rotate_unlock_key == Some(true),
            };
            update(context, &cluster, spec, rotation).await?;
            let mut text = format!("{}\n", cluster.id);
            if rotation.manager_unlock_key {
                text += &unlock_key_line(unlock_key(context).await?);
            }
            Ok(text)
        }
    }
}

async fn update(
    context: &mut Context,
    cluster: &Cluster,
    spec: ClusterSpec,
    rotation: KeyRotation,
) -> Result<()> {
    let request = UpdateClusterRequest {
        cluster_id: cluster.id.clone(),
        cluster_version: Some(cluster.meta.version),
        spec: Some(spec),
        rotation,
    };
    context.control.update_cluster(request).await?;
    Ok(())
}

fn apply(spec: &mut ClusterSpec, flags: &Flags) -> Result<()> {
    if let Some(limit) = flags.taskhistory {
        spec.orchestration.task_history_retention_limit = limit;
    }
    if flags.certexpiry.is_some() {
        spec.ca_config.node_cert_expiry = flags.certexpiry;
    }
    if flags.heartbeatperiod.is_some() {
        spec.dispatcher.heartbeat_period = flags.heartbeatperiod;
    }
    if let Some(name) = &flags.log_driver {
        let options = pair::options(&join(flags.log_opt.as_ref()).unwrap_or_default());
        spec.task_defaults.log_driver = (!name.is_empty()).then(|| Driver { name: name.clone(), options });
    }
    let raft = &mut spec.raft;
    raft.snapshot_interval = flags.snapshot_interval.unwrap_or(raft.snapshot_interval);
    raft.keep_old_snapshots = flags.max_snapshots.unwrap_or(raft.keep_old_snapshots);
    raft.log_entries_for_slow_followers =
        flags.slow_follower_entries.unwrap_or(raft.log_entries_for_slow_followers);
    if let Some(lock) = flags.autolock {
        spec.encryption_config.auto_lock_managers = lock;
    }
    if let Some(timeout) = &flags.dead_manager_timeout {
        let timeout = swarm_api::duration::to_std(timeout);
        if !timeout.is_zero() && timeout < extensions::LEAST_DEAD_MANAGER_TIMEOUT {
            return Err(Error::Usage("--dead-manager-timeout must be at least 10s, or 0".to_owned()));
        }
        let labels = &mut spec.annotations.labels;
        let mut policy = ClusterPolicy::read(labels).map_err(Error::Plain)?;
        policy.dead_manager_timeout = (!timeout.is_zero()).then_some(timeout);
        policy.write(labels);
    }
    if let Some(preemption) = flags.preemption {
        let labels = &mut spec.annotations.labels;
        let policy = ClusterPolicy::read(labels).map_err(Error::Plain)?;
        ClusterPolicy { preemption, ..policy }.write(labels);
    }
    Ok(())
}

/// The key that unlocks managers, if they lock themselves.
async fn unlock_key(context: &mut Context) -> Result<Option<String>> {
    use base64::Engine as _;
    let key = context.client.ca().get_unlock_key(GetUnlockKeyRequest {}).await?.into_inner().unlock_key;
    let text = || format!("SWMKEY-1-{}", base64::engine::general_purpose::STANDARD_NO_PAD.encode(&key));
    Ok((!key.is_empty()).then(text))
}

fn unlock_key_line(key: Option<String>) -> String {
    match key {
        Some(key) => format!("Managers auto-locked.  Unlock key: {key}\n"),
        None => "Managers not auto-locked\n".to_owned(),
    }
}

/// `cluster ls`
fn list(clusters: &[Shared<Cluster>]) -> String {
    let mut table = Table::list();
    table.header(&["ID", "Name"]);
    for cluster in clusters {
        table.line(format!("{}\t{}", cluster.id, cluster.spec.annotations.name));
    }
    table.finish()
}

/// The page of `cluster inspect`.
fn summary(cluster: &Cluster) -> String {
    let mut page = Table::summary();
    let spec = &cluster.spec;
    page.pair("ID", &cluster.id);
    page.pair("Name", &spec.annotations.name);
    page.line("Orchestration settings:");
    page.line(format!("  Task history entries: {}", spec.orchestration.task_history_retention_limit));
    if let Some(period) = &spec.dispatcher.heartbeat_period {
        page.line("Dispatcher settings:");
        page.line(format!("  Dispatcher heartbeat period: {}", duration::format(period)));
    }
    page.line("Certificate Authority settings:");
    if let Some(expiry) = &spec.ca_config.node_cert_expiry {
        page.line(format!("  Certificate Validity Duration: {}", duration::format(expiry)));
    }
    if !spec.ca_config.external_cas.is_empty() {
        page.line("  External CAs:");
        for ca in &spec.ca_config.external_cas {
            page.line(format!("    {}: {}", "CFSSL", ca.url));
        }
    }
    page.line("  Join Tokens:");
    page.line(format!("    Worker: {}", cluster.root_ca.join_tokens.worker));
    page.line(format!("    Manager: {}", cluster.root_ca.join_tokens.manager));
    if let Some(driver) = &spec.task_defaults.log_driver {
        page.pair("Default Log Driver", &driver.name);
        for (option, value) in &driver.options {
            if value.is_empty() {
                page.line(format!("  {option}\t"));
            } else {
                page.pair(&format!("  {option}"), value);
            }
        }
    }
    page.line("Raft settings:");
    page.line(format!("  Snapshot interval: {}", spec.raft.snapshot_interval));
    page.line(format!("  Old snapshots kept: {}", spec.raft.keep_old_snapshots));
    page.line(format!("  Entries for slow followers: {}", spec.raft.log_entries_for_slow_followers));
    let policy = ClusterPolicy::read(&spec.annotations.labels).unwrap_or_default();
    if let Some(timeout) = policy.dead_manager_timeout {
        let timeout = duration::format(&swarm_api::duration::from_std(timeout));
        page.line(format!("  Dead manager timeout: {timeout}"));
    }
    if policy.preemption {
        page.line("  Preemption: on");
    }
    page.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        let mut cluster = Cluster { id: "c1".into(), ..Default::default() };
        cluster.spec.annotations.name = "default".into();
        cluster.spec.orchestration.task_history_retention_limit = 5;
        cluster.spec.dispatcher.heartbeat_period = Some(prost_types::Duration { seconds: 5, nanos: 0 });
        cluster.spec.ca_config.node_cert_expiry =
            Some(prost_types::Duration { seconds: 7_776_000, nanos: 0 });
        cluster.spec.raft.snapshot_interval = 10_000;
        cluster.spec.raft.log_entries_for_slow_followers = 500;
        cluster.root_ca.join_tokens.worker = "SWMTKN-1-w".into();
        cluster.root_ca.join_tokens.manager = "SWMTKN-1-m".into();
        cluster
    }

    #[test]
    fn the_cluster_is_shown_with_its_tokens() {
        let mut cluster = cluster();
        let options = [("max-size".into(), "1m".into())].into();
        cluster.spec.task_defaults.log_driver = Some(Driver { name: "json-file".into(), options });
        assert_eq!(
            summary(&cluster),
            "ID          : c1
Name        : default
Orchestration settings:
  Task history entries: 5
Dispatcher settings:
  Dispatcher heartbeat period: 5s
Certificate Authority settings:
  Certificate Validity Duration: 2160h0m0s
  Join Tokens:
    Worker: SWMTKN-1-w
    Manager: SWMTKN-1-m
Default Log Driver        : json-file
  max-size                : 1m
Raft settings:
  Snapshot interval: 10000
  Old snapshots kept: 0
  Entries for slow followers: 500
"
        );
        assert_eq!(list(&[cluster.clone().into()]), "ID  Name\n--  ----\nc1  default\n");
        let timeout = Some(prost_types::Duration { seconds: 5400, nanos: 0 });
        apply(&mut cluster.spec, &Flags { dead_manager_timeout: timeout, ..Flags::default() }).unwrap();
        let shown = summary(&cluster);
        assert!(
            shown.ends_with("  Entries for slow followers: 500\n  Dead manager timeout: 1h30m0s\n"),
            "{shown}"
        );
    }

    #[test]
    fn only_what_was_given_changes() {
        let mut spec = cluster().spec;
        spec.task_defaults.log_driver = Some(Driver { name: "json-file".into(), ..Default::default() });
        let before = spec.clone();
        apply(&mut spec, &Flags::default()).unwrap();
        assert_eq!(spec, before);
        let flags = Flags {
            autolock: Some(true),
            log_driver: Some(String::new()),
            snapshot_interval: Some(0),
            max_snapshots: Some(2),
            ..Default::default()
        };
        apply(&mut spec, &flags).unwrap();
        let raft = spec.raft;
        assert_eq!((raft.snapshot_interval, raft.keep_old_snapshots), (0, 2));
        assert_eq!(raft.log_entries_for_slow_followers, 500);
        assert!(spec.encryption_config.auto_lock_managers);
        assert_eq!(spec.task_defaults.log_driver, None);

        let dead = |seconds| Flags {
            dead_manager_timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
            ..Flags::default()
        };
        apply(&mut spec, &dead(600)).unwrap();
        assert_eq!(spec.annotations.labels[extensions::DEAD_MANAGER_TIMEOUT], "600s");
        assert!(apply(&mut spec, &dead(9)).is_err());
        apply(&mut spec, &dead(0)).unwrap();
        assert!(spec.annotations.labels.is_empty());

        let preempt = |on| Flags { preemption: Some(on), ..Flags::default() };
        apply(&mut spec, &preempt(true)).unwrap();
        assert_eq!(spec.annotations.labels[extensions::PREEMPTION], "on");
        apply(&mut spec, &preempt(false)).unwrap();
        assert!(spec.annotations.labels.is_empty());
    }
}
