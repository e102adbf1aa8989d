//! What the logs of daemons say, and what they must not.

use anyhow::{Context as _, Result, ensure};
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::wait::until;
use swarm_tests::{SOON, create, process_service};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_info_the_log_tells_the_life_of_a_task() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    let service = create(&mut cluster, process_service("web", 1)).await?;
    let task = cluster.running(&service, 1, SOON).await?.remove(0);
    // A line may come after what it tells of.
    until("the log to tell of the task", SOON, || async {
        let logs = cluster.logs();
        let lines: Vec<&str> = logs.lines().filter(|l| l.contains(task.id.as_str())).collect();
        let story = lines.join("\n");
        for word in ["created", "assigned", "running"] {
            ensure!(story.to_lowercase().contains(word), "nothing says {word:?}:\n{story}\n---- all\n{logs}");
        }
        ensure!(
            story.contains(&service) && story.contains(task.node_id.as_str()),
            "no ids of service and node:\n{story}"
        );
        Ok(())
    })
    .await?;
    let debug = cluster.logs().lines().filter(|l| l.contains("level=debug")).count();
    ensure!(debug == 0, "{debug} debug lines at info");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_any_log_at_any_level() -> Result<()> {
    let mut cluster = Cluster::start_with(Engine::None, 1, &["--log-level", "trace"]).await?;
    let mut spec = process_service("web", 1);
    let mark = "hunter2-hunter2";
    spec.annotations.labels.insert("shown".into(), "yes".into());
    let service = create(&mut cluster, spec).await?;
    cluster.running(&service, 1, SOON).await?;
    let request = swarm_api::v1::CreateSecretRequest {
        spec: Some(swarm_api::v1::SecretSpec {
            annotations: swarm_api::v1::Annotations { name: "password".into(), ..Default::default() }.into(),
            data: mark.as_bytes().to_vec(),
            ..Default::default()
        }),
    };
    // Whether or not secrets can be created: their content is in no log.
    let _ = cluster.control.create_secret(request).await;
    let object = cluster.cluster_object().await?;
    ensure!(object.root_ca.ca_key.is_empty(), "the CA key is shown to clients");
    let tokens = &object.root_ca.join_tokens;
    let key = std::fs::read_to_string(cluster.manager.state_dir().join("certificates/swarm-node.key"))?;
    let key = key
        .lines()
        .filter(|l| !l.contains(':') && !l.contains("---"))
        .find(|l| l.len() > 32)
        .context("a key")?;
    let secret = |token: &str| token.rsplit('-').next().map(str::to_owned).unwrap_or_default();
    let debug_of_bytes = format!("{:?}", mark.as_bytes());
    let logs = cluster.logs();
    ensure!(
        logs.contains("level=trace") || logs.contains("level=debug"),
        "the daemons do not log at this level"
    );
    for (what, text) in [
        ("the worker token", secret(&tokens.worker)),
        ("the manager token", secret(&tokens.manager)),
        ("the node's key", key.to_owned()),
        ("the secret", mark.to_owned()),
        ("the secret's bytes", debug_of_bytes.trim_matches(['[', ']']).to_owned()),
    ] {
        ensure!(text.len() > 8, "{what} is {text:?}");
        ensure!(!logs.contains(&text), "{what} is in a log");
    }
    Ok(())
}
