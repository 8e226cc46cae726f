//! Compute targets with their load.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
};
use trainyard_core::{Error, Result, access::Action};
use trainyard_engine::executor::Machine;
use trainyard_store::computes::PlacedRun;
use trainyard_wire::native::computes::{Compute, ComputeDetails, ComputeNode, ComputeRun, ComputeShare};

use super::error::NativeError;
use crate::{
    computes::{self, Load},
    context::Context,
    state::AppState,
};

/// `GET {W}/computes`: the targets with their load.
pub(crate) async fn list(State(state): State<AppState>, context: Context) -> Result<Json<Vec<Compute>>, NativeError> {
    context.allow(Action::Read)?;
    let busy = state.store.busy_slots().await?;
    let queued = state.store.queued_counts().await?;
    let computes = state.engine.targets().iter().map(|target| Compute {
        name: target.name.to_string(),
        engine: target.engine.to_owned(),
        slots: target.slots,
        busy: busy.get(&target.name).copied().unwrap_or(0),
        queued: queued.get(&target.name).copied().unwrap_or(0),
    });
    Ok(Json(computes.collect()))
}

/// `GET {W}/computes/{compute}`: one target with its machines, who holds its slots, and who waits for what. Runs of other workspaces are counted only.
pub(crate) async fn get(
    State(state): State<AppState>,
    context: Context,
    Path(path): Path<BTreeMap<String, String>>,
) -> Result<Json<ComputeDetails>, NativeError> {
    context.allow(Action::Read)?;
    let name = path.get("compute").map(String::as_str).unwrap_or_default();
    let target = state.engine.targets().iter().find(|target| target.name.as_str().eq_ignore_ascii_case(name));
    let target = target.ok_or_else(|| unknown(&state, name))?;
    let load = computes::load(&state, target, (context.workspace.id, context.now_us)).await?;
    let compute = Compute {
        name: target.name.to_string(),
        engine: target.engine.to_owned(),
        slots: target.slots,
        busy: load.busy,
        queued: load.queued,
    };
    let (nodes, nodes_error) = match computes::machines(target).await {
        Ok(machines) => (machines.map(|machines| machines.into_iter().map(node).collect()), None),
        Err(error) => (None, Some(error.message().to_owned())),
    };
    Ok(Json(details(compute, (nodes, nodes_error), load)))
}

fn unknown(state: &AppState, name: &str) -> Error {
    let known: Vec<&str> = state.engine.targets().iter().map(|target| target.name.as_str()).collect();
    let shown: String = name.chars().take(80).collect();
    Error::not_found(format!("compute target `{shown}` is not configured; known targets: {}", known.join(", ")))
}

fn details(compute: Compute, (nodes, nodes_error): (Option<Vec<ComputeNode>>, Option<String>), load: Load) -> ComputeDetails {
    let share = |(user, (busy, waiting)): (String, (u32, u64))| ComputeShare { user, busy, waiting };
    ComputeDetails {
        compute,
        nodes,
        nodes_error,
        shares: load.users.into_iter().map(share).collect(),
        others: share((String::new(), load.others)),
        running: load.running.into_iter().map(|(run, why)| shown(run, None, why)).collect(),
        queue: load.queue.into_iter().map(|waiting| shown(waiting.run, waiting.ahead, Some(waiting.why))).collect(),
        queue_beyond: load.beyond,
    }
}

fn node(machine: Machine) -> ComputeNode {
    ComputeNode { name: machine.name, state: machine.state.as_str().to_owned(), says: machine.says }
}

fn shown(run: PlacedRun, ahead: Option<u32>, why: Option<String>) -> ComputeRun {
    ComputeRun {
        run: run.run.to_string(),
        experiment: run.experiment,
        user: computes::name_of(&run.user),
        priority: run.priority,
        slots: run.slots,
        state: format!("{:?}", run.state),
        created: crate::clock::rfc3339(run.created_us),
        node: run.node,
        ahead,
        why,
    }
}
