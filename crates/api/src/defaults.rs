//! Numbers and names that managers and agents of the contract assume when a message leaves them out.

use std::time::Duration;

/// Name of the one cluster object.
pub const CLUSTER_NAME: &str = "default";
/// Period of heartbeats that the dispatcher asks for (`DispatcherConfig.heartbeat_period`).
pub const HEARTBEAT_PERIOD: Duration = Duration::from_secs(5);
/// Entries between two raft snapshots (`RaftConfig.snapshot_interval`).
pub const SNAPSHOT_INTERVAL: u64 = 10_000;
/// Entries kept behind a snapshot for slow followers (`RaftConfig.log_entries_for_slow_followers`).
pub const LOG_ENTRIES_FOR_SLOW_FOLLOWERS: u64 = 500;
/// Raft ticks between heartbeats; a tick is one second.
pub const HEARTBEAT_TICK: u32 = 1;
/// Raft ticks without a leader before an election.
pub const ELECTION_TICK: u32 = 10;
/// Finished tasks kept per slot (`OrchestrationConfig.task_history_retention_limit`).
pub const TASK_HISTORY_RETENTION_LIMIT: i64 = 5;
/// Validity of node certificates (`CAConfig.node_cert_expiry`).
pub const NODE_CERT_EXPIRY: Duration = Duration::from_secs(90 * 24 * 3600);
/// Delay before a task is restarted when the service has no restart policy.
pub const RESTART_DELAY: Duration = Duration::from_secs(5);
/// Time between the stop signal and the kill when the spec says nothing.
pub const STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);
/// Largest encoded log entry, in bytes; the contract's limit.
pub const MAX_TRANSACTION_BYTES: usize = 1_572_864;
/// Size at which a batch of changes is cut, in bytes.
pub const MAX_BATCH_BYTES: usize = 1_179_648;
/// Largest message that a server takes, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Largest spec that the control API takes, in encoded bytes: its update carries it twice and must fit an entry.
pub const MAX_SPEC_BYTES: usize = 512 * 1024;
/// Most tasks in a cluster.
pub const MAX_TASKS: u64 = 10_000_000;
