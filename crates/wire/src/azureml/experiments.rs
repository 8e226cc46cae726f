//! Experiments (azureml-wire C.2).

use std::collections::BTreeMap;

use serde::Serialize;
use uuid::Uuid;

use super::time::{CreatedTime, UtcTime};
use crate::json::object;

/// An experiment as the service gives it back.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExperimentDto {
    /// Its id.
    pub experiment_id: Uuid,
    /// Its name.
    pub name: String,
    /// What it is about.
    pub description: Option<String>,
    /// When it was created.
    pub created_utc: CreatedTime,
    /// Tags; a value may be null.
    pub tags: BTreeMap<String, Option<String>>,
    /// When it was archived; `None`: it is active.
    pub archived_time: Option<UtcTime>,
    /// The run created last.
    pub latest_created_run_id: Option<String>,
    /// When that was.
    pub latest_created_run_created_utc: Option<CreatedTime>,
    /// Whether it is never cleaned up.
    pub retain_for_lifetime_of_workspace: bool,
    /// Where its artifacts are, for MLflow.
    pub artifact_location: Option<String>,
}

object! {
    /// `PATCH /experimentids/{id}`: what is absent or null stays as it is, tags merge.
    pub struct ModifyExperiment {
        /// New name.
        "name" name: Option<String> = None,
        /// New description.
        "description" description: Option<String> = None,
        /// Tags to add or replace.
        "tags" tags: BTreeMap<String, Option<String>> = BTreeMap::new(),
        /// `true` archives, `false` reactivates.
        "archive" archive: Option<bool> = None,
        /// Whether it is never cleaned up.
        "retainForLifetimeOfWorkspace" retain_for_lifetime_of_workspace: Option<bool> = None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{azureml::time::parse, json::FromJson};

    #[test]
    fn an_experiment_is_written_with_every_key() {
        let experiment = ExperimentDto {
            experiment_id: Uuid::from_u128(7),
            name: "new_experiment".into(),
            description: None,
            created_utc: CreatedTime(parse("2024-12-05T20:44:53.3886899Z").unwrap()),
            tags: BTreeMap::from([("k".into(), None)]),
            archived_time: None,
            latest_created_run_id: None,
            latest_created_run_created_utc: None,
            retain_for_lifetime_of_workspace: false,
            artifact_location: None,
        };
        assert_eq!(
            serde_json::to_value(experiment).unwrap(),
            json!({
                "experimentId": "00000000-0000-0000-0000-000000000007", "name": "new_experiment", "description": null,
                "createdUtc": "2024-12-05T20:44:53.3886899+00:00", "tags": {"k": null}, "archivedTime": null,
                "latestCreatedRunId": null, "latestCreatedRunCreatedUtc": null, "retainForLifetimeOfWorkspace": false,
                "artifactLocation": null
            })
        );
    }

    #[test]
    fn archive_reactivate_and_tags_are_read() {
        let modify = |value| ModifyExperiment::from_json("", value).unwrap();
        assert_eq!(modify(json!({"archive": true})).archive, Some(true));
        assert_eq!(modify(json!({"Archive": false})).archive, Some(false));
        assert_eq!(modify(json!({"tags": {"a": null, "B": "c"}})).tags.len(), 2);
        assert_eq!(modify(json!({})), ModifyExperiment::default());
    }
}
