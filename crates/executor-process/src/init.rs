//! Init tasks of a process: each has a directory and a supervisor of its own within the task's, and so runs at most once and
//! is never forgotten, whatever becomes of the daemon.
//!
//! **Invariant.** The task itself counts as prepared when all of them have succeeded.

use swarm_agent::{Controller, ControllerError, LogStream};

use crate::controller::{ProcessController, on_disk};
use crate::launch::Launch;
use crate::log::Reader;

/// Bytes of the last line of an init task's output that are kept.
const MOST_OF_LINE: usize = 1024;

impl ProcessController {
    /// Runs the init tasks that have not run, one after the other.
    pub(crate) async fn run_init_tasks(&self, launch: &Launch) -> Result<(), ControllerError> {
        if launch.init.is_empty() {
            return Ok(());
        }
        let (dir, own) = (self.dir.clone(), launch.clone());
        on_disk(move || dir.make_work(&own)).await?;
        let count = launch.init.len();
        for (number, words) in (1..).zip(&launch.init) {
            let what = format!("init task {number} of {count}");
            self.say(format!("running {what}"));
            let step = self.of_init(self.dir.init(number), Some(launch.of_init(words, &self.dir.work())));
            match step.run().await {
                Ok(()) => {}
                Err(ControllerError::Exit { code, cause }) => {
                    let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
                    let said = step.last_line().await?.map(|line| format!(": {line}")).unwrap_or_default();
                    let text = format!("{what} failed with exit code {code}{cause}{said}");
                    return Err(ControllerError::Fatal(text));
                }
                Err(ControllerError::Fatal(text)) => {
                    return Err(ControllerError::Fatal(format!("{what} failed: {text}")));
                }
                Err(other) => return Err(other),
            }
        }
        self.say("preparing");
        Ok(())
    }

    /// From wherever it is to its end.
    async fn run(&self) -> Result<(), ControllerError> {
        match self.prepare().await {
            Ok(()) | Err(ControllerError::AlreadyPrepared) => {}
            Err(error) => return Err(error),
        }
        match self.start().await {
            Ok(()) | Err(ControllerError::AlreadyStarted) => {}
            Err(error) => return Err(error),
        }
        self.wait().await
    }

    /// Ends init tasks that run, and lets none begin.
    pub(crate) async fn end_init_tasks(&self, at_once: bool) -> Result<(), ControllerError> {
        let dir = self.dir.clone();
        for dir in on_disk(move || dir.inits()).await? {
            let step = self.of_init(dir, None);
            if at_once { step.terminate().await? } else { step.shutdown().await? }
        }
        Ok(())
    }

    /// The last line that it wrote and that is not empty: to its standard error, if it wrote there, since of lines in two streams
    /// that follow closely nobody knows which was the last.
    async fn last_line(&self) -> Result<Option<String>, ControllerError> {
        let path = self.dir.log();
        on_disk(move || {
            let (mut reader, mut last) = (Reader::new(&path), [None, None]);
            loop {
                let batch = reader.batch()?;
                if batch.is_empty() {
                    let [stdout, stderr] = last;
                    return Ok(stderr.or(stdout).map(cut));
                }
                for line in &batch {
                    let text = String::from_utf8_lossy(&line.data).trim().to_owned();
                    if !text.is_empty() {
                        last[usize::from(line.stream == LogStream::Stderr)] = Some(text);
                    }
                }
            }
        })
        .await
    }
}

fn cut(mut line: String) -> String {
    line.truncate(line.floor_char_boundary(MOST_OF_LINE));
    line
}
