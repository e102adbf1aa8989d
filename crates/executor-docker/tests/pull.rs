//! Pulling images by a real engine from a registry on this host.

#![allow(clippy::unwrap_used)]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bollard::query_parameters::RemoveImageOptionsBuilder;
use common::{Lab, within};
use swarm_agent::{ControllerError, Executor as _};
use swarm_api::id;
use swarm_api::v1::ContainerSpec;
use swarm_api::v1::container_spec::PullOptions;
use swarm_testkit::image::busybox_layer;
use swarm_testkit::registry::Registry;

/// An image of its own for each test, so that none is there from an earlier run.
fn layer() -> Vec<u8> {
    busybox_layer().unwrap()
}

fn spec(lab: &Lab, image: &str) -> ContainerSpec {
    ContainerSpec { image: image.to_owned(), ..lab.spec("sleep 1000") }
}

async fn forget(lab: &Lab, image: &str) {
    let options = RemoveImageOptionsBuilder::new().force(true).build();
    lab.docker.remove_image(image, Some(options), None).await.unwrap();
}

/// The command of the image that a container was really made from.
async fn command_of(lab: &Lab, image: &str) -> Vec<String> {
    lab.docker.inspect_image(image).await.unwrap().config.unwrap().cmd.unwrap()
}

#[tokio::test]
async fn many_tasks_of_one_image_pull_it_once() {
    let lab = Lab::new().await;
    let registry = Registry::start(None).await.unwrap();
    let name = id::random();
    registry.push(&name, "1", layer(), &["/bin/true"]).unwrap();
    let image = format!("{}/{name}:1", registry.address());
    let tasks: Vec<_> = (0..5).map(|_| lab.controller(&lab.task(spec(&lab, &image)))).collect();
    for result in within(futures::future::join_all(tasks.iter().map(|task| task.prepare()))).await {
        result.unwrap();
    }
    let once = registry.resolved();
    assert!(once > 0);
    within(lab.controller(&lab.task(spec(&lab, &image))).prepare()).await.unwrap();
    assert_eq!(registry.resolved(), once, "the result holds for a while");
    tasks[0].start().await.unwrap();
    lab.executor_sweep().await;
    forget(&lab, &image).await;
    lab.done().await;
}

#[tokio::test]
async fn a_moved_tag_is_followed_and_an_absent_registry_is_not_needed() {
    let lab = Lab::new().await;
    let registry = Registry::start(None).await.unwrap();
    let name = id::random();
    let image = format!("{}/{name}:1", registry.address());
    registry.push(&name, "1", layer(), &["/bin/true"]).unwrap();
    within(lab.controller(&lab.task(spec(&lab, &image))).prepare()).await.unwrap();
    registry.push(&name, "1", layer(), &["/bin/false"]).unwrap();
    // A daemon that remembers nothing.
    let again = lab.restarted().await;
    within(common::controller(&again, &lab.task(spec(&lab, &image))).prepare()).await.unwrap();
    assert_eq!(command_of(&lab, &image).await, ["/bin/false"]);
    drop(registry);
    let alone = lab.restarted().await;
    within(common::controller(&alone, &lab.task(spec(&lab, &image))).prepare()).await.unwrap();
    lab.executor_sweep().await;
    forget(&lab, &image).await;
    lab.done().await;
}

#[tokio::test]
async fn a_digest_that_is_here_is_not_asked_for() {
    let lab = Lab::new().await;
    let registry = Registry::start(None).await.unwrap();
    let name = id::random();
    let digest = registry.push(&name, "1", layer(), &["/bin/true"]).unwrap();
    let image = format!("{}/{name}@{digest}", registry.address());
    within(lab.controller(&lab.task(spec(&lab, &image))).prepare()).await.unwrap();
    let asked = registry.resolved();
    assert!(asked > 0);
    let again = lab.restarted().await;
    within(common::controller(&again, &lab.task(spec(&lab, &image))).prepare()).await.unwrap();
    assert_eq!(registry.resolved(), asked);
    lab.executor_sweep().await;
    forget(&lab, &image).await;
    lab.done().await;
}

#[tokio::test]
async fn credentials_reach_the_registry_and_wrong_ones_are_named() {
    let lab = Lab::new().await;
    // Encodes with a character that the two alphabets of base64 write differently.
    let password = "p>?>?>?~~~";
    let header = format!("Basic {}", STANDARD.encode(format!("user:{password}")));
    let registry = Registry::start(Some(header)).await.unwrap();
    let name = id::random();
    registry.push(&name, "1", layer(), &["/bin/true"]).unwrap();
    let image = format!("{}/{name}:1", registry.address());
    let with = |password: &str| {
        let json = format!("{{\"username\":\"user\",\"password\":\"{password}\",\"serveraddress\":\"x\"}}");
        let pull_options = Some(PullOptions { registry_auth: URL_SAFE.encode(json) });
        lab.controller(&lab.task(ContainerSpec { pull_options, ..spec(&lab, &image) }))
    };
    for wrong in [with("wrong"), lab.controller(&lab.task(spec(&lab, &image)))] {
        let Err(ControllerError::Fatal(text)) = within(wrong.prepare()).await else {
            panic!("it was let in")
        };
        assert!(text.starts_with(&format!("pulling image {image} failed: ")), "{text}");
        assert!(!text.contains("wrong"), "{text}");
    }
    assert!(registry.refused() > 0);
    within(with(password).prepare()).await.unwrap();
    lab.executor_sweep().await;
    forget(&lab, &image).await;
    lab.done().await;
}

/// A layer of a few megabytes, since engines speak of progress only now and then.
fn large_layer() -> Vec<u8> {
    let mut layer = layer();
    // Behind the two empty blocks that end an archive nothing counts.
    layer.resize(layer.len() + (8 << 20), 0);
    layer
}

#[tokio::test]
async fn how_far_a_pull_is_is_told_to_everybody_who_waits_for_it() {
    let lab = Lab::new().await;
    let registry = Registry::start(None).await.unwrap();
    let name = id::random();
    registry.push(&name, "1", large_layer(), &["/bin/true"]).unwrap();
    let image = format!("{}/{name}:1", registry.address());
    registry.hold(true);
    let task = lab.controller(&lab.task(spec(&lab, &image)));
    let mut words = task.progress().unwrap();
    let (tell, mut percent) = tokio::sync::watch::channel(None);
    {
        let both = async { tokio::join!(task.prepare(), lab.executor.pull_image(&image, "", &tell)) };
        let mut both = std::pin::pin!(both);
        let half = async {
            // Half of the only layer: no more than half of its download.
            let half = percent.wait_for(|percent| percent.is_some_and(|p| p > 5)).await.unwrap().unwrap();
            words.wait_for(|text| *text == format!("pulling {half} %")).await.unwrap();
            half
        };
        let half = tokio::select! {
            _ = &mut both => panic!("the layer is not there yet"),
            half = within(half) => half,
        };
        assert!(half < 50, "{half}");
        registry.hold(false);
        let (prepared, pulled) = within(both).await;
        prepared.unwrap();
        pulled.unwrap();
    }
    assert_eq!(*percent.borrow(), Some(100));
    assert_eq!(*task.progress().unwrap().borrow(), "preparing", "a task that is prepared says nothing of it");
    lab.executor_sweep().await;
    forget(&lab, &image).await;
    lab.done().await;
}

#[tokio::test]
async fn an_image_that_is_ordered_must_come_from_its_registry() {
    let lab = Lab::new().await;
    let registry = Registry::start(Some("Basic dTpw".into())).await.unwrap();
    let name = id::random();
    registry.push(&name, "1", layer(), &["/bin/true"]).unwrap();
    let image = format!("{}/{name}:1", registry.address());
    let (tell, _) = tokio::sync::watch::channel(None);
    let error = within(lab.executor.pull_image(&image, "", &tell)).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("pulling image {image} failed: ")), "{error}");
    let auth = URL_SAFE.encode("{\"username\":\"u\",\"password\":\"p\"}");
    within(lab.executor.pull_image(&image, &auth, &tell)).await.unwrap();
    let once = registry.resolved();
    within(lab.executor.pull_image(&image, &auth, &tell)).await.unwrap();
    assert!(registry.resolved() > once, "whoever asks wants to know anew");
    // It is here now, which is enough for tasks, and not for who wants the newest.
    let again = lab.restarted().await;
    let error = within(again.pull_image(&image, "", &tell)).await.unwrap_err().to_string();
    assert!(error.ends_with("(the one that is here may be an older one)"), "{error}");
    within(common::controller(&again, &lab.task(spec(&lab, &image))).prepare()).await.unwrap();
    lab.executor_sweep().await;
    forget(&lab, &image).await;
    lab.done().await;
}

/// This machine's architecture in the words of images, and another one.
fn architectures() -> [&'static str; 2] {
    if std::env::consts::ARCH == "aarch64" { ["arm64", "amd64"] } else { ["amd64", "arm64"] }
}

#[tokio::test]
async fn the_image_of_the_nodes_platform_is_pulled_and_no_other_serves() {
    let lab = Lab::new().await;
    let registry = Registry::start(None).await.unwrap();
    let name = id::random();
    let [own, other] = architectures();
    let image = format!("{}/{name}:1", registry.address());
    let task = |image: &str| {
        let mut task = lab.task(spec(&lab, image));
        let platform = |architecture: &str| swarm_api::v1::Platform {
            os: "linux".into(),
            architecture: architecture.into(),
        };
        let platforms = vec![platform(other), platform(std::env::consts::ARCH)];
        task.spec.placement = Some(swarm_api::v1::Placement { platforms, ..Default::default() });
        task
    };
    // There is one for the other platform only, and it is here.
    registry.push_many(&name, "1", &layer(), &[other]).unwrap();
    let options = bollard::query_parameters::CreateImageOptionsBuilder::new()
        .from_image(&image)
        .platform(&format!("linux/{other}"))
        .build();
    let pulled: Vec<_> =
        futures::StreamExt::collect(lab.docker.create_image(Some(options), None, None)).await;
    assert!(pulled.iter().all(Result::is_ok), "{pulled:?}");
    assert_eq!(command_of(&lab, &image).await, [other]);
    let Err(ControllerError::Fatal(text)) = within(lab.controller(&task(&image)).prepare()).await else {
        panic!("an image of another platform was taken")
    };
    assert!(text.starts_with(&format!("pulling image {image} for linux/{own} failed: ")), "{text}");
    assert!(text.ends_with(&format!(" (the one that is here is for linux/{other})")), "{text}");

    // Now there are both.
    registry.push_many(&name, "1", &layer(), &[other, own]).unwrap();
    let again = lab.restarted().await;
    let controller = common::controller(&again, &task(&image));
    within(controller.prepare()).await.unwrap();
    within(controller.start()).await.unwrap();
    assert_eq!(command_of(&lab, &image).await, [own]);

    // An image that was made here says what it is for, and one that does not say runs as well.
    within(common::controller(&again, &task(&lab.image)).prepare()).await.unwrap();
    let silent = swarm_testkit::image::without_platform(&lab.docker).await.unwrap();
    let seen = lab.docker.inspect_image(&silent).await.unwrap();
    assert_eq!(seen.architecture.as_deref().unwrap_or_default(), "");
    let controller = common::controller(&again, &task(&silent));
    within(controller.prepare()).await.unwrap();
    within(controller.start()).await.unwrap();
    again.close().await;
    lab.executor_sweep().await;
    forget(&lab, &image).await;
    lab.done().await;
}
