//! What a task's processes use: from its control groups where they tell, else summed up over its processes.

use std::fs;
use std::path::Path;

use swarm_agent::Stats;

use crate::cgroup::TaskGroup;
use crate::dir::Running;
use crate::launch::{Launch, MARKER};
use crate::procfs::{self, Usage};

/// Figures of a task that runs. `limit` is what its memory is limited to, in bytes.
pub(crate) fn of(launch: &Launch, running: &Running) -> Stats {
    let group = launch.group.as_ref();
    let mut processes = group.map(TaskGroup::members).unwrap_or_default();
    if processes.is_empty() {
        processes = procfs::of_task(MARKER, &launch.task_id, Some(&running.process));
    }
    let living: Vec<Usage> = processes.iter().filter_map(|pid| Usage::read(*pid)).collect();
    // What has ended is on the account of whoever waited for it, in the end the task's supervisor.
    let supervisor = procfs::Stat::read(running.process.pid).and_then(|stat| Usage::read(stat.parent));
    let sum = |figure: fn(&Usage) -> u64| living.iter().map(figure).sum::<u64>();
    let ended = |figure: fn(&Usage) -> u64| supervisor.as_ref().map_or(0, figure);
    let of_group = |files: &[&str], read: fn(&Path) -> Option<u64>| {
        let directories = group.into_iter().flat_map(|group| &group.directories);
        directories
            .flat_map(|directory| files.iter().map(|file| directory.path.join(file)))
            .find_map(|file| read(&file))
    };
    let disks =
        group.and_then(|group| group.directories.iter().find_map(|dir| disks(&dir.path.join("io.stat"))));
    Stats {
        cpu_nanos: Some(of_group(&["cpu.stat", "cpuacct.usage"], cpu).unwrap_or_else(|| {
            sum(|usage| usage.own_nanos + usage.waited_nanos) + ended(|usage| usage.waited_nanos)
        })),
        memory_bytes: Some(
            of_group(&["memory.current", "memory.usage_in_bytes"], memory)
                .unwrap_or_else(|| sum(|usage| usage.memory)),
        ),
        memory_limit: limit(launch),
        // Processes are on the host's network.
        received_bytes: None,
        sent_bytes: None,
        read_bytes: Some(
            disks.map_or_else(|| sum(|usage| usage.read) + ended(|usage| usage.read), |(read, _)| read),
        ),
        written_bytes: Some(disks.map_or_else(
            || sum(|usage| usage.written) + ended(|usage| usage.written),
            |(_, written)| written,
        )),
        pids: Some(of_group(&["pids.current"], number).unwrap_or_else(|| sum(|usage| usage.threads))),
    }
}

/// The limit that the task was given, by its group or as its address space.
fn limit(launch: &Launch) -> Option<u64> {
    let settings =
        launch.group.iter().flat_map(|group| &group.directories).flat_map(|directory| &directory.settings);
    let mut of_group =
        settings.filter(|(file, _)| matches!(file.as_str(), "memory.max" | "memory.limit_in_bytes"));
    let by_group = of_group.find_map(|(_, bytes)| bytes.parse().ok());
    by_group.or_else(|| launch.rlimits.iter().find(|limit| limit.name == "as").map(|limit| limit.soft))
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Processor time in nanoseconds.
fn cpu(file: &Path) -> Option<u64> {
    if file.ends_with("cpuacct.usage") {
        return number(file);
    }
    // Version 1 has a file of this name too, without this line.
    let micros = line(&fs::read_to_string(file).ok()?, "usage_usec")?;
    Some(micros.saturating_mul(1000))
}

/// What is in use, without pages of files that were not used for long: the kernel's to take back.
fn memory(file: &Path) -> Option<u64> {
    let used = number(file)?;
    let details = fs::read_to_string(file.with_file_name("memory.stat")).unwrap_or_default();
    let inactive = line(&details, "total_inactive_file").or_else(|| line(&details, "inactive_file"));
    Some(used.saturating_sub(inactive.unwrap_or(0)))
}

/// The number behind a word at the beginning of a line.
fn line(text: &str, word: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Bytes read and written, of all disks.
fn disks(file: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(file).ok()?;
    let sum = |word: &str| {
        let words = text.split_whitespace();
        words.filter_map(|pair| pair.strip_prefix(word)?.parse::<u64>().ok()).sum()
    };
    Some((sum("rbytes="), sum("wbytes=")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_control_groups_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        assert_eq!(cpu(&file("cpu.stat", "usage_usec 7\nuser_usec 5\n")), Some(7000));
        assert_eq!(cpu(&file("cpu.stat", "nr_periods 0\n")), None);
        assert_eq!(cpu(&file("cpuacct.usage", "12345\n")), Some(12345));
        file("memory.stat", "anon 1\ninactive_file 30\n");
        assert_eq!(memory(&file("memory.current", "100\n")), Some(70));
        file("memory.stat", "inactive_file 1\ntotal_inactive_file 40\n");
        assert_eq!(memory(&file("memory.usage_in_bytes", "100\n")), Some(60));
        let io = file("io.stat", "8:0 rbytes=1 wbytes=2 rios=9\n8:16 rbytes=10 wbytes=20 dbytes=0\n");
        assert_eq!(disks(&io), Some((11, 22)));
        assert_eq!(disks(&dir.path().join("absent")), None);
    }
}
