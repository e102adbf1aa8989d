//! The root of trust of a cluster, and signing with it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::Rng as _;
use rcgen::string::PrintableString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SigningKey as _,
};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rustls::RootCertStore;
use swarm_api::authorization::{CA_OU, MANAGER_OU, WORKER_OU};
use swarm_api::v1::NodeRole;

use crate::certificate::{CERTIFICATE_LABEL, PEM_CONFIG};
use crate::{
    Certificate, Error, PrivateKey, Result, RootDigest, SecretBytes, VerifiedChain, csr, der, key,
    normalize_pem, verify_chain,
};

/// Common name of generated roots.
pub const ROOT_COMMON_NAME: &str = "swarm-ca";
/// Life of node certificates when nothing else is set: 90 days.
pub const DEFAULT_NODE_EXPIRY: Duration = Duration::from_secs(2160 * 3600);
/// Shortest life of node certificates; anything below means [`DEFAULT_NODE_EXPIRY`].
pub const MINIMUM_NODE_EXPIRY: Duration = Duration::from_secs(3600);

const ROOT_VALIDITY: Duration = Duration::from_secs(630_720_000);
const ROOT_BACKDATE: Duration = Duration::from_secs(5 * 60);
/// So that nodes whose clocks are behind take a fresh certificate.
const NODE_BACKDATE: Duration = Duration::from_secs(3600);

/// Whom a node certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSubject {
    /// Goes into CN.
    pub node_id: String,
    /// Goes into OU.
    pub role: NodeRole,
    /// The cluster; goes into O.
    pub organization: String,
}

/// Organizational unit of a role.
pub fn unit_of(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => WORKER_OU,
        NodeRole::Manager => MANAGER_OU,
    }
}

/// The trust bundle of a cluster: which certificates nodes believe in, with the intermediates and the key to sign
/// with where they are at hand. Cheap to clone.
#[derive(Clone)]
pub struct RootCa {
    bundle: Arc<Bundle>,
    intermediates: Arc<[u8]>,
    signer: Option<Arc<Signer>>,
}

struct Bundle {
    pem: Vec<u8>,
    digest: RootDigest,
    certificates: Vec<Certificate>,
}

/// One certificate and its key, which sign.
pub struct Signer {
    certificate: Certificate,
    certificate_pem: Vec<u8>,
    key_pem: SecretBytes,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    /// The first signing certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The signing certificates, in PEM, as given.
    pub fn certificate_pem(&self) -> &[u8] {
        &self.certificate_pem
    }

    /// The key in PEM, as given: this is what the cluster object keeps.
    pub fn key_pem(&self) -> &SecretBytes {
        &self.key_pem
    }
}

impl RootCa {
    /// A new self-signed root with its key, valid for 20 years.
    ///
    /// # Errors
    /// When the key can't be made.
    pub fn create(now: SystemTime) -> Result<Self> {
        Self::create_named(ROOT_COMMON_NAME, now)
    }

    /// As [`RootCa::create`], under another name.
    ///
    /// # Errors
    /// When the key can't be made, or the name has characters that certificates can't hold.
    pub fn create_named(common_name: &str, now: SystemTime) -> Result<Self> {
        let key = PrivateKey::generate()?;
        let pair = key.key_pair()?;
        let not_before = round_to_minute(now) - ROOT_BACKDATE;
        let mut params = base_params(&pair, not_before, not_before + ROOT_VALIDITY);
        params.distinguished_name.push(DnType::CommonName, printable(common_name));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&pair)?;
        let pem = encode_certificate(certificate.der());
        Self::load(&pem, Some((&pem, key.to_root_pem()?.expose())), &[], now)
    }

    /// A bundle that is only trusted: what workers and followers have.
    ///
    /// # Errors
    /// When a certificate of the bundle can't be read or used.
    pub fn trust_only(bundle: &[u8], now: SystemTime) -> Result<Self> {
        Self::load(bundle, None, &[], now)
    }

    /// A bundle with what signs under it: the signing certificates and the key of the first of them, and the
    /// intermediates that lead from that one to the bundle (empty when it is in there itself). Everything in PEM.
    ///
    /// # Errors
    /// The first thing found wrong, in the order of the contract's checks.
    pub fn load(
        bundle: &[u8],
        signer: Option<(&[u8], &[u8])>,
        intermediates: &[u8],
        now: SystemTime,
    ) -> Result<Self> {
        let certificates = Certificate::from_pem_bundle(bundle)?;
        if certificates.is_empty() {
            return Err(Error::NoRootCertificates);
        }
        for (index, certificate) in certificates.iter().enumerate() {
            certificate.check_algorithm()?;
            key::check_public_key(certificate.public_key())?;
            certificate.check_validity(index, now, false)?;
        }
        let first_intermediate = match intermediates {
            [] => None,
            chain => Some(verify_chain(chain, &certificates, now, false)?.leaf().clone()),
        };
        let signer = match signer {
            None => None,
            Some((certs, key)) if certs.is_empty() != key.is_empty() => return Err(Error::HalfSigner),
            Some(([], _)) => None,
            Some((certs, key)) => Some(Arc::new(load_signer(certs, key, &certificates, intermediates, now)?)),
        };
        if let (Some(signer), Some(first)) = (&signer, &first_intermediate)
            && first.issuer_info() != signer.certificate.issuer_info()
        {
            return Err(Error::IntermediateMismatch);
        }
        let bundle = Bundle { pem: bundle.to_vec(), digest: RootDigest::of(bundle), certificates };
        Ok(Self { bundle: Arc::new(bundle), intermediates: intermediates.into(), signer })
    }

    /// The bundle, byte for byte as given: the digest in join tokens is of these bytes.
    pub fn pem(&self) -> &[u8] {
        &self.bundle.pem
    }

    /// Digest of [`RootCa::pem`].
    pub fn digest(&self) -> RootDigest {
        self.bundle.digest
    }

    /// The certificates of the bundle.
    pub fn certificates(&self) -> &[Certificate] {
        &self.bundle.certificates
    }

    /// PEM of the intermediates that are appended to issued certificates; mostly empty.
    pub fn intermediates(&self) -> &[u8] {
        &self.intermediates
    }

    /// What signs, where it is at hand.
    pub fn signer(&self) -> Option<&Signer> {
        self.signer.as_deref()
    }

    /// The same trust without the means to sign.
    pub fn without_signer(&self) -> Self {
        Self { signer: None, ..self.clone() }
    }

    /// Whether two roots trust the same bundle.
    pub fn same_bundle(&self, other: &Self) -> bool {
        self.bundle.pem == other.bundle.pem
    }

    /// Checks a chain in PEM, leaf first, against this bundle; see [`verify_chain`].
    ///
    /// # Errors
    /// As of [`verify_chain`].
    pub fn verify(&self, chain: &[u8], now: SystemTime, allow_expired: bool) -> Result<VerifiedChain> {
        verify_chain(chain, self.certificates(), now, allow_expired)
    }

    /// Issues a certificate for the key in a request: normalized PEM of it and of the intermediates. Names come from
    /// `subject` alone.
    ///
    /// # Errors
    /// [`Error::NoSigner`] without a key; [`Error::Csr`] for a request that can't be used.
    pub fn sign_csr(
        &self,
        request: &[u8],
        subject: &NodeSubject,
        expiry: Duration,
        now: SystemTime,
    ) -> Result<Vec<u8>> {
        let signer = self.signer.as_deref().ok_or(Error::NoSigner)?;
        let public_key = csr::public_key_of(request)?;
        let expiry = if expiry < MINIMUM_NODE_EXPIRY { DEFAULT_NODE_EXPIRY } else { expiry };
        let now = round_to_minute(now);
        let mut params = base_params(&public_key, now - NODE_BACKDATE, now + expiry);
        let unit = unit_of(subject.role);
        for (kind, value) in [
            (DnType::OrganizationName, subject.organization.as_str()),
            (DnType::OrganizationalUnitName, unit),
            (DnType::CommonName, subject.node_id.as_str()),
        ] {
            params.distinguished_name.push(kind, printable(value));
        }
        let mut names = vec![unit, subject.node_id.as_str()];
        if subject.role == NodeRole::Manager {
            names.push(CA_OU);
        }
        params.subject_alt_names =
            names.into_iter().map(|name| Ok(SanType::DnsName(name.try_into()?))).collect::<Result<_>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let issued = params.signed_by(&public_key, &signer.issuer)?;
        let certificate = Certificate::from_der(issued.der())?;
        if !certificate.is_signed_by(&signer.certificate) {
            return Err(Error::Crypto("the issued certificate does not verify under its signer".into()));
        }
        let mut chain = certificate.to_pem().into_bytes();
        chain.extend_from_slice(&normalize_pem(&self.intermediates));
        Ok(chain)
    }

    /// Re-issues another root's certificate under this one: same serial, subject, validity, extensions and key, so that
    /// what the other root signs is believed by nodes that know only this one. Normalized PEM.
    ///
    /// # Errors
    /// [`Error::NoSigner`]; [`Error::NotCa`] when the certificate may not sign.
    pub fn cross_sign(&self, other: &[u8]) -> Result<Vec<u8>> {
        let signer = self.signer.as_deref().ok_or(Error::NoSigner)?;
        let others = Certificate::from_pem_bundle(other)?;
        let other = others.first().ok_or(Error::NoSigningCertificates)?;
        if !other.is_ca() {
            return Err(Error::NotCa(other.display_name()));
        }
        let undecodable = || Error::CertificateDecode("not X.509".into());
        let outer = |certificate: &Certificate| -> Option<(Vec<u8>, Vec<u8>)> {
            let parts = der::sequence(certificate.der())?;
            Some((parts.first()?.value.to_vec(), parts.get(1)?.raw.to_vec()))
        };
        let (to_be_signed, _) = outer(other).ok_or_else(undecodable)?;
        // version, serial, algorithm, issuer, the rest: only algorithm and issuer change.
        let fields = der::elements(&to_be_signed).ok_or_else(undecodable)?;
        let [version, serial, _, _, rest @ ..] = fields.as_slice() else { return Err(undecodable()) };
        // The algorithm as this signer writes it: taken from a certificate it makes.
        let probe = CertificateParams::default().signed_by(signer.issuer.key(), &signer.issuer)?;
        let (_, algorithm) = outer(&Certificate::from_der(probe.der())?).ok_or_else(undecodable)?;
        let mut parts = vec![version.raw, serial.raw, &algorithm, signer.certificate.subject()];
        parts.extend(rest.iter().map(|field| field.raw));
        let to_be_signed = der::element(der::SEQUENCE, &parts);
        let signature = signer.issuer.key().sign(&to_be_signed)?;
        let bits = der::element(der::BIT_STRING, &[&[0], &signature]);
        let certificate = der::element(der::SEQUENCE, &[&to_be_signed, &algorithm, &bits]);
        let certificate = Certificate::from_der(&certificate)?;
        match certificate.is_signed_by(&signer.certificate) {
            true => Ok(certificate.to_pem().into_bytes()),
            false => Err(Error::Crypto("the cross-signed certificate does not verify".into())),
        }
    }

    /// The bundle as rustls wants it.
    pub(crate) fn trust_store(&self) -> Result<Arc<RootCertStore>> {
        let mut store = RootCertStore::empty();
        for certificate in self.certificates() {
            store.add(certificate.der().clone())?;
        }
        Ok(Arc::new(store))
    }
}

impl fmt::Debug for RootCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootCa")
            .field("digest", &self.bundle.digest)
            .field("certificates", &self.bundle.certificates)
            .field("can_sign", &self.signer.is_some())
            .finish_non_exhaustive()
    }
}

fn load_signer(
    certs: &[u8],
    key: &[u8],
    roots: &[Certificate],
    intermediates: &[u8],
    now: SystemTime,
) -> Result<Signer> {
    let parsed = Certificate::from_pem_bundle(certs)?;
    let certificate = parsed.first().ok_or(Error::NoSigningCertificates)?.clone();
    for certificate in &parsed {
        certificate.check_algorithm()?;
    }
    if !certificate.is_ca() {
        return Err(Error::NotCa(certificate.display_name()));
    }
    // The first intermediate is the signing certificate's twin, so the way up may be through either.
    if verify_chain(certs, roots, now, false).is_err() {
        let through: Vec<Certificate> = Certificate::from_pem_bundle(intermediates)?;
        let twin = through.first().is_some_and(|first| first.issuer_info() == certificate.issuer_info());
        if !twin {
            let mut chain = certs.to_vec();
            chain.push(b'\n');
            chain.extend_from_slice(intermediates);
            verify_chain(&chain, roots, now, false)?;
        }
    }
    let private = PrivateKey::from_pem(key)?;
    if !private.belongs_to(&certificate) {
        return Err(Error::KeyMismatch);
    }
    Ok(Signer {
        issuer: Issuer::from_ca_cert_der(certificate.der(), private.key_pair()?)?,
        certificate,
        certificate_pem: certs.to_vec(),
        key_pem: SecretBytes::new(key.to_vec()),
    })
}

fn base_params(key: &impl PublicKeyData, not_before: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut serial = [0u8; 20];
    rand::rng().fill_bytes(&mut serial);
    serial[0] &= 0x7f;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    let key_id = digest(&SHA1_FOR_LEGACY_USE_ONLY, key.der_bytes());
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id.as_ref().to_vec());
    params
}

fn printable(text: &str) -> DnValue {
    match PrintableString::try_from(text) {
        Ok(text) => DnValue::PrintableString(text),
        Err(_) => DnValue::Utf8String(text.to_owned()),
    }
}

fn encode_certificate(der: &[u8]) -> Vec<u8> {
    pem::encode_config(&pem::Pem::new(CERTIFICATE_LABEL, der), PEM_CONFIG).into_bytes()
}

/// The nearest whole minute.
fn round_to_minute(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs((since.as_secs() + 30) / 60 * 60)
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
