//! The group's state, fetched by a manager before it joins (decision 0081).
//!
//! A member that has nothing is half of a quorum of two, so every write would wait until it has loaded a snapshot. One that
//! has fetched the state needs only the entries that followed. Its log begins as if the leader had sent it that snapshot:
//! the state is committed, whoever leads later has it too.
//!
//! The leader keeps the entries for a while. If it does not have them any more nothing is lost: it sends a snapshot, as to
//! any member that lags.

use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use raft_proto::eraftpb::ConfState;
use swarm_api::swarmd::peers_client::PeersClient;
use swarm_api::swarmd::{FetchEnd, FetchRequest, FetchResponse, FetchedState};
use swarm_api::v1::{ClusterSnapshot, RaftMember, StoreSnapshot};
use swarm_store::{StateMachine, View};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::check::LARGEST;
use crate::node::step_back;
use crate::snapshot::{MAX_SNAPSHOT, Meta, Snapshots, decode};
use crate::storage::Position;
use crate::{Config, Error, Membership};

/// Nothing comes, or is taken, for so long: the other one is gone.
pub(crate) const STALLED: Duration = Duration::from_secs(20);
/// Longest time for all of it. After that it comes as a snapshot to a member.
const LONGEST: Duration = Duration::from_secs(600);
/// Pieces that wait to be read.
const WAITING: usize = 2;

/// What a leader gives to a manager that is about to join.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) raft_id: u64,
    pub(crate) term: u64,
    pub(crate) meta: Meta,
    pub(crate) membership: ClusterSnapshot,
    pub(crate) view: View,
}

impl Offer {
    pub(crate) fn state(&self) -> FetchedState {
        FetchedState {
            raft_id: self.raft_id,
            term: self.term,
            index: self.meta.at.index,
            entry_term: self.meta.at.term,
            voters: self.meta.conf_state.voters.clone(),
        }
    }
}

/// State that was fetched, and is in the state machine. Its log begins with it.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub(crate) meta: Meta,
    /// The leader's term then.
    pub(crate) term: u64,
    pub(crate) membership: Membership,
    /// Sealed as snapshots are.
    pub(crate) path: PathBuf,
    from: u64,
    bytes: u64,
}

/// Why the state was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Who was asked does not give it.
    #[error("{}", .0.message())]
    Call(Status),
    /// What came makes no sense.
    #[error("it makes no sense: {0}")]
    Senseless(String),
    /// It is not to be had from there.
    #[error("{0}")]
    Refused(String),
    /// It could not be written.
    #[error(transparent)]
    Disk(Error),
}

fn senseless(reason: impl Into<String>) -> FetchError {
    FetchError::Senseless(reason.into())
}

impl Fetched {
    /// Fetches the state from the leader on this channel and gives it to the state machine, which must be a new one.
    /// `accept` says what is wrong with it, if its content is. Works on a thread that lets others go first.
    ///
    /// Nothing of it counts before a node is opened with it: what an earlier attempt has left is replaced.
    ///
    /// # Errors
    /// [`FetchError`]; the state machine is as it was then.
    pub async fn fetch(
        channel: Channel,
        config: &Config,
        machine: Arc<dyn StateMachine>,
        accept: impl FnOnce(&StoreSnapshot) -> Result<(), String> + Send + 'static,
    ) -> Result<Fetched, FetchError> {
        let end = Instant::now() + LONGEST;
        let opened = async {
            let mut answers = PeersClient::new(channel).fetch(FetchRequest {}).await?.into_inner();
            let first = answers.message().await?;
            Ok::<_, Status>((first, answers))
        };
        // It may give it to others first.
        let opened = timeout(config.ticks.request_timeout(), opened).await;
        let (first, mut answers) =
            opened.map_err(|_| senseless("it does not begin"))?.map_err(FetchError::Call)?;
        let state =
            first.and_then(|first| first.state).ok_or_else(|| senseless("it does not say what it is"))?;
        let beginning = Beginning::of(state)?;
        let (pieces, waiting) = mpsc::channel(WAITING);
        let (done, mut result) = oneshot::channel();
        let dir = config.state_dir.join("raft");
        let (sealer, node_id) = (config.sealer.clone(), config.node_id.clone());
        let work = move || {
            step_back();
            let taken = crate::disk::create_dir(&dir)
                .and_then(|()| Snapshots::open(&dir.join("snapshots"), sealer))
                .map_err(FetchError::Disk)
                .and_then(|snapshots| beginning.take_in(&snapshots, waiting, &node_id, &*machine, accept));
            let _ = done.send(taken);
        };
        let thread = std::thread::Builder::new().name("raft-fetch".to_owned()).spawn(work);
        thread.map_err(|e| {
            FetchError::Disk(Error::io("start a thread for", Path::new("a raft snapshot"))(e))
        })?;
        let passed_on = tokio::select! {
            // It does not wait for what follows nonsense.
            early = &mut result => return early.unwrap_or_else(|_| Err(senseless("its reader failed"))),
            passed_on = pass_on(&mut answers, &pieces, end) => passed_on,
        };
        drop(pieces);
        let taken = result.await.unwrap_or_else(|_| Err(senseless("its reader failed")));
        match passed_on {
            Ok(()) => taken,
            Err(error) => Err(error),
        }
    }

    /// The raft id of the leader that gave it.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// The last entry that it covers.
    pub fn at(&self) -> Position {
        self.meta.at
    }

    /// Its size, encoded.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the group that this member was added to is the one that the state is of. Who gave it is a member still, so
    /// its log is the group's, and that log has the state's last entry.
    pub(crate) fn check(&self, own: u64, members: &[RaftMember]) -> Result<(), String> {
        if !members.iter().any(|member| member.raft_id == self.from) {
            return Err(format!("{:x}, which it was fetched from, is no member of the group now", self.from));
        }
        if self.membership.get(own).is_some() || self.membership.is_removed(own) {
            return Err(format!("it knows the new member {own:x} already"));
        }
        Ok(())
    }
}

async fn pass_on(
    answers: &mut Streaming<FetchResponse>,
    pieces: &mpsc::Sender<FetchResponse>,
    end: Instant,
) -> Result<(), FetchError> {
    loop {
        let until = end.min(Instant::now() + STALLED);
        let answer = timeout_at(until, answers.message()).await;
        match answer.map_err(|_| senseless("nothing more comes"))?.map_err(FetchError::Call)? {
            // The reader has seen enough, and says why.
            Some(answer) => {
                if pieces.send(answer).await.is_err() {
                    return Ok(());
                }
            }
            None => return Ok(()),
        }
    }
}

/// What the first answer says.
#[derive(Debug)]
struct Beginning {
    meta: Meta,
    from: u64,
    term: u64,
}

impl Beginning {
    fn of(state: FetchedState) -> Result<Beginning, FetchError> {
        let FetchedState { raft_id, term, index, entry_term, voters } = state;
        let known = 1..=LARGEST;
        let placed = [index, entry_term, term].iter().all(|number| known.contains(number));
        if !placed || entry_term > term {
            return Err(senseless("its place in the log can't be"));
        }
        let mut unique = voters.clone();
        unique.sort_unstable();
        unique.dedup();
        if raft_id == 0 || unique.len() != voters.len() || unique.contains(&0) || !unique.contains(&raft_id) {
            return Err(senseless("its members can't be"));
        }
        let conf_state = ConfState { voters, ..ConfState::default() };
        Ok(Beginning {
            meta: Meta { at: Position { index, term: entry_term }, conf_state },
            from: raft_id,
            term,
        })
    }

    /// Reads the content, writes it down sealed, and gives it to the state machine. No more of it than a few pieces is in
    /// memory as bytes.
    fn take_in(
        self,
        snapshots: &Snapshots,
        answers: mpsc::Receiver<FetchResponse>,
        node_id: &str,
        machine: &dyn StateMachine,
        accept: impl FnOnce(&StoreSnapshot) -> Result<(), String>,
    ) -> Result<Fetched, FetchError> {
        let Beginning { meta, from, term } = self;
        snapshots.remove_fetched(None).map_err(FetchError::Disk)?;
        let (path, out) = snapshots.create_fetched(&meta).map_err(FetchError::Disk)?;
        let mut copied = Copied { from: Content::new(answers), out, failed: None };
        let content = decode(BufReader::with_capacity(64 * 1024, &mut copied));
        let Copied { from: read, out, failed } = copied;
        if let Some(error) = failed {
            return Err(FetchError::Disk(Error::io("write", &path)(error)));
        }
        let content = content.map_err(|e| senseless(e.to_string()))?;
        let safe = out.finish().and_then(|file| file.sync_all());
        safe.map_err(|e| FetchError::Disk(Error::io("write", &path)(e)))?;
        crate::disk::sync_dir_of(&path).map_err(FetchError::Disk)?;
        let membership = Membership::from_snapshot(&content.membership);
        if membership.get(from).is_none() {
            return Err(senseless("who gives it is no member"));
        }
        if membership.by_node_id(node_id).is_some() {
            return Err(senseless("this node is a member already"));
        }
        accept(&content.store).map_err(FetchError::Refused)?;
        machine.restore(meta.at.index, content.store).map_err(|e| senseless(e.to_string()))?;
        Ok(Fetched { meta, term, membership, path, from, bytes: read.length })
    }
}

/// The content, put together from the answers.
struct Content {
    answers: mpsc::Receiver<FetchResponse>,
    piece: Vec<u8>,
    at: usize,
    length: u64,
    checksum: crc32fast::Hasher,
    ended: bool,
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl Content {
    fn new(answers: mpsc::Receiver<FetchResponse>) -> Content {
        let checksum = crc32fast::Hasher::new();
        Content { answers, piece: Vec::new(), at: 0, length: 0, checksum, ended: false }
    }

    fn next(&mut self) -> io::Result<()> {
        let Some(FetchResponse { state, data, end }) = self.answers.blocking_recv() else {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is cut short"));
        };
        if state.is_some() {
            return Err(invalid("it begins twice"));
        }
        if data.is_empty() && end.is_none() {
            return Err(invalid("a piece is empty"));
        }
        self.length += data.len() as u64;
        if self.length > MAX_SNAPSHOT as u64 {
            return Err(invalid(&format!("it has more than {MAX_SNAPSHOT} bytes")));
        }
        self.checksum.update(&data);
        (self.piece, self.at) = (data, 0);
        if let Some(FetchEnd { length, checksum }) = end {
            if (length, checksum) != (self.length, self.checksum.clone().finalize()) {
                return Err(invalid("it is not what was sent: length or checksum differ"));
            }
            self.ended = true;
        }
        Ok(())
    }
}

impl Read for Content {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            if self.ended {
                return Ok(0);
            }
            self.next()?;
        }
        let taken = out.len().min(self.piece.len() - self.at);
        out[..taken].copy_from_slice(&self.piece[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}

/// Writes down what is read.
struct Copied<W> {
    from: Content,
    out: W,
    failed: Option<io::Error>,
}

impl<W: Write> Read for Copied<W> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(out)?;
        match self.out.write_all(&out[..read]) {
            Ok(()) => Ok(read),
            Err(error) => {
                let text = error.to_string();
                self.failed = Some(error);
                Err(io::Error::other(text))
            }
        }
    }
}

/// What a peer sends for a [`Fetched`], as a function of its answers, for the fuzz target.
pub(crate) fn take_in(answers: Vec<FetchResponse>, config: &Config, machine: &dyn StateMachine) -> bool {
    let mut answers = answers.into_iter();
    let Some(state) = answers.next().and_then(|first| first.state) else { return false };
    let Ok(beginning) = Beginning::of(state) else { return false };
    let (pieces, waiting) = mpsc::channel(answers.len().max(1));
    answers.for_each(|answer| drop(pieces.try_send(answer)));
    drop(pieces);
    let dir = config.state_dir.join("raft");
    let opened = crate::disk::create_dir(&dir)
        .and_then(|()| Snapshots::open(&dir.join("snapshots"), config.sealer.clone()));
    opened.is_ok_and(|snapshots| {
        beginning.take_in(&snapshots, waiting, &config.node_id, machine, |_| Ok(())).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use swarm_api::v1::{Config as ConfigObject, Snapshot};
    use swarm_store::Store;

    use crate::MaskSealer;

    fn member(raft_id: u64) -> RaftMember {
        RaftMember { raft_id, node_id: format!("m{raft_id}"), addr: "a:1".into(), ..RaftMember::default() }
    }

    fn content() -> Snapshot {
        let config = |i: u32| {
            let mut config = ConfigObject { id: format!("c{i:02}"), ..ConfigObject::default() };
            config.spec.annotations.name = format!("name{i}");
            config.spec.data = vec![b'x'; 1000];
            config.into()
        };
        let store = StoreSnapshot { configs: (0..100).map(config).collect(), ..StoreSnapshot::default() };
        let membership = ClusterSnapshot { members: vec![member(1), member(2)], removed: vec![66] };
        Snapshot { membership, store, ..Snapshot::default() }
    }

    fn state() -> FetchedState {
        FetchedState { raft_id: 1, term: 4, index: 20, entry_term: 3, voters: vec![1, 2] }
    }

    fn piece(data: &[u8]) -> FetchResponse {
        FetchResponse { data: data.to_vec(), ..FetchResponse::default() }
    }

    fn end(data: &[u8]) -> FetchResponse {
        let end = FetchEnd { length: data.len() as u64, checksum: crc32fast::hash(data) };
        FetchResponse { end: Some(end), ..FetchResponse::default() }
    }

    fn answers(content: &Snapshot) -> Vec<FetchResponse> {
        let bytes = content.encode_to_vec();
        let pieces = bytes.chunks(4000).map(piece);
        let first = FetchResponse { state: Some(state()), ..FetchResponse::default() };
        std::iter::once(first).chain(pieces).chain([end(&bytes)]).collect()
    }

    fn config(dir: &Path) -> Config {
        Config::new("m3", "a:1", dir, Arc::new(MaskSealer(5)))
    }

    /// Takes in what comes behind the beginning; the error.
    fn refused(answers: Vec<FetchResponse>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path(), Arc::new(MaskSealer(5))).unwrap();
        let store = Store::new();
        let (pieces, waiting) = mpsc::channel(answers.len() + 1);
        answers.into_iter().skip(1).for_each(|answer| pieces.try_send(answer).unwrap());
        drop(pieces);
        let beginning = Beginning::of(state()).unwrap();
        let error = beginning.take_in(&snapshots, waiting, "m3", &*store, |_| Ok(())).unwrap_err();
        assert_eq!(store.view().index(), 0, "the store was changed");
        error.to_string()
    }

    #[test]
    fn what_comes_is_written_down_sealed_and_given_to_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let (config, store) = (config(dir.path()), Store::new());
        assert!(take_in(answers(&content()), &config, &*store));
        assert!(store.view().to_snapshot() == content().store, "it is something else");
        assert_eq!(store.view().index(), 20);
        let snapshots = dir.path().join("raft/snapshots");
        let files: Vec<_> = std::fs::read_dir(&snapshots).unwrap().map(|e| e.unwrap().path()).collect();
        let [file] = &files[..] else { panic!("{files:?}") };
        let bytes = std::fs::read(file).unwrap();
        assert!(!bytes.windows(20).any(|window| window == [b'x'; 20]), "it is readable");
        let opened = Snapshots::open(&snapshots, config.sealer.clone()).unwrap();
        assert!(opened.list().unwrap().is_empty(), "it is no snapshot of the log yet");
        opened.remove_fetched(None).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn what_is_cut_short_or_not_what_was_sent_is_refused() {
        let whole = answers(&content());
        for cut in 1..whole.len() {
            let error = refused(whole[..cut].to_vec());
            assert!(error.contains("cut short"), "{cut}: {error}");
        }
        let changed = |change: fn(&mut Vec<FetchResponse>)| {
            let mut answers = whole.clone();
            change(&mut answers);
            refused(answers)
        };
        assert!(changed(|all| all.swap(3, 4)).contains("makes no sense"));
        let other = changed(|all| {
            let config = ConfigObject { id: "other".into(), ..ConfigObject::default() };
            let more = StoreSnapshot { configs: vec![config.into()], ..StoreSnapshot::default() };
            let more = Snapshot { store: more, ..Snapshot::default() }.encode_to_vec();
            all.insert(all.len() - 1, piece(&more));
        });
        assert!(other.contains("length or checksum"), "{other}");
        let sum = changed(|all| all.last_mut().unwrap().end.as_mut().unwrap().checksum ^= 1);
        assert!(sum.contains("length or checksum"), "{sum}");
        let length = changed(|all| all.last_mut().unwrap().end.as_mut().unwrap().length += 1);
        assert!(length.contains("length or checksum"), "{length}");
        assert!(changed(|all| all.insert(3, FetchResponse::default())).contains("a piece is empty"));
        assert!(changed(|all| all[3].state = Some(state())).contains("begins twice"));
    }

    #[test]
    fn a_state_that_can_not_be_is_refused() {
        let of = |change: fn(&mut FetchedState)| {
            let mut state = state();
            change(&mut state);
            Beginning::of(state).map(|_| ()).unwrap_err().to_string()
        };
        for error in [
            of(|state| state.index = 0),
            of(|state| state.index = u64::MAX),
            of(|state| state.entry_term = 0),
            of(|state| state.entry_term = 5),
            of(|state| state.term = u64::MAX),
            of(|state| state.term = 0),
        ] {
            assert!(error.contains("its place in the log"), "{error}");
        }
        for error in [
            of(|state| state.voters.clear()),
            of(|state| state.voters = vec![2]),
            of(|state| state.voters = vec![1, 2, 2]),
            of(|state| state.voters = vec![0, 1]),
            of(|state| state.raft_id = 0),
        ] {
            assert!(error.contains("its members"), "{error}");
        }
        let with = |change: fn(&mut Snapshot)| {
            let mut content = content();
            change(&mut content);
            refused(answers(&content))
        };
        assert!(with(|content| drop(content.membership.members.remove(0))).contains("who gives it"));
        let own = with(|content| content.membership.members[1].node_id = "m3".into());
        assert!(own.contains("a member already"), "{own}");
        let twice = with(|content| content.store.configs.push(content.store.configs[0].clone()));
        assert!(twice.contains("makes no sense"), "{twice}");
    }

    #[test]
    fn state_of_a_group_that_is_another_one_now_is_not_gone_on_from() {
        let fetched = Fetched {
            meta: Meta::default(),
            term: 4,
            membership: Membership::from_snapshot(&content().membership),
            path: PathBuf::new(),
            from: 1,
            bytes: 0,
        };
        let check = |own, members: &[u64]| {
            fetched.check(own, &members.iter().map(|id| member(*id)).collect::<Vec<_>>())
        };
        assert_eq!(check(3, &[1, 2, 3]), Ok(()));
        assert!(check(3, &[2, 3]).unwrap_err().contains("no member of the group now"));
        for own in [2, 66] {
            assert!(check(own, &[1, 2]).unwrap_err().contains("knows the new member"));
        }
    }
}
