//! What the lab does to hosts is what it says.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use swarm_testkit::lab::{Disk, HostOptions, Lab};
use swarm_testkit::wait::until;

const PATIENCE: Duration = Duration::from_secs(60);

/// A host that counts its starts in its state, and runs until it is told to end.
const IDLE: [&str; 3] = [
    "/bin/sh",
    "-c",
    "echo start >>/state/starts; echo up; trap 'echo down; exit 7' TERM; while :; do sleep 3600 & wait $!; done",
];

async fn hosts(names: &[&str], options: &HostOptions) -> Result<Lab> {
    let mut lab = Lab::new().await?;
    for name in names {
        lab.add_host(name, &IDLE, options.clone()).await?;
        lab.start(name).await?;
    }
    Ok(lab)
}

/// Echo requests that a host has taken in so far.
async fn echoes(lab: &Lab, name: &str) -> Result<u64> {
    let counters = lab.exec(name, &["cat", "/proc/net/snmp"]).await?;
    let mut lines = counters.lines().filter(|line| line.starts_with("Icmp: ")).map(str::split_whitespace);
    let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
    let (_, value) = names.zip(values).find(|(name, _)| *name == "InEchos").context("no such counter")?;
    Ok(value.parse()?)
}

/// The links between these hosts on which an echo request comes through, `ab` for that from a to b. Whether it is
/// answered does not matter.
async fn open_links(lab: &Lab, names: &[&str]) -> Result<Vec<String>> {
    let mut open = Vec::new();
    for step in 1..names.len() {
        // Every host hears from one other at a time.
        let links = (0..names.len()).map(|from| async move {
            let (from, to) = (names[from], names[(from + step) % names.len()]);
            let before = echoes(lab, to).await?;
            let ping = format!("ping -c 1 -W 1 {} || true", lab.host(to)?.ip());
            lab.exec(from, &["/bin/sh", "-c", &ping]).await?;
            Ok::<_, anyhow::Error>((echoes(lab, to).await? > before).then(|| format!("{from}{to}")))
        });
        open.extend(futures::future::try_join_all(links).await?.into_iter().flatten());
    }
    open.sort();
    Ok(open)
}

#[tokio::test]
async fn docker_links_are_cut_as_the_lab_is_told() -> Result<()> {
    let names = ["a", "b", "c"];
    let all = ["ab", "ac", "ba", "bc", "ca", "cb"];
    let mut lab = hosts(&names, &HostOptions::default()).await?;
    ensure!(open_links(&lab, &names).await? == all);
    lab.cut_one_way("a", "b").await?;
    ensure!(open_links(&lab, &names).await? == ["ac", "ba", "bc", "ca", "cb"]);
    lab.heal().await?;
    ensure!(open_links(&lab, &names).await? == all);
    lab.partition(&[&["a"], &["b", "c"]]).await?;
    ensure!(open_links(&lab, &names).await? == ["bc", "cb"]);
    // A host that starts is cut off from the first moment, and one that moves is cut off where it is then.
    lab.kill("b").await?;
    let old = lab.host("b")?.ip();
    ensure!(lab.move_host("b").await? != old);
    lab.start("b").await?;
    let addresses = lab.exec("b", &["ip", "-o", "-4", "address"]).await?;
    ensure!(addresses.contains(&lab.host("b")?.ip().to_string()), "{addresses}");
    ensure!(!addresses.contains(&format!("{old}/")), "{addresses}");
    ensure!(open_links(&lab, &names).await? == ["bc", "cb"]);
    lab.heal().await?;
    // One that is in both groups is a bridge.
    lab.partition(&[&["a", "b"], &["b", "c"]]).await?;
    ensure!(open_links(&lab, &names).await? == ["ab", "ba", "bc", "cb"]);
    // While a host is frozen it can't be told.
    lab.pause("b").await?;
    lab.cut_one_way("c", "b").await?;
    lab.unpause("b").await?;
    ensure!(open_links(&lab, &names).await? == ["ab", "ba", "bc"]);
    lab.pause("b").await?;
    lab.heal().await?;
    // Only TCP is reset.
    lab.reset_link("a", "b").await?;
    lab.unpause("b").await?;
    ensure!(open_links(&lab, &names).await? == all);
    Ok(())
}

/// How a connection from one host to another ends that was open before the link is reset or cut.
#[tokio::test]
async fn docker_a_reset_link_ends_open_connections_and_refuses_new_ones() -> Result<()> {
    let mut lab = hosts(&["a", "b"], &HostOptions::default()).await?;
    let server = "nc -l -p 9000 -e cat </dev/null >/dev/null 2>&1 & nc -ll -p 9001 -e cat </dev/null >/dev/null 2>&1 &";
    lab.exec("b", &["/bin/sh", "-c", server]).await?;
    let client = format!(
        "mkfifo /lab/in; (nc {} 9000 </lab/in >/lab/out; echo ended >>/lab/out) >/dev/null 2>&1 & \
         exec 3>/lab/in; echo first >&3; (while :; do sleep 1; echo more; done) >&3 2>/dev/null &",
        lab.host("b")?.ip()
    );
    lab.exec("a", &["/bin/sh", "-c", &client]).await?;
    let out = lab.host("a")?.dir().join("out");
    let read = |file: &std::path::Path| std::fs::read_to_string(file).unwrap_or_default();
    until("the echo", PATIENCE, || async {
        ensure!(read(&out).contains("first"), "{}", read(&out));
        Ok(())
    })
    .await?;
    ensure!(!read(&out).contains("ended"));
    lab.reset_link("a", "b").await?;
    until("the connection to be reset", PATIENCE, || async {
        ensure!(read(&out).contains("ended"), "{}", read(&out));
        Ok(())
    })
    .await?;
    // Refused at once; on a link that is cut this would last for minutes.
    let address = lab.host("b")?.ip().to_string();
    let refused = lab.exec("a", &["nc", &address, "9001"]).await.err();
    let refused = refused.map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(refused.contains("refused"), "{refused}");
    lab.heal().await?;
    lab.exec("a", &["/bin/sh", "-c", &format!("echo x | nc {address} 9001")]).await.map(drop)
}

#[tokio::test]
async fn docker_hosts_end_and_keep_their_state() -> Result<()> {
    let mut lab = hosts(&["a"], &HostOptions::default()).await?;
    let starts = async |lab: &Lab| {
        Ok::<_, anyhow::Error>(lab.exec("a", &["cat", "/state/starts"]).await?.lines().count())
    };
    let says = async |lab: &Lab, text: &str, times: usize| {
        until(text, PATIENCE, || async {
            let log = lab.host("a")?.log();
            ensure!(log.matches(text).count() == times, "{log}");
            Ok(())
        })
        .await
    };
    says(&lab, "up", 1).await?;
    ensure!(lab.stop("a").await? == 7, "it ends as its program does");
    says(&lab, "down", 1).await?;
    lab.start("a").await?;
    says(&lab, "up", 2).await?;
    ensure!(starts(&lab).await? == 2);
    lab.kill("a").await?;
    ensure!(!lab.runs("a").await?);
    lab.start("a").await?;
    says(&lab, "up", 3).await?;
    ensure!(starts(&lab).await? == 3);
    // A frozen one does nothing, and can be killed.
    lab.exec(
        "a",
        &["/bin/sh", "-c", "(while :; do echo tick; sleep 0.01; done) >/lab/ticks 2>&1 </dev/null &"],
    )
    .await?;
    let ticks = lab.host("a")?.dir().join("ticks");
    until("ticks", PATIENCE, || async {
        ensure!(std::fs::metadata(&ticks)?.len() > 0);
        Ok(())
    })
    .await?;
    lab.pause("a").await?;
    let frozen = std::fs::metadata(&ticks)?.len();
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        ensure!(std::fs::metadata(&ticks)?.len() == frozen, "a frozen host writes");
    }
    lab.unpause("a").await?;
    until("more ticks", PATIENCE, || async {
        ensure!(std::fs::metadata(&ticks)?.len() > frozen);
        Ok(())
    })
    .await?;
    lab.pause("a").await?;
    lab.kill("a").await?;
    lab.start("a").await?;
    says(&lab, "up", 4).await?;
    ensure!(lab.host("a")?.log().matches("down").count() == 1, "only one end was in good order");
    Ok(())
}

#[tokio::test]
async fn docker_a_small_disk_is_filled_and_freed_and_outlives_its_host() -> Result<()> {
    let options = HostOptions { disk: Disk::Small(8), ..HostOptions::default() };
    let mut lab = hosts(&["a"], &options).await?;
    let write = ["/bin/sh", "-c", "echo data >/state/data && cat /state/data"];
    ensure!(lab.exec("a", &write).await? == "data\n");
    lab.fill_disk("a").await?;
    let more = ["/bin/sh", "-c", "echo more >/state/more"];
    let full = lab.exec("a", &more).await.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(full.contains("No space left on device"), "{full}");
    lab.kill("a").await?;
    lab.free_disk("a").await?;
    lab.start("a").await?;
    ensure!(lab.exec("a", &["cat", "/state/data"]).await? == "data\n");
    lab.exec("a", &more).await.map(drop)
}

/// Also when the test panics: the destructor is the same.
#[tokio::test]
async fn docker_a_lab_leaves_nothing_in_the_engine() -> Result<()> {
    use bollard::query_parameters::{
        InspectNetworkOptions, ListContainersOptionsBuilder, ListVolumesOptionsBuilder,
    };
    let options = HostOptions { disk: Disk::Small(8), ..HostOptions::default() };
    let mut lab = hosts(&["a", "b"], &options).await?;
    lab.pause("b").await?;
    let (name, dir) = (lab.engine_name().to_owned(), lab.host("a")?.dir().to_owned());
    let docker = bollard::Docker::connect_with_unix_defaults()?.negotiate_version().await?;
    let filters = std::collections::HashMap::from([("name", vec![name.clone()])]);
    let containers = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let volumes = ListVolumesOptionsBuilder::new().filters(&filters).build();
    ensure!(docker.list_containers(Some(containers.clone())).await?.len() == 4);
    ensure!(docker.list_volumes(Some(volumes.clone())).await?.volumes.unwrap_or_default().len() == 2);
    let task = tokio::spawn(async move {
        let _lab = lab;
        panic!("planted");
    });
    ensure!(task.await.is_err_and(|error| error.is_panic()));
    ensure!(docker.list_containers(Some(containers)).await?.is_empty());
    ensure!(docker.list_volumes(Some(volumes)).await?.volumes.unwrap_or_default().is_empty());
    ensure!(docker.inspect_network(&name, None::<InspectNetworkOptions>).await.is_err());
    ensure!(!dir.exists());
    Ok(())
}
