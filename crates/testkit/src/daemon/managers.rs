//! Clusters with several managers, and what each of them has in its own store.

use std::collections::BTreeMap;
use std::net::TcpListener;

use anyhow::{Context as _, Result, ensure};
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::{ListNodesRequest, Node, Service, Task};
use swarm_api::{Shared, v1};
use swarm_pki::{Clock, Credentials, Dialer, KeyStore, RootCa, ServerRole, UnlockKey};
use tonic::transport::Channel;

use super::{Cluster, Daemon, READY, loopback};
use crate::quorum::Members;
use crate::wait::until;

/// An address that nobody else takes, with a port that the system gives to no connection: a daemon that was stopped can
/// have it again.
pub fn free_address() -> String {
    loop {
        let address = format!("{}:{}", loopback(), 10_000 + rand::random::<u16>() % 20_000);
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

/// The objects in one manager's store, by id.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Contents {
    pub nodes: Vec<Shared<Node>>,
    pub services: Vec<Shared<Service>>,
    pub tasks: Vec<Shared<Task>>,
    pub networks: Vec<Shared<v1::Network>>,
    pub configs: Vec<Shared<v1::Config>>,
    pub secrets: Vec<Shared<v1::Secret>>,
    pub clusters: Vec<Shared<v1::Cluster>>,
}

impl Contents {
    /// Reads everything, through the remote API of a manager: there it answers from its own store.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn read(mut control: ControlClient<Channel>) -> Result<Contents> {
        let mut nodes = control.list_nodes(ListNodesRequest::default()).await?.into_inner().nodes;
        // Not of the store.
        nodes.iter_mut().for_each(|node| node.manager_status = None);
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        macro_rules! all {
            ($call:ident($request:ident).$field:ident) => {{
                let mut all = control.$call(v1::$request::default()).await?.into_inner().$field;
                all.sort_by(|a, b| a.id.cmp(&b.id));
                all
            }};
        }
        Ok(Contents {
            nodes,
            services: all!(list_services(ListServicesRequest).services),
            tasks: all!(list_tasks(ListTasksRequest).tasks),
            networks: all!(list_networks(ListNetworksRequest).networks),
            configs: all!(list_configs(ListConfigsRequest).configs),
            secrets: all!(list_secrets(ListSecretsRequest).secrets),
            clusters: all!(list_clusters(ListClustersRequest).clusters),
        })
    }
}

impl Members for Cluster {
    fn names(&self) -> Vec<String> {
        std::iter::once(&self.manager).chain(&self.managers).map(|daemon| daemon.name.clone()).collect()
    }

    fn own_store(&self, name: &str) -> Result<ControlClient<Channel>> {
        self.tls(name)
    }

    fn node_id(&self, name: &str) -> Result<String> {
        Cluster::node_id(self, name)
    }
}

impl Cluster {
    /// Fails if two managers, those that are gone included, say that they led in the same term.
    ///
    /// # Errors
    /// Names them.
    pub fn one_leader_a_term(&self) -> Result<()> {
        let mut leaders = BTreeMap::new();
        let all = std::iter::once(&self.manager).chain(&self.managers).chain(&self.workers);
        for (term, name) in all.flat_map(|d| d.led_terms().into_iter().map(|term| (term, d.name.as_str()))) {
            let other = *leaders.entry(term).or_insert(name);
            ensure!(other == name, "{other} and {name} both led in term {term}");
        }
        ensure!(!leaders.is_empty(), "nobody has ever led");
        Ok(())
    }

    /// The daemon that led in the highest term so far.
    ///
    /// # Errors
    /// If nobody has led yet.
    pub fn last_leader(&self) -> Result<&Daemon> {
        let all = std::iter::once(&self.manager).chain(&self.managers).chain(&self.workers);
        let last = all.filter_map(|daemon| Some((daemon.led_terms().into_iter().max()?, daemon)));
        Ok(last.max_by_key(|(term, _)| *term).context("nobody has led yet")?.1)
    }

    /// Starts another manager, which joins through the first one; returns its name.
    pub async fn spawn_manager(&mut self) -> Result<String> {
        let name = format!("manager-{}", self.managers.len() + 2);
        let token = self.manager_token().await?;
        let mut manager = self.joining(&name, &token)?;
        manager.spawn()?;
        self.managers.push(manager);
        Ok(name)
    }

    /// Adds a manager through the first one, and waits until it is a member of the raft group and takes tasks.
    pub async fn add_manager(&mut self) -> Result<()> {
        let name = self.spawn_manager().await?;
        let what = format!("{name} to be a manager");
        let joined = until(&what, READY, || async {
            let mut control = self.tls(&name)?;
            let nodes = control.list_nodes(ListNodesRequest::default()).await?.into_inner().nodes;
            let members = nodes.iter().filter(|n| n.manager_status.is_some()).count();
            ensure!(members == self.managers.len() + 1, "{members} managers are known");
            // It takes tasks too.
            let own = |n: &&Shared<Node>| n.description.as_ref().is_some_and(|d| d.hostname == name);
            let state = nodes.iter().find(own).map(|n| n.status.state());
            ensure!(state == Some(v1::node_status::State::Ready), "as a node it is {state:?}");
            Ok(())
        });
        joined.await.map_err(|error| error.context(self.logs()))
    }

    /// A daemon by its name.
    pub fn daemon_named(&self, name: &str) -> Result<&Daemon> {
        let mut all = std::iter::once(&self.manager).chain(&self.managers).chain(&self.workers);
        all.find(|daemon| daemon.name == name).with_context(|| format!("no daemon {name}"))
    }

    /// A daemon by its name, to be started and stopped.
    pub fn daemon_mut(&mut self, name: &str) -> Result<&mut Daemon> {
        let mut all = std::iter::once(&mut self.manager).chain(&mut self.managers).chain(&mut self.workers);
        all.find(|daemon| daemon.name == name).with_context(|| format!("no daemon {name}"))
    }

    /// A channel to a manager's remote API with that manager's own certificate. What is asked there the manager
    /// answers from its own store.
    pub fn tls_channel(&self, name: &str) -> Result<Channel> {
        self.tls_channel_as(name, name)
    }

    /// The same with the certificate of another daemon.
    pub fn tls_channel_as(&self, who: &str, name: &str) -> Result<Channel> {
        let clock = Clock::system();
        let (root, credentials) = self.identity(who, &clock)?;
        let dialer = Dialer::with_credentials(&root, &credentials, ServerRole::Manager, &clock)?;
        Ok(dialer.channel(&self.daemon_named(name)?.address()?)?)
    }

    /// Id of the node with this daemon, from its certificate.
    pub fn node_id(&self, name: &str) -> Result<String> {
        Ok(self.identity(name, &Clock::system())?.1.node_id().to_owned())
    }

    fn identity(&self, name: &str, clock: &Clock) -> Result<(RootCa, Credentials)> {
        // Opening the files of a running daemon would tidy up under its hands.
        let copy = tempfile::tempdir_in(self.dir.path())?;
        for file in std::fs::read_dir(self.daemon_named(name)?.state.join("certificates"))? {
            let file = file?;
            std::fs::copy(file.path(), copy.path().join(file.file_name()))?;
        }
        let keys = KeyStore::open(copy.path())?;
        let root = keys.load_root(clock.now())?;
        let kek = self.unlock_key.as_ref().map(|key| key.parse::<UnlockKey>()).transpose()?;
        let pair = keys.load(kek.as_ref().map(UnlockKey::kek))?;
        let credentials = Credentials::new(&pair.certificate, pair.key, &root, clock.now(), false)?;
        Ok((root, credentials))
    }

    /// The control API on a manager's remote address.
    pub fn tls(&self, name: &str) -> Result<ControlClient<Channel>> {
        Ok(ControlClient::new(self.tls_channel(name)?).max_decoding_message_size(64 * 1024 * 1024))
    }

    /// What a manager has in its own store.
    pub async fn contents(&self, name: &str) -> Result<Contents> {
        Contents::read(self.tls(name)?).await
    }
}
