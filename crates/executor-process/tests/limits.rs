//! Limits of memory, processors and processes, kept by the control groups of this host.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use swarm_agent::ControllerError;
use swarm_api::swarmd::ProcessSpec;
use swarm_api::v1::{ResourceRequirements, Resources, Task};
use swarm_testkit::wait::until;

use common::*;

/// Directory of the group that a process is in, of the hierarchy that has this controller: version 1, else version 2. `None` if
/// this host has neither.
fn group(pid: i32, controller: &str) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mount = |wanted: &dyn Fn(&str, &str) -> bool| {
        mounts.lines().find_map(|line| {
            let (head, tail) = line.split_once(" - ")?;
            let (kind, options) = (tail.split(' ').next()?, tail.rsplit(' ').next()?);
            wanted(kind, options).then(|| PathBuf::from(head.split(' ').nth(4).unwrap()))
        })
    };
    let own = |wanted: &dyn Fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            wanted(controllers).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let has = |list: &str| list.split(',').any(|name| name == controller);
    if let Some(mount) = mount(&|kind, options| kind == "cgroup" && has(options)) {
        return Some(mount.join(own(&has).unwrap()));
    }
    let mount = mount(&|kind, _| kind == "cgroup2")?;
    let controllers = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap();
    let path = mount.join(own(&|list| list.is_empty()).unwrap());
    controllers.split_whitespace().any(|name| name == controller).then_some(path)
}

/// The number behind a name in a file of a group.
fn number(group: &Path, file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(group.join(file)).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

/// What one of these files of a group says.
fn setting(group: &Path, files: &[&str]) -> String {
    let mut texts = files.iter().filter_map(|file| std::fs::read_to_string(group.join(file)).ok());
    texts.next_back().unwrap_or_default().trim().to_owned()
}

fn limited(lab: &Lab, spec: &ProcessSpec, limits: Resources) -> Task {
    let mut record = lab.task(spec);
    record.spec.resources = Some(ResourceRequirements { limits: Some(limits), ..Default::default() });
    record
}

/// The task's own group; `None`, and a line that says so, on a host that has no such groups.
fn own_group(task: &Task, pid: i32, controller: &str) -> Option<PathBuf> {
    let Some(group) = group(pid, controller) else {
        eprintln!("not run: no control groups for {controller} here");
        return None;
    };
    assert!(group.ends_with(task.id.as_str()), "{} is not the group of {}", group.display(), task.id);
    Some(group)
}

#[tokio::test]
async fn memory_limit_ends_the_greedy() {
    let lab = Lab::new();
    let limits = Resources { memory_bytes: 32 << 20, ..Default::default() };
    let record = limited(&lab, &shell(&format!("{}; exec tail /dev/zero", wait_for("go"))), limits);
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    let group = own_group(&record, pid_of(task.as_ref()).await, "memory");
    if let Some(group) = &group {
        let limit = setting(group, &["memory.limit_in_bytes", "memory.max"]);
        assert_eq!(limit, (32 << 20).to_string());
    }
    lab.tell(&record, "go");
    let result = within(task.wait()).await;
    match (&group, &result) {
        // The kernel counted it in the group: nothing else says so.
        (Some(_), Err(ControllerError::Exit { code: 137, cause: Some(cause) })) => {
            assert_eq!(cause, "out of memory");
        }
        // A failed allocation.
        (None, Err(ControllerError::Exit { cause: None, .. })) => {}
        other => panic!("it was not ended by its limit: {other:?}"),
    }
    lab.done().await;
}

#[tokio::test]
async fn processor_limit_slows_the_busy() {
    let lab = Lab::new();
    let limits = Resources { nano_cpus: 100_000_000, ..Default::default() };
    let record = limited(&lab, &shell("while :; do :; done"), limits);
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    let pid = pid_of(task.as_ref()).await;
    let Some(group) = own_group(&record, pid, "cpu") else { return lab.done().await };
    let quota = setting(&group, &["cpu.cfs_quota_us", "cpu.max"]);
    assert!(quota.starts_with("10000"), "10 ms of each 100: {quota}");
    let throttled = || async {
        let times = number(&group, "cpu.stat", "nr_throttled ");
        anyhow::ensure!(times >= 10, "throttled {times} times");
        Ok(())
    };
    until("the group to be throttled", LONG, throttled).await.unwrap();
    // In hundredths of a second, as the kernel tells it: a tenth of each period, each of which is a tenth of a second.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let used: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let periods = number(&group, "cpu.stat", "nr_periods ");
    assert!(used <= 2 * (periods + 1), "{used} hundredths of a second in {periods} periods");
    lab.done().await;
}

#[tokio::test]
async fn limit_of_processes_ends_forks() {
    let lab = Lab::new();
    // The inner shell gives up when it can't fork; the outer one needs no more processes.
    let script = "(i=0; while [ $i -lt 20 ]; do sleep 1000 & i=$((i+1)); done); exec sleep 1000";
    let spec = ProcessSpec { pids_limit: 6, ..shell(script) };
    let record = lab.task(&spec);
    let task = lab.controller(&record);
    start(task.as_ref()).await;
    let Some(group) = own_group(&record, pid_of(task.as_ref()).await, "pids") else {
        return lab.done().await;
    };
    assert_eq!(setting(&group, &["pids.max"]), "6");
    let refused = || async {
        let times = number(&group, "pids.events", "max ");
        anyhow::ensure!(times > 0, "no fork was refused yet");
        Ok(())
    };
    until("a fork to be refused", LONG, refused).await.unwrap();
    let present: u64 = setting(&group, &["pids.current"]).parse().unwrap();
    assert!((2..=6).contains(&present), "{present} processes");
    assert!(processes_of(&record.id).len() <= 6);
    lab.done().await;
}
