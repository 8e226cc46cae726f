//! The error envelope of run history, execution, artifacts and content (azureml-wire C.10).

use axum::response::{IntoResponse, Response};
use trainyard_core::{Error, ErrorKind};
use trainyard_wire::azureml::{
    error::{Correlation, ErrorResponse, InnerError, RootError},
    time::UtcTime,
};

use crate::failure::{Dialect, Failure};

/// What handlers of this dialect fail with: `Result<Json<T>, AzureError>`.
#[derive(Debug)]
pub(crate) struct AzureError(pub Error);

impl From<Error> for AzureError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for AzureError {
    fn into_response(self) -> Response {
        Failure::response(self.0, Some(Dialect::AzureMl))
    }
}

/// What the envelope says besides the error itself.
pub(crate) struct Surroundings<'a> {
    /// 32 hexadecimal digits: the whole operation.
    pub operation: &'a str,
    /// The server's region.
    pub region: &'a str,
    /// Microseconds since the epoch.
    pub now_us: i64,
    /// Which service answers: `run-history`, `execution`, ...
    pub component: &'a str,
}

/// The envelope.
pub(crate) fn envelope(error: &Error, around: &Surroundings<'_>) -> ErrorResponse {
    let (code, inner) = codes(error.kind());
    let inner_error = Some(InnerError { code: inner.to_owned(), inner_error: None });
    let request = around.operation.get(16..).unwrap_or(around.operation).to_owned();
    ErrorResponse {
        error: RootError { target: error.target().map(str::to_owned), inner_error, ..RootError::new(code, error.message()) },
        correlation: Correlation { operation: around.operation.to_owned(), request },
        environment: around.region.to_owned(),
        location: around.region.to_owned(),
        time: UtcTime::from_microseconds(around.now_us),
        component_name: around.component.to_owned(),
    }
}

/// The service whose path this is, as `componentName` says it.
pub(crate) fn component(path: &str) -> &'static str {
    match path.trim_start_matches('/').split('/').next().unwrap_or_default().to_ascii_lowercase().as_str() {
        "execution" => "execution",
        "artifact" => "artifact",
        "content" => "project-content",
        "metric" => "metric",
        "environment" => "environment",
        _ => "run-history",
    }
}

/// `error.code` (the closed list of azureml-wire C.10) and the finer `innerError.code`.
pub(crate) fn codes(kind: ErrorKind) -> (&'static str, &'static str) {
    match kind {
        ErrorKind::NotFound => ("UserError", "NotFound"),
        ErrorKind::AlreadyExists => ("UserError", "AlreadyExists"),
        ErrorKind::Invalid => ("UserError", "BadArgument"),
        ErrorKind::Unauthenticated => ("UserError", "Authentication"),
        ErrorKind::Forbidden => ("UserError", "Authorization"),
        ErrorKind::Conflict => ("UserError", "Conflict"),
        ErrorKind::Stale => ("UserError", "PreconditionFailed"),
        ErrorKind::UpgradeRequired => ("UserError", "UpgradeRequired"),
        ErrorKind::TooLarge => ("UserError", "TooLarge"),
        ErrorKind::TooMany => ("RequestThrottled", "TooManyRequests"),
        ErrorKind::StorageFull => ("ServiceError", "StorageFull"),
        ErrorKind::Unavailable => ("TransientError", "Unavailable"),
        ErrorKind::Unsupported => ("UserError", "NotSupported"),
        ErrorKind::Internal => ("ServiceError", "Internal"),
    }
}
