//! Runs between the wire and the store (azureml-wire C.3, C.4).
//!
//! What a client says about a run and this server does not act on is kept in the row's `extra` under its camelCase name, and
//! given back from there; [`to_extra`] and [`to_dto`] are the two ends of that.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value, json};
use trainyard_core::{
    Error, ErrorKind, Result,
    environment::Progress,
    ids::{RunId, TenantId},
    run::{Desired, Ownership, Retries, RunState},
};
use trainyard_engine::Target;
use trainyard_store::{
    experiments::Experiment,
    runs::{RunPatch, RunRecord},
};
use trainyard_wire::{
    azureml::{
        run_details::RunDetailsDto,
        runs::{ComputeRequest, CreateRun, CreatedBy, QueueingInfo, RunCompute, RunDto, RunIdentity, RunTypeV2, RunWarning},
        time::{CreatedTime, Elapsed, UtcTime},
    },
    json::FromJson,
};
use uuid::Uuid;

use super::status::word_of;
use crate::context::CancelSpelling;

/// What the answer about a run depends on besides its row: who asks, and this server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Viewpoint<'a> {
    /// `https://host` as the caller used it.
    pub(crate) base_url: &'a str,
    /// The workspace's path, from `/subscriptions` on.
    pub(crate) workspace_path: &'a str,
    /// How the caller spells the end after a cancel.
    pub(crate) spelling: CancelSpelling,
    /// The one tenant.
    pub(crate) tenant: TenantId,
    /// The compute targets.
    pub(crate) targets: &'a [Target],
}

/// What is known of a run from other rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Related {
    /// The parent's GUID.
    pub(crate) parent_uuid: Option<Uuid>,
    /// The root's GUID, for a run that is not its own root.
    pub(crate) root_uuid: Option<Uuid>,
    /// Why it waits.
    pub(crate) queueing: Option<QueueingInfo>,
    /// What its preparation is at.
    pub(crate) preparation: Option<Progress>,
}

/// A run as clients see it.
pub(crate) fn to_dto(run: RunRecord, seen: &Viewpoint<'_>, related: Related) -> RunDto {
    let status = word_of(&run, seen.spelling);
    let identity = RunIdentity {
        run_id: run.id.to_string(),
        run_uuid: run.uuid,
        experiment_id: run.experiment.0,
        created: CreatedTime::from_microseconds(run.created_us),
    };
    let cancel_uri = cancel_uri(&run, seen);
    let (compute, compute_request) = compute(&run, seen).unzip();
    let created_by = created_by(&run.created_by, seen.tenant);
    let mut extra = Extra(run.extra);
    if let Some(preparation) = &related.preparation {
        extra.0.insert(PREPARATION.to_owned(), preparation_document(preparation));
    }
    let mut properties = run.properties;
    if let Some(hash) = &run.environment {
        properties.insert(ENVIRONMENT_PROPERTY.to_owned(), Some(hash.to_string()));
    }
    RunDto {
        run_number: run.number,
        root_run_id: run.root.into(),
        parent_run_uuid: related.parent_uuid,
        root_run_uuid: related.root_uuid.unwrap_or(run.uuid),
        parent_run_id: run.parent.map(String::from),
        start_time_utc: run.started_us.map(UtcTime::from_microseconds).or(extra.take("startTimeUtc")),
        end_time_utc: run.ended_us.map(UtcTime::from_microseconds).or(extra.take("endTimeUtc")),
        user_id: created_by.as_ref().map(|by| by.user_object_id.clone()),
        last_modified_by: None,
        created_by,
        name: run.name,
        display_name: run.display_name,
        description: run.description,
        options: extra.take("options").unwrap_or_default(),
        hidden: run.hidden,
        run_type: run.run_type,
        run_type_v2: extra.take("runTypeV2"),
        properties,
        tags: run.tags,
        parameters: extra.take("parameters").unwrap_or_default(),
        script_name: run.script_name,
        target: run.target,
        primary_metric_name: extra.take("primaryMetricName"),
        heartbeat_enabled: extra.take("heartbeatEnabled").unwrap_or_default(),
        run_definition: extra.take("runDefinition"),
        cancel_uri,
        created_from: extra.take("createdFrom"),
        error: run.error,
        warnings: (!run.warnings.is_empty())
            .then(|| run.warnings.into_iter().map(|warning| RunWarning { source: warning.source, message: warning.message }).collect()),
        queueing_info: related.queueing,
        input_datasets: extra.take("inputDatasets").unwrap_or_default(),
        output_datasets: extra.take("outputDatasets").unwrap_or_default(),
        inputs: extra.take("inputs").unwrap_or_default(),
        outputs: extra.take("outputs").unwrap_or_default(),
        compute_request,
        compute,
        cancelation_reason: run.cancel_reason,
        duration: run.ended_us.map(|ended| elapsed(run.created_us, ended)),
        compute_duration: run.started_us.zip(run.ended_us).map(|(started, ended)| elapsed(started, ended)),
        revision: Some(run.version),
        rest: extra.0,
        ..RunDto::new(identity, status)
    }
}

/// The property under which a run tells the canonical hash of its environment, once that is known.
const ENVIRONMENT_PROPERTY: &str = "trainyard.environment";

/// A property of our own: what a run that is `Preparing` is at now.
const PREPARATION: &str = "preparation";

fn preparation_document(progress: &Progress) -> Value {
    json!({ "message": progress.to_string(), "what": progress.what, "done": progress.done, "total": progress.total, "unit": progress.unit })
}

/// The details of a run: `document` is its normalised definition if this server executes it.
pub(crate) fn to_details(run: RunDto, document: Option<Value>, log_files: BTreeMap<String, String>) -> RunDetailsDto {
    let definition = document.or_else(|| run.run_definition.clone());
    RunDetailsDto::of(run, definition, log_files)
}

/// Where a client posts to in order to cancel; only runs that this server executes have one. Without it, the SDK posts a `Canceled` event,
/// which is right for the others.
fn cancel_uri(run: &RunRecord, seen: &Viewpoint<'_>) -> Option<String> {
    (run.ownership == Ownership::Managed).then(|| {
        format!("{}/execution/v1.0{}/experiments/{}/runId/{}/cancel", seen.base_url, seen.workspace_path, run.experiment_name, run.id)
    })
}

fn compute(run: &RunRecord, seen: &Viewpoint<'_>) -> Option<(RunCompute, ComputeRequest)> {
    let definition = run.definition.as_ref().filter(|_| run.ownership == Ownership::Managed)?;
    let engine = seen.targets.iter().find(|target| target.name == definition.target).map_or("unknown", |target| target.engine);
    let compute = RunCompute {
        target: definition.target.to_string(),
        target_type: engine.to_owned(),
        vm_size: None,
        instance_count: 1,
        gpu_count: None,
        priority: Some(run.priority.to_string()),
        region: None,
    };
    Some((compute, ComputeRequest { node_count: 1, gpu_count: 0 }))
}

/// What rows of runs that this server executes keep for clients: their kind, which filters ask for (`RunTypeV2/Orchestrator`).
pub(crate) fn managed_extra() -> Map<String, Value> {
    let kind = RunTypeV2 { orchestrator: Some("Execution".into()), traits: vec!["scriptrun".into()], ..RunTypeV2::default() };
    Map::from_iter([("runTypeV2".to_owned(), json!(kind))])
}

fn created_by(stored: &Value, tenant: TenantId) -> Option<CreatedBy> {
    let text = |name: &str| stored.get(name).and_then(Value::as_str).map(str::to_owned);
    Some(CreatedBy {
        user_object_id: text("userObjectId")?,
        user_tenant_id: text("userTenantId").unwrap_or_else(|| tenant.to_string()),
        user_name: text("userName").unwrap_or_default(),
    })
}

fn elapsed(from_us: i64, until_us: i64) -> Elapsed {
    // A clock that was set back must not make a run last longer than the universe.
    Elapsed(Duration::from_micros(u64::try_from(until_us.saturating_sub(from_us)).unwrap_or(0)))
}

/// Fields kept for a client.
struct Extra(Map<String, Value>);

impl Extra {
    /// Takes a field out; one that is not what it should be was not written by [`to_extra`] and counts as absent.
    fn take<T: FromJson>(&mut self, name: &str) -> Option<T> {
        T::from_json(name, self.0.remove(name)?).ok()
    }
}

/// What a client says about a run and this server only gives back.
fn to_extra(body: &mut CreateRun) -> Map<String, Value> {
    let mut extra = std::mem::take(&mut body.unknown);
    let mut keep = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            extra.insert(name.to_owned(), value);
        }
    };
    keep("startTimeUtc", body.start_time_utc.map(|time| json!(time)));
    keep("endTimeUtc", body.end_time_utc.map(|time| json!(time)));
    keep("options", body.options.take().map(|options| json!(options)));
    keep("runTypeV2", body.run_type_v2.take().map(|kind| json!(kind)));
    keep("parameters", body.parameters.take().map(Value::Object));
    keep("primaryMetricName", body.primary_metric_name.take().map(Value::String));
    keep("heartbeatEnabled", body.heartbeat_enabled.map(Value::Bool));
    keep("createdFrom", body.created_from.take());
    keep("runDefinition", body.run_definition.take());
    keep("inputDatasets", body.input_datasets.take().map(Value::Array));
    keep("outputDatasets", body.output_datasets.take().map(Value::Array));
    keep("inputs", body.inputs.take().map(Value::Object));
    keep("outputs", body.outputs.take().map(Value::Object));
    extra
}

/// Fails when the body names another run than the path, or a container that can not be the run's.
pub(crate) fn check_identity(body: &CreateRun, run: &RunId) -> Result<()> {
    if let Some(named) = body.run_id.as_deref().filter(|named| *named != run.as_str()) {
        let shown: String = named.chars().take(80).collect();
        return Err(Error::invalid(format!("the body is about run `{shown}` and was sent to run {run}")).with_target("runId"));
    }
    let container = format!("dcid.{run}");
    match body.data_container_id.as_deref() {
        Some(named) if named != container => {
            let message = format!("the artifacts of run {run} are in container {container}; another one can not be chosen");
            Err(Error::new(ErrorKind::Unsupported, message).with_target("dataContainerId"))
        }
        _ => Ok(()),
    }
}

/// What a PATCH changes of a run, apart from its status.
pub(crate) fn to_patch(mut body: CreateRun, at_us: i64) -> Result<RunPatch> {
    let extra = to_extra(&mut body);
    Ok(RunPatch {
        parent: parent_id(&body)?,
        name: body.name,
        display_name: body.display_name,
        description: body.description,
        run_type: body.run_type,
        script_name: body.script_name,
        cancel_reason: None,
        target: body.target,
        hidden: body.hidden,
        tags: body.tags,
        properties: body.properties,
        extra,
        at_us,
    })
}

/// The parent that a body names.
pub(crate) fn parent_id(body: &CreateRun) -> Result<Option<RunId>> {
    body.parent_run_id.clone().map(RunId::new).transpose().map_err(|error| error.with_target("parentRunId"))
}

/// Where and by whom a run is made.
pub(crate) struct Origin<'a> {
    /// Its experiment.
    pub(crate) experiment: &'a Experiment,
    /// Its parent.
    pub(crate) parent: Option<&'a RunRecord>,
    /// Who makes it, as rows keep it.
    pub(crate) created_by: Value,
    /// Now, microseconds since the epoch.
    pub(crate) at_us: i64,
}

/// The row of a new run that its client executes itself.
pub(crate) fn to_record(id: RunId, mut body: CreateRun, origin: Origin<'_>) -> RunRecord {
    let extra = to_extra(&mut body);
    RunRecord {
        workspace: origin.experiment.workspace,
        uuid: Uuid::now_v7(),
        number: 0,
        experiment: origin.experiment.id,
        experiment_name: origin.experiment.name.clone(),
        parent: origin.parent.map(|parent| parent.id.clone()),
        root: origin.parent.map_or_else(|| id.clone(), |parent| parent.root.clone()),
        id,
        ownership: Ownership::External,
        state: RunState::NotStarted,
        desired: Desired::Run,
        version: 0,
        attempt: None,
        cause: None,
        created_us: origin.at_us,
        started_us: None,
        ended_us: None,
        priority: 0,
        target: body.target,
        name: body.name,
        display_name: body.display_name,
        description: body.description,
        run_type: body.run_type,
        script_name: body.script_name,
        cancel_reason: None,
        cancelled_by: None,
        silent: false,
        retries: Retries::default(),
        not_before_us: None,
        hidden: body.hidden.unwrap_or(false),
        created_by: origin.created_by,
        properties: body.properties,
        tags: body.tags,
        extra,
        warnings: Vec::new(),
        error: None,
        snapshot: None,
        definition: None,
        document: None,
        environment: None,
        request_digest: None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use trainyard_core::{
        definition::{Definition, Entry, Framework, History},
        environment::EnvironmentSpec,
        ids::{ComputeName, ExperimentName, WorkspaceId},
        run::RetryWish,
    };
    use trainyard_store::runs;

    use super::*;

    const CREATED_US: i64 = 1_733_431_493_388_689;

    fn experiment() -> Experiment {
        Experiment {
            id: trainyard_core::ids::ExperimentId(Uuid::from_u128(2)),
            workspace: WorkspaceId(Uuid::from_u128(1)),
            name: ExperimentName::new("exp").unwrap(),
            description: None,
            tags: BTreeMap::new(),
            created_us: 0,
            archived_us: None,
            latest_run_id: None,
            latest_run_created_us: None,
        }
    }

    fn body(value: Value) -> CreateRun {
        CreateRun::from_json("", value).unwrap()
    }

    fn record(id: &str, value: Value) -> RunRecord {
        let author = json!({"userObjectId": "00000000-0000-0000-0000-000000000009", "userName": "ada"});
        let origin = Origin { experiment: &experiment(), parent: None, created_by: author, at_us: CREATED_US };
        let made = to_record(RunId::new(id).unwrap(), body(value), origin);
        RunRecord { uuid: Uuid::from_u128(3), number: 4, ..made }
    }

    /// A run that its client executes itself.
    pub(crate) fn external_run(id: &str) -> RunRecord {
        record(id, json!({}))
    }

    /// A run that this server executes, waiting for `cpu-cluster`.
    pub(crate) fn managed_run(id: &str) -> RunRecord {
        let definition = Definition {
            entry: Entry::Script { path: "hello.py".into() },
            arguments: Vec::new(),
            target: ComputeName::new("cpu-cluster").unwrap(),
            framework: Framework::Python,
            environment: EnvironmentSpec::UserManaged { interpreter_path: "python".into() },
            environment_variables: BTreeMap::new(),
            max_run_duration_seconds: None,
            priority: 0,
            history: History::default(),
            container: None,
            retries: RetryWish::default(),
            slurm: Default::default(),
            kubernetes: Default::default(),
            distribution: Default::default(),
            data: Default::default(),
        };
        RunRecord {
            ownership: Ownership::Managed,
            state: RunState::Queued,
            extra: managed_extra(),
            target: Some("cpu-cluster".into()),
            definition: Some(definition),
            document: Some(json!({"script": "hello.py"})),
            ..external_run(id)
        }
    }

    fn shown(run: RunRecord, related: Related) -> Value {
        let seen = Viewpoint {
            base_url: "https://host:8443",
            workspace_path: "/subscriptions/s/ws",
            spelling: CancelSpelling::Plain,
            tenant: TenantId(Uuid::from_u128(8)),
            targets: &[],
        };
        serde_json::to_value(to_dto(run, &seen, related)).unwrap()
    }

    #[test]
    fn a_managed_run_is_written_with_everything_the_sdk_needs() {
        let run = RunRecord { started_us: Some(CREATED_US + 1_000_000), ended_us: Some(CREATED_US + 3_500_000), ..managed_run("r1") };
        let dto = shown(RunRecord { state: RunState::Canceled, version: 5, ..run }, Related::default());
        let expected = json!({
            "runId": "r1", "runNumber": 4, "rootRunId": "r1", "parentRunId": null, "status": "Cancelled",
            "runUuid": "00000000-0000-0000-0000-000000000003", "rootRunUuid": "00000000-0000-0000-0000-000000000003",
            "experimentId": "00000000-0000-0000-0000-000000000002", "createdUtc": "2024-12-05T20:44:53.3886890+00:00",
            "startTimeUtc": "2024-12-05T20:44:54.388689Z", "endTimeUtc": "2024-12-05T20:44:56.888689Z",
            "duration": "00:00:03.5000000", "computeDuration": "00:00:02.5000000",
            "createdBy": {
                "userObjectId": "00000000-0000-0000-0000-000000000009", "userTenantId": "00000000-0000-0000-0000-000000000008",
                "userName": "ada"
            },
            "userId": "00000000-0000-0000-0000-000000000009", "dataContainerId": "dcid.r1", "target": "cpu-cluster", "token": null,
            "cancelUri": "https://host:8443/execution/v1.0/subscriptions/s/ws/experiments/exp/runId/r1/cancel",
            "runDefinition": null, "properties": {}, "tags": {}, "revision": 5, "warnings": null, "error": null, "queueingInfo": null,
            "computeRequest": {"nodeCount": 1, "gpuCount": 0}
        });
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&dto[name], value, "{name}");
        }
        assert_eq!(dto["runTypeV2"]["traits"], json!(["scriptrun"]));
        assert_eq!(dto["compute"]["target"], "cpu-cluster");
    }

    #[test]
    fn what_a_client_says_and_this_server_does_not_act_on_is_given_back() {
        let said = json!({
            "runTypeV2": {"orchestrator": "External", "traits": ["unspecified"], "attribution": null, "computeType": null},
            "parameters": {"rate": 0.1}, "primaryMetricName": "loss", "heartbeatEnabled": true, "createdFrom": {"type": "Notebook"},
            "runDefinition": {"script": "local.py"}, "inputDatasets": [{"id": 1}], "outputDatasets": [], "inputs": {"a": {"assetId": "x"}},
            "outputs": {}, "startTimeUtc": "2024-12-05T20:00:00Z", "endTimeUtc": "2024-12-05T20:00:01Z", "NewField": {"Kept": [1]},
            "name": "n", "displayName": "d", "description": "about", "runType": "azureml.scriptrun", "scriptName": "s.py", "target": "local",
            "hidden": true, "properties": {"p": null}, "tags": {"t": "v"}
        });
        let dto = shown(record("r1", said.clone()), Related::default());
        for (name, value) in said.as_object().unwrap() {
            assert_eq!(&dto[name], value, "{name}");
        }
        assert_eq!((&dto["cancelUri"], &dto["compute"]), (&Value::Null, &Value::Null), "nothing here executes it");
        let text = serde_json::to_string(&dto).unwrap();
        assert_eq!(text.matches("\"runTypeV2\"").count(), 1);
    }

    #[test]
    fn a_child_names_its_relatives_and_a_waiting_run_its_reason() {
        let child = RunRecord { parent: Some(RunId::new("p").unwrap()), root: RunId::new("top").unwrap(), ..managed_run("c") };
        let queueing = QueueingInfo {
            code: "WaitingForSlot".into(),
            message: "waits".into(),
            last_refresh_timestamp: UtcTime::from_microseconds(CREATED_US),
        };
        let related = Related {
            parent_uuid: Some(Uuid::from_u128(11)),
            root_uuid: Some(Uuid::from_u128(12)),
            queueing: Some(queueing),
            preparation: None,
        };
        let dto = shown(child, related);
        assert_eq!((&dto["parentRunId"], &dto["rootRunId"]), (&json!("p"), &json!("top")));
        assert_eq!(dto["parentRunUuid"], Uuid::from_u128(11).to_string());
        assert_eq!(dto["rootRunUuid"], Uuid::from_u128(12).to_string());
        assert_eq!(
            dto["queueingInfo"],
            json!({"code": "WaitingForSlot", "message": "waits", "lastRefreshTimestamp": "2024-12-05T20:44:53.388689Z"})
        );
    }

    #[test]
    fn a_run_that_prepares_says_what_it_is_at() {
        let related = Related { preparation: Some(Progress::counted("downloading", 13, 40, "packages")), ..Related::default() };
        let dto = shown(managed_run("c"), related);
        assert_eq!(
            dto["preparation"],
            json!({"message": "downloading 13 of 40 packages", "what": "downloading", "done": 13, "total": 40, "unit": "packages"})
        );
        assert_eq!(shown(managed_run("c"), Related::default()).get("preparation"), None);
    }

    #[test]
    fn warnings_and_errors_are_shown() {
        let error = json!({"error": {"code": "UserError", "message": "boom"}});
        let run = RunRecord {
            warnings: vec![runs::RunWarning { source: "submission".into(), message: "m".into() }],
            error: Some(error.clone()),
            ..external_run("r1")
        };
        let dto = shown(run, Related::default());
        assert_eq!(dto["warnings"], json!([{"source": "submission", "message": "m"}]));
        assert_eq!(dto["error"], error);
    }

    #[test]
    fn details_show_the_definition_of_whoever_executes_the_run() {
        let seen =
            Viewpoint { base_url: "", workspace_path: "", spelling: CancelSpelling::Sdk, tenant: TenantId(Uuid::nil()), targets: &[] };
        let details = |run: RunRecord| {
            let document = run.document.clone();
            let dto = to_dto(run, &seen, Related::default());
            serde_json::to_value(to_details(dto, document, BTreeMap::from([("logs/a.txt".into(), "https://h/a".into())]))).unwrap()
        };
        assert_eq!(details(managed_run("m"))["runDefinition"], json!({"script": "hello.py"}));
        let external = details(record("e", json!({"runDefinition": {"script": "local.py"}})));
        assert_eq!(external["runDefinition"], json!({"script": "local.py"}));
        assert_eq!(external["logFiles"], json!({"logs/a.txt": "https://h/a"}));
    }

    #[test]
    fn a_patch_keeps_what_is_absent_and_collects_the_rest() {
        let patch = to_patch(body(json!({"tags": {"a": null}, "Unknown": 1, "parentRunId": "p"})), 7).unwrap();
        let expected = RunPatch {
            tags: BTreeMap::from([("a".into(), None)]),
            parent: Some(RunId::new("p").unwrap()),
            extra: Map::from_iter([("Unknown".into(), json!(1))]),
            at_us: 7,
            ..RunPatch::default()
        };
        assert_eq!(patch, expected);
        assert_eq!(to_patch(body(json!({"parentRunId": "not an id"})), 7).unwrap_err().target(), Some("parentRunId"));
    }

    #[test]
    fn a_body_about_another_run_is_refused() {
        let run = RunId::new("r1").unwrap();
        for fine in [json!({}), json!({"runId": "r1", "dataContainerId": "dcid.r1"})] {
            assert!(check_identity(&body(fine), &run).is_ok());
        }
        assert_eq!(check_identity(&body(json!({"runId": "r2"})), &run).unwrap_err().target(), Some("runId"));
        let error = check_identity(&body(json!({"dataContainerId": "dcid.r2"})), &run).unwrap_err();
        assert_eq!((error.kind(), error.target()), (ErrorKind::Unsupported, Some("dataContainerId")));
    }
}
