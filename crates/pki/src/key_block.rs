//! The PEM block of a node's key file: in the clear, or encrypted with a key-encrypting key, and its headers.
//!
//! Encrypted keys are PKCS#8 with the one set of parameters that every peer reads: PBES2 of PBKDF2-HMAC-SHA1 with 2048
//! rounds and AES-256-CBC. That is weak for passwords and of no consequence for a random key of 32 bytes.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockDecryptMut as _, KeyIvInit as _};
use md5::{Digest as _, Md5};
use pkcs8::der::{Decode as _, Encode as _};
use pkcs8::pkcs5::{EncryptionScheme, pbes2};
use rand::RngExt as _;
use zeroize::Zeroizing;

use crate::certificate::PEM_CONFIG;
use crate::key::{PKCS8_LABEL, SEC1_LABEL};
use crate::{Error, Kek, PrivateKey, Result, SecretBytes, der};

const ENCRYPTED_LABEL: &str = "ENCRYPTED PRIVATE KEY";
const PROC_TYPE: &str = "Proc-Type";
const DEK_INFO: &str = "DEK-Info";
const ROUNDS: u32 = 2048;
const OID_PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
const OID_PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
const OID_AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];

/// A key block as it lies on disk.
pub(crate) struct KeyBlock {
    label: String,
    contents: SecretBytes,
    headers: Vec<(String, String)>,
}

impl KeyBlock {
    /// Reads the first key block of a file.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        let mut blocks = pem::parse_many(text).map_err(|_| Error::MalformedKey("the key file is not PEM"))?;
        let at = blocks
            .iter()
            .position(|block| block.tag().ends_with("PRIVATE KEY"))
            .ok_or(Error::MalformedKey("the key file holds no private key"))?;
        let block = blocks.swap_remove(at);
        let headers =
            block.headers().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Self { label: block.tag().to_owned(), headers, contents: SecretBytes::new(block.into_contents()) })
    }

    /// A key in PKCS#8, encrypted when there is a key to encrypt with.
    pub(crate) fn new(key: &PrivateKey, kek: Option<&Kek>) -> Result<Self> {
        let (label, contents) = match kek {
            None => (PKCS8_LABEL, key.pkcs8().clone()),
            Some(kek) => (ENCRYPTED_LABEL, encrypt(key.pkcs8().expose(), kek)?),
        };
        Ok(Self { label: label.to_owned(), contents, headers: Vec::new() })
    }

    /// The file's text: `Proc-Type` first, other headers by name.
    pub(crate) fn encode(&self) -> Result<SecretBytes> {
        let mut block = pem::Pem::new(&self.label, self.contents.expose());
        let mut headers: Vec<_> = self.headers.iter().collect();
        headers.sort_by_key(|(name, _)| (name != PROC_TYPE, name.clone()));
        for (name, value) in headers {
            block.headers_mut().add(name, value).map_err(|e| Error::Headers(e.to_string()))?;
        }
        Ok(SecretBytes::new(pem::encode_config(&block, PEM_CONFIG).into_bytes()))
    }

    /// Whether its body can only be read with a key, by its structure rather than its label.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.header(PROC_TYPE).is_some_and(|value| value.contains("ENCRYPTED"))
            || der::sequence(self.contents.expose())
                .is_some_and(|parts| parts.first().is_some_and(|first| first.tag == der::SEQUENCE))
    }

    /// The key in it.
    ///
    /// # Errors
    /// [`Error::Locked`] when it is encrypted and the key is missing or does not open it.
    pub(crate) fn key(&self, kek: Option<&Kek>) -> Result<PrivateKey> {
        if !self.is_encrypted() {
            // An unencrypted SEC1 key may carry the label of PKCS#8 and the other way round.
            return PrivateKey::from_block(&self.label, self.contents.expose());
        }
        let kek = kek.ok_or(Error::Locked)?;
        let legacy = self.header(DEK_INFO);
        let plain = match legacy {
            Some(info) => decrypt_legacy(self.contents.expose(), info, kek)?,
            None => decrypt(self.contents.expose(), kek)?,
        };
        // CBC has no integrity of its own: what does not parse as a key was opened with the wrong one.
        let label = if legacy.is_some() { SEC1_LABEL } else { PKCS8_LABEL };
        PrivateKey::from_block(label, &plain).map_err(|_| Error::Locked)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Headers that are not part of an encryption of the body.
    pub(crate) fn own_headers(&self) -> impl Iterator<Item = &(String, String)> {
        self.headers.iter().filter(|(name, _)| !is_body_header(name))
    }

    /// Replaces all headers but those that belong to the body's encryption.
    pub(crate) fn set_headers(&mut self, headers: Vec<(String, String)>) {
        self.headers.retain(|(name, _)| is_body_header(name));
        self.headers.extend(headers);
    }
}

fn is_body_header(name: &str) -> bool {
    name == PROC_TYPE || name == DEK_INFO
}

fn encrypt(pkcs8: &[u8], kek: &Kek) -> Result<SecretBytes> {
    let failed = |what: &str| Error::Crypto(format!("encrypting the node key: {what}"));
    let salt: [u8; 8] = rand::rng().random();
    let iv: [u8; 16] = rand::rng().random();
    let scheme = EncryptionScheme::Pbes2(pbes2::Parameters {
        kdf: pbes2::Kdf::Pbkdf2(pbes2::Pbkdf2Params {
            salt: pbes2::Salt::new(salt).map_err(|_| failed("salt"))?,
            iteration_count: ROUNDS,
            key_length: None,
            prf: pbes2::Pbkdf2Prf::HmacWithSha1,
        }),
        encryption: pbes2::EncryptionScheme::Aes256Cbc { iv },
    });
    let encrypted = scheme.encrypt(kek.expose(), pkcs8).map_err(|_| failed("cipher"))?;
    let algorithm = scheme.to_der().map_err(|_| failed("parameters"))?;
    let info = der::element(der::SEQUENCE, &[&algorithm, &der::element(der::OCTET_STRING, &[&encrypted])]);
    Ok(SecretBytes::new(info.to_vec()))
}

fn decrypt(info: &[u8], kek: &Kek) -> Result<Zeroizing<Vec<u8>>> {
    const MALFORMED: Error = Error::EncryptedKey("pkcs8: only PKCS #5 v2.0 supported");
    let parts = der::sequence(info).ok_or(MALFORMED)?;
    let [algorithm, body] = parts.as_slice() else { return Err(MALFORMED) };
    let is = |element: Option<&der::Element<'_>>, oid: &[u8]| element.is_some_and(|e| e.value == oid);
    let outer = der::elements(algorithm.value).ok_or(MALFORMED)?;
    if !is(outer.first(), OID_PBES2) {
        return Err(Error::EncryptedKey("pkcs8: only PBES2 supported"));
    }
    let inner = outer.get(1).and_then(|params| der::elements(params.value)).ok_or(MALFORMED)?;
    let [kdf, cipher] = inner.as_slice() else { return Err(MALFORMED) };
    if !is(der::elements(kdf.value).ok_or(MALFORMED)?.first(), OID_PBKDF2) {
        return Err(Error::EncryptedKey("pkcs8: only PBKDF2 supported"));
    }
    if !is(der::elements(cipher.value).ok_or(MALFORMED)?.first(), OID_AES_256_CBC) {
        return Err(Error::EncryptedKey("pkcs8: only AES-256-CBC supported"));
    }
    let scheme = EncryptionScheme::from_der(algorithm.raw).map_err(|_| MALFORMED)?;
    scheme.decrypt(kek.expose(), body.value).map(Zeroizing::new).map_err(|_| Error::Locked)
}

/// RFC 1423: what older peers wrote around SEC1 keys. Read only.
fn decrypt_legacy(body: &[u8], info: &str, kek: &Kek) -> Result<Zeroizing<Vec<u8>>> {
    const UNSUPPORTED: Error =
        Error::EncryptedKey("unsupported DEK-Info of the encrypted key: only AES-256-CBC is read");
    let (cipher, iv) = info.split_once(',').ok_or(UNSUPPORTED)?;
    let iv: [u8; 16] = hex::decode(iv.trim()).ok().and_then(|iv| iv.try_into().ok()).ok_or(UNSUPPORTED)?;
    if cipher.trim() != "AES-256-CBC" {
        return Err(UNSUPPORTED);
    }
    let mut key = Zeroizing::new([0u8; 32]);
    let round =
        |previous: &[u8]| Md5::new().chain_update(previous).chain_update(kek.expose()).chain_update(&iv[..8]);
    let first = round(&[]).finalize();
    key[..16].copy_from_slice(&first);
    key[16..].copy_from_slice(&round(&first).finalize());
    cbc::Decryptor::<aes::Aes256>::new(key.as_ref().into(), &iv.into())
        .decrypt_padded_vec_mut::<Pkcs7>(body)
        .map(Zeroizing::new)
        .map_err(|_| Error::Locked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{have_openssl, openssl};

    fn kek() -> Kek {
        Kek::from_bytes(b"an ASCII unlock key for openssl!").unwrap()
    }

    #[test]
    fn a_block_round_trips_with_and_without_a_kek() {
        let key = PrivateKey::generate().unwrap();
        for kek in [None, Some(kek())] {
            let mut block = KeyBlock::new(&key, kek.as_ref()).unwrap();
            block.set_headers(vec![("raft-dek".into(), "AAA=".into()), ("kek-version".into(), "7".into())]);
            let text = block.encode().unwrap();
            let read = KeyBlock::parse(text.expose()).unwrap();
            assert_eq!(read.is_encrypted(), kek.is_some());
            assert_eq!(read.key(kek.as_ref()).unwrap(), key);
            assert_eq!(read.header("kek-version"), Some("7"));
            let text = std::str::from_utf8(text.expose()).unwrap();
            assert!(text.lines().nth(1).unwrap().starts_with("kek-version: 7"), "headers in order");
        }
    }

    #[test]
    fn a_locked_block_opens_with_its_kek_only() {
        let key = PrivateKey::generate().unwrap();
        let block = KeyBlock::new(&key, Some(&kek())).unwrap();
        assert!(matches!(block.key(None), Err(Error::Locked)));
        for _ in 0..50 {
            assert!(matches!(block.key(Some(&Kek::generate())), Err(Error::Locked)));
        }
    }

    #[test]
    fn openssl_reads_what_is_written_and_the_other_way_round() {
        if !have_openssl() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let password = "pass:an ASCII unlock key for openssl!";
        let key = PrivateKey::generate().unwrap();
        std::fs::write(path("ours"), KeyBlock::new(&key, Some(&kek())).unwrap().encode().unwrap().expose())
            .unwrap();
        let public =
            openssl(&["pkey", "-in", &path("ours"), "-passin", password, "-pubout", "-outform", "DER"]);
        assert_eq!(public, key.public_key());
        std::fs::write(path("plain"), key.to_pkcs8_pem().expose()).unwrap();
        openssl(&["pkey", "-in", &path("plain"), "-check", "-noout"]);

        openssl(&[
            "pkcs8",
            "-topk8",
            "-in",
            &path("plain"),
            "-out",
            &path("theirs"),
            "-passout",
            password,
            "-v2",
            "aes-256-cbc",
            "-v2prf",
            "hmacWithSHA1",
        ]);
        openssl(&["ec", "-in", &path("plain"), "-out", &path("legacy"), "-aes256", "-passout", password]);
        for file in ["theirs", "legacy"] {
            let block = KeyBlock::parse(&std::fs::read(path(file)).unwrap()).unwrap();
            assert!(block.is_encrypted(), "{file}");
            assert_eq!(block.key(Some(&kek())).unwrap().public_key(), key.public_key(), "{file}");
            assert!(matches!(block.key(Some(&Kek::generate())), Err(Error::Locked)), "{file}");
        }
    }

    #[test]
    fn other_ciphers_are_named_in_the_refusal() {
        if !have_openssl() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(path("plain"), PrivateKey::generate().unwrap().to_pkcs8_pem().expose()).unwrap();
        for (options, text) in [
            (&["-v2", "aes-128-cbc"][..], "pkcs8: only AES-256-CBC supported"),
            (&["-scrypt"], "pkcs8: only PBKDF2 supported"),
        ] {
            let common =
                ["pkcs8", "-topk8", "-in", &path("plain"), "-out", &path("theirs"), "-passout", "pass:x"];
            openssl(&[&common[..], options].concat());
            let block = KeyBlock::parse(&std::fs::read(path("theirs")).unwrap()).unwrap();
            assert_eq!(block.key(Some(&kek())).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_key_file_is_refused() {
        for (text, why) in [
            (&b"garbage"[..], "holds no private key"),
            (b"", "holds no private key"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no private key"),
            (b"-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n", "not PEM"),
        ] {
            let error = KeyBlock::parse(text).err().unwrap().to_string();
            assert!(error.contains("malformed private key") && error.contains(why), "{error}");
        }
    }
}
