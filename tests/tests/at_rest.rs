//! What lies on a manager's disk, and what it needs to be opened: real daemons that lock themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use swarm_api::v1::health_check_response::ServingStatus;
use swarm_api::v1::health_client::HealthClient;
use swarm_api::v1::{CreateSecretRequest, CreateServiceRequest, HealthCheckRequest, SecretSpec};
use swarm_pki::{Credentials, Dek, Kek, KeyStore, PrivateKey, UnlockKey};
use swarm_raft::{RaftNode, Role};
use swarm_store::{Store, View};
use swarm_testkit::daemon::{Cluster, Engine, program};
use swarm_testkit::quorum;
use swarm_testkit::wait::until;
use swarm_tests::{SOON, create, process_service, with_logs};
use tonic::Code;

const PAYLOAD: &str = "correct horse battery staple, 17 times over";

/// Every file below a directory, with its content, but not what changes on any start.
fn files(dir: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries: std::io::Result<Vec<_>> = std::fs::read_dir(&path)?.collect();
            left.extend(entries?.into_iter().map(|entry| entry.path()));
        } else {
            found.insert(path.clone(), std::fs::read(&path)?);
        }
    }
    Ok(found)
}

fn certificates(cluster: &Cluster, at: &str) -> Result<PathBuf> {
    Ok(cluster.daemon_named(at)?.state_dir().join("certificates"))
}

fn key_file(cluster: &Cluster, at: &str) -> Result<String> {
    Ok(std::fs::read_to_string(certificates(cluster, at)?.join("swarm-node.key"))?)
}

fn certificate(cluster: &Cluster, at: &str) -> Result<Vec<u8>> {
    Ok(std::fs::read(certificates(cluster, at)?.join("swarm-node.crt"))?)
}

/// Waits until the key file is (not) encrypted, and no change of the keys is under way.
async fn settled(cluster: &Cluster, locked: bool) -> Result<()> {
    settled_at(cluster, "manager", locked).await
}

async fn settled_at(cluster: &Cluster, at: &str, locked: bool) -> Result<()> {
    until("the key file to be as the cluster says", SOON, || async {
        let text = key_file(cluster, at)?;
        ensure!(
            text.contains("ENCRYPTED PRIVATE KEY") == locked,
            "{}",
            text.lines().next().unwrap_or_default()
        );
        ensure!(!text.contains("raft-dek-needs-rotation") && !text.contains("raft-dek-pending"), "changing");
        Ok(())
    })
    .await
}

fn unlock_key(cluster: &Cluster) -> Result<String> {
    Ok(cluster.ctl_ok(&["cluster", "unlock-key", "--quiet"])?.trim().to_owned())
}

async fn lock(cluster: &Cluster) -> Result<String> {
    lock_all(cluster, &["manager"]).await
}

/// Locks these managers, which are all, and waits until each has changed the keys that lay in the clear before.
async fn lock_all(cluster: &Cluster, managers: &[&str]) -> Result<String> {
    let before: Vec<_> = managers.iter().map(|at| certificate(cluster, at)).collect::<Result<_>>()?;
    cluster.ctl_ok(&["cluster", "update", "--autolock"])?;
    for (at, before) in managers.iter().zip(&before) {
        settled_at(cluster, at, true).await?;
        until(&format!("{at} to have another key of its own"), SOON, || async {
            ensure!(certificate(cluster, at)? != *before, "it has the one that lay in the clear");
            Ok(())
        })
        .await?;
    }
    unlock_key(cluster)
}

fn write_key(cluster: &Cluster, name: &str, key: &str) -> Result<String> {
    let path = cluster.manager.state_dir().with_file_name(name);
    std::fs::write(&path, format!("{key}\n"))?;
    Ok(path.to_str().context("UTF-8")?.to_owned())
}

/// `swarmctl cluster unlock`: its exit code and what it says.
fn unlock(cluster: &Cluster, key: &str) -> Result<(Option<i32>, String)> {
    unlock_at(cluster, "manager", key)
}

fn unlock_at(cluster: &Cluster, at: &str, key: &str) -> Result<(Option<i32>, String)> {
    let out = Command::new(program("swarmctl")?)
        .env("SWARM_UNLOCK_KEY", key)
        .arg("--socket")
        .arg(cluster.socket_of(at))
        .args(["cluster", "unlock"])
        .output()?;
    let text = [out.stdout, out.stderr].concat();
    Ok((out.status.code(), String::from_utf8_lossy(&text).into_owned()))
}

fn another_key() -> String {
    UnlockKey::from(Kek::generate()).expose().to_string()
}

async fn starts_locked(cluster: &mut Cluster) -> Result<()> {
    cluster.manager.spawn()?;
    cluster.manager.says("this manager is locked").await?;
    cluster.reconnect();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_manager_waits_for_its_key_and_then_goes_on() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = waits_for_its_key(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn waits_for_its_key(cluster: &mut Cluster) -> Result<()> {
    ensure!(cluster.ctl_ok(&["cluster", "unlock-key"])? == "Managers not auto-locked\n");
    ensure!(cluster.ctl_ok(&["cluster", "unlock-key", "--rotate"])? == "Managers not auto-locked\n");
    let (code, text) = unlock(cluster, &another_key())?;
    ensure!(code == Some(1) && text.contains("not locked"), "{code:?} {text}");
    let service = create(cluster, process_service("web", 0)).await?;
    let key = lock(cluster).await?;
    ensure!(key.starts_with("SWMKEY-1-"), "{key}");
    cluster.manager.kill()?;
    let before = files(cluster.manager.state_dir())?;

    // Nobody gave it a key: it says so, and nothing else.
    starts_locked(cluster).await?;
    let mut health = HealthClient::new(cluster.channel());
    let status = health.check(HealthCheckRequest { service: "ControlAPI".into() }).await?.into_inner();
    ensure!(status.status() == ServingStatus::NotServing, "{status:?}");
    let refused = cluster.services().await.err().context("a locked manager lists services")?;
    let refused = refused.downcast::<tonic::Status>()?;
    ensure!(
        refused.code() == Code::FailedPrecondition && refused.message().contains("locked"),
        "{refused:?}"
    );
    let out = cluster.ctl(&["service", "ls"])?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.code() == Some(1) && text.contains("swarmctl cluster unlock"), "{text}");
    // Wrong keys leave it locked.
    for (key, says) in [(another_key(), "invalid key provided"), ("SWMKEY-2-x".into(), "SWMKEY-1-")] {
        let (code, text) = unlock(cluster, &key)?;
        ensure!(code == Some(1) && text.contains(says), "{code:?} {text}");
    }
    ensure!(files(cluster.manager.state_dir())? == before, "a locked manager changed its files");
    let (code, text) = unlock(cluster, &key)?;
    ensure!(code == Some(0), "{text}");
    cluster.manager.ready().await?;
    cluster.reconnect();
    ensure!(cluster.service(&service).await?.spec.annotations.name == "web");

    // The same with flags.
    cluster.manager.kill()?;
    let before = files(cluster.manager.state_dir())?;
    let wrong = write_key(cluster, "wrong.key", &another_key())?;
    cluster.manager.extra = vec!["--unlock-key-file".into(), wrong];
    cluster.manager.spawn()?;
    let status = cluster.manager.ended(SOON).await?;
    let log = cluster.manager.log();
    ensure!(status.code() == Some(1), "{status}");
    ensure!(log.contains("node is locked, and needs a valid unlock key"), "{log}");
    ensure!(files(cluster.manager.state_dir())? == before, "a wrong key changed files");
    let right = write_key(cluster, "right.key", &key)?;
    cluster.manager.extra = vec!["--unlock-key-file".into(), right];
    cluster.start_manager().await?;
    ensure!(cluster.service(&service).await?.spec.annotations.name == "web");

    // Not locked any more: a key does no harm, and none is needed.
    cluster.ctl_ok(&["cluster", "update", "--autolock=false"])?;
    settled(cluster, false).await?;
    cluster.manager.stop().await?;
    cluster.start_manager().await?;
    cluster.manager.says("an unlock key was given, but this node is not locked").await?;
    cluster.manager.stop().await?;
    cluster.manager.extra.clear();
    cluster.start_manager().await?;
    ensure!(cluster.service(&service).await?.spec.annotations.name == "web");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_unlock_key_ends_the_daemon_before_it_does_anything() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let out = Command::new(program("swarmd")?)
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .args(["--engine-addr", "none", "--unlock-key", "nonsense"])
        .output()?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(
        out.status.code() == Some(1) && text.contains("--unlock-key") && text.contains("SWMKEY-1-"),
        "{text}"
    );
    ensure!(!dir.path().join("state").exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_can_be_locked_from_its_first_day() -> Result<()> {
    let mut cluster = Cluster::start_with(Engine::None, 0, &["--autolock"]).await?;
    let result = async {
        settled(&cluster, true).await?;
        let key = unlock_key(&cluster)?;
        cluster.manager.stop().await?;
        starts_locked(&mut cluster).await?;
        ensure!(unlock(&cluster, &key)?.0 == Some(0));
        cluster.manager.ready().await
    };
    let result = result.await;
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_changed_while_the_manager_was_down_is_followed() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = follows_a_changed_key(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn follows_a_changed_key(cluster: &mut Cluster) -> Result<()> {
    let old = lock(cluster).await?;
    let path = cluster.manager.state_dir().join("certificates/swarm-node.key");
    let old_file = std::fs::read(&path)?;
    let new = cluster.ctl_ok(&["cluster", "unlock-key", "--rotate", "--quiet"])?.trim().to_owned();
    ensure!(old != new);
    let rewritten = || {
        until("the key file to be encrypted anew", SOON, || async {
            ensure!(std::fs::read(&path)? != old_file, "it is the old one");
            Ok(())
        })
    };
    rewritten().await?;
    // The file as a manager has it that was down while the key was changed.
    cluster.manager.stop().await?;
    std::fs::write(&path, &old_file)?;
    starts_locked(cluster).await?;
    let (code, text) = unlock(cluster, &new)?;
    ensure!(code == Some(1) && text.contains("needs the key from before"), "{text}");
    ensure!(unlock(cluster, &old)?.0 == Some(0));
    cluster.manager.ready().await?;
    cluster.reconnect();
    rewritten().await?;
    settled(cluster, true).await?;
    cluster.manager.kill()?;
    starts_locked(cluster).await?;
    ensure!(unlock(cluster, &old)?.0 == Some(1), "the old key still opens it");
    ensure!(unlock(cluster, &new)?.0 == Some(0));
    cluster.manager.ready().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_while_the_keys_change_loses_nothing() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = killed_while_keys_change(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn killed_while_keys_change(cluster: &mut Cluster) -> Result<()> {
    for round in 0..4 {
        create(cluster, process_service(&format!("s{round}"), 0)).await?;
        cluster.ctl_ok(&["cluster", "update", "--autolock"])?;
        let key = unlock_key(cluster)?;
        // Wherever it is by now.
        cluster.manager.kill()?;
        let file = write_key(cluster, "unlock.key", &key)?;
        cluster.manager.extra = vec!["--unlock-key-file".into(), file];
        cluster.start_manager().await?;
        settled(cluster, true).await?;
        ensure!(cluster.services().await?.len() == round + 1);
        cluster.ctl_ok(&["cluster", "update", "--autolock=false"])?;
        cluster.manager.kill()?;
        cluster.start_manager().await?;
        settled(cluster, false).await?;
        ensure!(cluster.services().await?.len() == round + 1);
    }
    Ok(())
}

/// What a manager's log holds, read from its files as somebody with the keys would.
async fn content(state: &Path, key: Option<&str>) -> Result<(PrivateKey, Dek, View)> {
    let copy = tempfile::tempdir()?;
    for (path, bytes) in files(state)? {
        let target = copy.path().join(path.strip_prefix(state)?);
        std::fs::create_dir_all(target.parent().context("a file in a directory")?)?;
        std::fs::write(target, bytes)?;
    }
    let kek = key.map(|key| key.parse::<UnlockKey>()).transpose()?;
    let now = std::time::SystemTime::now();
    let keys = KeyStore::open(copy.path().join("certificates"))?;
    let root = keys.load_root(now)?;
    let pair = keys.load(kek.as_ref().map(UnlockKey::kek))?;
    let deks = keys.deks();
    let (dek, sealer) = deks.current.clone().zip(deks.sealer()).context("no data encryption key")?;
    let credentials = Credentials::new(&pair.certificate, pair.key.clone(), &root, now, false)?;
    let config = swarm_raft::Config::new(credentials.node_id(), "", copy.path(), std::sync::Arc::new(sealer));
    let node = RaftNode::open(config)?;
    let store = Store::new();
    store.attach(node.proposer());
    let raft = node.start(store.clone())?;
    tokio::time::timeout(SOON, raft.wait_for(|status| status.role == Role::Leader)).await??;
    let view = store.view();
    raft.stop().await;
    Ok((pair.key, dek, view))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_readable_in_the_state_directory() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    let result = nothing_is_readable(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn nothing_is_readable(cluster: &mut Cluster) -> Result<()> {
    let mut spec = SecretSpec { data: PAYLOAD.as_bytes().to_vec(), ..Default::default() };
    spec.annotations.name = "password".into();
    cluster.control.create_secret(CreateSecretRequest { spec: Some(spec) }).await?;
    let (exposed, _) = own_keys(cluster, "manager", None)?;
    for locked in [false, true] {
        let key = if locked { Some(lock(cluster).await?) } else { None };
        let exposed = Some(&exposed).filter(|_| locked);
        // Both as after a crash and as after an orderly end.
        let state = cluster.manager.state_dir().to_owned();
        cluster.manager.kill()?;
        check_nothing_readable(&state, key.as_deref(), exposed).await?;
        if let Some(key) = &key {
            cluster.manager.extra = vec!["--unlock-key-file".into(), write_key(cluster, "k", key)?];
        }
        cluster.start_manager().await?;
        cluster.manager.stop().await?;
        check_nothing_readable(&state, key.as_deref(), exposed).await?;
        cluster.start_manager().await?;
    }
    // A worker has no more than its own key.
    for (path, bytes) in files(cluster.workers[0].state_dir())? {
        ensure!(!contains(&bytes, PAYLOAD.as_bytes()), "the secret is in {}", path.display());
    }
    Ok(())
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// Things that must not be readable, with their names.
type Needles = Vec<(&'static str, Vec<u8>)>;

fn base64(bytes: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes).trim_end_matches('=').into()
}

/// `exposed` is a key that lay in the clear once: it must not be in use any more.
async fn check_nothing_readable(state: &Path, key: Option<&str>, exposed: Option<&PrivateKey>) -> Result<()> {
    let (node_key, dek, view) = content(state, key).await?;
    let mut needles = secrets_of(&view)?;
    if let Some(exposed) = exposed {
        ensure!(*exposed != node_key, "the node goes on with the key that lay in the clear");
        needles.extend(pem("the node's key from before", exposed.to_pkcs8_pem().expose())?);
    }
    let own = own_secrets(&node_key, &dek)?;
    // Without autolock these lie in the key file, where the contract wants them, and nowhere else.
    let (exempt, needles) = match key {
        None => (own, needles),
        Some(_) => (Needles::new(), [needles, own].concat()),
    };
    not_readable(state, &needles, &[])?;
    not_readable(state, &exempt, &["certificates/swarm-node.key"])
}

/// What the cluster keeps secret.
fn secrets_of(view: &View) -> Result<Needles> {
    let cluster = view.cluster().context("no cluster object in the log")?;
    let mut secrets: Needles = vec![
        ("the payload of a secret", PAYLOAD.as_bytes().to_vec()),
        ("the join token of workers", cluster.root_ca.join_tokens.worker.clone().into_bytes()),
        ("the join token of managers", cluster.root_ca.join_tokens.manager.clone().into_bytes()),
    ];
    // Of a token without its public part.
    let token = cluster.root_ca.join_tokens.worker.rsplit('-').next().unwrap_or_default();
    secrets.push(("the secret part of a join token", token.as_bytes().to_vec()));
    ensure!(!cluster.root_ca.ca_key.is_empty() && !cluster.network_bootstrap_keys.is_empty());
    secrets.extend(pem("the key of the CA", &cluster.root_ca.ca_key)?);
    for key in cluster.network_bootstrap_keys.iter().chain(&cluster.unlock_keys) {
        secrets.push(("a network key or the unlock key", key.key.clone()));
        secrets.push(("a network key or the unlock key in base64", base64(&key.key)));
    }
    let view_has_secret = view.secrets().iter().any(|secret| secret.spec.data == PAYLOAD.as_bytes());
    ensure!(view_has_secret, "the log does not hold what is looked for");
    Ok(secrets)
}

/// What a manager keeps secret for itself.
fn own_secrets(node_key: &PrivateKey, dek: &Dek) -> Result<Needles> {
    let mut own = pem("the node's key", node_key.to_pkcs8_pem().expose())?;
    own.push(("the data encryption key", dek.expose().to_vec()));
    // In a header it is the one field of a message.
    own.push(("the header with the data encryption key", base64(&[&[0x12, 0x20], dek.expose()].concat())));
    Ok(own)
}

/// None of this is readable in any file of a state directory but those that are exempt.
fn not_readable(state: &Path, needles: &Needles, exempt: &[&str]) -> Result<()> {
    for (path, bytes) in files(state)? {
        if exempt.iter().any(|exempt| path.ends_with(exempt)) {
            continue;
        }
        for (what, needle) in needles {
            ensure!(needle.len() >= 16, "{what} is too short to be looked for");
            ensure!(!contains(&bytes, needle), "{what} is readable in {}", path.display());
        }
    }
    Ok(())
}

/// A key in the forms that it could lie about in: each line of its PEM that has something of it, and its bytes. What comes after
/// it is the public key, which certificates have too: now and then their lines break in the same places.
fn pem(what: &'static str, text: &[u8]) -> Result<Needles> {
    use base64::Engine as _;
    let text = std::str::from_utf8(text)?;
    let lines: Vec<&str> =
        text.lines().filter(|line| !line.starts_with("-----") && line.len() >= 16).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(lines_joined(text))?;
    // The private part of a P-256 key, in PKCS#8 and in SEC1.
    let head = [0x04, 0x20];
    let begin =
        der.windows(head.len()).position(|window| window == head).context("no private key")? + head.len();
    let scalar = der.get(begin..begin + 32).context("no private key of 32 bytes")?;
    // A line is 48 bytes.
    let private = lines.iter().zip(0..).filter(|(_, line)| line * 48 < begin + 32 && (line + 1) * 48 > begin);
    let mut found: Vec<_> = private.map(|(line, _)| (what, line.as_bytes().to_vec())).collect();
    ensure!(!found.is_empty(), "no line of the PEM has anything of the private key");
    found.push((what, scalar.to_vec()));
    Ok(found)
}

fn lines_joined(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with("-----")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_managers_are_locked_and_a_fourth_joins_them() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = several_locked_managers(&mut cluster).await;
    with_logs(&cluster, result)
}

const THREE: [&str; 3] = ["manager", "manager-2", "manager-3"];

/// Starts a manager that was stopped, which waits for its key, and connects to it anew.
async fn starts_locked_at(cluster: &mut Cluster, at: &str) -> Result<()> {
    let daemon = cluster.daemon_mut(at)?;
    daemon.spawn()?;
    daemon.says("this manager is locked").await?;
    cluster.reconnect();
    Ok(())
}

/// Writes something that is not there yet, and waits until all these managers hold the same.
async fn write_and_compare(cluster: &mut Cluster, managers: &[&str], name: &str) -> Result<()> {
    let write = until("a write to succeed", SOON, || {
        let mut control = cluster.control.clone();
        let request = CreateServiceRequest { spec: Some(process_service(name, 0)) };
        async move {
            match control.create_service(request).await {
                // An earlier attempt, whose outcome was not known.
                Err(status) if status.code() == Code::AlreadyExists => Ok(()),
                result => Ok(result.map(drop)?),
            }
        }
    });
    write.await?;
    let contents = quorum::same(&*cluster, managers).await?;
    ensure!(
        contents.services.iter().any(|service| service.spec.annotations.name == name),
        "{name} is not there"
    );
    Ok(())
}

/// A manager's own keys, from its files.
fn own_keys(cluster: &Cluster, at: &str, key: Option<&str>) -> Result<(PrivateKey, Dek)> {
    let copy = tempfile::tempdir()?;
    for (path, bytes) in files(&certificates(cluster, at)?)? {
        std::fs::write(copy.path().join(path.file_name().context("a file")?), bytes)?;
    }
    let keys = KeyStore::open(copy.path())?;
    let kek = key.map(str::parse::<UnlockKey>).transpose()?;
    let pair = keys.load(kek.as_ref().map(UnlockKey::kek))?;
    Ok((pair.key, keys.deks().current.context("no data encryption key")?))
}

/// Waits until a manager's key file can be opened with this key.
async fn opens_with(cluster: &Cluster, at: &str, key: &str) -> Result<()> {
    until(&format!("the key file of {at} to be encrypted anew"), SOON, || async {
        own_keys(cluster, at, Some(key)).map(drop)
    })
    .await
}

async fn several_locked_managers(cluster: &mut Cluster) -> Result<()> {
    let mut spec = SecretSpec { data: PAYLOAD.as_bytes().to_vec(), ..Default::default() };
    spec.annotations.name = "password".into();
    cluster.control.create_secret(CreateSecretRequest { spec: Some(spec) }).await?;
    cluster.manager.stop().await?;
    // While it is alone, its log can be read without the others.
    let (_, _, view) = content(cluster.manager.state_dir(), None).await?;
    let mut secrets = secrets_of(&view)?;
    cluster.start_manager().await?;
    for _ in 0..2 {
        cluster.add_manager().await?;
    }
    for at in THREE {
        let (node_key, dek) = own_keys(cluster, at, None)?;
        secrets.extend(own_secrets(&node_key, &dek)?);
    }
    let key = lock_all(cluster, &THREE).await?;
    secrets.push(("the unlock key", key.parse::<UnlockKey>()?.kek().expose().to_vec()));
    secrets.push(("the unlock key as text", key.clone().into_bytes()));
    cluster.unlock_key = Some(key.clone());
    write_and_compare(cluster, &THREE, "locked").await?;

    // All of them go down at once, and each has to be unlocked for itself: two by hand, one by its flags.
    for at in THREE {
        cluster.daemon_mut(at)?.kill()?;
    }
    for at in ["manager", "manager-2"] {
        starts_locked_at(cluster, at).await?;
        let (code, text) = unlock_at(cluster, at, &another_key())?;
        ensure!(code == Some(1) && text.contains("invalid key provided"), "{code:?} {text}");
    }
    for at in ["manager", "manager-2"] {
        let (code, text) = unlock_at(cluster, at, &key)?;
        ensure!(code == Some(0), "{text}");
    }
    let file = write_key(cluster, "unlock.key", &key)?;
    cluster.daemon_mut("manager-3")?.extra = vec!["--unlock-key-file".into(), file];
    cluster.daemon_mut("manager-3")?.spawn()?;
    for at in THREE {
        cluster.daemon_mut(at)?.ready().await?;
    }
    cluster.reconnect();
    write_and_compare(cluster, &THREE, "unlocked").await?;

    // A new one locks itself from the start.
    let state = cluster.manager.state_dir().with_file_name("manager-4");
    let joined = Arc::new(AtomicBool::new(false));
    let watching = std::thread::spawn({
        let (joined, file) = (joined.clone(), state.join("certificates/swarm-node.key"));
        move || {
            let mut looks = 0;
            while !joined.load(Ordering::Relaxed) {
                // Replaced by renames, so it is there as a whole or not at all.
                if let Ok(text) = std::fs::read_to_string(&file) {
                    ensure!(text.contains("ENCRYPTED PRIVATE KEY"), "the new manager's key lay in the clear");
                    looks += 1;
                }
                std::thread::yield_now();
            }
            ensure!(looks > 0, "nobody looked");
            Ok(())
        }
    });
    let added = cluster.add_manager().await;
    joined.store(true, Ordering::Relaxed);
    watching.join().map_err(|_| anyhow::anyhow!("the watch panicked"))??;
    added?;
    let all = ["manager", "manager-2", "manager-3", "manager-4"];
    write_and_compare(cluster, &all, "four").await?;

    // The key changes while that one is down: it needs the key from before, and then follows.
    cluster.daemon_mut("manager-4")?.kill()?;
    let new = cluster.ctl_ok(&["cluster", "unlock-key", "--rotate", "--quiet"])?.trim().to_owned();
    ensure!(new != key);
    for at in THREE {
        opens_with(cluster, at, &new).await?;
    }
    cluster.unlock_key = Some(new.clone());
    starts_locked_at(cluster, "manager-4").await?;
    let (code, text) = unlock_at(cluster, "manager-4", &new)?;
    ensure!(code == Some(1) && text.contains("needs the key from before"), "{text}");
    ensure!(unlock_at(cluster, "manager-4", &key)?.0 == Some(0));
    cluster.daemon_mut("manager-4")?.ready().await?;
    opens_with(cluster, "manager-4", &new).await?;
    write_and_compare(cluster, &all, "changed").await?;
    secrets.push(("the new unlock key", new.parse::<UnlockKey>()?.kek().expose().to_vec()));

    for at in all {
        cluster.daemon_mut(at)?.kill()?;
        let (node_key, dek) = own_keys(cluster, at, Some(&new))?;
        let needles = [secrets.clone(), own_secrets(&node_key, &dek)?].concat();
        not_readable(cluster.daemon_named(at)?.state_dir(), &needles, &[])?;
    }
    Ok(())
}
