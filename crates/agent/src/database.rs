//! Tasks and their statuses on disk, so that an agent that was killed goes on where it was.
//!
//! One record per task and one per status, each with a checksum; a damaged one is dropped, and the next complete
//! set of assignments brings it back. Writes of all tasks are gathered: one batch, one sync. What
//! [`Database::set_status`] has returned for survives a loss of power.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::Message;
use swarm_api::Shared;
use swarm_api::v1::container_spec::PullOptions;
use swarm_api::v1::{Task, TaskStatus, task_spec};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::{Error, dependencies};

/// A task as it was found on disk.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    /// The task, with its last stored status.
    pub(crate) task: Shared<Task>,
}

/// Writes that may wait; those who want to write more wait for room.
const QUEUE: usize = 1024;
/// Largest value; larger tasks are stored in parts.
const PART: usize = 128 * 1024;
/// How long to wait for whoever has the database open, and how often to look: sled lets go of it a moment after it was
/// closed, on a busy host a long one.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// Directory of the database, below the agent's own.
const DIRECTORY: &str = "tasks.sled";

/// The task database. Cloning gives another handle to the same one.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    writes: mpsc::Sender<Write>,
    statuses: Arc<Mutex<HashMap<String, TaskStatus>>>,
}

#[derive(Debug)]
struct Write {
    change: Change,
    /// Whether the change was made, once it is durable.
    done: oneshot::Sender<Result<bool, String>>,
}

#[derive(Debug)]
enum Change {
    Assign { put: Vec<Shared<Task>>, remove: Vec<String> },
    Status { task_id: String, status: TaskStatus },
}

impl Database {
    /// Opens the database below `directory` and reads what is in it. The join handle is that of the writer,
    /// which ends when every handle is gone.
    ///
    /// # Errors
    /// The directory can't be used. A database that sled itself finds damaged is put aside, not an error: the
    /// managers know what this node should run.
    pub(crate) async fn open(
        directory: &Path,
        node_id: &str,
    ) -> Result<(Database, Vec<Record>, JoinHandle<()>), Error> {
        let place = Place { path: directory.join(DIRECTORY), node_id: node_id.to_owned() };
        std::fs::create_dir_all(directory)?;
        let (disk, records, foreign) = place.open(Disk::open_or_put_aside).await?;
        let statuses =
            records.iter().map(|record| (record.task.id.to_string(), record.task.status.clone())).collect();
        let (writes, receiver) = mpsc::channel(QUEUE);
        let database = Database { writes, statuses: Arc::new(Mutex::new(statuses)) };
        let writer = tokio::spawn(write(place, disk, receiver, database.statuses.clone(), foreign));
        Ok((database, records, writer))
    }

    /// Stores tasks, each with its status unless one is stored for it already, and removes others, in one step.
    pub(crate) async fn assign(&self, put: Vec<Shared<Task>>, remove: Vec<String>) -> Result<(), String> {
        self.write(Change::Assign { put, remove }).await.map(|_| ())
    }

    /// Stores a task's status; `false` if the task is not stored (any more).
    pub(crate) async fn set_status(&self, task_id: &str, status: &TaskStatus) -> Result<bool, String> {
        self.write(Change::Status { task_id: task_id.to_owned(), status: status.clone() }).await
    }

    async fn write(&self, change: Change) -> Result<bool, String> {
        const GONE: &str = "the task database is closed";
        let (done, result) = oneshot::channel();
        self.writes.send(Write { change, done }).await.map_err(|_| GONE.to_owned())?;
        result.await.map_err(|_| GONE.to_owned())?
    }

    /// Stored status of every task; all of them are on disk.
    pub(crate) fn statuses(&self) -> Vec<(String, TaskStatus)> {
        self.statuses.lock().iter().map(|(id, status)| (id.clone(), status.clone())).collect()
    }

    /// Stored status of a task.
    pub(crate) fn status(&self, task_id: &str) -> Option<TaskStatus> {
        self.statuses.lock().get(task_id).cloned()
    }

    /// Ids of all stored tasks.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.statuses.lock().keys().cloned().collect()
    }
}

/// Where a database is, and whose it is.
#[derive(Debug, Clone)]
struct Place {
    path: PathBuf,
    node_id: String,
}

impl Place {
    /// Opens it and reads what is in it.
    async fn open(
        &self,
        open: impl Fn(&Path) -> Result<Disk, Error> + Send + 'static,
    ) -> Result<(Disk, Vec<Record>, Vec<String>), Error> {
        let Place { path, node_id } = self.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let disk = Disk::open_patiently(|| open(&path))?;
            let (records, foreign) = disk.load(&node_id)?;
            Ok((disk, records, foreign))
        });
        opened.await.map_err(std::io::Error::other)?
    }

    /// Opens it again after a write failed, of which all, a part or nothing may have come to the disk. Returns what is there
    /// and must go: nobody was told that it was stored.
    async fn reopen(
        &self,
        statuses: &Mutex<HashMap<String, TaskStatus>>,
    ) -> Result<(Disk, Vec<String>), Error> {
        let (disk, records, mut garbage) = self.open(Disk::open).await?;
        let mut mirror = statuses.lock();
        let (known, unknown): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| mirror.contains_key(record.task.id.as_str()));
        garbage.extend(unknown.into_iter().map(|record| record.task.id.to_string()));
        *mirror =
            known.iter().map(|record| (record.task.id.to_string(), record.task.status.clone())).collect();
        Ok((disk, garbage))
    }
}

/// The writer: takes what waits, writes it as one batch, syncs, and only then lets anybody know. After a write that failed
/// sled takes nothing more, so it is opened anew for the next one: a disk may have room again.
async fn write(
    place: Place,
    disk: Disk,
    mut writes: mpsc::Receiver<Write>,
    statuses: Arc<Mutex<HashMap<String, TaskStatus>>>,
    foreign: Vec<String>,
) {
    let mut disk = Some(disk);
    let mut waiting = Vec::new();
    let mut garbage = foreign;
    while writes.recv_many(&mut waiting, QUEUE).await > 0 {
        let mut changes = Vec::with_capacity(waiting.len());
        let mut made = Vec::with_capacity(waiting.len());
        let mut answers = Vec::with_capacity(waiting.len());
        for Write { change, done } in waiting.drain(..) {
            changes.push(change);
            answers.push(done);
        }
        let opened = match disk.take() {
            Some(disk) => Ok(disk),
            None => place.reopen(&statuses).await.map(|(disk, left)| {
                garbage.extend(left);
                disk
            }),
        };
        {
            let mirror = statuses.lock();
            let mut present = Presence::default();
            for change in &changes {
                made.push(present.note(change, |id| mirror.contains_key(id)));
            }
        }
        if !garbage.is_empty() {
            changes.insert(0, Change::Assign { put: Vec::new(), remove: garbage.clone() });
        }
        let written = tokio::task::spawn_blocking(move || {
            let disk = opened?;
            disk.write(&changes)?;
            Ok::<_, Error>((disk, changes))
        });
        let result = match written.await {
            Ok(Ok((opened, changes))) => {
                disk = Some(opened);
                garbage.clear();
                let mut mirror = statuses.lock();
                changes.into_iter().for_each(|change| publish(&mut mirror, change));
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(panic) => Err(format!("the task database failed: {panic}")),
        };
        if let Err(error) = &result {
            tracing::error!(%error, "tasks could not be stored");
        }
        for (made, done) in made.into_iter().zip(answers) {
            let _ = done.send(result.clone().map(|()| made)); // whoever asked may be gone
        }
    }
}

/// Which tasks are stored, as far as the changes of a batch have come.
#[derive(Debug, Default)]
struct Presence<'a>(HashMap<&'a str, bool>);

impl<'a> Presence<'a> {
    fn has(&self, task_id: &str, before: impl FnOnce(&str) -> bool) -> bool {
        self.0.get(task_id).copied().unwrap_or_else(|| before(task_id))
    }

    /// Takes a change; whether there is something to change.
    fn note(&mut self, change: &'a Change, before: impl Fn(&str) -> bool) -> bool {
        match change {
            Change::Assign { put, remove } => {
                self.0.extend(remove.iter().map(|id| (id.as_str(), false)));
                self.0.extend(put.iter().map(|task| (task.id.as_str(), true)));
                true
            }
            Change::Status { task_id, .. } => self.has(task_id, before),
        }
    }
}

/// Makes a change that is on disk visible.
fn publish(mirror: &mut HashMap<String, TaskStatus>, change: Change) {
    match change {
        Change::Assign { put, remove } => {
            for id in remove {
                mirror.remove(&id);
            }
            for task in put {
                mirror.entry(task.id.to_string()).or_insert_with(|| task.status.clone());
            }
        }
        Change::Status { task_id, status } => {
            if let Some(stored) = mirror.get_mut(&task_id) {
                *stored = status;
            }
        }
    }
}

/// The files.
#[derive(Debug)]
struct Disk {
    db: sled::Db,
    /// sled's own flush does not survive a loss of power; a sync of its file does.
    file: File,
}

impl Disk {
    /// Opens the files; waits a little for an agent that was just stopped in this process, which may still hold
    /// them for a moment.
    fn open_patiently(open: impl Fn() -> Result<Disk, Error>) -> Result<Disk, Error> {
        let begin = Instant::now();
        loop {
            match open() {
                Err(error) if error.is_lock() && begin.elapsed() < LOCK_PATIENCE => {
                    std::thread::park_timeout(LOCK_PAUSE); // on a thread for blocking work
                }
                result => return result,
            }
        }
    }

    /// Opens the files. Damaged ones are put aside: there is nothing in them then.
    fn open_or_put_aside(path: &Path) -> Result<Disk, Error> {
        match Disk::open(path) {
            Err(Error::Open { source: error @ sled::Error::Corruption { .. }, .. }) => {
                let aside = path.with_extension(format!("damaged-{}", std::process::id()));
                tracing::error!(%error, aside = %aside.display(), "the task database is damaged and was put aside");
                std::fs::rename(path, &aside)?;
                Disk::open(path)
            }
            other => other,
        }
    }

    fn open(path: &Path) -> Result<Disk, Error> {
        let db = sled::Config::new().path(path).flush_every_ms(None).cache_capacity(4 * 1024 * 1024).open();
        let db = db.map_err(|source| Error::Open { path: path.to_owned(), source })?;
        let file = File::open(path.join("db"))?;
        // The names of new files are part of what must survive.
        File::open(path)?.sync_all()?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(Disk { db, file })
    }

    /// Everything that can be read and belongs to this node, and the ids of what does not.
    fn load(&self, node_id: &str) -> Result<(Vec<Record>, Vec<String>), Error> {
        let (mut records, mut foreign) = (Vec::new(), Vec::new());
        for entry in self.db.scan_prefix(b"t/") {
            let (key, first) = entry?;
            let Some(task_id) = first_part(&key) else { continue };
            let Some(task) = self.read_task(&task_id, &first)? else {
                tracing::error!(task.id = task_id, "a damaged task record was dropped");
                foreign.push(task_id);
                continue;
            };
            if task.node_id != node_id {
                tracing::warn!(task.id = task_id, "a task of another node was dropped");
                foreign.push(task_id);
                continue;
            }
            let stored = self.db.get(status_key(&task_id))?;
            let Some(status) = stored.and_then(|value| unseal::<TaskStatus>(&status_key(&task_id), &value))
            else {
                tracing::error!(task.id = task_id, "a task without a readable status was dropped");
                foreign.push(task_id);
                continue;
            };
            let mut task = task;
            task.status = status;
            records.push(Record { task: task.into() });
        }
        Ok((records, foreign))
    }

    fn read_task(&self, task_id: &str, first: &[u8]) -> Result<Option<Task>, Error> {
        let Some((parts, first)) = first.split_first_chunk::<2>() else { return Ok(None) };
        let mut value = first.to_vec();
        for part in 1..u16::from_be_bytes(*parts) {
            match self.db.get(task_key(task_id, part))? {
                Some(more) => value.extend_from_slice(&more),
                None => return Ok(None),
            }
        }
        let task = unseal::<Task>(&task_key(task_id, 0), &value);
        Ok(task.filter(|task| task.id == task_id))
    }

    fn parts(&self, task_id: &str) -> Result<u16, sled::Error> {
        let first = self.db.get(task_key(task_id, 0))?;
        Ok(first.and_then(|v| v.first_chunk::<2>().map(|p| u16::from_be_bytes(*p))).unwrap_or(0))
    }

    fn write(&self, changes: &[Change]) -> Result<(), Error> {
        let mut batch = sled::Batch::default();
        let mut present = Presence::default();
        let stored = |id: &str| self.db.contains_key(status_key(id)).unwrap_or(false);
        for change in changes {
            match change {
                Change::Assign { put, remove } => {
                    for id in remove {
                        for part in 0..self.parts(id)?.max(1) {
                            batch.remove(task_key(id, part));
                        }
                        batch.remove(status_key(id));
                        present.0.insert(id, false);
                    }
                    for task in put {
                        self.put_task(&mut batch, task)?;
                        if !present.has(&task.id, stored) {
                            let key = status_key(&task.id);
                            let value = seal(&key, &task.status);
                            batch.insert(key, value);
                        }
                        present.0.insert(&task.id, true);
                    }
                }
                Change::Status { task_id, status } if present.has(task_id, stored) => {
                    let key = status_key(task_id);
                    let value = seal(&key, status);
                    batch.insert(key, value);
                }
                Change::Status { .. } => {}
            }
        }
        self.db.apply_batch(batch)?;
        self.db.flush()?;
        self.file.sync_data()?;
        Ok(())
    }

    fn put_task(&self, batch: &mut sled::Batch, task: &Shared<Task>) -> Result<(), Error> {
        let mut stored = (**task).clone();
        stored.status = TaskStatus::default();
        // Registry credentials never reach the disk; the next complete set brings them again. That there were
        // some stays known.
        if dependencies::credentials(&stored).is_some()
            && let Some(task_spec::Runtime::Container(container)) = &mut stored.spec.runtime
        {
            container.pull_options = Some(PullOptions::default());
        }
        let value = seal(&task_key(&task.id, 0), &stored);
        let parts = u16::try_from(value.len().div_ceil(PART)).unwrap_or(u16::MAX);
        for (index, part) in (0u16..).zip(value.chunks(PART)) {
            let mut bytes = Vec::with_capacity(part.len() + 2);
            if index == 0 {
                bytes.extend_from_slice(&parts.to_be_bytes());
            }
            bytes.extend_from_slice(part);
            batch.insert(task_key(&task.id, index), bytes);
        }
        for part in parts..self.parts(&task.id)? {
            batch.remove(task_key(&task.id, part));
        }
        Ok(())
    }
}

fn task_key(task_id: &str, part: u16) -> Vec<u8> {
    let mut key = format!("t/{task_id}/").into_bytes();
    key.extend_from_slice(&part.to_be_bytes());
    key
}

fn status_key(task_id: &str) -> Vec<u8> {
    format!("s/{task_id}").into_bytes()
}

/// The task id in the key of a task's first part.
fn first_part(key: &[u8]) -> Option<String> {
    let id = key.strip_prefix(b"t/")?.strip_suffix(&[b'/', 0, 0])?;
    String::from_utf8(id.to_vec()).ok()
}

/// A message with a checksum over it and its key.
fn seal(key: &[u8], message: &impl Message) -> Vec<u8> {
    let mut value = vec![0; 4];
    value.reserve(message.encoded_len());
    message.encode(&mut value).expect("a vector has room");
    let sum = checksum(key, &value[4..]).to_be_bytes();
    value[..4].copy_from_slice(&sum);
    value
}

fn unseal<M: Message + Default>(key: &[u8], value: &[u8]) -> Option<M> {
    let (sum, bytes) = value.split_first_chunk::<4>()?;
    if checksum(key, bytes).to_be_bytes() != *sum {
        return None;
    }
    M::decode(bytes).ok()
}

/// For the fuzz target: reads a task and its status, as they are and as if the checksum were right.
pub(crate) fn is_record(bytes: &[u8]) -> bool {
    let key = task_key("t", 0);
    let _ = unseal::<Task>(&key, bytes);
    let sealed = [&checksum(&key, bytes).to_be_bytes(), bytes].concat();
    let _ = unseal::<TaskStatus>(&key, &sealed);
    let _ = first_part(bytes);
    unseal::<Task>(&key, &sealed).is_some()
}

fn checksum(key: &[u8], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests;
