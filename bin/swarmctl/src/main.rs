//! The swarm command line.
//!
//! [`cli`] is the tree of commands, [`commands`] what they do and print, [`spec`] how flags become specs of
//! services, [`values`] the syntaxes of single values, [`output`] tables and times, [`resolve`] which object an
//! argument means, [`client`] the connection, [`terminal`] the one that this runs in,
//! [`error`] what goes wrong.

mod cli;
mod client;
mod commands;
mod error;
mod output;
mod resolve;
mod spec;
mod terminal;
mod values;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use cli::{Cli, Command};
use commands::{Answer, Context, cluster, config, image, network, node, secret, service, task};
use error::Result;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(error::Error::plain(format!("can't start: {error}"))),
    };
    let printed = result.and_then(|answer| {
        let mut out = std::io::stdout().lock();
        match out.write_all(&answer.text).and_then(|()| out.flush()) {
            // Whoever reads may have seen enough.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(error::Error::plain(format!("can't write the answer: {error}")))
            }
            _ => Ok(answer.code),
        }
    });
    match printed {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{}", error.report());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Runs the command and returns what it prints.
async fn run(cli: Cli) -> Result<Answer> {
    let context = async || Context::new(&cli.socket, !cli.no_resolve).await;
    let text = match cli.command {
        Some(Command::Cluster { command: Some(command) }) => {
            cluster::run(&mut context().await?, command).await?
        }
        Some(Command::Config { command: Some(command) }) => {
            return config::run(&mut context().await?, command).await.map(Answer::from);
        }
        Some(Command::Image { command: Some(command) }) => {
            return image::run(&mut context().await?, command).await;
        }
        Some(Command::Network { command: Some(command) }) => {
            network::run(&mut context().await?, command).await?
        }
        Some(Command::Node { command: Some(command) }) => node::run(&mut context().await?, command).await?,
        Some(Command::Secret { command: Some(command) }) => {
            secret::run(&mut context().await?, command).await?
        }
        Some(Command::Service { command: Some(command) }) => {
            return service::run(&mut context().await?, command).await;
        }
        Some(Command::Task { command: Some(command) }) => {
            return task::run(&mut context().await?, command).await;
        }
        Some(Command::Version) => {
            let name = std::env::args().next().unwrap_or_else(|| "swarmctl".into());
            format!("{name} {} {}\n", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
        }
        other => help(other.as_ref()),
    };
    Ok(text.into())
}

/// The help of a group, or of the whole.
fn help(group: Option<&Command>) -> String {
    let name = match group {
        Some(Command::Cluster { .. }) => "cluster",
        Some(Command::Config { .. }) => "config",
        Some(Command::Image { .. }) => "image",
        Some(Command::Network { .. }) => "network",
        Some(Command::Node { .. }) => "node",
        Some(Command::Secret { .. }) => "secret",
        Some(Command::Service { .. }) => "service",
        Some(Command::Task { .. }) => "task",
        Some(Command::Version) | None => "",
    };
    let mut whole = Cli::command();
    whole.build();
    match whole.find_subcommand_mut(name) {
        Some(group) => group.render_help().to_string(),
        None => whole.render_help().to_string(),
    }
}
