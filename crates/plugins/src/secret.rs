//! Plug-ins that provide secrets.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::{Plugin, PluginError};

/// A secret must be smaller than this, in bytes, as in the contract.
pub const MAX_SECRET: usize = 512_000;

/// What a plug-in is told of the task that a secret is for. Empty fields are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)] // the protocol's own names
pub struct SecretRequest {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub secret_name: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secret_labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_hostname: String,
    #[serde(rename = "ServiceID", skip_serializing_if = "String::is_empty")]
    pub service_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_name: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub service_labels: BTreeMap<String, String>,
    #[serde(rename = "TaskID", skip_serializing_if = "String::is_empty")]
    pub task_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub task_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub task_image: String,
    #[serde(rename = "NodeID", skip_serializing_if = "String::is_empty")]
    pub node_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_endpoint_spec: Option<ServiceEndpoint>,
}

/// How a service is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct ServiceEndpoint {
    #[serde(skip_serializing_if = "is_zero")]
    pub mode: i32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
}

/// A port of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct Port {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub protocol: i32,
    #[serde(skip_serializing_if = "is_none")]
    pub published_port: u32,
    #[serde(skip_serializing_if = "is_none")]
    pub target_port: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pub publish_mode: i32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde wants it
fn is_zero(number: &i32) -> bool {
    *number == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_none(number: &u32) -> bool {
    *number == 0
}

/// What a plug-in gave.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretAnswer {
    /// The secret itself.
    pub value: Vec<u8>,
    /// It is for the one task that it was asked for.
    pub do_not_reuse: bool,
}

impl std::fmt::Debug for SecretAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bytes, do_not_reuse) = (self.value.len(), self.do_not_reuse);
        f.debug_struct("SecretAnswer")
            .field("bytes", &bytes)
            .field("do_not_reuse", &do_not_reuse)
            .finish_non_exhaustive()
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Answer {
    value: Option<String>,
    err: Option<String>,
    do_not_reuse: bool,
}

/// Asks a plug-in for a secret.
///
/// # Errors
/// Those of [`Plugin::call`], and [`PluginError::Answer`] if it has no such secret or gives none that the contract allows.
pub async fn get_secret(plugin: &Plugin, request: &SecretRequest) -> Result<SecretAnswer, PluginError> {
    let answer: Answer = plugin.call("SecretProvider.GetSecret", request).await?;
    let refused = |reason: String| PluginError::Answer { name: plugin.name().to_owned(), reason };
    if let Some(err) = answer.err.filter(|err| !err.is_empty()) {
        return Err(refused(err.chars().take(500).collect()));
    }
    let value = STANDARD
        .decode(answer.value.unwrap_or_default())
        .map_err(|_| refused("the value it gave is not base64".to_owned()))?;
    if value.is_empty() || value.len() >= MAX_SECRET {
        let text = format!("secret data must be larger than 0 and less than {MAX_SECRET} bytes");
        return Err(refused(text));
    }
    Ok(SecretAnswer { value, do_not_reuse: answer.do_not_reuse })
}
