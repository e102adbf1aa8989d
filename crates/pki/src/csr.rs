//! Certificate requests. Of a request only the public key is ever used: whatever names, roles or extensions it asks
//! for are ignored.

use rcgen::{CertificateParams, DistinguishedName, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::certificate::PEM_CONFIG;
use crate::{Error, PrivateKey, Result};

const LABEL: &str = "CERTIFICATE REQUEST";
const OLD_LABEL: &str = "NEW CERTIFICATE REQUEST";

/// A request in PEM for a key: no subject, no extensions.
///
/// # Errors
/// When signing fails.
pub fn create_csr(key: &PrivateKey) -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key.key_pair()?)?;
    Ok(pem::encode_config(&pem::Pem::new(LABEL, request.der().to_vec()), PEM_CONFIG).into_bytes())
}

/// The public key of a request in PEM, once the request's own signature has proven that the sender holds the key.
pub(crate) fn public_key_of(csr: &[u8]) -> Result<SubjectPublicKeyInfo> {
    let refused = |why: &str| Error::Csr(why.to_owned());
    let block = pem::parse(csr).map_err(|_| refused("not PEM"))?;
    if ![LABEL, OLD_LABEL].contains(&block.tag()) {
        return Err(refused("the PEM block is no certificate request"));
    }
    let (rest, request) =
        X509CertificationRequest::from_der(block.contents()).map_err(|_| refused("not PKCS#10"))?;
    if !rest.is_empty() {
        return Err(refused("bytes follow the request"));
    }
    request.verify_signature().map_err(|_| refused("its signature does not fit its key"))?;
    SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
        .map_err(|_| refused("the kind of its key is not supported"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_its_key_and_nothing_else() {
        let key = PrivateKey::generate().unwrap();
        let csr = create_csr(&key).unwrap();
        let block = pem::parse(&csr).unwrap();
        let (_, request) = X509CertificationRequest::from_der(block.contents()).unwrap();
        assert_eq!(request.certification_request_info.subject.iter().count(), 0);
        assert!(request.requested_extensions().is_none());
        assert_eq!(request.certification_request_info.subject_pki.raw, key.public_key());
        assert!(public_key_of(&csr).is_ok());
    }

    #[test]
    fn garbage_and_forged_requests_are_refused() {
        let csr = create_csr(&PrivateKey::generate().unwrap()).unwrap();
        let mut block = pem::parse(&csr).unwrap().into_contents();
        let last = block.len() - 1;
        block[last] ^= 1;
        let forged = pem::encode(&pem::Pem::new(LABEL, block));
        for bad in [&b"garbage"[..], b"", forged.as_bytes(), &csr[..csr.len() / 2]] {
            let error = public_key_of(bad).unwrap_err().to_string();
            assert!(error.contains("CSR Decode failed"), "{error}");
        }
    }
}
