//! Encryption at rest: records of the raft log and of snapshots, sealed with the data-encryption key.
//!
//! A sealed record is an encoded `MaybeEncryptedRecord`: `{1 algorithm, 2 data, 3 nonce}`. It is written and read
//! here by hand, because it lies on the way of every commit: one allocation, one copy, encryption in place.
//!
//! The log's files are our own, so records in it have an algorithm of our own, ten times as fast as the contract's
//! (docs/decisions/0004): AES-256-GCM under a key derived for each [`Sealer`], with counted nonces. Headers of key
//! files, which other programs read, keep secretbox. All three algorithms are read.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::{BufMut as _, Bytes};
use crypto_secretbox::aead::{AeadInPlace as _, KeyInit as _};
use crypto_secretbox::{Nonce, Tag, XSalsa20Poly1305};
use fernet::Fernet;
use parking_lot::RwLock;
use rand::{Rng as _, RngExt as _};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce as GcmNonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use swarm_api::v1::maybe_encrypted_record::Algorithm;
use zeroize::Zeroizing;

/// Bytes of a key that are used: longer keys are cut, shorter ones padded with zeros, as the original does.
const KEY_LENGTH: usize = 32;
const NONCE_LENGTH: usize = 24;
const TAG_LENGTH: usize = 16;
/// Number of AES-256-GCM in records: not of the contract.
const ALGORITHM_GCM: u8 = 100;
const SALT_LENGTH: usize = 16;
/// What the derived keys are for.
const GCM_CONTEXT: &[u8] = b"swarmd record aes-256-gcm";
/// Derived keys of other processes that are kept at hand; a log holds runs of records of one process after the other.
const DERIVED_KEYS: usize = 8;
/// Tags of the record's fields on the wire.
const FIELD_ALGORITHM: u8 = 0x08;
const FIELD_DATA: u8 = 0x12;
const FIELD_NONCE: u8 = 0x1a;

/// A data-encryption key: 32 bytes that one manager seals its raft log and snapshots with.
#[derive(Clone, PartialEq, Eq)]
pub struct Dek(crate::SecretBytes);

impl Dek {
    /// A new random key.
    pub fn generate() -> Self {
        let mut bytes = vec![0; KEY_LENGTH];
        rand::rng().fill_bytes(&mut bytes);
        Self(crate::SecretBytes::new(bytes))
    }

    /// The key of these bytes, as read from a header.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(crate::SecretBytes::new(bytes.to_vec()))
    }

    /// The raw bytes.
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }
}

impl fmt::Debug for Dek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dek([hidden])")
    }
}

/// Why a record can't be opened. All of them mean "cannot decrypt": the record is never repaired away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The bytes are no record.
    #[error("cannot decrypt: this is no encrypted record (damaged, or of another program)")]
    Malformed,
    /// No key at hand opens it.
    #[error("cannot decrypt: no decryption key for record encrypted with {0}")]
    WrongKey(&'static str),
    /// An algorithm that is unknown or not accepted.
    #[error("cannot decrypt: algorithm {0} is not accepted here")]
    Algorithm(i32),
    /// A nonce of the wrong length.
    #[error("cannot decrypt: invalid nonce size for NACL secretbox: require 24, got {0}")]
    Nonce(usize),
}

/// A key for AES-256-GCM, and the salt that it was derived with.
struct Derived {
    salt: [u8; SALT_LENGTH],
    key: LessSafeKey,
}

impl Derived {
    fn new(dek: &[u8; KEY_LENGTH], salt: [u8; SALT_LENGTH]) -> Arc<Self> {
        let secret = Salt::new(HKDF_SHA256, &salt).extract(dek);
        let key = secret
            .expand(&[GCM_CONTEXT], &AES_256_GCM)
            .map(UnboundKey::from)
            .expect("a key of 32 bytes is within what HKDF-SHA256 gives");
        Arc::new(Self { salt, key: LessSafeKey::new(key) })
    }
}

struct Key {
    bytes: Zeroizing<[u8; KEY_LENGTH]>,
    secretbox: XSalsa20Poly1305,
    fernet: Fernet,
    derived: RwLock<Vec<Arc<Derived>>>,
}

impl Key {
    /// The derived key of a salt.
    fn derived(&self, salt: [u8; SALT_LENGTH]) -> Arc<Derived> {
        if let Some(known) = self.derived.read().iter().find(|derived| derived.salt == salt) {
            return known.clone();
        }
        let derived = Derived::new(&self.bytes, salt);
        let mut known = self.derived.write();
        known.truncate(DERIVED_KEYS - 1);
        known.insert(0, derived.clone());
        derived
    }

    fn new(bytes: &[u8]) -> Self {
        let mut key = Zeroizing::new([0u8; KEY_LENGTH]);
        let used = bytes.len().min(KEY_LENGTH);
        key[..used].copy_from_slice(&bytes[..used]);
        let encoded = Zeroizing::new(URL_SAFE.encode(key.as_ref()));
        let fernet = Fernet::new(&encoded).expect("32 bytes in URL-safe base64 are a Fernet key");
        let secretbox = XSalsa20Poly1305::new(key.as_ref().into());
        Self { bytes: key, secretbox, fernet, derived: RwLock::default() }
    }
}

/// Seals and opens records. Cheap to clone, usable from many threads at once.
///
/// ```
/// use swarm_pki::{Dek, Sealer};
///
/// let sealer = Sealer::new(&Dek::generate());
/// let sealed = sealer.seal(b"an entry");
/// assert_eq!(sealer.open(&sealed)?, b"an entry"[..]);
/// # Ok::<(), swarm_pki::SealError>(())
/// ```
#[derive(Clone)]
pub struct Sealer(Arc<Keys>);

struct Keys {
    /// The first one seals; each of them opens.
    keys: Vec<Key>,
    cipher: Cipher,
}

/// What new records are sealed with.
enum Cipher {
    /// A key of this sealer's own, and the number of records sealed with it: no nonce comes twice, and a random one
    /// would have to be expected to after some billions of records.
    Gcm { key: Arc<Derived>, sealed: AtomicU64 },
    /// What the contract's files hold.
    Secretbox,
    /// All that a node in FIPS mode takes.
    Fernet,
}

impl Sealer {
    /// Seals with AES-256-GCM; opens that, secretbox and Fernet.
    pub fn new(dek: &Dek) -> Self {
        Self::with_older(dek, &[])
    }

    /// Seals with one key and opens records of older ones too: what lies in a log whose key was being changed.
    pub fn with_older(dek: &Dek, older: &[Dek]) -> Self {
        let keys: Vec<Key> = std::iter::once(dek).chain(older).map(|dek| Key::new(dek.expose())).collect();
        let key = keys[0].derived(rand::rng().random());
        Self::build(keys, Cipher::Gcm { key, sealed: AtomicU64::new(0) })
    }

    /// As of a node in FIPS mode: Fernet only, both ways.
    pub fn fips(dek: &Dek) -> Self {
        Self::build(vec![Key::new(dek.expose())], Cipher::Fernet)
    }

    /// Seals as the contract's files are sealed: with secretbox. Headers of key files are, with the unlock key.
    pub(crate) fn secretbox(key: &[u8]) -> Self {
        Self::build(vec![Key::new(key)], Cipher::Secretbox)
    }

    fn build(keys: Vec<Key>, cipher: Cipher) -> Self {
        Self(Arc::new(Keys { keys, cipher }))
    }

    /// The encoded, encrypted record of some bytes. Two records of the same bytes differ.
    pub fn seal(&self, plain: &[u8]) -> Bytes {
        let mut record = Vec::new();
        self.seal_into(plain, &mut record);
        record.into()
    }

    /// Appends the encoded, encrypted record to a buffer, in at most one allocation.
    pub fn seal_into(&self, plain: &[u8], out: &mut Vec<u8>) {
        match &self.0.cipher {
            Cipher::Gcm { key, sealed } => seal_gcm(key, sealed, plain, out),
            Cipher::Secretbox => seal_secretbox(&self.0.keys[0].secretbox, plain, out),
            Cipher::Fernet => {
                let token = self.0.keys[0].fernet.encrypt(plain);
                put_start(out, Algorithm::FernetAes128Cbc as u8, token.len());
                out.put_slice(token.as_bytes());
            }
        }
    }

    /// The bytes in an encoded record. An unencrypted record (algorithm `NONE`) is refused: nothing that this
    /// sealer guards is ever written in the clear.
    ///
    /// # Errors
    /// When the bytes are no record, are damaged, or were sealed with a key or algorithm that is not at hand.
    pub fn open(&self, record: &[u8]) -> Result<Bytes, SealError> {
        let record = Record::parse(record)?;
        let fips = matches!(self.0.cipher, Cipher::Fernet);
        if record.algorithm == i32::from(ALGORITHM_GCM) && !fips {
            return self.open_gcm(&record);
        }
        match Algorithm::try_from(record.algorithm) {
            Ok(Algorithm::SecretboxSalsa20Poly1305) if !fips => self.open_secretbox(&record),
            Ok(Algorithm::FernetAes128Cbc) => self.open_fernet(&record),
            _ => Err(SealError::Algorithm(record.algorithm)),
        }
    }

    fn open_gcm(&self, record: &Record<'_>) -> Result<Bytes, SealError> {
        let (salt, nonce) = record.nonce.split_first_chunk().ok_or(SealError::Malformed)?;
        let nonce: [u8; NONCE_LEN] = nonce.try_into().map_err(|_| SealError::Malformed)?;
        let mut plain = record.data.to_vec();
        for key in &self.0.keys {
            let nonce = GcmNonce::assume_unique_for_key(nonce);
            if let Ok(opened) = key.derived(*salt).key.open_in_place(nonce, Aad::empty(), &mut plain) {
                let length = opened.len();
                plain.truncate(length);
                return Ok(plain.into());
            }
            plain.copy_from_slice(record.data);
        }
        Err(SealError::WrongKey("AES-256-GCM"))
    }

    fn open_secretbox(&self, record: &Record<'_>) -> Result<Bytes, SealError> {
        if record.nonce.len() != NONCE_LENGTH {
            return Err(SealError::Nonce(record.nonce.len()));
        }
        let (tag, body) = record.data.split_at_checked(TAG_LENGTH).ok_or(SealError::Malformed)?;
        let (tag, nonce) = (Tag::from_slice(tag), Nonce::from_slice(record.nonce));
        let mut plain = body.to_vec();
        for key in &self.0.keys {
            if key.secretbox.decrypt_in_place_detached(nonce, b"", &mut plain, tag).is_ok() {
                return Ok(plain.into());
            }
            plain.copy_from_slice(body);
        }
        Err(SealError::WrongKey("NACL secretbox"))
    }

    fn open_fernet(&self, record: &Record<'_>) -> Result<Bytes, SealError> {
        let token = std::str::from_utf8(record.data).map_err(|_| SealError::Malformed)?;
        let mut keys = self.0.keys.iter();
        keys.find_map(|key| key.fernet.decrypt(token).ok())
            .map(Bytes::from)
            .ok_or(SealError::WrongKey("FERNET_AES_128_CBC"))
    }
}

fn seal_gcm(key: &Derived, sealed: &AtomicU64, plain: &[u8], out: &mut Vec<u8>) {
    let mut nonce = [0u8; NONCE_LEN];
    let number = sealed.fetch_add(1, Ordering::Relaxed);
    nonce[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    let start = put_start(out, ALGORITHM_GCM, plain.len() + TAG_LENGTH);
    out.put_slice(plain);
    let tag = key
        .key
        .seal_in_place_separate_tag(GcmNonce::assume_unique_for_key(nonce), Aad::empty(), &mut out[start..])
        .expect("AES-GCM takes up to 64 GiB, and a record fits into memory");
    out.put_slice(tag.as_ref());
    out.put_u8(FIELD_NONCE);
    out.put_u8((SALT_LENGTH + NONCE_LEN) as u8);
    out.put_slice(&key.salt);
    out.put_slice(&nonce);
}

fn seal_secretbox(key: &XSalsa20Poly1305, plain: &[u8], out: &mut Vec<u8>) {
    let mut nonce = [0u8; NONCE_LENGTH];
    rand::rng().fill_bytes(&mut nonce);
    let start = put_start(out, Algorithm::SecretboxSalsa20Poly1305 as u8, TAG_LENGTH + plain.len());
    out.put_bytes(0, TAG_LENGTH);
    out.put_slice(plain);
    let tag = key
        .encrypt_in_place_detached(Nonce::from_slice(&nonce), b"", &mut out[start + TAG_LENGTH..])
        .expect("secretbox takes any length that fits into memory, and no associated data");
    out[start..start + TAG_LENGTH].copy_from_slice(&tag);
    out.put_u8(FIELD_NONCE);
    out.put_u8(NONCE_LENGTH as u8);
    out.put_slice(&nonce);
}

/// Begins a record, with room for all of it; gives where its data of this length belongs.
fn put_start(out: &mut Vec<u8>, algorithm: u8, data: usize) -> usize {
    const OVERHEAD: usize = 64;
    out.reserve(data + OVERHEAD);
    out.put_u8(FIELD_ALGORITHM);
    out.put_u8(algorithm);
    out.put_u8(FIELD_DATA);
    prost::encoding::encode_varint(data as u64, out);
    out.len()
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("keys", &self.0.keys.len()).finish_non_exhaustive()
    }
}

/// A record that is not encrypted, for headers of an unlocked key file.
pub(crate) fn plain_record(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if !data.is_empty() {
        out.put_u8(FIELD_DATA);
        prost::encoding::encode_varint(data.len() as u64, &mut out);
        out.put_slice(data);
    }
    out
}

/// The data of a record that is not encrypted; `None` when it is encrypted.
pub(crate) fn plain_data(record: &[u8]) -> Result<Option<&[u8]>, SealError> {
    let record = Record::parse(record)?;
    Ok((record.algorithm == Algorithm::None as i32).then_some(record.data))
}

/// An encoded record, its parts still in the caller's bytes.
struct Record<'a> {
    algorithm: i32,
    data: &'a [u8],
    nonce: &'a [u8],
}

impl<'a> Record<'a> {
    fn parse(mut bytes: &'a [u8]) -> Result<Self, SealError> {
        let mut record = Record { algorithm: 0, data: &[], nonce: &[] };
        let varint =
            |bytes: &mut &'a [u8]| prost::encoding::decode_varint(bytes).map_err(|_| SealError::Malformed);
        while !bytes.is_empty() {
            let tag = varint(&mut bytes)?;
            if tag == u64::from(FIELD_ALGORITHM) {
                record.algorithm = varint(&mut bytes)? as i32;
                continue;
            }
            let length = usize::try_from(varint(&mut bytes)?).map_err(|_| SealError::Malformed)?;
            let (value, rest) = bytes.split_at_checked(length).ok_or(SealError::Malformed)?;
            bytes = rest;
            match u8::try_from(tag) {
                Ok(FIELD_DATA) => record.data = value,
                Ok(FIELD_NONCE) => record.nonce = value,
                _ => return Err(SealError::Malformed),
            }
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use swarm_api::v1::MaybeEncryptedRecord;

    use super::*;

    fn dek(byte: u8) -> Dek {
        Dek::from_bytes(&[byte; 32])
    }

    #[test]
    fn what_is_sealed_opens_again_and_no_two_records_are_equal() {
        let sealer = Sealer::new(&dek(1));
        for length in [0, 1, 15, 16, 17, 127, 128, 1000, 100_000] {
            let plain = vec![0x5a; length];
            let (a, b) = (sealer.seal(&plain), sealer.seal(&plain));
            assert_ne!(a, b);
            assert_eq!(sealer.open(&a).unwrap(), plain);
            assert_eq!(sealer.open(&b).unwrap(), plain);
        }
    }

    #[test]
    fn a_record_is_the_contracts_message() {
        for (sealer, algorithm, nonce) in [
            (Sealer::secretbox(dek(1).expose()), Algorithm::SecretboxSalsa20Poly1305 as i32, 24),
            (Sealer::new(&dek(1)), i32::from(ALGORITHM_GCM), 28),
        ] {
            let sealed = sealer.seal(b"hello");
            let record = MaybeEncryptedRecord::decode(&*sealed).unwrap();
            assert_eq!((record.algorithm, record.data.len(), record.nonce.len()), (algorithm, 5 + 16, nonce));
            assert_eq!(record.encode_to_vec(), sealed, "byte for byte what a generic encoder writes");
            assert_eq!(Sealer::new(&dek(1)).open(&sealed).unwrap(), b"hello"[..]);
        }
    }

    #[test]
    fn no_nonce_comes_twice_whoever_seals() {
        let sealer = Sealer::new(&dek(1));
        let nonces = |sealer: &Sealer| -> Vec<Vec<u8>> {
            let seal = || MaybeEncryptedRecord::decode(&*sealer.seal(b"x")).unwrap().nonce;
            (0..100).map(|_| seal()).collect()
        };
        let clone = sealer.clone();
        let threads = [&sealer, &clone].map(nonces);
        let another_process = nonces(&Sealer::new(&dek(1)));
        let all: std::collections::HashSet<_> = threads.iter().flatten().chain(&another_process).collect();
        assert_eq!(all.len(), 300);
    }

    #[test]
    fn records_of_many_earlier_processes_open() {
        let records: Vec<Bytes> =
            (0..3 * DERIVED_KEYS).map(|_| Sealer::new(&dek(1)).seal(b"of an earlier process")).collect();
        let sealer = Sealer::with_older(&dek(2), &[dek(1)]);
        for record in records.iter().chain(records.iter().rev()) {
            assert_eq!(sealer.open(record).unwrap(), b"of an earlier process"[..]);
        }
    }

    /// The vector of NaCl's own test program for secretbox (`tests/secretbox.c`), first 32 bytes of the message.
    #[test]
    fn secretbox_is_nacls() {
        let key = hex::decode("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389").unwrap();
        let nonce = hex::decode("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37").unwrap();
        let sealed = Sealer::new(&Dek::from_bytes(&key));
        let message = hex::decode(
            "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c6129\
             6cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde\
             048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705",
        )
        .unwrap();
        let cipher = hex::decode(
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186a\
             c0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae\
             90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74\
             e355a5",
        )
        .unwrap();
        let record = MaybeEncryptedRecord {
            algorithm: Algorithm::SecretboxSalsa20Poly1305 as i32,
            data: cipher,
            nonce,
        };
        assert_eq!(sealed.open(&record.encode_to_vec()).unwrap(), message);
    }

    #[test]
    fn fernet_records_open_by_default_and_are_all_that_fips_takes() {
        let (plain, fips) = (Sealer::new(&dek(1)), Sealer::fips(&dek(1)));
        let sealed = fips.seal(b"hello");
        let record = MaybeEncryptedRecord::decode(&*sealed).unwrap();
        assert_eq!(record.algorithm, Algorithm::FernetAes128Cbc as i32);
        assert_eq!(plain.open(&sealed).unwrap(), b"hello"[..]);
        assert_eq!(fips.open(&sealed).unwrap(), b"hello"[..]);
        assert_eq!(fips.open(&plain.seal(b"hello")), Err(SealError::Algorithm(100)));
        let contracts = Sealer::secretbox(dek(1).expose());
        assert_eq!(fips.open(&contracts.seal(b"hello")), Err(SealError::Algorithm(1)));
        assert_eq!(Sealer::fips(&dek(2)).open(&sealed), Err(SealError::WrongKey("FERNET_AES_128_CBC")));
    }

    #[test]
    fn another_key_does_not_open_and_an_older_one_does_when_given() {
        let contracts = Sealer::secretbox(dek(1).expose()).seal(b"hello");
        assert_eq!(Sealer::new(&dek(2)).open(&contracts), Err(SealError::WrongKey("NACL secretbox")));
        let sealed = Sealer::new(&dek(1)).seal(b"hello");
        assert_eq!(Sealer::new(&dek(2)).open(&sealed), Err(SealError::WrongKey("AES-256-GCM")));
        let both = Sealer::with_older(&dek(2), &[dek(3), dek(1)]);
        assert_eq!(both.open(&sealed).unwrap(), b"hello"[..]);
        assert_eq!(Sealer::new(&dek(2)).open(&both.seal(b"new")).unwrap(), b"new"[..]);
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        for sealer in [Sealer::new(&dek(1)), Sealer::secretbox(dek(1).expose()), Sealer::fips(&dek(1))] {
            let sealed = sealer.seal(b"hello");
            for at in 0..sealed.len() {
                let mut damaged = sealed.to_vec();
                damaged[at] ^= 1;
                assert!(sealer.open(&damaged).is_err(), "byte {at}");
                assert!(sealer.open(&sealed[..at]).is_err(), "cut at {at}");
            }
        }
    }

    #[test]
    fn records_in_the_clear_and_unknown_algorithms_are_refused() {
        let sealer = Sealer::new(&dek(1));
        assert_eq!(sealer.open(&plain_record(b"hello")), Err(SealError::Algorithm(0)));
        let odd = MaybeEncryptedRecord { algorithm: 1, data: vec![0; 20], nonce: vec![0; 23] };
        assert_eq!(sealer.open(&odd.encode_to_vec()), Err(SealError::Nonce(23)));
        let odd = MaybeEncryptedRecord { algorithm: 9, ..odd };
        assert_eq!(sealer.open(&odd.encode_to_vec()), Err(SealError::Algorithm(9)));
        assert_eq!(sealer.open(b"\xff\xff\xff"), Err(SealError::Malformed));
    }

    #[test]
    fn keys_are_cut_or_padded_to_32_bytes() {
        let mut long = vec![7; 32];
        long.push(9);
        let sealed = Sealer::new(&Dek::from_bytes(&long)).seal(b"x");
        assert!(Sealer::new(&Dek::from_bytes(&[7; 32])).open(&sealed).is_ok());
        let mut padded = vec![7; 3];
        padded.resize(32, 0);
        let sealed = Sealer::new(&Dek::from_bytes(&[7; 3])).seal(b"x");
        assert!(Sealer::new(&Dek::from_bytes(&padded)).open(&sealed).is_ok());
    }

    #[test]
    fn nothing_secret_is_printed() {
        let key = dek(b'k');
        assert_eq!(format!("{key:?} {:?}", Sealer::new(&key)), "Dek([hidden]) Sealer { keys: 1, .. }");
    }
}
