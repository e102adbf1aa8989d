use parking_lot::Mutex;
use swarm_api::v1::NodeSpec;

use super::*;

/// A group whose changes take effect at once.
#[derive(Default)]
struct Fake {
    own: &'static str,
    members: Mutex<BTreeSet<String>>,
    /// Members whose removal would cost the quorum.
    needed: Mutex<BTreeSet<String>>,
    done: Mutex<Vec<String>>,
}

impl Fake {
    fn new(own: &'static str, members: &[&str]) -> Arc<Fake> {
        let members = Mutex::new(members.iter().map(|m| (*m).to_owned()).collect());
        Arc::new(Fake { own, members, ..Fake::default() })
    }
}

#[tonic::async_trait]
impl Members for Arc<Fake> {
    fn members(&self) -> Vec<String> {
        self.members.lock().iter().cloned().collect()
    }
    fn is_member(&self, node_id: &str) -> bool {
        self.members.lock().contains(node_id)
    }
    fn is_self(&self, node_id: &str) -> bool {
        self.own == node_id
    }
    fn can_remove(&self, node_id: &str) -> bool {
        !self.needed.lock().contains(node_id)
    }
    async fn remove(&self, node_id: &str) -> Result<(), Failed> {
        assert!(!self.is_self(node_id), "nobody removes itself");
        self.members.lock().remove(node_id);
        self.done.lock().push(format!("removed {node_id}"));
        Ok(())
    }
    async fn hand_over(&self) -> Result<(), Failed> {
        self.done.lock().push("handed over".to_owned());
        Ok(())
    }
}

async fn put(store: &Store, id: &str, desired: NodeRole, role: NodeRole) {
    let spec = NodeSpec { desired_role: desired as i32, ..Default::default() };
    let node = Node { id: id.into(), spec, role: role as i32, ..Default::default() };
    let write = |tx: &mut Tx| match tx.nodes().get(id).cloned() {
        None => tx.create(node.clone()).map(drop),
        Some(mut present) => {
            present.spec = node.spec.clone();
            tx.update(present).map(drop)
        }
    };
    store.update(write).await.unwrap();
}

/// Waits until the node is observed in this role.
async fn observed(store: &Store, id: &str, role: NodeRole) {
    let (mut view, mut commits) = store.view_and_subscribe();
    while view.nodes().get(id).unwrap().role() != role {
        view = match commits.next().await {
            Received::Commit(commit) => commit.view.clone(),
            Received::Lagged(view) => view,
            Received::Closed => panic!("the store is closed"),
        };
    }
}

fn start(store: &Arc<Store>, members: &Arc<Fake>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(run(store.clone(), members.clone()))
}

use NodeRole::{Manager, Worker};

#[tokio::test(start_paused = true)]
async fn a_promoted_node_is_raised_and_its_membership_left_alone() {
    let (store, members) = (Store::local(), Fake::new("a", &["a"]));
    put(&store, "a", Manager, Worker).await; // as the first leader writes itself
    put(&store, "b", Worker, Worker).await;
    let running = start(&store, &members);
    observed(&store, "a", Manager).await;
    put(&store, "b", Manager, Worker).await;
    observed(&store, "b", Manager).await;
    assert!(members.done.lock().is_empty());
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_demoted_manager_leaves_the_group_before_it_is_lowered() {
    let (store, members) = (Store::local(), Fake::new("a", &["a", "b", "c"]));
    for id in ["a", "b", "c"] {
        put(&store, id, Manager, Manager).await;
    }
    members.needed.lock().insert("b".into());
    let running = start(&store, &members);
    put(&store, "b", Worker, Manager).await;
    put(&store, "c", Worker, Manager).await;
    observed(&store, "c", Worker).await;
    assert_eq!(*members.done.lock(), ["removed c"]);
    assert_eq!(store.view().nodes().get("b").unwrap().role(), Manager, "the quorum needs it");
    // Once it does not any more, the next attempt succeeds.
    members.needed.lock().clear();
    observed(&store, "b", Worker).await;
    assert_eq!(*members.done.lock(), ["removed c", "removed b"]);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_demoted_leader_hands_over_and_does_not_remove_itself() {
    let (store, members) = (Store::local(), Fake::new("a", &["a", "b"]));
    put(&store, "a", Worker, Manager).await;
    put(&store, "b", Manager, Manager).await;
    let running = start(&store, &members);
    while members.done.lock().len() < 2 {
        tokio::time::sleep(RETRY).await; // the clock stands still but for this
    }
    assert!(members.done.lock().iter().all(|done| done == "handed over"));
    assert_eq!(store.view().nodes().get("a").unwrap().role(), Manager);
    running.abort();
    // The successor finishes.
    let successor =
        Arc::new(Fake { own: "b", members: Mutex::new(members.members.lock().clone()), ..Fake::default() });
    let running = start(&store, &successor);
    observed(&store, "a", Worker).await;
    assert_eq!(*successor.done.lock(), ["removed a"]);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn members_without_a_node_are_taken_out() {
    let (store, members) = (Store::local(), Fake::new("a", &["a", "gone", "going"]));
    put(&store, "a", Manager, Manager).await;
    put(&store, "going", Manager, Manager).await;
    let running = start(&store, &members);
    while members.done.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    store.update(|tx| tx.remove::<Node>("going").map(drop)).await.unwrap();
    while members.done.lock().len() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(*members.done.lock(), ["removed gone", "removed going"]);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_role_that_was_changed_back_is_not_written() {
    let (store, members) = (Store::local(), Fake::new("a", &["a"]));
    put(&store, "b", Worker, Worker).await;
    let roles = RoleManager { store: store.clone(), group: members };
    roles.write("b", Manager).await.unwrap();
    assert_eq!(store.view().nodes().get("b").unwrap().role(), Worker);
}
