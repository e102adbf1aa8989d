//! The contract's own health service: a status per service name.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use swarm_api::v1::health_check_response::ServingStatus;
use swarm_api::v1::{HealthCheckRequest, HealthCheckResponse, health_server};
use tonic::{Request, Response, Status};

/// Name of the control API on the local socket: serving once this manager is a member of the raft group.
pub const CONTROL_API: &str = "ControlAPI";
/// Name of raft on the remote port: serving just before the raft node starts.
pub const RAFT: &str = "Raft";

/// The health of named services. Clones share their state.
#[derive(Debug, Clone, Default)]
pub struct Health {
    statuses: Arc<RwLock<BTreeMap<String, ServingStatus>>>,
}

impl Health {
    /// Health that knows no service yet.
    pub fn new() -> Health {
        Health::default()
    }

    /// Sets the status of a service, which is known from now on.
    pub fn set(&self, service: impl Into<String>, status: ServingStatus) {
        self.statuses.write().insert(service.into(), status);
    }

    /// The status of a service; the empty name stands for the process and is always serving.
    pub fn get(&self, service: &str) -> Option<ServingStatus> {
        if service.is_empty() {
            return Some(ServingStatus::Serving);
        }
        self.statuses.read().get(service).copied()
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match self.get(&request.get_ref().service) {
            Some(status) => Ok(Response::new(HealthCheckResponse { status: status as i32 })),
            None => Err(Status::not_found("unknown service")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use health_server::Health as _;

    async fn check(health: &Health, service: &str) -> Result<ServingStatus, Status> {
        let request = HealthCheckRequest { service: service.into() };
        health.check(Request::new(request)).await.map(|r| r.get_ref().status())
    }

    #[tokio::test]
    async fn status_is_per_name_and_settable() {
        let health = Health::new();
        assert_eq!(check(&health, "").await.unwrap(), ServingStatus::Serving);
        let unknown = check(&health, "Raft").await.unwrap_err();
        assert_eq!((unknown.code(), unknown.message()), (tonic::Code::NotFound, "unknown service"));
        health.set(RAFT, ServingStatus::NotServing);
        assert_eq!(check(&health, RAFT).await.unwrap(), ServingStatus::NotServing);
        health.clone().set(RAFT, ServingStatus::Serving);
        assert_eq!(check(&health, RAFT).await.unwrap(), ServingStatus::Serving);
        assert!(check(&health, CONTROL_API).await.is_err());
    }
}
