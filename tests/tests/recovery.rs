//! Disasters: lost managers, lost disks, damaged files, full disks. Real daemons, on copies of real state.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use swarm_api::v1::health_check_response::ServingStatus;
use swarm_api::v1::health_client::HealthClient;
use swarm_api::v1::{
    ConfigSpec, CreateConfigRequest, CreateSecretRequest, HealthCheckRequest, NodeRole, SecretSpec,
};
use swarm_testkit::daemon::{Cluster, Engine, channel, program};
use swarm_testkit::wait::until;
use swarm_tests::{SOON, compact_soon, create, process_service, scale, with_logs};

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (path, target) = {
            let entry = entry?;
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            std::fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

/// Runs a daemon to its end, which must come soon, and returns its exit code and what it said.
fn run_to_end(state: &Path, more: &[&str]) -> Result<(Option<i32>, String)> {
    let socket = state.with_extension("sock");
    let log = state.with_extension("out");
    let out = std::fs::File::create(&log)?;
    let mut child = Command::new(program("swarmd")?)
        .arg("--state-dir")
        .arg(state)
        .arg("--listen-control-api")
        .arg(socket)
        .args(["--engine-addr", "none", "--listen-remote-api", "127.0.0.1:0"])
        .args(more)
        .env_remove("SWARM_BACKUP_PASSPHRASE")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(out)
        .spawn()?;
    let end = std::time::Instant::now() + SOON;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if std::time::Instant::now() > end {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("swarmd did not end: {}", std::fs::read_to_string(&log)?);
        }
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    };
    Ok((status.code(), std::fs::read_to_string(&log)?))
}

/// A daemon must refuse to start, and name what is wrong.
fn check_refused(state: &Path, more: &[&str], says: &[&str]) -> Result<()> {
    let (code, text) = run_to_end(state, more)?;
    ensure!(code == Some(1), "it ended with {code:?}: {text}");
    for part in says {
        ensure!(text.contains(part), "it does not say {part:?}: {text}");
    }
    Ok(())
}

async fn secret(cluster: &mut Cluster, name: &str) -> Result<()> {
    let mut spec = SecretSpec { data: b"secret data".to_vec(), ..Default::default() };
    spec.annotations.name = name.into();
    cluster.control.create_secret(CreateSecretRequest { spec: Some(spec) }).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_new_cluster_keeps_everything_and_leaves_tasks_alone() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    let result = forced(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn forced(cluster: &mut Cluster) -> Result<()> {
    let service = create(cluster, process_service("web", 3)).await?;
    secret(cluster, "password").await?;
    let ids = |tasks: Vec<swarm_api::Shared<swarm_api::v1::Task>>| {
        let mut ids: Vec<String> = tasks.iter().map(|task| task.id.to_string()).collect();
        ids.sort();
        ids
    };
    let before = ids(cluster.running(&service, 3, SOON).await?);
    let id = cluster.cluster_object().await?.id.clone();
    cluster.manager.kill()?;
    cluster.manager.extra = vec!["--force-new-cluster".into()];
    cluster.start_manager().await?;
    ensure!(cluster.cluster_object().await?.id == id);
    ensure!(cluster.ctl_ok(&["secret", "ls"])?.contains("password"));
    let after = ids(cluster.running(&service, 3, SOON).await?);
    ensure!(after == before, "{before:?} became {after:?}");
    scale(cluster, &service, 4).await?;
    cluster.running(&service, 4, SOON).await?;
    Ok(())
}

struct Backup {
    file: PathBuf,
    passphrase: String,
}

fn take_backup(cluster: &Cluster, name: &str) -> Result<Backup> {
    let dir = cluster.manager.state_dir().parent().context("a directory")?.to_owned();
    let (file, passphrase) = (dir.join(name), dir.join("passphrase"));
    std::fs::write(&passphrase, "four random words\n")?;
    let passphrase = passphrase.to_str().context("UTF-8")?.to_owned();
    let path = file.to_str().context("UTF-8")?;
    cluster.ctl_ok(&["cluster", "backup", path, "--passphrase-file", &passphrase])?;
    Ok(Backup { file, passphrase })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_brings_the_cluster_back_on_another_manager() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = back_from_backup(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn back_from_backup(cluster: &mut Cluster) -> Result<()> {
    let service = create(cluster, process_service("web", 2)).await?;
    secret(cluster, "password").await?;
    cluster.running(&service, 2, SOON).await?;
    let old = cluster.cluster_object().await?;
    let version = cluster.service(&service).await?.meta.version.index;
    let lost = cluster.node("manager").await?.id.clone();
    let backup = take_backup(cluster, "backup")?;
    let bytes = std::fs::read(&backup.file)?;
    for needle in [&b"secret data"[..], old.root_ca.join_tokens.worker.as_bytes()] {
        ensure!(!bytes.windows(needle.len()).any(|window| window == needle), "the backup is readable");
    }
    // What is written after the backup is not in it.
    create(cluster, process_service("later", 0)).await?;
    // It is never written over another file.
    let again = cluster.ctl(&["cluster", "backup", backup.file.to_str().context("UTF-8")?])?;
    ensure!(again.status.code() == Some(1) && std::fs::read(&backup.file)? == bytes);
    cluster.manager.kill()?;

    let mut restored = cluster.daemon(
        "restored",
        &[
            "--listen-remote-api",
            "127.0.0.1:0",
            "--listen-control-api",
            cluster.socket().to_str().context("UTF-8")?,
        ],
    );
    restored.extra =
        ["--restore", backup.file.to_str().context("UTF-8")?, "--passphrase-file", &backup.passphrase]
            .map(str::to_owned)
            .into();
    std::mem::swap(&mut cluster.manager, &mut restored);
    cluster.start_manager().await?;
    let new = cluster.cluster_object().await?;
    ensure!(new.id == old.id && new.root_ca.ca_cert == old.root_ca.ca_cert);
    let (before, after) = (&old.root_ca.join_tokens, &new.root_ca.join_tokens);
    ensure!(before.worker != after.worker && before.manager != after.manager, "old tokens are good still");
    ensure!(new.meta.version.index > version);
    ensure!(cluster.ctl_ok(&["secret", "ls"])?.contains("password"));
    let names: Vec<String> =
        cluster.services().await?.iter().map(|s| s.spec.annotations.name.clone()).collect();
    ensure!(names == ["web"], "{names:?}");
    ensure!(cluster.service(&service).await?.meta.version.index == version);
    let own = cluster.node("restored").await?;
    ensure!(own.id != lost && own.role() == NodeRole::Manager && own.manager_status.is_some());
    // Work goes to where it can be done, and a restart without the flag goes on as usual.
    cluster.ctl_ok(&["node", "drain", &lost])?;
    cluster.running(&service, 2, SOON).await?;
    scale(cluster, &service, 3).await?;
    cluster.running(&service, 3, SOON).await?;
    cluster.manager.stop().await?;
    let again = cluster.manager.state_dir().to_owned();
    let extra: Vec<&str> = cluster.manager.extra.iter().map(String::as_str).collect();
    check_refused(
        &again,
        &extra,
        &["--restore needs a state directory that was not used before", "certificates"],
    )?;
    cluster.manager.extra.clear();
    cluster.start_manager().await?;
    cluster.running(&service, 3, SOON).await?;
    let token = cluster.worker_token().await?;
    ensure!(token == new.root_ca.join_tokens.worker);
    cluster.add_worker().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_cluster_is_backed_up_with_its_unlock_key() -> Result<()> {
    let mut cluster = Cluster::start_with(Engine::None, 0, &["--autolock"]).await?;
    let result = async {
        let key = cluster.ctl_ok(&["cluster", "unlock-key", "-q"])?;
        let dir = cluster.manager.state_dir().parent().context("a directory")?.to_owned();
        let (file, key_file) = (dir.join("backup"), dir.join("key"));
        std::fs::write(&key_file, &key)?;
        cluster.ctl_ok(&["cluster", "backup", file.to_str().context("UTF-8")?])?;
        cluster.manager.kill()?;
        let (file, key_file) = (file.to_str().context("UTF-8")?, key_file.to_str().context("UTF-8")?);
        let socket = cluster.socket();
        let socket = socket.to_str().context("UTF-8")?;
        let mut restored = cluster
            .daemon("restored", &["--listen-remote-api", "127.0.0.1:0", "--listen-control-api", socket]);
        restored.extra = ["--restore", file, "--passphrase-file", key_file].map(str::to_owned).into();
        std::mem::swap(&mut cluster.manager, &mut restored);
        cluster.start_manager().await?;
        ensure!(cluster.ctl_ok(&["cluster", "unlock-key", "-q"])? == key);
        // It locks itself as its predecessor did.
        cluster.manager.kill()?;
        cluster.manager.extra = ["--unlock-key-file", key_file].map(str::to_owned).into();
        cluster.manager.start().await
    };
    let result = result.await;
    with_logs(&cluster, result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_can_not_be_used_is_refused_before_anything_is_written() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    create(&mut cluster, process_service("web", 0)).await?;
    let out = cluster.ctl(&["cluster", "backup", "/nowhere/backup"])?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.code() == Some(1) && text.contains("--passphrase-file"), "{text}");
    let backup = take_backup(&cluster, "backup")?;
    let whole = std::fs::read(&backup.file)?;
    let dir = tempfile::tempdir()?;
    let (file, wrong) = (dir.path().join("damaged"), dir.path().join("wrong"));
    std::fs::write(&wrong, "another passphrase")?;
    let state = dir.path().join("state");
    let check = |bytes: &[u8], passphrase: &str, says: &str| -> Result<()> {
        std::fs::write(&file, bytes)?;
        let path = file.to_str().context("UTF-8")?;
        let args = ["--restore", path, "--passphrase-file", passphrase];
        check_refused(&state, &args, &[path, says, "Nothing was written"])?;
        ensure!(!state.exists(), "something was written");
        Ok(())
    };
    check(&whole, wrong.to_str().context("UTF-8")?, "the passphrase that was given when it was written")?;
    check(&whole[..whole.len() - 100], &backup.passphrase, "cut short")?;
    check(&whole[..20], &backup.passphrase, "cut short")?;
    check(b"anything else", &backup.passphrase, "not a backup")?;
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    check(&flipped, &backup.passphrase, "damaged")?;
    std::fs::remove_file(&file)?;
    let path = file.to_str().context("UTF-8")?;
    check_refused(&state, &["--restore", path, "--passphrase-file", &backup.passphrase], &[path])?;
    check_refused(&state, &["--restore", path], &["SWARM_BACKUP_PASSPHRASE"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_files_are_named_and_never_served_from() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    let result = damaged(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn damaged(cluster: &mut Cluster) -> Result<()> {
    compact_soon(cluster).await?;
    for i in 0..30 {
        create(cluster, process_service(&format!("s{i}"), 0)).await?;
    }
    let snapshots = cluster.manager.state_dir().join("raft/snapshots");
    until("a snapshot", SOON, || async {
        ensure!(
            std::fs::read_dir(&snapshots)?
                .flatten()
                .any(|e| e.path().extension().is_some_and(|e| e == "snap"))
        );
        Ok(())
    })
    .await?;
    cluster.manager.stop().await?;
    let state = cluster.manager.state_dir().to_owned();
    let snapshot = std::fs::read_dir(&snapshots)?.next().context("no snapshot")??.path();
    let snapshot = snapshot.strip_prefix(&state)?.to_str().context("UTF-8")?.to_owned();

    let dir = tempfile::tempdir()?;
    let mut number = 0;
    let mut check = |file: &str, damage: &dyn Fn(&Path) -> Result<()>, says: &[&str]| -> Result<()> {
        number += 1;
        let target = dir.path().join(number.to_string());
        copy(&state, &target)?;
        damage(&target.join(file))?;
        check_refused(&target, &[], says).with_context(|| file.to_owned())
    };
    let remove = |path: &Path| -> Result<()> {
        if path.is_dir() {
            std::fs::remove_dir_all(path)?;
        } else {
            std::fs::remove_file(path)?;
        }
        Ok(())
    };
    let halve = |path: &Path| -> Result<()> {
        let bytes = std::fs::read(path)?;
        let content = bytes.iter().rposition(|b| *b != 0).unwrap_or(0);
        std::fs::write(path, &bytes[..content / 2])?;
        Ok(())
    };
    let flip = |path: &Path| -> Result<()> {
        let mut bytes = std::fs::read(path)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        std::fs::write(path, bytes)?;
        Ok(())
    };
    let blank = |path: &Path| -> Result<()> { Ok(std::fs::write(path, vec![0x55; 8192])?) };
    let empty = |path: &Path| -> Result<()> { Ok(std::fs::write(path, b"")?) };

    check("raft/log/db", &halve, &["raft/log"])?;
    check("raft/log/db", &remove, &["raft/log"])?;
    check("raft/log/db", &empty, &["raft/log"])?;
    check("raft/log", &remove, &["raft/log"])?;
    check("raft/watermark", &remove, &["raft/watermark"])?;
    check("raft/watermark", &blank, &["raft/watermark"])?;
    check("raft/watermark", &empty, &["raft/watermark"])?;
    check(&snapshot, &flip, &[&snapshot])?;
    check(&snapshot, &halve, &[&snapshot])?;
    check(&snapshot, &remove, &[&snapshot])?;
    let remove_all_known = |path: &Path| -> Result<()> {
        std::fs::remove_file(path.with_file_name("state.json"))?;
        remove(path)
    };
    check("raft", &remove_all_known, &["raft log in", "is gone"])?;
    let key = "certificates/swarm-node.key";
    check(key, &remove, &["certificates", "swarm-node.key"])?;
    check(key, &empty, &["certificates", "malformed private key"])?;
    check(key, &halve, &["certificates"])?;
    check("certificates/swarm-node.crt", &remove, &["certificates", "swarm-node.crt"])?;
    check("certificates/swarm-node.crt", &halve, &["certificates"])?;
    check("certificates/swarm-root-ca.crt", &remove, &["swarm-root-ca.crt"])?;
    check("certificates/swarm-root-ca.crt", &halve, &["certificates"])?;
    // The key of the log, or another one, in the key file.
    let without_dek = |path: &Path| -> Result<()> {
        let text = std::fs::read_to_string(path)?;
        let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("raft-dek")).collect();
        Ok(std::fs::write(path, kept.join("\n") + "\n")?)
    };
    check(key, &without_dek, &["raft", "certificates", "not in the key file"])?;
    let other_dek = |path: &Path| -> Result<()> {
        let text = std::fs::read_to_string(path)?;
        let at = text.find("raft-dek: ").context("no key of the log")? + 20;
        let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
        Ok(std::fs::write(path, [&text[..at], other, &text[at + 1..]].concat())?)
    };
    check(key, &other_dek, &["raft/log", "another data encryption key"])?;
    // Nothing of this has hurt the original.
    cluster.start_manager().await?;
    ensure!(cluster.services().await?.len() == 30);
    Ok(())
}

/// Runs a program with a file system of its own on a directory; it goes with the process.
fn on_its_own_disk(before: &str, after: &str, state: &Path) -> Result<Command> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-ec"]);
    command.arg(format!("{before}; \"$@\" {after}")).arg("sh").arg(program("swarmd")?);
    command.arg("--state-dir").arg(state).args([
        "--engine-addr",
        "none",
        "--listen-remote-api",
        "127.0.0.1:0",
    ]);
    command.arg("--listen-control-api").arg(state.with_extension("sock"));
    Ok(command)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_can_not_be_written_to_is_named() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 0).await?;
    cluster.manager.stop().await?;
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state");
    copy(cluster.manager.state_dir(), &state)?;
    let path = state.to_str().context("UTF-8")?;
    let setup = format!("mount --bind {path} {path}; mount -o remount,ro,bind {path}");
    let out = on_its_own_disk(&setup, "", &state)?.output()?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.code() == Some(1), "{:?} {text}", out.status);
    ensure!(text.contains(path) && text.contains("Read-only file system"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_ends_the_manager_and_loses_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state");
    std::fs::create_dir(&state)?;
    let kept = dir.path().join("kept");
    std::fs::create_dir(&kept)?;
    let (path, kept_path) = (state.to_str().context("UTF-8")?, kept.to_str().context("UTF-8")?);
    let log = dir.path().join("log");
    // A small disk; what is on it in the end is kept.
    let before = format!("mount -t tmpfs -o size=24m none {path}; code=0");
    let after = format!("cp -a {path}/. {kept_path}; exit $code");
    let mut daemon = on_its_own_disk(&before, &format!("|| code=$?; {after}"), &state)?;
    daemon.stderr(std::fs::File::create(&log)?).stdout(Stdio::null());
    let mut child = daemon.spawn()?;
    let socket = state.with_extension("sock");
    let result = fill(&socket).await;
    if result.is_err() {
        let _ = child.kill();
    }
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let written = result.with_context(said)?;
    let status = until("the daemon to end", SOON, || {
        let ended = child.try_wait();
        async move { ended?.context("it still runs") }
    })
    .await
    .with_context(said)?;
    let text = said();
    ensure!(status.code() == Some(1), "{status}: {text}");
    ensure!(text.contains(&format!("{path}/raft")) && text.contains("No space left on device"), "{text}");

    // With room again, everything that was acknowledged is there.
    let mut restarted = Command::new(program("swarmd")?)
        .arg("--state-dir")
        .arg(&kept)
        .args(["--engine-addr", "none", "--listen-remote-api", "127.0.0.1:0", "--listen-control-api"])
        .arg(&socket)
        .stderr(std::fs::File::create(&log)?)
        .stdout(Stdio::null())
        .spawn()?;
    let control = swarm_api::v1::control_client::ControlClient::new(channel(socket.clone()))
        .max_decoding_message_size(usize::MAX);
    let found = until("the manager to serve again", SOON, || {
        let mut control = control.clone();
        async move {
            let answer = control.list_configs(swarm_api::v1::ListConfigsRequest::default()).await?;
            Ok(answer.into_inner().configs)
        }
    })
    .await;
    restarted.kill()?;
    restarted.wait()?;
    let found = found.with_context(said)?;
    for name in &written {
        ensure!(found.iter().any(|c| c.spec.annotations.name == *name), "{name} is lost");
    }
    Ok(())
}

/// Writes until nothing can be written any more; returns what was acknowledged.
async fn fill(socket: &Path) -> Result<Vec<String>> {
    let mut control = swarm_api::v1::control_client::ControlClient::new(channel(socket.to_owned()));
    let health = HealthClient::new(channel(socket.to_owned()));
    until("the manager to serve", SOON, || {
        let mut control = control.clone();
        async move { Ok(control.list_clusters(swarm_api::v1::ListClustersRequest::default()).await.map(drop)?) }
    })
    .await?;
    let mut written = Vec::new();
    for number in 0..200 {
        let name = format!("config-{number}");
        let data: Vec<u8> = (0..400_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut spec = ConfigSpec { data, ..Default::default() };
        spec.annotations.name = name.clone();
        if control.create_config(CreateConfigRequest { spec: Some(spec) }).await.is_err() {
            // Stopped, or on its way to that: soon it serves no more.
            until("the manager to stop serving", SOON, || {
                let mut health = health.clone();
                async move {
                    let request = HealthCheckRequest { service: "ControlAPI".into() };
                    match health.check(request).await.map(|answer| answer.into_inner().status()) {
                        Ok(ServingStatus::Serving) => anyhow::bail!("it serves"),
                        _ => Ok(()),
                    }
                }
            })
            .await?;
            return Ok(written);
        }
        written.push(name);
    }
    anyhow::bail!("the disk never became full")
}
