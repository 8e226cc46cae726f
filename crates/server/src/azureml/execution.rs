//! The execution service: `startrun` and `cancel` (azureml-wire D.1).
//!
//! `startrun` promises with its answer that the run is stored: the blob is durable before the row, the row (with its first
//! event and idempotency digest) before the answer. Everything that can be wrong with a submission is found before
//! either is written.

use std::collections::BTreeMap;

use axum::{
    Json,
    body::Body,
    extract::{Path, Request, State},
};
use serde_json::{Value, json};
use trainyard_core::{
    Error, ErrorKind, Result,
    access::{Action, Principal},
    definition::{Definition, Entry},
    ids::{ExperimentName, RunId},
    run::{Desired, Ownership, Retries, RunEvent, RunState, TimelineEntry},
    slurm::Submitter,
};
use trainyard_engine::{RunKey, Target};
use trainyard_store::{
    experiments::Experiment,
    runs::{Created, NewRun, NewSnapshot, RunRecord, RunWarning},
    transitions::Applied,
};
use trainyard_wire::azureml::execution::{RunIdAnswer, SubmissionEnvelope, SubmittedConfiguration};
use uuid::Uuid;

use super::{
    conda_file,
    convert::{
        container::{Rules, TargetRule},
        definition::{Converted, to_definition},
        runs::managed_extra,
    },
    error::AzureError,
    references,
};
use crate::{
    context::Context,
    query::Query,
    state::AppState,
    upload::{Submission, read_submission},
};

/// `POST {X}{EXP}/startrun?runId=`: stores the run and answers with its id.
pub(crate) async fn start_run(
    State(state): State<AppState>,
    context: Context,
    Path(path): Path<BTreeMap<String, String>>,
    query: Query,
    request: Request<Body>,
) -> Result<Json<RunIdAnswer>, AzureError> {
    context.allow(Action::Write)?;
    let experiment = experiment_name(&path)?;
    let asked_id = query.get("runId").map(RunId::new).transpose().map_err(|error| error.with_target("runId"))?;
    let submission = read_submission(&state, request).await?;
    let mut accepted = Accepted::parse(&state, &context, &submission).await?;
    accepted.settle_user(&state, &context).await?;
    accepted.ask_engine(&state).await?;
    let run = accept(&state, &context, (experiment, asked_id), (accepted, submission)).await?;
    Ok(Json(RunIdAnswer { run_id: run.to_string() }))
}

/// `POST {X}{EXP}/runId/{runId}/cancel`: asks the run to stop. A run that has ended already is left as it is, and that is success:
/// the SDK cancels without looking first.
pub(crate) async fn cancel_run(
    State(state): State<AppState>,
    context: Context,
    Path(path): Path<BTreeMap<String, String>>,
) -> Result<Json<RunIdAnswer>, AzureError> {
    let run = RunId::new(path.get("run").map(String::as_str).unwrap_or_default())?;
    context.allow(Action::WriteRun(&run))?;
    request_cancel(&state, &context, &run, None).await?;
    Ok(Json(RunIdAnswer { run_id: run.to_string() }))
}

/// Sets `desired = Cancel` and wakes the engine; the one way to cancel, for every route that does. `reason` is the caller's, if it gave one.
pub(crate) async fn request_cancel(state: &AppState, context: &Context, run: &RunId, reason: Option<&str>) -> Result<()> {
    let event = RunEvent::CancelRequested { by: context.principal.display_name(), why: reason.map(str::to_owned) };
    let applied = state.store.apply(context.workspace.id, run, &event, context.now_us).await?;
    if matches!(applied, Applied::NoRun) {
        return Err(Error::not_found(format!("run `{run}` was not found")));
    }
    trainyard_store::fail_point!("cancel.stored");
    state.engine.wake();
    state.engine.touch(&RunKey::new(context.workspace.id, run));
    Ok(())
}

fn experiment_name(path: &BTreeMap<String, String>) -> Result<ExperimentName> {
    ExperimentName::new(path.get("experiment").map(String::as_str).unwrap_or_default()).map_err(|error| error.with_target("experimentName"))
}

/// What Windows editors put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A submission that was found good.
pub(super) struct Accepted {
    envelope: SubmissionEnvelope,
    converted: Converted,
}

impl Accepted {
    async fn parse(state: &AppState, context: &Context, submission: &Submission) -> Result<Self> {
        let about = |error: Error| if error.target().is_some() { error } else { error.with_target("runDefinitionFile") };
        let text = submission.definition.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&submission.definition);
        let document: Value = serde_json::from_slice(text).map_err(|error| {
            about(Error::invalid(format!(
                "definition.json is not JSON: line {}, column {}: {}",
                error.line(),
                error.column(),
                reason(&error)
            )))
        })?;
        let mut envelope = Self::read(document).map_err(about)?;
        conda_file::inline(&mut envelope.configuration, submission, state.settings.limits.archive).await?;
        references::resolve(state, context, &mut envelope.configuration).await?;
        let mut accepted = Self::of(state, envelope).map_err(about)?;
        if let Entry::Script { path } = &mut accepted.converted.definition.entry {
            *path = submission.plan.find_script(path).map_err(|error| error.with_target("Configuration.Script"))?.to_owned();
        }
        if accepted.envelope.snapshot_id.is_some() {
            accepted.converted.warnings.push("SnapshotId is not used: the code is the zip that came with the definition".to_owned());
        }
        Ok(accepted)
    }

    /// The definition that a document is; nothing is looked up or found possible yet.
    pub(super) fn read(document: Value) -> Result<SubmissionEnvelope> {
        SubmissionEnvelope::read(document).map_err(|error| Error::invalid(error.to_string()).with_target(error.path.clone()))
    }

    /// A definition in which everything stands itself, found possible.
    pub(super) fn of(state: &AppState, envelope: SubmissionEnvelope) -> Result<Self> {
        let converted = Self::convert(state, &envelope.configuration)?;
        must_fit(state, &converted.definition)?;
        Ok(Self { envelope, converted })
    }

    /// What is executed for a configuration on this server.
    pub(super) fn convert(state: &AppState, submitted: &SubmittedConfiguration) -> Result<Converted> {
        let rule = |target: &Target| TargetRule { name: target.name.clone(), containers: target.containers.policy, engine: target.engine };
        let targets: Vec<TargetRule> = state.engine.targets().iter().map(rule).collect();
        to_definition(submitted, Rules { targets: &targets, sealer: &state.sealer, datastores: state.engine.datastores() })
    }

    /// Decides whose jobs the run's will be, where its target has jobs of several accounts. The run keeps it.
    pub(super) async fn settle_user(&mut self, state: &AppState, context: &Context) -> Result<()> {
        let definition = &mut self.converted.definition;
        let Some(target) = state.engine.target(definition.target.as_str()) else { return Ok(()) };
        let Some(accounts) = &target.submit_as else { return Ok(()) };
        let Principal::App { id, name, .. } = &context.principal else {
            let message = format!("target `{}` runs jobs as accounts of the cluster, and only an application has one", target.name);
            return Err(Error::invalid(message).with_target("Configuration.Target"));
        };
        let namesakes = state.store.list_apps().await?.iter().filter(|app| app.name == *name).count();
        let submitter = Submitter { id: &id.to_string(), name, namesakes };
        definition.slurm.submit_as = Some(accounts.user_of(submitter, target.name.as_str())?.clone());
        Ok(())
    }

    /// Asks the engine of the target whether it would take the run, before anything is stored.
    async fn ask_engine(&mut self, state: &AppState) -> Result<()> {
        let Converted { definition, warnings, .. } = &mut self.converted;
        let Some(target) = state.engine.target(definition.target.as_str()) else { return Ok(()) };
        if !definition.slurm.is_empty() && target.engine != "slurm" {
            warnings.push(format!("Slurm is not used: target `{}` does not execute runs there", target.name));
            return Ok(());
        }
        if !definition.kubernetes.is_empty() && target.engine != "kubernetes" {
            warnings.push(format!("Kubernetes is not used: target `{}` does not execute runs there", target.name));
        }
        warnings.extend(target.executor.check(definition).await?);
        Ok(())
    }
}

/// A run gets all of its slots at once, so it can't take more than there are.
fn must_fit(state: &AppState, definition: &Definition) -> Result<()> {
    let Some(target) = state.engine.target(definition.target.as_str()) else { return Ok(()) };
    let needs = state.engine.slots(definition);
    if needs <= target.slots || needs == 1 {
        return Ok(());
    }
    let message = format!(
        "target `{}` has {} slots, and the run takes {needs} at once, one for each of its nodes: ask for fewer nodes, or name another target",
        target.name, target.slots
    );
    Err(Error::invalid(message).with_target("Configuration.NodeCount"))
}

/// serde_json repeats the position in its text; this is the text without it.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

/// The first event of a run: where it will run, and as whom.
fn queued(record: &RunRecord, snapshot: Option<Uuid>) -> TimelineEntry {
    let mut data = json!({ "Target": record.target });
    if let Some(snapshot) = snapshot {
        data["SnapshotId"] = json!(snapshot);
    }
    if let Some(user) = record.definition.as_ref().and_then(|definition| definition.slurm.submit_as.as_ref()) {
        data["SubmitAs"] = json!(user);
        data["Message"] = json!(format!("its jobs are those of account {user}"));
    }
    TimelineEntry::run("Queued", data)
}

type Asked = (ExperimentName, Option<RunId>);

async fn accept(
    state: &AppState,
    context: &Context,
    (experiment, asked_id): Asked,
    (accepted, submission): (Accepted, Submission),
) -> Result<RunId> {
    if let Some(id) = &asked_id
        && let Some(existing) = state.store.run(context.workspace.id, id).await?
    {
        return same_request(existing, &submission);
    }
    let parent = parent(state, context, accepted.envelope.parent_run_id.as_deref()).await?;
    let experiment = get_or_create(state, context, experiment).await?;
    let id = match asked_id {
        Some(id) => id,
        None => generated_id(&experiment.name, context.now_us)?,
    };
    let Submission { archive, digest, .. } = submission;
    let stored = state.store.blobs().commit(archive).await?;
    trainyard_store::fail_point!("submit.blob_committed");
    let snapshot =
        NewSnapshot { id: Uuid::now_v7(), digest: stored.digest, size_bytes: i64::try_from(stored.size).map_err(Error::internal)? };
    let target = accepted.converted.definition.target.clone();
    let engine = state.engine.target(target.as_str()).map_or("local", |target| target.engine);
    let slots = state.engine.slots(&accepted.converted.definition);
    let mut record = record((context, engine), &experiment, id.clone(), accepted);
    if let Some(parent) = parent {
        record.root = parent.root;
        record.parent = Some(parent.id);
    }
    record.request_digest = Some(digest.clone());
    record.snapshot = Some(snapshot.id);
    let first_event = queued(&record, Some(snapshot.id));
    match state.store.create_run(NewRun { record, first_event, snapshot: Some(snapshot), slots }).await? {
        Created::New(_) => {
            trainyard_store::fail_point!("submit.stored");
            state.engine.submitted(&target);
            Ok(id)
        }
        Created::Existing(existing) if existing.request_digest.as_ref() == Some(&digest) => Ok(id),
        Created::Existing(_) => Err(taken(&id)),
    }
}

/// Stores a run that has no code: it begins in an empty folder.
pub(super) async fn start_without_code(state: &AppState, context: &Context, name: ExperimentName, accepted: Accepted) -> Result<RunId> {
    let experiment = get_or_create(state, context, name).await?;
    let id = generated_id(&experiment.name, context.now_us)?;
    let target = accepted.converted.definition.target.clone();
    let engine = state.engine.target(target.as_str()).map_or("local", |target| target.engine);
    let slots = state.engine.slots(&accepted.converted.definition);
    let record = record((context, engine), &experiment, id.clone(), accepted);
    let first_event = queued(&record, None);
    match state.store.create_run(NewRun { record, first_event, snapshot: None, slots }).await? {
        Created::New(_) => {
            state.engine.submitted(&target);
            Ok(id)
        }
        Created::Existing(_) => Err(taken(&id)),
    }
}

/// The run that the definition names as the parent; one that is not there is an error, not a run without parent.
async fn parent(state: &AppState, context: &Context, id: Option<&str>) -> Result<Option<RunRecord>> {
    let Some(id) = id else { return Ok(None) };
    let about = |error: Error| error.with_target("ParentRunId");
    let id = RunId::new(id).map_err(about)?;
    let found = state.store.run(context.workspace.id, &id).await?;
    found.map(Some).ok_or_else(|| about(Error::invalid(format!("the parent run `{id}` was not found"))))
}

/// The same id again: the same request is answered as the first time was, another one is refused.
fn same_request(existing: RunRecord, submission: &Submission) -> Result<RunId> {
    if existing.request_digest.as_ref() == Some(&submission.digest) { Ok(existing.id) } else { Err(taken(&existing.id)) }
}

fn taken(id: &RunId) -> Error {
    let message = format!("run `{id}` exists already and was made by another request; choose another runId or leave it out");
    Error::new(ErrorKind::Conflict, message).with_target("runId")
}

async fn get_or_create(state: &AppState, context: &Context, name: ExperimentName) -> Result<Experiment> {
    if let Some(found) = state.store.experiment_by_name(context.workspace.id, &name).await? {
        return Ok(found);
    }
    state.store.create_or_get_experiment(&super::experiments::new_experiment(context, name)).await
}

/// `{experiment}_{unix time}_{8 hex}`, the form that the SDK makes (azureml-wire D.1). A long experiment name is cut so that the id fits its rule.
fn generated_id(experiment: &ExperimentName, now_us: i64) -> Result<RunId> {
    let head: String = experiment.as_str().chars().take(200).collect();
    let random = Uuid::new_v4().simple().to_string();
    RunId::new(format!("{head}_{}_{}", now_us / 1_000_000, &random[..8]))
}

fn record((context, engine): (&Context, &str), experiment: &Experiment, id: RunId, accepted: Accepted) -> RunRecord {
    let Accepted { envelope, converted } = accepted;
    let Converted { definition, warnings, document } = converted;
    let warnings = warnings.into_iter().map(|message| RunWarning { source: "submission".into(), message }).collect();
    let mut properties: BTreeMap<String, Option<String>> = envelope.properties;
    // azureml-wire F.5. `ContentSnapshotId` is left to the client: the SDK writes its own right after submitting, and a property is immutable once written.
    for (key, value) in [
        ("_azureml.ComputeTargetType", engine),
        ("ProcessInfoFile", "azureml-logs/process_info.json"),
        ("ProcessStatusFile", "azureml-logs/process_status.json"),
    ] {
        properties.entry(key.to_owned()).or_insert_with(|| Some(value.to_owned()));
    }
    RunRecord {
        workspace: context.workspace.id,
        uuid: Uuid::now_v7(),
        number: 0,
        experiment: experiment.id,
        experiment_name: experiment.name.clone(),
        parent: None,
        root: id.clone(),
        id,
        ownership: Ownership::Managed,
        state: RunState::Queued,
        desired: Desired::Run,
        version: 0,
        attempt: None,
        cause: None,
        created_us: context.now_us,
        started_us: None,
        ended_us: None,
        priority: definition.priority,
        target: Some(definition.target.to_string()),
        name: None,
        display_name: envelope.display_name,
        description: envelope.description,
        run_type: Some("azureml.scriptrun".into()),
        script_name: script_name(&definition),
        cancel_reason: None,
        cancelled_by: None,
        silent: false,
        retries: Retries::default(),
        not_before_us: None,
        hidden: false,
        created_by: super::upsert::created_by(context),
        properties,
        tags: envelope.tags,
        extra: managed_extra(),
        warnings,
        error: None,
        snapshot: None,
        definition: Some(definition),
        document: Some(document),
        environment: None,
        request_digest: None,
    }
}

fn script_name(definition: &Definition) -> Option<String> {
    match &definition.entry {
        Entry::Script { path } => Some(path.clone()),
        Entry::Command { .. } => None,
    }
}
