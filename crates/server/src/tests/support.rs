//! A server for one test: a fresh data directory, SQLite, an engine that is stopped (nothing moves runs but the test), and
//! short words for requests.

use std::{path::Path, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;
use trainyard_core::{
    Result,
    access::{Grant, Role},
    archive::ArchiveLimits,
    ids::{AppId, AttemptId, ComputeName, TenantId, WorkspaceId, WorkspacePath},
    run::RetryPolicy,
};
use trainyard_engine::{
    EngineOptions, Handle, OrderSettings, Patience, Target, TargetContainers,
    data::Datastores,
    environment::{EnvironmentSettings, PythonFallback},
    executor::{Executor, Observation},
};
use trainyard_store::{Store, StoreOptions, apps::App, workspaces::Workspace};
use trainyard_wire::native::AttemptOrder;
use uuid::Uuid;

use crate::{
    AppState, Inner, Limits, Metrics, ServerSettings, app,
    auth::{Tokens, secrets, tokens::AppTokenRequest},
    clock,
    sealing::Sealer,
    signing::UrlSigner,
};

/// The tenant of every test server.
pub(crate) const TENANT: &str = "11111111-1111-4111-8111-111111111111";
/// A rule under which nothing is tried again.
pub(crate) const NO_RETRY: RetryPolicy = RetryPolicy { infrastructure: 0, user_code: 0, backoff_seconds: 0 };
/// The host that requests name unless they say otherwise.
pub(crate) const HOST: &str = "trainyard.test:8443";

/// An executor that has never heard of anything.
struct Nowhere;

impl Executor for Nowhere {
    fn submit<'a>(&'a self, _order: &'a AttemptOrder) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn refresh<'a>(&'a self, _order: &'a AttemptOrder) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn order(&self, _attempt: AttemptId) -> BoxFuture<'_, Result<Option<AttemptOrder>>> {
        Box::pin(async { Ok(None) })
    }
    fn fence(&self, _attempt: AttemptId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn redeliver(&self, _attempt: AttemptId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn observe(&self, _attempt: AttemptId) -> BoxFuture<'_, Result<Observation>> {
        Box::pin(async { Ok(Observation::Unknown) })
    }
    fn stop<'a>(&'a self, _attempt: AttemptId, _by: &'a str, _why: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn clean(&self, _attempt: AttemptId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<AttemptId>>> {
        Box::pin(async { Ok(vec![]) })
    }
}

/// A running server without a socket.
pub(crate) struct TestServer {
    _dir: TempDir,
    pub(crate) state: AppState,
    pub(crate) router: Router,
    /// The workspace `s`/`g`/`lab`.
    pub(crate) workspace: Workspace,
}

/// An answer, with its body read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// A header as text; empty when absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

/// Opens a store in `dir`.
pub(crate) async fn open_store(dir: &Path) -> Store {
    let options = StoreOptions { database: "sqlite".into(), blobs: "file".into(), data_dir: dir.to_owned() };
    Store::open(&options).await.unwrap()
}

impl TestServer {
    /// A server with two compute targets and the workspace `s`/`g`/`lab`.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open_store(dir.path()).await;
        let tenant: TenantId = TENANT.parse().unwrap();
        let public_url: url::Url = "https://localhost:8443".parse().unwrap();
        let tokens = Tokens::open(dir.path(), tenant, &public_url).unwrap();
        let sealer = Arc::new(Sealer::open(&dir.path().join("keys/seal")).unwrap());
        let engine = stopped_engine(dir.path(), &store, (&tokens, &sealer)).await;
        let url_signer = UrlSigner::open(&dir.path().join("keys/urls")).unwrap();
        let limits = Limits { max_json_bytes: 10_000, ..Limits::default() };
        let settings = ServerSettings {
            public_url,
            tenant,
            region: "local".into(),
            limits,
            url_signing_ttl: Duration::from_secs(60),
            environments: EnvironmentSettings { cache_dir: dir.path().join("environments"), ..EnvironmentSettings::default() },
            curated: vec![],
        };
        let inner = Inner { store, engine, tokens, url_signer, sealer, settings, ca_pem: String::new(), metrics: Metrics::default() };
        let state = AppState::new(inner);
        let workspace = add_workspace(&state, "lab").await;
        Self { _dir: dir, router: app(state.clone()), state, workspace }
    }

    /// An application with these grants, and its secret.
    pub(crate) async fn app(&self, grants: &[(Option<WorkspaceId>, Role)]) -> (App, String) {
        let secret = secrets::generate().unwrap();
        let grants = grants.iter().map(|(workspace, role)| Grant { workspace: *workspace, role: *role }).collect();
        let id = AppId(Uuid::new_v4());
        let app = App { id, name: "tester".into(), secret_sha256: secrets::hash(&secret), grants, created_us: 0, generated: false };
        self.state.store.create_app(&app).await.unwrap();
        (app, secret)
    }

    /// A token for `app` at this moment.
    pub(crate) fn token_of(&self, app: &App) -> String {
        let issuer = format!("https://{HOST}/{TENANT}/");
        let request = AppTokenRequest { audience: "https://management.azure.com/", issuer, version: "1.0", now_us: clock::now_us() };
        self.state.tokens.mint_app(app, &request).unwrap().0
    }

    /// The token of a new application with this role in the workspace.
    pub(crate) async fn token(&self, role: Role) -> String {
        self.token_of(&self.app(&[(Some(self.workspace.id), role)]).await.0)
    }

    /// The token of a new Owner of the server.
    pub(crate) async fn owner(&self) -> String {
        self.token_of(&self.app(&[(None, Role::Owner)]).await.0)
    }

    /// The ARM path of the workspace.
    pub(crate) fn ws(&self) -> String {
        self.workspace.path.arm_id()
    }

    /// Sends any request; names a host if it has none.
    pub(crate) async fn send(&self, mut request: Request<Body>) -> Answer {
        if !request.headers().contains_key(header::HOST) {
            request.headers_mut().insert(header::HOST, HOST.parse().unwrap());
        }
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    /// Sends a request with a token (none when empty) and a JSON body (none when null).
    pub(crate) async fn call(&self, method: Method, path: &str, token: &str, body: Value) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.send(request.body(body).unwrap()).await
    }

    /// GET with a token (none when empty).
    pub(crate) async fn get(&self, path: &str, token: &str) -> Answer {
        self.call(Method::GET, path, token, Value::Null).await
    }

    /// POST of a form without a token.
    pub(crate) async fn form(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        self.send(request.body(Body::from(body)).unwrap()).await
    }
}

/// A new workspace in the subscription `s`, resource group `g`.
pub(crate) async fn add_workspace(state: &AppState, name: &str) -> Workspace {
    let path = WorkspacePath { subscription_id: "s".into(), resource_group: "g".into(), workspace_name: name.into() };
    let workspace = Workspace { id: WorkspaceId(Uuid::now_v7()), path, region: "local".into(), created_us: clock::now_us() };
    state.store.create_workspace(&workspace).await.unwrap();
    workspace
}

async fn stopped_engine(dir: &Path, store: &Store, (tokens, sealer): (&Tokens, &Arc<Sealer>)) -> Handle {
    let target = |name: &str, slots| Target {
        name: ComputeName::new(name).unwrap(),
        slots,
        engine: "local",
        retries: NO_RETRY,
        environments: None,
        executor: Arc::new(Nowhere),
        containers: TargetContainers::default(),
        mpi: None,
        submit_as: None,
    };
    let environments = EnvironmentSettings {
        cache_dir: dir.join("environments"),
        python_fallback: PythonFallback::Closest,
        index_url: None,
        offline: true,
        conda_channels: vec![],
        tools_dir: dir.join("tools"),
        ..EnvironmentSettings::default()
    };
    let orders = OrderSettings {
        endpoint: format!("https://{HOST}"),
        ca_pem: String::new(),
        environments,
        archive_limits: ArchiveLimits::default(),
        grace: Duration::from_secs(1),
        spool_limit_bytes: 1 << 20,
        datastores: Arc::new(Datastores::new(Default::default(), dir.join("datastore")).unwrap()),
    };
    let targets = vec![target("cpu-cluster", 2), target("local", 1)];
    let patience = Patience { heartbeat_limit: Duration::from_secs(30), silence_limit: None };
    let engine = Handle::start(EngineOptions {
        store: store.clone(),
        targets,
        orders,
        tokens: Arc::new(tokens.clone()),
        seal: sealer.clone(),
        patience,
    });
    engine.shutdown().await;
    engine
}
