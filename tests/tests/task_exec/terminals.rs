//! `swarmctl` in a terminal, and terminals of commands.

use anyhow::{Result, ensure};
use bollard::Docker;
use swarm_api::v1::task_spec;
use swarm_testkit::daemon::{Cluster, Engine};
use swarm_testkit::wait::until;
use swarm_tests::{SOON, container_service, create, process_service, with_logs};

use crate::support::{InTerminal, on_node, text};

/// What a shell does on a terminal, on the other end. A signal interrupts its reading.
const SHELL: &str = "stty size; trap 'echo changed; stty size' WINCH; trap 'echo interrupted' INT; echo ready; \
                     while [ \"$line\" != end ]; do read line && echo \"got $line\"; done; exit 9";

async fn shell(mut terminal: InTerminal) -> Result<()> {
    terminal.until("ready").await?;
    ensure!(terminal.is_raw()?, "keys must be passed on as they are");
    terminal.say("hello\r")?;
    terminal.until("got hello").await?;
    terminal.resize((12, 34))?;
    terminal.until("12 34").await?;
    terminal.say("\x03")?;
    terminal.until("interrupted").await?;
    terminal.say("end\r")?;
    let (status, shown) = terminal.end().await?;
    ensure!(status.code() == Some(9), "{status}: {shown}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_in_a_process_has_the_terminal_of_whoever_asked_for_it() -> Result<()> {
    let mut cluster = Cluster::start(Engine::None, 1).await?;
    cluster.add_manager().await?;
    let result = in_a_process(&mut cluster).await;
    with_logs(&cluster, result)
}

async fn in_a_process(cluster: &mut Cluster) -> Result<()> {
    let service = create(cluster, process_service("web", 3)).await?;
    let tasks = cluster.running(&service, 3, SOON).await?;
    let task = on_node(cluster, &tasks, "worker-1")?;
    let socket = cluster.socket_of("manager-2");
    let args = ["task", "exec", "-it", &task.id, "sh", "-c", SHELL];
    let terminal = InTerminal::start(&socket, &args, (33, 99))?;
    terminal.until("33 99").await?;
    shell(terminal).await?;
    // However it ends, the terminal is as it was.
    let terminal = InTerminal::start(&socket, &args, (33, 99))?;
    terminal.until("ready").await?;
    terminal.signal("TERM")?;
    let (status, shown) = terminal.end().await?;
    ensure!(status.code() == Some(143), "{status}: {shown}");
    let refused = ["task", "exec", "-it", "-u", "nobody-knows", &task.id, "sh"];
    let (status, shown) = InTerminal::start(&socket, &refused, (33, 99))?.end().await?;
    ensure!(status.code() == Some(1) && shown.contains("Error: "), "{status}: {shown}");
    let terminal = InTerminal::start(&socket, &args, (33, 99))?;
    terminal.until("ready").await?;
    cluster.workers[0].kill()?;
    let (status, shown) = terminal.end().await?;
    let expected = "Error: the connection to node worker-1 was lost, and the session has ended with it\r\n";
    ensure!(status.code() == Some(1) && shown.ends_with(expected), "{status}: {shown}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_commands_in_containers_are_as_those_in_processes() -> Result<()> {
    let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
    let image = swarm_testkit::image::busybox(&docker).await?;
    let mut cluster = Cluster::start(Engine::Docker, 1).await?;
    cluster.add_manager().await?;
    let result = in_containers(&mut cluster, &image).await;
    with_logs(&cluster, result)
}

async fn in_containers(cluster: &mut Cluster, image: &str) -> Result<()> {
    let mut spec = container_service("web", image, 3);
    if let Some(task_spec::Runtime::Container(container)) = &mut spec.task.runtime {
        let script = "trap 'exit 0' TERM; stty size; while :; do read line && echo \"heard $line\"; done";
        container.command = vec!["/bin/sh".into(), "-c".into(), script.into()];
        container.args = vec![];
        (container.open_stdin, container.tty) = (true, true);
    }
    let service = create(cluster, spec).await?;
    let tasks = cluster.running(&service, 3, SOON).await?;
    let task = on_node(cluster, &tasks, "worker-1")?;
    let socket = cluster.socket_of("manager-2");
    let output = swarm_tests::logs::ctl(
        &socket,
        &["task", "exec", "-e", "A=1", &task.id, "sh", "-c", "echo out $A; echo err >&2; exit 7"],
    )?;
    ensure!(output.status.code() == Some(7), "{output:?}");
    ensure!((text(&output.stdout), text(&output.stderr)) == ("out 1\n".into(), "err\n".into()), "{output:?}");
    let input = vec![b'x'; 1_000_000];
    let output = crate::support::ctl_with(&socket, &["task", "exec", "-i", &task.id, "wc", "-c"], &input)?;
    ensure!(text(&output.stdout).trim() == "1000000", "{output:?}");
    let args = ["task", "exec", "-it", &task.id, "sh", "-c", SHELL];
    shell(InTerminal::start(&socket, &args, (33, 99))?).await?;

    // Its own process, until the keys that detach.
    let attach = ["task", "attach", &task.id];
    let mut terminal = InTerminal::start(&socket, &attach, (21, 43))?;
    until("the terminal to be raw", SOON, || async {
        ensure!(terminal.is_raw()?);
        Ok(())
    })
    .await?;
    terminal.say("\x10one\r")?;
    terminal.until("one").await?;
    terminal.until("heard").await?;
    terminal.say("\x10\x11")?;
    let (status, shown) = terminal.end().await?;
    ensure!(status.success(), "{status}: {shown}");
    let running = cluster.running(&service, 3, SOON).await?;
    ensure!(running.iter().any(|now| now.id == task.id), "the task goes on: {running:?}");
    let mut terminal =
        InTerminal::start(&socket, &[&attach[..], &["--detach-keys", "x,y"]].concat(), (21, 43))?;
    until("the terminal to be raw", SOON, || async {
        ensure!(terminal.is_raw()?);
        Ok(())
    })
    .await?;
    terminal.say("two\r")?;
    terminal.until("heard two").await?;
    terminal.say("xy")?;
    let (status, shown) = terminal.end().await?;
    ensure!(status.success(), "{status}: {shown}");
    Ok(())
}
