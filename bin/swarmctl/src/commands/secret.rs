//! Secrets.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use prost_types::Timestamp;
use swarm_api::Shared;
use swarm_api::v1::{
    CreateSecretRequest, Driver, ListSecretsRequest, RemoveSecretRequest, Secret, SecretSpec,
};

use super::{Context, ids, payload};
use crate::error::{Error, Result};
use crate::output::{Table, time};
use crate::resolve;

/// Commands on secrets.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a secret from a file or the standard input
    Create {
        /// Name of the secret
        name: String,
        /// Read this file
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Let this driver provide the data
        #[arg(short, long, value_name = "DRIVER")]
        driver: Option<String>,
        /// Expand templates in the data for each task; golang is the one language
        #[arg(short, long, value_name = "LANGUAGE")]
        template_driver: Option<String>,
    },
    /// Show a secret, without its data
    Inspect(One),
    /// List secrets
    Ls {
        /// IDs only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove a secret
    #[command(visible_alias = "rm")]
    Remove(One),
}

/// A secret.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// ID of the secret, its name, or how its ID begins
    secret: String,
}

pub(crate) async fn run(context: &mut Context, command: Command) -> Result<String> {
    match command {
        Command::Create { name, file, driver, template_driver } => {
            let mut spec = SecretSpec::default();
            spec.annotations.name = name;
            if file.is_some() || driver.is_none() {
                spec.data = payload(file.as_deref())?;
            }
            spec.templating = template_driver.map(|name| Driver { name, ..Default::default() });
            spec.driver = driver.map(|name| Driver { name, ..Default::default() });
            let request = CreateSecretRequest { spec: Some(spec) };
            let secret = context.control.create_secret(request).await?.into_inner().secret;
            Ok(format!("{}\n", secret.ok_or(Error::Incomplete("secret"))?.id))
        }
        Command::Ls { quiet } => {
            let request = ListSecretsRequest::default();
            let mut secrets = context.control.list_secrets(request).await?.into_inner().secrets;
            secrets.sort_by_key(|secret| std::cmp::Reverse(created(secret.meta.created_at.as_ref())));
            if quiet {
                return Ok(ids(secrets.iter().map(|secret| secret.id.as_str())));
            }
            Ok(list(&secrets, context.now))
        }
        Command::Inspect(One { secret }) => {
            let secret = resolve::secret(&mut context.control, &secret).await?;
            let annotations = &secret.spec.annotations;
            Ok(summary(&secret.id, &annotations.name, &annotations.labels, secret.meta.created_at.as_ref()))
        }
        Command::Remove(One { secret }) => {
            let secret = resolve::secret(&mut context.control, &secret).await?;
            context.control.remove_secret(RemoveSecretRequest { secret_id: secret.id.clone() }).await?;
            Ok(format!("{}\n", secret.id))
        }
    }
}

/// A key to sort by time.
pub(super) fn created(moment: Option<&Timestamp>) -> (i64, i32) {
    moment.map_or((0, 0), |moment| (moment.seconds, moment.nanos))
}

/// `secret ls`
fn list(secrets: &[Shared<Secret>], now: SystemTime) -> String {
    let mut table = Table::wide_list();
    table.header(&["ID", "Name", "Driver", "Created"]);
    for secret in secrets {
        let driver = secret.spec.driver.as_ref().map_or("", |driver| &driver.name);
        let since = time::relative(secret.meta.created_at.as_ref(), now);
        table.line(format!("{}\t{}\t{driver}\t{since}", secret.id, secret.spec.annotations.name));
    }
    table.finish()
}

/// The page of `secret inspect` and `config inspect`.
pub(super) fn summary(
    id: &str,
    name: &str,
    labels: &std::collections::BTreeMap<String, String>,
    created: Option<&Timestamp>,
) -> String {
    let mut page = Table::summary();
    page.pair("ID", id);
    page.pair("Name", name);
    if !labels.is_empty() {
        page.line("Labels\t");
        for (key, value) in labels {
            page.pair(&format!("  {key}"), value);
        }
    }
    page.pair("Created", time::absolute(created));
    page.finish()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn secrets_are_shown_without_data() {
        let mut secret = Secret { id: "s1".into(), ..Default::default() };
        secret.spec.annotations.name = "password".into();
        secret.meta.created_at = Some(Timestamp { seconds: 1_714_564_800, nanos: 0 });
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_714_564_805);
        let labels = [("a".to_owned(), "1".to_owned())].into();
        assert_eq!(
            summary("s1", "password", &labels, secret.meta.created_at.as_ref()),
            "ID             : s1\nName           : password\nLabels         \n  a            : 1\n\
             Created        : 2024-05-01T12:00:00Z\n"
        );
        assert_eq!(
            list(&[secret.into()], now),
            "ID    Name        Driver    Created\n--    ----        ------    -------\n\
             s1    password              5 seconds ago\n"
        );
    }
}
