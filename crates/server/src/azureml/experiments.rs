//! Experiments (azureml-wire C.2).

use axum::{
    Json,
    extract::{RawQuery, State},
};
use serde_json::Value;
use trainyard_core::{
    Error,
    access::Action,
    ids::{ExperimentId, ExperimentName},
};
use trainyard_store::experiments::Experiment;
use trainyard_wire::azureml::{
    experiments::{ExperimentDto, ModifyExperiment},
    paging::Page,
    query::QueryParams,
    runs::{DeleteTagsResult, read_tags_to_delete},
};
use uuid::Uuid;

use super::{
    address::{ExperimentPath, ExperimentRef},
    body::{Document, malformed},
    convert::{
        experiments::{shows, to_dto, to_patch, to_query},
        paging::{page, query_from_both, query_from_string},
    },
    error::AzureError,
};
use crate::{context::Context, state::AppState};

/// A new experiment of this name, made now.
pub(crate) fn new_experiment(context: &Context, name: ExperimentName) -> Experiment {
    Experiment {
        id: ExperimentId(Uuid::now_v7()),
        workspace: context.workspace.id,
        name,
        description: None,
        tags: Default::default(),
        created_us: context.now_us,
        archived_us: None,
        latest_run_id: None,
        latest_run_created_us: None,
    }
}

/// `POST experiments/{experiment}`: creates it, or gives the one that is there. The body, if any, says nothing.
pub(crate) async fn create_or_get(
    State(state): State<AppState>,
    context: Context,
    ExperimentPath(experiment): ExperimentPath,
) -> Result<Json<ExperimentDto>, AzureError> {
    context.allow(Action::Write)?;
    let ExperimentRef::Name(name) = experiment else {
        return Err(Error::invalid("an experiment is created by its name").into());
    };
    let experiment = state.store.create_or_get_experiment(&new_experiment(&context, name)).await?;
    Ok(Json(to_dto(experiment)))
}

/// `GET experiments/{experiment}` and `GET experimentids/{experiment_id}`, with `?viewType`.
pub(crate) async fn get(
    State(state): State<AppState>,
    context: Context,
    ExperimentPath(wanted): ExperimentPath,
    RawQuery(query): RawQuery,
) -> Result<Json<ExperimentDto>, AzureError> {
    context.allow(Action::Read)?;
    let query = query_from_string(query.as_deref())?;
    let experiment = wanted.required(&state, &context).await?;
    if !shows(query.view_type, &experiment) {
        return Err(Error::not_found(format!("{wanted} is not in the view that viewType asks for")).into());
    }
    Ok(Json(to_dto(experiment)))
}

/// `GET experiments`.
pub(crate) async fn list(
    State(state): State<AppState>,
    context: Context,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<ExperimentDto>>, AzureError> {
    listed(&state, &context, &query_from_string(query.as_deref())?).await
}

/// `POST experiments:query`.
pub(crate) async fn query(
    State(state): State<AppState>,
    context: Context,
    RawQuery(query): RawQuery,
    Document(body): Document<QueryParams>,
) -> Result<Json<Page<ExperimentDto>>, AzureError> {
    listed(&state, &context, &query_from_both(body, query.as_deref())?).await
}

async fn listed(state: &AppState, context: &Context, query: &QueryParams) -> Result<Json<Page<ExperimentDto>>, AzureError> {
    context.allow(Action::Read)?;
    let found = state.store.list_experiments(&to_query(context.workspace.id, query)?).await?;
    Ok(Json(page(found, to_dto)))
}

/// `PATCH experimentids/{experiment_id}`: rename, describe, tag, archive, reactivate.
pub(crate) async fn modify(
    State(state): State<AppState>,
    context: Context,
    ExperimentPath(experiment): ExperimentPath,
    Document(body): Document<ModifyExperiment>,
) -> Result<Json<ExperimentDto>, AzureError> {
    context.allow(Action::Write)?;
    let patch = to_patch(body, context.now_us)?;
    let experiment = experiment.required(&state, &context).await?;
    let experiment = state.store.patch_experiment(context.workspace.id, experiment.id, &patch).await?;
    Ok(Json(to_dto(experiment)))
}

/// `DELETE experimentids/{experiment_id}`: only without runs. Answers what was deleted.
pub(crate) async fn delete(
    State(state): State<AppState>,
    context: Context,
    ExperimentPath(experiment): ExperimentPath,
) -> Result<Json<ExperimentDto>, AzureError> {
    context.allow(Action::Write)?;
    let experiment = experiment.required(&state, &context).await?;
    state.store.delete_experiment(context.workspace.id, experiment.id).await?;
    Ok(Json(to_dto(experiment)))
}

/// `POST experimentids/{experiment_id}/tags:delete` with `{"tags": ["k"]}`, and `DELETE …/tags` with `["k"]`, the older form.
pub(crate) async fn delete_tags(
    State(state): State<AppState>,
    context: Context,
    ExperimentPath(experiment): ExperimentPath,
    Document(body): Document<Value>,
) -> Result<Json<DeleteTagsResult>, AzureError> {
    context.allow(Action::Write)?;
    let keys = read_tags_to_delete(body).map_err(malformed)?;
    let experiment = experiment.required(&state, &context).await?;
    state.store.delete_experiment_tags(context.workspace.id, experiment.id, &keys).await?;
    Ok(Json(DeleteTagsResult::default()))
}
