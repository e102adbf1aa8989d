use std::time::{Duration, SystemTime};

use swarm_api::duration::timestamp;
use swarm_pki::RootCa;

use super::*;

async fn put_cluster(control: &Control) -> Shared<Cluster> {
    let root = RootCa::create(SystemTime::now()).unwrap();
    let mut cluster = Cluster { id: "c".into(), ..Default::default() };
    cluster.spec.annotations.name = "default".into();
    cluster.root_ca.ca_cert = root.pem().to_vec();
    cluster.root_ca.ca_key = root.signer().unwrap().key_pem().expose().to_vec();
    cluster.root_ca.join_tokens = JoinTokens { worker: "worker".into(), manager: "manager".into() };
    cluster.network_bootstrap_keys = vec![EncryptionKey { key: vec![1], ..Default::default() }];
    cluster.encryption_key_lamport_clock = 7;
    cluster.fips = true;
    put(control, cluster).await
}

fn request(cluster: &Cluster) -> UpdateClusterRequest {
    UpdateClusterRequest {
        cluster_id: cluster.id.clone(),
        cluster_version: Some(cluster.meta.version),
        spec: Some(cluster.spec.clone()),
        rotation: KeyRotation::default(),
    }
}

async fn update(control: &Control, request: UpdateClusterRequest) -> Result<Shared<Cluster>, Status> {
    Ok(control.rpc().update_cluster(Request::new(request)).await?.into_inner().cluster.unwrap())
}

fn stored(control: &Control) -> Shared<Cluster> {
    control.store.view().cluster().unwrap().clone()
}

#[tokio::test]
async fn keys_of_the_cluster_are_not_shown() {
    let control = control();
    let cluster = put_cluster(&control).await;
    let get = async |id: &str| {
        control.rpc().get_cluster(Request::new(GetClusterRequest { cluster_id: id.into() })).await
    };
    refused(get("").await, Code::InvalidArgument, "invalid argument");
    refused(get("x").await, Code::NotFound, "cluster x not found");
    let shown = get("c").await.unwrap().into_inner().cluster.unwrap();
    assert_eq!(shown.root_ca.ca_cert, cluster.root_ca.ca_cert);
    assert_eq!(shown.root_ca.join_tokens, cluster.root_ca.join_tokens);
    assert!(shown.root_ca.ca_key.is_empty());
    assert!(shown.network_bootstrap_keys.is_empty() && shown.unlock_keys.is_empty());
    assert_eq!((shown.encryption_key_lamport_clock, shown.fips), (0, false));
    assert_eq!(shown.default_address_pool, ["10.0.0.0/8"]);
    assert_eq!((shown.subnet_size, shown.vxlanudp_port), (24, 4789));
    let listed =
        control.rpc().list_clusters(Request::new(Default::default())).await.unwrap().into_inner().clusters;
    assert_eq!(listed, [shown]);
}

#[tokio::test]
async fn bad_cluster_specs_are_refused() {
    let control = control();
    let cluster = put_cluster(&control).await;
    let check = async |change: &dyn Fn(&mut UpdateClusterRequest), code, text: &str| {
        let mut request = request(&cluster);
        change(&mut request);
        let status = update(&control, request).await.expect_err(text);
        assert_eq!((status.code(), status.message()), (code, text));
    };
    fn spec(request: &mut UpdateClusterRequest) -> &mut ClusterSpec {
        request.spec.as_mut().unwrap()
    }
    use Code::{InvalidArgument, NotFound, Unimplemented, Unknown};
    let duration = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    check(&|r| r.cluster_id.clear(), InvalidArgument, "invalid argument").await;
    check(&|r| r.cluster_version = None, InvalidArgument, "invalid argument").await;
    check(&|r| r.spec = None, InvalidArgument, "invalid argument").await;
    check(
        &|r| spec(r).ca_config.node_cert_expiry = duration(3599),
        InvalidArgument,
        "minimum certificate expiry time is: 1h0m0s",
    )
    .await;
    let beyond = duration(i64::MAX);
    check(&|r| spec(r).ca_config.node_cert_expiry = beyond, InvalidArgument, "invalid argument").await;
    check(
        &|r| spec(r).dispatcher.heartbeat_period = duration(-1),
        InvalidArgument,
        "heartbeat time period cannot be a negative duration",
    )
    .await;
    check(
        &|r| spec(r).annotations.name = "other".into(),
        InvalidArgument,
        "modification of cluster name is not allowed",
    )
    .await;
    check(&|r| r.cluster_id = "x".into(), NotFound, "cluster x not found").await;
    check(
        &|r| spec(r).ca_config.signing_ca_key = b"key".to_vec(),
        InvalidArgument,
        "if a signing CA key is provided, the signing CA cert must also be provided",
    )
    .await;
    check(
        &|r| spec(r).ca_config.force_rotate = 1,
        Unimplemented,
        "this manager can't rotate the root CA yet",
    )
    .await;
    check(
        &|r| spec(r).ca_config.external_cas = vec![ExternalCa::default()],
        Unimplemented,
        "this manager can't use external CAs yet",
    )
    .await;
    check(&|r| r.cluster_version = Some(Version { index: 0 }), Unknown, "update out of sequence").await;
    #[allow(deprecated)]
    check(
        &|r| {
            let secret = acceptance_policy::role_admission_policy::Secret { alg: "md5".into(), data: vec![] };
            let policy =
                acceptance_policy::RoleAdmissionPolicy { secret: Some(secret), ..Default::default() };
            spec(r).acceptance_policy.policies = vec![policy];
        },
        InvalidArgument,
        "hashing algorithm is not supported: md5",
    )
    .await;
}

#[tokio::test]
async fn tokens_are_rotated_one_by_one() {
    let control = control();
    let before = put_cluster(&control).await;
    let rotation = KeyRotation { worker_join_token: true, ..Default::default() };
    let after = update(&control, UpdateClusterRequest { rotation, ..request(&before) }).await.unwrap();
    let tokens = &after.root_ca.join_tokens;
    assert!(tokens.worker.starts_with("SWMTKN-2-1-"), "{}", tokens.worker.len());
    assert_eq!(tokens.manager, "manager");
    let rotation = KeyRotation { manager_join_token: true, ..Default::default() };
    let last = update(&control, UpdateClusterRequest { rotation, ..request(&after) }).await.unwrap();
    assert_eq!(last.root_ca.join_tokens.worker, tokens.worker);
    assert_ne!(last.root_ca.join_tokens.manager, "manager");
    assert_eq!(stored(&control).root_ca.ca_key, before.root_ca.ca_key);
}

#[tokio::test]
async fn an_unlock_key_exists_while_managers_lock() {
    let control = control();
    let cluster = put_cluster(&control).await;
    let set = async |lock: bool, rotate: bool| {
        let mut request = request(&stored(&control));
        request.spec.as_mut().unwrap().encryption_config.auto_lock_managers = lock;
        request.rotation.manager_unlock_key = rotate;
        update(&control, request).await.unwrap();
        stored(&control).unlock_keys.clone()
    };
    let other = EncryptionKey { subsystem: "other".into(), ..Default::default() };
    let mut with_other = cluster;
    with_other.unlock_keys = vec![other.clone()];
    control.store.update(|tx| tx.update(with_other.clone())).await.unwrap();
    assert_eq!(set(false, true).await, std::slice::from_ref(&other));
    let first = set(true, false).await;
    assert_eq!((first.len(), first[1].subsystem.as_str(), first[1].key.len()), (2, "swarm-manager", 32));
    assert_eq!(set(true, false).await, first);
    let second = set(true, true).await;
    assert_ne!(second[1].key, first[1].key);
    assert_eq!(set(false, false).await, [other]);
}

#[tokio::test]
async fn long_expired_certificates_are_forgotten() {
    let control = control();
    let mut cluster = put_cluster(&control).await;
    let ago = |days: u64| BlacklistedCertificate {
        expiry: Some(timestamp(SystemTime::now() - Duration::from_secs(days * 24 * 3600))),
    };
    cluster.blacklisted_certificates = [
        ("forever".to_owned(), BlacklistedCertificate { expiry: None }),
        ("old".to_owned(), ago(8)),
        ("recent".to_owned(), ago(6)),
    ]
    .into();
    control.store.update(|tx| tx.update(cluster.clone())).await.unwrap();
    update(&control, request(&stored(&control))).await.unwrap();
    let stored = stored(&control);
    let left: Vec<_> = stored.blacklisted_certificates.keys().collect();
    assert_eq!(left, ["forever", "recent"]);
}

#[tokio::test]
async fn a_cluster_without_a_usable_root_can_not_be_updated() {
    let control = control();
    let mut cluster = put_cluster(&control).await;
    cluster.root_ca.ca_cert = b"garbage".to_vec();
    let cluster = control.store.update(|tx| tx.update(cluster.clone())).await.unwrap().0;
    let status = update(&control, request(&cluster)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Internal, "error loading cluster rootCA for update")
    );
}

#[tokio::test]
async fn a_cluster_whose_tasks_would_be_too_large_is_refused() {
    let control = control();
    let cluster = put_cluster(&control).await;
    let mut request = request(&cluster);
    let log = Driver { name: "syslog".into(), options: [("a".into(), "x".repeat(512 * 1024))].into() };
    request.spec.as_mut().unwrap().task_defaults.log_driver = Some(log);
    let size = prost::Message::encoded_len(request.spec.as_ref().unwrap());
    let text = format!("the cluster spec has {size} bytes, more than the 524288 that are allowed");
    refused(update(&control, request).await.map(tonic::Response::new), Code::InvalidArgument, &text);
}
