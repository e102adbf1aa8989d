//! Who may execute what where, and what comes of it.

use anyhow::{Result, ensure};
use swarm_api::swarmd::open_task::What;
use swarm_api::swarmd::task_sessions_client::TaskSessionsClient;
use swarm_api::swarmd::tasks_client::TasksClient;
use swarm_api::swarmd::{AttachTask, OpenTask, ServeRequest, TaskInput, task_input};
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::wait::until;
use swarm_tests::logs::{Running, ctl, writers};
use swarm_tests::{SOON, create, process_service, with_logs};
use tonic::Code;

use crate::support::{ctl_with, on_node, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_executed_on_any_node_through_any_manager() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    cluster.add_manager().await?;
    let result = through_any_manager(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn through_any_manager(cluster: &mut Cluster) -> Result<()> {
    let service = create(cluster, process_service("web", 3)).await?;
    let tasks = cluster.running(&service, 3, SOON).await?;
    for manager in ["manager", "manager-2"] {
        let socket = cluster.socket_of(manager);
        for node in ["manager", "manager-2", "worker-1"] {
            let task = on_node(cluster, &tasks, node)?;
            let script = "echo out $SWARMD_TASK_ID $0; echo err >&2; exit 7";
            let output = ctl(&socket, &["task", "exec", &task.id[..12], "sh", "-c", script, "-x"])?;
            ensure!(output.status.code() == Some(7), "{manager} {node}: {output:?}");
            let expected = format!("out {} -x\n", task.id);
            ensure!((text(&output.stdout), text(&output.stderr)) == (expected, "err\n".into()), "{output:?}");
        }
    }
    let socket = cluster.socket_of("manager-2");
    let task = on_node(cluster, &tasks, "worker-1")?;
    // The standard input, whole and to its end; without -i there is none.
    let input: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let output = ctl_with(&socket, &["task", "exec", "-i", &task.id, "cat"], &input)?;
    ensure!(
        output.status.success() && output.stdout == input,
        "{} bytes: {}",
        output.stdout.len(),
        text(&output.stderr)
    );
    let output = ctl_with(&socket, &["task", "exec", &task.id, "cat"], b"nothing of this")?;
    ensure!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let flags =
        ["task", "exec", "-u", "nobody", "-w", "/tmp", "-e", "A=1", "-e", "PATH_THAT_IS_NOT_SET", &task.id];
    let output = ctl(&socket, &[&flags[..], &["sh", "-c", "id -un; pwd; echo $A"]].concat())?;
    ensure!(text(&output.stdout) == "nobody\n/tmp\n1\n", "{output:?}");
    refusals(cluster, &task.id)?;
    on_record(cluster, &task.id)
}

fn refusals(cluster: &Cluster, task: &str) -> Result<()> {
    let socket = cluster.socket_of("manager-2");
    for (args, code, expected) in [
        (&["task", "exec", "nothing", "true"][..], 1, "Error: task \"nothing\" not found"),
        (&["task", "exec", task], 2, "<COMMAND>"),
        (&["task", "exec", "-it", task, "sh"], 2, "the standard input is no terminal: leave -t away"),
        (
            &["task", "exec", "-w", "tmp", task, "true"],
            1,
            "the working directory must be an absolute path: tmp",
        ),
        (&["task", "exec", "-u", "nobody-knows", task, "true"], 1, "no user \"nobody-knows\" on this node"),
        (
            &["task", "exec", task, "nonsense-nonsense"],
            127,
            "swarmd: executing nonsense-nonsense: No such file",
        ),
        (&["task", "attach", "--detach-keys", "ctrl-", task], 2, "are no keys"),
    ] {
        let output = ctl(&socket, args)?;
        let error = text(&output.stderr);
        ensure!(output.status.code() == Some(code) && error.contains(expected), "{args:?}: {output:?}");
        ensure!(output.stdout.is_empty(), "{output:?}");
    }
    Ok(())
}

fn uid() -> String {
    format!("uid={}", nix::unistd::getuid())
}

fn refusals_on_record(log: &str) -> Vec<String> {
    log.lines().filter(|line| line.contains("task session refused")).map(str::to_owned).collect()
}

/// Both sides have written down who executed what, but not with which arguments; and who was not let in.
fn on_record(cluster: &Cluster, task: &str) -> Result<()> {
    let uid = uid();
    let refused = refusals_on_record(&cluster.manager.log());
    ensure!(
        refused.len() == 1
            && ["level=info", "task.id=nothing", "what=exec", "program=true", &uid, "task nothing not found"]
                .iter()
                .all(|part| refused[0].contains(part)),
        "{refused:#?}"
    );
    for daemon in [&cluster.manager, &cluster.workers[0]] {
        let log = daemon.log();
        let begins: Vec<&str> =
            log.lines().filter(|line| line.contains("task session begins") && line.contains(task)).collect();
        let via = cluster.node_id("manager-2")?;
        ensure!(
            begins
                .iter()
                .any(|line| line.contains("program=sh ") && line.contains(&uid) && line.contains(&via)),
            "{}: {begins:#?}",
            daemon.name
        );
        ensure!(log.contains("task session ended") && log.contains("exit code 7"), "{log}");
        ensure!(!log.contains("echo out"), "an argument is in the log of {}", daemon.name);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attaching_shows_what_a_process_writes_and_leaves_it_alone() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    let script = "i=1; while :; do echo $i; i=$((i+1)); sleep 0.05; done";
    let service = create(&mut cluster, writers("clock", 2, script)).await?;
    let tasks = cluster.running(&service, 2, SOON).await?;
    let task = on_node(&cluster, &tasks, "worker-1")?;
    let attached = Running::start(&cluster.socket(), &["task", "attach", &task.id])?;
    until("ten lines", SOON, || async {
        ensure!(attached.count() >= 10);
        Ok(())
    })
    .await?;
    let lines = attached.lines();
    let numbers: Vec<u64> = lines.iter().map(|line| line.parse()).collect::<Result<_, _>>()?;
    ensure!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    drop(attached);
    // It still runs, under its own process id.
    let again = cluster.running(&service, 2, SOON).await?;
    ensure!(again.iter().any(|now| now.id == task.id), "{again:?}");
    // The end of the task is the end of this one, with its exit code.
    let mut attached = Running::start(&cluster.socket(), &["task", "attach", &task.id])?;
    until("a line", SOON, || async {
        ensure!(attached.count() > 0);
        Ok(())
    })
    .await?;
    cluster.ctl_ok(&["service", "rm", "clock"])?;
    until("the end", SOON, || {
        let runs = attached.runs();
        async move {
            ensure!(!runs?);
            Ok(())
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_open_no_sessions_and_serve_none_of_others() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 2).await?;
    let service = create(&mut cluster, process_service("web", 3)).await?;
    let tasks = cluster.running(&service, 3, SOON).await?;
    let task = on_node(&cluster, &tasks, "worker-1")?;
    let open = |task: &str| {
        let attach = AttachTask { task_id: task.to_owned(), ..Default::default() };
        let item = task_input::Item::Open(OpenTask { what: Some(What::Attach(attach)) });
        tokio_stream(vec![TaskInput { item: Some(item) }])
    };
    let mut client = TasksClient::new(cluster.tls_channel_as("worker-1", "manager")?);
    let error = client.open(open(&task.id)).await.err().map(|status| status.code());
    ensure!(error == Some(Code::PermissionDenied), "{error:?}");
    let (refused, worker) = (refusals_on_record(&cluster.manager.log()), cluster.node_id("worker-1")?);
    let parts = ["level=warning", &worker, "unauthorized peer role"];
    ensure!(refused.len() == 1 && parts.iter().all(|part| refused[0].contains(part)), "{refused:#?}");

    // A session of worker-1 that is under way, and one that nobody knows.
    let running = Running::start(
        &cluster.socket(),
        &["task", "exec", &task.id, "sh", "-c", "echo here; exec sleep 1000"],
    )?;
    until("the command to run", SOON, || async {
        ensure!(running.count() == 1);
        Ok(())
    })
    .await?;
    let log = cluster.manager.log();
    let line = log.lines().find(|line| line.contains("task session begins"));
    let id = line.and_then(|line| line.split("session.id=").nth(1)?.split_whitespace().next());
    let id = id.map(|id| id.trim_matches('"').to_owned()).unwrap_or_default();
    ensure!(id.len() == 25, "no session in {log}");
    for who in ["worker-1", "worker-2"] {
        let mut client = TaskSessionsClient::new(cluster.tls_channel_as(who, "manager")?);
        for id in [id.as_str(), "nonsense"] {
            let hello = ServeRequest { session_id: id.to_owned(), ..Default::default() };
            let error = client.serve(tokio_stream(vec![hello])).await.err().map(|status| status.code());
            ensure!(error == Some(Code::NotFound), "{who} {id}: {error:?}");
        }
    }
    Ok(())
}

/// Messages, and no end.
fn tokio_stream<T: Send + 'static>(messages: Vec<T>) -> impl futures::Stream<Item = T> + Send {
    use futures::StreamExt as _;
    futures::stream::iter(messages).chain(futures::stream::pending())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_let_nobody_in() -> Result<()> {
    let mut cluster = Cluster::start_with(Engine::None, 0, &["--no-exec"]).await?;
    let service = create(&mut cluster, process_service("web", 1)).await?;
    let task = cluster.running(&service, 1, SOON).await?.remove(0);
    for args in
        [&["task", "exec", "-e", "A=hidden", &task.id, "true", "hidden"][..], &["task", "attach", &task.id]]
    {
        let output = cluster.ctl(args)?;
        let expected =
            "Error: node manager lets nobody into its tasks: its daemon was started with --no-exec\n";
        ensure!(output.status.code() == Some(1) && text(&output.stderr) == expected, "{output:?}");
    }
    let refused = refusals_on_record(&cluster.manager.log());
    let expected = ["what=exec", "what=attach"];
    ensure!(refused.len() == 2, "{refused:#?}");
    for (line, what) in refused.iter().zip(expected) {
        let parts = ["level=warning", what, &task.id, &uid(), "was started with --no-exec"];
        ensure!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
    ensure!(!cluster.logs().contains("hidden"), "arguments are in a log");
    let output = cluster.ctl(&["task", "stats", "--no-stream", &task.id])?;
    ensure!(output.status.success(), "figures are no secret: {output:?}");
    Ok(())
}
