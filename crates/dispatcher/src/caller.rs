//! Who is calling.

use std::net::IpAddr;

use tonic::Status;

use crate::error::status;

/// The node behind a request: from its certificate, or from the identity that a trusted manager forwarded.
/// The authentication layer puts it into the request's extensions; a request without it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerNode {
    /// Identifier of the node (CN of its certificate).
    pub id: String,
    /// Address that the node called from, as the manager saw it that it is connected to.
    pub addr: Option<IpAddr>,
}

impl CallerNode {
    /// The node behind a request.
    ///
    /// # Errors
    /// PERMISSION_DENIED if nobody is.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<CallerNode, Status> {
        match request.extensions().get::<CallerNode>() {
            Some(caller) if !caller.id.is_empty() => Ok(caller.clone()),
            _ => Err(status::no_certificate()),
        }
    }
}
