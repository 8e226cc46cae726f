//! Runs as run history gives them back and as clients write them (azureml-wire C.3, C.4).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    error::ErrorResponse,
    time::{CreatedTime, Elapsed, UtcTime},
};
use crate::json::{Fields, FromJson, WireError, object};

/// Text by key; a value may be null.
pub type TextMap = BTreeMap<String, Option<String>>;

/// A run (azureml-wire C.4). Every key is always written, null where there is nothing, because the SDK breaks without some.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunDto {
    /// Seconds of creation, as the service of 2024 gives.
    pub run_number: i64,
    /// Its own id for a root run.
    pub root_run_id: String,
    /// A GUID beside the id.
    pub run_uuid: Uuid,
    /// The parent's.
    pub parent_run_uuid: Option<Uuid>,
    /// The root's.
    pub root_run_uuid: Uuid,
    /// Its id.
    pub run_id: String,
    /// The parent's id.
    pub parent_run_id: Option<String>,
    /// The experiment.
    pub experiment_id: Uuid,
    /// A word of azureml-wire C.5.
    pub status: String,
    /// When it was created.
    pub created_utc: CreatedTime,
    /// When the code started.
    pub start_time_utc: Option<UtcTime>,
    /// When it ended.
    pub end_time_utc: Option<UtcTime>,
    /// Who created it.
    pub created_by: Option<CreatedBy>,
    /// Object id of the creator.
    pub user_id: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Name for people.
    pub display_name: Option<String>,
    /// What it is about.
    pub description: Option<String>,
    /// `dcid.{runId}`.
    pub data_container_id: String,
    /// Options of its making.
    pub options: RunOptions,
    /// Hidden runs vanish from the SDK's lists.
    pub hidden: bool,
    /// E.g. `azureml.scriptrun`.
    pub run_type: Option<String>,
    /// The same, newer.
    pub run_type_v2: Option<RunTypeV2>,
    /// Written once per key.
    pub properties: TextMap,
    /// Changeable.
    pub tags: TextMap,
    /// Parameters.
    pub parameters: Map<String, Value>,
    /// The script.
    pub script_name: Option<String>,
    /// The compute target.
    pub target: Option<String>,
    /// The metric that matters.
    pub primary_metric_name: Option<String>,
    /// Whether heartbeats are expected.
    pub heartbeat_enabled: bool,
    /// Null to readers.
    pub token: Option<String>,
    /// Null to readers.
    pub token_expiry_time_utc: Option<UtcTime>,
    /// The normalised configuration; null where [`RunDetailsDto`](super::run_details::RunDetailsDto) has it.
    pub run_definition: Option<Value>,
    /// Absolute URL that the SDK posts to in order to cancel.
    pub cancel_uri: Option<String>,
    /// Absolute URL.
    pub complete_uri: Option<String>,
    /// Absolute URL.
    pub diagnostics_uri: Option<String>,
    /// A notebook, if it came from one.
    pub created_from: Option<Value>,
    /// What went wrong: an `ErrorResponse`, of ours or as a client reported it.
    pub error: Option<Value>,
    /// What the user should know.
    pub warnings: Option<Vec<RunWarning>>,
    /// Why it waits.
    pub queueing_info: Option<QueueingInfo>,
    /// Interactive endpoints; empty.
    pub services: Map<String, Value>,
    /// Lineage.
    pub input_datasets: Vec<Value>,
    /// Lineage.
    pub output_datasets: Vec<Value>,
    /// Lineage.
    pub inputs: Map<String, Value>,
    /// Lineage.
    pub outputs: Map<String, Value>,
    /// What it needs.
    pub compute_request: Option<ComputeRequest>,
    /// Where it runs.
    pub compute: Option<RunCompute>,
    /// Why it was cancelled.
    pub cancelation_reason: Option<String>,
    /// Who changed it last.
    pub last_modified_by: Option<CreatedBy>,
    /// When that was.
    pub last_modified_utc: Option<UtcTime>,
    /// From creation to the end.
    pub duration: Option<Elapsed>,
    /// Of `duration`, the time on the compute target.
    pub compute_duration: Option<Elapsed>,
    /// Grows with every change.
    pub revision: Option<i64>,
    /// Properties that a client wrote and this server does not know; see [`CreateRun::unknown`].
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Which run a [`RunDto`] is about: the fields that have no default.
#[derive(Clone, Debug)]
pub struct RunIdentity {
    /// Its id.
    pub run_id: String,
    /// A GUID beside the id.
    pub run_uuid: Uuid,
    /// The experiment.
    pub experiment_id: Uuid,
    /// When it was created.
    pub created: CreatedTime,
}

impl RunDto {
    /// A root run with `status` and nothing else known; the caller fills in what there is.
    pub fn new(identity: RunIdentity, status: impl Into<String>) -> Self {
        let RunIdentity { run_id, run_uuid, experiment_id, created } = identity;
        Self {
            run_number: created.0.as_second(),
            root_run_id: run_id.clone(),
            run_uuid,
            parent_run_uuid: None,
            root_run_uuid: run_uuid,
            data_container_id: format!("dcid.{run_id}"),
            run_id,
            parent_run_id: None,
            experiment_id,
            status: status.into(),
            created_utc: created,
            start_time_utc: None,
            end_time_utc: None,
            created_by: None,
            user_id: None,
            name: None,
            display_name: None,
            description: None,
            options: RunOptions::default(),
            hidden: false,
            run_type: None,
            run_type_v2: None,
            properties: TextMap::new(),
            tags: TextMap::new(),
            parameters: Map::new(),
            script_name: None,
            target: None,
            primary_metric_name: None,
            heartbeat_enabled: false,
            token: None,
            token_expiry_time_utc: None,
            run_definition: None,
            cancel_uri: None,
            complete_uri: None,
            diagnostics_uri: None,
            created_from: None,
            error: None,
            warnings: None,
            queueing_info: None,
            services: Map::new(),
            input_datasets: Vec::new(),
            output_datasets: Vec::new(),
            inputs: Map::new(),
            outputs: Map::new(),
            compute_request: None,
            compute: None,
            cancelation_reason: None,
            last_modified_by: None,
            last_modified_utc: None,
            duration: None,
            compute_duration: None,
            revision: None,
            rest: Map::new(),
        }
    }
}

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CreatedBy {
    /// Object id of the application.
    pub user_object_id: String,
    /// Tenant.
    pub user_tenant_id: String,
    /// Display name.
    pub user_name: String,
}

/// Something the user should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunWarning {
    /// Who says so.
    pub source: String,
    /// One sentence.
    pub message: String,
}

/// Why a run waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueingInfo {
    /// A word.
    pub code: String,
    /// One sentence, with the place in the queue.
    pub message: String,
    /// When that was so.
    pub last_refresh_timestamp: UtcTime,
}

/// What a run needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ComputeRequest {
    /// Nodes.
    pub node_count: u32,
    /// GPUs.
    pub gpu_count: u32,
}

/// Where a run runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunCompute {
    /// Name of the target.
    pub target: String,
    /// E.g. `amlcompute`.
    pub target_type: String,
    /// Machine size.
    pub vm_size: Option<String>,
    /// Nodes.
    pub instance_count: u32,
    /// GPUs.
    pub gpu_count: Option<u32>,
    /// Priority.
    pub priority: Option<String>,
    /// Region.
    pub region: Option<String>,
}

object! {
    /// Options of a run's making.
    pub struct RunOptions {
        /// Whether the service makes a container id if the client gives none.
        "generateDataContainerIdIfNotSpecified" generate_data_container_id_if_not_specified: bool = true,
    }
}

object! {
    /// Kind of run: `External` / `Execution` and traits such as `scriptrun`.
    pub struct RunTypeV2 {
        /// Who runs the code.
        "orchestrator" orchestrator: Option<String> = None,
        /// What it is.
        "traits" traits: Vec<String> = Vec::new(),
        /// Where it came from.
        "attribution" attribution: Option<String> = None,
        /// Kind of compute.
        "computeType" compute_type: Option<String> = None,
    }
}

/// `PATCH R`: what a client says about a run. What is absent or null stays as it is; `properties` and `tags` merge key by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CreateRun {
    /// Must be that of the URL, if there.
    pub run_id: Option<String>,
    /// Parent.
    pub parent_run_id: Option<String>,
    /// A word of azureml-wire C.5, in any case and unread.
    pub status: Option<String>,
    /// When the code started, as the client says.
    pub start_time_utc: Option<UtcTime>,
    /// When it ended, as the client says.
    pub end_time_utc: Option<UtcTime>,
    /// Name.
    pub name: Option<String>,
    /// Name for people.
    pub display_name: Option<String>,
    /// What it is about.
    pub description: Option<String>,
    /// Container of its artifacts.
    pub data_container_id: Option<String>,
    /// Options of its making.
    pub options: Option<RunOptions>,
    /// Hidden.
    pub hidden: Option<bool>,
    /// Kind.
    pub run_type: Option<String>,
    /// Kind, newer.
    pub run_type_v2: Option<RunTypeV2>,
    /// Keys to add.
    pub properties: TextMap,
    /// Keys to add or replace.
    pub tags: TextMap,
    /// Parameters.
    pub parameters: Option<Map<String, Value>>,
    /// The script.
    pub script_name: Option<String>,
    /// The compute target.
    pub target: Option<String>,
    /// The metric that matters.
    pub primary_metric_name: Option<String>,
    /// Whether heartbeats will come.
    pub heartbeat_enabled: Option<bool>,
    /// A notebook, if it comes from one.
    pub created_from: Option<Value>,
    /// Configuration of a run that the client executes itself.
    pub run_definition: Option<Value>,
    /// Lineage.
    pub input_datasets: Option<Vec<Value>>,
    /// Lineage.
    pub output_datasets: Option<Vec<Value>>,
    /// Lineage.
    pub inputs: Option<Map<String, Value>>,
    /// Lineage.
    pub outputs: Option<Map<String, Value>>,
    /// Properties that this server does not know, as they came. Those that only the service sets (`runNumber`, `createdUtc`, …)
    /// are not among them, so that they can be written beside a [`RunDto`].
    pub unknown: Map<String, Value>,
}

/// Names of [`RunDto`] that a client does not set; what it says about them is dropped, as the service does.
const SET_BY_THE_SERVICE: [&str; 26] = [
    "runNumber",
    "rootRunId",
    "runUuid",
    "parentRunUuid",
    "rootRunUuid",
    "experimentId",
    "createdUtc",
    "createdBy",
    "userId",
    "token",
    "tokenExpiryTimeUtc",
    "cancelUri",
    "completeUri",
    "diagnosticsUri",
    "error",
    "warnings",
    "queueingInfo",
    "services",
    "computeRequest",
    "compute",
    "cancelationReason",
    "lastModifiedBy",
    "lastModifiedUtc",
    "duration",
    "computeDuration",
    "revision",
];

impl FromJson for CreateRun {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        let mut fields = Fields::new(path, value)?;
        for name in SET_BY_THE_SERVICE {
            drop(fields.take(name));
        }
        Ok(Self {
            run_id: fields.string("runId")?,
            parent_run_id: fields.string("parentRunId")?,
            status: fields.string("status")?,
            start_time_utc: fields.read("startTimeUtc")?,
            end_time_utc: fields.read("endTimeUtc")?,
            name: fields.string("name")?,
            display_name: fields.string("displayName")?,
            description: fields.string("description")?,
            data_container_id: fields.string("dataContainerId")?,
            options: fields.read("options")?,
            hidden: fields.boolean("hidden")?,
            run_type: fields.string("runType")?,
            run_type_v2: fields.read("runTypeV2")?,
            properties: fields.string_map("properties")?.unwrap_or_default(),
            tags: fields.string_map("tags")?.unwrap_or_default(),
            parameters: fields.read("parameters")?,
            script_name: fields.string("scriptName")?,
            target: fields.string("target")?,
            primary_metric_name: fields.string("primaryMetricName")?,
            heartbeat_enabled: fields.boolean("heartbeatEnabled")?,
            created_from: fields.read("createdFrom")?,
            run_definition: fields.read("runDefinition")?,
            input_datasets: fields.read("inputDatasets")?,
            output_datasets: fields.read("outputDatasets")?,
            inputs: fields.read("inputs")?,
            outputs: fields.read("outputs")?,
            unknown: fields.rest(),
        })
    }
}

/// Reads the body of `PATCH …/batch/runs`: `{"runs": [CreateRun]}`. Each run must name itself.
pub fn read_batch(value: Value) -> Result<Vec<CreateRun>, WireError> {
    let runs: Vec<CreateRun> = Fields::new("", value)?.required("runs")?;
    match runs.iter().position(|run| run.run_id.is_none()) {
        None => Ok(runs),
        Some(index) => Err(WireError::new(format!("runs[{index}].runId"), "is required and missing")),
    }
}

/// Reads the body of `POST …/runs/runIds`: `{"runIds": […]}`.
pub fn read_run_ids(value: Value) -> Result<Vec<String>, WireError> {
    Fields::new("", value)?.required("runIds")
}

/// The answer to both batches, each map by run id.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BatchRunResult {
    /// The runs.
    pub runs: BTreeMap<String, RunDto>,
    /// Why some are not among them.
    pub errors: BTreeMap<String, ErrorResponse>,
}

/// Reads the body of `DELETE R/tags`, a list of keys, or of `tags:delete`, `{"tags": […]}`.
pub fn read_tags_to_delete(value: Value) -> Result<Vec<String>, WireError> {
    match value {
        Value::Array(_) => Vec::from_json("tags", value),
        other => Fields::new("", other)?.required("tags"),
    }
}

/// The answer to `tags:delete`: an error for each key that could not be deleted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DeleteTagsResult {
    /// By key; empty when all went well.
    pub errors: BTreeMap<String, ErrorResponse>,
}

object! {
    /// `PATCH R/tags`.
    pub struct ModifyTags {
        /// Keys to add or replace.
        "tagsToModify" tags_to_modify: TextMap = TextMap::new(),
        /// Keys to remove.
        "tagsToDelete" tags_to_delete: Vec<String> = Vec::new(),
    }
}

/// The answer to `PATCH R/tags`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TagsDto {
    /// All tags, after the change.
    pub tags: TextMap,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::azureml::time::parse;

    fn run() -> RunDto {
        let created = CreatedTime(parse("2024-12-05T20:44:53.3886899Z").unwrap());
        let identity = RunIdentity { run_id: "r1".into(), run_uuid: Uuid::from_u128(1), experiment_id: Uuid::from_u128(2), created };
        RunDto::new(identity, "Queued")
    }

    #[test]
    fn a_run_is_written_with_everything_the_sdk_needs() {
        let written = serde_json::to_value(run()).unwrap();
        assert_eq!(written["runNumber"], 1_733_431_493);
        assert_eq!(written["rootRunId"], "r1");
        assert_eq!(written["dataContainerId"], "dcid.r1");
        assert_eq!(written["createdUtc"], "2024-12-05T20:44:53.3886899+00:00");
        assert_eq!(written["options"], json!({"generateDataContainerIdIfNotSpecified": true}));
        for object in ["properties", "tags", "services", "inputs", "outputs", "parameters"] {
            assert_eq!(written[object], json!({}), "{object}");
        }
        for null in ["startTimeUtc", "endTimeUtc", "parentRunId", "error", "warnings", "queueingInfo", "cancelUri", "token", "runTypeV2"] {
            assert_eq!(written.get(null), Some(&Value::Null), "{null}");
        }
    }

    #[test]
    fn the_patches_that_the_sdk_sends_are_read() {
        let read = |value| CreateRun::from_json("", value).unwrap();
        let created = read(json!({
            "runId": "r", "name": "run_r", "runTypeV2": {"orchestrator": "External", "traits": ["unspecified"]},
            "properties": {}, "target": "local"
        }));
        assert_eq!(created.run_type_v2.unwrap().traits, ["unspecified"]);
        let properties = read(json!({"Properties": {"ContentSnapshotId": "x"}, "tags": {"a": null}}));
        assert_eq!(properties.properties["ContentSnapshotId"].as_deref(), Some("x"));
        assert_eq!(properties.tags["a"], None);
    }

    #[test]
    fn what_a_client_may_not_set_is_dropped_and_what_nobody_knows_is_kept() {
        let every_known_name = serde_json::to_value(run()).unwrap();
        let mut document = every_known_name.as_object().unwrap().clone();
        document.insert("NewProperty".into(), json!([1]));
        document.insert("RUNNUMBER2".into(), json!(1));
        let read = CreateRun::from_json("", Value::Object(document)).unwrap();
        let kept: std::collections::BTreeSet<&str> = read.unknown.keys().map(String::as_str).collect();
        assert_eq!(kept, ["NewProperty", "RUNNUMBER2"].into(), "a key of RunDto left here would be written twice");
        let written = serde_json::to_string(&RunDto { rest: read.unknown, ..run() }).unwrap();
        assert_eq!(written.matches("\"runNumber\"").count(), 1);
        assert!(written.contains(r#""NewProperty":[1]"#));
    }

    #[test]
    fn batches_and_tag_deletions_are_read_in_both_shapes() {
        assert_eq!(read_batch(json!({"runs": [{"runId": "a"}, {"runId": "b"}]})).unwrap().len(), 2);
        assert_eq!(read_batch(json!({"runs": [{"runId": "a"}, {}]})).unwrap_err().path, "runs[1].runId");
        assert_eq!(read_run_ids(json!({"RunIds": ["a"]})).unwrap(), ["a"]);
        assert_eq!(read_tags_to_delete(json!(["k"])).unwrap(), ["k"]);
        assert_eq!(read_tags_to_delete(json!({"tags": ["k"]})).unwrap(), ["k"]);
        assert_eq!(read_tags_to_delete(json!("k")).unwrap_err().message, "expected an object, found the string \"k\"");
        let modify = ModifyTags::from_json("", json!({"tagsToModify": {"a": "b"}, "TagsToDelete": ["c"]})).unwrap();
        assert_eq!((modify.tags_to_modify.len(), modify.tags_to_delete.len()), (1, 1));
    }
}
