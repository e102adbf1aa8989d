//! Running a program on a host.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bollard::container::LogOutput;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use futures::StreamExt as _;

use super::Lab;
use crate::wait::until;

/// Longest wait for the engine to tell how a program ended.
const ENDED: Duration = Duration::from_secs(120);

impl Lab {
    /// Runs a program on a running host until its output ends, and returns what it printed.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub async fn exec(&self, host: &str, words: &[&str]) -> Result<String> {
        self.exec_in(self.host(host)?.container(), words)
            .await
            .with_context(|| format!("{words:?} on {host}"))
    }

    pub(super) async fn exec_in(&self, container: &str, words: &[&str]) -> Result<String> {
        let config = ExecConfig {
            cmd: Some(words.iter().map(|w| (*w).to_owned()).collect()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..ExecConfig::default()
        };
        let exec = self.docker.create_exec(container, config).await?.id;
        let (mut printed, mut complaints) = (Vec::new(), Vec::new());
        let started = self.docker.start_exec(&exec, None::<StartExecOptions>).await?;
        if let StartExecResults::Attached { mut output, .. } = started {
            while let Some(part) = output.next().await {
                match part? {
                    LogOutput::StdErr { message } => complaints.extend_from_slice(&message),
                    other => printed.extend_from_slice(&other.into_bytes()),
                }
            }
        }
        let code = until("the program to have ended", ENDED, || async {
            self.docker.inspect_exec(&exec).await?.exit_code.context("it runs")
        })
        .await?;
        let (printed, complaints) = (String::from_utf8_lossy(&printed), String::from_utf8_lossy(&complaints));
        ensure!(code == 0, "it ended with {code}: {printed}{complaints}");
        Ok(printed.into_owned())
    }
}
