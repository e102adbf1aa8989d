//! Concurrent clients, whose operations a seed draws, and the recording of what they hear.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::door::{ControlDoor, Door};
use super::history::{Answer, Call, History, Operation, Seen};
use crate::wait::until;

/// Longest wait for progress: elections take up to 19 s each.
const PATIENCE: Duration = Duration::from_secs(120);
/// Outdated states of a name that clients still ask for.
const MEMORY: usize = 4;

/// What the clients do.
#[derive(Debug, Clone)]
pub struct Load {
    /// Decides which operations the clients draw. Their timing is that of the run.
    pub seed: u64,
    /// Number of clients. Each has one call under way at a time.
    pub clients: usize,
    /// Number of names that the objects have.
    pub names: usize,
    /// A call without an answer after this long counts as unknown.
    pub deadline: Duration,
    /// Longest pause of a client between two calls; half of it on average.
    pub pause: Duration,
    /// Most calls altogether. Clients that have used them up wait for the end.
    pub limit: usize,
}

impl Default for Load {
    /// About 200 calls per second.
    fn default() -> Self {
        Load {
            seed: 0,
            clients: 6,
            names: 5,
            deadline: Duration::from_secs(5),
            pause: Duration::from_millis(50),
            limit: 60_000,
        }
    }
}

/// Clients at work. Dropping them ends them.
#[derive(Debug)]
pub struct Clients {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    clients: JoinSet<Vec<Operation>>,
}

struct Shared {
    load: Load,
    doors: Vec<Arc<dyn Door>>,
    clock: Clock,
    acknowledged: AtomicU64,
    calls: AtomicUsize,
    /// Makes contents unique.
    tags: AtomicUsize,
    /// What clients have heard of each name.
    known: Mutex<BTreeMap<String, Known>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("load", &self.load).finish_non_exhaustive()
    }
}

/// What clients know of a name.
#[derive(Debug, Clone, Default)]
struct Known {
    /// Its object, as somebody heard last.
    object: Option<Seen>,
    /// What it was before, or was another object.
    old: VecDeque<Seen>,
}

impl Known {
    fn becomes(&mut self, object: Option<Seen>) {
        if self.object != object {
            self.old.extend(std::mem::replace(&mut self.object, object));
            if self.old.len() > MEMORY {
                self.old.pop_front();
            }
        }
    }
}

/// Gives begins and ends of calls their places. Who takes a place after another has been taken gets a higher one.
#[derive(Debug)]
struct Clock {
    begin: Instant,
    places: AtomicU64,
}

impl Clock {
    fn now(&self) -> (u64, Duration) {
        let place = self.places.fetch_add(1, Ordering::SeqCst);
        (place, self.begin.elapsed())
    }
}

impl Clients {
    /// Starts clients that each send every call to one of these control sockets.
    pub fn start(sockets: &[PathBuf], load: Load) -> Clients {
        // Runs on one cluster must not meet.
        let prefix = format!("{}-", &swarm_api::id::random()[..10]);
        let door = |socket: &PathBuf| Arc::new(ControlDoor::new(socket, &prefix)) as Arc<dyn Door>;
        Clients::start_at(sockets.iter().map(door).collect(), load)
    }

    /// Starts clients that send their calls elsewhere.
    pub fn start_at(doors: Vec<Arc<dyn Door>>, load: Load) -> Clients {
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared {
            doors,
            clock: Clock { begin: Instant::now(), places: AtomicU64::new(0) },
            acknowledged: AtomicU64::new(0),
            calls: AtomicUsize::new(0),
            tags: AtomicUsize::new(0),
            known: Mutex::default(),
            load,
        });
        let mut clients = JoinSet::new();
        for number in 0..shared.load.clients {
            let seed = shared.load.seed.wrapping_mul(1_000_003).wrapping_add(number as u64);
            let client = Client { number, rng: StdRng::seed_from_u64(seed), shared: shared.clone() };
            clients.spawn(client.run(stopped.clone()));
        }
        Clients { shared, stop, clients }
    }

    /// Writes that were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until so many more writes have been acknowledged.
    ///
    /// # Errors
    /// After two minutes.
    pub async fn progress(&self, writes: u64) -> Result<()> {
        let target = self.acknowledged() + writes;
        until("writes to be acknowledged", PATIENCE, || async move {
            let now = self.acknowledged();
            if now < target {
                bail!("{now} of {target} were")
            }
            Ok(())
        })
        .await
    }

    /// Ends the clients, each after the call that it has under way, has every manager list all objects, and returns
    /// everything that was asked and heard.
    ///
    /// # Errors
    /// If a manager has no list after two minutes.
    pub async fn finish(self) -> Result<History> {
        self.finish_at(|_| true).await
    }

    /// The same with those managers only whose door has such a name; a control socket's is its file's, without the
    /// extension.
    ///
    /// # Errors
    /// If there are none, or one of them has no list after two minutes.
    pub async fn finish_at(mut self, lists: impl Fn(&str) -> bool) -> Result<History> {
        self.stop.send_replace(true);
        let mut operations = Vec::new();
        while let Some(done) = self.clients.join_next().await {
            operations.extend(done.context("a client panicked")?);
        }
        let mut last = Client {
            number: self.shared.load.clients,
            rng: StdRng::seed_from_u64(self.shared.load.seed),
            shared: self.shared.clone(),
        };
        let doors: Vec<_> = self.shared.doors.iter().filter(|door| lists(door.name())).collect();
        ensure!(!doors.is_empty(), "no manager is left to list what there is");
        for door in doors {
            let end = Instant::now() + PATIENCE;
            loop {
                let operation = last.send(door, Call::List).await;
                let answer = operation.answer.clone();
                operations.push(operation);
                match answer {
                    Answer::All(_) => break,
                    answer if Instant::now() > end => bail!("{} does not list: {answer:?}", door.name()),
                    _ => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        }
        Ok(History::new(operations))
    }
}

struct Client {
    number: usize,
    rng: StdRng,
    shared: Arc<Shared>,
}

impl Client {
    async fn run(mut self, mut stop: watch::Receiver<bool>) -> Vec<Operation> {
        let mut operations = Vec::new();
        let shared = self.shared.clone();
        while shared.calls.fetch_add(1, Ordering::Relaxed) < shared.load.limit {
            let pause = shared.load.pause.mul_f64(self.rng.random());
            if tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok() {
                return operations;
            }
            let door = &shared.doors[self.rng.random_range(0..shared.doors.len())];
            let call = self.draw();
            operations.push(self.send(door, call).await);
        }
        operations
    }

    async fn send(&mut self, door: &Arc<dyn Door>, call: Call) -> Operation {
        let shared = &self.shared;
        let (called, begin) = shared.clock.now();
        let answer = tokio::time::timeout(shared.load.deadline, door.call(&call)).await;
        let (returned, end) = shared.clock.now();
        let answer = answer.unwrap_or_else(|_| Answer::Unknown("no answer in time".into()));
        shared.learn(&call, &answer);
        let (client, door) = (self.number, door.name().to_owned());
        Operation { client, door, call, answer, called, returned, time: (begin, end) }
    }

    /// The next call: mostly about objects that are there, sometimes about what is outdated.
    fn draw(&mut self) -> Call {
        let name = format!("n{}", self.rng.random_range(0..self.shared.load.names));
        let known = self.shared.known.lock().get(&name).cloned().unwrap_or_default();
        let old =
            if self.rng.random_bool(0.15) { known.old.get(self.rng.random_range(0..MEMORY)) } else { None };
        let object = old.or(known.object.as_ref());
        let draw = self.rng.random_range(0..100);
        match object {
            _ if draw < 15 => Call::List,
            Some(object) if draw < 45 => Call::Get { id: object.id.clone() },
            Some(object) if draw < 75 => {
                Call::Update { id: object.id.clone(), name, version: object.version, tag: self.tag() }
            }
            Some(object) if draw < 85 => Call::Remove { id: object.id.clone() },
            _ => Call::Create { name, tag: self.tag() },
        }
    }

    fn tag(&self) -> String {
        format!("t{}", self.shared.tags.fetch_add(1, Ordering::Relaxed))
    }
}

impl Shared {
    /// What clients know of an object is what one of them heard last.
    fn learn(&self, call: &Call, answer: &Answer) {
        if !call.is_read() && matches!(answer, Answer::Object(_) | Answer::Removed) {
            self.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        let mut known = self.known.lock();
        for seen in super::facts::seen(answer) {
            known.entry(seen.name.clone()).or_default().becomes(Some(seen.clone()));
        }
        if let (
            Call::Get { id } | Call::Update { id, .. } | Call::Remove { id },
            Answer::Removed | Answer::NotFound,
        ) = (call, answer)
        {
            for known in known.values_mut() {
                if known.object.as_ref().is_some_and(|object| object.id == *id) {
                    known.becomes(None);
                }
            }
        }
    }
}
