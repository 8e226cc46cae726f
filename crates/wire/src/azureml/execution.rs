//! What `startrun` and `snapshotrun` take and what the execution service answers (azureml-wire D.1, D.2).

use serde::Serialize;
use serde_json::{Map, Value};

use super::{definition::RunConfiguration, runs::TextMap};
use crate::json::{Fields, FromJson, Spelling, WireError};

/// `{"runId": …}`: what `startrun`, `snapshotrun` and `cancel` answer, and all of it that clients read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunIdAnswer {
    /// The run.
    pub run_id: String,
}

/// A whole run definition: the configuration and what stands beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct SubmissionEnvelope {
    /// What is to run.
    pub configuration: SubmittedConfiguration,
    /// The code, for `snapshotrun`.
    pub snapshot_id: Option<String>,
    /// The parent, for a child run.
    pub parent_run_id: Option<String>,
    /// Name for people.
    pub display_name: Option<String>,
    /// What it is about.
    pub description: Option<String>,
    /// Kind of run.
    pub run_type: Option<String>,
    /// The metric that matters.
    pub primary_metric_name: Option<String>,
    /// Properties for the run.
    pub properties: TextMap,
    /// Tags for the run.
    pub tags: TextMap,
    /// What the client says about itself.
    pub telemetry_values: Map<String, Value>,
    /// More code, side by side.
    pub snapshots: Vec<Value>,
    /// Whether the client sent details of a machine of its own. The details are dropped: they may hold credentials.
    pub has_target_details: bool,
    /// What this server does not know, as it came.
    pub rest: Map<String, Value>,
}

/// A configuration as a client sent it.
#[derive(Clone, Debug, PartialEq)]
pub struct SubmittedConfiguration {
    /// What it says.
    pub asked: RunConfiguration,
    /// How the client spelt its names, below `Configuration`.
    pub spelling: Spelling,
}

impl SubmissionEnvelope {
    /// Reads a definition.
    ///
    /// All clients wrap the configuration in `Configuration` or `configuration` (azureml-wire D.2). A bare one is refused with
    /// a message that says so: `properties`, `tags` and `description` beside a bare configuration could mean either.
    pub fn read(document: Value) -> Result<Self, WireError> {
        Self::from_json("", document)
    }
}

impl FromJson for SubmissionEnvelope {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        let mut fields = Fields::new(path, value)?;
        let Some((path, configuration)) = fields.take("configuration") else {
            return Err(without_configuration(&fields.rest()));
        };
        Ok(Self {
            configuration: SubmittedConfiguration {
                spelling: Spelling::of(&path, &configuration),
                asked: RunConfiguration::from_json(&path, configuration)?,
            },
            snapshot_id: fields.string("snapshotId")?,
            parent_run_id: fields.string("parentRunId")?,
            display_name: fields.string("displayName")?,
            description: fields.string("description")?,
            run_type: fields.string("runType")?,
            primary_metric_name: fields.string("primaryMetricName")?,
            properties: fields.string_map("properties")?.unwrap_or_default(),
            tags: fields.string_map("tags")?.unwrap_or_default(),
            telemetry_values: fields.read("telemetryValues")?.unwrap_or_default(),
            snapshots: fields.read("snapshots")?.unwrap_or_default(),
            has_target_details: fields.take("targetDetails").is_some(),
            rest: fields.rest(),
        })
    }
}

fn without_configuration(properties: &Map<String, Value>) -> WireError {
    let bare = ["script", "command", "target", "environment"];
    let is_bare = properties.keys().any(|name| bare.iter().any(|known| name.eq_ignore_ascii_case(known)));
    let hint = if is_bare { "; its properties stand at the top level of the document: put them inside `Configuration`" } else { "" };
    WireError::new("Configuration", format!("is required: an object that holds the run configuration{hint}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::azureml::sections::{Command, Communicator, Framework, YarnDeployMode};

    /// The definition.json of the founding document, as it stands there.
    const FOUNDING: &str = include_str!("../../tests/definitions/founding.json");
    /// What the SDK sends with `AML_FORCE_EXECUTE_WITH_ZIP`, every default spelled out.
    const SDK: &str = include_str!("../../tests/definitions/sdk.json");

    fn read(text: &str) -> SubmissionEnvelope {
        SubmissionEnvelope::read(serde_json::from_str(text).unwrap()).unwrap()
    }

    fn refused(value: Value) -> WireError {
        SubmissionEnvelope::read(value).unwrap_err()
    }

    #[test]
    fn the_founding_definition_is_read_and_expanded() {
        let envelope = read(FOUNDING);
        let asked = &envelope.configuration.asked;
        assert_eq!(asked.script.as_deref(), Some("hello.py"));
        assert_eq!(asked.arguments, ["234"]);
        assert_eq!(asked.target.as_deref(), Some("cpu-cluster"));
        assert_eq!(asked.max_run_duration_seconds, Some(1200));
        let expanded = serde_json::to_value(asked).unwrap();
        assert_eq!(expanded["environment"]["docker"]["baseImage"], "mcr.microsoft.com/azureml/base:intelmpi2018.3-ubuntu16.04");
        assert_eq!(expanded["environment"]["docker"]["enabled"], false);
        assert_eq!(expanded["history"]["directoriesToWatch"], json!(["logs"]));
        assert_eq!(expanded["hdi"]["yarnDeployMode"], "Cluster");
        let again = SubmissionEnvelope::read(json!({ "configuration": expanded })).unwrap();
        assert_eq!(&again.configuration.asked, asked, "the expanded document means the same");
    }

    #[test]
    fn the_sdks_document_is_read_and_only_its_spelling_changes() {
        let envelope = read(SDK);
        let asked = &envelope.configuration.asked;
        assert_eq!(asked.arguments, ["--rate", "0.5", "--epochs", "3"]);
        assert_eq!(asked.hdi.yarn_deploy_mode, YarnDeployMode::Cluster);
        assert_eq!(asked.spark.configuration["spark.yarn.maxAppAttempts"].as_deref(), Some("1"));
        assert!(asked.rest.is_empty(), "every property of the SDK is known: {:?}", asked.rest);
        assert!(envelope.rest.is_empty() && !envelope.has_target_details);
        assert!(envelope.telemetry_values.contains_key("amlClientType"));
        let expanded = serde_json::to_value(asked).unwrap();
        for (canonical, sdk) in [("pyTorch", "pytorch"), ("parallelTask", "paralleltask"), ("amlCompute", "amlcompute")] {
            assert!(expanded.get(canonical).is_some() && expanded.get(sdk).is_none(), "{canonical}");
        }
    }

    #[test]
    fn words_are_read_in_any_case_with_their_aliases_and_written_canonically() {
        let with = |value| SubmissionEnvelope::read(json!({ "configuration": value })).unwrap().configuration.asked;
        assert_eq!(with(json!({"framework": "pytorch"})).framework, Framework::PyTorch);
        for alias in ["Mpi", "OpenMpi", "INTELMPI"] {
            let asked = with(json!({ "Communicator": alias }));
            assert_eq!(asked.communicator, Communicator::Mpi);
            assert_eq!(serde_json::to_value(asked).unwrap()["communicator"], "Mpi");
        }
        assert_eq!(with(json!({"communicator": "nccl"})).communicator, Communicator::Nccl);
        assert_eq!(with(json!({"pytorch": {"communicationBackend": "Gloo"}})).py_torch.communication_backend.as_str(), "gloo");
        assert_eq!(with(json!({"command": "echo hi"})).command, Command::Line("echo hi".into()));
        assert_eq!(with(json!({"command": ["echo", 1]})).command, Command::Words(vec!["echo".into(), "1".into()]));
    }

    #[test]
    fn unknown_properties_are_kept_and_given_back() {
        let envelope = read(r#"{"configuration":{"script":"a.py","NewThing":{"X":1},"environment":{"other":2}},"Snapshot":3}"#);
        let expanded = serde_json::to_value(&envelope.configuration.asked).unwrap();
        assert_eq!((&expanded["NewThing"], &expanded["environment"]["other"]), (&json!({"X": 1}), &json!(2)));
        assert_eq!(envelope.rest["Snapshot"], 3);
    }

    #[test]
    fn what_stands_beside_the_configuration_is_read() {
        let envelope = read(
            r#"{"Configuration":{},"SnapshotId":"s","ParentRunId":"p","displayName":"d","Description":"e",
                "properties":{"a":"b"},"tags":{"k":null},"TargetDetails":{"password":"x"}}"#,
        );
        assert_eq!((envelope.snapshot_id.as_deref(), envelope.parent_run_id.as_deref()), (Some("s"), Some("p")));
        assert_eq!((envelope.display_name.as_deref(), envelope.description.as_deref()), (Some("d"), Some("e")));
        assert_eq!((envelope.properties["a"].as_deref(), &envelope.tags["k"]), (Some("b"), &None));
        assert!(envelope.has_target_details && !format!("{envelope:?}").contains("password"));
    }

    #[test]
    fn wrong_types_are_named_as_the_client_spelt_them() {
        let table = [
            (json!({"Configuration": {"NodeCount": "two"}}), "Configuration.NodeCount: expected an integer, found the string \"two\""),
            (
                json!({"configuration": {"maxRunDurationSeconds": "1200"}}),
                "configuration.maxRunDurationSeconds: expected an integer, found the string \"1200\"",
            ),
            (
                json!({"Configuration": {"Framework": "Torch"}}),
                "Configuration.Framework: expected one of Python, PySpark, Cntk, TensorFlow, PyTorch, found the string \"Torch\"",
            ),
            (
                json!({"Configuration": {"Environment": {"Docker": {"Enabled": "yes"}}}}),
                "Configuration.Environment.Docker.Enabled: expected true or false, found the string \"yes\"",
            ),
            (json!({"Configuration": {"Arguments": "234"}}), "Configuration.Arguments: expected a list, found the string \"234\""),
            (json!({"Configuration": {"Script": 5}}), "Configuration.Script: expected a string, found the number 5"),
            (json!({"Configuration": {"command": {}}}), "Configuration.command: expected a string or a list of strings"),
            (
                json!({"Configuration": {"data": {"in": {"mechanism": "Fax"}}}}),
                "Configuration.data.in.mechanism: expected one of Direct, Mount, Download, Hdfs, found the string \"Fax\"",
            ),
            (json!({"Configuration": []}), "Configuration: expected an object, found a list"),
            (json!([]), "expected an object, found a list"),
        ];
        for (value, expected) in table {
            assert_eq!(refused(value).to_string(), expected);
        }
    }

    #[test]
    fn a_bare_configuration_is_refused_with_what_to_do() {
        let error = refused(json!({"Script": "hello.py", "Target": "local"}));
        assert_eq!(error.path, "Configuration");
        assert!(error.message.contains("put them inside `Configuration`"), "{error}");
        assert!(!refused(json!({})).message.contains("put them inside"));
        assert!(refused(json!({"Configuration": null})).message.starts_with("is required"));
    }
}
