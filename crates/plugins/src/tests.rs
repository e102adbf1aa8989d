use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::testing::TestPlugin;
use crate::{MAX_SECRET, Plugins, Port, SECRET_PROVIDER, SecretRequest, ServiceEndpoint, get_secret};

const LONG: Duration = Duration::from_secs(60);

fn plugins(dir: &Path, timeout: Duration) -> Plugins {
    Plugins::in_directories([dir.join("run")], [dir.join("etc")], timeout)
}

fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    dir
}

async fn why_not(plugins: &Plugins, name: &str) -> String {
    plugins.find(name, SECRET_PROVIDER).await.unwrap_err().to_string()
}

/// What a plug-in that answers so makes of a request.
async fn given(answer: Option<Value>) -> Result<(Vec<u8>, bool), String> {
    let dir = directory();
    let answer = move |_, _| std::future::ready(answer.clone());
    let _plugin = TestPlugin::start(&dir.path().join("run/p.sock"), SECRET_PROVIDER, answer).unwrap();
    let plugin = plugins(dir.path(), LONG).find("p", SECRET_PROVIDER).await.unwrap();
    let answer = get_secret(&plugin, &SecretRequest::default()).await.map_err(|e| e.to_string())?;
    Ok((answer.value, answer.do_not_reuse))
}

#[tokio::test]
async fn a_plug_in_is_found_by_its_socket_and_by_a_file_that_names_it() {
    let dir = directory();
    let none = |_, _| std::future::ready(None);
    let elsewhere = dir.path().join("elsewhere.sock");
    std::fs::create_dir(dir.path().join("run/deep")).unwrap();
    let _plugins = [
        TestPlugin::start(&dir.path().join("run/plain.sock"), SECRET_PROVIDER, none).unwrap(),
        TestPlugin::start(&dir.path().join("run/deep/deep.sock"), SECRET_PROVIDER, none).unwrap(),
        TestPlugin::start(&elsewhere, SECRET_PROVIDER, none).unwrap(),
    ];
    std::fs::write(dir.path().join("etc/named.spec"), format!("unix://{}\n", elsewhere.display())).unwrap();
    let plugins = plugins(dir.path(), LONG);
    for name in ["plain", "deep", "named"] {
        assert_eq!(plugins.find(name, SECRET_PROVIDER).await.unwrap().name(), name);
    }
}

#[tokio::test]
async fn what_is_no_plug_in_is_named() {
    let dir = directory();
    let plugins = plugins(dir.path(), LONG);
    assert!(why_not(&plugins, "none").await.starts_with("no plug-in \"none\" in "));
    for name in ["", "../p", "a/b", ".p", &"x".repeat(129)] {
        assert!(why_not(&plugins, name).await.contains("can't be the name of a plug-in"), "{name}");
    }
    std::fs::write(dir.path().join("etc/tcp.spec"), "tcp://127.0.0.1:1").unwrap();
    assert!(
        why_not(&plugins, "tcp")
            .await
            .ends_with("\"tcp://127.0.0.1:1\": only unix:// addresses are supported")
    );
    let none = |_, _| std::future::ready(None);
    let _other = TestPlugin::start(&dir.path().join("run/other.sock"), "volumedriver", none).unwrap();
    let text = "plug-in \"other\" does not implement secretprovider, only volumedriver";
    assert_eq!(why_not(&plugins, "other").await, text);
    std::fs::write(dir.path().join("run/file.sock"), "").unwrap();
    assert!(why_not(&plugins, "file").await.contains("Plugin.Activate: Connection refused"));
}

#[tokio::test]
async fn a_plug_in_that_does_not_answer_is_given_up() {
    let dir = directory();
    let never = |_, _| std::future::pending();
    let _plugin = TestPlugin::start(&dir.path().join("run/p.sock"), SECRET_PROVIDER, never).unwrap();
    let plugins = plugins(dir.path(), Duration::from_millis(200));
    let plugin = plugins.find("p", SECRET_PROVIDER).await.unwrap();
    let error = get_secret(&plugin, &SecretRequest::default()).await.unwrap_err().to_string();
    assert!(error.ends_with("SecretProvider.GetSecret: no answer within 200ms"), "{error}");
}

#[tokio::test]
async fn the_request_says_what_the_task_is_and_leaves_out_what_is_empty() {
    let dir = directory();
    let (seen, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let answer = move |method: String, request: Value| {
        seen.send((method, request)).unwrap();
        std::future::ready(Some(json!({ "Value": STANDARD.encode("s3"), "DoNotReuse": true })))
    };
    let _plugin = TestPlugin::start(&dir.path().join("run/p.sock"), SECRET_PROVIDER, answer).unwrap();
    let plugin = plugins(dir.path(), LONG).find("p", SECRET_PROVIDER).await.unwrap();
    let port = Port { target_port: 80, publish_mode: 1, ..Port::default() };
    let request = SecretRequest {
        secret_name: "db".into(),
        task_id: "t".into(),
        service_id: "s".into(),
        node_id: "n".into(),
        service_endpoint_spec: Some(ServiceEndpoint { mode: 1, ports: vec![port] }),
        ..SecretRequest::default()
    };
    let answer = get_secret(&plugin, &request).await.unwrap();
    assert_eq!((&*answer.value, answer.do_not_reuse), (&b"s3"[..], true));
    assert!(!format!("{answer:?}").contains("s3"));
    let expected = json!({
        "SecretName": "db", "TaskID": "t", "ServiceID": "s", "NodeID": "n",
        "ServiceEndpointSpec": { "Mode": 1, "Ports": [{ "TargetPort": 80, "PublishMode": 1 }] },
    });
    assert_eq!(requests.recv().await.unwrap(), ("SecretProvider.GetSecret".to_owned(), expected));
}

#[tokio::test]
async fn answers_that_are_no_secret_are_refused() {
    let value = |bytes: Vec<u8>| Some(json!({ "Value": STANDARD.encode(bytes) }));
    assert_eq!(given(value(vec![7; MAX_SECRET - 1])).await.unwrap().0.len(), MAX_SECRET - 1);
    let size = "plug-in \"p\": secret data must be larger than 0 and less than 512000 bytes";
    for bytes in [vec![], vec![7; MAX_SECRET]] {
        assert_eq!(given(value(bytes)).await.unwrap_err(), size);
    }
    assert_eq!(given(Some(json!({}))).await.unwrap_err(), size);
    assert_eq!(
        given(Some(json!({ "Err": "no such secret" }))).await.unwrap_err(),
        "plug-in \"p\": no such secret"
    );
    let text = given(Some(json!({ "Value": "!!" }))).await.unwrap_err();
    assert_eq!(text, "plug-in \"p\": the value it gave is not base64");
    assert!(given(None).await.unwrap_err().ends_with("it answered 500 Internal Server Error"));
    let secret = given(Some(json!({ "Value": 12, "Err": "hidden" }))).await.unwrap_err();
    assert!(secret.contains("the answer can't be read") && !secret.contains("hidden"), "{secret}");
    let long = given(value(vec![7; 2 << 20])).await.unwrap_err();
    assert!(long.contains("length limit exceeded"), "{long}");
}
