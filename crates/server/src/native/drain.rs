//! `/api/v1/drain`: an operator stops new work, lets what runs end, and learns when it is safe to take the machine down.
//!
//! Submissions are taken as ever and wait; a restart changes nothing about it.

use axum::{Json, extract::State};
use trainyard_core::{Result, access::Action};
use trainyard_store::server_settings::Drained;
use trainyard_wire::native::{DrainStatus, DrainWish};

use super::error::NativeError;
use crate::{context::Caller, json::JsonBody, state::AppState};

/// Whether the server is drained, and what is still under way.
pub(crate) async fn get(State(state): State<AppState>, caller: Caller) -> Result<Json<DrainStatus>, NativeError> {
    caller.allow_in(Action::Administer, None)?;
    Ok(Json(status(&state).await?))
}

/// Drains the server, or ends that. Repeating it is harmless.
pub(crate) async fn put(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(wish): JsonBody<DrainWish>,
) -> Result<Json<DrainStatus>, NativeError> {
    caller.allow_in(Action::Administer, None)?;
    state.store.set_drained(if wish.drained { Drained::Yes } else { Drained::No }).await?;
    tracing::info!(drained = wish.drained, by = caller.principal.display_name(), "the operator's wish for new work");
    state.engine.wake();
    Ok(Json(status(&state).await?))
}

async fn status(state: &AppState) -> Result<DrainStatus> {
    // Read before the runs: what is admitted before it is set is among them.
    let drained = state.store.is_drained().await?;
    let running = state.store.executing_count().await?;
    let queued = state.store.queued_counts().await?.values().sum();
    Ok(DrainStatus { drained, running, queued, safe: drained && running == 0 })
}
