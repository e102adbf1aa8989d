//! The loop that signs what nodes ask for, on the leader.
//!
//! What is to be signed is found in the node objects. It is signed in batches, off the async threads, and stored in one
//! transaction per batch. A certificate is stored only onto the very request it was made for.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use swarm_api::v1::issuance_status::State;
use swarm_api::v1::{Cluster, Node, NodeRole, node_spec};
use swarm_api::{Kind, Object, StoreObject as _};
use swarm_pki::NodeSubject;
use swarm_store::{Error, Event, Kinds, Received, Tx, View};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::CaServer;
use super::issuer::{Issuer, Refusal, Signer};

/// Certificates per transaction: some 150 KB.
const BATCH: usize = 64;
/// How often what could not be signed or stored is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// A request to sign.
struct Job {
    csr: Vec<u8>,
    subject: NodeSubject,
}

/// What became of a [`Job`].
struct Done {
    csr: Vec<u8>,
    node_id: String,
    role: NodeRole,
    result: Result<Vec<u8>, Refusal>,
}

/// What the loop knows.
#[derive(Default)]
struct Work {
    issuer: Issuer,
    /// To be signed now.
    ready: BTreeSet<String>,
    /// To be tried again later.
    waiting: BTreeSet<String>,
}

impl Work {
    fn retry_all(&mut self) {
        self.ready.append(&mut self.waiting);
    }
}

impl CaServer {
    /// Signs until cancelled. Meanwhile the services admit nodes; when it ends, they stop and status polls end with
    /// ABORTED.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the store is closed under it.
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), Error> {
        let _running = Running(self);
        let (view, mut commits) = self.store.view_and_follow(Kinds::of(&[Kind::Node, Kind::Cluster]));
        let mut work = Work::default();
        self.start_over(&mut work, &view);
        self.running.store(true, Ordering::Release);
        info!("the CA server runs");
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            while !work.ready.is_empty() && !cancel.is_cancelled() {
                self.sign_batch(&mut work).await;
                while let Some(received) = commits.try_next() {
                    self.follow(&mut work, received)?;
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                received = commits.next() => self.follow(&mut work, received)?,
                _ = retry.tick() => work.retry_all(),
            }
        }
    }

    fn now(&self) -> SystemTime {
        self.context.clock().now()
    }

    fn follow(&self, work: &mut Work, received: Received) -> Result<(), Error> {
        match received {
            Received::Commit(commit) => {
                for event in &commit.events {
                    self.observe(work, event);
                }
            }
            Received::Lagged(view) => self.start_over(work, &view),
            Received::Closed => return Err(Error::Stopped),
        }
        Ok(())
    }

    fn start_over(&self, work: &mut Work, view: &View) {
        if let Some(cluster) = view.cluster() {
            self.refresh(work, cluster);
        }
        self.requests.clear();
        work.retry_all();
        for node in view.nodes().iter() {
            self.examine(work, node);
        }
        self.waiters.wake_all();
    }

    fn observe(&self, work: &mut Work, event: &Event) {
        match (event.kind(), event.new(), event.old()) {
            (Kind::Cluster, Some(Object::Cluster(cluster)), _) => self.refresh(work, cluster),
            (Kind::Node, Some(Object::Node(node)), old) => {
                if let Some(Object::Node(old)) = old
                    && old.certificate.csr != node.certificate.csr
                {
                    self.requests.remove(&old.certificate.csr);
                }
                self.examine(work, node);
                self.waiters.wake(node.id());
            }
            (Kind::Node, None, Some(Object::Node(old))) => {
                self.requests.remove(&old.certificate.csr);
                work.ready.remove(old.id());
                work.waiting.remove(old.id());
                self.waiters.wake(old.id());
            }
            _ => {}
        }
    }

    fn refresh(&self, work: &mut Work, cluster: &Cluster) {
        if work.issuer.refresh(cluster, self.now()) {
            work.retry_all();
        }
    }

    fn examine(&self, work: &mut Work, node: &Node) {
        self.requests.insert(&node.certificate.csr, node.id());
        if is_to_be_signed(node) {
            work.ready.insert(node.id().to_owned());
        }
    }

    async fn sign_batch(&self, work: &mut Work) {
        let ids: Vec<String> = (0..BATCH).map_while(|_| work.ready.pop_first()).collect();
        let view = self.store.view();
        let nodes = ids.iter().filter_map(|id| view.nodes().get(id));
        let jobs: Vec<Job> = nodes
            .filter(|node| is_to_be_signed(node))
            .map(|node| Job {
                csr: node.certificate.csr.clone(),
                subject: NodeSubject {
                    node_id: node.id().to_owned(),
                    role: node.certificate.role(),
                    organization: work.issuer.organization().to_owned(),
                },
            })
            .collect();
        drop(view);
        if jobs.is_empty() {
            return;
        }
        let (signer, now) = (work.issuer.signer(), self.now());
        let signed = tokio::task::spawn_blocking(move || sign(&signer, jobs, now)).await;
        let Ok(mut signed) = signed else {
            warn!("signing certificates failed unexpectedly; trying again");
            work.waiting.extend(ids);
            return;
        };
        signed.retain(|done| match &done.result {
            Err(Refusal::Later(error)) => {
                debug!(node.id = done.node_id, %error, "a certificate can't be signed yet");
                work.waiting.insert(done.node_id.clone());
                false
            }
            _ => true,
        });
        if signed.is_empty() {
            return;
        }
        match self.store.update(|tx| store(tx, &signed)).await {
            Ok(_) => signed.iter().for_each(log),
            Err(error) => {
                warn!(%error, certificates = signed.len(), "signed certificates could not be stored; trying again");
                work.waiting.extend(signed.into_iter().map(|done| done.node_id));
            }
        }
    }
}

fn is_to_be_signed(node: &Node) -> bool {
    match node.certificate.status.state() {
        State::Renew => true,
        State::Pending => node.spec.membership() == node_spec::Membership::Accepted,
        _ => false,
    }
}

fn sign(signer: &Signer, jobs: Vec<Job>, now: SystemTime) -> Vec<Done> {
    let sign = |job: Job| Done {
        result: signer.sign(&job.csr, &job.subject, now),
        csr: job.csr,
        node_id: job.subject.node_id,
        role: job.subject.role,
    };
    jobs.into_iter().map(sign).collect()
}

/// Stores each certificate whose request is still the node's.
fn store(tx: &mut Tx, signed: &[Done]) -> Result<(), Error> {
    for done in signed {
        let Some(node) = tx.nodes().get(&done.node_id) else { continue };
        let record = &node.certificate;
        if !is_to_be_signed(node) || record.csr != done.csr || record.role() != done.role {
            continue;
        }
        let mut node = Node::clone(node);
        let record = &mut node.certificate;
        match &done.result {
            Ok(certificate) => {
                record.certificate.clone_from(certificate);
                record.status.state = State::Issued as i32;
                record.status.err.clear();
            }
            Err(error) => {
                record.status.state = State::Failed as i32;
                record.status.err = error.to_string();
            }
        }
        tx.update::<Node>(node)?;
    }
    Ok(())
}

fn log(done: &Done) {
    let role = swarm_pki::unit_of(done.role);
    match &done.result {
        Ok(_) => info!(node.id = done.node_id, role, "issued a certificate"),
        Err(error) => warn!(node.id = done.node_id, role, %error, "refused to sign a certificate"),
    }
}

/// Marks the server as stopped, and ends the polls, however the loop ends.
struct Running<'a>(&'a CaServer);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.store(false, Ordering::Release);
        self.0.waiters.wake_all();
    }
}
