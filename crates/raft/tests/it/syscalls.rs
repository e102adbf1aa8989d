//! What a power loss would show, shown by the system calls of a process that writes: no write is acknowledged before
//! the file that holds its bytes was synced. Needs `strace`.
//!
//! The child is this test's own executable, told by an environment variable what to do.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use swarm_raft::{Config, PlainSealer};

use crate::support::{config, start};

const DIR: &str = "SWARM_RAFT_SYSCALLS_DIR";
const WRITERS: usize = 4;
const WRITES: usize = 10;

fn name(writer: usize, number: usize) -> String {
    format!("written-{writer}-{number}.")
}

/// The child: says `+name` for each write that is acknowledged. Does nothing in an ordinary test run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_writes_and_ends() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    // Names must be found in what is written.
    let config = Config { sealer: Arc::new(PlainSealer), ..config(Path::new(&dir)) };
    let manager = Arc::new(start(config).await);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let manager = manager.clone();
        writers.spawn(async move {
            for number in 0..WRITES {
                let name = name(writer, number);
                manager.write(&name).await;
                println!("+{name}");
            }
        });
    }
    writers.join_all().await;
    Arc::into_inner(manager).unwrap().stop().await;
}

/// A system call: the places of its begin and its end in the order of everything that happened.
#[derive(Debug)]
struct Call {
    name: String,
    /// Arguments, files with their paths.
    arguments: String,
    begin: usize,
    end: usize,
    failed: bool,
}

/// Reads the output of `strace -f -y`, where a call that others come in between of takes two lines.
fn parse(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut unfinished: Vec<(&str, usize)> = Vec::new();
    for (at, line) in trace.lines().enumerate() {
        let Some((process, event)) = line.split_once(' ') else { continue };
        let event = event.trim_start();
        let failed = event.rsplit_once(" = ").is_some_and(|(_, result)| result.starts_with('-'));
        if event.starts_with("<... ") {
            let Some(own) = unfinished.iter().position(|(other, _)| *other == process) else { continue };
            let (_, call) = unfinished.remove(own);
            (calls[call].end, calls[call].failed) = (at, failed);
        } else if let Some((name, arguments)) = event.split_once('(') {
            let mut end = at;
            if arguments.ends_with("<unfinished ...>") {
                unfinished.push((process, calls.len()));
                end = usize::MAX;
            }
            let (name, arguments) = (name.to_owned(), arguments.to_owned());
            calls.push(Call { name, arguments, begin: at, end, failed });
        }
    }
    calls
}

/// Whether the call's first argument is the log's file.
fn is_on_log(call: &Call) -> bool {
    let file = call.arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    file.is_some_and(|(path, _)| path.ends_with("/raft/log/db"))
}

#[test]
fn every_write_is_synced_before_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let child = Command::new("strace")
        .args(["-f", "-y", "-qq", "-s", "1000000", "-o"])
        .arg(&trace)
        .args(["-e", "trace=write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "syscalls::child_that_writes_and_ends", "--nocapture"])
        .env(DIR, dir.path().join("state"))
        .output()
        .expect("this test needs strace; `cargo xtask test` installs it");
    let trace = String::from_utf8_lossy(&std::fs::read(&trace).unwrap_or_default()).into_owned();
    assert!(child.status.success(), "{child:?}");

    let calls = parse(&trace);
    let is_sync = |call: &&Call| matches!(&*call.name, "fsync" | "fdatasync") && is_on_log(call);
    let syncs: Vec<&Call> = calls.iter().filter(is_sync).filter(|call| !call.failed).collect();
    let says = |call: &&Call, text: &str| {
        matches!(&*call.name, "write" | "writev") && !is_on_log(call) && call.arguments.contains(text)
    };
    for name in (0..WRITERS).flat_map(|writer| (0..WRITES).map(move |number| name(writer, number))) {
        let written = calls.iter().find(|call| is_on_log(call) && call.arguments.contains(&name));
        let written = written.unwrap_or_else(|| panic!("{name} was not written")).end;
        let told = calls.iter().find(|call| says(call, &format!("+{name}")));
        let told = told.unwrap_or_else(|| panic!("{name} was not acknowledged")).begin;
        let synced = syncs.iter().any(|sync| written < sync.begin && sync.end < told);
        assert!(synced, "{name}, written in line {written}, was acknowledged in line {told} before a sync");
    }
}

#[test]
fn calls_are_read_from_both_their_lines() {
    let trace = "7  write(1</dev/null>, \"a\", 1) = 1\n\
                 7  fdatasync(3</x/raft/log/db> <unfinished ...>\n\
                 8  pwrite64(3</x/raft/log/db>, \"b = -1\", 6, 0) = 6\n\
                 7  <... fdatasync resumed>)            = -1 EIO (Input/output error)\n";
    let calls = parse(trace);
    let seen: Vec<_> = calls.iter().map(|c| (&*c.name, c.begin, c.end, c.failed, is_on_log(c))).collect();
    assert_eq!(
        seen,
        [("write", 0, 0, false, false), ("fdatasync", 1, 3, true, true), ("pwrite64", 2, 2, false, true)]
    );
}
