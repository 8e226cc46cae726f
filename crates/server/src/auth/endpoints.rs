//! The addresses of the identity platform that clients need to get a token (azureml-wire A.1, A.2).
//!
//! URLs in answers are built on the host that the client used, so that a client that believes to talk to
//! `login.microsoftonline.com` stays there.

use axum::{
    Json,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header, request::Parts};
use trainyard_core::Error;
use trainyard_store::apps::App;
use trainyard_wire::azureml::tokens::{InstanceDiscovery, InstanceMetadata, Jwks, OidcDiscovery, TokenV1, TokenV2};
use url::Url;

use super::{
    audience,
    form::TokenForm,
    oauth::{self, Marks, Refusal},
    secrets, tenant,
    tokens::{APP_TOKEN_SECONDS, AppTokenRequest},
};
use crate::{clock, context::base_url, failure::Rejection, query::Query, state::AppState};

/// Hosts of the identity platform that this server may stand in for (`trainyard exec`).
const LOGIN_HOSTS: [&str; 3] = ["login.microsoftonline.com", "login.windows.net", "sts.windows.net"];

/// Which of the two generations of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// `POST /{tenant}/oauth2/token`; the tenant `adfs` has the newer endpoint here.
pub(crate) async fn token_v1(State(state): State<AppState>, Path(tenant): Path<String>, request: Request) -> Response {
    let version = if tenant.eq_ignore_ascii_case(tenant::ADFS) { Version::V2 } else { Version::V1 };
    token(&state, version, &tenant, request).await
}

/// `POST /{tenant}/oauth2/v2.0/token`
pub(crate) async fn token_v2(State(state): State<AppState>, Path(tenant): Path<String>, request: Request) -> Response {
    token(&state, Version::V2, &tenant, request).await
}

async fn token(state: &AppState, version: Version, tenant: &str, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (marks, base_url) = (Marks::of(&parts), base_url(&parts, state));
    if !tenant::is_own(tenant, state.settings.tenant) {
        return Refusal::unknown_tenant(tenant, "invalid_request").response(&marks, &base_url);
    }
    let form = match TokenForm::read(Request::from_parts(parts, body)).await {
        Ok(form) => form,
        Err(refusal) => return refusal.response(&marks, &base_url),
    };
    let authority = Authority { tenant, version, base_url: &base_url };
    match grant(state, &authority, &form).await {
        Ok(mut response) => {
            oauth::never_stored(&mut response);
            response
        }
        Err(Denied::Refused(refusal)) => {
            let mut response = refusal.response(&marks, &base_url);
            if form.uses_basic() && refusal.status == StatusCode::UNAUTHORIZED {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"trainyard\""));
            }
            response
        }
        Err(Denied::Failed(error)) => Rejection(error).into_response(),
    }
}

enum Denied {
    Refused(Refusal),
    Failed(Error),
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Error> for Denied {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Checks the request in this order: its form, its credentials, what it asks for. So who has no credentials learns nothing of the rest.
async fn grant(state: &AppState, authority: &Authority<'_>, form: &TokenForm) -> Result<Response, Denied> {
    let grant_type = form.required("grant_type")?;
    if grant_type != "client_credentials" {
        return Err(Refusal::grant_type(grant_type).into());
    }
    let (client_id, secret) = (form.client_id()?, form.client_secret()?);
    let (resource, scope) = wanted(authority.version, form)?;
    let app = authenticated(state, client_id, secret, authority.tenant).await?;
    let resource = match resource {
        Some(resource) => resource,
        None => audience::of_scope(scope).ok_or_else(|| Refusal::bad_scope(scope))?,
    };
    if !audience::accepted(resource, &[state.settings.public_url.as_str(), authority.base_url]) {
        return Err(Refusal::unknown_resource(resource).into());
    }
    let now_us = clock::now_us();
    let request = AppTokenRequest { audience: resource, issuer: authority.issuer(state), version: authority.version.claim(), now_us };
    let (access_token, expires_on) = state.tokens.mint_app(&app, &request)?;
    tracing::debug!(app = %app.id, audience = resource, "gave out an access token");
    Ok(authority.version.answer(access_token, expires_on, resource))
}

/// The resource, or the scope that names it. Each endpoint accepts the other's field, as some clients send it to the
/// address that they know.
fn wanted(version: Version, form: &TokenForm) -> Result<(Option<&str>, &str), Refusal> {
    let (resource, scope) = (form.get("resource"), form.get("scope"));
    match (version, resource, scope) {
        (Version::V1, Some(resource), _) | (Version::V2, Some(resource), None) => Ok((Some(resource), "")),
        (_, _, Some(scope)) => Ok((None, scope)),
        (Version::V1, None, None) => Err(Refusal::missing("resource")),
        (Version::V2, None, None) => Err(Refusal::missing("scope")),
    }
}

async fn authenticated(state: &AppState, client_id: &str, secret: &str, tenant: &str) -> Result<App, Denied> {
    let app = match client_id.parse() {
        Ok(id) => state.store.app(id).await?,
        Err(_) => None,
    };
    let matches = secrets::matches(app.as_ref(), secret);
    match app {
        Some(app) if matches => Ok(app),
        Some(_) => Err(Refusal::wrong_secret(client_id).into()),
        None => Err(Refusal::unknown_app(client_id, tenant).into()),
    }
}

impl Version {
    fn claim(self) -> &'static str {
        match self {
            Self::V1 => "1.0",
            Self::V2 => "2.0",
        }
    }

    /// The older endpoint writes numbers as text.
    fn answer(self, access_token: String, expires_on: i64, resource: &str) -> Response {
        match self {
            Self::V1 => {
                Json(TokenV1::bearer(access_token, resource.to_owned(), expires_on - APP_TOKEN_SECONDS, APP_TOKEN_SECONDS)).into_response()
            }
            Self::V2 => Json(TokenV2::bearer(access_token, APP_TOKEN_SECONDS)).into_response(),
        }
    }
}

/// The authority as the client addressed it.
struct Authority<'a> {
    tenant: &'a str,
    version: Version,
    base_url: &'a str,
}

impl Authority<'_> {
    fn is_adfs(&self) -> bool {
        self.tenant.eq_ignore_ascii_case(tenant::ADFS)
    }

    /// `iss` of its tokens, and `issuer` of its discovery document.
    fn issuer(&self, state: &AppState) -> String {
        let (base_url, id) = (self.base_url, state.settings.tenant);
        match self.version {
            _ if self.is_adfs() => format!("{base_url}/{}", tenant::ADFS),
            Version::V1 => format!("{base_url}/{id}/"),
            Version::V2 => format!("{base_url}/{id}/v2.0"),
        }
    }

    fn document(&self, state: &AppState) -> OidcDiscovery {
        let base = format!("{}/{}", self.base_url, self.tenant);
        let (oauth2, keys) = match self.version {
            Version::V2 if !self.is_adfs() => ("oauth2/v2.0", "discovery/v2.0/keys"),
            Version::V1 | Version::V2 => ("oauth2", "discovery/keys"),
        };
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        OidcDiscovery {
            authorization_endpoint: format!("{base}/{oauth2}/authorize"),
            token_endpoint: format!("{base}/{oauth2}/token"),
            issuer: self.issuer(state),
            jwks_uri: format!("{base}/{keys}"),
            token_endpoint_auth_methods_supported: words(&["client_secret_post", "client_secret_basic"]),
            response_types_supported: words(&["token"]),
            subject_types_supported: words(&["pairwise"]),
            id_token_signing_alg_values_supported: words(&["ES256"]),
            grant_types_supported: words(&["client_credentials"]),
        }
    }
}

/// `GET /{tenant}/.well-known/openid-configuration` and the same under `v2.0`.
pub(crate) async fn openid_configuration(State(state): State<AppState>, Path(tenant): Path<String>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let base_url = base_url(&parts, &state);
    if !tenant::is_own(&tenant, state.settings.tenant) {
        return Refusal::unknown_tenant(&tenant, "invalid_tenant").response(&Marks::of(&parts), &base_url);
    }
    let version = if parts.uri.path().contains("/v2.0/") { Version::V2 } else { Version::V1 };
    Json(Authority { tenant: &tenant, version, base_url: &base_url }.document(&state)).into_response()
}

/// `GET /common/discovery/instance?authorization_endpoint=…`: whether an authority is one that clients may trust.
pub(crate) async fn instance_discovery(State(state): State<AppState>, query: Query, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let (marks, base_url) = (Marks::of(&parts), base_url(&parts, &state));
    let Some(asked) = query.non_empty("authorization_endpoint") else {
        return Refusal::missing("authorization_endpoint").response(&marks, &base_url);
    };
    match known_instance(asked, &parts, &state) {
        Some((host, tenant)) => Json(InstanceDiscovery {
            tenant_discovery_endpoint: format!("{base_url}/{tenant}/.well-known/openid-configuration"),
            api_version: "1.1".into(),
            metadata: vec![InstanceMetadata { preferred_network: host.clone(), preferred_cache: host.clone(), aliases: vec![host] }],
        })
        .into_response(),
        None => Refusal::unknown_instance(asked).response(&marks, &base_url),
    }
}

/// Host and tenant of an authorization endpoint, if the host is this server's or one that it stands in for. Clients leave the port out.
fn known_instance(asked: &str, parts: &Parts, state: &AppState) -> Option<(String, String)> {
    let url = Url::parse(asked).ok()?;
    let host = url.host_str()?.to_owned();
    let tenant = url.path_segments()?.next().filter(|tenant| !tenant.is_empty())?.to_owned();
    let own = Url::parse(&base_url(parts, state)).ok();
    let own = own.iter().chain([&state.settings.public_url]).filter_map(Url::host_str).any(|known| known.eq_ignore_ascii_case(&host));
    let known = own || LOGIN_HOSTS.contains(&host.as_str()) || ["localhost", "127.0.0.1", "[::1]"].contains(&host.as_str());
    (known && tenant::is_own(&tenant, state.settings.tenant)).then_some((host, tenant))
}

/// `GET /{tenant}/discovery/keys`: the public half of the key that signs tokens.
pub(crate) async fn keys(State(state): State<AppState>) -> Json<Jwks> {
    Json(state.tokens.key_set())
}

/// `GET /error?code=…`: what `error_uri` points to.
pub(crate) async fn explain(query: Query) -> Result<String, Rejection> {
    let code = query.parsed::<u32>("code", "the number after AADSTS")?;
    let explanation = code.and_then(oauth::explanation);
    explanation.map(|text| format!("{text}\n")).ok_or_else(|| Rejection(Error::not_found("this server does not give out that code")))
}
