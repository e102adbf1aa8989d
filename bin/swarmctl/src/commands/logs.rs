//! `service logs` and `task logs`.

use std::collections::HashSet;
use std::time::Duration;

use clap::Args;
use swarm_api::duration::timestamp;
use swarm_api::log_lines::{ERROR_ATTRIBUTE, RawLogMessage, Seen};
use swarm_api::v1::{
    LogSelector, LogStream, LogSubscriptionOptions, SubscribeLogsMessage, SubscribeLogsRequest,
};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{Code, Status, Streaming};

use super::{Answer, Context};
use crate::error::{Error, Result};
use crate::output::lines::{Printed, Printer, Shown};
use crate::output::sources::Sources;
use crate::output::window::Window;
use crate::resolve;
use crate::values::log::{Since, since, tail};

/// How often lines that wait for each other are looked after. One waits for two of these at most.
const TICK: Duration = Duration::from_millis(50);
/// Bytes of lines that wait for each other at most.
const WINDOW: usize = 4 * 1024 * 1024;
/// Pauses between attempts to follow on after the leader has changed, and how long it is tried.
const RETRY: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(30);

/// Which lines, and how they are shown.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Go on with what is written from now on, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Only lines since then: how long ago (10m), a date and time in UTC, or seconds since 1970
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Since>,
    /// Only the last so many lines of each task, or all
    #[arg(long, value_name = "LINES", default_value = "all", value_parser = tail)]
    tail: i64,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// Show the attributes of each line that the log driver attached; with --raw also the IDs of node, service and task
    #[arg(long)]
    details: bool,
    /// Only what was written to the standard output
    #[arg(long)]
    stdout: bool,
    /// Only what was written to the standard error
    #[arg(long)]
    stderr: bool,
    /// Show lines without the names of task and node
    #[arg(long)]
    raw: bool,
    /// Show names of tasks in full, with their IDs
    #[arg(long)]
    no_trunc: bool,
    /// Show names of tasks without their IDs, as is done without --no-trunc
    #[arg(long)]
    no_task_ids: bool,
}

/// Whose lines.
pub(crate) enum Of {
    /// Those of all tasks of these services.
    Services(Vec<String>),
    /// Those of these tasks.
    Tasks(Vec<String>),
}

/// Prints lines until there are no more.
pub(crate) async fn run(context: &mut Context, of: Of, flags: &Flags) -> Result<Answer> {
    let mut selector = LogSelector::default();
    match of {
        Of::Services(given) => {
            for given in given {
                selector.service_ids.push(resolve::service(&mut context.control, &given).await?.id.clone());
            }
        }
        Of::Tasks(given) => {
            for given in given {
                selector.task_ids.push(resolve::task(&mut context.control, &given).await?.id.to_string());
            }
        }
    }
    let streams = match (flags.stdout, flags.stderr) {
        (true, false) => vec![LogStream::Stdout as i32],
        (false, true) => vec![LogStream::Stderr as i32],
        _ => vec![],
    };
    let options = LogSubscriptionOptions {
        streams,
        follow: flags.follow,
        tail: flags.tail,
        since: flags.since.map(|since| timestamp(since.moment(context.now))),
    };
    let mut sources = Sources::new(context, &selector, flags.no_trunc && !flags.no_task_ids).await?;
    let mut printer =
        Printer::new(Shown { raw: flags.raw, timestamps: flags.timestamps, details: flags.details });
    if flags.follow {
        for note in sources.absent(context).await? {
            printer.note(&note);
        }
    }
    let mut logs = Logs { window: Window::new(WINDOW), seen: Seen::default(), failed: HashSet::new() };
    let result = logs.copy(context, selector, options, &mut sources, &mut printer).await;
    match result {
        Err(Stop::NobodyReads) => Ok(Answer { text: Vec::new(), code: 0 }),
        Err(Stop::Failed(status)) if status.code() == Code::Cancelled => Err(Error::plain(
            "the manager that leads has changed meanwhile, and some lines are missing: run the command again",
        )),
        Err(Stop::Failed(status)) => Err(sources.explain(*status)),
        Err(Stop::Other(error)) => Err(error),
        // What could not be read was said where it was missing.
        Ok(()) => Ok(Answer { text: Vec::new(), code: u8::from(!logs.failed.is_empty()) }),
    }
}

/// Why nothing more is shown.
enum Stop {
    /// Whoever reads what is printed has seen enough.
    NobodyReads,
    /// The manager says so.
    Failed(Box<Status>),
    Other(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Other(error)
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Stop {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Stop::NobodyReads,
            _ => Stop::Other(Error::plain(format!("can't write the lines: {error}"))),
        }
    }
}

impl From<Status> for Stop {
    fn from(status: Status) -> Stop {
        Stop::Failed(Box::new(status))
    }
}

struct Logs {
    window: Window<RawLogMessage>,
    /// What has come; when the leader changes, it all comes again.
    seen: Seen,
    /// Tasks whose logs could not be read.
    failed: HashSet<String>,
}

impl Logs {
    /// Shows all that comes. Who follows goes on with the next leader when the one that is asked ends.
    async fn copy(
        &mut self,
        context: &mut Context,
        selector: LogSelector,
        mut options: LogSubscriptionOptions,
        sources: &mut Sources,
        printer: &mut Printer,
    ) -> Result<(), Stop> {
        let mut lost: Option<Instant> = None;
        loop {
            let request =
                SubscribeLogsRequest { selector: Some(selector.clone()), options: Some(options.clone()) };
            let status = match context.client.logs().subscribe_logs(request).await {
                Ok(stream) => {
                    lost = None;
                    match self.stream(context, stream.into_inner(), sources, printer).await {
                        Err(Stop::Failed(status)) => *status,
                        other => return other,
                    }
                }
                Err(status) => status,
            };
            let since = *lost.get_or_insert_with(Instant::now);
            if !options.follow || !is_change_of_leaders(&status) || since.elapsed() > PATIENCE {
                return Err(status.into());
            }
            if let Some(since) = self.seen.since() {
                (options.since, options.tail) = (Some(since), 0);
            }
            self.seen.begin();
            sleep(RETRY).await;
        }
    }

    async fn stream(
        &mut self,
        context: &mut Context,
        mut stream: Streaming<SubscribeLogsMessage>,
        sources: &mut Sources,
        printer: &mut Printer,
    ) -> Result<(), Stop> {
        let mut tick = Instant::now() + TICK;
        let end = loop {
            let message = tokio::select! {
                biased;
                () = sleep_until(tick), if !self.window.is_empty() || printer.is_dirty() => {
                    self.window.tick();
                    while let Some((source, line)) = self.window.next() {
                        print(sources, printer, source, &line)?;
                    }
                    printer.flush()?;
                    tick = Instant::now() + TICK;
                    continue;
                }
                message = stream.message() => message,
            };
            match message {
                Ok(Some(message)) => self.take(context, message, sources, printer).await?,
                Ok(None) => break Ok(()),
                Err(status) => break Err(status.into()),
            }
        };
        while let Some((source, line)) = self.window.pop() {
            print(sources, printer, source, &line)?;
        }
        printer.flush()?;
        end
    }

    async fn take(
        &mut self,
        context: &mut Context,
        message: SubscribeLogsMessage,
        sources: &mut Sources,
        printer: &mut Printer,
    ) -> Result<(), Stop> {
        for raw in message.messages {
            let Ok(line) = raw.read() else {
                return Err(Error::plain("the manager sent something that is no log line").into());
            };
            if !self.seen.is_new(&line) {
                continue;
            }
            let source = match sources.known(line.task_id) {
                Some(source) => source,
                None => sources.add(context, &line, || self.window.source()).await?,
            };
            if line.stream == LogStream::Stderr as i32
                && let Some((_, reason)) = line.attributes().find(|(key, _)| *key == ERROR_ATTRIBUTE)
            {
                self.failed.insert(line.task_id.to_owned());
                printer.note(&format!("the log of {} could not be read: {reason}", sources.name(source)));
                continue;
            }
            let time = line.timestamp.map_or((0, 0), |time| (time.seconds, time.nanos));
            let size = raw.cost();
            self.window.push(source, time, size, raw);
        }
        while let Some((source, line)) = self.window.next() {
            print(sources, printer, source, &line)?;
        }
        Ok(())
    }
}

fn print(
    sources: &Sources,
    printer: &mut Printer,
    source: usize,
    line: &RawLogMessage,
) -> std::io::Result<()> {
    // It was read before.
    let Ok(line) = line.read() else { return Ok(()) };
    printer.print(&Printed { source, prefix: sources.prefix(source), line })
}

/// The manager that answered does not lead any more, or nobody leads yet.
pub(super) fn is_change_of_leaders(status: &Status) -> bool {
    match status.code() {
        Code::Cancelled | Code::Unavailable | Code::Aborted => true,
        Code::ResourceExhausted => status.message().starts_with("more than one redirect"),
        Code::Unknown => ["context canceled", "broker is not running", "does not have a leader"]
            .iter()
            .any(|text| status.message().contains(text)),
        _ => false,
    }
}
