//! What tasks use.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::wait::until;
use swarm_tests::logs::{Running, ctl, writers};
use swarm_tests::{SOON, create, scale, with_logs};

use crate::support::text;

fn objects(output: &str) -> Result<Vec<Value>> {
    output.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_of_all_nodes_come_through_any_manager() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    cluster.add_manager().await?;
    let result = figures(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn figures(cluster: &mut Cluster) -> Result<()> {
    let idle = create(cluster, writers("idle", 3, "exec sleep 1000000")).await?;
    let tasks = cluster.running(&idle, 3, SOON).await?;
    let busy = create(cluster, writers("busy", 1, "while :; do :; done")).await?;
    let spinning = cluster.running(&busy, 1, SOON).await?.remove(0);
    let socket = cluster.socket_of("manager-2");
    let output = ctl(&socket, &["service", "stats", "--no-stream", "--format", "json", "idle", "busy"])?;
    ensure!(output.status.success(), "{output:?}");
    let all = objects(&text(&output.stdout))?;
    ensure!(all.len() == 4, "{all:#?}");
    for object in &all {
        let cpu = object["cpu_percent"].as_f64().with_context(|| format!("{object}"))?;
        let is_busy = object["task_id"] == spinning.id.as_str();
        ensure!(if is_busy { (10.0..150.0).contains(&cpu) } else { cpu < 5.0 }, "{object}");
        let memory = object["memory_bytes"].as_u64().context("memory")?;
        ensure!((50_000..50_000_000).contains(&memory), "{object}");
        ensure!(
            object["pids"] == 1 && object["network_sent_bytes"].is_null() && object["error"].is_null(),
            "{object}"
        );
    }
    let mut nodes: Vec<&str> =
        all.iter().filter(|o| o["task"] != "busy.1").filter_map(|o| o["node"].as_str()).collect();
    nodes.sort_unstable();
    ensure!(nodes == ["manager", "manager-2", "worker-1"], "{nodes:?}");

    let output = ctl(&socket, &["task", "stats", "--no-stream", &tasks[0].id, &spinning.id[..10]])?;
    let table = text(&output.stdout);
    ensure!(output.status.success() && table.lines().count() == 4, "{output:?}");
    ensure!(table.starts_with("Task ID") && table.contains("busy.1") && table.contains('%'), "{table}");
    for (args, code, expected) in [
        (&["task", "stats"][..], 2, "<TASK"),
        (&["task", "stats", "nothing"], 1, "task \"nothing\" not found"),
        (&["task", "stats", "--format", "xml", "x"], 2, "xml"),
    ] {
        let output = ctl(&socket, args)?;
        ensure!(
            output.status.code() == Some(code) && text(&output.stderr).contains(expected),
            "{args:?}: {output:?}"
        );
    }

    // Again and again, and of tasks that come later too.
    let running = Running::start(&socket, &["task", "stats", "--service", "idle", "--format", "json"])?;
    until("figures of three tasks, twice", SOON, || async {
        ensure!(running.count() >= 6);
        Ok(())
    })
    .await?;
    scale(cluster, &idle, 4).await?;
    let known = tasks.iter().map(|task| task.id.clone()).collect::<Vec<_>>();
    until("figures of the fourth", SOON, || async {
        let all = objects(&running.lines().join("\n"))?;
        let fourth = all.iter().any(|object| {
            object["task_id"].as_str().is_some_and(|id| !known.iter().any(|known| known == id))
                && object["cpu_percent"].is_number()
        });
        ensure!(fourth, "{} lines", all.len());
        Ok(())
    })
    .await?;
    drop(running);

    // A node that is lost is named, and the others are shown.
    cluster.workers[0].kill()?;
    let output = until("a note of what is missing", SOON, || async {
        let output = ctl(&socket, &["service", "stats", "--no-stream", "idle"])?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        Ok(output)
    })
    .await?;
    let table = text(&output.stdout);
    ensure!(table.contains("node worker-1") && table.matches('%').count() >= 2, "{table}");
    Ok(())
}
