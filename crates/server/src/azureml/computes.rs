//! Compute targets, in the shape of AmlCompute clusters (azureml-wire B.4). They come from the configuration; nothing here changes them.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
};
use trainyard_core::{Error, Result, access::Action, ids::ComputeName};
use trainyard_engine::Target;
use trainyard_wire::azureml::{
    arm::{ArmList, ComputeResource, ComputeSummary},
    time::UtcTime,
};

use super::arm::ArmError;
use crate::{context::Context, state::AppState};

/// `GET {WS}/computes`, and the same under `/rp/workspaces`.
pub(crate) async fn list(State(state): State<AppState>, context: Context) -> Result<Json<ArmList<ComputeResource>>, ArmError> {
    context.allow(Action::Read)?;
    let busy = state.store.busy_slots().await?;
    Ok(Json(ArmList::whole(state.engine.targets().iter().map(|target| resource(target, &context, &busy)).collect())))
}

/// `GET {WS}/computes/{compute}`: the SDK asks before every submission. Names are compared without case, as resource management does.
pub(crate) async fn get(
    State(state): State<AppState>,
    context: Context,
    Path(path): Path<BTreeMap<String, String>>,
) -> Result<Json<ComputeResource>, ArmError> {
    context.allow(Action::Read)?;
    let name = path.get("compute").map(String::as_str).unwrap_or_default();
    let target = state.engine.targets().iter().find(|target| target.name.as_str().eq_ignore_ascii_case(name));
    let target = target.ok_or_else(|| unknown(name, state.engine.targets()))?;
    Ok(Json(resource(target, &context, &state.store.busy_slots().await?)))
}

fn unknown(name: &str, targets: &[Target]) -> Error {
    let known: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
    Error::not_found(format!("compute target `{name}` is not configured; known targets: {}", known.join(", ")))
}

fn resource(target: &Target, context: &Context, busy: &BTreeMap<ComputeName, u32>) -> ComputeResource {
    ComputeResource::of(ComputeSummary {
        workspace_id: &context.workspace.path.arm_id(),
        name: target.name.as_str(),
        location: &context.workspace.region,
        engine: target.engine,
        slots: target.slots,
        running: busy.get(&target.name).copied().unwrap_or(0),
        created: UtcTime::from_microseconds(context.workspace.created_us),
    })
}
