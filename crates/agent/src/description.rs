//! What a node says of itself.

use std::time::Duration;

use futures::future::join_all;
use swarm_api::extensions::{EXEC_ABILITY, Feature, PREFIX};
use swarm_api::v1::{EngineDescription, NodeDescription, NodeTlsInfo, Platform, Resources};
use tokio::sync::watch;

use crate::ExecutorDescription;
use crate::executors::Executors;
use crate::generic_resources::GenericResources;

/// Longest time that an executor may take to describe itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// Puts the description together from what the executors say.
#[derive(Debug)]
pub(crate) struct Describer {
    executors: Executors,
    hostname: String,
    fips: bool,
    exec: bool,
    tls_info: watch::Receiver<Option<NodeTlsInfo>>,
    generic: GenericResources,
    /// The last answer of each executor; one that does not answer keeps it.
    last: Vec<Option<ExecutorDescription>>,
    /// Why each does not answer, as it was logged.
    trouble: Vec<Option<String>>,
}

impl Describer {
    pub(crate) fn new(
        executors: Executors,
        hostname: Option<String>,
        fips: bool,
        exec: bool,
        tls_info: watch::Receiver<Option<NodeTlsInfo>>,
        generic: GenericResources,
    ) -> Describer {
        let hostname = hostname.filter(|name| !name.is_empty()).unwrap_or_else(host::name);
        let (last, trouble) = (vec![None; executors.iter().count()], vec![None; executors.iter().count()]);
        Describer { executors, hostname, fips, exec, tls_info, generic, last, trouble }
    }

    /// Asks every executor and puts their answers together.
    pub(crate) async fn describe(&mut self) -> NodeDescription {
        let calls = self.executors.iter().map(|executor| async {
            match tokio::time::timeout(PATIENCE, executor.describe()).await {
                Ok(Ok(description)) => Ok(description),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
            }
        });
        let answers = join_all(calls).await;
        for (n, (executor, answer)) in self.executors.iter().zip(answers).enumerate() {
            let before = self.trouble[n].take();
            match answer {
                Ok(description) => self.last[n] = Some(description),
                Err(reason) => {
                    // It is asked again and again, and told once.
                    if before.as_ref() != Some(&reason) {
                        tracing::warn!(reason, runtimes = ?executor.runtimes(), "an executor can't describe itself");
                    }
                    self.trouble[n] = Some(reason);
                }
            }
        }
        self.generic.refresh().await;
        self.merge()
    }

    /// Returns when the node's TLS identity has changed, or an executor has something new to say.
    pub(crate) async fn changed(&mut self) {
        let Describer { executors, tls_info, .. } = self;
        let tls_changed = async {
            if tls_info.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = tls_changed => {}
            () = executors.changed() => {}
        }
    }

    fn merge(&mut self) -> NodeDescription {
        let mut engine = EngineDescription::default();
        let (mut resources, mut architecture, mut os) = (None, None, None);
        engine.labels.insert(runtime_label("container"), "0".into());
        engine.labels.insert(EXEC_ABILITY.into(), u8::from(self.exec).to_string());
        for feature in Feature::ALL {
            engine.labels.insert(feature.label().into(), "0".into());
        }
        for (executor, answer) in self.executors.iter().zip(&self.last) {
            let Some(answer) = answer else { continue };
            if engine.engine_version.is_empty() {
                engine.engine_version.clone_from(&answer.engine_version);
            }
            let labels = answer.engine_labels.iter().filter(|(key, _)| !key.starts_with(PREFIX));
            engine.labels.extend(labels.map(|(key, value)| (key.clone(), value.clone())));
            engine.plugins.extend(answer.plugins.iter().cloned());
            resources = resources.or_else(|| answer.resources.clone());
            architecture = architecture.or_else(|| answer.architecture.clone());
            os = os.or_else(|| answer.os.clone());
            for runtime in executor.runtimes() {
                engine.labels.insert(runtime_label(&runtime), "1".into());
            }
            for feature in &answer.features {
                engine.labels.insert(feature.label().into(), "1".into());
            }
        }
        engine.plugins.sort_by(|a, b| (&a.r#type, &a.name).cmp(&(&b.r#type, &b.name)));
        engine.plugins.dedup();
        NodeDescription {
            hostname: self.hostname.clone(),
            platform: Some(Platform {
                architecture: architecture.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
                os: os.unwrap_or_else(|| std::env::consts::OS.to_owned()),
            }),
            resources: Some(self.generic.complete(resources.unwrap_or_else(host::resources))),
            engine: Some(engine),
            tls_info: self.tls_info.borrow_and_update().clone(),
            fips: self.fips,
            csi_info: Vec::new(),
        }
    }
}

/// The engine label that says whether the node has a runtime.
fn runtime_label(runtime: &str) -> String {
    format!("{PREFIX}runtime.{runtime}")
}

/// What this host says of itself where no engine does.
mod host {
    use super::Resources;

    pub(super) fn name() -> String {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim().to_owned()
    }

    pub(super) fn resources() -> Resources {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let nano_cpus = i64::try_from(cpus).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Resources { nano_cpus, memory_bytes: total(&meminfo).unwrap_or(0), generic: Vec::new() }
    }

    /// `MemTotal` of a `/proc/meminfo`, in bytes.
    pub(super) fn total(meminfo: &str) -> Option<i64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(host::total("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16_777_216));
        assert_eq!(host::total("nonsense"), None);
        assert!(host::resources().memory_bytes > 0);
        assert!(!host::name().is_empty());
    }
}
