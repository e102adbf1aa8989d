//! One host: starting, ending, freezing and moving it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HostConfig, NetworkConnectRequest,
    NetworkDisconnectRequest, NetworkingConfig,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
    StartContainerOptions, StopContainerOptionsBuilder,
};

use super::{Disk, Lab, clock};
use crate::daemon::program;
use crate::wait::until;

/// Longest wait for a host to end.
const ENDED: Duration = Duration::from_secs(120);

/// Longest wait for a host to be frozen.
const FROZEN: Duration = Duration::from_secs(30);

/// How a host is made.
#[derive(Debug, Clone, Default)]
pub struct HostOptions {
    /// What it has its state on.
    pub disk: Disk,
    /// It has a clock that can be set.
    pub clock: bool,
    /// Another image than the lab's own, with `/bin/sh` and `nft`: for a host that has an engine of its own.
    pub image: Option<String>,
    /// More capabilities than `NET_ADMIN`.
    pub capabilities: Vec<String>,
}

/// One host.
#[derive(Debug)]
pub struct Host {
    name: String,
    container: String,
    /// What is `/lab` on the host.
    dir: PathBuf,
    options: HostOptions,
    address: Ipv4Addr,
    command: Vec<String>,
    /// The rules of its network, as the file has them.
    rules: String,
    /// It was started, and neither killed nor stopped since. It may have ended by itself.
    started: bool,
    frozen: bool,
}

impl Host {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address in the lab's network.
    pub fn ip(&self) -> Ipv4Addr {
        self.address
    }

    /// Where its control socket is on this side, once it has one.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.sock", self.name))
    }

    /// Everything that its program wrote so far, in all its runs.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The directory that it shares with the test: `/lab` there.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// It was started, and is not frozen.
    pub fn is_awake(&self) -> bool {
        self.started && !self.frozen
    }

    /// It was started, and neither killed nor stopped since.
    pub fn is_started(&self) -> bool {
        self.started
    }

    pub(super) fn container(&self) -> &str {
        &self.container
    }

    pub(super) fn options(&self) -> &HostOptions {
        &self.options
    }

    /// Writes the rules of its network, for now or its next start. True if they are others than before.
    pub(super) fn set_rules(&mut self, rules: String) -> Result<bool> {
        if rules == self.rules {
            return Ok(false);
        }
        std::fs::write(self.dir.join("rules"), &rules)?;
        self.rules = rules;
        Ok(true)
    }

    /// What the host runs when it starts.
    fn script(&self) -> String {
        let mut environment = Vec::new();
        if self.options.clock {
            environment.extend(clock::environment());
        }
        let address = self.address.to_string();
        let words = environment.iter().chain(&self.command);
        let words = words.map(|word| quoted(&word.replace("{ip}", &address)));
        format!(
            "set -e\nnft -f /lab/rules\nexec env {} >>/lab/log 2>&1\n",
            words.collect::<Vec<_>>().join(" ")
        )
    }
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl Lab {
    /// Adds a host that is to run this program, and does not start it yet. `{ip}` in the program's words stands for the
    /// host's address.
    ///
    /// # Errors
    /// If there is one with this name, or the engine refuses.
    pub async fn add_host(&mut self, name: &str, command: &[&str], options: HostOptions) -> Result<()> {
        ensure!(!self.hosts.contains_key(name), "there is a host {name}");
        let address = self.free_address()?;
        let dir = self.host_dir(name);
        std::fs::create_dir(&dir)?;
        clock::write(&dir, 0)?;
        let volume = self.create_disk(name, options.disk).await?;
        let swarmd = program("swarmd")?;
        let mut capabilities = options.capabilities.clone();
        capabilities.push("NET_ADMIN".into());
        let container = format!("{}-{name}", self.name);
        let body = ContainerCreateBody {
            image: Some(options.image.clone().unwrap_or_else(|| self.image.clone())),
            hostname: Some(name.to_owned()),
            cmd: Some(vec!["/bin/sh".into(), "/lab/start".into()]),
            env: Some(vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()]),
            labels: Some(self.labels()),
            host_config: Some(HostConfig {
                network_mode: Some(self.name.clone()),
                cap_add: Some(capabilities),
                binds: Some(vec![
                    format!("{volume}:/state"),
                    format!("{}:/lab", dir.display()),
                    format!("{}:/bin/swarmd:ro", swarmd.display()),
                ]),
                ..HostConfig::default()
            }),
            networking_config: Some(NetworkingConfig {
                endpoints_config: Some(HashMap::from([(self.name.clone(), endpoint(address))])),
            }),
            ..ContainerCreateBody::default()
        };
        let create = CreateContainerOptionsBuilder::new().name(&container).build();
        self.docker.create_container(Some(create), body).await.with_context(|| format!("making {name}"))?;
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let host = Host {
            name: name.to_owned(),
            container,
            dir,
            options,
            address,
            command,
            rules: String::new(),
            started: false,
            frozen: false,
        };
        self.hosts.insert(name.to_owned(), host);
        let rules = self.rules(name)?;
        self.host_mut(name)?.set_rules(rules).map(drop)
    }

    /// Changes what a host runs, from its next start on.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn set_command(&mut self, name: &str, command: &[&str]) -> Result<()> {
        self.host_mut(name)?.command = command.iter().map(|word| (*word).to_owned()).collect();
        Ok(())
    }

    /// Starts a host, with the state that it had.
    ///
    /// # Errors
    /// If it is running.
    pub async fn start(&mut self, name: &str) -> Result<()> {
        ensure!(!self.runs(name).await?, "{name} is running");
        self.note(format!("{name} starts"));
        let host = self.host_mut(name)?;
        std::fs::write(host.dir.join("start"), host.script())?;
        host.started = true;
        host.frozen = false;
        let started =
            self.docker.start_container(self.host(name)?.container(), None::<StartContainerOptions>);
        started.await.with_context(|| format!("starting {name}"))
    }

    /// Ends a host as a power failure does, frozen or not: everything on it gets SIGKILL.
    ///
    /// # Errors
    /// If it is not running.
    pub async fn kill(&mut self, name: &str) -> Result<()> {
        self.note(format!("{name} is killed"));
        let host = self.host(name)?;
        let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
        self.docker.kill_container(host.container(), Some(options)).await?;
        if host.frozen {
            // Where the engine does not do it: the signal waits for that, and nothing else runs before it. Whether the
            // host has ended is asked below.
            let _ = self.docker.unpause_container(host.container()).await;
        }
        self.ended(name).await.map(drop)
    }

    /// Stops a host in good order and returns the exit code of its program.
    ///
    /// # Errors
    /// If it does not end.
    pub async fn stop(&mut self, name: &str) -> Result<i64> {
        self.note(format!("{name} is stopped"));
        let options = StopContainerOptionsBuilder::new().t(60).build();
        self.docker.stop_container(self.host(name)?.container(), Some(options)).await?;
        self.ended(name).await
    }

    /// Waits until a host has ended, by itself or not, and returns the exit code of its program.
    ///
    /// # Errors
    /// If it does not end.
    pub async fn ended(&mut self, name: &str) -> Result<i64> {
        let code = until(&format!("{name} to end"), ENDED, || async {
            ensure!(!self.runs(name).await?, "it runs");
            let state = self.inspect(name).await?;
            state.exit_code.context("an ended container without an exit code")
        })
        .await?;
        let host = self.host_mut(name)?;
        host.started = false;
        host.frozen = false;
        Ok(code)
    }

    /// Freezes a host: nothing on it runs, though its network still takes packets.
    ///
    /// # Errors
    /// If it is not running.
    pub async fn pause(&mut self, name: &str) -> Result<()> {
        self.note(format!("{name} is frozen"));
        let container = self.host(name)?.container();
        // On a host that is busy an engine gives up now and then ("unable to freeze"), and nothing has changed.
        let frozen = || async {
            match self.docker.pause_container(container).await {
                Err(error) if error.to_string().contains("unable to freeze") => Err(error.into()),
                done => Ok(done),
            }
        };
        until("the host to be frozen", FROZEN, frozen).await??;
        self.host_mut(name)?.frozen = true;
        Ok(())
    }

    /// Wakes a frozen host. If links changed while it was frozen, it may be a moment before it notices.
    ///
    /// # Errors
    /// If it is not frozen.
    pub async fn unpause(&mut self, name: &str) -> Result<()> {
        self.note(format!("{name} wakes"));
        self.docker.unpause_container(self.host(name)?.container()).await?;
        self.host_mut(name)?.frozen = false;
        self.load_rules(name).await
    }

    /// Gives a host that is down another address, from its next start on.
    ///
    /// # Errors
    /// If it is running.
    pub async fn move_host(&mut self, name: &str) -> Result<Ipv4Addr> {
        ensure!(!self.runs(name).await?, "{name} is running");
        let address = self.free_address()?;
        self.note(format!("{name} moves from {} to {address}", self.host(name)?.ip()));
        let container = self.host(name)?.container().to_owned();
        let leave = NetworkDisconnectRequest { container: container.clone(), force: Some(true) };
        self.docker.disconnect_network(&self.name, leave).await.context("leaving the network")?;
        let enter = NetworkConnectRequest { container, endpoint_config: Some(endpoint(address)) };
        self.docker.connect_network(&self.name, enter).await.context("entering the network")?;
        self.host_mut(name)?.address = address;
        self.apply().await?;
        Ok(address)
    }

    /// The host's program runs, frozen or not.
    ///
    /// # Errors
    /// If there is no such host.
    pub async fn runs(&self, name: &str) -> Result<bool> {
        Ok(self.inspect(name).await?.running.unwrap_or_default())
    }

    async fn inspect(&self, name: &str) -> Result<bollard::models::ContainerState> {
        let container = self.host(name)?.container();
        let answer = self.docker.inspect_container(container, None::<InspectContainerOptions>).await?;
        answer.state.context("a container without a state")
    }
}

fn endpoint(address: Ipv4Addr) -> EndpointSettings {
    EndpointSettings {
        ipam_config: Some(EndpointIpamConfig {
            ipv4_address: Some(address.to_string()),
            ..EndpointIpamConfig::default()
        }),
        ..EndpointSettings::default()
    }
}
