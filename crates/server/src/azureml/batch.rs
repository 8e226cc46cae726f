//! Several runs in one request (azureml-wire C.3). One that fails does not keep the others from succeeding.

use axum::{Json, extract::State};
use serde_json::Value;
use trainyard_core::{Result, access::Action, ids::RunId};
use trainyard_wire::azureml::runs::{BatchRunResult, CreateRun, RunDto, read_batch, read_run_ids};

use super::{
    address::{ExperimentPath, ExperimentRef, RunPath},
    body::{Document, malformed},
    convert::errors::to_response,
    error::AzureError,
    present::Presenter,
    upsert,
};
use crate::{context::Context, state::AppState};

/// `PATCH …/batch/runs` with `{"runs": [CreateRun]}`: creates or changes each.
pub(crate) async fn patch(
    State(state): State<AppState>,
    context: Context,
    ExperimentPath(experiment): ExperimentPath,
    Document(body): Document<Value>,
) -> Result<Json<BatchRunResult>, AzureError> {
    context.allow(Action::Read)?;
    let mut result = BatchRunResult::default();
    let mut presenter = Presenter::new(&state, &context);
    for run in read_batch(body).map_err(malformed)? {
        let id = run.run_id.clone().unwrap_or_default();
        match patch_one(&mut presenter, &experiment, &id, run).await {
            Ok(run) => drop(result.runs.insert(id, run)),
            Err(error) => drop(result.errors.insert(id, to_response(&error, &context, &state))),
        }
    }
    Ok(Json(result))
}

async fn patch_one(presenter: &mut Presenter<'_>, experiment: &ExperimentRef, id: &str, body: CreateRun) -> Result<RunDto> {
    let path = path(experiment, id)?;
    let run = upsert::create_or_merge(presenter.state, presenter.context, &path, body).await?;
    presenter.present(run).await
}

/// `POST …/runs/runIds` with `{"runIds": []}`: reads each.
pub(crate) async fn by_ids(
    State(state): State<AppState>,
    context: Context,
    ExperimentPath(experiment): ExperimentPath,
    Document(body): Document<Value>,
) -> Result<Json<BatchRunResult>, AzureError> {
    context.allow(Action::Read)?;
    let mut result = BatchRunResult::default();
    let mut presenter = Presenter::new(&state, &context);
    for id in read_run_ids(body).map_err(malformed)? {
        match read_one(&mut presenter, &experiment, &id).await {
            Ok(run) => drop(result.runs.insert(id, run)),
            Err(error) => drop(result.errors.insert(id, to_response(&error, &context, &state))),
        }
    }
    Ok(Json(result))
}

async fn read_one(presenter: &mut Presenter<'_>, experiment: &ExperimentRef, id: &str) -> Result<RunDto> {
    let run = path(experiment, id)?.find(presenter.state, presenter.context).await?;
    presenter.present(run).await
}

fn path(experiment: &ExperimentRef, id: &str) -> Result<RunPath> {
    let run = RunId::new(id).map_err(|error| error.with_target("runId"))?;
    Ok(RunPath { experiment: experiment.clone(), run })
}
