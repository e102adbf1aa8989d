//! `cargo xtask test`: everything that the tests need, then the tests.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{cargo, engine, fuzz, packages, run};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the tests that need a Docker Engine.
    #[arg(long)]
    no_docker: bool,
    /// After them, run the long suite too: the wide versions of what is tested in short otherwise. Takes an hour and a half.
    #[arg(long)]
    long: bool,
    /// Passed on to nextest, after `--`.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Tests of the engine: by their name, or all of the executor's that are no unit tests.
const DOCKER_TESTS: &str = "(test(/docker/) or (package(swarm-executor-docker) and kind(test)))";

/// The profile knows the long suite's tests by their name.
const LONG_SUITE: [&str; 4] = ["--profile", "long", "--run-ignored", "only"];

/// The long simulations, which do nothing but calculate: optimised they take minutes, and an hour otherwise.
const LONG_SIMULATIONS: [&str; 8] = [
    "--cargo-profile",
    "bench",
    "--test",
    "simulation",
    "--profile",
    "long-simulations",
    "--run-ignored",
    "only",
];

fn run_tests(args: &Args) -> Result<()> {
    // Tests of whole clusters run the programs themselves. Built without the tests, all they depend on would be built
    // twice: the tests want more features of it.
    run(cargo().args(["build", "--workspace", "--bins", "--tests"]))?;
    if args.no_docker {
        println!("leaving out the tests that need a Docker Engine (--no-docker)");
    }
    let mut command = nextest(args);
    if std::env::var_os("CI").is_some() {
        command.args(["--profile", "ci"]);
    }
    run(&mut command)?;
    // nextest does not run examples in documentation.
    run(cargo().args(["test", "--workspace", "--doc", "--quiet"]))?;
    if args.long {
        println!("running the long simulations");
        run(nextest(args).args(LONG_SIMULATIONS))?;
        println!("running the long suite, two tests at a time");
        run(nextest(args).args(LONG_SUITE))?;
        println!("fuzzing");
        fuzz::run_args(&fuzz::Args { target: None, executions: fuzz::EXECUTIONS })?;
    }
    Ok(())
}

fn nextest(args: &Args) -> Command {
    let mut command = cargo();
    command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    if args.no_docker {
        command.args(["-E", &format!("not {DOCKER_TESTS}")]);
    }
    command.args(&args.rest);
    command
}

pub(crate) fn run_args(args: &Args) -> Result<()> {
    install(args.no_docker)?;
    if !args.no_docker && !engine::is_there() {
        bail!(
            "no Docker Engine answers on {}: start one, or leave out the tests that need it with --no-docker",
            engine::SOCKET
        );
    }
    run_tests(args)
}

/// Installs what is missing, with Debian's packages and cargo.
fn install(no_docker: bool) -> Result<()> {
    if !Command::new("cargo-nextest")
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|o| o.status.success())
    {
        println!("installing cargo-nextest");
        run(cargo().args(["install", "--locked", "cargo-nextest"]))?;
    }
    let mut packages: Vec<&str> = packages::missing_for_build().into_iter().collect();
    if !no_docker {
        // What the hosts of the tests' lab are made of.
        let files = [
            ("busybox-static", "/bin/busybox"),
            ("iproute2", "/usr/sbin/ip"),
            ("nftables", "/usr/sbin/nft"),
            ("libfaketime", "/usr/share/doc/libfaketime"),
        ];
        packages
            .extend(files.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(package, _)| *package));
    }
    if !packages::has_program("strace") {
        packages.push("strace");
    }
    packages::install(&packages)
}
