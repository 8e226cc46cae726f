//! The command line's client: a token, the CA, the workspace, and errors as the server said them.
//!
//! It speaks the same documented API as every other client. What is worth trying again (the server is being restarted) is tried again here;
//! everything else is handed to the command.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::Mutex;
use trainyard_core::ids::WorkspacePath;

use crate::client_file::ClientFile;

/// The audience that the command line asks tokens for.
const SCOPE: &str = "https://management.azure.com/.default";

/// How long a server that does not answer is tried again by commands that wait for something.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An answer that is not a success, as the server said it.
#[derive(Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// The sentence.
    pub message: String,
    /// The part of the request that it is about.
    pub target: Option<String>,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Some(target) => write!(f, "{} (HTTP {}, {target})", self.message, self.status.as_u16()),
            None => write!(f, "{} (HTTP {})", self.message, self.status.as_u16()),
        }
    }
}

impl std::error::Error for ApiError {}

/// The server did not answer at all.
#[derive(Debug)]
pub struct Unreachable {
    endpoint: String,
    source: reqwest::Error,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no server answers at {}\nhint: start it with `trainyard serve`, or check with `trainyard doctor`", self.endpoint)
    }
}

impl std::error::Error for Unreachable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A connection to one server as one application in one workspace.
pub struct Client {
    http: reqwest::Client,
    file: ClientFile,
    workspace: WorkspacePath,
    token: Mutex<Option<(String, Instant)>>,
}

impl Client {
    /// Reads the CA and prepares the connection; nothing is sent yet. `workspace` overrides the client file's.
    pub fn new(file: ClientFile, workspace: Option<WorkspacePath>) -> Result<Self> {
        let pem = std::fs::read(&file.ca_cert).with_context(|| format!("the CA certificate {} cannot be read", file.ca_cert.display()))?;
        let roots = reqwest::Certificate::from_pem_bundle(&pem).with_context(|| format!("{} is not PEM", file.ca_cert.display()))?;
        let http = reqwest::Client::builder()
            .tls_certs_only(roots)
            .no_proxy()
            .connect_timeout(Duration::from_secs(10))
            .user_agent(concat!("trainyard/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("the HTTPS client cannot be built")?;
        let workspace = workspace.unwrap_or_else(|| file.workspace());
        Ok(Self { http, file, workspace, token: Mutex::new(None) })
    }

    /// The client file in use.
    pub fn file(&self) -> &ClientFile {
        &self.file
    }

    /// The workspace in use.
    pub fn workspace(&self) -> &WorkspacePath {
        &self.workspace
    }

    /// `{service}/v1.0{WS}{rest}` on the server, e.g. `azure("history/v1.0", "/experiments")`.
    pub fn azure(&self, service: &str, rest: &str) -> String {
        format!("/{service}{}{rest}", self.workspace.arm_id())
    }

    /// `/api/v1/subscriptions/…/workspaces/{ws}{rest}` on the server.
    pub fn native(&self, rest: &str) -> String {
        let WorkspacePath { subscription_id, resource_group, workspace_name } = &self.workspace;
        format!("/api/v1/subscriptions/{subscription_id}/resourceGroups/{resource_group}/workspaces/{workspace_name}{rest}")
    }

    /// A token of the data plane, asked for once and again before it ends.
    pub async fn token(&self) -> Result<String> {
        let mut held = self.token.lock().await;
        if let Some((token, until)) = held.as_ref()
            && Instant::now() < *until
        {
            return Ok(token.clone());
        }
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", self.file.client_id.as_str()),
            ("client_secret", self.file.client_secret.as_str()),
            ("scope", SCOPE),
        ];
        let url = format!("{}/oauth2/v2.0/token", self.file.authority);
        let response = self.http.post(url).form(&form).send().await.map_err(|error| self.unreachable(error))?;
        let answer: Value = expect_success(response).await?.json().await.context("the token endpoint's answer is not JSON")?;
        let token = answer["access_token"].as_str().context("the token endpoint's answer has no access_token")?.to_owned();
        let seconds = answer["expires_in"].as_u64().unwrap_or(600).saturating_sub(300);
        *held = Some((token.clone(), Instant::now() + Duration::from_secs(seconds)));
        Ok(token)
    }

    /// A request to `path` (with its query) that carries the token.
    pub async fn request(&self, method: Method, path: &str) -> Result<RequestBuilder> {
        let token = self.token().await?;
        Ok(self.http.request(method, format!("{}{path}", self.file.endpoint.trim_end_matches('/'))).bearer_auth(token))
    }

    /// A request without a token, to an absolute URL such as a signed one of this server.
    pub fn anonymous(&self, url: &str) -> RequestBuilder {
        self.http.get(url)
    }

    /// Sends a request; an answer that is not a success is an [`ApiError`], no answer [`Unreachable`].
    pub async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        expect_success(response).await
    }

    /// GET of a JSON document.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let response = self.send(self.request(Method::GET, path).await?).await?;
        response.json().await.with_context(|| format!("the answer of {path} cannot be read"))
    }

    /// GET of a JSON document, tried again for up to [`PATIENCE`] while the server does not answer: for commands that follow a run
    /// across a restart of the server.
    pub async fn get_patiently<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.get(path).await {
                Err(error) if is_passing(&error) && Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(300)).await,
                result => return result,
            }
        }
    }

    /// A JSON document to `path`, and the JSON answer.
    pub async fn send_json<T: DeserializeOwned>(&self, method: Method, path: &str, body: &impl Serialize) -> Result<T> {
        let response = self.send(self.request(method, path).await?.json(body)).await?;
        response.json().await.with_context(|| format!("the answer of {path} cannot be read"))
    }

    fn unreachable(&self, source: reqwest::Error) -> anyhow::Error {
        Unreachable { endpoint: self.file.endpoint.clone(), source }.into()
    }
}

/// Whether trying again may help: the server does not answer, or says that it cannot right now.
pub fn is_passing(error: &anyhow::Error) -> bool {
    if error.downcast_ref::<Unreachable>().is_some() {
        return true;
    }
    let unavailable =
        |error: &ApiError| matches!(error.status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT);
    error.downcast_ref::<ApiError>().is_some_and(unavailable) || error.downcast_ref::<reqwest::Error>().is_some()
}

async fn expect_success(response: Response) -> Result<Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body: Value = response.json().await.unwrap_or(Value::Null);
    Err(api_error(status, &body).into())
}

/// Reads any of the server's envelopes: run history and native (`error.message`), OAuth (`error_description`).
fn api_error(status: StatusCode, body: &Value) -> ApiError {
    let sentence = body["error"]["message"].as_str().or_else(|| body["error_description"].as_str());
    let message = sentence.map_or_else(|| format!("the server answered {status} without a reason"), str::to_owned);
    ApiError { status, message, target: body["error"]["target"].as_str().map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_envelope_gives_its_sentence() {
        let cases = [
            (json!({"error": {"code": "UserError", "message": "no such run", "target": "runId"}}), "no such run (HTTP 404, runId)"),
            (json!({"error": "invalid_client", "error_description": "AADSTS7000215: wrong"}), "AADSTS7000215: wrong (HTTP 404)"),
            (Value::Null, "the server answered 404 Not Found without a reason (HTTP 404)"),
        ];
        for (body, expected) in cases {
            assert_eq!(api_error(StatusCode::NOT_FOUND, &body).to_string(), expected);
        }
    }
}
