//! What can go wrong, each with what would be right.

use std::io;
use std::path::PathBuf;

use crate::{SealError, TokenError};

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that this crate refuses. Texts that the contract's users match on are kept word for word.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Certificates and roots.
    /// Not PEM, or not a certificate inside.
    #[error("Failed to decode certificate: {0}")]
    CertificateDecode(String),
    /// A bundle without a certificate.
    #[error("no valid root CA certificates found")]
    NoRootCertificates,
    /// A signing certificate was announced but none is there.
    #[error("no valid signing CA certificates found")]
    NoSigningCertificates,
    /// An algorithm that nodes of this contract do not accept in a CA.
    #[error(
        "unsupported signature algorithm: {0}; SHA-256, SHA-384 or SHA-512 with RSA (PKCS#1 v1.5) or ECDSA are supported"
    )]
    SignatureAlgorithm(String),
    /// Too early for a certificate.
    #[error(
        "certificate ({index} - {name}) not valid before {from}, and it is currently {now}: not yet valid"
    )]
    NotYetValid {
        /// Place in its bundle, from 1.
        index: usize,
        /// Common name.
        name: String,
        /// Start of validity.
        from: String,
        /// The time it was judged by.
        now: String,
    },
    /// Too late for a certificate.
    #[error("certificate ({index} - {name}) not valid after {until}, and it is currently {now}: expired")]
    Expired {
        /// Place in its bundle, from 1.
        index: usize,
        /// Common name.
        name: String,
        /// End of validity.
        until: String,
        /// The time it was judged by.
        now: String,
    },
    /// A chain with nothing in it.
    #[error("no certificates to validate")]
    EmptyChain,
    /// Neighbours in a chain that do not belong together.
    #[error("certificates do not form a chain: {0}")]
    BrokenChain(String),
    /// A chain that leads to no root of this cluster.
    #[error(
        "certificate signed by unknown authority: {0} does not lead to a root of this cluster (a certificate of another swarm?)"
    )]
    UnknownAuthority(String),
    /// Validities that never overlap.
    #[error("there is no time span for which all of the certificates, including a root, are valid")]
    NoTimeSpan,
    /// Half of a signer.
    #[error("must provide both a signing key and a signing cert, or neither")]
    HalfSigner,
    /// A signer that may not sign.
    #[error("certificate not a CA: {0} may not sign certificates")]
    NotCa(String),
    /// Intermediates that do not fit the signer.
    #[error("the first intermediate must have the same subject and public key as the signing cert")]
    IntermediateMismatch,
    /// Nothing to sign with.
    #[error("no valid signer found")]
    NoSigner,

    // Keys.
    /// Not a private key.
    #[error("malformed private key: {0}")]
    MalformedKey(&'static str),
    /// RSA below what is accepted.
    #[error("unsupported RSA key parameters: at least 2048 bits are needed")]
    RsaParameters,
    /// A curve that is not accepted.
    #[error("unsupported ECDSA key parameters: P-256 and P-384 are supported{0}")]
    EcdsaParameters(&'static str),
    /// Neither RSA nor ECDSA.
    #[error("unknown or unsupported certificate public key algorithm")]
    KeyAlgorithm,
    /// A key of another certificate.
    #[error("certificate key mismatch: the key does not belong to the certificate")]
    KeyMismatch,
    /// A step of the crypto library failed.
    #[error("cryptographic operation failed: {0}")]
    Crypto(String),
    /// A certificate request that can't be used.
    #[error("CSR Decode failed: {0}")]
    Csr(String),

    // Identity.
    /// A certificate without OU.
    #[error("no OU found in certificate subject")]
    NoUnit,
    /// A certificate without O.
    #[error("no organization found in certificate subject")]
    NoOrganization,
    /// A certificate without CN.
    #[error("no valid subject names found for TLS configuration")]
    NoCommonName,
    /// A certificate of another cluster.
    #[error("certificate is of organization {found}, expecting {expected}: it belongs to another swarm")]
    WrongOrganization {
        /// Ours.
        expected: String,
        /// Theirs.
        found: String,
    },
    /// A root that the own certificate does not lead to.
    #[error("new root CA does not match existing TLS credentials: {0}")]
    RootMismatch(Box<Error>),

    // Tokens and unlock keys.
    /// Not a join token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A root that is not the token's.
    #[error(
        "remote CA does not match fingerprint. Expected: {expected}; the address answered with a root of digest {found}, so it is another swarm's, or the token is outdated"
    )]
    Fingerprint {
        /// Hexadecimal digest in the token.
        expected: String,
        /// Hexadecimal digest of what came.
        found: String,
    },
    /// Not an unlock key.
    #[error("invalid key string: {0}")]
    UnlockKey(&'static str),
    /// The key file is locked and no or a wrong key was given.
    #[error("node is locked, and needs a valid unlock key")]
    Locked,
    /// Another key under a known version.
    #[error("the unlock key of version {0} is another one than was received before under this version")]
    KekConflict(u64),

    // Files.
    /// A file that is needed and missing.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// Any other failure of the file system.
    #[error("{path}: {source}")]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Headers of the key file.
    #[error("unable to read TLS key headers: {0}")]
    Headers(String),
    /// Headers that contradict each other.
    #[error("there is a pending DEK, but no current DEK")]
    PendingWithoutCurrent,
    /// An encrypted key in a form that can't be read. Texts begin with `pkcs8:` where the original's do.
    #[error("{0}")]
    EncryptedKey(&'static str),
    /// A record that can't be opened.
    #[error(transparent)]
    Seal(#[from] SealError),

    // TLS.
    /// A TLS configuration could not be made.
    #[error("TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
    /// An address that is none.
    #[error("invalid address {0:?}: expected host:port")]
    Address(String),
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::Missing(path),
            _ => Self::Io { path, source },
        }
    }

    /// Whether a file is missing, rather than unusable.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }

    /// Whether a certificate is past its end.
    pub fn is_expired(&self) -> bool {
        matches!(self, Self::Expired { .. })
    }
}

impl From<rcgen::Error> for Error {
    fn from(error: rcgen::Error) -> Self {
        Self::Crypto(error.to_string())
    }
}
