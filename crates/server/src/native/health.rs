//! For probes and for whoever watches the server.

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use trainyard_core::{Error, ErrorKind, Result};

use super::error::NativeError;
use crate::state::AppState;

/// `GET /healthz`: the process answers.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the database answers, too.
pub(crate) async fn readyz(State(state): State<AppState>) -> Result<&'static str, NativeError> {
    match state.store.ping().await {
        Ok(()) => Ok("ready\n"),
        Err(error) => Err(Error::new(ErrorKind::Unavailable, "the database does not answer").with_source(error).into()),
    }
}

/// `GET /metrics`: OpenMetrics text.
pub(crate) async fn metrics(State(state): State<AppState>) -> Result<Response, NativeError> {
    count_runs(&state).await?;
    state.metrics.set_counts(state.store.ends(), state.engine.attendance().unwrap_or_default());
    state.metrics.set_violations(&state.engine.violations());
    let text = state.metrics.render()?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response())
}

/// Brings the gauge of runs up to date, at most every few seconds: counting reads an index of all runs.
async fn count_runs(state: &AppState) -> Result<()> {
    if !state.metrics.runs_are_due() {
        return Ok(());
    }
    let mut counts = Vec::new();
    for workspace in state.store.list_workspaces().await? {
        counts.extend(state.store.run_counts(workspace.id, None).await?);
    }
    state.metrics.set_runs(&counts);
    Ok(())
}
