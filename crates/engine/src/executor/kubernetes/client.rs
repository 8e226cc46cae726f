//! The way to one cluster: the connection, calls with a limit to their time, and what a refusal means.
//!
//! Documents go in and come out as JSON: what is sent may hold whatever an operator's template says, and of what is read only a few fields are
//! looked at, so that a cluster of any version can be spoken to.

use std::{
    path::PathBuf,
    sync::PoisonError,
    time::{Duration, Instant},
};

use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// How a cluster is reached. Targets with the same settings share one executor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KubernetesSettings {
    /// The file that says where the cluster is and who asks; `None`: the variable `KUBECONFIG`, the user's own file, or the pod that this server
    /// runs in.
    pub kubeconfig: Option<PathBuf>,
    /// Which of the file's contexts; `None`: its current one.
    pub context: Option<String>,
    /// Where everything is made; `None`: as the context (or the pod) says.
    pub namespace: Option<String>,
}

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// After a refused login the file is read again, but not more often than this.
const LOGIN_PAUSE: Duration = Duration::from_secs(10);

/// What went wrong with a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Kubernetes says no.
    Refused {
        /// The status.
        code: u16,
        /// Its word for the reason, e.g. `AlreadyExists`.
        reason: String,
        /// Its sentence.
        words: String,
    },
    /// Kubernetes asks to come again later.
    Busy {
        /// After this.
        after: Duration,
        /// Its sentence.
        words: String,
    },
    /// No answer, or none that can be read.
    NoAnswer(String),
}

impl Failure {
    /// What a person is told.
    pub(super) fn words(&self) -> &str {
        match self {
            Self::Refused { words, .. } | Self::Busy { words, .. } | Self::NoAnswer(words) => words,
        }
    }

    /// The status of a refusal.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Busy { .. } | Self::NoAnswer(_) => None,
        }
    }
}

/// `Status` of the API.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    message: String,
    reason: String,
    details: Option<RefusalDetails>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RefusalDetails {
    retry_after_seconds: Option<u64>,
}

#[derive(Clone)]
struct Connected {
    client: Client,
    namespace: String,
    since: Instant,
}

/// One cluster and namespace.
pub(super) struct Api {
    settings: KubernetesSettings,
    connected: std::sync::Mutex<Option<Connected>>,
    connecting: tokio::sync::Mutex<()>,
}

impl Api {
    pub(super) fn new(settings: KubernetesSettings) -> Self {
        Self { settings, connected: std::sync::Mutex::default(), connecting: tokio::sync::Mutex::default() }
    }

    /// What is at `path` of the namespace, e.g. `/apis/batch/v1/namespaces/{}/jobs`.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path, None).await
    }

    /// Makes something.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, document: &Value) -> Result<T, Failure> {
        self.call(Method::POST, path, Some(document)).await
    }

    /// Lays `document` over what is there.
    pub(super) async fn merge(&self, path: &str, document: &Value) -> Result<(), Failure> {
        self.call::<Value>(Method::PATCH, path, Some(document)).await.map(drop)
    }

    /// Removes something, which may be gone already.
    pub(super) async fn delete(&self, path: &str, options: &Value) -> Result<(), Failure> {
        match self.call::<Value>(Method::DELETE, path, Some(options)).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.code() == Some(404) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Opens an answer that goes on: the body, once Kubernetes has said that there is one.
    pub(super) async fn stream(&self, path: &str) -> Result<Body, Failure> {
        let within = tokio::time::timeout(PATIENCE, self.send(Method::GET, path, None)).await;
        within.unwrap_or_else(|_| Err(late()))
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, document: Option<&Value>) -> Result<T, Failure> {
        let whole = async {
            let body = self.send(method, path, document).await?;
            let bytes = body.collect().await.map_err(|error| no_answer(&error))?.to_bytes();
            let unreadable = |error| Failure::NoAnswer(format!("its answer cannot be read: {error}"));
            let mut document: Value = serde_json::from_slice(&bytes).map_err(unreadable)?;
            drop_nulls(&mut document);
            serde_json::from_value(document).map_err(unreadable)
        };
        tokio::time::timeout(PATIENCE, whole).await.unwrap_or_else(|_| Err(late()))
    }

    /// The body of a good answer.
    async fn send(&self, method: Method, path: &str, document: Option<&Value>) -> Result<Body, Failure> {
        let Connected { client, namespace, .. } = self.connected().await?;
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let body = match document {
            Some(document) => Body::from(serde_json::to_vec(document).map_err(|error| Failure::NoAnswer(error.to_string()))?),
            None => Body::empty(),
        };
        let request = Request::builder().method(method).uri(path.replace("{}", &namespace)).header(header::CONTENT_TYPE, kind).body(body);
        let request = request.map_err(|error| Failure::NoAnswer(error.to_string()))?;
        let response = client.send(request).await.map_err(|error| no_answer(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let after = response.headers().get(header::RETRY_AFTER).and_then(|text| text.to_str().ok()?.parse().ok());
        let bytes = response.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Err(self.failure(status, after, &bytes))
    }

    fn failure(&self, status: StatusCode, after: Option<u64>, body: &[u8]) -> Failure {
        let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
        let after = after.or(refusal.details.and_then(|details| details.retry_after_seconds));
        let words = if refusal.message.is_empty() { format!("Kubernetes answers {status}") } else { refusal.message };
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                Failure::Busy { after: Duration::from_secs(after.unwrap_or(1).clamp(1, 60)), words }
            }
            StatusCode::UNAUTHORIZED => {
                self.forget_login();
                Failure::NoAnswer(format!("the login of this server is not taken: {words}"))
            }
            status if status.is_server_error() => Failure::NoAnswer(words),
            status => Failure::Refused { code: status.as_u16(), reason: refusal.reason, words },
        }
    }

    /// What the file says may have changed since it was read.
    fn forget_login(&self) {
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        if connected.as_ref().is_some_and(|connected| connected.since.elapsed() > LOGIN_PAUSE) {
            *connected = None;
        }
    }

    fn present(&self) -> Option<Connected> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn connected(&self) -> Result<Connected, Failure> {
        if let Some(connected) = self.present() {
            return Ok(connected);
        }
        let _turn = self.connecting.lock().await;
        if let Some(connected) = self.present() {
            return Ok(connected);
        }
        let connected = self.connect().await?;
        *self.connected.lock().unwrap_or_else(PoisonError::into_inner) = Some(connected.clone());
        Ok(connected)
    }

    async fn connect(&self) -> Result<Connected, Failure> {
        // Fails only if there is a provider already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut config = self.config().await.map_err(Failure::NoAnswer)?;
        config.connect_timeout = Some(CONNECT);
        // A refusal for now is for the caller to hear.
        config.default_retry = false;
        let namespace = self.settings.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| no_answer(&error))?;
        Ok(Connected { client, namespace, since: Instant::now() })
    }

    async fn config(&self) -> Result<Config, String> {
        let unusable = |what: String, error: &dyn std::error::Error| format!("{what} cannot be used: {}", chain(error));
        let options = KubeConfigOptions { context: self.settings.context.clone(), ..KubeConfigOptions::default() };
        match &self.settings.kubeconfig {
            Some(path) => {
                let about = || format!("the kubeconfig `{}`", path.display());
                let file = Kubeconfig::read_from(path).map_err(|error| unusable(about(), &error))?;
                Config::from_custom_kubeconfig(file, &options).await.map_err(|error| unusable(about(), &error))
            }
            None if options.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(|error| unusable("the user's kubeconfig".to_owned(), &error))
            }
            None => {
                Config::infer().await.map_err(|error| unusable("neither a kubeconfig nor the service account of a pod".to_owned(), &error))
            }
        }
    }
}

/// To Kubernetes a field that is null is a field that is not there.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn late() -> Failure {
    Failure::NoAnswer(format!("no answer within {} s", PATIENCE.as_secs()))
}

fn no_answer(error: &dyn std::error::Error) -> Failure {
    Failure::NoAnswer(chain(error))
}

/// An error and what is behind it, each thing said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = inner.source();
    }
    text
}
