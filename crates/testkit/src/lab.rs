//! Hosts as containers on a private network, which can be killed, frozen, cut off, moved, filled up, and shown a wrong
//! clock.
//!
//! Each host is a container of an image that is made here (`node_image`), with a volume for its state at `/state`, and
//! a directory of the test at `/lab`: there are its control socket (`<name>.sock`), its log (`log`), and what the lab
//! tells it. The program of this workspace, `swarmd`, is mounted and not part of the image, so that the image stays the
//! same from build to build. [`managers`] makes a cluster of it,
//! and [`nemesis`] plagues it.
//!
//! Engine and test must see the same file system. Whatever a lab made in the engine is gone when it is dropped, and what
//! a killed test left there goes when the next lab is made.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use bollard::Docker;
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use tempfile::TempDir;

mod cleanup;
mod clock;
mod disk;
mod exec;
mod host;
mod identity;
pub mod managers;
pub mod nemesis;
mod net;
mod node_image;

pub use disk::Disk;
pub use host::{Host, HostOptions};

/// Label with the lab's name on everything that it makes in the engine.
const LAB: &str = "swarm-test.lab";
/// Label that tells which process made it.
const OWNER: &str = "swarm-test.owner";
/// Numbers of hosts' addresses in the network: what is below is the bridge's.
const FIRST_ADDRESS: u8 = 10;
const LAST_ADDRESS: u8 = 250;

/// Hosts, and the network between them.
#[derive(Debug)]
pub struct Lab {
    docker: Docker,
    /// Name of the network, and first part of all other names.
    name: String,
    image: String,
    dir: TempDir,
    /// The network's addresses, without the last number.
    subnet: [u8; 3],
    next_address: u8,
    hosts: BTreeMap<String, Host>,
    links: net::Links,
    journal: Vec<String>,
}

impl Lab {
    /// A lab without hosts.
    ///
    /// # Errors
    /// If no engine answers, or the machine lacks a program that hosts need.
    pub async fn new() -> Result<Lab> {
        let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
        cleanup::sweep(&docker).await?;
        let image = node_image::make(&docker).await?;
        let name = format!("swarm-lab-{}-{:04x}", std::process::id(), rand::random::<u16>());
        let dir = tempfile::Builder::new().prefix("swarm-lab").tempdir()?;
        let subnet = create_network(&docker, &name).await?;
        Ok(Lab {
            docker,
            name,
            image,
            dir,
            subnet,
            next_address: FIRST_ADDRESS,
            hosts: BTreeMap::new(),
            links: net::Links::default(),
            journal: Vec::new(),
        })
    }

    /// What the names of everything in the engine begin with.
    pub fn engine_name(&self) -> &str {
        &self.name
    }

    /// Names of the hosts, in order.
    pub fn names(&self) -> Vec<String> {
        self.hosts.keys().cloned().collect()
    }

    /// A host by its name.
    ///
    /// # Errors
    /// If there is none.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.get(name).with_context(|| format!("no host {name}"))
    }

    fn host_mut(&mut self, name: &str) -> Result<&mut Host> {
        self.hosts.get_mut(name).with_context(|| format!("no host {name}"))
    }

    /// An address that no host has.
    fn free_address(&mut self) -> Result<Ipv4Addr> {
        let [a, b, c] = self.subnet;
        for _ in FIRST_ADDRESS..=LAST_ADDRESS {
            let address = Ipv4Addr::new(a, b, c, self.next_address);
            self.next_address =
                if self.next_address == LAST_ADDRESS { FIRST_ADDRESS } else { self.next_address + 1 };
            if self.hosts.values().all(|host| host.ip() != address) {
                return Ok(address);
            }
        }
        bail!("the network is full")
    }

    /// Directory of a host on this side.
    fn host_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Notes what is done to the hosts, with the time, as it stands in their logs.
    fn note(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.journal.push(format!("{} {what}", humantime::format_rfc3339_micros(SystemTime::now())));
    }

    /// What was done to the hosts, and what they logged: for the text of a failing test.
    pub fn logs(&self) -> String {
        let logs = self.hosts.values().map(|host| format!("---- {}\n{}", host.name(), host.log()));
        format!("---- the lab\n{}\n{}", self.journal.join("\n"), logs.collect::<String>())
    }

    /// What was done to the hosts so far, a line each.
    pub fn journal(&self) -> &[String] {
        &self.journal
    }

    /// Names and owner, to be put on what is made in the engine.
    fn labels(&self) -> std::collections::HashMap<String, String> {
        labels(&self.name)
    }
}

fn labels(lab: &str) -> std::collections::HashMap<String, String> {
    [(LAB.to_owned(), lab.to_owned()), (OWNER.to_owned(), cleanup::owner())].into()
}

/// Makes a network of 256 addresses among those that are set aside for such tests (RFC 2544) and returns its first three
/// numbers. Addresses are chosen here, for the engine lets a host choose its own only then.
async fn create_network(docker: &Docker, name: &str) -> Result<[u8; 3]> {
    for _ in 0..100 {
        let subnet = [198, 18 + rand::random::<u8>() % 2, rand::random::<u8>()];
        let [a, b, c] = subnet;
        let range = IpamConfig { subnet: Some(format!("{a}.{b}.{c}.0/24")), ..IpamConfig::default() };
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".into()),
            internal: Some(true),
            ipam: Some(Ipam { config: Some(vec![range]), ..Ipam::default() }),
            labels: Some(labels(name)),
            ..NetworkCreateRequest::default()
        };
        match docker.create_network(request).await {
            Ok(_) => return Ok(subnet),
            // Another lab has these addresses.
            Err(error) if error.to_string().contains("overlap") => {}
            Err(error) => return Err(error).context("making the lab's network"),
        }
    }
    bail!("no range of addresses is free for the lab's network")
}

impl Drop for Lab {
    /// Leaves nothing behind, whatever became of the test.
    fn drop(&mut self) {
        if let Err(error) = cleanup::remove_lab(&self.name) {
            // A test that fails has its own reason to tell.
            if std::thread::panicking() {
                eprintln!("{error:#}");
            } else {
                panic!("{error:#}");
            }
        }
    }
}
