//! Fields of a spec that need a container of their own: health checks, mounts, ports, and what is switched off.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};

use bollard::query_parameters::RemoveVolumeOptions;
use common::{Lab, inspect, output, within, words};
use swarm_agent::ControllerError;
use swarm_api::v1::mount::bind_options::Propagation;
use swarm_api::v1::mount::{BindOptions, Type, VolumeOptions};
use swarm_api::v1::port_config::{Protocol, PublishMode};
use swarm_api::v1::privileges::{SeccompOpts, seccomp_opts::SeccompMode};
use swarm_api::v1::{
    ContainerSpec, Endpoint, HealthConfig, Mount, PortConfig, Privileges, ResourceRequirements, Resources,
};
use swarm_testkit::wait::until;

const MILLISECONDS: i32 = 1_000_000;

fn milliseconds(count: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: 0, nanos: count * MILLISECONDS })
}

#[tokio::test]
async fn a_health_check_that_takes_too_long_has_failed() {
    let lab = Lab::new().await;
    let healthcheck = HealthConfig {
        test: words(&["CMD-SHELL", "sleep 1000"]),
        interval: milliseconds(200),
        timeout: milliseconds(300),
        retries: 1,
        ..Default::default()
    };
    let task = lab.controller(&lab.task(ContainerSpec {
        healthcheck: Some(healthcheck),
        stop_grace_period: milliseconds(0),
        ..lab.spec("sleep 1000")
    }));
    within(task.prepare()).await.unwrap();
    let error = within(task.start()).await.unwrap_err();
    assert!(error.to_string().ends_with("dockerexec: unhealthy container"), "{error}");
    let seen = inspect(&lab, task.as_ref()).await;
    let log = seen.state.unwrap().health.unwrap().log.unwrap();
    let said = log[0].output.clone().unwrap();
    assert!(said.contains("exceeded timeout (300ms)"), "{said}");
    lab.done().await;
}

#[tokio::test]
async fn an_images_health_check_counts_unless_the_spec_has_none() {
    let lab = Lab::new().await;
    let image = swarm_testkit::image::unhealthy(&lab.docker).await.unwrap();
    let with = |healthcheck: Option<HealthConfig>| {
        let stop_grace_period = milliseconds(0);
        let spec = lab.spec("sleep 1000");
        lab.controller(&lab.task(ContainerSpec {
            image: image.clone(),
            healthcheck,
            stop_grace_period,
            ..spec
        }))
    };
    let none = HealthConfig { test: words(&["NONE"]), ..Default::default() };
    let unchecked = with(Some(none));
    within(unchecked.prepare()).await.unwrap();
    assert_eq!(within(unchecked.start()).await, Ok(()));
    assert_eq!(inspect(&lab, unchecked.as_ref()).await.state.unwrap().health, None);
    assert!(unchecked.container_status().await.unwrap().pid > 0);

    // An empty one changes nothing of the image's.
    for inherited in [None, Some(HealthConfig::default())] {
        let checked = with(inherited);
        within(checked.prepare()).await.unwrap();
        let error = within(checked.start()).await.unwrap_err();
        assert!(error.to_string().ends_with("dockerexec: unhealthy container"), "{error}");
    }
    lab.done().await;
}

fn bind(source: &str, target: &str, options: BindOptions) -> Mount {
    Mount {
        r#type: Type::Bind.into(),
        source: source.into(),
        target: target.into(),
        bind_options: Some(options),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_bind_may_leave_out_what_is_mounted_below_it() {
    let lab = Lab::new().await;
    let propagation = Propagation::Private.into();
    let spec = ContainerSpec {
        mounts: vec![
            bind("/dev", "/whole", BindOptions::default()),
            bind("/dev", "/alone", BindOptions { nonrecursive: true, propagation, ..Default::default() }),
        ],
        ..lab.spec(
            "for d in whole alone; do
                grep -q \" /$d \" /proc/mounts && echo $d
                grep -q \" /$d/pts \" /proc/mounts && echo $d/pts
            done
            # Words before the dash tell of others that hear of mounts.
            awk '$5 == \"/alone\" {print $7}' /proc/self/mountinfo",
        )
    };
    let task = lab.controller(&lab.task(spec));
    assert_eq!(output(task.as_ref()).await, ["whole", "whole/pts", "alone", "-"]);
    let seen = inspect(&lab, task.as_ref()).await;
    let mut told: Vec<_> = seen.mounts.unwrap().into_iter().map(|m| (m.destination, m.propagation)).collect();
    told.sort_unstable();
    let pair = |target: &str, propagation: &str| (Some(target.to_owned()), Some(propagation.to_owned()));
    assert_eq!(told, [pair("/alone", "private"), pair("/whole", "rprivate")]);
    lab.done().await;
}

#[tokio::test]
async fn a_volume_is_filled_from_the_image_unless_the_spec_says_no() {
    let lab = Lab::new().await;
    for (nocopy, expected) in [(false, "filled"), (true, "empty")] {
        let source = format!("vol-{nocopy}-{}", lab.node_id);
        let mount = Mount {
            r#type: Type::Volume.into(),
            source: source.clone(),
            target: "/etc".into(),
            volume_options: Some(VolumeOptions { nocopy, ..Default::default() }),
            ..Default::default()
        };
        let script = "test -e /etc/passwd && echo filled || echo empty";
        let task = lab.controller(&lab.task(ContainerSpec { mounts: vec![mount], ..lab.spec(script) }));
        assert_eq!(output(task.as_ref()).await, [expected]);
        let mounts = inspect(&lab, task.as_ref()).await.mounts.unwrap();
        assert_eq!(mounts[0].name.as_deref(), Some(source.as_str()));
        within(task.remove()).await.unwrap();
        lab.docker.remove_volume(&source, None::<RemoveVolumeOptions>).await.unwrap();
    }
    lab.done().await;
}

#[tokio::test]
async fn what_is_switched_off_is_off() {
    let lab = Lab::new().await;
    let script = "grep '^Seccomp:' /proc/self/status | tr '\\t' ' '; echo $(cat /proc/1/comm)";
    let with = |init: Option<bool>, seccomp: Option<SeccompOpts>| {
        let privileges = Some(Privileges { seccomp, ..Default::default() });
        lab.controller(&lab.task(ContainerSpec { init, privileges, ..lab.spec(script) }))
    };
    let usual = with(None, None);
    assert_eq!(output(usual.as_ref()).await, ["Seccomp: 2", "sh"]);
    let unconfined = SeccompOpts { mode: SeccompMode::Unconfined.into(), ..Default::default() };
    let off = with(Some(false), Some(unconfined));
    assert_eq!(output(off.as_ref()).await, ["Seccomp: 0", "sh"]);
    let host = inspect(&lab, off.as_ref()).await.host_config.unwrap();
    assert_eq!((host.init, host.security_opt), (Some(false), Some(words(&["seccomp=unconfined"]))));

    // No limit of the swap space, beside one of the memory.
    let mut record = lab.task(lab.spec("true"));
    record.spec.resources = Some(ResourceRequirements {
        limits: Some(Resources { memory_bytes: 32 << 20, ..Default::default() }),
        swap_bytes: Some(-1),
        ..Default::default()
    });
    let task = lab.controller(&record);
    assert_eq!(output(task.as_ref()).await, [""; 0]);
    let host = inspect(&lab, task.as_ref()).await.host_config.unwrap();
    assert_eq!((host.memory, host.memory_swap), (Some(32 << 20), Some(-1)));
    lab.done().await;
}

/// Ports of this host that nobody listens on: asked for together, so that they differ.
fn free_ports<const N: usize>() -> [u32; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("0.0.0.0:0").unwrap());
    listeners.each_ref().map(|listener| listener.local_addr().unwrap().port().into())
}

fn port(target_port: u32, published_port: u32, protocol: Protocol) -> PortConfig {
    PortConfig {
        target_port,
        published_port,
        protocol: protocol.into(),
        publish_mode: PublishMode::Host.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_port_may_be_published_under_several_that_are_given() {
    let lab = Lab::new().await;
    let ports = free_ports::<2>();
    let mut record = lab.task(lab.spec("while :; do echo here | nc -l -p 80; done"));
    let published = ports.map(|published| port(80, published, Protocol::Tcp)).to_vec();
    record.endpoint = Some(Endpoint { ports: published, ..Default::default() }.into());
    let task = lab.controller(&record);
    within(task.prepare()).await.unwrap();
    within(task.start()).await.unwrap();
    let told = task.port_status().await.unwrap().ports;
    let mut told: Vec<_> = told.iter().map(|p| (p.target_port, p.published_port)).collect();
    told.sort_unstable();
    let mut expected = ports.map(|published| (80, published));
    expected.sort_unstable();
    assert_eq!(told, expected);
    for published in ports {
        let connected = || async {
            let mut answer = String::new();
            let address = format!("127.0.0.1:{published}");
            let stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
            (&stream).read_to_string(&mut answer)?;
            anyhow::ensure!(answer == "here\n", "{answer:?}");
            Ok(())
        };
        until("an answer", common::LONG, connected).await.unwrap();
    }
    lab.done().await;
}

/// Publishing one for real needs a kernel with SCTP, which that of a small machine may not have.
#[tokio::test]
async fn a_port_of_sctp_is_asked_for() {
    let lab = Lab::new().await;
    let mut record = lab.task(lab.spec("sleep 1000"));
    let ports = vec![port(3868, 0, Protocol::Sctp)];
    record.endpoint = Some(Endpoint { ports, ..Default::default() }.into());
    let task = lab.controller(&record);
    within(task.prepare()).await.unwrap();
    let host = inspect(&lab, task.as_ref()).await.host_config.unwrap();
    let asked: Vec<String> = host.port_bindings.unwrap().into_keys().collect();
    assert_eq!(asked, ["3868/sctp"]);
    match within(task.start()).await {
        Ok(()) => {
            let told = task.port_status().await.unwrap().ports;
            assert_eq!((told[0].target_port, told[0].protocol()), (3868, Protocol::Sctp));
        }
        Err(ControllerError::Fatal(text)) => assert!(text.contains("protocol not supported"), "{text}"),
        other => panic!("{other:?}"),
    }
    lab.done().await;
}
