//! What is true of every request: it has an id, it is measured, and its answer says which request it answers.
//!
//! The span has the method and the route, never the query (signed URLs carry their right in it) and never a header. Labels of counters
//! are bounded: routes as written in the list, not paths.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts};
use tracing::{Instrument, field::Empty};
use uuid::Uuid;

use crate::state::AppState;

/// Headers that clients send to find their request again, and that come back as they were sent (azureml-wire C.1).
const ECHOED: [HeaderName; 1] = [HeaderName::from_static("x-ms-client-request-id")];
const CLIENT_REQUEST_ID: &str = "client-request-id";
const JSON_UTF8: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// The id that this server gave to the request.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub Uuid);

impl RequestId {
    /// The id of the request; a request that did not come through the layers gets one of its own.
    pub(crate) fn of(parts: &Parts) -> String {
        parts.extensions.get::<Self>().map_or_else(Uuid::new_v4, |id| id.0).to_string()
    }
}

/// Gives the request its id and span, counts it, and completes the headers of the answer.
pub(crate) async fn observe(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = Uuid::new_v4();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let echoed = echoed(request.headers());
    request.extensions_mut().insert(RequestId(id));

    let span = tracing::info_span!("request", request_id = %id, %method, route, status = Empty, latency_ms = Empty);
    let mut response = next.run(request).instrument(span.clone()).await;

    let elapsed = started.elapsed();
    let status = response.status();
    span.record("status", status.as_u16()).record("latency_ms", elapsed.as_secs_f64() * 1000.0);
    span.in_scope(|| tracing::debug!("answered"));
    state.metrics.request_answered(&method, &route, status, elapsed);
    complete(response.headers_mut(), id, echoed);
    response
}

/// What is sent back of the request's own headers.
fn echoed(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let mut echoed: Vec<_> = ECHOED.iter().filter_map(|name| headers.get(name).map(|value| (name.clone(), value.clone()))).collect();
    // The identity platform sends this one back only when asked to (azureml-wire A.1).
    let asked = headers.get("return-client-request-id").is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"));
    if asked && let Some(value) = headers.get(CLIENT_REQUEST_ID) {
        echoed.push((HeaderName::from_static(CLIENT_REQUEST_ID), value.clone()));
    }
    echoed
}

fn complete(headers: &mut HeaderMap, id: Uuid, echoed: Vec<(HeaderName, HeaderValue)>) {
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert("x-ms-request-id", id.clone());
        headers.insert("x-request-id", id);
    }
    headers.extend(echoed);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // azureml-wire H.2: answers name their character set.
    if headers.get(header::CONTENT_TYPE).is_some_and(|value| value == "application/json") {
        headers.insert(header::CONTENT_TYPE, JSON_UTF8);
    }
}
