//! The load: connections that each write one object after the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use swarm_api::id;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::health_client::HealthClient;
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::{
    ConfigSpec, ContainerSpec, CreateConfigRequest, CreateServiceRequest, HealthCheckRequest,
    RemoveConfigRequest, RemoveServiceRequest, ReplicatedService, ServiceSpec, task_spec,
};
use swarm_pki::{Clock, connect_local_tls};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use crate::What;
use crate::report::Report;
use crate::usage::Usage;

/// Size of the configs that are written, in bytes.
const CONFIG: usize = 1024;
/// Calls in flight on a connection while the run's objects are removed.
const REMOVERS: usize = 64;

/// One measurement.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) socket: PathBuf,
    pub(crate) tls: bool,
    pub(crate) connections: usize,
    pub(crate) warmup: Duration,
    pub(crate) time: Duration,
    pub(crate) what: What,
    pub(crate) pid: Option<u32>,
    pub(crate) keep: bool,
}

/// What the connections of a run share.
#[derive(Debug, Default)]
struct Shared {
    /// Makes names unique.
    next: AtomicU64,
    measuring: AtomicBool,
    stop: AtomicBool,
}

/// What one connection did: ids of all it wrote, and how long each measured write took.
#[derive(Debug, Default)]
struct Done {
    ids: Vec<String>,
    latencies: Vec<Duration>,
}

#[derive(Debug, Clone)]
struct Client {
    control: ControlClient<Channel>,
    health: HealthClient<Channel>,
}

async fn connect(socket: &Path, tls: bool) -> Result<Client> {
    let endpoint = Endpoint::from_static("http://localhost");
    let path = socket.to_owned();
    let channel = if tls {
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { connect_local_tls(&path, &Clock::system()).await.map(TokioIo::new) }
        });
        endpoint.connect_with_connector(connector).await
    } else {
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        endpoint.connect_with_connector(connector).await
    };
    let channel = channel.with_context(|| format!("can't reach a manager at {}", socket.display()))?;
    let health = HealthClient::new(channel.clone());
    Ok(Client { control: ControlClient::new(channel).max_decoding_message_size(usize::MAX), health })
}

/// Warms up, measures, removes what was written, and reports.
pub(crate) async fn run(run: &Run) -> Result<Report> {
    let shared = Arc::new(Shared::default());
    // Names of different runs must not meet.
    let prefix = format!("bench-{}", &id::random()[..12]);
    let mut connections = JoinSet::new();
    for _ in 0..run.connections {
        let client = connect(&run.socket, run.tls).await?;
        connections.spawn(write(client, run.what, prefix.clone(), shared.clone()));
    }
    tokio::time::sleep(run.warmup).await;
    let before = Usage::now(run.pid)?;
    let started = Instant::now();
    shared.measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(run.time).await;
    shared.measuring.store(false, Ordering::Relaxed);
    let took = started.elapsed();
    let usage = Usage::now(run.pid)?.since(&before);
    shared.stop.store(true, Ordering::Relaxed);
    let mut done = Done::default();
    while let Some(connection) = connections.join_next().await {
        let connection = connection??;
        done.ids.extend(connection.ids);
        done.latencies.extend(connection.latencies);
    }
    if done.latencies.is_empty() {
        bail!("no write was acknowledged in {took:?}");
    }
    if !run.keep {
        remove(run, done.ids).await?;
    }
    Ok(Report::new(run, took, done.latencies, usage))
}

/// Writes until told to stop.
async fn write(mut client: Client, what: What, prefix: String, shared: Arc<Shared>) -> Result<Done> {
    let mut done = Done::default();
    while !shared.stop.load(Ordering::Relaxed) {
        let name = format!("{prefix}-{}", shared.next.fetch_add(1, Ordering::Relaxed));
        let measuring = shared.measuring.load(Ordering::Relaxed);
        let started = Instant::now();
        let id = match what {
            What::Service => {
                let request = CreateServiceRequest { spec: Some(service(name)) };
                client
                    .control
                    .create_service(request)
                    .await?
                    .into_inner()
                    .service
                    .map(|service| service.id.clone())
            }
            What::Config => {
                let request = CreateConfigRequest { spec: Some(config(name)) };
                client
                    .control
                    .create_config(request)
                    .await?
                    .into_inner()
                    .config
                    .map(|config| config.id.clone())
            }
            What::Nothing => {
                client.health.check(HealthCheckRequest::default()).await?;
                None
            }
        };
        // Only what began and ended within the measured time counts.
        if measuring && shared.measuring.load(Ordering::Relaxed) {
            done.latencies.push(started.elapsed());
        }
        if what != What::Nothing {
            done.ids.push(id.context("the answer has no object")?);
        }
    }
    Ok(done)
}

/// A service without tasks.
fn service(name: String) -> ServiceSpec {
    let mut spec = ServiceSpec::default();
    spec.annotations.name = name;
    spec.task.runtime =
        Some(task_spec::Runtime::Container(ContainerSpec { image: "busybox".into(), ..Default::default() }));
    spec.mode = Some(Mode::Replicated(ReplicatedService { replicas: 0 }));
    spec
}

fn config(name: String) -> ConfigSpec {
    let mut spec = ConfigSpec { data: vec![b'x'; CONFIG], ..Default::default() };
    spec.annotations.name = name;
    spec
}

/// Removes objects, many at a time.
async fn remove(run: &Run, ids: Vec<String>) -> Result<()> {
    let client = connect(&run.socket, run.tls).await?;
    let mut removers = JoinSet::new();
    let share = ids.len().div_ceil(REMOVERS).max(1);
    for ids in ids.chunks(share).map(<[String]>::to_vec) {
        let (mut client, what) = (client.clone(), run.what);
        removers.spawn(async move {
            for id in ids {
                match what {
                    What::Service => {
                        client.control.remove_service(RemoveServiceRequest { service_id: id }).await?;
                    }
                    What::Config => {
                        client.control.remove_config(RemoveConfigRequest { config_id: id }).await?;
                    }
                    What::Nothing => {}
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(removed) = removers.join_next().await {
        removed??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use swarm_api::v1::control_server::ControlServer;
    use swarm_control::{Alone, Control};
    use swarm_store::Store;
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_run_measures_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s.sock");
        let store = Store::local();
        let control = Control::new(store.clone(), Arc::new(Alone));
        let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let mut server = JoinSet::new();
        let builder = tonic::transport::Server::builder().add_service(ControlServer::new(control));
        server.spawn(builder.serve_with_incoming(incoming));
        for what in [What::Service, What::Config] {
            let run = Run {
                socket: socket.clone(),
                tls: false,
                connections: 3,
                warmup: Duration::ZERO,
                time: Duration::from_millis(200),
                what,
                pid: Some(std::process::id()),
                keep: false,
            };
            let report = super::run(&run).await.unwrap().to_string();
            assert!(report.contains("3 connections") && report.contains("req/s"), "{report}");
        }
        assert!(store.view().services().is_empty() && store.view().configs().is_empty());
        assert!(store.view().index() > 4);
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_named() {
        let error = connect(Path::new("/nonexistent/s.sock"), false).await.unwrap_err().to_string();
        assert_eq!(error, "can't reach a manager at /nonexistent/s.sock");
    }
}
