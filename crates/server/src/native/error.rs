//! The error envelope of this server's own API: `trainyard_wire::native::ErrorBody`.

use axum::response::{IntoResponse, Response};
use trainyard_core::{Error, ErrorKind};
use trainyard_wire::native::{ErrorBody, ErrorDetail};

use crate::failure::{Dialect, Failure};

/// What handlers of the native API fail with.
#[derive(Debug)]
pub(crate) struct NativeError(pub Error);

impl From<Error> for NativeError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for NativeError {
    fn into_response(self) -> Response {
        Failure::response(self.0, Some(Dialect::Native))
    }
}

/// The envelope.
pub(crate) fn envelope(error: &Error, request_id: &str) -> ErrorBody {
    ErrorBody {
        error: ErrorDetail {
            kind: kind(error.kind()).to_owned(),
            message: error.message().to_owned(),
            target: error.target().map(str::to_owned),
            request_id: Some(request_id.to_owned()),
        },
    }
}

fn kind(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "not_found",
        ErrorKind::AlreadyExists => "already_exists",
        ErrorKind::Invalid => "invalid",
        ErrorKind::Unauthenticated => "unauthenticated",
        ErrorKind::Forbidden => "forbidden",
        ErrorKind::Conflict => "conflict",
        ErrorKind::Stale => "stale",
        ErrorKind::UpgradeRequired => "upgrade_required",
        ErrorKind::TooLarge => "too_large",
        ErrorKind::TooMany => "too_many",
        ErrorKind::StorageFull => "storage_full",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Internal => "internal",
    }
}
