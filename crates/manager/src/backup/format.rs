//! A backup file.
//!
//! A header in the clear (magic, version, what it is encrypted with, rounds and salt of the key derivation, and a
//! checksum), then sealed frames as of raft snapshots. They carry a `BackupInfo` behind its length, and a snapshot in
//! the contract's encoding. Nothing follows the last frame. Every byte is covered: the header by its checksum, the rest
//! by authenticated encryption.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;
use rand::Rng as _;
use sha2::{Digest as _, Sha256};
use swarm_api::swarmd::BackupInfo;
use swarm_api::v1::{ClusterSnapshot, StoreSnapshot};
use swarm_pki::passphrase::{ROUNDS, SALT_LENGTH, derive_key};
use swarm_pki::{Sealer, SecretBytes};
use swarm_raft::snapshot::{FrameReader, FrameWriter};
use swarm_store::Tables;

const MAGIC: &[u8; 8] = b"swbackup";
const VERSION: u8 = 1;
const CHECKSUM: usize = 8;
const HEADER: usize = MAGIC.len() + 1 + 1 + 4 + SALT_LENGTH;
/// Bytes of the header with its checksum.
pub(crate) const WHOLE_HEADER: usize = HEADER + CHECKSUM;
/// More rounds than this would be an attack, not a backup.
const MAX_ROUNDS: u32 = 100_000_000;

/// What a file is encrypted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum With {
    /// A passphrase of its own.
    Passphrase,
    /// The unlock key that the cluster had then, as text.
    UnlockKey,
}

impl With {
    fn number(self) -> u8 {
        match self {
            With::Passphrase => 1,
            With::UnlockKey => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            With::Passphrase => "the passphrase that was given when it was written",
            With::UnlockKey => "the unlock key (SWMKEY-1-…) that the cluster had when it was written",
        }
    }
}

/// A backup that was read.
pub struct Backup {
    /// Where it comes from.
    pub info: BackupInfo,
    /// Members of the raft group then, and before.
    pub membership: ClusterSnapshot,
    /// Every object.
    pub store: StoreSnapshot,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Why a backup can't be read.
#[derive(Debug, thiserror::Error)]
#[error("the backup {} can't be restored: {reason}. Nothing was written", path.display())]
pub struct Problem {
    path: PathBuf,
    reason: String,
}

/// Writes a backup.
///
/// # Errors
/// Those of `out`.
pub fn write(
    mut out: impl Write,
    secret: &SecretBytes,
    with: With,
    info: &BackupInfo,
    membership: &ClusterSnapshot,
    tables: &Tables,
) -> io::Result<()> {
    let mut salt = [0; SALT_LENGTH];
    rand::rng().fill_bytes(&mut salt);
    let mut header = Vec::with_capacity(HEADER + CHECKSUM);
    header.extend_from_slice(MAGIC);
    header.extend([VERSION, with.number()]);
    header.extend(ROUNDS.get().to_be_bytes());
    header.extend(salt);
    header.extend(checksum(&header));
    out.write_all(&header)?;
    let sealer = Sealer::new(&derive_key(secret.expose(), &salt, ROUNDS));
    let mut frames = FrameWriter::new(out, &sealer, info.index);
    frames.write_all(&info.encode_length_delimited_to_vec())?;
    swarm_store::snapshot::encode_to(tables, membership, &mut frames)?;
    frames.finish()?.flush()
}

fn checksum(header: &[u8]) -> [u8; CHECKSUM] {
    let digest: [u8; 32] = Sha256::digest(header).into();
    std::array::from_fn(|i| digest[i])
}

impl Backup {
    /// Reads and checks a whole file. Writes nothing.
    ///
    /// # Errors
    /// What is wrong with the file or the secret.
    pub fn read(path: &Path, secret: &SecretBytes) -> Result<Backup, Problem> {
        let problem = |reason: String| Problem { path: path.to_owned(), reason };
        let file = File::open(path).map_err(|e| problem(e.to_string()))?;
        read(BufReader::with_capacity(64 * 1024, file), secret).map_err(problem)
    }
}

const CUT: &str = "the file is cut short";

fn read(mut from: impl Read, secret: &SecretBytes) -> Result<Backup, String> {
    let mut header = [0; WHOLE_HEADER];
    let length = read_full(&mut from, &mut header).map_err(|e| e.to_string())?;
    let Header { with, rounds, salt } = parse_header(&header[..length])?;
    let sealer = Sealer::new(&derive_key(secret.expose(), &salt, rounds));
    read_content(from, Arc::new(sealer), with.name())
}

/// What the header says.
pub(crate) struct Header {
    with: With,
    rounds: NonZeroU32,
    salt: [u8; SALT_LENGTH],
}

/// Reads the header.
pub(crate) fn parse_header(header: &[u8]) -> Result<Header, String> {
    if !header.starts_with(MAGIC) {
        return Err("this is not a backup that `swarmctl cluster backup` wrote".to_owned());
    }
    if header.len() < WHOLE_HEADER {
        return Err(CUT.to_owned());
    }
    let (fields, check) = header.split_at(HEADER);
    if check != checksum(fields) {
        return Err("the file is damaged: its header does not fit its checksum".to_owned());
    }
    let &[version, with, r0, r1, r2, r3, ref salt @ ..] = &fields[MAGIC.len()..] else {
        return Err(CUT.to_owned());
    };
    if version != VERSION {
        return Err(format!(
            "its format {version} is not known here: use the version of swarmd that wrote it"
        ));
    }
    let with = [With::Passphrase, With::UnlockKey].into_iter().find(|w| w.number() == with);
    let with = with.ok_or("it is encrypted in a way that is not known here")?;
    let rounds = NonZeroU32::new(u32::from_be_bytes([r0, r1, r2, r3])).filter(|r| r.get() <= MAX_ROUNDS);
    let (Some(rounds), Ok(salt)) = (rounds, salt.try_into()) else {
        return Err("the file is damaged: its key derivation makes no sense".to_owned());
    };
    Ok(Header { with, rounds, salt })
}

/// Makes a header's checksum right, for the fuzz target, which would never hit upon it.
pub(crate) fn correct(header: &mut [u8]) {
    if let Some((fields, check)) = header.split_at_mut_checked(HEADER)
        && check.len() == CHECKSUM
    {
        check.copy_from_slice(&checksum(fields));
    }
}

/// Reads what follows the header. `key` says what it is encrypted with.
pub(crate) fn read_content(
    from: impl Read,
    sealer: Arc<dyn swarm_raft::Sealer>,
    key: &str,
) -> Result<Backup, String> {
    let mut frames = FrameReader::new(from, sealer);
    let mut content = Vec::new();
    if let Err(error) = frames.read_to_end(&mut content) {
        return Err(match error.kind() {
            io::ErrorKind::UnexpectedEof => CUT.to_owned(),
            _ if content.is_empty() => {
                format!("{error}. It needs {}; if that was given, the file is damaged", key)
            }
            _ => format!("the file is damaged: {error}"),
        });
    }
    let mut rest = [0];
    if frames.into_inner().read(&mut rest).map_err(|e| e.to_string())? > 0 {
        return Err("the file is damaged: something follows its end".to_owned());
    }
    let mut content = content.as_slice();
    let info = BackupInfo::decode_length_delimited(&mut content).map_err(|e| e.to_string())?;
    let (membership, store) = swarm_store::snapshot::decode(content).map_err(|e| e.to_string())?;
    Ok(Backup { info, membership, store })
}

fn read_full(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let length = buffer.len() as u64;
    let mut out = &mut buffer[..];
    io::copy(&mut from.take(length), &mut out)?;
    let left = out.len();
    Ok(buffer.len() - left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_api::Object;
    use swarm_api::v1::{Config, RaftMember};

    fn secret(text: &str) -> SecretBytes {
        SecretBytes::new(text.as_bytes().to_vec())
    }

    fn backup(with: With) -> Vec<u8> {
        let mut tables = Tables::default();
        for i in 0..200 {
            let mut config = Config { id: format!("c{i}"), ..Config::default() };
            config.spec.annotations.name = format!("name-{i}");
            config.spec.data = vec![b'x'; 4000];
            tables.insert(Object::Config(config.into())).unwrap();
        }
        let info = BackupInfo { cluster_id: "c".into(), index: 77, ..Default::default() };
        let member = RaftMember { raft_id: 5, ..RaftMember::default() };
        let membership = ClusterSnapshot { members: vec![member], removed: vec![9] };
        let mut out = Vec::new();
        write(&mut out, &secret("a passphrase"), with, &info, &membership, &tables).unwrap();
        out
    }

    #[test]
    fn a_backup_reads_back_and_shows_nothing() {
        let bytes = backup(With::Passphrase);
        assert!(!bytes.windows(20).any(|w| w == [b'x'; 20]));
        let read = read(bytes.as_slice(), &secret("a passphrase")).unwrap();
        assert_eq!((read.info.index, read.store.configs.len()), (77, 200));
        assert_eq!(read.membership.removed, [9]);
    }

    #[test]
    fn a_wrong_secret_says_which_one_is_needed() {
        for (with, text) in [(With::Passphrase, "passphrase that was given"), (With::UnlockKey, "SWMKEY-1-")]
        {
            let error = read(backup(with).as_slice(), &secret("another")).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn damage_anywhere_is_found() {
        let whole = backup(With::Passphrase);
        let opens = |bytes: &[u8]| read(bytes, &secret("a passphrase"));
        // The derivation of the key takes its time, so not every place is tried; the header's bytes all are, since
        // its checksum is seen to first.
        let frames = (0..6).map(|i| HEADER + CHECKSUM + i * (whole.len() - HEADER - CHECKSUM - 1) / 5);
        for at in (0..HEADER + CHECKSUM).chain(frames) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            assert!(opens(&bytes).is_err(), "a flipped bit at {at}");
        }
        for cut in [0, 1, MAGIC.len(), HEADER, HEADER + CHECKSUM, whole.len() / 2, whole.len() - 1] {
            assert!(opens(&whole[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(opens(&whole[..whole.len() / 2]).unwrap_err(), CUT);
        let mut longer = whole.clone();
        longer.push(0);
        assert!(opens(&longer).unwrap_err().contains("something follows its end"));
    }
}
