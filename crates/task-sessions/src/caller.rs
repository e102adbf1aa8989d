//! Who wants into a task, for the record.

use swarm_dispatcher::CallerNode;
use swarm_pki::LocalConnectionInfo;
use tonic::Request;

/// Metadata with user, group and process of a caller on another manager's control socket, which that manager has set. Not
/// of the contract.
pub const LOCAL_PEER: &str = "swarmd_peer";

/// Longest text that is believed.
const LONGEST: usize = 128;

/// `uid=0 gid=0 pid=7`, and through which manager.
pub(crate) fn caller<T>(request: &Request<T>) -> String {
    let manager = request.extensions().get::<CallerNode>().map_or("", |node| node.id.as_str());
    match request.extensions().get::<LocalConnectionInfo>() {
        Some(LocalConnectionInfo { credentials: Some(peer) }) => {
            let pid = peer.pid().map(|pid| format!(" pid={pid}")).unwrap_or_default();
            format!("uid={} gid={}{pid} on {manager}", peer.uid(), peer.gid())
        }
        Some(LocalConnectionInfo { credentials: None }) => format!("somebody on {manager}"),
        None => {
            let peer = request.metadata().get(LOCAL_PEER).and_then(|value| value.to_str().ok());
            let peer: String = peer.unwrap_or("somebody").chars().take(LONGEST).collect();
            format!("{peer} on {manager}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_of_other_managers_are_named_as_those_say() {
        let mut request = Request::new(());
        request.extensions_mut().insert(CallerNode { id: "m2".into(), addr: None });
        assert_eq!(caller(&request), "somebody on m2");
        request.metadata_mut().insert(LOCAL_PEER, "uid=7 gid=8 pid=9".parse().unwrap());
        assert_eq!(caller(&request), "uid=7 gid=8 pid=9 on m2");
        // On the manager's own socket nothing is believed but the kernel.
        request.extensions_mut().insert(LocalConnectionInfo::default());
        assert_eq!(caller(&request), "somebody on m2");
    }
}
