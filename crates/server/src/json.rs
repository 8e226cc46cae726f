//! JSON bodies of requests.
//!
//! `application/json`, `application/json-patch+json` and no type at all mean JSON (azureml-wire C.1: the SDK sends ordinary JSON as the
//! second, the published example sends none). Anything else is refused, because it would only fail later with a worse sentence.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
};
use http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use trainyard_core::{Error, ErrorKind, Result};

use crate::{failure::Rejection, state::AppState};

/// A body that must be there and be JSON of this shape.
#[derive(Clone, Debug)]
pub(crate) struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for JsonBody<T> {
    type Rejection = Rejection;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Rejection> {
        let bytes = collect(request, state).await?;
        if bytes.is_empty() {
            return Err(Rejection(Error::invalid("the body is empty: expected JSON").with_target("body")));
        }
        Ok(Self(parse(&bytes)?))
    }
}

/// The whole body, if its type may be JSON and its size is within the limit; a `Content-Length` over the limit is answered at once.
pub(crate) async fn collect(request: Request, state: &AppState) -> Result<Bytes> {
    check_type(request.headers())?;
    let limit = state.settings.limits.max_json_bytes;
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced > limit) {
        return Err(too_large(limit));
    }
    let body = http_body_util::Limited::new(request.into_body(), usize::try_from(limit).unwrap_or(usize::MAX));
    match http_body_util::BodyExt::collect(body).await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_large(limit)),
        Err(error) => Err(Error::invalid("the body ended before it was complete").with_target("body").with_source(error)),
    }
}

/// Reads JSON; the sentence of a failure says where it is.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    // Some clients (and editors) put a byte order mark first.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(bytes).map_err(|error| {
        let problem = match error.classify() {
            serde_json::error::Category::Data => "the JSON body does not have the expected shape",
            serde_json::error::Category::Syntax | serde_json::error::Category::Eof | serde_json::error::Category::Io => {
                "the body is not valid JSON"
            }
        };
        Error::invalid(format!("{problem}: {error}")).with_target("body")
    })
}

fn check_type(headers: &HeaderMap) -> Result<()> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let json = essence.is_empty()
        || essence == "application/json"
        || essence == "text/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"));
    if json {
        return Ok(());
    }
    Err(Error::invalid(format!("the body is declared as `{essence}`: expected application/json")).with_target("Content-Type"))
}

fn too_large(limit: u64) -> Error {
    Error::new(ErrorKind::TooLarge, format!("the body is larger than the limit of {limit} bytes")).with_target("body")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_syntax_error_says_the_line_and_the_column() {
        let error = parse::<Value>(b"{\n  \"a\": 1,,\n}").unwrap_err();
        assert_eq!(error.message(), "the body is not valid JSON: key must be a string at line 2 column 10");
        let error = parse::<Vec<u32>>(b"[1, \"x\"]").unwrap_err();
        assert_eq!(
            error.message(),
            "the JSON body does not have the expected shape: invalid type: string \"x\", expected u32 at line 1 column 7"
        );
    }

    #[test]
    fn the_types_that_clients_send_for_json_are_accepted() {
        for (given, fine) in [
            ("application/json", true),
            ("application/json; charset=utf-8", true),
            ("application/json-patch+json; charset=utf-8", true),
            ("Application/JSON", true),
            ("text/plain", false),
            ("multipart/form-data; boundary=x", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(given));
            assert_eq!(check_type(&headers).is_ok(), fine, "{given}");
        }
        assert!(check_type(&HeaderMap::new()).is_ok());
    }
}
