//! `GET /api/v1/whoami`: what the server makes of the caller's token.

use axum::{Json, extract::State};
use trainyard_core::{Result, access::Principal};
use trainyard_wire::native::Identity;

use super::{error::NativeError, grants};
use crate::{context::Caller, state::AppState};

/// Who the caller is, and what it may do where.
pub(crate) async fn whoami(State(state): State<AppState>, caller: Caller) -> Result<Json<Identity>, NativeError> {
    Ok(Json(match &caller.principal {
        Principal::App { id, name, grants } => Identity::App {
            client_id: id.0,
            name: name.clone(),
            tenant_id: state.settings.tenant.0,
            grants: grants::written(&state, grants).await?,
        },
        Principal::Run { workspace, run, attempt } => {
            Identity::Run { workspace_id: workspace.0, run_id: run.to_string(), attempt: attempt.0, tenant_id: state.settings.tenant.0 }
        }
    }))
}
