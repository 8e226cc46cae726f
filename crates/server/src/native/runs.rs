//! What the command line asks about runs that no foreign dialect tells: attempts, timeline.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
};
use trainyard_core::{Error, Result, access::Action, ids::RunId};
use trainyard_wire::native::{Attempt, Event};

use super::{error::NativeError, nodes::shown};
use crate::{context::Context, query::Query, state::AppState};

/// The most events that one answer holds; ask again with `after`.
const EVENTS_PER_ANSWER: u32 = 1000;

fn run_id(path: &BTreeMap<String, String>) -> Result<RunId> {
    RunId::new(path.get("run").map(String::as_str).unwrap_or_default())
}

async fn must_exist(state: &AppState, context: &Context, run: &RunId) -> Result<()> {
    match state.store.run(context.workspace.id, run).await? {
        Some(_) => Ok(()),
        None => Err(Error::not_found(format!("run `{run}` was not found"))),
    }
}

/// `GET {W}/runs/{run}/attempts`.
pub(crate) async fn attempts(
    State(state): State<AppState>,
    context: Context,
    Path(path): Path<BTreeMap<String, String>>,
) -> Result<Json<Vec<Attempt>>, NativeError> {
    context.allow(Action::Read)?;
    let run = run_id(&path)?;
    must_exist(&state, &context, &run).await?;
    let rows = state.store.attempts(context.workspace.id, &run).await?;
    let mut nodes = Vec::with_capacity(rows.len());
    for row in &rows {
        nodes.push(shown(&state.store.attempt_nodes(row.id).await?)?.nodes);
    }
    let attempts = rows.into_iter().zip(nodes).map(|(row, nodes)| {
        Ok(Attempt {
            id: row.id.0,
            number: row.number,
            target: row.target.to_string(),
            node: row.node,
            nodes,
            intended: crate::clock::rfc3339(row.intended_us),
            started: row.started_us.map(crate::clock::rfc3339),
            ended: row.ended_us.map(crate::clock::rfc3339),
            cause: row.cause.map(serde_json::to_value).transpose().map_err(Error::internal)?,
            preparation: state.engine.preparation(row.id).map(serde_json::to_value).transpose().map_err(Error::internal)?,
        })
    });
    Ok(Json(attempts.collect::<Result<_>>()?))
}

/// `GET {W}/runs/{run}/events?after=`: the timeline.
pub(crate) async fn events(
    State(state): State<AppState>,
    context: Context,
    Path(path): Path<BTreeMap<String, String>>,
    query: Query,
) -> Result<Json<Vec<Event>>, NativeError> {
    context.allow(Action::Read)?;
    let run = run_id(&path)?;
    must_exist(&state, &context, &run).await?;
    let after = match query.get("after") {
        Some(text) => text.parse().map_err(|_| Error::invalid("`after` must be a sequence number").with_target("after"))?,
        None => 0,
    };
    let rows = state.store.events(context.workspace.id, &run, after, EVENTS_PER_ANSWER).await?;
    let events =
        rows.into_iter().map(|row| Event { seq: row.seq, timestamp: crate::clock::rfc3339(row.at_us), name: row.name, data: row.data });
    Ok(Json(events.collect()))
}
