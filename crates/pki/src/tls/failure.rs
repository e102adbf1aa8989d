//! Why a TLS connection was refused, in words that help.

use std::error::Error as StdError;
use std::io;
use std::io::ErrorKind;

use rustls::{AlertDescription, CertificateError, Error as TlsError};

/// The reason at the bottom of an error: gRPC says no more than "transport error".
pub fn innermost(error: &(dyn StdError + 'static)) -> String {
    // rustls says so with an address of its own documentation.
    if was_cut_short(error) {
        return "the connection was closed".to_owned();
    }
    sources(error).last().map(ToString::to_string).unwrap_or_default()
}

/// A connection was closed or reset in the middle, and not as TLS closes one. That is what the kernel does for a process that
/// has ended; one that goes on says so, and one that is out of reach says nothing.
pub fn was_cut_short(error: &(dyn StdError + 'static)) -> bool {
    sources(error).any(|error| {
        let io = error.downcast_ref().or_else(|| error.downcast_ref::<h2::Error>()?.get_io());
        io.is_some_and(|io| matches!(io.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset))
    })
}

/// An error and what caused it, one after the other.
pub fn sources<'e>(
    error: &'e (dyn StdError + 'static),
) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'e (dyn StdError + 'static)| (*error).source())
}

/// Why a call failed: what the other side said, or else what became of the connection.
pub fn reason(status: &tonic::Status) -> String {
    status.source().map_or_else(|| status.message().to_owned(), innermost)
}

/// A refused handshake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFailure {
    /// The peer's certificate leads to no root of ours.
    #[error(
        "the other side's certificate was not signed by this swarm's root CA: it belongs to another swarm, or to none"
    )]
    UnknownAuthority,
    /// The peer's certificate is past its end.
    #[error("the other side's certificate has expired (or this host's clock is ahead)")]
    Expired,
    /// The peer's certificate does not count yet.
    #[error("the other side's certificate is not valid yet (or this host's clock is behind)")]
    NotYetValid,
    /// The server is not what was dialed for.
    #[error("the other side's certificate is not that of a manager")]
    WrongRole,
    /// The peer refused our certificate, or lack of one.
    #[error("the other side refused this node's certificate: {0}")]
    Refused(&'static str),
    /// What answers is not TLS.
    #[error("the other side does not speak TLS")]
    NotTls,
    /// Anything else.
    #[error("TLS: {0}")]
    Other(String),
}

impl TlsFailure {
    /// The TLS failure at the bottom of an error, if one is there: gRPC hides it behind "transport error".
    pub fn find(error: &(dyn StdError + 'static)) -> Option<Self> {
        sources(error).find_map(|error| {
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let inner = inner.map(|inner| inner as &(dyn StdError + 'static));
            inner
                .and_then(|inner| Self::find(inner).or_else(|| Self::from_text(inner)))
                .or_else(|| error.downcast_ref::<TlsError>().map(Self::from))
                .or_else(|| error.downcast_ref::<Self>().cloned())
        })
    }
}

impl TlsFailure {
    /// The HTTP/2 library keeps only the text of an error that ends its connection.
    fn from_text(error: &(dyn StdError + 'static)) -> Option<Self> {
        const ALERTS: [AlertDescription; 8] = [
            AlertDescription::UnknownCA,
            AlertDescription::DecryptError,
            AlertDescription::CertificateExpired,
            AlertDescription::CertificateRequired,
            AlertDescription::BadCertificate,
            AlertDescription::UnsupportedCertificate,
            AlertDescription::CertificateUnknown,
            AlertDescription::CertificateRevoked,
        ];
        let text = error.to_string();
        let mut alerts = ALERTS.into_iter().map(TlsError::AlertReceived);
        alerts.find(|alert| alert.to_string() == text).map(|alert| Self::from(&alert))
    }
}

impl From<&TlsError> for TlsFailure {
    fn from(error: &TlsError) -> Self {
        match error {
            TlsError::InvalidCertificate(reason) => match reason {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownAuthority,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Self::WrongRole
                }
                other => Self::Other(format!("invalid certificate: {other}")),
            },
            TlsError::AlertReceived(alert) => match alert {
                AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                    Self::Refused("it was signed by a root CA that the other side does not know")
                }
                AlertDescription::CertificateExpired => Self::Refused("it has expired"),
                AlertDescription::CertificateRequired => Self::Refused("none was given"),
                AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRevoked => Self::Refused("it is not valid there"),
                other => Self::Other(format!("alert {other:?}")),
            },
            TlsError::InvalidMessage(_) => Self::NotTls,
            other => Self::Other(other.to_string()),
        }
    }
}
