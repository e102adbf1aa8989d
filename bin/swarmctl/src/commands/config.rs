//! Configs.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use swarm_api::Shared;
use swarm_api::v1::{
    Config, ConfigSpec, CreateConfigRequest, Driver, ListConfigsRequest, RemoveConfigRequest,
};

use super::secret::{created, summary};
use super::{Context, ids, payload};
use crate::error::{Error, Result};
use crate::output::{Table, time};
use crate::resolve;

/// Commands on configs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a config from a file or the standard input
    Create {
        /// Name of the config
        name: String,
        /// Read this file
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Expand templates in the data for each task; golang is the one language
        #[arg(short, long, value_name = "LANGUAGE")]
        template_driver: Option<String>,
    },
    /// Show a config and its data
    Inspect(One),
    /// List configs
    Ls {
        /// IDs only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove a config
    #[command(visible_alias = "rm")]
    Remove(One),
}

/// A config.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// ID of the config, its name, or how its ID begins
    config: String,
}

/// Runs a command. What is printed may be no text: it ends with the config's data.
pub(crate) async fn run(context: &mut Context, command: Command) -> Result<Vec<u8>> {
    match command {
        Command::Create { name, file, template_driver } => {
            let mut spec = ConfigSpec { data: payload(file.as_deref())?, ..Default::default() };
            spec.annotations.name = name;
            spec.templating = template_driver.map(|name| Driver { name, ..Default::default() });
            let request = CreateConfigRequest { spec: Some(spec) };
            let config = context.control.create_config(request).await?.into_inner().config;
            Ok(format!("{}\n", config.ok_or(Error::Incomplete("config"))?.id).into())
        }
        Command::Ls { quiet } => {
            let request = ListConfigsRequest::default();
            let mut configs = context.control.list_configs(request).await?.into_inner().configs;
            configs.sort_by_key(|config| std::cmp::Reverse(created(config.meta.created_at.as_ref())));
            if quiet {
                return Ok(ids(configs.iter().map(|config| config.id.as_str())).into());
            }
            Ok(list(&configs, context.now).into())
        }
        Command::Inspect(One { config }) => {
            let config = resolve::config(&mut context.control, &config).await?;
            let annotations = &config.spec.annotations;
            let created = config.meta.created_at.as_ref();
            let page = summary(&config.id, &annotations.name, &annotations.labels, created);
            Ok([page.as_bytes(), b"Payload:\n\n", &config.spec.data].concat())
        }
        Command::Remove(One { config }) => {
            let config = resolve::config(&mut context.control, &config).await?;
            context.control.remove_config(RemoveConfigRequest { config_id: config.id.clone() }).await?;
            Ok(format!("{}\n", config.id).into())
        }
    }
}

/// `config ls`
fn list(configs: &[Shared<Config>], now: SystemTime) -> String {
    let mut table = Table::wide_list();
    table.header(&["ID", "Name", "Created"]);
    for config in configs {
        let since = time::relative(config.meta.created_at.as_ref(), now);
        table.line(format!("{}\t{}\t{since}", config.id, config.spec.annotations.name));
    }
    table.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_has_its_headers() {
        assert_eq!(list(&[], SystemTime::UNIX_EPOCH), "ID    Name    Created\n--    ----    -------\n");
    }
}
