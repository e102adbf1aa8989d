//! Snapshots to one member: read from their file while they are sent, cut into chunks.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use swarm_api::raftpb::Message;
use swarm_api::v1::StreamRaftMessageRequest;
use swarm_api::v1::raft_client::RaftClient;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Inner, is_removal};
use crate::inbox::Request;
use crate::snapshot::{SnapshotReader, Snapshots};
use crate::storage::Position;

/// Bytes of a snapshot in one message; the contract allows 4 MiB with everything around them.
const CHUNK: usize = 1024 * 1024;
/// The receiver takes nothing for so long: it is gone.
const STALLED: Duration = Duration::from_secs(10);
/// Time that the receiver has to look at all of it.
const FINISH: Duration = Duration::from_secs(60);

/// A snapshot that is to be sent.
#[derive(Debug)]
pub(super) struct Transfer {
    /// Everything but the data.
    pub(super) message: Message,
    pub(super) at: Position,
    pub(super) snapshots: Snapshots,
}

/// Sends what comes in until the member is gone.
pub(super) async fn run(
    inner: Arc<Inner>,
    raft_id: u64,
    addr: watch::Receiver<String>,
    mut transfers: mpsc::Receiver<Transfer>,
) {
    while let Some(transfer) = transfers.recv().await {
        let (index, member) = (transfer.at.index, format!("{raft_id:x}"));
        tracing::info!(index, member, "sending a raft snapshot");
        let addr = addr.borrow().clone();
        let result = match inner.dialer.channel(&addr) {
            Ok(channel) => send(RaftClient::new(channel), transfer).await,
            Err(error) => Err(super::address(error)),
        };
        match &result {
            Ok(()) => tracing::info!(index, member, "sent a raft snapshot"),
            Err(status) if is_removal(status) => inner.tell(Request::Removed),
            Err(status) => tracing::warn!(index, member, %status, "a raft snapshot was not delivered"),
        }
        inner.tell(Request::SnapshotSent(raft_id, result.is_ok()));
    }
}

async fn send(mut client: RaftClient<tonic::transport::Channel>, transfer: Transfer) -> Result<(), Status> {
    let Transfer { message, at, snapshots } = transfer;
    let (chunks, stream) = mpsc::channel(1);
    let call = client.stream_raft_message(ReceiverStream::new(stream));
    tokio::pin!(call);
    let fed = tokio::select! {
        answer = &mut call => return answer.map(|_| ()),
        fed = feed(&chunks, message, at, snapshots) => fed,
    };
    // Only the end of the stream makes it a snapshot, and it must not end like one that is complete.
    if fed.is_err() {
        let _ = chunks.send(StreamRaftMessageRequest { message: Some(Message::default()) }).await;
    }
    drop(chunks);
    match timeout(FINISH, call).await {
        Ok(answer) => fed.and(answer.map(|_| ())),
        Err(_) => Err(Status::deadline_exceeded(format!("not taken within {FINISH:?}"))),
    }
}

async fn feed(
    chunks: &mpsc::Sender<StreamRaftMessageRequest>,
    message: Message,
    at: Position,
    snapshots: Snapshots,
) -> Result<(), Status> {
    let mut reader = blocking(move || snapshots.read(at).map(|(_, reader)| reader)).await?;
    let mut first = true;
    loop {
        let (rest, data) = blocking(move || next(reader)).await?;
        reader = rest;
        if data.is_empty() && !first {
            return Ok(());
        }
        first = false;
        let mut chunk = message.clone();
        if let Some(snapshot) = &mut chunk.snapshot {
            snapshot.data = Some(data);
        }
        let request = StreamRaftMessageRequest { message: Some(chunk) };
        match timeout(STALLED, chunks.send(request)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Status::unavailable("the connection ended")),
            Err(_) => return Err(Status::deadline_exceeded(format!("nothing was taken for {STALLED:?}"))),
        }
    }
}

fn next(mut reader: SnapshotReader) -> crate::Result<(SnapshotReader, Bytes)> {
    let mut data = Vec::with_capacity(CHUNK);
    let read = reader.by_ref().take(CHUNK as u64).read_to_end(&mut data);
    read.map_err(|error| crate::Error::Write(format!("reading a snapshot: {error}")))?;
    Ok((reader, data.into()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> crate::Result<T> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| Status::internal(error.to_string())),
        Err(error) => Err(Status::internal(error.to_string())),
    }
}
