//! Nothing secret is in what a message says of itself to a log.

#![allow(clippy::unwrap_used)] // helpers of tests

mod messages;

use std::collections::BTreeSet;
use std::fmt::Debug;

use messages::{CHOICES, Filler, descriptor, pool};
use prost::Message;
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind};
use swarm_api::{raftpb, v1};

const SECRET: &str = "s3cr3t-s3cr3t";

/// Fields whose content nobody may see.
const SECRETS: &[&str] = &[
    "docker.swarmkit.v1.AcceptancePolicy.RoleAdmissionPolicy.Secret.data",
    "docker.swarmkit.v1.CAConfig.signing_ca_key",
    "docker.swarmkit.v1.ConfigSpec.data",
    "docker.swarmkit.v1.ContainerSpec.PullOptions.registry_auth",
    "docker.swarmkit.v1.EncryptionKey.key",
    "docker.swarmkit.v1.GetUnlockKeyResponse.unlock_key",
    "docker.swarmkit.v1.IssueNodeCertificateRequest.token",
    "docker.swarmkit.v1.JoinTokens.manager",
    "docker.swarmkit.v1.JoinTokens.worker",
    "docker.swarmkit.v1.LogMessage.data",
    "docker.swarmkit.v1.MaybeEncryptedRecord.data",
    "docker.swarmkit.v1.MaybeEncryptedRecord.nonce",
    "docker.swarmkit.v1.RootCA.ca_key",
    "docker.swarmkit.v1.RootRotation.ca_key",
    "docker.swarmkit.v1.SecretSpec.data",
    "raftpb.Entry.Data",
    "raftpb.Snapshot.data",
];

/// Fields with bytes that anybody may see: certificates, requests for them, and raft's own notes.
const OPEN: &[&str] = &[
    "docker.swarmkit.v1.CAConfig.signing_ca_cert",
    "docker.swarmkit.v1.Certificate.certificate",
    "docker.swarmkit.v1.Certificate.csr",
    "docker.swarmkit.v1.ExternalCA.ca_cert",
    "docker.swarmkit.v1.GetRootCACertificateResponse.certificate",
    "docker.swarmkit.v1.IssueNodeCertificateRequest.csr",
    "docker.swarmkit.v1.NodeTLSInfo.cert_issuer_public_key",
    "docker.swarmkit.v1.NodeTLSInfo.cert_issuer_subject",
    "docker.swarmkit.v1.NodeTLSInfo.trust_root",
    "docker.swarmkit.v1.Privileges.SeccompOpts.profile",
    "docker.swarmkit.v1.RootCA.ca_cert",
    "docker.swarmkit.v1.RootRotation.ca_cert",
    "docker.swarmkit.v1.RootRotation.cross_signed_ca_cert",
    "docker.swarmkit.v1.SessionMessage.RootCA",
    "raftpb.ConfChange.context",
    "raftpb.ConfChangeV2.context",
    "raftpb.Message.context",
];

/// Fills the message with secrets, and says which fields held one.
fn fill(pool: &DescriptorPool, name: &str, choice: usize) -> (Vec<u8>, BTreeSet<String>) {
    let hidden = std::cell::RefCell::new(BTreeSet::new());
    let content = |field: &FieldDescriptor| {
        if !SECRETS.contains(&field.full_name()) {
            return "open".to_owned();
        }
        hidden.borrow_mut().insert(field.full_name().to_owned());
        SECRET.to_owned()
    };
    let message = Filler { choice, bytes: &mut |f| content(f).into_bytes(), string: &mut |f| content(f) }
        .fill(&descriptor(pool, name));
    (message.encode_to_vec(), hidden.take())
}

/// Every way in which the secret may be printed: as text, and as numbers.
fn shows_secret(text: &str) -> bool {
    let numbers: Vec<String> = SECRET.bytes().map(|b| b.to_string()).collect();
    let text: String = text.split_whitespace().collect();
    text.contains(SECRET) || text.contains(&numbers.join(","))
}

#[track_caller]
fn check<T: Message + Default + Debug>(pool: &DescriptorPool, name: &str, seen: &mut BTreeSet<String>) {
    for choice in 0..CHOICES {
        let (encoded, hidden) = fill(pool, name, choice);
        let message = T::decode(encoded.as_slice()).unwrap();
        for text in [format!("{message:?}"), format!("{message:#?}")] {
            assert!(!shows_secret(&text), "{name} shows one of {hidden:?}: {text}");
        }
        seen.extend(hidden);
    }
}

#[test]
fn no_message_shows_what_is_secret() {
    let (pool, mut seen) = (pool(), BTreeSet::new());
    let seen = &mut seen;
    check::<v1::StoreSnapshot>(&pool, "docker.swarmkit.v1.StoreSnapshot", seen);
    check::<v1::InternalRaftRequest>(&pool, "docker.swarmkit.v1.InternalRaftRequest", seen);
    check::<v1::Cluster>(&pool, "docker.swarmkit.v1.Cluster", seen);
    check::<v1::UpdateClusterRequest>(&pool, "docker.swarmkit.v1.UpdateClusterRequest", seen);
    check::<v1::GetUnlockKeyResponse>(&pool, "docker.swarmkit.v1.GetUnlockKeyResponse", seen);
    check::<v1::IssueNodeCertificateRequest>(&pool, "docker.swarmkit.v1.IssueNodeCertificateRequest", seen);
    check::<v1::SessionMessage>(&pool, "docker.swarmkit.v1.SessionMessage", seen);
    check::<v1::AssignmentsMessage>(&pool, "docker.swarmkit.v1.AssignmentsMessage", seen);
    check::<v1::CreateSecretRequest>(&pool, "docker.swarmkit.v1.CreateSecretRequest", seen);
    check::<v1::CreateConfigRequest>(&pool, "docker.swarmkit.v1.CreateConfigRequest", seen);
    check::<v1::CreateServiceRequest>(&pool, "docker.swarmkit.v1.CreateServiceRequest", seen);
    check::<v1::WatchMessage>(&pool, "docker.swarmkit.v1.WatchMessage", seen);
    check::<v1::SubscribeLogsMessage>(&pool, "docker.swarmkit.v1.SubscribeLogsMessage", seen);
    check::<v1::PublishLogsMessage>(&pool, "docker.swarmkit.v1.PublishLogsMessage", seen);
    check::<v1::MaybeEncryptedRecord>(&pool, "docker.swarmkit.v1.MaybeEncryptedRecord", seen);
    check::<v1::ProcessRaftMessageRequest>(&pool, "docker.swarmkit.v1.ProcessRaftMessageRequest", seen);
    check::<v1::StreamRaftMessageRequest>(&pool, "docker.swarmkit.v1.StreamRaftMessageRequest", seen);
    check::<raftpb::Message>(&pool, "raftpb.Message", seen);
    let all: BTreeSet<String> = SECRETS.iter().map(|s| (*s).to_owned()).collect();
    assert_eq!(*seen, all, "every secret was in some message");
}

#[test]
fn whoever_adds_a_field_with_bytes_says_whether_it_is_secret() {
    let mut unknown = Vec::new();
    for message in pool().all_messages() {
        if !["docker.swarmkit.v1", "raftpb"].contains(&message.package_name()) {
            continue;
        }
        for field in message.fields().filter(|f| f.kind() == Kind::Bytes) {
            if !SECRETS.contains(&field.full_name()) && !OPEN.contains(&field.full_name()) {
                unknown.push(field.full_name().to_owned());
            }
        }
    }
    assert_eq!(unknown, [""; 0]);
}

#[test]
fn a_secret_in_the_open_would_be_noticed() {
    assert!(shows_secret(&format!("{:?}", SECRET.as_bytes())));
    assert!(shows_secret(&format!("{:#?}", SECRET.as_bytes())));
    assert!(shows_secret(&format!("{SECRET:?}")));
}
