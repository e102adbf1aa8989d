//! `task stats` and `service stats`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::{Args, ValueEnum};
use swarm_api::Shared;
use swarm_api::swarmd::open_task::What;
use swarm_api::swarmd::{
    OpenTask, StatsOfTasks, StatsSample, TaskInput, TaskOutput, task_input, task_output,
};
use swarm_api::v1::{ListTasksRequest, Task, TaskState, list_tasks_request};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Answer, Context, exec};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::output::stats::{Row, lines, table};
use crate::resolve;

/// Between two tables.
const EVERY: Duration = Duration::from_secs(1);
/// Longest time for two figures of every task.
const PATIENCE: Duration = Duration::from_secs(15);
/// Tables between two looks for tasks that come and go.
const LOOK: u32 = 2;
/// Clears the terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// How figures are shown.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Show figures once, and end
    #[arg(long)]
    no_stream: bool,
    /// A table, or an object for each task in a line of its own
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Forms of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Shows what tasks use, once a second.
pub(crate) async fn run(
    context: &mut Context,
    tasks: &[String],
    services: &[String],
    flags: &Flags,
) -> Result<Answer> {
    let mut wanted = Wanted::default();
    for given in tasks {
        wanted.tasks.insert(resolve::task(&mut context.control, given).await?.id.to_string());
    }
    for given in services {
        wanted.services.insert(resolve::service(&mut context.control, given).await?.id.clone());
    }
    let mut figures = Figures::new(context.client.clone());
    let mut running = wanted.running(context).await?;
    if running.is_empty() {
        return Err(wanted.nothing());
    }
    figures.follow(&running);
    if flags.no_stream {
        figures.complete(&running).await;
        let rows = figures.rows(context, &running).await?;
        let failed = rows.iter().any(|row| !row.error.is_empty());
        let text = match flags.format {
            Format::Table => table(&rows),
            Format::Json => lines(&rows),
        };
        return Ok(Answer { text: text.into_bytes(), code: u8::from(failed) });
    }
    let clear = flags.format == Format::Table && std::io::stdout().is_terminal();
    figures.complete(&running).await;
    for round in 1.. {
        let next = Instant::now() + EVERY;
        let rows = figures.rows(context, &running).await?;
        let text = match flags.format {
            Format::Json => lines(&rows),
            Format::Table if clear => format!("{CLEAR}{}", table(&rows)),
            Format::Table => format!("{}\n", table(&rows)),
        };
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(Error::plain(format!("can't write the figures: {error}"))),
            Ok(()) => {}
        }
        drop(out);
        if round % LOOK == 0 {
            running = wanted.running(context).await?;
            if running.is_empty() {
                return Err(wanted.nothing());
            }
            figures.follow(&running);
        }
        figures.take_until(next).await;
    }
    Ok(Answer { text: Vec::new(), code: 0 })
}

/// Whose figures.
#[derive(Debug, Default)]
struct Wanted {
    tasks: BTreeSet<String>,
    services: BTreeSet<String>,
}

impl Wanted {
    /// Those that run, in the order in which they are shown.
    async fn running(&self, context: &mut Context) -> Result<Vec<Shared<Task>>> {
        let mut running = Vec::new();
        let services = self.services.iter().cloned().collect::<Vec<_>>();
        let tasks = self.tasks.iter().cloned().collect::<Vec<_>>();
        for filters in [
            list_tasks_request::Filters { service_ids: services.clone(), ..Default::default() },
            list_tasks_request::Filters { id_prefixes: tasks.clone(), ..Default::default() },
        ] {
            if filters.service_ids.is_empty() && filters.id_prefixes.is_empty() {
                continue;
            }
            let request = ListTasksRequest { filters: Some(filters) };
            running.extend(context.control.list_tasks(request).await?.into_inner().tasks);
        }
        running.retain(|task| task.status.state() == TaskState::Running && !task.node_id.is_empty());
        running.sort_by(|a, b| (&a.service_id, a.slot, &a.id).cmp(&(&b.service_id, b.slot, &b.id)));
        running.dedup_by(|a, b| a.id == b.id);
        Ok(running)
    }

    fn nothing(&self) -> Error {
        let what = if self.services.is_empty() {
            "none of these tasks runs"
        } else {
            "no task runs of what was asked for"
        };
        Error::plain(what)
    }
}

/// What came of a node: figures, or why there are none.
type News = (String, u64, Result<StatsSample, Status>);

/// What comes from the nodes.
struct Figures {
    client: Client,
    /// By node: its tasks, and the number of the session that is in force.
    nodes: BTreeMap<String, (Vec<String>, u64)>,
    sessions: JoinSet<()>,
    handles: HashMap<u64, tokio::task::AbortHandle>,
    number: u64,
    sender: mpsc::Sender<News>,
    receiver: mpsc::Receiver<News>,
    rows: HashMap<String, Row>,
    /// Why a node has none.
    failed: HashMap<String, Status>,
}

impl Figures {
    fn new(client: Client) -> Figures {
        let (sender, receiver) = mpsc::channel(16);
        Figures {
            client,
            nodes: BTreeMap::new(),
            sessions: JoinSet::new(),
            handles: HashMap::new(),
            number: 0,
            sender,
            receiver,
            rows: HashMap::new(),
            failed: HashMap::new(),
        }
    }

    /// Opens a session with every node whose tasks are others than before, or whose session has failed.
    fn follow(&mut self, running: &[Shared<Task>]) {
        let mut nodes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for task in running {
            nodes.entry(task.node_id.to_string()).or_default().push(task.id.to_string());
        }
        self.rows.retain(|id, _| running.iter().any(|task| task.id == *id));
        let ended: Vec<String> = self
            .nodes
            .iter()
            .filter(|(node, (tasks, _))| nodes.get(*node) != Some(tasks))
            .map(|(n, _)| n.clone())
            .collect();
        // That one has failed is told until another one has figures.
        let failed: Vec<String> = self.failed.keys().cloned().collect();
        self.failed.retain(|node, _| nodes.contains_key(node));
        for node in ended.into_iter().chain(failed) {
            if let Some(handle) =
                self.nodes.remove(&node).and_then(|(_, number)| self.handles.remove(&number))
            {
                handle.abort();
            }
        }
        for (node, tasks) in nodes {
            if self.nodes.contains_key(&node) {
                continue;
            }
            self.number += 1;
            let session =
                session(self.client.clone(), node.clone(), self.number, tasks.clone(), self.sender.clone());
            self.handles.insert(self.number, self.sessions.spawn(session));
            self.nodes.insert(node, (tasks, self.number));
        }
        while self.sessions.try_join_next().is_some() {}
    }

    /// Takes what comes until then.
    async fn take_until(&mut self, moment: Instant) {
        loop {
            tokio::select! {
                // Its sender is here: there is always a next one.
                Some(news) = self.receiver.recv() => self.take(news),
                () = sleep_until(moment) => return,
            }
        }
    }

    /// Takes what comes until there are two figures of every task, or no more to be expected.
    async fn complete(&mut self, running: &[Shared<Task>]) {
        let limit = Instant::now() + PATIENCE;
        let missing = |figures: &Figures| {
            running.iter().any(|task| {
                let row = figures.rows.get(task.id.as_str());
                !figures.failed.contains_key(task.node_id.as_str())
                    && row.is_none_or(|row| !row.is_complete())
            })
        };
        while missing(self) {
            tokio::select! {
                Some(news) = self.receiver.recv() => self.take(news),
                () = sleep_until(limit) => return,
            }
        }
    }

    fn take(&mut self, (node, number, result): News) {
        // A session that another one has taken the place of.
        if self.nodes.get(&node).is_none_or(|(_, current)| *current != number) {
            return;
        }
        match result {
            Ok(sample) => {
                self.failed.remove(&node);
                for stats in sample.tasks {
                    self.rows.entry(stats.task_id.clone()).or_default().take(stats);
                }
            }
            Err(status) => {
                self.failed.insert(node, status);
            }
        }
    }

    /// Everything that is known, by tasks.
    async fn rows(&mut self, context: &mut Context, running: &[Shared<Task>]) -> Result<Vec<Row>> {
        let names = context.names().await?;
        let mut rows = Vec::new();
        for task in running {
            let known =
                self.rows.get(task.id.as_str()).filter(|_| !self.failed.contains_key(task.node_id.as_str()));
            let mut row = known.cloned().unwrap_or_default();
            row.task_id = task.id.to_string();
            row.task = names.task(task);
            row.node_id = task.node_id.to_string();
            names.node(&task.node_id).clone_into(&mut row.node);
            if let Some(status) = self.failed.get(task.node_id.as_str()) {
                row.error = exec::explain(context, status.clone()).await.to_string();
            } else if row.error.is_empty() && !row.is_complete() {
                "no figures yet".clone_into(&mut row.error);
            }
            rows.push(row);
        }
        Ok(rows)
    }
}

/// Figures of tasks of one node, until the session ends.
async fn session(client: Client, node: String, number: u64, tasks: Vec<String>, news: mpsc::Sender<News>) {
    let open = OpenTask { what: Some(What::Stats(StatsOfTasks { task_ids: tasks })) };
    let (sender, receiver) = mpsc::channel(1);
    // There is room for it; the session lasts as long as this is held.
    let _ = sender.send(TaskInput { item: Some(task_input::Item::Open(open)) }).await;
    let end = match client.tasks().open(ReceiverStream::new(receiver)).await {
        Err(status) => status,
        Ok(outputs) => {
            let mut outputs = outputs.into_inner();
            loop {
                match outputs.message().await {
                    Ok(Some(TaskOutput { item: Some(task_output::Item::Stats(sample)) })) => {
                        if news.send((node.clone(), number, Ok(sample))).await.is_err() {
                            return;
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break Status::unavailable("the manager has ended the session"),
                    Err(status) => break status,
                }
            }
        }
    };
    let _ = news.send((node, number, Err(end))).await; // nobody may want to know
}
