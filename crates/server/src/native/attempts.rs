//! What agents say and ask (`wire::native`, the second half): reports, instructions, logs, outputs, the snapshot, fresh tokens.
//!
//! Every route takes the run-scoped token of exactly this attempt. Writes of an attempt that is not the run's live one are
//! refused: it was given up and is fenced.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{FromRequestParts, Path, Request, State},
    http::{HeaderMap, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use serde_json::Value;
use trainyard_core::{
    Error, ErrorKind, Result,
    access::{Action, Principal},
    definition::distribution::MAX_NODES,
    ids::{AttemptId, Digest, EnvironmentHash, RunId, WorkspaceId},
    run::{Cause, Desired, RunEvent},
};
use trainyard_engine::RunKey;
use trainyard_store::{
    artifacts::Artifact,
    environments::EnvironmentRecord,
    live_files::{LiveFiles, LiveKey},
    runs::{RunRecord, RunWarning},
    transitions::Applied,
};
use trainyard_wire::native::{
    AGENT_NODE_HEADER, AGENT_PROTOCOL, AGENT_PROTOCOL_HEADER, Command, FreshToken, Instruction, LogLength, OLDEST_AGENT_PROTOCOL, Report,
    Seal,
};

use super::error::NativeError;
use crate::{clock::now_us, context::Caller, query::Query, state::AppState};

/// The longest that an agent may ask to wait for an instruction.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);

/// The agent of one attempt, established from its token and the path.
pub(crate) struct AgentContext {
    pub(super) workspace: WorkspaceId,
    pub(super) run: RunId,
    pub(super) attempt: AttemptId,
    /// Its node of the attempt.
    node: u32,
    path: BTreeMap<String, String>,
}

impl FromRequestParts<AppState> for AgentContext {
    type Rejection = NativeError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, NativeError> {
        let caller = Caller::from_request_parts(parts, state).await.map_err(|rejection| NativeError(rejection.0))?;
        let Path(path) = Path::<BTreeMap<String, String>>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Error::invalid(rejection.body_text()))?;
        let attempt: AttemptId = path.get("attempt").map(String::as_str).unwrap_or_default().parse()?;
        let Principal::Run { workspace, run, .. } = &caller.principal else {
            return Err(Error::new(ErrorKind::Forbidden, "this route takes the token of the attempt's own agent").into());
        };
        let workspace =
            state.store.workspace(*workspace).await?.ok_or_else(|| Error::not_found("the workspace of the attempt was not found"))?;
        caller.allow_in(Action::ReportAttempt(attempt), Some(&workspace))?;
        check_protocol(&parts.headers)?;
        let node = node_of(&parts.headers)?;
        state.engine.heard(attempt, node);
        Ok(Self { workspace: workspace.id, run: run.clone(), attempt, node, path })
    }
}

impl AgentContext {
    pub(super) fn key(&self) -> RunKey {
        RunKey::new(self.workspace, &self.run)
    }

    /// The run, if this attempt is its live one.
    pub(super) async fn live_run(&self, state: &AppState) -> Result<RunRecord> {
        let run = state.store.run(self.workspace, &self.run).await?;
        match run {
            Some(run) if run.attempt == Some(self.attempt) => Ok(run),
            _ => Err(Error::new(ErrorKind::Forbidden, "this attempt is not the run's live one any more; it must stop and write nothing")),
        }
    }

    /// What is wanted of this attempt now.
    async fn instruction(&self, state: &AppState) -> Result<Instruction> {
        Ok(match self.live_run(state).await {
            Err(error) if error.kind() == ErrorKind::Forbidden => Instruction { command: Command::Abandon, by: None, why: None },
            Err(error) => return Err(error),
            Ok(run) if run.desired == Desired::Cancel => {
                Instruction { command: Command::Cancel, by: run.cancelled_by, why: run.cancel_reason }
            }
            Ok(_) => Instruction { command: Command::Continue, by: None, why: None },
        })
    }

    /// The node in the path, of an attempt on `count`: an agent speaks for its own.
    pub(super) fn named_node(&self, count: u32) -> Result<u32> {
        let named: Option<u32> = self.path.get("node").and_then(|text| text.parse().ok());
        match named {
            Some(node) if node == self.node && node < count => Ok(node),
            _ => {
                Err(Error::invalid(format!("the attempt has the nodes 0 to {}, and an agent speaks for its own", count.saturating_sub(1))))
            }
        }
    }

    fn file(&self) -> Result<&str> {
        self.path
            .get("path")
            .map(String::as_str)
            .filter(|path| !path.is_empty())
            .ok_or_else(|| Error::invalid("the path of the file is missing"))
    }

    fn artifact(&self, path: &str, now_us: i64) -> Artifact {
        Artifact {
            workspace: self.workspace,
            container: format!("dcid.{}", self.run),
            path: path.to_owned(),
            size_bytes: 0,
            digest: None,
            attempt: Some(self.attempt),
            created_us: now_us,
            updated_us: now_us,
        }
    }

    fn live_key(&self, path: &str) -> LiveKey {
        LiveKey { workspace: self.workspace, run: self.run.clone(), attempt: Some(self.attempt), path: path.to_owned() }
    }
}

/// Refuses agents that speak a version of the protocol which this server does not understand. One that says nothing speaks the first.
///
/// # Errors
/// [`ErrorKind::UpgradeRequired`].
fn check_protocol(headers: &HeaderMap) -> Result<()> {
    let version = match headers.get(AGENT_PROTOCOL_HEADER) {
        Some(text) => text.to_str().ok().and_then(|text| text.parse().ok()),
        None => Some(1),
    };
    let understood = OLDEST_AGENT_PROTOCOL..=AGENT_PROTOCOL;
    match version {
        Some(version) if understood.contains(&version) => Ok(()),
        _ => {
            let spoken = version.map_or_else(|| "a version that is no number".to_owned(), |version: u32| format!("version {version}"));
            Err(Error::new(
                ErrorKind::UpgradeRequired,
                format!(
                    "this agent speaks {spoken} of the agent's protocol, this server understands versions {OLDEST_AGENT_PROTOCOL} to {AGENT_PROTOCOL}; \
                     start a server of the version that started the agent, or cancel the run"
                ),
            )
            .with_target(AGENT_PROTOCOL_HEADER))
        }
    }
}

/// The node that an agent is on. One that does not say is on the first, or on the only one.
fn node_of(headers: &HeaderMap) -> Result<u32> {
    let Some(text) = headers.get(AGENT_NODE_HEADER) else { return Ok(0) };
    text.to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|node| *node < MAX_NODES)
        .ok_or_else(|| Error::invalid("the node of the agent is not a number of one").with_target(AGENT_NODE_HEADER))
}

/// `GET /api/v1/attempts/{attempt}/snapshot`: the zip as it was uploaded.
pub(crate) async fn snapshot(State(state): State<AppState>, agent: AgentContext) -> Result<Response, NativeError> {
    let run = agent.live_run(&state).await?;
    let id = run.snapshot.ok_or_else(|| Error::not_found(format!("run `{}` has no snapshot", run.id)))?;
    let snapshot = state.store.snapshot(agent.workspace, id).await?.ok_or_else(|| Error::internal(format!("snapshot {id} has no row")))?;
    let blob = state.store.blobs().read(&snapshot.digest, None).await?;
    let headers = [("content-type", "application/zip".to_owned()), ("content-length", blob.size.to_string())];
    Ok((headers, Body::from_stream(blob.stream)).into_response())
}

/// `POST /api/v1/attempts/{attempt}/report`: moves the run and answers with what is wanted of the agent.
pub(crate) async fn report(State(state): State<AppState>, agent: AgentContext, body: Bytes) -> Result<Json<Instruction>, NativeError> {
    let report: Report = serde_json::from_slice(&body).map_err(|error| Error::invalid(format!("the report cannot be read: {error}")))?;
    let instruction = agent.instruction(&state).await?;
    if instruction.command == Command::Abandon {
        return Ok(Json(instruction));
    }
    if agent.node > 0 && !matches!(report, Report::Alive | Report::Warning { .. }) {
        return Err(Error::invalid("only the agent of an attempt's first node says how the attempt is").into());
    }
    take(&state, &agent, report).await?;
    trainyard_store::fail_point!("report.applied");
    state.engine.touch(&agent.key());
    Ok(Json(agent.instruction(&state).await?))
}

async fn take(state: &AppState, agent: &AgentContext, report: Report) -> Result<()> {
    let attempt = agent.attempt;
    match report {
        Report::Preparing { node } => {
            state.store.set_attempt_node(attempt, &node).await?;
            apply(state, agent, RunEvent::Preparing { attempt }).await
        }
        Report::EnvironmentReady { hash, spec, lock, warnings } => {
            state.engine.end_preparation(attempt);
            if let Some(hash) = hash {
                let hash = EnvironmentHash::new(hash)?;
                let record = EnvironmentRecord { hash: hash.clone(), spec, lock: lock.unwrap_or(Value::Null), created_us: now_us() };
                state.store.put_environment(&record).await?;
                state.store.set_run_environment(agent.workspace, &agent.run, &hash).await?;
            }
            warn(state, agent, "environment", warnings).await
        }
        Report::Progress { progress } => {
            let progress =
                serde_json::from_value(progress).map_err(|error| Error::invalid(format!("the progress cannot be read: {error}")))?;
            state.engine.set_preparation(attempt, progress);
            Ok(())
        }
        Report::Started => {
            state.engine.end_preparation(attempt);
            apply(state, agent, RunEvent::Started { attempt }).await
        }
        Report::Alive => Ok(()),
        Report::Warning { message } => warn(state, agent, "agent", vec![message]).await,
        Report::Ended { cause } => {
            state.engine.end_preparation(attempt);
            let cause: Cause =
                serde_json::from_value(cause).map_err(|error| Error::invalid(format!("the cause cannot be read: {error}")))?;
            let cause = explained(state, agent, cause).await?;
            apply(state, agent, RunEvent::Ended { attempt, cause }).await
        }
        Report::Collected { warnings } => {
            warn(state, agent, "agent", warnings).await?;
            let attempt = (agent.workspace, &agent.run, agent.attempt);
            trainyard_engine::finalize::finalize(&state.store, &state.engine, attempt, now_us()).await
        }
    }
}

/// What really ended an attempt whose agent can only say that it was told to end.
async fn explained(state: &AppState, agent: &AgentContext, cause: Cause) -> Result<Cause> {
    if !cause.wants_explanation() {
        return Ok(cause);
    }
    let run = agent.live_run(state).await?;
    if run.desired == Desired::Cancel {
        // Whoever told it did so because of that.
        return Ok(Cause::Cancelled { by: run.cancelled_by, why: run.cancel_reason });
    }
    match run.target.as_deref() {
        Some(target) => Ok(state.engine.explain((target, agent.attempt), cause).await),
        None => Ok(cause),
    }
}

/// Applies an agent's event. A repeated report is success; one that makes no sense is a conflict.
async fn apply(state: &AppState, agent: &AgentContext, event: RunEvent) -> Result<()> {
    match state.store.apply(agent.workspace, &agent.run, &event, now_us()).await? {
        Applied::Changed(run) => {
            tracing::info!(run = %agent.run, attempt = %agent.attempt, state = run.state.as_str(), cause = run.cause.as_ref().map(Cause::label), "run moved");
            Ok(())
        }
        // Fenced between the check above and here: the next instruction says Abandon.
        Applied::AlreadySo | Applied::Fenced => Ok(()),
        Applied::NotAllowed { state, event } => {
            Err(Error::new(ErrorKind::Conflict, format!("the event {event} does not fit a run that is {}", state.as_str())))
        }
        Applied::NoRun => Err(Error::not_found(format!("run `{}` was not found", agent.run))),
    }
}

async fn warn(state: &AppState, agent: &AgentContext, source: &str, messages: Vec<String>) -> Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let warnings: Vec<RunWarning> = messages.into_iter().map(|message| RunWarning { source: source.to_owned(), message }).collect();
    state.store.add_run_warnings(agent.workspace, &agent.run, &warnings).await?;
    Ok(())
}

/// `GET /api/v1/attempts/{attempt}/instruction?wait={seconds}`: answers at once when the agent is to stop, else when that changes or the
/// time is up.
pub(crate) async fn instruction(
    State(state): State<AppState>,
    agent: AgentContext,
    query: Query,
) -> Result<Json<Instruction>, NativeError> {
    let wait = query.get("wait").and_then(|text| text.parse().ok()).map_or(Duration::ZERO, Duration::from_secs).min(MAX_WAIT);
    let deadline = tokio::time::Instant::now() + wait;
    let mut changes = state.engine.subscribe(&agent.key());
    loop {
        let instruction = agent.instruction(&state).await?;
        if instruction.command != Command::Continue {
            return Ok(Json(instruction));
        }
        tokio::select! {
            () = changes.changed() => {}
            () = state.engine.stopping() => return Ok(Json(instruction)),
            () = tokio::time::sleep_until(deadline) => return Ok(Json(instruction)),
        }
    }
}

/// `GET /api/v1/attempts/{attempt}/token`: a fresh run-scoped token.
pub(crate) async fn token(State(state): State<AppState>, agent: AgentContext) -> Result<Json<FreshToken>, NativeError> {
    agent.live_run(&state).await?;
    let (token, expires_on) = state.tokens.mint_run(agent.workspace, &agent.run, agent.attempt, now_us())?;
    Ok(Json(FreshToken { token, expires_on }))
}

/// `PUT /api/v1/attempts/{attempt}/logs/{path}?offset=&truncate=`: appends to a live log.
pub(crate) async fn append_log(
    State(state): State<AppState>,
    agent: AgentContext,
    query: Query,
    body: Bytes,
) -> Result<Response, NativeError> {
    agent.live_run(&state).await?;
    let path = agent.file()?;
    let offset: u64 = query
        .get("offset")
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::invalid("`offset` must be a number of bytes").with_target("offset"))?;
    let key = agent.live_key(path);
    let container = format!("dcid.{}", agent.run);
    if let Some(Artifact { digest: Some(_), size_bytes, .. }) = state.store.artifact(agent.workspace, &container, path).await? {
        // Sealed already: a repeated append from before a lost answer.
        return Ok(Json(LogLength { length: u64::try_from(size_bytes).unwrap_or(0) }).into_response());
    }
    if query.get("truncate").is_some_and(|text| text == "true") {
        state.store.live_files().remove(&key).await?;
    }
    if offset == 0 {
        state.store.upsert_artifact(&agent.artifact(path, now_us())).await?;
    }
    match state.store.live_files().append(&key, offset, body).await {
        Ok(length) => {
            trainyard_store::fail_point!("log.appended");
            state.engine.touch(&agent.key());
            Ok(Json(LogLength { length }).into_response())
        }
        Err(error) => match LiveFiles::gap(&error) {
            Some(length) => Ok((StatusCode::CONFLICT, Json(LogLength { length })).into_response()),
            None => Err(error.into()),
        },
    }
}

/// `POST /api/v1/attempts/{attempt}/logs/{path}/seal`: the log is complete; it becomes a blob.
pub(crate) async fn seal_log(State(state): State<AppState>, agent: AgentContext, body: Bytes) -> Result<Response, NativeError> {
    agent.live_run(&state).await?;
    let seal: Seal = serde_json::from_slice(&body).map_err(|error| Error::invalid(format!("the seal cannot be read: {error}")))?;
    let path = agent.file()?.strip_suffix("/seal").ok_or_else(|| Error::not_found("only `seal` can be posted to a log"))?;
    let artifact = state.store.artifact(agent.workspace, &format!("dcid.{}", agent.run), path).await?;
    let sealed = match artifact {
        Some(artifact) if artifact.digest.is_some() => artifact,
        other => {
            let live = other.unwrap_or_else(|| agent.artifact(path, now_us()));
            let length = state.store.live_files().len(&agent.live_key(path)).await?.unwrap_or(0);
            if length != seal.length {
                return Ok((StatusCode::CONFLICT, Json(LogLength { length })).into_response());
            }
            trainyard_engine::finalize::seal(&state.store, &live, now_us()).await?
        }
    };
    let length = u64::try_from(sealed.size_bytes).unwrap_or(0);
    if sealed.digest.as_ref().map(Digest::as_str) != Some(seal.sha256.as_str()) {
        // Other bytes than the agent's: forget the blob's claim so that the agent sends the log again from 0.
        state.store.upsert_artifact(&Artifact { digest: None, ..sealed }).await?;
        return Ok((StatusCode::CONFLICT, Json(LogLength { length })).into_response());
    }
    trainyard_store::fail_point!("log.sealed");
    state.engine.touch(&agent.key());
    Ok(Json(LogLength { length }).into_response())
}

/// `PUT /api/v1/attempts/{attempt}/outputs/{path}`: stores a whole file; the newest one of a path wins.
pub(crate) async fn put_output(
    State(state): State<AppState>,
    agent: AgentContext,
    request: Request<Body>,
) -> Result<StatusCode, NativeError> {
    agent.live_run(&state).await?;
    let path = agent.file()?;
    let declared = request.headers().get("x-trainyard-sha256").and_then(|value| value.to_str().ok()).map(Digest::new).transpose()?;
    let mut staged = state.store.blobs().stage(u64::MAX).await?;
    let mut body = request.into_body().into_data_stream();
    while let Some(chunk) = body.next().await {
        staged.write(chunk.map_err(|error| Error::invalid("the body ends early").with_source(error))?).await?;
    }
    let staged = staged.finish().await?;
    if declared.as_ref().is_some_and(|declared| declared != staged.digest()) {
        return Err(Error::invalid("the file does not have the SHA-256 that the agent declared; it changed while it was read").into());
    }
    let stored = state.store.blobs().commit(staged).await?;
    trainyard_store::fail_point!("output.committed");
    let artifact = Artifact {
        size_bytes: i64::try_from(stored.size).map_err(Error::internal)?,
        digest: Some(stored.digest),
        ..agent.artifact(path, now_us())
    };
    state.store.upsert_artifact(&artifact).await?;
    Ok(StatusCode::NO_CONTENT)
}
