//! Clients of managers that may be gone, frozen or cut off.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use swarm_api::v1::{ConfigSpec, CreateConfigRequest, RemoveConfigRequest};
use swarm_testkit::daemon::program;
use swarm_testkit::lab::managers::Managers;
pub(crate) use swarm_testkit::quorum::PATIENCE;
use swarm_testkit::quorum::contents;
use swarm_testkit::wait::until;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The managers of most tests.
pub(crate) const ALL: [&str; 3] = ["m1", "m2", "m3"];
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// All of three managers but one.
pub(crate) fn others(name: &str) -> [&'static str; 2] {
    let rest: Vec<_> = ALL.into_iter().filter(|other| *other != name).collect();
    [rest[0], rest[1]]
}

/// Writes a config through the first of these managers that carries it out.
pub(crate) async fn write(managers: &Managers, through: &[&str], name: &str) -> Result<()> {
    until(&format!("{name} to be written"), PATIENCE, || async {
        let mut errors = Vec::new();
        for manager in through {
            let mut spec = ConfigSpec { data: name.into(), ..ConfigSpec::default() };
            spec.annotations.name = name.to_owned();
            let request = CreateConfigRequest { spec: Some(spec) };
            let mut control = managers.control(manager)?;
            match tokio::time::timeout(ANSWER, control.create_config(request)).await {
                Ok(Ok(_)) => return Ok(()),
                // An earlier attempt whose outcome was not known.
                Ok(Err(status)) if status.code() == tonic::Code::AlreadyExists => return Ok(()),
                Ok(Err(status)) => errors.push(format!("{manager}: {status}")),
                Err(_) => errors.push(format!("{manager}: no answer")),
            }
        }
        bail!("{errors:?}")
    })
    .await
}

/// Removes a config through the first of these managers that carries it out.
pub(crate) async fn remove(managers: &Managers, through: &[&str], name: &str) -> Result<()> {
    until(&format!("{name} to be removed"), PATIENCE, || async {
        let held = contents(managers, through[0]).await?;
        let Some(config) = held.configs.iter().find(|c| c.spec.annotations.name == name) else {
            return Ok(());
        };
        for manager in through {
            let mut control = managers.control(manager)?;
            let request = RemoveConfigRequest { config_id: config.id.clone() };
            let _ = tokio::time::timeout(ANSWER, control.remove_config(request)).await;
        }
        bail!("it may be there still")
    })
    .await
}

/// A manager has this config in its own store.
pub(crate) async fn has(managers: &Managers, manager: &str, config: &str) -> Result<bool> {
    // One that is about to notice that it does not lead any more answers only then.
    let held =
        until(&format!("{manager} to tell what it has"), PATIENCE, || contents(managers, manager)).await?;
    Ok(held.configs.iter().any(|c| c.spec.annotations.name == config))
}

/// Waits until a manager's answer is that it knows no leader, and how many of three managers it reaches.
pub(crate) async fn knows_no_leader(managers: &Managers, name: &str, reached: usize) -> Result<()> {
    until(&format!("{name} to know no leader"), PATIENCE, || async {
        let answer = tokio::time::timeout(PATIENCE, managers.ctl(name, &["service", "ls"])).await??;
        let text = String::from_utf8_lossy(&answer.stderr).into_owned();
        ensure!(answer.status.code() == Some(1), "{answer:?}");
        ensure!(text.contains("The swarm does not have a leader."), "{text}");
        let counts = format!("Of 3 known managers, 2 must be online; this one reaches {reached} ");
        ensure!(text.contains(&counts), "{text}");
        Ok(())
    })
    .await
}

/// A loop of `swarmctl service create` over several managers' sockets in turn. It ends when this is dropped.
pub(crate) struct Creating {
    acknowledged: watch::Receiver<Vec<String>>,
    stop: watch::Sender<bool>,
    task: JoinSet<Result<()>>,
}

/// Begins to create services, one after the other, none of them twice.
pub(crate) fn create_services(sockets: Vec<PathBuf>) -> Creating {
    let (acknowledge, acknowledged) = watch::channel(Vec::new());
    let (stop, stopped) = watch::channel(false);
    let mut task = JoinSet::new();
    task.spawn(async move {
        for (number, socket) in sockets.iter().cycle().enumerate() {
            if *stopped.borrow() {
                break;
            }
            let name = format!("service-{number}");
            let mut command = tokio::process::Command::new(program("swarmctl")?);
            command.arg("--socket").arg(socket).kill_on_drop(true);
            command.args(["service", "create", "--name", &name, "--image", "none", "--replicas", "0"]);
            // One that fails, or does not answer, may have been made or not: another name is next.
            if let Ok(out) = tokio::time::timeout(ANSWER, command.output()).await
                && out?.status.success()
            {
                acknowledge.send_modify(|names| names.push(name));
            }
        }
        Ok(())
    });
    Creating { acknowledged, stop, task }
}

impl Creating {
    /// Names of the services that were made for certain.
    pub(crate) fn acknowledged(&self) -> Vec<String> {
        self.acknowledged.borrow().clone()
    }

    /// Ends the loop and returns these names.
    pub(crate) async fn finish(mut self) -> Result<Vec<String>> {
        self.stop.send_replace(true);
        self.task.join_next().await.context("it was begun")???;
        Ok(self.acknowledged())
    }
}
