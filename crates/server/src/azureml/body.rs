//! Bodies of this dialect: JSON with names and words in any case (azureml-wire D.6), read by [`trainyard_wire::json`].

use axum::extract::{FromRequest, Request};
use serde_json::{Map, Value};
use trainyard_core::{Error, Result};
use trainyard_wire::json::{FromJson, WireError};

use crate::{failure::Rejection, json, state::AppState};

/// A body read as `T`. A missing body and `null` count as an empty object, as they do in the service.
#[derive(Clone, Debug)]
pub(crate) struct Document<T>(pub(crate) T);

impl<T: FromJson> FromRequest<AppState> for Document<T> {
    type Rejection = Rejection;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Rejection> {
        let bytes = json::collect(request, state).await?;
        let value = if bytes.iter().all(u8::is_ascii_whitespace) { Value::Null } else { json::parse(&bytes)? };
        let value = if value.is_null() { Value::Object(Map::new()) } else { value };
        Ok(Self(T::from_json("", value).map_err(malformed)?))
    }
}

/// A malformed document as an error whose target is the place in it.
pub(crate) fn malformed(error: WireError) -> Error {
    let shown = Error::invalid(error.to_string());
    if error.path.is_empty() { shown } else { shown.with_target(error.path) }
}
