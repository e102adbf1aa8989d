use swarm_api::authorization::METHODS;
use swarm_api::v1::{BlacklistedCertificate, Cluster};
use tonic::Code;

use super::*;

const OURS: &str = "cluster";
const CONTROL: &str = "/docker.swarmkit.v1.Control/ListNodes";
const DISPATCHER: &str = "/docker.swarmkit.v1.Dispatcher/Heartbeat";
const ISSUE: &str = "/docker.swarmkit.v1.NodeCA/IssueNodeCertificate";

fn node(id: &str, unit: &str, organization: &str) -> PeerIdentity {
    PeerIdentity { node_id: id.into(), units: vec![unit.into()], organization: organization.into() }
}

fn worker() -> PeerIdentity {
    node("worker", WORKER_OU, OURS)
}

fn manager() -> PeerIdentity {
    node("manager", MANAGER_OU, OURS)
}

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

/// An authorizer of a cluster that removed these nodes.
async fn authorizer(removed: &[&str]) -> Arc<Authorizer> {
    let store = Store::local();
    let mut cluster = Cluster { id: OURS.into(), ..Cluster::default() };
    cluster.spec.annotations.name = "default".into();
    for id in removed {
        cluster.blacklisted_certificates.insert((*id).into(), BlacklistedCertificate::default());
    }
    store.update(|tx| tx.create(cluster.clone())).await.unwrap();
    Authorizer::new(OURS, store)
}

fn forwarded(identity: &PeerIdentity) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(FORWARDED, "true".parse().unwrap());
    headers.insert(FORWARDED_NODE, identity.node_id.parse().unwrap());
    headers.insert(FORWARDED_ORGANIZATION, identity.organization.parse().unwrap());
    for unit in &identity.units {
        headers.append(FORWARDED_UNIT, unit.parse().unwrap());
    }
    headers.insert(REMOTE_ADDR, addr(2).to_string().parse().unwrap());
    headers
}

fn text(result: Result<Caller, Status>) -> String {
    let status = result.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    status.message().to_owned()
}

#[tokio::test]
async fn every_method_takes_exactly_the_callers_of_the_contract() {
    let authorizer = authorizer(&[]).await;
    let (worker, manager) = (worker(), manager());
    let strangers = [node("w", WORKER_OU, "another"), node("m", MANAGER_OU, "another")];
    assert!(METHODS.len() > 60, "the whole contract");
    for method in METHODS {
        let call = |peer| authorizer.authorize(method.path, peer, Some(addr(1)), &HeaderMap::new());
        let (anybody, workers, managers) = match method.allowed {
            Allowed::Anybody => (true, true, true),
            Allowed::Roles(units) => (false, units.contains(&WORKER_OU), units.contains(&MANAGER_OU)),
        };
        assert!(managers, "{}", method.path);
        assert_eq!(call(None).is_ok(), anybody, "{} by nobody", method.path);
        assert_eq!(call(Some(&worker)).is_ok(), workers, "{} by a worker", method.path);
        assert_eq!(call(Some(&manager)).is_ok(), managers, "{} by a manager", method.path);
        for stranger in &strangers {
            match call(Some(stranger)) {
                Ok(caller) => assert!(anybody && caller.identity.is_none(), "{} by a stranger", method.path),
                Err(status) => assert!(!anybody && status.code() == Code::PermissionDenied),
            }
        }
    }
}

#[tokio::test]
async fn refusals_have_the_contracts_texts() {
    let authorizer = authorizer(&["gone"]).await;
    let call = |path, peer: Option<&PeerIdentity>| {
        text(authorizer.authorize(path, peer, Some(addr(1)), &HeaderMap::new()))
    };
    let prefix = "Permission denied: unauthorized peer role: rpc error: code = PermissionDenied desc = ";
    assert_eq!(call(DISPATCHER, None), format!("{prefix}no client certificates in request"));
    assert_eq!(
        call(CONTROL, Some(&worker())),
        format!("{prefix}Permission denied: remote certificate not part of OUs: [swarm-manager]")
    );
    assert_eq!(
        call(DISPATCHER, Some(&node("x", WORKER_OU, "another"))),
        format!("{prefix}Permission denied: remote certificate not part of organization: cluster")
    );
    assert_eq!(
        call(DISPATCHER, Some(&node("gone", WORKER_OU, OURS))),
        format!("{prefix}Permission denied: node gone was removed from swarm")
    );
    assert!(call("/unknown.Service/Method", Some(&worker())).contains("[swarm-manager]"));
}

#[tokio::test]
async fn a_forwarded_call_is_the_original_callers() {
    let authorizer = authorizer(&["gone"]).await;
    let (worker, manager) = (worker(), manager());
    let caller =
        authorizer.authorize(DISPATCHER, Some(&manager), Some(addr(1)), &forwarded(&worker)).unwrap();
    assert_eq!((caller.node_id(), caller.remote_addr), (Some("worker"), Some(addr(2))));
    assert_eq!(caller.forwarded_by, Some(manager.clone()));

    let call = |peer: Option<&PeerIdentity>, identity: &PeerIdentity, path| {
        text(authorizer.authorize(path, peer, Some(addr(1)), &forwarded(identity)))
    };
    let forwarder = "Permission denied: unauthorized forwarder role: ";
    assert!(call(Some(&worker), &manager, DISPATCHER).starts_with(forwarder));
    assert!(call(None, &manager, DISPATCHER).starts_with(forwarder));
    assert!(call(Some(&node("m", MANAGER_OU, "another")), &worker, DISPATCHER).starts_with(forwarder));
    assert!(call(Some(&node("gone", MANAGER_OU, OURS)), &worker, DISPATCHER).contains("removed from swarm"));
    for incomplete in [
        PeerIdentity { node_id: String::new(), ..worker.clone() },
        PeerIdentity { organization: String::new(), ..worker.clone() },
        PeerIdentity { units: Vec::new(), ..worker.clone() },
    ] {
        let text = call(Some(&manager), &incomplete, DISPATCHER);
        assert_eq!(text, "Permission denied: missing information in forwarded request");
    }
    assert_eq!(
        call(Some(&manager), &worker, CONTROL),
        "Permission denied: unauthorized forwarded role, expecting: [swarm-manager]"
    );
    assert_eq!(
        call(Some(&manager), &node("w", WORKER_OU, "another"), DISPATCHER),
        "Permission denied: organization mismatch, expecting: cluster"
    );
    assert!(call(Some(&manager), &node("gone", WORKER_OU, OURS), DISPATCHER).contains("removed from swarm"));
}

#[tokio::test]
async fn a_mark_that_is_not_exactly_one_true_forwards_nothing() {
    let authorizer = authorizer(&[]).await;
    let manager = manager();
    let mut twice = forwarded(&worker());
    twice.append(FORWARDED, "true".parse().unwrap());
    let mut no = forwarded(&worker());
    no.insert(FORWARDED, "false".parse().unwrap());
    for headers in [twice, no] {
        let caller = authorizer.authorize(DISPATCHER, Some(&manager), Some(addr(1)), &headers).unwrap();
        assert_eq!((caller.node_id(), &caller.forwarded_by), (Some("manager"), &None));
    }
}

#[tokio::test]
async fn a_strangers_call_through_a_manager_is_not_the_managers_own() {
    let authorizer = authorizer(&["gone"]).await;
    let manager = manager();
    let nobody = PeerIdentity::default();
    let caller = authorizer.authorize(ISSUE, Some(&manager), Some(addr(1)), &forwarded(&nobody)).unwrap();
    assert_eq!((caller.node_id(), caller.remote_addr), (None, Some(addr(2))));
    assert_eq!(caller.forwarded_by, Some(manager.clone()));

    let renewal = authorizer.authorize(ISSUE, Some(&manager), Some(addr(1)), &forwarded(&worker())).unwrap();
    assert_eq!(renewal.node_id(), Some("worker"));
    let removed = node("gone", WORKER_OU, OURS);
    let caller = authorizer.authorize(ISSUE, Some(&manager), Some(addr(1)), &forwarded(&removed)).unwrap();
    assert_eq!(caller.node_id(), None);
    let caller = authorizer.authorize(ISSUE, Some(&worker()), Some(addr(1)), &forwarded(&manager)).unwrap();
    assert_eq!(
        (caller.node_id(), caller.forwarded_by.clone(), caller.remote_addr),
        (None, None, Some(addr(1))),
        "a worker can't forward"
    );
}

#[tokio::test]
async fn the_layer_refuses_or_says_who_calls() {
    let service = tower::service_fn(|request: Request<()>| async move {
        let caller = request.extensions().get::<Caller>().unwrap().clone();
        let node = request.extensions().get::<CallerNode>().cloned();
        assert_eq!(node.map(|node| node.id).as_deref(), caller.node_id());
        let mut response = Response::new(String::new());
        response.extensions_mut().insert(caller);
        Ok::<_, std::convert::Infallible>(response)
    });
    let mut service = AuthorizeLayer::new(authorizer(&[]).await).layer(service);
    let request = |path: &str, identity: Option<PeerIdentity>| {
        let mut request = Request::builder().uri(path).body(()).unwrap();
        let identity = identity.map(Arc::new);
        request.extensions_mut().insert(ConnectionInfo { remote_addr: addr(1), identity });
        request
    };
    let response = service.call(request(CONTROL, Some(manager()))).await.unwrap();
    let caller = response.extensions().get::<Caller>().unwrap();
    assert_eq!((caller.node_id(), caller.remote_addr, caller.local), (Some("manager"), Some(addr(1)), false));
    let response = service.call(request(CONTROL, Some(worker()))).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "7");
    let response = service.call(Request::builder().uri(CONTROL).body(()).unwrap()).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "7", "a request of no known connection");
    let response = service.call(request(ISSUE, None)).await.unwrap();
    assert_eq!(response.extensions().get::<Caller>().unwrap().node_id(), None);
}
