//! The part of resource management that clients call before they do anything (azureml-wire B.1, B.2): subscriptions and
//! workspaces, read only. Workspaces are made by the native API.

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use trainyard_core::{Error, ErrorKind, Result, access::Action};
use trainyard_store::workspaces::Workspace;
use trainyard_wire::azureml::{
    arm::{ArmList, Sku, Subscription, WORKSPACE_TYPE, WorkspaceProperties, WorkspaceResource},
    error::ArmError as ArmErrorBody,
    time::UtcTime,
};

use super::discovery::data_plane_url;
use crate::{
    context::{Caller, Context},
    failure::{Dialect, Failure},
    state::AppState,
};

/// What handlers of this part fail with.
#[derive(Debug)]
pub(crate) struct ArmError(pub Error);

impl From<Error> for ArmError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for ArmError {
    fn into_response(self) -> Response {
        Failure::response(self.0, Some(Dialect::Arm))
    }
}

/// The envelope of resource management.
pub(crate) fn envelope(error: &Error) -> ArmErrorBody {
    let code = match error.kind() {
        ErrorKind::NotFound => "ResourceNotFound",
        ErrorKind::AlreadyExists => "ResourceExists",
        ErrorKind::Invalid => "InvalidRequest",
        ErrorKind::Unauthenticated => "AuthenticationFailed",
        ErrorKind::Forbidden => "AuthorizationFailed",
        ErrorKind::Conflict => "Conflict",
        ErrorKind::Stale => "PreconditionFailed",
        ErrorKind::UpgradeRequired => "UpgradeRequired",
        ErrorKind::TooLarge => "RequestTooLarge",
        ErrorKind::TooMany => "TooManyRequests",
        ErrorKind::StorageFull => "InsufficientStorage",
        ErrorKind::Unavailable => "ServiceUnavailable",
        ErrorKind::Unsupported => "NotSupported",
        ErrorKind::Internal => "InternalServerError",
    };
    ArmErrorBody::new(code, error.message())
}

/// `GET /subscriptions`: those with a workspace that the caller sees.
pub(crate) async fn list_subscriptions(State(state): State<AppState>, caller: Caller) -> Result<Json<ArmList<Subscription>>, ArmError> {
    let visible = visible_workspaces(&state, &caller).await?;
    let ids: BTreeSet<String> = visible.into_iter().map(|workspace| workspace.path.subscription_id).collect();
    Ok(Json(ArmList::whole(ids.iter().map(|id| subscription(id, &state)).collect())))
}

/// `GET /subscriptions/{sub}`
pub(crate) async fn get_subscription(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Subscription>, ArmError> {
    let visible = visible_workspaces(&state, &caller).await?;
    let found = visible.iter().find(|workspace| workspace.path.subscription_id.eq_ignore_ascii_case(&id));
    let found = found.ok_or_else(|| Error::not_found(format!("subscription `{id}` was not found")))?;
    Ok(Json(subscription(&found.path.subscription_id, &state)))
}

/// `GET …/Microsoft.MachineLearningServices/workspaces` of a subscription or of a resource group.
pub(crate) async fn list_workspaces(
    State(state): State<AppState>,
    caller: Caller,
    Path(scope): Path<BTreeMap<String, String>>,
) -> Result<Json<ArmList<WorkspaceResource>>, ArmError> {
    let within = |workspace: &Workspace| {
        let named = [("sub", &workspace.path.subscription_id), ("rg", &workspace.path.resource_group)];
        named.iter().all(|(name, value)| scope.get(*name).is_none_or(|wanted| wanted.eq_ignore_ascii_case(value)))
    };
    let visible = visible_workspaces(&state, &caller).await?;
    let base_url = data_plane_url(&caller.base_url, &state.settings.region);
    Ok(Json(ArmList::whole(visible.iter().filter(|workspace| within(workspace)).map(|workspace| resource(workspace, &base_url)).collect())))
}

/// `GET {WS}`, and the same under `/rp/workspaces`.
pub(crate) async fn get_workspace(State(state): State<AppState>, context: Context) -> Result<Json<WorkspaceResource>, ArmError> {
    context.allow(Action::Read)?;
    Ok(Json(resource(&context.workspace, &data_plane_url(&context.base_url, &state.settings.region))))
}

async fn visible_workspaces(state: &AppState, caller: &Caller) -> Result<Vec<Workspace>> {
    let all = state.store.list_workspaces().await?;
    Ok(all.into_iter().filter(|workspace| caller.sees(workspace.id)).collect())
}

fn subscription(id: &str, state: &AppState) -> Subscription {
    Subscription {
        id: format!("/subscriptions/{id}"),
        subscription_id: id.to_owned(),
        display_name: format!("Trainyard {id}"),
        state: "Enabled".into(),
        tenant_id: state.settings.tenant.0,
    }
}

fn resource(workspace: &Workspace, base_url: &str) -> WorkspaceResource {
    WorkspaceResource {
        id: workspace.path.arm_id(),
        name: workspace.path.workspace_name.clone(),
        resource_type: WORKSPACE_TYPE,
        location: workspace.region.clone(),
        tags: BTreeMap::new(),
        identity: None,
        sku: Sku::BASIC,
        properties: WorkspaceProperties {
            workspace_id: workspace.id.0,
            discovery_url: format!("{base_url}/discovery/workspaces/{}", workspace.id),
            friendly_name: Some(workspace.path.workspace_name.clone()),
            description: None,
            creation_time: Some(UtcTime::from_microseconds(workspace.created_us)),
            provisioning_state: "Succeeded",
            storage_account: None,
            key_vault: None,
            application_insights: None,
            container_registry: None,
            hbi_workspace: false,
            image_build_compute: None,
            allow_public_access_when_behind_vnet: false,
        },
    }
}
