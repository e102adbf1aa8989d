//! What a run came to.

use std::fmt;
use std::time::Duration;

use crate::load::Run;
use crate::usage::Usage;

/// Figures of a run.
#[derive(Debug)]
pub(crate) struct Report {
    connections: usize,
    time: Duration,
    /// Sorted.
    latencies: Vec<Duration>,
    usage: Usage,
}

impl Report {
    pub(crate) fn new(run: &Run, time: Duration, mut latencies: Vec<Duration>, usage: Usage) -> Report {
        latencies.sort_unstable();
        Report { connections: run.connections, time, latencies, usage }
    }

    /// The latency that so many of 1000 writes do not exceed.
    fn quantile(&self, thousandths: usize) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(last * thousandths / 1000).copied().unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.time.as_secs_f64();
        let writes = self.latencies.len() as f64;
        let ms = |latency: Duration| latency.as_secs_f64() * 1000.0;
        let share = |cpu: Duration| 100.0 * cpu.as_secs_f64() / seconds;
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / writes;
        let noun = if self.connections == 1 { "connection" } else { "connections" };
        writeln!(
            f,
            "{} {noun}: {:.0} req/s ({writes} in {seconds:.1} s)",
            self.connections,
            writes / seconds
        )?;
        write!(f, "  latency ms:")?;
        for (name, thousandths) in [("p50", 500), ("p90", 900), ("p99", 990), ("p99.9", 999), ("max", 1000)] {
            write!(f, " {name} {:.2}", ms(self.quantile(thousandths)))?;
        }
        let client = self.usage.client;
        write!(f, "\n  client CPU: {:.0} % of a core, {:.0} µs per request", share(client), each(client))?;
        if let Some(server) = self.usage.server {
            write!(
                f,
                "\n  manager CPU: {:.0} % of a core, {:.0} µs per request",
                share(server),
                each(server)
            )?;
        }
        if let Some(written) = self.usage.written {
            write!(f, "\n  manager wrote {:.0} bytes to disk per request", written as f64 / writes)?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        let report = Report {
            connections: 2,
            time: Duration::from_secs(2),
            latencies: (1..=1000).map(Duration::from_millis).collect(),
            usage: Usage {
                client: Duration::from_secs(1),
                server: Some(Duration::from_millis(500)),
                written: Some(4_096_000),
            },
        };
        assert_eq!(
            report.to_string(),
            "2 connections: 500 req/s (1000 in 2.0 s)
  latency ms: p50 500.00 p90 900.00 p99 990.00 p99.9 999.00 max 1000.00
  client CPU: 50 % of a core, 1000 µs per request
  manager CPU: 25 % of a core, 500 µs per request
  manager wrote 4096 bytes to disk per request
"
        );
    }
}
