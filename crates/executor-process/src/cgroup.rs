//! Control groups, both versions: one group per task, with its limits.
//!
//! Version 2 allows processes only in leaves. So where the daemon is alone in its group (a service with
//! `Delegate=yes`), it moves into the leaf `daemon` beside the tasks; where it is not, there are no groups.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const PROC_MOUNTS: &str = "/proc/self/mountinfo";
const PROC_GROUPS: &str = "/proc/self/cgroup";
/// Parent of the tasks' groups.
const TASKS: &str = "swarmd-tasks";
/// Leaf of the daemon itself, in version 2.
const DAEMON: &str = "daemon";
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Period of processor quotas, in microseconds.
const CPU_PERIOD: i64 = 100_000;

/// Where tasks' groups can be made on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroups {
    /// Version 2, with the controllers that work there.
    unified: Option<(PathBuf, Vec<String>)>,
    /// Version 1: controller and parent directory.
    legacy: Vec<(String, PathBuf)>,
}

/// The groups of one task: directories, and the files to write in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskGroup {
    pub(crate) directories: Vec<Directory>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    /// File name and content.
    pub(crate) settings: Vec<(String, String)>,
}

impl Cgroups {
    /// Looks at this host and makes the parents of the tasks' groups; `None` if it does not let us.
    pub(crate) fn detect() -> Option<Cgroups> {
        let mounts = fs::read_to_string(PROC_MOUNTS).ok()?;
        let own = fs::read_to_string(PROC_GROUPS).ok()?;
        let (unified, legacy) = candidates(&mounts, &own);
        let unified = unified.and_then(|path| {
            prepare_unified(&path)
                .inspect_err(
                    |error| tracing::debug!(path = %path.display(), %error, "control groups v2 not usable"),
                )
                .ok()
        });
        let taken: Vec<String> = unified.iter().flat_map(|(_, controllers)| controllers.clone()).collect();
        let legacy: Vec<_> = legacy
            .into_iter()
            .filter(|(controller, _)| !taken.contains(controller))
            .map(|(controller, path)| (controller, path.join(TASKS)))
            .filter(|(controller, path)| match fs::create_dir_all(path) {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(controller, path = %path.display(), %error, "control groups v1 not usable");
                    false
                }
            })
            .collect();
        let found = Cgroups { unified: unified.filter(|(_, controllers)| !controllers.is_empty()), legacy };
        (found.unified.is_some() || !found.legacy.is_empty()).then_some(found)
    }

    /// The groups of a task with these limits; 0 is none. A task without limits has a group too: it tells what
    /// belongs to the task.
    pub(crate) fn for_task(&self, task_id: &str, nano_cpus: i64, memory: i64, pids: i64) -> TaskGroup {
        let quota =
            (nano_cpus > 0).then(|| (nano_cpus.saturating_mul(CPU_PERIOD) / 1_000_000_000).max(1_000));
        let mut directories = Vec::new();
        if let Some((parent, controllers)) = &self.unified {
            let has = |name: &str| controllers.iter().any(|controller| controller == name);
            let mut settings = Vec::new();
            if let (Some(quota), true) = (quota, has("cpu")) {
                settings.push(("cpu.max".to_owned(), format!("{quota} {CPU_PERIOD}")));
            }
            if memory > 0 && has("memory") {
                settings.push(("memory.max".to_owned(), memory.to_string()));
            }
            if pids > 0 && has("pids") {
                settings.push(("pids.max".to_owned(), pids.to_string()));
            }
            directories.push(Directory { path: parent.join(task_id), settings });
        }
        for (controller, parent) in &self.legacy {
            let settings = match controller.as_str() {
                "cpu" => quota.map(|quota| {
                    vec![
                        ("cpu.cfs_period_us".to_owned(), CPU_PERIOD.to_string()),
                        ("cpu.cfs_quota_us".to_owned(), quota.to_string()),
                    ]
                }),
                "memory" if memory > 0 => {
                    Some(vec![("memory.limit_in_bytes".to_owned(), memory.to_string())])
                }
                "pids" if pids > 0 => Some(vec![("pids.max".to_owned(), pids.to_string())]),
                _ => None,
            };
            // One group without limits is enough to tell what belongs to the task.
            if settings.is_some() || (controller == "pids" && self.unified.is_none()) {
                directories
                    .push(Directory { path: parent.join(task_id), settings: settings.unwrap_or_default() });
            }
        }
        TaskGroup { directories }
    }
}

impl TaskGroup {
    pub(crate) fn limits_memory(&self) -> bool {
        let mut settings = self.directories.iter().flat_map(|directory| &directory.settings);
        settings.any(|(file, _)| matches!(file.as_str(), "memory.max" | "memory.limit_in_bytes"))
    }

    /// Makes the groups and sets their limits.
    pub(crate) fn create(&self) -> io::Result<()> {
        for directory in &self.directories {
            let path = &directory.path;
            let named = |error: io::Error, what: &Path| {
                io::Error::new(error.kind(), format!("control group {}: {error}", what.display()))
            };
            fs::create_dir_all(path).map_err(|error| named(error, path))?;
            for (file, content) in &directory.settings {
                let file = path.join(file);
                fs::write(&file, content).map_err(|error| named(error, &file))?;
            }
        }
        Ok(())
    }

    /// Moves the calling process in.
    pub(crate) fn join(&self) -> io::Result<()> {
        let pid = std::process::id().to_string();
        self.directories.iter().try_for_each(|directory| fs::write(directory.path.join("cgroup.procs"), &pid))
    }

    /// Processes in the groups.
    pub(crate) fn members(&self) -> Vec<i32> {
        let lists =
            self.directories.iter().filter_map(|dir| fs::read_to_string(dir.path.join("cgroup.procs")).ok());
        lists.flat_map(|list| list.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
    }

    /// Kills everything inside with one write, where the kernel can (5.14 and newer, version 2).
    pub(crate) fn kill(&self) {
        for directory in &self.directories {
            // Absent in version 1: the caller kills the members.
            let _ = fs::write(directory.path.join("cgroup.kill"), "1");
        }
    }

    /// The kernel has killed something in here for want of memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let killed = |file: &Path| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).map(str::trim);
            count.is_some_and(|count| count != "0")
        };
        self.directories.iter().any(|dir| {
            killed(&dir.path.join("memory.events")) || killed(&dir.path.join("memory.oom_control"))
        })
    }

    /// Removes the groups; says whether they are gone.
    pub(crate) fn remove(&self) -> bool {
        let mut all = true;
        for directory in &self.directories {
            if let Err(error) = fs::remove_dir(&directory.path) {
                all &= error.kind() == io::ErrorKind::NotFound;
            }
        }
        all
    }
}

/// Own directories in each hierarchy: that of version 2, and those of version 1 by controller.
fn candidates(mounts: &str, own: &str) -> (Option<PathBuf>, Vec<(String, PathBuf)>) {
    let own_path = |wanted: &str| {
        own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let matches = if wanted.is_empty() {
                controllers.is_empty()
            } else {
                controllers.split(',').any(|controller| controller == wanted)
            };
            matches.then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let (mut unified, mut legacy) = (None, Vec::new());
    for line in mounts.lines() {
        let Some((head, tail)) = line.split_once(" - ") else { continue };
        let Some(mount) = head.split(' ').nth(4).map(Path::new) else { continue };
        let mut tail = tail.split(' ');
        let (kind, options) = (tail.next().unwrap_or_default(), tail.next_back().unwrap_or_default());
        // Within a container the paths told may be those of the host: then the mount itself is our root.
        let existing = |path: String| {
            let full = mount.join(&path);
            if full.is_dir() { full } else { mount.to_owned() }
        };
        match kind {
            "cgroup2" => unified = unified.or_else(|| own_path("").map(existing)),
            "cgroup" => {
                let controllers = options.split(',').filter(|option| CONTROLLERS.contains(option));
                for controller in controllers {
                    if let Some(path) = own_path(controller) {
                        legacy.push((controller.to_owned(), existing(path)));
                    }
                }
            }
            _ => {}
        }
    }
    (unified, legacy)
}

/// Makes the parent of the tasks' groups in version 2, and says which controllers work there.
fn prepare_unified(own: &Path) -> io::Result<(PathBuf, Vec<String>)> {
    let base = match own.file_name() {
        Some(name) if name == DAEMON => own.parent().unwrap_or(own).to_owned(),
        _ => own.to_owned(),
    };
    let available = fs::read_to_string(base.join("cgroup.controllers"))?;
    let wanted: Vec<_> =
        CONTROLLERS.iter().filter(|name| available.split_whitespace().any(|known| known == **name)).collect();
    if wanted.is_empty() {
        return Err(io::Error::other("no controllers"));
    }
    // The root of the hierarchy, which has no such file, may hold processes beside groups.
    let is_root = !base.join("cgroup.type").exists();
    if !is_root && base == own {
        let procs = fs::read_to_string(base.join("cgroup.procs"))?;
        if procs.lines().any(|pid| pid != std::process::id().to_string()) {
            return Err(io::Error::other("the daemon shares its control group with other processes"));
        }
        let leaf = base.join(DAEMON);
        fs::create_dir_all(&leaf)?;
        fs::write(leaf.join("cgroup.procs"), std::process::id().to_string())?;
    }
    let tasks = base.join(TASKS);
    fs::create_dir_all(&tasks)?;
    let mut working = Vec::new();
    for controller in wanted {
        let enable = format!("+{controller}");
        let enabled = fs::write(base.join("cgroup.subtree_control"), &enable)
            .and_then(|()| fs::write(tasks.join("cgroup.subtree_control"), &enable));
        match enabled {
            Ok(()) => working.push((*controller).to_owned()),
            Err(error) => tracing::debug!(controller, %error, "controller not usable"),
        }
    }
    Ok((tasks, working))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(group: &TaskGroup) -> Vec<String> {
        let all = group.directories.iter().flat_map(|directory| {
            directory
                .settings
                .iter()
                .map(|(file, value)| format!("{}/{file}={value}", directory.path.display()))
        });
        all.collect()
    }

    #[test]
    fn limits_in_both_versions() {
        let v2 = Cgroups {
            unified: Some(("/g".into(), CONTROLLERS.iter().map(|c| (*c).to_owned()).collect())),
            legacy: Vec::new(),
        };
        assert_eq!(
            settings(&v2.for_task("t", 1_500_000_000, 4096, 7)),
            ["/g/t/cpu.max=150000 100000", "/g/t/memory.max=4096", "/g/t/pids.max=7"]
        );
        let v1 = Cgroups {
            unified: None,
            legacy: CONTROLLERS.iter().map(|c| ((*c).to_owned(), Path::new("/").join(c))).collect(),
        };
        assert_eq!(
            settings(&v1.for_task("t", 1_000_000, 4096, 7)),
            [
                "/cpu/t/cpu.cfs_period_us=100000",
                "/cpu/t/cpu.cfs_quota_us=1000",
                "/memory/t/memory.limit_in_bytes=4096",
                "/pids/t/pids.max=7"
            ]
        );
        for groups in [&v1, &v2] {
            let free = groups.for_task("t", 0, 0, 0);
            assert_eq!((free.directories.len(), settings(&free).len()), (1, 0));
            assert!(!free.limits_memory() && groups.for_task("t", 0, 1, 0).limits_memory());
        }
    }

    /// Its controllers may be those of version 1 here; what holds processes together needs none.
    #[test]
    fn a_group_of_version_2_is_made_joined_killed_and_removed() {
        let [mounts, own] = [PROC_MOUNTS, PROC_GROUPS].map(|file| fs::read_to_string(file).unwrap());
        let (Some(unified), true) = (candidates(&mounts, &own).0, rustix::process::geteuid().is_root())
        else {
            eprintln!("not run: no control groups of version 2 here, or no right to them");
            return;
        };
        let path = unified.join(format!("swarmd-test-{}", std::process::id()));
        let group = TaskGroup { directories: vec![Directory { path: path.clone(), settings: Vec::new() }] };
        group.create().unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert_eq!(group.members(), [child.id() as i32]);
        assert!(!group.remove(), "somebody is in there");
        group.kill();
        assert!(!child.wait().unwrap().success());
        assert!(group.members().is_empty() && !group.ran_out_of_memory() && group.remove() && !path.exists());
    }

    #[test]
    fn own_groups_are_found_in_a_mixed_host() {
        let mounts = "30 25 0:26 / /nonexistent/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      31 25 0:27 / /nonexistent/unified rw shared:1 - cgroup2 cgroup2 rw,nsdelegate\n\
                      32 25 0:28 / /tmp rw - tmpfs tmpfs rw\n";
        let own = "5:cpu,cpuacct:/a\n3:memory:/b\n0::/c\n";
        let (unified, legacy) = candidates(mounts, own);
        assert_eq!(unified, Some("/nonexistent/unified".into()));
        assert_eq!(legacy, [("cpu".to_owned(), PathBuf::from("/nonexistent/cpu"))]);
    }
}
