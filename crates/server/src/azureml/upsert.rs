//! PATCH of a run: creates it for a client that executes it itself, or merges into the one that is there (azureml-wire C.3).

use serde_json::{Value, json};
use trainyard_core::{
    Error, ErrorKind, Result,
    access::{Action, Principal},
    ids::RunId,
    run::{Ownership, RunEvent, TimelineEntry},
};
use trainyard_store::{
    experiments::Experiment,
    runs::{Created, NewRun, RunRecord},
};
use trainyard_wire::azureml::runs::CreateRun;

use super::{
    address::RunPath,
    convert::{
        runs::{Origin, check_identity, parent_id, to_patch, to_record},
        status::{asked, managed_status, word_of},
    },
    lifecycle::{allow_change, apply, check, touch},
};
use crate::{context::Context, state::AppState};

/// Creates or changes the run of `path`; the run as it is afterwards.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) when it is to be created and the path names no experiment that exists;
/// [`Conflict`](ErrorKind::Conflict) when it is in another experiment, when a property has another value already, or when the
/// status asked for can not be reached; [`Invalid`](ErrorKind::Invalid) when a status is set on a run that this server executes.
pub(crate) async fn create_or_merge(state: &AppState, context: &Context, path: &RunPath, body: CreateRun) -> Result<RunRecord> {
    check_identity(&body, &path.run)?;
    match state.store.run(context.workspace.id, &path.run).await? {
        Some(run) if path.experiment.holds(&run) => merge(state, context, &run, body).await,
        Some(run) => Err(elsewhere(&run)),
        None => create(state, context, path, body).await,
    }
}

fn elsewhere(run: &RunRecord) -> Error {
    let message = format!("run {} exists already in experiment `{}`; run ids are unique in a workspace", run.id, run.experiment_name);
    Error::new(ErrorKind::Conflict, message).with_target("runId")
}

async fn merge(state: &AppState, context: &Context, run: &RunRecord, body: CreateRun) -> Result<RunRecord> {
    allow_change(context, run)?;
    let event = status_event(context, run, body.status.as_deref())?;
    let patched = state.store.patch_run(context.workspace.id, &run.id, &to_patch(body, context.now_us)?).await?;
    touch(state, context, run);
    match event {
        Some(event) => apply(state, context, &patched, &event).await,
        None => Ok(patched),
    }
}

/// What the status in a body asks for, found possible before anything is written.
fn status_event(context: &Context, run: &RunRecord, status: Option<&str>) -> Result<Option<RunEvent>> {
    let Some(status) = status else { return Ok(None) };
    match run.ownership {
        // Clients that send back what they read change nothing.
        Ownership::Managed if status.eq_ignore_ascii_case(word_of(run, context.spelling)) => Ok(None),
        Ownership::Managed => Err(managed_status(&run.id)),
        Ownership::External => {
            let event = asked(status, &context.principal.display_name())?;
            event.iter().try_for_each(|event| check(run, event))?;
            Ok(event)
        }
    }
}

async fn create(state: &AppState, context: &Context, path: &RunPath, mut body: CreateRun) -> Result<RunRecord> {
    let parent = match parent_id(&body)? {
        Some(id) => Some(state.store.run(context.workspace.id, &id).await?.ok_or_else(|| no_parent(&id))?),
        None => None,
    };
    allow_creation(context, parent.as_ref())?;
    let experiment = experiment_of(state, context, path).await?;
    let event = body.status.take().map(|word| asked(&word, &context.principal.display_name())).transpose()?.flatten();
    let origin =
        Origin { experiment: &experiment, parent: parent.as_ref(), created_by: author(context, parent.as_ref()), at_us: context.now_us };
    let record = to_record(path.run.clone(), body.clone(), origin);
    let first_event = TimelineEntry::run("Created", json!({ "CreatedBy": context.principal.display_name() }));
    let number = match state.store.create_run(NewRun { record: record.clone(), first_event, snapshot: None, slots: 1 }).await? {
        Created::New(number) => number,
        // Somebody was faster with the same id: what is left is a change of that run.
        Created::Existing(run) if path.experiment.holds(&run) => return merge(state, context, &run, body).await,
        Created::Existing(run) => return Err(elsewhere(&run)),
    };
    let created = RunRecord { number, ..record };
    match event {
        Some(event) => apply(state, context, &created, &event).await,
        None => Ok(created),
    }
}

/// The experiment that a new run goes to.
async fn experiment_of(state: &AppState, context: &Context, path: &RunPath) -> Result<Experiment> {
    let found = path.experiment.find(state, context).await?;
    found.ok_or_else(|| Error::not_found(format!("run {} was not found; to create it, name its experiment in the path", path.run)))
}

/// The code of a run may create runs below its own.
fn allow_creation(context: &Context, parent: Option<&RunRecord>) -> Result<()> {
    match (&context.principal, parent) {
        (Principal::Run { run, .. }, Some(parent)) if parent.id == *run || parent.root == *run => context.allow(Action::WriteRun(run)),
        (Principal::Run { .. } | Principal::App { .. }, _) => context.allow(Action::Write),
    }
}

fn no_parent(id: &RunId) -> Error {
    Error::invalid(format!("the parent run {id} was not found")).with_target("parentRunId")
}

/// Who creates a run, as rows keep it; the tenant is this server's and is filled in when it is shown.
pub(crate) fn created_by(context: &Context) -> Value {
    match &context.principal {
        Principal::App { id, name, .. } => json!({ "userObjectId": id, "userName": name }),
        Principal::Run { run, .. } => json!({ "userObjectId": run, "userName": format!("run {run}") }),
    }
}

/// What the code of a run creates is created by whoever submitted the run.
fn author(context: &Context, parent: Option<&RunRecord>) -> Value {
    match (&context.principal, parent) {
        (Principal::Run { .. }, Some(parent)) => parent.created_by.clone(),
        (Principal::Run { .. } | Principal::App { .. }, _) => created_by(context),
    }
}
