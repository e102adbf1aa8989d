//! Who a host is in the cluster, and asking managers as one of them.

use anyhow::{Context as _, Result};
use swarm_pki::{Certificate, Clock, Credentials, Dialer, KeyStore, ServerRole};

use super::Lab;

/// Files of a node's identity, in its state directory.
const FILES: [&str; 3] = ["swarm-root-ca.crt", "swarm-node.crt", "swarm-node.key"];

/// Dials managers with the certificate of a running host, who must be a manager: they answer whoever shows one.
pub(super) async fn dialer(lab: &Lab, host: &str) -> Result<Dialer> {
    let dir = tempfile::tempdir_in(lab.dir.path())?;
    for file in FILES {
        let text = lab.exec(host, &["cat", &format!("/state/certificates/{file}")]).await?;
        std::fs::write(dir.path().join(file), text)?;
    }
    let clock = Clock::system();
    let keys = KeyStore::open(dir.path())?;
    let root = keys.load_root(clock.now())?;
    let pair = keys.load(None)?;
    let credentials = Credentials::new(&pair.certificate, pair.key, &root, clock.now(), false)?;
    Ok(Dialer::with_credentials(&root, &credentials, ServerRole::Manager, &clock)?)
}

/// Id of the node on a running host, from its certificate.
pub(super) async fn node_id(lab: &Lab, host: &str) -> Result<String> {
    let pem = lab.exec(host, &["cat", &format!("/state/certificates/{}", FILES[1])]).await?;
    let chain = Certificate::from_pem_bundle(pem.as_bytes())?;
    let name = chain.first().and_then(|leaf| leaf.common_name());
    name.map(str::to_owned).context("a certificate without a name")
}
