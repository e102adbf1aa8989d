//! `cargo xtask fuzz`: the fuzz targets in libFuzzer, guided by coverage (decision 0065).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{cargo, output, root, run};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this target; all of them otherwise.
    pub(crate) target: Option<String>,
    /// Executions in all.
    #[arg(long, default_value_t = EXECUTIONS)]
    pub(crate) executions: u64,
}

/// What the long suite asks for.
pub(crate) const EXECUTIONS: u64 = 10_000_000;

/// Counters at every branch and operands of every comparison, for code that is built for this host. Stable flags.
const INSTRUMENT: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                          -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                          -Cllvm-args=-sanitizer-coverage-pc-table \
                          -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Bytes of the longest input.
const LONGEST: u64 = 64 * 1024;

/// A run that takes longer than this many seconds hangs.
const TIMEOUT: u64 = 60;

/// Where files of the targets are no waits for a disk.
const MEMORY: &str = "/dev/shm";

struct Fuzzer {
    program: PathBuf,
    dir: PathBuf,
}

/// The targets, each of which has a directory of seeds.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root().join("crates/fuzz/corpus"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Builds the program, apart from everything else: what is instrumented is of no use elsewhere.
fn build() -> Result<Fuzzer> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let dir = target.join("fuzz");
    let mut command = cargo();
    command.args(["build", "--package", "swarm-fuzz", "--features", "libfuzzer", "--bin", "coverage"]);
    // With a target named, build scripts and macros stay as they are.
    command.args(["--profile", "fuzz", "--target", host]);
    run(command.env("CARGO_TARGET_DIR", &dir).env("RUSTFLAGS", INSTRUMENT))?;
    Ok(Fuzzer { program: dir.join(host).join("fuzz/coverage"), dir })
}

impl Fuzzer {
    /// Runs one target. What it found before is where it goes on from.
    fn run(&self, target: &str, executions: u64) -> Result<()> {
        let (found, findings) = (self.dir.join("found").join(target), self.dir.join("findings"));
        std::fs::create_dir_all(&found)?;
        std::fs::create_dir_all(&findings)?;
        let log = self.dir.join(format!("{target}.log"));
        let out = std::fs::File::create(&log)?;
        let begin = Instant::now();
        let mut command = Command::new(&self.program);
        if Path::new(MEMORY).is_dir() {
            command.env("TMPDIR", MEMORY);
        }
        let status = command
            .env("SWARM_FUZZ_TARGET", target)
            // When there is no memory, a backtrace would wait for itself; of a panic the program prints one anyway.
            .env("RUST_BACKTRACE", "0")
            .arg(&found)
            .arg(root().join("crates/fuzz/corpus").join(target))
            .arg(format!("-runs={executions}"))
            .arg(format!("-max_len={LONGEST}"))
            .arg(format!("-timeout={TIMEOUT}"))
            .arg("-rss_limit_mb=4096")
            .arg("-print_final_stats=1")
            .arg(format!("-artifact_prefix={}/{target}-", findings.display()))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .status()
            .context("can't run the fuzzer")?;
        ensure!(status.success(), "{target} ended with {status}: see {}", log.display());
        println!("{target}: {}", summary(&log, begin.elapsed()));
        Ok(())
    }
}

/// Executions as libFuzzer counted them, and a second.
fn summary(log: &Path, took: Duration) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let all = text.lines().rev().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let all: f64 = all.and_then(|all| all.trim().parse().ok()).unwrap_or_default();
    format!("{all} executions in {:.1} s, {:.0} a second", took.as_secs_f64(), all / took.as_secs_f64())
}

/// Runs the targets, as many at once as there are processors.
pub(crate) fn run_args(args: &Args) -> Result<()> {
    let mut names = targets()?;
    if let Some(wanted) = &args.target {
        names.retain(|name| name == wanted);
        ensure!(!names.is_empty(), "there is no target {wanted}; there are {}", targets()?.join(", "));
    }
    let each = args.executions.div_ceil(names.len() as u64);
    let fuzzer = build()?;
    let left = Mutex::new(names.iter());
    let failed = Mutex::new(Vec::new());
    let work = || {
        loop {
            let next = left.lock().map(|mut left| left.next()).ok().flatten();
            let Some(name) = next else { return };
            if let Err(error) = fuzzer.run(name, each)
                && let Ok(mut failed) = failed.lock()
            {
                eprintln!("{error:#}");
                failed.push(name.clone());
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner().unwrap_or_default();
    if !failed.is_empty() {
        bail!("there are findings: {}", failed.join(", "));
    }
    Ok(())
}
