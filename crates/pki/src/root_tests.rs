use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Certificate};

use super::*;
use crate::create_csr;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn root() -> RootCa {
    RootCa::create(now()).unwrap()
}

fn subject(role: NodeRole) -> NodeSubject {
    NodeSubject {
        node_id: "nodenodenodenodenodenode1".into(),
        role,
        organization: "clusterclusterclusterclu1".into(),
    }
}

fn issue(root: &RootCa, role: NodeRole) -> (PrivateKey, Vec<u8>) {
    let key = PrivateKey::generate().unwrap();
    let csr = create_csr(&key).unwrap();
    let pem = root.sign_csr(&csr, &subject(role), DEFAULT_NODE_EXPIRY, now()).unwrap();
    (key, pem)
}

fn error_of(result: Result<RootCa>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_created_root_lives_twenty_years_and_is_its_own_normalization() {
    let root = root();
    let [certificate] = root.certificates() else { panic!("one certificate") };
    assert_eq!(certificate.common_name(), Some("swarm-ca"));
    assert!(certificate.is_ca() && certificate.is_signed_by(certificate));
    assert_eq!(certificate.not_before(), round_to_minute(now()) - ROOT_BACKDATE);
    assert_eq!(certificate.not_after(), certificate.not_before() + Duration::from_secs(630_720_000));
    assert_eq!(normalize_pem(root.pem()), root.pem());
    assert!(root.signer().unwrap().key_pem().expose().starts_with(b"-----BEGIN EC PRIVATE KEY-----"));
    assert_eq!(root.digest(), RootDigest::of(root.pem()));
}

#[test]
fn two_roots_of_one_name_do_not_vouch_for_each_other() {
    let (ours, theirs) = (root(), root());
    let (_, foreign) = issue(&theirs, NodeRole::Worker);
    assert!(theirs.verify(&foreign, now(), false).is_ok());
    let error = ours.verify(&foreign, now(), false).unwrap_err();
    assert!(matches!(error, Error::UnknownAuthority(_)), "{error}");
}

#[test]
fn an_issued_certificate_says_what_the_contract_says() {
    let root = root();
    for (role, unit, names) in [
        (NodeRole::Worker, "swarm-worker", vec!["swarm-worker", "nodenodenodenodenodenode1"]),
        (NodeRole::Manager, "swarm-manager", vec!["swarm-manager", "nodenodenodenodenodenode1", "swarm-ca"]),
    ] {
        let (key, pem) = issue(&root, role);
        let chain = root.verify(&pem, now(), false).unwrap();
        let leaf = chain.leaf();
        assert!(key.belongs_to(leaf));
        assert_eq!(leaf.common_name(), Some("nodenodenodenodenodenode1"));
        assert_eq!(leaf.units(), [unit]);
        assert_eq!(leaf.organization(), Some("clusterclusterclusterclu1"));
        assert_eq!(leaf.not_before(), round_to_minute(now()) - Duration::from_secs(3600));
        assert_eq!(leaf.not_after(), round_to_minute(now()) + DEFAULT_NODE_EXPIRY);
        assert_eq!(chain.issuer, root.certificates()[0].issuer_info());
        assert_eq!(normalize_pem(&pem), pem);

        let (_, x509) = X509Certificate::from_der(leaf.der()).unwrap();
        let order: Vec<_> = x509.subject().iter_attributes().map(|a| a.attr_type().to_id_string()).collect();
        assert_eq!(order, ["2.5.4.10", "2.5.4.11", "2.5.4.3"], "O, OU, CN");
        let sans: Vec<_> =
            x509.subject_alternative_name().unwrap().unwrap().value.general_names.iter().collect();
        assert_eq!(format!("{sans:?}"), format!("{:?}", names.iter().map(|n| dns(n)).collect::<Vec<_>>()));
        let usage = x509.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && usage.value.key_encipherment());
        assert!(!usage.value.key_cert_sign());
        let extended = x509.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && extended.client_auth && !extended.any);
        let constraints = x509.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && !constraints.value.ca);
        assert_eq!(
            key_ids(&x509).1,
            key_ids(&X509Certificate::from_der(root.certificates()[0].der()).unwrap().1).0
        );
        assert_eq!(key_ids(&x509).0.unwrap().len(), 20);
        assert!(x509.raw_serial().len() <= 20 && x509.raw_serial()[0] < 0x80);
    }
}

fn dns(name: &str) -> x509_parser::extensions::GeneralName<'_> {
    x509_parser::extensions::GeneralName::DNSName(name)
}

/// Subject and authority key identifiers.
fn key_ids(x509: &X509Certificate<'_>) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let (mut own, mut issuers) = (None, None);
    for extension in x509.iter_extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => own = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                issuers = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            _ => {}
        }
    }
    (own, issuers)
}

#[test]
fn renewals_have_serials_of_their_own() {
    let root = root();
    let csr = create_csr(&PrivateKey::generate().unwrap()).unwrap();
    let serial = || {
        let pem = root.sign_csr(&csr, &subject(NodeRole::Worker), DEFAULT_NODE_EXPIRY, now()).unwrap();
        let certificate = Certificate::from_pem_bundle(&pem).unwrap().remove(0);
        X509Certificate::from_der(certificate.der()).unwrap().1.raw_serial().to_vec()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn a_request_gets_only_the_names_it_was_given() {
    let key = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::new(vec!["docker.com".to_owned()]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "evil");
    params.distinguished_name.push(DnType::OrganizationalUnitName, MANAGER_OU);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let request = params.serialize_request(&key.key_pair().unwrap()).unwrap().pem().unwrap();
    let root = root();
    let pem =
        root.sign_csr(request.as_bytes(), &subject(NodeRole::Worker), DEFAULT_NODE_EXPIRY, now()).unwrap();
    let leaf = root.verify(&pem, now(), false).unwrap().leaf().clone();
    assert_eq!(
        (leaf.common_name(), leaf.units()),
        (Some("nodenodenodenodenodenode1"), &["swarm-worker".to_owned()][..])
    );
    assert!(!leaf.is_ca());
    let (_, x509) = X509Certificate::from_der(leaf.der()).unwrap();
    let names = &x509.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(*names, [dns("swarm-worker"), dns("nodenodenodenodenodenode1")]);
}

#[test]
fn an_expiry_below_an_hour_means_ninety_days() {
    let root = root();
    let csr = create_csr(&PrivateKey::generate().unwrap()).unwrap();
    let life = |minutes: u64| {
        let expiry = Duration::from_secs(minutes * 60);
        let pem = root.sign_csr(&csr, &subject(NodeRole::Worker), expiry, now()).unwrap();
        let not_after = Certificate::from_pem_bundle(&pem).unwrap()[0].not_after();
        not_after.duration_since(round_to_minute(now())).unwrap()
    };
    assert_eq!(life(60), Duration::from_secs(3600));
    assert_eq!(life(59), DEFAULT_NODE_EXPIRY);
}

#[test]
fn a_root_without_its_key_trusts_but_does_not_sign() {
    let full = root();
    let csr = create_csr(&PrivateKey::generate().unwrap()).unwrap();
    for keyless in [full.without_signer(), RootCa::trust_only(full.pem(), now()).unwrap()] {
        assert!(keyless.same_bundle(&full));
        let error =
            keyless.sign_csr(&csr, &subject(NodeRole::Worker), DEFAULT_NODE_EXPIRY, now()).unwrap_err();
        assert_eq!(error.to_string(), "no valid signer found");
        assert!(matches!(keyless.cross_sign(full.pem()), Err(Error::NoSigner)));
    }
}

#[test]
fn what_makes_no_root_is_refused_with_the_contracts_texts() {
    let (good, other) = (root(), root());
    let (pem, key) = (good.pem(), good.signer().unwrap().key_pem().expose());
    let foreign_key = other.signer().unwrap().key_pem().expose();
    let check = |bundle: &[u8], signer: Option<(&[u8], &[u8])>, at: SystemTime, why: &str| {
        let error = error_of(RootCa::load(bundle, signer, &[], at));
        assert!(error.contains(why), "expected {why:?} in {error:?}");
    };
    check(b"garbage", None, now(), "Failed to decode certificate");
    check(&[pem, b"garbage"].concat(), None, now(), "Failed to decode certificate");
    check(key, None, now(), "Failed to decode certificate");
    check(b" \n", None, now(), "no valid root CA certificates found");
    check(pem, None, now() - DAY, "not yet valid");
    check(pem, None, now() + 8000 * DAY, "expired");
    check(pem, Some((pem, b"")), now(), "must provide both a signing key and a signing cert, or neither");
    check(pem, Some((b"", key)), now(), "must provide both a signing key and a signing cert, or neither");
    check(pem, Some((b" ", key)), now(), "no valid signing CA certificates found");
    check(pem, Some((other.pem(), foreign_key)), now(), "unknown authority");
    check(pem, Some((pem, b"garbage")), now(), "malformed private key");
    check(pem, Some((pem, foreign_key)), now(), "certificate key mismatch");
    let (leaf_key, leaf) = issue(&good, NodeRole::Manager);
    check(pem, Some((&leaf, leaf_key.to_pkcs8_pem().expose())), now(), "certificate not a CA");
    assert!(RootCa::load(pem, Some((pem, key)), &[], now()).is_ok());
    assert!(RootCa::load(pem, Some((b"", b"")), &[], now()).unwrap().signer().is_none());
}

#[test]
fn a_bundle_of_two_roots_trusts_both_and_its_digest_covers_both() {
    let (a, b) = (root(), root());
    let bundle = [a.pem(), b.pem()].concat();
    let key = a.signer().unwrap().key_pem().expose();
    let both = RootCa::load(&bundle, Some((a.pem(), key)), &[], now()).unwrap();
    for signer in [&a, &b, &both] {
        assert!(both.verify(&issue(signer, NodeRole::Worker).1, now(), false).is_ok());
    }
    assert!(a.verify(&issue(&both, NodeRole::Worker).1, now(), false).is_ok());
    assert!(b.verify(&issue(&both, NodeRole::Worker).1, now(), false).is_err());
    assert_ne!(both.digest(), a.digest());
}

#[test]
fn a_cross_signed_root_leads_from_new_leaves_to_the_old_root() {
    let (old, new) = (root(), root());
    let cross = old.cross_sign(new.pem()).unwrap();
    let crossed = Certificate::from_pem_bundle(&cross).unwrap().remove(0);
    assert!(crossed.is_signed_by(&old.certificates()[0]));
    assert_eq!(crossed.issuer_info(), new.certificates()[0].issuer_info());
    assert_eq!(crossed.not_after(), new.certificates()[0].not_after());

    let key = new.signer().unwrap().key_pem().expose();
    let rotating = RootCa::load(old.pem(), Some((&cross, key)), &cross, now()).unwrap();
    let (_, chain) = issue(&rotating, NodeRole::Worker);
    assert_eq!(Certificate::from_pem_bundle(&chain).unwrap().len(), 2, "leaf and cross-signed intermediate");
    for trust in [&old, &new, &rotating] {
        let verified = trust.verify(&chain, now(), false).unwrap();
        assert_eq!(verified.issuer, new.certificates()[0].issuer_info(), "the issuer is the new root's key");
    }
    let leaf_only = Certificate::from_pem_bundle(&chain).unwrap()[0].to_pem();
    assert!(new.verify(leaf_only.as_bytes(), now(), false).is_ok());
    assert!(old.verify(leaf_only.as_bytes(), now(), false).is_err());

    let third = root();
    let wrong = old.cross_sign(third.pem()).unwrap();
    let error = error_of(RootCa::load(
        old.pem(),
        Some((old.pem(), old.signer().unwrap().key_pem().expose())),
        &wrong,
        now(),
    ));
    assert!(error.contains("the first intermediate must have the same subject and public key"), "{error}");
}

#[test]
fn a_leaf_or_a_key_is_not_cross_signed() {
    let root = root();
    let (key, leaf) = issue(&root, NodeRole::Manager);
    assert!(matches!(root.cross_sign(&leaf), Err(Error::NotCa(_))));
    assert!(matches!(root.cross_sign(key.to_pkcs8_pem().expose()), Err(Error::CertificateDecode(_))));
}

#[test]
fn chains_out_of_order_out_of_time_or_of_nobody_are_refused() {
    let (old, new) = (root(), root());
    let cross = old.cross_sign(new.pem()).unwrap();
    let (_, leaf) = issue(&new, NodeRole::Worker);
    let chain = [&leaf[..], &cross].concat();
    assert!(old.verify(&chain, now(), false).is_ok());
    assert!(old.verify(&[&chain[..], old.pem()].concat(), now(), false).is_ok(), "with the root itself");
    assert!(old.verify(&cross, now(), false).is_ok(), "only the intermediate");
    assert!(matches!(old.verify(&[&cross[..], &leaf].concat(), now(), false), Err(Error::BrokenChain(_))));
    assert!(matches!(old.verify(b"", now(), false), Err(Error::EmptyChain)));
    assert!(matches!(old.verify(&[&leaf[..], old.pem()].concat(), now(), false), Err(Error::BrokenChain(_))));
    assert!(matches!(root().verify(&chain, now(), false), Err(Error::UnknownAuthority(_))));

    let late = now() + 91 * DAY;
    assert!(old.verify(&chain, late, false).unwrap_err().is_expired());
    assert!(old.verify(&chain, late, true).is_ok(), "an expired leaf of a root that still lived with it");
    let early = now() - DAY;
    for allow_expired in [false, true] {
        assert!(matches!(old.verify(&chain, early, allow_expired), Err(Error::NotYetValid { .. })));
    }
    assert!(matches!(root().verify(&chain, late, true), Err(Error::UnknownAuthority(_))));
}

#[test]
fn validities_that_never_met_are_no_chain_even_when_expired_ones_are_allowed() {
    let later = now() + 10_000 * DAY;
    let new = RootCa::create(later).unwrap();
    // A leaf that ended before its (re-issued) intermediate began.
    let key = new.signer().unwrap().key_pem().expose();
    let csr = create_csr(&PrivateKey::generate().unwrap()).unwrap();
    let early_signer = RootCa::load(new.pem(), Some((new.pem(), key)), &[], later).unwrap();
    let leaf = early_signer.sign_csr(&csr, &subject(NodeRole::Worker), DEFAULT_NODE_EXPIRY, now()).unwrap();
    let error = new.verify(&leaf, later + DAY, true).unwrap_err();
    assert!(matches!(error, Error::NoTimeSpan), "{error}");
}

#[test]
fn normalization_drops_everything_but_the_blocks() {
    assert!(normalize_pem(b"").is_empty());
    assert!(normalize_pem(b"garbage").is_empty());
    let root = root();
    let text = String::from_utf8(root.pem().to_vec()).unwrap();
    let noisy = format!(
        "some text\r\n{}\r\n\r\nmore",
        text.replace('\n', "\r\n")
            .replace("CERTIFICATE-----\r\nMI", "CERTIFICATE-----\r\nheader: x\r\n\r\nMI")
    );
    assert_eq!(normalize_pem(noisy.as_bytes()), root.pem());
}

#[test]
fn nothing_secret_is_printed() {
    let root = root();
    let printed = format!("{root:?}");
    assert!(printed.contains("can_sign: true") && !printed.contains("PRIVATE"), "{printed}");
}

/// Roots of every accepted kind, made by the `openssl` command line, load and sign; others are refused.
#[test]
fn roots_made_elsewhere_load_and_sign_by_their_kind() {
    if !crate::testing::have_openssl() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = SystemTime::now() + DAY;
    let make = |name: &str, key: &[&str], sign: &[&str]| {
        let path = |suffix: &str| directory.path().join(format!("{name}.{suffix}")).display().to_string();
        crate::testing::openssl(&[&key[..1], &["-out", &path("key")], &key[1..]].concat());
        let request =
            ["req", "-x509", "-new", "-key", &path("key"), "-subj", "/CN=swarm-ca", "-days", "3650", "-out"];
        crate::testing::openssl(&[&request[..], &[&path("crt")], sign].concat());
        (std::fs::read(path("crt")).unwrap(), std::fs::read(path("key")).unwrap())
    };
    let ec = |curve: &'static str| ["ecparam", "-genkey", "-name", curve];
    for (name, key, sign) in [
        ("p256", &ec("prime256v1")[..], &["-sha256"][..]),
        ("p384", &ec("secp384r1"), &["-sha384"]),
        ("rsa", &["genrsa", "-traditional", "2048"], &["-sha256"]),
        ("rsa3072", &["genrsa", "3072"], &["-sha512"]),
    ] {
        let (cert, key) = make(name, key, sign);
        let root = RootCa::load(&cert, Some((&cert, &key)), &[], at).unwrap();
        let csr = create_csr(&PrivateKey::generate().unwrap()).unwrap();
        let leaf = root.sign_csr(&csr, &subject(NodeRole::Manager), DEFAULT_NODE_EXPIRY, at).unwrap();
        root.verify(&leaf, at, false).unwrap();
        let own = RootCa::create(at).unwrap();
        let cross = own.cross_sign(&cert).unwrap();
        own.verify(&[&leaf[..], &cross].concat(), at, false).unwrap();
        let cross = root.cross_sign(own.pem()).unwrap();
        root.verify(&cross, at, false).unwrap();
    }
    for (name, key, sign, why) in [
        ("p521", &ec("secp521r1")[..], &["-sha512"][..], "P-521 is not in this build"),
        ("p224", &ec("secp224r1"), &["-sha256"], "unsupported ECDSA key parameters"),
        ("rsa1024", &["genrsa", "1024"], &["-sha256"], "unsupported RSA key parameters"),
        ("sha1", &["genrsa", "2048"], &["-sha1"], "unsupported signature algorithm"),
        ("ed25519", &["genpkey", "-algorithm", "ed25519"], &[], "unsupported signature algorithm"),
    ] {
        let (cert, key) = make(name, key, sign);
        let error = error_of(RootCa::load(&cert, Some((&cert, &key)), &[], at));
        assert!(error.contains(why), "{name}: expected {why:?} in {error:?}");
    }
}

/// What peers of other make check, as far as `openssl` stands for them.
#[test]
fn openssl_accepts_issued_certificates_for_both_ends_of_a_connection() {
    if !crate::testing::have_openssl() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let root = RootCa::create(SystemTime::now()).unwrap();
    let csr = create_csr(&PrivateKey::generate().unwrap()).unwrap();
    let leaf =
        root.sign_csr(&csr, &subject(NodeRole::Manager), DEFAULT_NODE_EXPIRY, SystemTime::now()).unwrap();
    for (name, pem) in [("root", root.pem()), ("leaf", &leaf), ("csr", &csr)] {
        std::fs::write(path(name), pem).unwrap();
    }
    crate::testing::openssl(&["req", "-in", &path("csr"), "-verify", "-noout"]);
    let (root, leaf) = (path("root"), path("leaf"));
    for purpose in ["sslserver", "sslclient"] {
        let strict = ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", &root, &leaf];
        crate::testing::openssl(&strict);
    }
    crate::testing::openssl(&["verify", "-verify_hostname", "swarm-ca", "-CAfile", &root, &leaf]);
}
