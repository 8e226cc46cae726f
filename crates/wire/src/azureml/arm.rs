//! What Azure Resource Manager and the discovery service answer (azureml-wire A.5, B.1 to B.4).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::time::UtcTime;

/// `GET /subscriptions`. The SDK looks for its id in here before it opens a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscription {
    /// `/subscriptions/{id}`.
    pub id: String,
    /// The id alone.
    pub subscription_id: String,
    /// Name for people.
    pub display_name: String,
    /// `Enabled`.
    pub state: String,
    /// The tenant that it belongs to.
    pub tenant_id: Uuid,
}

/// A list of ARM: `{"value": […], "nextLink": ?}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ArmList<T> {
    /// The items.
    pub value: Vec<T>,
    /// URL of the next page; left out on the last one, as ARM does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_link: Option<String>,
}

impl<T> ArmList<T> {
    /// A list that is complete.
    pub fn whole(value: Vec<T>) -> Self {
        Self { value, next_link: None }
    }
}

/// A workspace (azureml-wire B.2).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkspaceResource {
    /// `/subscriptions/…/workspaces/{name}`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// [`WORKSPACE_TYPE`].
    #[serde(rename = "type")]
    pub resource_type: &'static str,
    /// Region.
    pub location: String,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Null: this server has no managed identities.
    pub identity: Option<Value>,
    /// Its price list.
    pub sku: Sku,
    /// The rest.
    pub properties: WorkspaceProperties,
}

/// `type` of a [`WorkspaceResource`].
pub const WORKSPACE_TYPE: &str = "Microsoft.MachineLearningServices/workspaces";

/// A price list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sku {
    /// `Basic`.
    pub name: &'static str,
    /// `Basic`.
    pub tier: &'static str,
}

impl Sku {
    /// The only one.
    pub const BASIC: Self = Self { name: "Basic", tier: "Basic" };
}

/// The inside of a [`WorkspaceResource`]. `workspace_id` and `discovery_url` are what the SDK cannot do without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceProperties {
    /// Its id.
    pub workspace_id: Uuid,
    /// Where [`Discovery`] is.
    pub discovery_url: String,
    /// Name for people.
    pub friendly_name: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// When it was created.
    pub creation_time: Option<UtcTime>,
    /// `Succeeded`.
    pub provisioning_state: &'static str,
    /// ARM id, null here.
    pub storage_account: Option<String>,
    /// ARM id, null here.
    pub key_vault: Option<String>,
    /// ARM id, null here.
    pub application_insights: Option<String>,
    /// ARM id, null here.
    pub container_registry: Option<String>,
    /// High business impact: false.
    pub hbi_workspace: bool,
    /// Null here.
    pub image_build_compute: Option<String>,
    /// Whether public access is allowed behind a virtual network.
    pub allow_public_access_when_behind_vnet: bool,
}

/// Service name to base URL without a trailing slash (azureml-wire B.3). The first six are those the SDK requires; here all
/// services are one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Discovery {
    api: String,
    experimentation: String,
    history: String,
    hyperdrive: String,
    modelmanagement: String,
    studio: String,
    pipelines: String,
    catalog: String,
    gallery: String,
    labeling: String,
    notebook: String,
    inference: String,
    studiocoreservices: String,
}

impl Discovery {
    /// The document of a server that answers for every service at `base`, an `https://…` URL.
    pub fn all_at(base: &str) -> Self {
        let base = base.trim_end_matches('/');
        Self {
            api: base.to_owned(),
            experimentation: base.to_owned(),
            history: base.to_owned(),
            hyperdrive: base.to_owned(),
            modelmanagement: base.to_owned(),
            studio: base.to_owned(),
            pipelines: base.to_owned(),
            catalog: base.to_owned(),
            gallery: base.to_owned(),
            labeling: base.to_owned(),
            notebook: base.to_owned(),
            inference: base.to_owned(),
            studiocoreservices: base.to_owned(),
        }
    }
}

/// One cloud of `GET /metadata/endpoints` (azureml-wire A.5); the answer is a list of these. Name it `AzureCloud`: several SDK
/// classes default to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cloud {
    /// `AzureCloud`.
    pub name: String,
    /// Where people look.
    pub portal: String,
    /// Where tokens come from.
    pub authentication: CloudAuthentication,
    /// URL of ARM.
    pub resource_manager: String,
    /// Audience of the directory service.
    pub graph_audience: String,
    /// Host name endings.
    pub suffixes: CloudSuffixes,
}

/// Where tokens of a cloud come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CloudAuthentication {
    /// Base URL of the authority.
    pub login_endpoint: String,
    /// Audiences of ARM; the first becomes the token scope.
    pub audiences: Vec<String>,
    /// `common`.
    pub tenant: String,
    /// `AAD`.
    pub identity_provider: String,
}

/// Host name endings of a cloud.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CloudSuffixes {
    /// Of blob accounts, after `{account}.blob.`.
    pub storage: String,
    /// Of registries.
    pub acr_login_server: String,
    /// Of key vaults.
    pub key_vault_dns: String,
    /// Of SQL servers.
    pub sql_server_hostname: String,
}

/// A compute target in the shape of an AmlCompute cluster (azureml-wire B.4), which is the kind that the SDK handles without
/// asking further. Keys that must exist although null are always written; `userAccountCredentials` is never there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComputeResource {
    /// `{workspace id}/computes/{name}`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Region.
    pub location: String,
    /// [`COMPUTE_TYPE`].
    #[serde(rename = "type")]
    pub resource_type: &'static str,
    /// Null or tags.
    pub tags: Option<BTreeMap<String, String>>,
    /// The rest.
    pub properties: ComputeProperties,
}

/// `type` of a [`ComputeResource`].
pub const COMPUTE_TYPE: &str = "Microsoft.MachineLearningServices/workspaces/computes";

/// The outer half of a compute's properties.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ComputeProperties {
    /// `AmlCompute`.
    pub compute_type: &'static str,
    /// Region.
    pub compute_location: String,
    /// What it is for.
    pub description: Option<String>,
    /// `Succeeded`.
    pub provisioning_state: &'static str,
    /// Null: nothing went wrong.
    pub provisioning_errors: Option<Value>,
    /// Null: not an attached resource.
    pub resource_id: Option<String>,
    /// False.
    pub is_attached_compute: bool,
    /// When it was configured.
    pub created_on: UtcTime,
    /// When its configuration changed.
    pub modified_on: UtcTime,
    /// The inner half.
    pub properties: AmlComputeProperties,
}

/// The inner half: a cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AmlComputeProperties {
    /// Machine size; the engine's name here.
    pub vm_size: String,
    /// `Dedicated`.
    pub vm_priority: &'static str,
    /// How it grows and shrinks.
    pub scale_settings: ScaleSettings,
    /// Null: no virtual network.
    pub subnet: Option<Value>,
    /// `Steady`.
    pub allocation_state: &'static str,
    /// When that changed; the SDK parses whatever is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocation_state_transition_time: Option<UtcTime>,
    /// Nodes there are.
    pub current_node_count: u32,
    /// Nodes there should be.
    pub target_node_count: u32,
    /// What they do.
    pub node_state_counts: NodeStateCounts,
    /// Null: none.
    pub errors: Option<Value>,
    /// `NotSpecified`.
    pub remote_login_port_public_access: &'static str,
}

/// How a cluster grows and shrinks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleSettings {
    /// Fewest nodes.
    pub min_node_count: u32,
    /// Most nodes; the slots of the target here.
    pub max_node_count: u32,
    /// ISO 8601 duration such as `PT120S`.
    pub node_idle_time_before_scale_down: &'static str,
}

/// How many nodes are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStateCounts {
    /// Free.
    pub idle_node_count: u32,
    /// Busy.
    pub running_node_count: u32,
    /// Starting.
    pub preparing_node_count: u32,
    /// Broken.
    pub unusable_node_count: u32,
    /// Stopping.
    pub leaving_node_count: u32,
    /// Taken away.
    pub preempted_node_count: u32,
}

impl NodeStateCounts {
    /// All nodes.
    pub fn all(self) -> u32 {
        self.usable() + self.unusable_node_count + self.preempted_node_count
    }

    /// Those that work, or will.
    pub fn usable(self) -> u32 {
        self.idle_node_count + self.running_node_count + self.preparing_node_count + self.leaving_node_count
    }
}

/// Answer to `POST …/listNodes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeList {
    /// The nodes.
    pub nodes: Vec<NodeResource>,
}

/// A node of a compute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeResource {
    /// Its name.
    pub node_id: String,
    /// Null: nobody logs in to it through this API.
    pub private_ip_address: Option<String>,
    /// Null likewise.
    pub public_ip_address: Option<String>,
    /// Null likewise.
    pub port: Option<u16>,
    /// `idle`, `running`, `preparing`, `unusable`, `leaving`.
    pub node_state: &'static str,
    /// A run that it executes, of those that the caller may see.
    pub run_id: Option<String>,
}

/// What a caller says about a target; the rest of the document follows from it.
#[derive(Clone, Copy, Debug)]
pub struct ComputeSummary<'a> {
    /// ARM id of the workspace.
    pub workspace_id: &'a str,
    /// Name of the target.
    pub name: &'a str,
    /// Region.
    pub location: &'a str,
    /// The engine, shown as the machine size.
    pub engine: &'a str,
    /// How many runs it takes at once.
    pub slots: u32,
    /// How many it has now.
    pub running: u32,
    /// What its machines do, where there are several and their engine tells; else its slots stand for nodes.
    pub nodes: Option<NodeStateCounts>,
    /// When it was configured.
    pub created: UtcTime,
}

impl ComputeResource {
    /// The document of a target.
    pub fn of(summary: ComputeSummary<'_>) -> Self {
        let ComputeSummary { workspace_id, name, location, engine, slots, running, nodes, created } = summary;
        let slots_as_nodes =
            NodeStateCounts { idle_node_count: slots.saturating_sub(running), running_node_count: running, ..NodeStateCounts::default() };
        let node_state_counts = nodes.unwrap_or(slots_as_nodes);
        let most = nodes.map_or(slots, NodeStateCounts::all);
        let is_growing = node_state_counts.preparing_node_count > 0;
        Self {
            id: format!("{workspace_id}/computes/{name}"),
            name: name.to_owned(),
            location: location.to_owned(),
            resource_type: COMPUTE_TYPE,
            tags: None,
            properties: ComputeProperties {
                compute_type: "AmlCompute",
                compute_location: location.to_owned(),
                description: None,
                provisioning_state: "Succeeded",
                provisioning_errors: None,
                resource_id: None,
                is_attached_compute: false,
                created_on: created,
                modified_on: created,
                properties: AmlComputeProperties {
                    vm_size: engine.to_owned(),
                    vm_priority: "Dedicated",
                    scale_settings: ScaleSettings { min_node_count: 0, max_node_count: most, node_idle_time_before_scale_down: "PT120S" },
                    subnet: None,
                    allocation_state: if is_growing { "Resizing" } else { "Steady" },
                    allocation_state_transition_time: None,
                    current_node_count: node_state_counts.usable(),
                    target_node_count: most,
                    node_state_counts,
                    errors: None,
                    remote_login_port_public_access: "NotSpecified",
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_compute_has_every_key_that_the_sdk_needs_and_no_credentials() {
        let compute = ComputeResource::of(ComputeSummary {
            workspace_id: "/subscriptions/s/w",
            name: "cpu-cluster",
            location: "eastus",
            engine: "local",
            slots: 2,
            running: 1,
            nodes: None,
            created: UtcTime::from_microseconds(0),
        });
        let written = serde_json::to_value(compute).unwrap();
        assert_eq!(written["id"], "/subscriptions/s/w/computes/cpu-cluster");
        assert_eq!(written["tags"], Value::Null);
        let outer = &written["properties"];
        for key in ["computeType", "description", "provisioningState", "provisioningErrors", "resourceId"] {
            assert!(outer.get(key).is_some(), "{key}");
        }
        let inner = &outer["properties"];
        for key in ["vmSize", "vmPriority", "scaleSettings", "subnet"] {
            assert!(inner.get(key).is_some(), "{key}");
        }
        assert!(inner.get("userAccountCredentials").is_none());
        assert_eq!(inner["scaleSettings"], json!({"minNodeCount": 0, "maxNodeCount": 2, "nodeIdleTimeBeforeScaleDown": "PT120S"}));
        assert_eq!(inner["nodeStateCounts"]["runningNodeCount"], 1);
        assert!(inner.get("allocationStateTransitionTime").is_none(), "the SDK parses whatever is there");
    }

    #[test]
    fn the_machines_of_a_cluster_are_its_nodes() {
        let nodes = NodeStateCounts { idle_node_count: 2, preparing_node_count: 1, unusable_node_count: 1, ..NodeStateCounts::default() };
        let compute = ComputeResource::of(ComputeSummary {
            workspace_id: "/w",
            name: "gpu",
            location: "eastus",
            engine: "slurm",
            slots: 1000,
            running: 0,
            nodes: Some(nodes),
            created: UtcTime::from_microseconds(0),
        });
        let inner = serde_json::to_value(compute).unwrap()["properties"]["properties"].clone();
        assert_eq!((&inner["currentNodeCount"], &inner["targetNodeCount"]), (&json!(3), &json!(4)));
        assert_eq!((&inner["allocationState"], &inner["scaleSettings"]["maxNodeCount"]), (&json!("Resizing"), &json!(4)));
    }

    #[test]
    fn the_discovery_document_has_the_six_required_services_without_a_trailing_slash() {
        let document = serde_json::to_value(Discovery::all_at("https://localhost:8443/")).unwrap();
        for key in ["api", "experimentation", "history", "hyperdrive", "modelmanagement", "studio"] {
            assert_eq!(document[key], "https://localhost:8443", "{key}");
        }
    }

    #[test]
    fn a_whole_list_has_no_next_link() {
        assert_eq!(serde_json::to_value(ArmList::whole(vec![1])).unwrap(), json!({"value": [1]}));
    }
}
