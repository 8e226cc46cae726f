//! Writes the body of every error: one place that knows the request, the time and whose envelope it is.
//!
//! A failure is logged here, once: the whole chain of causes for our own faults, a line for debugging for everything else.
//! What the caller reads is only the public sentence.

use std::panic::AssertUnwindSafe;

use axum::{
    Json,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use trainyard_core::{Error, ErrorKind};

use crate::{
    auth::oauth,
    azureml, clock,
    context::base_url,
    failure::{Dialect, Failure},
    native,
    state::AppState,
};

/// What an envelope needs to know of the request; taken before the request is gone.
struct About {
    path: String,
    request_id: String,
    base_url: String,
    marks: oauth::Marks,
    has_token: bool,
    local: bool,
}

/// Turns panics into errors, and errors into bodies.
pub(crate) async fn render(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let about = about(&parts, &state);
    let request = Request::from_parts(parts, body);
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answer.unwrap_or_else(|panic| Failure::response(Error::internal(panic_text(panic.as_ref())), None));
    let Some(failure) = response.extensions_mut().remove::<Failure>() else { return response };
    log(&failure, response.status());
    rendered(&failure, response, &about, &state)
}

/// The answer for an address that is not in the list.
pub(crate) async fn no_route(method: Method, uri: Uri) -> Response {
    Failure::response(Error::not_found(format!("there is nothing at {method} {}", uri.path())), None)
}

/// The answer for an address that is in the list with another method; the router adds `Allow`.
pub(crate) async fn no_method(method: Method, uri: Uri) -> Response {
    let mut response =
        Failure::response(Error::invalid(format!("{} does not answer {method}; the header Allow has what it answers", uri.path())), None);
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

fn about(parts: &http::request::Parts, state: &AppState) -> About {
    let marks = oauth::Marks::of(parts);
    let base_url = base_url(parts, state);
    let host = base_url.trim_start_matches("https://").split(':').next().unwrap_or_default();
    let local = host == "localhost" || host.ends_with(".localhost");
    let has_token = parts.headers.contains_key(header::AUTHORIZATION);
    About { path: parts.uri.path().to_owned(), request_id: marks.trace_id.clone(), base_url, marks, has_token, local }
}

fn rendered(failure: &Failure, response: Response, about: &About, state: &AppState) -> Response {
    let error = &failure.error;
    let dialect = failure.dialect.unwrap_or_else(|| Dialect::of_path(&about.path));
    let now_us = clock::now_us();
    let body = match dialect {
        Dialect::AzureMl => {
            let operation = about.request_id.replace('-', "");
            let component = azureml::error::component(&about.path);
            let around = azureml::error::Surroundings { operation: &operation, region: &state.settings.region, now_us, component };
            Json(azureml::error::envelope(error, &around)).into_response()
        }
        Dialect::Arm => Json(azureml::arm::envelope(error)).into_response(),
        Dialect::Native => Json(native::error::envelope(error, &about.request_id)).into_response(),
        Dialect::OAuth => Json(oauth::envelope(error, response.status(), &about.marks, &about.base_url)).into_response(),
    };
    let (mut head, _) = response.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    let (body_head, body) = body.into_parts();
    head.headers.extend(body_head.headers);
    complete(&mut head.headers, dialect, about, now_us);
    if head.status == StatusCode::UNAUTHORIZED && dialect != Dialect::OAuth {
        challenge(&mut head.headers, error, about, state);
    }
    Response::from_parts(head, body)
}

/// The headers of errors (azureml-wire C.10).
fn complete(headers: &mut HeaderMap, dialect: Dialect, about: &About, now_us: i64) {
    if dialect == Dialect::AzureMl {
        headers.insert("x-ms-response-type", HeaderValue::from_static("error"));
        if let Ok(time) = HeaderValue::from_str(&clock::rfc3339(now_us)) {
            headers.insert(HeaderName::from_static("x-request-time"), time);
        }
        if let Ok(context) = HeaderValue::from_str(&format!("appId=cid-v1:{}", about.request_id)) {
            headers.insert("request-context", context);
        }
    }
    // A browser would take it for every port of the host, so for plain-text servers that somebody develops on localhost, too.
    if !about.local {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=15724800; includeSubDomains"));
    }
}

/// Where a token is to be had, and what was wrong with the one that came (azureml-wire A.7, RFC 6750).
fn challenge(headers: &mut HeaderMap, error: &Error, about: &About, state: &AppState) {
    let mut challenge = format!("Bearer authorization_uri=\"{}/{}\"", about.base_url, state.settings.tenant);
    if about.has_token {
        let description: String = error.message().chars().filter(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\')).collect();
        challenge.push_str(&format!(", error=\"invalid_token\", error_description=\"{description}\""));
    }
    if let Ok(value) = HeaderValue::from_str(&challenge) {
        headers.insert(header::WWW_AUTHENTICATE, value);
    }
}

fn log(failure: &Failure, status: StatusCode) {
    let chain = failure.error.chain();
    match failure.error.kind() {
        ErrorKind::Internal => tracing::error!(status = status.as_u16(), error = chain, "a request failed on this server's side"),
        ErrorKind::Unavailable | ErrorKind::StorageFull => {
            tracing::warn!(status = status.as_u16(), error = chain, "a request could not be served now");
        }
        ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::Invalid
        | ErrorKind::Unauthenticated
        | ErrorKind::Forbidden
        | ErrorKind::Conflict
        | ErrorKind::Stale
        | ErrorKind::TooLarge
        | ErrorKind::TooMany
        | ErrorKind::UpgradeRequired
        | ErrorKind::Unsupported => tracing::debug!(status = status.as_u16(), error = chain, "refused a request"),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a handler panicked: {}", text.unwrap_or_else(|| "without a message".into()))
}
