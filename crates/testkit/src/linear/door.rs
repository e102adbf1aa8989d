//! A manager's control API as the clients use it: objects are configs, whose content is a label.

use std::path::{Path, PathBuf};

use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::{
    Config, ConfigSpec, CreateConfigRequest, GetConfigRequest, ListConfigsRequest, RemoveConfigRequest,
    UpdateConfigRequest, Version, list_configs_request,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::history::{Answer, Call, Seen};
use crate::daemon::channel;

/// The label that holds an object's content.
const LABEL: &str = "content";

/// Where clients send their calls.
#[tonic::async_trait]
pub trait Door: Send + Sync + 'static {
    /// For people.
    fn name(&self) -> &str;

    /// Sends a call and waits for its answer, however long that takes.
    async fn call(&self, call: &Call) -> Answer;
}

/// The control socket of a manager.
#[derive(Debug, Clone)]
pub struct ControlDoor {
    name: String,
    prefix: String,
    control: ControlClient<Channel>,
}

impl ControlDoor {
    /// The socket's door to the objects whose names begin with `prefix`; to the clients, these are all there are.
    pub fn new(socket: &Path, prefix: &str) -> ControlDoor {
        let name = socket.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let control = ControlClient::new(channel(PathBuf::from(socket)));
        ControlDoor { name, prefix: prefix.to_owned(), control }
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn seen(&self, config: Option<&Config>) -> Option<Seen> {
        let config = config?;
        let annotations = &config.spec.annotations;
        Some(Seen {
            name: annotations.name.strip_prefix(&self.prefix)?.to_owned(),
            id: config.id.clone(),
            version: config.meta.version.index,
            tag: annotations.labels.get(LABEL)?.clone(),
        })
    }

    fn object(&self, config: Option<&Config>) -> Answer {
        self.seen(config)
            .map_or_else(|| Answer::Unknown("an answer without an object".into()), Answer::Object)
    }

    async fn send(&self, call: &Call) -> Result<Answer, Status> {
        let mut control = self.control.clone();
        let answer = match call {
            Call::Create { name, tag } => {
                let request = CreateConfigRequest { spec: Some(spec(&self.full(name), tag, b"data")) };
                self.object(control.create_config(request).await?.into_inner().config.as_deref())
            }
            Call::Get { id } => {
                let request = GetConfigRequest { config_id: id.clone() };
                self.object(control.get_config(request).await?.into_inner().config.as_deref())
            }
            Call::Update { id, name, version, tag } => {
                let request = UpdateConfigRequest {
                    config_id: id.clone(),
                    config_version: Some(Version { index: *version }),
                    spec: Some(spec(&self.full(name), tag, b"")),
                };
                self.object(control.update_config(request).await?.into_inner().config.as_deref())
            }
            Call::Remove { id } => {
                control.remove_config(RemoveConfigRequest { config_id: id.clone() }).await?;
                Answer::Removed
            }
            Call::List => {
                let name_prefixes = vec![self.prefix.clone()];
                let filters = list_configs_request::Filters { name_prefixes, ..Default::default() };
                let request = ListConfigsRequest { filters: Some(filters) };
                let configs = control.list_configs(request).await?.into_inner().configs;
                let all: Option<Vec<Seen>> = configs.iter().map(|config| self.seen(Some(config))).collect();
                all.map_or_else(|| Answer::Unknown("a list with something else".into()), Answer::All)
            }
        };
        Ok(answer)
    }
}

fn spec(name: &str, tag: &str, data: &[u8]) -> ConfigSpec {
    let mut spec = ConfigSpec { data: data.to_vec(), ..ConfigSpec::default() };
    spec.annotations.name = name.to_owned();
    spec.annotations.labels.insert(LABEL.to_owned(), tag.to_owned());
    spec
}

#[tonic::async_trait]
impl Door for ControlDoor {
    fn name(&self) -> &str {
        &self.name
    }

    async fn call(&self, call: &Call) -> Answer {
        match self.send(call).await {
            Ok(answer) => answer,
            Err(status) => classify(&status),
        }
    }
}

/// What a client may conclude from an error. Only what the managers promise to mean "not done" counts as that: if one of
/// these errors came although the call had an effect, the check of the history finds it.
fn classify(status: &Status) -> Answer {
    let text = status.message();
    let not_begun = match status.code() {
        Code::NotFound => return Answer::NotFound,
        Code::AlreadyExists => return Answer::Exists,
        Code::Unknown if text == "update out of sequence" => return Answer::OutOfSequence,
        Code::Unknown => text.starts_with("The swarm does not have a leader."),
        Code::Unavailable => {
            let no_way = text.starts_with("the leader ") && text.contains(" can't be reached: ");
            let no_leader = text.starts_with("the manager ") && text.ends_with(" does not lead any more");
            no_way || no_leader || text == "raft proposal dropped" || never_sent(status)
        }
        Code::FailedPrecondition => text.contains("this manager is locked"),
        Code::InvalidArgument | Code::Unimplemented => true,
        _ => false,
    };
    let text = format!("{:?}: {text}", status.code());
    if not_begun { Answer::Refused(text) } else { Answer::Unknown(text) }
}

/// Nobody listened.
fn never_sent(status: &Status) -> bool {
    swarm_pki::sources(status).any(|error| error.is::<tonic::ConnectError>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_never_began_counts_as_refused() {
        let refused = [
            (Code::Unknown, "The swarm does not have a leader. It's possible that …"),
            (Code::Unavailable, "the leader x (127.0.0.1:1) can't be reached: connection refused"),
            (Code::Unavailable, "the manager x (127.0.0.1:1) does not lead any more"),
            (Code::Unavailable, "raft proposal dropped"),
        ];
        for (code, text) in refused {
            assert!(matches!(classify(&Status::new(code, text)), Answer::Refused(_)), "{text}");
        }
        let unknown = [
            (Code::Unknown, "raft: failed to process the request: node lost leader status"),
            (Code::Unknown, "raft: failed to process the request: node is stopped"),
            (Code::Unavailable, "this manager is stopping"),
            (
                Code::Unavailable,
                "the connection to the leader x was lost during the call, which may or may not …",
            ),
            (Code::Cancelled, "x"),
            (Code::Internal, "h2 protocol error"),
            (Code::DeadlineExceeded, "x"),
        ];
        for (code, text) in unknown {
            assert!(matches!(classify(&Status::new(code, text)), Answer::Unknown(_)), "{text}");
        }
        assert_eq!(classify(&Status::unknown("update out of sequence")), Answer::OutOfSequence);
        assert_eq!(classify(&Status::not_found("config x not found")), Answer::NotFound);
        assert_eq!(classify(&Status::already_exists("config x already exists")), Answer::Exists);
    }

    #[tokio::test]
    async fn a_call_to_nobody_was_never_sent() {
        let dir = tempfile::tempdir().unwrap();
        let door = ControlDoor::new(&dir.path().join("nobody.sock"), "x-");
        let answer = door.call(&Call::Create { name: "a".into(), tag: "t".into() }).await;
        assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    }
}
