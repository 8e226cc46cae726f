//! A server as an agent sees it: HTTPS, the agent's routes of `wire::native`, everything kept in memory, and misbehaviour on request.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use axum_server::{
    accept::NoDelayAcceptor,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use trainyard_wire::native::{AGENT_PROTOCOL_HEADER, Command, FreshToken, Instruction, LogLength, Report, Seal};

/// How long a test waits for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// What the server has been told, and how it behaves.
pub(crate) struct World {
    state: Mutex<Known>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
pub(crate) struct Known {
    pub(crate) reports: Vec<Report>,
    pub(crate) logs: BTreeMap<String, Log>,
    pub(crate) outputs: BTreeMap<String, Vec<u8>>,
    pub(crate) snapshot: Vec<u8>,
    /// What every report and question is answered with.
    pub(crate) command: Option<(Command, &'static str)>,
    /// Why a cancel was asked for.
    pub(crate) why: Option<String>,
    /// Answers every call with this.
    pub(crate) refuse: Option<StatusCode>,
    /// Answers only the call for the snapshot with this.
    pub(crate) refuse_snapshot: Option<StatusCode>,
    /// Answers only calls for logs with this.
    pub(crate) refuse_logs: Option<StatusCode>,
    /// The token that is accepted.
    pub(crate) token: String,
    /// The token that the next question for one is answered with; only that one is accepted then.
    pub(crate) next_token: Option<String>,
    /// Calls that were let in.
    pub(crate) calls: u64,
    /// Calls that were not, because of their token.
    pub(crate) unauthorized: u64,
    /// The version of the agent's protocol that every call so far named.
    pub(crate) protocols: BTreeSet<Option<String>>,
}

#[derive(Clone, Default)]
pub(crate) struct Log {
    pub(crate) bytes: Vec<u8>,
    pub(crate) sealed: bool,
}

impl World {
    pub(crate) fn new(snapshot: Vec<u8>) -> Arc<Self> {
        let state = Known { snapshot, token: "token-1".into(), ..Known::default() };
        Arc::new(Self { state: Mutex::new(state), changes: watch::Sender::new(0) })
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap()
    }

    /// Changes how the server behaves.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known());
        self.changes.send_modify(|version| *version += 1);
    }

    /// Waits until what the server knows satisfies `wanted`.
    pub(crate) async fn until(&self, what: &str, mut wanted: impl FnMut(&Known) -> bool) {
        let mut changes = self.changes.subscribe();
        let waited = tokio::time::timeout(DEADLINE, async {
            while !wanted(&self.known()) {
                changes.changed().await.unwrap();
            }
        });
        if waited.await.is_err() {
            let known = self.known();
            let logs: Vec<_> = known.logs.iter().map(|(path, log)| (path, String::from_utf8_lossy(&log.bytes), log.sealed)).collect();
            panic!("still waiting for {what}; reports: {:#?}; logs: {logs:#?}", known.reports);
        }
    }

    pub(crate) async fn until_log_holds(&self, path: &str, text: &str) {
        self.until(text, |known| known.text(path).contains(text)).await;
    }

    fn instruction(&self) -> Instruction {
        let known = self.known();
        match known.command {
            Some((command, by)) => Instruction { command, by: Some(by.to_owned()), why: known.why.clone() },
            None => Instruction { command: Command::Continue, by: None, why: None },
        }
    }
}

impl Known {
    /// The log `path` as text; empty if there is none.
    pub(crate) fn text(&self, path: &str) -> String {
        self.logs.get(path).map(|log| String::from_utf8_lossy(&log.bytes).into_owned()).unwrap_or_default()
    }

    /// The phases reported, without heartbeats and repetitions.
    pub(crate) fn phases(&self) -> Vec<&'static str> {
        let name = |report: &Report| match report {
            Report::Preparing { .. } => Some("preparing"),
            Report::EnvironmentReady { .. } => Some("environment_ready"),
            Report::Started => Some("started"),
            Report::Ended { .. } => Some("ended"),
            Report::Collected { .. } => Some("collected"),
            Report::Alive | Report::Progress { .. } | Report::Warning { .. } => None,
        };
        let mut phases: Vec<_> = self.reports.iter().filter_map(name).collect();
        // A report whose answer was lost is repeated, which is harmless.
        phases.dedup();
        phases
    }

    /// What ended the attempt, as JSON.
    pub(crate) fn cause(&self) -> serde_json::Value {
        let cause = self.reports.iter().find_map(|report| if let Report::Ended { cause } = report { Some(cause.clone()) } else { None });
        cause.unwrap_or_default()
    }

    /// Warnings of the last report.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let warnings =
            self.reports.iter().find_map(|report| if let Report::Collected { warnings } = report { Some(warnings.clone()) } else { None });
        warnings.unwrap_or_default()
    }
}

/// A listening server; dropping it ends it.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    handle: axum_server::Handle<SocketAddr>,
    task: tokio::task::JoinHandle<()>,
}

/// The certificate of every server of a test, which is its own CA.
pub(crate) struct Identity {
    pub(crate) cert_pem: String,
    key_pem: String,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        Self { cert_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() }
    }
}

impl Server {
    pub(crate) async fn start(world: &Arc<World>, identity: &Identity) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config = RustlsConfig::from_pem(identity.cert_pem.clone().into(), identity.key_pem.clone().into()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = format!("https://{}", listener.local_addr().unwrap());
        let handle = axum_server::Handle::new();
        let service = routes(Arc::clone(world)).into_make_service();
        let acceptor = RustlsAcceptor::new(config).acceptor(NoDelayAcceptor::new());
        let server = axum_server::from_tcp(listener).unwrap().acceptor(acceptor).handle(handle.clone());
        let task = tokio::spawn(async move { server.serve(service).await.unwrap() });
        Self { endpoint, handle, task }
    }

    /// Ends it as a crash would: connections are cut.
    pub(crate) async fn stop(self) {
        self.handle.shutdown();
        let _ = self.task.await;
    }
}

type Shared = State<Arc<World>>;

fn routes(world: Arc<World>) -> Router {
    let attempt = Router::new()
        .route("/report", post(report))
        .route("/instruction", get(instruction))
        .route("/snapshot", get(snapshot))
        .route("/token", get(token))
        .route("/logs/{*path}", put(append).post(seal))
        .route("/outputs/{*path}", put(output))
        .layer(DefaultBodyLimit::disable());
    Router::new().nest("/api/v1/attempts/{attempt}", attempt).layer(from_fn_with_state(Arc::clone(&world), admit)).with_state(world)
}

async fn admit(State(world): Shared, request: Request, next: Next) -> Response {
    let refused = {
        let mut known = world.known();
        let bearer = format!("Bearer {}", known.token);
        let authorized = request.headers().get("authorization").is_some_and(|value| value.as_bytes() == bearer.as_bytes());
        let protocol = request.headers().get(AGENT_PROTOCOL_HEADER).map(|value| value.to_str().unwrap().to_owned());
        known.protocols.insert(protocol);
        known.unauthorized += u64::from(!authorized);
        let logs = known.refuse_logs.filter(|_| request.uri().path().contains("/logs/"));
        let refused = known.refuse.or(logs).or((!authorized).then_some(StatusCode::UNAUTHORIZED));
        if refused.is_none() {
            known.calls += 1;
        }
        refused
    };
    match refused {
        Some(status) => status.into_response(),
        None => next.run(request).await,
    }
}

async fn report(State(world): Shared, Json(report): Json<Report>) -> Json<Instruction> {
    world.set(|known| known.reports.push(report));
    Json(world.instruction())
}

async fn instruction(State(world): Shared) -> Json<Instruction> {
    let mut changes = world.changes.subscribe();
    let _ = tokio::time::timeout(Duration::from_secs(20), async {
        while world.known().command.is_none() {
            changes.changed().await.unwrap();
        }
    })
    .await;
    Json(world.instruction())
}

async fn snapshot(State(world): Shared) -> Response {
    let known = world.known();
    match known.refuse_snapshot {
        Some(status) => (status, Json(json!({ "error": { "kind": "not_found", "message": "no snapshot here" } }))).into_response(),
        None => known.snapshot.clone().into_response(),
    }
}

async fn token(State(world): Shared) -> Json<FreshToken> {
    let mut known = world.known();
    if let Some(next) = known.next_token.take() {
        known.token = next;
    }
    Json(FreshToken { token: known.token.clone(), expires_on: 4_000_000_000 })
}

async fn append(
    State(world): Shared,
    Path(path): Path<BTreeMap<String, String>>,
    Query(query): Query<BTreeMap<String, String>>,
    body: Bytes,
) -> Response {
    let offset: usize = query["offset"].parse().unwrap();
    let mut answer = None;
    world.set(|known| {
        let log = known.logs.entry(path["path"].clone()).or_default();
        if log.sealed {
            return answer = Some((StatusCode::OK, log.bytes.len()));
        }
        if query.get("truncate").is_some_and(|text| text == "true") {
            log.bytes.clear();
        }
        if offset > log.bytes.len() {
            return answer = Some((StatusCode::CONFLICT, log.bytes.len()));
        }
        let known_already = (log.bytes.len() - offset).min(body.len());
        log.bytes.extend_from_slice(&body[known_already..]);
        answer = Some((StatusCode::OK, log.bytes.len()));
    });
    let (status, length) = answer.unwrap();
    (status, Json(LogLength { length: length as u64 })).into_response()
}

async fn seal(State(world): Shared, Path(path): Path<BTreeMap<String, String>>, Json(seal): Json<Seal>) -> Response {
    let path = path["path"].strip_suffix("/seal").unwrap().to_owned();
    let mut answer = StatusCode::NOT_FOUND.into_response();
    world.set(|known| {
        let Some(log) = known.logs.get_mut(&path) else { return };
        let fits = log.bytes.len() as u64 == seal.length && hex::encode(Sha256::digest(&log.bytes)) == seal.sha256;
        log.sealed |= fits;
        let length = Json(LogLength { length: log.bytes.len() as u64 });
        answer = if fits { length.into_response() } else { (StatusCode::CONFLICT, length).into_response() };
    });
    answer
}

async fn output(State(world): Shared, Path(path): Path<BTreeMap<String, String>>, headers: HeaderMap, body: Body) -> Response {
    let Ok(bytes) = axum::body::to_bytes(body, usize::MAX).await else { return StatusCode::BAD_REQUEST.into_response() };
    if headers["x-trainyard-sha256"].to_str().unwrap() != hex::encode(Sha256::digest(&bytes)) {
        return StatusCode::BAD_REQUEST.into_response();
    }
    world.set(|known| drop(known.outputs.insert(path["path"].clone(), bytes.to_vec())));
    StatusCode::NO_CONTENT.into_response()
}
