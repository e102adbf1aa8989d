//! The state directory: made for the owner alone, used by one daemon at a time, with the list of known managers.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use swarm_api::v1::{Peer, WeightedPeer};
use swarm_pki::atomic;

use crate::Error;

/// A state directory in use. The lock goes with the value.
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// One entry of `state.json`, as the original writes it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Manager {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    node_id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    addr: String,
}

/// Reads `state.json`.
pub(crate) fn parse_managers(text: &[u8]) -> serde_json::Result<Vec<Peer>> {
    let managers: Vec<Manager> = serde_json::from_slice(text)?;
    Ok(managers.into_iter().map(|m| Peer { node_id: m.node_id, addr: m.addr }).collect())
}

impl StateDir {
    /// Makes the directory if needed, closes it to others, and locks it.
    pub(crate) fn open(path: &Path) -> Result<StateDir, Error> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::state(path))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(Error::state(path))?;
        let lock_path = path.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(Error::state(&lock_path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => Error::InUse(path.to_owned()),
            other => Error::state(&lock_path)(other.into()),
        })?;
        Ok(StateDir { path: path.to_owned(), _lock: lock })
    }

    fn managers_path(&self) -> PathBuf {
        self.path.join("state.json")
    }

    /// The managers that were known when the daemon last ran.
    pub(crate) fn managers(&self) -> Result<Vec<Peer>, Error> {
        let path = self.managers_path();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::state(path)(error)),
        };
        parse_managers(&text).map_err(|source| Error::Managers { path, source })
    }

    /// Remembers the managers.
    pub(crate) fn save_managers(&self, managers: &[WeightedPeer]) -> Result<(), Error> {
        let peers = managers.iter().filter_map(|m| m.peer.as_ref());
        let mut list: Vec<Manager> =
            peers.map(|p| Manager { node_id: p.node_id.clone(), addr: p.addr.clone() }).collect();
        list.sort();
        let path = self.managers_path();
        let text =
            serde_json::to_vec(&list).map_err(|source| Error::Managers { path: path.clone(), source })?;
        if std::fs::read(&path).is_ok_and(|present| present == text) {
            return Ok(());
        }
        atomic::write(&path, &text, 0o600).map_err(Error::state(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weighted(node_id: &str, addr: &str) -> WeightedPeer {
        WeightedPeer { peer: Some(Peer { node_id: node_id.into(), addr: addr.into() }), weight: 10 }
    }

    #[test]
    fn managers_are_kept_sorted_and_empty_fields_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert!(state.managers().unwrap().is_empty());
        state.save_managers(&[weighted("b", "h:2"), weighted("", "h:1")]).unwrap();
        let text = std::fs::read_to_string(dir.path().join("state.json")).unwrap();
        assert_eq!(text, r#"[{"addr":"h:1"},{"node_id":"b","addr":"h:2"}]"#);
        let read: Vec<_> = state.managers().unwrap().into_iter().map(|p| (p.node_id, p.addr)).collect();
        assert_eq!(read, [(String::new(), "h:1".to_owned()), ("b".to_owned(), "h:2".to_owned())]);
    }

    #[test]
    fn a_state_directory_serves_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let Err(error) = StateDir::open(dir.path()) else { panic!("it was opened twice") };
        assert!(error.to_string().contains("another daemon"), "{error}");
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_damaged_list_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("state.json"), "{").unwrap();
        let error = StateDir::open(dir.path()).unwrap().managers().unwrap_err();
        assert!(error.to_string().contains("state.json"), "{error}");
    }
}
