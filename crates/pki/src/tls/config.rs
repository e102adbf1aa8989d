//! The TLS configurations of the contract, made of a root and credentials.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use swarm_api::authorization::{CA_OU, MANAGER_OU};

use crate::{Clock, Credentials, Error, Result, RootCa};

/// What is negotiated over TLS; peers refuse a server that does not offer it.
const ALPN: &[u8] = b"h2";

/// The one place that names the cryptography in use.
pub fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

/// What a server is expected to be, by a name in its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerRole {
    /// `swarm-manager`: everything but the below.
    Manager,
    /// `swarm-ca`: certificate requests and their status polls while joining, and fetching the unlock key.
    Ca,
}

impl ServerRole {
    pub(crate) fn server_name(self) -> ServerName<'static> {
        let name = match self {
            Self::Manager => MANAGER_OU,
            Self::Ca => CA_OU,
        };
        ServerName::try_from(name).expect("the contract's role names are valid DNS names")
    }
}

/// A manager's server: a client certificate is optional; one that is given must lead to the root.
pub(crate) fn server(root: &RootCa, credentials: &Credentials, clock: &Clock) -> Result<Arc<ServerConfig>> {
    let verifier = WebPkiClientVerifier::builder_with_provider(root.trust_store()?, crypto_provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| Error::Crypto(e.to_string()))?;
    let mut config = ServerConfig::builder_with_details(crypto_provider(), Arc::new(clock.clone()))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain_of(credentials), credentials.key().to_rustls())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would carry on with an identity that was checked under an older root.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.ignore_client_order = true;
    Ok(Arc::new(config))
}

/// A client that checks the server against a root; with credentials, or without while joining.
pub(crate) fn client(
    root: &RootCa,
    credentials: Option<&Credentials>,
    clock: &Clock,
) -> Result<Arc<ClientConfig>> {
    let verifier = WebPkiServerVerifier::builder_with_provider(root.trust_store()?, crypto_provider())
        .build()
        .map_err(|e| Error::Crypto(e.to_string()))?;
    client_with(verifier, credentials, clock)
}

/// A client that believes any server: to download the root, whose digest is then checked against the join token.
pub(crate) fn unverified_client(clock: &Clock) -> Result<Arc<ClientConfig>> {
    client_with(Arc::new(AnyServer), None, clock)
}

fn client_with(
    verifier: Arc<dyn ServerCertVerifier>,
    credentials: Option<&Credentials>,
    clock: &Clock,
) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_details(crypto_provider(), Arc::new(clock.clone()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match credentials {
        Some(credentials) => {
            builder.with_client_auth_cert(chain_of(credentials), credentials.key().to_rustls())?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn chain_of(credentials: &Credentials) -> Vec<CertificateDer<'static>> {
    credentials.chain().iter().map(|certificate| certificate.der().clone()).collect()
}

/// Takes any certificate, as long as the server holds its key.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &crypto_provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &crypto_provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto_provider().signature_verification_algorithms.supported_schemes()
    }
}
