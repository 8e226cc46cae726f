//! Artifacts: files kept with a run (azureml-wire C.9).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::{error::ErrorResponse, time::UtcTime};
use crate::json::{Fields, FromJson, WireError, object};

object! {
    /// What is known about an artifact; in answers, and as the body of `POST /metadata`.
    pub struct Artifact {
        /// `{origin}/{container}/{path}`.
        "artifactId" artifact_id: Option<String> = None,
        /// `ExperimentRun` for files of runs.
        "origin" origin: Option<String> = None,
        /// `dcid.{runId}`.
        "container" container: Option<String> = None,
        /// Path in the container, without a leading slash.
        "path" path: Option<String> = None,
        /// Changes with the content.
        "etag" etag: Option<String> = None,
        /// When it was first written.
        "createdTime" created_time: Option<UtcTime> = None,
        /// Where its bytes are.
        "dataPath" data_path: Option<DataPath> = None,
        /// Tags.
        "tags" tags: BTreeMap<String, Option<String>> = BTreeMap::new(),
    }
}

object! {
    /// Where the bytes of an artifact are.
    pub struct DataPath {
        /// Name of a datastore.
        "dataStoreName" data_store_name: Option<String> = None,
        /// Path in it.
        "relativePath" relative_path: Option<String> = None,
        /// For SQL datastores.
        "sqlDataPath" sql_data_path: Option<Value> = None,
    }
}

/// Where to read or write the bytes of an artifact. The URL needs no token and expires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContentInfo {
    /// Absolute URL.
    pub content_uri: String,
    /// `ExperimentRun` for files of runs.
    pub origin: String,
    /// `dcid.{runId}`.
    pub container: String,
    /// Path in the container.
    pub path: String,
    /// Tags.
    pub tags: BTreeMap<String, Option<String>>,
}

/// Reads the body of `POST /batch/metadata/…`: `{"paths": [{"path": "outputs/a"}]}` to the paths alone.
pub fn read_batch_paths(value: Value) -> Result<Vec<String>, WireError> {
    let entries: Vec<Value> = Fields::new("", value)?.required("paths")?;
    let read = |(index, entry)| Fields::new(format!("paths[{index}]"), entry)?.required("path");
    entries.into_iter().enumerate().map(read).collect()
}

/// The answer to `POST /batch/metadata/…`, each map by path.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchArtifacts {
    /// What was made.
    pub artifacts: BTreeMap<String, Artifact>,
    /// Where to write it.
    pub artifact_content_information: BTreeMap<String, ContentInfo>,
    /// What was refused.
    pub errors: BTreeMap<String, ErrorResponse>,
}

/// The body of `POST /batch/ingest/containersas/…`: files that already lie in a blob container.
#[derive(Clone, PartialEq, Eq)]
pub struct IngestContainer {
    /// Query string that opens the container. A secret.
    pub container_sas: String,
    /// URL of the container.
    pub container_uri: String,
    /// Which of its blobs.
    pub prefix: String,
    /// What their artifact paths start with.
    pub artifact_prefix: String,
}

impl std::fmt::Debug for IngestContainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the secret, so that no log can show it.
        f.debug_struct("IngestContainer")
            .field("prefix", &self.prefix)
            .field("artifact_prefix", &self.artifact_prefix)
            .finish_non_exhaustive()
    }
}

impl FromJson for IngestContainer {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        let mut fields = Fields::new(path, value)?;
        Ok(Self {
            container_sas: fields.required("containerSas")?,
            container_uri: fields.required("containerUri")?,
            prefix: fields.string("prefix")?.unwrap_or_default(),
            artifact_prefix: fields.string("artifactPrefix")?.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_artifact_is_written_with_every_key() {
        let artifact = Artifact { artifact_id: Some("ExperimentRun/dcid.r/outputs/a".into()), ..Artifact::default() };
        assert_eq!(
            serde_json::to_value(artifact).unwrap(),
            json!({
                "artifactId": "ExperimentRun/dcid.r/outputs/a", "origin": null, "container": null, "path": null, "etag": null,
                "createdTime": null, "dataPath": null, "tags": {}
            })
        );
    }

    #[test]
    fn a_batch_names_its_paths() {
        assert_eq!(read_batch_paths(json!({"paths": [{"path": "outputs/a"}, {"Path": "b"}]})).unwrap(), ["outputs/a", "b"]);
        assert_eq!(read_batch_paths(json!({"paths": [{}]})).unwrap_err().to_string(), "paths[0].path: is required and missing");
        assert_eq!(read_batch_paths(json!({"paths": ["a"]})).unwrap_err().path, "paths[0]");
    }

    #[test]
    fn the_answer_to_a_batch_has_all_three_maps() {
        let expected = json!({"artifacts": {}, "artifactContentInformation": {}, "errors": {}});
        assert_eq!(serde_json::to_value(BatchArtifacts::default()).unwrap(), expected);
    }

    #[test]
    fn an_ingest_without_a_container_is_refused() {
        let read = |value| IngestContainer::from_json("", value);
        assert!(read(json!({"containerSas": "s", "containerUri": "u"})).is_ok());
        assert_eq!(read(json!({"containerSas": "s"})).unwrap_err().path, "containerUri");
    }
}
