//! Measures writes through a manager's control socket, and calls that write nothing beside.
//!
//! Every connection has one call in flight: it writes the next object when the last one is acknowledged. So one
//! connection measures the latency of a write, and many measure how writes share the log. What the client itself
//! costs is stated, since it runs on the same machine.

mod load;
mod report;
mod usage;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Measure writes through the control socket of a running manager.
#[derive(Debug, Parser)]
#[command(name = "swarm-bench")]
struct Cli {
    /// Control socket of the manager
    #[arg(short, long, env = "SWARM_SOCKET", default_value = "/var/run/swarmd.sock", value_name = "PATH")]
    socket: PathBuf,
    /// Speak TLS on the socket, as the managers of the original and of Docker Engine want it
    #[arg(long)]
    tls: bool,
    /// Connections, a run for each number
    #[arg(short, long, value_delimiter = ',', default_values_t = [1, 64], value_name = "N,…")]
    connections: Vec<usize>,
    /// Seconds that each run is measured
    #[arg(short, long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    time: u64,
    /// Seconds before that, in which nothing is measured
    #[arg(short, long, default_value_t = 1, value_name = "SECONDS")]
    warmup: u64,
    /// What is written
    #[arg(long, value_enum, default_value_t = What::Service, value_name = "KIND")]
    what: What,
    /// Process id of the manager: its CPU and disk writes are stated too
    #[arg(short, long, value_name = "PID")]
    pid: Option<u32>,
    /// Threads of the client
    #[arg(long, default_value_t = 1, value_name = "N")]
    threads: usize,
    /// Leave what was written where it is
    #[arg(long)]
    keep: bool,
}

/// What a run writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Services without tasks and ports
    Service,
    /// Configs of 1 KB
    Config,
    /// Nothing: what calls to the manager cost by themselves
    Nothing,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cli.threads.max(1))
        .enable_all()
        .build()?;
    runtime.block_on(async {
        for connections in &cli.connections {
            let run = load::Run {
                socket: cli.socket.clone(),
                tls: cli.tls,
                connections: (*connections).max(1),
                warmup: Duration::from_secs(cli.warmup),
                time: Duration::from_secs(cli.time),
                what: cli.what,
                pid: cli.pid,
                keep: cli.keep,
            };
            print!("{}", load::run(&run).await?);
        }
        Ok(())
    })
}
