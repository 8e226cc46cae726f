//! Tags of a run (azureml-wire C.3). Setting them is also part of PATCH of the run.

use axum::{Json, extract::State};
use serde_json::Value;
use trainyard_store::runs::RunPatch;
use trainyard_wire::azureml::runs::{ModifyTags, RunDto, TagsDto, read_tags_to_delete};

use super::{
    address::RunPath,
    body::{Document, malformed},
    error::AzureError,
    lifecycle::{allow_change, touch},
    present,
};
use crate::{context::Context, state::AppState};

/// `DELETE R/tags` with `["k"]`. A key that is not there is deleted already.
pub(crate) async fn delete(
    State(state): State<AppState>,
    context: Context,
    path: RunPath,
    Document(body): Document<Value>,
) -> Result<Json<RunDto>, AzureError> {
    let run = path.find(&state, &context).await?;
    allow_change(&context, &run)?;
    let keys = read_tags_to_delete(body).map_err(malformed)?;
    let run = state.store.delete_run_tags(context.workspace.id, &run.id, &keys).await?;
    touch(&state, &context, &run);
    Ok(Json(present::run(&state, &context, run).await?))
}

/// `PATCH R/tags` with `{"tagsToModify": {}, "tagsToDelete": []}`: deletes first, so that a key in both ends up set.
pub(crate) async fn modify(
    State(state): State<AppState>,
    context: Context,
    path: RunPath,
    Document(body): Document<ModifyTags>,
) -> Result<Json<TagsDto>, AzureError> {
    let run = path.find(&state, &context).await?;
    allow_change(&context, &run)?;
    let workspace = context.workspace.id;
    if !body.tags_to_delete.is_empty() {
        state.store.delete_run_tags(workspace, &run.id, &body.tags_to_delete).await?;
    }
    let patch = RunPatch { tags: body.tags_to_modify, at_us: context.now_us, ..RunPatch::default() };
    let run = state.store.patch_run(workspace, &run.id, &patch).await?;
    touch(&state, &context, &run);
    Ok(Json(TagsDto { tags: run.tags }))
}
