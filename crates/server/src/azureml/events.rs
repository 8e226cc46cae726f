//! Events: what clients report about runs, and a run's timeline (azureml-wire C.6).
//!
//! The events of a run that a client executes move it. A run that this server executes is moved by its agent: what its code
//! says about itself goes into the timeline, what anybody else says about it is refused.

use axum::{
    Json,
    extract::{RawQuery, State},
};
use serde_json::Value;
use trainyard_core::{
    Error, Result,
    access::Action,
    run::{Ownership, RunEvent},
};
use trainyard_store::{page::PageRequest, runs::RunRecord};
use trainyard_wire::azureml::{
    events::{BatchEventResult, EventDto, EventError, NewEvent, read_batch},
    paging::Page,
};

use super::{
    address::{ExperimentPath, ExperimentRef, RunPath},
    body::{Document, malformed},
    convert::{
        errors::to_response,
        events::{Posted, read, run_id, to_dto, to_entry},
        paging::{page_request, query_from_string},
        status::managed_status,
    },
    error::AzureError,
    execution::request_cancel,
    lifecycle::{allow_change, apply, is_run_itself, touch},
};
use crate::{context::Context, state::AppState};

/// `POST R/events`: one event.
pub(crate) async fn post(
    State(state): State<AppState>,
    context: Context,
    path: RunPath,
    Document(body): Document<Value>,
) -> Result<(), AzureError> {
    let event = NewEvent::read("", body).map_err(malformed)?;
    let run = path.find(&state, &context).await?;
    Ok(take(&state, &context, &run, &event).await?)
}

/// `POST experiments/{experiment}/batch/events`: several, of any runs of the experiment. One that is refused does not keep the
/// others out.
pub(crate) async fn post_batch(
    State(state): State<AppState>,
    context: Context,
    ExperimentPath(experiment): ExperimentPath,
    Document(body): Document<Value>,
) -> Result<Json<BatchEventResult>, AzureError> {
    context.allow(Action::Read)?;
    let mut result = BatchEventResult::default();
    for event in read_batch(body).map_err(malformed)? {
        if let Err(error) = take_addressed(&state, &context, &experiment, &event).await {
            result.errors.push(EventError { key: event, value: to_response(&error, &context, &state) });
        }
    }
    Ok(Json(result))
}

async fn take_addressed(state: &AppState, context: &Context, experiment: &ExperimentRef, event: &NewEvent) -> Result<()> {
    let named = run_id(event)?;
    let run = named.ok_or_else(|| Error::invalid("the event does not say which run it is about").with_target("data.RunId"))?;
    let run = RunPath { experiment: experiment.clone(), run }.find(state, context).await?;
    take(state, context, &run, event).await
}

/// Acts on one event.
async fn take(state: &AppState, context: &Context, run: &RunRecord, event: &NewEvent) -> Result<()> {
    allow_change(context, run)?;
    let (workspace, at_us) = (context.workspace.id, context.now_us);
    match (read(event, run, &context.principal.display_name())?, run.ownership) {
        // Nothing here declares a run dead for being silent, so a sign of life changes nothing.
        (Posted::Heartbeat, _) => return Ok(()),
        (Posted::Move(RunEvent::CancelRequested { .. }), Ownership::Managed) => return request_cancel(state, context, &run.id, None).await,
        (Posted::Move(moved), Ownership::External) => return apply(state, context, run, &moved).await.map(drop),
        (Posted::Move(_), Ownership::Managed) if !is_run_itself(context, run) => return Err(managed_status(&run.id)),
        (Posted::Move(_), Ownership::Managed) | (Posted::Note, _) => {}
        (Posted::Error(response), _) => state.store.set_run_error(workspace, &run.id, &response).await?,
        (Posted::Warning(warning), _) => state.store.add_run_warnings(workspace, &run.id, &[warning]).await?,
    }
    state.store.append_event(workspace, &run.id, &to_entry(event), at_us).await?;
    touch(state, context, run);
    Ok(())
}

/// `GET R/events`: the timeline, oldest first. The token is the place of the last entry given.
pub(crate) async fn list(
    State(state): State<AppState>,
    context: Context,
    path: RunPath,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<EventDto>>, AzureError> {
    context.allow(Action::Read)?;
    let wanted = page_request(&query_from_string(query.as_deref())?);
    let run = path.find(&state, &context).await?;
    let after = wanted.token.as_deref().unwrap_or("0").parse().map_err(|_| unfit_token())?;
    let limit = if wanted.top == 0 { PageRequest::DEFAULT_TOP } else { wanted.top.min(PageRequest::MAX_TOP) };
    let found = state.store.events(context.workspace.id, &run.id, after, limit).await?;
    let full = found.len() == limit as usize;
    let token = found.last().filter(|_| full).map(|event| event.seq.to_string());
    Ok(Json(Page::new(found.into_iter().map(|event| to_dto(event, &run.id)).collect(), token)))
}

fn unfit_token() -> Error {
    Error::invalid("the continuation token is not one that this list gave").with_target("continuationToken")
}
