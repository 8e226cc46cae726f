//! Errors inside answers of batches, one envelope for each item that failed (azureml-wire C.10).

use trainyard_core::Error;
use trainyard_wire::azureml::{
    error::{Correlation, ErrorResponse, InnerError, RootError},
    time::UtcTime,
};

use crate::{azureml::error::codes, context::Context, state::AppState};

/// The envelope of an item's error; logged here, because it is handled here.
pub(crate) fn to_response(error: &Error, context: &Context, state: &AppState) -> ErrorResponse {
    tracing::info!(request_id = %context.request_id, error = %error.chain(), "an item of a batch failed");
    let (code, inner) = codes(error.kind());
    let root = RootError {
        target: error.target().map(str::to_owned),
        inner_error: Some(InnerError { code: inner.to_owned(), inner_error: None }),
        ..RootError::new(code, error.message())
    };
    let operation = context.request_id.replace('-', "");
    ErrorResponse {
        error: root,
        correlation: Correlation { request: operation.get(16..).unwrap_or(&operation).to_owned(), operation },
        environment: state.settings.region.clone(),
        location: state.settings.region.clone(),
        time: UtcTime::from_microseconds(context.now_us),
        component_name: "run-history".into(),
    }
}
