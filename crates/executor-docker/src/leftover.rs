//! Ends a command that was executed in a container when nobody is there any more. Engines can't: they leave it running.

use std::fs;
use std::time::Duration;

use bollard::Docker;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::time::sleep;

/// Time between the signal that asks a command to end (as a lost terminal does) and the kill.
const GRACE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Ends the command, if this host is the one that it runs on and lets us.
pub(crate) async fn end(docker: &Docker, exec: &str) {
    let Ok(seen) = docker.inspect_exec(exec).await else { return };
    let (Some(true), Some(container)) = (seen.running, &seen.container_id) else { return };
    let pid = seen.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let ended = match pid {
        Some(pid) => end_process(pid, container).await,
        None => false,
    };
    if !ended {
        tracing::warn!(
            container,
            pid = seen.pid,
            "a command that nobody waits for any more can't be ended: it goes on"
        );
    }
}

/// Whether it was, and has. Only what is in the container's control group is touched.
async fn end_process(pid: Pid, container: &str) -> bool {
    // Of the process with this number now, whatever becomes of the number.
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let number = pid.as_raw_nonzero();
    let group = fs::read_to_string(format!("/proc/{number}/cgroup")).unwrap_or_default();
    if container.is_empty() || !group.contains(container) {
        return false;
    }
    for signal in [Signal::HUP, Signal::KILL] {
        if pidfd_send_signal(&handle, signal).is_err() {
            return true;
        }
        // It leads a session of its own; what it started is in its group, unless it left it.
        let _ = kill_process_group(pid, signal);
        let mut left = GRACE;
        while !left.is_zero() {
            sleep(LOOK_AGAIN).await;
            left = left.saturating_sub(LOOK_AGAIN);
            // What has ended has no directory any more.
            if !fs::exists(format!("/proc/{number}")).unwrap_or(true) {
                return true;
            }
        }
    }
    !fs::exists(format!("/proc/{number}")).unwrap_or(true)
}
