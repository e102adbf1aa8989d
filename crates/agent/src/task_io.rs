//! What goes in and out of a task, or of a command in it, while somebody is there.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::LogStream;

/// Messages that wait in each direction.
const QUEUE: usize = 2;
/// Most bytes of one message of output.
pub const MAX_OUTPUT: usize = 32 * 1024;

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// For the standard input.
    Stdin(Bytes),
    /// The standard input has ended.
    End,
    /// The terminal has another size.
    Size(Size),
}

/// What goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// It began; says whether there is a standard input, and a terminal.
    Started {
        /// What comes in goes to a standard input.
        stdin: bool,
        /// There is a terminal.
        tty: bool,
    },
    /// From the standard output, or from the terminal.
    Stdout(Bytes),
    /// From the standard error.
    Stderr(Bytes),
}

/// Nobody takes output any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// A command to be executed in a task.
#[derive(Clone, PartialEq, Eq)]
pub struct ExecOptions {
    /// Program and arguments; at least the program is there.
    pub command: Vec<String>,
    /// It has a standard input.
    pub stdin: bool,
    /// It has a terminal.
    pub tty: bool,
    /// Of the terminal, if it is known.
    pub size: Option<Size>,
    /// Name or number, optionally with `:group`; the task's own if empty.
    pub user: String,
    /// Absolute; the task's own if empty.
    pub dir: String,
    /// `NAME=value`, in addition to the task's.
    pub env: Vec<String>,
}

impl std::fmt::Debug for ExecOptions {
    /// Arguments and environment may hold what nobody is to see.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecOptions").field("program", &self.command.first()).finish_non_exhaustive()
    }
}

/// How a task is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachOptions {
    /// Standard input is wanted, if the task has one.
    pub stdin: bool,
    /// Of the terminal, if it is known.
    pub size: Option<Size>,
}

/// What a task uses: counters since it began, and what is true now. Absent is what can't be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Processor time in nanoseconds.
    pub cpu_nanos: Option<u64>,
    /// Memory in bytes, without what the kernel would give back at once.
    pub memory_bytes: Option<u64>,
    /// The limit of that; absent if there is none.
    pub memory_limit: Option<u64>,
    /// Bytes that came over its networks.
    pub received_bytes: Option<u64>,
    /// Bytes that went over them.
    pub sent_bytes: Option<u64>,
    /// Bytes from disks.
    pub read_bytes: Option<u64>,
    /// Bytes to disks.
    pub written_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// The executor's end. Its queues are short, so who writes waits for who reads.
#[derive(Debug)]
pub struct TaskIo {
    input: mpsc::Receiver<Input>,
    output: TaskOutput,
}

/// Where output goes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TaskOutput {
    sender: mpsc::Sender<Output>,
    gone: CancellationToken,
}

/// The other end.
#[derive(Debug)]
pub struct TaskIoPeer {
    /// Where input goes.
    pub input: mpsc::Sender<Input>,
    /// Where output comes from.
    pub output: mpsc::Receiver<Output>,
    /// To be cancelled when nobody is there any more.
    pub gone: CancellationToken,
}

impl TaskIo {
    /// Both ends.
    pub fn new() -> (TaskIo, TaskIoPeer) {
        let (input, inputs) = mpsc::channel(QUEUE);
        let (sender, output) = mpsc::channel(QUEUE);
        let gone = CancellationToken::new();
        let io = TaskIo { input: inputs, output: TaskOutput { sender, gone: gone.clone() } };
        (io, TaskIoPeer { input, output, gone })
    }

    /// Input and output, for those who deal with them side by side.
    pub fn split(self) -> (mpsc::Receiver<Input>, TaskOutput) {
        (self.input, self.output)
    }
}

impl TaskOutput {
    /// Sends, once there is room.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn send(&self, output: Output) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => Err(Gone),
            sent = self.sender.send(output) => sent.map_err(|_| Gone),
        }
    }

    /// Sends bytes of a stream, however many, in messages of [`MAX_OUTPUT`] at most.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn send_all(&self, stream: LogStream, mut data: Bytes) -> Result<(), Gone> {
        while !data.is_empty() {
            let part = data.split_to(data.len().min(MAX_OUTPUT));
            self.send(match stream {
                LogStream::Stdout => Output::Stdout(part),
                LogStream::Stderr => Output::Stderr(part),
            })
            .await?;
        }
        Ok(())
    }

    /// Completes when nobody is there any more: whatever was begun for them is to end.
    pub async fn gone(&self) {
        tokio::select! {
            () = self.gone.cancelled() => {}
            () = self.sender.closed() => {}
        }
    }
}
