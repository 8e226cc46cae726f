//! Where the nodes of an attempt meet: each says where it is and how far it has got, and hears the same of all others.
//!
//! What they say is in the database, so that a restart of the server changes nothing. Nothing is decided here: what follows from it every agent
//! works out for itself from the same rows.

use std::time::Duration;

use axum::{Json, body::Bytes, extract::State};
use trainyard_core::{Error, Result, run::Cause};
use trainyard_store::attempt_nodes::{AttemptNode, NodePhase};
use trainyard_wire::native::{self, Node, NodeWord, Nodes};

use super::{attempts::AgentContext, attempts::MAX_WAIT, error::NativeError};
use crate::{clock::now_us, query::Query, state::AppState};

/// The longest name of a host that is taken, in bytes; a DNS name has no more.
const MAX_HOST_BYTES: usize = 255;

/// `POST /api/v1/attempts/{attempt}/nodes/{node}`: notes what a node says; answers with what all have said.
pub(crate) async fn tell(State(state): State<AppState>, agent: AgentContext, body: Bytes) -> Result<Json<Nodes>, NativeError> {
    let word: NodeWord = serde_json::from_slice(&body).map_err(|error| Error::invalid(format!("the word cannot be read: {error}")))?;
    let run = agent.live_run(&state).await?;
    let count = run.definition.map_or(1, |definition| definition.distribution.node_count);
    let told = told(agent.named_node(count)?, word)?;
    let nodes = state.store.tell_node((agent.workspace, &agent.run, agent.attempt), told).await?;
    trainyard_store::fail_point!("node.told");
    state.engine.touch(&agent.key());
    Ok(Json(shown(&nodes)?))
}

/// `GET /api/v1/attempts/{attempt}/nodes?after={n}&wait={seconds}`: answers at once when more was said than `n`, else when that changes or the time
/// is up.
pub(crate) async fn list(State(state): State<AppState>, agent: AgentContext, query: Query) -> Result<Json<Nodes>, NativeError> {
    let number = |name: &str| query.get(name).and_then(|text| text.parse::<u64>().ok());
    let (after, wait) = (number("after"), number("wait").map_or(Duration::ZERO, Duration::from_secs).min(MAX_WAIT));
    let deadline = tokio::time::Instant::now() + wait;
    let mut changes = state.engine.subscribe(&agent.key());
    loop {
        agent.live_run(&state).await?;
        let nodes = shown(&state.store.attempt_nodes(agent.attempt).await?)?;
        if after.is_none_or(|after| nodes.progress > after) {
            return Ok(Json(nodes));
        }
        tokio::select! {
            () = changes.changed() => {}
            () = state.engine.stopping() => return Ok(Json(nodes)),
            () = tokio::time::sleep_until(deadline) => return Ok(Json(nodes)),
        }
    }
}

fn told(node: u32, word: NodeWord) -> Result<AttemptNode> {
    let NodeWord { host, ports, phase, cause, ended_ago_us } = word;
    if host.is_empty() || host.len() > MAX_HOST_BYTES || host.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(Error::invalid("the host of the node is not a name or an address").with_target("host"));
    }
    let cause: Option<Cause> = cause
        .map(serde_json::from_value)
        .transpose()
        .map_err(|error| Error::invalid(format!("the cause cannot be read: {error}")).with_target("cause"))?;
    let phase = stored(phase);
    // A node that ends says so before the last of its processes has.
    let ends = phase >= NodePhase::Ended || cause.is_some();
    let ended_us = ends.then(|| now_us().saturating_sub(ended_ago_us.unwrap_or(0).max(0)));
    Ok(AttemptNode { node, host, ports, phase, cause, ended_us })
}

fn stored(phase: native::NodePhase) -> NodePhase {
    match phase {
        native::NodePhase::Preparing => NodePhase::Preparing,
        native::NodePhase::Ready => NodePhase::Ready,
        native::NodePhase::Done => NodePhase::Done,
        native::NodePhase::Ended => NodePhase::Ended,
        native::NodePhase::Collected => NodePhase::Collected,
    }
}

fn spoken(phase: NodePhase) -> native::NodePhase {
    match phase {
        NodePhase::Preparing => native::NodePhase::Preparing,
        NodePhase::Ready => native::NodePhase::Ready,
        NodePhase::Done => native::NodePhase::Done,
        NodePhase::Ended => native::NodePhase::Ended,
        NodePhase::Collected => native::NodePhase::Collected,
    }
}

/// What the nodes of an attempt have said, for its agents and for people.
pub(super) fn shown(nodes: &[AttemptNode]) -> Result<Nodes> {
    let progress = nodes.iter().map(|node| 1 + node.phase as u64).sum();
    let node = |node: &AttemptNode| {
        Ok(Node {
            node: node.node,
            host: node.host.clone(),
            ports: node.ports.clone(),
            phase: spoken(node.phase),
            cause: node.cause.as_ref().map(serde_json::to_value).transpose().map_err(Error::internal)?,
            ended_us: node.ended_us,
        })
    };
    Ok(Nodes { progress, nodes: nodes.iter().map(node).collect::<Result<_>>()? })
}
