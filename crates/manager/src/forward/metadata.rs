//! What the leader is told of a call that is passed on to it.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use swarm_pki::LocalConnectionInfo;
use swarm_task_sessions::LOCAL_PEER;
use tonic::Status;

use super::Door;
use crate::auth::{Caller, FORWARDED, FORWARDED_NODE, FORWARDED_ORGANIZATION, FORWARDED_UNIT, REMOTE_ADDR};

/// Metadata with the address of the caller of a call that was passed on; a call is passed on once.
pub(super) const REDIRECT: &str = "redirect";

/// How a manager says that it does not lead any more, or not yet. It has not begun the call then.
pub(super) const REFUSED: &str = "more than one redirect to leader from";

/// Another manager has passed this call on.
pub(super) fn is_forwarded(headers: &HeaderMap, caller: &Caller) -> bool {
    caller.forwarded_by.is_some() || headers.get_all(REDIRECT).iter().any(|value| !value.is_empty())
}

/// The answer to a call that would have to be passed on a second time.
pub(super) fn refused(headers: &HeaderMap) -> Status {
    let from: Vec<_> = headers.get_all(REDIRECT).iter().filter_map(|value| value.to_str().ok()).collect();
    Status::resource_exhausted(format!("{REFUSED}: [{}]", from.join(" ")))
}

/// Replaces what a caller says of itself by what this manager knows of it.
pub(super) fn prepare(
    headers: &mut HeaderMap,
    door: Door,
    caller: &Caller,
    local: Option<&LocalConnectionInfo>,
) -> Result<(), Status> {
    let ours = [FORWARDED, FORWARDED_NODE, FORWARDED_ORGANIZATION, FORWARDED_UNIT, REMOTE_ADDR, REDIRECT];
    for name in ours.into_iter().chain([LOCAL_PEER, header::HOST.as_str()]) {
        headers.remove(name);
    }
    let addr =
        caller.remote_addr.ok_or_else(|| Status::invalid_argument("remote addr is not found in context"))?;
    let addr = addr.to_string();
    set(headers, REDIRECT, &addr)?;
    match door {
        Door::Socket => {
            if let Some(credentials) = local.and_then(|info| info.credentials) {
                let pid = credentials.pid().map(|pid| format!(" pid={pid}")).unwrap_or_default();
                let text = format!("uid={} gid={}{pid}", credentials.uid(), credentials.gid());
                set(headers, LOCAL_PEER, &text)?;
            }
        }
        Door::Remote => {
            // Nobody's call is marked too, or it would look like this manager's own.
            let identity = caller.identity.clone().unwrap_or_default();
            set(headers, FORWARDED, "true")?;
            set(headers, FORWARDED_NODE, &identity.node_id)?;
            set(headers, FORWARDED_ORGANIZATION, &identity.organization)?;
            for unit in &identity.units {
                set(headers, FORWARDED_UNIT, unit)?;
            }
            set(headers, REMOTE_ADDR, &addr)?;
        }
    }
    Ok(())
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), Status> {
    let value = HeaderValue::from_str(value).map_err(|_| {
        Status::internal(format!("the caller's certificate has a name that {name} can't carry"))
    })?;
    headers.append(HeaderName::from_static(name), value);
    Ok(())
}
