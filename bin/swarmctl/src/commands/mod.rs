//! The commands, a file for each kind of object: its arguments, what it does, what it prints.

mod backup;
pub(crate) mod cluster;
pub(crate) mod config;
mod converge;
mod dry_run;
pub(crate) mod exec;
pub(crate) mod image;
mod leader;
pub(crate) mod logs;
pub(crate) mod network;
pub(crate) mod node;
mod policy_view;
mod runtime_view;
pub(crate) mod secret;
pub(crate) mod service;
mod service_view;
pub(crate) mod stats;
pub(crate) mod task;
mod task_view;
mod update_view;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::{ListNodesRequest, ListServicesRequest};
use tonic::transport::Channel;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::output::Names;

/// What a command prints, and the exit code that says what came of it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: Vec<u8>,
    pub(crate) code: u8,
}

impl From<Vec<u8>> for Answer {
    fn from(text: Vec<u8>) -> Answer {
        Answer { text, code: 0 }
    }
}

impl From<String> for Answer {
    fn from(text: String) -> Answer {
        text.into_bytes().into()
    }
}

/// What every command works with.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) control: ControlClient<Channel>,
    /// Names are shown for ids.
    pub(crate) resolve: bool,
    pub(crate) now: SystemTime,
}

impl Context {
    pub(crate) async fn new(socket: &str, resolve: bool) -> Result<Context> {
        let client = Client::connect(socket).await?;
        let control = client.control();
        Ok(Context { client, control, resolve, now: SystemTime::now() })
    }

    /// Names of all nodes and services: two calls, however long the listing is.
    pub(crate) async fn names(&mut self) -> Result<Names> {
        if !self.resolve {
            return Ok(Names::default());
        }
        let nodes = self.control.list_nodes(ListNodesRequest::default()).await?.into_inner().nodes;
        let services =
            self.control.list_services(ListServicesRequest::default()).await?.into_inner().services;
        Ok(Names::new(&nodes, &services))
    }
}

/// Reads a file, or the standard input if none is named.
fn payload(file: Option<&Path>) -> Result<Vec<u8>> {
    let path = file.map_or_else(|| PathBuf::from("-"), Path::to_owned);
    let mut data = Vec::new();
    match file {
        Some(file) if file != Path::new("-") => std::fs::read(file),
        _ => std::io::stdin().lock().read_to_end(&mut data).map(|_| data),
    }
    .map_err(|source| Error::Read { path, source })
}

/// A key or passphrase: the content of a file, or of the standard input, without the end of the line.
fn secret_line(file: &Path) -> Result<String> {
    let text = String::from_utf8(payload(Some(file))?)
        .map_err(|_| Error::plain(format!("{}: a key or passphrase must be text", file.display())))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// Lines of ids.
fn ids<'a>(ids: impl IntoIterator<Item = &'a str>) -> String {
    ids.into_iter().map(|id| format!("{id}\n")).collect()
}

/// `k=v k2=v2`
fn labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}
