//! `/api/v1/workspaces`: what the caller sees, and new ones.

use axum::{Json, extract::State};
use trainyard_core::{
    Error, Result,
    access::Action,
    ids::{WorkspaceId, WorkspaceName, WorkspacePath},
};
use trainyard_store::workspaces::Workspace as Row;
use trainyard_wire::native::Workspace;
use uuid::Uuid;

use super::error::NativeError;
use crate::{clock, context::Caller, json::JsonBody, state::AppState};

/// Those that the caller sees.
pub(crate) async fn list(State(state): State<AppState>, caller: Caller) -> Result<Json<Vec<Workspace>>, NativeError> {
    let all = state.store.list_workspaces().await?;
    Ok(Json(all.iter().filter(|workspace| caller.sees(workspace.id)).map(written).collect()))
}

/// A new one; for Owners of the server.
pub(crate) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(asked): JsonBody<Workspace>,
) -> Result<Json<Workspace>, NativeError> {
    caller.allow_in(Action::Administer, None)?;
    let row = Row {
        id: WorkspaceId(Uuid::now_v7()),
        path: checked_path(&asked)?,
        region: asked.region.filter(|region| !region.is_empty()).unwrap_or_else(|| state.settings.region.clone()),
        created_us: caller.now_us,
    };
    state.store.create_workspace(&row).await?;
    tracing::info!(workspace = %row.id, name = row.path.workspace_name, "made a workspace");
    Ok(Json(written(&row)))
}

fn checked_path(asked: &Workspace) -> Result<WorkspacePath> {
    let workspace_name = WorkspaceName::new(asked.workspace_name.clone()).map_err(|error| error.with_target("workspace_name"))?;
    Ok(WorkspacePath {
        subscription_id: segment(&asked.subscription_id, "subscription_id")?,
        resource_group: segment(&asked.resource_group, "resource_group")?,
        workspace_name: workspace_name.into(),
    })
}

/// A name that can stand in a path as it is. Azure's resource groups have letters, digits, `_`, `-`, `.` and brackets, at most 90.
fn segment(text: &str, field: &str) -> Result<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '(' | ')');
    if text.is_empty() || text.len() > 90 || !text.chars().all(fits) || text.ends_with('.') {
        let rule = "1 to 90 letters, digits, `_`, `-`, `.`, `(` and `)`, without a dot at the end";
        return Err(Error::invalid(format!("`{text}` is not a valid {field}: expected {rule}")).with_target(field));
    }
    Ok(text.to_owned())
}

fn written(row: &Row) -> Workspace {
    Workspace {
        id: Some(row.id.0),
        subscription_id: row.path.subscription_id.clone(),
        resource_group: row.path.resource_group.clone(),
        workspace_name: row.path.workspace_name.clone(),
        region: Some(row.region.clone()),
        created: Some(clock::rfc3339(row.created_us)),
    }
}
