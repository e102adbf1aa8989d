//! The `ResourceAllocator` service: nodes attach containers of their own to networks of the cluster.

use swarm_api::v1::resource_allocator_server::{ResourceAllocator, ResourceAllocatorServer};
use swarm_api::v1::{
    AttachNetworkRequest, AttachNetworkResponse, DetachNetworkRequest, DetachNetworkResponse,
};
use swarm_control::Control;
use swarm_dispatcher::CallerNode;
use tonic::{Request, Response, Status};

/// `docker.swarmkit.v1.ResourceAllocator`. Requests must carry a [`CallerNode`]: an attachment is its own.
#[derive(Debug, Clone)]
pub struct Attachments {
    control: Control,
}

impl Attachments {
    /// Attachments that are made by these calls.
    pub fn new(control: Control) -> Attachments {
        Attachments { control }
    }

    /// The service for a tonic router.
    pub fn into_server(self) -> ResourceAllocatorServer<Self> {
        ResourceAllocatorServer::new(self)
    }
}

#[tonic::async_trait]
impl ResourceAllocator for Attachments {
    async fn attach_network(
        &self,
        request: Request<AttachNetworkRequest>,
    ) -> Result<Response<AttachNetworkResponse>, Status> {
        let caller = CallerNode::of(&request)?;
        let attachment_id = self.control.attach_network(&caller.id, request.into_inner()).await?;
        Ok(Response::new(AttachNetworkResponse { attachment_id }))
    }

    async fn detach_network(
        &self,
        request: Request<DetachNetworkRequest>,
    ) -> Result<Response<DetachNetworkResponse>, Status> {
        let caller = CallerNode::of(&request)?;
        self.control.detach_network(&caller.id, &request.into_inner().attachment_id).await?;
        Ok(Response::new(DetachNetworkResponse {}))
    }
}
