//! What `GET R/details` answers (azureml-wire C.4): a run with its configuration and its logs.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    runs::{ComputeRequest, CreatedBy, RunCompute, RunDto, RunTypeV2, RunWarning, TextMap},
    time::{CreatedTime, Elapsed, UtcTime},
};

/// `GET R/details` (azureml-wire C.4). `log_files` is an object even when empty: the SDK crashes on null.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunDetailsDto {
    /// Its id.
    pub run_id: String,
    /// A GUID beside the id.
    pub run_uuid: Uuid,
    /// The parent's.
    pub parent_run_uuid: Option<Uuid>,
    /// The root's.
    pub root_run_uuid: Uuid,
    /// The compute target.
    pub target: Option<String>,
    /// A word of azureml-wire C.5.
    pub status: String,
    /// The parent's id.
    pub parent_run_id: Option<String>,
    /// `dcid.{runId}`.
    pub data_container_id: String,
    /// When it was created.
    pub created_time_utc: CreatedTime,
    /// When the code started.
    pub start_time_utc: Option<UtcTime>,
    /// When it ended.
    pub end_time_utc: Option<UtcTime>,
    /// What went wrong: an `ErrorResponse`, of ours or as a client reported it.
    pub error: Option<Value>,
    /// What the user should know.
    pub warnings: Option<Vec<RunWarning>>,
    /// Changeable.
    pub tags: TextMap,
    /// Written once per key.
    pub properties: TextMap,
    /// Parameters.
    pub parameters: Map<String, Value>,
    /// Interactive endpoints; empty.
    pub services: Map<String, Value>,
    /// Lineage.
    pub input_datasets: Vec<Value>,
    /// Lineage.
    pub output_datasets: Vec<Value>,
    /// The configuration, normalised: camelCase, every default filled in. Null for runs that the client executes itself.
    pub run_definition: Option<Value>,
    /// Name to URL that needs no token.
    pub log_files: BTreeMap<String, String>,
    /// Null: nothing is charged.
    pub job_cost: Option<Value>,
    /// Grows with every change.
    pub revision: Option<i64>,
    /// Kind of run.
    pub run_type_v2: Option<RunTypeV2>,
    /// What it needs.
    pub compute_request: Option<ComputeRequest>,
    /// Where it runs.
    pub compute: Option<RunCompute>,
    /// Who created it.
    pub created_by: Option<CreatedBy>,
    /// From creation to the end.
    pub duration: Option<Elapsed>,
    /// Which attempt: 1, 2, …
    pub current_attempt_id: Option<i64>,
    /// What the preparation of a run that is `Preparing` is at now; a property of this server, absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preparation: Option<Value>,
}

impl RunDetailsDto {
    /// The details of `run`, with its configuration and the URLs of its logs.
    pub fn of(run: RunDto, run_definition: Option<Value>, log_files: BTreeMap<String, String>) -> Self {
        Self {
            run_id: run.run_id,
            run_uuid: run.run_uuid,
            parent_run_uuid: run.parent_run_uuid,
            root_run_uuid: run.root_run_uuid,
            target: run.target,
            status: run.status,
            parent_run_id: run.parent_run_id,
            data_container_id: run.data_container_id,
            created_time_utc: run.created_utc,
            start_time_utc: run.start_time_utc,
            end_time_utc: run.end_time_utc,
            error: run.error,
            warnings: run.warnings,
            tags: run.tags,
            properties: run.properties,
            parameters: run.parameters,
            services: run.services,
            input_datasets: run.input_datasets,
            output_datasets: run.output_datasets,
            run_definition,
            log_files,
            job_cost: None,
            revision: run.revision,
            run_type_v2: run.run_type_v2,
            compute_request: run.compute_request,
            compute: run.compute,
            created_by: run.created_by,
            duration: run.duration,
            current_attempt_id: None,
            preparation: run.rest.get("preparation").filter(|preparation| preparation.is_object()).cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::azureml::{runs::RunIdentity, time::parse};

    fn run() -> RunDto {
        let created = CreatedTime(parse("2024-12-05T20:44:53.3886899Z").unwrap());
        let identity = RunIdentity { run_id: "r1".into(), run_uuid: Uuid::from_u128(1), experiment_id: Uuid::from_u128(2), created };
        RunDto::new(identity, "Queued")
    }

    #[test]
    fn details_take_over_the_run_and_always_have_log_files() {
        let details = serde_json::to_value(RunDetailsDto::of(run(), None, BTreeMap::new())).unwrap();
        assert_eq!(details["logFiles"], json!({}));
        assert_eq!(details["createdTimeUtc"], "2024-12-05T20:44:53.3886899+00:00");
        assert_eq!(details["status"], "Queued");
        assert_eq!(details["runDefinition"], Value::Null);
    }
}
