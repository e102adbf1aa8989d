//! What a container uses.

use bollard::Docker;
use bollard::models::{ContainerMemoryStats, ContainerStatsResponse};
use bollard::query_parameters::StatsOptionsBuilder;
use futures::StreamExt;
use swarm_agent::Stats;

/// Asks the engine once.
pub(crate) async fn of(
    docker: &Docker,
    name: &str,
    limit: Option<i64>,
) -> Result<Stats, bollard::errors::Error> {
    let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
    let mut answers = std::pin::pin!(docker.stats(name, Some(options)));
    let answer = answers.next().await.transpose()?.unwrap_or_default();
    Ok(stats(&answer, limit))
}

/// `limit` is what the container was given: the engine names the host's memory where there is none.
fn stats(answer: &ContainerStatsResponse, limit: Option<i64>) -> Stats {
    let networks = || answer.networks.iter().flat_map(|networks| networks.values());
    // Absent in the host's network.
    let over = |bytes: u64| answer.networks.as_ref().map(|_| bytes);
    let disks = answer.blkio_stats.as_ref().and_then(|disks| disks.io_service_bytes_recursive.as_ref());
    let disk = |wanted: &str| {
        let entries = disks?.iter().filter(|entry| {
            entry.op.as_deref().is_some_and(|operation| operation.eq_ignore_ascii_case(wanted))
        });
        Some(entries.filter_map(|entry| entry.value).sum())
    };
    Stats {
        cpu_nanos: answer.cpu_stats.as_ref().and_then(|cpu| cpu.cpu_usage.as_ref()?.total_usage),
        memory_bytes: answer.memory_stats.as_ref().and_then(memory),
        memory_limit: limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0),
        received_bytes: over(networks().filter_map(|network| network.rx_bytes).sum()),
        sent_bytes: over(networks().filter_map(|network| network.tx_bytes).sum()),
        read_bytes: disk("read"),
        written_bytes: disk("write"),
        pids: answer.pids_stats.as_ref().and_then(|pids| pids.current),
    }
}

/// Pages of files that were not used for long are the kernel's to take back: `inactive_file` in control groups of version
/// 2, `total_inactive_file` in version 1.
fn memory(memory: &ContainerMemoryStats) -> Option<u64> {
    let usage = memory.usage?;
    let details = memory.stats.as_ref();
    let inactive = details.and_then(|of| of.get("total_inactive_file").or_else(|| of.get("inactive_file")));
    Some(usage.saturating_sub(inactive.copied().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> ContainerStatsResponse {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn figures_are_taken_from_the_engines_answer() {
        let answer = read(
            r#"{"cpu_stats":{"cpu_usage":{"total_usage":7}},"pids_stats":{"current":3},
                "memory_stats":{"usage":100,"limit":999,"stats":{"inactive_file":1,"total_inactive_file":30}},
                "networks":{"a":{"rx_bytes":1,"tx_bytes":2},"b":{"rx_bytes":10,"tx_bytes":20}},
                "blkio_stats":{"io_service_bytes_recursive":[
                    {"major":8,"minor":0,"op":"Read","value":5},{"major":8,"minor":1,"op":"read","value":6},
                    {"major":8,"minor":0,"op":"Write","value":9},{"major":8,"minor":0,"op":"Total","value":99}]}}"#,
        );
        let expected = Stats {
            cpu_nanos: Some(7),
            memory_bytes: Some(70),
            memory_limit: Some(50),
            received_bytes: Some(11),
            sent_bytes: Some(22),
            read_bytes: Some(11),
            written_bytes: Some(9),
            pids: Some(3),
        };
        assert_eq!(stats(&answer, Some(50)), expected);
        assert_eq!(stats(&answer, Some(0)).memory_limit, None);
    }

    #[test]
    fn what_the_engine_does_not_tell_is_absent() {
        assert_eq!(
            stats(&read(r#"{"blkio_stats":{"io_service_bytes_recursive":null}}"#), None),
            Stats::default()
        );
    }
}
