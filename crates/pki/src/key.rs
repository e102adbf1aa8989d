//! Private keys: generated here, read in every form that the contract's files and objects use.

use std::fmt;

use rcgen::{KeyPair, PublicKeyData as _, SignatureAlgorithm};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::certificate::PEM_CONFIG;
use crate::{Certificate, Error, Result, SecretBytes, der};

pub(crate) const PKCS8_LABEL: &str = "PRIVATE KEY";
pub(crate) const SEC1_LABEL: &str = "EC PRIVATE KEY";
const PKCS1_LABEL: &str = "RSA PRIVATE KEY";
const PARAMETERS_LABEL: &str = "EC PARAMETERS";

/// Contents of object identifiers.
const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const OID_P521: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x23];

/// A private key that signs: ECDSA on P-256 or P-384, or RSA from 2048 bits. Never printed, wiped when dropped.
#[derive(Clone)]
pub struct PrivateKey {
    pkcs8: SecretBytes,
    public_key: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

impl PrivateKey {
    /// A new ECDSA key on P-256.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self> {
        let pair = KeyPair::generate()?;
        let pkcs8 = Zeroizing::new(pair.serialize_der());
        Self::from_pkcs8(&pkcs8)
    }

    /// Reads a key in PEM: PKCS#8, SEC1 (`EC PRIVATE KEY`) or PKCS#1 (`RSA PRIVATE KEY`), with or without a block
    /// `EC PARAMETERS` before it. Encrypted keys are the business of key files.
    ///
    /// # Errors
    /// [`Error::MalformedKey`], or a kind or size that is not supported.
    pub fn from_pem(text: &[u8]) -> Result<Self> {
        let blocks = pem::parse_many(text).map_err(|_| Error::MalformedKey("not PEM"))?;
        let block = blocks
            .iter()
            .find(|block| block.tag() != PARAMETERS_LABEL)
            .ok_or(Error::MalformedKey("no PEM block found"))?;
        Self::from_block(block.tag(), block.contents())
    }

    /// Reads the contents of a PEM block with this label.
    pub(crate) fn from_block(label: &str, contents: &[u8]) -> Result<Self> {
        match label {
            PKCS8_LABEL => Self::from_pkcs8(contents),
            SEC1_LABEL => Self::from_pkcs8(&wrap_sec1(contents)?),
            PKCS1_LABEL => {
                Self::from_pkcs8(&wrap(&[&der::element(der::OID, &[OID_RSA]), &[der::NULL, 0]], contents))
            }
            _ => Err(Error::MalformedKey("the PEM block is no private key in the clear")),
        }
    }

    /// Reads a key in the DER of PKCS#8.
    ///
    /// # Errors
    /// As of [`PrivateKey::from_pem`].
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self> {
        const BAD: Error = Error::MalformedKey("not PKCS#8");
        let info = der::sequence(bytes).ok_or(BAD)?;
        let [_, algorithm, inner, ..] = info.as_slice() else { return Err(BAD) };
        if (algorithm.tag, inner.tag) != (der::SEQUENCE, der::OCTET_STRING) {
            return Err(BAD);
        }
        let algorithm = signature_algorithm(algorithm.value, || rsa_bits(inner.value, 1)).ok_or(BAD)??;
        let pair = load(bytes, algorithm)?;
        Ok(Self {
            public_key: pair.subject_public_key_info(),
            pkcs8: SecretBytes::new(bytes.to_vec()),
            algorithm,
        })
    }

    /// The DER of PKCS#8.
    pub(crate) fn pkcs8(&self) -> &SecretBytes {
        &self.pkcs8
    }

    /// DER of the public key (SPKI).
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// Whether a certificate is of this key.
    pub fn belongs_to(&self, certificate: &Certificate) -> bool {
        self.public_key == certificate.public_key()
    }

    /// PEM of PKCS#8: the form of node keys.
    pub fn to_pkcs8_pem(&self) -> SecretBytes {
        encode(PKCS8_LABEL, self.pkcs8.expose())
    }

    /// PEM in the form that the contract gives root keys: SEC1 for ECDSA, PKCS#8 for RSA.
    ///
    /// # Errors
    /// [`Error::MalformedKey`] when the key has no public part to copy.
    pub fn to_root_pem(&self) -> Result<SecretBytes> {
        let curve = if self.algorithm == &rcgen::PKCS_ECDSA_P256_SHA256 {
            OID_P256
        } else if self.algorithm == &rcgen::PKCS_ECDSA_P384_SHA384 {
            OID_P384
        } else {
            return Ok(self.to_pkcs8_pem());
        };
        let sec1 = unwrap_sec1(self.pkcs8.expose(), curve).ok_or(Error::MalformedKey("not PKCS#8"))?;
        Ok(encode(SEC1_LABEL, &sec1))
    }

    /// For signing certificates.
    pub(crate) fn key_pair(&self) -> Result<KeyPair> {
        load(self.pkcs8.expose(), self.algorithm)
    }

    /// For TLS.
    pub(crate) fn to_rustls(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.expose().to_vec()).into()
    }
}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &Self) -> bool {
        self.public_key == other.public_key && self.pkcs8 == other.pkcs8
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey([hidden])")
    }
}

fn load(pkcs8: &[u8], algorithm: &'static SignatureAlgorithm) -> Result<KeyPair> {
    KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.into(), algorithm)
        .map_err(|_| Error::MalformedKey("its parts do not fit together, or its public part is missing"))
}

fn encode(label: &str, contents: &[u8]) -> SecretBytes {
    SecretBytes::new(pem::encode_config(&pem::Pem::new(label, contents), PEM_CONFIG).into_bytes())
}

/// PKCS#8 around a key of another form; `algorithm` is the contents of the algorithm identifier.
fn wrap(algorithm: &[&[u8]], key: &[u8]) -> Zeroizing<Vec<u8>> {
    der::element(
        der::SEQUENCE,
        &[
            &der::element(der::INTEGER, &[&[0]]),
            &der::element(der::SEQUENCE, algorithm),
            &der::element(der::OCTET_STRING, &[key]),
        ],
    )
}

/// `ECPrivateKey ::= { version 1, OCTET STRING, [0] curve OPTIONAL, [1] public key OPTIONAL }` into PKCS#8.
fn wrap_sec1(sec1: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    let parts = der::sequence(sec1).ok_or(Error::MalformedKey("not SEC1"))?;
    let curve = parts
        .iter()
        .find(|part| part.tag == der::CONTEXT_0)
        .ok_or(Error::MalformedKey("an EC key that does not name its curve"))?;
    Ok(wrap(&[&der::element(der::OID, &[OID_EC]), curve.value], sec1))
}

fn unwrap_sec1(pkcs8: &[u8], curve: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let info = der::sequence(pkcs8)?;
    let parts = der::sequence(info.get(2)?.value)?;
    let [version, secret, ..] = parts.as_slice() else { return None };
    let public = parts.iter().find(|part| part.tag == der::CONTEXT_1)?;
    let named = der::element(der::CONTEXT_0, &[&der::element(der::OID, &[curve])]);
    Some(der::element(der::SEQUENCE, &[version.raw, secret.raw, &named, public.raw]))
}

/// Refuses public keys (SPKI) that signatures can't be checked with here.
pub(crate) fn check_public_key(public_key: &[u8]) -> Result<()> {
    let algorithm = der::sequence(public_key).and_then(|parts| {
        let [algorithm, bits] = parts.as_slice() else { return None };
        signature_algorithm(algorithm.value, || rsa_bits(bits.value.get(1..)?, 0))
    });
    algorithm.unwrap_or(Err(Error::KeyAlgorithm)).map(|_| ())
}

/// How a key of this algorithm identifier signs; `None` when it can't be read.
fn signature_algorithm(
    identifier: &[u8],
    rsa_bits: impl FnOnce() -> Option<usize>,
) -> Option<Result<&'static SignatureAlgorithm>> {
    let names = der::elements(identifier)?;
    Some(match names.as_slice() {
        [kind, curve, ..] if kind.value == OID_EC => match curve.value {
            OID_P256 => Ok(&rcgen::PKCS_ECDSA_P256_SHA256),
            OID_P384 => Ok(&rcgen::PKCS_ECDSA_P384_SHA384),
            OID_P521 => Err(Error::EcdsaParameters("; P-521 is not in this build")),
            _ => Err(Error::EcdsaParameters("")),
        },
        [kind, ..] if kind.value == OID_RSA => match rsa_bits()? {
            0..2048 => Err(Error::RsaParameters),
            2048..3072 => Ok(&rcgen::PKCS_RSA_SHA256),
            3072..4096 => Ok(&rcgen::PKCS_RSA_SHA384),
            _ => Ok(&rcgen::PKCS_RSA_SHA512),
        },
        _ => Err(Error::KeyAlgorithm),
    })
}

/// Bits of the modulus in a sequence that has it at this place: `RSAPrivateKey ::= { version, modulus, … }` or
/// `RSAPublicKey ::= { modulus, exponent }`.
fn rsa_bits(key: &[u8], place: usize) -> Option<usize> {
    let parts = der::sequence(key)?;
    let modulus = parts.get(place)?.value;
    let start = modulus.iter().position(|byte| *byte != 0)?;
    Some((modulus.len() - start) * 8 - modulus[start].leading_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_both_of_its_forms() {
        let key = PrivateKey::generate().unwrap();
        let (pkcs8, sec1) = (key.to_pkcs8_pem(), key.to_root_pem().unwrap());
        assert!(sec1.expose().starts_with(b"-----BEGIN EC PRIVATE KEY-----\n"));
        for text in [pkcs8, sec1] {
            let read = PrivateKey::from_pem(text.expose()).unwrap();
            assert_eq!(read.public_key(), key.public_key());
            assert_eq!(read.to_root_pem().unwrap(), key.to_root_pem().unwrap());
        }
    }

    #[test]
    fn what_is_no_key_is_refused_with_the_reason() {
        let check = |text: &[u8], why: &str| {
            let error = PrivateKey::from_pem(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        check(b"hello", "malformed private key");
        check(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not PKCS#8");
        check(b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", "not SEC1");
        check(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no private key");
    }

    #[test]
    fn keys_are_not_printed() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey([hidden])");
        assert!(format!("{:?}", key.to_pkcs8_pem()).contains("secret bytes"));
    }
}
