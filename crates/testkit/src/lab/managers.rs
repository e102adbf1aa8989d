//! A cluster of managers, each on a host of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::{ListClustersRequest, ListNodesRequest};
use swarm_pki::Dialer;
use tonic::transport::Channel;

use super::{Host, HostOptions, Lab, identity};
use crate::daemon::{channel, program};
use crate::quorum::{Members, PATIENCE, reachable};
use crate::wait::until;

/// Port of every manager's remote API.
const PORT: u16 = 4242;
/// Largest answer that a test reads.
const ANSWER: usize = 64 * 1024 * 1024;

/// What a manager logs when it begins to lead, and where its line names the term.
const LEADS: &str = "\"this manager leads the cluster\"";
const TERM: &str = " term=";

/// How managers are made.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// More flags for each `swarmd`.
    pub flags: Vec<String>,
    /// What each host has.
    pub host: HostOptions,
}

impl Setup {
    /// Elections after 3 to 5 s without a leader instead of 10 to 19: for tests that wait for many of them.
    pub fn quick() -> Setup {
        Setup { flags: vec!["--election-tick".into(), "3".into()], host: HostOptions::default() }
    }
}

/// Managers `m1`, `m2` and so on.
pub struct Managers {
    /// Their hosts, with everything that can be done to them.
    pub lab: Lab,
    setup: Setup,
    dialer: Dialer,
    /// Node ids by hosts' names.
    ids: BTreeMap<String, String>,
}

impl Managers {
    /// Starts so many managers and waits until all of them reach each other.
    ///
    /// # Errors
    /// If they don't, with what they logged.
    pub async fn start(count: usize, setup: Setup) -> Result<Managers> {
        let mut lab = Lab::new().await?;
        let result = Managers::first(&mut lab, &setup).await;
        let (dialer, id) = result.map_err(|error| error.context(lab.logs()))?;
        let mut managers = Managers { lab, setup, dialer, ids: [("m1".to_owned(), id)].into() };
        let result = managers.others(count).await;
        result.map_err(|error| error.context(managers.lab.logs()))?;
        Ok(managers)
    }

    async fn first(lab: &mut Lab, setup: &Setup) -> Result<(Dialer, String)> {
        add_host(lab, "m1", setup, &[]).await?;
        lab.start("m1").await?;
        ready(lab, "m1").await?;
        Ok((identity::dialer(lab, "m1").await?, identity::node_id(lab, "m1").await?))
    }

    async fn others(&mut self, count: usize) -> Result<()> {
        let names: Vec<String> = (2..=count).map(|number| format!("m{number}")).collect();
        for name in &names {
            self.join(name).await?;
        }
        for name in &names {
            ready(&self.lab, name).await?;
            self.ids.insert(name.clone(), identity::node_id(&self.lab, name).await?);
        }
        for name in self.lab.names() {
            reachable(self, &name).await?;
        }
        Ok(())
    }

    /// Starts one more host that joins as a manager through the first one, and does not wait for it.
    async fn join(&mut self, name: &str) -> Result<()> {
        let clusters = self.control("m1")?.list_clusters(ListClustersRequest::default()).await?.into_inner();
        let cluster = clusters.clusters.into_iter().next().context("no cluster object")?;
        let (address, token) = (self.address("m1")?, &cluster.root_ca.join_tokens.manager);
        add_host(&mut self.lab, name, &self.setup, &["--join-addr", &address, "--join-token", token]).await?;
        self.lab.start(name).await
    }

    /// Address of a manager's remote API.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn address(&self, name: &str) -> Result<String> {
        Ok(format!("{}:{PORT}", self.lab.host(name)?.ip()))
    }

    /// Path of a manager's control socket.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn socket(&self, name: &str) -> Result<PathBuf> {
        Ok(self.lab.host(name)?.socket())
    }

    /// The control API on a manager's socket.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn control(&self, name: &str) -> Result<ControlClient<Channel>> {
        Ok(ControlClient::new(channel(self.socket(name)?)).max_decoding_message_size(ANSWER))
    }

    /// Runs `swarmctl` with a manager's socket.
    ///
    /// # Errors
    /// If it can't be run; that it fails is told by what it returns.
    pub async fn ctl(&self, name: &str, args: &[&str]) -> Result<Output> {
        let mut command = tokio::process::Command::new(program("swarmctl")?);
        command.arg("--socket").arg(self.socket(name)?).args(args).kill_on_drop(true);
        Ok(command.output().await?)
    }

    /// Runs `swarmctl` and returns what it printed.
    ///
    /// # Errors
    /// If it fails.
    pub async fn ctl_ok(&self, name: &str, args: &[&str]) -> Result<String> {
        let out = self.ctl(name, args).await?;
        ensure!(out.status.success(), "swarmctl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// The terms in which managers led so far, each as often as one of them said that it leads.
    pub fn terms(&self) -> Vec<u64> {
        let logs: Vec<String> = self.lab.hosts.values().map(Host::log).collect();
        let lines = logs.iter().flat_map(|log| log.lines()).filter(|line| line.contains(LEADS));
        let mut terms: Vec<u64> =
            lines.filter_map(|line| line.split_once(TERM)?.1.split(' ').next()?.parse().ok()).collect();
        terms.sort_unstable();
        terms
    }

    /// Checks that nobody led in a term in which another manager did.
    ///
    /// # Errors
    /// If two did.
    pub fn one_leader_per_term(&self) -> Result<()> {
        let terms = self.terms();
        ensure!(!terms.is_empty(), "nobody ever led: the logs are not as they are read here");
        ensure!(terms.windows(2).all(|pair| pair[0] != pair[1]), "two led in one term: {terms:?}");
        Ok(())
    }

    /// Adds what the lab and the managers have to tell to a failure.
    ///
    /// # Errors
    /// If the result is one.
    pub fn with_logs<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| error.context(self.lab.logs()))
    }
}

impl Members for Managers {
    fn names(&self) -> Vec<String> {
        self.lab.names()
    }

    fn own_store(&self, name: &str) -> Result<ControlClient<Channel>> {
        let channel = self.dialer.channel(&self.address(name)?)?;
        Ok(ControlClient::new(channel).max_decoding_message_size(ANSWER))
    }

    fn node_id(&self, name: &str) -> Result<String> {
        self.ids.get(name).cloned().with_context(|| format!("{name} is no manager"))
    }
}

async fn add_host(lab: &mut Lab, name: &str, setup: &Setup, join: &[&str]) -> Result<()> {
    let mut command = vec!["swarmd", "--state-dir", "/state", "--engine-addr", "none", "--hostname", name];
    let (listen, advertise) = (format!("0.0.0.0:{PORT}"), format!("{{ip}}:{PORT}"));
    command.extend(["--listen-remote-api", &listen, "--advertise-remote-api", &advertise]);
    let socket = format!("/lab/{name}.sock");
    command.extend(["--listen-control-api", &socket]);
    command.extend(setup.flags.iter().map(String::as_str));
    command.extend(join);
    lab.add_host(name, &command, setup.host.clone()).await
}

/// Waits until a manager answers on its socket.
async fn ready(lab: &Lab, name: &str) -> Result<()> {
    let socket = lab.host(name)?.socket();
    until(&format!("{name} to answer"), PATIENCE, || async {
        ensure!(lab.runs(name).await?, "{name} has ended");
        let mut control = ControlClient::new(channel(socket.clone()));
        Ok(control.list_nodes(ListNodesRequest::default()).await.map(drop)?)
    })
    .await
}
