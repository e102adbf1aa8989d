//! Giving the group's state to a manager that is about to join (decision 0081): encoded while it is sent, by a thread that
//! lets others go first, and never on disk here.

use std::io::{self, Write};

use swarm_api::swarmd::{FetchEnd, FetchResponse};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::fetch::{Offer, STALLED};
use crate::node::step_back;
use crate::snapshot;

/// Bytes of content in one answer.
const PIECE: usize = 256 * 1024;
/// Answers that wait for a slow receiver.
const WAITING: usize = 2;

/// The answers of one call.
pub(super) type Answers = ReceiverStream<Result<FetchResponse, Status>>;

/// Begins to give it. The turn ends when that does.
pub(super) fn give(offer: Offer, stop: CancellationToken, turn: OwnedSemaphorePermit) -> io::Result<Answers> {
    let (answers, stream) = mpsc::channel(WAITING);
    let mut pieces = Pieces {
        answers,
        runtime: Handle::current(),
        stop,
        piece: Vec::with_capacity(PIECE),
        length: 0,
        checksum: crc32fast::Hasher::new(),
    };
    let work = move || {
        let _turn = turn;
        step_back();
        let index = offer.meta.at.index;
        match pieces.all_of(&offer) {
            Ok(()) => tracing::info!(index, bytes = pieces.length, "gave the state to a manager that joins"),
            Err(error) => {
                tracing::warn!(index, %error, "the state was not given to a manager that joins");
                // Without a last answer it counts as cut short in any case.
                let _ = pieces.answers.try_send(Err(Status::aborted(error.to_string())));
            }
        }
    };
    std::thread::Builder::new().name("raft-offer".to_owned()).spawn(work)?;
    Ok(ReceiverStream::new(stream))
}

/// Bytes become answers.
struct Pieces {
    answers: mpsc::Sender<Result<FetchResponse, Status>>,
    runtime: Handle,
    stop: CancellationToken,
    piece: Vec<u8>,
    length: u64,
    checksum: crc32fast::Hasher,
}

impl Pieces {
    fn all_of(&mut self, offer: &Offer) -> io::Result<()> {
        self.send(FetchResponse { state: Some(offer.state()), ..FetchResponse::default() })?;
        snapshot::encode(self, &offer.membership, &offer.view)?;
        let end = FetchEnd { length: self.length, checksum: self.checksum.clone().finalize() };
        let data = std::mem::take(&mut self.piece);
        self.send(FetchResponse { data, end: Some(end), ..FetchResponse::default() })
    }

    fn send(&self, answer: FetchResponse) -> io::Result<()> {
        // Time limits are made where the runtime is.
        let sent = async { timeout(STALLED, self.answers.send(Ok(answer))).await };
        match self.runtime.block_on(self.stop.run_until_cancelled(sent)) {
            Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(_))) => Err(io::Error::other("the receiver went away")),
            Some(Err(_)) => Err(io::Error::other(format!("nothing was taken for {STALLED:?}"))),
            None => Err(io::Error::other("this manager stops")),
        }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = &bytes[..bytes.len().min(PIECE - self.piece.len())];
        self.piece.extend_from_slice(taken);
        self.length += taken.len() as u64;
        self.checksum.update(taken);
        if self.piece.len() == PIECE {
            let data = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
            self.send(FetchResponse { data, ..FetchResponse::default() })?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
