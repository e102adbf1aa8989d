//! The generated services' methods, each a line: unwrap the request, make the call, wrap the answer.

use swarm_api::swarmd::services_server::Services;
use swarm_api::swarmd::{DryRunRequest, DryRunResponse, RebalanceRequest, RebalanceResponse};
use swarm_api::v1::control_server;
use swarm_api::v1::*;
use tonic::{Request, Response, Status};

use crate::Control;

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

#[tonic::async_trait]
impl control_server::Control for Control {
    async fn get_node(&self, request: Request<GetNodeRequest>) -> Answer<GetNodeResponse> {
        let r = request.into_inner();
        answer(GetNodeResponse { node: Some(self.get_node(&r.node_id).await?) })
    }

    async fn list_nodes(&self, request: Request<ListNodesRequest>) -> Answer<ListNodesResponse> {
        let r = request.into_inner();
        answer(ListNodesResponse { nodes: self.list_nodes(r.filters).await? })
    }

    async fn update_node(&self, request: Request<UpdateNodeRequest>) -> Answer<UpdateNodeResponse> {
        let r = request.into_inner();
        answer(UpdateNodeResponse { node: Some(self.update_node(r).await?) })
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Answer<RemoveNodeResponse> {
        let r = request.into_inner();
        self.remove_node(&r.node_id, r.force).await?;
        answer(RemoveNodeResponse {})
    }

    async fn get_task(&self, request: Request<GetTaskRequest>) -> Answer<GetTaskResponse> {
        let r = request.into_inner();
        answer(GetTaskResponse { task: Some(self.get_task(&r.task_id).await?) })
    }

    async fn list_tasks(&self, request: Request<ListTasksRequest>) -> Answer<ListTasksResponse> {
        let r = request.into_inner();
        answer(ListTasksResponse { tasks: self.list_tasks(r.filters).await? })
    }

    async fn remove_task(&self, request: Request<RemoveTaskRequest>) -> Answer<RemoveTaskResponse> {
        let r = request.into_inner();
        self.remove_task(&r.task_id).await?;
        answer(RemoveTaskResponse {})
    }

    async fn get_service(&self, request: Request<GetServiceRequest>) -> Answer<GetServiceResponse> {
        let r = request.into_inner();
        answer(GetServiceResponse {
            service: Some(self.get_service(&r.service_id, r.insert_defaults).await?),
        })
    }

    async fn list_services(&self, request: Request<ListServicesRequest>) -> Answer<ListServicesResponse> {
        let r = request.into_inner();
        answer(ListServicesResponse { services: self.list_services(r.filters).await? })
    }

    async fn create_service(&self, request: Request<CreateServiceRequest>) -> Answer<CreateServiceResponse> {
        let r = request.into_inner();
        answer(CreateServiceResponse { service: Some(self.create_service(r.spec).await?) })
    }

    async fn update_service(&self, request: Request<UpdateServiceRequest>) -> Answer<UpdateServiceResponse> {
        let r = request.into_inner();
        answer(UpdateServiceResponse { service: Some(self.update_service(r).await?) })
    }

    async fn remove_service(&self, request: Request<RemoveServiceRequest>) -> Answer<RemoveServiceResponse> {
        let r = request.into_inner();
        self.remove_service(&r.service_id).await?;
        answer(RemoveServiceResponse {})
    }

    async fn list_service_statuses(
        &self,
        request: Request<ListServiceStatusesRequest>,
    ) -> Answer<ListServiceStatusesResponse> {
        let r = request.into_inner();
        answer(ListServiceStatusesResponse { statuses: self.list_service_statuses(r.services).await? })
    }

    async fn get_network(&self, request: Request<GetNetworkRequest>) -> Answer<GetNetworkResponse> {
        let r = request.into_inner();
        answer(GetNetworkResponse { network: Some(self.get_network(&r.network_id).await?) })
    }

    async fn list_networks(&self, request: Request<ListNetworksRequest>) -> Answer<ListNetworksResponse> {
        let r = request.into_inner();
        answer(ListNetworksResponse { networks: self.list_networks(r.filters).await? })
    }

    async fn create_network(&self, request: Request<CreateNetworkRequest>) -> Answer<CreateNetworkResponse> {
        let r = request.into_inner();
        answer(CreateNetworkResponse { network: Some(self.create_network(r.spec).await?) })
    }

    async fn remove_network(&self, request: Request<RemoveNetworkRequest>) -> Answer<RemoveNetworkResponse> {
        let r = request.into_inner();
        self.remove_network(&r.network_id).await?;
        answer(RemoveNetworkResponse {})
    }

    async fn get_cluster(&self, request: Request<GetClusterRequest>) -> Answer<GetClusterResponse> {
        let r = request.into_inner();
        answer(GetClusterResponse { cluster: Some(self.get_cluster(&r.cluster_id).await?) })
    }

    async fn list_clusters(&self, request: Request<ListClustersRequest>) -> Answer<ListClustersResponse> {
        let r = request.into_inner();
        answer(ListClustersResponse { clusters: self.list_clusters(r.filters).await? })
    }

    async fn update_cluster(&self, request: Request<UpdateClusterRequest>) -> Answer<UpdateClusterResponse> {
        let r = request.into_inner();
        answer(UpdateClusterResponse { cluster: Some(self.update_cluster(r).await?) })
    }

    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Answer<GetSecretResponse> {
        let r = request.into_inner();
        answer(GetSecretResponse { secret: Some(self.get_secret(&r.secret_id).await?) })
    }

    async fn update_secret(&self, request: Request<UpdateSecretRequest>) -> Answer<UpdateSecretResponse> {
        let r = request.into_inner();
        answer(UpdateSecretResponse { secret: Some(self.update_secret(r).await?) })
    }

    async fn list_secrets(&self, request: Request<ListSecretsRequest>) -> Answer<ListSecretsResponse> {
        let r = request.into_inner();
        answer(ListSecretsResponse { secrets: self.list_secrets(r.filters).await? })
    }

    async fn create_secret(&self, request: Request<CreateSecretRequest>) -> Answer<CreateSecretResponse> {
        let r = request.into_inner();
        answer(CreateSecretResponse { secret: Some(self.create_secret(r.spec).await?) })
    }

    async fn remove_secret(&self, request: Request<RemoveSecretRequest>) -> Answer<RemoveSecretResponse> {
        let r = request.into_inner();
        self.remove_secret(&r.secret_id).await?;
        answer(RemoveSecretResponse {})
    }

    async fn get_config(&self, request: Request<GetConfigRequest>) -> Answer<GetConfigResponse> {
        let r = request.into_inner();
        answer(GetConfigResponse { config: Some(self.get_config(&r.config_id).await?) })
    }

    async fn update_config(&self, request: Request<UpdateConfigRequest>) -> Answer<UpdateConfigResponse> {
        let r = request.into_inner();
        answer(UpdateConfigResponse { config: Some(self.update_config(r).await?) })
    }

    async fn list_configs(&self, request: Request<ListConfigsRequest>) -> Answer<ListConfigsResponse> {
        let r = request.into_inner();
        answer(ListConfigsResponse { configs: self.list_configs(r.filters).await? })
    }

    async fn create_config(&self, request: Request<CreateConfigRequest>) -> Answer<CreateConfigResponse> {
        let r = request.into_inner();
        answer(CreateConfigResponse { config: Some(self.create_config(r.spec).await?) })
    }

    async fn remove_config(&self, request: Request<RemoveConfigRequest>) -> Answer<RemoveConfigResponse> {
        let r = request.into_inner();
        self.remove_config(&r.config_id).await?;
        answer(RemoveConfigResponse {})
    }

    async fn get_extension(&self, request: Request<GetExtensionRequest>) -> Answer<GetExtensionResponse> {
        let r = request.into_inner();
        answer(GetExtensionResponse { extension: Some(self.get_extension(&r.extension_id).await?) })
    }

    async fn create_extension(
        &self,
        request: Request<CreateExtensionRequest>,
    ) -> Answer<CreateExtensionResponse> {
        let r = request.into_inner();
        answer(CreateExtensionResponse { extension: Some(self.create_extension(r).await?) })
    }

    async fn remove_extension(
        &self,
        request: Request<RemoveExtensionRequest>,
    ) -> Answer<RemoveExtensionResponse> {
        let r = request.into_inner();
        self.remove_extension(&r.extension_id).await?;
        answer(RemoveExtensionResponse {})
    }

    async fn get_resource(&self, request: Request<GetResourceRequest>) -> Answer<GetResourceResponse> {
        let r = request.into_inner();
        answer(GetResourceResponse { resource: Some(self.get_resource(&r.resource_id).await?) })
    }

    async fn update_resource(
        &self,
        request: Request<UpdateResourceRequest>,
    ) -> Answer<UpdateResourceResponse> {
        let r = request.into_inner();
        answer(UpdateResourceResponse { resource: Some(self.update_resource(r).await?) })
    }

    async fn list_resources(&self, request: Request<ListResourcesRequest>) -> Answer<ListResourcesResponse> {
        let r = request.into_inner();
        answer(ListResourcesResponse { resources: self.list_resources(r.filters).await? })
    }

    async fn create_resource(
        &self,
        request: Request<CreateResourceRequest>,
    ) -> Answer<CreateResourceResponse> {
        let r = request.into_inner();
        answer(CreateResourceResponse { resource: Some(self.create_resource(r).await?) })
    }

    async fn remove_resource(
        &self,
        request: Request<RemoveResourceRequest>,
    ) -> Answer<RemoveResourceResponse> {
        let r = request.into_inner();
        self.remove_resource(&r.resource_id).await?;
        answer(RemoveResourceResponse {})
    }

    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Answer<CreateVolumeResponse> {
        let r = request.into_inner();
        answer(CreateVolumeResponse { volume: Some(self.create_volume(r.spec).await?) })
    }

    async fn get_volume(&self, request: Request<GetVolumeRequest>) -> Answer<GetVolumeResponse> {
        let r = request.into_inner();
        answer(GetVolumeResponse { volume: Some(self.get_volume(&r.volume_id).await?) })
    }

    async fn update_volume(&self, request: Request<UpdateVolumeRequest>) -> Answer<UpdateVolumeResponse> {
        let r = request.into_inner();
        answer(UpdateVolumeResponse { volume: Some(self.update_volume(r).await?) })
    }

    async fn list_volumes(&self, request: Request<ListVolumesRequest>) -> Answer<ListVolumesResponse> {
        let r = request.into_inner();
        answer(ListVolumesResponse { volumes: self.list_volumes(r.filters).await? })
    }

    async fn remove_volume(&self, request: Request<RemoveVolumeRequest>) -> Answer<RemoveVolumeResponse> {
        let r = request.into_inner();
        self.remove_volume(&r.volume_id, r.force).await?;
        answer(RemoveVolumeResponse {})
    }
}

#[tonic::async_trait]
impl Services for Control {
    async fn rebalance(&self, request: Request<RebalanceRequest>) -> Answer<RebalanceResponse> {
        let r = request.into_inner();
        let found = self.rebalance(&r.service_id).await?;
        answer(RebalanceResponse { tasks: found.tasks as u64, waits: found.waits })
    }

    async fn dry_run(&self, request: Request<DryRunRequest>) -> Answer<DryRunResponse> {
        answer(self.dry_run(request.into_inner()).await?)
    }
}
