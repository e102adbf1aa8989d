//! Certificates as this contract reads them: PEM bundles, names, validity, who signed whom.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{Error, Result};

/// Label of certificates in PEM.
pub(crate) const CERTIFICATE_LABEL: &str = "CERTIFICATE";

/// LF line ends, whatever the platform.
pub(crate) const PEM_CONFIG: pem::EncodeConfig =
    pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);

/// Longest chain that is looked at: the search for a way to a root must not be made long by a peer.
const MAXIMUM_CHAIN: usize = 8;

/// A parsed X.509 certificate with what decisions need of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    der: CertificateDer<'static>,
    subject: Vec<u8>,
    issuer: Vec<u8>,
    public_key: Vec<u8>,
    common_name: Option<String>,
    organization: Option<String>,
    units: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
    is_ca: bool,
    signature_algorithm: String,
}

impl Certificate {
    /// Reads one certificate in DER.
    ///
    /// # Errors
    /// [`Error::CertificateDecode`].
    pub fn from_der(der: &[u8]) -> Result<Self> {
        let undecodable = |why: &str| Error::CertificateDecode(why.to_owned());
        let (rest, x509) = X509Certificate::from_der(der).map_err(|_| undecodable("not X.509"))?;
        if !rest.is_empty() {
            return Err(undecodable("bytes follow the certificate"));
        }
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().map(str::to_owned).map_err(|_| undecodable("a name that is no text"))
        };
        let subject = x509.subject();
        Ok(Self {
            common_name: subject.iter_common_name().next().map(text).transpose()?,
            organization: subject.iter_organization().next().map(text).transpose()?,
            units: subject.iter_organizational_unit().map(text).collect::<Result<_>>()?,
            subject: subject.as_raw().to_vec(),
            issuer: x509.issuer().as_raw().to_vec(),
            public_key: x509.public_key().raw.to_vec(),
            not_before: system_time(x509.validity().not_before.timestamp()),
            not_after: system_time(x509.validity().not_after.timestamp()),
            is_ca: matches!(x509.basic_constraints(), Ok(Some(constraints)) if constraints.value.ca),
            signature_algorithm: x509.signature_algorithm.algorithm.to_id_string(),
            der: CertificateDer::from(der.to_vec()),
        })
    }

    /// Reads every certificate of a PEM bundle. Text around the blocks is skipped, except after the last one:
    /// what follows it is taken for a damaged certificate.
    ///
    /// # Errors
    /// [`Error::CertificateDecode`]; an empty bundle is no error.
    pub fn from_pem_bundle(bundle: &[u8]) -> Result<Vec<Self>> {
        let text =
            std::str::from_utf8(bundle).map_err(|_| Error::CertificateDecode("not PEM text".into()))?.trim();
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let blocks = pem::parse_many(text).map_err(|e| Error::CertificateDecode(e.to_string()))?;
        if blocks.is_empty() {
            return Err(Error::CertificateDecode("no PEM block found".into()));
        }
        let end = text.rfind("-----END ").map_or("", |at| &text[at..]);
        if end.lines().count() != 1 || !end.ends_with("-----") {
            return Err(Error::CertificateDecode("text follows the last certificate".into()));
        }
        blocks
            .iter()
            .map(|block| match block.tag() {
                CERTIFICATE_LABEL => Self::from_der(block.contents()),
                other => Err(Error::CertificateDecode(format!("a block {other:?} among certificates"))),
            })
            .collect()
    }

    /// The DER bytes.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Normalized PEM.
    pub fn to_pem(&self) -> String {
        pem::encode_config(&pem::Pem::new(CERTIFICATE_LABEL, self.der.to_vec()), PEM_CONFIG)
    }

    /// Raw DER of the subject.
    pub fn subject(&self) -> &[u8] {
        &self.subject
    }

    /// Raw DER of the subject's public key with its algorithm (SPKI).
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// First CN of the subject.
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// First O of the subject.
    pub fn organization(&self) -> Option<&str> {
        self.organization.as_deref()
    }

    /// Every OU of the subject.
    pub fn units(&self) -> &[String] {
        &self.units
    }

    /// Start of validity.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of validity, included.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether its basic constraints let it sign certificates.
    pub fn is_ca(&self) -> bool {
        self.is_ca
    }

    /// Whether a time lies within its validity.
    pub fn is_valid_at(&self, time: SystemTime) -> bool {
        self.not_before <= time && time <= self.not_after
    }

    /// Whether the key of `issuer` signed this certificate, under its name. Names alone say nothing: every generated
    /// root is called `swarm-ca`.
    pub fn is_signed_by(&self, issuer: &Certificate) -> bool {
        self.issuer == issuer.subject && {
            let parsed = (X509Certificate::from_der(&self.der), X509Certificate::from_der(&issuer.der));
            matches!(parsed, (Ok((_, cert)), Ok((_, issuer)))
                if cert.verify_signature(Some(issuer.public_key())).is_ok())
        }
    }

    /// Checks validity at a time; `index` is the place in the bundle, from 0.
    pub(crate) fn check_validity(&self, index: usize, now: SystemTime, allow_expired: bool) -> Result<()> {
        let (index, name) = (index + 1, self.display_name());
        if now < self.not_before {
            return Err(Error::NotYetValid {
                index,
                name,
                from: rfc3339(self.not_before),
                now: rfc3339(now),
            });
        }
        if now > self.not_after && !allow_expired {
            return Err(Error::Expired { index, name, until: rfc3339(self.not_after), now: rfc3339(now) });
        }
        Ok(())
    }

    /// Refuses SHA-1, RSA-PSS, DSA, Ed25519 and whatever else a peer would not accept in a CA.
    pub(crate) fn check_algorithm(&self) -> Result<()> {
        const RSA_AND_ECDSA_WITH_SHA2: [&str; 6] = [
            "1.2.840.113549.1.1.11",
            "1.2.840.113549.1.1.12",
            "1.2.840.113549.1.1.13",
            "1.2.840.10045.4.3.2",
            "1.2.840.10045.4.3.3",
            "1.2.840.10045.4.3.4",
        ];
        match RSA_AND_ECDSA_WITH_SHA2.contains(&self.signature_algorithm.as_str()) {
            true => Ok(()),
            false => Err(Error::SignatureAlgorithm(self.signature_algorithm.clone())),
        }
    }

    pub(crate) fn display_name(&self) -> String {
        self.common_name.clone().unwrap_or_else(|| "no name".into())
    }

    /// What nodes report of the CA that issued their certificate.
    pub fn issuer_info(&self) -> IssuerInfo {
        IssuerInfo { subject: self.subject.clone(), public_key: self.public_key.clone() }
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("cn", &self.common_name)
            .field("ou", &self.units)
            .field("o", &self.organization)
            .field("not_after", &rfc3339(self.not_after))
            .finish_non_exhaustive()
    }
}

/// Who issued a certificate, byte for byte: root rotation has reached a node when this is the new root's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerInfo {
    /// Raw DER of the issuer's subject.
    pub subject: Vec<u8>,
    /// Raw DER of the issuer's public key (SPKI).
    pub public_key: Vec<u8>,
}

/// A chain that leads to a root.
#[derive(Debug, Clone)]
pub struct VerifiedChain {
    /// The bundle, leaf first, as it was given.
    pub certificates: Vec<Certificate>,
    /// The certificate above the leaf on the way to the root.
    pub issuer: IssuerInfo,
}

impl VerifiedChain {
    /// The first certificate.
    pub fn leaf(&self) -> &Certificate {
        &self.certificates[0]
    }
}

/// Checks a PEM bundle, leaf first: each certificate within its validity, each signed by the next, and the leaf leading
/// to one of the roots by way of the others. With `allow_expired`, ends of validity are not enforced as long as there
/// was a moment at which everything on the way, the root included, was valid.
///
/// # Errors
/// Undecodable, empty, not yet valid, expired, not a chain, or of an unknown authority.
pub fn verify_chain(
    bundle: &[u8],
    roots: &[Certificate],
    now: SystemTime,
    allow_expired: bool,
) -> Result<VerifiedChain> {
    let certificates = Certificate::from_pem_bundle(bundle)?;
    let Some(leaf) = certificates.first() else { return Err(Error::EmptyChain) };
    if certificates.len() > MAXIMUM_CHAIN {
        return Err(Error::BrokenChain(format!("{} certificates in one chain", certificates.len())));
    }
    for (index, certificate) in certificates.iter().enumerate() {
        certificate.check_validity(index, now, allow_expired)?;
        if let Some(issuer) = certificates.get(index + 1)
            && !certificate.is_signed_by(issuer)
        {
            return Err(Error::BrokenChain(format!(
                "{} was not signed by {}, which follows it",
                certificate.display_name(),
                issuer.display_name()
            )));
        }
    }
    let intermediates = &certificates[1..];
    let path_at = |time| path_to_root(leaf, intermediates, roots, time, certificates.len());
    let path = if allow_expired {
        instants(&certificates, now).into_iter().find_map(path_at)
    } else {
        path_at(Some(now))
    };
    let Some(path) = path else {
        return Err(match path_at(None) {
            None => Error::UnknownAuthority(leaf.display_name()),
            Some(_) if allow_expired => Error::NoTimeSpan,
            Some(path) => path
                .iter()
                .enumerate()
                .find_map(|(index, c)| c.check_validity(index, now, false).err())
                .unwrap_or(Error::NoTimeSpan),
        });
    };
    let issuer = path.get(1).unwrap_or(&leaf).issuer_info();
    Ok(VerifiedChain { certificates, issuer })
}

/// Moments to judge an expired chain at: now, then each end of validity, from the leaf's to strictly earlier ones.
fn instants(certificates: &[Certificate], now: SystemTime) -> Vec<Option<SystemTime>> {
    let mut instants = vec![Some(now)];
    let mut earliest = None;
    for certificate in certificates {
        if earliest.is_none_or(|time| certificate.not_after < time) {
            earliest = Some(certificate.not_after);
            instants.push(earliest);
        }
    }
    instants
}

/// The way from a certificate to a root, both included; `time` is when all of it must be valid, if at all. Several
/// certificates with one name are tried in turn: signatures decide, roots before intermediates.
fn path_to_root<'a>(
    from: &'a Certificate,
    intermediates: &'a [Certificate],
    roots: &'a [Certificate],
    time: Option<SystemTime>,
    depth: usize,
) -> Option<Vec<&'a Certificate>> {
    let usable = |c: &Certificate| time.is_none_or(|time| c.is_valid_at(time));
    if !usable(from) {
        return None;
    }
    if roots.contains(from) {
        return Some(vec![from]);
    }
    if let Some(root) = roots.iter().find(|root| usable(root) && root.is_ca && from.is_signed_by(root)) {
        return Some(vec![from, root]);
    }
    let depth = depth.checked_sub(1)?;
    intermediates.iter().filter(|c| c.is_ca && *c != from && from.is_signed_by(c)).find_map(|next| {
        let mut path = path_to_root(next, intermediates, roots, time, depth)?;
        path.insert(0, from);
        Some(path)
    })
}

/// The same certificates in one form: only their blocks, no headers, LF line ends, 64 columns. What is no PEM at all
/// becomes nothing.
pub fn normalize_pem(bundle: &[u8]) -> Vec<u8> {
    let blocks = pem::parse_many(bundle).unwrap_or_default();
    blocks
        .into_iter()
        .map(|block| {
            pem::encode_config(&pem::Pem::new(block.tag().to_owned(), block.into_contents()), PEM_CONFIG)
        })
        .collect::<String>()
        .into_bytes()
}

fn system_time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time).replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_else(|_| time.unix_timestamp().to_string())
}
