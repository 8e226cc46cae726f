//! What a handler knows about its request before it looks at it: who asks, in which workspace, under which host.
//!
//! [`Caller`] is for addresses outside a workspace, [`Context`] for the rest. The token was verified by the layer that guards
//! every route that is not public ([`crate::auth::guard`]); here the workspace is looked up, and a workspace that the
//! caller may not see is answered like one that does not exist.

use std::ops::Deref;

use axum::extract::{FromRequestParts, RawPathParams};
use http::{HeaderMap, header, request::Parts};
use trainyard_core::{
    Error, ErrorKind, Result,
    access::{Action, Decision, Principal, Role, may},
    ids::{WorkspaceId, WorkspacePath},
};
use trainyard_store::workspaces::Workspace;

use crate::{
    auth::guard::{self, Authenticated, Standing},
    clock,
    failure::Rejection,
    layers::request::RequestId,
    state::AppState,
};

/// How the end state after a cancel is spelled for this caller (see DESIGN "Status spelling"; azureml-wire H.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CancelSpelling {
    /// `Canceled`, as the service and its SDK say.
    Sdk,
    /// `Cancelled`, as the published REST example polls for.
    Plain,
}

impl CancelSpelling {
    /// The SDK sends `x-ms-client-session-id`, or says its name in `User-Agent`.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
        let names = ["azureml", "msrest", "azsdk", "azure-sdk", "azure-ai-ml", "mlflow"];
        if headers.contains_key("x-ms-client-session-id") || names.iter().any(|name| agent.contains(name)) {
            Self::Sdk
        } else {
            Self::Plain
        }
    }
}

/// Who asks, and how. Extractor of routes outside a workspace.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Identifies the request in the log and in the answer.
    pub request_id: String,
    /// Who asks.
    pub principal: Principal,
    /// `https://host` as the client used it, without a trailing slash, for absolute URLs in answers.
    pub base_url: String,
    /// Whether the caller is the code of an attempt that was given up.
    pub standing: Standing,
    /// How the end state after a cancel is spelled for this caller.
    pub spelling: CancelSpelling,
    /// The time of this request, microseconds since the epoch.
    pub now_us: i64,
}

impl Caller {
    /// Fails unless the caller may do `action` in `workspace` (`None`: on the server itself); see [`decide`].
    /// An attempt that was given up may read, and hear that it was given up, and nothing else.
    pub(crate) fn allow_in(&self, action: Action<'_>, workspace: Option<&Workspace>) -> Result<()> {
        if self.standing == Standing::Fenced && !matches!(action, Action::Read | Action::ReportAttempt(_)) {
            return Err(Error::new(ErrorKind::Forbidden, "this attempt of the run was given up; it can no longer write"));
        }
        decide(&self.principal, action, workspace.map(|workspace| workspace.id))
    }

    /// Whether the caller may know that the workspace exists.
    pub(crate) fn sees(&self, workspace: WorkspaceId) -> bool {
        may(&self.principal, Action::Read, Some(workspace)) == Decision::Allowed
    }
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Rejection> {
        let Authenticated { principal, standing } = authenticated(parts, state).await?;
        Ok(Self {
            request_id: RequestId::of(parts),
            principal,
            base_url: base_url(parts, state),
            standing,
            spelling: CancelSpelling::of(&parts.headers),
            now_us: clock::now_us(),
        })
    }
}

/// Who asks, and in which workspace. Extractor of every route with `{WS}` in its path.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// Who asks; its fields are reached directly.
    pub caller: Caller,
    /// Where.
    pub workspace: Workspace,
}

impl Deref for Context {
    type Target = Caller;
    fn deref(&self) -> &Caller {
        &self.caller
    }
}

impl Context {
    /// Fails unless the caller may do `action` in this workspace; see [`Caller::allow_in`].
    pub(crate) fn allow(&self, action: Action<'_>) -> Result<()> {
        self.caller.allow_in(action, Some(&self.workspace))
    }
}

impl FromRequestParts<AppState> for Context {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Rejection> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let path = workspace_path(parts, state).await?;
        let found = state.store.workspace_by_path(&path).await?;
        match found {
            Some(workspace) if caller.sees(workspace.id) => Ok(Self { caller, workspace }),
            Some(_) | None => Err(Rejection(workspace_not_found(&path))),
        }
    }
}

/// What the guard left in the request; a route without the guard whose handler wants to know is checked here.
async fn authenticated(parts: &Parts, state: &AppState) -> Result<Authenticated> {
    match parts.extensions.get::<Authenticated>() {
        Some(authenticated) => Ok(authenticated.clone()),
        None => guard::authenticate(parts, state).await,
    }
}

/// Fails unless `principal` may do `action` in `workspace` (`None`: on the server itself).
/// [`Forbidden`](ErrorKind::Forbidden) names what is needed; what the caller may not see is [`NotFound`](ErrorKind::NotFound).
pub(crate) fn decide(principal: &Principal, action: Action<'_>, workspace: Option<WorkspaceId>) -> Result<()> {
    match may(principal, action, workspace) {
        Decision::Allowed => Ok(()),
        Decision::Denied => Err(Error::new(ErrorKind::Forbidden, refusal(principal, action, workspace))),
        Decision::Hidden => Err(Error::not_found("the workspace was not found")),
    }
}

fn refusal(principal: &Principal, action: Action<'_>, workspace: Option<WorkspaceId>) -> String {
    let place = workspace.map_or("on the server", |_| "in the workspace");
    let needed = match action {
        Action::Read => format!("the role {} {place}", Role::Reader),
        Action::Write | Action::WriteRun(_) => format!("the role {} {place}", Role::Contributor),
        Action::Administer => format!("the role {} {place}", Role::Owner),
        Action::ReportAttempt(_) => "the token of that attempt".to_owned(),
    };
    match principal {
        Principal::App { name, .. } => format!("application `{name}` may not do this: it needs {needed}"),
        Principal::Run { run, .. } => {
            format!("the token of run `{run}` may not do this: it reads its workspace and writes only its own run")
        }
    }
}

/// The workspace named by the parameters `sub`, `rg` and `ws` of the path.
async fn workspace_path(parts: &mut Parts, state: &AppState) -> Result<WorkspacePath> {
    let params =
        RawPathParams::from_request_parts(parts, state).await.map_err(|_| Error::invalid("the path is not valid UTF-8 once decoded"))?;
    let named = |wanted: &str| params.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned()).unwrap_or_default();
    Ok(WorkspacePath { subscription_id: named("sub"), resource_group: named("rg"), workspace_name: named("ws") })
}

/// The answer for a workspace that is not there, or not there for this caller.
pub(crate) fn workspace_not_found(path: &WorkspacePath) -> Error {
    Error::not_found(format!(
        "workspace `{}` in resource group `{}` of subscription `{}` was not found",
        path.workspace_name, path.resource_group, path.subscription_id
    ))
}

/// The host that the client used: HTTP/2 has it in the address, HTTP/1.1 in `Host`.
pub(crate) fn host(parts: &Parts) -> Option<&str> {
    let named = parts.uri.authority().map(http::uri::Authority::as_str);
    named
        .or_else(|| parts.headers.get(header::HOST).and_then(|value| value.to_str().ok()))
        .filter(|host| host.parse::<http::uri::Authority>().is_ok())
}

/// `https://host`, as the client used it; the configured public URL when it named none. The server only speaks TLS.
pub(crate) fn base_url(parts: &Parts, state: &AppState) -> String {
    host(parts).map_or_else(|| state.settings.public_url.as_str().trim_end_matches('/').to_owned(), |host| format!("https://{host}"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_sdk_is_known_by_its_session_or_by_its_name() {
        let spelled = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            CancelSpelling::of(&headers)
        };
        assert_eq!(spelled("x-ms-client-session-id", "1"), CancelSpelling::Sdk);
        assert_eq!(spelled("user-agent", "python/3.11 msrest/0.7.1 azureml-core/1.61.0"), CancelSpelling::Sdk);
        assert_eq!(spelled("user-agent", "azsdk-python-ai-ml/1.35.2 Python/3.11"), CancelSpelling::Sdk);
        assert_eq!(spelled("user-agent", "python-requests/2.34.2"), CancelSpelling::Plain);
        assert_eq!(CancelSpelling::of(&HeaderMap::new()), CancelSpelling::Plain);
    }
}
