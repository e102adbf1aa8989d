//! Who a node is, and what keeps its secrets: certificates, join tokens, key files, TLS, encryption at rest.
//!
//! - [`RootCa`]: the trust bundle of a cluster, and on a signing manager its key. [`Credentials`]: a node's own
//!   certificate and key. [`Certificate`] and [`verify_chain`]: what both are checked with.
//! - [`JoinToken`] and [`UnlockKey`]: what operators copy and paste.
//! - [`KeyStore`]: the files of both on disk, with the key-encrypting key and the headers that carry the
//!   data-encryption keys. [`atomic`]: how files are replaced.
//! - [`Dek`] and [`Sealer`]: sealed records of the raft log and its snapshots.
//! - [`passphrase`]: keys out of what people remember.
//! - [`SecurityContext`]: the TLS configurations in use, swapped while connections are being made.
//!   [`TlsIncoming`] accepts nodes with them and [`LocalIncoming`] local clients, [`Dialer`] dials managers.
//!   [`PeerIdentity`] is who is on the other side.
//! - [`Clock`]: the time that decides about validity.
//!
//! Types that hold secrets print no byte of them, and wipe them when dropped. Nothing here knows the store.

pub mod atomic;
mod certificate;
mod clock;
mod credentials;
mod csr;
mod dek_state;
mod der;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod identity;
mod key;
mod key_block;
mod key_store;
pub mod passphrase;
mod root;
mod seal;
mod secret;
pub mod tls;
mod token;
mod unlock_key;

pub use certificate::{Certificate, IssuerInfo, VerifiedChain, normalize_pem, verify_chain};
pub use clock::Clock;
pub use credentials::Credentials;
pub use csr::create_csr;
pub use dek_state::DekState;
pub use error::{Error, Result};
pub use identity::PeerIdentity;
pub use key::PrivateKey;
pub use key_store::{KekChange, KekUpdate, KeyStore, StoredPair};
pub use root::{
    DEFAULT_NODE_EXPIRY, MINIMUM_NODE_EXPIRY, NodeSubject, ROOT_COMMON_NAME, RootCa, Signer, unit_of,
};
pub use seal::{Dek, SealError, Sealer};
pub use secret::SecretBytes;
pub use tls::{
    ConnectionInfo, DialError, Dialer, LocalConnectionInfo, LocalIncoming, SecurityContext, ServerRole,
    TlsFailure, TlsIncoming, connect_local_tls, endpoint, innermost, reason, sources, was_cut_short,
};
pub use token::{JoinToken, RootDigest, TokenError, tokens_equal};
pub use unlock_key::{Kek, UnlockKey};

#[cfg(test)]
mod testing;
