//! The error body of the token and discovery endpoints (azureml-wire A.1): an OAuth word, an AADSTS code, and marks by
//! which a request is found in the log. Never a secret, not even a wrong one.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header, request::Parts};
use jiff::{Timestamp, fmt::strtime};
use trainyard_core::{Error, ErrorKind};
use trainyard_wire::azureml::error::TokenError;
use uuid::Uuid;

use crate::{clock, layers::request::RequestId};

/// By what a request is found again.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    /// The id that this server gave to the request.
    pub trace_id: String,
    /// The id that the client gave to it, or one of our own.
    pub correlation_id: String,
}

impl Marks {
    pub(crate) fn of(parts: &Parts) -> Self {
        let trace_id = RequestId::of(parts);
        let named =
            parts.headers.get("client-request-id").and_then(|value| value.to_str().ok()).and_then(|text| Uuid::parse_str(text.trim()).ok());
        let correlation_id = named.map_or_else(|| Uuid::new_v4().to_string(), |id| id.to_string());
        Self { trace_id, correlation_id }
    }
}

/// Why no token is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// The OAuth word.
    pub error: &'static str,
    /// The number after `AADSTS`.
    pub code: u32,
    /// A sentence for the person who reads the client's log.
    pub message: String,
}

impl Refusal {
    pub(crate) fn missing(parameter: &str) -> Self {
        Self::bad("invalid_request", 900_144, format!("The request body must contain the following parameter: '{parameter}'."))
    }

    pub(crate) fn repeated(parameter: &str) -> Self {
        Self::bad("invalid_request", 90_100, format!("The parameter '{parameter}' is given more than once."))
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::bad("invalid_request", 9_002_313, message.into())
    }

    pub(crate) fn grant_type(given: &str) -> Self {
        let message = format!("The grant type '{}' is not supported; this server supports 'client_credentials'.", shown(given));
        Self::bad("unsupported_grant_type", 70_003, message)
    }

    pub(crate) fn unknown_tenant(tenant: &str, word: &'static str) -> Self {
        let message = format!("Tenant '{}' not found. Check that the tenant id is the one in this server's client.json.", shown(tenant));
        Self::bad(word, 90_002, message)
    }

    pub(crate) fn unknown_app(client_id: &str, tenant: &str) -> Self {
        let message = format!(
            "Application with identifier '{}' was not found in the directory '{}'. It may have been deleted, or belong to another server.",
            shown(client_id),
            shown(tenant)
        );
        Self::bad("unauthorized_client", 700_016, message)
    }

    pub(crate) fn wrong_secret(client_id: &str) -> Self {
        let message = format!("Invalid client secret provided for app '{}'. It may have been rotated.", shown(client_id));
        Self { status: StatusCode::UNAUTHORIZED, error: "invalid_client", code: 7_000_215, message }
    }

    pub(crate) fn unknown_resource(resource: &str) -> Self {
        let message = format!(
            "The resource principal named {} was not found. Ask for https://management.azure.com/, https://ml.azure.com or this server's own URL.",
            shown(resource)
        );
        Self::bad("invalid_resource", 500_011, message)
    }

    pub(crate) fn bad_scope(scope: &str) -> Self {
        let message =
            format!("The provided value for the input parameter 'scope' is not valid: '{}'. Expected one RESOURCE/.default.", shown(scope));
        Self::bad("invalid_scope", 70_011, message)
    }

    pub(crate) fn unknown_instance(url: &str) -> Self {
        Self::bad("invalid_instance", 50_049, format!("Unknown or invalid instance: '{}'.", shown(url)))
    }

    fn bad(error: &'static str, code: u32, message: String) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error, code, message }
    }

    /// The answer, as the identity platform writes it.
    pub(crate) fn response(&self, marks: &Marks, base_url: &str) -> Response {
        tracing::debug!(code = self.code, error = self.error, "refused a token request");
        let mut response = (self.status, Json(self.body(marks, base_url))).into_response();
        never_stored(&mut response);
        response
    }

    fn body(&self, marks: &Marks, base_url: &str) -> TokenError {
        let now = Timestamp::from_microsecond(clock::now_us()).unwrap_or(Timestamp::UNIX_EPOCH);
        let timestamp = strtime::format("%Y-%m-%d %H:%M:%SZ", now).unwrap_or_default();
        let Marks { trace_id, correlation_id } = marks.clone();
        let code = self.code;
        TokenError {
            error: self.error.to_owned(),
            error_description: format!(
                "AADSTS{code}: {} Trace ID: {trace_id} Correlation ID: {correlation_id} Timestamp: {timestamp}",
                self.message
            ),
            error_codes: vec![code],
            timestamp,
            trace_id,
            correlation_id,
            error_uri: format!("{base_url}/error?code={code}"),
        }
    }
}

/// The body for a failure that is not about the token request itself: a wrong method or address, a fault of ours.
pub(crate) fn envelope(error: &Error, status: StatusCode, marks: &Marks, base_url: &str) -> TokenError {
    let (word, code) = match (error.kind(), status) {
        (_, StatusCode::METHOD_NOT_ALLOWED) => ("invalid_request", 900_561),
        (ErrorKind::Unavailable | ErrorKind::TooMany | ErrorKind::StorageFull, _) => ("temporarily_unavailable", 90_033),
        (ErrorKind::Internal, _) => ("server_error", 90_033),
        (
            ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::Invalid
            | ErrorKind::Unauthenticated
            | ErrorKind::Forbidden
            | ErrorKind::Conflict
            | ErrorKind::Stale
            | ErrorKind::TooLarge
            | ErrorKind::UpgradeRequired
            | ErrorKind::Unsupported,
            _,
        ) => ("invalid_request", 9_002_313),
    };
    Refusal { status, error: word, code, message: error.message().to_owned() }.body(marks, base_url)
}

/// What a code means and what to do, for the address in `error_uri`.
pub(crate) fn explanation(code: u32) -> Option<&'static str> {
    Some(match code {
        900_144 => {
            "a form field of the token request is missing: send grant_type, client_id, client_secret and resource (v1) or scope (v2)"
        }
        90_100 => "a form field of the token request is given more than once",
        9_002_313 => "the request is malformed: send a POST with an application/x-www-form-urlencoded body",
        70_003 => "this server supports the grant type client_credentials only",
        90_002 => "the tenant in the address is not this server's: use tenant_id of client.json, or `common`",
        700_016 => "there is no application with this client_id: see `trainyard app list`",
        7_000_215 => "the client secret is wrong, or was rotated: see `trainyard app rotate`",
        500_011 => {
            "tokens are given for https://management.azure.com/, https://management.core.windows.net/, https://ml.azure.com and this server's own URL"
        }
        70_011 => "the scope of a client credentials request is one resource followed by /.default",
        50_049 => "the authority that the client asked about is neither this server nor one that it stands in for",
        900_561 => "this address answers another method",
        90_033 => "the server could not answer; its log has the reason, by the trace id",
        _ => return None,
    })
}

/// Tokens and their refusals are for one client, once (RFC 6749, 5.1).
pub(crate) fn never_stored(response: &mut Response) {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-cache"));
    response.headers_mut().insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
}

/// What a caller wrote, short enough for a sentence and without what would break the line.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}
