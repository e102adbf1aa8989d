//! The directory `certificates/` of a node: its root bundle, its certificate and its key.
//!
//! A new pair is written so that a crash at any point leaves one that fits together: the certificate under a temporary
//! name, then the key, then the certificate's rename. Whoever reads finds the pair that the key belongs to.

use std::fs;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::dek_state::{CURRENT, NEEDS_ROTATION, PENDING};
use crate::key_block::KeyBlock;
use crate::{
    Certificate, Dek, DekState, Error, Kek, PrivateKey, Result, RootCa, Sealer, SecretBytes, atomic,
    normalize_pem,
};

const KEK_VERSION: &str = "kek-version";
const DIRECTORY_MODE: u32 = 0o755;
const CERTIFICATE_MODE: u32 = 0o644;
const KEY_MODE: u32 = 0o600;

/// The files of a node's identity. Every change is written through; one lock keeps readers and writers of the key file
/// apart. Blocks on the disk.
pub struct KeyStore {
    directory: PathBuf,
    state: Mutex<State>,
    exposed: watch::Sender<bool>,
}

/// What the key file says besides the key. Changes only after the file did.
#[derive(Clone, Default)]
struct State {
    kek: Option<Kek>,
    kek_version: u64,
    deks: DekState,
    /// Headers of others, kept as long as only the key changes.
    foreign: Vec<(String, String)>,
}

/// A certificate and its key as read from disk.
#[derive(Debug, Clone)]
pub struct StoredPair {
    /// PEM, leaf first.
    pub certificate: Vec<u8>,
    /// The leaf's key.
    pub key: PrivateKey,
}

/// What a new pair does about the key-encrypting key.
#[derive(Debug, Clone)]
pub enum KekChange {
    /// Encrypt as before.
    Keep,
    /// Encrypt with this one from now on, or with none, unless a newer version is known already.
    Set(Option<Kek>, u64),
}

/// What became of an offered key-encrypting key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KekUpdate {
    /// Nothing new.
    Unchanged,
    /// The file is encrypted differently now.
    Changed,
    /// The file lay in the clear until now: the data-encryption key is marked for a change, and the certificate's key
    /// should be renewed.
    Locked,
}

impl KeyStore {
    /// The store of a directory, which need not exist. Leftovers of interrupted writes are removed.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self> {
        let directory = directory.into();
        atomic::sweep(&directory).map_err(Error::io(&directory))?;
        Ok(Self { directory, state: Mutex::default(), exposed: watch::Sender::new(false) })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn root_path(&self) -> PathBuf {
        self.path("swarm-root-ca.crt")
    }

    fn certificate_path(&self) -> PathBuf {
        self.path("swarm-node.crt")
    }

    fn key_path(&self) -> PathBuf {
        self.path("swarm-node.key")
    }

    fn half_written_certificate_path(&self) -> PathBuf {
        self.path(".swarm-node.crt")
    }

    /// The root bundle on disk, with its key if an operator put one there.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is no bundle; whatever makes it unusable.
    pub fn load_root(&self, now: std::time::SystemTime) -> Result<RootCa> {
        let bundle = read(&self.root_path())?;
        match read(&self.path("swarm-root-ca.key")) {
            Ok(key) => RootCa::load(&bundle, Some((&bundle, SecretBytes::new(key).expose())), &[], now),
            Err(error) if error.is_missing() => RootCa::trust_only(&bundle, now),
            Err(error) => Err(error),
        }
    }

    /// Writes the root bundle, byte for byte, and never its key.
    ///
    /// # Errors
    /// Any of the file system's.
    pub fn save_root(&self, root: &RootCa) -> Result<()> {
        self.prepare_directory()?;
        self.write_file(&self.root_path(), root.pem(), CERTIFICATE_MODE)
    }

    /// Whether a key file is there, readable or not.
    pub fn has_key(&self) -> bool {
        self.key_path().exists() || self.path(".swarm-node.key").exists()
    }

    /// Reads the node's pair, and takes over what the key file says about its encryption. A file in the clear is read
    /// whatever `kek` is.
    ///
    /// # Errors
    /// [`Error::Locked`] before anything on disk is touched; [`Error::Missing`]; [`Error::KeyMismatch`] when the
    /// certificate is of another key and no half-written one fits.
    pub fn load(&self, kek: Option<&Kek>) -> Result<StoredPair> {
        let mut state = self.state.lock();
        self.migrate_legacy_key(kek)?;
        let block = self.read_block()?;
        let key = block.key(kek)?;
        let kek = kek.filter(|_| block.is_encrypted());
        let read = State {
            deks: DekState::from_headers(|name| block.header(name), kek)?,
            kek_version: block.header(KEK_VERSION).and_then(|text| text.parse().ok()).unwrap_or(0),
            kek: kek.cloned(),
            foreign: block.own_headers().filter(|(name, _)| !is_ours(name)).cloned().collect(),
        };
        let certificate = self.certificate_of(&key)?;
        // The change of keys that the locking began was not completed.
        let changing = read.deks.needs_rotation || read.deks.pending.is_some();
        self.exposed.send_replace(read.kek.is_some() && changing);
        *state = read;
        Ok(StoredPair { certificate, key })
    }

    /// Writes a new pair: the certificate normalized, the key encrypted if the file is or shall be.
    ///
    /// # Errors
    /// Any of the file system's; the old pair is then still whole.
    pub fn save(&self, certificate: &[u8], key: &PrivateKey, kek: KekChange) -> Result<()> {
        let mut state = self.state.lock();
        let mut next = state.clone();
        match kek {
            // The cluster may have announced a newer one since this was asked for.
            KekChange::Set(kek, version) if version >= next.kek_version => {
                next.adopt(kek, version);
            }
            KekChange::Set(..) | KekChange::Keep => {}
        }
        self.prepare_directory()?;
        let half_written = self.half_written_certificate_path();
        self.write_file(&half_written, &normalize_pem(certificate), CERTIFICATE_MODE)?;
        let block = KeyBlock::new(key, next.kek.as_ref())?;
        self.write_block(block, &next)?;
        *state = next;
        self.exposed.send_replace(false);
        atomic::rename(&half_written, &self.certificate_path()).map_err(Error::io(&half_written))
    }

    /// Takes over a key-encrypting key that the cluster announces, if it is news.
    ///
    /// # Errors
    /// [`Error::KekConflict`] when a known version comes with another key; any of the file system's. The file is then
    /// as it was.
    pub fn update_kek(&self, kek: Option<Kek>, version: u64) -> Result<KekUpdate> {
        let mut state = self.state.lock();
        if kek == state.kek || version < state.kek_version {
            return Ok(KekUpdate::Unchanged);
        }
        if version == state.kek_version {
            return Err(Error::KekConflict(version));
        }
        let key = self.read_block()?.key(state.kek.as_ref())?;
        let mut next = state.clone();
        let locked = next.adopt(kek, version);
        self.write_block(KeyBlock::new(&key, next.kek.as_ref())?, &next)?;
        *state = next;
        if locked {
            self.exposed.send_replace(true);
        }
        Ok(if locked { KekUpdate::Locked } else { KekUpdate::Changed })
    }

    /// Whether the key is one that lay in the clear before the file was encrypted: the node should have another one.
    pub fn exposed(&self) -> watch::Receiver<bool> {
        self.exposed.subscribe()
    }

    /// Whether the key file is encrypted, and the version of the key it is encrypted with, as last read or written.
    pub fn kek_version(&self) -> (bool, u64) {
        let state = self.state.lock();
        (state.kek.is_some(), state.kek_version)
    }

    /// The data-encryption keys, as last read or written.
    pub fn deks(&self) -> DekState {
        self.state.lock().deks.clone()
    }

    /// The current data-encryption key; made and written when there is none yet.
    ///
    /// # Errors
    /// Any of the file system's.
    pub fn ensure_dek(&self) -> Result<Dek> {
        let mut state = self.state.lock();
        if let Some(dek) = &state.deks.current {
            return Ok(dek.clone());
        }
        let dek = Dek::generate();
        self.write_deks(&mut state, DekState { current: Some(dek.clone()), ..DekState::default() })?;
        Ok(dek)
    }

    /// Replaces the data-encryption keys. Without a current one every header but the version goes.
    ///
    /// # Errors
    /// [`Error::PendingWithoutCurrent`]; any of the file system's. Nothing has changed then.
    pub fn set_deks(&self, deks: DekState) -> Result<()> {
        self.write_deks(&mut self.state.lock(), deks)
    }

    /// Begins a change of the data-encryption key, if one is due, or goes on with one: returns what to seal with while
    /// it lasts.
    ///
    /// # Errors
    /// Any of the file system's. Nothing has changed then.
    pub fn begin_dek_change(&self) -> Result<Option<Sealer>> {
        let mut state = self.state.lock();
        let deks = &state.deks;
        if deks.needs_rotation && deks.pending.is_none() && deks.current.is_some() {
            let next = DekState { pending: Some(Dek::generate()), needs_rotation: false, ..deks.clone() };
            self.write_deks(&mut state, next)?;
        }
        Ok(state.deks.pending.as_ref().and_then(|_| state.deks.sealer()))
    }

    /// Ends a change: nothing is sealed with the old key any more.
    ///
    /// # Errors
    /// Any of the file system's. The change is still under way then.
    pub fn finish_dek_change(&self) -> Result<()> {
        let mut state = self.state.lock();
        let Some(pending) = state.deks.pending.clone() else { return Ok(()) };
        let next = DekState { current: Some(pending), pending: None, ..state.deks.clone() };
        self.write_deks(&mut state, next)
    }

    /// Only the headers change: the body stays as it is, encrypted or not.
    fn write_deks(&self, state: &mut State, deks: DekState) -> Result<()> {
        let next = State { deks, foreign: Vec::new(), ..state.clone() };
        self.write_block(self.read_block()?, &next)?;
        *state = next;
        Ok(())
    }

    fn write_block(&self, mut block: KeyBlock, state: &State) -> Result<()> {
        block.set_headers(state.headers()?);
        self.write_file(&self.key_path(), block.encode()?.expose(), KEY_MODE)
    }

    fn read_block(&self) -> Result<KeyBlock> {
        KeyBlock::parse(SecretBytes::new(read(&self.key_path())?).expose())
    }

    /// The certificate of a key: the one in place, or the one that an interrupted write left behind.
    fn certificate_of(&self, key: &PrivateKey) -> Result<Vec<u8>> {
        let (in_place, half_written) = (self.certificate_path(), self.half_written_certificate_path());
        let error = match read_certificate(&in_place, key) {
            Ok(certificate) => return Ok(certificate),
            Err(error) => error,
        };
        match read_certificate(&half_written, key) {
            Ok(certificate) => {
                atomic::rename(&half_written, &in_place).map_err(Error::io(&half_written))?;
                Ok(certificate)
            }
            Err(_) => {
                atomic::remove(&half_written).map_err(Error::io(&half_written))?;
                Err(error)
            }
        }
    }

    /// Older versions wrote the key under a temporary name first: it is moved into place if it is the certificate's.
    fn migrate_legacy_key(&self, kek: Option<&Kek>) -> Result<()> {
        let legacy = self.path(".swarm-node.key");
        let text = match read(&legacy) {
            Err(error) if error.is_missing() => return Ok(()),
            text => SecretBytes::new(text?),
        };
        let key = match KeyBlock::parse(text.expose()).and_then(|block| block.key(kek)) {
            Err(Error::Locked) => return Err(Error::Locked),
            key => key,
        };
        match key.and_then(|key| read_certificate(&self.certificate_path(), &key)) {
            Ok(_) => atomic::rename(&legacy, &self.key_path()).map_err(Error::io(&legacy)),
            Err(_) => atomic::remove(&legacy).map_err(Error::io(&legacy)),
        }
    }

    fn prepare_directory(&self) -> Result<()> {
        atomic::create_directory(&self.directory, DIRECTORY_MODE).map_err(Error::io(&self.directory))
    }

    fn write_file(&self, path: &Path, contents: &[u8], mode: u32) -> Result<()> {
        atomic::write(path, contents, mode).map_err(Error::io(path))
    }
}

impl State {
    /// Takes a key over; says whether the file goes from open to locked.
    fn adopt(&mut self, kek: Option<Kek>, version: u64) -> bool {
        let locked = self.kek.is_none() && kek.is_some();
        if locked && self.deks.current.is_some() {
            self.deks.needs_rotation = true;
        }
        (self.kek, self.kek_version) = (kek, version);
        locked
    }

    fn headers(&self) -> Result<Vec<(String, String)>> {
        let mut headers = self.foreign.clone();
        headers.push((KEK_VERSION.to_owned(), self.kek_version.to_string()));
        headers.extend(self.deks.to_headers(self.kek.as_ref())?);
        Ok(headers)
    }
}

impl std::fmt::Debug for KeyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyStore").field("directory", &self.directory).finish_non_exhaustive()
    }
}

fn is_ours(name: &str) -> bool {
    [KEK_VERSION, CURRENT, PENDING, NEEDS_ROTATION].contains(&name)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io(path))
}

fn read_certificate(path: &Path, key: &PrivateKey) -> Result<Vec<u8>> {
    let pem = read(path)?;
    let bundle = Certificate::from_pem_bundle(&pem)?;
    match bundle.first() {
        None => Err(Error::EmptyChain),
        Some(leaf) if key.belongs_to(leaf) => Ok(pem),
        Some(_) => Err(Error::KeyMismatch),
    }
}

#[cfg(test)]
#[path = "key_store_tests.rs"]
mod tests;
