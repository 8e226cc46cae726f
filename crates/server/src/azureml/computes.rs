//! Compute targets, in the shape of AmlCompute clusters (azureml-wire B.4). They come from the configuration; nothing here changes them.
//!
//! A cluster's nodes are the machines that its engine tells of. On the server's own machine, of which there is one, a slot stands for a node: it takes
//! one run at a time, as a node of the v1 service did.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
};
use trainyard_core::{Error, ErrorKind, Result, access::Action, ids::ComputeName};
use trainyard_engine::{
    Target,
    executor::{Machine, MachineState},
};
use trainyard_wire::azureml::{
    arm::{ArmList, ComputeResource, ComputeSummary, NodeList, NodeResource, NodeStateCounts},
    time::UtcTime,
};

use super::arm::ArmError;
use crate::{
    computes::{self, in_state},
    context::Context,
    state::AppState,
};

/// `GET {WS}/computes`, and the same under `/rp/workspaces`.
pub(crate) async fn list(State(state): State<AppState>, context: Context) -> Result<Json<ArmList<ComputeResource>>, ArmError> {
    context.allow(Action::Read)?;
    let busy = state.store.busy_slots().await?;
    let mut resources = Vec::new();
    for target in state.engine.targets() {
        resources.push(resource(target, &context, &busy).await);
    }
    Ok(Json(ArmList::whole(resources)))
}

/// `GET {WS}/computes/{compute}`: the SDK asks before every submission. Names are compared without case, as resource management does.
pub(crate) async fn get(
    State(state): State<AppState>,
    context: Context,
    Path(path): Path<BTreeMap<String, String>>,
) -> Result<Json<ComputeResource>, ArmError> {
    context.allow(Action::Read)?;
    let target = find(&state, &path)?;
    Ok(Json(resource(target, &context, &state.store.busy_slots().await?).await))
}

/// `POST {WS}/computes/{compute}/listNodes`
pub(crate) async fn nodes(
    State(state): State<AppState>,
    context: Context,
    Path(path): Path<BTreeMap<String, String>>,
) -> Result<Json<NodeList>, ArmError> {
    context.allow(Action::Read)?;
    let target = find(&state, &path)?;
    let load = computes::load(&state, target, (context.workspace.id, context.now_us)).await?;
    let node = |machine: Machine| NodeResource {
        run_id: load.running.iter().find(|(run, _)| run.node.as_ref() == Some(&machine.name)).map(|(run, _)| run.run.to_string()),
        private_ip_address: None,
        public_ip_address: None,
        port: None,
        node_state: machine.state.as_str(),
        node_id: machine.name,
    };
    Ok(Json(NodeList { nodes: computes::machines(target).await?.unwrap_or_default().into_iter().map(node).collect() }))
}

/// Everything that would make, change, start or stop a compute target.
pub(crate) async fn change(context: Context) -> Result<(), ArmError> {
    context.allow(Action::Write)?;
    let message = "compute targets come from the server's configuration; its operator adds and changes them in [compute.NAME]";
    Err(Error::new(ErrorKind::Unsupported, message).into())
}

fn find<'a>(state: &'a AppState, path: &BTreeMap<String, String>) -> Result<&'a Target> {
    let name = path.get("compute").map(String::as_str).unwrap_or_default();
    let targets = state.engine.targets();
    let found = targets.iter().find(|target| target.name.as_str().eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let known: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
        Error::not_found(format!("compute target `{name}` is not configured; known targets: {}", known.join(", ")))
    })
}

async fn resource(target: &Target, context: &Context, busy: &BTreeMap<ComputeName, u32>) -> ComputeResource {
    let machines = match target.engine {
        "local" => None,
        // An engine that does not answer must not keep anybody from submitting.
        _ => computes::machines(target).await.unwrap_or_else(|error| {
            tracing::info!(target = %target.name, error = error.chain(), "the machines of a compute target are not known");
            None
        }),
    };
    ComputeResource::of(ComputeSummary {
        workspace_id: &context.workspace.path.arm_id(),
        name: target.name.as_str(),
        location: &context.workspace.region,
        engine: target.engine,
        slots: target.slots,
        running: busy.get(&target.name).copied().unwrap_or(0),
        nodes: machines.as_deref().map(counts),
        created: UtcTime::from_microseconds(context.workspace.created_us),
    })
}

fn counts(machines: &[Machine]) -> NodeStateCounts {
    NodeStateCounts {
        idle_node_count: in_state(machines, MachineState::Idle),
        running_node_count: in_state(machines, MachineState::Running),
        preparing_node_count: in_state(machines, MachineState::Preparing),
        unusable_node_count: in_state(machines, MachineState::Unusable),
        leaving_node_count: in_state(machines, MachineState::Leaving),
        preempted_node_count: 0,
    }
}
