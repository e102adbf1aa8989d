//! What the client and the manager cost: CPU time, and bytes written to disk.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::unistd::{SysconfVar, sysconf};

/// Costs so far, or within a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// CPU time of this process.
    pub(crate) client: Duration,
    /// CPU time of the manager, if its process is known.
    pub(crate) server: Option<Duration>,
    /// Bytes that the manager wrote to disk, if they may be known.
    pub(crate) written: Option<u64>,
}

impl Usage {
    pub(crate) fn now(pid: Option<u32>) -> Result<Usage> {
        let own = getrusage(UsageWho::RUSAGE_SELF)?;
        let micros = own.user_time().num_microseconds() + own.system_time().num_microseconds();
        let client = Duration::from_micros(u64::try_from(micros).unwrap_or_default());
        let server = pid.map(cpu).transpose()?;
        Ok(Usage { client, server, written: pid.and_then(written) })
    }

    pub(crate) fn since(&self, before: &Usage) -> Usage {
        Usage {
            client: self.client.saturating_sub(before.client),
            server: self.server.zip(before.server).map(|(now, then)| now.saturating_sub(then)),
            written: self.written.zip(before.written).map(|(now, then)| now.saturating_sub(then)),
        }
    }
}

/// CPU time of a process, as the kernel counts it: in ticks.
fn cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
    let ticks = ticks(&stat).with_context(|| format!("{path} is not as expected"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|n| u64::try_from(n).ok()).unwrap_or(100);
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// User and system time: the 12th and 13th field after the name, which may itself hold blanks and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Bytes sent to the disk; only the process's own user may know.
fn written(pid: u32) -> Option<u64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194304 100 0 0 0 30 12 0 0 20 0 1 0 5 0 0";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("garbage"), None);
    }

    #[test]
    fn differences_are_what_a_run_cost() {
        let usage = |ms, server, written| Usage { client: Duration::from_millis(ms), server, written };
        let before = usage(10, Some(Duration::from_millis(5)), None);
        let after = usage(30, Some(Duration::from_millis(9)), Some(7));
        assert_eq!(after.since(&before), usage(20, Some(Duration::from_millis(4)), None));
    }
}
