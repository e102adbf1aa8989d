//! What `/proc` tells of processes.

use std::fs;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process for sure: its number, and when it began, since numbers are used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    /// Ticks since the host started.
    pub(crate) began: u64,
    /// Which start of the host that was.
    pub(crate) boot: String,
}

impl Identity {
    /// The identity of a process that lives.
    pub(crate) fn of(pid: i32) -> Option<Identity> {
        Some(Identity { pid, began: Stat::read(pid)?.began, boot: boot_id() })
    }

    pub(crate) fn lives(&self) -> bool {
        Identity::of(self.pid).as_ref() == Some(self)
    }
}

/// Changes with each start of the host.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Fields of `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: char,
    pub(crate) parent: i32,
    pub(crate) session: i32,
    pub(crate) began: u64,
}

impl Stat {
    pub(crate) fn read(pid: i32) -> Option<Stat> {
        Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name in parentheses may hold anything, so fields are counted from its end.
    pub(crate) fn parse(text: &str) -> Option<Stat> {
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        Some(Stat {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            began: fields.get(19)?.parse().ok()?,
        })
    }
}

/// What a process uses, and used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Its own processor time, in nanoseconds, of all its threads.
    pub(crate) own_nanos: u64,
    /// That of the children that it has waited for, and of theirs.
    pub(crate) waited_nanos: u64,
    /// Resident memory in bytes.
    pub(crate) memory: u64,
    pub(crate) threads: u64,
    /// Bytes from and to disks, with those of the children that it has waited for.
    pub(crate) read: u64,
    pub(crate) written: u64,
}

/// In this file times are counted in hundredths of a second, on all platforms.
const NANOS_OF_TICK: u64 = 10_000_000;

impl Usage {
    /// Of a process that is there.
    pub(crate) fn read(pid: i32) -> Option<Usage> {
        let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        // Only its own user may read that one.
        Usage::parse(&file("stat").ok()?, &file("status").ok()?, &file("io").unwrap_or_default())
    }

    fn parse(stat: &str, status: &str, io: &str) -> Option<Usage> {
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let nanos = |at: usize| Some(fields.get(at)?.parse::<u64>().ok()?.saturating_mul(NANOS_OF_TICK));
        let number = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        Some(Usage {
            own_nanos: nanos(11)? + nanos(12)?,
            waited_nanos: nanos(13)? + nanos(14)?,
            memory: number(status, "VmRSS:").saturating_mul(1024),
            threads: number(status, "Threads:"),
            read: number(io, "read_bytes:"),
            written: number(io, "write_bytes:"),
        })
    }
}

/// Numbers of all processes.
pub(crate) fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Children of the calling process.
pub(crate) fn own_children() -> Vec<i32> {
    let own = std::process::id() as i32;
    // The quick way needs a kernel option.
    if let Ok(list) = fs::read_to_string(format!("/proc/{own}/task/{own}/children")) {
        return list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    }
    all().into_iter().filter(|pid| Stat::read(*pid).is_some_and(|stat| stat.parent == own)).collect()
}

/// Living processes that carry this variable in their environment, or belong to this session.
pub(crate) fn of_task(variable: &str, value: &str, session: Option<&Identity>) -> Vec<i32> {
    let wanted = format!("{variable}={value}").into_bytes();
    // A session's number is used again only when it is empty. If its leader lives, it must be the one we know.
    let session = session.filter(|leader| leader.boot == boot_id());
    let session =
        session.filter(|leader| Stat::read(leader.pid).is_none_or(|stat| stat.began == leader.began));
    let belongs = |pid: &i32| {
        let Some(stat) = Stat::read(*pid) else { return false };
        if stat.state == 'Z' {
            return false;
        }
        let in_session =
            session.is_some_and(|leader| stat.session == leader.pid && stat.began >= leader.began);
        in_session
            || fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == wanted))
    };
    all().into_iter().filter(belongs).collect()
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn signal(pid: i32, signal: Signal) -> nix::Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Err(Errno::ESRCH) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let text = "7 (a) b (c)) S 1 7 9 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4242 1000 10";
        assert_eq!(Stat::parse(text), Some(Stat { state: 'S', parent: 1, session: 9, began: 4242 }));
        assert_eq!(Stat::parse("7 (a"), None);
    }

    #[test]
    fn usage_is_read_from_three_files() {
        let stat = "7 (a) b) S 1 7 9 0 -1 4194304 1 2 3 4 100 20 3 4 20 0 1 0 4242 1000 10";
        let io = "rchar: 1\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 0\n";
        let usage = Usage::parse(stat, "VmRSS:\t    12 kB\nThreads:\t3\n", io);
        let expected = Usage {
            own_nanos: 1_200_000_000,
            waited_nanos: 70_000_000,
            memory: 12_288,
            threads: 3,
            read: 4096,
            written: 8192,
        };
        assert_eq!(usage, Some(expected));
        assert!(Usage::read(std::process::id() as i32).unwrap().memory > 0);
    }

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let own = Identity::of(std::process::id() as i32).unwrap();
        assert!(own.lives());
        assert!(!Identity { began: own.began + 1, ..own.clone() }.lives());
        assert!(!Identity { boot: "another".into(), ..own }.lives());
    }
}
