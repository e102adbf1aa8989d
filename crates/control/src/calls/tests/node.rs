use std::collections::BTreeMap;

use list_nodes_request::Filters;
use node_spec::Availability;
use node_status::State;

use super::*;

/// A raft group with these members; `true` for those that it could lose.
struct Group(Vec<(&'static str, bool)>);

impl Membership for Group {
    fn is_leader(&self) -> bool {
        true
    }
    fn members(&self) -> BTreeMap<String, ManagerStatus> {
        let status = |id: &str| ManagerStatus { addr: format!("{id}:4242"), ..Default::default() };
        self.0.iter().map(|(id, _)| ((*id).to_owned(), status(id))).collect()
    }
    fn can_remove(&self, node_id: &str) -> bool {
        self.0.iter().any(|(id, removable)| *id == node_id && *removable)
    }
}

fn with_members(members: &[(&'static str, bool)]) -> Control {
    Control::new(Store::local(), Arc::new(Group(members.to_vec())))
}

fn node(id: &str, hostname: &str, role: NodeRole, state: State) -> Node {
    let mut node = Node { id: id.into(), role: role as i32, ..Default::default() };
    node.spec.desired_role = role as i32;
    node.spec.membership = node_spec::Membership::Accepted as i32;
    node.status.state = state as i32;
    node.description = Some(NodeDescription { hostname: hostname.into(), ..Default::default() });
    node
}

async fn update(control: &Control, node: &Node) -> Result<Shared<Node>, Status> {
    let request = UpdateNodeRequest {
        node_id: node.id.clone(),
        node_version: Some(node.meta.version),
        spec: Some(node.spec.clone()),
    };
    Ok(control.rpc().update_node(Request::new(request)).await?.into_inner().node.unwrap())
}

async fn remove(control: &Control, id: &str, force: bool) -> Result<(), Status> {
    control.rpc().remove_node(Request::new(RemoveNodeRequest { node_id: id.into(), force })).await.map(drop)
}

#[track_caller]
fn error<T: fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.expect_err(text);
    assert_eq!((status.code(), status.message()), (code, text));
}

async fn put_cluster(control: &Control) {
    let mut cluster = Cluster { id: "c".into(), ..Default::default() };
    cluster.spec.annotations.name = "default".into();
    put(control, cluster).await;
}

#[tokio::test]
async fn members_of_the_raft_group_are_shown_as_managers() {
    let control = with_members(&[("m", false)]);
    put(&control, node("m", "one", NodeRole::Manager, State::Ready)).await;
    put(&control, node("w", "two", NodeRole::Worker, State::Ready)).await;
    let get =
        async |id: &str| control.rpc().get_node(Request::new(GetNodeRequest { node_id: id.into() })).await;
    refused(get("").await, Code::InvalidArgument, "invalid argument");
    refused(get("x").await, Code::NotFound, "node x not found");
    let status = get("m").await.unwrap().into_inner().node.unwrap().manager_status.clone();
    assert_eq!(status.unwrap().addr, "m:4242");
    let nodes =
        control.rpc().list_nodes(Request::new(ListNodesRequest::default())).await.unwrap().into_inner().nodes;
    assert!(nodes[0].manager_status.is_some() && nodes[1].manager_status.is_none());
    assert!(control.store.view().nodes().get("m").unwrap().manager_status.is_none());
}

#[tokio::test]
async fn nodes_are_filtered() {
    let control = control();
    let mut one = node("n1", "one", NodeRole::Manager, State::Ready);
    one.spec.annotations.labels.insert("zone".into(), "a".into());
    put(&control, one).await;
    let mut two = node("n2", "two", NodeRole::Worker, State::Ready);
    let labels: BTreeMap<String, String> = [("disk".into(), "ssd".into())].into();
    two.description.as_mut().unwrap().engine = Some(EngineDescription { labels, ..Default::default() });
    put(&control, two).await;
    let mut pending = Node { id: "p".into(), ..Default::default() };
    pending.spec.membership = node_spec::Membership::Pending as i32;
    put(&control, pending).await;
    let check = async |filters: Filters, expected: &[&str]| {
        let request = ListNodesRequest { filters: Some(filters.clone()) };
        let nodes = control.rpc().list_nodes(Request::new(request)).await.unwrap().into_inner().nodes;
        assert_eq!(nodes.iter().map(|n| n.id.as_str()).collect::<Vec<_>>(), expected, "{filters:?}");
    };
    let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    check(Filters::default(), &["n1", "n2", "p"]).await;
    check(Filters { names: text("one"), ..Default::default() }, &["n1"]).await;
    check(Filters { names: text("ONE"), ..Default::default() }, &[]).await;
    check(Filters { name_prefixes: text("t"), ..Default::default() }, &["n2"]).await;
    check(Filters { id_prefixes: text("n"), ..Default::default() }, &["n1", "n2"]).await;
    check(Filters { labels: label("disk", "ssd"), ..Default::default() }, &["n2"]).await;
    check(Filters { labels: label("disk", ""), ..Default::default() }, &["n2"]).await;
    check(Filters { node_labels: label("zone", "a"), ..Default::default() }, &["n1"]).await;
    check(Filters { roles: vec![NodeRole::Manager as i32], ..Default::default() }, &["n1"]).await;
    let membership = vec![node_spec::Membership::Pending as i32];
    check(Filters { memberships: membership, ..Default::default() }, &["p"]).await;
}

#[tokio::test]
async fn a_nodes_spec_is_replaced() {
    let control = control();
    let mut changed = put(&control, node("w", "w", NodeRole::Worker, State::Ready)).await;
    let bare = UpdateNodeRequest { node_id: "w".into(), ..Default::default() };
    refused(control.rpc().update_node(Request::new(bare)).await, Code::InvalidArgument, "invalid argument");
    changed.spec.availability = Availability::Drain as i32;
    let updated = update(&control, &changed).await.unwrap();
    assert_eq!(updated.spec.availability(), Availability::Drain);
    assert_eq!(updated.status.state(), State::Ready);
    error(update(&control, &changed).await, Code::Unknown, "update out of sequence");
    changed.id = "x".into();
    error(update(&control, &changed).await, Code::NotFound, "node x not found");
}

#[tokio::test]
async fn demotion_keeps_a_manager_and_the_quorum() {
    let control = with_members(&[("m1", false), ("m2", true)]);
    let mut first = put(&control, node("m1", "m1", NodeRole::Manager, State::Ready)).await;
    first.spec.desired_role = NodeRole::Worker as i32;
    let last = "attempting to demote the last manager of the swarm";
    error(update(&control, &first).await, Code::FailedPrecondition, last);
    let mut second = put(&control, node("m2", "m2", NodeRole::Manager, State::Ready)).await;
    let quorum = "can't remove member from the raft: this would result in a loss of quorum";
    error(update(&control, &first).await, Code::FailedPrecondition, quorum);
    let mut third = put(&control, node("m3", "m3", NodeRole::Manager, State::Ready)).await;
    third.spec.desired_role = NodeRole::Worker as i32;
    error(update(&control, &third).await, Code::NotFound, "can't find manager in raft memberlist");
    second.spec.desired_role = NodeRole::Worker as i32;
    update(&control, &second).await.unwrap();
}

#[tokio::test]
async fn two_managers_can_not_both_be_demoted() {
    let control = with_members(&[("m1", true), ("m2", true)]);
    let mut demoted = [
        put(&control, node("m1", "m1", NodeRole::Manager, State::Ready)).await,
        put(&control, node("m2", "m2", NodeRole::Manager, State::Ready)).await,
    ];
    demoted.iter_mut().for_each(|node| node.spec.desired_role = NodeRole::Worker as i32);
    update(&control, &demoted[0]).await.unwrap();
    // It is still a member, and observed as a manager.
    let last = "attempting to demote the last manager of the swarm";
    error(update(&control, &demoted[1]).await, Code::FailedPrecondition, last);
}

#[tokio::test]
async fn removal_is_refused_while_a_node_is_in_use() {
    let control = with_members(&[("m", true)]);
    put_cluster(&control).await;
    put(&control, node("m", "m", NodeRole::Manager, State::Down)).await;
    put(&control, node("w", "w", NodeRole::Worker, State::Ready)).await;
    error(remove(&control, "", false).await, Code::InvalidArgument, "invalid argument");
    error(remove(&control, "x", false).await, Code::NotFound, "node x not found");
    let manager = "node m is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal";
    error(remove(&control, "m", true).await, Code::FailedPrecondition, manager);
    error(
        remove(&control, "w", false).await,
        Code::FailedPrecondition,
        "node w is not down and can't be removed",
    );
    remove(&control, "w", true).await.unwrap();
    assert!(control.store.view().nodes().get("w").is_none());
}

#[tokio::test]
async fn removing_a_node_orphans_its_tasks_and_refuses_its_certificate() {
    let control = control();
    put_cluster(&control).await;
    put(&control, node("w", "w", NodeRole::Worker, State::Down)).await;
    let task = |id: String, state: TaskState| {
        let mut task = Task { id: id.into(), node_id: "w".into(), ..Default::default() };
        task.status.state = state as i32;
        task.status.err = "gone".into();
        task
    };
    for n in 0..450 {
        put(&control, task(format!("t{n:03}"), TaskState::Running)).await;
    }
    put(&control, task("failed".into(), TaskState::Failed)).await;
    remove(&control, "w", false).await.unwrap();
    let view = control.store.view();
    assert!(view.nodes().is_empty());
    assert_eq!(view.tasks().by_observed_state(TaskState::Orphaned).count(), 450);
    let orphan = &view.tasks().get("t000").unwrap().status;
    assert_eq!(orphan.message, "Task belonged to a node that has been deleted");
    assert_eq!(orphan.err, "");
    assert_eq!(view.tasks().get("failed").unwrap().status.state(), TaskState::Failed);
    let refused = &view.cluster().unwrap().blacklisted_certificates;
    assert_eq!(refused.get("w"), Some(&BlacklistedCertificate { expiry: None }));
}

#[tokio::test]
async fn removal_needs_the_cluster_object() {
    let control = control();
    put(&control, node("w", "w", NodeRole::Worker, State::Down)).await;
    error(remove(&control, "w", false).await, Code::Internal, "could not fetch cluster object");
    assert!(control.store.view().nodes().get("w").is_some());
}
