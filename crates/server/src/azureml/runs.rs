//! One run: read it, create or change it, cancel it (azureml-wire C.3).

use axum::{Json, extract::State};
use serde_json::{Value, json};
use trainyard_core::{Result, access::Action, ids::RunId};
use trainyard_wire::{
    azureml::runs::{CreateRun, RunDto},
    json::Fields,
};

use super::{
    address::{ExperimentRef, RunPath},
    body::{Document, malformed},
    error::AzureError,
    execution::request_cancel,
    lifecycle::{allow_change, reread},
    present, upsert,
};
use crate::{context::Context, query::Query, state::AppState};

/// `GET R`.
pub(crate) async fn get(State(state): State<AppState>, context: Context, path: RunPath) -> Result<Json<RunDto>, AzureError> {
    context.allow(Action::Read)?;
    let run = path.find(&state, &context).await?;
    Ok(Json(present::run(&state, &context, run).await?))
}

/// `PATCH R`, and `POST runs/{run}`: creates the run if it is not there, changes it otherwise. Who may is decided once it is known
/// which of the two it is.
pub(crate) async fn create_or_change(
    State(state): State<AppState>,
    context: Context,
    path: RunPath,
    Document(body): Document<CreateRun>,
) -> Result<Json<RunDto>, AzureError> {
    context.allow(Action::Read)?;
    let run = upsert::create_or_merge(&state, &context, &path, body).await?;
    Ok(Json(present::run(&state, &context, run).await?))
}

/// `POST R/cancel?CancelationReason=`. A run that has ended is left as it is.
pub(crate) async fn cancel(
    State(state): State<AppState>,
    context: Context,
    path: RunPath,
    query: Query,
) -> Result<Json<RunDto>, AzureError> {
    let run = path.find(&state, &context).await?;
    allow_change(&context, &run)?;
    request_cancel(&state, &context, &run.id, query.non_empty("CancelationReason")).await?;
    let run = reread(&state, &context, &run).await?;
    Ok(Json(present::run(&state, &context, run).await?))
}

/// `GET R/metricsingest/wait`: the SDK asks whether everything that it logged has arrived, before it ends or cancels a run. Here a request
/// that was answered is stored, so there is never anything to wait for.
pub(crate) async fn metrics_ingested(State(state): State<AppState>, context: Context, path: RunPath) -> Result<(), AzureError> {
    context.allow(Action::Read)?;
    path.find(&state, &context).await?;
    Ok(())
}

/// `POST rundata` with `{"runId", "selectRunMetadata", "selectRunDefinition", "selectJobSpecification"}`: the parts asked for.
pub(crate) async fn data(
    State(state): State<AppState>,
    context: Context,
    Document(body): Document<Value>,
) -> Result<Json<Value>, AzureError> {
    context.allow(Action::Read)?;
    let mut fields = Fields::new("", body).map_err(malformed)?;
    let id: String = fields.required("runId").map_err(malformed)?;
    let metadata = fields.boolean("selectRunMetadata").map_err(malformed)?.unwrap_or(false);
    let definition = fields.boolean("selectRunDefinition").map_err(malformed)?.unwrap_or(false);
    let path = RunPath { experiment: ExperimentRef::Any, run: RunId::new(id).map_err(|error| error.with_target("runId"))? };
    let run = path.find(&state, &context).await?;
    let document = run.document.clone();
    let dto = present::run(&state, &context, run).await?;
    let definition = definition.then(|| document.or_else(|| dto.run_definition.clone()));
    Ok(Json(json!({ "runMetadata": metadata.then_some(dto), "runDefinition": definition, "jobSpecification": null })))
}
