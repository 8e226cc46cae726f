//! An error on its way out.
//!
//! Handlers and extractors do not render errors: they put a [`Failure`] into the response's extensions, and the layer
//! [`crate::layers::envelope`] writes the body once, because only it knows the request id, the time and the path. So an error
//! looks the same whether a handler, an extractor, a missing route or a panic made it.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use trainyard_core::Error;

use crate::status::status;

/// Whose envelope an error is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Run history, execution, artifacts, content: azureml-wire C.10.
    AzureMl,
    /// Resource management: `{"error":{"code","message","details"}}`, azureml-wire B.2.
    Arm,
    /// This server's own API: `trainyard_wire::native::ErrorBody`.
    Native,
    /// Token and discovery endpoints: azureml-wire A.1.
    OAuth,
}

impl Dialect {
    /// The dialect that `path` is in; unknown addresses get the server's own.
    pub(crate) fn of_path(path: &str) -> Self {
        let mut segments = path.split('/').filter(|segment| !segment.is_empty()).map(str::to_ascii_lowercase);
        let first = segments.next().unwrap_or_default();
        let second = segments.next().unwrap_or_default();
        let third = segments.next().unwrap_or_default();
        match (first.as_str(), second.as_str()) {
            ("history" | "execution" | "artifact" | "content" | "metric" | "environment", _) => Self::AzureMl,
            ("subscriptions" | "rp" | "metadata", _) => Self::Arm,
            ("discovery", _) => Self::Arm,
            ("api", _) => Self::Native,
            (_, "oauth2" | ".well-known" | "discovery") => Self::OAuth,
            (_, "v2.0") if third == ".well-known" => Self::OAuth,
            _ => Self::Native,
        }
    }
}

/// What a response carries until the envelope layer has written it.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// What went wrong.
    pub error: Arc<Error>,
    /// The envelope, if not the one that follows from the path.
    pub dialect: Option<Dialect>,
}

impl Failure {
    /// A response that carries the error in the envelope of `dialect`.
    pub(crate) fn response(error: Error, dialect: Option<Dialect>) -> Response {
        let mut response = status(error.kind()).into_response();
        response.extensions_mut().insert(Self { error: Arc::new(error), dialect });
        response
    }
}

/// The rejection of extractors, which serve every dialect: the path decides the envelope.
#[derive(Debug)]
pub(crate) struct Rejection(pub Error);

impl From<Error> for Rejection {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        Failure::response(self.0, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_one_dialect() {
        let table = [
            ("/history/v1.0/subscriptions/s", Dialect::AzureMl),
            ("/Execution/v1.0/x", Dialect::AzureMl),
            ("/artifact/v2.0/x", Dialect::AzureMl),
            ("/environment/v1.0/x", Dialect::AzureMl),
            ("/subscriptions/s/resourceGroups/g", Dialect::Arm),
            ("/rp/workspaces/subscriptions", Dialect::Arm),
            ("/discovery/workspaces/x", Dialect::Arm),
            ("/common/oauth2/token", Dialect::OAuth),
            ("/common/discovery/instance", Dialect::OAuth),
            ("/common/v2.0/.well-known/openid-configuration", Dialect::OAuth),
            ("/api/v1/apps", Dialect::Native),
            ("/", Dialect::Native),
        ];
        for (path, dialect) in table {
            assert_eq!(Dialect::of_path(path), dialect, "{path}");
        }
    }
}
