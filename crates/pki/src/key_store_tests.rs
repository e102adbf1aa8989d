use std::os::unix::fs::PermissionsExt as _;
use std::time::SystemTime;

use swarm_api::v1::NodeRole;

use super::*;
use crate::{DEFAULT_NODE_EXPIRY, NodeSubject, create_csr};

struct Fixture {
    directory: tempfile::TempDir,
    root: RootCa,
}

impl Fixture {
    fn new() -> Self {
        let root = RootCa::create(SystemTime::now()).unwrap();
        Self { directory: tempfile::tempdir().unwrap(), root }
    }

    fn store(&self) -> KeyStore {
        KeyStore::open(self.directory.path().join("certificates")).unwrap()
    }

    fn pair(&self) -> (Vec<u8>, PrivateKey) {
        let key = PrivateKey::generate().unwrap();
        let subject =
            NodeSubject { node_id: "node".into(), role: NodeRole::Manager, organization: "cluster".into() };
        let csr = create_csr(&key).unwrap();
        let pem = self.root.sign_csr(&csr, &subject, DEFAULT_NODE_EXPIRY, SystemTime::now()).unwrap();
        (pem, key)
    }

    fn saved(&self, kek: Option<&Kek>) -> (KeyStore, Vec<u8>, PrivateKey) {
        let (certificate, key) = self.pair();
        let store = self.store();
        store.save(&certificate, &key, KekChange::Set(kek.cloned(), 1)).unwrap();
        (store, certificate, key)
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn key_text(store: &KeyStore) -> String {
    fs::read_to_string(store.key_path()).unwrap()
}

#[test]
fn only_the_roots_certificate_reaches_the_disk() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let now = SystemTime::now();
    assert!(store.load_root(now).unwrap_err().is_missing());
    store.save_root(&fixture.root).unwrap();
    assert_eq!(fs::read(store.root_path()).unwrap(), fixture.root.pem());
    assert_eq!(fs::read_dir(store.directory()).unwrap().count(), 1);
    assert_eq!((mode(store.directory()), mode(&store.root_path())), (0o755, 0o644));
    let loaded = store.load_root(now).unwrap();
    assert!(loaded.same_bundle(&fixture.root) && loaded.signer().is_none());

    let key = fixture.root.signer().unwrap().key_pem();
    fs::write(store.path("swarm-root-ca.key"), key.expose()).unwrap();
    assert!(store.load_root(now).unwrap().signer().is_some());
    fs::write(store.path("swarm-root-ca.key"), b"garbage").unwrap();
    assert!(matches!(store.load_root(now), Err(Error::MalformedKey(_))));
    fs::write(store.root_path(), b"garbage").unwrap();
    assert!(matches!(store.load_root(now), Err(Error::CertificateDecode(_))));
}

#[test]
fn a_pair_round_trips_in_the_clear_and_locked_with_its_modes() {
    for kek in [None, Some(Kek::generate())] {
        let fixture = Fixture::new();
        let (store, certificate, key) = fixture.saved(kek.as_ref());
        assert_eq!((mode(&store.certificate_path()), mode(&store.key_path())), (0o644, 0o600));
        assert!(key_text(&store).contains("kek-version: 1\n"));
        assert_eq!(key_text(&store).contains("BEGIN ENCRYPTED PRIVATE KEY"), kek.is_some());
        let again = fixture.store();
        let pair = again.load(kek.as_ref()).unwrap();
        assert_eq!((pair.certificate, pair.key), (certificate, key));
        assert_eq!(again.kek_version(), (kek.is_some(), 1));
        assert!(!store.half_written_certificate_path().exists());
    }
}

#[test]
fn a_locked_pair_needs_its_key_and_is_left_alone_without_it() {
    let fixture = Fixture::new();
    let kek = Kek::generate();
    let (store, ..) = fixture.saved(Some(&kek));
    fs::write(store.half_written_certificate_path(), b"left by a crash").unwrap();
    for wrong in [None, Some(Kek::generate())] {
        assert!(matches!(fixture.store().load(wrong.as_ref()), Err(Error::Locked)));
    }
    assert!(store.half_written_certificate_path().exists(), "nothing was touched");
    assert!(fixture.store().load(Some(&kek)).is_ok());
}

#[test]
fn a_key_in_the_clear_is_read_whatever_unlock_key_is_given() {
    let fixture = Fixture::new();
    let (_, _, key) = fixture.saved(None);
    let store = fixture.store();
    assert_eq!(store.load(Some(&Kek::generate())).unwrap().key, key);
    assert_eq!(store.kek_version(), (false, 1));
}

#[test]
fn a_crash_before_the_last_rename_is_repaired() {
    let fixture = Fixture::new();
    let (store, old_certificate, _) = fixture.saved(None);
    let (certificate, key) = fixture.pair();
    store.save(&certificate, &key, KekChange::Keep).unwrap();
    fs::rename(store.certificate_path(), store.half_written_certificate_path()).unwrap();
    fs::write(store.certificate_path(), old_certificate).unwrap();
    assert_eq!(fixture.store().load(None).unwrap().certificate, certificate);
    assert_eq!(fs::read(store.certificate_path()).unwrap(), certificate, "moved into place");
    assert!(!store.half_written_certificate_path().exists());

    fs::rename(store.certificate_path(), store.half_written_certificate_path()).unwrap();
    assert_eq!(fixture.store().load(None).unwrap().certificate, certificate, "with none in place either");
}

#[test]
fn a_crash_before_the_key_is_written_leaves_the_old_pair() {
    let fixture = Fixture::new();
    let (store, certificate, _) = fixture.saved(None);
    fs::write(store.half_written_certificate_path(), fixture.pair().0).unwrap();
    assert_eq!(fixture.store().load(None).unwrap().certificate, certificate);
}

#[test]
fn a_half_written_certificate_of_another_key_is_removed_and_the_first_error_told() {
    let fixture = Fixture::new();
    let (store, ..) = fixture.saved(None);
    fs::write(store.half_written_certificate_path(), fixture.pair().0).unwrap();
    fs::write(store.certificate_path(), fixture.pair().0).unwrap();
    assert!(matches!(fixture.store().load(None), Err(Error::KeyMismatch)));
    assert!(!store.half_written_certificate_path().exists());
    fs::remove_file(store.certificate_path()).unwrap();
    assert!(fixture.store().load(None).unwrap_err().is_missing());
}

#[test]
fn a_legacy_key_is_moved_into_place_or_removed() {
    let fixture = Fixture::new();
    let (store, certificate, _) = fixture.saved(None);
    let legacy = store.path(".swarm-node.key");
    fs::rename(store.key_path(), &legacy).unwrap();
    assert_eq!(fixture.store().load(None).unwrap().certificate, certificate);
    assert!(!legacy.exists() && store.key_path().exists());
    fs::write(&legacy, fixture.pair().1.to_pkcs8_pem().expose()).unwrap();
    assert_eq!(
        fixture.store().load(None).unwrap().certificate,
        certificate,
        "the second run changes nothing"
    );
    assert!(!legacy.exists());
}

#[test]
fn leftovers_of_an_interrupted_write_are_swept() {
    let fixture = Fixture::new();
    let (store, ..) = fixture.saved(None);
    let leftover = store.path(".tmp-swarm-node.key-0");
    fs::write(&leftover, b"half a key").unwrap();
    fixture.store();
    assert!(!leftover.exists());
}

#[test]
fn garbage_in_the_key_file_is_told_from_a_locked_one() {
    let fixture = Fixture::new();
    let (store, ..) = fixture.saved(None);
    fs::write(store.key_path(), b"garbage").unwrap();
    assert!(matches!(fixture.store().load(None), Err(Error::MalformedKey(_))));
    fs::remove_file(store.key_path()).unwrap();
    assert!(fixture.store().load(None).unwrap_err().is_missing());
}

#[test]
fn a_manager_makes_its_dek_once() {
    for kek in [None, Some(Kek::generate())] {
        let fixture = Fixture::new();
        let (store, _, key) = fixture.saved(kek.as_ref());
        let dek = store.ensure_dek().unwrap();
        assert_eq!(store.ensure_dek().unwrap(), dek);
        let again = fixture.store();
        assert_eq!(again.load(kek.as_ref()).unwrap().key, key);
        assert_eq!(again.ensure_dek().unwrap(), dek);
        again.set_deks(DekState::default()).unwrap();
        let text = key_text(&store);
        assert!(text.contains("kek-version: 1\n") && !text.contains("raft-dek"), "{text}");
    }
}

#[test]
fn a_renewed_pair_keeps_keys_and_foreign_headers_until_the_keys_change() {
    let fixture = Fixture::new();
    let (store, ..) = fixture.saved(None);
    let dek = store.ensure_dek().unwrap();
    let text = key_text(&store).replacen("kek-version", "foreign: header\nkek-version", 1);
    fs::write(store.key_path(), text).unwrap();
    let store = fixture.store();
    store.load(None).unwrap();
    let (certificate, key) = fixture.pair();
    store.save(&certificate, &key, KekChange::Keep).unwrap();
    assert!(key_text(&store).contains("foreign: header\n"));
    let pending = Dek::generate();
    store
        .set_deks(DekState {
            current: Some(dek.clone()),
            pending: Some(pending.clone()),
            needs_rotation: true,
        })
        .unwrap();
    assert!(!key_text(&store).contains("foreign"));
    let again = fixture.store();
    again.load(None).unwrap();
    assert_eq!(again.deks(), DekState { current: Some(dek), pending: Some(pending), needs_rotation: true });
}

#[test]
fn the_rules_of_key_updates_hold() {
    let fixture = Fixture::new();
    let (store, _, key) = fixture.saved(None);
    let dek = store.ensure_dek().unwrap();
    let (first, second) = (Kek::generate(), Kek::generate());
    assert_eq!(
        store.update_kek(None, 5).unwrap(),
        KekUpdate::Unchanged,
        "equal keys do not bump the version"
    );
    assert_eq!(store.kek_version(), (false, 1));
    assert!(matches!(store.update_kek(Some(first.clone()), 1), Err(Error::KekConflict(1))));

    assert_eq!(store.update_kek(Some(first.clone()), 2).unwrap(), KekUpdate::Locked);
    assert!(store.deks().needs_rotation, "the key that lay in the clear must go");
    assert_eq!(store.deks().current, Some(dek.clone()));
    assert!(matches!(fixture.store().load(None), Err(Error::Locked)));
    let again = fixture.store();
    assert_eq!(again.load(Some(&first)).unwrap().key, key);
    assert_eq!((again.kek_version(), again.deks()), ((true, 2), store.deks()));

    assert_eq!(store.update_kek(Some(second.clone()), 1).unwrap(), KekUpdate::Unchanged, "an older version");
    assert_eq!(store.update_kek(Some(second.clone()), 3).unwrap(), KekUpdate::Changed);
    assert!(matches!(fixture.store().load(Some(&first)), Err(Error::Locked)));
    assert!(fixture.store().load(Some(&second)).is_ok());
    store.set_deks(DekState { current: Some(dek.clone()), ..DekState::default() }).unwrap();
    assert_eq!(store.update_kek(None, 4).unwrap(), KekUpdate::Changed);
    assert!(!store.deks().needs_rotation);
    assert_eq!(fixture.store().load(None).unwrap().key, key);
}

#[test]
fn a_write_that_fails_changes_neither_file_nor_memory() {
    let fixture = Fixture::new();
    let (store, ..) = fixture.saved(None);
    let before = key_text(&store);
    let pending = DekState { pending: Some(Dek::generate()), ..DekState::default() };
    assert!(matches!(store.set_deks(pending), Err(Error::PendingWithoutCurrent)));
    assert_eq!((key_text(&store), store.deks()), (before, DekState::default()));
    fs::remove_file(store.key_path()).unwrap();
    assert!(store.update_kek(Some(Kek::generate()), 9).unwrap_err().is_missing());
    assert_eq!(store.kek_version(), (false, 1));
}

#[test]
fn a_locked_headers_damage_shows_as_a_wrong_unlock_key() {
    let fixture = Fixture::new();
    let kek = Kek::generate();
    let (store, ..) = fixture.saved(Some(&kek));
    store.ensure_dek().unwrap();
    let other = fixture.saved_elsewhere();
    let foreign = other.lines().find(|line| line.starts_with("raft-dek:")).unwrap();
    let text = key_text(&store);
    let own = text.lines().find(|line| line.starts_with("raft-dek:")).unwrap();
    fs::write(store.key_path(), text.replace(own, foreign)).unwrap();
    assert!(matches!(fixture.store().load(Some(&kek)), Err(Error::Locked)));
}

impl Fixture {
    /// The key file of another manager, locked with another key.
    fn saved_elsewhere(&self) -> String {
        let fixture = Fixture::new();
        let (store, ..) = fixture.saved(Some(&Kek::generate()));
        store.ensure_dek().unwrap();
        key_text(&store)
    }
}

#[test]
fn a_key_that_lay_in_the_clear_counts_as_exposed_until_there_is_another_one() {
    let fixture = Fixture::new();
    let (store, _, _) = fixture.saved(None);
    let exposed = |store: &KeyStore| *store.exposed().borrow();
    store.ensure_dek().unwrap();
    let kek = Kek::generate();
    store.update_kek(Some(kek.clone()), 2).unwrap();
    assert!(exposed(&store));
    // Also after a crash, as long as the change of the other key shows that there was one.
    let again = fixture.store();
    again.load(Some(&kek)).unwrap();
    assert!(exposed(&again));
    let (certificate, key) = fixture.pair();
    again.save(&certificate, &key, KekChange::Keep).unwrap();
    assert!(!exposed(&again));
    again.begin_dek_change().unwrap();
    again.finish_dek_change().unwrap();
    let settled = fixture.store();
    settled.load(Some(&kek)).unwrap();
    assert!(!exposed(&settled));
    // Another unlock key exposes nothing.
    settled.update_kek(Some(Kek::generate()), 3).unwrap();
    assert!(!exposed(&settled));
}

#[test]
fn a_new_pair_does_not_bring_an_old_unlock_key_back() {
    let fixture = Fixture::new();
    let (old, new) = (Kek::generate(), Kek::generate());
    let (store, _, _) = fixture.saved(Some(&old));
    store.update_kek(Some(new.clone()), 3).unwrap();
    // It was asked for before the change.
    let (certificate, key) = fixture.pair();
    store.save(&certificate, &key, KekChange::Set(Some(old.clone()), 2)).unwrap();
    assert!(matches!(fixture.store().load(Some(&old)), Err(Error::Locked)));
    assert_eq!(fixture.store().load(Some(&new)).unwrap().key, key);
    assert_eq!(store.kek_version(), (true, 3));
}
