//! `Debug` for messages that hold keys, tokens or payloads: the length of what is secret, never its content.

use std::fmt;

use crate::{raftpb, swarmd, v1};

/// Stands for bytes that must not be printed.
struct Hidden(usize);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0)
    }
}

macro_rules! redacted {
    ($type:ty { $($shown:ident),* } hidden { $($hidden:ident),* }) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($type))
                    $(.field(stringify!($shown), &self.$shown))*
                    $(.field(stringify!($hidden), &Hidden(self.$hidden.len())))*
                    .finish()
            }
        }
    };
}

redacted!(v1::JoinTokens {} hidden { worker, manager });
redacted!(v1::RootCa { ca_cert_hash, join_tokens, root_rotation, last_forced_rotation } hidden { ca_key, ca_cert });
redacted!(v1::RootRotation {} hidden { ca_cert, ca_key, cross_signed_ca_cert });
redacted!(v1::EncryptionKey { subsystem, algorithm, lamport_time } hidden { key });
redacted!(v1::SecretSpec { annotations, templating, driver } hidden { data });
redacted!(v1::ConfigSpec { annotations, templating } hidden { data });
redacted!(v1::CaConfig { node_cert_expiry, external_cas, force_rotate } hidden { signing_ca_cert, signing_ca_key });
redacted!(v1::IssueNodeCertificateRequest { availability } hidden { csr, token });
redacted!(v1::GetUnlockKeyResponse { version } hidden { unlock_key });
redacted!(v1::container_spec::PullOptions {} hidden { registry_auth });
redacted!(v1::acceptance_policy::role_admission_policy::Secret { alg } hidden { data });
redacted!(v1::MaybeEncryptedRecord { algorithm } hidden { data, nonce });
redacted!(swarmd::BackupRequest {} hidden { passphrase });
redacted!(swarmd::ExecTask { task_id, stdin, tty, size, user, dir } hidden { command, env });
redacted!(swarmd::FetchResponse { state, end } hidden { data });
redacted!(swarmd::PullOrder { id, image, close } hidden { registry_auth });
redacted!(swarmd::PullRequest { image, constraints } hidden { registry_auth });
redacted!(swarmd::UnlockRequest {} hidden { unlock_key });
redacted!(v1::LogMessage { context, timestamp, stream, attrs } hidden { data });

/// What goes in and out of tasks is nobody else's business.
impl fmt::Debug for swarmd::task_input::Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(open) => open.fmt(f),
            Self::Stdin(data) => f.debug_tuple("Stdin").field(&Hidden(data.len())).finish(),
            Self::StdinEnd(_) => f.write_str("StdinEnd"),
            Self::Size(size) => size.fmt(f),
        }
    }
}

impl fmt::Debug for swarmd::task_output::Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started(started) => started.fmt(f),
            Self::Stdout(data) => f.debug_tuple("Stdout").field(&Hidden(data.len())).finish(),
            Self::Stderr(data) => f.debug_tuple("Stderr").field(&Hidden(data.len())).finish(),
            Self::Ended(ended) => ended.fmt(f),
            Self::Stats(sample) => sample.fmt(f),
        }
    }
}

impl fmt::Debug for swarmd::TaskInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("swarmd::TaskInput").field("item", &self.item).finish()
    }
}

impl fmt::Debug for swarmd::TaskOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("swarmd::TaskOutput").field("item", &self.item).finish()
    }
}

impl fmt::Debug for raftpb::Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("raftpb::Entry")
            .field("type", &self.r#type)
            .field("term", &self.term)
            .field("index", &self.index)
            .field("data", &Hidden(self.data.as_ref().map_or(0, |d| d.len())))
            .finish()
    }
}

impl fmt::Debug for raftpb::Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("raftpb::Snapshot")
            .field("metadata", &self.metadata)
            .field("data", &Hidden(self.data.as_ref().map_or(0, |d| d.len())))
            .finish()
    }
}
