//! `/api/v1/apps`: applications, their rights and their secrets.
//!
//! An Owner of the server administers all of them; an Owner of workspaces those whose grants all lie in workspaces that he
//! owns. To everyone else, and for everything else, they do not exist.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use trainyard_core::{
    Error, ErrorKind, Result,
    access::{Action, Decision, Grant, Principal, Role, may},
    ids::AppId,
};
use trainyard_store::apps::App as Row;
use trainyard_wire::native::{App, AppSecret, NewApp};
use uuid::Uuid;

use super::{error::NativeError, grants};
use crate::{auth::secrets, clock, context::Caller, json::JsonBody, state::AppState};

/// Those that the caller administers.
pub(crate) async fn list(State(state): State<AppState>, caller: Caller) -> Result<Json<Vec<App>>, NativeError> {
    let mut apps = Vec::new();
    for row in state.store.list_apps().await?.iter().filter(|row| administers(&caller, &row.grants)) {
        let grants = grants::written(&state, &row.grants).await?;
        apps.push(App { client_id: row.id.0, name: row.name.clone(), grants, created: clock::rfc3339(row.created_us) });
    }
    Ok(Json(apps))
}

/// A new one, with its secret: the only time that it is shown.
pub(crate) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(asked): JsonBody<NewApp>,
) -> Result<Json<AppSecret>, NativeError> {
    let grants = grants::read(&state, &caller, &asked.grants).await?;
    for grant in &grants {
        // Says which role is missing where; `administers` below only knows yes and no.
        let workspace = match grant.workspace {
            Some(id) => state.store.workspace(id).await?,
            None => None,
        };
        caller.allow_in(Action::Administer, workspace.as_ref())?;
    }
    let secret = secrets::generate()?;
    let row = Row {
        id: AppId(Uuid::new_v4()),
        name: checked_name(asked.name)?,
        secret_sha256: secrets::hash(&secret),
        grants,
        created_us: caller.now_us,
        generated: false,
    };
    state.store.create_app(&row).await?;
    tracing::info!(app = %row.id, name = row.name, "made an application");
    Ok(Json(with_secret(row.id, secret, &state)))
}

/// Ends it, and all its tokens.
pub(crate) async fn delete(State(state): State<AppState>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, NativeError> {
    let row = administered(&state, &caller, &id).await?;
    keep_an_owner(&state, &row).await?;
    state.store.delete_app(row.id).await?;
    tracing::info!(app = %row.id, "deleted an application");
    Ok(StatusCode::NO_CONTENT)
}

/// A new secret; the old one and every token got with it end at once.
pub(crate) async fn rotate(State(state): State<AppState>, caller: Caller, Path(id): Path<String>) -> Result<Json<AppSecret>, NativeError> {
    let row = administered(&state, &caller, &id).await?;
    let secret = secrets::generate()?;
    state.store.set_app_secret(row.id, &secrets::hash(&secret)).await?;
    tracing::info!(app = %row.id, "rotated the secret of an application");
    Ok(Json(with_secret(row.id, secret, &state)))
}

fn administers(caller: &Caller, grants: &[Grant]) -> bool {
    let owns = |grant: &Grant| may(&caller.principal, Action::Administer, grant.workspace) == Decision::Allowed;
    match &caller.principal {
        Principal::App { .. } => {
            grants.iter().all(owns) && (!grants.is_empty() || may(&caller.principal, Action::Administer, None) == Decision::Allowed)
        }
        Principal::Run { .. } => false,
    }
}

async fn administered(state: &AppState, caller: &Caller, id: &str) -> Result<Row> {
    let unknown = || Error::not_found(format!("application `{id}` was not found"));
    let parsed: AppId = id.parse().map_err(|_| unknown())?;
    state.store.app(parsed).await?.filter(|row| administers(caller, &row.grants)).ok_or_else(unknown)
}

/// A server without an Owner could not be given one.
async fn keep_an_owner(state: &AppState, leaving: &Row) -> Result<()> {
    let owns_server = |row: &Row| row.grants.iter().any(|grant| grant.workspace.is_none() && grant.role == Role::Owner);
    if !owns_server(leaving) || state.store.list_apps().await?.iter().any(|row| row.id != leaving.id && owns_server(row)) {
        return Ok(());
    }
    let problem = format!("application `{}` is the last Owner of the server; make another one before you delete it", leaving.name);
    Err(Error::new(ErrorKind::Conflict, problem))
}

fn checked_name(name: String) -> Result<String> {
    let name = name.trim().to_owned();
    if name.is_empty() || name.chars().count() > 120 || name.chars().any(char::is_control) {
        return Err(Error::invalid("the name of an application has 1 to 120 characters, on one line").with_target("name"));
    }
    Ok(name)
}

fn with_secret(id: AppId, client_secret: String, state: &AppState) -> AppSecret {
    AppSecret { client_id: id.0, client_secret, tenant_id: state.settings.tenant.0 }
}
