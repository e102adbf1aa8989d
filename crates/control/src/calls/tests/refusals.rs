//! Refusals rest on what the cluster has, and not on what a leader remembers that was superseded.

use swarm_store::testing::LoopbackProposer;

use super::*;

fn config(name: &str) -> Request<CreateConfigRequest> {
    let mut spec = ConfigSpec { data: b"x".to_vec(), ..Default::default() };
    spec.annotations.name = name.into();
    Request::new(CreateConfigRequest { spec: Some(spec) })
}

/// A led store with one config, and the entry that removes it.
async fn with_a_config() -> (Control, Arc<LoopbackProposer>, Vec<u8>) {
    let mut taken = Config { id: "c1".into(), ..Default::default() };
    taken.spec.annotations.name = "a".into();
    let (elsewhere, there) = LoopbackProposer::store();
    elsewhere.update(|tx| tx.create(taken.clone())).await.unwrap();
    elsewhere.update(|tx| tx.remove::<Config>("c1").map(drop)).await.unwrap();
    let removal = there.log().pop().unwrap().to_vec();

    let (store, proposer) = LoopbackProposer::store();
    store.update(|tx| tx.create(taken.clone())).await.unwrap();
    (Control::new(store, Arc::new(Alone)), proposer, removal)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_superseded_leader_refuses_is_asked_again_on_what_the_cluster_has() {
    let (control, proposer, removal) = with_a_config().await;
    proposer.hold();
    let other = control.clone();
    let create = tokio::spawn(async move { other.rpc().create_config(config("a")).await });
    // The name is free for long, but this manager has yet to hear of it.
    proposer.wait_for_barrier();
    proposer.foreign(removal.into());
    proposer.release();
    let created = create.await.unwrap().unwrap().into_inner().config.unwrap();
    assert_eq!(created.spec.annotations.name, "a");
}

#[tokio::test]
async fn a_refusal_that_holds_is_told() {
    let (control, _proposer, _) = with_a_config().await;
    refused(control.rpc().create_config(config("a")).await, Code::AlreadyExists, "config a already exists");
    let request = RemoveConfigRequest { config_id: "c2".into() };
    let text = "could not find config c2";
    refused(control.rpc().remove_config(Request::new(request)).await, Code::NotFound, text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_without_proof_that_this_manager_leads_is_none() {
    let (control, proposer, _) = with_a_config().await;
    proposer.hold();
    let other = control.clone();
    let create = tokio::spawn(async move { other.rpc().create_config(config("a")).await });
    proposer.wait_for_barrier();
    proposer.lose_leadership(0);
    proposer.release();
    refused(create.await.unwrap(), Code::Unavailable, "raft proposal dropped");
}
