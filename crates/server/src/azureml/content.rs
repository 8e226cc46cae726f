//! The bytes of artifacts: by a signed URL as from the blob service, or with a token (azureml-wire C.9).
//!
//! An artifact is a blob, or a file that still grows. Of the latter an answer gives what is there when it begins, so that its length holds.
//! Errors of signed URLs are the blob service's, XML with `x-ms-error-code`, because its clients read them.

use std::ops::Range;

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::{Timestamp, fmt::strtime};
use trainyard_core::{Error, ErrorKind, Result, access::Action, ids::Digest};
use trainyard_store::{LiveKey, artifacts::Artifact};

use super::{
    artifacts::ArtifactPath,
    convert::artifacts::{RUN_ORIGIN, content_type, etag},
    error::AzureError,
};
use crate::{
    clock,
    context::Context,
    query::Query,
    range::{self, Wanted},
    signing::SignedQuery,
    state::AppState,
    status::status,
};

/// Pieces in which a growing file is read.
const PIECE_BYTES: u64 = 256 * 1024;

/// `GET content` of an artifact, with a token.
pub(crate) async fn get(
    State(state): State<AppState>,
    context: Context,
    path: ArtifactPath,
    headers: HeaderMap,
) -> Result<Response, AzureError> {
    context.allow(Action::Read)?;
    let artifact = path.find(&state, &context).await?;
    Ok(answer(&state, artifact, &headers).await?)
}

/// `GET` and `HEAD /azureml/{origin}/{container}/{path}` of a signed URL.
pub(crate) async fn get_signed(
    State(state): State<AppState>,
    Path((origin, container, path)): Path<(String, String, String)>,
    query: Query,
    headers: HeaderMap,
) -> Response {
    match signed(&state, (&origin, &container, &path), &query, &headers).await {
        Ok(response) => response,
        Err(error) => blob_error(&error),
    }
}

async fn signed(state: &AppState, (origin, container, path): (&str, &str, &str), query: &Query, headers: &HeaderMap) -> Result<Response> {
    let text = |name: &str| query.get(name).unwrap_or_default().to_owned();
    let signed =
        SignedQuery { workspace: text("ws"), from: text("st"), until: text("se"), permissions: text("sp"), signature: text("sig") };
    let name = state.url_signer.verify(&format!("{origin}/{container}/{path}"), &signed, clock::now_us())?;
    let found = if origin == RUN_ORIGIN { state.store.artifact(name.workspace, container, path).await? } else { None };
    answer(state, found.ok_or_else(missing)?, headers).await
}

fn missing() -> Error {
    Error::not_found("the specified blob does not exist")
}

/// The bytes that `headers` ask for.
async fn answer(state: &AppState, mut artifact: Artifact, headers: &HeaderMap) -> Result<Response> {
    let source = source(state, &mut artifact).await?;
    let size = u64::try_from(artifact.size_bytes).unwrap_or(0);
    let about = about(&artifact, &source);
    let (status, bytes) = match range::wanted(headers, size) {
        Wanted::Whole => (StatusCode::OK, 0..size),
        Wanted::Part { start, end } => (StatusCode::PARTIAL_CONTENT, start..end),
        Wanted::OutOfRange => return Ok(out_of_range(size)),
    };
    let mut response = Response::new(Body::from_stream(read(state, source, bytes.clone()).await?));
    *response.status_mut() = status;
    response.headers_mut().extend(about);
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.end - bytes.start));
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!("bytes {}-{}/{size}", bytes.start, bytes.end - 1);
        response.headers_mut().insert(header::CONTENT_RANGE, HeaderValue::from_str(&text).map_err(Error::internal)?);
    }
    Ok(response)
}

/// Where the bytes of an artifact are.
enum Source {
    Blob(Digest),
    Live(LiveKey),
}

/// Finds the bytes and sets the artifact's size to what is there. A file that was growing when its row was read may have become a blob
/// since: then the row says so now.
async fn source(state: &AppState, artifact: &mut Artifact) -> Result<Source> {
    for _ in 0..2 {
        if let Some(digest) = &artifact.digest {
            return Ok(Source::Blob(digest.clone()));
        }
        let key = LiveKey::of(artifact).ok_or_else(missing)?;
        if let Some(length) = state.store.live_files().len(&key).await? {
            artifact.size_bytes = i64::try_from(length).map_err(Error::internal)?;
            return Ok(Source::Live(key));
        }
        let now = state.store.artifact(artifact.workspace, &artifact.container, &artifact.path).await?;
        *artifact = now.ok_or_else(missing)?;
    }
    Err(missing())
}

async fn read(state: &AppState, source: Source, bytes: Range<u64>) -> Result<BoxStream<'static, Result<Bytes>>> {
    if bytes.is_empty() {
        return Ok(stream::empty().boxed());
    }
    match source {
        Source::Blob(digest) => Ok(state.store.blobs().read(&digest, Some(bytes)).await?.stream),
        Source::Live(key) => Ok(live_pieces(state.clone(), key, bytes).boxed()),
    }
}

/// The bytes of a growing file, all of which are there. Once it has become a blob in the middle of the answer, the rest comes from the blob.
fn live_pieces(state: AppState, key: LiveKey, bytes: Range<u64>) -> impl stream::Stream<Item = Result<Bytes>> + Send + 'static {
    stream::try_unfold(bytes.start, move |offset| {
        let (state, key, end) = (state.clone(), key.clone(), bytes.end);
        async move {
            if offset >= end {
                return Ok(None);
            }
            let piece = piece(&state, &key, offset..end.min(offset + PIECE_BYTES)).await?;
            let next = offset + piece.len() as u64;
            Ok(Some((piece, next)))
        }
    })
}

async fn piece(state: &AppState, key: &LiveKey, bytes: Range<u64>) -> Result<Bytes> {
    let read = match state.store.live_files().read(key, bytes.clone()).await {
        Err(error) if error.kind() == ErrorKind::NotFound => from_blob(state, key, bytes).await?,
        other => other?,
    };
    if read.is_empty() { Err(Error::internal("a file that only grows has become shorter")) } else { Ok(read) }
}

async fn from_blob(state: &AppState, key: &LiveKey, bytes: Range<u64>) -> Result<Bytes> {
    let container = super::convert::artifacts::container_of(&key.run);
    let artifact = state.store.artifact(key.workspace, &container, &key.path).await?.ok_or_else(missing)?;
    let digest = artifact.digest.ok_or_else(missing)?;
    let reader = state.store.blobs().read(&digest, Some(bytes)).await?;
    let pieces: Vec<Bytes> = reader.stream.try_collect().await?;
    Ok(pieces.concat().into())
}

/// The headers that describe an artifact as the blob service does.
fn about(artifact: &Artifact, source: &Source) -> HeaderMap {
    let kind = match source {
        Source::Blob(_) => "BlockBlob",
        Source::Live(_) => "AppendBlob",
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(&artifact.path)));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert("x-ms-blob-type", HeaderValue::from_static(kind));
    headers.insert("x-ms-version", HeaderValue::from_static("2021-08-06"));
    let texts = [(header::ETAG, etag(artifact)), (header::LAST_MODIFIED, http_date(artifact.updated_us))];
    headers.extend(texts.into_iter().filter_map(|(name, text)| Some((name, HeaderValue::from_str(&text).ok()?))));
    headers
}

fn http_date(us: i64) -> String {
    let stamp = Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH);
    strtime::format("%a, %d %b %Y %H:%M:%S GMT", stamp).unwrap_or_default()
}

fn out_of_range(size: u64) -> Response {
    let mut response = xml_error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange", "the range starts after the end of the blob");
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

/// An error as the blob service says it. Our own faults are logged here, because the envelope layer does not see them.
fn blob_error(error: &Error) -> Response {
    let code = match error.kind() {
        ErrorKind::NotFound => "BlobNotFound",
        ErrorKind::Forbidden | ErrorKind::Unauthenticated => "AuthenticationFailed",
        ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::UpgradeRequired => "InvalidQueryParameterValue",
        ErrorKind::TooMany | ErrorKind::Unavailable => "ServerBusy",
        ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::Stale => "ConditionNotMet",
        ErrorKind::TooLarge | ErrorKind::StorageFull | ErrorKind::Internal => "InternalError",
    };
    match error.kind() {
        ErrorKind::Internal => tracing::error!(error = error.chain(), "an artifact could not be read"),
        _ => tracing::debug!(error = error.chain(), "refused to read an artifact"),
    }
    xml_error(status(error.kind()), code, error.message())
}

fn xml_error(status: StatusCode, code: &'static str, message: &str) -> Response {
    let message = message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let body = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
    let headers = [(header::CONTENT_TYPE.as_str(), "application/xml"), ("x-ms-error-code", code)];
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_http() {
        assert_eq!(http_date(1_733_431_493_388_689), "Thu, 05 Dec 2024 20:44:53 GMT");
    }

    #[test]
    fn refusals_are_those_of_the_blob_service() {
        let table = [
            (Error::not_found("x"), StatusCode::NOT_FOUND, "BlobNotFound"),
            (Error::new(ErrorKind::Forbidden, "x"), StatusCode::FORBIDDEN, "AuthenticationFailed"),
        ];
        for (error, status, code) in table {
            let response = blob_error(&error);
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()["x-ms-error-code"], code);
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/xml");
        }
    }
}
